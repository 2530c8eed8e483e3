"""``"background": true`` in the web process: answered at once, run on, found again by its id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.test import Client

from tests import fakes
from tests.client import INVOKE, endpoint, post, post_raw, records
from tests.durable import (
    DONE,
    Reader,
    abandon,
    ask,
    body_of,
    events_of,
    get,
    on_database,
    scripted,
    status,
    until_idle,
    until_status,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1", "background": True}


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


async def test_it_is_answered_at_once_with_202_and_where_to_look():
    fakes.script([fakes.gate(), "a"])
    response = await ask("i1", ONE)
    assert response.status_code == 202
    assert response.content == b'{"invocation_id":"i1","status":"running","session_id":"s1"}'
    assert response.headers["Location"] == "/invocations/i1"
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-agent-invocation-id"] == "i1"
    assert response.headers["x-agent-session-id"] == "s1"
    fakes.gate().open()
    await until_status("i1", "succeeded")
    assert (await status("i1"))["response"] == "a"


async def test_the_record_is_there_when_the_answer_is():
    fakes.script([fakes.gate(), "a"])
    await ask("i1", ONE)
    [record] = await records()
    assert (record.status, record.background, record.stream) == ("running", True, False)
    fakes.gate().open()
    await until_idle()


async def test_an_id_of_ours_is_told():
    fakes.script(["a"])
    response = await post({"message": "hi", "background": True})
    body = response.json()
    assert response.headers["Location"] == f"/invocations/{body['invocation_id']}"
    assert body["session_id"] is None
    assert "x-agent-session-id" not in response.headers
    await until_status(body["invocation_id"], "succeeded")


async def test_the_location_has_script_name_and_path(settings):
    settings.INVOCATIONS = endpoint(PATH="api/agent")
    settings.FORCE_SCRIPT_NAME = "/site"
    body = b'{"message":"hi","background":true}'
    response = await post_raw(body, [("x-agent-invocation-id", "i1")], "/site/api/agent/invoke")
    assert (response.status, response.headers["location"]) == (202, "/site/api/agent/i1")
    await until_idle()


@pytest.mark.parametrize("stream", [False, True])
async def test_it_wins_over_stream_which_says_how_the_target_is_run(stream):
    fakes.script(["hel", "lo"])
    response = await ask("i1", ONE | {"stream": stream})
    assert (response.status_code, response.streaming) == (202, False)
    await until_status("i1", "succeeded")
    assert fakes.calls[0].stream is stream
    events = b"data: hel\n\ndata: lo\n\n" if stream else b"data: hello\n\n"
    assert await body_of(await ask("i1", ONE | {"stream": True, "background": False})) == events + DONE


async def test_it_is_followed_live():
    fakes.script(["hel", fakes.gate(), "lo"])
    await ask("i1", ONE | {"stream": True})
    follower = Reader(await get("i1/events"))
    await follower.until(b"id: 1\ndata: hel\n\n")
    fakes.gate().open()
    assert await follower.rest() == b"id: 1\ndata: hel\n\nid: 2\ndata: lo\n\nid: 3\ndata: [DONE]\n\n"


async def test_nobody_reads_so_nothing_slows_it():
    fakes.script([f"{number} " for number in range(500)])
    await ask("i1", ONE | {"stream": True})
    await until_status("i1", "succeeded")
    assert (await events_of("i1", 499)).startswith(b"id: 500\ndata: 499 \n\nid: 501\ndata: [DONE]")


async def test_leaving_does_not_matter_to_it(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script([fakes.gate(), "a"])
    await ask("i1", ONE)
    joined = Reader(await ask("i1", ONE | {"stream": True, "background": False}))
    await joined.leave()
    await asyncio.sleep(0.02)
    assert fakes.gate().left is None
    fakes.gate().open()
    await until_status("i1", "succeeded")


async def test_on_a_busy_session_it_is_queued_without_limit(settings):
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0.05)
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = asyncio.create_task(ask("i0", {"message": "hi", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    response = await ask("i1", ONE)
    assert response.status_code == 202
    assert response.content == b'{"invocation_id":"i1","status":"queued","session_id":"s1"}'
    assert response.headers["Location"] == "/invocations/i1"
    await asyncio.sleep(0.2)
    assert (await status("i1"))["status"] == "queued"
    fakes.gate().open()
    await holder
    await until_status("i1", "succeeded")
    assert fakes.calls[-1].texts == [("user", "hi"), ("assistant", "first"), ("user", "hi")]


async def test_it_keeps_its_place_among_those_who_wait():
    fakes.script([fakes.gate(), "a0"], ["a1"], ["a2"])
    await ask("i0", ONE)
    await fakes.gate().wait_reached()
    await ask("i1", ONE)
    waiting = asyncio.create_task(ask("i2", ONE | {"background": False}))
    await until_status("i2", "queued")
    fakes.gate().open()
    assert (await waiting).json()["response"] == "a2"
    assert (await status("i1"))["response"] == "a1"


@pytest.mark.parametrize(
    ("body", "code", "content"),
    [
        ({"message": "", "background": True}, 422, b'{"error":"missing or empty \'message\'"}'),
        ({"message": "a", "background": "yes"}, 422, None),
        (
            {"message": "a", "options": {"model": "x"}, "background": True},
            422,
            b'{"error":"\'options\' must not set model"}',
        ),
    ],
)
async def test_what_is_refused_is_refused_at_once(body, code, content):
    response = await ask("i1", body)
    assert response.status_code == code
    assert content in {None, response.content}
    assert await records() == []


async def test_a_target_that_cannot_be_had_is_told_at_once(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    response = await ask("i1", ONE)
    assert (response.status_code, response.content) == (500, b'{"error":"The agent is not available."}')
    assert await records() == []


async def test_its_failure_is_found_in_its_status_and_its_events(settings):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    fakes.script([RuntimeError("the reason")])
    assert (await ask("i1", ONE)).status_code == 202
    await until_status("i1", "failed")
    assert (await status("i1"))["error"] == {
        "message": "Agent invocation failed.",
        "code": "invocation_failed",
        "status": 500,
    }
    assert await events_of("i1") == b"id: 1\nevent: error\ndata: Agent invocation failed.\n\n"


async def test_a_repeat_never_runs_it_twice():
    fakes.script([fakes.gate(), "a"])
    first = await ask("i1", ONE)
    second = await ask("i1", ONE)
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert second.headers["Location"] == "/invocations/i1"
    fakes.gate().open()
    await until_status("i1", "succeeded")
    assert len(fakes.calls) == 1


async def test_one_whose_process_died_is_interrupted():
    fakes.script([fakes.gate(), "a"])
    await ask("i1", ONE)
    await fakes.gate().wait_reached()
    await on_database(abandon)
    assert (await status("i1"))["status"] == "interrupted"
    await until_idle()


async def test_keys_reach_tools_though_the_request_is_over(settings):
    settings.INVOCATIONS = scripted(TRUST_ISOLATION_HEADERS=True)
    fakes.script([fakes.gate(), fakes.call("whoami")], ["done"])
    headers = {"x_agent_user_isolation_key": "alice", "x_agent_chat_isolation_key": "c"}
    await ask("i1", ONE, **headers)
    fakes.gate().open()
    await until_status("i1", "succeeded")
    assert fakes.calls[-1].messages[-1].contents[0].result == "alice|c"
    assert (await get("i1")).status_code == 404
    assert (await status("i1", **headers))["response"] == "done"


def test_over_wsgi_there_is_no_background():
    response = Client().post(INVOKE, ONE, content_type="application/json")
    assert response.status_code == 501
    assert response.content == b'{"error":"streams and background need an ASGI server"}'
