"""Hooks: what they may change, what they may return, and that errors name them."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
from agent_framework import AgentResponse, AgentResponseUpdate, Content, Message

from invocations_app import hooks
from invocations_app.conf import EndpointSettings
from invocations_app.envelope import Invocation
from invocations_app.exceptions import InvocationRejected, SessionBusy, TargetFailed
from invocations_app.isolation import IsolationKeys, get_current_isolation_keys, set_current_isolation_keys

INVOCATION = Invocation(id="i", endpoint="default", dialect="channel", input=[Message("user", ["hi"])])
seen: dict[str, Any] = {}


def endpoint(**names: str) -> EndpointSettings:
    paths = {kind: f"{__name__}.{name}" for kind, name in names.items()}
    return EndpointSettings(alias="default", target="x.y", **paths)


async def run(name: str, invocation: Invocation = INVOCATION) -> Invocation:
    return await hooks.apply_run_hook(endpoint(run_hook=name), invocation, target="agent", request="request")


async def respond(name: str, result: Any) -> Any:
    return await hooks.apply_response_hook(endpoint(response_hook=name), result, invocation=INVOCATION)


async def transform(name: str, update: Any) -> Any:
    return await hooks.apply_stream_transform_hook(endpoint(stream_transform_hook=name), update, invocation=INVOCATION)


# Run hooks.


def sync_run(invocation, *, target, request):
    seen.update(target=target, request=request, thread=threading.get_ident(), keys=get_current_isolation_keys())
    return dataclasses.replace(invocation, session_id="from-sync", stream=True)


async def async_run(invocation, *, target, request):
    seen.update(target=target, request=request, thread=threading.get_ident())
    return dataclasses.replace(invocation, session_id="from-async")


def run_returning_coroutine(invocation, *, target, request):
    return async_run(invocation, target=target, request=request)


class CallableRun:
    async def __call__(self, invocation, *, target, request):
        return dataclasses.replace(invocation, session_id="from-callable")


callable_run = CallableRun()


def run_none(invocation, **kwargs):
    return None


def run_other_id(invocation, **kwargs):
    return dataclasses.replace(invocation, id="other")


def run_other_endpoint(invocation, **kwargs):
    return dataclasses.replace(invocation, endpoint="other")


def run_other_dialect(invocation, **kwargs):
    return dataclasses.replace(invocation, dialect="platform")


def run_other_background(invocation, **kwargs):
    return dataclasses.replace(invocation, background=True)


def run_numeric_session(invocation, **kwargs):
    return dataclasses.replace(invocation, session_id=5)


def run_unknown_mode(invocation, **kwargs):
    return dataclasses.replace(invocation, session_mode="never")


def run_stream_text(invocation, **kwargs):
    return dataclasses.replace(invocation, stream="yes")


def run_options_list(invocation, **kwargs):
    return dataclasses.replace(invocation, options=[])


def run_rejects(invocation, **kwargs):
    raise InvocationRejected("not today", 451)


async def run_rejects_async(invocation, **kwargs):
    raise InvocationRejected("not today")


def run_rejects_with_200(invocation, **kwargs):
    raise InvocationRejected("fine", 200)


def run_raises(invocation, **kwargs):
    raise KeyError("secret")


def run_raises_other_error(invocation, **kwargs):
    raise SessionBusy


async def test_without_hooks_everything_passes_as_it_is():
    plain, result = endpoint(), AgentResponse(messages=[])
    assert await hooks.apply_run_hook(plain, INVOCATION, target=None, request=None) is INVOCATION
    assert await hooks.apply_response_hook(plain, result, invocation=INVOCATION) is result
    assert await hooks.apply_stream_transform_hook(plain, result, invocation=INVOCATION) is result


async def test_a_sync_run_hook_runs_in_a_thread_with_the_context():
    token = set_current_isolation_keys(IsolationKeys("u"))
    changed = await run("sync_run")
    assert (changed.session_id, changed.stream) == ("from-sync", True)
    assert (seen["target"], seen["request"], seen["keys"]) == ("agent", "request", IsolationKeys("u"))
    assert seen["thread"] != threading.get_ident()
    token.var.reset(token)


async def test_an_async_run_hook_runs_in_the_loop():
    assert (await run("async_run")).session_id == "from-async"
    assert seen["thread"] == threading.get_ident()


@pytest.mark.parametrize(
    ("name", "session_id"), [("run_returning_coroutine", "from-async"), ("callable_run", "from-callable")]
)
async def test_a_run_hook_may_be_any_callable(name, session_id):
    assert (await run(name)).session_id == session_id


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("run_none", "returned NoneType, not Invocation"),
        ("run_other_id", "changed 'id', which a run hook may not"),
        ("run_other_endpoint", "changed 'endpoint', which a run hook may not"),
        ("run_other_dialect", "changed 'dialect', which a run hook may not"),
        ("run_other_background", "changed 'background', which a run hook may not"),
        (
            "run_numeric_session",
            "set 'session_id' to something else than None or a string of at most 256 characters",
        ),
        ("run_unknown_mode", "set 'session_mode' to 'never', not one of auto, required, disabled"),
        ("run_stream_text", "set 'stream' to str, not bool"),
        ("run_options_list", "set 'options' to list, not a mapping"),
    ],
)
async def test_a_wrong_return_of_a_run_hook_is_an_error_that_names_it(name, problem):
    with pytest.raises(TargetFailed) as caught:
        await run(name)
    assert caught.value.text == "Agent invocation failed."
    assert isinstance(caught.value.__cause__, TypeError)
    assert str(caught.value.__cause__) == f"run hook 'tests.test_hooks.{name}' {problem}"


async def test_a_run_hook_may_refuse():
    with pytest.raises(InvocationRejected) as caught:
        await run("run_rejects")
    assert (caught.value.text, caught.value.status) == ("not today", 451)
    with pytest.raises(InvocationRejected) as caught:
        await run("run_rejects_async")
    assert (caught.value.text, caught.value.status) == ("not today", 422)


async def test_a_refusal_with_a_status_of_success_is_an_error_that_names_the_hook():
    with pytest.raises(TargetFailed) as caught:
        await run("run_rejects_with_200")
    assert str(caught.value.__cause__) == (
        "run hook 'tests.test_hooks.run_rejects_with_200' refused with the status 200"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run_raises", "raised KeyError: 'secret'"),
        ("run_raises_other_error", "raised SessionBusy: the session is busy"),
        (
            "run_missing",
            'raised ImportError: Module "tests.test_hooks" does not define a "run_missing" attribute/class',
        ),
    ],
)
async def test_a_failing_run_hook_is_an_error_that_names_it_and_chains_the_cause(name, text):
    with pytest.raises(TargetFailed) as caught:
        await run(name)
    assert str(caught.value.__cause__) == f"run hook 'tests.test_hooks.{name}' {text}"
    assert isinstance(caught.value.__cause__.__cause__, (KeyError, SessionBusy, ImportError))


# Response hooks.


def response_shouts(result, *, invocation):
    seen["invocation"] = invocation
    for message in result.messages:
        for content in message.contents:
            content.text = content.text.upper()
            content.additional_properties["by"] = "hook"
        message.additional_properties["by"] = "hook"
        message.contents.append(Content.from_text("!"))
    result.messages.append(Message("assistant", ["more"]))
    result.additional_properties["by"] = "hook"
    result.usage_details["total_token_count"] = 0
    return result


async def response_async(result, *, invocation):
    return AgentResponse(messages=[Message("assistant", ["other"])])


def response_none(result, *, invocation):
    return None


def response_rejects(result, *, invocation):
    raise InvocationRejected("too late")


async def test_what_a_response_hook_changes_never_reaches_the_original():
    message = Message("assistant", ["hello"], raw_representation={"provider": "own"})
    result = AgentResponse(messages=[message], usage_details={"total_token_count": 7})
    before = result.to_dict()
    changed = await respond("response_shouts", result)
    assert [item.text for item in changed.messages] == ["HELLO !", "more"]
    assert changed.additional_properties == {"by": "hook"}
    assert changed.messages[0].raw_representation is message.raw_representation
    assert result.to_dict() == before
    assert (message.additional_properties, message.contents[0].additional_properties) == ({}, {})
    assert seen["invocation"] is INVOCATION


async def test_an_async_response_hook_may_return_another_result():
    assert (await respond("response_async", AgentResponse(messages=[]))).text == "other"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("response_none", "returned NoneType, not AgentResponse"),
        ("response_rejects", "raised InvocationRejected: too late"),
    ],
)
async def test_a_wrong_response_hook_is_an_error_that_names_it(name, cause):
    with pytest.raises(TargetFailed) as caught:
        await respond(name, AgentResponse(messages=[]))
    assert str(caught.value.__cause__) == f"response hook 'tests.test_hooks.{name}' {cause}"


# Stream transform hooks.


def transform_shouts(update, *, invocation):
    seen["thread"] = threading.get_ident()
    update.contents[0].text = update.contents[0].text.upper()
    return update


async def transform_drops(update, *, invocation):
    return None


def transform_text(update, *, invocation):
    return "text"


async def transform_raises(update, *, invocation):
    raise ValueError("midway")


def piece(text: str) -> AgentResponseUpdate:
    return AgentResponseUpdate(contents=[Content.from_text(text)], role="assistant")


async def test_a_transform_hook_gets_a_copy_in_the_thread_of_the_loop():
    update = piece("a")
    assert (await transform("transform_shouts", update)).text == "A"
    assert update.text == "a"
    assert seen["thread"] == threading.get_ident()


async def test_a_transform_hook_drops_an_update_with_none():
    assert await transform("transform_drops", piece("a")) is None


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("transform_text", "returned str, not AgentResponseUpdate"),
        ("transform_raises", "raised ValueError: midway"),
    ],
)
async def test_a_wrong_transform_hook_is_an_error_that_names_it(name, cause):
    with pytest.raises(TargetFailed) as caught:
        await transform(name, piece("a"))
    assert str(caught.value.__cause__) == f"stream transform hook 'tests.test_hooks.{name}' {cause}"


def test_nested_arguments_and_items_are_detached():
    call = Content.from_function_call(call_id="c", name="f", arguments={"a": {"b": [1]}})
    copied = hooks.detached(call)
    copied.arguments["a"]["b"].append(2)
    assert call.arguments == {"a": {"b": [1]}}
