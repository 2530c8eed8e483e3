"""Turns that another machine runs: a record that nobody owns yet, and the worker who takes it.

The record is begun as any other, queued and without an owner. Until the tasks
backend has confirmed that it has it, it has a lease: a process that dies in
between leaves nothing that waits for ever. From then on it has none, and keeps
its place in the order of its session, until exactly one worker takes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord
from invocations_app.storage import clock, database, notify
from invocations_app.storage.turns import Handed

Status = InvocationRecord.Status

_COLUMNS = (
    "endpoint",
    "user_key",
    "chat_key",
    "user_id",
    "invocation_id",
    "dialect",
    "fingerprint",
    "correlation_id",
    "session_id",
    "session_record_id",
    "input",
    "created_at",
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A record that a worker has taken; it is this worker's from now on.

    Attributes:
        record_pk: Primary key of the record.
        scope: Endpoint and isolation keys.
        user_pk: Primary key of the Django user who asked, or None.
        invocation_id: The invocation's id.
        dialect: Name of its dialect.
        fingerprint: Digest of the request.
        correlation_id: The record's random id.
        session_pk: Primary key of its session's row; None without a session, 0 for one that is gone.
        input: What the process that began it left for the worker.
        begun_at: When it was begun.
    """

    record_pk: int
    scope: Scope
    user_pk: Any
    invocation_id: str
    dialect: Any
    fingerprint: str
    correlation_id: str
    session_pk: int | None
    input: str
    begun_at: datetime


async def confirm(handed: Handed) -> None:
    """Let a record wait without a lease: the tasks backend has it.

    Args:
        handed: The turn; one that a worker took already is left alone.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    await database.run(_confirm, handed)


async def take_back(handed: Handed) -> bool:
    """Remove a record that the tasks backend did not take: as if it had never been asked for.

    Args:
        handed: The turn.

    Returns:
        Whether it is gone; a worker may have taken it all the same.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_take_back, handed)


async def take(record_pk: int, owner: str, lease_seconds: float) -> Taken | None:
    """Take a record that waits for a worker.

    Args:
        record_pk: Primary key of the record.
        owner: Id of the worker's process.
        lease_seconds: Time after which that process counts as gone.

    Returns:
        What to run, which is running now where it has no session to wait for; None
        where it was taken before, has ended, or is gone.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_take, record_pk, owner, lease_seconds)


def _waiting_for_worker(record_pk: int) -> Any:
    return InvocationRecord.objects.using(database.alias()).filter(pk=record_pk, status=Status.QUEUED, owner="")


def _confirm(handed: Handed) -> None:
    _waiting_for_worker(handed.record_pk).update(lease_expires_at=None)


def _take_back(handed: Handed) -> bool:
    using = database.alias()
    with transaction.atomic(using=using):
        deleted, _ = _waiting_for_worker(handed.record_pk).delete()
        if deleted and handed.session_pk is not None:
            notify.notify(using, [notify.session_key(handed.session_pk)])
    return deleted > 0 or not InvocationRecord.objects.using(using).filter(pk=handed.record_pk).exists()


def _take(record_pk: int, owner: str, lease_seconds: float) -> Taken | None:
    using = database.alias()
    with transaction.atomic(using=using):
        rows = InvocationRecord.objects.using(using).filter(pk=record_pk)
        # Conditional: of two deliveries of one task the second finds an owner.
        if not _waiting_for_worker(record_pk).update(owner=owner, lease_expires_at=clock.from_now(lease_seconds)):
            return None
        row = rows.values(*_COLUMNS).get()
        has_session = bool(row["session_id"])
        if not has_session:
            rows.update(status=Status.RUNNING, claimed_at=timezone.now())
    return Taken(
        record_pk=record_pk,
        scope=Scope(row["endpoint"], row["user_key"], row["chat_key"]),
        user_pk=row["user_id"],
        invocation_id=row["invocation_id"],
        dialect=row["dialect"],
        fingerprint=row["fingerprint"],
        correlation_id=row["correlation_id"],
        session_pk=(row["session_record_id"] or 0) if has_session else None,
        input=row["input"],
        begun_at=row["created_at"],
    )
