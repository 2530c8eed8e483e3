"""Times on the database's clock: those of two processes may differ."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import BooleanField, Case, DateTimeField, ExpressionWrapper, Q, Value, When
from django.db.models.functions import Now


def from_now(seconds: float) -> Any:
    """Return the time that is some seconds from now, for an UPDATE.

    Args:
        seconds: Seconds to add.
    """
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=DateTimeField())


def is_past(column: str) -> Q:
    """Return the condition that a column's time is past; a null is not.

    Args:
        column: Name of the column.
    """
    return Q(**{f"{column}__lt": Now()})


def past_or_not(column: str) -> Any:
    """Return whether a column's time is past, for a SELECT.

    Args:
        column: Name of the column.
    """
    return Case(When(is_past(column), then=Value(True)), default=Value(False), output_field=BooleanField())
