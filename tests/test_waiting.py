"""Turns of one session: one after the other in order of arrival, or refused; and what leaving a queue means."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from agent_framework import Message

from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.runs.host import live_runs
from invocations_app.runs.waiting import _lines
from invocations_app.storage import turns
from tests import fakes
from tests.client import endpoint, records, rows
from tests.durable import (
    DONE,
    abandon,
    ask,
    body_of,
    drop,
    on_database,
    scripted,
    status,
    until,
    until_idle,
    until_status,
)

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1"}
BUSY = b'{"error":"the session is busy"}'


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


async def hold_session(text: str = "first") -> asyncio.Task[Any]:
    """Let ``i0`` run at the gate, in session ``s1``."""
    task = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    return task


async def queue(*names: str, **body: Any) -> list[asyncio.Task[Any]]:
    """Let invocations wait for session ``s1``, one after the other."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(ask(name, ONE | {"message": name} | body)))
        await until_status(name, "queued")
    return tasks


async def history() -> list[str]:
    stored = await rows(lambda: MessageRecord.objects.order_by("position"))
    return [Message.from_json(row.payload).text for row in stored]


# Order


async def test_turns_run_in_the_order_in_which_they_came():
    fakes.script([fakes.gate(), "a0"], *[[f"a{number}"] for number in range(1, 9)])
    holder = await hold_session()
    waiting = await queue(*[f"i{number}" for number in range(1, 9)])
    fakes.gate().open()
    answers = await asyncio.gather(holder, *waiting)
    assert [answer.json()["response"] for answer in answers] == [f"a{number}" for number in range(9)]
    expected = [text for number in range(9) for text in (f"i{number}" if number else "hi", f"a{number}")]
    assert await history() == expected
    starts = [record.finished_at for record in await records()]
    assert starts == sorted(starts)
    assert not _lines.get(asyncio.get_running_loop())


async def test_turns_that_come_at_once_never_meet(settings):
    settings.INVOCATIONS = endpoint()
    answers = await asyncio.gather(*[ask(f"i{number}", ONE | {"message": f"m{number}"}) for number in range(20)])
    assert [answer.json()["response"] for answer in answers] == [f"m{number}" for number in range(20)]
    order = [record.invocation_id.replace("i", "m") for record in await records()]
    assert await history() == [text for name in order for text in (name, name)]
    [session] = await rows(SessionRecord.objects.all)
    assert (session.version, session.claim_number, session.claimed_by) == (20, 20, None)


async def test_other_sessions_do_not_wait():
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    assert (await ask("i1", {"message": "hi", "session_id": "s2"})).json()["response"] == "second"
    assert (await ask("i2", {"message": "hi"})).json()["response"] == "second"
    fakes.gate().open()
    await holder


async def test_a_new_turn_does_not_overtake_one_that_waits():
    fakes.script([fakes.gate(), "a0"], [fakes.gate("one"), "a1"], ["a2"])
    holder = await hold_session()
    [first] = await queue("i1")
    # The session is free for a moment, and somebody waits for it.
    fakes.gate().open()
    await holder
    second = asyncio.create_task(ask("i2", ONE))
    await fakes.gate("one").wait_reached()
    await until_status("i2", "queued")
    fakes.gate("one").open()
    assert [(await task).json()["response"] for task in (first, second)] == ["a1", "a2"]


async def test_a_stream_has_its_headers_only_after_the_claim():
    fakes.script([fakes.gate(), "first"], ["sec", "ond"])
    holder = await hold_session()
    [stream] = await queue("i1", stream=True)
    await asyncio.sleep(0.05)
    assert not stream.done()
    fakes.gate().open()
    assert await body_of(await stream) == b"data: sec\n\ndata: ond\n\n" + DONE
    await holder


async def test_a_turn_sees_what_the_one_before_it_said():
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    [waiting] = await queue("i1")
    fakes.gate().open()
    await asyncio.gather(holder, waiting)
    assert fakes.calls[-1].texts == [("user", "hi"), ("assistant", "first"), ("user", "i1")]


async def test_a_failed_turn_lets_the_next_one_go():
    fakes.script([fakes.gate(), RuntimeError("no")], ["second"])
    holder = await hold_session()
    [waiting] = await queue("i1")
    fakes.gate().open()
    assert ((await holder).status_code, (await waiting).json()["response"]) == (500, "second")
    assert fakes.calls[-1].texts == [("user", "i1")]


