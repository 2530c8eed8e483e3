"""Begin, commit and fail as runs ask for them: together with those of other runs, where that can be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from invocations_app.events import Answer
from invocations_app.exceptions import InvocationError
from invocations_app.storage import endings, invocations, kept, swift, turns
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.grouping import Group, each
from invocations_app.storage.snapshots import History
from invocations_app.storage.swift import Commit
from invocations_app.storage.turns import Begun, Handed, Turn, TurnRequest, Waiting

# What is longer is written by the thread: the loop has others to serve.
_SMALL_BYTES = 64 * 1024
# Between two pieces of what is freed, in seconds.
_FREE_SECONDS = 0.005

Failure: TypeAlias = tuple[Turn | Waiting | Handed, InvocationError, Ending]


def begin(request: TurnRequest, *, is_lone: bool = False) -> asyncio.Future[Begun]:
    """Begin a turn; see `turns.begin_now`, which knows every case.

    Args:
        request: What begins the turn.
        is_lone: Whether there are hardly any others; see `Group.do`.
    """
    return _begins.do(request, is_lone=is_lone)


def commit(
    turn: Turn, change: SessionChange | None, answer: Answer, ending: Ending, *, is_lone: bool = False
) -> asyncio.Future[None]:
    """Commit a turn; see `endings.commit_now`, which knows every case.

    Args:
        turn: The turn.
        change: What it leaves of its session; None without a session.
        answer: What the caller is answered.
        ending: What else is written.
        is_lone: As in `begin`.
    """
    return _commits.do(Commit(turn, change, answer, ending, endings.encode_answer(answer)), is_lone=is_lone)


def keep(turn: Turn, change: SessionChange | None) -> None:
    """Keep in memory what a turn has left of its session, now that its commit is confirmed.

    What is pending changes the session before the next turn goes on from it, so that is not kept.

    Args:
        turn: The turn.
        change: What it has left; None without a session.
    """
    session = turn.session
    if session is None or change is None or change.change is None or change.pending:
        return
    for history in kept.sessions.put(session.pk, session.opaque_id, session.version + 1, change.change):
        if history.count > kept.PIECE:
            _free_soon(asyncio.get_running_loop(), history)


def _free_soon(loop: asyncio.AbstractEventLoop, history: History) -> None:
    """Free a history piece by piece: its turn need not wait for that, nor anybody for long."""
    loop.call_later(_FREE_SECONDS, _free, loop, history)


def _free(loop: asyncio.AbstractEventLoop, history: History) -> None:
    if kept.free(history):
        _free_soon(loop, history)


def fail(held: Turn | Waiting | Handed, error: InvocationError, ending: Ending) -> asyncio.Future[None]:
    """End a turn that has no answer; see `endings.fail_now`.

    Args:
        held: The turn; or what waits, or was handed on.
        error: Why it has none.
        ending: What else is written.
    """
    return _fails.do((held, error, ending))


async def is_joined(record_pk: int) -> bool:
    """Return whether somebody on another process waits for the answer of a run.

    Args:
        record_pk: Primary key of the record.
    """
    return await _joins.do(record_pk)


def _begin_alone(request: TurnRequest) -> Begun:
    return turns.begin_now(request)


def _commit_alone(job: Commit) -> None:
    endings.commit_now(job.turn, job.change, job.answer, job.ending)


def _commit_at_once(connection: Any, cursor: Any, jobs: Sequence[Commit]) -> dict[int, None]:
    small = [place for place, job in enumerate(jobs) if job.size <= _SMALL_BYTES]
    done = swift.commit(connection, cursor, [jobs[place] for place in small])
    return dict.fromkeys(small[place] for place in done)


def _fail_alone(job: Failure) -> None:
    endings.fail_now(*job)


def _session(request: TurnRequest) -> tuple[str, str, str, str]:
    scope = request.scope
    return scope.endpoint, scope.user_key, scope.chat_key, request.session_id or ""


def _session_pk(job: Commit) -> tuple[int, int]:
    return job.turn.session_pk or 0, job.turn.record_pk


def _failed_pk(job: Failure) -> tuple[int, int]:
    return job[0].session_pk or 0, job[0].record_pk


_begins: Group[TurnRequest, Begun] = Group(
    swift.begin, _begin_alone, _session, partial(swift.begin, with_histories=False)
)
_commits: Group[Commit, None] = Group(swift.commit, _commit_alone, _session_pk, _commit_at_once, swift.is_one_statement)
# These go the ORM's way in a group too: hundreds of clients may leave at once.
_fails: Group[Failure, None] = Group(each(_fail_alone), _fail_alone, _failed_pk)
_joins: Group[int, bool] = Group(each(invocations.is_joined_now), invocations.is_joined_now, lambda pk: pk)
