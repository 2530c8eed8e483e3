"""Draws what was found, as one SVG: each goal's ratio, and the time of a turn over the length of history."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.report import Row, metric_title, rows
from benchmarks.rounds import Results

_WIDTH = 1000
_ROW = 22
_LEFT = 480
_RIGHT = 940
_COLOURS = {"met": "#2a7f3e", "missed": "#b3402e"}
_LINES = {"ours": "#1f5fa8", "FastAPI by hand": "#c77d1e", "floor": "#777777"}
_CHART_HEIGHT = 320


def write_svg(results: Results, path: Path) -> None:
    """Draw.

    Args:
        results: What was found.
        path: The file.
    """
    compared = [row for row in rows(results) if row.goal.peer and not row.goal.is_difference and row.value > 0]
    bars = 70 + _ROW * len(compared)
    height = bars + _CHART_HEIGHT + 80
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_bars(compared),
        *_turn_times(results, bars + 40),
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n")


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, fill: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#cccccc", width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def _bars(compared: list[Row]) -> Iterator[str]:
    """Yield a bar for each ratio, on a logarithmic scale, and a tick where its goal lies."""
    yield _text(20, 24, "Ratio of ours to the other server; the tick is the goal", size=16)
    values = [row.value for row in compared] + [row.goal.bound for row in compared if row.goal.bound]
    low, high = min([0.2, *values]) / 1.2, max([5.0, *values]) * 1.2

    def x_of(ratio: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * math.log(ratio / low) / math.log(high / low)

    bottom = 50 + _ROW * len(compared)
    for mark in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        if low <= mark <= high:
            yield _line(x_of(mark), 42, x_of(mark), bottom, "#888888" if mark == 1 else "#dddddd")
            yield _text(x_of(mark), bottom + 14, f"{mark:g}×", anchor="middle")
    for number, row in enumerate(compared):
        y = 50 + _ROW * number
        begin, end = sorted((x_of(1), x_of(row.value)))
        colour = _COLOURS.get(row.verdict, "#8a8a8a")
        name = f"{row.goal.number}. {row.goal.scenario}: {metric_title(row.goal.metric)}"
        whose = "" if row.goal.ours == "ours" else f", {row.goal.ours}"
        yield _text(_LEFT - 8, y + 13, f"{name}{whose} / {row.goal.peer}", anchor="end", size=10)
        yield (
            f'<rect x="{begin:.1f}" y="{y + 3}" width="{max(end - begin, 1):.1f}" height="{_ROW - 8}" fill="{colour}"/>'
        )
        yield _text(_RIGHT + 8, y + 14, f"{row.value:.2f}", fill=colour)
        if row.goal.bound:
            yield _line(x_of(row.goal.bound), y, x_of(row.goal.bound), y + _ROW - 2, "black", 2)


def _turn_times(results: Results, top: float) -> Iterator[str]:
    """Yield the chart of turn time over length of history: warm turns drawn through, cold ones dashed."""
    lines = {
        (kind, warmth): [
            (length, median(times.values()))
            for length in results.size.lengths
            if (times := results.of("history", kind, f"{warmth}_{length}_ms"))
        ]
        for kind in _LINES
        for warmth in ("warm", "cold")
    }
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return
    left, right, bottom = 90, 700, top + _CHART_HEIGHT
    longest = max(results.size.lengths)
    slowest = max(time for points in lines.values() for _, time in points)
    yield _text(20, top - 6, "Time of a turn over the length of history", size=16)

    def point(length: float, time: float) -> tuple[float, float]:
        return left + (right - left) * length / longest, bottom - (_CHART_HEIGHT - 30) * time / slowest

    for part in range(5):
        length, time = longest * part / 4, slowest * part / 4
        x, y = point(length, time)
        yield _line(left, y, right, y)
        yield _text(left - 8, y + 4, f"{time:.0f} ms", anchor="end")
        yield _text(x, bottom + 18, f"{length:.0f} messages", anchor="middle", size=10)
    for number, ((kind, warmth), points) in enumerate(lines.items()):
        dash = ' stroke-dasharray="6 4"' if warmth == "cold" else ""
        path = " ".join("{:.1f},{:.1f}".format(*point(*each)) for each in points)
        yield f'<polyline points="{path}" fill="none" stroke="{_LINES[kind]}" stroke-width="2"{dash}/>'
        y = top + 40 + 20 * number
        yield f'<line x1="730" y1="{y}" x2="770" y2="{y}" stroke="{_LINES[kind]}" stroke-width="2"{dash}/>'
        yield _text(780, y + 4, f"{kind}, {warmth}")
