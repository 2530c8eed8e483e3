"""The common case of a turn in plain statements: an uncontended begin, a commit that appends.

Whatever else there is (a busy session, an id used before, pending requests, a
changed history, a lost claim) is left to the code in ``turns`` and
``endings``, by raising `NotSwift` before anything is decided.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from invocations_app.events import Answer
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import figures, kept, notify, plain_sql, records
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.figures import Figures
from invocations_app.storage.grouping import NotSwift
from invocations_app.storage.plain_sql import Insert, statement
from invocations_app.storage.snapshots import MessageRow
from invocations_app.storage.turns import ClaimedSession, Turn, TurnRequest

_SESSIONS = SessionRecord._meta.db_table
_INVOCATIONS = InvocationRecord._meta.db_table
_MESSAGES = MessageRecord._meta.db_table

_NEW_SESSION = Insert(
    SessionRecord,
    ["key", "endpoint", "user_key", "chat_key", "session_id", "user_id", "opaque_id", "created_at", "updated_at"],
)
_BEGUN = [
    "key",
    "invocation_id",
    "correlation_id",
    "endpoint",
    "user_key",
    "chat_key",
    "user_id",
    "dialect",
    "stream",
    "background",
    "fingerprint",
    "session_record_id",
    "session_id",
    "claim_number",
    "owner",
    "lease_expires_at",
    "status",
    "metadata",
    "created_at",
]
_NEW_RECORD = Insert(InvocationRecord, _BEGUN, from_now="lease_expires_at")
_WHOLE_RECORD = Insert(
    InvocationRecord,
    [
        *_BEGUN,
        "answer",
        "usage",
        "total_tokens",
        "first_byte_at",
        "event_count",
        "steps",
        "finished_at",
        *Figures._fields,
    ],
    from_now="lease_expires_at",
)
_NEW_MESSAGE = Insert(
    MessageRecord, ["session_id", "source_id", "position", "role", "payload", "invocation_id", "created_at"]
)
_NEW_EVENTS = Insert(EventRecord, ["invocation_id", "first", "last", "frames", "created_at"])

_FIND_SESSION = f"""
SELECT id, endpoint, user_key, chat_key, session_id, opaque_id, state, version, claim_number, claimed_by,
       pending_count
FROM "{_SESSIONS}" WHERE key = %s
"""  # noqa: S608 - a table's name
_WAITS = f"SELECT 1 FROM \"{_INVOCATIONS}\" WHERE session_record_id = %s AND status = 'queued' LIMIT 1"  # noqa: S608
_CLAIM = f"""
UPDATE "{_SESSIONS}" SET claim_number = claim_number + 1, claimed_by = %s, claim_expires_at = {{from_now}}
WHERE id = %s AND claimed_by IS NULL
"""  # noqa: S608
_READ_MESSAGES = f"""
SELECT source_id, position, role, payload FROM "{_MESSAGES}" WHERE session_id = %s ORDER BY source_id, position
"""  # noqa: S608
_COUNT_MESSAGES = f'SELECT COUNT(*) FROM "{_MESSAGES}" WHERE session_id = %s'  # noqa: S608
_ADVANCE = f"""
UPDATE "{_SESSIONS}" SET state = %s, message_count = %s, version = version + 1, updated_at = %s,
       claimed_by = NULL, claim_expires_at = NULL
WHERE id = %s AND version = %s AND claimed_by = %s AND claim_number = %s
"""  # noqa: S608
_END = f"""
UPDATE "{_INVOCATIONS}" SET status = 'succeeded', answer = %s, usage = %s, total_tokens = %s, first_byte_at = %s,
       event_count = %s, steps = %s, input = '', finished_at = %s,
       finished_minute = %s, duration_bucket = %s, first_byte_bucket = %s
