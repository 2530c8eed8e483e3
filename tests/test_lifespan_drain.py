"""The end of a process, in one loop: the signal, the grace, what is refused and what is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from django.test import AsyncClient

from invocations_app import targets
from invocations_app.lifespan import process
from invocations_app.lifespan.signals import SignalChain
from invocations_app.models import EventRecord
from invocations_app.runs import host as host_module
from invocations_app.runs.host import get_host, live_runs
from invocations_app.storage import database, event_log
from invocations_app.storage.event_log import Batch
from tests import fakes
from tests.client import post
from tests.durable import DONE, Reader, ask, events_of, scripted, status, until, until_status
from tests.test_lifespan import Server

pytestmark = pytest.mark.django_db(transaction=True)

CUT = b"event: error\ndata: this invocation was interrupted\n\n"
SHUTTING_DOWN = (503, b'{"error":"the server is shutting down"}')


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What a server's own handlers heard, of SIGTERM and SIGINT."""
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest_asyncio.fixture
async def server(settings: Any, heard: list[int]) -> AsyncIterator[Server]:
    settings.INVOCATIONS = scripted()
    server = Server()
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.complete"}
    yield server
    if not server.task.done():
        await server.tell("lifespan.shutdown")
        await server.task


def end(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


async def closing() -> None:
    await until(lambda: get_host().closing, "the grace")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_from_the_signal_on_no_run_is_taken_and_those_that_live_end(server, heard, number):
    fakes.script([fakes.gate(), "done"])
    reader = Reader(await ask("i1", {"message": "a", "session_id": "s1", "stream": True}))
    await fakes.gate().wait_reached()
    end(number)
    await closing()
    assert heard == [number]
    refused = await post({"message": "b", "session_id": "s1"})
    assert (refused.status_code, refused.content) == SHUTTING_DOWN
    assert refused.headers["Retry-After"] == "1"
    assert "x-agent-invocation-id" in refused.headers
    ready = await AsyncClient().get("/readiness")
    assert (ready.status_code, ready.content) == (503, b'{"status":"unhealthy","failing":["shutdown"]}')
    assert (await status("i1"))["status"] == "running"
    fakes.gate().open()
    assert await reader.rest() == b"data: done\n\n" + DONE
    # What is known already is still answered.
    assert (await ask("i1", {"message": "a", "session_id": "s1"})).json()["response"] == "done"
    assert await events_of("i1") == b"id: 1\ndata: done\n\nid: 2\n" + DONE


async def test_a_run_here_is_followed_and_joined_to_its_end(server):
    fakes.script([fakes.gate(), "done"])
    body = {"message": "a", "session_id": "s1", "stream": True}
    reader = Reader(await ask("i1", body))
    await fakes.gate().wait_reached()
    end()
    await closing()
    joiner = Reader(await ask("i1", body))
    plain = asyncio.ensure_future(ask("i1", body | {"stream": False}))
    events = asyncio.ensure_future(events_of("i1"))
    await asyncio.sleep(0.05)
    fakes.gate().open()
    assert await reader.rest() == await joiner.rest() == b"data: done\n\n" + DONE
    assert (await plain).json()["response"] == "done"
    assert (await events).endswith(DONE)


async def test_a_run_that_outlasts_the_grace_is_interrupted(server, settings):
    settings.INVOCATIONS_HOST = {"SHUTDOWN_GRACE_SECONDS": 0.1}
    fakes.script(["a", fakes.gate()])
    reader = Reader(await ask("i1", {"message": "a", "session_id": "s1", "stream": True}))
    await fakes.gate().wait_reached()
    plain = asyncio.ensure_future(ask("i2", {"message": "a"}))
    waiting = asyncio.ensure_future(ask("i3", {"message": "a", "session_id": "s1"}))
    await until_status("i3", "queued")
    end()
    assert await reader.rest() == b"data: a\n\n" + CUT
    for answer in (await plain, await waiting):
        assert (answer.status_code, answer.content) == (409, b'{"error":"this invocation was interrupted"}')
    for name in ("i1", "i2", "i3"):
        assert (await status(name))["error"]["code"] == "interrupted"
    await until(lambda: not live_runs())


async def test_without_a_signal_the_grace_begins_with_the_shutdown(server, settings):
    settings.INVOCATIONS_HOST = {"SHUTDOWN_GRACE_SECONDS": 0.2}
    fakes.script([fakes.gate("one"), "done"], [fakes.gate("two"), "done"])
    within, beyond = (asyncio.ensure_future(ask(name, {"message": "a"})) for name in ("i1", "i2"))
    await fakes.gate("one").wait_reached()
    await fakes.gate("two").wait_reached()
    stopping = asyncio.ensure_future(server.tell("lifespan.shutdown"))
    await closing()
    assert not stopping.done()
    fakes.gate("one").open()
    answers = [(await task).status_code for task in (within, beyond)]
    assert sorted(answers) == [200, 409]
    assert await stopping == {"type": "lifespan.shutdown.complete"}


async def test_a_second_signal_does_not_begin_a_second_grace(server, heard, caplog):
    caplog.set_level("INFO", "invocations_app.lifespan")
    end()
    await closing()
    end(signal.SIGINT)
    await asyncio.sleep(0.02)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert [record.getMessage() for record in caplog.records if record.name == "invocations_app.lifespan"] == [
        "Shutting down: 0 runs, 20 seconds of grace."
    ]


async def test_the_servers_handlers_are_back_after_the_shutdown(server, heard):
    await server.tell("lifespan.shutdown")
    await server.task
    end()
    end(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert not isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), SignalChain)


