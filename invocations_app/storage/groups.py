"""Begin and commit as runs ask for them: together with those of other runs, where that can be."""

from __future__ import annotations

from invocations_app.events import Answer
from invocations_app.storage import endings, swift, turns
from invocations_app.storage.endings import Ending, SessionChange
from invocations_app.storage.grouping import Group
from invocations_app.storage.swift import Commit
from invocations_app.storage.turns import Begun, Turn, TurnRequest


async def begin(request: TurnRequest) -> Begun:
    """Begin a turn; see `turns.begin`, which knows every case.

    Args:
        request: What begins the turn.
    """
    return await _begins.do(request)


async def commit(turn: Turn, change: SessionChange | None, answer: Answer, ending: Ending) -> None:
    """Commit a turn; see `endings.commit`, which knows every case.

    Args:
        turn: The turn.
        change: What it leaves of its session; None without a session.
        answer: What the caller is answered.
        ending: What else is written.
    """
    await _commits.do(Commit(turn, change, answer, ending, endings.encode_answer(answer)))


def _begin_alone(request: TurnRequest) -> Begun:
    return turns.begin_now(request)


def _commit_alone(job: Commit) -> None:
    endings.commit_now(job.turn, job.change, job.answer, job.ending)


def _session_key(request: TurnRequest) -> str:
    return request.scope.key(request.session_id or "")


def _session_pk(job: Commit) -> tuple[int, int]:
    return job.turn.session_pk or 0, job.turn.record_pk


_begins: Group[TurnRequest, Begun] = Group(swift.begin, _begin_alone, _session_key)
_commits: Group[Commit, None] = Group(swift.commit, _commit_alone, _session_pk)
