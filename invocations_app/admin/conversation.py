"""One page of a transcript: messages in order, each call with its approval and result, turns with their figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import Q
from django.db.models.functions import Length
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _

from invocations_app.admin.display import Excerpt, excerpt, figures, seconds
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.requests import Request, read_request, requests_of
from invocations_app.admin.transcript import Part, Reading, read_message
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord

MESSAGES_PER_PAGE = 50
MAX_PAGE_CHARACTERS = 8 * 1024 * 1024
MAX_REQUESTS = 200

_ROLES = frozenset({"user", "assistant", "tool", "system"})


@dataclass(slots=True)
class Call:
    """A tool's call with what belongs to it, from wherever on the page it stands.

    Attributes:
        part: The call, or the approval that was asked for it where the call is not on the page.
        asked: Whether an approval was asked.
        answer: The answer that stands in the messages; None where there is none on the page.
        request: The request that was left pending, with who answered it and when.
        result: The result; None where there is none on the page.
    """

    part: Part
    asked: bool = False
    answer: Part | None = None
    request: Request | None = None
    result: Part | None = None

    @property
    def waits(self) -> bool:
        """Whether somebody has to answer before it is carried out."""
        return self.request is not None and self.request.is_open


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn that messages come from, with its figures."""

    pk: int
    correlation_id: str
    status: str
    started_at: datetime
    duration: str
    tokens: int | None
    input_tokens: int | None
    output_tokens: int | None


