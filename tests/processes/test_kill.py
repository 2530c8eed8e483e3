"""A process that is killed at any point of a turn, and one that sleeps longer than its lease."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from tests.processes.asking import INTERRUPTED, Asking, Stream, eventually, last_event, new, without_ids
from tests.processes.cluster import LEASE_SECONDS, Cluster, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

# From the end of a process until its session is free: the lease, and the look of whoever waits.
FREE_SECONDS = LEASE_SECONDS + 1.0


@dataclass(frozen=True)
class Killed:
    """A turn whose process was killed.

    Attributes:
        id: Its invocation id, and its token.
        message: What the user said.
        session: Its session, which had one turn before.
        at: When it was killed, in seconds of the monotonic clock.
        content: What its client had got.
    """

    id: str
    message: str
    session: str
    at: float
    content: bytes


async def begin(cluster: Cluster, asking: Asking, worker: Worker, program: str) -> tuple[Killed, asyncio.Task[Stream]]:
    """Have a session with one turn, and start a second one as a stream that shall be cut."""
    session, name = new("session"), new("turn")
    answer = await asking.post(worker, "first", session=session)
    assert answer.json()["response"] == "1|ok"
    message = f"{name} {program}"
    opening = asyncio.create_task(asking.open(worker, message, session=session, id=name))
    return Killed(name, message, session, 0, b""), opening


async def what_came(opening: asyncio.Task[Stream]) -> bytes:
    """Return what the client of a killed process had got."""
    try:
        stream = await opening
    except httpx.TransportError:
        return b""
    try:
        return await stream.rest()
    except httpx.TransportError:
        return stream.content


async def check_promises(cluster: Cluster, asking: Asking, other: Worker, killed: Killed) -> str:
    """Look at a turn that was cut, in another process; return what became of it.

    At most one execution of its id, answer and history and record together or not at all, an
    acknowledged turn kept, and the session free within the lease.
    """
    record = cluster.record(killed.id)
    done = record is not None and record["status"] == "succeeded"
    if b"data: [DONE]" in killed.content:
        assert done, "it was acknowledged before it was committed"
    executions = cluster.executions(killed.id)
    next_turn = asyncio.create_task(asking.post(other, "next", session=killed.session))
    if record is None:
        # Nothing was begun, so nothing is remembered, and its id may be used.
        assert executions == 0
        assert (await next_turn).json()["response"] == "2|ok"
        assert cluster.said(killed.session) == ["first", "next"]
        return "nothing"
    if done:
        assert (await next_turn).json()["response"] == "3|ok"
        retried = await asking.post(other, killed.message, session=killed.session, id=killed.id)
        assert (retried.status_code, cluster.executions(killed.id)) == (200, 1)
        text = retried.json()["response"]
        assert cluster.said(killed.session) == ["first", killed.message, "next"]
        assert cluster.said(killed.session, "assistant") == ["1|ok", text, "3|ok"]
        events = await (await asking.follow(other, killed.id)).rest()
        assert without_ids(events).startswith(killed.content.removesuffix(b"data: [DONE]\n\n"))
        assert last_event(events).data == "[DONE]"
        return "committed"
    retried = await asking.post(other, killed.message, session=killed.session, id=killed.id)
    assert (retried.status_code, retried.json()) == (409, INTERRUPTED)
    assert (await next_turn).json()["response"] == "2|ok"
    waited = time.monotonic() - killed.at
    assert waited < FREE_SECONDS, f"the session was free after {waited:.1f} s only"
    assert cluster.executions(killed.id) == executions <= 1
    assert cluster.said(killed.session) == ["first", "next"]
    row = cluster.session(killed.session)
    assert (row["version"], row["claimed_by"]) == (2, None)
    assert (await asking.status(other, killed.id))["status"] == "interrupted"
    events = await (await asking.follow(other, killed.id)).rest()
    assert last_event(events).type == "error"
    assert last_event(events).data == INTERRUPTED["error"]
    return f"interrupted after {waited:.1f} s"


@pytest.mark.parametrize(
    ("point", "outcome"),
    [
        ("hook", "nothing"),
        ("begin", "nothing"),
        ("run", "interrupted"),
        ("commit", "interrupted"),
        ("answer", "committed"),
    ],
)
async def test_killed_at_a_point_of_a_turn_keeps_the_promises(
    cluster: Cluster, asking: Asking, point: str, outcome: str
) -> None:
    worker, other = cluster.workers("ab")
    gate = cluster.gate(new("gate") if point == "run" else point)
    session, name = new("session"), new("turn")
    assert (await asking.post(worker, "first", session=session)).json()["response"] == "1|ok"
    if point != "run":
        gate.arm()
    message = f"{name} gate {gate.name}" if point == "run" else name
    opening = asyncio.create_task(asking.open(worker, message, session=session, id=name))
    await gate.reached()
    worker.kill()
    killed = Killed(name, message, session, time.monotonic(), await what_came(opening))
    gate.clear()
    assert b"[DONE]" not in killed.content
    assert (await check_promises(cluster, asking, other, killed)).startswith(outcome)
    if outcome == "nothing":
        retried = await asking.post(other, message, session=session, id=name)
        assert (retried.status_code, retried.json()["response"], cluster.executions(name)) == (200, "3|ok", 1)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_killed_at_random_moments_keeps_the_promises(
    cluster: Cluster, asking: Asking, figure: Callable[[str], None]
) -> None:
    chance = random.Random(20)
    outcomes: list[str] = []
    for _ in range(20):
        worker, other = cluster.workers("ab")
        killed, opening = await begin(cluster, asking, worker, "words 6 0.02")
        await asyncio.sleep(chance.uniform(0, 0.25))
        worker.kill()
        killed = Killed(killed.id, killed.message, killed.session, time.monotonic(), await what_came(opening))
        outcomes.append(await check_promises(cluster, asking, other, killed))
    counts = {kind: sum(outcome.startswith(kind) for outcome in outcomes) for kind in ("nothing", "interr", "commit")}
    worst = max((float(outcome.split()[-2]) for outcome in outcomes if outcome.startswith("interr")), default=0.0)
    figure(f"20 kills: {counts}, session free after {worst} s at worst, lease {LEASE_SECONDS} s")


async def pause_outside_transactions(cluster: Cluster, worker: Worker) -> None:
    """Let a process sleep at a moment when it holds no lock, as it would keep that."""
    for _ in range(50):
        worker.pause()
        if not cluster.database.is_locked():
            return
        worker.resume()
        await asyncio.sleep(0.01)
    raise AssertionError("it always holds a lock")


@pytest.mark.parametrize("taken_over", [True, False])
async def test_one_who_sleeps_longer_than_its_lease_cannot_commit(
    cluster: Cluster, asking: Asking, taken_over: bool
) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    assert (await asking.post(worker, "first", session=session)).json()["response"] == "1|ok"
    gate = cluster.gate(new("gate"))
    stream = await asking.open(worker, f"{name} gate {gate.name}", session=session, id=name)
    await gate.reached()
    await pause_outside_transactions(cluster, worker)
    try:
        began = time.monotonic()
        if taken_over:
            assert (await asking.post(other, "other", session=session)).json()["response"] == "2|ok"
            assert time.monotonic() - began < FREE_SECONDS
            assert (await asking.status(other, name))["status"] == "interrupted"
        else:
            await asyncio.sleep(LEASE_SECONDS + 0.3)
        gate.open()
    finally:
        worker.resume()
    content = await stream.rest()
    assert (last_event(content).type, last_event(content).data) == ("error", INTERRUPTED["error"])
    status = await asking.status(worker, name)
    assert (status["status"], status["error"]["code"], status["response"]) == ("interrupted", "interrupted", None)
    expected = ["first", "other"] if taken_over else ["first"]
    assert cluster.said(session) == expected
    assert cluster.session(session)["version"] == len(expected)
    assert (await asking.post(worker, "last", session=session)).json()["response"] == f"{len(expected) + 1}|ok"
    await eventually(lambda: cluster.session(session)["claimed_by"] is None, "a free session")
    assert cluster.executions(name) == 1
