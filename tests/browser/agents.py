"""Targets that the demonstration has not: one that fails while it speaks, one that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent_framework import Agent, ChatResponse, ChatResponseUpdate, Content, Message

from project.offline import OfflineChatClient


class BreakingClient(OfflineChatClient):
    """Says two words and fails; a plain answer fails at once."""

    async def _updates(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        yield ChatResponseUpdate(contents=[Content.from_text("so far")], role="assistant")
        raise RuntimeError("the model is out of order")

    async def _response(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatResponse:
        raise RuntimeError("the model is out of order")


class SlowClient(OfflineChatClient):
    """Takes its time with a plain answer."""

    async def _response(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatResponse:
        await asyncio.sleep(30)
        return await super()._response(messages, options)


def build_slow() -> Agent[Any]:
    """Build the agent that is slow."""
    return Agent(client=SlowClient(), name="slow")


def build_breaking() -> Agent[Any]:
    """Build the agent that fails."""
    return Agent(client=BreakingClient(), name="breaking")
