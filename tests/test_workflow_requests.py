"""People in the loop of a workflow: what it asks, what answers it, exactly once, in both dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agent_framework import Message

from invocations_app.models import CheckpointRecord, PendingRecord
from tests import fakes
from tests.client import endpoint, post, records, rows
from tests.durable import ask, body_of, cancel, status
from tests.workflow_fakes import Approval

pytestmark = pytest.mark.django_db(transaction=True)

FAKES = "tests.workflow_fakes."
TYPES = ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]
PLATFORM = "/invocations?agent_session_id=s1"
CHANNEL = "/invocations/invoke"
MISMATCH = {
    CHANNEL: (422, b'{"error":"\'responses\' must answer exactly the pending requests"}'),
    PLATFORM: (400, b'{"error":"Workflow replies must answer exactly the complete pending request batch."}'),
}


@pytest.fixture(autouse=True)
def _asking(settings: Any) -> None:
    use(settings, "build_asking")


def use(settings: Any, name: str, **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=FAKES + name, CHECKPOINT_TYPES=TYPES, **keys)


def told(text: str, number: int) -> dict[str, Any]:
    return {
        "request_id": f"{text}-{number}",
        "type": "request_info",
        "data": {"text": text},
        "source_executor_id": "asking",
    }


def asked(text: str, number: int) -> dict[str, Any]:
    request_id = f"{text}-{number}"
    return {
        "type": "request_info",
        "data": {"text": text},
        "request_id": request_id,
        "source_executor_id": "asking",
    }


def turn(path: str, **body: Any) -> Any:
    return post({"session_id": "s1", **body}, path)


async def checkpoints() -> list[int]:
    return [row.pk for row in await rows(lambda: CheckpointRecord.objects.order_by("pk"))]


async def test_the_channel_tells_what_is_pending(settings):
    response = await turn(CHANNEL, message="a")
    assert response.json() == {"response": "asking a, ", "session_id": "s1", "pending": [told("a", 1)]}
    response = await turn(CHANNEL, responses={"a-1": {"approved": True, "by": "me"}})
    assert response.content == b'{"response":"a: yes of 1","session_id":"s1"}'
    assert fakes.notes == [("a", Approval(approved=True, by="me"))]
    assert [record.status for record in await records()] == ["succeeded", "succeeded"]
    # The next turn takes new input again, and goes on from there.
    response = await turn(CHANNEL, message="b")
    assert response.json()["pending"] == [told("b", 2)]


async def test_the_channel_streams_what_is_pending():
    content = await body_of(await turn(CHANNEL, message="a+b", stream=True))
    assert content == (
        b"data: asking a+b, \n\n"
        b'event: request_info\ndata: {"request_id":"a-1","type":"request_info","data":{"text":"a"},'
        b'"source_executor_id":"asking"}\n\n'
        b'event: request_info\ndata: {"request_id":"b-2","type":"request_info","data":{"text":"b"},'
        b'"source_executor_id":"asking"}\n\n'
        b"data: [DONE]\n\n"
    )
    content = await body_of(
        await turn(CHANNEL, responses={"b-2": {"approved": False}, "a-1": {"approved": True}}, stream=True)
    )
    assert sorted(content.split(b"\n\n")) == [b"", b"data: [DONE]", b"data: a: yes of 2", b"data: b: no of 2"]


async def test_the_platform_has_frames_and_no_pending_key():
    assert (await turn(PLATFORM, input="a")).json() == {
        "output": [{"type": "output", "data": "asking a, ", "executor_id": "asking"}, asked("a", 1)]
    }
    assert (await turn(PLATFORM, responses={"a-1": {"approved": True}})).json() == {
        "output": [{"type": "output", "data": "a: yes of 1", "executor_id": "asking"}]
    }
    content = await body_of(await turn(PLATFORM, input="b", stream=True))
    assert content.endswith(
        b"event: request_info\ndata: " + json.dumps(asked("b", 2)).encode() + b"\n\n"
        b'event: done\ndata: {"session_id": "s1"}\n\n'
    )


@pytest.mark.parametrize("path", [CHANNEL, PLATFORM])
@pytest.mark.parametrize(
    "replies",
    [
        {},
        {"a-1": {"approved": True}},
        {"a-1": {"approved": True}, "b-2": {"approved": True}, "c-3": {"approved": True}},
        {"a-1": {"approved": True}, "b-3": {"approved": True}},
        {"a-1": {"approved": True}, "b-2": True},
        {"a-1": {"approved": True}, "b-2": None},
        {"a-1": {"approved": True}, "b-2": {"approved": "true"}},
        {"a-1": {"approved": True}, "b-2": {}},
    ],
)
async def test_replies_that_do_not_fit_change_nothing(path, replies):
    await turn(path, message="a+b")
    before = await checkpoints()
    response = await turn(path, responses=replies)
    assert (response.status_code, response.content) == MISMATCH[path]
    assert fakes.notes == []
    assert await checkpoints() == before
    assert [record.status for record in await records()] == ["awaiting_input"]
    good = {"a-1": {"approved": True}, "b-2": {"approved": True}}
    assert (await turn(path, responses=good)).status_code == 200
    again = await turn(path, responses=good)
    assert (again.status_code, again.content) == MISMATCH[path]
    assert len(fakes.notes) == 2


async def test_new_input_while_something_is_pending_is_refused():
    await ask("i1", {"message": "a", "session_id": "s1"})
    response = await turn(CHANNEL, message="b")
    assert (response.status_code, response.json()) == (
        409,
        {"error": "the session awaits responses", "invocation_id": "i1", "pending": [told("a", 1)]},
    )
    response = await turn(PLATFORM, input="b")
    assert (response.status_code, response.content) == (
        400,
        b'{"error":"This workflow is awaiting replies; do not replace them with new input."}',
    )


async def test_without_a_session_nothing_can_be_asked():
    response = await post({"message": "a"})
    assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')


async def test_an_answer_may_lead_to_another_question():
    await turn(CHANNEL, message="a")
    response = await turn(CHANNEL, responses={"a-1": {"approved": True, "by": "again"}})
    assert response.json() == {"response": "", "session_id": "s1", "pending": [told("again", 2)]}
    assert (await turn(CHANNEL, responses={"again-2": 1})).status_code == 422
    response = await turn(CHANNEL, responses={"again-2": True})
    assert response.json()["response"] == "again: True of 2"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failed_answer_is_consumed_and_the_session_goes_back(settings, stream):
    use(settings, "build_asking")
    await turn(CHANNEL, message="a")
    assert (await turn(CHANNEL, responses={"a-1": {"approved": True}})).status_code == 200
    before = await checkpoints()
    await turn(CHANNEL, message="b")
    response = await turn(CHANNEL, responses={"b-2": {"approved": True, "by": "break"}}, stream=stream)
    content = await body_of(response) if stream else response.content
    assert b"Workflow invocation failed." in content
    assert await checkpoints() == before
    assert [record.status for record in await records()] == ["succeeded", "succeeded", "succeeded", "failed"]
    again = await turn(CHANNEL, responses={"b-2": {"approved": True}})
    assert (again.status_code, again.content) == MISMATCH[CHANNEL]
    # As if it had never asked b: the second question is the second one again.
    assert (await turn(CHANNEL, message="c")).json()["pending"] == [told("c", 2)]


async def test_a_failed_answer_to_the_first_turn_lets_the_session_start_afresh():
    await turn(CHANNEL, message="a")
    assert (await turn(CHANNEL, responses={"a-1": {"approved": True, "by": "break"}})).status_code == 500
    assert await checkpoints() == []
    assert (await turn(CHANNEL, message="b")).json()["pending"] == [told("b", 1)]


async def test_cancelling_what_awaits_input_is_the_way_out():
    await ask("i1", {"message": "a", "session_id": "s1"})
    assert (await status("i1"))["output"][1] == asked("a", 1)
    assert (await cancel("i1")).json()["status"] == "cancelled"
    assert (await turn(CHANNEL, message="b")).json()["pending"] == [told("b", 1)]


def drop(result: Any, *, invocation: Any) -> Any:
    result.clear()
    return result


def drop_update(update: Any, *, invocation: Any) -> Any:
    fakes.notes.append(update.type)


async def test_hooks_see_what_is_asked_and_cannot_take_it_back(settings):
    use(settings, "build_asking", RESPONSE_HOOK=f"{__name__}.drop", STREAM_TRANSFORM_HOOK=f"{__name__}.drop_update")
    assert (await turn(CHANNEL, message="a")).json() == {"response": "", "session_id": "s1", "pending": [told("a", 1)]}
    response = await post({"input": "a"}, "/invocations?agent_session_id=s3")
    assert response.json() == {"output": [asked("a", 1)]}
    body = {"message": "a", "session_id": "s2", "stream": True}
    content = await body_of(await post(body))
    assert content.startswith(b"event: request_info\n")
    assert "request_info" in fakes.notes


async def test_a_response_type_that_is_allowed_no_more_is_a_conflict(settings):
    await turn(CHANNEL, message="a")
    settings.INVOCATIONS = endpoint(TARGET=FAKES + "build_asking")
    response = await turn(CHANNEL, responses={"a-1": {"approved": True}})
    assert (response.status_code, response.content) == (
        409,
        b'{"error":"the stored workflow state cannot be used"}',
    )
    assert [row.closed_at for row in await rows(PendingRecord.objects.all)] == [None]


# Approvals of an agent inside.


def play_delete() -> None:
    fakes.script([fakes.call("delete", {"name": "x"})], ["gone"])


async def approval_of(response: Any) -> str:
    (pending,) = response.json()["pending"]
    assert {key: pending[key] for key in ("type", "tool", "arguments")} == {
        "type": "approval",
        "tool": "delete",
        "arguments": {"name": "x"},
    }
    assert list(pending) == ["request_id", "type", "tool", "arguments"]
    request_id: str = pending["request_id"]
    return request_id


@pytest.mark.parametrize("reply", [True, {"approved": True, "reason": "fine"}])
async def test_an_approved_tool_of_an_agent_inside_runs_once(settings, reply):
    use(settings, "build_deleting")
    play_delete()
    request_id = await approval_of(await turn(CHANNEL, message="clean"))
    assert fakes.notes == []
    response = await turn(CHANNEL, responses={request_id: reply})
    assert response.content == b'{"response":"gone","session_id":"s1"}'
    assert fakes.notes == [("deleted", "x")]


async def test_a_refused_tool_does_not_run_and_the_model_is_told(settings):
    use(settings, "build_deleting")
    play_delete()
    request_id = await approval_of(await turn(CHANNEL, message="clean"))
    assert (await turn(CHANNEL, responses={request_id: False})).json()["response"] == "gone"
    assert fakes.notes == []
    results = [content for message in fakes.calls[1].messages for content in message.contents]
    assert "function_result" in [content.type for content in results]


@pytest.mark.parametrize("reply", ["yes", 1, {"approved": 1}, {"approved": True, "extra": 1}])
async def test_an_approval_is_a_boolean(settings, reply):
    use(settings, "build_deleting")
    play_delete()
    request_id = await approval_of(await turn(CHANNEL, message="clean"))
    assert (await turn(CHANNEL, responses={request_id: reply})).status_code == 422
    assert fakes.notes == []


async def test_approvals_on_the_platform_are_frames_with_the_whole_object(settings):
    use(settings, "build_deleting")
    play_delete()
    content = await body_of(await turn(PLATFORM, input="clean", stream=True))
    # The call itself came before, as a piece of the agent's output.
    frame = json.loads(content.split(b"\n\n")[1].removeprefix(b"event: request_info\ndata: "))
    assert (frame["type"], frame["source_executor_id"], frame["data"]["type"]) == (
        "request_info",
        "cleaner",
        "approval",
    )
    assert frame["data"]["request_id"] == frame["request_id"]
    response = await turn(PLATFORM, responses={frame["request_id"]: True})
    assert response.json()["output"][0]["executor_id"] == "cleaner"
    assert fakes.notes == [("deleted", "x")]


async def test_a_tool_that_is_gone_is_not_answered(settings):
    use(settings, "build_deleting")
    play_delete()
    request_id = await approval_of(await turn(CHANNEL, message="clean"))
    fakes.switches["tools"] = []
    response = await turn(CHANNEL, responses={request_id: True})
    assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')
    assert len(fakes.calls) == 1


# Orchestrations.


async def test_a_handoff_asks_for_messages_and_ends_with_none(settings):
    use(settings, "build_handoff")
    fakes.script(["what else?"])
    response = await turn(CHANNEL, message="hello")
    (pending,) = response.json()["pending"]
    assert (pending["type"], response.json()["response"]) == ("request_info", "what else?")
    response = await turn(CHANNEL, responses={pending["request_id"]: "more"})
    (pending,) = response.json()["pending"]
    assert isinstance(fakes.calls[1].messages[-1], Message)
    assert fakes.calls[1].texts[-1] == ("user", "more")
    ended = await turn(CHANNEL, responses={pending["request_id"]: []})
    assert ended.status_code == 200
    assert "pending" not in ended.json()
