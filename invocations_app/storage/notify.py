"""Telling other processes that something is new: PostgreSQL's NOTIFY, nothing elsewhere.

Only keys go over it, so that whoever listens looks into the tables. It is sent
with the transaction that it is about, and never instead of looking at intervals.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.db import connections

#: Name of the channel that processes listen on.
CHANNEL = "invocations_app"

# PostgreSQL takes payloads of less than 8,000 bytes.
_KEYS_AT_ONCE = 300


def invocation_key(record_pk: int) -> str:
    """Return the key of an invocation.

    Args:
        record_pk: Primary key of its record.
    """
    return f"i{record_pk}"


def session_key(session_pk: int) -> str:
    """Return the key of a session.

    Args:
        session_pk: Primary key of its row.
    """
    return f"s{session_pk}"


def keys_of(record_pk: int, session_pk: int | None) -> list[str]:
    """Return the keys of what is new when a run has ended.

    Args:
        record_pk: Primary key of the invocation's record.
        session_pk: Primary key of its session's row, which is free now; None for none.
    """
    keys = [invocation_key(record_pk)]
    return keys if session_pk is None else [*keys, session_key(session_pk)]


def notify(using: str, keys: Iterable[str]) -> None:
    """Tell all processes, when the caller's transaction is committed, that something is new.

    Args:
        using: Alias of the database.
        keys: What is new.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    all_keys = list(keys)
    with connection.cursor() as cursor:
        for start in range(0, len(all_keys), _KEYS_AT_ONCE):
            payload = ",".join(all_keys[start : start + _KEYS_AT_ONCE])
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
