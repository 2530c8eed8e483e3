"""The indexes of the tables that every turn writes to: each one more costs every turn a page."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord

pytestmark = pytest.mark.django_db


def columns_of_indexes(model: Any) -> list[list[str]]:
    """Return the columns of each index of a model's table, in order; an expression's are none."""
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
    return sorted(
        list(about["columns"] or [])
        for about in constraints.values()
        if about["index"] or about["unique"] or about["primary_key"]
    )


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (
            SessionRecord,
            [["id"], ["key"], ["updated_at", "id"], ["updated_at", "id", "endpoint"], ["user_id"]],
        ),
        (
            InvocationRecord,
            [
                ["endpoint", "status"],
                [
                    *("finished_minute", "id", "endpoint", "status", "duration_bucket", "first_byte_bucket"),
                    "total_tokens",
                ],
                ["id"],
                ["key"],
                ["session_record_id", "id"],
                ["user_id"],
            ],
        ),
        (MessageRecord, [["id"], ["session_id", "source_id", "position"]]),
        (EventRecord, [["id"], ["invocation_id", "first"]]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_indexes_are_these_and_no_more(model: Any, columns: list[list[str]]) -> None:
    assert columns_of_indexes(model) == columns


@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="a planner that counts rows takes none for a few")
@pytest.mark.parametrize(
    ("rows", "index"),
    [
        (SessionRecord.objects.filter(user_id=1), "invocations_session_user"),
        (SessionRecord.objects.filter(user_id__in=[1, 2]), "invocations_session_user"),
        (InvocationRecord.objects.filter(user_id=1), "invocations_user"),
        (InvocationRecord.objects.filter(user_id__in=[1, 2]), "invocations_user"),
        (InvocationRecord.objects.filter(session_record_id=1).order_by("id"), "invocations_of_session"),
        (InvocationRecord.objects.filter(session_record_id__in=[1, 2]), "invocations_of_session"),
    ],
)
def test_rows_of_one_user_or_session_are_found_by_their_index(rows: Any, index: str) -> None:
    assert f"USING INDEX {index}" in rows.explain()


def test_a_user_who_is_deleted_leaves_their_rows_without_one() -> None:
    user = get_user_model().objects.create(username="ann")
    times = {"created_at": "2026-01-01T00:00Z", "updated_at": "2026-01-01T00:00Z"}
    session = SessionRecord.objects.create(key="k", user=user, **times)
    user.delete()
    session.refresh_from_db()
    assert session.user_id is None
