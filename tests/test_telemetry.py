"""The framework's telemetry: at rest in a server process while nobody listens, and what one sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_framework import Agent, FunctionTool, tool
from agent_framework.observability import (
    OBSERVABILITY_SETTINGS,
    disable_instrumentation,
    enable_sensitive_telemetry,
)
from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.util._once import Once

from invocations_app.models import SessionRecord
from invocations_app.targets import telemetry
from tests import approval_fakes, fakes
from tests.client import endpoint, post, records, rows
from tests.durable import DONE, Reader, ask, body_of, scripted, until_idle, until_status
from tests.test_lifespan import Server

pytestmark = pytest.mark.django_db(transaction=True)

HERE = "tests.test_telemetry"
QUICK = {"GC_FREEZE": False, "GC_DEFER_SECONDS": 0}
PLAIN = {"message": "hi"}
SPANS = ["invoke_agent fake", "chat unknown"]
DURATION = "agent_framework.function.invocation.duration"


class Span(trace.NonRecordingSpan):
    """A span that says that it records, and knows whether it has ended."""

    def __init__(self, name: str) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name = name
        self.is_ended = False

    def is_recording(self) -> bool:
        return True

    def end(self, end_time: int | None = None) -> None:
        self.is_ended = True


class Tracer(trace.NoOpTracer):
    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans

    def start_span(self, name: str, *args: Any, **kwargs: Any) -> Span:
        self.spans.append(Span(name))
        return self.spans[-1]


class Tracers(trace.TracerProvider):
    """A provider that keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        return Tracer(self.spans)

    @property
    def names(self) -> list[str]:
        """Names of the spans, all of which have ended."""
        assert [span.name for span in self.spans if not span.is_ended] == []
        return [span.name for span in self.spans]


class NoOpTracerProvider(Tracers):
    """A provider that is called like the one that does nothing, so that one sees what was made for nobody."""


