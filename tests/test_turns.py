"""Turns: begin, commit and fail; leases and claims that fence; what is refused and what it leaves."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest
from agent_framework import AgentSession, Content, Message
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from invocations_app.envelope import Invocation
from invocations_app.events import Answer
from invocations_app.exceptions import (
    RunCancelled,
    RunInterrupted,
    RunTimedOut,
    SessionBusy,
    SessionConflict,
    StoredStateUnreadable,
    TargetFailed,
)
from invocations_app.isolation import Scope
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import endings, leases, snapshots, turns
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.event_log import Batch
from invocations_app.storage.invocations import StoredInvocation
from invocations_app.storage.snapshots import History
from tests.session_fakes import statements

pytestmark = pytest.mark.django_db(transaction=True)

SCOPE = Scope("default", "platform:alice", "chat")
OWNER = "a" * 32


def request(
    session_id: str | None = "s1",
    *,
    scope: Scope = SCOPE,
    invocation_id: str | None = None,
    lease_seconds: float = 60,
    metadata: Mapping[str, Any] | None = None,
    session_mode: Any = "auto",
    stream: bool = False,
    background: bool = False,
    owner: str = OWNER,
    on_busy: Literal["wait", "reject"] = "reject",
) -> turns.TurnRequest:
    invocation = Invocation(
        id=invocation_id or uuid.uuid4().hex,
        endpoint=scope.endpoint,
        dialect="channel",
        session_id=session_id,
        session_mode=session_mode,
        stream=stream,
        background=background,
        metadata=metadata or {},
    )
    correlation_id = uuid.uuid4().hex
    now = timezone.now()
    return turns.TurnRequest(invocation, scope, None, "f" * 64, correlation_id, owner, now, lease_seconds, on_busy)


def begin_any(session_id: str | None = "s1", **kwargs: Any) -> turns.Begun:
    return turns.begin_now(request(session_id, **kwargs))


def begin(session_id: str | None = "s1", **kwargs: Any) -> turns.Turn:
    turn = begin_any(session_id, **kwargs)
    assert isinstance(turn, turns.Turn)
    return turn


def ending(turn: turns.Turn | turns.Waiting, *frames: bytes, first_byte_at: datetime | None = None) -> Ending:
    return Ending(first_byte_at, Batch(turn.record_pk, 1, frames), len(frames))


def change_of(turn: turns.Turn, *texts: str) -> SessionChange:
    """Return what appending messages to the turn's session changes."""
    claimed = turn.session
    assert claimed is not None
    if claimed.state:
        messages = claimed.rows if claimed.history is None else claimed.history
        session, history = snapshots.load(claimed.state, messages, claimed.opaque_id)
    else:
        session, history = AgentSession(session_id=claimed.opaque_id), History()
    part = session.state.setdefault("in_memory", {"messages": []})
    part["messages"] = [*part["messages"], *(Message("user", [Content.from_text(text)]) for text in texts)]
    return SessionChange(snapshots.dump(session, history))


def commit(turn: turns.Turn, *texts: str, answer: Answer | None = None) -> None:
    change = change_of(turn, *texts) if turn.session is not None else None
    answer = answer or Answer("pong", session_id="s1")
    endings.commit_now(turn, change, answer, ending(turn, first_byte_at=timezone.now()))


def fail(turn: turns.Turn | turns.Waiting, error: Any) -> None:
    endings.fail_now(turn, error, ending(turn))


def rows() -> dict[str, list[dict[str, Any]]]:
    return {
        model.__name__: list(model._default_manager.order_by("pk").values())
        for model in (SessionRecord, MessageRecord, InvocationRecord, EventRecord)
    }


def session_rows() -> dict[str, list[dict[str, Any]]]:
    """Return what a failed turn must not change."""
    found = rows()
    claim = {"claimed_by", "claim_number", "claim_expires_at"}
    found["SessionRecord"] = [{k: v for k, v in row.items() if k not in claim} for row in found["SessionRecord"]]
    del found["InvocationRecord"]
    return found


def record_of(turn: turns.Turn) -> InvocationRecord:
    return InvocationRecord.objects.get(pk=turn.record_pk)


def stored_texts() -> list[str]:
    return [json.loads(row.payload)["contents"][0]["text"] for row in MessageRecord.objects.order_by("position")]


def expire() -> None:
    past = timezone.now() - timedelta(seconds=1)
    SessionRecord.objects.update(claim_expires_at=past)
    InvocationRecord.objects.filter(status__in=["queued", "running"]).update(lease_expires_at=past)


