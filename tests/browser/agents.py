"""Targets that the demonstration has not: one that fails while it speaks, one that takes long, one that asks much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent_framework import Agent, ChatResponse, ChatResponseUpdate, Content, FunctionTool, Message, tool

from project.offline import OfflineChatClient
from project.offline_replies import Reply
from project.tools import book_room


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


class AskingClient(OfflineChatClient):
    """Wants two approvals and a result at once."""

    def _reply(self, messages: Sequence[Message], tools: frozenset[str]) -> Reply:
        if any(content.type == "function_result" for message in messages for content in message.contents):
            return super()._reply(messages, tools)
        rooms = [("book_room", {"room": room, "day": "Friday"}) for room in ("Blue", "Red")]
        return Reply(calls=(*rooms, ("ring", {"times": 2})))


def build_asking() -> Agent[Any]:
    """Build the agent that asks for two approvals, and has its caller ring a bell."""
    schema = {"type": "object", "properties": {"times": {"type": "integer"}}}
    ring = FunctionTool(name="ring", description="Ring a bell at the caller's.", func=None, input_model=schema)
    return Agent(client=AskingClient(), name="asking", tools=[tool(book_room, approval_mode="always_require"), ring])