class Histogram(metrics.NoOpHistogram):
    def __init__(self, name: str, noted: list[tuple[str, Any]], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.name = name
        self.noted = noted

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.noted.append((self.name, attributes.get("gen_ai.tool.name")))


class Meter(metrics.NoOpMeter):
    def __init__(self, noted: list[tuple[str, Any]]) -> None:
        super().__init__("fake")
        self.noted = noted

    def create_histogram(self, name: str, *args: Any, **kwargs: Any) -> Histogram:
        return Histogram(name, self.noted)


class Meters(metrics.MeterProvider):
    """A provider that keeps what was measured: name of the metric and name of the tool."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, Any]] = []

    def get_meter(self, *args: Any, **kwargs: Any) -> Meter:
        return Meter(self.noted)


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No provider is set, and a test may set one; the framework's switch is left as it was."""
    for module, name in ((trace, "_TRACER_PROVIDER"), (metrics_internal, "_METER_PROVIDER")):
        monkeypatch.delenv(f"OTEL_PYTHON{name}", raising=False)
        monkeypatch.setattr(module, name, None)
        monkeypatch.setattr(module, f"{name}_SET_ONCE", Once())
    # A meter provider that is set reaches what older proxies have made, so these are another's.
    monkeypatch.setattr(telemetry, "_LOOK_SECONDS", 0.0)
    proxy = type(metrics_internal._PROXY_METER_PROVIDER)()
    monkeypatch.setattr(metrics_internal, "_PROXY_METER_PROVIDER", proxy)
    before = dict(vars(OBSERVABILITY_SETTINGS))
    OBSERVABILITY_SETTINGS._user_disabled = OBSERVABILITY_SETTINGS._enable_sensitive_data = False
    OBSERVABILITY_SETTINGS._enable_instrumentation = True
    yield
    telemetry.switch.release()
    vars(OBSERVABILITY_SETTINGS).update(before)


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()
    settings.INVOCATIONS_HOST = QUICK


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[None]:
    """Serve, from start-up to shutdown."""
    server = Server()
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.complete"}
    try:
        yield
    finally:
        assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
        await server.task


def is_on() -> bool:
    return OBSERVABILITY_SETTINGS.ENABLED


async def run(*steps: fakes.Step) -> bool:
    """Make a turn, and return whether telemetry was on in it."""
    fakes.script([lambda: fakes.notes.append(is_on()), *steps, "pong"])
    response = await post(PLAIN)
    assert response.content == b'{"response":"pong","session_id":null}'
    return bool(fakes.notes.pop())


def listen() -> Tracers:
    provider = Tracers()
    trace.set_tracer_provider(provider)
    return provider


# When it rests


async def test_no_span_is_made_in_a_server_process_where_nobody_listens():
    provider = NoOpTracerProvider()
    trace.set_tracer_provider(provider)
    async with started():
        assert await run() is False
    assert provider.names == []


async def test_without_lifespan_it_is_left_alone():
    provider = NoOpTracerProvider()
    trace.set_tracer_provider(provider)
    assert await run() is True
    assert provider.names == SPANS


async def test_the_setting_leaves_it_alone(settings):
    settings.INVOCATIONS_HOST = QUICK | {"TELEMETRY_RESTS": False}
    provider = NoOpTracerProvider()
    trace.set_tracer_provider(provider)
    async with started():
        assert await run() is True
    assert provider.names == SPANS


async def test_it_is_awake_until_the_end_of_start_up_and_from_the_shutdown_on(settings):
    settings.INVOCATIONS_HOST = QUICK | {"STARTUP": [f"{HERE}.note_moment"], "SHUTDOWN": [f"{HERE}.note_moment"]}
    async with started():
        assert not is_on()
    assert is_on()
    assert fakes.notes == [True, False]


def note_moment() -> None:
    fakes.notes.append(is_on())


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
async def test_a_site_that_has_switched_it_off_finds_it_off(moment):
    if moment == "before":
        disable_instrumentation()
    async with started():
        disable_instrumentation()
        assert await run() is False
    assert not is_on()
    assert OBSERVABILITY_SETTINGS.is_user_disabled


async def test_a_site_whose_environment_has_switched_it_off_finds_it_off():
    OBSERVABILITY_SETTINGS.enable_instrumentation = False
    async with started():
        listen()
        assert await run() is False
    assert not is_on()


async def test_a_site_that_switches_it_on_for_nobody_does_not_wake_it():
    async with started():
        OBSERVABILITY_SETTINGS.enable_instrumentation = True
        assert await run() is False
    assert is_on()


async def test_a_boot_that_is_refused_leaves_it_alone(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    assert (await Server().tell("lifespan.startup"))["type"] == "lifespan.startup.failed"
    assert is_on()


async def test_a_server_that_cancels_its_lifespan_finds_it_on():
    server = Server()
    await server.tell("lifespan.startup")
    assert not is_on()
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.task
    assert is_on()


# Who listens


def test_the_names_of_nobody_are_those_of_the_installed_opentelemetry():
    assert {
        type(trace.get_tracer_provider()).__name__,
        trace.NoOpTracerProvider.__name__,
        type(metrics.get_meter_provider()).__name__,
        metrics.NoOpMeterProvider.__name__,
    } == telemetry._NOBODY
    assert not telemetry.is_heard()


async def test_providers_that_do_nothing_do_not_listen():
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    metrics.set_meter_provider(metrics.NoOpMeterProvider())
    async with started():
        assert await run() is False


async def test_it_stays_on_for_a_tracer_provider():
    provider = listen()
    async with started():
        assert is_on()
        assert await run() is True
    assert provider.names == SPANS


async def test_a_tracer_provider_that_is_set_after_the_start_gets_the_spans_of_the_next_run():
    async with started():
        assert await run() is False
        provider = listen()
        assert await run() is True
        assert provider.names == SPANS


async def test_a_stream_and_its_tools_have_their_spans():
    async with started():
        provider = listen()
        fakes.script([fakes.call("whoami")], ["done"])
        assert await body_of(await ask("i1", PLAIN | {"stream": True})) == b"data: done\n\n" + DONE
    assert provider.names == [*SPANS, "execute_tool whoami", "chat unknown"]


async def test_a_run_that_has_begun_stays_as_it_is():
    async with started():
        fakes.script([fakes.gate(), "pong"])
        running = asyncio.ensure_future(post(PLAIN))
        await fakes.gate().wait_reached()
        provider = listen()
        fakes.gate().open()
        assert (await running).content == b'{"response":"pong","session_id":null}'
        assert provider.names == []


async def test_it_stays_on_for_a_meter_provider():
    provider = Meters()
    metrics.set_meter_provider(provider)
    async with started():
        assert await run() is True
    assert [name for name, _ in provider.noted] == ["gen_ai.client.operation.duration"]


async def test_a_meter_provider_that_is_set_after_the_start_measures_the_next_run():
    async with started():
        assert await run() is False
        provider = Meters()
        metrics.set_meter_provider(provider)
        assert await run() is True
    assert [name for name, _ in provider.noted] == ["gen_ai.client.operation.duration"]


async def test_arguments_of_tools_come_into_no_log_that_is_at_debug(caplog):
    caplog.set_level(logging.DEBUG)
    async with started():
        assert await run() is True
        fakes.script([fakes.call("wait_at", {"name": "an argument"})], ["done"])
        fakes.gate("an argument").open()
        assert (await post(PLAIN)).json()["response"] == "done"
    told = [record.getMessage() for record in caplog.records if record.name == "agent_framework"]
    assert "Function name: wait_at" in told
    assert [text for text in told if "an argument" in text] == []


async def test_a_log_that_comes_to_debug_after_the_start_wakes_it(caplog):
    async with started():
        assert await run() is False
        caplog.set_level(logging.DEBUG, "agent_framework")
        assert await run() is True
        caplog.set_level(logging.INFO, "agent_framework")
        assert await run() is False


async def test_a_site_that_wants_exceptions_in_its_log_gets_them(caplog):
    enable_sensitive_telemetry()
    fakes.script([fakes.call("break_down")], ["sorry"])
    async with started():
        assert (await post(PLAIN)).json()["response"] == "sorry"
    assert told_by_the_framework(caplog)[-1] == (
        "WARNING",
        "Function 'break_down' raised an exception; returning an error result to the model. "
        "Set include_detailed_errors=True for the full detail. Exception: RuntimeError('the tool is broken')",
    )


def told_by_the_framework(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "agent_framework" and record.levelno >= logging.WARNING
    ]


# Building


def build_timed() -> Agent:
    """An agent with a tool that was made with it."""
    return Agent(fakes.FakeChatClient(fakes.scripted), tools=[make_tool()])


def build_sharing() -> Agent:
    """One whose tool was made with the first of its kind."""
    if "tool" not in fakes.switches:
        fakes.switches["tool"] = make_tool()
    return Agent(fakes.FakeChatClient(fakes.scripted), tools=[fakes.switches["tool"]])


def make_tool() -> FunctionTool:
    @tool
    async def tick() -> str:
        """Tick."""
        return "tock"

    return tick


class Entered(fakes.CustomAgent):
    """An agent that has its tools once it was entered, as one with a server of tools has."""

    async def __aenter__(self) -> Entered:
        await asyncio.sleep(0)
        self.agent = build_timed()
        return self

    async def __aexit__(self, *reason: object) -> None:
        pass

    def run(self, messages: Any = None, *, stream: bool = False, session: Any = None) -> Any:
        return self.agent.run(messages, session=session)


@pytest.fixture
def late_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that nobody has imported yet."""
    (tmp_path / "late_agents.py").write_text(f"from {HERE} import build_timed\nagent = build_timed()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("late_agents", None)


@pytest.mark.usefixtures("late_module")
@pytest.mark.parametrize(
    ("target", "is_kept"),
    [
        (f"{HERE}.build_timed", True),
        (f"{HERE}.Entered", True),
        ("late_agents.agent", True),
        (f"{HERE}.build_sharing", False),
    ],
)
async def test_the_tools_of_a_target_that_is_built_at_rest_can_be_measured_later(settings, target, is_kept):
    async with started():
        # As one that could not be had at the start.
        settings.INVOCATIONS = endpoint(TARGET=target, CACHE_TARGET=is_kept)
        fakes.script([lambda: fakes.notes.append(is_on()), fakes.call("tick")], ["done"])
        assert (await post(PLAIN)).json()["response"] == "done"
        assert fakes.notes == [False]
        provider = Meters()
        metrics.set_meter_provider(provider)
        fakes.script([fakes.call("tick")], ["done"])
        assert (await post(PLAIN)).json()["response"] == "done"
    assert (DURATION, "tick") in provider.noted


async def test_a_tool_that_is_made_at_rest_outside_of_a_target_has_no_metric():
    async with started():
        agent = build_timed()
        provider = Meters()
        metrics.set_meter_provider(provider)
        assert await run() is True
        fakes.script([fakes.call("tick")], ["done"])
        assert (await agent.run("hi")).text == "done"
    assert [name for name, _ in provider.noted if name == DURATION] == []
    assert provider.noted != []


async def build_first() -> Agent:
    await fakes.gate("first").pass_through()
    return fakes.build_scripted()


async def build_second() -> Agent:
    await fakes.gate("second").pass_through()
    fakes.notes.append(is_on())
    return fakes.build_scripted()


async def test_it_is_awake_for_as_long_as_any_target_is_built(settings):
    async with started():
        [first] = endpoint(TARGET=f"{HERE}.build_first", PATH="first").values()
        [second] = endpoint(TARGET=f"{HERE}.build_second", PATH="second").values()
        settings.INVOCATIONS = scripted() | {"first": first, "second": second}
        assert await run() is False
        asked = [asyncio.ensure_future(post(PLAIN, f"/{name}/invoke")) for name in ("first", "second")]
        for name in ("first", "second"):
            await fakes.gate(name).wait_reached()
        assert await run() is True
        fakes.script(["pong"])
        fakes.gate("first").open()
        assert (await asked[0]).json()["response"] == "pong"
        assert await run() is True
        fakes.script(["pong"])
        fakes.gate("second").open()
        assert (await asked[1]).json()["response"] == "pong"
        assert fakes.notes == [True]
        assert await run() is False


async def test_a_target_that_cannot_be_built_leaves_it_at_rest(settings):
    async with started():
        settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
        assert (await post(PLAIN)).status_code == 500
        assert not is_on()


async def test_a_target_that_is_built_for_each_run_leaves_it_at_rest(settings):
    settings.INVOCATIONS = scripted(CACHE_TARGET=False)
    async with started():
        assert await run() is False
        assert not is_on()


# What callers get is the same


@pytest.fixture(params=["awake", "at rest"])
def both_ways(request: pytest.FixtureRequest, settings: Any) -> bool:
    settings.INVOCATIONS_HOST = QUICK | {"TELEMETRY_RESTS": request.param == "at rest"}
    return bool(request.param == "awake")


async def the_session() -> SessionRecord:
    [session] = await rows(SessionRecord.objects.all)
    return session


async def test_a_plain_answer_its_usage_and_its_session(both_ways):
    fakes.script(["hel", "lo", fakes.usage(3, 2)])
    async with started():
        assert is_on() is both_ways
        response = await post(PLAIN | {"session_id": "s1"})
        assert response.content == b'{"response":"hello","session_id":"s1"}'
        [record] = await records()
        assert (record.status, json.loads(record.usage)) == (
            "succeeded",
            {"input_token_count": 3, "output_token_count": 2, "total_token_count": 5},
        )
        assert (await the_session()).message_count == 2


async def test_a_stream_its_usage_and_its_session(both_ways):
    fakes.script(["hel", "lo", fakes.usage(3, 2)])
    async with started():
        assert is_on() is both_ways
        body = await body_of(await ask("i1", PLAIN | {"session_id": "s1", "stream": True}))
        assert body == b"data: hel\n\ndata: lo\n\n" + DONE
        [record] = await records()
        assert (record.status, json.loads(record.usage)) == (
            "succeeded",
            {"input_token_count": 3, "output_token_count": 2, "total_token_count": 5},
        )
        assert (await the_session()).message_count == 2


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_turn_with_a_tool_call(both_ways, stream):
    fakes.script(["so ", fakes.call("whoami"), fakes.usage(3, 2)], ["done", fakes.usage(5, 1)])
    async with started():
        assert is_on() is both_ways
        response = await ask("i1", PLAIN | {"session_id": "s1", "stream": stream})
        if stream:
            assert await body_of(response) == b"data: so \n\ndata: done\n\n" + DONE
        else:
            assert response.content == b'{"response":"so done","session_id":"s1"}'
        [record] = await records()
        assert json.loads(record.usage) == {"input_token_count": 8, "output_token_count": 3, "total_token_count": 11}
        assert [step[:2] for step in json.loads(record.steps)] == [["call", "whoami"], ["result", "whoami"]]
        assert (await the_session()).message_count == 4
        assert [content.result for content in fakes.calls[-1].messages[-1].contents] == ["nobody"]


async def test_a_tool_that_fails_is_told_to_the_model_alike_and_to_the_log_with_one_line_less(both_ways, caplog):
    fakes.script([fakes.call("break_down")], ["sorry"])
    async with started():
        assert (await post(PLAIN)).content == b'{"response":"sorry","session_id":null}'
    assert [content.result for content in fakes.calls[-1].messages[-1].contents] == ["Error: Function failed."]
    own = [("ERROR", "Function break_down failed (RuntimeError).")]
    assert told_by_the_framework(caplog) == [
        *(own if both_ways else []),
        (
            "WARNING",
            "Function 'break_down' raised an exception; returning an error result to the model. "
            "Set include_detailed_errors=True for the full detail.",
        ),
    ]


async def test_an_approval(both_ways, settings):
    settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET)
    fakes.script(["so ", fakes.call("pay", {"to": "Ada"})], ["done"])
    async with started():
        assert is_on() is both_ways
        asked = (await post({"message": "go", "session_id": "s1"})).json()
        [pending] = asked["pending"]
        assert (asked["response"], pending["type"], fakes.notes) == ("so ", "approval", [])
        response = await post({"responses": {pending["request_id"]: True}, "session_id": "s1"})
        assert response.content == b'{"response":"done","session_id":"s1"}'
        assert fakes.notes == [("pay", "Ada")]
        assert [content.result for content in fakes.calls[-1].messages[-1].contents] == ["paid Ada"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_workflow(both_ways, settings, stream):
    settings.INVOCATIONS = endpoint(TARGET="tests.workflow_fakes.build_speaking")
    fakes.script(["hel", "lo"])
    async with started():
        assert is_on() is both_ways
        response = await ask("i1", PLAIN | {"stream": stream})
        if stream:
            assert await body_of(response) == b"data: hel\n\ndata: lo\n\n" + DONE
        else:
            assert response.content == b'{"response":"hello","session_id":null}'


async def test_a_stream_that_fails_saves_nothing(both_ways, settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted_noting")
    fakes.script(["par", RuntimeError("no"), "never"])
    async with started():
        assert is_on() is both_ways
        body = await body_of(await ask("i1", PLAIN | {"session_id": "s1", "stream": True}))
        assert body == b"data: par\n\nevent: error\ndata: Agent invocation failed.\n\n"
        await assert_nothing_saved()


async def test_a_stream_whose_client_leaves_in_the_middle_saves_nothing(both_ways, settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted_noting", ON_DISCONNECT="cancel")
    fakes.script(["par", fakes.gate(), "never"])
    async with started():
        assert is_on() is both_ways
        reader = Reader(await ask("i1", PLAIN | {"session_id": "s1", "stream": True}))
        await reader.until(b"data: par\n\n")
        await reader.leave()
        record = await until_status("i1", "cancelled")
        assert record.answer == ""
        assert isinstance(fakes.gate().left, asyncio.CancelledError)
        await until_idle()
        await assert_nothing_saved()
        assert is_on() is both_ways


async def assert_nothing_saved() -> None:
    """Assert that a session is as before its turn, and that no provider was told of an end."""
    session = await the_session()
    assert (session.message_count, session.state, session.claimed_by) == (0, "", None)
    assert [note[0] for note in fakes.notes] == ["before_run"]


async def test_providers_are_looked_for_once_in_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for them takes longer than all else that is looked at before a run."""
    monkeypatch.setattr(telemetry, "_LOOK_SECONDS", 3600.0)
    async with started():
        trace.set_tracer_provider(tracers := Tracers())
        await post(PLAIN)
        assert tracers.names == []
        monkeypatch.setattr(telemetry, "_LOOK_SECONDS", 0.0)
        await post(PLAIN)
        assert tracers.names == SPANS