WHERE id = %s AND owner = %s AND status = 'running' AND lease_expires_at >= {{now}}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Commit:
    """What is committed; see `endings.commit_now`.

    Attributes:
        turn: The turn.
        change: What it leaves of its session; None without a session.
        answer: What the caller is answered.
        ending: What else is written.
        answer_text: The answer as its record keeps it.
    """

    turn: Turn
    change: SessionChange | None
    answer: Answer
    ending: Ending
    answer_text: str


def begin(connection: Any, cursor: Any, request: TurnRequest) -> Turn:
    """Record an invocation as running and claim its free session.

    Args:
        connection: Django's connection.
        cursor: The driver's cursor, in a savepoint.
        request: What begins the turn.

    Raises:
        NotSwift: If it is not the common case.
    """
    invocation = request.invocation
    elsewhere = invocation.delivery != "originating"
    if invocation.responses is not None or elsewhere or request.with_checkpoint or request.handed_input:
        raise NotSwift
    now = plain_sql.moment(connection, timezone.now())
    session = None if request.session_id is None else _find_or_make(connection, cursor, request, now)
    record_pk = _record(connection, cursor, request, session)
    if session is None:
        return Turn(record_pk, request.owner, None, request.begun_at)
    vendor = connection.vendor
    lease = plain_sql.seconds(vendor, request.lease_seconds)
    cursor.execute(statement(vendor, _CLAIM), [record_pk, lease, session.pk])
    if cursor.rowcount != 1:
        raise NotSwift
    return Turn(record_pk, request.owner, session, request.begun_at)


def _find_or_make(connection: Any, cursor: Any, request: TurnRequest, now: Any) -> ClaimedSession:
    """Return the session as it will be claimed: free, with nothing pending, and nobody waiting for it."""
    scope, session_id = request.scope, request.session_id
    key = scope.key(session_id or "")
    vendor = connection.vendor
    lock = " FOR UPDATE" if vendor == "postgresql" else ""
    cursor.execute(statement(vendor, _FIND_SESSION + lock), [key])
    row = cursor.fetchone()
    if row is None:
        opaque_id = records.new_opaque_id()
        user_pk = _user(connection, request.user_pk)
        given = [key, scope.endpoint, scope.user_key, scope.chat_key, session_id, user_pk, opaque_id, now, now]
        cursor.execute(_NEW_SESSION.text(vendor, ignore_conflicts=True), _NEW_SESSION.values(connection, given))
        made = cursor.fetchone()
        if made is None:
            raise NotSwift
        return ClaimedSession(made[0], key, opaque_id, version=0, claim_number=1, state="")
    pk, endpoint, user_key, chat_key, found_id, opaque_id, state, version, claim_number, claimed_by, pending = row
    if claimed_by is not None or pending:
        raise NotSwift
    if (endpoint, user_key, chat_key, found_id) != (scope.endpoint, scope.user_key, scope.chat_key, session_id):
        raise NotSwift
    cursor.execute(statement(vendor, _WAITS), [pk])
    if cursor.fetchone() is not None:
        raise NotSwift
    history = kept.sessions.take(pk, opaque_id, version, state)
    if history is not None:
        cursor.execute(statement(vendor, _COUNT_MESSAGES), [pk])
        if cursor.fetchone()[0] != history.count:
            history = None
    rows: tuple[MessageRow, ...] = ()
    if state and history is None:
        cursor.execute(statement(vendor, _READ_MESSAGES), [pk])
        rows = tuple(map(MessageRow._make, cursor.fetchall()))
    return ClaimedSession(pk, key, opaque_id, version, claim_number + 1, state, rows, history)


def _record(connection: Any, cursor: Any, request: TurnRequest, session: ClaimedSession | None) -> int:
    given = _begun(connection, request, session, "running")
    # An id that was used before breaks the unique key, and is left to who knows what to do then.
    cursor.execute(_NEW_RECORD.text(connection.vendor), _NEW_RECORD.values(connection, given))
    record_pk: int = cursor.fetchone()[0]
    return record_pk


