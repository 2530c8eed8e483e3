"""Figures that are stored with each record: the buckets of times, and every way in which a record ends."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocations_app.envelope import Invocation
from invocations_app.exceptions import InvocationError, RunCancelled, RunInterrupted, TargetFailed
from invocations_app.models import InvocationRecord
from invocations_app.storage import figures, handover, invocations, turns
from tests.test_turns import OWNER, SCOPE, begin, begin_any, commit, expire, fail, request

ONE_MICROSECOND = timedelta(microseconds=1)


# Buckets


@given(st.timedeltas(min_value=timedelta(microseconds=100)))
def test_the_middle_of_a_bucket_is_within_four_percent_of_every_time_in_it(span: timedelta) -> None:
    middle = figures.middle_seconds(figures.bucket(span))
    assert abs(middle / span.total_seconds() - 1) <= 0.04


@given(st.timedeltas(max_value=timedelta(microseconds=100)))
def test_what_is_shorter_than_the_shortest_time_counts_as_it(span: timedelta) -> None:
    assert figures.bucket(span) == 0
    assert figures.middle_seconds(0) == 0.0001


@given(st.timedeltas(), st.timedeltas())
def test_a_longer_time_has_no_smaller_bucket(one: timedelta, other: timedelta) -> None:
    shorter, longer = sorted((one, other))
    assert figures.bucket(shorter) <= figures.bucket(longer)


def test_every_time_fits_the_column() -> None:
    assert figures.bucket(timedelta.min) == 0
    assert figures.bucket(timedelta(microseconds=101)) == 1
    assert figures.bucket(timedelta(hours=1)) == 227
    assert figures.bucket(timedelta.max) == 537
    assert InvocationRecord._meta.get_field("duration_bucket").get_internal_type() == "PositiveSmallIntegerField"


spans = st.lists(st.timedeltas(timedelta(microseconds=100), timedelta(days=9)), min_size=1, max_size=200)


@given(spans, st.sampled_from([0.01, 0.5, 0.95, 1]))
def test_a_percentile_is_within_five_percent_of_the_exact_one(times: list[timedelta], fraction: float) -> None:
    exact = sorted(times)[math.ceil(fraction * len(times)) - 1].total_seconds()
    found = figures.percentile_seconds(Counter(map(figures.bucket, times)), fraction)
    assert found is not None
    assert abs(found / exact - 1) <= 0.05


def test_there_is_no_percentile_of_nothing() -> None:
    assert figures.percentile_seconds({}, 0.5) is None
    assert figures.percentile_seconds({7: 0}, 0.5) is None


def test_a_minute_begins_with_its_first_second_in_every_zone() -> None:
    noon = datetime(1970, 1, 2, 12, tzinfo=UTC)
    assert figures.minute(noon) == 36 * 60
    assert figures.minute(noon - ONE_MICROSECOND) == 36 * 60 - 1
    assert figures.minute(noon.astimezone(timezone(timedelta(hours=5, minutes=45)))) == 36 * 60


# Records


def stored() -> dict[str, Any]:
    (record,) = InvocationRecord.objects.values()
    return record


def figures_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[column] for column in figures.Figures._fields)


def due(record: dict[str, Any]) -> tuple[Any, ...]:
    return figures.of(record["created_at"], record["first_byte_at"], record["finished_at"])


@pytest.mark.django_db(transaction=True)
class TestRecords:
    """What is stored, whatever the end."""

    def test_a_running_one_has_no_figures(self) -> None:
        begin("s1")
        assert figures_of(stored()) == (None, None, None)

    @pytest.mark.parametrize("session_id", ["s1", None])
    def test_one_that_succeeds_has_all_of_them(self, session_id: str | None) -> None:
        turn = begin(session_id)
        commit(turn)
        assert figures_of(stored()) == due(stored())
        assert None not in figures_of(stored())

    @pytest.mark.parametrize("error", [TargetFailed(), RunCancelled(), RunInterrupted()])
    def test_one_that_fails_has_its_duration(self, error: InvocationError) -> None:
        fail(begin("s1"), error)
        assert figures_of(stored()) == due(stored())
        assert stored()["duration_bucket"] is not None
        assert stored()["first_byte_bucket"] is None

    def test_one_that_waited_counts_from_its_beginning(self) -> None:
        begin("s1")
        waiting = begin_any("s1", on_busy="wait")
        assert isinstance(waiting, turns.Waiting)
        fail(waiting, TargetFailed())
        record = InvocationRecord.objects.values().get(pk=waiting.record_pk)
        assert figures_of(record) == due(record)

    def test_a_silent_one_has_no_duration_as_nobody_knows_when_it_ended(self) -> None:
        turn = begin("s1")
        expire()
        invocations._look_up({"pk": turn.record_pk})
        record = stored()
        assert record["status"] == "interrupted"
        assert figures_of(record) == (figures.minute(record["finished_at"]), None, None)

    def test_one_that_is_cancelled_while_it_waits_has_no_duration(self) -> None:
        begin("s1")
        waiting = begin_any("s1", on_busy="wait", invocation_id="waits")
        assert isinstance(waiting, turns.Waiting)
        invocations._request_cancel(SCOPE, "waits")
        record = InvocationRecord.objects.values().get(pk=waiting.record_pk)
        assert record["status"] == "cancelled"
        assert figures_of(record) == (figures.minute(record["finished_at"]), None, None)

    def test_one_that_a_worker_takes_counts_from_its_beginning(self) -> None:
        begun_at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
        invocation = Invocation(id="i1", endpoint=SCOPE.endpoint, dialect="channel", session_mode="disabled")
        asked = turns.TurnRequest(invocation, SCOPE, None, "f" * 64, "c", "", begun_at, 60, handed_input="{}")
        handed = turns.begin_now(asked)
        assert isinstance(handed, turns.Handed)
        taken = handover._take(handed.record_pk, OWNER, 60)
        assert taken is not None
        assert (handed.begun_at, taken.begun_at) == (begun_at, begun_at)
        turn = turns.resume(request(None)._replace(begun_at=taken.begun_at), handed.record_pk, None)
        assert isinstance(turn, turns.Turn)
        commit(turn)
        assert figures_of(stored()) == due(stored())
