"""Resetting a session: its id starts afresh, and its history stays as it was, put away.

The row loses its key and so its id; the next turn makes a new row, with another
opaque id, so that providers who store by that one start afresh too.
"""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from invocations_app.exceptions import RunCancelled, SessionBusy
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, PendingRecord, SessionRecord
from invocations_app.storage import clock, database, kept, records
from invocations_app.storage.invocations import LIVE, interrupt

Status = InvocationRecord.Status


async def reset_session(scope: Scope, session_id: str) -> bool:
    """Let a session id start afresh; what was stored stays readable in the admin.

    What was pending in it is dropped, and the invocation that asked is cancelled.
    A session whose stored state cannot be read can be reset too.

    Args:
        scope: Endpoint and isolation keys whose session it is.
        session_id: The caller's session id.

    Returns:
        Whether there was such a session.

    Raises:
        SessionBusy: If a turn of the session runs, or waits for it.
        StoredStateUnreadable: If the session's row is not its own.
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_reset, scope, session_id)


def reset_row(session_pk: int) -> bool:
    """Reset the session of a row, as `reset_session` does, on the calling thread and in its transaction.

    Args:
        session_pk: Primary key of the session's row.

    Returns:
        Whether it was reset; not one that is gone or was reset before.

    Raises:
        SessionBusy: If a turn of the session runs, or waits for it.
        DatabaseError: If the database is not reachable.
    """
    using = database.alias()
    with transaction.atomic(using=using):
        session = records.get_by_pk(using, session_pk)
        return session is not None and session.archived_at is None and _archive(using, session)


def _reset(scope: Scope, session_id: str) -> bool:
    using = database.alias()
    with transaction.atomic(using=using):
        session = records.get_session_record(using, scope, session_id, lock=True)
        return session is not None and _archive(using, session)


def _archive(using: str, session: SessionRecord) -> bool:
    """Put a locked row away, once nobody works with it."""
    claimed = SessionRecord.objects.using(using).filter(pk=session.pk, claimed_by__isnull=False)
    live = InvocationRecord.objects.using(using).filter(session_record_id=session.pk, status__in=LIVE)
    if (
        claimed.exclude(clock.is_past("claim_expires_at")).exists()
        or live.exclude(clock.is_past("lease_expires_at")).exists()
    ):
        raise SessionBusy
    for record_pk in list(live.values_list("pk", flat=True)):
        # Its process is gone: whoever meets that writes it down.
        interrupt(using, record_pk)
    _drop_pending(using, session)
    kept.sessions.drop(session.pk)
    session.key = None
    session.archived_at = timezone.now()
    session.pending_count = 0
    session.claimed_by = session.claim_expires_at = None
    session.save(using=using, update_fields=["key", "archived_at", "pending_count", "claimed_by", "claim_expires_at"])
    return True


def _drop_pending(using: str, session: SessionRecord) -> None:
    """Close what is pending. The history is left alone: no turn goes on from it, and it may be what is broken."""
    opened = PendingRecord.objects.using(using).filter(session_record_id=session.pk, closed_at__isnull=True)
    asked_by = set(opened.values_list("invocation_id", flat=True))
    opened.update(closed_at=timezone.now())
    error = RunCancelled()
    InvocationRecord.objects.using(using).filter(pk__in=asked_by, status=Status.AWAITING_INPUT).update(
        status=Status.CANCELLED, error_code=error.code, error_status=error.status
    )
