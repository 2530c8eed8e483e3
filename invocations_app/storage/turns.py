"""The beginning of a turn: record the invocation, claim its session, load it.

One transaction where the session is free. Where it is not, the record is
queued, and stays so until its turn has come: a claim succeeds only when no
older live record of the session waits, so the order of arrival holds over all
processes. Each claim raises the session's claim number, and whatever is
written later is conditional on it. How a turn ends is in ``endings``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.utils import timezone

from invocations_app.envelope import Invocation
from invocations_app.exceptions import RunCancelled, RunInterrupted, SessionBusy
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, PendingRecord, SessionRecord
from invocations_app.pending import CheckReply, PendingRequest
from invocations_app.storage import checkpoints, clock, database, deliveries, kept, pending, records
from invocations_app.storage.invocations import StoredInvocation, interrupt, read_now
from invocations_app.storage.snapshots import History, MessageRow

Status = InvocationRecord.Status


class TurnRequest(NamedTuple):
    """What begins a turn.

    Attributes:
        invocation: The invocation, after the run hook.
        scope: Endpoint and isolation keys.
        user_pk: Primary key of the authenticated Django user, or None.
        fingerprint: Digest of the request; see `envelope.fingerprint`.
        correlation_id: The record's random id, the only one that logs carry.
        owner: Id of the process.
        begun_at: When it was begun.
        lease_seconds: Time after which the process counts as gone.
        on_busy: Whether to wait for a busy session.
        check_reply: Checks the value of a reply to a pending request further; None for no more.
        with_checkpoint: Whether the latest checkpoint is loaded (the target is a workflow).
        handed_input: What a worker on another machine needs to run it; empty where
            this process runs it.
        is_unknown: Whether nobody can ask for it before its end: no id of the caller's, and no answer before that.
    """

    invocation: Invocation
    scope: Scope
    user_pk: Any
    fingerprint: str
    correlation_id: str
    owner: str
    begun_at: datetime
    lease_seconds: float
    on_busy: Literal["wait", "reject"] = "wait"
    check_reply: CheckReply | None = None
    with_checkpoint: bool = False
    handed_input: str = ""
    is_unknown: bool = False

    @property
    def session_id(self) -> str | None:
        """The session id in force, None when there is no session."""
        if self.invocation.session_mode == "disabled":
            return None
        return self.invocation.session_id or None


class ClaimedSession(NamedTuple):
    """A session as it was when a turn claimed it.

    Attributes:
        pk: Primary key of its row.
        key: Its key digest, by which logs name it.
        opaque_id: Id by which the agent and its providers know it.
        version: Number of times it was written.
        claim_number: Number of this claim.
        state: Its state text; empty for a new session.
        rows: Its message rows; none where its history was kept.
        history: Its history, where it was kept in memory.
        answered: The pending requests that the invocation answers.
        is_rewritten: Whether its rows were changed in claiming it: open calls were closed.
        checkpoint: Text of a workflow's latest checkpoint, or None.
    """

    pk: int
    key: str
    opaque_id: str
    version: int
    claim_number: int
    state: str
    rows: tuple[MessageRow, ...] = ()
    history: History | None = None
    answered: tuple[PendingRequest, ...] = ()
    is_rewritten: bool = False
    checkpoint: str | None = None


class Turn(NamedTuple):
    """A turn that was begun.

    Attributes:
        record_pk: Primary key of the invocation's record.
        owner: Id of the process that runs it.
        session: The claimed session, or None.
        begun_at: When it was begun.
        unrecorded: What began it, where it is recorded once, at its end.
    """

    record_pk: int
    owner: str
    session: ClaimedSession | None
    begun_at: datetime
    unrecorded: TurnRequest | None = None

    @property
    def session_pk(self) -> int | None:
        """Primary key of the session's row, or None."""
        return None if self.session is None else self.session.pk


@dataclass(frozen=True, slots=True)
class Waiting:
    """A turn that waits for its session.

    Attributes:
        record_pk: Primary key of the invocation's record, which is queued.
        owner: Id of the process that waits.
        session_pk: Primary key of the session's row.
        request: What began it.
    """

    record_pk: int
    owner: str
    session_pk: int
    request: TurnRequest

    @property
    def begun_at(self) -> datetime:
        """When it was begun."""
        return self.request.begun_at


@dataclass(frozen=True, slots=True)
class Handed:
    """A turn that waits for a worker on another machine to take it; see ``handover``.

    Attributes:
        record_pk: Primary key of the invocation's record, which is queued.
        session_pk: Primary key of the session's row, or None.
        begun_at: When it was begun.
        owner: Nobody's, as yet.
    """

    record_pk: int
    session_pk: int | None
    begun_at: datetime
    owner: str = ""


Begun: TypeAlias = Turn | Waiting | Handed | StoredInvocation


