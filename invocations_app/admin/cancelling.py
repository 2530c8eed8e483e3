"""Cancelling invocations, as their callers would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asgiref.sync import async_to_sync

from invocations_app import runs
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord
from invocations_app.runs import StoredInvocation
from invocations_app.storage.invocations import LIVE

Status = InvocationRecord.Status

#: What can still be stopped.
CANCELLABLE = (*LIVE, Status.AWAITING_INPUT)


def cancel_all(records: Sequence[InvocationRecord]) -> list[StoredInvocation]:
    """Cancel invocations at the same time, in whichever process they run, and wait a moment for their end.

    Args:
        records: Their records.

    Returns:
        The invocations as they are then; those that are gone are left out.
    """
    return async_to_sync(_cancel_all)(records)


async def _cancel_all(records: Sequence[InvocationRecord]) -> list[StoredInvocation]:
    scopes = [Scope(record.endpoint, record.user_key, record.chat_key) for record in records]
    cancelled = await asyncio.gather(
        *(runs.cancel(scope, record.invocation_id) for scope, record in zip(scopes, records, strict=True))
    )
    return [stored for stored in cancelled if stored is not None]
