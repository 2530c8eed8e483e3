"""The timeline of an invocation in the admin: what is made of the times that are known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from invocations_app.admin.timeline import WIDTH, Segment, timeline_of
from invocations_app.models import InvocationRecord, PendingRecord
from tests.admin_records import make_invocation, make_session

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def after(milliseconds: float) -> datetime:
    return NOW + timedelta(milliseconds=milliseconds)


def lines(invocation: InvocationRecord, **keys: Any) -> list[tuple[str, str, str]]:
    timeline = timeline_of(invocation, **keys)
    return [(step.offset, f"{step.label} {step.name}".strip(), step.note) for step in timeline.steps]


@pytest.mark.django_db
class TestTimeline:
    def test_times_that_are_known_are_told_in_order(self):
        told = json.dumps([["call", "book", 100], ["result", "book", 400]])
        record = make_invocation(
            stream=True,
            steps=told,
            event_count=3,
            first_byte_at=after(250),
            finished_at=after(1500),
            session_record=make_session(),
            claimed_at=after(50),
        )
        assert lines(record) == [
            ("+0 ms", "Begun", "streamed"),
            ("+50 ms", "Session claimed", "after waiting for earlier turns or a worker"),
            ("+100 ms", "Tool called book", ""),
            ("+250 ms", "First byte", "3 events of the stream"),
            ("+400 ms", "Tool returned book", ""),
            ("+1.5 s", "Committed", "answer, history and record at once"),
        ]

    def test_step_without_a_time_has_no_offset(self):
        record = make_invocation(steps='[["call","book",null]]', first_byte_at=after(5), finished_at=after(6))
        assert lines(record)[1] == ("", "Tool called book", "its time is not recorded: the run was not streamed")

    def test_one_that_has_nothing_but_its_begin(self):
        assert lines(make_invocation(status="failed", error_code="timeout")) == [
            ("+0 ms", "Begun", "answered in one piece"),
            ("", "Failed", "timeout"),
        ]

    def test_running_one_goes_on_until_now(self):
        record = make_invocation(status="running", session_record=make_session(), background=True)
        timeline = timeline_of(record, now=after(2500))
        assert (timeline.duration, timeline.is_live) == ("2.5 s", True)
        assert [step.label for step in timeline.steps] == ["Begun", "Running"]
        assert timeline.steps[0].note == "in the background, answered in one piece, session claimed at once"
        assert timeline.segments == (Segment("working", "working: 2.5 s", 0, WIDTH),)

    def test_version_changes_with_what_is_shown_and_not_with_time(self):
        record = make_invocation(status="running")
        first, later = timeline_of(record, now=after(1)), timeline_of(record, now=after(9))
        assert first.version == later.version
        record.cancel_requested = True
        assert timeline_of(record, now=after(9)).version != later.version

    def test_queued_one_says_how_many_are_ahead(self):
        session = make_session()
        for _ in range(2):
            make_invocation(status="running", session_record=session)
        make_invocation(session_record=session)
        record = make_invocation(status="queued", session_record=session)
        assert lines(record)[-1] == ("", "Waiting", "2 invocations of its session are ahead")
        assert timeline_of(record, now=after(10)).segments == (Segment("waiting", "waiting: 10 ms", 0, WIDTH),)

    def test_questions_and_their_answers_are_told(self):
        session = make_session()
        other = make_invocation(session_record=session)
        record = make_invocation(session_record=session, finished_at=after(10))
        asked = {"session_record": session, "invocation": record, "position": 0, "created_at": after(10), "data": "{}"}
        PendingRecord.objects.create(request_id="a", kind="approval", **asked)
        PendingRecord.objects.create(request_id="b", kind="tool_call", **asked, closed_at=after(20))
        PendingRecord.objects.create(
            request_id="c", kind="request_info", **asked, closed_at=after(30), answered_by=other
        )
        assert lines(record)[-4:] == [
            ("+10 ms", "Asked: approval", "waits for an answer"),
            ("+10 ms", "Asked: tool_call", "closed without an answer"),
            ("+10 ms", "Asked: request_info", ""),
            ("+30 ms", "Answered", f"by invocation {other.correlation_id}"),
        ]

    def test_bar_shows_waiting_working_answering_and_tools(self):
        record = make_invocation(
            claimed_at=after(100),
            first_byte_at=after(400),
            finished_at=after(1000),
            steps='[["call","a",500],["result","a",700],["result","b",800]]',
        )
        assert timeline_of(record).segments == (
            Segment("waiting", "waiting: 100 ms", 0, 100),
            Segment("working", "until the first byte: 300 ms", 100, 300),
            Segment("answering", "from the first byte to the end: 600 ms", 400, 600),
            Segment("tool", "a: 200 ms", 500, 200),
        )

    def test_names_below_the_bar_are_few(self):
        told = [[kind, f"tool{number}", number] for number in range(20) for kind in ("call", "result")]
        timeline = timeline_of(make_invocation(finished_at=after(1000), steps=json.dumps(told)))
        assert len(timeline.segments) == 21
        assert [segment.kind for segment in timeline.legend] == ["working", *["tool"] * 8]
        assert timeline.unnamed == "and 12 more"
        assert timeline_of(make_invocation(finished_at=after(5))).unnamed == ""

    def test_clocks_that_differ_break_nothing(self):
        record = make_invocation(
            claimed_at=after(-100), first_byte_at=after(5000), finished_at=after(1000), steps='[["call","a",9999999]]'
        )
        assert timeline_of(record).segments == (Segment("working", "until the first byte: 1.0 s", 0, WIDTH),)

    def test_running_stream_counts_the_events_of_the_log(self):
        record = make_invocation(status="running", stream=True)
        record.events.create(first=1, last=7, frames="[]", created_at=NOW)
        assert lines(record)[1] == ("", "First byte", "7 events of the stream")

    def test_number_of_queries(self, django_assert_num_queries):
        session = make_session()
        record = make_invocation(session_record=session, finished_at=after(1))
        with django_assert_num_queries(1):
            timeline_of(record)
        record.status, record.stream = "running", True
        with django_assert_num_queries(1):
            timeline_of(record)
