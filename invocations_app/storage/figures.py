"""The figures that are stored with each record when it ends, so that an overview of very many is one GROUP BY.

A time goes to a bucket of a logarithmic scale. Percentiles are then counted
from how many records each bucket holds, the same way on every database: the
record that a percentile means is in the bucket that is found, so its time is
the bucket's middle to within 4 % (the square root of `GROWTH`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

GROWTH = 1.08
SHORTEST_SECONDS = 0.0001

_LOG_GROWTH = math.log(GROWTH)


class Figures(NamedTuple):
    """The columns of a record that has ended, by their names.

    Attributes:
        finished_minute: Minutes from 1970 (UTC) to the end.
        duration_bucket: Bucket of the time from begin to end; None where nobody knows it.
        first_byte_bucket: Bucket of the time from begin to the first byte; None where none came.
    """

    finished_minute: int
    duration_bucket: int | None
    first_byte_bucket: int | None


def of(begun_at: datetime, first_byte_at: datetime | None, finished_at: datetime) -> Figures:
    """Return the figures of a record.

    Args:
        begun_at: When it was begun.
        first_byte_at: When the first piece of its answer was ready, if it was.
        finished_at: When it ended.
    """
    first_byte = None if first_byte_at is None else bucket(first_byte_at - begun_at)
    return Figures(minute(finished_at), bucket(finished_at - begun_at), first_byte)


def minute(moment: datetime) -> int:
    """Return the number of whole minutes from 1970 (UTC) to a moment.

    Args:
        moment: The moment, aware.
    """
    return int(moment.timestamp() // 60)


def bucket(span: timedelta) -> int:
    """Return the bucket of a time: 0 up to `SHORTEST_SECONDS`, then one more for every 8 %.

    An hour is 227, and the longest that there is 537.

    Args:
        span: The time; one below zero, by a clock that was set back, counts as none.
    """
    seconds = span.total_seconds()
    if seconds <= SHORTEST_SECONDS:
        return 0
    return math.ceil(math.log(seconds / SHORTEST_SECONDS) / _LOG_GROWTH)


def middle_seconds(number: int) -> float:
    """Return the time that a bucket stands for, in seconds: its geometric middle.

    Args:
        number: The bucket.
    """
    return SHORTEST_SECONDS * GROWTH ** (number - 0.5) if number > 0 else SHORTEST_SECONDS


def percentile_seconds(counts: Mapping[int, int], fraction: float) -> float | None:
    """Return a percentile by the nearest rank: the shortest time that so many records do not exceed.

    Args:
        counts: Number of records in each bucket.
        fraction: Which one; 0.95 for the 95th percentile.

    Returns:
        The time in seconds, to within 4 % (or `SHORTEST_SECONDS`, for whatever is shorter); None without records.
    """
    rank = math.ceil(fraction * sum(counts.values()))
    passed = 0
    for number in sorted(counts):
        passed += counts[number]
        if passed >= rank > 0:
            return middle_seconds(number)
    return None
