"""Failures at each point of a run: what is answered, what is kept, and that nothing is left running."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.runs import run as run_module
from invocations_app.runs import sessions
from invocations_app.runs.host import live_runs
from invocations_app.storage import database
from invocations_app.storage import kept as kept_in_memory
from tests import fakes
from tests.session_fakes import SECRET, failing_statements, post, stream, table

pytestmark = pytest.mark.django_db(transaction=True)

FAILED = "Agent invocation failed."
BODY = {"message": "ping", "session_id": "s1"}


@pytest.fixture(autouse=True)
def _fresh_stores():
    sessions.get_store.cache_clear()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away is not waited for."""
    monkeypatch.setattr(run_module, "_PATIENCE_SECONDS", 0)


@pytest.fixture
def target(settings: Any) -> Callable[..., None]:
    def use(name: str = "tests.fakes.build_scripted", **more: Any) -> None:
        settings.INVOCATIONS = {"default": {"TARGET": name, **more}}

    return use


async def kept() -> tuple[list[Any], list[Any]]:
    """Return what a failed turn must not change: all but the claim."""
    claim = {"claimed_by", "claim_number", "claim_expires_at"}
    rows = [{k: v for k, v in row.items() if k not in claim} for row in await table(SessionRecord)]
    return rows, await table(MessageRecord)


def still_running() -> list[str]:
    """Return what a run may have left running: itself, its tasks, its thread."""
    tasks = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("invocations-run")}
    return [
        *(run.correlation_id for run in live_runs()),
        *(name for name in tasks if not name.startswith("invocations target")),
        *threads,
    ]


async def assert_nothing_is_left() -> None:
    """Nothing runs, and no claim is held."""
    # A thread that was told to end takes a moment to do so.
    for _ in range(200):
        if not still_running():
            break
        await asyncio.sleep(0.01)
    assert still_running() == []
    assert all(row["claimed_by"] is None for row in await table(SessionRecord))


async def committed(client: Any) -> None:
    """Let one turn of the session end well."""
    fakes.script(["first"])
    assert (await post(client, BODY)).status_code == 200


async def ends_with(client: Any, *, pieces: bytes = b"", text: str = FAILED, code: str = "invocation_failed") -> None:
    """Let a streamed turn fail after its headers, and look at everything it leaves."""
    before = await kept()
    assert await stream(client, BODY) == pieces + f"event: error\ndata: {text}\n\n".encode()
    await is_left_as(before, code)


async def is_left_as(before: Any, code: str = "invocation_failed", status: int = 500) -> None:
    assert await kept() == before
    record = (await table(InvocationRecord))[-1]
    assert (record["status"], record["error_code"], record["error_status"]) == ("failed", code, status)
    assert (record["answer"], record["usage"]) == ("", "")
    assert record["finished_at"] is not None
    assert SECRET not in repr(await table(InvocationRecord))
    await assert_nothing_is_left()


async def fails_plainly(client: Any, text: str = FAILED, status: int = 500, code: str = "invocation_failed") -> None:
    """Let a plain turn fail, and look at everything it leaves."""
    before = await kept()
    response = await post(client, BODY)
    assert (response.status_code, response.json()) == (status, {"error": text})
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-agent-session-id"] == "s1"
    await is_left_as(before, code, status)


async def goes_on(client: Any, history: int = 2) -> None:
    """The session is free, and its next turn sees what was committed before."""
    fakes.script(["next"])
    assert (await post(client, BODY)).json() == {"response": "next", "session_id": "s1"}
    assert len(fakes.calls[-1].messages) == history + 1


