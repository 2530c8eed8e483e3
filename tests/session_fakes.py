"""What the tests of sessions, failures and isolation name by dotted path, and how they ask and look.

Providers with state of their own, state types, other stores, hooks that break;
then the helpers: `post` and `stream` speak to an endpoint, `table` reads a
table over the app's own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    CompactionProvider,
    ContextProvider,
    InMemoryHistoryProvider,
    Message,
    SessionStore,
    SlidingWindowStrategy,
    register_state_type,
)
from django.db import OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Model
from django.test.utils import CaptureQueriesContext

from invocations_app.isolation import get_current_isolation_keys
from invocations_app.models import SessionRecord
from invocations_app.storage import database, plain_sql
from tests import fakes

PATH = "/invocations/invoke"
SECRET = "the-exception-text"

# State types


@dataclass
class Mood:
    """A state type of a provider's own."""

    name: str
    turns: int


register_state_type(
    Mood,
    type_id="tests.session_fakes.Mood",
    encoder=lambda mood: {"name": mood.name, "turns": mood.turns},
    decoder=lambda data: Mood(data["name"], data["turns"]),
)


class MoodProvider(ContextProvider):
    """Keeps a `Mood` in its state, and notes which one it finds."""

    async def before_run(self, *, state: dict[str, Any], **kwargs: Any) -> None:
        mood = state.get("mood")
        fakes.notes.append(mood)
        state["mood"] = Mood("cheerful", 1 if mood is None else mood.turns + 1)


class UnstorableProvider(ContextProvider):
    """Puts ``switches["state"]`` into its state."""

    async def before_run(self, *, state: dict[str, Any], **kwargs: Any) -> None:
        if "state" in fakes.switches:
            state["value"] = fakes.switches["state"]


class BrokenAfterRun(ContextProvider):
    """Fails when the run is finalized, while ``switches["after_run"]`` is set."""

    async def after_run(self, **kwargs: Any) -> None:
        if fakes.switches.get("after_run"):
            raise RuntimeError(SECRET)


