"""Background runs on workers: what the web process records and enqueues, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from agent_framework import Message
from django.db import OperationalError
from django.test import AsyncClient, override_settings
from django.utils import timezone

from invocations_app import conf, targets
from invocations_app.envelope import Invocation
from invocations_app.exceptions import TargetFailed
from invocations_app.isolation import IsolationKeys, RequestKeys, Scope
from invocations_app.models import EventRecord, InvocationRecord, PendingRecord, SessionRecord
from invocations_app.runs import background, parcel
from invocations_app.runs.host import live_runs
from invocations_app.storage import database, figures, handover
from tests import fakes, tasks_fakes, workflow_fakes
from tests.client import endpoint, post, records, rows

pytestmark = pytest.mark.django_db(transaction=True)

HOST = {"BACKGROUND_TASKS_BACKEND": "workers"}
TASKS = {"workers": {"BACKEND": "tests.tasks_fakes.NotingBackend"}}
KEYS = {"x-agent-user-isolation-key": "alice", "x-agent-chat-isolation-key": "c1", "x-agent-foundry-call-id": "call-9"}


@pytest.fixture(autouse=True)
def _workers() -> Iterator[None]:
    with tasks_fakes.tasks(TASKS), override_settings(INVOCATIONS=endpoint(), INVOCATIONS_HOST=HOST):
        yield


async def ask(message: str = "ping", invocation_id: str = "i1", **body: Any) -> Any:
    headers = {"x-agent-invocation-id": invocation_id} | body.pop("headers", {})
    return await post({"message": message, "background": True} | body, headers=headers)


async def the_record() -> InvocationRecord:
    (record,) = await records()
    return record


async def status(invocation_id: str = "i1") -> dict[str, Any]:
    response = await AsyncClient().get(f"/invocations/{invocation_id}")
    return dict(json.loads(response.content))


async def events(invocation_id: str = "i1") -> bytes:
    response = await AsyncClient().get(f"/invocations/{invocation_id}/events")
    return b"".join([part async for part in response.streaming_content])


async def change(**columns: Any) -> None:
    await database.run(lambda: InvocationRecord.objects.update(**columns))


# The web process


async def test_it_is_recorded_as_queued_and_only_its_primary_key_is_enqueued():
    response = await ask(session_id="s1", metadata={"k": 1})
    assert (response.status_code, json.loads(response.content)) == (
        202,
        {"invocation_id": "i1", "status": "queued", "session_id": "s1"},
    )
    assert response["Location"] == "/invocations/i1"
    record = await the_record()
    assert tasks_fakes.enqueued == [((record.pk,), {}, "default")]
    assert (record.status, record.owner, record.lease_expires_at, record.claim_number) == ("queued", "", None, 0)
    assert (record.background, record.stream, record.session_id) == (True, False, "s1")
    document = json.loads(record.input)
    assert document["input"]["messages"][0]["contents"][0]["text"] == "ping"
    (session,) = await rows(SessionRecord.objects.all)
    assert (session.claimed_by, record.session_record_id) == (None, session.pk)
    assert fakes.calls == []
    assert not live_runs()


async def test_it_is_never_interrupted_before_a_worker_takes_it():
    await ask()
    await change(created_at=timezone.now() - timedelta(days=300))
    assert (await status())["status"] == "queued"


async def test_it_does_not_count_among_the_runs_of_the_process():
    fakes.script([fakes.gate(), "done"])
    settings = endpoint(TARGET="tests.fakes.build_scripted")
    with override_settings(INVOCATIONS=settings, INVOCATIONS_HOST=HOST | {"MAX_CONCURRENT_RUNS": 1}):
        foreground = asyncio.create_task(post({"message": "first"}))
        await fakes.gate().wait_reached()
        assert (await ask()).status_code == 202
        assert (await post({"message": "second"})).status_code == 503
        fakes.gate().open()
        assert (await foreground).status_code == 200


async def test_a_repeated_request_is_told_how_it_stands_and_enqueues_nothing():
    await ask()
    again = await ask()
    assert (again.status_code, json.loads(again.content)["status"]) == (202, "queued")
    other = await ask("something else")
    assert other.status_code == 422
    assert len(tasks_fakes.enqueued) == 1


async def test_a_foreground_run_stays_in_the_web_process():
    response = await post({"message": "ping"})
    assert json.loads(response.content)["response"] == "ping"
    assert tasks_fakes.enqueued == []


@pytest.mark.parametrize("session", [{}, {"session_id": "s1"}])
async def test_a_backend_that_does_not_take_it_leaves_no_trace(session):
    tasks_fakes.broken.append(RuntimeError("no queue today"))
    response = await ask(**session)
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert json.loads(response.content) == {"error": "storage is not available"}
    assert await records() == []
    tasks_fakes.broken.clear()
    assert (await ask(**session)).status_code == 202


async def test_a_backend_that_took_it_although_it_raised_is_believed(monkeypatch):
    async def enqueue(alias: str, record_pk: int) -> None:
        assert await handover.take(record_pk, "worker", 60)
        raise RuntimeError("the confirmation got lost")

    monkeypatch.setattr("invocations_app.runs.tasks_api.enqueue", enqueue)
    assert (await ask()).status_code == 202
    record = await the_record()
    assert (record.status, record.owner) == ("running", "worker")
    assert record.lease_expires_at is not None


async def test_what_was_never_enqueued_is_interrupted_when_the_process_died_in_between(monkeypatch):
    async def die(alias: str, record_pk: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("invocations_app.runs.tasks_api.enqueue", die)
    asking = asyncio.create_task(ask(session_id="s1"))
    while not await records():
        await asyncio.sleep(0.01)
    record = await the_record()
    assert (record.owner, record.lease_expires_at is None) == ("", False)
    await change(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert (await status())["status"] == "interrupted"
    assert (await the_record()).input == ""
    for run in live_runs():
        run.task.cancel()
    assert (await asking).status_code == 409


async def test_what_json_does_not_have_cannot_be_handed_over():
    with override_settings(INVOCATIONS=endpoint(RUN_HOOK="tests.test_background.add_a_function")):
        response = await ask()
    assert (response.status_code, json.loads(response.content)) == (500, {"error": "Agent invocation failed."})
    assert await records() == []
    assert tasks_fakes.enqueued == []


def add_a_function(invocation: Any, **kwargs: Any) -> Any:
    return dataclasses.replace(invocation, options={"response_format": add_a_function})


async def test_a_busy_session_refuses_it_with_reject_and_queues_it_otherwise():
    fakes.script([fakes.gate(), "done"])
    settings = endpoint(TARGET="tests.fakes.build_scripted", ON_BUSY_SESSION="reject")
    with override_settings(INVOCATIONS=settings):
        foreground = asyncio.create_task(post({"message": "first", "session_id": "s1"}))
        await fakes.gate().wait_reached()
        refused = await ask(session_id="s1")
        assert (refused.status_code, json.loads(refused.content)) == (409, {"error": "the session is busy"})
        assert len(await records()) == 1
        fakes.gate().open()
        await foreground
        assert (await ask(session_id="s1")).status_code == 202
    assert (await ask(session_id="s1", invocation_id="i2")).status_code == 202


async def test_a_cancelled_one_is_run_by_no_worker():
    await ask(session_id="s1")
    cancelled = await AsyncClient().post("/invocations/i1/cancel")
    assert json.loads(cancelled.content)["status"] == "cancelled"
    record = await the_record()
    assert record.input == ""
    await background.carry_out(record.pk)
    assert (await status())["status"] == "cancelled"
    assert fakes.calls == []


# The worker


async def test_a_worker_answers_and_commits():
    await ask(session_id="s1")
    record = await the_record()
    await background.carry_out(record.pk)
    body = await status()
    assert (body["status"], body["response"], body["session_id"]) == ("succeeded", "ping", "s1")
    ended = await the_record()
    assert (ended.input, ended.correlation_id, ended.claim_number) == ("", record.correlation_id, 1)
    (session,) = await rows(SessionRecord.objects.all)
    assert (session.claimed_by, session.version, session.message_count) == (None, 1, 2)
    assert await events() == b"id: 1\ndata: ping\n\nid: 2\ndata: [DONE]\n\n"


async def test_without_a_session_it_runs_as_well():
    await ask()
    await background.carry_out((await the_record()).pk)
    assert (await status())["response"] == "ping"
    assert await rows(SessionRecord.objects.all) == []


@pytest.mark.parametrize("session", [{}, {"session_id": "s1"}])
async def test_its_duration_counts_from_when_it_was_asked_for(session):
    await ask(**session)
    await change(created_at=timezone.now() - timedelta(hours=1))
    await background.carry_out((await the_record()).pk)
    record = await the_record()
    found = (record.finished_minute, record.duration_bucket, record.first_byte_bucket)
    assert found == figures.of(record.created_at, record.first_byte_at, record.finished_at)
    assert 3600 <= record.duration_seconds < 3700


async def test_a_streamed_one_is_logged_event_by_event():
    await ask("a b", stream=True)
    await background.carry_out((await the_record()).pk)
    assert await events() == b"id: 1\ndata: a \n\nid: 2\ndata: b\n\nid: 3\ndata: [DONE]\n\n"
    assert len(await rows(EventRecord.objects.all)) == 1


@pytest.mark.parametrize("tool", ["whoami", "whoami_sync"])
async def test_tools_find_the_isolation_keys_of_the_caller(tool):
    with override_settings(INVOCATIONS=endpoint(TRUST_ISOLATION_HEADERS=True)):
        await ask(f"/tool {tool} {{}}", headers=KEYS)
        record = await the_record()
        assert (record.user_key, record.chat_key) == ("platform:alice", "c1")
        await background.carry_out(record.pk)
        assert [(call.keys, call.call_id) for call in fakes.calls] == [(IsolationKeys("alice", "c1"), "call-9")] * 2
        response = await AsyncClient().get("/invocations/i1", headers=KEYS)
        assert json.loads(response.content)["response"] == "alice|c1"
        assert (await status()).get("error") == "not found"


async def test_without_trusted_headers_tools_find_no_keys():
    await ask(headers=KEYS)
    await background.carry_out((await the_record()).pk)
    assert [(call.keys, call.call_id) for call in fakes.calls] == [(None, None)]


async def test_the_run_hook_runs_once_and_in_the_web_process():
    with override_settings(INVOCATIONS=endpoint(RUN_HOOK="tests.test_background.shout")):
        await ask("ping", session_id="s1")
        await background.carry_out((await the_record()).pk)
    assert fakes.notes == ["the hook"]
    assert (await status())["response"] == "PING"
    assert fakes.calls[0].options["temperature"] == 0.5


def shout(invocation: Any, **kwargs: Any) -> Any:
    fakes.notes.append("the hook")
    message = Message("user", [invocation.input[0].text.upper()])
    return dataclasses.replace(invocation, input=[message], options={"temperature": 0.5})


async def test_a_task_that_is_delivered_twice_runs_once():
    await ask(session_id="s1")
    pk = (await the_record()).pk
    await asyncio.gather(background.carry_out(pk), background.carry_out(pk))
    await background.carry_out(pk)
    assert len(fakes.calls) == 1
    assert (await status())["status"] == "succeeded"


async def test_a_task_that_is_delivered_again_after_its_worker_died_is_interrupted_and_not_run():
    await ask(session_id="s1")
    pk = (await the_record()).pk
    assert await handover.take(pk, "dead worker", 60)
    await change(lease_expires_at=timezone.now() - timedelta(seconds=1))
    await background.carry_out(pk)
    body = await status()
    assert (body["status"], body["error"]["code"]) == ("interrupted", "interrupted")
    assert fakes.calls == []
    assert (await the_record()).input == ""


async def test_a_record_that_is_gone_is_nothing_to_do():
    await background.carry_out(12345)
    assert fakes.calls == []


async def test_it_keeps_its_place_before_a_younger_foreground_turn():
    await ask("first", session_id="s1")
    younger = asyncio.create_task(post({"message": "second", "session_id": "s1"}))
    while len(await records()) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert not younger.done()
    await background.carry_out((await records())[0].pk)
    assert (await younger).status_code == 200
    assert [call.texts[-1][1] for call in fakes.calls] == ["first", "second"]


async def test_it_waits_for_an_older_foreground_turn():
    fakes.script([fakes.gate(), "one"], ["two"])
    with override_settings(INVOCATIONS=endpoint(TARGET="tests.fakes.build_scripted")):
        foreground = asyncio.create_task(post({"message": "first", "session_id": "s1"}))
        await fakes.gate().wait_reached()
        await ask("second", session_id="s1")
        worker = asyncio.create_task(background.carry_out((await records())[1].pk))
        await asyncio.sleep(0.1)
        assert (await status())["status"] == "queued"
        assert (await records())[1].owner != ""
        fakes.gate().open()
        assert (await foreground).status_code == 200
        await worker
    assert (await status())["response"] == "two"


@pytest.mark.parametrize("error", ["target", "endpoint", "input", "session"])
async def test_what_a_worker_cannot_run_ends_as_failed(error, caplog):
    await ask(session_id="s1")
    pk = (await the_record()).pk
    settings = endpoint()
    expected = ("failed", "invocation_failed", 500)
    if error == "target":
        settings = endpoint(TARGET="tests.fakes.build_broken")
    elif error == "endpoint":
        settings = {"other": settings["default"]}
    elif error == "input":
        await change(input="{}")
    else:
        await database.run(lambda: SessionRecord.objects.all().delete())
        expected = ("interrupted", "interrupted", 409)
    with override_settings(INVOCATIONS=settings):
        await background.carry_out(pk)
    body = await status()
    assert (body["status"], body["error"]["code"], body["error"]["status"]) == expected
    assert (await the_record()).input == ""
    assert "ping" not in caplog.text


async def test_a_database_that_is_away_for_a_moment_is_waited_for(monkeypatch):
    await ask()
    pk = (await the_record()).pk
    take, failures = handover.take, [OperationalError("away"), OperationalError("away")]

    async def flaky(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await take(*args)

    monkeypatch.setattr(background, "_TAKE_PAUSES_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(handover, "take", flaky)
    await background.carry_out(pk)
    assert (await status())["response"] == "ping"


async def test_a_cancelled_wait_interrupts_the_run():
    fakes.script(["one ", fakes.gate(), "two"])
    with override_settings(INVOCATIONS=endpoint(TARGET="tests.fakes.build_scripted")):
        await ask(session_id="s1")
        worker = asyncio.create_task(background.carry_out((await the_record()).pk))
        await fakes.gate().wait_reached()
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert (await status())["status"] == "interrupted"
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    (session,) = await rows(SessionRecord.objects.all)
    assert (session.claimed_by, session.version) == (None, 0)


async def test_the_input_of_a_workflow_is_fitted_where_it_runs():
    order = {"item": "tea", "quantity": 2}
    with override_settings(INVOCATIONS=endpoint(TARGET="tests.workflow_fakes.build_orders")):
        response = await post({"input": order, "background": True}, headers={"x-agent-invocation-id": "i1"})
        assert response.status_code == 202
        record = await the_record()
        assert json.loads(record.input)["input"] == {"value": order}
        await background.carry_out(record.pk)
    assert fakes.notes == [workflow_fakes.Order("tea", 2)]
    assert (await status())["status"] == "succeeded"


async def test_the_input_of_a_workflow_is_refused_before_it_is_handed_over():
    with override_settings(INVOCATIONS=endpoint(TARGET="tests.workflow_fakes.build_orders")):
        response = await post({"input": {"unknown": 1}, "background": True})
    assert response.status_code == 422
    assert (await records(), tasks_fakes.enqueued) == ([], [])


async def test_a_worker_answers_what_is_pending_and_consumes_it():
    types = ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]
    with override_settings(INVOCATIONS=endpoint(TARGET="tests.workflow_fakes.build_asking", CHECKPOINT_TYPES=types)):
        asked = await post({"message": "tea", "session_id": "s1"})
        (pending,) = json.loads(asked.content)["pending"]
        refused = await post({"responses": {"other": True}, "session_id": "s1", "background": True})
        assert (refused.status_code, tasks_fakes.enqueued) == (422, [])
        body = {
            "responses": {pending["request_id"]: {"approved": True, "by": "alice"}},
            "session_id": "s1",
            "background": True,
        }
        answered = await post(body, headers={"x-agent-invocation-id": "i2"})
        assert answered.status_code == 202, answered.content
        assert await pending_requests() == 1
        await background.carry_out((await records())[-1].pk)
        assert (await status("i2"))["status"] == "succeeded"
        assert await pending_requests() == 0


async def pending_requests() -> int:
    return len(await rows(lambda: PendingRecord.objects.filter(closed_at=None)))


# The loop of a worker process


def test_all_runs_of_a_worker_share_one_loop():
    worker = background.WorkerLoop()
    loops: list[Any] = []

    async def note() -> None:
        loops.append((asyncio.get_running_loop(), threading.current_thread().name))

    worker.run(note())
    worker.run(note())
    worker.stop()
    assert loops[0] == loops[1]
    assert loops[0][1] == "invocations-worker"


def test_an_exception_of_the_run_reaches_the_worker_and_the_loop_goes_on():
    worker = background.WorkerLoop()

    async def fail() -> None:
        raise OperationalError("away")

    async def succeed() -> None:
        return None

    with pytest.raises(OperationalError, match="away"):
        worker.run(fail())
    worker.run(succeed())
    worker.stop()


def test_a_worker_leaves_its_targets_at_its_end():
    worker = background.WorkerLoop()

    async def resolve() -> None:
        await targets.resolve(conf.get_endpoint("default"))

    with override_settings(INVOCATIONS=endpoint(TARGET="tests.fakes.build_managed")):
        worker.run(resolve())
        worker.stop()
    assert fakes.managed_noted() == ["enter", "leave"]


# What lies in the record meanwhile


def taken(text: str) -> handover.Taken:
    return handover.Taken(1, Scope("default"), None, "i1", "channel", "f", "c", None, text, timezone.now())


def test_a_parcel_comes_back_as_it_was():
    keys = RequestKeys(IsolationKeys("alice", None), "bob", "call-1")
    message = Message("user", ["pïng\ud800"], message_id="m1", additional_properties={"hosting": {"a": 1}})
    invocation = Invocation(
        id="i1",
        endpoint="default",
        dialect="channel",
        input=[message],
        session_id="s1",
        session_mode="required",
        stream=True,
        background=True,
        options={"stop": ["a"]},
        metadata={"k": None},
        delivery=("mail", "log"),
    )
    text = parcel.pack(invocation, keys)
    assert text.isascii()
    back, keys_back = parcel.unpack(taken(text))
    assert keys_back == keys
    assert [item.to_dict() for item in back.input] == [message.to_dict()]
    assert dataclasses.replace(back, input=None) == dataclasses.replace(invocation, input=None)


@pytest.mark.parametrize("value", [{"topic": "x"}, ["a", 1], "text", None, 5])
def test_the_input_of_a_workflow_comes_back_as_it_was(value):
    text = parcel.pack(Invocation("i1", "default", "channel", input=value, responses={"r": True}), RequestKeys())
    back, _ = parcel.unpack(taken(text))
    assert (back.input, back.responses) == (value, {"r": True})


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_value_that_json_does_not_have_is_refused(value):
    with pytest.raises(TargetFailed) as caught:
        parcel.pack(Invocation("i1", "default", "channel", options={"x": value}), RequestKeys())
    assert str(caught.value.__cause__).startswith("an invocation for a worker holds what JSON does not have: ")
