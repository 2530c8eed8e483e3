"""Begins and commits in groups: what goes together, what goes alone, and that nobody harms another."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from invocations_app.events import Answer
from invocations_app.exceptions import RunInterrupted, SessionBusy, TargetFailed
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import database, groups, loop_writer, swift, turns
from invocations_app.storage.grouping import Group, NotSwift
from invocations_app.storage.invocations import StoredInvocation
from invocations_app.storage.turns import Turn
from tests.session_fakes import failing_statements
from tests.test_turns import change_of, ending, request

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing written in the event loop's thread; see ``test_loop_writer.py``."""
    monkeypatch.setattr(loop_writer.LoopWriter, "write", lambda *_: {})


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep all database threads busy: what is asked for meanwhile gathers."""
    threads = database._get_executor()._max_workers
    all_wait, may_go = threading.Barrier(threads + 1), threading.Event()

    def wait() -> Callable[[], None]:
        all_wait.wait(3)
        may_go.wait(4)
        return lambda: None

    for _ in range(threads):
        database.send(wait)
    all_wait.wait(3)
    try:
        yield
    finally:
        may_go.set()


async def together(*jobs: Any) -> list[Any]:
    """Return what each of some coroutines returns or raises; they gather before the first is carried out."""
    with held():
        tasks = [asyncio.ensure_future(job) for job in jobs]
        await asyncio.sleep(0.01)
    return await asyncio.gather(*tasks, return_exceptions=True)


class Commits:
    """Counts the COMMITs of the app's threads, and breaks what it is told to.

    Attributes:
        count: Number of COMMITs, broken ones too.
        break_next: ``before`` or ``after`` the database was told, once.
    """

    def __init__(self) -> None:
        self.count = 0
        self.break_next: str | None = None

    def commit(self, original: Callable[[Any], Any], wrapper: Any) -> Any:
        if not threading.current_thread().name.startswith("invocations-db"):
            return original(wrapper)
        self.count += 1
        moment, self.break_next = self.break_next, None
        if moment == "before":
            raise OperationalError("the connection is gone")
        result = original(wrapper)
        if moment == "after":
            raise OperationalError("the confirmation is lost")
        return result


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    counting = Commits()
    original = BaseDatabaseWrapper._commit  # type: ignore[attr-defined]
    monkeypatch.setattr(BaseDatabaseWrapper, "_commit", lambda wrapper: counting.commit(original, wrapper))
    return counting


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note the jobs that are done alone."""
    noted: list[Any] = []
    for group in (groups._begins, groups._commits):
        original: Callable[[Any], Any] = group._alone

        def note(job: Any, original: Callable[[Any], Any] = original) -> Any:
            noted.append(job)
            return original(job)

        monkeypatch.setattr(group, "_alone", note)
    return noted


def begins(number: int, **kwargs: Any) -> list[turns.TurnRequest]:
    return [request(f"s{place}", **kwargs) for place in range(number)]


async def begin(job: turns.TurnRequest) -> Any:
    """Begin a turn when this is awaited, and not before."""
    return await groups.begin(job)


async def commit_of(turn: Turn, *texts: str, answer: Answer | None = None) -> Any:
    left = change_of(turn, *texts) if turn.session is not None else None
    return await groups.commit(turn, left, answer or Answer("pong", session_id="s"), ending(turn))


async def begun(number: int, **kwargs: Any) -> list[Turn]:
    outcomes = await together(*(begin(job) for job in begins(number, **kwargs)))
    assert [type(outcome) for outcome in outcomes] == [Turn] * number, outcomes
    return outcomes


async def all_rows(function: Callable[[], Any]) -> list[Any]:
    return await database.run(lambda: list(function()))


async def texts_by_session() -> dict[str, int]:
    pairs = await all_rows(lambda: SessionRecord.objects.order_by("session_id").values_list("session_id", "pk"))
    counts = {}
    for session_id, pk in pairs:
        counts[session_id] = len(await all_rows(lambda pk=pk: MessageRecord.objects.filter(session_id=pk)))
    return counts


async def assert_free_and_whole(number: int) -> None:
    """Assert that each of some sessions was written once, by a turn that succeeded, and is free."""
    sessions = await all_rows(lambda: SessionRecord.objects.values_list("version", "message_count", "claimed_by"))
    assert sessions == [(1, 2, None)] * number
    assert set((await texts_by_session()).values()) == {2}
    assert await all_rows(lambda: InvocationRecord.objects.values_list("status", flat=True)) == ["succeeded"] * number