# Begin and commit


def test_begin_records_the_invocation_and_claims_its_session():
    turn = begin(metadata={"k": "é"}, invocation_id="i1", stream=True)
    record, session = record_of(turn), SessionRecord.objects.get()
    assert (record.status, record.invocation_id, record.session_id, record.session_record_id) == (
        "running",
        "i1",
        "s1",
        session.pk,
    )
    assert (record.endpoint, record.user_key, record.chat_key) == ("default", "platform:alice", "chat")
    assert (record.key, record.fingerprint, record.dialect) == (SCOPE.key("i1"), "f" * 64, "channel")
    assert (record.stream, record.background, json.loads(record.metadata)) == (True, False, {"k": "é"})
    assert (record.answer, record.error_code, record.finished_at, record.first_byte_at) == ("", "", None, None)
    assert (record.owner, record.cancel_requested, record.joined_until, record.event_count) == (OWNER, False, None, 0)
    assert record.claim_number == 1
    assert (session.claimed_by, session.claim_number, session.version, session.state) == (record.pk, 1, 0, "")
    assert turn.session is not None
    assert (turn.session.opaque_id, turn.session.state, turn.session.rows) == (session.opaque_id, "", ())


def test_a_claim_expires_on_the_databases_clock():
    before = timezone.now()
    begin(lease_seconds=630)
    for expires in (SessionRecord.objects.get().claim_expires_at, InvocationRecord.objects.get().lease_expires_at):
        assert expires is not None
        assert timedelta(seconds=629) < expires - before < timedelta(seconds=632)


def test_commit_writes_answer_messages_session_and_record_and_releases_the_claim():
    turn = begin()
    usage = {"input_token_count": 1, "output_token_count": 2, "total_token_count": 3}
    commit(turn, "ping", "pong", answer=Answer("pöng\ud800", session_id="s1", usage=usage))
    record, session = record_of(turn), SessionRecord.objects.get()
    assert (record.status, record.answer) == ("succeeded", '{"text":"p\\u00f6ng\\ud800","session_id":"s1"}')
    assert (json.loads(record.usage), record.total_tokens) == (usage, 3)
    assert record.first_byte_at is not None
    assert record.finished_at is not None
    assert record.created_at <= record.first_byte_at <= record.finished_at
    assert (session.claimed_by, session.claim_expires_at, session.claim_number) == (None, None, 1)
    assert (session.version, session.message_count) == (1, 2)
    assert stored_texts() == ["ping", "pong"]
    assert set(MessageRecord.objects.values_list("invocation_id", flat=True)) == {record.pk}


def test_the_next_turn_gets_what_was_committed():
    first = begin()
    commit(first, "a")
    second = begin()
    assert first.session is not None
    assert second.session is not None
    assert second.session.opaque_id == first.session.opaque_id
    assert (second.session.version, second.session.claim_number) == (1, 2)
    commit(second, "b")
    assert stored_texts() == ["a", "b"]
    assert list(MessageRecord.objects.order_by("position").values_list("invocation_id", flat=True)) == [
        first.record_pk,
        second.record_pk,
    ]


@pytest.mark.parametrize(
    ("session_id", "mode", "recorded"), [(None, "auto", None), ("", "auto", ""), ("s1", "disabled", None)]
)
def test_without_a_session_there_is_a_record_only(session_id, mode, recorded):
    turn = begin(session_id, session_mode=mode)
    assert turn.session is None
    endings.commit_now(turn, None, Answer("pong"), ending(turn))
    assert (record_of(turn).status, record_of(turn).session_id, record_of(turn).session_record_id) == (
        "succeeded",
        recorded,
        None,
    )
    assert SessionRecord.objects.count() == MessageRecord.objects.count() == 0


def test_an_answer_that_leaves_something_pending_awaits_input():
    turn = begin()
    commit(turn, "a", answer=Answer("", session_id="s1", pending=({"request_id": "r1"},)))
    assert record_of(turn).status == "awaiting_input"
    assert json.loads(record_of(turn).answer)["pending"] == [{"request_id": "r1"}]


def test_a_turn_of_another_store_moves_the_version_only():
    turn = begin()
    endings.commit_now(turn, SessionChange(None), Answer("pong", session_id="s1"), ending(turn))
    session = SessionRecord.objects.get()
    assert (session.version, session.state, session.message_count, session.claimed_by) == (1, "", 0, None)


