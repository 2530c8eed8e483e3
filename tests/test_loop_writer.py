"""Lone turns written in the event loop's own thread: which are, which are not, and that nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from invocations_app.events import Answer
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import database, groups, kept, loop_writer, turns
from invocations_app.storage.turns import Turn
from tests.client import post
from tests.session_fakes import failing_statements
from tests.test_grouping import held
from tests.test_turns import change_of, ending, request

sqlite_only = pytest.mark.skipif(
    "connection.vendor != 'sqlite'", reason="other databases are never written to from here"
)
pytestmark = [pytest.mark.django_db(transaction=True), sqlite_only]


class Sent:
    """What was sent to the database's threads since the last look."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def taken(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    noted = Sent()
    original = database.send

    def send(function: Callable[[], Callable[[], None]]) -> None:
        noted.names.append(getattr(function, "func", function).__name__)
        original(function)

    monkeypatch.setattr(database, "send", send)
    loop_writer.writer.close()
    return noted


@pytest.fixture
async def ready(sent: Sent) -> Sent:
    """Have the connection opened, which the first turn asks for and does not wait for."""
    await whole_turn("first")
    await settled()
    assert sent.taken() == ["_connect", "_carry_out"]
    return sent


async def settled() -> None:
    """Wait until the database's threads have nothing to do."""
    while not database.is_idle():
        await asyncio.sleep(0.001)


async def begin(session_id: str | None = "s1", **kwargs: Any) -> Any:
    return await groups.begin(request(session_id, **kwargs))


async def commit(turn: Turn, *texts: str) -> None:
    change = change_of(turn, *texts) if turn.session is not None else None
    await groups.commit(turn, change, Answer("pong", session_id="s1"), ending(turn))
    groups.keep(turn, change)


async def whole_turn(session_id: str | None = "s1", *texts: str) -> Turn:
    turn = await begin(session_id)
    assert isinstance(turn, Turn)
    await commit(turn, *(texts or ("ping", "pong")))
    return turn


def unrecorded() -> Turn:
    """Return a turn that is recorded once, at its end."""
    job = request(None)
    return Turn(0, job.owner, None, job.begun_at, unrecorded=job)


