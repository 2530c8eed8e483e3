"""Background runs on real workers of a tasks backend, beside a web process on the same database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import postgres
from tests.frames import read_events
from tests.processes.asking import Asking, Stream, eventually, new
from tests.processes.cluster import _ROOT, LEASE_SECONDS, Cluster, Worker
from tests.processes.databases import Postgresql, Sqlite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

KEYS = {"x-agent-user-isolation-key": "alice", "x-agent-chat-isolation-key": "chat:1"}


@dataclass
class TasksCluster(Cluster):
    """A web process, and workers of the tasks backend."""

    _tasks_workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def _environment(self, *arguments: Any) -> dict[str, str]:
        return super()._environment(*arguments) | {"DJANGO_SETTINGS_MODULE": "tests.processes.settings_tasks"}

    @contextlib.contextmanager
    def tasks_worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Give one worker of the tasks backend, as it is started in earnest; it is ended by SIGTERM."""
        command = [sys.executable, "-W", "ignore", "manage.py", "db_worker", "--backend", "workers"]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--interval", "0.05", "--no-startup-delay"],
                cwd=_ROOT,
                env=self._environment("tasks", LEASE_SECONDS, 20),
                stdout=log,
                stderr=log,
            )
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                process.wait(15)
        finally:
            process.kill()
            process.wait()

    def column(self, invocation_id: str, name: str) -> Any:
        """Return one column of an invocation's record."""
        table = "invocations_app_invocationrecord"
        ((value,),) = self.database.rows(f"SELECT {name} FROM {table} WHERE invocation_id = %s", invocation_id)
        return value


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def tasks(request: pytest.FixtureRequest) -> Iterator[TasksCluster]:
    """A cluster with a tasks backend, on either database."""
    with tempfile.TemporaryDirectory(prefix="invocations-tasks-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        if request.param == "sqlite":
            cluster = TasksCluster(Sqlite(directory / "db.sqlite3"), directory)
        else:
            server_url = stack.enter_context(postgres.server())
            url = stack.enter_context(postgres.database(server_url))
            cluster = TasksCluster(Postgresql(url, server_url), directory)
        cluster.manage("migrate", "--verbosity", "0")
        stack.callback(cluster.stop)
        yield cluster


@dataclass
class Client:
    """One caller, who asks for background runs."""

    asking: Asking
    web: Worker

    async def ask(self, message: str, **body: Any) -> str:
        """Ask for a background run and return its id."""
        invocation_id = new("run")
        answer = await self.asking.http.post(
            f"{self.web.url}/tasks/invoke",
            json={"message": message, "background": True} | body,
            headers=KEYS | {"x-agent-invocation-id": invocation_id},
        )
        assert (answer.status_code, answer.json()["status"]) == (202, "queued"), answer.text
        assert answer.headers["location"] == f"/tasks/{invocation_id}"
        return invocation_id

    async def foreground(self, message: str, session: str) -> str:
        """Ask and wait for the answer."""
        answer = await self.asking.http.post(
            f"{self.web.url}/tasks/invoke", json={"message": message, "session_id": session}, headers=KEYS
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["response"])

    async def status(self, invocation_id: str) -> dict[str, Any]:
        answer = await self.asking.http.get(f"{self.web.url}/tasks/{invocation_id}", headers=KEYS)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def cancel(self, invocation_id: str) -> dict[str, Any]:
        answer = await self.asking.http.post(f"{self.web.url}/tasks/{invocation_id}/cancel", headers=KEYS)
        return dict(answer.json())

    async def ended(self, invocation_id: str, seconds: float = 20) -> dict[str, Any]:
        """Wait for the end of a run and return its status body."""
        deadline = time.monotonic() + seconds
        while True:
            body = await self.status(invocation_id)
            if body["status"] not in {"queued", "running"}:
                return body
            assert time.monotonic() < deadline, body

    async def follow(self, invocation_id: str, after: int = 0) -> Stream:
        """Follow a run's events."""
        request = self.asking.http.build_request(
            "GET", f"{self.web.url}/tasks/{invocation_id}/events", params={"after": after}, headers=KEYS
        )
        return Stream(await self.asking.http.send(request, stream=True))


@pytest.fixture
def client(tasks: TasksCluster, asking: Asking) -> Client:
    """A caller of the web process."""
    return Client(asking, tasks.worker())


async def test_the_answer_arrives_with_the_keys_of_the_caller_and_the_input_goes(
    tasks: TasksCluster, client: Client
) -> None:
    session, token = new("session"), new("turn")
    run = await client.ask(f"{token} keys", session_id=session)
    assert token in tasks.column(run, "input")
    assert (await client.status(run))["status"] == "queued"
    with tasks.tasks_worker():
        body = await client.ended(run)
    assert (body["status"], body["response"], body["session_id"]) == ("succeeded", "1|alice,chat:1", session)
    assert tasks.column(run, "input") == ""
    assert tasks.executions(token) == 1
    assert tasks.session(session)["claimed_by"] is None
    ((arguments,),) = tasks.database.rows(
        "SELECT args_kwargs FROM django_tasks_database_dbtaskresult ORDER BY enqueued_at DESC LIMIT 1"
    )
    assert token not in str(arguments)


async def test_runs_of_one_worker_share_what_it_keeps(tasks: TasksCluster, client: Client) -> None:
    runs = [await client.ask(f"{new('turn')} built") for _ in range(3)]
    with tasks.tasks_worker():
        answers = {(await client.ended(run))["response"] for run in runs}
    assert len(answers) == 1, "each run had a target or a process of its own"


async def test_events_follow_live_from_the_worker_and_replay_from_anywhere(tasks: TasksCluster, client: Client) -> None:
    gate = tasks.gate(new("gate"))
    run = await client.ask(f"{new('turn')} gate {gate.name}", stream=True)
    live = await client.follow(run)
    with tasks.tasks_worker():
        await live.events(2)
        assert (await client.status(run))["status"] == "running"
        gate.open()
        content = await live.rest()
    events = read_events(content)
    assert [(event.last_id, event.data) for event in events] == [
        ("1", "1|"),
        ("2", "before "),
        ("3", "after"),
        ("4", "[DONE]"),
    ]
    for after in range(4):
        assert read_events(await (await client.follow(run, after)).rest()) == events[after:]


async def test_the_order_of_a_session_holds_between_workers_and_the_web(tasks: TasksCluster, client: Client) -> None:
    session, gate = new("session"), tasks.gate(new("gate"))
    first = asyncio.create_task(client.foreground(f"a gate {gate.name}", session))
    await gate.reached()
    second = await client.ask("b", session_id=session)
    third = asyncio.create_task(client.foreground("c", session))
    await eventually(lambda: tasks.waiting(session) == 2, "both to wait")
    with tasks.tasks_worker():
        await eventually(lambda: tasks.column(second, "owner") != "", "the worker")
        assert not third.done()
        gate.open()
        assert (await first, await third) == ("1|before after", "3|ok")
        assert (await client.ended(second))["response"] == "2|ok"
    assert tasks.said(session) == [f"a gate {gate.name}", "b", "c"]


async def test_a_queued_run_is_cancelled_at_once_and_never_run(tasks: TasksCluster, client: Client) -> None:
    session, token = new("session"), new("turn")
    run = await client.ask(token, session_id=session)
    assert (await client.cancel(run))["status"] == "cancelled"
    assert tasks.column(run, "input") == ""
    with tasks.tasks_worker():
        later = await client.ask(new("turn"), session_id=session)
        assert (await client.ended(later))["response"] == "1|ok"
    assert (await client.status(run))["status"] == "cancelled"
    assert tasks.executions(token) == 0


async def test_a_running_run_is_cancelled_within_two_seconds(tasks: TasksCluster, client: Client) -> None:
    session, token, gate = new("session"), new("turn"), tasks.gate(new("gate"))
    run = await client.ask(f"{token} gate {gate.name}", session_id=session)
    with tasks.tasks_worker() as process:
        await gate.reached()
        began = time.monotonic()
        body = await client.cancel(run)
        assert (body["status"], body["error"]["code"]) == ("cancelled", "cancelled")
        assert time.monotonic() - began < 2
        assert [entry.what for entry in tasks.journal(token)] == ["begins", "stops"]
        assert await client.ended(await client.ask(new("turn"))), "the worker goes on"
        assert process.poll() is None
    row = tasks.session(session)
    assert (row["claimed_by"], row["version"], tasks.column(run, "input")) == (None, 0, "")


async def test_a_run_outlives_its_lease_while_its_worker_lives(tasks: TasksCluster, client: Client) -> None:
    gate = tasks.gate(new("gate"))
    run = await client.ask(f"{new('turn')} gate {gate.name}", session_id=new("session"))
    with tasks.tasks_worker():
        await gate.reached()
        time.sleep(2 * LEASE_SECONDS)
        assert (await client.status(run))["status"] == "running"
        gate.open()
        assert (await client.ended(run))["status"] == "succeeded"


async def test_a_killed_workers_run_is_interrupted_and_never_run_again(tasks: TasksCluster, client: Client) -> None:
    session, token, gate = new("session"), new("turn"), tasks.gate(new("gate"))
    run = await client.ask(f"{token} gate {gate.name}", session_id=session, stream=True)
    with tasks.tasks_worker() as process:
        await gate.reached()
        process.send_signal(signal.SIGKILL)
        process.wait()
        body = await client.ended(run, LEASE_SECONDS + 3)
    assert (body["status"], body["error"]["code"], body["response"]) == ("interrupted", "interrupted", None)
    row = tasks.session(session)
    assert (row["claimed_by"], row["version"], row["message_count"]) == (None, 0, 0)
    assert tasks.column(run, "input") == ""
    # The backend delivers it again, as one that looks after dead workers would.
    tasks.manage("shell", "-c", _REDELIVER.format(pk=tasks.column(run, "id")))
    with tasks.tasks_worker():
        later = await client.ask(new("turn"), session_id=session)
        assert (await client.ended(later))["response"] == "1|ok"
    assert (await client.status(run))["status"] == "interrupted"
    assert tasks.executions(token) == 1


_REDELIVER = "from invocations_app.runs.tasks_api import task_for; task_for('workers').enqueue({pk})"


async def test_a_worker_that_is_told_to_end_finishes_its_run_first(tasks: TasksCluster, client: Client) -> None:
    gate = tasks.gate(new("gate"))
    run = await client.ask(f"{new('turn')} gate {gate.name}")
    with tasks.tasks_worker() as process:
        await gate.reached()
        process.terminate()
        time.sleep(0.3)
        assert (await client.status(run))["status"] == "running"
        gate.open()
        process.wait(15)
    assert (await client.status(run))["status"] == "succeeded"


async def test_a_worker_that_is_told_twice_to_end_interrupts_its_run(tasks: TasksCluster, client: Client) -> None:
    token, gate = new("turn"), tasks.gate(new("gate"))
    run = await client.ask(f"{token} gate {gate.name}")
    with tasks.tasks_worker() as process:
        await gate.reached()
        process.terminate()
        time.sleep(0.3)
        process.terminate()
        process.wait(15)
    assert (await client.status(run))["status"] == "interrupted"
    assert [entry.what for entry in tasks.journal(token)] == ["begins", "stops"]


def test_the_checks_accept_the_site(tasks: TasksCluster) -> None:
    command = [sys.executable, "-W", "ignore", "manage.py", "check", "--tag", "invocations"]
    environment = tasks._environment("manage", LEASE_SECONDS, 20)
    checked = subprocess.run(command, cwd=_ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert (checked.returncode, "invocations.E" in checked.stderr) == (0, False), checked.stderr
