"""The log of wire events: appended in batches, read from any number, trimmed by age.

The last event of a stream is not logged: it follows from the record's status.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from invocations_app.models import EventRecord, InvocationRecord
from invocations_app.storage import clock, database, notify, plain_sql
from invocations_app.storage.plain_sql import Insert

_NEW_EVENTS = Insert(EventRecord, ["invocation_id", "first", "last", "frames", "created_at"])
_REPLACE = '(invocation_id, "first") DO UPDATE SET "last" = excluded."last", frames = excluded.frames'
_HELD = f"""
SELECT id FROM "{InvocationRecord._meta.db_table}"
WHERE owner = %s AND id IN ({{keys}}) AND status = 'running' AND lease_expires_at >= {{now}} ORDER BY id
"""  # noqa: S608 - a table's name
_encode = json.JSONEncoder(separators=(",", ":")).encode
# Rows of up to 256 events; a reader takes a few at a time, so that a long log does not fill memory.
_ROWS_A_READ = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Wire events of one run.

    Attributes:
        record_pk: Primary key of the invocation's record.
        first: Number of the first of them, from 1.
        frames: The events, each whole and without an id line.
    """

    record_pk: int
    first: int
    frames: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """Number of the last of them."""
        return self.first + len(self.frames) - 1

    @property
    def text(self) -> str:
        """The events as a row keeps them."""
        return _encode([frame.decode() for frame in self.frames])


async def append(owner: str, batches: Sequence[Batch]) -> set[int]:
    """Append events of several runs in one transaction.

    Args:
        owner: Id of the process.
        batches: The events; at most one batch a run.

    Returns:
        Primary keys of the records that this process may still write.
    """
    return await database.run(_append, owner, batches)


async def read(record_pk: int, after: int) -> list[tuple[int, bytes]]:
    """Return logged events with their numbers, some at a time.

    Args:
        record_pk: Primary key of the invocation's record.
        after: Number of the last event that the reader has.

    Returns:
        The next events in order; empty where the log holds no later one.
    """
    return await database.run(_read, record_pk, after)


def write_batch(using: str, batch: Batch) -> None:
    """Write one batch inside the caller's transaction, on a database thread.

    Args:
        using: Alias of the database.
        batch: The events; none is fine.
    """
    if batch.frames:
        _insert(using, [batch])


def _append(owner: str, batches: Sequence[Batch]) -> set[int]:
    using = database.alias()
    with transaction.atomic(using=using):
        held = _held(using, owner, [batch.record_pk for batch in batches])
        _insert(using, [batch for batch in batches if batch.record_pk in held])
        notify.notify(using, [notify.invocation_key(pk) for pk in held])
    return held


def _held(using: str, owner: str, record_pks: Sequence[int]) -> set[int]:
    """Return, and lock, the records that this process may still write."""
    connection: Any = connections[using]
    vendor = connection.vendor
    if vendor in plain_sql.VENDORS:
        with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
            text = _HELD.replace("{keys}", plain_sql.placeholders(vendor, len(record_pks)))
            lock = " FOR UPDATE" if vendor == "postgresql" else ""
            cursor.execute(plain_sql.statement(vendor, text + lock), [owner, *record_pks])
            return {pk for (pk,) in cursor.fetchall()}
    rows = InvocationRecord.objects.using(using).filter(
        pk__in=record_pks, owner=owner, status=InvocationRecord.Status.RUNNING
    )
    rows = rows.exclude(clock.is_past("lease_expires_at"))
    if connection.features.has_select_for_update:
        rows = rows.select_for_update().order_by("pk")
    return set(rows.values_list("pk", flat=True))


def _insert(using: str, batches: Sequence[Batch]) -> None:
    """Insert batches, each in the place of one that was written without its process knowing.

    That one's confirmation was lost with a connection, or nobody waited for it any more; it began
    with the same event, and the new batch holds all of it.
    """
    connection: Any = connections[using]
    if connection.vendor in plain_sql.VENDORS:
        now = plain_sql.moment(connection, timezone.now())
        rows = [[batch.record_pk, batch.first, batch.last, batch.text, now] for batch in batches]
        with contextlib.closing(plain_sql.driver_cursor(connection)) as cursor:
            _NEW_EVENTS.insert(connection, cursor, rows, on_conflict=_REPLACE)
        return
    features = connection.features
    conflicts: dict[str, Any] = {}
    if features.supports_update_conflicts:
        conflicts = {"update_conflicts": True, "update_fields": ["last", "frames"]}
        if features.supports_update_conflicts_with_target:
            conflicts["unique_fields"] = ["invocation", "first"]
    EventRecord.objects.using(using).bulk_create([_row(batch) for batch in batches], **conflicts)


def _row(batch: Batch) -> EventRecord:
    return EventRecord(
        invocation_id=batch.record_pk,
        first=batch.first,
        last=batch.last,
        frames=batch.text,
        created_at=timezone.now(),
    )


def _read(record_pk: int, after: int) -> list[tuple[int, bytes]]:
    rows = (
        EventRecord.objects.using(database.alias())
        .filter(invocation_id=record_pk, last__gt=after)
        .order_by("first")
        .values_list("first", "frames")[:_ROWS_A_READ]
    )
    return [
        (number, frame.encode())
        for first, frames in rows
        for number, frame in enumerate(json.loads(frames), start=first)
        if number > after
    ]
