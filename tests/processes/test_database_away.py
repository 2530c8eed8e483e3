"""The database goes away in the middle of a run, and comes back."""

from __future__ import annotations

import asyncio

import pytest

from tests.processes.asking import INTERRUPTED, Asking, eventually, last_event, new, without_ids
from tests.processes.cluster import Cluster, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

AWAY_SECONDS = 3


async def end_while_away(cluster: Cluster, asking: Asking, worker_name: str, session: str, name: str) -> bytes:
    """Let a run come to its end while the database is away; return its stream."""
    worker = cluster.worker(worker_name)
    gate = cluster.gate(new("gate"))
    stream = await asking.open(worker, f"{name} gate {gate.name}", session=session, id=name)
    await gate.reached()
    with cluster.database.away():
        gate.open()
        reading = asyncio.create_task(stream.rest())
        await asyncio.sleep(AWAY_SECONDS)
        assert b"[DONE]" not in stream.content
    return await reading


async def recovered(asking: Asking, worker: Worker) -> None:
    """Wait until a process that was idle meanwhile has no broken connection in its pool any more.

    Each of them answers one request with 503 and ``Retry-After``.
    """
    healthy = 0
    for _ in range(50):
        answer = await asking.http.get(f"{worker.url}/readiness")
        healthy = healthy + 1 if answer.status_code == 200 else 0
        if healthy == 8:
            return
    raise AssertionError("it does not recover")


async def test_a_turn_is_committed_when_the_database_is_back(cluster: Cluster, asking: Asking) -> None:
    worker = cluster.worker("d", lease_seconds=15, timeout_seconds=1)
    session, name = new("session"), new("turn")
    assert (await asking.post(worker, "first", session=session)).json()["response"] == "1|ok"
    content = await end_while_away(cluster, asking, "d", session, name)
    assert content == b"data: 2|\n\ndata: before \n\ndata: after\n\ndata: [DONE]\n\n"
    assert (cluster.record(name) or {})["status"] == "succeeded"
    assert cluster.said(session, "assistant") == ["1|ok", "2|before after"]
    assert without_ids(await (await asking.follow(worker, name)).rest()) == content
    assert cluster.executions(name) == 1


async def test_a_turn_whose_lease_ran_out_meanwhile_leaves_nothing_half_written(
    cluster: Cluster, asking: Asking
) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    assert (await asking.post(worker, "first", session=session)).json()["response"] == "1|ok"
    content = await end_while_away(cluster, asking, "a", session, name)
    assert (last_event(content).type, last_event(content).data) == ("error", INTERRUPTED["error"])
    await recovered(asking, other)
    status = await asking.status(other, name)
    assert (status["status"], status["response"]) == ("interrupted", None)
    assert cluster.said(session) == ["first"]
    assert cluster.said(session, "assistant") == ["1|ok"]
    await eventually(lambda: cluster.session(session)["claimed_by"] is None, "a free session")
    assert (await asking.post(other, "next", session=session)).json()["response"] == "2|ok"
