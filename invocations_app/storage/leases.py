"""Leases: what a process says at intervals of all its runs, and hears in return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from django.db import connections, transaction

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import clock, database
from invocations_app.storage.invocations import LIVE

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class News:
    """What became of a process's runs behind its back.

    Attributes:
        held: Records that it still holds.
        cancelled: Records whose cancellation was asked for, or done.
    """

    held: set[int]
    cancelled: set[int]


async def renew(owner: str, record_pks: Sequence[int], lease_seconds: float) -> News:
    """Renew the leases of a process's runs and waiting turns, in one transaction.

    Args:
        owner: Id of the process.
        record_pks: Primary keys of the records.
        lease_seconds: How long the leases hold from now.
    """
    return await database.run(_renew, owner, record_pks, lease_seconds)


async def look(owner: str, record_pks: Sequence[int]) -> News:
    """Return the news of a process's runs without renewing anything.

    Args:
        owner: Id of the process.
        record_pks: Primary keys of the records.
    """
    return await database.run(_look, owner, record_pks)


def _renew(owner: str, record_pks: Sequence[int], lease_seconds: float) -> News:
    using = database.alias()
    # Sorted, so that two processes that meet lock rows in one order.
    for some in _chunks(sorted(record_pks)):
        with transaction.atomic(using=using):
            sessions = SessionRecord.objects.using(using).filter(claimed_by__in=some).order_by("pk")
            if connections[using].features.has_select_for_update:
                sessions = sessions.select_for_update()
            locked = list(sessions.values_list("pk", flat=True))
            held = InvocationRecord.objects.using(using).filter(pk__in=some, owner=owner, status__in=LIVE)
            # A lease that ran out is not renewed: somebody may be about to take the session over.
            held = held.exclude(clock.is_past("lease_expires_at"))
            renewed = list(held.order_by("pk").values_list("pk", flat=True))
            held.update(lease_expires_at=clock.from_now(lease_seconds))
            # Not one that was claimed since: whoever holds its row may be waiting for the record's, which is ours now.
            claimed = SessionRecord.objects.using(using).filter(pk__in=locked, claimed_by__in=renewed)
            claimed.update(claim_expires_at=clock.from_now(lease_seconds))
    return _look(owner, record_pks)


def _look(owner: str, record_pks: Sequence[int]) -> News:
    using = database.alias()
    held: set[int] = set()
    cancelled: set[int] = set()
    for some in _chunks(record_pks):
        rows = InvocationRecord.objects.using(using).filter(pk__in=some)
        columns = ("pk", "owner", "status", "cancel_requested", clock.past_or_not("lease_expires_at"))
        for pk, holder, status, asked, expired in rows.values_list(*columns):
            if holder == owner and status in LIVE and not expired:
                held.add(pk)
            # One that waited is cancelled at once, without its process.
            if asked or status == InvocationRecord.Status.CANCELLED:
                cancelled.add(pk)
    return News(held, cancelled)


def _chunks(record_pks: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(record_pks), _AT_ONCE):
        yield record_pks[start : start + _AT_ONCE]
