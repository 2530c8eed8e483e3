"""Pending requests in the database: left by a turn, consumed once, closed.

Consuming them closes the session's open calls in the same transaction: what a
turn that then fails, is cancelled or dies leaves behind is already in order.
Everything here runs inside the caller's transaction, on a database thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from invocations_app.exceptions import AwaitingResponses
from invocations_app.models import CheckpointRecord, InvocationRecord, PendingRecord, SessionRecord
from invocations_app.pending import CheckReply, PendingRequest, check_replies, close_calls
from invocations_app.storage import records, snapshots

Status = InvocationRecord.Status


def open_requests(using: str, session: SessionRecord) -> list[PendingRecord]:
    """Return what is pending in a session, in the order it was asked.

    Args:
        using: Alias of the database.
        session: The session's locked row.
    """
    if not session.pending_count:
        return []
    rows = PendingRecord.objects.using(using).filter(session_record_id=session.pk, closed_at__isnull=True)
    return list(rows.order_by("pk"))


def request_of(record: PendingRecord) -> PendingRequest:
    """Return the pending request that a row stands for.

    Args:
        record: The row.
    """
    kind: Any = record.kind
    return PendingRequest(record.request_id, kind, json.loads(record.data), json.loads(record.payload))


def check(
    using: str, opened: Sequence[PendingRecord], replies: Mapping[str, Any] | None, check_reply: CheckReply | None
) -> None:
    """Check an invocation against what is pending in its session.

    Args:
        using: Alias of the database.
        opened: What is pending.
        replies: The invocation's replies; None for new input.
        check_reply: Checks each value further.

    Raises:
        ResponsesMismatch: If the replies do not answer exactly what is pending.
        AwaitingResponses: If new input came while something is pending.
    """
    requests = [request_of(record) for record in opened]
    if replies is not None:
        check_replies(requests, replies, check_reply)
    elif opened:
        asked_by = InvocationRecord.objects.using(using).filter(pk__in=[opened[0].invocation_id or 0])
        invocation_id = asked_by.values_list("invocation_id", flat=True).first()
        raise AwaitingResponses(invocation_id or "", [request.data for request in requests])


def consume(
    using: str,
    session: SessionRecord,
    opened: Sequence[PendingRecord],
    replies: Mapping[str, Any],
    *,
    record_pk: int,
    now: datetime,
) -> None:
    """Consume what is pending, for an invocation that answers it; whatever becomes of that one.

    Args:
        using: Alias of the database.
        session: The session's locked row.
        opened: What is pending.
        replies: Request id to reply, checked.
        record_pk: Primary key of the answering invocation's record.
        now: Time of consuming it.
    """
    for record in opened:
        record.reply = json.dumps(replies[record.request_id])
        record.answered_by_id = record_pk
        record.closed_at = now
    PendingRecord.objects.using(using).bulk_update(opened, ["reply", "answered_by", "closed_at"])
    _take_back(using, session, opened, now)
    InvocationRecord.objects.using(using).filter(
        pk__in=[record.invocation_id for record in opened if record.invocation_id], status=Status.AWAITING_INPUT
    ).update(status=Status.SUCCEEDED)


def drop(using: str, session: SessionRecord, now: datetime) -> None:
    """Drop what is pending in a session, unanswered.

    Args:
        using: Alias of the database.
        session: The session's locked row.
        now: Time of dropping it.
    """
    opened = open_requests(using, session)
    PendingRecord.objects.using(using).filter(pk__in=[record.pk for record in opened]).update(closed_at=now)
    _take_back(using, session, opened, now)


def _take_back(using: str, session: SessionRecord, opened: Sequence[PendingRecord], now: datetime) -> None:
    """Bring a session to where it can go on without what was pending.

    An agent's open calls are closed; a workflow goes back to before the turn that asked.
    """
    asked_by = {record.invocation_id for record in opened}
    CheckpointRecord.objects.using(using).filter(session_record_id=session.pk, invocation_id__in=asked_by).delete()
    session.pending_count = 0
    if session.state:
        loaded, history = snapshots.load(session.state, records.load_message_rows(using, session.pk))
        close_calls(loaded)
        change = snapshots.dump(loaded, history)
        records.write_messages(using, session.pk, change, invocation_pk=None, now=now)
        session.state = change.state
        session.message_count = change.history.count
    session.version += 1
    session.save(using=using, update_fields=["pending_count", "state", "message_count", "version"])


def leave(using: str, session_pk: int, record_pk: int, requests: Sequence[PendingRequest], now: datetime) -> None:
    """Leave requests pending at the end of a turn.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
        record_pk: Primary key of the asking invocation's record.
        requests: The requests.
        now: Time of the turn.
    """
    PendingRecord.objects.using(using).bulk_create(
        [
            PendingRecord(
                session_record_id=session_pk,
                invocation_id=record_pk,
                position=position,
                request_id=request.request_id,
                kind=request.kind,
                data=json.dumps(request.data),
                payload=json.dumps(request.payload),
                created_at=now,
            )
            for position, request in enumerate(requests)
        ]
    )
    SessionRecord.objects.using(using).filter(pk=session_pk).update(pending_count=len(requests))
