"""Questions that outlive their process: answered after a restart, on another process, exactly once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from invocations_app.pending import OUTCOME_UNKNOWN
from tests.processes.asking import INTERRUPTED, Asking, new
from tests.processes.cluster import LEASE_SECONDS, Cluster, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

MISMATCH = {"error": "'responses' must answer exactly the pending requests"}
PATH = "approves"


def payments(cluster: Cluster, token: str) -> int:
    """Return how many times the tool ran for a token."""
    return sum(entry.what == "pays" for entry in cluster.journal(token))


def pending_rows(cluster: Cluster, session: str) -> list[tuple[Any, ...]]:
    """Return whether each request of a session is closed, and its reply."""
    return cluster.database.rows(
        "SELECT p.closed_at IS NOT NULL, p.reply FROM invocations_app_pendingrecord p"
        " JOIN invocations_app_sessionrecord s ON p.session_record_id = s.id WHERE s.session_id = %s ORDER BY p.id",
        session,
    )


async def ask(asking: Asking, worker: Worker, message: str, session: str, id: str | None = None) -> str:
    """Let the agent ask, and return the id of what it asks."""
    answer = await asking.post(worker, message, session=session, id=id, path=PATH)
    [item] = answer.json()["pending"]
    assert (item["type"], item["tool"], item["arguments"]) == ("approval", "pay", {"token": message.split()[0]})
    return str(item["request_id"])


async def reply(asking: Asking, worker: Worker, request_id: str, session: str, id: str) -> httpx.Response:
    """Approve what was asked."""
    return await asking.http.post(
        f"{worker.url}/{PATH}/invoke",
        json={"responses": {request_id: True}, "session_id": session},
        headers={"x-agent-invocation-id": id},
    )


async def test_a_question_is_answered_after_a_restart_on_any_process(cluster: Cluster, asking: Asking) -> None:
    session, token, first, second = new("session"), new("token"), new("turn"), new("turn")
    request_id = await ask(asking, cluster.worker("a"), token, session, first)
    cluster.worker("a").kill()
    restarted, other = cluster.workers("ab")
    for worker in (restarted, other):
        status = await asking.status(worker, first, PATH)
        assert (status["status"], [item["request_id"] for item in status["pending"]]) == (
            "awaiting_input",
            [request_id],
        )
    refused = await asking.post(other, "more", session=session, path=PATH)
    assert (refused.status_code, refused.json()["invocation_id"]) == (409, first)
    answer = await reply(asking, other, request_id, session, second)
    assert answer.json() == {"response": f"paid {token}", "session_id": session}
    assert (await asking.status(restarted, first, PATH))["status"] == "succeeded"
    again = await reply(asking, restarted, request_id, session, second)
    assert (again.status_code, again.content) == (200, answer.content)
    repeated = await reply(asking, restarted, request_id, session, new("turn"))
    assert (repeated.status_code, repeated.json()) == (422, MISMATCH)
    assert payments(cluster, token) == 1


async def test_of_answers_at_once_on_several_processes_one_wins(cluster: Cluster, asking: Asking) -> None:
    workers = cluster.workers("ab")
    session, token = new("session"), new("token")
    request_id = await ask(asking, workers[0], token, session)
    names = [new("turn") for _ in range(6)]
    answers = await asyncio.gather(
        *(reply(asking, workers[number % 2], request_id, session, name) for number, name in enumerate(names))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [422] * 5
    for name, answer in zip(names, answers, strict=True):
        if answer.status_code == 422:
            assert answer.json() == MISMATCH
            assert cluster.record(name) is None
    assert payments(cluster, token) == 1
    assert pending_rows(cluster, session) == [(True, "true")]
    assert cluster.session(session)["claimed_by"] is None


async def test_an_answer_whose_process_is_killed_is_not_run_again(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    session, token, name = new("session"), new("token"), new("turn")
    gate = cluster.gate(new("gate"))
    request_id = await ask(asking, worker, f"{token} gate {gate.name}", session)
    answering = asyncio.create_task(reply(asking, worker, request_id, session, name))
    await gate.reached()
    worker.kill()
    killed_at = time.monotonic()
    with pytest.raises(httpx.TransportError):
        await answering
    following = await asking.post(other, "next", session=session, path=PATH)
    assert following.json() == {"response": OUTCOME_UNKNOWN, "session_id": session}
    assert time.monotonic() - killed_at < LEASE_SECONDS + 1.5
    retried = await reply(asking, other, request_id, session, name)
    assert (retried.status_code, retried.json()) == (409, INTERRUPTED)
    repeated = await reply(asking, other, request_id, session, new("turn"))
    assert (repeated.status_code, repeated.json()) == (422, MISMATCH)
    assert payments(cluster, token) == 1
    assert pending_rows(cluster, session) == [(True, "true")]
    row = cluster.session(session)
    assert (row["message_count"], row["claimed_by"]) == (5, None)