async def test_a_loop_that_is_used_again_takes_runs_again(server, settings):
    settings.INVOCATIONS = scripted()
    fakes.script(["done"])
    await server.tell("lifespan.shutdown")
    assert ((await post({"message": "a"})).status_code) == 503
    again = Server()
    await again.tell("lifespan.startup")
    assert ((await post({"message": "a"})).status_code) == 200
    await again.tell("lifespan.shutdown")


async def test_a_server_that_cancels_its_lifespan_ends_the_runs_at_once(server):
    fakes.script(["a", fakes.gate()])
    reader = Reader(await ask("i1", {"message": "a", "session_id": "s1", "stream": True}))
    await fakes.gate().wait_reached()
    end()
    await closing()
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.task
    assert await reader.rest() == b"data: a\n\n" + CUT
    assert (await status("i1"))["status"] == "interrupted"


async def test_an_agent_that_does_not_stop_is_not_waited_for(server, settings, monkeypatch, caplog):
    settings.INVOCATIONS_HOST = {"SHUTDOWN_GRACE_SECONDS": 0}
    monkeypatch.setattr(host_module, "_STOP_SECONDS", 0.1)

    async def hold_on() -> None:
        try:
            await fakes.gate().pass_through()
        except asyncio.CancelledError:
            await fakes.gate("held").pass_through()
            raise

    fakes.script([hold_on])
    reader = Reader(await ask("i1", {"message": "a", "stream": True}))
    await fakes.gate().wait_reached()
    [run] = live_runs()
    assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
    assert f"Invocation {run.correlation_id} did not stop at shutdown." in [
        record.getMessage() for record in caplog.records
    ]
    fakes.gate("held").open()
    assert await reader.rest() == CUT


async def test_targets_that_do_not_leave_are_not_waited_for(server, monkeypatch, caplog):
    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(process, "_LEAVE_SECONDS", 0.05)
    monkeypatch.setattr(targets, "stop_all", never)
    assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
    assert "The targets were not left within 0 seconds." in [record.getMessage() for record in caplog.records]


async def test_no_thread_and_no_connection_of_the_app_is_left(server):
    fakes.script(["done"])
    await ask("i1", {"message": "a", "session_id": "s1"})
    assert [thread for thread in threading.enumerate() if thread.name.startswith("invocations-db")]
    await server.tell("lifespan.shutdown")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("invocations-")]
    assert database._executor is None


async def test_events_that_were_written_without_the_process_knowing_do_not_keep_the_end_from_being_written(server):
    fakes.script(["a", "b", fakes.gate()])
    reader = Reader(await ask("i1", {"message": "a", "session_id": "s1", "stream": True}))
    await fakes.gate().wait_reached()
    [run] = live_runs()
    assert run.record_pk is not None
    # Its transaction went through, but nobody was there any more to hear of it.
    batch = Batch(run.record_pk, 1, (b"data: a\n\n",))
    run.tape.mark_logged(0)
    await database.run(lambda: EventRecord.objects.all().delete())
    await database.run(lambda: event_log.write_batch("default", batch))
    fakes.gate().open()
    await reader.rest()
    assert (await status("i1"))["status"] == "succeeded"
    assert await events_of("i1") == b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\n" + DONE


# The chain itself.


async def test_handlers_of_the_loop_are_called_too():
    loop = asyncio.get_running_loop()
    heard: list[str] = []
    loop.add_signal_handler(signal.SIGTERM, heard.append, "loop")
    chain = SignalChain(lambda: heard.append("chain"))
    try:
        chain.install()
        end()
        await until(lambda: len(heard) == 2, "both")
        assert sorted(heard) == ["chain", "loop"]
    finally:
        chain.restore()
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_signal_that_nobody_handles_is_left_alone(heard):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    chain = SignalChain(lambda: None)
    chain.install()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == chain._handle
    chain.restore()


async def test_a_handler_that_came_later_is_not_taken_away(heard):
    chain = SignalChain(lambda: None)
    chain.install()

    def later(*args: Any) -> None:
        return None

    signal.signal(signal.SIGTERM, later)
    chain.restore()
    assert signal.getsignal(signal.SIGTERM) is later


async def test_outside_the_main_thread_no_handler_is_changed(heard):
    before = signal.getsignal(signal.SIGTERM)

    async def install() -> None:
        chain = SignalChain(lambda: None)
        chain.install()
        chain.restore()

    thread = threading.Thread(target=asyncio.run, args=[install()])
    thread.start()
    await asyncio.to_thread(thread.join)
    assert signal.getsignal(signal.SIGTERM) is before
