"""Retention: what goes at which age, what never goes, and that it is safe while the site serves."""

from __future__ import annotations

import io
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from invocations_app.conf import HostSettings
from invocations_app.envelope import Invocation
from invocations_app.isolation import Scope
from invocations_app.models import (
    CheckpointRecord,
    EventRecord,
    InvocationRecord,
    MessageRecord,
    PendingRecord,
    SessionRecord,
)
from invocations_app.storage import retention, turns
from invocations_app.storage.retention import Counts, Cutoffs
from tests.session_fakes import statements

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DAY = timedelta(days=1)
SCOPE = Scope("default", "platform:alice", "chat")
ALL = Cutoffs(sessions=NOW, invocations=NOW, events=NOW)
NONE = Cutoffs(sessions=None, invocations=None, events=None)
OLD, YOUNG = NOW - timedelta(microseconds=1), NOW


def make_session(updated_at: datetime = OLD, messages: int = 0, **kwargs: Any) -> SessionRecord:
    name = f"s{SessionRecord.objects.count()}"
    values: dict[str, Any] = {"endpoint": "default", "session_id": name, "key": name, "opaque_id": name}
    values |= {"created_at": NOW - 9 * DAY, "updated_at": updated_at, "message_count": messages}
    session = SessionRecord.objects.create(**values | kwargs)
    for place in range(messages):
        MessageRecord.objects.create(session=session, source_id="p", position=place, role="user", created_at=NOW)
    return session


def make_record(finished_at: datetime | None = OLD, events: int = 0, **kwargs: Any) -> InvocationRecord:
    name = f"i{InvocationRecord.objects.count()}"
    values: dict[str, Any] = {"endpoint": "default", "dialect": "channel", "key": name, "invocation_id": name}
    values |= {"status": "succeeded", "created_at": NOW - 9 * DAY, "finished_at": finished_at, "event_count": events}
    record = InvocationRecord.objects.create(**values | kwargs)
    for number in range(1, events + 1):
        EventRecord.objects.create(invocation=record, first=number, last=number, frames='["x"]', created_at=NOW)
    return record


def begin(session_id: str) -> turns.Turn:
    turn = turns.begin_now(
        turns.TurnRequest(
            invocation=Invocation(id=uuid.uuid4().hex, endpoint="default", dialect="channel", session_id=session_id),
            scope=SCOPE,
            user_pk=None,
            fingerprint="f" * 64,
            correlation_id="",
            owner="here",
            begun_at=timezone.now(),
            lease_seconds=60,
        )
    )
    assert isinstance(turn, turns.Turn)
    return turn


def left() -> tuple[int, int, int, int]:
    models = (SessionRecord, MessageRecord, InvocationRecord, EventRecord)
    return tuple(model._default_manager.count() for model in models)  # type: ignore[return-value]


def clear(cutoffs: Cutoffs = ALL) -> Counts:
    """Clear, after the dry run has said the same."""
    before = left()
    counted = retention.count(cutoffs)
    assert left() == before
    cleared = retention.clear(cutoffs)
    assert cleared == counted
    return cleared


# What goes


def test_cutoffs_are_counted_back_from_now_and_none_keeps():
    host = HostSettings(session_ttl_seconds=60, invocation_ttl_seconds=120, event_ttl_seconds=None)
    assert Cutoffs.of(host, NOW) == Cutoffs(NOW - timedelta(minutes=1), NOW - timedelta(minutes=2), None)
    assert Cutoffs.of(HostSettings(), NOW) == Cutoffs(None, NOW - 30 * DAY, NOW - DAY)


def test_a_session_goes_with_its_messages_once_it_is_older_than_the_cutoff():
    make_session(OLD, messages=3)
    kept = make_session(YOUNG, messages=2)
    assert clear() == Counts(sessions=1, messages=3)
    assert list(SessionRecord.objects.all()) == [kept]
    assert MessageRecord.objects.filter(session=kept).count() == MessageRecord.objects.count() == 2


def test_an_archived_session_goes_like_any_other():
    make_session(OLD, messages=1, key=None, archived_at=NOW)
    assert clear() == Counts(sessions=1, messages=1)


def test_a_record_goes_with_its_events_once_it_is_older_than_the_cutoff():
    make_record(OLD, events=3)
    kept = make_record(YOUNG, events=2)
    assert clear() == Counts(invocations=1, events=3)
    assert list(InvocationRecord.objects.all()) == [kept]
    assert EventRecord.objects.filter(invocation=kept).count() == EventRecord.objects.count() == 2


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "interrupted"])
def test_events_go_by_the_age_of_the_ended_invocation_whose_record_stays(status):
    make_record(OLD, events=3, status=status)
    make_record(YOUNG, events=2, status=status)
    assert clear(Cutoffs(sessions=None, invocations=None, events=NOW)) == Counts(events=3)
    assert left() == (0, 0, 2, 2)


