"""The request context of providers written for an earlier host: entered and left in the run's task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from invocations_app.runs import run as run_module
from tests import fakes
from tests.client import endpoint
from tests.durable import ask, body_of, cancel, until_idle

pytestmark = pytest.mark.django_db(transaction=True)

FAKES = "tests.workflow_fakes."


@pytest.fixture(autouse=True)
def _binding(settings: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=FAKES + "build_binding_agent")
    fakes.script(["hel", "lo"])


def noted() -> list[tuple[Any, ...]]:
    """Return what happened, without the tasks and reasons."""
    return [note[:4] for note in fakes.notes]


def both(invocation_id: str, previous: str | None) -> list[tuple[Any, ...]]:
    return [
        ("enter", "plain", invocation_id, previous),
        ("enter", "async", invocation_id, previous),
        ("leave", "async", invocation_id, previous),
        ("leave", "plain", invocation_id, previous),
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_providers_are_bound_once_to_invocation_and_the_one_before(stream):
    for number in (1, 2):
        response = await ask(f"i{number}", {"message": "x", "session_id": "s1", "stream": stream})
        if stream:
            await body_of(response)
    assert noted() == both("i1", None) + both("i2", "i1")
    assert len({note[4] for note in fakes.notes[:4]}) == 1


async def test_without_a_session_there_is_no_previous_one():
    await ask("i1", {"message": "x"})
    await ask("i2", {"message": "x"})
    assert noted() == both("i1", None) + both("i2", None)


async def test_a_failed_turn_is_no_previous_one():
    await ask("i1", {"message": "x", "session_id": "s1"})
    fakes.script([RuntimeError("no model")])
    assert (await ask("i2", {"message": "x", "session_id": "s1"})).status_code == 500
    fakes.script(["ok"])
    await ask("i3", {"message": "x", "session_id": "s1"})
    assert noted()[-4:] == both("i3", "i1")


@pytest.mark.parametrize("stream", [True, False])
async def test_they_are_left_when_the_run_fails_and_swallow_nothing(stream):
    fakes.script(["hel", RuntimeError("no model")])
    response = await ask("i1", {"message": "x", "stream": stream})
    content = await body_of(response) if stream else response.content
    assert b"Agent invocation failed." in content
    assert noted() == both("i1", None)
    assert all(note[5] is not None for note in fakes.notes if note[0] == "leave")


async def test_they_are_left_when_the_run_is_cancelled():
    fakes.script([fakes.gate()])
    answer = asyncio.ensure_future(ask("i1", {"message": "x"}))
    await fakes.gate().wait_reached()
    await cancel("i1")
    assert (await answer).status_code == 409
    await until_idle()
    assert noted() == both("i1", None)
    assert [note[5] for note in fakes.notes if note[0] == "leave"] == [asyncio.CancelledError] * 2


async def test_one_that_cannot_be_entered_fails_the_run():
    fakes.switches["unbindable"] = True
    response = await ask("i1", {"message": "x"})
    assert (response.status_code, response.content) == (500, b'{"error":"Agent invocation failed."}')
    assert [note[0] for note in fakes.notes] == ["enter"]
    assert fakes.calls == []


async def test_one_that_cannot_be_left_fails_a_run_that_ended_well(caplog):
    fakes.switches["unleavable"] = True
    response = await ask("i1", {"message": "x"})
    assert (response.status_code, response.content) == (500, b'{"error":"Agent invocation failed."}')
    assert noted() == both("i1", None)
    assert caplog.text.count("A request context of a provider was not left cleanly.") == 2


async def test_one_that_cannot_be_left_hides_no_failure(settings):
    settings.INVOCATIONS = endpoint(TARGET=FAKES + "build_binding_agent", EXPOSE_ERRORS=True)
    fakes.switches["unleavable"] = True
    fakes.script([RuntimeError("no model")])
    assert b"no model" in (await ask("i1", {"message": "x"})).content
    assert noted() == both("i1", None)


async def test_providers_of_agents_inside_a_workflow_are_bound(settings):
    settings.INVOCATIONS = endpoint(TARGET=FAKES + "build_binding")
    assert (await ask("i1", {"message": "x", "session_id": "s1"})).status_code == 200
    assert noted() == [("enter", "inner", "i1", None), ("leave", "inner", "i1", None)]


async def test_nobody_is_asked_for_the_previous_one_where_no_provider_wants_it(settings, monkeypatch):
    settings.INVOCATIONS = endpoint()

    async def previous_id(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(run_module.invocations, "previous_id", previous_id)
    assert (await ask("i1", {"message": "x", "session_id": "s1"})).status_code == 200
