"""Many slow streams in one process: few connections while they run, and nothing left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes.asking import Asking, eventually, new
from tests.processes.cluster import Cluster, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
_soak = [pytest.mark.soak, pytest.mark.timeout(600)]

CONNECTIONS = 10
KEPT = 4
COUNTED = ("runs", "tasks", "sockets", "connections")
# What libpq and the allocator keep for the largest statements; 300 streams that leaked would be far more.
MEGABYTES = 48


class Baseline:
    """What a process holds while nothing happens, and the most that was seen since."""

    def __init__(self, cluster: Cluster, asking: Asking, worker: Worker) -> None:
        self._cluster = cluster
        self._asking = asking
        self._worker = worker
        self._held: dict[str, Any] = {}
        self.connections = 0

    async def take(self, *, guarded: bool = False) -> None:
        """Let everything that is made once be made, and remember what is held then.

        Where callers are checked, a few of the threads that do it keep their connections.
        """
        await asyncio.gather(*(self._asking.post(self._worker, new("warm")) for _ in range(20)))
        # Lone turns have a connection of their own, which the first of them asks for.
        for _ in range(3):
            await self._asking.post(self._worker, new("warm"))
        await eventually(self._is_quiet, "a quiet process")
        self._held = await self._look()
        self._held["connections"] += KEPT if guarded else 0
        self.connections = 0

    async def _look(self) -> dict[str, Any]:
        inside = await self._asking.inside(self._worker)
        connections = self._cluster.database.connections(self._worker.name)
        inside["connections"] = inside["connections"] if connections is None else connections
        self.connections = max(self.connections, inside["connections"])
        return inside

    async def _is_quiet(self) -> bool:
        first = await self._look()
        await asyncio.sleep(0.2)
        second = await self._look()
        return first["runs"] == 0 and all(first[key] == second[key] for key in COUNTED)

    async def watch(self, seconds: float) -> dict[str, Any]:
        """Look again and again for a while; return what was seen last."""
        deadline = time.monotonic() + seconds
        while True:
            inside = await self._look()
            if time.monotonic() > deadline:
                return inside
            await asyncio.sleep(0.1)

    async def returns(self, seconds: float, *, but: tuple[str, ...] = ()) -> tuple[float, float]:
        """Wait until the process holds no more than before; return how long it took, and the megabytes more."""
        inside: dict[str, Any] = {}

        async def is_back() -> bool:
            nonlocal inside
            inside = await self._look()
            return all(inside[key] <= self._held[key] for key in COUNTED if key not in but)

        try:
            took = await eventually(is_back, "the baseline", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._held} before, {inside} now") from None
        more = inside["megabytes"] - self._held["megabytes"]
        assert but or more < MEGABYTES, f"{more:.0f} MB more than before"
        return took, more


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=_soak)])
@pytest.mark.parametrize("path", ["waits", "cancels", "guarded"])
async def test_slow_streams_need_few_connections_and_leave_nothing(
    cluster: Cluster, asking: Asking, figure: Callable[[str], None], path: str, count: int
) -> None:
    worker = cluster.worker("s", lease_seconds=15)
    auth = None
    if path == "guarded":
        cluster.add_user("caller", "secret")
        auth = ("caller", "secret")
    baseline = Baseline(cluster, asking, worker)
    await baseline.take(guarded=path == "guarded")
    # Those that are cancelled would go on for far longer than they are given to end.
    seconds = 2.0 + count / 50 if path == "waits" else 60.0
    opening = (
        asking.open(worker, f"{new('turn')} words {seconds * 10:.0f} 0.1", session=new("session"), path=path, auth=auth)
        for _ in range(count)
    )
    began = time.monotonic()
    streams = await asyncio.gather(*opening)
    assert {stream.response.status_code for stream in streams} == {200}
    opened = time.monotonic() - began
    await asyncio.gather(*(stream.events(2) for stream in streams))
    inside = await baseline.watch(0.5)
    assert inside["runs"] == count
    assert baseline.connections <= CONNECTIONS
    await asyncio.gather(*(stream.leave() for stream in streams))
    at_once = 1.5 + count / 20
    took, more = await baseline.returns(at_once if path != "waits" else seconds + opened + at_once)
    assert baseline.connections <= CONNECTIONS
    figure(
        f"{count} streams opened in {opened:.1f} s, {baseline.connections} connections at most,"
        f" baseline after {took:.1f} s, {more:+.1f} MB"
    )


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=_soak)])
@pytest.mark.parametrize("path", ["stalls", "stalls-cancels"])
async def test_readers_that_stall_leave_nothing(
    cluster: Cluster, asking: Asking, figure: Callable[[str], None], path: str, count: int
) -> None:
    worker = cluster.worker("s", lease_seconds=15)
    # What the allocator keeps of the largest crowd it has seen is no leak: of many, the third crowd must add nothing.
    for crowd in (1, 2, 3) if count > 50 else (3,):
        baseline = Baseline(cluster, asking, worker)
        await baseline.take()
        names = [new("turn") for _ in range(count)]
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(stalling(worker, path, f"{name} long 110 0.005 6000"))
                if count > 50:
                    await asyncio.sleep(0.005)
            await eventually(lambda names=names: _all_began(cluster, names), "the runs", 30)
            inside = await baseline.watch(0.3)
            if count <= 50:
                # Of many, the first ones have ended when the last one begins.
                assert inside["runs"] == count
            # While its reader stalls a run waits for it, and ends as if the reader had left. What uvicorn
            # could not send stays in its connection until the client goes.
            await baseline.returns(5 + count / 20, but=("sockets",))
        took, more = await baseline.returns(3, but=() if crowd == 3 else ("memory",))
        ends = {name: cluster.journal(name)[-1].what for name in names}
        assert set(ends.values()) == {"stops" if path == "stalls-cancels" else "ends"}
        assert baseline.connections <= CONNECTIONS
        figure(
            f"crowd {crowd}: {count} stalled readers, {baseline.connections} connections at most,"
            f" baseline after {took:.1f} s, {more:+.1f} MB"
        )


def _all_began(cluster: Cluster, names: list[str]) -> bool:
    began = {entry.token for entry in cluster.journal("turn-") if entry.what == "begins"}
    return began.issuperset(names)


@contextlib.contextmanager
def stalling(worker: Worker, path: str, message: str) -> Iterator[None]:
    """Post for a stream, and never take anything of it."""
    body = json.dumps({"message": message, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", worker.port))
        head = f"POST /{path}/invoke HTTP/1.1\r\nhost: testserver\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
