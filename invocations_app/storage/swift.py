"""The common case of turns in a handful of plain statements, however many turns they are.

Uncontended begins, commits that append. Whatever else there is (a busy session,
an id used before, pending requests, a changed history, a lost claim) is left to
the code in ``turns`` and ``endings``: what is known in time is left out, and
whatever is met too late for that raises `NotSwift`, for all to be taken back.

Few statements count for more than short ones: each one gives the interpreter's
lock away and waits to have it back, or goes to another machine and back.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.utils import timezone

from invocations_app.events import Answer
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import endings, figures, kept, notify, plain_sql, records
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.figures import Figures
from invocations_app.storage.grouping import NotSwift
from invocations_app.storage.plain_sql import Insert
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


_FIND_SESSIONS = f"""
SELECT key, id, endpoint, user_key, chat_key, session_id, opaque_id, state, version, claim_number, claimed_by,
       pending_count
FROM "{_SESSIONS}" WHERE key IN ({{keys}}) ORDER BY id
"""  # noqa: S608 - a table's name
_WAITED_FOR = f"""
SELECT DISTINCT session_record_id FROM "{_INVOCATIONS}" WHERE session_record_id IN ({{keys}}) AND status = 'queued'
"""  # noqa: S608
_READ_MESSAGES = f"""
SELECT session_id, source_id, position, role, payload FROM "{_MESSAGES}" WHERE session_id IN ({{keys}})
ORDER BY session_id, source_id, position
"""  # noqa: S608
_COUNT_MESSAGES = f"""
SELECT session_id, COUNT(*) FROM "{_MESSAGES}" WHERE session_id IN ({{keys}}) GROUP BY session_id
"""  # noqa: S608
_CLAIM = f"""
UPDATE "{_SESSIONS}" SET claim_number = claim_number + 1, claimed_by = v.column2, claim_expires_at = {{from_now}}
FROM {{values}} AS v WHERE "{_SESSIONS}".id = v.column1 AND claimed_by IS NULL
"""  # noqa: S608
_CLAIM_TYPES = ("bigint", "bigint")
_LOCK = f'SELECT id FROM "{_SESSIONS}" WHERE id IN ({{keys}}) ORDER BY id FOR UPDATE'  # noqa: S608
_ADVANCE = f"""
UPDATE "{_SESSIONS}" SET state = v.column5, message_count = v.column6, version = version + 1, updated_at = v.column7,
       claimed_by = NULL, claim_expires_at = NULL
FROM {{values}} AS v
WHERE "{_SESSIONS}".id = v.column1 AND version = v.column2 AND claimed_by = v.column3 AND claim_number = v.column4
"""  # noqa: S608
_ADVANCE_TYPES = ("bigint", "bigint", "bigint", "bigint", "text", "bigint", "timestamptz")
_END = f"""
UPDATE "{_INVOCATIONS}" SET status = 'succeeded', input = '', answer = v.column3, usage = v.column4,
       total_tokens = v.column5, first_byte_at = v.column6, event_count = v.column7, steps = v.column8,
       finished_at = v.column9, finished_minute = v.column10, duration_bucket = v.column11,
       first_byte_bucket = v.column12