def test_an_uncontended_turn_makes_few_queries():
    with CaptureQueriesContext(connection) as first:
        turn = begin()
    commit(turn, "a", "b")
    with CaptureQueriesContext(connection) as second:
        turn = begin()
    change = change_of(turn, *map(str, range(30)))
    with CaptureQueriesContext(connection) as committed:
        endings.commit_now(turn, change, Answer("pong"), ending(turn, b"data: a\n\n"))
    assert statements(first) == [
        "SELECT invocationrecord",
        "SELECT sessionrecord",
        "INSERT sessionrecord",
        "SELECT sessionrecord",
        # Whether somebody waits who came before.
        "SELECT invocationrecord",
        "INSERT invocationrecord",
        "UPDATE sessionrecord",
        "SELECT messagerecord",
    ]
    assert statements(second) == [
        "SELECT invocationrecord",
        "SELECT sessionrecord",
        # Whether somebody waits who came before.
        "SELECT invocationrecord",
        "INSERT invocationrecord",
        "UPDATE sessionrecord",
        "SELECT messagerecord",
    ]
    assert statements(committed) == [
        "UPDATE sessionrecord",
        "INSERT messagerecord",
        "UPDATE invocationrecord",
    ]
    # Written by the driver itself, where nothing counts.
    assert EventRecord.objects.count() == 1


def test_a_turn_without_session_makes_fewer():
    with CaptureQueriesContext(connection) as begun:
        turn = begin(None)
    with CaptureQueriesContext(connection) as committed:
        endings.commit_now(turn, None, Answer("pong"), ending(turn))
    assert statements(begun) == ["SELECT invocationrecord", "INSERT invocationrecord"]
    assert statements(committed) == ["UPDATE invocationrecord"]


# Fail


@pytest.mark.parametrize(
    ("error", "status", "code", "http_status"),
    [
        (TargetFailed(), "failed", "invocation_failed", 500),
        (RunTimedOut(), "failed", "timeout", 504),
        (RunCancelled(), "cancelled", "cancelled", 409),
        (RunInterrupted(), "interrupted", "interrupted", 409),
        (SessionConflict(), "failed", "session_conflict", 409),
        (StoredStateUnreadable(), "failed", "stored_state_unreadable", 500),
    ],
)
def test_a_turn_that_fails_leaves_the_session_as_it_was_and_free(error, status, code, http_status):
    commit(begin(), "a")
    before = session_rows()
    turn = begin()
    fail(turn, error)
    record = record_of(turn)
    assert (record.status, record.error_code, record.error_status) == (status, code, http_status)
    assert (record.answer, record.first_byte_at) == ("", None)
    assert record.finished_at is not None
    assert session_rows() == before
    assert SessionRecord.objects.get().claimed_by is None
    commit(begin(), "b")
    assert stored_texts() == ["a", "b"]


def test_a_first_turn_that_fails_leaves_an_empty_session():
    fail(begin(), TargetFailed())
    session = SessionRecord.objects.get()
    assert (session.version, session.state, session.message_count, session.claimed_by) == (0, "", 0, None)


def test_fail_makes_two_queries():
    turn = begin()
    with CaptureQueriesContext(connection) as failed:
        fail(turn, TargetFailed())
    assert statements(failed) == ["UPDATE sessionrecord", "UPDATE invocationrecord"]


def test_failing_after_the_commit_changes_nothing():
    turn = begin()
    commit(turn, "a")
    before = rows()
    fail(turn, TargetFailed())
    assert rows() == before


def test_committing_again_what_was_committed_changes_nothing():
    # The confirmation of the first try may have been lost with the connection.
    turn = begin()
    commit(turn, "a")
    before = rows()
    commit(turn, "b")
    assert rows() == before


def test_committing_what_failed_changes_nothing():
    turn = begin()
    fail(turn, TargetFailed())
    before = rows()
    with pytest.raises(RunInterrupted):
        commit(turn, "a")
    assert rows() == before


def test_a_turn_of_another_process_is_neither_committed_nor_failed():
    turn = begin()
    other = turn._replace(owner="b" * 32)
    before = rows()
    with pytest.raises(RunInterrupted):
        commit(other, "a")
    assert rows() == before
    fail(other, TargetFailed())
    assert record_of(turn).status == "running"


