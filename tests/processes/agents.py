"""The agent of the processes: it says how many user messages it saw, and does what the last one says.

Every answer begins with that number and a bar. The last user text is a token of
the test's, and after a blank perhaps what to do: ``words 40 0.05`` says that
many words with a pause in seconds before each, ``long 40 0.05 9000`` the same
with words of a length, ``gate <name>`` a word, then waits at a gate, then another.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
)
from agent_framework.observability import ChatTelemetryLayer

from invocations_app.envelope import Invocation
from invocations_app.isolation import get_current_isolation_keys
from tests.processes import gates


class Client(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, BaseChatClient):  # type: ignore[misc]
    """Every layer of a real chat client above what the last user text says."""

    OTEL_PROVIDER_NAME = "processes"

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        updates = _answer([message.text for message in messages if message.role == "user"])
        if stream:
            return self._build_response_stream(updates)
        return ChatResponse.from_update_generator(updates)


async def _answer(said: Sequence[str]) -> AsyncGenerator[ChatResponseUpdate]:
    token, _, rest = said[-1].partition(" ")
    gates.note("begins", token)
    try:
        yield _update(f"{len(said)}|")
        async for piece in _pieces(rest.split()):
            yield _update(piece)
    except BaseException:
        gates.note("stops", token)
        raise
    gates.note("ends", token)


def _update(text: str) -> ChatResponseUpdate:
    return ChatResponseUpdate(contents=[Content.from_text(text)], role="assistant", message_id="m")


async def _pieces(program: list[str]) -> AsyncGenerator[str]:
    match program:
        case ["words", count, pause]:
            for number in range(int(count)):
                await asyncio.sleep(float(pause))
                yield f"w{number} "
        case ["long", count, pause, size]:
            for _ in range(int(count)):
                await asyncio.sleep(float(pause))
                yield "x" * int(size)
        case ["gate", name]:
            yield "before "
            await gates.Gate(name).wait()
            yield "after"
        case ["keys"]:
            keys = get_current_isolation_keys()
            yield "nobody" if keys is None else f"{keys.user_key},{keys.chat_key}"
        case ["built"]:
            yield f"{os.getpid()},{_built}"
        case _:
            yield "ok"


_built = 0


def build() -> Agent:
    global _built
    _built += 1
    return Agent(Client(), name="processes")


async def hold(invocation: Invocation, **kwargs: Any) -> Invocation:
    """Wait, where the test wants it, before anything is written."""
    gate = gates.Gate("hook")
    if gate.is_armed():
        await gate.wait()
    return invocation