# What goes together


async def test_begins_that_gather_share_one_transaction(commits: Commits, alone: list[Any]) -> None:
    turns_begun = await begun(10)
    assert (commits.count, alone) == (1, [])
    assert len({turn.record_pk for turn in turns_begun}) == 10
    claims = await all_rows(lambda: SessionRecord.objects.values_list("claimed_by", flat=True))
    assert sorted(claims) == sorted(turn.record_pk for turn in turns_begun)


async def test_commits_that_gather_share_one_transaction(commits: Commits, alone: list[Any]) -> None:
    turns_begun = await begun(10)
    commits.count = 0
    assert await together(*(commit_of(turn, "ping", "pong") for turn in turns_begun)) == [None] * 10
    assert (commits.count, alone) == (1, [])
    await assert_free_and_whole(10)


async def test_no_more_than_a_bounded_number_shares_a_transaction(commits: Commits, alone: list[Any]) -> None:
    turns_begun = await begun(150)
    assert (commits.count, alone) == (3, [])
    assert len({turn.record_pk for turn in turns_begun}) == 150


async def test_turns_of_one_session_that_gather_are_told_apart(alone: list[Any]) -> None:
    jobs = [request("s1") for _ in range(3)]
    outcomes = await together(*(begin(job) for job in jobs))
    assert [type(outcome) for outcome in outcomes].count(Turn) == 1
    assert [type(outcome) for outcome in outcomes].count(SessionBusy) == 2


async def test_groups_are_sorted_by_session(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    for group in (groups._begins, groups._commits):
        original: Callable[..., Any] = group._swift

        def note(connection: Any, cursor: Any, jobs: Any, original: Callable[..., Any] = original) -> Any:
            order.extend(jobs)
            return original(connection, cursor, jobs)

        monkeypatch.setattr(group, "_swift", note)
    jobs = begins(12)
    outcomes = await together(*(begin(job) for job in jobs))
    assert order == sorted(jobs, key=lambda job: (job.scope.endpoint, job.session_id))
    assert order != jobs
    # Each gets what is its own.
    keys = [outcome.session.key for outcome in outcomes]
    assert keys == [job.scope.key(job.session_id or "") for job in jobs]
    order.clear()
    await together(*(commit_of(turn, "a", "b") for turn in outcomes))
    pks = [job.turn.session_pk for job in order]
    assert pks == sorted(pks)
    assert len(pks) == 12


# One that is bad


async def test_id_that_was_used_before_does_not_touch_the_others(commits: Commits, alone: list[Any]) -> None:
    (first,) = await begun(1, invocation_id="used")
    commits.count = 0
    bad = request("t", invocation_id="used")
    jobs = [request("u"), bad, request("v")]
    outcomes = await together(*(begin(job) for job in jobs))
    assert [type(outcome) for outcome in outcomes] == [Turn, StoredInvocation, Turn]
    assert outcomes[1].pk == first.record_pk
    assert alone == [bad]


async def test_busy_session_does_not_touch_the_others(alone: list[Any]) -> None:
    await begun(1)
    bad = request("s0")
    outcomes = await together(*(begin(job) for job in [request("u"), bad, request("v")]))
    assert [type(outcome) for outcome in outcomes] == [Turn, SessionBusy, Turn]
    assert alone == [bad]
    names = await all_rows(lambda: SessionRecord.objects.order_by("session_id").values_list("session_id", flat=True))
    assert names == ["s0", "u", "v"]


async def test_claim_that_was_lost_does_not_touch_the_others(commits: Commits, alone: list[Any]) -> None:
    turns_begun = await begun(3)
    lost = turns_begun[1]
    await database.run(lambda: expire_one(lost))
    outcomes = await together(*(commit_of(turn, "a", "b") for turn in turns_begun))
    assert [type(outcome) for outcome in outcomes] == [type(None), RunInterrupted, type(None)]
    assert [job.turn for job in alone] == [lost]
    assert await texts_by_session() == {"s0": 2, "s1": 0, "s2": 2}


def expire_one(turn: Turn) -> None:
    past = timezone.now() - timedelta(seconds=1)
    SessionRecord.objects.filter(pk=turn.session_pk).update(claim_expires_at=past)
    InvocationRecord.objects.filter(pk=turn.record_pk).update(lease_expires_at=past)


@pytest.mark.parametrize("tokens", [2**63, 2**70], ids=["beyond a column", "beyond every integer"])
async def test_number_that_no_column_holds_does_not_touch_the_others(alone: list[Any], tokens: int) -> None:
    turns_begun = await begun(3)
    answer = Answer("pong", session_id="s1", usage={"total_token_count": tokens})
    jobs = [
        commit_of(turns_begun[0], "a", "b"),
        commit_of(turns_begun[1], "a", "b", answer=answer),
        commit_of(turns_begun[2], "a", "b"),
    ]
    outcomes = await together(*jobs)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], Exception)
    assert outcomes[2] is None
    assert await texts_by_session() == {"s0": 2, "s1": 0, "s2": 2}


