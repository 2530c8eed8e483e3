"""The client leaves, at every moment, in both modes of ``ON_DISCONNECT``: over uvicorn and over raw ASGI."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from agent_framework import Agent, tool
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import connection
from pytest_django import Settings

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.runs.executor import RunExecutor
from invocations_app.runs.host import live_runs
from invocations_app.storage import endings, turns
from tests import fakes
from tests.alone import go_alone
from tests.server import Wire, every_handler, every_loop, wait_until

SYNC = "tests.sync_middleware.SyncOnlyMiddleware"
OURS = "invocations_app.middleware.IsolationKeysMiddleware"
STREAMED = {"message": "hi", "stream": True, "session_id": "s1"}
PLAIN = {"message": "hi", "session_id": "s1"}

both_modes = pytest.mark.parametrize("mode", ["continue", "cancel"])
both_bodies = pytest.mark.parametrize("body", [PLAIN, STREAMED], ids=["plain", "streamed"])


@pytest.fixture
def endpoint(settings: Settings) -> Callable[..., None]:
    """Set the endpoint's keys."""

    def set_endpoint(mode: str, target: str = "tests.fakes.build_scripted", **keys: Any) -> None:
        settings.INVOCATIONS = {"default": {"TARGET": target, "ON_DISCONNECT": mode, **keys}}

    return set_endpoint


@pytest.fixture(params=[None, "before", "after"], ids=["async", "sync before", "sync after"])
def middleware(request: pytest.FixtureRequest, settings: Settings) -> None:
    """A sync-only middleware, around ours or within it, or none."""
    chain = [name for name in settings.MIDDLEWARE if name != OURS]
    order = {None: [OURS], "before": [SYNC, OURS], "after": [OURS, SYNC]}
    settings.MIDDLEWARE = [*chain, *order[request.param]]


def assert_ended(wire: Wire, mode: str, text: str) -> None:
    """Assert how a run ended whose reader had left, and that its session is free for the next turn."""
    wire.server.wait_idle()
    record = InvocationRecord.objects.get()
    session = SessionRecord.objects.get()
    assert session.claimed_by is None
    if mode == "continue":
        assert (record.status, record.error_code) == ("succeeded", "")
        assert json.loads(record.answer) == {"text": text, "session_id": "s1"}
        assert session.message_count == 2
    else:
        assert (record.status, record.error_code, record.error_status) == ("cancelled", "cancelled", 409)
        assert record.answer == ""
        assert (session.message_count, session.state, session.version) == (0, "", 0)
    seen_before = [("user", "hi"), ("assistant", text)] if mode == "continue" else []
    fakes.script(["next"])
    assert wire.post(PLAIN).rest() == b'{"response":"next","session_id":"s1"}'
    assert fakes.calls[-1].texts == [*seen_before, ("user", "hi")]


def await_leaving(wire: Wire, mode: str, gate: fakes.Gate) -> None:
    """Wait until the site has noticed; with ``continue`` the agent is let through then."""
    wire.server.wait_unread()
    if mode == "continue":
        assert gate.left is None
        gate.open()
    else:
        wait_until(lambda: gate.left is not None, "the end of the agent's stream")
        assert isinstance(gate.left, asyncio.CancelledError | GeneratorExit)


# Before the run has begun


async def build_at_gate() -> Agent:
    await fakes.gate("target").pass_through()
    return fakes.build_echo()


@both_modes
@both_bodies
def test_leaving_while_the_target_is_built(
    wire: Wire, endpoint: Callable[..., None], mode: str, body: dict[str, Any]
) -> None:
    endpoint(mode, "tests.test_disconnect.build_at_gate")
    call = wire.post(body)
    assert fakes.gate("target").reached.wait(2)
    call.leave()
    wire.server.wait_unread()
    fakes.gate("target").open()
    wait_until(lambda: not live_runs(), "the run's end")
    if mode == "cancel":
        # It had not begun: there is nothing to record.
        assert not InvocationRecord.objects.exists()
        assert not SessionRecord.objects.exists()
    else:
        assert InvocationRecord.objects.get().status == "succeeded"
    # The target is built for the others, whoever asked first.
    assert wire.post({"message": "again"}).rest() == b'{"response":"again","session_id":null}'


