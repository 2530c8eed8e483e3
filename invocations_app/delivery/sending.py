"""Sends the result of an ended invocation to the destinations that its run hook named.

Each push stands by itself: what one raises touches no other, and is told in
the report by its class only, since its text may hold anything. Nothing is
tried again by itself, and nothing falls back to the caller.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from invocations_app import conf
from invocations_app.conf import EndpointSettings
from invocations_app.delivery.backends import get_backend
from invocations_app.storage import database, deliveries, invocations
from invocations_app.storage.deliveries import DeliveryReport, FailedPush, Parcel

logger = logging.getLogger("invocations_app.delivery")

# Longest time for one push, whatever its backend does.
PUSH_SECONDS = 60
# How long others leave a sender alone: its pushes, and what it writes about them.
_CLAIM_SECONDS = PUSH_SECONDS + 30
_WRITE_ATTEMPTS = 5
_WRITE_PAUSE_SECONDS = 1


async def deliver(pk: int) -> DeliveryReport | None:
    """Push the result of an ended invocation to where it was not sent yet.

    Args:
        pk: Primary key of its record.

    Returns:
        The report as it is then; None when there was nothing to send: no such
        record, not ended, all sent, or somebody is sending it.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await _send(pk, again=False)


async def resend(pk: int) -> DeliveryReport | None:
    """Push the result of an ended invocation to where it did not arrive: failed, skipped or not sent.

    Args:
        pk: Primary key of its record.

    Returns:
        The report as it is then; None when there was nothing to send, as for `deliver`.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await _send(pk, again=True)


async def resend_all(pks: Iterable[int]) -> list[DeliveryReport | None]:
    """Do `resend` for several invocations at once.

    Args:
        pks: Primary keys of their records.

    Raises:
        DatabaseError: If the database is not reachable.
    """
    return await asyncio.gather(*(resend(pk) for pk in pks))


async def _send(pk: int, *, again: bool) -> DeliveryReport | None:
    # A run whose process died is over from here on, if nobody met it before.
    stored = await invocations.read(pk)
    if stored is None or not stored.has_ended:
        return None
    parcel = await deliveries.take(pk, again=again, seconds=_CLAIM_SECONDS)
    if parcel is None:
        return None
    endpoint = conf.get_endpoints().get(parcel.endpoint)
    known = {} if endpoint is None else endpoint.push_destinations
    skipped = tuple(name for name in parcel.destinations if name not in known)
    if skipped:
        logger.warning("Invocation %s names unknown push destinations: %s.", parcel.correlation_id, list(skipped))
        await _write(parcel, DeliveryReport(skipped=skipped))
    if endpoint is not None:
        body = stored.status_body()
        await _push_all(endpoint, parcel, [name for name in parcel.destinations if name in known], body)
    return await deliveries.read(pk)


async def _push_all(
    endpoint: EndpointSettings, parcel: Parcel, destinations: list[str], body: Mapping[str, Any]
) -> None:
    pushes = [asyncio.ensure_future(_push(endpoint, parcel, name, body)) for name in destinations]
    try:
        await asyncio.gather(*pushes)
    finally:
        for push in pushes:
            push.cancel()


async def _push(endpoint: EndpointSettings, parcel: Parcel, name: str, body: Mapping[str, Any]) -> None:
    """Push to one destination, and write down at once what became of it."""
    # In a task of its own: a backend that swallows its cancellation is not waited for.
    push = asyncio.ensure_future(_call(endpoint, name, body))
    push.add_done_callback(_forget)
    try:
        done, _ = await asyncio.wait([push], timeout=PUSH_SECONDS)
    finally:
        push.cancel()
    error = TimeoutError() if not done else CancelledPush() if push.cancelled() else push.exception()
    if error is None:
        report = DeliveryReport(pushed=(name,))
    else:
        kind = type(error).__name__
        logger.warning("Invocation %s was not pushed to %r: %s%s.", parcel.correlation_id, name, kind, _place_of(error))
        report = DeliveryReport(failed=(FailedPush(name, kind),))
    await _write(parcel, report)


def _forget(push: asyncio.Task[None]) -> None:
    """Look at what a push raised when nobody waits any more: unseen, asyncio would log its text."""
    if not push.cancelled():
        push.exception()


class CancelledPush(Exception):
    """A backend was cancelled by something within itself."""


async def _call(endpoint: EndpointSettings, name: str, body: Mapping[str, Any]) -> None:
    try:
        await get_backend(endpoint, name).push(dict(body), name)
    except (KeyboardInterrupt, SystemExit) as error:
        # Ended in a task, it would end the event loop.
        raise RuntimeError from error


def _place_of(error: BaseException) -> str:
    """Say where something was raised: the text of an error may hold what no log should."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


async def _write(parcel: Parcel, report: DeliveryReport) -> None:
    for attempt in range(_WRITE_ATTEMPTS):
        try:
            return await deliveries.report(parcel.pk, report)
        except database.UNREACHABLE:
            if attempt == _WRITE_ATTEMPTS - 1:
                logger.exception("The delivery report of invocation %s was not written.", parcel.correlation_id)
                return None
        await asyncio.sleep(_WRITE_PAUSE_SECONDS)
    return None
