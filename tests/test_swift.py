"""Plain statements of a turn: they write what the ORM's way writes, column by column, and know what is not theirs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invocations_app.events import Answer
from invocations_app.exceptions import TargetFailed
from invocations_app.isolation import Scope
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import endings, figures, plain_sql, records, snapshots, swift, turns
from invocations_app.storage.checkpoints import EncodedCheckpoint
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.event_log import Batch
from invocations_app.storage.grouping import NotSwift
from invocations_app.storage.plain_sql import driver_cursor
from invocations_app.storage.swift import Commit
from invocations_app.storage.turns import Turn
from tests.test_turns import begin_any, change_of, ending, expire, request, rows

pytestmark = pytest.mark.django_db(transaction=True)

MODELS: tuple[type[Model], ...] = (SessionRecord, MessageRecord, InvocationRecord, EventRecord)
FIRST_BYTE = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
NASTY = 'a\x00b \ud800 \U0001f600 \u2028 "quoted" \' \\ %s ? {now} \x7f gr\u00fc\u00df'


@dataclass(frozen=True)
class OneTurn:
    """A turn as a test describes it: how it begins, and how it ends."""

    session_id: str | None = "s1"
    begin: Mapping[str, Any] = field(default_factory=dict)
    user_pk: Any = None
    texts: tuple[str, ...] = ("ping", "pong")
    answer: Answer = Answer("pong", session_id="s1")
    frames: tuple[bytes, ...] = ()
    first_byte_at: datetime | None = FIRST_BYTE
    is_unrecorded: bool = False


def in_transaction(function: Callable[..., Any], job: Any) -> Any:
    with transaction.atomic(), closing(driver_cursor(connection)) as cursor:
        done = function(connection, cursor, [job])
    if not done:
        raise NotSwift
    return done[0]


def begin_swiftly(asked: turns.TurnRequest) -> Turn:
    turn = in_transaction(swift.begin, asked)
    assert isinstance(turn, Turn)
    return turn


def commit_swiftly(turn: Turn, left: SessionChange | None, answer: Answer, end: Ending) -> None:
    in_transaction(swift.commit, Commit(turn, left, answer, end, endings.encode_answer(answer)))


Begin = Callable[[turns.TurnRequest], Any]
Committing = Callable[[Turn, SessionChange | None, Answer, Ending], None]


def play(turn: OneTurn, asked: turns.TurnRequest, begin: Begin, commit: Committing) -> Turn:
    begun: Turn = Turn(0, asked.owner, None, asked.begun_at, unrecorded=asked) if turn.is_unrecorded else begin(asked)
    left = change_of(begun, *turn.texts) if begun.session is not None else None
    frames = Batch(begun.record_pk, 1, turn.frames)
    commit(begun, left, turn.answer, Ending(turn.first_byte_at, frames, len(turn.frames)))
    return begun


def asked_for(turn: OneTurn) -> turns.TurnRequest:
    return request(turn.session_id, **turn.begin)._replace(user_pk=turn.user_pk)


def comparable(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return rows with primary keys as their rank, the times of writing as whether there are any, figures as right."""
    ranks = {name: {row["id"]: rank for rank, row in enumerate(table)} for name, table in found.items()}
    pointers = {
        "session_record_id": "SessionRecord",
        "session_id": "SessionRecord",
        "invocation_id": "InvocationRecord",
        "claimed_by": "InvocationRecord",
    }

    def value(name: str, column: str, given: Any) -> Any:
        if column == "id":
            return ranks[name][given]
        if column in pointers and isinstance(given, int):
            return ranks[pointers[column]][given]
        if isinstance(given, datetime) and column != "first_byte_at" and (name, column) != BEGUN_AT:
            return "a time"
        return given

    for record in found["InvocationRecord"]:
        if record["finished_at"] is not None:
            due = figures.of(record["created_at"], record["first_byte_at"], record["finished_at"])._asdict()
            record |= {column: "as its times" for column in due if record[column] == due[column]}
    return {
        name: [{column: value(name, column, given) for column, given in row.items()} for row in table]
        for name, table in found.items()
    }


BEGUN_AT = ("InvocationRecord", "created_at")


