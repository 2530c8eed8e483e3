"""The end of a turn: everything of it in one transaction, if it is still this process's.

`commit_now` writes session, messages, answer, the last events and the record, and
releases the claim; `fail_now` ends a turn that has no answer. Both are conditional
on the claim number and on the record being this process's, running, and its
lease not expired: a turn that lost its claim changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from invocations_app import json_text
from invocations_app.events import Answer
from invocations_app.exceptions import InvocationError, RunCancelled, RunInterrupted, SessionConflict
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.pending import PendingRequest
from invocations_app.storage import checkpoints, clock, database, event_log, figures, notify, pending, records
from invocations_app.storage.checkpoints import EncodedCheckpoint
from invocations_app.storage.event_log import Batch
from invocations_app.storage.invocations import LIVE
from invocations_app.storage.snapshots import Change
from invocations_app.storage.steps import Steps
from invocations_app.storage.turns import ClaimedSession, Handed, Turn, TurnRequest, Waiting, insert

Status = InvocationRecord.Status

_text_of_answer = json_text.encoder(allow_nan=False, compact=True)
_text_of_usage = json_text.encoder()
_STATUS_OF = {RunCancelled.code: Status.CANCELLED, RunInterrupted.code: Status.INTERRUPTED}


@dataclass(frozen=True, slots=True)
class Ending:
    """What is written at the end of a turn, whatever the end.

    Attributes:
        first_byte_at: When the first piece of the answer was ready, if it was.
        events: The wire events that are not in the log yet.
        event_count: Number of wire events, but for the last one.
        steps: What tools and executors did.
    """

    first_byte_at: datetime | None
    events: Batch
    event_count: int
    steps: Steps = field(default_factory=Steps)


class SessionChange(NamedTuple):
    """What a turn leaves of its session.

    Attributes:
        change: State and messages; None where another store holds them.
        pending: What a person must answer next.
        checkpoints: A workflow's checkpoints.
    """

    change: Change | None
    pending: tuple[PendingRequest, ...] = ()
    checkpoints: tuple[EncodedCheckpoint, ...] = ()


def commit_now(turn: Turn, change: SessionChange | None, answer: Answer, ending: Ending) -> None:
    """Write session, messages, answer, events and record, and release the claim.

    In a transaction of its own, on a database thread. May be called again when it is not known whether it was written.

    Args:
        turn: The turn.
        change: What it leaves of its session; None without a session.
        answer: What the caller is answered.
        ending: What else is written.

    Raises:
        SessionConflict: If another writer changed the session.
        RunCancelled: If the record says that it was cancelled.
        RunInterrupted: If the claim was lost.
        DatabaseError: If the database is not reachable.
    """
    using = database.alias()
    now = timezone.now()
    if turn.unrecorded is not None:
        _record_whole(using, turn.unrecorded, Status.SUCCEEDED, _succeeded(turn, answer, ending, now))
        return
    try:
        with transaction.atomic(using=using):
            # The session's row first, as in begin: two transactions that lock in one order never deadlock.
            if turn.session is not None and change is not None:
                _commit_session(using, turn, turn.session, change, now)
            _commit_record(using, turn, answer, ending, now)
            _tell(using, turn)
    except InvocationError as error:
        # The last try may have been written although its confirmation was lost.
        if not _is_committed(using, turn):
            raise error


def _succeeded(turn: Turn, answer: Answer, ending: Ending, now: datetime) -> dict[str, Any]:
    usage = answer.usage
    return {
        "answer": encode_answer(answer),
        "usage": encode_usage(usage),
        "total_tokens": (usage or {}).get("total_token_count"),
        **_ending_columns(turn, ending, now),
    }


def encode_usage(usage: Mapping[str, Any] | None) -> str:
    """Return the JSON text of a token usage, as its record keeps it; empty for none.

    Args:
        usage: The usage.
    """
    return _text_of_usage(dict(usage)) if usage else ""


def _failed(held: Turn | Waiting | Handed, error: InvocationError, ending: Ending) -> dict[str, Any]:
    return {
        "error_code": error.code,
        "error_status": error.status,
        **_ending_columns(held, ending, timezone.now()),
    }


def _commit_record(using: str, turn: Turn, answer: Answer, ending: Ending, now: datetime) -> None:
    status = Status.AWAITING_INPUT if answer.pending else Status.SUCCEEDED
    ended = (
        InvocationRecord.objects.using(using)
        .filter(pk=turn.record_pk, owner=turn.owner, status=Status.RUNNING)
        .exclude(clock.is_past("lease_expires_at"))
        .update(status=status, **_succeeded(turn, answer, ending, now))
    )
    if not ended:
        raise _why_lost(using, turn.record_pk)
    event_log.write_batch(using, ending.events)


def _record_whole(
    using: str, request: TurnRequest, status: InvocationRecord.Status, columns: Mapping[str, Any]
) -> None:
    """Write a record that was not written at the beginning."""
    try:
        with transaction.atomic(using=using):
            insert(using, request, None, status, **columns)
    except IntegrityError:
        # The last try was written although its confirmation was lost.
        written = InvocationRecord.objects.using(using).filter(correlation_id=request.correlation_id)
        if not written.exists():
            raise


def _ending_columns(held: Turn | Waiting | Handed, ending: Ending, now: datetime) -> Mapping[str, Any]:
    return {
        "first_byte_at": ending.first_byte_at,
        "event_count": ending.event_count,
        "steps": ending.steps.text(held.begun_at),
        "input": "",
        "finished_at": now,
        **figures.of(held.begun_at, ending.first_byte_at, now)._asdict(),
    }


def _commit_session(using: str, turn: Turn, session: ClaimedSession, left: SessionChange, now: datetime) -> None:
    held = {"claimed_by": turn.record_pk, "claim_number": session.claim_number}
    change = left.change
    if change is None:
        rows = SessionRecord.objects.using(using).filter(pk=session.pk, **held)
        written = rows.update(claimed_by=None, claim_expires_at=None, version=F("version") + 1, updated_at=now) == 1
    else:
        written = records.advance_session(using, session.pk, change, version=session.version, now=now, **held)
    if not written:
        still_held = SessionRecord.objects.using(using).filter(pk=session.pk, **held).exists()
        raise SessionConflict if still_held else _why_lost(using, turn.record_pk)
    if change is not None:
        if session.is_rewritten:
            change = _against_stored(using, session.pk, change)
        records.write_messages(using, session.pk, change, invocation_pk=turn.record_pk, now=now)
    if left.pending:
        pending.leave(using, session.pk, turn.record_pk, left.pending, now)
    if left.checkpoints:
        checkpoints.leave(using, session.pk, turn.record_pk, left.checkpoints, now)


def _against_stored(using: str, session_pk: int, change: Change) -> Change:
    """Return a change as it is against the rows that closed the open calls, which stand where others belong."""
    stored = set(records.load_message_rows(using, session_pk))
    written = tuple(row for row in change.history.rows() if row not in stored)
    return change._replace(written=written, appended_only=False)


def _is_committed(using: str, turn: Turn) -> bool:
    ended_well = (Status.SUCCEEDED, Status.AWAITING_INPUT)
    rows = InvocationRecord.objects.using(using).filter(pk=turn.record_pk, owner=turn.owner, status__in=ended_well)
    return rows.exists()


def _why_lost(using: str, record_pk: int) -> InvocationError:
    status = InvocationRecord.objects.using(using).filter(pk=record_pk).values_list("status", flat=True).first()
    return RunCancelled() if status == Status.CANCELLED else RunInterrupted()


def fail_now(held: Turn | Waiting | Handed, error: InvocationError, ending: Ending) -> None:
    """End a turn that has no answer, and release its claim; the session stays as it was.

    In a transaction of its own, on a database thread.

    Args:
        held: The turn; or what waits, which may have claimed its session meanwhile, or been taken by a worker.
        error: Why it has none.
        ending: What else is written.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    using = database.alias()
    if isinstance(held, Turn) and held.unrecorded is not None:
        status = _STATUS_OF.get(error.code, Status.FAILED)
        _record_whole(using, held.unrecorded, status, _failed(held, error, ending))
        return
    session_pk = held.session_pk
    with transaction.atomic(using=using):
        if session_pk is not None:
            # An invocation claims its session once, so its primary key tells the claim.
            rows = SessionRecord.objects.using(using).filter(pk=session_pk, claimed_by=held.record_pk)
            rows.update(claimed_by=None, claim_expires_at=None)
        ended = (
            InvocationRecord.objects.using(using)
            .filter(pk=held.record_pk, owner=held.owner, status__in=LIVE)
            .update(status=_STATUS_OF.get(error.code, Status.FAILED), **_failed(held, error, ending))
        )
        if ended:
            event_log.write_batch(using, ending.events)
        _tell(using, held)


def _tell(using: str, held: Turn | Waiting | Handed) -> None:
    """Tell other processes that the run is over and its session free."""
    notify.notify(using, notify.keys_of(held.record_pk, held.session_pk))


def encode_answer(answer: Answer) -> str:
    """Return the JSON text of an answer, ASCII-escaped, as its record keeps it.

    Args:
        answer: The answer.
    """
    document: dict[str, Any] = {"text": answer.text, "session_id": answer.session_id}
    if answer.pending:
        document["pending"] = [dict(item) for item in answer.pending]
    if answer.frames is not None:
        document["frames"] = [dict(frame) for frame in answer.frames]
    return _text_of_answer(document)
