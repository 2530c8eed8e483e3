"""A real SIGTERM or SIGINT while streams are open: uvicorn in processes of its own, which share a database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests import postgres
from tests.processes.asking import INTERRUPTED, Asking, Stream, cut, eventually, last_event, new, without_ids
from tests.processes.cluster import Worker
from tests.processes.databases import Database, Postgresql, Sqlite
from tests.processes.gates import Gate
from tests.server import listen, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ROOT = Path(__file__).resolve().parent.parent
DONE = b"data: [DONE]\n\n"
CUT = b"event: error\ndata: this invocation was interrupted\n\n"
# What uvicorn says when it has heard of the end, and an answer is still open.
WAITING = "Waiting for connections to close."
# Longer than any test: who takes a session over has not waited for a lease.
LEASE_SECONDS = 30

SITE = """
from tests.processes.settings import *

INVOCATIONS_HOST |= {
    "STARTUP": ["shutdown_site.started"],
    "SHUTDOWN": ["shutdown_site.stopped", "shutdown_site.fails", "shutdown_site.stopped_async"],
    "SHUTDOWN_GRACE_SECONDS": float(os.environ["GRACE_SECONDS"]),
}


def started():
    print("started", flush=True)


def stopped():
    from invocations_app.models import InvocationRecord

    live = InvocationRecord.objects.filter(status__in=["queued", "running"]).count()
    print(f"stopped with {live} live", flush=True)


def fails():
    raise LookupError("nothing to close")


async def stopped_async():
    print("stopped too", flush=True)