def test_none_keeps_everything_for_ever():
    make_session(OLD - 999 * DAY, messages=1)
    make_record(OLD - 999 * DAY, events=1)
    assert clear(NONE) == Counts()
    assert left() == (1, 1, 1, 1)


def test_the_record_of_a_session_that_went_stays_without_it():
    record = make_record(YOUNG, session_record=make_session(OLD), session_id="s0")
    assert clear() == Counts(sessions=1)
    record.refresh_from_db()
    assert (record.session_record_id, record.session_id) == (None, "s0")


def test_a_message_outlives_the_record_of_its_invocation_and_points_to_nothing():
    session = make_session(YOUNG, messages=2)
    gone, kept = make_record(OLD, session_record=session), make_record(YOUNG, session_record=session)
    MessageRecord.objects.filter(position=0).update(invocation=gone)
    MessageRecord.objects.filter(position=1).update(invocation=kept)
    assert clear() == Counts(invocations=1)
    assert list(MessageRecord.objects.order_by("position").values_list("invocation_id", flat=True)) == [None, kept.pk]


def test_a_record_that_awaits_input_is_kept_for_as_long_as_its_session():
    make_record(OLD, status="awaiting_input", session_record=make_session(YOUNG), events=1)
    without_events = Cutoffs(sessions=NOW, invocations=NOW, events=None)
    assert clear(without_events) == Counts()
    SessionRecord.objects.update(updated_at=OLD)
    assert clear(without_events) == Counts(sessions=1, invocations=1, events=1)
    assert left() == (0, 0, 0, 0)


def test_pending_requests_and_checkpoints_go_with_their_session_and_outlive_their_invocation():
    gone, kept = make_session(OLD), make_session(YOUNG)
    for session in (gone, kept):
        record = make_record(OLD, session_record=session)
        asked = {"session_record": session, "invocation": record, "created_at": NOW}
        PendingRecord.objects.create(position=0, request_id="r", answered_by=record, **asked)
        CheckpointRecord.objects.create(checkpoint_id="c", **asked)
    assert clear() == Counts(sessions=1, invocations=2)
    left_over = PendingRecord.objects.get()
    assert (left_over.session_record_id, left_over.invocation_id, left_over.answered_by_id) == (kept.pk, None, None)
    checkpoint = CheckpointRecord.objects.get()
    assert (checkpoint.session_record_id, checkpoint.invocation_id) == (kept.pk, None)


# What never goes


@pytest.mark.parametrize("status", ["queued", "running"])
@pytest.mark.parametrize("lease", [timezone.now() + 999 * DAY, None])
def test_what_runs_or_waits_is_never_touched(status, lease):
    session = make_session(OLD, messages=1)
    make_record(None, events=2, status=status, session_record=session, lease_expires_at=lease)
    before = list(InvocationRecord.objects.values())
    assert clear() == Counts()
    assert list(InvocationRecord.objects.values()) == before
    assert left() == (1, 1, 1, 2)


def test_a_session_with_a_live_claim_is_kept_and_one_with_an_expired_claim_goes():
    make_session(OLD, claimed_by=99, claim_expires_at=timezone.now() + DAY)
    make_session(OLD, claimed_by=98, claim_expires_at=timezone.now() - DAY)
    assert clear() == Counts(sessions=1)
    assert SessionRecord.objects.get().claimed_by == 99


def test_a_dead_run_is_written_down_as_interrupted_and_stays_until_its_time():
    past = timezone.now() - timedelta(seconds=1)
    session = make_session(YOUNG, claim_expires_at=past)
    dead = make_record(None, events=2, status="running", lease_expires_at=past, session_record=session, input="{}")
    SessionRecord.objects.update(claimed_by=dead.pk)
    assert clear() == Counts(interrupted=1)
    dead.refresh_from_db()
    assert (dead.status, dead.error_code, dead.error_status) == ("interrupted", "interrupted", 409)
    assert (dead.event_count, dead.input) == (2, "")
    assert SessionRecord.objects.get().claimed_by is None
    assert clear() == Counts()


# While the site serves


def test_a_turn_that_begins_meanwhile_keeps_its_session(monkeypatch):
    session = make_session(OLD, session_id="s1", key=SCOPE.key("s1"), user_key=SCOPE.user_key, chat_key=SCOPE.chat_key)
    begun: list[Any] = []
    pages = retention._pages

    def pages_and_then_a_turn(rows: Any, size: int) -> Any:
        for pks in pages(rows, size):
            if rows.model is SessionRecord:
                begun.append(begin("s1"))
            yield pks

    monkeypatch.setattr(retention, "_pages", pages_and_then_a_turn)
    assert retention.clear(ALL) == Counts()
    assert SessionRecord.objects.get().pk == session.pk
    assert begun[0].session.pk == session.pk