def test_events_are_written_with_the_end():
    good, bad, empty = begin("s1", stream=True), begin("s2", stream=True), begin("s3", stream=True)
    pieces = (b"data: a\n\n", b"data: \xc3\xa9\n\n")
    endings.commit_now(good, change_of(good), Answer("ae"), ending(good, *pieces))
    endings.fail_now(bad, TargetFailed(), Ending(None, Batch(bad.record_pk, 3, pieces[:1]), 3))
    endings.fail_now(empty, TargetFailed(), ending(empty))
    logged = EventRecord.objects.order_by("pk").values_list("invocation_id", "first", "last", "frames")
    assert [(pk, first, last, json.loads(frames)) for pk, first, last, frames in logged] == [
        (good.record_pk, 1, 2, ["data: a\n\n", "data: é\n\n"]),
        (bad.record_pk, 3, 3, ["data: a\n\n"]),
    ]
    assert [record_of(turn).event_count for turn in (good, bad, empty)] == [2, 3, 0]


def test_events_of_a_turn_that_was_lost_are_not_written():
    turn = begin(stream=True)
    expire()
    begin()
    with pytest.raises(RunInterrupted):
        endings.commit_now(turn, change_of(turn), Answer("a"), ending(turn, b"data: a\n\n"))
    endings.fail_now(turn, TargetFailed(), ending(turn, b"data: a\n\n"))
    assert EventRecord.objects.count() == 0


# Busy sessions and claims


def test_a_second_turn_of_the_session_is_refused_and_leaves_no_record():
    begin()
    before = rows()
    with pytest.raises(SessionBusy) as caught:
        begin()
    assert (caught.value.text, caught.value.status) == ("the session is busy", 409)
    assert rows() == before


def test_other_sessions_and_other_scopes_are_not_busy():
    begin("s1")
    begin("s2")
    begin("s1", scope=Scope("other", "platform:alice", "chat"))
    begin("s1", scope=Scope("default", "platform:bob", "chat"))
    begin("s1", scope=Scope("default", "platform:alice", "other"))
    assert SessionRecord.objects.count() == len(set(SessionRecord.objects.values_list("opaque_id", flat=True))) == 5


def test_an_expired_claim_is_taken_over_and_its_run_is_interrupted():
    commit(begin(), "a")
    old = begin()
    expire()
    new = begin()
    assert old.session is not None
    assert new.session is not None
    assert new.session.claim_number == old.session.claim_number + 1
    record = record_of(old)
    assert (record.status, record.error_code, record.error_status) == ("interrupted", "interrupted", 409)
    assert record.finished_at is not None
    before = rows()
    with pytest.raises(RunInterrupted):
        commit(old, "late")
    assert rows() == before
    fail(old, TargetFailed())
    assert rows() == before
    commit(new, "b")
    assert stored_texts() == ["a", "b"]


def test_the_claim_number_fences_although_the_version_is_unchanged():
    old = begin()
    expire()
    fail(begin(), TargetFailed())
    # Somebody wrote the old run's record back to running: only the claim number tells now.
    InvocationRecord.objects.filter(pk=old.record_pk).update(status="running")
    assert old.session is not None
    assert SessionRecord.objects.get().version == old.session.version
    before = rows()
    with pytest.raises(RunInterrupted):
        commit(old, "late")
    assert rows() == before


@pytest.mark.parametrize("session_id", ["s1", None])
def test_a_lease_that_ran_out_does_not_commit_even_if_nobody_took_it(session_id):
    turn = begin(session_id)
    expire()
    before = rows()
    with pytest.raises(RunInterrupted):
        commit(turn, *["a"] if session_id else [])
    assert rows() == before
    fail(turn, RunInterrupted())
    assert record_of(turn).status == "interrupted"
    assert not SessionRecord.objects.filter(claimed_by__isnull=False).exists()


def test_another_writer_in_the_middle_of_a_turn_makes_a_conflict():
    commit(begin(), "a")
    turn = begin()
    SessionRecord.objects.update(version=5)
    before = rows()
    with pytest.raises(SessionConflict) as caught:
        commit(turn, "b")
    assert caught.value.text == "Another request advanced this agent session; reload before retrying."
    assert rows() == before


@pytest.mark.parametrize(
    ("status", "error"), [("cancelled", RunCancelled), ("interrupted", RunInterrupted), ("failed", RunInterrupted)]
)
@pytest.mark.parametrize("session_id", ["s1", None])
def test_a_record_that_is_over_is_not_committed(status, error, session_id):
    turn = begin(session_id)
    InvocationRecord.objects.update(status=status)
    before = rows()
    with pytest.raises(error):
        commit(turn, *["a"] if session_id else [])
    assert rows() == before


