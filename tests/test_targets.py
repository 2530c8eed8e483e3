"""Targets: built once a loop, entered and left in one task, refused with the fix."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from django.test import override_settings

from invocations_app import targets
from invocations_app.conf import EndpointSettings
from invocations_app.exceptions import TargetUnavailable
from invocations_app.isolation import IsolationKeys, set_current_isolation_keys
from invocations_app.targets import holder
from tests import fakes


def endpoint(target: str, **kwargs: Any) -> EndpointSettings:
    path = target if "." in target else f"tests.fakes.{target}"
    return EndpointSettings(alias="default", target=path, **kwargs)


@pytest.fixture(autouse=True)
async def _stopped():
    yield
    await targets.stop_all()


def errors_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Message of each record, and whether it has a traceback."""
    return [
        (record.getMessage(), bool(record.exc_info))
        for record in caplog.records
        if record.name.startswith("invocations_app.targets")
    ]


@pytest.mark.parametrize("factory", ["build_echo", "build_echo_async", "build_custom"])
async def test_a_target_is_built_once(factory):
    first = await targets.resolve(endpoint(factory))
    assert await targets.resolve(endpoint(factory)) is first
    assert fakes.built == [first.target]
    assert (first.kind, first.owned) == ("agent", False)


async def test_fifty_first_requests_build_once():
    found = await asyncio.gather(*(targets.resolve(endpoint("build_echo_async")) for _ in range(50)))
    assert len({id(item) for item in found}) == 1
    assert len(fakes.built) == 1


