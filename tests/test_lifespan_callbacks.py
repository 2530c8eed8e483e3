"""Callbacks at start-up and shutdown: in order, each of them, and what a failure does."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import override_settings

from tests import fakes
from tests.test_lifespan import BROKEN, MANAGED, REASON, Server

HERE = "tests.test_lifespan_callbacks"
COMPLETE = {"type": "lifespan.startup.complete"}
STOPPED = {"type": "lifespan.shutdown.complete"}


def first() -> None:
    fakes.notes.append(("first", None))


async def second() -> None:
    fakes.notes.append(("second", None))


def handed_on() -> Any:
    return second()


class Callable:
    async def __call__(self) -> None:
        fakes.notes.append(("callable", None))


callable_instance = Callable()


def users() -> None:
    count = get_user_model().objects.count()
    fakes.notes.append((f"{count} users", threading.current_thread() is threading.main_thread()))
    connections["default"].connection.execute("SELECT 1")


def after_users() -> None:
    fakes.notes.append(("connection", connections["default"].connection))


def fails() -> None:
    raise LookupError("no pool")


async def fails_too() -> None:
    raise OSError("no cache")


def noted() -> list[str]:
    return [note[0] for note in fakes.notes]


def host(**keys: Any) -> dict[str, Any]:
    return {key: [f"{HERE}.{name}" for name in names.split()] for key, names in keys.items()}


@override_settings(
    INVOCATIONS=MANAGED, INVOCATIONS_HOST=host(STARTUP="first second", SHUTDOWN="second handed_on first")
)
async def test_callbacks_are_called_in_order_between_entering_and_leaving_the_targets():
    server = Server()
    assert await server.tell("lifespan.startup") == COMPLETE
    assert noted() == ["enter", "first", "second"]
    fakes.notes.clear()
    assert await server.tell("lifespan.shutdown") == STOPPED
    assert noted() == ["second", "second", "first", "leave"]
    await server.task


@override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST=host(STARTUP="callable_instance"))
async def test_an_object_with_an_async_call_is_awaited():
    server = Server()
    assert await server.tell("lifespan.startup") == COMPLETE
    assert noted() == ["enter", "callable"]
    await server.tell("lifespan.shutdown")


@pytest.mark.django_db(transaction=True)
@override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST=host(STARTUP="users after_users"))
async def test_a_sync_callback_may_use_the_orm_and_its_connection_is_closed():
    server = Server()
    assert await server.tell("lifespan.startup") == COMPLETE
    assert fakes.notes[1:] == [("0 users", False), ("connection", None)]
    await server.tell("lifespan.shutdown")


@override_settings(
    INVOCATIONS=MANAGED, INVOCATIONS_HOST=host(STARTUP="first fails nothing fails_too second", SHUTDOWN="handed_on")
)
async def test_a_failure_at_start_up_stops_the_boot_after_every_callback_was_called(caplog):
    server = Server()
    message = f"the STARTUP callback {HERE}.fails failed: LookupError: no pool"
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.failed", "message": message}
    # What was started by the others is stopped.
    assert noted() == ["enter", "first", "second", "second", "leave"]
    await server.task
    assert len(server.sent) == 1
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [
        (f"The STARTUP callback {HERE}.{name} failed.", True) for name in ("fails", "nothing", "fails_too")
    ]


@override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST=host(SHUTDOWN="fails_too first fails second"))
async def test_a_failure_at_shutdown_is_told_after_everything_else_was_done(caplog):
    server = Server()
    await server.tell("lifespan.startup")
    message = f"the SHUTDOWN callback {HERE}.fails_too failed: OSError: no cache"
    assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.failed", "message": message}
    assert noted() == ["enter", "first", "second", "leave"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"The SHUTDOWN callback {HERE}.fails_too failed.",
        f"The SHUTDOWN callback {HERE}.fails failed.",
    ]


@override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST={"STARTUP": ["tests.fakes.build_echo"]})
async def test_a_callback_is_logged_by_the_name_of_where_it_is_defined(monkeypatch, caplog):
    monkeypatch.setattr(fakes, "build_echo", fails)
    message = (await Server().tell("lifespan.startup"))["message"]
    assert message == f"the STARTUP callback {HERE}.fails failed: LookupError: no pool"


@override_settings(INVOCATIONS=BROKEN, INVOCATIONS_HOST=host(STARTUP="first", SHUTDOWN="second"))
async def test_callbacks_are_not_called_where_a_target_refuses_the_boot():
    assert await Server().tell("lifespan.startup") == {"type": "lifespan.startup.failed", "message": REASON}
    assert noted() == ["enter", "leave"]


@override_settings(INVOCATIONS=BROKEN, INVOCATIONS_HOST=host(STARTUP="fails") | {"REQUIRE_TARGETS": False})
async def test_a_callback_that_fails_stops_the_boot_even_where_targets_are_not_required():
    message = (await Server().tell("lifespan.startup"))["message"]
    assert message == f"the STARTUP callback {HERE}.fails failed: LookupError: no pool"