def test_the_lost_session_row_is_an_interruption():
    turn = begin()
    SessionRecord.objects.all().delete()
    with pytest.raises(RunInterrupted):
        commit(turn, "a")
    assert MessageRecord.objects.count() == 0


# Invocation ids


def test_an_invocation_id_begins_once_in_a_scope():
    first = begin(invocation_id="i1")
    commit(first, "a")
    before = rows()
    stored = begin_any(invocation_id="i1")
    assert isinstance(stored, StoredInvocation)
    assert (stored.pk, stored.status, stored.fingerprint) == (first.record_pk, "succeeded", "f" * 64)
    assert rows() == before
    assert begin(invocation_id="i1", scope=Scope("default", "platform:bob", "chat")).record_pk != first.record_pk


def test_a_refused_turn_frees_its_invocation_id():
    blocking = begin()
    with pytest.raises(SessionBusy):
        begin(invocation_id="i1")
    fail(blocking, TargetFailed())
    assert record_of(begin(invocation_id="i1")).status == "running"


# Foreign rows


def test_a_row_with_other_columns_is_unreadable_and_left_alone():
    commit(begin(), "a")
    SessionRecord.objects.update(user_key="platform:mallory")
    before = rows()
    with pytest.raises(StoredStateUnreadable):
        begin()
    assert rows() == before


# Several at once


def at_once(count: int, function: Any) -> list[Any]:
    """Call a function in several threads at the same moment; return what it returned or raised."""
    barrier = threading.Barrier(count)
    outcomes: list[Any] = [None] * count

    def work(number: int) -> None:
        try:
            barrier.wait(timeout=5)
            outcomes[number] = function(number)
        except Exception as error:
            outcomes[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("is_new", [True, False])
def test_of_several_begins_of_one_session_exactly_one_wins(is_new):
    if not is_new:
        commit(begin(), "a")
    already = InvocationRecord.objects.count()
    outcomes = at_once(6, lambda number: begin())
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["SessionBusy"] * 5 + ["Turn"]
    assert SessionRecord.objects.count() == 1
    assert InvocationRecord.objects.count() == already + 1
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, turns.Turn)]
    assert SessionRecord.objects.get().claimed_by == winner.record_pk


def test_of_several_begins_of_one_invocation_exactly_one_wins():
    outcomes = at_once(6, lambda number: begin_any(f"s{number}", invocation_id="i1"))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StoredInvocation"] * 5 + ["Turn"]
    assert InvocationRecord.objects.count() == SessionRecord.objects.count() == 1
    (pk,) = InvocationRecord.objects.values_list("pk", flat=True)
    assert {outcome.pk if isinstance(outcome, StoredInvocation) else outcome.record_pk for outcome in outcomes} == {pk}


def test_an_expired_claim_is_taken_over_once():
    old = begin()
    expire()
    outcomes = at_once(6, lambda number: begin())
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["SessionBusy"] * 5 + ["Turn"]
    assert record_of(old).status == "interrupted"
    assert SessionRecord.objects.get().claim_number == 2


def test_turns_of_several_sessions_at_once_all_commit():
    outcomes = at_once(6, lambda number: commit(begin(f"s{number}"), f"text {number}"))
    assert outcomes == [None] * 6
    assert SessionRecord.objects.filter(version=1, claimed_by=None).count() == 6
    assert MessageRecord.objects.count() == 6


def test_a_renewal_leaves_a_session_that_was_claimed_meanwhile_to_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has claimed it holds its row, and may wait for the record's, which the renewal holds: a deadlock."""
    commit(begin("s1"))
    turn = begin("s1", on_busy="wait")
    session = SessionRecord.objects.filter(pk=turn.session_pk)
    session.update(claimed_by=None, claim_expires_at=None)
    claimed_until = timezone.now() + timedelta(seconds=7)
    real = leases.clock.from_now

    def claim_now(seconds: float) -> Any:
        # Between the look at the sessions and the writing of the records.
        if session.get().claimed_by is None:
            session.update(claimed_by=turn.record_pk, claim_expires_at=claimed_until)
        return real(seconds)

    monkeypatch.setattr(leases.clock, "from_now", claim_now)
    assert leases._renew(OWNER, [turn.record_pk], 600).held == {turn.record_pk}
    assert session.get().claim_expires_at == claimed_until
    monkeypatch.undo()
    leases._renew(OWNER, [turn.record_pk], 600)
    assert session.get().claim_expires_at > claimed_until