@contextlib.contextmanager
def locked() -> Iterator[Callable[[], None]]:
    """Hold the database's lock, as another process would; yields what lets go of it."""
    other = sqlite3.connect(str(connection.settings_dict["NAME"]), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def let_go() -> None:
        if other.in_transaction:
            other.execute("ROLLBACK")

    try:
        yield let_go
    finally:
        let_go()
        other.close()


async def count(model: Any, **columns: Any) -> int:
    return await database.run(lambda: int(model.objects.filter(**columns).count()))


# What goes which way


async def test_the_first_turn_asks_for_a_connection_and_goes_by_the_thread(sent: Sent) -> None:
    await whole_turn()
    assert sent.taken()[0] == "_connect"
    assert sent.taken() == []


async def test_a_lone_turn_wakes_no_thread(ready: Sent) -> None:
    turn = await whole_turn("s1", "ping", "pong")
    assert ready.taken() == []
    record = await database.run(lambda: InvocationRecord.objects.get(pk=turn.record_pk))
    session = await database.run(lambda: SessionRecord.objects.get(session_id="s1"))
    messages = await database.run(lambda: list(MessageRecord.objects.filter(session=session).order_by("position")))
    assert (record.status, record.session_record_id) == ("succeeded", session.pk)
    assert (session.version, session.claim_number, session.claimed_by, session.message_count) == (1, 1, None, 2)
    assert [message.position for message in messages] == [0, 1]


async def test_a_job_that_is_lone_is_done_before_anybody_waits_for_it(ready: Sent) -> None:
    begun = groups.begin(request("s1"), is_lone=True)
    assert begun.done()
    turn = begun.result()
    assert isinstance(turn, Turn)
    answer = Answer("pong", session_id="s1")
    assert groups.commit(turn, change_of(turn, "ping"), answer, ending(turn), is_lone=True).done()
    assert ready.taken() == []
    assert await count(InvocationRecord, status="succeeded", pk=turn.record_pk) == 1


async def test_a_lone_job_that_cannot_be_done_now_is_left_to_the_thread(ready: Sent) -> None:
    with locked() as let_go:
        begun = groups.begin(request("s1"), is_lone=True)
        assert not begun.done()
        let_go()
    assert isinstance(await begun, Turn)
    assert ready.taken() == ["_carry_out"]


async def test_a_lone_job_waits_its_turn_behind_those_that_gather(ready: Sent) -> None:
    first = groups.begin(request("s1"))
    second = groups.begin(request("s1", on_busy="wait"), is_lone=True)
    assert not second.done()
    assert isinstance(await first, Turn)
    assert isinstance(await second, turns.Waiting)


async def test_a_run_is_lone_as_long_as_few_others_live(ready: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    original = groups.begin

    def begin(request: turns.TurnRequest, *, is_lone: bool = False) -> asyncio.Future[turns.Begun]:
        said.append(is_lone)
        return original(request, is_lone=is_lone)

    monkeypatch.setattr(groups, "begin", begin)
    await post({"message": "hi", "session_id": "alone"})
    assert said == [True]
    said.clear()
    monkeypatch.setattr(loop_writer, "FEW", 0)
    await post({"message": "hi", "session_id": "one of many"})
    assert said == [False]


async def test_the_record_of_a_lone_turn_is_one_statement(ready: Sent) -> None:
    told: list[str] = []
    with failing_statements(lambda sql: told.append(sql) is not None):
        await commit(unrecorded())
    assert [sql.split(None, 3)[:3] for sql in told] == [["INSERT", "INTO", '"invocations_app_invocationrecord"']]
    assert ready.taken() == []
    assert await count(InvocationRecord, status="succeeded") == 2


async def test_a_record_that_cannot_be_written_now_is_left_to_the_thread(ready: Sent) -> None:
    with locked() as let_go:
        committing = asyncio.ensure_future(commit(unrecorded()))
        await asyncio.sleep(0.05)
        assert not committing.done()
        assert ready.taken() == ["_carry_out"]
        let_go()
        await committing
    assert await count(InvocationRecord, status="succeeded") == 2


async def test_a_session_that_is_kept_is_claimed_without_a_thread(ready: Sent) -> None:
    for number in range(1, 4):
        turn = await whole_turn("s1", f"ping {number}")
        assert turn.session is not None
        assert turn.session.version == number - 1
    assert ready.taken() == []


async def test_a_history_that_has_to_be_read_is_left_to_the_thread(ready: Sent) -> None:
    await whole_turn("s1", "ping", "pong")
    kept.sessions.clear()
    turn = await begin("s1")
    assert ready.taken() == ["_carry_out"]
    assert [row.position for row in turn.session.rows] == [0, 1]


async def test_what_is_left_out_goes_by_the_thread_and_the_others_do_not(ready: Sent) -> None:
    await begin("busy")
    busy, free = await asyncio.gather(begin("busy", on_busy="wait"), begin("free"))
    assert isinstance(busy, turns.Waiting)
    assert isinstance(free, Turn)
    assert ready.taken() == ["_carry_out"]


async def test_an_invocation_that_was_begun_before_is_told_by_the_thread(ready: Sent) -> None:
    first = await begin(None, invocation_id="the-same")
    again = await begin(None, invocation_id="the-same")
    assert isinstance(again, turns.StoredInvocation)
    assert again.pk == first.record_pk
    assert ready.taken() == ["_carry_out"]


async def test_many_at_once_go_by_the_thread(ready: Sent) -> None:
    few = await asyncio.gather(*(begin(f"few-{number}") for number in range(loop_writer.FEW)))
    assert ready.taken() == []
    many = await asyncio.gather(*(begin(f"many-{number}") for number in range(loop_writer.FEW + 1)))
    assert ready.taken() == ["_carry_out"]
    assert len({turn.record_pk for turn in (*few, *many)}) == 2 * loop_writer.FEW + 1


@pytest.mark.parametrize(("characters", "sent_off"), [(60_000, []), (70_000, ["_carry_out"])])
async def test_a_long_text_is_left_to_the_thread(ready: Sent, characters: int, sent_off: list[str]) -> None:
    short, long = await begin("short"), await begin("long")
    await asyncio.gather(commit(short, "ping"), commit(long, "x" * characters))
    assert ready.taken() == sent_off
    assert await count(InvocationRecord, status="succeeded") == 3


async def test_the_thread_has_a_turn_now_and_then(ready: Sent) -> None:
    for number in range(loop_writer._JOBS_IN_A_ROW + 1):
        await begin(f"s{number}")
    assert ready.taken() == ["_carry_out"]
    await begin("next")
    assert ready.taken() == []


# Nobody waits


async def test_a_database_that_is_locked_does_not_keep_the_loop_waiting(ready: Sent) -> None:
    with locked() as let_go:
        beginning = asyncio.ensure_future(begin("s1"))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.005)
            ticks += 1
        assert not beginning.done()
        assert ready.taken() == ["_carry_out"]
        let_go()
        turn = await beginning
    assert isinstance(turn, Turn)
    assert await count(InvocationRecord) == 2


async def test_a_thread_that_is_busy_is_not_overtaken(ready: Sent) -> None:
    with held():
        beginning = asyncio.ensure_future(begin("s1"))
        await asyncio.sleep(0.02)
        assert not beginning.done()
    assert isinstance(await beginning, Turn)
    assert ready.taken() == ["wait", "_carry_out"]


async def test_a_call_that_was_cancelled_in_the_queue_does_not_count_as_work(ready: Sent) -> None:
    with held():
        call = asyncio.ensure_future(count(InvocationRecord))
        await asyncio.sleep(0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    await settled()
    await begin("s1")
    assert ready.taken() == ["wait"]


# What fails


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "UPDATE", "COMMIT"])
async def test_whatever_fails_is_taken_back_and_done_by_the_thread(ready: Sent, statement: str) -> None:
    failed: list[str] = []

    def fails_once(sql: str) -> bool:
        if failed or not sql.lstrip().startswith(statement):
            return False
        failed.append(sql)
        return True

    with failing_statements(fails_once):
        turn = await whole_turn("s1", "ping", "pong")
    assert len(failed) == 1
    assert ready.taken() == ["_carry_out"]
    assert await count(InvocationRecord) == 2
    assert await count(InvocationRecord, pk=turn.record_pk, status="succeeded") == 1
    assert await count(MessageRecord, session__session_id="s1") == 2