class RewritingHistory(InMemoryHistoryProvider):
    """Keeps the last two messages, and marks the older one in place, deep inside its properties."""

    async def save_messages(
        self, session_id: str | None, messages: Sequence[Message], *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        await super().save_messages(session_id, messages, state=state, **kwargs)
        assert state is not None
        state["messages"] = state["messages"][-2:]
        for message in state["messages"]:
            mark = message.additional_properties.setdefault("_group", {"seen": 0})
            mark["seen"] += 1


def _build(provider: ContextProvider, reply: fakes.Reply = fakes.echo) -> Agent:
    return fakes._agent(reply, context_providers=[provider])


def build_moody() -> Agent:
    return _build(MoodProvider("moody"))


def build_unstorable() -> Agent:
    return _build(UnstorableProvider("unstorable"))


def build_broken_after_run() -> Agent:
    return _build(BrokenAfterRun("broken"))


def build_rewriting() -> Agent:
    return _build(RewritingHistory())


def build_compacting() -> Agent:
    """An echo whose history upstream's own provider compacts to the last group, marking what is left out."""
    return fakes._agent(
        fakes.echo,
        context_providers=[
            InMemoryHistoryProvider(skip_excluded=True),
            CompactionProvider(after_strategy=SlidingWindowStrategy(keep_last_groups=2)),
        ],
    )


# Isolation keys, as the model, tools and a provider see them


def seen_keys() -> str:
    """Return the keys in force as a text."""
    keys = get_current_isolation_keys()
    return "nobody" if keys is None else f"{keys.user_key}|{keys.chat_key}"


def watching(messages: Sequence[Message]) -> Iterator[fakes.Step]:
    """Say the keys at the first, a middle and the last update, with two tools between; one per line."""
    results = [content for content in messages[-1].contents if content.type == "function_result"]
    if not results:
        yield f"first {seen_keys()}\n"
        yield lambda: asyncio.sleep(0.02)
        yield f"middle {seen_keys()}\n"
        yield fakes.call("whoami", call_id="call-1")
        yield fakes.call("whoami_sync", call_id="call-2")
        return
    yield lambda: asyncio.sleep(0.02)
    for content in [c for message in messages for c in message.contents if c.type == "function_result"][-2:]:
        yield f"tool {content.result}\n"
    yield f"last {seen_keys()}\n"


class KeyProvider(ContextProvider):
    """Keeps in its state the keys that it saw, before and after each run."""

    async def before_run(self, *, state: dict[str, Any], **kwargs: Any) -> None:
        state.setdefault("seen", []).append(f"before {seen_keys()}")

    async def after_run(self, *, state: dict[str, Any], **kwargs: Any) -> None:
        state["seen"].append(f"after {seen_keys()}")


def build_watching() -> Agent:
    return _build(KeyProvider("keys"), watching)


# Other stores


class NotingStore(SessionStore):
    """Upstream's in-memory store; notes the ids that it is asked for."""

    async def get(self, session_id: str) -> AgentSession | None:
        fakes.notes.append(("get", session_id))
        return await super().get(session_id)

    async def set(self, session_id: str, session: AgentSession) -> None:
        fakes.notes.append(("set", session_id))
        if fakes.switches.get("store"):
            raise RuntimeError(SECRET)
        await super().set(session_id, session)


class KeyNotingStore(SessionStore):
    """Notes the isolation keys in force when it is asked."""

    async def get(self, session_id: str) -> AgentSession | None:
        fakes.notes.append(f"get {seen_keys()}")
        return await super().get(session_id)

    async def set(self, session_id: str, session: AgentSession) -> None:
        fakes.notes.append(f"set {seen_keys()}")
        await super().set(session_id, session)


def build_noting_store() -> SessionStore:
    return NotingStore()


# Hooks


def querying_run_hook(invocation: Any, *, target: Any, request: Any) -> Any:
    """Use the ORM as a site would, and note the thread and the connection that it got."""
    SessionRecord.objects.count()
    fakes.notes.append((threading.current_thread().name, connections[database.alias()]))
    return invocation


def key_run_hook(invocation: Any, *, target: Any, request: Any) -> Any:
    fakes.notes.append(f"run hook {seen_keys()}")
    return invocation


def key_response_hook(result: Any, *, invocation: Any) -> Any:
    fakes.notes.append(f"response hook {seen_keys()}")
    return result


async def key_transform_hook(update: Any, *, invocation: Any) -> Any:
    fakes.notes.append(f"transform hook {seen_keys()}")
    return update


def raising_run_hook(invocation: Any, *, target: Any, request: Any) -> Any:
    raise RuntimeError(SECRET)


def wrong_run_hook(invocation: Any, *, target: Any, request: Any) -> Any:
    return None


async def raising_response_hook(result: Any, *, invocation: Any) -> Any:
    raise RuntimeError(SECRET)


def wrong_response_hook(result: Any, *, invocation: Any) -> Any:
    return "text"


def raising_transform_hook(update: Any, *, invocation: Any) -> Any:
    raise RuntimeError(SECRET)


class Router:
    """A database router that keeps the app's tables in a database of their own."""

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        return "elsewhere" if model._meta.app_label == "invocations_app" else None


# How tests ask and look


async def post(client: Any, body: Mapping[str, Any], *, path: str = PATH, **headers: str) -> Any:
    """Return the response to a POST; header names with "_" for "-"."""
    return await client.post(
        path,
        data=json.dumps(body),
        content_type="application/json",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


async def stream(client: Any, body: Mapping[str, Any], **headers: str) -> bytes:
    """Return the whole body of a streamed answer."""
    response = await post(client, {**body, "stream": True}, **headers)
    assert response.status_code == 200, response.content
    return b"".join([chunk async for chunk in response.streaming_content])


async def table(model: type[Model]) -> list[dict[str, Any]]:
    """Return all rows of a table, by primary key."""
    return await database.run(lambda: list(model._default_manager.order_by("pk").values()))


def drive(coroutine: Any) -> Any:
    """Return the result of a coroutine that never waits: with `database.run` inline, in this very thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waits")


async def run_inline(function: Callable[..., Any], *args: Any) -> Any:
    """Stand in for `database.run`, on the caller's own thread, where its queries can be counted."""
    return function(*args)


@contextlib.contextmanager
def failing_statements(fails: Callable[[str], bool]) -> Iterator[None]:
    """Let the database refuse, in every thread, the statements for which `fails` is true."""
    real = CursorWrapper._execute_with_wrappers  # type: ignore[attr-defined]

    def execute(self: Any, sql: str, params: Any, many: bool, executor: Any) -> Any:
        if fails(sql):
            raise OperationalError(SECRET)
        return real(self, sql, params, many, executor)

    class FailingCursor:
        """The driver's own cursor, which groups of turns use."""

        def __init__(self, connection: Any) -> None:
            self._cursor = connection.connection.cursor()
            self._error = connection.Database.OperationalError

        def __getattr__(self, name: str) -> Any:
            return getattr(self._cursor, name)

        def execute(self, sql: str, *params: Any) -> Any:
            if fails(sql):
                raise self._error(SECRET)
            return self._cursor.execute(sql, *params)

        def executemany(self, sql: str, rows: Any) -> Any:
            if fails(sql):
                raise self._error(SECRET)
            return self._cursor.executemany(sql, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CursorWrapper, "_execute_with_wrappers", execute)
        patch.setattr(plain_sql, "driver_cursor", FailingCursor)
        yield


def statements(captured: CaptureQueriesContext) -> list[str]:
    """Return verb and table of each statement, without those that begin and end transactions."""
    found = (
        re.match(r'(SELECT|INSERT|UPDATE|DELETE)\b.*?["`]invocations_app_(\w+)["`]', query["sql"], re.DOTALL)
        for query in captured.captured_queries
    )
    return [f"{match[1]} {match[2]}" for match in found if match]