# Time


async def test_who_waited_long_enough_is_refused_and_leaves_no_row(settings):
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0.1)
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    [plain, stream] = [*await queue("i1"), *await queue("i2", stream=True)]
    for task in (plain, stream):
        answer = await task
        assert (answer.status_code, answer.content) == (409, BUSY)
        assert answer.headers["x-agent-session-id"] == "s1"
    assert [record.invocation_id for record in await records()] == ["i0"]
    fakes.gate().open()
    await holder
    # Its id is free for anything.
    assert (await ask("i1", ONE | {"message": "other"})).json()["response"] == "second"


async def test_no_waiting_time_is_one_try(settings):
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0)
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    assert (await ask("i1", ONE)).content == BUSY
    fakes.gate().open()
    await holder
    assert (await ask("i1", ONE)).json()["response"] == "second"


async def test_who_gives_up_lets_those_behind_pass(settings):
    fakes.script([fakes.gate(), "first"], ["second"])
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0.1)
    holder = await hold_session()
    [impatient] = await queue("i1")
    settings.INVOCATIONS = scripted()
    [patient] = await queue("i2")
    assert (await impatient).content == BUSY
    fakes.gate().open()
    assert (await patient).json()["response"] == "second"
    await holder


async def test_waiting_is_not_run_time(settings):
    settings.INVOCATIONS = scripted(RUN_TIMEOUT_SECONDS=0.3)
    fakes.script([fakes.gate(), "first"], [lambda: asyncio.sleep(0.15), "second"])
    holder = await hold_session()
    [waiting] = await queue("i1")
    await asyncio.sleep(0.2)
    fakes.gate().open()
    assert (await waiting).json()["response"] == "second"
    await holder


async def test_a_turn_that_could_be_claimed_just_as_its_time_ended_is_run(settings, monkeypatch):
    settings.INVOCATIONS = scripted(SESSION_WAIT_SECONDS=0.2)
    fakes.script([fakes.gate(), "first"], ["second"])
    claim = turns._claim_waiting

    def slow(waiting: Any) -> Any:
        claimed = claim(waiting)
        if claimed is not None:
            time.sleep(0.3)
        return claimed

    monkeypatch.setattr(turns, "_claim_waiting", slow)
    holder = await hold_session()
    [waiting] = await queue("i1")
    fakes.gate().open()
    assert (await waiting).json()["response"] == "second"
    await holder


# Refusing


@pytest.mark.parametrize("kind", [{}, {"stream": True}, {"background": True}], ids=["plain", "stream", "background"])
async def test_in_reject_mode_a_busy_session_is_409_at_once_and_nothing_is_written(settings, kind):
    settings.INVOCATIONS = scripted(ON_BUSY_SESSION="reject")
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    before = await rows(SessionRecord.objects.values)
    answer = await ask("i1", ONE | kind)
    assert (answer.status_code, answer.content) == (409, BUSY)
    assert len(await records()) == 1
    assert await rows(SessionRecord.objects.values) == before
    fakes.gate().open()
    await holder
    assert (await ask("i1", ONE)).json()["response"] == "second"


async def test_in_reject_mode_there_is_one_winner(settings):
    settings.INVOCATIONS = scripted(ON_BUSY_SESSION="reject")
    fakes.script([fakes.gate(), "won"])
    tasks = [asyncio.create_task(ask(f"i{number}", ONE)) for number in range(10)]
    await fakes.gate().wait_reached()
    await until(lambda: sum(task.done() for task in tasks) == 9, "nine losers")
    fakes.gate().open()
    answers = await asyncio.gather(*tasks)
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 9]
    assert [record.status for record in await records()] == ["succeeded"]
    assert len(await history()) == 2


# Leaving


async def test_who_leaves_while_waiting_is_run_all_the_same():
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    [waiting] = await queue("i1")
    await drop(waiting)
    await asyncio.sleep(0.02)
    assert (await status("i1"))["status"] == "queued"
    fakes.gate().open()
    await holder
    await until_status("i1", "succeeded")
    assert (await ask("i1", ONE | {"message": "i1"})).json()["response"] == "second"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_while_waiting_is_cancelled_where_that_is_wanted(settings, stream):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script([fakes.gate(), "first"], ["third"])
    holder = await hold_session()
    [left] = await queue("i1", stream=stream)
    [stays] = await queue("i2")
    await drop(left)
    await until_status("i1", "cancelled")
    fakes.gate().open()
    await holder
    assert (await stays).json()["response"] == "third"
    assert [record.status for record in await records()] == ["succeeded", "cancelled", "succeeded"]