@pytest.mark.parametrize("error", [NotSwift(), ValueError("a bug"), RecursionError()], ids=["unknown", "bug", "deep"])
@pytest.mark.parametrize("number", [1, 5])
async def test_what_the_swift_way_raises_is_done_alone(
    monkeypatch: pytest.MonkeyPatch, commits: Commits, alone: list[Any], error: Exception, number: int
) -> None:
    original: Callable[..., Any] = groups._begins._swift
    jobs = begins(number)

    def breaking(connection: Any, cursor: Any, some: Any) -> Any:
        outcome = original(connection, cursor, some)
        if jobs[0] in some:
            raise error
        return outcome

    monkeypatch.setattr(groups._begins, "_swift", breaking)
    outcomes = await together(*(begin(job) for job in jobs))
    assert [type(outcome) for outcome in outcomes] == [Turn] * number
    assert alone == jobs[:1]
    claim_numbers = await all_rows(lambda: SessionRecord.objects.values_list("claim_number", flat=True))
    assert claim_numbers == [1] * number
    assert await database.run(InvocationRecord.objects.count) == number


# A group that fails as a whole


async def test_begins_whose_commit_fails_are_done_alone(commits: Commits, alone: list[Any]) -> None:
    commits.break_next = "before"
    turns_begun = await begun(5)
    assert commits.count == 1 + 5
    assert len(alone) == 5
    assert [turn.session.claim_number for turn in turns_begun if turn.session] == [1] * 5
    assert await together(*(commit_of(turn, "a", "b") for turn in turns_begun)) == [None] * 5
    await assert_free_and_whole(5)


async def test_commits_whose_commit_fails_are_done_alone(commits: Commits, alone: list[Any]) -> None:
    turns_begun = await begun(5)
    commits.break_next, commits.count = "before", 0
    assert await together(*(commit_of(turn, "a", "b") for turn in turns_begun)) == [None] * 5
    assert commits.count == 1 + 5
    assert [job.turn for job in alone] == turns_begun
    await assert_free_and_whole(5)


@pytest.mark.parametrize("number", [1, 5])
async def test_begins_whose_confirmation_got_lost_are_this_process_s_all_the_same(
    commits: Commits, alone: list[Any], number: int
) -> None:
    commits.break_next = "after"
    turns_begun = await begun(number)
    assert len(alone) == number
    records = await all_rows(lambda: InvocationRecord.objects.values_list("pk", flat=True))
    assert sorted(records) == sorted(turn.record_pk for turn in turns_begun)
    assert await together(*(commit_of(turn, "a", "b") for turn in turns_begun)) == [None] * number
    await assert_free_and_whole(number)


async def test_begin_without_session_whose_confirmation_got_lost_is_recorded_once(commits: Commits) -> None:
    commits.break_next = "after"
    (turn,) = await together(begin(request(None)))
    assert await all_rows(lambda: InvocationRecord.objects.values_list("pk", flat=True)) == [turn.record_pk]
    await commit_of(turn)
    assert await all_rows(lambda: InvocationRecord.objects.values_list("status", flat=True)) == ["succeeded"]


@pytest.mark.parametrize("number", [1, 5])
async def test_commits_whose_confirmation_got_lost_are_not_written_twice(
    commits: Commits, alone: list[Any], number: int
) -> None:
    turns_begun = await begun(number)
    commits.break_next = "after"
    assert await together(*(commit_of(turn, "a", "b") for turn in turns_begun)) == [None] * number
    assert [job.turn for job in alone] == turns_begun
    await assert_free_and_whole(number)


