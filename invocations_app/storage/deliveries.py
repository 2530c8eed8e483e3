"""Where the answer of an invocation goes beside its caller, as its record says it.

The report is begun with the record: what was never sent stands there as
``unsent``, whatever happens to the process. Who sends takes the record for a
while, so two do not send the same at once. Sending is left to ``delivery``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import connections, transaction
from django.db.models import Q

from invocations_app.envelope import Delivery
from invocations_app.models import InvocationRecord
from invocations_app.storage import clock, database

State = InvocationRecord.Delivery


@dataclass(frozen=True, slots=True)
class FailedPush:
    """A push that raised.

    Attributes:
        destination: Name of the destination.
        error: Name of the error's class; its text is kept nowhere.
    """

    destination: str
    error: str


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of the pushes of one invocation; each destination stands in one place.

    Attributes:
        pushed: Destinations that took the result.
        skipped: Names that no destination has: there was nobody to send to.
        failed: Destinations whose push raised.
        unsent: Destinations that nothing is known of: not sent yet, or cut
            while it was sent.
    """

    pushed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[FailedPush, ...] = ()
    unsent: tuple[str, ...] = ()

    def merged(self, news: DeliveryReport) -> DeliveryReport:
        """Return the report with later news of some destinations; what was pushed stays so.

        Args:
            news: What is known now.
        """
        pushed = tuple(dict.fromkeys(self.pushed + news.pushed))
        told = {*pushed, *news.skipped, *(push.destination for push in news.failed), *news.unsent}
        return DeliveryReport(
            pushed=pushed,
            skipped=_rest(self.skipped, told) + _rest(news.skipped, pushed),
            failed=tuple(push for push in self.failed if push.destination not in told)
            + tuple(push for push in news.failed if push.destination not in pushed),
            unsent=_rest(self.unsent, told) + _rest(news.unsent, pushed),
        )

    @property
    def open(self) -> tuple[str, ...]:
        """Every destination that the result did not arrive at."""
        return self.unsent + tuple(push.destination for push in self.failed) + self.skipped

    @property
    def state(self) -> InvocationRecord.Delivery:
        """The worst of it, in one word."""
        if self.unsent:
            return State.UNSENT
        if self.failed:
            return State.FAILED
        return State.SKIPPED if self.skipped else State.PUSHED


@dataclass(frozen=True, slots=True)
class Parcel:
    """What somebody has taken to send.

    Attributes:
        pk: Primary key of the record.
        endpoint: Alias of the endpoint.
        correlation_id: The record's random id, for logs.
        destinations: Where to.
    """

    pk: int
    endpoint: str
    correlation_id: str
    destinations: tuple[str, ...]


def columns_of(delivery: Delivery) -> dict[str, Any]:
    """Return the columns with which a record begins.

    Args:
        delivery: Who gets the answer.
    """
    if delivery == "originating":
        return {}
    if delivery == "none":
        return {"delivery": State.NONE}
    begun = DeliveryReport(unsent=tuple(delivery))
    return {"delivery": begun.state, "delivery_report": encode_report(begun)}


def encode_report(report: DeliveryReport) -> str:
    """Return a report as ASCII-escaped JSON text.

    Args:
        report: The report.
    """
    document = {
        "pushed": report.pushed,
        "skipped": report.skipped,
        "failed": [{"destination": push.destination, "error": push.error} for push in report.failed],
        "unsent": report.unsent,
    }
    return json.dumps(document, separators=(",", ":"))


def decode_report(text: str) -> DeliveryReport | None:
    """Return the report that a record holds; None where it never had destinations.

    Args:
        text: The column.
    """
    if not text:
        return None
    document = json.loads(text)
    return DeliveryReport(
        pushed=tuple(document["pushed"]),
        skipped=tuple(document["skipped"]),
        failed=tuple(FailedPush(push["destination"], push["error"]) for push in document["failed"]),
        unsent=tuple(document["unsent"]),
    )


async def take(pk: int, *, again: bool, seconds: float) -> Parcel | None:
    """Take an ended invocation to send it; what is taken stands as unsent until it is told.

    Args:
        pk: Primary key of the record.
        again: Whether failed and skipped ones are sent again.
        seconds: How long nobody else may take it.

    Returns:
        What to send; None for nothing, or when somebody else is sending it.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_take, pk, again, seconds)


async def report(pk: int, news: DeliveryReport) -> None:
    """Write down what became of some pushes; with the last of them others may send again.

    Args:
        pk: Primary key of the record.
        news: What is known now.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    await database.run(_report, pk, news)


async def read(pk: int) -> DeliveryReport | None:
    """Return the report of an invocation; None where it has none.

    Args:
        pk: Primary key of the record.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await database.run(_read, pk)


def _take(pk: int, again: bool, seconds: float) -> Parcel | None:
    using = database.alias()
    with transaction.atomic(using=using):
        free = Q(delivery_claimed_until__isnull=True) | clock.is_past("delivery_claimed_until")
        rows = InvocationRecord.objects.using(using).filter(free, pk=pk).exclude(delivery_report="")
        row = _locked(using, rows).values_list("endpoint", "correlation_id", "delivery_report").first()
        stands = None if row is None else decode_report(row[2])
        if row is None or stands is None:
            return None
        destinations = stands.open if again else stands.unsent
        if not destinations:
            return None
        begun = stands.merged(DeliveryReport(unsent=destinations))
        rows.update(**_columns(begun), delivery_claimed_until=clock.from_now(seconds))
        return Parcel(pk, row[0], row[1], destinations)


def _report(pk: int, news: DeliveryReport) -> None:
    using = database.alias()
    with transaction.atomic(using=using):
        rows = InvocationRecord.objects.using(using).filter(pk=pk)
        stands = decode_report(_locked(using, rows).values_list("delivery_report", flat=True).first() or "")
        if stands is None:
            return
        merged = stands.merged(news)
        freed = {} if merged.unsent else {"delivery_claimed_until": None}
        rows.update(**_columns(merged), **freed)


def _read(pk: int) -> DeliveryReport | None:
    rows = InvocationRecord.objects.using(database.alias()).filter(pk=pk)
    return decode_report(rows.values_list("delivery_report", flat=True).first() or "")


def _columns(stands: DeliveryReport) -> dict[str, Any]:
    return {"delivery": stands.state, "delivery_report": encode_report(stands)}


def _locked(using: str, rows: Any) -> Any:
    return rows.select_for_update() if connections[using].features.has_select_for_update else rows


def _rest(names: Iterable[str], told: Iterable[str]) -> tuple[str, ...]:
    known = set(told)
    return tuple(name for name in names if name not in known)
