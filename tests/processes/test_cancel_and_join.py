"""Cancelling a run, and joining one, from another process than the one that runs it."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.processes.asking import CANCELLED, Asking, eventually, last_event, new
from tests.processes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def stopped(cluster: Cluster, name: str) -> bool:
    """Say whether the agent was stopped in the middle."""
    return [entry.what for entry in cluster.journal(name)] == ["begins", "stops"]


async def test_cancel_reaches_a_run_in_the_other_process_within_two_seconds(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    await asking.post(worker, "first", session=session)
    gate = cluster.gate(new("gate"))
    stream = await asking.open(worker, f"{name} gate {gate.name}", session=session, id=name)
    await gate.reached()
    began = time.monotonic()
    body = await asking.cancel(other, name)
    content = await stream.rest()
    assert time.monotonic() - began < 2
    assert (body["status"], body["error"]["code"]) == ("cancelled", "cancelled")
    assert (last_event(content).type, last_event(content).data) == ("error", CANCELLED["error"])
    await eventually(lambda: stopped(cluster, name), "the agent's end")
    assert cluster.said(session) == ["first"]
    row = cluster.session(session)
    assert (row["version"], row["claimed_by"]) == (1, None)
    retried = await asking.post(other, f"{name} gate {gate.name}", session=session, id=name)
    assert (retried.status_code, retried.json(), cluster.executions(name)) == (409, CANCELLED, 1)
    assert (await asking.cancel(worker, name)) == await asking.status(other, name)
    assert (await asking.post(other, "next", session=session)).json()["response"] == "2|ok"


async def test_cancel_reaches_a_turn_that_waits_in_the_other_process(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    gate = cluster.gate(new("gate"))
    first = asyncio.create_task(asking.post(worker, f"first gate {gate.name}", session=session))
    await gate.reached()
    waiting = asyncio.create_task(asking.post(worker, name, session=session, id=name))
    await eventually(lambda: cluster.waiting(session) == 1, "a record that waits")
    began = time.monotonic()
    assert (await asking.cancel(other, name))["status"] == "cancelled"
    answer = await waiting
    assert time.monotonic() - began < 2
    assert (answer.status_code, answer.json()) == (409, CANCELLED)
    gate.open()
    assert (await first).json()["response"] == "1|before after"
    assert (cluster.executions(name), cluster.said(session)) == (0, [f"first gate {gate.name}"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_post_joins_in_the_other_process(cluster: Cluster, asking: Asking, stream: bool) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    message = f"{name} words 12 0.05"
    posts = [asyncio.create_task(asking.post(worker, message, session=session, id=name, stream=stream))]
    await eventually(lambda: cluster.executions(name) == 1, "the run")
    posts += [
        asyncio.create_task(asking.post(at, message, session=session, id=name, stream=stream)) for at in (other, worker)
    ]
    other_kind = asyncio.create_task(asking.post(other, message, session=session, id=name, stream=not stream))
    first, *joined = await asyncio.gather(*posts)
    assert first.status_code == 200
    assert {answer.content for answer in joined} == {first.content}
    assert {answer.headers["x-agent-session-id"] for answer in joined} == {session}
    text = f"1|{''.join(f'w{number} ' for number in range(12))}"
    if stream:
        assert (await other_kind).json() == {"response": text, "session_id": session}
    else:
        assert (await other_kind).content == f"data: {text}\n\ndata: [DONE]\n\n".encode()
    assert (cluster.executions(name), cluster.said(session)) == (1, [message])
    refused = await asking.post(other, "another body", session=session, id=name)
    assert refused.status_code == 422
    assert refused.json() == {"error": "this invocation id was used for another request"}


async def test_equal_posts_at_the_same_time_run_once(cluster: Cluster, asking: Asking) -> None:
    workers = cluster.workers("ab")
    for _ in range(3):
        session, name = new("session"), new("turn")
        posts = [asking.post(workers[number % 2], name, session=session, id=name) for number in range(8)]
        answers = await asyncio.gather(*posts)
        assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
        assert (cluster.executions(name), cluster.said(session)) == (1, [name])


async def test_a_joiner_elsewhere_keeps_a_run_that_its_first_reader_left(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    gate = cluster.gate(new("gate"))
    message = f"{name} gate {gate.name}"
    first = await asking.open(worker, message, session=session, id=name, path="cancels")
    await gate.reached()
    joiner = await asking.open(other, message, session=session, id=name, path="cancels")
    await joiner.events(1)
    await first.leave()
    # Longer than what a joiner says once holds for.
    await asyncio.sleep(2.5)
    assert (await asking.status(other, name, "cancels"))["status"] == "running"
    gate.open()
    assert await joiner.rest() == b"data: 1|\n\ndata: before \n\ndata: after\n\ndata: [DONE]\n\n"
    assert cluster.said(session) == [message]


async def test_a_run_is_cancelled_when_its_last_joiner_elsewhere_has_left(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    session, name = new("session"), new("turn")
    gate = cluster.gate(new("gate"))
    message = f"{name} gate {gate.name}"
    first = await asking.open(worker, message, session=session, id=name, path="cancels")
    await gate.reached()
    joiner = await asking.open(other, message, session=session, id=name, path="cancels")
    await joiner.events(1)
    await first.leave()
    await joiner.leave()
    await eventually(lambda: stopped(cluster, name), "the agent's end", 6)
    await eventually(lambda: (cluster.record(name) or {})["status"] == "cancelled", "the record's end", 2)
    assert cluster.said(session) == []
