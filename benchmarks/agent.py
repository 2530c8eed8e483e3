"""The agent that every server runs: a real ``Agent`` over a chat client that answers at once.

What it is told decides what it does: ``stream 2000`` answers in 2000 updates,
``slow 200`` in 200 updates, one each 50 ms, anything else with ``pong``.
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


class InstantClient(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, BaseChatClient):  # type: ignore[misc]
    """A model without a model."""

    OTEL_PROVIDER_NAME = "instant"

    def _inner_get_response(self, *, messages: Sequence[Message], stream: bool, options: Any, **kwargs: Any) -> Any:
        text = messages[-1].text
        if stream:
            return self._build_response_stream(_updates(text))
        return _answer(text)


async def _answer(text: str) -> ChatResponse:
    answer = f"pong {text}" if text.startswith("turn") else "pong"
    return ChatResponse(messages=[Message("assistant", [answer], message_id=f"a-{text}")])


async def _updates(text: str) -> AsyncGenerator[ChatResponseUpdate]:
    kind, _, count = text.partition(" ")
    slow = kind == "slow"
    for number in range(int(count) if count.isdigit() else 1):
        if slow:
            await asyncio.sleep(SLOW_SECONDS)
            piece = f"{time.monotonic():.6f} "
        else:
            piece = f"{number} "
        yield ChatResponseUpdate(contents=[Content.from_text(piece)], role="assistant", message_id=f"a-{text}")


def build_agent() -> Agent:
    """Return a fresh agent."""
    return Agent(InstantClient(), name="bench", instructions="You answer at once.")
