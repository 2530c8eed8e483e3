"""``GET …/{id}``: every key of the status body, in every state."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import AsyncClient, Client
from django.utils import timezone

from invocations_app.models import InvocationRecord
from tests import fakes
from tests.client import endpoint, post, records
from tests.durable import abandon, ask, body_of, cancel, get, on_database, scripted, status, until_status

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1"}
KEYS = [
    "invocation_id",
    "status",
    "session_id",
    "response",
    "pending",
    "error",
    "usage",
    "created_at",
    "finished_at",
]
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


async def test_the_body_has_every_key_in_order():
    fakes.script(["hellö", fakes.usage(3, 4)])
    await ask("i1", ONE)
    response = await get("i1")
    [record] = await records()
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    usage, created, finished = (response.json()[key] for key in KEYS[-3:])
    assert usage == {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
    assert (
        response.content
        == (
            '{"invocation_id":"i1","status":"succeeded","session_id":"s1","response":"hellö","pending":[],"error":null,'
            f'"usage":{json.dumps(usage, separators=(",", ":"))},"created_at":"{created}","finished_at":"{finished}"}}'
        ).encode()
    )
    for text, moment in ((created, record.created_at), (finished, record.finished_at)):
        assert TIME.fullmatch(text)
        assert abs((datetime.fromisoformat(text) - moment).total_seconds()) < 0.001
    assert created <= finished


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
async def test_times_are_utc_wherever_the_site_is(settings, zone):
    settings.TIME_ZONE = zone
    fakes.script(["a"])
    await ask("i1", ONE)
    text = (await status("i1"))["created_at"]
    assert text.endswith("Z")
    assert abs((datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()) < 5


async def test_a_time_on_the_second_has_its_fraction_too():
    fakes.script(["a"])
    await ask("i1", ONE)
    await on_database(lambda: InvocationRecord.objects.update(created_at="2026-01-02T03:04:05Z"))
    assert (await status("i1"))["created_at"] == "2026-01-02T03:04:05.000Z"


@pytest.mark.parametrize(("given", "shown"), [(None, None), ("", ""), ("a b/ü", "a b/ü")])
async def test_the_session_id_is_the_one_in_force_as_given(given, shown):
    fakes.script(["a"])
    await ask("i1", ONE | {"session_id": given})
    assert (await status("i1"))["session_id"] == shown


async def test_usage_is_null_where_the_agent_reports_none():
    fakes.script(["a"])
    await ask("i1", ONE)
    assert (await status("i1"))["usage"] is None


async def test_the_response_of_a_stream_is_its_joined_text():
    fakes.script(["hel", "lo"])
    await body_of(await ask("i1", ONE | {"stream": True}))
    body = await status("i1")
    assert (body["status"], body["response"]) == ("succeeded", "hello")


async def test_queued_and_running_have_no_end_yet():
    fakes.script([fakes.gate(), "a"])
    tasks = [asyncio.create_task(ask("i1", ONE)), asyncio.create_task(until_status("i1", "running"))]
    await tasks[1]
    await fakes.gate().wait_reached()
    tasks.append(asyncio.create_task(ask("i2", ONE)))
    await until_status("i2", "queued")
    for invocation_id, state in (("i1", "running"), ("i2", "queued")):
        body = await status(invocation_id)
        assert list(body) == KEYS
        assert TIME.fullmatch(body.pop("created_at"))
        assert body == {
            "invocation_id": invocation_id,
            "status": state,
            "session_id": "s1",
            "response": None,
            "pending": [],
            "error": None,
            "usage": None,
            "finished_at": None,
        }
    fakes.gate().open()
    await asyncio.gather(*tasks)
    assert {(await status(name))["status"] for name in ("i1", "i2")} == {"succeeded"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_has_its_fixed_text_and_no_response(settings, stream):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    fakes.script(["par", RuntimeError("the reason")])
    response = await ask("i1", ONE | {"stream": stream})
    if stream:
        await body_of(response)
    body = await status("i1")
    assert (body["status"], body["response"], body["pending"]) == ("failed", None, [])
    assert json.dumps(body["error"]) == (
        '{"message": "Agent invocation failed.", "code": "invocation_failed", "status": 500}'
    )
    assert TIME.fullmatch(body["finished_at"])


async def test_a_time_out_is_failed_with_its_code(settings):
    settings.INVOCATIONS = scripted(RUN_TIMEOUT_SECONDS=0.05)
    fakes.script([fakes.gate()])
    await ask("i1", ONE)
    body = await status("i1")
    assert (body["status"], body["error"]) == (
        "failed",
        {"message": "the run timed out", "code": "timeout", "status": 504},
    )


async def test_a_cancelled_one_says_so():
    fakes.script([fakes.gate()])
    running = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    await cancel("i1")
    await running
    body = await status("i1")
    error = {"message": "this invocation was cancelled", "code": "cancelled", "status": 409}
    assert (body["status"], body["error"], body["response"]) == ("cancelled", error, None)


@pytest.mark.parametrize("before", ["running", "queued"])
async def test_whoever_meets_an_expired_lease_writes_the_interruption(before):
    fakes.script(["a"])
    await ask("i1", ONE)
    await on_database(lambda: InvocationRecord.objects.update(status=before, answer="", finished_at=None))
    await on_database(abandon)
    body = await status("i1")
    error = {"message": "this invocation was interrupted", "code": "interrupted", "status": 409}
    assert (body["status"], body["error"], body["response"]) == ("interrupted", error, None)
    assert TIME.fullmatch(body["finished_at"])
    [record] = await records()
    assert record.status == "interrupted"
    assert record.finished_at is not None
    assert record.finished_at <= timezone.now()
    assert await status("i1") == body


async def test_a_run_handed_over_that_nobody_took_yet_has_no_lease_to_expire():
    fakes.script(["a"])
    await ask("i1", ONE)
    handed = {"status": "queued", "answer": "", "finished_at": None, "lease_expires_at": None, "owner": ""}
    await on_database(lambda: InvocationRecord.objects.update(**handed))
    assert (await status("i1"))["status"] == "queued"


# Which one


@pytest.mark.parametrize("path", ["i2", "not well formed", "x" * 257, "docs", "sessions"])
async def test_an_unknown_invocation_is_not_found(path):
    response = await get(path)
    assert (response.status_code, response.content) == (404, b'{"error":"not found"}')


async def test_another_callers_invocation_is_not_found(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    await ask("i1", ONE, x_agent_user_id="alice")
    for caller in ({}, {"x_agent_user_id": "bob"}, {"x_agent_user_id": "alice", "x_agent_chat_isolation_key": "c"}):
        response = await get("i1", **caller)
        assert (response.status_code, response.content) == (404, b'{"error":"not found"}')
    assert (await status("i1", x_agent_user_id="alice"))["response"] == "hi"


async def test_another_endpoints_invocation_is_not_found(settings):
    settings.INVOCATIONS = endpoint() | {"other": endpoint(PATH="other")["default"]}
    await ask("i1", ONE)
    response = await AsyncClient().get("/other/i1")
    assert (response.status_code, response.content) == (404, b'{"error":"not found"}')
    assert (await status("i1"))["response"] == "hi"


async def test_an_id_of_ours_is_an_id():
    fakes.script(["a"])
    response = await post(ONE)
    made = response.headers["x-agent-invocation-id"]
    assert (await status(made))["response"] == "a"


async def test_the_caller_has_to_be_admitted(settings):
    settings.INVOCATIONS = endpoint(PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"])
    for path in ("i1", "i1/events"):
        response = await get(path)
        assert response.status_code in {401, 403}
        assert list(response.json()) == ["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_a_status_is_only_got(method):
    response = await AsyncClient().generic(method, "/invocations/i1")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")
    if method != "HEAD":
        assert response.content == b'{"error":"method not allowed"}'


def test_over_wsgi_there_is_a_status():
    fakes.script(["a"])
    headers = {"x-agent-invocation-id": "i1"}
    Client().post("/invocations/invoke", ONE, content_type="application/json", headers=headers)
    response = Client().get("/invocations/i1")
    assert (response.status_code, response.json()["status"], response.json()["response"]) == (200, "succeeded", "a")