def _begun(connection: Any, request: TurnRequest, session: ClaimedSession | None, status: str) -> list[Any]:
    """Return the values of `_BEGUN`."""
    invocation, scope = request.invocation, request.scope
    return [
        scope.key(invocation.id),
        invocation.id,
        request.correlation_id,
        scope.endpoint,
        scope.user_key,
        scope.chat_key,
        _user(connection, request.user_pk),
        invocation.dialect,
        invocation.stream,
        invocation.background,
        request.fingerprint,
        None if session is None else session.pk,
        invocation.session_id if invocation.session_mode != "disabled" else None,
        0 if session is None else session.claim_number,
        request.owner,
        plain_sql.seconds(connection.vendor, request.lease_seconds),
        status,
        json.dumps(dict(invocation.metadata)) if invocation.metadata else "",
        plain_sql.moment(connection, request.begun_at),
    ]


def _user(connection: Any, user_pk: Any) -> Any:
    if user_pk is None or isinstance(user_pk, int):
        return user_pk
    return InvocationRecord._meta.get_field("user").get_db_prep_save(user_pk, connection)


def commit(connection: Any, cursor: Any, job: Commit) -> None:
    """Write a turn that appends to its session, or has none, and leaves nothing pending.

    Args:
        connection: Django's connection.
        cursor: The driver's cursor, in a savepoint.
        job: What is committed.

    Raises:
        NotSwift: If it is not the common case, or the turn is not this process's any more.
    """
    turn, answer, ending = job.turn, job.answer, job.ending
    if answer.pending:
        raise NotSwift
    vendor = connection.vendor
    finished_at = timezone.now()
    now = plain_sql.moment(connection, finished_at)
    usage = answer.usage
    values = [
        job.answer_text,
        json.dumps(dict(usage)) if usage else "",
        (usage or {}).get("total_token_count"),
        plain_sql.moment(connection, ending.first_byte_at),
        ending.event_count,
        ending.steps.text(turn.begun_at),
        now,
        *figures.of(turn.begun_at, ending.first_byte_at, finished_at),
    ]
    if turn.unrecorded is not None:
        begun = _begun(connection, turn.unrecorded, None, "succeeded")
        whole = _WHOLE_RECORD.values(connection, [*begun, *values])
        cursor.execute(_WHOLE_RECORD.text(vendor, returning=False), whole)
        return
    if turn.session is not None:
        _advance(connection, cursor, job, turn.session, now)
    values += [turn.record_pk, turn.owner]
    cursor.execute(statement(vendor, _END), values)
    if cursor.rowcount != 1:
        raise NotSwift
    if ending.events.frames:
        batch = ending.events
        given = [turn.record_pk, batch.first, batch.last, batch.text, now]
        cursor.execute(_NEW_EVENTS.text(vendor, returning=False), _NEW_EVENTS.values(connection, given))
    if vendor == "postgresql":
        keys = ",".join(notify.keys_of(turn.record_pk, turn.session_pk))
        cursor.execute("SELECT pg_notify(%s, %s)", [notify.CHANNEL, keys])


def _advance(connection: Any, cursor: Any, job: Commit, session: ClaimedSession, now: Any) -> None:
    left = job.change
    if left is None or left.change is None or left.pending or left.checkpoints or session.is_rewritten:
        raise NotSwift
    change = left.change
    if not change.appended_only:
        raise NotSwift
    vendor = connection.vendor
    held = [session.pk, session.version, job.turn.record_pk, session.claim_number]
    cursor.execute(statement(vendor, _ADVANCE), [change.state, change.history.count, now, *held])
    if cursor.rowcount != 1:
        raise NotSwift
    if change.written:
        rows = [
            _NEW_MESSAGE.values(
                connection,
                [session.pk, row.source_id, row.position, row.role, row.payload, job.turn.record_pk, now],
            )
            for row in change.written
        ]
        cursor.executemany(_NEW_MESSAGE.text(vendor, returning=False), rows)
