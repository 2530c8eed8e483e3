"""A turn: two short transactions, with the run between them.

`begin` records the invocation, claims the session and loads it; `commit`
writes session, messages, answer and record together and releases the claim;
`fail` ends a turn that has no answer. Each claim raises the session's claim
number, and whatever is written later is conditional on it and on the record
still running: a turn that lost its claim changes nothing any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils import timezone

from invocations_app.envelope import Invocation
from invocations_app.events import Answer
from invocations_app.exceptions import (
    InvocationError,
    InvocationIdReused,
    RunCancelled,
    RunInterrupted,
    SessionBusy,
    SessionConflict,
)
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import database, records
from invocations_app.storage.snapshots import Change, MessageRow

Status = InvocationRecord.Status


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What begins a turn.

    Attributes:
        invocation: The invocation, after the run hook.
        scope: Endpoint and isolation keys.
        user_pk: Primary key of the authenticated Django user, or None.
        fingerprint: Digest of the request; see `envelope.fingerprint`.
        correlation_id: The record's random id, the only one that logs carry.
        lease_seconds: Time after which the claim is void.
    """

    invocation: Invocation
    scope: Scope
    user_pk: Any
    fingerprint: str
    correlation_id: str
    lease_seconds: float

    @property
    def session_id(self) -> str | None:
        """The session id in force, None when there is no session."""
        if self.invocation.session_mode == "disabled":
            return None
        return self.invocation.session_id or None


@dataclass(frozen=True, slots=True)
class ClaimedSession:
    """A session as it was when a turn claimed it.

    Attributes:
        pk: Primary key of its row.
        opaque_id: Id by which the agent and its providers know it.
        version: Number of times it was written.
        claim_number: Number of this claim.
        state: Its state text; empty for a new session.
        rows: Its message rows.
    """

    pk: int
    opaque_id: str
    version: int
    claim_number: int
    state: str
    rows: tuple[MessageRow, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that was begun.

    Attributes:
        request: What began it.
        record_pk: Primary key of the invocation's record.
        session: The claimed session, or None.
    """

    request: TurnRequest
    record_pk: int
    session: ClaimedSession | None


async def begin(request: TurnRequest) -> Turn:
    """Record an invocation as running, claim its session and load it.

    Args:
        request: What begins the turn.

    Raises:
        InvocationIdReused: If the invocation id was used before.
        SessionBusy: If another turn of the session is running.
        StoredStateUnreadable: If the session's row is not its own.
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_begin, request)


async def commit(turn: Turn, change: Change | None, answer: Answer, *, first_byte_at: datetime | None) -> None:
    """Write session, messages, answer and record, and release the claim.

    Args:
        turn: The turn.
        change: What it changed of its session; None without a session or where
            another store holds it.
        answer: What the caller is answered.
        first_byte_at: When the first piece of the answer was ready.

    Raises:
        SessionConflict: If another writer changed the session.
        RunCancelled: If the record says that it was cancelled.
        RunInterrupted: If the claim was lost.
        DatabaseError: If the database is not reachable.
    """
    await database.run(_commit, turn, change, answer, first_byte_at)


async def fail(turn: Turn, error: InvocationError, *, first_byte_at: datetime | None) -> None:
    """End a turn that has no answer, and release the claim; the session stays as it was.

    Args:
        turn: The turn.
        error: Why it has none.
        first_byte_at: When the first piece of the answer was ready, if it was.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    await database.run(_fail, turn, error, first_byte_at)


def _begin(request: TurnRequest) -> Turn:
    using = database.alias()
    try:
        with transaction.atomic(using=using):
            return _begin_once(using, request)
    except IntegrityError:
        # Another process began the same invocation between the look-up and the insert.
        with transaction.atomic(using=using):
            return _begin_once(using, request)


def _begin_once(using: str, request: TurnRequest) -> Turn:
    now = timezone.now()
    invocation, scope = request.invocation, request.scope
    key = scope.key(invocation.id)
    if InvocationRecord.objects.using(using).filter(key=key).exists():
        raise InvocationIdReused
    session_id = request.session_id
    record = None
    if session_id is not None:
        record = records.ensure_session_record(using, scope, session_id, user_pk=request.user_pk, now=now)
    begun = InvocationRecord.objects.using(using).create(
        key=key,
        invocation_id=invocation.id,
        correlation_id=request.correlation_id,
        endpoint=scope.endpoint,
        user_key=scope.user_key,
        chat_key=scope.chat_key,
        user_id=request.user_pk,
        dialect=invocation.dialect,
        stream=invocation.stream,
        background=invocation.background,
        fingerprint=request.fingerprint,
        session_record_id=None if record is None else record.pk,
        session_id=invocation.session_id if invocation.session_mode != "disabled" else None,
        claim_number=0 if record is None else record.claim_number + 1,
        status=Status.RUNNING,
        metadata=json.dumps(dict(invocation.metadata)) if invocation.metadata else "",
        created_at=now,
    )
    session = None if record is None else _claim(using, record, begun.pk, request.lease_seconds)
    return Turn(request, begun.pk, session)


def _claim(using: str, record: SessionRecord, record_pk: int, lease_seconds: float) -> ClaimedSession:
    free = Q(claimed_by__isnull=True) | Q(claim_expires_at__lt=Now())
    claimed = (
        SessionRecord.objects.using(using)
        .filter(free, pk=record.pk)
        .update(claim_number=F("claim_number") + 1, claimed_by=record_pk, claim_expires_at=_from_now(lease_seconds))
    )
    if not claimed:
        raise SessionBusy
    if record.claimed_by is not None:
        _interrupt(using, record.claimed_by)
    return ClaimedSession(
        pk=record.pk,
        opaque_id=record.opaque_id,
        version=record.version,
        claim_number=record.claim_number + 1,
        state=record.state,
        rows=tuple(records.load_message_rows(using, record.pk)),
    )


def _from_now(seconds: float) -> Any:
    """Return a time on the database's clock: those of two processes may differ."""
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=DateTimeField())