# Before begin: no record


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("tests.fakes.build_broken", {}, "The agent is not available."),
        ("tests.fakes.build_nothing", {}, "The agent is not available."),
        ("tests.fakes.not_there", {}, "The agent is not available."),
        ("tests.fakes.build_echo", {"RUN_HOOK": "tests.session_fakes.raising_run_hook"}, FAILED),
        ("tests.fakes.build_echo", {"RUN_HOOK": "tests.session_fakes.wrong_run_hook"}, FAILED),
        ("tests.fakes.build_echo", {"RUN_HOOK": "tests.session_fakes.not_there"}, FAILED),
    ],
    ids=lambda value: str(value),
)
async def test_what_fails_before_begin_leaves_nothing(async_client, target, name, more, text, is_streamed):
    target(name, **more)
    response = await post(async_client, {**BODY, "stream": is_streamed}, x_agent_invocation_id="i1")
    assert (response.status_code, response.json()) == (500, {"error": text})
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-agent-invocation-id"] == "i1"
    assert await table(InvocationRecord) == await table(SessionRecord) == []
    assert fakes.calls == []
    await assert_nothing_is_left()
    # The id may be used again.
    target("tests.fakes.build_echo")
    assert (await post(async_client, BODY, x_agent_invocation_id="i1")).status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_database_that_is_away_before_begin_is_503(async_client, target, is_streamed):
    target()
    await committed(async_client)
    before = await kept(), await table(InvocationRecord)
    with failing_statements(lambda sql: True):
        response = await post(async_client, {**BODY, "stream": is_streamed})
    assert (response.status_code, response.content) == (503, b'{"error":"storage is not available"}')
    assert response.headers["Retry-After"] == "1"
    assert (await kept(), await table(InvocationRecord)) == before
    assert len(fakes.calls) == 1
    await assert_nothing_is_left()
    await goes_on(async_client)


# After begin, before anything was said


@pytest.mark.parametrize("spoil", ["state", "format", "message", "missing message"])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_unreadable_state_is_500_and_left_alone(async_client, target, caplog, spoil, is_streamed):
    target()
    await committed(async_client)

    def damage() -> None:
        if spoil == "state":
            SessionRecord.objects.update(state='{"broken')
        elif spoil == "format":
            state = SessionRecord.objects.get().state
            SessionRecord.objects.update(state=state.replace('"format":1', '"format":99'))
        elif spoil == "message":
            MessageRecord.objects.filter(position=1).update(payload='{"type":"message"')
        else:
            MessageRecord.objects.filter(position=1).delete()

    await database.run(damage)
    if spoil == "message":
        # What a process keeps in memory it does not read.
        kept_in_memory.sessions.clear()
    before = await kept()
    response = await post(async_client, {**BODY, "stream": is_streamed})
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    await is_left_as(before, "stored_state_unreadable")
    assert len(fakes.calls) == 1
    (session,) = await table(SessionRecord)
    assert f"The stored session with the key digest {session['key']} cannot be read." in caplog.text


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_foreign_row_under_the_key_is_500_and_left_alone(async_client, target, caplog, is_streamed):
    target()
    await committed(async_client)
    await database.run(lambda: SessionRecord.objects.update(user_key="user:7"))
    before = await kept(), await table(InvocationRecord)
    response = await post(async_client, {**BODY, "stream": is_streamed})
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    assert (await kept(), await table(InvocationRecord)) == before
    (session,) = await table(SessionRecord)
    assert f"The stored session with the key digest {session['key']} belongs to other columns." in caplog.text
    await assert_nothing_is_left()


# In the run


async def test_an_agent_that_fails_before_its_first_update(async_client, target):
    target()
    await committed(async_client)
    fakes.script([RuntimeError(SECRET)])
    await fails_plainly(async_client)
    await ends_with(async_client)
    await goes_on(async_client)


async def test_an_agent_that_fails_midway(async_client, target):
    target()
    await committed(async_client)
    fakes.script(["hel", "lo", RuntimeError(SECRET)])
    await fails_plainly(async_client)
    await ends_with(async_client, pieces=b"data: hel\n\ndata: lo\n\n")
    await goes_on(async_client)


async def test_a_first_turn_that_fails_leaves_a_session_without_content(async_client, target):
    target()
    fakes.script(["hel", RuntimeError(SECRET)])
    await post(async_client, BODY)
    assert await table(MessageRecord) == []
    assert [(row["version"], row["state"]) for row in await table(SessionRecord)] == [(0, "")]
    await goes_on(async_client, history=0)


async def test_an_agent_that_fails_without_a_session(async_client, target):
    target()
    fakes.script([RuntimeError(SECRET)])
    response = await post(async_client, {"message": "ping"})
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert "x-agent-session-id" not in response.headers
    assert await table(SessionRecord) == []
    await is_left_as(([], []))


