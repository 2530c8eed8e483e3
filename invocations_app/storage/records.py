"""Rows of sessions and their messages: the statements that stores and turns share.

Everything here runs inside the caller's transaction, on a database thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import F, Q

from invocations_app import entropy
from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.isolation import Scope
from invocations_app.models import MessageRecord, SessionRecord
from invocations_app.storage.snapshots import Change, MessageRow

logger = logging.getLogger("invocations_app.storage")


def new_opaque_id() -> str:
    """Return a session id that says nothing of its caller: 32 hexadecimal digits."""
    return entropy.random_hex()


def get_session_record(using: str, scope: Scope, session_id: str, *, lock: bool = False) -> SessionRecord | None:
    """Return the row of a session in its scope, or None.

    Args:
        using: Alias of the database.
        scope: The scope.
        session_id: The caller's session id.
        lock: Lock the row until the transaction ends.

    Raises:
        StoredStateUnreadable: If the row of that key belongs to other columns.
    """
    rows = SessionRecord.objects.using(using).filter(key=scope.key(session_id))
    if lock and connections[using].features.has_select_for_update:
        rows = rows.select_for_update()
    record = rows.first()
    if record is not None and (record.endpoint, record.user_key, record.chat_key, record.session_id) != (
        scope.endpoint,
        scope.user_key,
        scope.chat_key,
        session_id,
    ):
        logger.error("The stored session with the key digest %s belongs to other columns.", record.key)
        raise StoredStateUnreadable
    return record


def get_by_pk(using: str, session_pk: int) -> SessionRecord | None:
    """Return the locked row of a session by its primary key, or None.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
    """
    rows = SessionRecord.objects.using(using).filter(pk=session_pk)
    if connections[using].features.has_select_for_update:
        rows = rows.select_for_update()
    return rows.first()


def ensure_session_record(
    using: str, scope: Scope, session_id: str, *, user_pk: Any = None, now: datetime
) -> SessionRecord:
    """Return the locked row of a session, made if it is not there.

    Args:
        using: Alias of the database.
        scope: The scope.
        session_id: The caller's session id.
        user_pk: Primary key of the Django user who makes it, or None.
        now: Time of making it.
    """
    record = get_session_record(using, scope, session_id, lock=True)
    if record is None:
        made = SessionRecord(
            key=scope.key(session_id),
            endpoint=scope.endpoint,
            user_key=scope.user_key,
            chat_key=scope.chat_key,
            session_id=session_id,
            user_id=user_pk,
            opaque_id=new_opaque_id(),
            created_at=now,
            updated_at=now,
        )
        # Two callers may make it at once: the second one's row is dropped, and it waits for the first's.
        SessionRecord.objects.using(using).bulk_create([made], ignore_conflicts=True)
        record = get_session_record(using, scope, session_id, lock=True)
        if record is None:
            raise StoredStateUnreadable
    return record


def load_message_rows(using: str, session_pk: int) -> list[MessageRow]:
    """Return all message rows of a session, by provider and position.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
    """
    values = (
        MessageRecord.objects.using(using)
        .filter(session_id=session_pk)
        .order_by("source_id", "position")
        .values_list("source_id", "position", "role", "payload")
    )
    return list(map(MessageRow._make, values))


def count_messages(using: str, session_pk: int) -> int:
    """Return how many message rows a session has.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
    """
    return MessageRecord.objects.using(using).filter(session_id=session_pk).count()


def write_messages(using: str, session_pk: int, change: Change, *, invocation_pk: int | None, now: datetime) -> None:
    """Bring the message rows of a session to where a change says they are.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
        change: What the turn changed.
        invocation_pk: Primary key of the invocation's record, or None.
        now: Time of the turn.
    """
    if not change.appended_only:
        _delete_replaced(using, session_pk, change)
    MessageRecord.objects.using(using).bulk_create(
        [
            MessageRecord(
                session_id=session_pk,
                source_id=row.source_id,
                position=row.position,
                role=row.role,
                payload=row.payload,
                invocation_id=invocation_pk,
                created_at=now,
            )
            for row in change.written
        ]
    )


def _delete_replaced(using: str, session_pk: int, change: Change) -> None:
    stored = MessageRecord.objects.using(using).filter(session_id=session_pk)
    gone = ~Q(source_id__in=list(change.kept))
    for source_id, count in change.kept.items():
        gone |= Q(source_id=source_id, position__gte=count)
    stored.filter(gone).delete()
    for source_id, positions in _by_source(change.written).items():
        stored.filter(source_id=source_id, position__in=positions).delete()


def _by_source(rows: Iterable[MessageRow]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for row in rows:
        positions.setdefault(row.source_id, []).append(row.position)
    return positions


def advance_session(using: str, session_pk: int, change: Change, *, version: int, now: datetime, **where: Any) -> bool:
    """Write a session's new state if nobody else has written it since.

    Args:
        using: Alias of the database.
        session_pk: Primary key of the session's row.
        change: What the turn changed.
        version: The version that was loaded.
        now: Time of the turn.
        **where: Further conditions on the row (the claim).

    Returns:
        Whether the row was written; otherwise nothing was.
    """
    values: dict[str, Any] = {
        "state": change.state,
        "message_count": change.history.count,
        "version": F("version") + 1,
        "updated_at": now,
    }
    if where:
        values |= {"claimed_by": None, "claim_expires_at": None}
    rows = SessionRecord.objects.using(using).filter(pk=session_pk, version=version, **where)
    return rows.update(**values) == 1
