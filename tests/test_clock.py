"""Times on the database's clock: what is past, what is not, and what has no time."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from invocations_app.models import SessionRecord
from invocations_app.storage import clock

pytestmark = pytest.mark.django_db


def session(name: str, *, seconds: float | None) -> SessionRecord:
    """Make a session whose claim expires some seconds from now, or has no time."""
    now = timezone.now()
    return SessionRecord.objects.create(
        opaque_id=name,
        session_id=name,
        created_at=now,
        updated_at=now,
        claim_expires_at=None if seconds is None else now + timedelta(seconds=seconds),
    )


@pytest.fixture(autouse=True)
def _sessions() -> None:
    session("past", seconds=-5)
    session("to come", seconds=5)
    session("none", seconds=None)


def names(rows: object) -> set[str]:
    return set(rows.values_list("session_id", flat=True))  # type: ignore[attr-defined]


def test_what_is_past_is_found_and_a_null_is_not() -> None:
    assert names(SessionRecord.objects.filter(clock.is_past("claim_expires_at"))) == {"past"}


def test_what_is_not_past_is_found_and_so_is_a_null() -> None:
    assert names(SessionRecord.objects.exclude(clock.is_past("claim_expires_at"))) == {"to come", "none"}


def test_each_row_says_whether_its_time_is_past() -> None:
    rows = SessionRecord.objects.values_list("session_id", clock.past_or_not("claim_expires_at"))
    assert dict(rows) == {"past": True, "to come": False, "none": False}


@pytest.mark.parametrize("seconds", [-60, 0.25, 1.5, 630, 86_400])
def test_a_time_from_now_is_written_as_such(seconds: float) -> None:
    before = timezone.now()
    SessionRecord.objects.update(claim_expires_at=clock.from_now(seconds))
    after = timezone.now()
    for written in SessionRecord.objects.values_list("claim_expires_at", flat=True):
        assert isinstance(written, datetime)
        # The database's clock has milliseconds at least, and on PostgreSQL stands still in a transaction.
        assert timedelta(seconds=-1) < written - timedelta(seconds=seconds) - before
        assert written - timedelta(seconds=seconds) <= after + timedelta(milliseconds=1)


def test_a_time_that_was_just_written_is_past_a_moment_later_and_one_ahead_is_not() -> None:
    SessionRecord.objects.filter(session_id="none").update(claim_expires_at=clock.from_now(-0.01))
    SessionRecord.objects.filter(session_id="past").update(claim_expires_at=clock.from_now(30))
    assert names(SessionRecord.objects.filter(clock.is_past("claim_expires_at"))) == {"none"}
