"""Invocations as their records say: look-up by scope and id, status, cancelling.

A look-up writes down an interruption where it meets one: a record whose
process has been silent for longer than its lease.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections, transaction
from django.db.models import Max
from django.utils import timezone

from invocations_app.dialects.status import status_body
from invocations_app.events import Answer
from invocations_app.exceptions import (
    InvocationError,
    RunCancelled,
    RunInterrupted,
    error_of_code,
)
from invocations_app.isolation import Scope
from invocations_app.models import EventRecord, InvocationRecord, SessionRecord
from invocations_app.storage import clock, database, figures, pending, records

Status = InvocationRecord.Status

LIVE = (Status.QUEUED, Status.RUNNING)
_ENDED_WELL = (Status.SUCCEEDED, Status.AWAITING_INPUT)

_COLUMNS = (
    "pk",
    "endpoint",
    "invocation_id",
    "dialect",
    "stream",
    "background",
    "fingerprint",
    "status",
    "session_id",
    "answer",
    "error_code",
    "error_status",
    "usage",
    "event_count",
    "created_at",
    "finished_at",
    "delivery",
)


@dataclass(frozen=True, slots=True)
class StoredInvocation:
    """An invocation as its record says; each attribute is the column of that name."""

    pk: int
    endpoint: str
    invocation_id: str
    dialect: Any
    stream: bool
    background: bool
    fingerprint: str
    status: str
    session_id: str | None
    answer_text: str
    error_code: str
    error_status: int | None
    usage_text: str
    event_count: int
    created_at: datetime
    finished_at: datetime | None
    delivery: str

    @property
    def is_delivered_elsewhere(self) -> bool:
        """Whether its caller gets an acknowledgement only."""
        return self.delivery != ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows any more."""
        return self.status not in LIVE

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The framework's usage details, or None."""
        details: Mapping[str, Any] | None = json.loads(self.usage_text) if self.usage_text else None
        return details

    @property
    def answer(self) -> Answer | None:
        """The stored answer; None unless it ended well."""
        if self.status not in _ENDED_WELL:
            return None
        document = json.loads(self.answer_text)
        frames = document.get("frames")
        return Answer(
            text=document["text"],
            session_id=document["session_id"],
            pending=tuple(document.get("pending", ())),
            frames=None if frames is None else tuple(frames),
            usage=self.usage,
        )

    @property
    def error(self) -> InvocationError | None:
        """The stored error, with its fixed text; None unless it ended badly."""
        if not self.has_ended or self.status in _ENDED_WELL:
            return None
        return error_of_code(self.error_code, self.error_status)

    def status_body(self) -> dict[str, Any]:
        """Return the status body, as callers and push destinations get it."""
        return status_body(
            invocation_id=self.invocation_id,
            status=self.status,
            session_id=self.session_id,
            answer=self.answer,
            error=self.error,
            usage=self.usage,
            created_at=self.created_at,
            finished_at=self.finished_at,
        )


def stored_of(record: InvocationRecord) -> StoredInvocation:
    """Return what a record says.

    Args:
        record: The record, with all of its columns.
    """
    return StoredInvocation(*(getattr(record, name) for name in _COLUMNS))


async def look_up(scope: Scope, invocation_id: str) -> StoredInvocation | None:
    """Return an invocation of a scope, or None.

    Args:
        scope: Endpoint and isolation keys of the caller.
        invocation_id: The invocation's id.
    """
    return await database.run(_look_up, {"key": scope.key(invocation_id)})


async def read(pk: int) -> StoredInvocation | None:
    """Return an invocation by its record's primary key; None when the record is gone.

    Args:
        pk: Primary key of the record.
    """
    return await database.run(_look_up, {"pk": pk})


async def request_cancel(scope: Scope, invocation_id: str) -> StoredInvocation | None:
    """Cancel an invocation that waits or awaits input, ask for one that runs, and leave one that has ended.

    Args:
        scope: Endpoint and isolation keys of the caller.
        invocation_id: The invocation's id.

    Returns:
        The invocation as it is now; None for none.
    """
    return await database.run(_request_cancel, scope, invocation_id)


async def previous_id(session_pk: int | None, record_pk: int) -> str | None:
    """Return the id of the last invocation of a session that ended well before another one; None for none.

    Args:
        session_pk: Primary key of the session's row, or None.
        record_pk: Primary key of the other one's record.
    """
    return None if session_pk is None else await database.run(_previous_id, session_pk, record_pk)


async def keep_joined(pk: int, seconds: float) -> None:
    """Say that somebody on another process waits for the answer of a run.

    Args:
        pk: Primary key of the record.
        seconds: How long from now that holds.
    """
    await database.run(_keep_joined, pk, seconds)