async def test_who_leaves_in_the_middle_of_its_claim_frees_the_session(settings, monkeypatch):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script([fakes.gate(), "first"], [fakes.gate("second"), "late"])
    claim = turns._claim_waiting
    claimed = []

    def slow(waiting: Any) -> Any:
        turn = claim(waiting)
        if turn is not None and not claimed:
            claimed.append(turn)
            time.sleep(0.1)
        return turn

    monkeypatch.setattr(turns, "_claim_waiting", slow)
    holder = await hold_session()
    [left] = await queue("i1")
    fakes.gate().open()
    await until(lambda: claimed)
    await drop(left)
    await holder
    await until_status("i1", "cancelled")
    fakes.gate("second").open()
    assert (await ask("i2", ONE)).json()["response"] == "late"
    assert await history() == ["hi", "first", "hi", "late"]
    await until_idle()


# Processes that die


async def test_a_waiter_whose_process_died_is_skipped():
    fakes.script([fakes.gate(), "first"], ["third"])
    holder = await hold_session()
    [dead] = await queue("i1")
    [alive] = await queue("i2")
    await on_database(lambda: abandon(invocation_id="i1"))
    fakes.gate().open()
    assert (await alive).json()["response"] == "third"
    answer = await dead
    assert (answer.status_code, answer.content) == (409, b'{"error":"this invocation was interrupted"}')
    await holder
    assert (await status("i1"))["status"] == "interrupted"


async def test_a_waiter_takes_over_a_claim_that_ran_out():
    fakes.script([fakes.gate(), "never"], ["second"])
    holder = await hold_session()
    [waiting] = await queue("i1")
    await on_database(lambda: abandon(invocation_id="i0"))
    assert (await waiting).json()["response"] == "second"
    assert (await status("i0"))["status"] == "interrupted"
    assert (await holder).content == b'{"error":"this invocation was interrupted"}'
    # It came back too late: nothing of it is in the session.
    assert await history() == ["i1", "second"]
    [session] = await rows(SessionRecord.objects.all)
    assert (session.claim_number, session.version) == (2, 1)


async def test_a_new_turn_takes_over_a_claim_that_ran_out(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 60000}
    fakes.script([fakes.gate(), "late"], ["second"])
    holder = await hold_session()
    await on_database(lambda: abandon(invocation_id="i0"))
    assert (await ask("i1", ONE)).json()["response"] == "second"
    # The sleeper wakes: fenced by the claim, it cannot commit.
    fakes.gate().open()
    assert (await holder).content == b'{"error":"this invocation was interrupted"}'
    assert await history() == ["hi", "second"]
    assert [record.status for record in await records()] == ["interrupted", "succeeded"]


async def test_a_sleeper_cannot_commit_though_nobody_took_over(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 60000}
    fakes.script([fakes.gate(), "late"])
    holder = await hold_session()
    await on_database(lambda: abandon(invocation_id="i0"))
    fakes.gate().open()
    assert (await holder).content == b'{"error":"this invocation was interrupted"}'
    assert await history() == []
    assert (await status("i0"))["status"] == "interrupted"


async def test_a_sleeper_is_fenced_by_the_claim_when_the_one_between_failed(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 60000}
    fakes.script([fakes.gate(), "late"], [RuntimeError("no")])
    holder = await hold_session()
    owner = (await records())[0].owner
    await on_database(lambda: abandon(invocation_id="i0"))
    assert (await ask("i1", ONE)).status_code == 500

    def revive() -> None:
        # As if the record had not been noticed: the session's version is unchanged, its claim is not.
        InvocationRecord.objects.filter(invocation_id="i0").update(
            status="running", owner=owner, lease_expires_at=None, error_code="", finished_at=None
        )

    await on_database(revive)
    fakes.gate().open()
    assert (await holder).content == b'{"error":"this invocation was interrupted"}'
    assert await history() == []


async def test_nothing_is_left_of_those_who_waited():
    fakes.script([fakes.gate(), "first"], ["second"])
    holder = await hold_session()
    waiting = await queue("i1", "i2", "i3")
    fakes.gate().open()
    await asyncio.gather(holder, *waiting)
    await until_idle()
    assert live_runs() == frozenset()
    assert not _lines.get(asyncio.get_running_loop())
