"""Turns as a state machine: whatever happens in whatever order, the tables say what a simple model says.

Storage alone, on this thread: two processes start, finish, fail, cancel, lose and take over turns of two sessions.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from agent_framework import AgentSession, Content, Message
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from invocations_app.envelope import Invocation
from invocations_app.events import Answer
from invocations_app.exceptions import InvocationError, RunCancelled, RunInterrupted, SessionBusy, TargetFailed
from invocations_app.isolation import Scope
from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import endings, event_log, groups, invocations, kept, leases, snapshots, swift, turns
from invocations_app.storage.endings import SessionChange
from invocations_app.storage.event_log import Batch
from invocations_app.storage.invocations import StoredInvocation
from invocations_app.storage.kept import SessionKeep
from invocations_app.storage.turns import Turn, Waiting

SCOPE = Scope("default", "", "")
LIVE = ("queued", "running")
SESSIONS = st.sampled_from(["s1", "s2"])
OWNERS = st.sampled_from(["one", "two"])
PICKS = st.integers(0, 5)


@dataclass
class Run:
    """What the model knows of an invocation.

    `held` is what its process holds, and goes on holding when it has lost it.
    """

    name: str
    session: str
    owner: str
    held: Turn | Waiting
    status: str
    expired: bool = False
    frames: list[bytes] = field(default_factory=list)
    logged: int = 0


def done(group: Any, job: Any) -> Any:
    """Do a job as a group of one does it, on this thread."""
    [(result, error)] = group._outcomes([job])
    if error is not None:
        raise error
    return result


class Turns(RuleBasedStateMachine):
    """The model: invocations by name, the history of each session, and whose turn it is."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.all: list[Run] = []
        self.history: dict[str, list[str]] = {"s1": [], "s2": []}
        self.holder: dict[str, Run | None] = {"s1": None, "s2": None}
        # Each process keeps its own sessions in memory.
        self.kept = {"one": SessionKeep(), "two": SessionKeep()}

    # What the model says

    def choose(self, pick: int, statuses: tuple[str, ...]) -> Run:
        """Return one of the runs, of those with a wanted status where there are some; the latest most often."""
        wanted = [run for run in self.all if run.status in statuses] or self.all
        return wanted[-1 - pick % len(wanted)]

    def waiting(self, session: str) -> list[Run]:
        return [run for run in self.all if run.session == session and run.status == "queued"]

    def is_free(self, session: str) -> bool:
        holder = self.holder[session]
        return holder is None or holder.expired

    def take(self, run: Run) -> None:
        """Let a run claim its session; whoever held it longer than its lease is interrupted."""
        before = self.holder[run.session]
        if before is not None:
            self.interrupt(before)
        self.holder[run.session] = run
        run.status = "running"

    def interrupt(self, run: Run) -> None:
        assert run.expired
        self.end(run, "interrupted")

    def end(self, run: Run, status: str) -> None:
        run.status = status
        if self.holder[run.session] is run:
            self.holder[run.session] = None

    def meet(self, run: Run) -> None:
        """Whoever looks at a run whose lease is over writes down that it was interrupted."""
        if run.expired and run.status in LIVE:
            self.interrupt(run)

    # What happens

    @contextlib.contextmanager
    def process(self, owner: str) -> Iterator[None]:
        """Be one of the processes: what it keeps in memory is its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept, "sessions", self.kept[owner])
            yield

    def request(self, name: str, session: str, owner: str, on_busy: Any) -> turns.TurnRequest:
        invocation = Invocation(
            id=name, endpoint="default", dialect="channel", input=[], session_id=session, stream=True
        )
        return turns.TurnRequest(
            invocation=invocation,
            scope=SCOPE,
            user_pk=None,
            fingerprint="f" * 64,
            correlation_id=uuid.uuid4().hex,
            owner=owner,
            begun_at=timezone.now(),
            lease_seconds=600,
            on_busy=on_busy,
        )

    @rule(session=SESSIONS, owner=OWNERS, grouped=st.booleans())
    def start(self, session: str, owner: str, grouped: bool) -> None:
        """A turn runs at once where the session is free and nobody waits; else it waits."""
        self.number += 1
        name = f"i{self.number}"
        goes = self.is_free(session) and all(run.expired for run in self.waiting(session))
        request = self.request(name, session, owner, "wait")
        with self.process(owner):
            begun = done(groups._begins, request) if grouped else turns.begin_now(request)
        assert isinstance(begun, Turn if goes else Waiting)
        run = Run(name, session, owner, begun, "queued")
        self.all.append(run)
        if goes:
            self.take(run)

    @rule(session=SESSIONS, owner=OWNERS)
    def refuse(self, session: str, owner: str) -> None:
        """In reject mode a busy session is refused, and nothing is written."""
        if self.is_free(session) and all(run.expired for run in self.waiting(session)):
            return
        with pytest.raises(SessionBusy):
            turns.begin_now(self.request("refused", session, owner, "reject"))
        assert not InvocationRecord.objects.filter(invocation_id="refused").exists()

    @precondition(lambda self: self.all)
    @rule(pick=PICKS, owner=OWNERS)
    def retry(self, pick: int, owner: str) -> None:
        """The same id never begins a second run; the look-up says how it stands."""
        run = self.choose(pick, ())
        assert isinstance(turns.begin_now(self.request(run.name, run.session, owner, "wait")), StoredInvocation)
        stored = invocations._look_up({"key": SCOPE.key(run.name)})
        self.meet(run)
        assert stored is not None
        assert stored.status == run.status

    @precondition(lambda self: self.all)
    @rule(pick=PICKS)
    def claim(self, pick: int) -> None:
        """The oldest live waiter of a free session gets it; what lost its record is told so."""
        run = self.choose(pick, ())
        if not isinstance(run.held, Waiting) or run.status == "running":
            return
        if run.status != "queued" or run.expired:
            with pytest.raises(RunCancelled if run.status == "cancelled" else RunInterrupted):
                turns._claim_waiting(run.held)
            return
        older = [other for other in self.waiting(run.session) if other.held.record_pk < run.held.record_pk]
        goes = self.is_free(run.session) and all(other.expired for other in older)
        with self.process(run.owner):
            turn = turns._claim_waiting(run.held)
        assert (turn is not None) == goes
        if turn is not None:
            run.held = turn
            self.take(run)

    @precondition(lambda self: self.all)
    @rule(pick=PICKS)
    def give_up(self, pick: int) -> None:
        """Who waits no longer leaves no row; but one that was started or ended stays."""
        run = self.choose(pick, ("queued",))
        if not isinstance(run.held, Waiting) or run.status != "queued":
            return
        assert turns._give_up(run.held)
        self.all.remove(run)

    @precondition(lambda self: self.all)
    @rule(pick=PICKS, count=st.integers(1, 5))
    def log(self, pick: int, count: int) -> None:
        """Events are logged while the run is its process's, and not a moment longer."""
        run = self.choose(pick, ("running", "interrupted"))
        if run.status not in ("running", "interrupted"):
            return
        first = len(run.frames) + 1
        frames = tuple(f"data: {number}\n\n".encode() for number in range(first, first + count))
        batch = Batch(run.held.record_pk, first, frames)
        held = event_log._append(run.owner, [batch])
        if run.status == "running" and not run.expired:
            assert held == {run.held.record_pk}
            run.frames.extend(frames)
        else:
            assert held == set()

    @precondition(lambda self: self.all)
    @rule(pick=PICKS, grouped=st.booleans())
    def finish(self, pick: int, grouped: bool) -> None:
        """A turn commits if it is still its process's; otherwise nothing of it is written."""
        run = self.choose(pick, ("running", "interrupted"))
        if not isinstance(run.held, Turn) or run.status not in ("running", "interrupted"):
            return
        change = SessionChange(self.change(run.held, run.name))
        answer, ending = Answer(run.name, session_id=run.session), self.ending(run)
        job = swift.Commit(run.held, change, answer, ending, endings.encode_answer(answer))

        def commit() -> None:
            if grouped:
                done(groups._commits, job)
            else:
                endings.commit_now(job.turn, change, answer, ending)

        if run.status == "running" and not run.expired:
            commit()
            with self.process(run.owner):
                groups.keep(run.held, change)
            self.history[run.session].append(run.name)
            self.end(run, "succeeded")
        else:
            with pytest.raises(InvocationError):
                commit()

    @precondition(lambda self: self.all)
    @rule(pick=PICKS, error=st.sampled_from([TargetFailed, RunCancelled, RunInterrupted]))
    def fail(self, pick: int, error: type[InvocationError]) -> None:
        """A turn that has no answer leaves its session as it was."""
        run = self.choose(pick, (*LIVE, "interrupted"))
        if run.status not in (*LIVE, "interrupted"):
            return
        endings.fail_now(run.held, error(), self.ending(run))
        if run.status in LIVE:
            self.end(run, {"cancelled": "cancelled", "interrupted": "interrupted"}.get(error.code, "failed"))

    @precondition(lambda self: self.all)
    @rule(pick=PICKS)
    def cancel(self, pick: int) -> None:
        """What waits is cancelled at once, what runs hears of it, what ended stays."""
        run = self.choose(pick, ())
        stored = invocations._request_cancel(SCOPE, run.name)
        if run.status == "queued":
            self.end(run, "cancelled")
        else:
            self.meet(run)
        assert stored is not None
        assert stored.status == run.status
        asked = run.held.record_pk in leases._look(run.owner, [run.held.record_pk]).cancelled
        assert asked or run.status not in ("running", "cancelled") or not isinstance(run.held, Turn)

    @precondition(lambda self: self.all)
    @rule(pick=PICKS)
    def expire(self, pick: int) -> None:
        """The process of a run is silent for longer than its lease."""
        run = self.choose(pick, LIVE)
        if run.status in LIVE:
            past = timezone.now() - timedelta(seconds=1)
            InvocationRecord.objects.filter(pk=run.held.record_pk).update(lease_expires_at=past)
            SessionRecord.objects.filter(claimed_by=run.held.record_pk).update(claim_expires_at=past)
            run.expired = True

    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        """What a process holds it goes on holding; a lease that ran out is not renewed."""
        mine = [run for run in self.all if run.owner == owner]
        held = leases._renew(owner, [run.held.record_pk for run in mine], 600).held
        assert held == {run.held.record_pk for run in mine if run.status in LIVE and not run.expired}

    @precondition(lambda self: self.all)
    @rule(pick=PICKS, data=st.data())
    def read(self, pick: int, data: st.DataObject) -> None:
        """From any number on, the log holds exactly the rest."""
        run = self.choose(pick, ())
        after = data.draw(st.integers(0, len(run.frames) + 2))
        expected = list(enumerate(run.frames, start=1))[after:]
        assert event_log._read(run.held.record_pk, after) == expected

    # What must hold

    def ending(self, run: Run) -> endings.Ending:
        return endings.Ending(None, Batch(run.held.record_pk, len(run.frames) + 1, ()), len(run.frames))

    def change(self, turn: Turn, text: str) -> snapshots.Change:
        """Return what a turn leaves that has first seen all turns before it."""
        claimed = turn.session
        assert claimed is not None
        if claimed.state:
            messages = claimed.rows if claimed.history is None else claimed.history
            session, history = snapshots.load(claimed.state, messages, claimed.opaque_id)
        else:
            session, history = AgentSession(session_id=claimed.opaque_id), snapshots.History()
        part = session.state.setdefault("in_memory", {"messages": []})
        expected = next(run.session for run in self.all if run.held is turn)
        assert [message.text for message in part["messages"]] == self.history[expected][: claimed.version]
        part["messages"] = [*part["messages"], Message("user", [Content.from_text(text)])]
        return snapshots.dump(session, history)

    @invariant()
    def records_say_what_the_model_says(self) -> None:
        stored = InvocationRecord.objects.values_list("invocation_id", "status")
        assert dict(stored) == {run.name: run.status for run in self.all}

    @invariant()
    def one_turn_holds_a_session(self) -> None:
        claims = dict(SessionRecord.objects.values_list("session_id", "claimed_by"))
        for name, holder in self.holder.items():
            assert claims.get(name) == (None if holder is None else holder.held.record_pk)
            running = [run for run in self.all if run.session == name and run.status == "running"]
            assert running == ([] if holder is None else [holder])

    @invariant()
    def histories_hold_the_committed_turns_in_order(self) -> None:
        for name, expected in self.history.items():
            rows = MessageRecord.objects.filter(session__session_id=name).order_by("position")
            assert [Message.from_json(payload).text for payload in rows.values_list("payload", flat=True)] == expected
            versions = SessionRecord.objects.filter(session_id=name).values_list("version", flat=True)
            assert list(versions) in ([], [len(expected)])

    @invariant()
    def ends_are_counted(self) -> None:
        for run in self.all:
            if run.status not in LIVE:
                record = InvocationRecord.objects.get(pk=run.held.record_pk)
                assert record.event_count == len(run.frames)
                assert record.finished_at is not None

    def teardown(self) -> None:
        for model in (EventRecord, MessageRecord, InvocationRecord, SessionRecord):
            model._default_manager.all().delete()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.django_db
def test_every_order_of_events_leaves_what_the_model_says() -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    with transaction.atomic():
        run_state_machine_as_test(
            Turns,
            settings=settings(
                max_examples=40,
                stateful_step_count=35,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=checks,
                # A failure is shown as it was found: to make it shorter takes minutes.
                phases=[Phase.generate],
            ),
        )