async def test_fifty_first_requests_share_one_failure(caplog):
    fakes.switches["broken"] = "no key"
    outcomes = await asyncio.gather(
        *(targets.resolve(endpoint("build_flaky")) for _ in range(50)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {TargetUnavailable}
    assert len({id(outcome) for outcome in outcomes}) == 50
    assert fakes.notes == ["build_flaky"]
    assert errors_of(caplog) == [
        ("The target of endpoint 'default' (tests.fakes.build_flaky) is not available: RuntimeError", True)
    ]


async def test_a_target_is_built_for_each_run_when_it_is_not_kept():
    fresh = endpoint("build_echo", cache_target=False)
    first, second = await targets.resolve(fresh), await targets.resolve(fresh)
    assert first.target is not second.target
    assert first.owned
    assert second.owned


@pytest.mark.parametrize("cache_target", [True, False])
async def test_an_instance_is_one_and_kept_whatever_the_settings_say(cache_target):
    named = endpoint("managed_agent", cache_target=cache_target)
    first = await targets.resolve(named)
    assert (await targets.resolve(named)).target is first.target is fakes.managed_agent
    assert not first.owned
    assert fakes.managed_noted() == ["enter"]


async def test_an_instance_that_can_be_called_is_no_factory():
    assert (await targets.resolve(endpoint(f"{__name__}.callable_agent"))).target is callable_agent


class CallableAgent(fakes.CustomAgent):
    def __call__(self) -> None:
        raise AssertionError


callable_agent = CallableAgent()


@pytest.mark.parametrize(
    ("factory", "takes_options", "takes_session"),
    [("build_echo", True, True), ("build_custom", False, True)],
)
async def test_what_run_takes_is_asked_of_its_signature(factory, takes_options, takes_session):
    resolved = await targets.resolve(endpoint(factory))
    assert (resolved.takes_options, resolved.takes_session) == (takes_options, takes_session)


async def test_changed_settings_give_another_target():
    first = await targets.resolve(endpoint("build_echo"))
    second = await targets.resolve(endpoint("build_echo", keepalive_seconds=1))
    assert first.target is not second.target


# Failures.


async def test_a_failure_is_chained_and_logged_once_with_its_traceback(caplog):
    for _ in range(3):
        with pytest.raises(TargetUnavailable) as caught:
            await targets.resolve(endpoint("build_broken"))
        assert (caught.value.text, caught.value.status) == ("The agent is not available.", 500)
        assert str(caught.value.__cause__) == "no model today"
    line = "The target of endpoint 'default' (tests.fakes.build_broken) is not available: RuntimeError"
    assert errors_of(caplog) == [(line, True), (line, False), (line, False)]


@pytest.mark.parametrize("cache_target", [True, False])
async def test_a_failing_factory_is_called_again(cache_target):
    flaky = endpoint("build_flaky", cache_target=cache_target)
    fakes.switches["broken"] = "no key"
    with pytest.raises(TargetUnavailable):
        await targets.resolve(flaky)
    fakes.switches.clear()
    assert (await targets.resolve(flaky)).target is fakes.built[0]


@pytest.mark.parametrize(
    ("path", "cause", "text"),
    [
        ("no.such.module", ModuleNotFoundError, "No module named 'no'"),
        (
            "build_nothing",
            targets.NotATarget,
            "'NoneType' object is no agent: it has no method 'run'. "
            "Name an agent, or a function without arguments, sync or async, that returns one.",
        ),
        ("number", targets.NotATarget, "'int' object is no agent: it has no method 'run'. " + targets.NotATarget.fix),
        ("workflow", targets.WorkflowInstance, "'Workflow' object is no agent. " + targets.WorkflowInstance.fix),
        (
            "build_workflow_agent",
            targets.WorkflowInstance,
            "'WorkflowAgent' object is no agent. Name a function that builds a workflow anew, executors and agents "
            "included, and gives it a name: callers cannot share one, nor what one builder builds.",
        ),
        (
            "builder",
            targets.WorkflowInstance,
            "'WorkflowBuilder' object is a builder, not an agent. " + targets.WorkflowInstance.fix,
        ),
    ],
)
async def test_what_is_no_agent_is_refused_with_the_fix(path, cause, text):
    with pytest.raises(TargetUnavailable) as caught:
        await targets.resolve(endpoint(path))
    assert type(caught.value.__cause__) is cause
    assert str(caught.value.__cause__) == text


async def test_a_cancelled_caller_does_not_take_the_others_along():
    first = asyncio.ensure_future(targets.resolve(endpoint("build_echo_async")))
    second = asyncio.ensure_future(targets.resolve(endpoint("build_echo_async")))
    await asyncio.sleep(0.001)
    first.cancel()
    assert (await second).target is fakes.built[0]
    assert first.cancelled()
    assert len(fakes.built) == 1


# Entering and leaving.


async def test_a_kept_target_is_entered_and_left_in_one_task_of_its_own():
    token = set_current_isolation_keys(IsolationKeys("first caller"))
    resolved = await targets.resolve(endpoint("build_managed"))
    token.var.reset(token)
    async with targets.entered(resolved) as target:
        assert target is resolved.target
    assert fakes.managed_noted() == ["enter"]
    await targets.stop_all()
    assert fakes.managed_noted() == ["enter", "leave"]
    (_, entering, keys), (_, leaving, reason) = fakes.notes
    assert entering is leaving is not asyncio.current_task()
    assert (keys, reason) == (None, None)
    assert entering.done()


async def test_after_stop_a_target_is_built_anew():
    first = await targets.resolve(endpoint("build_managed"))
    await targets.stop_all()
    assert (await targets.resolve(endpoint("build_managed"))).target is not first.target
    assert fakes.managed_noted() == ["enter", "leave", "enter"]


async def test_a_fresh_target_is_entered_and_left_in_the_runs_own_task():
    resolved = await targets.resolve(endpoint("build_managed", cache_target=False))
    assert fakes.managed_noted() == []
    async with targets.entered(resolved):
        assert fakes.managed_noted() == ["enter"]
    assert [note[:2] for note in fakes.notes] == [
        ("enter", asyncio.current_task()),
        ("leave", asyncio.current_task()),
    ]


async def test_a_fresh_target_is_left_when_the_run_fails_and_the_failure_stays(caplog):
    fresh = endpoint("build_managed", cache_target=False)
    resolved = await targets.resolve(fresh)

    async def run() -> None:
        async with targets.entered(resolved):
            fakes.switches["broken on leaving"] = "also broken"
            raise KeyError("run")

    with pytest.raises(KeyError, match="run"):
        await run()
    assert fakes.notes[-1][2] is KeyError
    assert errors_of(caplog) == [("The target of endpoint 'default' was not left cleanly.", True)]


async def test_a_fresh_target_is_left_when_the_run_is_cancelled():
    resolved = await targets.resolve(endpoint("build_managed", cache_target=False))

    async def run() -> None:
        async with targets.entered(resolved):
            await fakes.gate().pass_through()

    task = asyncio.ensure_future(run())
    await fakes.gate().wait_reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fakes.notes[-1] == ("leave", task, asyncio.CancelledError)


@pytest.mark.parametrize("cache_target", [True, False])
async def test_a_failure_to_enter_is_a_target_that_is_not_available_and_is_tried_again(cache_target):
    managed = endpoint("build_managed", cache_target=cache_target)
    fakes.switches["broken"] = "no server"
    with pytest.raises(TargetUnavailable) as caught:
        async with targets.entered(await targets.resolve(managed)):
            raise AssertionError
    assert str(caught.value.__cause__) == "no server"
    fakes.switches.clear()
    async with targets.entered(await targets.resolve(managed)) as target:
        assert target is fakes.built[1]


async def test_a_failure_to_leave_a_kept_target_is_logged(caplog):
    await targets.resolve(endpoint("build_managed"))
    fakes.switches["broken on leaving"] = "stuck"
    await targets.stop_all()
    assert errors_of(caplog) == [("The target of endpoint 'default' was not left cleanly.", True)]


async def test_stop_does_not_wait_for_a_factory_that_hangs():
    asked = asyncio.ensure_future(targets.resolve(endpoint(f"{__name__}.build_hanging")))
    await fakes.gate().wait_reached()
    await targets.stop_all()
    with pytest.raises(TargetUnavailable) as caught:
        await asked
    assert str(caught.value.__cause__) == "building the target was stopped by CancelledError"


async def build_hanging():
    await fakes.gate().pass_through()


# All endpoints.

SEVERAL = {
    "good": {"TARGET": "tests.fakes.build_managed"},
    "fresh": {"TARGET": "tests.fakes.build_managed", "CACHE_TARGET": False, "PATH": "fresh"},
    "flaky": {"TARGET": "tests.fakes.build_flaky", "PATH": "flaky"},
    "typo": {"TARGT": "tests.fakes.build_echo", "PATH": "typo"},
}


@override_settings(INVOCATIONS=SEVERAL)
async def test_start_all_enters_what_is_kept_tries_the_rest_and_names_what_failed():
    fakes.switches["broken"] = ""
    assert sorted(await targets.start_all()) == ["typo"]
    assert sorted(fakes.managed_noted()) == ["enter", "enter", "leave"]
    await targets.stop_all()
    assert sorted(fakes.managed_noted()) == ["enter", "enter", "leave", "leave"]


@override_settings(INVOCATIONS=SEVERAL)
async def test_start_all_returns_why_each_endpoint_failed():
    fakes.switches["broken"] = "no key"
    failures = await targets.start_all()
    assert {alias: str(error) for alias, error in failures.items()} == {
        "good": "no key",
        "fresh": "no key",
        "flaky": "no key",
        "typo": "its settings are wrong; 'manage.py check' says what to write",
    }


@override_settings(INVOCATIONS=SEVERAL)
async def test_failing_asks_for_what_was_never_asked_for_and_retries_once_a_second(monkeypatch):
    now = 100.0
    monkeypatch.setattr(holder.time, "monotonic", lambda: now)
    fakes.switches["broken"] = "no key"
    assert await targets.failing() == ["flaky", "fresh", "good", "typo"]
    fakes.switches.clear()
    now = 100.9
    assert await targets.failing() == ["flaky", "fresh", "good", "typo"]
    now = 101.0
    assert await targets.failing() == ["typo"]
    built = len(fakes.built)
    now = 200.0
    assert await targets.failing() == ["typo"]
    assert len(fakes.built) == built


# Loops.


def test_each_loop_has_its_own_target_and_leaves_it_at_its_end():
    async def ask() -> Any:
        return (await targets.resolve(endpoint("build_managed"))).target

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first is not second
    assert fakes.managed_noted() == ["enter", "leave", "enter", "leave"]


def test_a_closed_loop_is_not_kept():
    async def ask() -> Any:
        await asyncio.gather(*(targets.resolve(endpoint("build_echo_async")) for _ in range(3)))
        return weakref.ref(asyncio.get_running_loop())

    first = asyncio.run(ask())
    asyncio.run(ask())
    fakes.reset()
    gc.collect()
    assert first() is None