def can_nobody_ask(invocation: Invocation, *, id_given: bool) -> bool:
    """Return whether nobody can ask for an invocation before its end: no stream, no acknowledgement, no id.

    Args:
        invocation: The invocation.
        id_given: Whether the caller chose its id.
    """
    return not (id_given or invocation.stream or invocation.is_acknowledged)


def may_be_recorded_at_its_end(request: TurnRequest) -> bool:
    """Return whether an invocation that nobody could ask for before its end has no session either.

    Args:
        request: What begins the turn.
    """
    return request.is_unknown and request.session_id is None and request.invocation.responses is None


def resume(request: TurnRequest, record_pk: int, session_pk: int | None) -> Turn | Waiting:
    """Return a turn that another process has begun, and this one took over; see ``handover``.

    Args:
        request: What it was begun with, and this process as its owner.
        record_pk: Primary key of the invocation's record.
        session_pk: Primary key of the session's row, for which it waits; None without a session.
    """
    if session_pk is None:
        return Turn(record_pk, request.owner, None, request.begun_at)
    return Waiting(record_pk, request.owner, session_pk, request)


async def claim(waiting: Waiting) -> Turn | None:
    """Claim the session for a turn that waits, if its turn has come.

    Args:
        waiting: The turn.

    Returns:
        The turn; None when it has to go on waiting.

    Raises:
        RunCancelled: If it was cancelled meanwhile.
        RunInterrupted: If its lease ran out.
        ResponsesMismatch: If the replies do not answer exactly what is pending.
        AwaitingResponses: If new input came while something is pending.
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_claim_waiting, waiting)


async def give_up(waiting: Waiting) -> bool:
    """Take back a turn that waits: as if it had never been asked for.

    Args:
        waiting: The turn.

    Returns:
        Whether it still waited.
    """
    return await database.run(_give_up, waiting)


def begin_now(request: TurnRequest) -> Begun:
    """Record an invocation and claim its session, or queue it where the session is busy.

    In a transaction of its own, on a database thread.

    Args:
        request: What begins the turn.

    Returns:
        The turn; or what waits for its session or a worker; or the invocation that was begun with this id before.

    Raises:
        SessionBusy: If the session is busy and waiting is not wanted.
        ResponsesMismatch: If the replies do not answer exactly what is pending.
        AwaitingResponses: If new input came while something is pending.
        StoredStateUnreadable: If the session's row is not its own.
        DatabaseError: If the database is not reachable.
    """
    using = database.alias()
    try:
        with transaction.atomic(using=using):
            return _begin_once(using, request)
    except IntegrityError:
        # Another process began the same invocation between the look-up and the insert.
        with transaction.atomic(using=using):
            return _begin_once(using, request)


def _begin_once(using: str, request: TurnRequest) -> Begun:
    now = timezone.now()
    scope = request.scope
    found = read_now(using, {"key": scope.key(request.invocation.id)})
    if found is not None and not _take_back(using, request, found[0].pk):
        return found[0]
    if request.session_id is None:
        pending.check(using, [], request.invocation.responses, request.check_reply)
        if request.handed_input:
            return Handed(insert(using, request, None, Status.QUEUED).pk, None, request.begun_at)
        return Turn(insert(using, request, None, Status.RUNNING).pk, request.owner, None, request.begun_at)
    session = records.ensure_session_record(using, scope, request.session_id, user_pk=request.user_pk, now=now)
    is_free = _is_free(using, session) and not _older_waits(using, session.pk)
    opened = _open_requests(using, session, request) if is_free else []
    if request.handed_input and (is_free or request.on_busy == "wait"):
        return Handed(insert(using, request, session, Status.QUEUED).pk, session.pk, request.begun_at)
    if is_free:
        record = insert(using, request, session, Status.RUNNING)
        claimed = _claim(using, session, record.pk, request, opened)
        return Turn(record.pk, request.owner, claimed, request.begun_at)
    if request.on_busy == "reject":
        raise SessionBusy
    record = insert(using, request, session, Status.QUEUED)
    return Waiting(record.pk, request.owner, session.pk, request)


def insert(
    using: str, request: TurnRequest, session: SessionRecord | None, status: InvocationRecord.Status, **more: Any
) -> InvocationRecord:
    """Write an invocation's record; inside the caller's transaction, on a database thread.

    Args:
        using: Alias of the database.
        request: What begins the turn.
        session: The locked row of its session, or None.
        status: What the invocation is.
        **more: Further columns.
    """
    invocation, scope = request.invocation, request.scope
    return InvocationRecord.objects.using(using).create(
        key=scope.key(invocation.id),
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
        session_record_id=None if session is None else session.pk,
        session_id=invocation.session_id if invocation.session_mode != "disabled" else None,
        claim_number=session.claim_number + 1 if session is not None and status == Status.RUNNING else 0,
        owner=request.owner,
        lease_expires_at=clock.from_now(request.lease_seconds),
        status=status,
        metadata=json.dumps(dict(invocation.metadata)) if invocation.metadata else "",
        created_at=request.begun_at,
        **deliveries.columns_of(invocation.delivery),
        **({"input": request.handed_input} | more),
    )


def _take_back(using: str, request: TurnRequest, record_pk: int) -> bool:
    """Undo a beginning of this very turn that was written although its confirmation was lost."""
    own = InvocationRecord.objects.using(using).filter(
        pk=record_pk, owner=request.owner, correlation_id=request.correlation_id, status=Status.RUNNING
    )
    if not own.exists():
        return False
    rows = SessionRecord.objects.using(using).filter(claimed_by=record_pk)
    rows.update(claimed_by=None, claim_expires_at=None)
    own.delete()
    return True


def _free() -> Q:
    return Q(claimed_by__isnull=True) | clock.is_past("claim_expires_at")


def _is_free(using: str, session: SessionRecord) -> bool:
    if session.claimed_by is None:
        return True
    return SessionRecord.objects.using(using).filter(_free(), pk=session.pk).exists()


def _older_waits(using: str, session_pk: int, record_pk: int | None = None) -> bool:
    """Return whether a live record waits for the session that is older than another; a dead one is skipped."""
    waiting = InvocationRecord.objects.using(using).filter(session_record_id=session_pk, status=Status.QUEUED)
    if record_pk is not None:
        waiting = waiting.filter(pk__lt=record_pk)
    return waiting.exclude(clock.is_past("lease_expires_at")).exists()


def _claim_waiting(waiting: Waiting) -> Turn | None:
    using = database.alias()
    with transaction.atomic(using=using):
        session = records.get_by_pk(using, waiting.session_pk)
        row = (
            InvocationRecord.objects.using(using)
            .filter(pk=waiting.record_pk)
            .values_list("status", "owner", clock.past_or_not("lease_expires_at"))
            .first()
        )
        if session is None or row is None or row != (Status.QUEUED, waiting.owner, False):
            raise RunCancelled if row is not None and row[0] == Status.CANCELLED else RunInterrupted
        if not _is_free(using, session) or _older_waits(using, session.pk, waiting.record_pk):
            return None
        opened = _open_requests(using, session, waiting.request)
        claimed = _claim(using, session, waiting.record_pk, waiting.request, opened)
        InvocationRecord.objects.using(using).filter(pk=waiting.record_pk).update(
            status=Status.RUNNING,
            claim_number=claimed.claim_number,
            claimed_at=timezone.now(),
            lease_expires_at=clock.from_now(waiting.request.lease_seconds),
        )
        return Turn(waiting.record_pk, waiting.owner, claimed, waiting.begun_at)


def _open_requests(using: str, session: SessionRecord, request: TurnRequest) -> list[PendingRecord]:
    """Return what is pending, once it is sure that the invocation may go on from it."""
    opened = pending.open_requests(using, session)
    pending.check(using, opened, request.invocation.responses, request.check_reply)
    return opened


def _claim(
    using: str, session: SessionRecord, record_pk: int, request: TurnRequest, opened: Sequence[PendingRecord]
) -> ClaimedSession:
    claimed = (
        SessionRecord.objects.using(using)
        .filter(_free(), pk=session.pk)
        .update(
            claim_number=F("claim_number") + 1,
            claimed_by=record_pk,
            claim_expires_at=clock.from_now(request.lease_seconds),
        )
    )
    if not claimed:
        raise SessionBusy
    if session.claimed_by is not None:
        interrupt(using, session.claimed_by)
    state = session.state
    history = kept.sessions.take(session.pk, session.opaque_id, session.version, state)
    if history is not None and history.count != records.count_messages(using, session.pk):
        history = None
    rows = tuple(records.load_message_rows(using, session.pk)) if history is None else ()
    checkpoint = checkpoints.latest(using, session.pk) if request.with_checkpoint else None
    if opened:
        # What the run starts from was read above; what it leaves if it fails is written here.
        replies = request.invocation.responses or {}
        pending.consume(using, session, opened, replies, record_pk=record_pk, now=timezone.now())
    return ClaimedSession(
        pk=session.pk,
        key=session.key or "",
        opaque_id=session.opaque_id,
        version=session.version,
        claim_number=session.claim_number + 1,
        state=state,
        rows=rows,
        history=history,
        answered=tuple(pending.request_of(record) for record in opened),
        is_rewritten=bool(opened),
        checkpoint=checkpoint,
    )


def _give_up(waiting: Waiting) -> bool:
    rows = InvocationRecord.objects.using(database.alias())
    deleted, _ = rows.filter(pk=waiting.record_pk, owner=waiting.owner, status=Status.QUEUED).delete()
    return deleted > 0
