"""Removing what is older than the settings keep it: sessions, records of invocations, event logs.

Safe while the site serves: in transactions of a bounded size, on rows that are
locked and looked at again before they go, and never anything that runs or
waits. The tables are gone through by primary key, so that a long one is read
once. When it is called is left to the management command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from django.db import connections, transaction
from django.db.models import CASCADE, Exists, ForeignObjectRel, Model, OuterRef, Q, QuerySet

from invocations_app.conf import HostSettings
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import clock, database
from invocations_app.storage.invocations import LIVE, interrupt

Status = InvocationRecord.Status
Progress = Callable[[str, int], None]

#: Rows that are removed in one transaction, about: a session goes with all its messages.
ROWS_AT_ONCE = 1000
_SESSIONS_AT_ONCE = 100
_RECORDS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows that are to go, or are gone.

    Attributes:
        interrupted: Invocations whose process died, written down as interrupted; they stay.
        sessions: Sessions.
        messages: Messages of those sessions.
        invocations: Records of invocations.
        events: Rows of the event log.
    """

    interrupted: int = 0
    sessions: int = 0
    messages: int = 0
    invocations: int = 0
    events: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Times before which things may go; None keeps them for ever.

    Attributes:
        sessions: Of a session's last activity.
        invocations: Of an invocation's end, for its record.
        events: Of an invocation's end, for its event log.
    """

    sessions: datetime | None
    invocations: datetime | None
    events: datetime | None

    @classmethod
    def of(cls, host: HostSettings, now: datetime) -> Cutoffs:
        """Return the times that the settings mean.

        Args:
            host: The settings.
            now: Time from which they are counted back.
        """
        return cls(
            sessions=_before(now, host.session_ttl_seconds),
            invocations=_before(now, host.invocation_ttl_seconds),
            events=_before(now, host.event_ttl_seconds),
        )


def _before(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now - timedelta(seconds=seconds)


def count(cutoffs: Cutoffs) -> Counts:
    """Return what `clear` would do, and do nothing.

    Args:
        cutoffs: What may go.
    """
    using = database.alias()
    sessions = _old_sessions(using, cutoffs).values("pk")
    records = _old_records(using, cutoffs)
    # The records of sessions that go, and await input: they are old enough once their session is gone.
    awaiting = _ended_records(using, cutoffs.invocations).filter(
        status=Status.AWAITING_INPUT, session_record__in=sessions
    )
    gone = Q(invocation__in=records.values("pk")) | Q(invocation__in=awaiting.values("pk"))
    return Counts(
        interrupted=_dead_records(using).count(),
        sessions=sessions.count(),
        messages=MessageRecord.objects.using(using).filter(session__in=sessions).count(),
        invocations=records.count() + awaiting.count(),
        events=EventRecord.objects.using(using)
        .filter(gone | Q(pk__in=_old_events(using, cutoffs).values("pk")))
        .count(),
    )


def clear(cutoffs: Cutoffs, progress: Progress = lambda what, rows: None) -> Counts:
    """Remove what may go, and write down interruptions that are met.

    Args:
        cutoffs: What may go.
        progress: Called after each transaction with the name of a count and the rows it removed.

    Returns:
        What is gone.

    Raises:
        DatabaseError: If the database is not reachable; what was removed before stays removed.
    """
    using = database.alias()
    total = Counts()
    # A dead run holds its session and its record: written down first, so that both can go by their age.
    # What is left of sessions is what records may point to, so sessions go before records.
    for step in (_interrupt_dead, _clear_sessions, _clear_records, _clear_events):
        for done in step(using, cutoffs):
            total += done
            for item in fields(done):
                if getattr(done, item.name):
                    progress(item.name, getattr(done, item.name))
    return total


# What may go


def _dead_records(using: str) -> QuerySet[InvocationRecord]:
    return InvocationRecord.objects.using(using).filter(clock.is_past("lease_expires_at"), status__in=LIVE)


def _old_sessions(using: str, cutoffs: Cutoffs) -> QuerySet[SessionRecord]:
    """Return the sessions that may go: idle for long, with no live claim, and nobody who runs or waits."""
    rows = SessionRecord.objects.using(using)
    if cutoffs.sessions is None:
        return rows.none()
    live = InvocationRecord.objects.using(using).filter(session_record=OuterRef("pk"), status__in=LIVE)
    # One that was handed to a tasks backend has no lease yet, and lives too.
    live = live.exclude(clock.is_past("lease_expires_at"))
    free = Q(claimed_by__isnull=True) | clock.is_past("claim_expires_at")
    return rows.filter(~Exists(live), free, updated_at__lt=cutoffs.sessions)


def _ended_records(using: str, before: datetime | None) -> QuerySet[InvocationRecord]:
    rows = InvocationRecord.objects.using(using)
    return rows.none() if before is None else rows.filter(finished_at__lt=before).exclude(status__in=LIVE)


def _old_records(using: str, cutoffs: Cutoffs) -> QuerySet[InvocationRecord]:
    """Return the records that may go; one that awaits input is kept for as long as its session."""
    rows = _ended_records(using, cutoffs.invocations)
    return rows.exclude(status=Status.AWAITING_INPUT, session_record__isnull=False)


def _old_events(using: str, cutoffs: Cutoffs) -> QuerySet[EventRecord]:
    rows = EventRecord.objects.using(using)
    if cutoffs.events is None:
        return rows.none()
    return rows.filter(invocation__finished_at__lt=cutoffs.events).exclude(invocation__status__in=LIVE)


# How it goes


def _interrupt_dead(using: str, cutoffs: Cutoffs) -> Iterator[Counts]:
    for pks in _pages(_dead_records(using), _RECORDS_AT_ONCE):
        for pk in pks:
            # One at a time: a transaction that locks several sessions could wait for another such one.
            with transaction.atomic(using=using):
                yield Counts(interrupted=int(interrupt(using, pk)))


def _clear_sessions(using: str, cutoffs: Cutoffs) -> Iterator[Counts]:
    for pks in _pages(_old_sessions(using, cutoffs), _SESSIONS_AT_ONCE):
        for some in _of_about(ROWS_AT_ONCE, _message_counts(using, pks)):
            with transaction.atomic(using=using):
                yield _clear_some_sessions(using, cutoffs, some)


def _clear_some_sessions(using: str, cutoffs: Cutoffs, pks: Sequence[int]) -> Counts:
    # Locked, and then looked at again: a turn that begins locks its session's row first.
    locked = _lock_sessions(using, pks)
    # All that belongs to a session has an index that begins with it, so Django may look for it.
    _, deleted = _old_sessions(using, cutoffs).filter(pk__in=locked).only("pk").delete()
    return Counts(
        sessions=deleted.get(SessionRecord._meta.label, 0), messages=deleted.get(MessageRecord._meta.label, 0)
    )


def _clear_records(using: str, cutoffs: Cutoffs) -> Iterator[Counts]:
    for pks in _pages(_old_records(using, cutoffs), _RECORDS_AT_ONCE):
        for some in _of_about(ROWS_AT_ONCE, _event_counts(using, pks)):
            with transaction.atomic(using=using):
                yield _clear_some_records(using, cutoffs, some)


def _clear_some_records(using: str, cutoffs: Cutoffs, pks: Sequence[int]) -> Counts:
    records = InvocationRecord.objects.using(using).filter(pk__in=pks)
    sessions = set(records.filter(session_record__isnull=False).values_list("session_record_id", flat=True))
    _lock_sessions(using, sessions)
    gone = list(_old_records(using, cutoffs).filter(pk__in=pks).values_list("pk", flat=True))
    events, _ = EventRecord.objects.using(using).filter(invocation__in=gone).delete()
    for relation in InvocationRecord._meta.get_fields(include_hidden=True):
        if isinstance(relation, ForeignObjectRel) and relation.related_model is not EventRecord:
            _unlink(using, relation, gone, sessions)
    # QuerySet.delete would do the same by columns without an index, the whole table of messages each time:
    # this is the statement that it ends with.
    return Counts(invocations=int(records.filter(pk__in=gone)._raw_delete(using)), events=events)


def _unlink(using: str, relation: ForeignObjectRel, gone: Sequence[int], sessions: Collection[int]) -> None:
    """Take records that are about to go out of a column that points to them."""
    model, name = relation.related_model, relation.field.name
    rows = model._base_manager.using(using).filter(**{f"{name}__in": gone})
    for field in model._meta.fields:
        if field.related_model is SessionRecord:
            # What has an index has it by session.
            rows = rows.filter(**{f"{field.name}__in": sessions})
    if relation.on_delete is CASCADE:
        rows.delete()
    else:
        rows.update(**{name: None})


def _clear_events(using: str, cutoffs: Cutoffs) -> Iterator[Counts]:
    # From the first of a log to its last, so that a reader who comes meanwhile meets a gap, and never a false end.
    for pks in _pages(_old_events(using, cutoffs), ROWS_AT_ONCE):
        yield Counts(events=EventRecord.objects.using(using).filter(pk__in=pks).delete()[0])


def _pages(rows: QuerySet[Model], size: int) -> Iterator[list[int]]:
    """Yield the primary keys of rows, some at a time, each page after the last row of the one before."""
    last = 0
    while True:
        pks = list(rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:size])
        if not pks:
            return
        last = pks[-1]
        yield pks


def _message_counts(using: str, pks: Collection[int]) -> list[tuple[int, int]]:
    rows = SessionRecord.objects.using(using).filter(pk__in=pks).order_by("pk")
    return list(rows.values_list("pk", "message_count"))


def _event_counts(using: str, pks: Collection[int]) -> list[tuple[int, int]]:
    # A row of the log holds one event at least, so this many at most.
    rows = InvocationRecord.objects.using(using).filter(pk__in=pks).order_by("pk")
    return list(rows.values_list("pk", "event_count"))


def _of_about(size: int, weights: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield primary keys in groups that weigh about as much as a transaction may; one is a group at least."""
    some: list[int] = []
    weight = 0
    for pk, extra in weights:
        if some and weight + extra > size:
            yield some
            some, weight = [], 0
        some.append(pk)
        weight += 1 + extra
    if some:
        yield some


def _lock_sessions(using: str, pks: Collection[int]) -> list[int]:
    """Lock rows of sessions, in one order; on SQLite the transaction has the database to itself."""
    rows = SessionRecord.objects.using(using).filter(pk__in=pks).order_by("pk")
    if connections[using].features.has_select_for_update:
        rows = rows.select_for_update()
    return list(rows.values_list("pk", flat=True))