@pytest.mark.parametrize("together_too", [False, True])
async def test_transaction_that_the_database_ended_is_done_again_one_by_one(
    monkeypatch: pytest.MonkeyPatch, alone: list[Any], together_too: bool
) -> None:
    original: Callable[..., Any] = groups._begins._swift
    ended: list[Any] = []

    def ending_it(connection: Any, cursor: Any, jobs: Any) -> Any:
        outcome = original(connection, cursor, jobs)
        ended.append(jobs)
        if together_too or len(ended) == 3:
            # As SQLite does by itself when the disk is full.
            cursor.execute("ROLLBACK")
            raise ValueError("no transaction any more")
        if len(jobs) > 1:
            raise NotSwift
        return outcome

    monkeypatch.setattr(groups._begins, "_swift", ending_it)
    turns_begun = await begun(5)
    assert len(alone) == 5
    assert await database.run(InvocationRecord.objects.count) == 5
    assert len({turn.record_pk for turn in turns_begun}) == 5


# Recorded once, at its end


def unrecorded() -> Turn:
    job = request(None)
    return Turn(0, job.owner, None, job.begun_at, unrecorded=job)


async def test_turns_recorded_at_their_end_share_a_statement_which_is_their_transaction(
    commits: Commits, alone: list[Any]
) -> None:
    told: list[str] = []
    with failing_statements(lambda sql: told.append(sql) is not None):
        assert await together(*(commit_of(unrecorded()) for _ in range(10))) == [None] * 10
    assert [sql.split(None, 3)[:3] for sql in told] == [["INSERT", "INTO", '"invocations_app_invocationrecord"']]
    assert (commits.count, alone) == (0, [])
    assert await all_rows(lambda: InvocationRecord.objects.values_list("status", flat=True)) == ["succeeded"] * 10


async def test_turns_recorded_at_their_end_and_others_share_a_transaction(commits: Commits, alone: list[Any]) -> None:
    turns_begun = [*await begun(2), unrecorded(), unrecorded()]
    commits.count = 0
    assert await together(*(commit_of(turn, "a", "b") for turn in turns_begun)) == [None] * 4
    assert (commits.count, alone) == (1, [])
    assert await all_rows(lambda: InvocationRecord.objects.values_list("status", flat=True)) == ["succeeded"] * 4


async def test_more_turns_than_a_statement_takes_share_a_transaction(
    commits: Commits, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swift._WHOLE_RECORD, "rows_at_once", lambda connection: 3)
    assert await together(*(commit_of(unrecorded()) for _ in range(4))) == [None] * 4
    assert (commits.count, alone) == (1, [])
    assert await database.run(InvocationRecord.objects.count) == 4


async def test_record_that_cannot_be_written_takes_back_its_statement_and_no_other_turn(alone: list[Any]) -> None:
    turns_begun = [unrecorded() for _ in range(3)]
    outcomes = await together(*(commit_of(turn) for turn in (*turns_begun, turns_begun[0])))
    assert outcomes[:3] == [None] * 3
    assert [job.turn for job in alone] == [turns_begun[0]]
    assert await database.run(InvocationRecord.objects.count) == 3


