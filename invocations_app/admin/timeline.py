"""The timeline of one invocation: what is known of its times, and nothing else.

A step without a recorded time has its place in the order, and no offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from invocations_app.admin.display import duration_of, excerpt, seconds
from invocations_app.models import InvocationRecord
from invocations_app.storage import steps
from invocations_app.storage.invocations import LIVE

Status = InvocationRecord.Status

WIDTH = 1000
# Invocations ahead in the line are counted up to here.
_MAX_AHEAD = 100
_MAX_ASKED = 50
#: Parts of the bar that are named below it.
MAX_NAMED = 9


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the timeline.

    Attributes:
        label: What happened.
        at: When; None where that is not recorded.
        offset: Time since the invocation was begun; empty where it is not known.
        note: More about it; empty for nothing.
        name: Name of a tool or executor; empty for none.
    """

    label: str
    at: datetime | None = None
    offset: str = ""
    note: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the bar.

    Attributes:
        kind: ``waiting``, ``working``, ``answering``, or ``tool`` above one of these.
        label: What it stands for, and how long it took.
        x: Where it starts, of `WIDTH`.
        width: How wide it is.
    """

    kind: str
    label: str
    x: int
    width: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a page shows of the times of an invocation.

    Attributes:
        steps: In order.
        segments: The parts of the bar; none where nothing has a length.
        duration: Time from begin to end, or until now.
        is_live: Whether it has not ended.
        version: Changes with what is shown, but for the time that passes.
    """

    steps: tuple[Step, ...]
    segments: tuple[Segment, ...]
    duration: str
    is_live: bool
    version: str

    @property
    def legend(self) -> list[Segment]:
        """The parts that are named below the bar: all but the tools that would be too many."""
        return [segment for place, segment in enumerate(self.segments) if place < MAX_NAMED]

    @property
    def unnamed(self) -> str:
        """What is said of the others; empty where there are none."""
        left = len(self.segments) - len(self.legend)
        return ngettext("and %d more", "and %d more", left) % left if left > 0 else ""


def timeline_of(invocation: InvocationRecord, *, now: datetime | None = None) -> Timeline:
    """Return the timeline of an invocation, in at most three queries.

    Args:
        invocation: Its record.
        now: The time until which one that lives has taken; the clock's when omitted.
    """
    is_live = invocation.status in LIVE
    until = invocation.finished_at or (now or timezone.now() if is_live else None)
    logged = _events_logged(invocation) if is_live and invocation.stream else invocation.event_count
    shown = tuple(_steps(invocation, logged))
    version = "|".join([invocation.status, *(f"{step.label} {step.note}" for step in shown)])
    return Timeline(
        steps=shown,
        segments=tuple(_segments(invocation, until)),
        duration=seconds(invocation.created_at, until),
        is_live=is_live,
        version=version,
    )


def _steps(invocation: InvocationRecord, logged: int) -> Iterator[Step]:
    def step(label: str, at: datetime | None, note: str = "") -> Step:
        return Step(label, at, _offset(invocation, at), note)

    how = [_("in the background")] if invocation.background else []
    how += [_("streamed") if invocation.stream else _("answered in one piece")]
    if invocation.session_record_id is not None and not _has_waited(invocation):
        how += [_("session claimed at once")]
    yield step(_("Begun"), invocation.created_at, ", ".join(how))
    if invocation.status == Status.QUEUED:
        yield Step(_("Waiting"), note=_wait_note(invocation))
        return
    if invocation.claimed_at is not None:
        yield step(_("Session claimed"), invocation.claimed_at, _("after waiting for earlier turns or a worker"))
    middle = [(taken.milliseconds, _taken(taken)) for taken in steps.read(invocation.steps)]
    if invocation.first_byte_at is not None or logged:
        note = ngettext("%d event of the stream", "%d events of the stream", logged) % logged if logged else ""
        first = step(_("First byte"), invocation.first_byte_at, note)
        middle.append((_milliseconds(invocation.created_at, invocation.first_byte_at), first))
    if all(milliseconds is not None for milliseconds, _step in middle):
        middle.sort(key=lambda item: item[0] or 0)
    yield from (shown for _milliseconds, shown in middle)
    yield from _end(invocation, step)


def _taken(taken: steps.Step) -> Step:
    label = {
        "call": _("Tool called"),
        "result": _("Tool returned"),
        "invoked": _("Executor invoked"),
        "completed": _("Executor completed"),
    }.get(taken.kind, taken.kind)
    offset = "" if taken.milliseconds is None else f"+{duration_of(taken.milliseconds / 1000)}"
    note = _("its time is not recorded: the run was not streamed") if taken.milliseconds is None else ""
    return Step(label, offset=offset, note=note, name=excerpt(taken.name, 200).text)


