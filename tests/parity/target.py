"""The agents that both hosts serve: they need nothing but the framework.

What an agent answers is told by the message:

- ``/pieces ["hel", "lo"]``: these pieces, one update each, or one content when it is not streamed;
- ``/contents ["hel", "lo"]``: the same, but one content each;
- ``/fail``, ``/fail ["hel"]``: an exception, after these pieces;
- ``/options``: the run options that reached the model;
- ``/context``: the request context of Foundry's agent server, where it can be imported;
- anything else: the number of user messages so far, and the message.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

from agent_framework import (
    Agent,
    AgentResponse,
    AgentResponseUpdate,
    AgentSession,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Message,
    ResponseStream,
)

_TOLD = frozenset({"temperature", "top_p", "max_tokens", "stop", "seed", "x_unknown", "model"})


def _context() -> str:
    try:
        core = importlib.import_module("azure.ai.agentserver.core")
    except ImportError:
        return "no context"
    context = core.get_request_context()
    return json.dumps([context.session_id, context.user_id, context.call_id])


def _reply(messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the pieces, and whether an exception follows."""
    texts = [message.text for message in messages if message.role == "user"]
    command, _, rest = texts[-1].partition(" ")
    if command in {"/pieces", "/contents"}:
        return json.loads(rest), False
    if command == "/fail":
        return json.loads(rest or "[]"), True
    if command == "/options":
        return [json.dumps({name: options[name] for name in sorted(options) if name in _TOLD})], False
    if command == "/context":
        return [_context()], False
    return [f"{len(texts)}: {texts[-1]}"], False


class ScriptedClient(BaseChatClient):  # type: ignore[misc]
    """Answers as the last message says."""

    OTEL_PROVIDER_NAME = "parity"

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        pieces, fails = _reply(messages, options)
        if stream:
            return self._build_response_stream(_updates(pieces, fails))
        apart = messages[-1].text.startswith("/contents")
        return _response(pieces if apart else ["".join(pieces)], fails)


async def _updates(pieces: list[str], fails: bool) -> AsyncGenerator[ChatResponseUpdate]:
    for piece in pieces:
        yield ChatResponseUpdate(contents=[Content.from_text(piece)], role="assistant", message_id="m")
    if fails:
        raise RuntimeError("the secret reason")


async def _response(pieces: list[str], fails: bool) -> ChatResponse:
    if fails:
        raise RuntimeError("the secret reason")
    return ChatResponse(messages=[Message("assistant", [Content.from_text(piece) for piece in pieces])])


class PlainAgent:
    """An agent whose ``run`` takes no options."""

    id = name = "plain"
    description = None

    def run(self, messages: Any = None, *, stream: bool = False, session: AgentSession | None = None) -> Any:
        return self._stream() if stream else self._answer()

    async def _answer(self) -> AgentResponse:
        return AgentResponse(messages=[Message("assistant", ["plain"])])

    async def _stream(self) -> AsyncIterator[AgentResponseUpdate]:
        yield AgentResponseUpdate(contents=[Content.from_text("plain")], role="assistant")

    def create_session(self, *, session_id: str | None = None) -> AgentSession:
        return AgentSession(session_id=session_id)

    def get_session(self, service_session_id: str, *, session_id: str | None = None) -> AgentSession:
        return AgentSession(session_id=session_id, service_session_id=service_session_id)


def build_agent() -> Agent:
    return Agent(ScriptedClient(), name="parity")


def build_plain() -> PlainAgent:
    return PlainAgent()


def build_broken() -> Agent:
    raise RuntimeError("no model today")
