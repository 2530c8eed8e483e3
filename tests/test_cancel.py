"""``POST …/{id}/cancel``: what runs is stopped for real, what waits never starts, what ended stays."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.test import AsyncClient

from invocations_app.isolation import Scope
from invocations_app.models import SessionRecord
from invocations_app.storage import endings, invocations
from tests import fakes
from tests.alone import replace_commit
from tests.client import endpoint, records, rows
from tests.durable import (
    DONE,
    Reader,
    abandon,
    ask,
    body_of,
    cancel,
    events_of,
    get,
    on_database,
    scripted,
    status,
    until,
    until_idle,
    until_status,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1"}
STREAM = ONE | {"stream": True}
CANCELLED = b'{"error":"this invocation was cancelled"}'
CANCELLED_EVENT = b"event: error\ndata: this invocation was cancelled\n\n"
ERROR = {"message": "this invocation was cancelled", "code": "cancelled", "status": 409}


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


async def the_session() -> SessionRecord:
    [session] = await rows(SessionRecord.objects.all)
    return session


async def test_a_plain_run_is_stopped_and_answered_409():
    fakes.script(["a", fakes.gate(), "b"])
    running = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    response = await cancel("i1")
    body = response.json()
    assert (response.status_code, body["status"], body["error"]) == (200, "cancelled", ERROR)
    assert body == await status("i1")
    assert response.headers["x-agent-invocation-id"] == "i1"
    assert response.headers["x-agent-session-id"] == "s1"
    answer = await running
    assert (answer.status_code, answer.content) == (409, CANCELLED)
    assert isinstance(fakes.gate().left, asyncio.CancelledError)


async def test_a_stream_ends_with_the_error_event():
    fakes.script(["a", fakes.gate(), "b"])
    reader = Reader(await ask("i1", STREAM))
    await reader.until(b"data: a\n\n")
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert await reader.rest() == b"data: a\n\n" + CANCELLED_EVENT
    assert isinstance(fakes.gate().left, asyncio.CancelledError)


async def test_a_background_run_is_stopped():
    fakes.script(["a", fakes.gate(), "b"])
    await ask("i1", ONE | {"background": True})
    await fakes.gate().wait_reached()
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert isinstance(fakes.gate().left, asyncio.CancelledError)


async def test_the_session_stays_as_it_was_and_is_free():
    fakes.script(["before"], ["a", fakes.gate(), "b"], ["after"])
    await ask("i0", ONE)
    before = await the_session()
    running = asyncio.create_task(ask("i1", {"message": "lost", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await cancel("i1")
    await running
    session = await the_session()
    assert (session.state, session.message_count, session.version) == (before.state, 2, before.version)
    assert session.claimed_by is None
    assert (await ask("i2", ONE)).json()["response"] == "after"
    assert fakes.calls[-1].texts == [("user", "hi"), ("assistant", "before"), ("user", "hi")]


async def test_an_async_tool_is_cancelled():
    fakes.script([fakes.call("wait_at", {"name": "tool"})], ["never"])
    running = asyncio.create_task(ask("i1", ONE))
    await fakes.gate("tool").wait_reached()
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert (await running).content == CANCELLED
    assert isinstance(fakes.gate("tool").left, asyncio.CancelledError)
    assert len(fakes.calls) == 1


async def test_a_sync_tool_runs_to_its_end_and_its_result_is_discarded(settings):
    settings.INVOCATIONS = endpoint(TARGET=f"{__name__}.build_with_sync_tool")
    fakes.script([fakes.call("wait_in_thread")], ["never"])
    fakes.switches["entered"], fakes.switches["let go"] = threading.Event(), threading.Event()
    running = asyncio.create_task(ask("i1", ONE))
    await until(fakes.switches["entered"].is_set)
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert (await running).content == CANCELLED
    assert "tool ended" not in fakes.notes
    fakes.switches["let go"].set()
    await until(lambda: "tool ended" in fakes.notes)
    assert (len(fakes.calls), (await the_session()).message_count) == (1, 0)
    await until_idle()


def wait_in_thread() -> str:
    """Wait in a thread, as code that knows nothing of cancellation."""
    entered, let_go = fakes.switches["entered"], fakes.switches["let go"]
    entered.set()
    let_go.wait(3)
    fakes.notes.append("tool ended")
    return "result"


def build_with_sync_tool() -> Any:
    agent = fakes.build_scripted()
    agent.default_options["tools"] = [wait_in_thread]
    return agent


# One that waits


async def test_a_turn_that_waits_is_cancelled_at_once_and_never_runs():
    fakes.script([fakes.gate(), "first"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", ONE))
    await until_status("i1", "queued")
    assert (await cancel("i1")).json()["status"] == "cancelled"
    answer = await waiting
    assert (answer.status_code, answer.content) == (409, CANCELLED)
    fakes.gate().open()
    assert (await holder).json()["response"] == "first"
    # Its row stays, so its id is used.
    assert [record.status for record in await records()] == ["succeeded", "cancelled"]
    assert (await ask("i1", ONE)).content == CANCELLED
    assert len(fakes.calls) == 1


async def test_a_stream_that_waits_is_answered_409():
    fakes.script([fakes.gate(), "first"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", STREAM))
    await until_status("i1", "queued")
    await cancel("i1")
    answer = await waiting
    assert (answer.status_code, answer.content) == (409, CANCELLED)
    assert await events_of("i1") == b"id: 1\n" + CANCELLED_EVENT
    fakes.gate().open()
    await holder


async def test_a_background_turn_that_waits_is_cancelled():
    fakes.script([fakes.gate(), "first"], ["third"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    for name in ("i1", "i2"):
        assert (await ask(name, ONE | {"background": True})).json()["status"] == "queued"
    assert (await cancel("i1")).json()["status"] == "cancelled"
    fakes.gate().open()
    await holder
    await until_status("i2", "succeeded")
    assert [record.status for record in await records()] == ["succeeded", "cancelled", "succeeded"]
    assert len(fakes.calls) == 2


async def from_elsewhere(invocation_id: str) -> None:
    """Cancel as another process does, which has only the database."""
    await invocations.request_cancel(Scope("default", "", ""), invocation_id)


@pytest.mark.parametrize("place", [1, 2], ids=["first in line", "second in line"])
async def test_a_turn_that_waits_hears_of_a_cancellation_by_another_process(place):
    fakes.script([fakes.gate(), "a"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = []
    for number in range(1, 3):
        waiting.append(asyncio.create_task(ask(f"i{number}", ONE)))
        await until_status(f"i{number}", "queued")
    await from_elsewhere(f"i{place}")
    answer = await waiting[place - 1]
    assert (answer.status_code, answer.content) == (409, CANCELLED)
    fakes.gate().open()
    assert (await waiting[2 - place]).status_code == 200
    await holder


async def test_a_run_hears_of_a_cancellation_by_another_process_within_two_seconds():
    fakes.script(["a", fakes.gate(), "b"])
    reader = Reader(await ask("i1", STREAM))
    await reader.until(b"data: a\n\n")
    await from_elsewhere("i1")
    async with asyncio.timeout(2):
        assert await reader.rest() == b"data: a\n\n" + CANCELLED_EVENT
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    assert (await status("i1"))["status"] == "cancelled"


# One that has ended


async def test_what_has_ended_stays_as_it_is():
    fakes.script(["a"], [RuntimeError("no")])
    await ask("i1", ONE)
    await ask("i2", ONE)
    for name, state in (("i1", "succeeded"), ("i2", "failed")):
        before = await status(name)
        assert (await cancel(name)).json() == before
        assert before["status"] == state
        assert await status(name) == before


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_committed_before_the_cancellation_reached_it_stands(monkeypatch, stream):
    committing, may_commit = threading.Event(), threading.Event()
    commit = endings.commit_now

    def hold(*args: Any) -> None:
        committing.set()
        assert may_commit.wait(3)
        commit(*args)

    replace_commit(monkeypatch, hold)
    fakes.script(["done"])
    running = asyncio.create_task(ask("i1", ONE | {"stream": stream}))
    reader = Reader(await running) if stream else None
    await until(committing.is_set)
    cancelling = asyncio.create_task(cancel("i1"))
    await asyncio.sleep(0.03)
    may_commit.set()
    assert (await cancelling).json()["status"] == "succeeded"
    if reader is None:
        assert (await running).json() == {"response": "done", "session_id": "s1"}
    else:
        assert await reader.rest() == b"data: done\n\n" + DONE
    assert (await the_session()).message_count == 2
    await until_idle()


async def test_an_abandoned_run_is_found_interrupted():
    fakes.script(["a", fakes.gate(), "b"])
    reader = Reader(await ask("i1", STREAM))
    await reader.until(b"data: a\n\n")
    await on_database(abandon)
    assert (await cancel("i1")).json()["status"] == "interrupted"
    assert (await reader.rest()).startswith(b"data: a\n\nevent: error\n")


async def test_cancelling_twice_is_the_same():
    fakes.script(["a", fakes.gate(), "b"])
    reader = Reader(await ask("i1", STREAM))
    await reader.until(b"data: a\n\n")
    first, second = await asyncio.gather(cancel("i1"), cancel("i1"))
    assert first.json() == second.json() == (await cancel("i1")).json()
    assert first.json()["status"] == "cancelled"
    await reader.rest()


async def test_a_run_that_does_not_end_in_time_is_told_as_it_is(settings, monkeypatch):
    monkeypatch.setattr("invocations_app.runs._CANCEL_SECONDS", 0.1)
    fakes.script([shielded])
    running = asyncio.create_task(ask("i1", ONE))
    await fakes.gate("shield").wait_reached()
    assert (await cancel("i1")).json()["status"] == "running"
    fakes.gate("shield").open()
    assert (await running).content == CANCELLED
    assert (await status("i1"))["status"] == "cancelled"


async def shielded() -> None:
    """Take its time to clean up when it is cancelled."""
    try:
        fakes.gate("shield").reached.set()
        await asyncio.Event().wait()
    finally:
        while not fakes.gate("shield").opened.is_set():
            await asyncio.sleep(0.002)


# Which one


@pytest.mark.parametrize("name", ["i2", "not well formed"])
async def test_an_unknown_invocation_is_not_found(name):
    response = await cancel(name)
    assert (response.status_code, response.content) == (404, b'{"error":"not found"}')


async def test_another_callers_invocation_is_not_found_and_runs_on(settings):
    settings.INVOCATIONS = scripted(TRUST_ISOLATION_HEADERS=True)
    fakes.script(["a", fakes.gate(), "b"])
    running = asyncio.create_task(ask("i1", ONE, x_agent_user_id="alice"))
    await fakes.gate().wait_reached()
    response = await cancel("i1", x_agent_user_id="bob")
    assert (response.status_code, response.content) == (404, b'{"error":"not found"}')
    fakes.gate().open()
    assert (await running).json()["response"] == "ab"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_a_cancellation_is_only_posted(method):
    response = await AsyncClient().generic(method, "/invocations/i1/cancel")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.content == b'{"error":"method not allowed"}'


async def test_the_body_of_a_cancellation_does_not_matter():
    fakes.script(["a"])
    await ask("i1", ONE)
    response = await AsyncClient().generic("POST", "/invocations/i1/cancel", b"no json", "text/plain")
    assert response.json()["status"] == "succeeded"
    assert (await get("i1")).json() == response.json()


async def test_a_cancelled_stream_is_replayed_to_its_error():
    fakes.script(["a", fakes.gate(), "b"])
    reader = Reader(await ask("i1", STREAM))
    await reader.until(b"data: a\n\n")
    await cancel("i1")
    await reader.rest()
    assert await events_of("i1") == b"id: 1\ndata: a\n\nid: 2\n" + CANCELLED_EVENT
    repeat = await ask("i1", STREAM)
    assert (repeat.status_code, repeat.content) == (409, CANCELLED)
    fakes.script(["c"])
    assert await body_of(await ask("i2", STREAM)) == b"data: c\n\n" + DONE
