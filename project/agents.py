"""The agents of the site; ``INVOCATIONS`` names them by dotted path."""

from __future__ import annotations

import os
from typing import Any

from agent_framework import Agent, SupportsChatGetResponse, tool
from agent_framework.openai import OpenAIChatCompletionClient

from project.offline import OfflineChatClient
from project.tools import book_room, calculate, current_time, word_count

DEFAULT_MODEL = "gpt-4o-mini"
INSTRUCTIONS = "You are a friendly assistant. Answer briefly. Use the tools for times, sums, word counts and rooms."


def build_assistant() -> Agent[Any]:
    """Build the assistant behind the endpoint ``default``.

    Returns:
        A new agent. It speaks to an OpenAI-compatible service where
        ``OPENAI_API_KEY`` or ``OPENAI_BASE_URL`` is set, with the model
        ``OPENAI_MODEL``; to nobody at all otherwise.
    """
    return Agent(
        client=_build_client(),
        name="assistant",
        instructions=INSTRUCTIONS,
        tools=[
            tool(current_time),
            tool(word_count),
            tool(calculate),
            # The turn ends with a question, and the tool runs in the turn that says yes.
            tool(book_room, approval_mode="always_require"),
        ],
    )


def _build_client() -> SupportsChatGetResponse[Any]:
    key, url = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL")
    if not key and not url:
        return OfflineChatClient()
    return OpenAIChatCompletionClient(
        os.environ.get("OPENAI_MODEL") or DEFAULT_MODEL,
        # A local server asks for no key, the client for any.
        api_key=key or "no-key-needed",
        base_url=url or None,
    )
