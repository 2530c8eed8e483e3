"""The processes of the session on each database, and the figures that the long measurements print."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests import postgres
from tests.processes.asking import Asking
from tests.processes.cluster import Cluster
from tests.processes.databases import Database, Postgresql, Sqlite

_figures: list[str] = []


@contextlib.contextmanager
def running_cluster(make: Callable[[Path], Database]) -> Iterator[Cluster]:
    """Give a cluster on a database, migrated, whose processes end at the end."""
    with tempfile.TemporaryDirectory(prefix="invocations-processes-") as directory:
        cluster = Cluster(make(Path(directory)), Path(directory))
        cluster.manage("migrate", "--verbosity", "0")
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def sqlite() -> Iterator[Cluster]:
    """Processes on SQLite."""
    with running_cluster(lambda directory: Sqlite(directory / "db.sqlite3")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """Processes on PostgreSQL."""
    with (
        postgres.server() as server_url,
        postgres.database(server_url) as url,
        running_cluster(lambda _: Postgresql(url, server_url)) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Processes on either database."""
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def _open_gates(request: pytest.FixtureRequest) -> Iterator[None]:
    """A gate that nobody came to holds up no other test."""
    yield
    for name in {"cluster", "sqlite"}.intersection(request.fixturenames):
        for gate in ("hook", "begin", "commit", "answer"):
            request.getfixturevalue(name).gate(gate)


@pytest_asyncio.fixture
async def asking() -> AsyncIterator[Asking]:
    """A client with as many connections as it likes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as http:
        yield Asking(http)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what was seen, for the end of the session."""
    return lambda text: _figures.append(f"{request.node.name}: {text}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the processes' log with a test that failed."""
    report = yield
    clusters = getattr(item, "funcargs", {}).values()
    for cluster in clusters:
        if isinstance(cluster, Cluster) and report.when == "call" and report.failed:
            with contextlib.suppress(OSError):
                report.sections.append(("processes' log", cluster.log()[-6000:]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures."""
    if _figures:
        terminalreporter.section("what the processes showed")
        for line in _figures:
            terminalreporter.write_line(line)
