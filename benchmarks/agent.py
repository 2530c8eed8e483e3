"""The agent that every server runs: a real ``Agent`` over a chat client that answers at once.

What it is told decides what it does:

- ``stream 2000``: 2000 updates, at once;
- ``slow 200``: 200 updates, each 50 ms after the one before, its text the time at which it was due;
- ``seed 1000``: so many messages that the session holds 1000 afterwards, all different;
- ``count``: how many messages the model was given;
- ``turn 7``: ``pong turn 7``; anything else: ``pong``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
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
)
from agent_framework.observability import ChatTelemetryLayer

SLOW_SECONDS = 0.05


class InstantClient(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, BaseChatClient):
    """A model without a model."""

    OTEL_PROVIDER_NAME = "instant"

    def _inner_get_response(self, *, messages: Sequence[Message], stream: bool, options: Any, **kwargs: Any) -> Any:
        if stream:
            return self._build_response_stream(_updates(messages[-1].text))
        return _answer(messages)


async def _answer(messages: Sequence[Message]) -> ChatResponse:
    text = messages[-1].text
    kind, _, number = text.partition(" ")
    if kind == "seed":
        # One of them is the caller's.
        return ChatResponse(messages=[_seeded(text, index) for index in range(1, int(number))])
    answer = {"turn": f"pong {text}", "count": f"pong {len(messages)}"}.get(kind, "pong")
    return ChatResponse(messages=[Message("assistant", [answer], message_id=f"a-{text}")])


def _seeded(text: str, index: int) -> Message:
    said = f"This is message {index} of a talk, about as long as people's messages are, and like no other one."
    return Message("assistant", [said], message_id=f"a-{text}-{index}")


async def _updates(text: str) -> AsyncGenerator[ChatResponseUpdate]:
    kind, _, count = text.partition(" ")
    for number in range(int(count) if count.isdigit() else 1):
        piece = f"{number} "
        if kind == "slow":
            # Counted from the update before, so a server that is late once is not late for ever.
            piece = f"{time.monotonic() + SLOW_SECONDS:.6f} "
            await asyncio.sleep(SLOW_SECONDS)
        yield ChatResponseUpdate(contents=[Content.from_text(piece)], role="assistant", message_id=f"a-{text}")


def build_agent() -> Agent:
    """Return a fresh agent."""
    return Agent(InstantClient(), name="bench", instructions="You answer at once.")
