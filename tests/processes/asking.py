"""What clients do: post, follow, leave, come back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from tests.frames import SseEvent, read_events
from tests.processes.cluster import Worker

BUSY = {"error": "the session is busy"}
INTERRUPTED = {"error": "this invocation was interrupted"}
CANCELLED = {"error": "this invocation was cancelled"}


def new(what: str) -> str:
    """Return a name that nothing had before."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


class Asking:
    """A client of several processes."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(
        self,
        worker: Worker,
        message: str,
        *,
        session: str | None = None,
        id: str | None = None,
        path: str = "waits",
        stream: bool = False,
    ) -> httpx.Response:
        """Post, and wait for the whole answer."""
        return await self.http.post(
            f"{worker.url}/{path}/invoke", json=_body(message, session, stream), headers=_headers(id)
        )

    async def open(
        self,
        worker: Worker,
        message: str,
        *,
        session: str | None = None,
        id: str | None = None,
        path: str = "waits",
        auth: tuple[str, str] | None = None,
    ) -> Stream:
        """Post for a stream, and return it when its headers are there."""
        request = self.http.build_request(
            "POST", f"{worker.url}/{path}/invoke", json=_body(message, session, True), headers=_headers(id)
        )
        return Stream(await self.http.send(request, stream=True, auth=auth))

    async def follow(
        self, worker: Worker, id: str, after: int | None = None, *, last_id: int | None = None, path: str = "waits"
    ) -> Stream:
        """Follow an invocation's events, and return the stream when its headers are there."""
        request = self.http.build_request(
            "GET",
            f"{worker.url}/{path}/{id}/events",
            params={} if after is None else {"after": after},
            headers={} if last_id is None else {"last-event-id": str(last_id)},
        )
        return Stream(await self.http.send(request, stream=True))

    async def status(self, worker: Worker, id: str, path: str = "waits") -> dict[str, Any]:
        """Return the status body of an invocation."""
        answer = await self.http.get(f"{worker.url}/{path}/{id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def cancel(self, worker: Worker, id: str, path: str = "waits") -> dict[str, Any]:
        """Cancel an invocation and return its status body."""
        answer = await self.http.post(f"{worker.url}/{path}/{id}/cancel")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def inside(self, worker: Worker) -> dict[str, Any]:
        """Return what a process holds."""
        inside: dict[str, Any] = (await self.http.get(f"{worker.url}/debug")).json()
        return inside


class Stream:
    """A streamed answer that is being read."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.content = b""
        self._blocks: AsyncIterator[bytes] | None = None

    async def until(self, condition: Callable[[bytes], bool]) -> bytes:
        """Read until what came so far satisfies a condition; return it."""
        if self._blocks is None:
            self._blocks = self.response.aiter_raw()
        while not condition(self.content):
            self.content += await anext(self._blocks)
        return self.content

    async def events(self, count: int) -> None:
        """Read until there are so many events."""
        await self.until(lambda content: content.count(b"\n\n") >= count)

    async def rest(self) -> bytes:
        """Read to the end; return all that ever came."""
        try:
            await self.until(lambda content: False)
        except StopAsyncIteration:
            await self.leave()
        return self.content

    async def leave(self) -> None:
        """Close the connection."""
        await self.response.aclose()


def _body(message: str, session: str | None, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"message": message, "stream": stream}
    return body if session is None else body | {"session_id": session}


def _headers(id: str | None) -> dict[str, str]:
    return {} if id is None else {"x-agent-invocation-id": id}


def cut(content: bytes) -> list[bytes]:
    """Return the events of a stream one by one, comments left out."""
    return [part + b"\n\n" for part in content.split(b"\n\n")[:-1] if not part.startswith(b":")]


def without_ids(content: bytes) -> bytes:
    """Return a followed stream as a POST would have given it."""
    return b"".join(
        b"\n".join(line for line in event.split(b"\n") if not line.startswith(b"id:")) for event in cut(content)
    )


def ids(content: bytes) -> list[int]:
    """Return the number of each event of a followed stream."""
    return [int(event.last_id) for event in read_events(content)]


def last_event(content: bytes) -> SseEvent:
    """Return the last event of a stream."""
    return read_events(content)[-1]


async def eventually(condition: Callable[[], Any], what: str, seconds: float = 10) -> float:
    """Wait until a condition, sync or async, holds; return how long that took.

    Raises:
        AssertionError: If it does not in time.
    """
    began = time.monotonic()
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"{what} did not come about in {seconds} s"
        await asyncio.sleep(0.01)