def _interrupt(using: str, record_pk: int) -> None:
    """Write down that a run whose claim expired is over."""
    error = RunInterrupted()
    InvocationRecord.objects.using(using).filter(pk=record_pk, status=Status.RUNNING).update(
        status=Status.INTERRUPTED, error_code=error.code, error_status=error.status, finished_at=timezone.now()
    )


def _commit(turn: Turn, change: Change | None, answer: Answer, first_byte_at: datetime | None) -> None:
    using = database.alias()
    now = timezone.now()
    with transaction.atomic(using=using):
        # The session's row first, as in begin: two transactions that lock in one order never deadlock.
        if turn.session is not None:
            _commit_session(using, turn, turn.session, change, now)
        usage = answer.usage
        ended = (
            InvocationRecord.objects.using(using)
            .filter(pk=turn.record_pk, status=Status.RUNNING)
            .update(
                status=Status.AWAITING_INPUT if answer.pending else Status.SUCCEEDED,
                answer=encode_answer(answer),
                usage=json.dumps(dict(usage)) if usage else "",
                total_tokens=(usage or {}).get("total_token_count"),
                first_byte_at=first_byte_at,
                finished_at=now,
            )
        )
        if not ended:
            raise _why_lost(using, turn.record_pk)


def _commit_session(using: str, turn: Turn, session: ClaimedSession, change: Change | None, now: datetime) -> None:
    held = {"claimed_by": turn.record_pk, "claim_number": session.claim_number}
    if change is None:
        rows = SessionRecord.objects.using(using).filter(pk=session.pk, **held)
        written = rows.update(claimed_by=None, claim_expires_at=None, version=F("version") + 1, updated_at=now) == 1
    else:
        written = records.advance_session(using, session.pk, change, version=session.version, now=now, **held)
    if not written:
        still_held = SessionRecord.objects.using(using).filter(pk=session.pk, **held).exists()
        raise SessionConflict if still_held else _why_lost(using, turn.record_pk)
    if change is not None:
        records.write_messages(using, session.pk, change, invocation_pk=turn.record_pk, now=now)


def _why_lost(using: str, record_pk: int) -> InvocationError:
    status = InvocationRecord.objects.using(using).filter(pk=record_pk).values_list("status", flat=True).first()
    return RunCancelled() if status == Status.CANCELLED else RunInterrupted()


_STATUS_OF = {RunCancelled.code: Status.CANCELLED, RunInterrupted.code: Status.INTERRUPTED}


def _fail(turn: Turn, error: InvocationError, first_byte_at: datetime | None) -> None:
    using = database.alias()
    with transaction.atomic(using=using):
        if turn.session is not None:
            SessionRecord.objects.using(using).filter(
                pk=turn.session.pk, claimed_by=turn.record_pk, claim_number=turn.session.claim_number
            ).update(claimed_by=None, claim_expires_at=None)
        InvocationRecord.objects.using(using).filter(pk=turn.record_pk, status=Status.RUNNING).update(
            status=_STATUS_OF.get(error.code, Status.FAILED),
            error_code=error.code,
            error_status=error.status,
            first_byte_at=first_byte_at,
            finished_at=timezone.now(),
        )


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
    return json.dumps(document, allow_nan=False, separators=(",", ":"))
