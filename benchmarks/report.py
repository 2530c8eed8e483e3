"""Says what was found: one table with the goals, and a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.plan import GOALS, Goal
from benchmarks.rounds import Results

_UNITS = {"rate": "/s", "hops": ""}


@dataclass(frozen=True, slots=True)
class Row:
    """A goal and what was found.

    Attributes:
        goal: The goal.
        ours: Our figures, a round each.
        peers: Those of the other server.
    """

    goal: Goal
    ours: list[float]
    peers: list[float]

    @property
    def value(self) -> float:
        """What is to be within the goal's bound: of the medians."""
        return self._compare(median(self.ours), median(self.peers) if self.peers else 0.0)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest of the rounds, each by itself."""
        pairs = zip(self.ours, self.peers or [0.0] * len(self.ours), strict=True)
        values = [self._compare(our, peer) for our, peer in pairs]
        return min(values), max(values)

    def _compare(self, our: float, peer: float) -> float:
        if not self.goal.peer:
            return our
        return our - peer if self.goal.is_difference else our / peer

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``reported`` where there is no bound, or ``not judged`` where the cores are too few."""
        if self.goal.bound is None:
            return "reported"
        if not self.goal.can_be_judged:
            return f"not judged: fewer than {self.goal.cores} cores"
        is_met = self.value >= self.goal.bound if self.goal.sense == "at least" else self.value <= self.goal.bound
        return "met" if is_met else "missed"

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        goal = self.goal
        low, high = self.spread
        unit = " ms" if goal.is_difference else "" if not goal.peer else "×"
        wanted = "" if goal.bound is None else f"{goal.sense} {goal.bound:g}{unit}"
        return [
            str(goal.number),
            f"{goal.scenario}: {metric_title(goal.metric)}",
            f"{goal.ours}: {figures(self.ours, goal.metric)}",
            f"{goal.peer}: {figures(self.peers, goal.metric)}" if goal.peer else "",
            f"{self.value:.2f}{unit} ({low:.2f}–{high:.2f})",
            wanted,
            self.verdict,
        ]


HEADINGS = ["goal", "what", "ours", "beside", "ratio (of rounds)", "wanted", ""]


def metric_title(metric: str) -> str:
    """Return a figure's name for people: ``cold_1000_ms`` is ``cold 1000``."""
    name, _, unit = metric.rpartition("_")
    return name.replace("_", " ") if unit in {"ms", "us", "mib"} else metric


def figures(values: Sequence[float], metric: str) -> str:
    """Return a median and, of several rounds, its spread, with the unit."""
    unit = _UNITS.get(metric, {"ms": " ms", "us": " µs", "mib": " MiB"}.get(metric.rpartition("_")[2], ""))
    text = f"{_short(median(values))}{unit}"
    return text if len(values) < 2 else f"{text} ({_short(min(values))}–{_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows(results: Results) -> list[Row]:
    """Return the goals of which both sides were measured.

    Args:
        results: What was found.
    """
    found = []
    for goal in GOALS:
        ours = results.of(goal.scenario, goal.ours, goal.metric)
        peers = results.of(goal.scenario, goal.peer, goal.metric)
        # Of a measurement that failed the other side counts for nothing.
        both = [number for number in ours if not goal.peer or number in peers]
        if both:
            found.append(
                Row(goal, [ours[number] for number in both], [peers[number] for number in both if number in peers])
            )
    return found


def table(results: Results) -> str:
    """Return the table, in Markdown's form, and below it what to know about it.

    Args:
        results: What was found.
    """
    lines = [HEADINGS, *(row.cells for row in rows(results))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = [_line(line, widths) for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*text, "", *_notes(results)]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _notes(results: Results) -> Iterator[str]:
    loads = [sample.load_before for sample in results.samples]
    rounds = max((sample.round for sample in results.samples), default=-1) + 1
    yield (
        f"{rounds} round(s) of {results.size.seconds} s a load; median (lowest–highest). Machine: "
        + ", ".join(f"{name} {value}" for name, value in results.machine.items())
        + "."
    )
    if loads:
        yield (
            f"Load average of the last minute before the measurements: {min(loads):.1f}–{max(loads):.1f}, "
            f"median {median(loads):.1f}; what is above about 2 is not only of the benchmarks."
        )
    yield from (f"Left out: {reason}." for reason in results.left_out)
    yield from (f"FAILED: {failure}" for failure in results.failures)


def every_figure(results: Results) -> str:
    """Return the medians of all that was measured, a line each.

    Args:
        results: What was found.
    """
    names = dict.fromkeys(
        (sample.scenario, sample.kind, metric) for sample in results.samples for metric in sample.metrics
    )
    lines = []
    for scenario, kind, metric in names:
        values = [*results.of(scenario, kind, metric).values()]
        lines.append(f"{scenario} | {kind} | {metric_title(metric)} | {figures(values, metric)}\n")
    return "".join(lines)


def write_json(results: Results, path: Path) -> None:
    """Write all figures of all rounds, and the goals.

    Args:
        results: What was found.
        path: The file.
    """
    goals = [
        dataclasses.asdict(row.goal) | {"value": row.value, "spread": row.spread, "verdict": row.verdict}
        for row in rows(results)
    ]
    path.write_text(json.dumps(dataclasses.asdict(results) | {"goals": goals}, indent=1) + "\n")
