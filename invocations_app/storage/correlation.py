"""Correlation ids: how logs and records are brought together. 32 hexadecimal digits, ours and no caller's.

The first 12 are the milliseconds since 1970 at which the invocation came in, so that
an index by time finds its record; the others are random.
"""

from __future__ import annotations

import time

from invocations_app import entropy

_TIME_DIGITS = 12
_RANDOM_DIGITS = 20


def new_correlation_id() -> str:
    """Return a new correlation id."""
    return f"{time.time_ns() // 1_000_000:0{_TIME_DIGITS}x}{entropy.random_hex(_RANDOM_DIGITS)}"


def milliseconds_of(correlation_id: str) -> int:
    """Return the time that a correlation id begins with, in milliseconds since 1970.

    Args:
        correlation_id: The id.
    """
    return int(correlation_id[:_TIME_DIGITS], 16)
