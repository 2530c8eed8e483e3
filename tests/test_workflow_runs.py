"""Runs of workflows: outputs as text and as frames, hooks, failures, time and cancelling."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
from decimal import Decimal
from typing import Any

import pytest
from agent_framework import AgentResponse, Content, Message, ResponseStream, WorkflowEvent
from pydantic import BaseModel

from invocations_app.isolation import IsolationKeys
from invocations_app.runs import workflow as workflow_runs
from tests import fakes
from tests.client import endpoint, post, records
from tests.durable import ask, body_of, cancel, events_of, status, until_idle
from tests.workflow_fakes import Address, Opaque, Order

pytestmark = pytest.mark.django_db(transaction=True)

FAKES = "tests.workflow_fakes."
PLATFORM = "/invocations?agent_session_id=s1"


def use(settings: Any, name: str, **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=FAKES + name, **keys)


def frame(data: Any, executor_id: str = "giving") -> dict[str, Any]:
    return {"type": "output", "data": data, "executor_id": executor_id}


async def platform(body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the events of a stream of the platform dialect."""
    content = (await body_of(await post({**body, "stream": True}, PLATFORM))).decode()
    events = [event.split("\n") for event in content.split("\n\n")[:-1]]
    return [(event.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for event, data in events]


# Outputs.

CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
CIRCLE_OF_KEYS: dict[str, Any] = {}
CIRCLE_OF_KEYS["self"] = CIRCLE_OF_KEYS


class Keyed(BaseModel):
    counts: dict[int, int]


class Circular:
    """Gives itself when it is asked for its JSON, or raises."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def to_dict(self) -> dict[str, Any]:
        if self.broken:
            raise RuntimeError("no JSON today")
        return {"self": self}


async def test_the_channel_answers_and_streams_the_texts(settings):
    use(settings, "build_giving")
    fakes.switches["outputs"] = ["hel", "", "lo\n", Message("assistant", ["!"])]
    assert (await post({"message": "x"})).content == b'{"response":"hello\\n!","session_id":null}'
    streamed = await body_of(await post({"message": "x", "stream": True}))
    assert streamed == b"data: hel\n\ndata: lo\ndata: \n\ndata: !\n\ndata: [DONE]\n\n"


async def test_the_platform_answers_and_streams_frames(settings):
    use(settings, "build_giving")
    fakes.switches["outputs"] = ["hel", 5]
    assert (await post({"input": "x"}, PLATFORM)).content == (
        b'{"output":[{"type":"output","data":"hel","executor_id":"giving"},'
        b'{"type":"output","data":5,"executor_id":"giving"}]}'
    )
    assert await body_of(await post({"input": "x", "stream": True}, PLATFORM)) == (
        b'event: output\ndata: {"type": "output", "data": "hel", "executor_id": "giving"}\n\n'
        b'event: output\ndata: {"type": "output", "data": 5, "executor_id": "giving"}\n\n'
        b'event: done\ndata: {"session_id": "s1"}\n\n'
    )


@pytest.mark.parametrize(
    ("output", "data", "text"),
    [
        (None, None, ""),
        (True, True, "true"),
        (1.5, 1.5, "1.5"),
        ({"a": ("é", None)}, {"a": ["é", None]}, '{"a":["é",null]}'),
        (
            Order("tea"),
            {"item": "tea", "quantity": 1, "wanted": None, "notes": []},
            '{"item":"tea","quantity":1,"wanted":null,"notes":[]}',
        ),
        (Address(street="Elm", number=5), {"street": "Elm", "number": 5}, '{"street":"Elm","number":5}'),
        ([Message("assistant", ["a", "b"])], None, "ab"),
        (AgentResponse(messages=[Message("assistant", ["a"]), Message("assistant", ["b"])]), None, "ab"),
        (Content.from_text("c"), None, "c"),
    ],
)
async def test_outputs_are_json_and_text(settings, output, data, text):
    use(settings, "build_giving")
    fakes.switches["outputs"] = [output]
    (given,) = (await post({"input": "x"}, PLATFORM)).json()["output"]
    assert given["data"] == data or (data is None and given["data"])
    assert (await post({"message": "x"})).json()["response"] == text


@pytest.mark.parametrize("path", ["/invocations/invoke", "/invocations"])
@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (Opaque(), "at $.value[1] is not JSON-serializable: unsupported type Opaque."),
        ({"a": [Opaque()]}, "at $.value[1].value[0][0] is not JSON-serializable: unsupported type Opaque."),
        (Order(Opaque()), "at $.value[1].serialized.value[0] is not JSON-serializable: unsupported type Opaque."),
        (float("nan"), "at $.value[1] is not JSON-serializable: number must be finite."),
        ({1: 2}, "at $.value[1] is not JSON-serializable: mapping keys must be strings, found int."),
        (
            Keyed(counts={1: 2}),
            "at $.value[1].model.value[0] is not JSON-serializable: mapping keys must be strings, found int.",
        ),
        (Decimal(1), "at $.value[1] is not JSON-serializable: unsupported type Decimal."),
        (Order, "at $.value[1] is not JSON-serializable: unsupported type type."),
        (CIRCLE, "at $.value[1][0] is not JSON-serializable: circular sequence."),
        ({"a": CIRCLE_OF_KEYS}, "at $.value[1].value[0].value[0] is not JSON-serializable: circular mapping."),
        (Circular(), "at $.value[1].serialized.value[0] is not JSON-serializable: circular serialized value."),
        ("\ud800", "type str is not JSON-serializable."),
        ({"\ud800": 1}, "type dict is not JSON-serializable."),
        (functools.reduce(lambda inner, _: [inner], range(101), 1), "type list is not JSON-serializable."),
        (Circular(broken=True), "type Circular is not JSON-serializable."),
    ],
)
async def test_an_output_that_is_no_json_is_named_with_its_place(settings, path, output, problem):
    use(settings, "build_giving")
    fakes.switches["outputs"] = [output]
    text = f"Workflow output {problem}"
    response = await post({"input": "x"}, path)
    assert (response.status_code, response.json()) == (500, {"error": text})
    (record,) = await records()
    assert (record.status, record.error_code, record.error_status) == ("failed", "invalid_workflow_output", 500)


async def test_an_output_that_is_no_json_ends_a_stream(settings):
    use(settings, "build_giving")
    fakes.switches["outputs"] = ["hel", Opaque()]
    text = "Workflow output at $.value[1] is not JSON-serializable: unsupported type Opaque."
    assert (await platform({"input": "x"}))[1:] == [
        ("error", {"message": text, "code": "invalid_workflow_output", "status": 500})
    ]
    content = await body_of(await post({"message": "x", "stream": True}))
    assert content == f"data: hel\n\nevent: error\ndata: {text}\n\n".encode()


async def test_an_agent_inside_gives_the_same_text_plain_and_streamed(settings):
    use(settings, "build_speaking")
    fakes.script(["hel", "lo", fakes.usage(3, 4)])
    plain = await ask("i1", {"message": "x"})
    assert plain.content == b'{"response":"hello","session_id":null}'
    assert await body_of(await ask("i2", {"message": "x", "stream": True})) == (
        b"data: hel\n\ndata: lo\n\ndata: [DONE]\n\n"
    )
    for invocation_id in ("i1", "i2"):
        stored = await status(invocation_id)
        assert stored["usage"] == {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
        assert stored["response"] == "hello"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("build_sequential", "hello"),
        ("build_concurrent", "hellohello"),
        ("build_group_chat", "The group chat has reached the maximum number of rounds."),
    ],
)
async def test_orchestrations_answer_turn_after_turn(settings, name, said):
    use(settings, name)
    fakes.script(["hel", "lo"])
    for _ in range(2):
        body = {"message": "x", "session_id": "s1"}
        assert (await post(body)).json() == {"response": said, "session_id": "s1"}
        content = await body_of(await post({**body, "stream": True}))
        assert content.replace(b"data: ", b"").replace(b"\n\n", b"") == said.encode() + b"[DONE]"


async def test_the_status_has_the_frames_too(settings):
    use(settings, "build_giving")
    fakes.switches["outputs"] = ["a", 1]
    await ask("i1", {"message": "x"})
    stored = await status("i1")
    assert list(stored)[:5] == ["invocation_id", "status", "session_id", "response", "output"]
    assert (stored["response"], stored["output"]) == ("a1", [frame("a"), frame(1)])


async def test_a_plain_run_is_replayed_as_its_frames(settings):
    use(settings, "build_giving")
    fakes.switches["outputs"] = ["a", 1]
    headers = {"x-agent-invocation-id": "i1"}
    await post({"input": "x"}, PLATFORM, headers=headers)
    replayed = await body_of(await post({"input": "x", "stream": True}, PLATFORM, headers=headers))
    assert replayed == (
        b'event: output\ndata: {"type": "output", "data": "a", "executor_id": "giving"}\n\n'
        b'event: output\ndata: {"type": "output", "data": 1, "executor_id": "giving"}\n\n'
        b'event: done\ndata: {"session_id": "s1"}\n\n'
    )
    assert b"id: 1\nevent: output" in await events_of("i1")
    assert len(await records()) == 1


async def test_tools_and_executors_see_the_isolation_keys(settings):
    use(settings, "build_counting", TRUST_ISOLATION_HEADERS=True)
    await post({"message": "keys"}, headers={"x-agent-user-isolation-key": "alice"})
    assert fakes.notes == [IsolationKeys("alice", None)]


# Options.


async def test_options_are_dropped_or_refused(settings, caplog):
    use(settings, "build_counting")
    assert (await post({"message": "x", "options": {"seed": 1}})).status_code == 200
    assert "takes no run options" in caplog.text
    use(settings, "build_counting", UNSUPPORTED_OPTIONS="error")
    response = await post({"message": "x", "options": {"seed": 1}}, "/invocations")
    assert (response.status_code, response.content) == (
        400,
        b'{"error":"The hosted agent does not accept caller runtime options."}',
    )


# Hooks.


def shout(result: Any, *, invocation: Any) -> Any:
    fakes.notes.append(type(result).__name__)
    for event in result:
        if event.type == "output":
            event.data = event.data.upper()
    return result


def shout_update(update: Any, *, invocation: Any) -> Any:
    fakes.notes.append(update.type)
    if update.type == "output":
        if update.data == "drop":
            return None
        update.data = update.data.upper()
    return update


async def test_the_response_hook_sees_the_whole_result(settings):
    use(settings, "build_giving", RESPONSE_HOOK=f"{__name__}.shout")
    fakes.switches["outputs"] = ["hel", "lo"]
    assert (await post({"message": "x"})).content == b'{"response":"HELLO","session_id":null}'
    assert fakes.notes == ["WorkflowRunResult"]


async def test_the_transform_hook_sees_every_update_and_may_drop_it(settings):
    use(settings, "build_giving", STREAM_TRANSFORM_HOOK=f"{__name__}.shout_update")
    fakes.switches["outputs"] = ["hel", "drop", "lo"]
    content = await body_of(await post({"message": "x", "stream": True}))
    assert content == b"data: HEL\n\ndata: LO\n\ndata: [DONE]\n\n"
    assert fakes.notes.count("output") == 3
    assert {"started", "status", "executor_invoked", "superstep_completed"} <= set(fakes.notes)


async def test_a_hook_that_fails_fails_the_workflow(settings):
    use(settings, "build_giving", RESPONSE_HOOK=f"{__name__}.shout")
    fakes.switches["outputs"] = [5]
    response = await post({"message": "x"})
    assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')


async def test_what_a_hook_changes_never_reaches_the_workflow():
    event: Any = WorkflowEvent("output", data=[{"a": 1}], executor_id="x")
    before = copy.deepcopy(event.data)
    copied = workflow_runs.hooks.detached(event)
    copied.data[0]["a"] = 2
    assert event.data == before
    assert (copied.type, copied.executor_id) == ("output", "x")


# Failures.


@pytest.mark.parametrize("session_id", [None, "s1"])
async def test_a_failing_executor_fails_the_invocation(settings, session_id):
    use(settings, "build_counting")
    body = {"message": "break", "session_id": session_id}
    response = await post(body)
    assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')
    content = await body_of(await post({**body, "stream": True}))
    assert content == b"event: error\ndata: Workflow invocation failed.\n\n"
    assert await platform({"input": "break"}) == [
        ("error", {"message": "Workflow invocation failed.", "code": "workflow_invocation_failed", "status": 500})
    ]
    assert {record.error_code for record in await records()} == {"workflow_invocation_failed"}


async def test_the_text_of_an_exception_is_shown_where_errors_are(settings):
    use(settings, "build_counting", EXPOSE_ERRORS=True)
    assert (await post({"message": "break"})).content == b'{"error":"the executor is broken"}'


async def test_a_run_that_outlasts_its_time_is_cancelled(settings):
    use(settings, "build_counting", RUN_TIMEOUT_SECONDS=0.05)
    response = await post({"message": "wait", "session_id": "s1"})
    assert (response.status_code, response.content) == (504, b'{"error":"the run timed out"}')
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    use(settings, "build_counting")
    assert (await post({"message": "x", "session_id": "s1"})).json()["response"] == "x 1"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_run_stops_its_executors(settings, stream):
    use(settings, "build_counting")
    answer = asyncio.ensure_future(ask("i1", {"message": "wait", "session_id": "s1", "stream": stream}))
    await fakes.gate().wait_reached()
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    response = await answer
    if stream:
        assert await body_of(response) == b"event: error\ndata: this invocation was cancelled\n\n"
    else:
        assert (response.status_code, response.content) == (409, b'{"error":"this invocation was cancelled"}')
    await until_idle()
    assert (await post({"message": "x", "session_id": "s1"})).json()["response"] == "x 1"


# Cleaning up.


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (RuntimeError("Inner stream not available"), "WARNING"),
        (RuntimeError("Event loop is closed"), "WARNING"),
        (RuntimeError("out of order"), "ERROR"),
        (ValueError("Event loop is closed"), "ERROR"),
    ],
)
async def test_what_closing_a_finished_stream_raises_is_logged(settings, monkeypatch, caplog, error, level):
    use(settings, "build_counting")

    async def close(stream: Any) -> None:
        raise error

    monkeypatch.setattr(workflow_runs, "close", close)
    content = await body_of(await post({"message": "x", "stream": True}))
    assert content == b"data: x 1\n\ndata: [DONE]\n\n"
    (record,) = [item for item in caplog.records if "Cleaning up the finished stream" in item.getMessage()]
    assert (record.levelname, record.exc_info and record.exc_info[1]) == (level, error)


@pytest.mark.parametrize(
    ("error", "level"), [(RuntimeError("Inner stream not available"), "WARNING"), (KeyError("x"), "ERROR")]
)
async def test_no_end_is_sent_after_a_failed_finalize(settings, monkeypatch, caplog, error, level):
    use(settings, "build_counting")

    async def fail(stream: Any) -> None:
        raise error

    monkeypatch.setattr(ResponseStream, "get_final_response", fail)
    content = await body_of(await post({"message": "x", "stream": True, "session_id": "s1"}))
    assert content == b"data: x 1\n\nevent: error\ndata: Workflow invocation failed.\n\n"
    (record,) = [item for item in caplog.records if "Cleaning up the finished stream" in item.getMessage()]
    assert record.levelname == level
    monkeypatch.undo()
