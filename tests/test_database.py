"""The app's own threads to the database: which they are, what they keep, and when they end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, connections

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import database
from tests import fakes
from tests.session_fakes import failing_statements, post, stream, table

pytestmark = pytest.mark.django_db(transaction=True)


def own_connection() -> Any:
    """Return Django's connection of the thread that this is called in, opened if it is not."""
    connections[database.alias()].ensure_connection()
    return connections[database.alias()]


def raw_connection() -> Any:
    """Return the driver's connection below it."""
    return own_connection().connection


def thread_name() -> str:
    return threading.current_thread().name


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread whatever the database is, so that two calls meet the same connection."""
    database.close()
    monkeypatch.setattr(database, "_THREADS_ELSEWHERE", 1)
    yield
    database.close()


async def test_functions_run_on_threads_of_the_app():
    assert (await database.run(thread_name)).startswith("invocations-db")
    assert database.call(thread_name).startswith("invocations-db")


async def test_arguments_results_and_exceptions_pass():
    assert await database.run(divmod, 7, 2) == (3, 1)
    assert database.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await database.run(divmod, 7, 0)
    with pytest.raises(ZeroDivisionError):
        database.call(divmod, 7, 0)


@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="SQLite lets one connection write at a time")
async def test_sqlite_has_one_thread_and_one_lasting_connection():
    async def both() -> tuple[str, int]:
        return await database.run(lambda: (thread_name(), id(raw_connection())))

    assert len(set(await asyncio.gather(*(both() for _ in range(10))))) == 1


def test_several_loops_share_the_threads():
    names = {asyncio.run(database.run(thread_name)) for _ in range(3)}
    assert all(name.startswith("invocations-db") for name in names)


@pytest.mark.usefixtures("_one_thread")
async def test_a_connection_that_broke_is_replaced(monkeypatch):
    broken = await database.run(raw_connection)
    # SQLite's connections do not break; this is what Django asks of those that do.
    with monkeypatch.context() as patch, failing_statements(lambda sql: True):
        patch.setattr(type(connections[database.alias()]), "is_usable", lambda self: False)
        with pytest.raises(OperationalError):
            await database.run(SessionRecord.objects.count)
    assert await database.run(SessionRecord.objects.count) == 0
    assert await database.run(raw_connection) is not broken


@pytest.mark.usefixtures("_one_thread")
async def test_a_statement_that_fails_keeps_the_connection():
    before = await database.run(raw_connection)

    def twice() -> None:
        for _ in range(2):
            SessionRecord.objects.create(key="same", created_at="2026-01-01T00:00Z", updated_at="2026-01-01T00:00Z")

    with pytest.raises(IntegrityError):
        await database.run(twice)
    with failing_statements(lambda sql: True), pytest.raises(OperationalError):
        await database.run(SessionRecord.objects.count)
    assert await database.run(raw_connection) is before
    assert await database.run(SessionRecord.objects.count) == 1


@pytest.mark.usefixtures("_one_thread")
def test_closing_ends_threads_and_connections_and_the_next_call_starts_new_ones():
    first = database.call(own_connection)
    database.close()
    assert first.connection is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("invocations-db")]
    database.close()
    assert database.call(SessionRecord.objects.count) == 0
    assert database.call(own_connection) is not first


async def test_a_run_leaves_no_connection_of_its_hooks_open(async_client, settings):
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_echo", "RUN_HOOK": "tests.session_fakes.querying_run_hook"}
    }
    await post(async_client, {"message": "a", "session_id": "s1"})
    await stream(async_client, {"message": "b", "session_id": "s1"})
    assert all(thread.startswith("invocations-run") for thread, _ in fakes.notes)
    for _ in range(100):
        if not any(connection.connection for _, connection in fakes.notes):
            break
        await asyncio.sleep(0.01)
    assert [connection.connection for _, connection in fakes.notes] == [None, None]


async def test_a_run_holds_no_transaction(async_client, settings):
    settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_scripted"}}
    fakes.script([fakes.gate(), "a"])
    turn = asyncio.create_task(post(async_client, {"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    assert not await database.run(lambda: connections[database.alias()].in_atomic_block)
    # Another connection sees what was begun, and can write.
    assert [row["status"] for row in await asyncio.to_thread(in_this_thread)] == ["running"]
    fakes.gate().open()
    assert (await turn).status_code == 200


def in_this_thread() -> list[dict[str, Any]]:
    try:
        SessionRecord.objects.create(opaque_id="other", created_at="2026-01-01T00:00Z", updated_at="2026-01-01T00:00Z")
        return list(InvocationRecord.objects.values())
    finally:
        connections.close_all()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_site_with_atomic_requests_is_served(async_client, monkeypatch, is_streamed):
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    body = {"message": "a", "session_id": "s1", "stream": is_streamed}
    response = await post(async_client, body)
    assert response.status_code == 200
    if is_streamed:
        assert b"".join([chunk async for chunk in response.streaming_content]) == b"data: a\n\ndata: [DONE]\n\n"
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded"]
    assert (await async_client.get("/readiness")).status_code == 200


async def test_readiness_names_a_database_that_is_away(async_client):
    with failing_statements(lambda sql: True):
        response = await async_client.get("/readiness")
    assert (response.status_code, response.content) == (503, b'{"status":"unhealthy","failing":["database"]}')
    response = await async_client.get("/readiness")
    assert (response.status_code, response.content) == (200, b'{"status":"healthy"}')


def test_the_alias_is_the_routers_choice(settings):
    settings.DATABASE_ROUTERS = ["tests.session_fakes.Router"]
    assert database.alias() == "elsewhere"
    settings.DATABASE_ROUTERS = []
    assert database.alias() == connection.alias
