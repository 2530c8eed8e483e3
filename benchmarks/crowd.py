"""Many slow streams at once: how late their updates come, and how much memory the server takes."""

from __future__ import annotations

import asyncio
import re
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles
from typing import cast

import uvloop

from benchmarks.agent import SLOW_SECONDS
from benchmarks.asking import request_bytes
from benchmarks.fleet import Server
from benchmarks.wrk import WrongAnswers

_DUE = re.compile(rb"data: (\d+\.\d{6}) \n")
_SAMPLE_SECONDS = 0.1
_OPENING_SECONDS = 2.0


class _Stream(asyncio.Protocol):
    """A client that notes by how much each update came after it was due, in seconds."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._rest = b""
        self.late: list[float] = []
        self.begin = b""
        self.has_ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.begin = self.begin or data[:12]
        data = self._rest + data
        end = 0
        for match in _DUE.finditer(data):
            self.late.append(now - float(match[1]))
            end = match.end()
        self._rest = data[end:]
        if b"[DONE]" in self._rest and not self.has_ended.done():
            self.has_ended.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.has_ended.done():
            self.has_ended.set_result(None)


def measure(server: Server, streams: int, seconds: float) -> dict[str, float]:
    """Open slow streams, each with a session, and read them to their ends.

    Args:
        server: The server, answering.
        streams: How many.
        seconds: How long each is open, in seconds.

    Returns:
        ``p50_ms``, ``p99_ms`` and ``max_ms`` of lateness; ``slowest_p99_ms``, that of the stream with the largest
        p99; ``peak_mib`` of memory and ``grown_mib``, what it was above that of the idle server.

    Raises:
        WrongAnswers: If a stream lacks an update, or its end.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    updates = max(2, round(seconds / SLOW_SECONDS))
    idle = server.memory_mib()
    with _peak_memory(server) as peak, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lists = runner.run(_read_all(server, streams, updates))
    late = sorted(1000 * seconds for each in lists for seconds in each)
    return {
        "p50_ms": late[len(late) // 2],
        "p99_ms": late[len(late) * 99 // 100],
        "max_ms": late[-1],
        "slowest_p99_ms": max(1000 * quantiles(each, n=100, method="inclusive")[98] for each in lists),
        "peak_mib": peak[0],
        "grown_mib": peak[0] - idle,
    }


async def _read_all(server: Server, streams: int, updates: int) -> list[list[float]]:
    loop = asyncio.get_running_loop()

    async def one(number: int) -> list[float]:
        await asyncio.sleep(_OPENING_SECONDS * number / streams)
        kind = server.kind
        request = request_bytes(kind.path, kind.session_in, f"slow {updates}", f"crowd-{number}", stream=True)
        _, stream = await loop.create_connection(lambda: _Stream(request), "127.0.0.1", server.port)
        await stream.has_ended
        if stream.begin != b"HTTP/1.1 200" or len(stream.late) != updates:
            raise WrongAnswers(
                f"{kind.name}: {stream.begin!r}, {len(stream.late)} of {updates} updates in stream {number}"
            )
        return stream.late

    async with asyncio.timeout(60 + 20 * updates * SLOW_SECONDS):
        return list(await asyncio.gather(*(one(number) for number in range(streams))))


@contextmanager
def _peak_memory(server: Server) -> Iterator[list[float]]:
    """Watch the server's memory; the list's one item is the peak, in MiB."""
    peak = [server.memory_mib()]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], server.memory_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