async def hook_at_gate(invocation: Any, *, target: Any, request: Any) -> Any:
    await fakes.gate("hook").pass_through()
    return invocation


def sync_hook_at_gate(invocation: Any, *, target: Any, request: Any) -> Any:
    fakes.gate("hook").reached.set()
    assert fakes.gate("hook").opened.wait(3)
    fakes.notes.append(Group.objects.count())
    return invocation


@both_modes
@pytest.mark.parametrize("hook", ["hook_at_gate", "sync_hook_at_gate"])
def test_leaving_while_the_run_hook_runs(wire: Wire, endpoint: Callable[..., None], mode: str, hook: str) -> None:
    endpoint(mode, "tests.fakes.build_echo", RUN_HOOK=f"tests.test_disconnect.{hook}")
    call = wire.post(STREAMED)
    assert fakes.gate("hook").reached.wait(2)
    call.leave()
    wire.server.wait_unread()
    if mode == "cancel":
        wait_until(lambda: not live_runs(), "the run's end")
        assert not InvocationRecord.objects.exists()
        assert fakes.calls == []
    fakes.gate("hook").open()
    wire.server.wait_idle()
    if mode == "continue":
        assert InvocationRecord.objects.get().status == "succeeded"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[threading.Event, threading.Event]]:
    """Make a transaction of a turn wait in its database thread, before it is begun."""

    def hold(name: str) -> tuple[threading.Event, threading.Event]:
        reached, may_go = threading.Event(), threading.Event()
        module = turns if name == "begin_now" else endings
        transaction = getattr(module, name)

        def wait(*args: Any) -> Any:
            if not reached.is_set():
                reached.set()
                assert may_go.wait(4)
            return transaction(*args)

        go_alone(monkeypatch)
        monkeypatch.setattr(module, name, wait)
        return reached, may_go

    return hold


@every_handler
@both_modes
@both_bodies
def test_leaving_while_the_session_is_claimed(
    wire: Wire, endpoint: Callable[..., None], held: Any, mode: str, body: dict[str, Any]
) -> None:
    endpoint(mode)
    fakes.script(["pong"])
    reached, may_go = held("begin_now")
    call = wire.post(body)
    assert reached.wait(2)
    call.leave()
    wire.server.wait_unread()
    may_go.set()
    assert_ended(wire, mode, "pong")


# While the agent works


@every_handler
@both_modes
@both_bodies
@pytest.mark.usefixtures("middleware")
def test_leaving_before_the_first_piece(
    wire: Wire, endpoint: Callable[..., None], mode: str, body: dict[str, Any]
) -> None:
    endpoint(mode)
    fakes.script([fakes.gate(), "pong"])
    call = wire.post(body)
    assert fakes.gate().reached.wait(2)
    if "stream" in body:
        call.head()
    call.leave()
    await_leaving(wire, mode, fakes.gate())
    assert_ended(wire, mode, "pong")


