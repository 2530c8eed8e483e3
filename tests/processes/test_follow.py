"""Events read from any point, in any process, while the run lives and after it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.processes.asking import Asking, cut, eventually, ids, new, without_ids
from tests.processes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


async def test_replay_from_every_event_is_the_rest_in_every_process(cluster: Cluster, asking: Asking) -> None:
    workers = cluster.workers("ab")
    name = new("turn")
    posted = (await asking.post(workers[0], f"{name} words 9 0.04", id=name, stream=True)).content
    events = cut(posted)
    assert len(events) == 11
    for worker in workers:
        for after in range(len(events)):
            for asked in ({"after": after}, {"after": 3, "last_id": after}):
                content = await (await asking.follow(worker, name, **asked)).rest()
                assert without_ids(content) == b"".join(events[after:])
                assert ids(content) == list(range(after + 1, len(events) + 1))
        assert without_ids(await (await asking.follow(worker, name)).rest()) == posted
        at_end = await asking.follow(worker, name, len(events))
        assert (at_end.response.status_code, await at_end.rest()) == (204, b"")
        beyond = await (await asking.follow(worker, name, len(events) + 1)).rest()
        first, *lines = beyond.removesuffix(b"\n\n").split(b"\n")
        assert (first, lines[0]) == (b"id: 11", b"event: reset")
        assert json.loads(lines[1].removeprefix(b"data: ")) == await asking.status(worker, name)


async def test_followers_of_a_live_run_get_the_rest_from_any_event(cluster: Cluster, asking: Asking) -> None:
    workers = cluster.workers("ab")
    name = new("turn")
    stream = await asking.open(workers[0], f"{name} words 24 0.05", id=name)
    await stream.events(2)
    followers = [
        (after, await asking.follow(worker, name, after)) for worker in workers for after in (0, 1, 2, 5, 12, 24)
    ]
    # Before the end, in the other process too: from the log, which is not written one event at a time.
    for after, follower in followers:
        if after <= 5:
            await follower.events(1)
    assert not [entry for entry in cluster.journal(name) if entry.what == "ends"]
    posted = await stream.rest()
    for after, follower in followers:
        content = await follower.rest()
        assert without_ids(content) == b"".join(cut(posted)[after:]), after
        assert ids(content) == list(range(after + 1, 27))
    assert cluster.executions(name) == 1


@pytest.mark.parametrize("read", [1, 7])
async def test_a_client_that_left_comes_back_in_the_other_process(cluster: Cluster, asking: Asking, read: int) -> None:
    worker, other = cluster.workers("ab")
    name = new("turn")
    stream = await asking.open(worker, f"{name} words 30 0.05", id=name)
    await stream.events(read)
    await stream.leave()
    had = cut(stream.content)
    back = await asking.follow(other, name, last_id=len(had))
    await back.events(1)
    assert (await asking.status(other, name))["status"] == "running"
    await back.leave()
    had += cut(back.content)
    once_more = await (await asking.follow(worker, name, last_id=len(had))).rest()
    whole = await (await asking.follow(other, name)).rest()
    assert [without_ids(event) for event in had + cut(once_more)] == [without_ids(event) for event in cut(whole)]
    assert whole.endswith(b"data: [DONE]\n\n")
    assert cluster.executions(name) == 1


async def test_followers_elsewhere_hear_of_events_soon(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    name = new("turn")
    gate = cluster.gate(new("gate"))
    stream = await asking.open(worker, f"{name} gate {gate.name}", id=name)
    follower = await asking.follow(other, name)
    await gate.reached()
    began = time.monotonic()
    await asyncio.wait_for(follower.events(2), 5)
    assert time.monotonic() - began < 1.5
    gate.open()
    began = time.monotonic()
    assert without_ids(await follower.rest()) == await stream.rest()
    assert time.monotonic() - began < 1.5


async def test_an_idle_process_keeps_following_over_the_death_of_the_running_one(
    cluster: Cluster, asking: Asking
) -> None:
    worker, other = cluster.workers("ab")
    name = new("turn")
    gate = cluster.gate(new("gate"))
    stream = await asking.open(worker, f"{name} gate {gate.name}", id=name)
    follower = await asking.follow(other, name)
    await follower.events(2)
    worker.kill()
    content = await asyncio.wait_for(follower.rest(), 5)
    assert content.endswith(b"id: 3\nevent: error\ndata: this invocation was interrupted\n\n")
    await eventually(lambda: cluster.record(name) is not None, "the record")
    record = cluster.record(name)
    assert record is not None
    assert (record["status"], record["event_count"]) == ("interrupted", 2)
    await stream.leave()
