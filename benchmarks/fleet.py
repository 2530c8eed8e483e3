"""Starts the servers that are measured: each a fresh process, in a directory and on a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.postgres import Postgres

ROOT = Path(__file__).resolve().parent.parent
# Not resolved: the link is what tells a Python which environment it is of.
FOUNDRY_PYTHON = Path(os.environ.get("BENCH_FOUNDRY_PYTHON", ROOT / ".venv-parity" / "bin" / "python")).absolute()

_START_SECONDS = 60
_STOP_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server.

    Attributes:
        name: Its name in the results.
        app: Its application, as ``module`` below ``benchmarks.servers``.
        path: URL path that runs the agent.
        session_in: Where the session id goes: ``body`` or ``query``.
        environment: Variables of its process.
        workers: Number of uvicorn's workers.
        on_postgres: Its database is a PostgreSQL.
        python: The Python that runs it.
    """

    name: str
    app: str
    path: str = "/invocations/invoke"
    session_in: str = "body"
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    on_postgres: bool = False
    python: Path = Path(sys.executable)

    @property
    def is_ours(self) -> bool:
        """Whether it is this project, which needs tables."""
        return self.app == "ours"


class ServerFailed(Exception):
    """A server did not start, or logged an error."""


class Fleet:
    """What the servers of one run of the benchmarks share: a directory, a prepared database, a PostgreSQL."""

    def __enter__(self) -> Fleet:
        self._stack = contextlib.ExitStack()
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="invocations-bench-")))
        self._postgres: Postgres | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def start(self, kind: Kind) -> Iterator[Server]:
        """Run a fresh server with an empty store.

        Args:
            kind: Which.

        Yields:
            The server, answering.

        Raises:
            ServerFailed: If it does not start, or logs an error.
        """
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(dir=self._directory))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            environment = self._environment(directory) | dict(kind.environment)
            if kind.on_postgres:
                if self._postgres is None:
                    self._postgres = self._stack.enter_context(Postgres())
                environment["DATABASE_URL"] = stack.enter_context(self._postgres.database())
                _prepare(environment)
            elif kind.is_ours:
                shutil.copy(self._prepared_sqlite(), directory / "bench.sqlite3")
            server = Server(kind, directory, environment)
            try:
                server.start()
                yield server
            except Exception as error:
                error.add_note(f"Its log ends with:\n{server.log[-2000:]}")
                raise
            finally:
                server.stop()
            server.check_log()

    def prepared(self, kind: Kind) -> dict[str, str]:
        """Return the variables of a process that runs a kind of server with an empty store, itself without one.

        Args:
            kind: Which; on SQLite.
        """
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        if kind.is_ours:
            shutil.copy(self._prepared_sqlite(), directory / "bench.sqlite3")
        return self._environment(directory) | dict(kind.environment)

    def _environment(self, directory: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BENCH_")}
        for name in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "FOUNDRY_AGENT_SESSION_ID"):
            kept.pop(name, None)
        return kept | {"PYTHONPATH": str(ROOT), "BENCH_DIR": str(directory), "HOME": str(directory)}

    def _prepared_sqlite(self) -> Path:
        directory = self._directory / "prepared"
        if not directory.exists():
            directory.mkdir()
            _prepare(self._environment(directory))
        return directory / "bench.sqlite3"


class Server:
    """One server process, with its workers.

    Args:
        kind: Which.
        directory: Where it keeps what it stores.
        environment: All variables of its process.
    """

    def __init__(self, kind: Kind, directory: Path, environment: Mapping[str, str]) -> None:
        self.kind = kind
        self._directory = directory
        self._environment = environment
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where the agent is run."""
        return f"http://127.0.0.1:{self.port}{self.kind.path}"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def pid(self) -> int:
        """Process id of the server, or of what watches its workers."""
        assert self._process is not None, "The server was not started."
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ServerFailed: If it ends, or does not answer within a minute.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        uvicorn = ["-m", "uvicorn", f"benchmarks.servers.{self.kind.app}:app", "--port", str(self.port)]
        uvicorn += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        if self.kind.workers > 1:
            uvicorn += ["--workers", str(self.kind.workers)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(self.kind.python), "-W", "ignore", *uvicorn],
                cwd=self._directory,
                env=dict(self._environment),
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"{self.kind.name} did not start")
            time.sleep(0.05)

    def _answers(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=b'{"message":"ping"}'), timeout=5):
                return True
        except urllib.error.HTTPError:
            return True  # Not every server has something there.
        except OSError:
            return False

    def stop(self) -> None:
        """End the process as an operator would, and wait for its end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """End it, and start it again on what it has stored."""
        self.stop()
        self.start()

    def check_log(self) -> None:
        """Raise `ServerFailed` if something went wrong unseen."""
        if "Traceback" in self.log:
            raise ServerFailed(f"{self.kind.name} logged an error:\n{self.log[-2000:]}")

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used so far, in seconds."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(time.user + time.system for time in times))

    def memory_mib(self) -> float:
        """Return the memory that it holds now, in MiB."""
        return float(sum(process.memory_info().rss for process in self._processes())) / 2**20


def _prepare(environment: Mapping[str, str]) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.prepare"], check=True, env=dict(environment))
