"""What tests of durable runs share: invocations asked for by id, streams read by a task, time that has passed.

Sync functions use the ORM; `on_database` calls one on the app's own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from django.test import AsyncClient
from django.utils import timezone

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.runs.host import live_runs
from invocations_app.storage import database
from tests.client import endpoint, post

T = TypeVar("T")

SCRIPTED = "tests.fakes.build_scripted"
DONE = b"data: [DONE]\n\n"


def scripted(**keys: Any) -> dict[str, dict[str, Any]]:
    """Return an ``INVOCATIONS`` whose agent plays the test's script."""
    return endpoint(TARGET=SCRIPTED, **keys)


def ask(invocation_id: str, body: Mapping[str, Any], **headers: str) -> Any:
    """Post a body under an invocation id; header names with "_" for "-"."""
    return post(body, headers={"x-agent-invocation-id": invocation_id} | _headers(headers))


async def get(path: str, **headers: str) -> Any:
    """Get a path below the endpoint's."""
    return await AsyncClient().get(f"/invocations/{path}", headers=_headers(headers))


async def cancel(invocation_id: str, **headers: str) -> Any:
    """Cancel an invocation."""
    return await AsyncClient().post(f"/invocations/{invocation_id}/cancel", headers=_headers(headers))


async def status(invocation_id: str, **headers: str) -> dict[str, Any]:
    """Return the status body of an invocation."""
    response = await get(invocation_id, **headers)
    assert response.status_code == 200, response.content
    body: dict[str, Any] = response.json()
    return body


def _headers(names: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in names.items()}


async def body_of(response: Any) -> bytes:
    """Return the whole body of a streamed answer."""
    assert response.status_code == 200, response.content
    return b"".join([chunk async for chunk in response.streaming_content])


async def events_of(invocation_id: str, after: int | None = None, **headers: str) -> bytes:
    """Return all events of an invocation after a number."""
    query = "" if after is None else f"?after={after}"
    return await body_of(await get(f"{invocation_id}/events{query}", **headers))


class Reader:
    """Reads a streamed answer in a task of its own, as a server does.

    Attributes:
        body: What has come so far.
        task: The task; cancelling it is what a server does when the client has left.
    """

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.content
        self.body = b""
        self.task = asyncio.ensure_future(self._read(response.streaming_content))

    async def _read(self, content: Any) -> None:
        async for chunk in content:
            self.body += chunk

    async def until(self, end: bytes) -> bytes:
        """Wait until what has come ends so, and return it."""
        await until(lambda: self.body.endswith(end), f"{end!r} in {self.body!r}")
        return self.body

    async def rest(self) -> bytes:
        """Return the whole body, once it has ended."""
        await self.task
        return self.body

    async def leave(self) -> None:
        """Go away in the middle."""
        await drop(self.task)


async def drop(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for it: the client of a waiting request has left."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 15) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: If it does not in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.002)


async def until_status(invocation_id: str, wanted: str) -> InvocationRecord:
    """Wait until the record of an invocation has a status, and return it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 3
    while loop.time() < deadline:
        record = await on_database(lambda: InvocationRecord.objects.filter(invocation_id=invocation_id).first())
        if record is not None and record.status == wanted:
            return record
        await asyncio.sleep(0.005)
    raise AssertionError(f"{invocation_id} is {record and record.status}, not {wanted}")


async def until_idle() -> None:
    """Wait until no run lives any more."""
    await until(lambda: not live_runs(), "the end of all runs")


async def on_database(function: Callable[[], T]) -> T:
    """Return what a function that uses the ORM returns."""
    return await database.run(function)


def expire(**where: Any) -> None:
    """Let the leases of records, and the claims that they hold, run out a second ago."""
    past = timezone.now() - timedelta(seconds=1)
    pks = list(InvocationRecord.objects.filter(**where).values_list("pk", flat=True))
    assert pks
    InvocationRecord.objects.filter(pk__in=pks).update(lease_expires_at=past)
    SessionRecord.objects.filter(claimed_by__in=pks).update(claim_expires_at=past)


def abandon(**where: Any) -> None:
    """Let records belong to a process that is gone: its leases have run out."""
    InvocationRecord.objects.filter(**where).update(owner="a process that is gone")
    expire(**where)