async def test_an_agent_of_ones_own_that_fails_midway_is_closed(async_client, target):
    target("tests.fakes.build_custom_scripted")
    await committed(async_client)
    fakes.script(["hel", RuntimeError(SECRET)])
    await fails_plainly(async_client)
    await ends_with(async_client, pieces=b"data: hel\n\n")
    assert fakes.notes == ["custom stream closed"]


async def test_a_provider_that_fails_when_the_run_is_finalized(async_client, target):
    target("tests.session_fakes.build_broken_after_run")
    await committed(async_client)
    fakes.switches["after_run"] = True
    await fails_plainly(async_client)
    await ends_with(async_client, pieces=b"data: ping\n\n")
    fakes.switches.clear()
    assert (await post(async_client, BODY)).status_code == 200


class _Unusual(BaseException):
    """What no ``except Exception`` catches."""


@pytest.mark.parametrize("kind", [SystemExit, _Unusual, GeneratorExit, asyncio.CancelledError])
async def test_what_is_no_exception_ends_the_run_and_not_the_server(async_client, target, kind):
    target()
    await committed(async_client)

    def leave() -> None:
        raise kind(SECRET)

    fakes.script(["hel", leave])
    before = await kept()
    response = await asyncio.wait_for(post(async_client, BODY), 2)
    streamed = await asyncio.wait_for(stream(async_client, BODY), 2)
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert streamed == f"data: hel\n\nevent: error\ndata: {FAILED}\n\n".encode()
    assert await kept() == before
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded", "failed", "failed"]
    await assert_nothing_is_left()
    await goes_on(async_client)


async def test_a_run_that_outlasts_its_time(async_client, target):
    target()
    await committed(async_client)
    target(RUN_TIMEOUT_SECONDS=0.05)
    fakes.script(["hel", fakes.gate()])
    await fails_plainly(async_client, "the run timed out", 504, "timeout")
    before = await kept()
    assert await stream(async_client, BODY) == b"data: hel\n\nevent: error\ndata: the run timed out\n\n"
    await is_left_as(before, "timeout", 504)
    assert fakes.gate().left is not None
    target()
    await goes_on(async_client)


# Hooks


@pytest.mark.parametrize("hook", ["raising_response_hook", "wrong_response_hook", "not_there"])
async def test_a_response_hook_that_fails(async_client, target, hook):
    target()
    await committed(async_client)
    target(RESPONSE_HOOK=f"tests.session_fakes.{hook}")
    await fails_plainly(async_client)
    target()
    await goes_on(async_client)


@pytest.mark.parametrize("hook", ["raising_transform_hook", "not_there"])
async def test_a_stream_transform_hook_that_fails(async_client, target, hook):
    target()
    await committed(async_client)
    target(STREAM_TRANSFORM_HOOK=f"tests.session_fakes.{hook}")
    await ends_with(async_client)
    target()
    await goes_on(async_client)


# State and commit


@pytest.mark.filterwarnings("ignore:AgentSession state value:RuntimeWarning")
@pytest.mark.parametrize("value", [{1, 2}, (1, 2), float("nan"), {1: "a"}, object()], ids=repr)
async def test_state_that_is_not_json_fails_the_turn(async_client, target, value):
    target("tests.session_fakes.build_unstorable")
    await committed(async_client)
    fakes.switches["state"] = value
    await fails_plainly(async_client)
    await ends_with(async_client, pieces=b"data: ping\n\n")
    fakes.switches.clear()
    assert (await post(async_client, BODY)).status_code == 200


def _writes_the_answer(sql: str) -> bool:
    return sql.startswith("UPDATE") and "invocationrecord" in sql and "answer" in sql


def _writes_messages(sql: str) -> bool:
    return sql.startswith("INSERT") and "messagerecord" in sql


def _writes_the_session(sql: str) -> bool:
    return sql.startswith("UPDATE") and "sessionrecord" in sql and "message_count" in sql


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("fails", [_writes_the_session, _writes_messages, _writes_the_answer])
async def test_a_commit_that_fails_rolls_everything_back(async_client, target, fails):
    target()
    await committed(async_client)
    with failing_statements(fails):
        await fails_plainly(async_client)
        await ends_with(async_client, pieces=b"data: first\n\n")
    await goes_on(async_client)