"""


class Site:
    """Processes of uvicorn that share a database, and the directory in which they and the tests meet."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        self.database = database
        self.workers: list[Worker] = []
        self.started = 0
        (directory / "shutdown_site.py").write_text(SITE)
        command = [sys.executable, "-W", "ignore", "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(command, cwd=ROOT, env=self.environment(0), check=True)

    def environment(self, grace_seconds: float) -> dict[str, str]:
        return os.environ | {
            "DJANGO_SETTINGS_MODULE": "shutdown_site",
            "PYTHONPATH": os.pathsep.join([str(self.directory), str(ROOT)]),
            "PROCESSES_DIR": str(self.directory),
            "PROCESSES_DATABASE": json.dumps(self.database.settings("shutdown", 20)),
            "PROCESSES_LEASE_SECONDS": str(LEASE_SECONDS),
            "GRACE_SECONDS": str(grace_seconds),
        }

    def start(self, *, grace_seconds: float = 20, loop: str = "uvloop", options: Sequence[str] = ()) -> Worker:
        """Start a process, as the command line does, and wait until it serves."""
        self.started += 1
        name = str(self.started)
        with listen() as listening, (self.directory / f"{name}.log").open("wb") as log:
            listening.listen(64)
            how = ["--fd", str(listening.fileno()), "--loop", loop, "--http", "httptools", "--lifespan", "on"]
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "uvicorn", "tests.processes.asgi:application", *how, *options],
                cwd=ROOT,
                env=self.environment(grace_seconds),
                pass_fds=[listening.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            worker = Worker(name, process, listening.getsockname()[1])
        self.workers.append(worker)
        wait_until(lambda: "Application startup complete" in self.log(worker), f"process {name}", 30)
        return worker

    def log(self, worker: Worker) -> str:
        return (self.directory / f"{worker.name}.log").read_text(errors="replace")

    def gate(self, name: str) -> Gate:
        gate = Gate(name, self.directory)
        gate.clear()
        return gate

    def status(self, id: str) -> str | None:
        found = self.database.rows("SELECT status FROM invocations_app_invocationrecord WHERE invocation_id = %s", id)
        return found[0][0] if found else None

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("shutdown")
    return Site(directory, Sqlite(directory / "db.sqlite3"))


@pytest.fixture(scope="module")
def on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with postgres.server() as server_url, postgres.database(server_url) as url:
        yield Site(tmp_path_factory.mktemp("shutdown"), Postgresql(url, server_url))


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Processes on SQLite, unless the test says otherwise; they end with it."""
    site: Site = request.getfixturevalue(getattr(request, "param", "on_sqlite"))
    yield site
    site.stop()


both = pytest.mark.parametrize("site", ["on_sqlite", "on_postgresql"], indirect=True)


@pytest_asyncio.fixture
async def asking() -> AsyncIterator[Asking]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        yield Asking(http)


async def stream_at(site: Site, asking: Asking, worker: Worker, session: str) -> tuple[Gate, Stream, str]:
    """Open a stream whose agent stands at a gate; return gate, stream and invocation id."""
    id = new("turn")
    gate = site.gate(id)
    stream = await asking.open(worker, f"{id} gate {id}", session=session, id=id)
    await gate.reached()
    await stream.until(lambda content: b"before" in content)
    return gate, stream, id


async def exit_of(site: Site, worker: Worker, seconds: float = 10) -> str:
    """Wait until a process has ended, with everything done; return what it logged."""
    await eventually(lambda: worker.process.poll() is not None, "the end of the process", seconds)
    log = site.log(worker)
    assert "never awaited" not in log
    assert "was destroyed" not in log
    return log


async def logged(site: Site, worker: Worker, text: str) -> None:
    """Wait until a process has logged something."""
    await eventually(lambda: text in site.log(worker), repr(text))


@pytest.mark.parametrize(
    ("loop", "number", "code"),
    # uvicorn ends with the signal that it got, but for SIGINT, which its command line takes for a wish.
    [("uvloop", signal.SIGTERM, -signal.SIGTERM), ("asyncio", signal.SIGTERM, -signal.SIGTERM)]
    + [("uvloop", signal.SIGINT, 0), ("asyncio", signal.SIGINT, 0)],
)
async def test_what_ends_within_the_grace_ends_well(site, asking, loop, number, code):
    worker = site.start(loop=loop)
    gate, stream, id = await stream_at(site, asking, worker, new("session"))
    worker.process.send_signal(number)
    await logged(site, worker, WAITING)
    assert worker.process.poll() is None
    gate.open()
    assert await stream.rest() == b"data: 1|\n\ndata: before \n\ndata: after\n\n" + DONE
    log = await exit_of(site, worker)
    assert site.status(id) == "succeeded"
    assert worker.process.returncode == code
    assert "Shutting down: 1 runs, 20.0 seconds of grace." in log


@both
async def test_what_outlasts_the_grace_is_interrupted_and_another_process_takes_over(site, asking):
    leaving, staying = site.start(grace_seconds=0.5), site.start()
    session, later, queued = new("session"), new("later"), new("queued")
    gate, stream, id = await stream_at(site, asking, leaving, session)
    waiting = asyncio.create_task(asking.post(leaving, "waits", session=session, id=later, stream=True))
    await eventually(lambda: site.status(later) == "queued", "the waiting turn")
    body = {"message": "waits", "session_id": session, "background": True}
    answer = await asking.http.post(f"{leaving.url}/waits/invoke", json=body, headers={"x-agent-invocation-id": queued})
    assert answer.status_code == 202
    taking_over = asyncio.create_task(asking.post(staying, "next", session=session))
    began = time.monotonic()
    leaving.process.terminate()
    assert await stream.rest() == b"data: 1|\n\ndata: before \n\n" + CUT
    assert 0.4 < time.monotonic() - began < LEASE_SECONDS / 3
    refused = await waiting
    assert (refused.status_code, refused.json()) == (409, INTERRUPTED)
    assert refused.headers["x-agent-invocation-id"] == later
    # The turn that was cut left nothing behind, not even its lease.
    assert (await taking_over).json() == {"response": "1|ok", "session_id": session}
    assert time.monotonic() - began < LEASE_SECONDS / 3
    assert [site.status(name) for name in (id, later, queued)] == ["interrupted"] * 3
    assert (await asking.status(staying, id))["error"] == {
        "message": "this invocation was interrupted",
        "code": "interrupted",
        "status": 409,
    }
    assert cut(without_ids(await (await asking.follow(staying, id)).rest())) == cut(stream.content)
    log = await exit_of(site, leaving)
    assert leaving.process.returncode == -signal.SIGTERM
    assert "did not stop" not in log
    gate.open()


async def test_a_run_in_the_background_has_the_grace_too(site, asking):
    worker = site.start()
    id = new("background")
    gate = site.gate(id)
    body = {"message": f"{id} gate {id}", "background": True}
    await asking.http.post(f"{worker.url}/waits/invoke", json=body, headers={"x-agent-invocation-id": id})
    await gate.reached()
    worker.process.terminate()
    # No connection is open any more; the lifespan's shutdown waits all the same.
    await logged(site, worker, "Waiting for application shutdown.")
    assert site.status(id) == "running"
    gate.open()
    await exit_of(site, worker)
    assert site.status(id) == "succeeded"


@both
async def test_who_follows_a_run_of_another_process_is_let_go(site, asking):
    running, leaving = site.start(), site.start()
    gate, stream, id = await stream_at(site, asking, running, new("session"))
    following = await asking.follow(leaving, id)
    await following.until(lambda content: b"before" in content)
    message = f"{id} gate {id}"
    session = json.loads((await asking.http.get(f"{leaving.url}/waits/{id}")).text)["session_id"]
    joining = await asking.open(leaving, message, session=session, id=id)
    plain = asyncio.create_task(asking.post(leaving, message, session=session, id=id))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    leaving.process.terminate()
    followed = await following.rest()
    joined = await joining.rest()
    refused = await plain
    await exit_of(site, leaving)
    assert time.monotonic() - began < LEASE_SECONDS / 3
    # Without an end: an EventSource comes back, and asks on from its last id.
    assert cut(without_ids(followed)) == cut(joined) == [b"data: 1|\n\n", b"data: before \n\n"]
    assert (refused.status_code, refused.json()) == (503, {"error": "the server is shutting down"})
    assert (refused.headers["retry-after"], refused.headers["x-agent-invocation-id"]) == ("1", id)
    gate.open()
    assert (await stream.rest()).endswith(DONE)
    rest = await (await asking.follow(running, id, last_id=2)).rest()
    assert (without_ids(rest), last_event(rest).last_id) == (b"data: after\n\n" + DONE, "4")


async def test_a_client_that_reads_nothing_holds_the_process_no_longer_than_the_servers_own_limit(site):
    worker = site.start(grace_seconds=0.2, options=["--timeout-graceful-shutdown", "2"])
    id = new("unread")
    body = json.dumps({"message": f"{id} long 2000 0.001 9000", "stream": True}).encode()
    head = (
        f"POST /waits/invoke HTTP/1.1\r\nhost: x\r\nx-agent-invocation-id: {id}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", worker.port))
        client.sendall(head.encode() + body)
        await eventually(lambda: site.status(id) == "running", "the run")
        worker.process.terminate()
        log = await exit_of(site, worker)
    assert site.status(id) == "interrupted"
    assert "stopped with 0 live" in log


async def test_callbacks_are_called_when_no_run_lives_any_more_and_each_of_them(site, asking):
    worker = site.start(grace_seconds=0.1)
    assert "started" in site.log(worker)
    gate, stream, _ = await stream_at(site, asking, worker, new("session"))
    worker.process.terminate()
    assert (await stream.rest()).endswith(CUT)
    log = await exit_of(site, worker)
    gate.open()
    lines = [line for line in log.splitlines() if line.startswith("stopped")]
    assert lines == ["stopped with 0 live", "stopped too"]
    assert "The SHUTDOWN callback shutdown_site.fails failed." in log
    assert "the SHUTDOWN callback shutdown_site.fails failed: LookupError: nothing to close" in log
    assert "Application shutdown failed. Exiting." in log


async def test_a_second_interrupt_ends_the_process_at_once(site, asking):
    worker = site.start()
    _, stream, id = await stream_at(site, asking, worker, new("session"))
    worker.process.send_signal(signal.SIGINT)
    await logged(site, worker, WAITING)
    worker.process.send_signal(signal.SIGINT)
    content: Any = b""
    try:
        content = await stream.rest()
    except httpx.TransportError:
        content = stream.content
    await exit_of(site, worker)
    assert DONE not in content
    assert site.status(id) == "interrupted", site.log(worker)
