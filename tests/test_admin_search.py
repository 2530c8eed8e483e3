"""Finding an invocation by what stands in a log line."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from invocations_app.admin.search import find_by_correlation_id
from invocations_app.models import InvocationRecord
from invocations_app.storage.correlation import milliseconds_of, new_correlation_id
from invocations_app.storage.figures import minute
from tests.admin_records import INVOCATIONS, make_invocation

pytestmark = pytest.mark.django_db


def find(term: str) -> int | None:
    return find_by_correlation_id(InvocationRecord.objects.all(), term)


def make_ended(after: timedelta = timedelta(0)) -> InvocationRecord:
    """Make one that came in now, and has ended some time after."""
    correlation_id = new_correlation_id()
    ended = datetime.fromtimestamp(milliseconds_of(correlation_id) / 1000, UTC) + after
    return make_invocation(correlation_id=correlation_id, finished_at=ended, finished_minute=minute(ended))


def test_id_holds_its_time_and_is_never_the_same():
    before = time.time_ns() // 1_000_000
    made = {new_correlation_id() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(each) for each in made} == {32}
    assert all(before <= milliseconds_of(each) <= time.time_ns() // 1_000_000 for each in made)


@pytest.mark.parametrize("minutes", [-0.5, 0, 5, 100, 1400])
def test_ended_one_is_found_by_the_minute_of_its_end(minutes):
    make_ended()
    record = make_ended(timedelta(minutes=minutes))
    assert find(record.correlation_id) == record.pk


def test_live_one_is_found():
    record = make_invocation(correlation_id=new_correlation_id(), status="running")
    assert find(record.correlation_id) == record.pk


def test_one_that_took_days_is_left_to_the_slow_search(admin_client):
    record = make_ended(timedelta(days=3))
    assert find(record.correlation_id) is None
    [found] = admin_client.get(INVOCATIONS, {"q": f" {record.correlation_id} "}).context["cl"].result_list
    assert found == record


@pytest.mark.parametrize("term", ["", "x", "f" * 32, "0" * 32, "A" * 32, "1" * 31])
def test_what_is_no_id_of_ours_is_not_looked_for(term, django_assert_num_queries):
    with django_assert_num_queries(0):
        assert find(term) is None


def test_index_is_used_and_not_the_table(django_assert_max_num_queries):
    record = make_ended()
    with django_assert_max_num_queries(2) as queries:
        find(record.correlation_id)
    if connection.vendor != "sqlite":
        pytest.skip("the plan of a table of one row says nothing elsewhere")
    for query in queries.captured_queries:
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
            [(*_, plan)] = cursor.fetchall()
        assert "USING INDEX invocations_" in plan, plan