@pytest.mark.parametrize(
    ("autocommit", "in_atomic_block", "is_whole"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_statement_is_a_transaction_on_a_connection_that_commits_each(
    autocommit: bool, in_atomic_block: bool, is_whole: bool
) -> None:
    commits: Group[int, None] = Group(lambda *_: {}, lambda _: None, lambda job: job, is_one=lambda *_: True)
    connection = SimpleNamespace(get_autocommit=lambda: autocommit, in_atomic_block=in_atomic_block)
    assert commits._is_whole(connection, [1]) is is_whole


@pytest.mark.parametrize("number", [1, 4])
async def test_turn_recorded_at_its_end_whose_confirmation_got_lost_is_recorded_once(
    alone: list[Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    original: Callable[..., Any] = groups._commits._swift
    lost: list[Any] = []

    def losing(connection: Any, cursor: Any, jobs: Any) -> Any:
        outcome = original(connection, cursor, jobs)
        if not lost:
            lost.append(jobs)
            raise OperationalError("the confirmation is lost")
        return outcome

    monkeypatch.setattr(groups._commits, "_swift", losing)
    assert await together(*(commit_of(unrecorded()) for _ in range(number))) == [None] * number
    assert len(alone) == number
    assert await database.run(InvocationRecord.objects.count) == number


async def test_turn_recorded_at_its_end_that_fails_leaves_one_record(commits: Commits) -> None:
    turn = unrecorded()
    for moment in ("after", None):
        commits.break_next = moment
        with contextlib.suppress(OperationalError):
            await groups.fail(turn, TargetFailed(), ending(turn))
    (record,) = await all_rows(InvocationRecord.objects.all)
    assert turn.unrecorded is not None
    assert (record.status, record.error_code, record.error_status) == ("failed", "invocation_failed", 500)
    assert record.correlation_id == turn.unrecorded.correlation_id
    assert record.created_at == turn.unrecorded.begun_at
    assert record.finished_at >= record.created_at


# Those who wait


async def test_one_who_does_not_wait_any_more_does_not_touch_the_others() -> None:
    jobs = begins(3)
    with held():
        tasks = [asyncio.ensure_future(begin(job)) for job in jobs]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Turn, asyncio.CancelledError, Turn]
    # What was asked for is carried out: whoever cancels has to know what became of it.
    assert await database.run(InvocationRecord.objects.count) == 3


async def test_loop_that_was_closed_meanwhile_does_not_touch_the_others() -> None:
    mine, theirs = request("mine"), request("theirs")
    asked = threading.Event()

    async def ask_and_leave() -> None:
        task = asyncio.ensure_future(begin(theirs))
        await asyncio.sleep(0)
        asked.set()
        del task

    with held():
        task = asyncio.ensure_future(begin(mine))
        await asyncio.sleep(0.01)
        thread = threading.Thread(target=lambda: asyncio.run(ask_and_leave()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert asked.is_set()
    assert isinstance(await task, Turn)
    assert isinstance(await begin(request("later")), Turn)
    assert await database.run(InvocationRecord.objects.count) == 3


async def test_loop_that_was_closed_before_it_sent_anything_does_not_keep_the_others_waiting() -> None:
    def live_shortly() -> None:
        loop = asyncio.new_event_loop()

        def ask_and_stop() -> None:
            groups.begin(request("theirs"))
            loop.stop()

        loop.call_soon(ask_and_stop)
        loop.run_forever()
        loop.close()

    await asyncio.to_thread(live_shortly)
    assert groups._begins._gathered
    assert isinstance(await begin(request("mine")), Turn)
    assert not groups._begins._gathered


async def test_several_loops_share_their_transactions(commits: Commits) -> None:
    async def many(name: int) -> list[Any]:
        jobs = [begin(request(f"s{name}-{place}")) for place in range(5)]
        return await asyncio.gather(*jobs)

    outcomes: list[Any] = []
    threads = [threading.Thread(target=lambda name=name: outcomes.extend(asyncio.run(many(name)))) for name in range(4)]
    with held():
        for thread in threads:
            thread.start()
        while len(groups._begins._gathered) < 20:
            await asyncio.sleep(0.005)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert [type(outcome) for outcome in outcomes] == [Turn] * 20
    assert commits.count == 1


async def test_threads_that_are_not_to_be_had_are_told_to_those_who_wait_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_threads(function: Callable[[], None]) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(database, "send", no_threads)
        with pytest.raises(RuntimeError, match="cannot schedule new futures"):
            await begin(request("s1"))
    assert isinstance(await begin(request("s1")), Turn)
    assert await database.run(InvocationRecord.objects.count) == 1


async def test_threads_that_end_between_two_groups_are_replaced() -> None:
    await begun(1)
    await asyncio.to_thread(database.close)
    assert isinstance(await begin(request("t")), Turn)


async def test_what_alone_raises_reaches_whoever_asked_and_nobody_else() -> None:
    def swift(connection: Any, cursor: Any, job: int) -> int:
        raise NotSwift

    def alone_now(job: int) -> int:
        if job == 1:
            raise KeyboardInterrupt
        if job == 2:
            raise OperationalError("away")
        return job * 10

    group: Group[int, int] = Group(swift, alone_now, lambda job: -job)

    async def outcome(job: int) -> Any:
        try:
            return await group.do(job)
        except BaseException as error:
            return type(error)

    assert await together(*(outcome(job) for job in range(4))) == [0, KeyboardInterrupt, OperationalError, 30]


async def test_order_that_cannot_be_told_fails_its_group_and_not_the_thread() -> None:
    def swift(connection: Any, cursor: Any, job: int) -> int:
        return job

    def order(job: int) -> int:
        return 1 // job

    group: Group[int, int] = Group(swift, lambda job: job, order)
    outcomes: Sequence[Any] = await together(group.do(0), group.do(1))
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 2
    assert await group.do(2) == 2