@every_loop
@both_modes
@pytest.mark.usefixtures("middleware")
def test_leaving_between_two_pieces(wire: Wire, endpoint: Callable[..., None], mode: str) -> None:
    endpoint(mode)
    fakes.script(["pi", fakes.gate(), "ng"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: pi\n\n"
    call.leave()
    await_leaving(wire, mode, fakes.gate())
    assert_ended(wire, mode, "ping")


@every_loop
@both_modes
@pytest.mark.usefixtures("middleware")
def test_leaving_while_the_server_waits_in_send(wire: Wire, endpoint: Callable[..., None], mode: str) -> None:
    endpoint(mode)
    piece = "x" * 4096
    fakes.script(["first", fakes.gate("held"), *[piece] * 150, fakes.gate(), "last"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: first\n\n"
    call.hold()
    fakes.gate("held").open()
    wire.server.wait_blocked()
    assert not fakes.gate().reached.is_set()
    call.leave()
    wire.server.wait_unread()
    if mode == "continue":
        fakes.gate().open()
    assert_ended(wire, mode, "first" + piece * 150 + "last")


@both_modes
def test_stream_of_a_custom_agent_is_closed_when_the_client_leaves(
    wire: Wire, endpoint: Callable[..., None], mode: str
) -> None:
    endpoint(mode, "tests.fakes.build_custom_scripted")
    fakes.script(["pi", fakes.gate(), "ng"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: pi\n\n"
    call.leave()
    await_leaving(wire, mode, fakes.gate())
    wire.server.wait_idle()
    assert fakes.notes == ["custom stream closed"]


@every_handler
@both_modes
@both_bodies
def test_leaving_while_a_tool_runs(wire: Wire, endpoint: Callable[..., None], mode: str, body: dict[str, Any]) -> None:
    endpoint(mode)
    fakes.script([fakes.call("wait_at", {"name": "tool"})], ["done"])
    call = wire.post(body)
    assert fakes.gate("tool").reached.wait(2)
    call.leave()
    await_leaving(wire, mode, fakes.gate("tool"))
    wire.server.wait_idle()
    expected = {"continue": "succeeded", "cancel": "cancelled"}
    assert InvocationRecord.objects.get().status == expected[mode]
    assert SessionRecord.objects.get().message_count == {"continue": 4, "cancel": 0}[mode]


def test_providers_are_not_asked_to_save_what_was_cancelled(wire: Wire, endpoint: Callable[..., None]) -> None:
    endpoint("cancel", "tests.fakes.build_scripted_noting")
    fakes.script(["pi", fakes.gate(), "ng"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: pi\n\n"
    call.leave()
    await_leaving(wire, "cancel", fakes.gate())
    wire.server.wait_idle()
    assert [note[0] for note in fakes.notes] == ["before_run"]


# At the end


@every_handler
@both_modes
@both_bodies
def test_leaving_while_the_commit_runs_leaves_the_turn_standing(
    wire: Wire, endpoint: Callable[..., None], held: Any, mode: str, body: dict[str, Any]
) -> None:
    endpoint(mode)
    fakes.script(["pong"])
    reached, may_go = held("commit_now")
    call = wire.post(body)
    assert reached.wait(2)
    call.leave()
    wire.server.wait_unread()
    may_go.set()
    assert_ended(wire, "continue", "pong")


@every_handler
@both_modes
def test_leaving_after_the_end_changes_nothing(wire: Wire, endpoint: Callable[..., None], mode: str) -> None:
    endpoint(mode)
    fakes.script(["pong"])
    call = wire.post(STREAMED)
    assert [call.event(), call.event()] == [b"data: pong\n\n", b"data: [DONE]\n\n"]
    call.leave()
    assert_ended(wire, "continue", "pong")


@every_handler
def test_leaving_is_no_error_in_the_log(
    wire: Wire, endpoint: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint("cancel")
    fakes.script(["pi", fakes.gate(), "ng"])
    call = wire.post(STREAMED)
    assert call.event() == b"data: pi\n\n"
    call.leave()
    wire.server.wait_idle()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@every_loop
@both_modes
def test_many_leave_at_once(wire: Wire, endpoint: Callable[..., None], mode: str) -> None:
    endpoint(mode)
    fakes.script(["pi", fakes.gate(), "ng"])
    calls = [wire.post({"message": "hi", "stream": True}) for _ in range(10)]
    assert [call.event() for call in calls] == [b"data: pi\n\n"] * 10
    for call in calls:
        call.leave()
    wire.server.wait_unread()
    if mode == "cancel":
        # Whether somebody waits elsewhere is looked up first; then they end although the gate stays shut.
        wait_until(lambda: not live_runs(), "the runs' end")
    fakes.gate().open()
    wire.server.wait_idle()
    statuses = set(InvocationRecord.objects.values_list("status", flat=True))
    assert statuses == {{"continue": "succeeded", "cancel": "cancelled"}[mode]}


# Sync code of a run that outlives its response


@tool
async def count_groups() -> str:
    """Ask the database after the client has left."""
    await fakes.gate("tool").pass_through()
    return f"{await sync_to_async(Group.objects.count)()} groups"


@tool
def count_groups_in_a_thread() -> str:
    """Ask the database in the tool's own thread."""
    fakes.gate("tool").reached.set()
    assert fakes.gate("tool").opened.wait(3)
    try:
        return f"{Group.objects.count()} groups"
    finally:
        connection.close()


def build_counting() -> Agent:
    return Agent(fakes.FakeChatClient(fakes.scripted), tools=[count_groups, count_groups_in_a_thread])


@pytest.mark.parametrize("name", ["count_groups", "count_groups_in_a_thread"])
@both_bodies
@pytest.mark.usefixtures("middleware")
def test_sync_code_of_a_run_works_after_its_client_has_left(
    wire: Wire, endpoint: Callable[..., None], name: str, body: dict[str, Any]
) -> None:
    endpoint("continue", "tests.test_disconnect.build_counting")
    Group.objects.create(name="one")
    fakes.script([fakes.call(name)], ["done"])
    call = wire.post(body)
    assert fakes.gate("tool").reached.wait(2)
    call.leave()
    wire.server.wait_unread()
    time.sleep(0.02)  # the request itself ends, and with it its thread
    fakes.gate("tool").open()
    wire.server.wait_idle()
    assert InvocationRecord.objects.get().status == "succeeded"
    results = [content.result for message in fakes.calls[-1].messages for content in message.contents]
    assert "1 groups" in [str(result) for result in results]


def note_groups(result: Any, *, invocation: Any) -> Any:
    fakes.notes.append(Group.objects.count())
    return result


def test_sync_response_hook_works_after_its_client_has_left(wire: Wire, endpoint: Callable[..., None]) -> None:
    endpoint("continue", RESPONSE_HOOK="tests.test_disconnect.note_groups")
    fakes.script([fakes.gate(), "pong"])
    call = wire.post(PLAIN)
    assert fakes.gate().reached.wait(2)
    call.leave()
    await_leaving(wire, "continue", fakes.gate())
    wire.server.wait_idle()
    assert fakes.notes == [0]
    assert InvocationRecord.objects.get().status == "succeeded"


# The thread of a run


async def test_sync_code_that_outlives_its_run_is_refused_a_thread() -> None:
    """Nobody would close the connection that it opens there."""
    executor = RunExecutor()
    outlived: asyncio.Event = asyncio.Event()

    async def straggle() -> str:
        await outlived.wait()
        return await sync_to_async(threading.current_thread)()

    async def run() -> tuple[str, asyncio.Task[str]]:
        executor.take_sync_code()
        straggler = asyncio.create_task(straggle())
        thread = await sync_to_async(threading.current_thread)()
        assert await sync_to_async(threading.current_thread)() is thread
        executor.end()
        return thread.name, straggler

    name, straggler = await asyncio.create_task(run())
    assert name.startswith("invocations-run")
    outlived.set()
    with pytest.raises(RuntimeError, match="has exited"):
        await straggler


def test_a_run_within_sync_code_that_waits_for_it_has_its_own_thread() -> None:
    async def run() -> str:
        executor = RunExecutor()
        executor.take_sync_code()
        try:
            return (await sync_to_async(threading.current_thread)()).name
        finally:
            executor.end()

    async def start_run() -> str:
        return await asyncio.create_task(run())

    assert async_to_sync(start_run)().startswith("invocations-run")
