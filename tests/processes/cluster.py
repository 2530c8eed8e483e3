"""Several processes of the site that share a database, and what a test asks of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.processes import gates
from tests.processes.databases import Database
from tests.server import listen, wait_until

LEASE_SECONDS = 1.5
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Worker:
    """One process.

    Attributes:
        name: By which the database knows its connections.
        process: The process.
        port: Its port on 127.0.0.1.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Let it sleep."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Wake it up."""
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Cluster:
    """The processes on one database.

    Attributes:
        database: The database.
        directory: Where the processes and the test meet.
    """

    database: Database
    directory: Path
    _workers: dict[str, Worker] = field(default_factory=dict)
    _log: IO[bytes] | None = None

    def worker(self, name: str = "a", *, lease_seconds: float = LEASE_SECONDS, timeout_seconds: float = 20) -> Worker:
        """Return the process of that name, started where there is none.

        Args:
            name: Any name; the same name is the same process while that lives.
            lease_seconds: Its ``LEASE_SECONDS``, where it is started.
            timeout_seconds: How long it waits for SQLite's lock, where it is started.
        """
        return self.workers(name, lease_seconds=lease_seconds, timeout_seconds=timeout_seconds)[0]

    def workers(self, names: str, *, lease_seconds: float = LEASE_SECONDS, timeout_seconds: float = 20) -> list[Worker]:
        """Return the processes of these names, one letter each, started side by side.

        Args:
            names: The names.
            lease_seconds: As of `worker`.
            timeout_seconds: As of `worker`.
        """
        found = [self._find(name, lease_seconds, timeout_seconds) for name in names]
        for worker in found:
            wait_until(lambda worker=worker: self._answers(worker), f"process {worker.name}", 30)
        return found

    def _find(self, name: str, lease_seconds: float, timeout_seconds: float) -> Worker:
        worker = self._workers.get(name)
        if worker is None or worker.process.poll() is not None:
            worker = self._workers[name] = self._start(name, lease_seconds, timeout_seconds)
        return worker

    def _environment(self, name: str, lease_seconds: float, timeout_seconds: float) -> dict[str, str]:
        own = {
            "DJANGO_SETTINGS_MODULE": "tests.processes.settings",
            "PROCESSES_DIR": str(self.directory),
            "PROCESSES_DATABASE": json.dumps(self.database.settings(name, timeout_seconds)),
            "PROCESSES_LEASE_SECONDS": str(lease_seconds),
            "PYTHONPATH": str(_ROOT),
        }
        return os.environ | own

    def _start(self, name: str, lease_seconds: float, timeout_seconds: float) -> Worker:
        if self._log is None:
            self._log = (self.directory / "log").open("ab")
        environment = self._environment(name, lease_seconds, timeout_seconds)
        with listen() as socket:
            socket.listen(512)
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.processes.worker", str(socket.fileno())],
                cwd=_ROOT,
                env=environment,
                pass_fds=[socket.fileno()],
                stdout=self._log,
                stderr=self._log,
            )
            return Worker(name, process, socket.getsockname()[1])

    def _answers(self, worker: Worker) -> bool:
        import httpx

        assert worker.process.poll() is None, f"the process ended:\n{self.log()[-4000:]}"
        try:
            return httpx.get(f"{worker.url}/readiness", trust_env=False, timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    def manage(self, *arguments: str, **variables: str) -> None:
        """Run a management command.

        Args:
            *arguments: Its name and arguments.
            **variables: Further environment variables.
        """
        command = [sys.executable, "-W", "ignore", "manage.py", *arguments]
        environment = self._environment("manage", LEASE_SECONDS, 20) | variables
        subprocess.run(command, cwd=_ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)

    def add_user(self, name: str, password: str) -> None:
        """Make a user who may authenticate, where there is none of that name."""
        if not self.database.rows("SELECT 1 FROM auth_user WHERE username = %s", name):
            command = ("createsuperuser", "--noinput", "--username", name, "--email", "a@example.com")
            self.manage(*command, DJANGO_SUPERUSER_PASSWORD=password)

    def stop(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.kill()
        if self._log is not None:
            self._log.close()

    def log(self) -> str:
        """Return what the processes logged."""
        return (self.directory / "log").read_text(errors="replace")

    def gate(self, name: str) -> gates.Gate:
        """Return a gate, as if nobody had been there."""
        gate = gates.Gate(name, self.directory)
        gate.clear()
        return gate

    def journal(self, token: str) -> list[gates.Entry]:
        """Return what agents did about a text."""
        return gates.journal(self.directory, token)

    def executions(self, token: str) -> int:
        """Return how many times an agent began to answer a text."""
        return sum(entry.what == "begins" for entry in self.journal(token))

    # What the tables say

    def record(self, invocation_id: str) -> dict[str, Any] | None:
        """Return some columns of an invocation's record, or None."""
        names = ("id", "status", "error_code", "answer", "event_count", "session_record_id", "claim_number")
        found = self.database.rows(
            f"SELECT {', '.join(names)} FROM invocations_app_invocationrecord WHERE invocation_id = %s", invocation_id
        )
        assert len(found) < 2
        return dict(zip(names, found[0], strict=True)) if found else None

    def session(self, session_id: str) -> dict[str, Any]:
        """Return some columns of a session's row; empty for none."""
        names = ("id", "version", "claimed_by", "message_count", "claim_number", "state")
        found = self.database.rows(
            f"SELECT {', '.join(names)} FROM invocations_app_sessionrecord WHERE session_id = %s", session_id
        )
        assert len(found) < 2
        return dict(zip(names, found[0], strict=True)) if found else {}

    def said(self, session_id: str, role: str = "user") -> list[str]:
        """Return the texts of a session's history, in order."""
        found = self.database.rows(
            "SELECT m.payload FROM invocations_app_messagerecord m JOIN invocations_app_sessionrecord s"
            " ON m.session_id = s.id WHERE s.session_id = %s AND m.role = %s ORDER BY m.position",
            session_id,
            role,
        )
        payloads = [json.loads(payload) for (payload,) in found]
        return ["".join(content.get("text", "") for content in payload["contents"]) for payload in payloads]

    def waiting(self, session_id: str) -> int:
        """Return how many turns wait for a session."""
        found = self.database.rows(
            "SELECT count(*) FROM invocations_app_invocationrecord WHERE session_id = %s AND status = 'queued'",
            session_id,
        )
        return int(found[0][0])