async def test_a_connection_that_broke_is_replaced(ready: Sent) -> None:
    broken = loop_writer.writer._own._connection
    broken.connection.close()
    await whole_turn("s1")
    await settled()
    assert "_carry_out" in ready.taken()
    await whole_turn("s2")
    await settled()
    ready.taken()
    await whole_turn("s3")
    assert ready.taken() == []
    assert loop_writer.writer._own._connection is not broken
    assert await count(InvocationRecord, status="succeeded") == 4


async def test_a_connection_that_cannot_be_opened_is_asked_for_again(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(driver: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(loop_writer.writer._own, "_suits", fail)
        await whole_turn("s1")
        await settled()
        assert sent.taken() == ["_connect", "_carry_out", "_connect", "_carry_out"]
    await whole_turn("s2")
    await whole_turn("s3")
    assert sent.taken() == ["_connect", "_carry_out"]


async def test_an_interrupt_in_the_midst_leaves_nobody_waiting(ready: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: Any) -> Any:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(groups._begins, "_at_once", interrupt)
        beginning = groups.begin(request("s1"))
        with pytest.raises(Interrupt):
            groups._begins._send()
    assert isinstance(await beginning, Turn)
    assert ready.taken() == ["_carry_out"]
    await whole_turn("s2")
    assert ready.taken() == []


async def test_turns_of_several_loops_are_told_in_their_own(ready: Sent) -> None:
    here = asyncio.get_running_loop()
    asked, may_send = threading.Event(), threading.Event()
    told_by: list[threading.Thread] = []

    async def elsewhere() -> Any:
        future = groups.begin(request("elsewhere"))
        future.add_done_callback(lambda _: told_by.append(threading.current_thread()))
        asked.set()
        # Its loop is kept from sending: the other one takes both. One that debugs refuses calls from other threads.
        may_send.wait(4)
        return await asyncio.wait_for(future, 4)

    other = asyncio.ensure_future(asyncio.to_thread(asyncio.run, elsewhere(), debug=True))
    assert await asyncio.to_thread(asked.wait, 4)
    mine = groups.begin(request("here"))
    groups._begins._send()
    may_send.set()
    turns_begun = await asyncio.gather(mine, other)
    assert [type(turn) for turn in turns_begun] == [Turn, Turn]
    assert ready.taken() == []
    assert told_by[0] is not threading.current_thread()
    assert mine.get_loop() is here


async def test_an_order_that_cannot_be_told_fails_its_own_group_only(ready: Sent) -> None:
    nothing: Any = None
    with pytest.raises(AttributeError):
        await groups.begin(nothing)
    assert isinstance(await begin("s1"), Turn)


async def test_closing_the_connections_closes_this_one_too(ready: Sent) -> None:
    driver = loop_writer.writer._own._connection.connection
    await asyncio.to_thread(database.close)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")
    await whole_turn("s1")
    assert ready.taken()[0] == "_connect"


# Which databases


@pytest.mark.parametrize(
    ("pragmas", "flushes_nothing"),
    [
        ("journal_mode=WAL; synchronous=NORMAL", True),
        ("journal_mode=WAL; synchronous=OFF", True),
        ("journal_mode=WAL; synchronous=FULL", False),
        ("journal_mode=WAL; synchronous=EXTRA", False),
        ("journal_mode=DELETE; synchronous=NORMAL", False),
        ("journal_mode=MEMORY; synchronous=OFF", False),
    ],
)
async def test_only_a_database_whose_commit_flushes_nothing_is_written_to_from_here(
    tmp_path: Path, pragmas: str, flushes_nothing: bool
) -> None:
    driver = sqlite3.connect(tmp_path / "other.sqlite3")
    for pragma in pragmas.split("; "):
        driver.execute(f"PRAGMA {pragma}")
    assert loop_writer._flushes_nothing(driver) is flushes_nothing
    driver.close()


async def test_a_database_that_flushes_is_asked_about_once(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_writer.writer._own, "_suits", lambda _: False)
    for number in range(3):
        await whole_turn(f"s{number}")
        await settled()
    assert sent.taken() == ["_connect", *["_carry_out"] * 6]
