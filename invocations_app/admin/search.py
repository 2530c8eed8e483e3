"""Finding an invocation by the correlation id of a log line, without an index of its own.

The id begins with the time when the invocation came in. It has ended soon after, so
the index by the minute of the end leaves few rows to look at; an index by the id
would cost every turn a write, for a search that is rare.
"""

from __future__ import annotations

import re
import time
from typing import Any

from django.db.models import QuerySet

from invocations_app.storage.correlation import milliseconds_of

_WHOLE_ID = re.compile("[0-9a-f]{32}")
# Most have ended within a minute or two, whatever waits for a session or a worker some time later.
_WINDOWS_MINUTES = (2, 15, 120, 1440)
_MINUTE = 60_000


def find_by_correlation_id(rows: QuerySet[Any], term: str) -> int | None:
    """Return the primary key of the invocation with a correlation id, where that is cheap to tell.

    Args:
        rows: All invocations.
        term: What is searched for.

    Returns:
        Its primary key; None where the term is no such id, or that invocation took longer than a day.
    """
    if _WHOLE_ID.fullmatch(term) is None:
        return None
    begun = milliseconds_of(term)
    if not 0 < begun <= time.time() * 1000 + _MINUTE:
        return None
    minute = begun // _MINUTE
    found = _first(rows.filter(finished_at=None, correlation_id=term))
    for minutes in _WINDOWS_MINUTES:
        if found is None:
            # A clock may be a little behind another one.
            found = _first(rows.filter(finished_minute__range=(minute - 1, minute + minutes), correlation_id=term))
    return found


def _first(rows: QuerySet[Any]) -> int | None:
    # Unordered: in the order of primary keys a database may take the table for quicker than the index.
    return next(iter(rows.order_by().values_list("pk", flat=True)[:1]), None)