async def test_another_store_that_fails_fails_the_turn(async_client, target):
    target(SESSION_STORE="tests.session_fakes.NotingStore")
    await committed(async_client)
    fakes.switches["store"] = True
    await fails_plainly(async_client)
    await ends_with(async_client, pieces=b"data: first\n\n")
    fakes.switches.clear()
    await goes_on(async_client)


async def test_another_store_that_cannot_be_had_fails_the_turn(async_client, target):
    target(SESSION_STORE="tests.session_fakes.not_there")
    await fails_before_the_run(async_client)
    target(SESSION_STORE="tests.fakes.build_nothing")
    await fails_before_the_run(async_client)


async def fails_before_the_run(client: Any) -> None:
    response = await post(client, BODY)
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert fakes.calls == []
    await assert_nothing_is_left()


@pytest.mark.usefixtures("_impatient")
async def test_a_database_that_is_gone_at_commit_leaves_a_claim_that_expires(async_client, target):
    target(ON_BUSY_SESSION="reject")
    await committed(async_client)
    before = await kept()
    fakes.script(["lost", fakes.gate()], ["next"])
    turn = asyncio.create_task(post(async_client, BODY))
    await fakes.gate().wait_reached()
    with failing_statements(lambda sql: True):
        fakes.gate().open()
        response = await turn
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert await kept() == before
    assert live_runs() == frozenset()
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded", "running"]
    assert (await post(async_client, BODY)).json() == {"error": "the session is busy"}
    now = timezone.now()
    await database.run(lambda: SessionRecord.objects.update(claim_expires_at=now))
    await database.run(lambda: InvocationRecord.objects.filter(status="running").update(lease_expires_at=now))
    await goes_on(async_client)
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded", "interrupted", "succeeded"]


@pytest.mark.usefixtures("_impatient")
async def test_a_stream_whose_database_is_gone_at_commit_ends_with_an_error(async_client, target):
    target()
    fakes.script(["lost", fakes.gate()])
    turn = asyncio.create_task(stream(async_client, BODY))
    await fakes.gate().wait_reached()
    with failing_statements(lambda sql: True):
        fakes.gate().open()
        assert await turn == f"data: lost\n\nevent: error\ndata: {FAILED}\n\n".encode()
    assert live_runs() == frozenset()
    assert await table(MessageRecord) == []


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_database_that_is_back_soon_after_loses_nothing(async_client, target, is_streamed):
    target()
    fakes.script(["kept", fakes.gate()])
    turn = asyncio.create_task((stream if is_streamed else post)(async_client, BODY))
    await fakes.gate().wait_reached()
    tries = []

    def fails(sql: str) -> bool:
        if _writes_the_answer(sql):
            tries.append(sql)
        return _writes_the_answer(sql) and len(tries) < 3

    with failing_statements(fails):
        fakes.gate().open()
        answer = await turn
    assert (answer if is_streamed else answer.content) == (
        b"data: kept\n\ndata: [DONE]\n\n" if is_streamed else b'{"response":"kept","session_id":"s1"}'
    )
    assert len(tries) == 3
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded"]
    assert [(row["version"], row["message_count"]) for row in await table(SessionRecord)] == [(1, 2)]
    assert len(await table(MessageRecord)) == 2
    await assert_nothing_is_left()


async def test_a_failure_is_recorded_when_the_database_is_back(async_client, target):
    target()
    await committed(async_client)
    before = await kept()
    fakes.script(["hel", RuntimeError(SECRET)])
    refused = []

    def fails(sql: str) -> bool:
        ends = sql.startswith("UPDATE") and "invocationrecord" in sql and "error_code" in sql
        if ends:
            refused.append(sql)
        return ends and len(refused) < 2

    with failing_statements(fails):
        assert (await post(async_client, BODY)).json() == {"error": FAILED}
    assert len(refused) == 2
    await is_left_as(before)


