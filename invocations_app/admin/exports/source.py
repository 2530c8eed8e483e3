"""What an export reads, a little at a time: a session of any length takes no more memory than a few of its messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from django.db.models import Q, QuerySet

from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord

MESSAGES_AT_ONCE = 20
ROWS_AT_ONCE = 200


def sessions(pks: Iterable[int]) -> Iterator[SessionRecord]:
    """Yield sessions one by one, with their states; those that are gone by then are left out.

    Args:
        pks: Their primary keys.
    """
    for pk in pks:
        yield from SessionRecord.objects.select_related("user").filter(pk=pk)


def message_batches(session: SessionRecord) -> Iterator[list[MessageRecord]]:
    """Yield the messages of a session in order, a few at a time, without a cursor that stays open.

    Args:
        session: The session.
    """
    rows = session.messages.order_by("source_id", "position")
    batch = list(rows[:MESSAGES_AT_ONCE])
    while batch:
        yield batch
        last = batch[-1]
        behind = Q(source_id__gt=last.source_id) | Q(source_id=last.source_id, position__gt=last.position)
        batch = list(rows.filter(behind)[:MESSAGES_AT_ONCE])


def invocations(session: SessionRecord) -> Iterator[InvocationRecord]:
    """Yield the invocations of a session in the order they were begun, without what they hold of contents.

    Args:
        session: The session.
    """
    return by_pk(session.invocations.defer("answer", "input", "metadata", "delivery_report"))


def by_pk(rows: QuerySet[Any]) -> Iterator[Any]:
    """Yield rows by primary key, some at a time.

    Args:
        rows: The rows.
    """
    last = 0
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:ROWS_AT_ONCE]):
        yield from batch
        last = batch[-1].pk


def iso(moment: datetime | None) -> str | None:
    """Return a moment as RFC 3339 in UTC, to the millisecond.

    Args:
        moment: An aware moment, or None.
    """
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
