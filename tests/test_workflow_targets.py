"""Workflows as targets: built anew for each run, compared at first, refused with the fix where callers would share."""

from __future__ import annotations

import asyncio

import pytest

from invocations_app import targets
from invocations_app.conf import EndpointSettings
from invocations_app.exceptions import TargetUnavailable
from tests import fakes
from tests.client import endpoint as site
from tests.client import post, records

BUILD = targets.UnstableWorkflow.fix


def endpoint(name: str, *, cache: bool = True) -> EndpointSettings:
    return EndpointSettings(alias="default", target=f"tests.workflow_fakes.{name}", cache_target=cache)


@pytest.fixture(autouse=True)
async def _stopped():
    yield
    await targets.stop_all()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["build_counting", "build_counting_async"])
async def test_a_workflow_is_built_for_each_run_whatever_cache_target_says(name, cache):
    found = [await targets.resolve(endpoint(name, cache=cache)) for _ in range(3)]
    assert [(item.kind, item.owned, item.takes_options, item.takes_session) for item in found] == [
        ("workflow", True, False, False)
    ] * 3
    assert len({id(item.target) for item in found}) == 3
    # The first one was compared with another one.
    assert len(fakes.built) - 3 <= 2
    before = len(fakes.built)
    await targets.resolve(endpoint(name, cache=cache))
    assert len(fakes.built) == before + 1


async def test_fifty_first_requests_get_fifty_workflows():
    found = await asyncio.gather(*(targets.resolve(endpoint("build_counting_async")) for _ in range(50)))
    assert len({id(item.target) for item in found}) == 50


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("build_sharing_executor", "Two builds of the workflow 'sharing' share the executor 'counting'."),
        ("build_sharing_agent", "Two builds of the workflow 'sharing' share the agent of 'speaker'."),
        ("build_sharing_session", "Two builds of the workflow 'sharing' share the session of 'speaker'."),
        ("build_sharing_inner", "Two builds of the workflow 'outer' share the executor 'counting'."),
        ("build_unsteady", "Two builds of the workflow 'unsteady' have different graphs."),
        ("build_kept", "Two builds of the workflow 'counting' are one object."),
    ],
)
async def test_what_two_callers_would_share_is_refused(name, problem, cache):
    for _ in range(2):
        with pytest.raises(TargetUnavailable) as caught:
            await targets.resolve(endpoint(name, cache=cache))
        assert type(caught.value.__cause__) is targets.UnstableWorkflow
        assert str(caught.value.__cause__) == f"{problem} {BUILD}"
    assert await targets.start_all() is not None


async def test_a_workflow_without_a_name_of_its_own_is_refused():
    with pytest.raises(TargetUnavailable) as caught:
        await targets.resolve(endpoint("build_nameless"))
    text = str(caught.value.__cause__)
    assert text.startswith("The workflow has no name of its own: two builds are 'WorkflowBuilder-")
    assert text.endswith(BUILD)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("_kept", "'Workflow' object is no agent."),
        ("build_builder", "'WorkflowBuilder' object is a builder, not an agent."),
    ],
)
async def test_an_instance_and_a_builder_are_refused_with_the_fix(name, problem):
    with pytest.raises(TargetUnavailable) as caught:
        await targets.resolve(endpoint(name))
    assert str(caught.value.__cause__) == (
        f"{problem} Name a function that builds a workflow anew, executors and agents included, "
        "and gives it a name: callers cannot share one, nor what one builder builds."
    )


async def test_the_start_fails_with_the_reason(settings):
    settings.INVOCATIONS = site(TARGET="tests.workflow_fakes.build_sharing_executor")
    assert {alias: str(error) for alias, error in (await targets.start_all()).items()} == {
        "default": f"Two builds of the workflow 'sharing' share the executor 'counting'. {BUILD}"
    }


async def test_agents_inside_are_found_each_once_and_entered_for_the_run():
    resolved = await targets.resolve(endpoint("build_managed"))
    (agent,) = targets.agents_of(resolved.target)
    assert agent.name == "managed"
    async with targets.entered(resolved) as target:
        assert target is resolved.target
        assert fakes.notes == ["enter"]
    assert fakes.notes == ["enter", "leave"]


@pytest.mark.parametrize("name", ["build_sequential", "build_concurrent", "build_group_chat", "build_handoff"])
async def test_orchestrations_are_targets(name):
    resolved = await targets.resolve(endpoint(name))
    assert resolved.kind == "workflow"
    assert len(targets.agents_of(resolved.target)) == 2


async def test_the_kind_is_known_once_a_target_was_resolved(monkeypatch):
    monkeypatch.setattr(targets, "_kinds", {})
    assert targets.known_kind(endpoint("build_counting")) is None
    await targets.resolve(endpoint("build_counting"))
    assert targets.known_kind(endpoint("build_counting")) == "workflow"


@pytest.mark.django_db(transaction=True)
async def test_a_target_that_cannot_be_built_is_tried_once_a_request(settings, monkeypatch):
    monkeypatch.setattr(targets, "_kinds", {})
    settings.INVOCATIONS = site(TARGET="tests.fakes.build_flaky")
    fakes.switches["broken"] = "no key"
    response = await post({"input": {"any": "thing"}})
    assert (response.status_code, response.content) == (500, b'{"error":"The agent is not available."}')
    assert fakes.notes == ["build_flaky"]
    assert await records() == []
    fakes.switches.clear()
    assert (await post({"message": "ping"})).content == b'{"response":"ping","session_id":null}'
