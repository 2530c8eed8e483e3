"""Small bar charts as what an inline SVG needs: places as text, and words for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.formats import date_format
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from invocations_app.admin.display import about, whole
from invocations_app.admin.overview import Span, Step

WIDTH = 120
HEIGHT = 32

# What is not nothing can be seen.
_LEAST = 1.5


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; its places are texts, which no locale writes with a comma.

    Attributes:
        kind: What it shows; part of the name of its style.
        x: Left side.
        y: Upper side.
        width: Width.
        height: Height.
        label: What it says when it is pointed at.
    """

    kind: str
    x: str
    y: str
    width: str
    height: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in words and rectangles.

    Attributes:
        title: What it shows.
        description: What is to be seen in it.
        boxes: The rectangles.
    """

    title: str
    description: str
    boxes: tuple[Box, ...]


def runs(span: Span) -> Chart:
    """Return the chart of runs, errors at the foot of the bars.

    Args:
        span: What is shown.
    """
    most = max(step.tally.runs for step in span.steps)
    bars = []
    for step in span.steps:
        tally = step.tally
        label = _("%(time)s: %(runs)s, %(errors)s") % {
            "time": begin_of(step),
            "runs": _runs(tally.runs),
            "errors": _errors(tally.errors),
        }
        bars.append([("runs", 0, tally.runs, label), ("errors", 0, tally.errors, label)])
    return Chart(
        _("Runs, %(window)s") % {"window": str(span.window.title).lower()},
        _("Bars of %(step)s each. Together: %(runs)s, %(errors)s; in the highest bar: %(most)s.")
        % {
            "step": span.window.step,
            "runs": _runs(span.total.runs),
            "errors": _errors(span.total.errors),
            "most": _runs(most),
        },
        _boxes(bars, most),
    )


def durations(span: Span) -> Chart:
    """Return the chart of durations: a bar from the median to the 95th percentile of each step.

    Args:
        span: What is shown.
    """
    longest = max(step.tally.duration_p95 or 0 for step in span.steps)
    bars = []
    for step in span.steps:
        median, high = step.tally.duration_p50, step.tally.duration_p95
        label = _("%(time)s: p50 %(median)s, p95 %(high)s") % {
            "time": begin_of(step),
            "median": about(median),
            "high": about(high),
        }
        bars.append([] if median is None or high is None else [("durations", median, high, label)])
    return Chart(
        _("Duration, %(window)s") % {"window": str(span.window.title).lower()},
        _("Bars of %(step)s each, from the median to the 95th percentile. The highest ends at %(longest)s.")
        % {"step": span.window.step, "longest": about(longest or None)},
        _boxes(bars, longest),
    )


def begin_of(step: Step) -> str:
    """Return when a step begins, in the reader's zone and language."""
    moment = localtime(step.begins_at) if is_aware(step.begins_at) else step.begins_at
    return date_format(moment, "SHORT_DATETIME_FORMAT")


def _boxes(bars: Sequence[Sequence[tuple[str, float, float, str]]], highest: float) -> tuple[Box, ...]:
    """Return the rectangles of bars, each of pieces: kind, lower end, upper end, label."""
    pitch = WIDTH / len(bars)
    boxes = []
    for place, bar in enumerate(bars):
        for kind, low, high, label in bar:
            if high <= 0:
                continue
            top, foot = HEIGHT * (1 - high / highest), HEIGHT * (1 - low / highest)
            top = max(0.0, min(top, foot - _LEAST))
            boxes.append(
                Box(
                    kind,
                    f"{place * pitch + 0.5:.2f}",
                    f"{top:.2f}",
                    f"{pitch - 1:.2f}",
                    f"{max(foot - top, _LEAST):.2f}",
                    label,
                )
            )
    return tuple(boxes)


def _runs(number: int) -> str:
    return ngettext("%(number)s run", "%(number)s runs", number) % {"number": whole(number)}


def _errors(number: int) -> str:
    return ngettext("%(number)s error", "%(number)s errors", number) % {"number": whole(number)}