def _milliseconds(start: datetime, at: datetime | None) -> int | None:
    return None if at is None else round((at - start).total_seconds() * 1000)


def _end(invocation: InvocationRecord, step: Any) -> Iterator[Step]:
    match invocation.status:
        case Status.RUNNING:
            note = _("a cancellation was asked for") if invocation.cancel_requested else ""
            yield Step(_("Running"), note=note)
        case Status.SUCCEEDED | Status.AWAITING_INPUT:
            yield step(_("Committed"), invocation.finished_at, _("answer, history and record at once"))
        case _:
            yield step(invocation.get_status_display().capitalize(), invocation.finished_at, invocation.error_code)
    if invocation.status in LIVE or invocation.session_record_id is None:
        return
    for asked in invocation.pending.select_related("answered_by").order_by("pk")[:_MAX_ASKED]:
        label = _("Asked: %(kind)s") % {"kind": asked.kind}
        if asked.closed_at is None:
            yield step(label, asked.created_at, _("waits for an answer"))
        elif asked.answered_by is None:
            yield step(label, asked.created_at, _("closed without an answer"))
        else:
            yield step(label, asked.created_at)
            note = _("by invocation %(id)s") % {"id": asked.answered_by.correlation_id}
            yield step(_("Answered"), asked.closed_at, note)


def _segments(invocation: InvocationRecord, until: datetime | None) -> Iterator[Segment]:
    """Yield the parts of the bar: waiting for the session, working, answering."""
    begun = invocation.created_at
    if until is None or until <= begun:
        return
    claimed = invocation.claimed_at or (until if invocation.status == Status.QUEUED else begun)
    first = invocation.first_byte_at or until
    scale = WIDTH / (until - begun).total_seconds()
    parts = (
        ("waiting", _("waiting"), begun, claimed),
        ("working", _("until the first byte") if invocation.first_byte_at else _("working"), claimed, first),
        ("answering", _("from the first byte to the end"), first, until),
    )
    for kind, name, start, end in parts:
        # Clocks of two processes may differ.
        start, end = max(start, begun), min(end, until)
        if end > start:
            x = round((start - begun).total_seconds() * scale)
            width = max(2, round((end - start).total_seconds() * scale))
            yield Segment(kind, f"{name}: {seconds(start, end)}", min(x, WIDTH - width), width)
    for name, start_ms, end_ms in _tool_times(steps.read(invocation.steps)):
        x = min(round(start_ms / 1000 * scale), WIDTH - 2)
        width = min(max(2, round((end_ms - start_ms) / 1000 * scale)), WIDTH - x)
        yield Segment("tool", f"{excerpt(name, 200).text}: {duration_of((end_ms - start_ms) / 1000)}", x, width)


def _tool_times(taken: list[steps.Step]) -> Iterator[tuple[str, int, int]]:
    """Yield name, begin and end of what has both: an end belongs to the oldest open begin of its name."""
    opened: dict[str, list[int]] = {}
    for step in taken:
        if step.milliseconds is None:
            continue
        if step.kind in ("call", "invoked"):
            opened.setdefault(step.name, []).append(step.milliseconds)
        elif opened.get(step.name):
            yield step.name, opened[step.name].pop(0), step.milliseconds


def _offset(invocation: InvocationRecord, at: datetime | None) -> str:
    return "" if at is None else f"+{seconds(invocation.created_at, max(at, invocation.created_at))}"


def _has_waited(invocation: InvocationRecord) -> bool:
    return invocation.claimed_at is not None or invocation.status == Status.QUEUED


def _wait_note(invocation: InvocationRecord) -> str:
    if invocation.session_record_id is None:
        return _("for a worker")
    rows = InvocationRecord.objects.filter(
        session_record_id=invocation.session_record_id, pk__lt=invocation.pk, status__in=LIVE
    )
    ahead = rows.order_by()[:_MAX_AHEAD].count()
    if not ahead:
        return _("for its session or a worker")
    return ngettext("%d invocation of its session is ahead", "%d invocations of its session are ahead", ahead) % ahead


def _events_logged(invocation: InvocationRecord) -> int:
    """Return the number of the last event in the log: the record has it at the end only."""
    logged: int | None = invocation.events.aggregate(last=Max("last"))["last"]
    return logged or 0