FROM {{values}} AS v
WHERE "{_INVOCATIONS}".id = v.column1 AND owner = v.column2 AND status = 'running' AND lease_expires_at >= {{now}}
"""  # noqa: S608
_END_TYPES = (
    *("bigint", "text", "text", "text", "bigint", "timestamptz", "bigint", "text"),
    *("timestamptz", "bigint", "bigint", "bigint"),
)


class Commit(NamedTuple):
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

    @property
    def size(self) -> int:
        """About how much is written, in bytes."""
        size = len(self.answer_text) + sum(map(len, self.ending.events.frames))
        change = self.change.change if self.change is not None else None
        if change is not None:
            size += len(change.state) + sum(len(row.payload) for row in change.written)
        return size


# Begin


def begin(
    connection: Any, cursor: Any, requests: Sequence[TurnRequest], *, with_histories: bool = True
) -> dict[int, Turn]:
    """Record invocations as running and claim their free sessions.

    Args:
        connection: Django's connection.
        cursor: The driver's cursor, in a transaction.
        requests: What begins the turns, in order of arrival where they share a session.
        with_histories: Whether to read histories; False leaves out turns that need one.

    Returns:
        The turns, by the place of their request; without those that are not the common case.

    Raises:
        NotSwift: If one turned out to be none too late to be left out.
    """
    places = [place for place, request in enumerate(requests) if _is_common(request, requests[0])]
    if connection.vendor == "postgresql" and all(requests[place].is_unknown for place in places):
        # Others see the claims at once. If the database dies before they are on its disk, so does the turn, whose
        # commit is flushed as ever; nobody has heard of it who could ask.
        cursor.execute("SET LOCAL synchronous_commit TO OFF")
    asked = {place: requests[place] for place in places if requests[place].session_id is not None}
    now = plain_sql.moment(connection, timezone.now())
    sessions, made = _find_or_make(connection, cursor, asked, now, with_histories)
    places = [place for place in places if place not in asked or place in sessions]
    begun = {place: _begun(connection, requests[place], sessions.get(place), "running") for place in places}
    # In one order, for whoever inserts some of the same ids in another process.
    rows = sorted(begun.values(), key=_key_of)
    # An id that was used before is left to who knows what to do then.
    back = _NEW_RECORD.insert(connection, cursor, rows, on_conflict="DO NOTHING", returning="key, id")
    records = dict(back)
    turns: dict[int, Turn] = {}
    for place, row in begun.items():
        request = requests[place]
        record_pk = records.pop(_key_of(row), None)
        if record_pk is not None:
            turns[place] = Turn(record_pk, request.owner, sessions.get(place), request.begun_at)
        elif place in made:
            # Its session would be left behind.
            raise NotSwift
    _claim(connection, cursor, [turn for turn in turns.values() if turn.session is not None], requests[0])
    return turns


_key_of = operator.itemgetter(_BEGUN.index("key"))


def _is_common(request: TurnRequest, first: TurnRequest) -> bool:
    invocation = request.invocation
    return (
        invocation.responses is None
        and invocation.delivery == "originating"
        and not request.with_checkpoint
        and not request.handed_input
        and request.lease_seconds == first.lease_seconds
    )


def _find_or_make(
    connection: Any, cursor: Any, asked: Mapping[int, TurnRequest], now: Any, with_histories: bool
) -> tuple[dict[int, ClaimedSession], set[int]]:
    """Return sessions as they will be claimed, and which are new: free, nothing pending, nobody waiting for them."""
    if not asked:
        return {}, set()
    by_key: dict[str, int] = {}
    for place, request in asked.items():
        # Who comes second has to wait for the first.
        by_key.setdefault(request.scope.key(request.session_id or ""), place)
    lock = " FOR UPDATE" if connection.vendor == "postgresql" else ""
    found = _look_up(connection, cursor, _FIND_SESSIONS + lock, list(by_key))
    known = {row[0] for row in found}
    rows = []
    # In the order of the group, as they are locked by whoever does them one by one.
    for key in [key for key in by_key if key not in known]:
        request = asked[by_key[key]]
        scope, user_pk = request.scope, _user(connection, request.user_pk)
        opaque_id = records.new_opaque_id()
        given = [scope.endpoint, scope.user_key, scope.chat_key, request.session_id, user_pk, opaque_id]
        rows.append([key, *given, now, now])
    made = _NEW_SESSION.insert(connection, cursor, rows, on_conflict="DO NOTHING", returning="key, id, opaque_id")
    sessions = {
        by_key[key]: ClaimedSession(pk, key, opaque_id, version=0, claim_number=1, state="")
        for key, pk, opaque_id in made
    }
    new = set(sessions)
    requests = {key: asked[place] for key, place in by_key.items()}
    for session in _free(connection, cursor, found, requests, with_histories):
        sessions[by_key[session.key]] = session
    return sessions, new


def _free(
    connection: Any, cursor: Any, found: Sequence[Any], asked: Mapping[str, TurnRequest], with_histories: bool
) -> Iterator[ClaimedSession]:
    """Yield those of the sessions found that are free, as they will be claimed."""
    free = []
    for row in found:
        key, pk, endpoint, user_key, chat_key, session_id, *_, claimed_by, pending = row
        request = asked[key]
        scope = request.scope
        is_its_own = (endpoint, user_key, chat_key, session_id) == (
            *(scope.endpoint, scope.user_key, scope.chat_key),
            request.session_id,
        )
        if is_its_own and claimed_by is None and not pending:
            free.append(row)
    if not free:
        return
    waited_for = {pk for (pk,) in _look_up(connection, cursor, _WAITED_FOR, [row[1] for row in free])}
    free = [row for row in free if row[1] not in waited_for]
    histories = {row[1]: kept.sessions.take(row[1], row[6], row[8], row[7]) for row in free}
    held = [pk for pk, history in histories.items() if history is not None]
    counts = dict(_look_up(connection, cursor, _COUNT_MESSAGES, held)) if held else {}
    for pk in held:
        history = histories[pk]
        if history is not None and counts.get(pk, 0) != history.count:
            histories[pk] = None
    unread = [row[1] for row in free if row[7] and histories[row[1]] is None]
    if unread and not with_histories:
        free = [row for row in free if row[1] not in unread]
        unread = []
    messages: dict[int, list[MessageRow]] = {pk: [] for pk in unread}
    for pk, *message in _look_up(connection, cursor, _READ_MESSAGES, unread) if unread else ():
        messages[pk].append(MessageRow._make(message))
    for key, pk, _endpoint, _user_key, _chat_key, _session_id, opaque_id, state, version, number, _claim, _p in free:
        rows = tuple(messages.get(pk, ()))
        yield ClaimedSession(pk, key, opaque_id, version, number + 1, state, rows, histories[pk])


def _look_up(connection: Any, cursor: Any, text: str, values: Sequence[Any]) -> list[Any]:
    cursor.execute(plain_sql.with_keys(connection.vendor, text, len(values)), values)
    found: list[Any] = cursor.fetchall()
    return found


def _claim(connection: Any, cursor: Any, turns: Sequence[Turn], request: TurnRequest) -> None:
    if not turns:
        return
    vendor = connection.vendor
    values = [value for turn in turns for value in (turn.session_pk, turn.record_pk)]
    lease = plain_sql.seconds(vendor, request.lease_seconds)
    cursor.execute(plain_sql.with_values(vendor, _CLAIM, _CLAIM_TYPES, len(turns)), [lease, *values])
    if cursor.rowcount != len(turns):
        raise NotSwift


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


# Commit


def commit(connection: Any, cursor: Any, jobs: Sequence[Commit]) -> dict[int, None]:
    """Write turns that append to their sessions, or have none, and leave nothing pending.

    Args:
        connection: Django's connection.
        cursor: The driver's cursor, in a transaction.
        jobs: What is committed.

    Returns:
        None for each that was written, by its place; without those that are not the common case.

    Raises:
        NotSwift: If a turn is not this process's any more.
    """
    done = {place: None for place, job in enumerate(jobs) if _appends(job)}
    some = [jobs[place] for place in done]
    finished_at = timezone.now()
    now = plain_sql.moment(connection, finished_at)
    whole = [
        [*_begun(connection, job.turn.unrecorded, None, "succeeded"), *_ended(connection, job, now, finished_at)]
        for job in some
        if job.turn.unrecorded is not None
    ]
    _WHOLE_RECORD.insert(connection, cursor, whole)
    begun = [job for job in some if job.turn.unrecorded is None]
    _advance(connection, cursor, begun, now)
    _end(connection, cursor, begun, now, finished_at)
    batches = [job.ending.events for job in begun if job.ending.events.frames]
    rows = [[batch.record_pk, batch.first, batch.last, batch.text, now] for batch in batches]
    _NEW_EVENTS.insert(connection, cursor, rows)
    if begun and connection.vendor == "postgresql":
        keys = [key for job in begun for key in notify.keys_of(job.turn.record_pk, job.turn.session_pk)]
        notify.notify(connection.alias, keys)
    return done


def is_one_statement(connection: Any, jobs: Sequence[Commit]) -> bool:
    """Return whether `commit` writes jobs, or any of them, in one statement: records of turns that were not begun.

    Args:
        connection: Django's connection, open.
        jobs: What is committed.
    """
    is_whole = all(job.turn.unrecorded is not None for job in jobs)
    return is_whole and len(jobs) <= _WHOLE_RECORD.rows_at_once(connection)


def _appends(job: Commit) -> bool:
    if job.answer.pending:
        return False
    session, left = job.turn.session, job.change
    if session is None:
        return True
    if left is None or left.change is None or left.pending or left.checkpoints or session.is_rewritten:
        return False
    return left.change.appended_only


def _ended(connection: Any, job: Commit, now: Any, finished_at: datetime) -> list[Any]:
    """Return the values of what an end adds to a record."""
    usage, ending = job.answer.usage, job.ending
    begun_at = job.turn.begun_at
    return [
        job.answer_text,
        endings.encode_usage(usage),
        (usage or {}).get("total_token_count"),
        plain_sql.moment(connection, ending.first_byte_at),
        ending.event_count,
        ending.steps.text(begun_at),
        now,
        *figures.of(begun_at, ending.first_byte_at, finished_at),
    ]


def _advance(connection: Any, cursor: Any, jobs: Sequence[Commit], now: Any) -> None:
    values: list[Any] = []
    messages: list[list[Any]] = []
    pks: list[int] = []
    for job in jobs:
        session, change = job.turn.session, job.change.change if job.change is not None else None
        if session is None or change is None:
            continue
        pks.append(session.pk)
        held = (session.pk, session.version, job.turn.record_pk, session.claim_number)
        values += [*held, change.state, change.history.count, now]
        messages += [
            [session.pk, row.source_id, row.position, row.role, row.payload, job.turn.record_pk, now]
            for row in change.written
        ]
    if not pks:
        return
    vendor = connection.vendor
    if vendor == "postgresql" and len(pks) > 1:
        # An UPDATE locks rows in any order; two groups that meet have to do it in one.
        _look_up(connection, cursor, _LOCK, pks)
    cursor.execute(plain_sql.with_values(vendor, _ADVANCE, _ADVANCE_TYPES, len(pks)), values)
    if cursor.rowcount != len(pks):
        raise NotSwift
    _NEW_MESSAGE.insert(connection, cursor, messages)


def _end(connection: Any, cursor: Any, jobs: Sequence[Commit], now: Any, finished_at: datetime) -> None:
    if not jobs:
        return
    values: list[Any] = []
    for job in jobs:
        values += [job.turn.record_pk, job.turn.owner, *_ended(connection, job, now, finished_at)]
    cursor.execute(plain_sql.with_values(connection.vendor, _END, _END_TYPES, len(jobs)), values)
    if cursor.rowcount != len(jobs):
        raise NotSwift