def both_ways(told: list[OneTurn], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the rows, and what was claimed, after the same turns by the ORM and by plain statements."""
    asked = [asked_for(turn) for turn in told]
    outcomes = []
    for begin, commit in ((turns.begin_now, endings.commit_now), (begin_swiftly, commit_swiftly)):
        for model in MODELS:
            model._default_manager.all().delete()
        numbers = itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr(records, "new_opaque_id", lambda numbers=numbers: f"opaque-{next(numbers)}")
            patch.setattr(snapshots, "new_mark", lambda: "mark")
            claims = []
            for turn, begun in zip(told, asked, strict=True):
                played = play(turn, begun, begin, commit)
                # Which numbers the database gives is its own affair.
                session = None if played.session is None else played.session._replace(pk=0)
                claims.append(played._replace(record_pk=0, session=session))
        outcomes.append((comparable(rows()), claims))
    return outcomes[0], outcomes[1]


TURNS = {
    "a new session": [OneTurn()],
    "an existing session": [OneTurn(), OneTurn(texts=("more",)), OneTurn(texts=())],
    "two sessions": [OneTurn("s1"), OneTurn("s2"), OneTurn("s1")],
    "nasty texts": [OneTurn(texts=(NASTY, ""), answer=Answer(NASTY, session_id=NASTY)), OneTurn(texts=(NASTY,))],
    "long texts": [OneTurn(texts=("x" * 300_000,), answer=Answer("y" * 300_000, session_id="s1"))],
    "a session id of many characters": [OneTurn("\U0001f600 a/b%s?'\"" + "\u00fc" * 200)],
    "no session": [OneTurn(None)],
    "an empty session id": [OneTurn("")],
    "a session that is not used": [OneTurn("s1", {"session_mode": "disabled"})],
    "a stream": [OneTurn("s1", {"stream": True}, frames=(b"data: pi\n\n", "data: ng \U0001f600\n\n".encode()))],
    "a stream without session": [OneTurn(None, {"stream": True}, frames=(b"data: x\n\n",))],
    "in the background": [OneTurn("s1", {"background": True}), OneTurn(None, {"background": True})],
    "metadata": [OneTurn("s1", {"metadata": {"a": [1, None, {"b": NASTY}], NASTY: 1.5}})],
    "usage": [
        OneTurn(answer=Answer("pong", session_id="s1", usage={"total_token_count": 7, "input_token_count": 3})),
        OneTurn(answer=Answer("pong", session_id="s1", usage={})),
        OneTurn(answer=Answer("pong", session_id="s1", usage={"output_token_count": 2**62})),
    ],
    "frames of the platform": [OneTurn(answer=Answer("pong", session_id="s1", frames=({"text": NASTY},)))],
    "a user": [OneTurn(user_pk=7), OneTurn("s2", user_pk="8"), OneTurn(None, user_pk=9)],
    "nobody's keys": [OneTurn("s1", {"scope": Scope("default", "", "")})],
    "long keys": [OneTurn("s1", {"scope": Scope("other", "platform:" + "\u00fc" * 256, "c" * 256)})],
    "no first byte": [OneTurn(first_byte_at=None)],
    "a whole second": [OneTurn(first_byte_at=FIRST_BYTE.replace(microsecond=0))],
    "another zone": [OneTurn(first_byte_at=FIRST_BYTE.astimezone(tz=datetime.now().astimezone().tzinfo))],
    "recorded at its end": [
        OneTurn(None, is_unrecorded=True),
        OneTurn(
            None,
            {"metadata": {"a": NASTY}},
            user_pk=7,
            answer=Answer(NASTY, session_id=None, usage={"total_token_count": 5}),
            is_unrecorded=True,
        ),
        OneTurn("s1", {"session_mode": "disabled"}, is_unrecorded=True),
        OneTurn("", first_byte_at=None, is_unrecorded=True),
    ],
}


@pytest.mark.parametrize("told", TURNS.values(), ids=TURNS.keys())
def test_rows_are_those_of_the_orm(told: list[OneTurn], monkeypatch: pytest.MonkeyPatch) -> None:
    by_orm, swiftly = both_ways(told, monkeypatch)
    assert swiftly == by_orm
    assert len(swiftly[0]["InvocationRecord"]) == len(told)
    assert {row["status"] for row in swiftly[0]["InvocationRecord"]} == {"succeeded"}


def together(told: list[OneTurn], asked: list[turns.TurnRequest]) -> None:
    """Begin and commit turns, all of them in one transaction each."""
    with transaction.atomic(), closing(driver_cursor(connection)) as cursor:
        begun = swift.begin(connection, cursor, asked)
    assert list(begun) == list(range(len(asked)))
    jobs = []
    for place, turn in enumerate(told):
        left = change_of(begun[place], *turn.texts) if begun[place].session is not None else None
        end = Ending(turn.first_byte_at, Batch(begun[place].record_pk, 1, turn.frames), len(turn.frames))
        jobs.append(Commit(begun[place], left, turn.answer, end, endings.encode_answer(turn.answer)))
    with transaction.atomic(), closing(driver_cursor(connection)) as cursor:
        assert swift.commit(connection, cursor, jobs) == dict.fromkeys(range(len(jobs)))


def test_rows_of_turns_together_are_those_of_the_orm(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        OneTurn("s1"),
        OneTurn("s2", texts=(NASTY, "", "more"), first_byte_at=None),
        OneTurn("s3", texts=(), answer=Answer("", session_id="s3", usage={"total_token_count": 7})),
        OneTurn("s4", {"stream": True}, frames=(b"data: x\n\n", b"data: y\n\n")),
        OneTurn("s5", {"metadata": {"a": NASTY}}, user_pk=7, answer=Answer(NASTY, session_id="s5")),
        OneTurn(None, {"stream": True}, frames=(b"data: z\n\n",)),
    ]
    first = [asked_for(turn) for turn in told]
    # Rows are written in the order of their keys: told in that order, both ways number them alike.
    told = [
        told[place]
        for place in sorted(range(6), key=lambda place: first[place].scope.key(told[place].session_id or ""))
    ]
    scope = first[0].scope
    ids = [sorted((f"{turn}-{number}" for number in range(12)), key=scope.key) for turn in ("one", "two")]
    monkeypatch.setattr(snapshots, "new_mark", lambda: "mark")
    outcomes = []
    for way in ("orm", "together"):
        SessionRecord.objects.all().delete()
        InvocationRecord.objects.all().delete()
        numbers = itertools.count()
        monkeypatch.setattr(records, "new_opaque_id", lambda numbers=numbers: f"opaque-{next(numbers)}")
        for some in ids:
            asked = [
                one._replace(invocation=dataclasses.replace(one.invocation, id=name), correlation_id=name)
                for one, name in zip((asked_for(turn) for turn in told), some, strict=False)
            ]
            if way == "together":
                together(told, asked)
                continue
            begun = [turns.begin_now(one) for one in asked]
            for turn, one in zip(told, begun, strict=True):
                assert isinstance(one, Turn)
                left = change_of(one, *turn.texts) if one.session is not None else None
                frames = Batch(one.record_pk, 1, turn.frames)
                endings.commit_now(one, left, turn.answer, Ending(turn.first_byte_at, frames, len(turn.frames)))
        outcomes.append(comparable(rows()))
    by_orm, swiftly = outcomes
    for table in by_orm:
        assert [without_begin(row) for row in swiftly[table]] == [without_begin(row) for row in by_orm[table]], table
    assert [row["version"] for row in swiftly["SessionRecord"]] == [2] * 5


def without_begin(row: dict[str, Any]) -> dict[str, Any]:
    return {column: given for column, given in row.items() if column != BEGUN_AT[1]}


any_text = st.text(st.characters(codec=None), max_size=40)  # with NUL and lone surrogates
scalar = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
plain_text = st.text(scalar, max_size=40)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
any_turn = st.builds(
    OneTurn,
    session_id=st.none() | plain_text,
    begin=st.fixed_dictionaries(
        {
            "metadata": st.dictionaries(any_text, any_json, max_size=3),
            "session_mode": st.sampled_from(["auto", "disabled", "required"]),
            "stream": st.booleans(),
            "background": st.booleans(),
            "scope": st.builds(Scope, st.just("default"), plain_text, plain_text),
            "lease_seconds": st.floats(1, 1e6),
        }
    ),
    user_pk=st.none() | st.integers(0, 2**31 - 1),
    texts=st.lists(any_text, max_size=3).map(tuple),
    answer=st.builds(
        Answer,
        any_text,
        session_id=st.none() | any_text,
        pending=st.just(()),
        frames=st.none(),
        usage=st.none() | st.dictionaries(st.just("total_token_count"), st.integers(0, 2**62)),
    ),
    frames=st.lists(plain_text.map(str.encode), max_size=3).map(tuple),
    first_byte_at=st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)


@pytest.mark.timeout(60)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(told=st.lists(any_turn, min_size=1, max_size=3))
def test_rows_of_any_turns_are_those_of_the_orm(told: list[OneTurn]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        by_orm, swiftly = both_ways(told, monkeypatch)
    assert swiftly == by_orm


@pytest.mark.parametrize("seconds", [15.0, 0.5, 3600, 60])
def test_leases_end_on_the_databases_clock(seconds: float) -> None:
    begin_swiftly(request("s1", lease_seconds=seconds))
    turns.begin_now(request("s2", lease_seconds=seconds))
    ends = list(InvocationRecord.objects.order_by("pk").values_list("lease_expires_at", flat=True))
    ends += SessionRecord.objects.order_by("pk").values_list("claim_expires_at", flat=True)
    assert max(ends) - min(ends) < timedelta(seconds=1)
    assert abs(ends[0] - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=1)


def test_turn_that_failed_leaves_a_session_that_is_begun_swiftly_again() -> None:
    turn = begin_swiftly(request("s1"))
    endings.fail_now(turn, TargetFailed(), ending(turn))
    again = begin_swiftly(request("s1"))
    assert again.session is not None
    assert again.session.claim_number == 2
    assert SessionRecord.objects.get().claimed_by == again.record_pk


# What is not theirs


def assert_not_swift(function: Callable[..., Any], job: Any) -> None:
    before = rows()
    with pytest.raises(NotSwift):
        in_transaction(function, job)
    assert rows() == before


def with_invocation(**changed: Any) -> turns.TurnRequest:
    asked = request("s1")
    return asked._replace(invocation=dataclasses.replace(asked.invocation, **changed))


@pytest.mark.parametrize(
    "asked",
    [
        with_invocation(responses={"r1": True}),
        with_invocation(delivery="none"),
        request("s1")._replace(with_checkpoint=True),
    ],
    ids=["replies", "delivery elsewhere", "a workflow"],
)
def test_uncommon_beginning_is_left_alone(asked: turns.TurnRequest) -> None:
    assert_not_swift(swift.begin, asked)


def test_session_that_is_claimed_is_left_alone() -> None:
    begin_swiftly(request("s1"))
    assert_not_swift(swift.begin, request("s1"))
    # Also one whose claim has run out: who had it is to be interrupted.
    expire()
    assert_not_swift(swift.begin, request("s1"))


def test_session_that_somebody_waits_for_is_left_alone() -> None:
    turn = begin_swiftly(request("s1"))
    assert isinstance(begin_any("s1", on_busy="wait"), turns.Waiting)
    play_commit(turn)
    assert SessionRecord.objects.get().claimed_by is None
    assert_not_swift(swift.begin, request("s1"))


def test_session_with_pending_requests_is_left_alone() -> None:
    play_commit(begin_swiftly(request("s1")))
    SessionRecord.objects.update(pending_count=1)
    assert_not_swift(swift.begin, request("s1"))


def test_session_whose_row_belongs_to_other_columns_is_left_alone() -> None:
    play_commit(begin_swiftly(request("s1")))
    SessionRecord.objects.update(user_key="somebody else's")
    assert_not_swift(swift.begin, request("s1"))


def test_id_that_was_used_before_is_left_alone() -> None:
    begin_swiftly(request("s1", invocation_id="used"))
    before = rows()
    # A new session, which would be left behind, and one that is there.
    assert_not_swift(swift.begin, request("s2", invocation_id="used"))
    play_commit(begin_swiftly(request("s2")))
    assert_not_swift(swift.begin, request("s2", invocation_id="used"))
    assert rows()["InvocationRecord"][:1] == before["InvocationRecord"]


def play_commit(turn: Turn, **changed: Any) -> None:
    in_transaction(swift.commit, commit_job(turn, **changed))


def commit_job(turn: Turn, **changed: Any) -> Commit:
    answer = Answer("pong", session_id="s1")
    left = change_of(turn, "ping") if turn.session is not None else None
    job = Commit(turn, left, answer, ending(turn), endings.encode_answer(answer))
    return job._replace(**changed)


def with_left(turn: Turn, **changed: Any) -> SessionChange:
    return change_of(turn, "ping")._replace(**changed)


def replaced(turn: Turn) -> Any:
    change = change_of(turn, "ping").change
    assert change is not None
    return change._replace(appended_only=False)


@pytest.mark.parametrize(
    "uncommon",
    [
        lambda turn: commit_job(turn, answer=Answer("", session_id="s1", pending=({"id": "r1"},))),
        lambda turn: commit_job(turn, change=None),
        lambda turn: commit_job(turn, change=with_left(turn, change=None)),
        lambda turn: commit_job(turn, change=with_left(turn, change=replaced(turn))),
        lambda turn: commit_job(turn, change=with_left(turn, checkpoints=(EncodedCheckpoint("w", "c", "{}"),))),
        lambda turn: commit_job(turn)._replace(turn=turn._replace(session=turn.session._replace(is_rewritten=True))),
    ],
    ids=["something pending", "no change", "another store", "a changed history", "a checkpoint", "closed calls"],
)
def test_uncommon_end_is_left_alone(uncommon: Callable[[Turn], Commit]) -> None:
    assert_not_swift(swift.commit, uncommon(begin_swiftly(request("s1"))))


def _taken_over() -> None:
    SessionRecord.objects.update(claim_number=99)


def _written_by_another() -> None:
    SessionRecord.objects.update(version=99)


def _cancelled() -> None:
    InvocationRecord.objects.update(status="cancelled")


def _of_another_process() -> None:
    InvocationRecord.objects.update(owner="another")


def _without_lease() -> None:
    InvocationRecord.objects.update(lease_expires_at=None)


@pytest.mark.parametrize("session_id", ["s1", None], ids=["session", "none"])
@pytest.mark.parametrize(
    "lose", [_taken_over, _written_by_another, _cancelled, _of_another_process, _without_lease, expire]
)
def test_turn_that_was_lost_is_left_alone(lose: Callable[[], None], session_id: str | None) -> None:
    turn = begin_swiftly(request(session_id))
    lose()
    if session_id is None and lose in (_taken_over, _written_by_another):
        play_commit(turn)
        assert InvocationRecord.objects.get().status == "succeeded"
    else:
        assert_not_swift(swift.commit, commit_job(turn))


def test_turn_that_was_committed_is_left_alone() -> None:
    turn = begin_swiftly(request("s1"))
    job = commit_job(turn)
    in_transaction(swift.commit, job)
    assert_not_swift(swift.commit, job)
    assert json.loads(InvocationRecord.objects.get().answer) == {"text": "pong", "session_id": "s1"}


# Recorded once, at its end


@pytest.mark.parametrize(
    ("asked", "id_given", "may_be"),
    [
        (request(None), False, True),
        (request(""), False, True),
        (request("s1", session_mode="disabled"), False, True),
        (request(None), True, False),
        (request("s1"), False, False),
        (request(None, stream=True), False, False),
        (request(None, background=True), False, False),
        (with_invocation(session_id=None, delivery="none"), False, False),
        (with_invocation(session_id=None, responses={}), False, False),
    ],
)
def test_only_what_nobody_could_ask_for_is_recorded_at_its_end(
    asked: turns.TurnRequest, id_given: bool, may_be: bool
) -> None:
    is_unknown = turns.can_nobody_ask(asked.invocation, id_given=id_given)
    assert turns.may_be_recorded_at_its_end(asked._replace(is_unknown=is_unknown)) is may_be


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one way to flush for all transactions")
@pytest.mark.parametrize(("unknown", "flushed"), [([True, True], "off"), ([True, False], "on"), ([False], "on")])
def test_only_begins_that_nobody_could_ask_for_do_not_wait_for_the_disk(unknown: list[bool], flushed: str) -> None:
    asked = [request(f"s{place}")._replace(is_unknown=is_unknown) for place, is_unknown in enumerate(unknown)]
    with transaction.atomic(), closing(driver_cursor(connection)) as cursor:
        begun = swift.begin(connection, cursor, asked)
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == (flushed,)
    with transaction.atomic(), closing(driver_cursor(connection)) as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)
        swift.commit(connection, cursor, [commit_job(turn) for turn in begun.values()])
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)


@pytest.mark.parametrize(("default", "text"), [(None, "NULL"), (False, "FALSE"), (True, "TRUE"), (7, "7"), ("", "''")])
def test_a_default_is_written_into_the_text(default: Any, text: str) -> None:
    assert plain_sql._literal(default) == text
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {text}")
        assert cursor.fetchone() == (default,)


def test_a_default_that_would_need_quotes_is_refused() -> None:
    with pytest.raises(ValueError, match="no literal"):
        plain_sql._literal("it's")