def _look_up(where: Mapping[str, Any]) -> StoredInvocation | None:
    using = database.alias()
    found = read_now(using, where)
    if found is not None and found[1] and not found[0].has_ended:
        with transaction.atomic(using=using):
            interrupt(using, found[0].pk)
        found = read_now(using, where)
    return None if found is None else found[0]


def read_now(using: str, where: Mapping[str, Any]) -> tuple[StoredInvocation, bool] | None:
    """Return an invocation and whether its lease has expired; on a database thread.

    Args:
        using: Alias of the database.
        where: Conditions on the record.
    """
    rows = InvocationRecord.objects.using(using).filter(**where)
    row = rows.values_list(*_COLUMNS, clock.past_or_not("lease_expires_at")).first()
    return None if row is None else (StoredInvocation(*row[:-1]), bool(row[-1]))


def interrupt(using: str, pk: int) -> bool:
    """Write down that a run is over whose process has been silent; frees its session.

    Inside the caller's transaction, on a database thread.

    Args:
        using: Alias of the database.
        pk: Primary key of the record.

    Returns:
        Whether it was written: the process may have come back, or another one was faster.
    """
    # The session's row before the record's, as everywhere: one order, no deadlock.
    session_pk = InvocationRecord.objects.using(using).filter(pk=pk).values_list("session_record_id", flat=True).first()
    if session_pk is not None and connections[using].features.has_select_for_update:
        list(SessionRecord.objects.using(using).select_for_update().filter(pk=session_pk).values_list("pk"))
    if connections[using].features.has_select_for_update:
        # Its process may be logging its last events just now: they count, or are refused.
        list(InvocationRecord.objects.using(using).select_for_update().filter(pk=pk).values_list("pk"))
    error, now = RunInterrupted(), timezone.now()
    logged = EventRecord.objects.using(using).filter(invocation_id=pk).aggregate(last=Max("last"))["last"]
    written = (
        InvocationRecord.objects.using(using)
        .filter(clock.is_past("lease_expires_at"), pk=pk, status__in=LIVE)
        .update(
            status=Status.INTERRUPTED,
            error_code=error.code,
            error_status=error.status,
            input="",
            event_count=logged or 0,
            finished_at=now,
            # How long it ran nobody knows: it may be met long after.
            finished_minute=figures.minute(now),
        )
    )
    if written and session_pk is not None:
        SessionRecord.objects.using(using).filter(pk=session_pk, claimed_by=pk).update(
            claimed_by=None, claim_expires_at=None
        )
    return bool(written)


def _request_cancel(scope: Scope, invocation_id: str) -> StoredInvocation | None:
    using = database.alias()
    key = scope.key(invocation_id)
    error, now = RunCancelled(), timezone.now()
    rows = InvocationRecord.objects.using(using).filter(key=key)
    rows.filter(status=Status.QUEUED).update(
        status=Status.CANCELLED,
        error_code=error.code,
        error_status=error.status,
        input="",
        finished_at=now,
        # It never ran, so it has no duration.
        finished_minute=figures.minute(now),
    )
    rows.filter(status=Status.RUNNING).update(cancel_requested=True)
    _drop_pending(using, key)
    return _look_up({"key": key})


def _drop_pending(using: str, key: str) -> None:
    """Cancel an invocation that awaits input: the way out of a session that nobody will answer."""
    rows = InvocationRecord.objects.using(using).filter(key=key, status=Status.AWAITING_INPUT)
    session_pk = rows.values_list("session_record_id", flat=True).first()
    if session_pk is None:
        return
    with transaction.atomic(using=using):
        session = records.get_by_pk(using, session_pk)
        error = RunCancelled()
        # Only now is it sure that no turn has consumed them: the session's row is locked.
        cancelled = rows.update(status=Status.CANCELLED, error_code=error.code, error_status=error.status)
        if session is not None and cancelled:
            pending.drop(using, session, timezone.now())


def is_joined_now(pk: int) -> bool:
    """Return whether somebody on another process waits for the answer of a run; on a database thread.

    Args:
        pk: Primary key of the record.
    """
    rows = InvocationRecord.objects.using(database.alias()).filter(pk=pk, joined_until__isnull=False)
    return rows.exclude(clock.is_past("joined_until")).exists()


def _previous_id(session_pk: int, record_pk: int) -> str | None:
    rows = InvocationRecord.objects.using(database.alias()).filter(
        session_record_id=session_pk, pk__lt=record_pk, status__in=_ENDED_WELL
    )
    return rows.order_by("-pk").values_list("invocation_id", flat=True).first()


def _keep_joined(pk: int, seconds: float) -> None:
    InvocationRecord.objects.using(database.alias()).filter(pk=pk, status__in=LIVE).update(
        joined_until=clock.from_now(seconds)
    )
