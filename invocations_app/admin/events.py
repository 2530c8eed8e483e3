"""The wire events of an invocation, as they were streamed: a page of them, readable and raw.

What a plain run's followers get is told from its answer, and the last event of
any from its record: neither is in the log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.core.paginator import Page, Paginator
from django.db.models import Max
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from invocations_app import sse
from invocations_app.admin.display import Excerpt, excerpt, pretty_json, seconds
from invocations_app.admin.redaction import Redactor
from invocations_app.models import InvocationRecord
from invocations_app.runs.follow import final_frames, whole_frames
from invocations_app.storage.invocations import LIVE, StoredInvocation, stored_of

EVENTS_PER_PAGE = 100
MAX_EVENT_CHARACTERS = 4_000

# The events whose data is a piece of the answer's text, which may cut what a redactor looks for.
_TEXT_EVENTS = frozenset({"message", "delta"})


@dataclass(frozen=True, slots=True)
class WireEvent:
    """One event of a stream.

    Attributes:
        number: Its number, from 1.
        kind: Its type; ``message`` where the frame names none.
        data: Its data, JSON over several lines.
        raw: The frame.
        logged: Time from the begin until it was in the log; empty where it is not logged.
    """

    number: int
    kind: str
    data: Excerpt
    raw: Excerpt
    logged: str


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of the events.

    Attributes:
        page: Django's page, of event numbers.
        events: The events that are there.
        trimmed: Number of events of this page that are gone from the log.
        is_derived: Whether the run was plain: its events are told from its answer.
        is_live: Whether more may come.
    """

    page: Page[int]
    events: tuple[WireEvent, ...]
    trimmed: int
    is_derived: bool
    is_live: bool

    @property
    def trimmed_note(self) -> str:
        """What is said of events that are gone; empty where none is."""
        if not self.trimmed:
            return ""
        text = ngettext(
            "%d event of this page is not in the log any more: it was trimmed by age.",
            "%d events of this page are not in the log any more: they were trimmed by age.",
            self.trimmed,
        )
        return text % self.trimmed


def load_events(invocation: InvocationRecord, number: str | None) -> EventPage:
    """Read one page of the events of an invocation, in at most two queries.

    Args:
        invocation: Its record.
        number: Number of the page; None or nonsense is the first.
    """
    is_live = invocation.status in LIVE
    stored = stored_of(invocation)
    told = [] if is_live else _told(stored)
    if invocation.stream:
        logged = _last_logged(invocation) if is_live else invocation.event_count
        told = [] if is_live else told[-1:]
    else:
        logged = 0
    page = Paginator(range(1, logged + len(told) + 1), EVENTS_PER_PAGE).get_page(number)
    numbers = range(page.start_index(), page.end_index() + 1) if page.paginator.count else range(0)
    reader = _Reader(invocation, Redactor())
    events = reader.logged(numbers, logged) if logged else []
    missing = len([place for place in numbers if place <= logged]) - len(events)
    events += [
        reader.event(place, frame.decode(), None) for place, frame in enumerate(told, logged + 1) if place in numbers
    ]
    return EventPage(page, tuple(events), missing, not invocation.stream, is_live)


def _told(stored: StoredInvocation) -> list[bytes]:
    """Return the events that follow from the record; of a record that cannot be read, none."""
    try:
        return whole_frames(stored) + final_frames(stored)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return []


def _last_logged(invocation: InvocationRecord) -> int:
    logged: int | None = invocation.events.aggregate(last=Max("last"))["last"]
    return logged or 0


class _Reader:
    def __init__(self, invocation: InvocationRecord, redactor: Redactor) -> None:
        self._invocation = invocation
        self._redactor = redactor

    def logged(self, numbers: Sequence[int], last: int) -> list[WireEvent]:
        """Return the events of the log that have these numbers."""
        if not numbers:
            return []
        rows = self._invocation.events.filter(last__gte=numbers[0], first__lte=min(numbers[-1], last))
        return [
            self.event(number, frame, row.created_at)
            for row in rows.order_by("first")
            for number, frame in enumerate(json.loads(row.frames), start=row.first)
            if numbers[0] <= number <= min(numbers[-1], last)
        ]

    def event(self, number: int, frame: str, logged_at: datetime | None) -> WireEvent:
        """Return an event, fit for a page."""
        kind, data = decode(frame)
        if self._redactor.active and kind in _TEXT_EVENTS and data != sse.TERMINATOR:
            count = len(data)
            note = ngettext("%d character", "%d characters", count) % count
            data = frame = _("[%(count)s of the text: a piece may cut what is to be redacted]") % {"count": note}
        else:
            data, frame = self._redactor.json(data), self._raw(frame, kind, data)
        since = "" if logged_at is None else f"+{seconds(self._invocation.created_at, logged_at)}"
        shown = data if kind == "message" else pretty_json(data)
        return WireEvent(
            number, kind, excerpt(shown, MAX_EVENT_CHARACTERS), excerpt(frame, MAX_EVENT_CHARACTERS), since
        )

    def _raw(self, frame: str, kind: str, data: str) -> str:
        if not self._redactor.active:
            return frame
        lines = self._redactor.json(data).split("\n")
        return f"event: {kind}\n" + "".join(f"data: {line}\n" for line in lines)


def decode(frame: str) -> tuple[str, str]:
    """Return type and data of a server-sent event, as a standard parser reads them.

    Args:
        frame: The event, its lines ended by LF.
    """
    kind, data = "message", []
    for line in frame.split("\n"):
        name, _colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
    return kind, "\n".join(data)