@dataclass(slots=True)
class Entry:
    """One message of the transcript, as its template wants it.

    Attributes:
        turn: The turn that begins with this message on the page; None for a message of the same one.
        pieces: Its parts; a call with what belongs to it in place of its parts.
    """

    role: str
    style: str
    source_id: str
    created_at: datetime
    author: str
    raw: Excerpt
    turn: Turn | None
    pieces: list[Part | Call] = field(default_factory=list)

    @property
    def is_joined(self) -> bool:
        """Whether all that is in it is shown with calls of earlier messages."""
        return bool(self.pieces) and all(isinstance(piece, Part) and piece.kind == "joined" for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A page of a transcript.

    Attributes:
        page: The page, of message rows.
        entries: Its messages.
        requests: Requests that no message on the page stands for, as a workflow's.
    """

    page: Page[Any]
    entries: Sequence[Entry]
    requests: Sequence[Request]

    @property
    def several_sources(self) -> bool:
        """Whether more than one history provider has messages on the page."""
        return len({entry.source_id for entry in self.entries}) > 1


def read_page(session: SessionRecord, number: int | None, redactor: Redactor) -> Conversation:
    """Read one page of a session's messages, and no more of them than a page can show.

    Args:
        session: The session.
        number: Number of the page; None, or one that is not there, is the last one, where a
            reader finds what was said last.
        redactor: What its texts go through.

    Returns:
        The page. Five queries, whatever is on it.
    """
    rows = session.messages.order_by("source_id", "position").defer("payload").annotate(size=Length("payload"))
    pages = Paginator(rows, MESSAGES_PER_PAGE)
    page = pages.get_page(pages.num_pages if number is None else number)
    records: list[Any] = list(page.object_list)  # with their size, which the model does not have
    readings = _read(records, redactor)
    turn_ids = {record.invocation_id for record in records} - {None}
    turns = load_turns(turn_ids)
    requests = _requests(session, turn_ids, readings, redactor)
    joining = _Joining(requests)
    entries = []
    current: int | None = None
    for record, reading in zip(records, readings, strict=True):
        begins = record.invocation_id != current
        current = record.invocation_id
        entries.append(_entry(record, reading, turns.get(current) if begins and current else None, joining))
    return Conversation(page, entries, [request for request in requests if request not in joining.used])


def _read(records: Sequence[Any], redactor: Redactor) -> list[Reading]:
    room = MAX_PAGE_CHARACTERS
    wanted = []
    for record in records:
        if record.size <= room:
            wanted.append(record.pk)
            room -= record.size
    payloads = dict(MessageRecord.objects.filter(pk__in=wanted).values_list("pk", "payload"))
    return [
        read_message(payloads[record.pk], redactor) if record.pk in payloads else _too_large(record.size)
        for record in records
    ]


def _too_large(size: int) -> Reading:
    return Reading((Part("note", _("%(size)s, too large for this page") % {"size": filesizeformat(size)}),))


def load_turns(pks: Iterable[int]) -> dict[int, Turn]:
    """Return turns by the primary keys of their invocations. One query.

    Args:
        pks: Primary keys; those that are gone have no turn.
    """
    wanted = ("correlation_id", "status", "created_at", "finished_at", "usage", "total_tokens")
    return {record.pk: _turn(record) for record in InvocationRecord.objects.filter(pk__in=pks).only(*wanted)}


def _turn(record: InvocationRecord) -> Turn:
    usage = figures(record.usage)
    return Turn(
        pk=record.pk,
        correlation_id=record.correlation_id,
        status=str(record.get_status_display()),
        started_at=record.created_at,
        duration=seconds(record.created_at, record.finished_at),
        tokens=record.total_tokens,
        input_tokens=usage.get("input_token_count"),
        output_tokens=usage.get("output_token_count"),
    )


def _requests(
    session: SessionRecord, turn_ids: Iterable[int], readings: Sequence[Reading], redactor: Redactor
) -> list[Request]:
    """Return the requests of the turns and calls on the page; of a session without messages the latest ones."""
    rows = requests_of(session)
    if readings:
        named = {part.request_id for reading in readings for part in reading.parts if part.request_id}
        rows = rows.filter(Q(invocation__in=turn_ids) | Q(request_id__in=named))
    latest = rows.reverse()[:MAX_REQUESTS]
    return [read_request(record, redactor) for record in reversed(latest)]


def _entry(record: Any, reading: Reading, turn: Turn | None, joining: _Joining) -> Entry:
    return Entry(
        role={"user": _("User"), "assistant": _("Agent"), "tool": _("Tool"), "system": _("System")}.get(
            record.role, record.role
        ),
        style=record.role if record.role in _ROLES else "other",
        source_id=record.source_id,
        created_at=record.created_at,
        author=reading.author,
        raw=excerpt(reading.raw),
        turn=turn,
        pieces=[piece for part in reading.parts for piece in joining.join(part, record.invocation_id)],
    )


class _Joining:
    """Puts together what belongs to one call, in the order of the messages.

    Args:
        requests: The requests that calls on the page may have left pending.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._calls: dict[str, list[Call]] = {}
        self.used: list[Request] = []

    def join(self, part: Part, turn_id: int | None) -> Iterable[Part | Call]:
        """Return what stands in the place of a part."""
        match part.kind:
            case "call":
                return [self._begin(part, turn_id)]
            case "asked":
                call = self._latest(part)
                if call is None or call.asked:
                    call = self._begin(part, turn_id)
                    call.asked = True
                    return [call]
                call.asked = True
                call.request = call.request or self._request(part, turn_id)
                return []
            case "answer":
                call = self._latest(part)
                if call is None or call.answer is not None:
                    return [part]
                call.answer = part
                return [Part("joined", part.title, label=part.label)]
            case "result":
                return self._result(part)
        return [part]

    def _begin(self, part: Part, turn_id: int | None) -> Call:
        call = Call(part, request=self._request(part, turn_id))
        self._calls.setdefault(part.call_id, []).append(call)
        return call

    def _latest(self, part: Part) -> Call | None:
        calls = self._calls.get(part.call_id) if part.call_id else None
        return calls[-1] if calls else None

    def _result(self, part: Part) -> Iterable[Part | Call]:
        # Models use one id again in a later turn: a result answers the oldest call of its id that has none.
        for call in self._calls.get(part.call_id, ()) if part.call_id else ():
            if call.result is None:
                call.result = part
                return [Part("joined", call.part.title, label=part.label)]
        return [part, *part.media]

    def _request(self, part: Part, turn_id: int | None) -> Request | None:
        found = [
            request
            for request in self._requests
            if request.request_id in (part.request_id, part.call_id) and request not in self.used
        ]
        same_turn = [request for request in found if request.asked_by == turn_id]
        request = next(iter(same_turn or found), None)
        if request is not None:
            self.used.append(request)
        return request