# What is said of an exception


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({}, SECRET),
        (
            {"RESPONSE_HOOK": "tests.session_fakes.raising_response_hook"},
            f"response hook 'tests.session_fakes.raising_response_hook' raised RuntimeError: {SECRET}",
        ),
        (
            {"RUN_HOOK": "tests.session_fakes.wrong_run_hook"},
            "run hook 'tests.session_fakes.wrong_run_hook' returned NoneType, not Invocation",
        ),
    ],
    ids=["agent", "response hook", "run hook"],
)
async def test_an_exceptions_text_is_in_live_answers_only_and_only_when_asked(async_client, target, setting, shown):
    fakes.script([RuntimeError(SECRET)] if not setting else ["a"])
    target(EXPOSE_ERRORS=True, **setting)
    response = await post(async_client, BODY)
    assert (response.status_code, response.json()) == (500, {"error": shown})
    target(EXPOSE_ERRORS=False, **setting)
    assert (await post(async_client, BODY)).json() == {"error": FAILED}
    records = await table(InvocationRecord)
    assert {row["error_code"] for row in records} <= {"invocation_failed"}
    assert SECRET not in repr(records)


@pytest.mark.parametrize("expose", [None, False, True])
@pytest.mark.parametrize("debug", [False, True])
async def test_errors_are_exposed_as_debug_says_unless_the_setting_does(async_client, target, settings, expose, debug):
    settings.DEBUG = debug
    target(EXPOSE_ERRORS=expose)
    fakes.script([RuntimeError(SECRET)])
    text = SECRET if (debug if expose is None else expose) else FAILED
    assert await stream(async_client, BODY) == f"event: error\ndata: {text}\n\n".encode()
    assert SECRET not in repr(await table(InvocationRecord))


async def test_a_targets_exception_is_exposed_when_asked(async_client, target):
    target("tests.fakes.build_broken", EXPOSE_ERRORS=True)
    assert (await post(async_client, BODY)).json() == {"error": "no model today"}


async def test_errors_that_are_not_500_keep_their_text(async_client, target):
    target(EXPOSE_ERRORS=True, RUN_TIMEOUT_SECONDS=0.02)
    fakes.script([fakes.gate()])
    assert (await post(async_client, BODY)).json() == {"error": "the run timed out"}


# Logs

_CALLER = {"message": "MESSAGE-OF-CALLER", "session_id": "SESSION-OF-CALLER", "metadata": {"k": "METADATA-OF-CALLER"}}
_HEADERS = {
    "x_agent_invocation_id": "INVOCATION-OF-CALLER",
    "x_agent_user_isolation_key": "USER-OF-CALLER",
    "x_agent_chat_isolation_key": "CHAT-OF-CALLER",
}


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "failing",
    ["agent", "timeout", "commit", "unreadable", "state", "response hook", "nothing"],
)
async def test_logs_carry_the_correlation_id_and_nothing_of_the_caller(
    async_client, target, caplog, failing, is_streamed
):
    caplog.set_level(logging.INFO)
    more: dict[str, Any] = {"TRUST_ISOLATION_HEADERS": True}
    target(**more)
    fakes.script(["ANSWER-OF-AGENT"])
    await post(async_client, _CALLER, **{**_HEADERS, "x_agent_invocation_id": "FIRST-OF-CALLER"})
    fails: Callable[[str], bool] = lambda sql: False  # noqa: E731
    if failing == "agent":
        fakes.script(["a", RuntimeError(SECRET)])
    elif failing == "timeout":
        more["RUN_TIMEOUT_SECONDS"] = 0.02
        fakes.script([fakes.gate()])
    elif failing == "commit":
        fails = _writes_the_answer
    elif failing == "unreadable":
        await database.run(lambda: MessageRecord.objects.all().delete())
    elif failing == "state":
        more["name"] = "tests.session_fakes.build_unstorable"
        fakes.switches["state"] = {1, 2}
    elif failing == "response hook":
        hook = "STREAM_TRANSFORM_HOOK" if is_streamed else "RESPONSE_HOOK"
        name = "raising_transform_hook" if is_streamed else "raising_response_hook"
        more[hook] = f"tests.session_fakes.{name}"
    target(**more)
    with failing_statements(fails):
        response = await post(async_client, {**_CALLER, "stream": is_streamed}, **_HEADERS)
        if response.streaming:
            async for _ in response.streaming_content:
                pass
    record = (await table(InvocationRecord))[-1]
    assert record["status"] == ("succeeded" if failing == "nothing" else "failed")
    text = caplog.text
    assert "OF-CALLER" not in text
    assert "OF-AGENT" not in text
    if failing != "nothing":
        assert record["correlation_id"] in text
        assert "Traceback" in text