@pytest.mark.timeout(30)
def test_turns_and_clearing_at_once_leave_nothing_half_done():
    problems: list[BaseException] = []
    stop = threading.Event()

    def take_turns(name: str) -> None:
        try:
            while not stop.is_set():
                turn = begin(name)
                assert turn.session is not None
                assert SessionRecord.objects.filter(pk=turn.session.pk, claimed_by=turn.record_pk).exists()
                InvocationRecord.objects.filter(pk=turn.record_pk).update(status="succeeded", finished_at=OLD)
                SessionRecord.objects.filter(pk=turn.session.pk).update(
                    claimed_by=None, claim_expires_at=None, updated_at=OLD
                )
        except BaseException as error:
            problems.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=take_turns, args=(f"s{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    total = Counts()
    try:
        while not problems and (total.sessions < 5 or total.invocations < 5):
            total += retention.clear(ALL)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_transactions_and_pages_are_bounded(monkeypatch):
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(retention, "_SESSIONS_AT_ONCE", 3)
    monkeypatch.setattr(retention, "_RECORDS_AT_ONCE", 3)
    for messages in (1, 1, 9, 0, 0):
        make_session(OLD, messages=messages)
    for events in (1, 9, 0, 0):
        make_record(OLD, events=events)
    make_record(OLD, events=6, status="awaiting_input", session_record=make_session(YOUNG))
    steps: list[tuple[str, int]] = []
    retention.clear(ALL, lambda what, rows: steps.append((what, rows)))
    assert steps == [
        *[("sessions", 2), ("messages", 2), ("sessions", 1), ("messages", 9), ("sessions", 2)],
        *[("invocations", 1), ("events", 1), ("invocations", 1), ("events", 9), ("invocations", 1), ("invocations", 1)],
        *[("events", 4), ("events", 2)],
    ]


def test_the_number_of_statements_does_not_grow_with_the_rows():
    def count() -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            retention.clear(ALL)
        return statements(captured)

    session = make_session(YOUNG)
    make_session(OLD, messages=1)
    make_record(OLD, events=1, session_record=session)
    few = count()
    for _ in range(20):
        make_session(OLD, messages=3)
        make_record(OLD, events=3, session_record=session)
    assert count() == few
    assert len(few) < 30


# The command


def run_command(*args: str, host: Any = None, **kwargs: Any) -> tuple[str, str]:
    out, err = io.StringIO(), kwargs.pop("stderr", io.StringIO())
    given = {"SESSION_TTL_SECONDS": 60, "INVOCATION_TTL_SECONDS": 60, "EVENT_TTL_SECONDS": 60} if host is None else host
    with override_settings(INVOCATIONS_HOST=given):
        call_command("clear_invocations", *args, stdout=out, stderr=err, **kwargs)
    return out.getvalue(), err.getvalue()


def test_the_command_clears_and_says_what():
    make_session(OLD, messages=2)
    make_record(OLD, events=3)
    assert run_command() == (
        "Removed sessions: 1, messages: 2, invocations: 1, event rows: 3; interrupted invocations noted: 0.\n",
        "",
    )
    assert left() == (0, 0, 0, 0)


def test_the_dry_run_says_the_same_and_removes_nothing():
    make_session(OLD, messages=2)
    make_record(OLD, events=3)
    make_record(None, status="running", lease_expires_at=timezone.now() - DAY)
    assert run_command("--dry-run") == (
        "Would remove sessions: 1, messages: 2, invocations: 1, event rows: 3; "
        "interrupted invocations would be noted: 1.\n",
        "",
    )
    assert left() == (1, 2, 2, 3)
    assert InvocationRecord.objects.filter(status="running").exists()


def test_the_defaults_keep_sessions_records_for_a_month_and_events_for_a_day():
    now = timezone.now()
    make_session(now - 999 * DAY)
    make_record(now - 31 * DAY, events=1)
    make_record(now - 2 * DAY, events=1)
    make_record(now - DAY / 2, events=1)
    assert run_command(host={})[0] == (
        "Removed sessions: 0, messages: 0, invocations: 1, event rows: 2; interrupted invocations noted: 0.\n"
    )
    assert left() == (1, 0, 2, 1)


def test_quiet_says_nothing():
    assert run_command(verbosity=0) == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar():
    make_session(OLD, messages=1)
    make_record(OLD)
    _, drawn = run_command(stderr=Terminal(), no_color=True)
    assert drawn == (
        "\r[..............................]   0%             "
        "\r[##########....................]  33% sessions    "
        "\r[####################..........]  67% messages    "
        "\r[##############################] 100% invocations "
        "\n"
    )
