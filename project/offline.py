"""A chat client that reaches no network: the whole path of a request runs without a key.

It streams word by word, calls tools through the framework's own function
invocation and reports usage (words for tokens), as a client of a model does.
What it says is decided in ``offline_replies``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, ClassVar
from uuid import uuid4

from agent_framework import (
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatOptions,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    UsageDetails,
)
from agent_framework.observability import ChatTelemetryLayer

from project.offline_replies import Reply, reply_to

MODEL = "offline"


class OfflineChatClient(
    FunctionInvocationLayer[ChatOptions[None]],
    ChatMiddlewareLayer[ChatOptions[None]],
    ChatTelemetryLayer[ChatOptions[None]],
    BaseChatClient[ChatOptions[None]],
):
    """A stand-in for a model.

    Args:
        word_seconds: Pause before each streamed word, so that a person sees it
            stream; 0 for none. A plain answer comes at once.
    """

    OTEL_PROVIDER_NAME: ClassVar[str] = "offline"

    def __init__(self, *, word_seconds: float = 0.03) -> None:
        super().__init__()
        self.word_seconds = word_seconds

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        if stream:
            return self._build_response_stream(
                self._updates(messages, options), response_format=options.get("response_format")
            )
        return self._response(messages, options)

    def _reply(self, messages: Sequence[Message], tools: frozenset[str]) -> Reply:
        return reply_to(messages, tools)

    async def _response(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatResponse:
        reply = self._reply(messages, await self._tools(options))
        return ChatResponse(
            messages=[Message("assistant", _contents(reply), message_id=_new_id("msg"))],
            response_id=_new_id("resp"),
            model=MODEL,
            finish_reason="tool_calls" if reply.calls else "stop",
            usage_details=_usage(messages, reply),
        )

    async def _updates(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        reply = self._reply(messages, await self._tools(options))
        message_id, response_id = _new_id("msg"), _new_id("resp")

        def update(*contents: Content, end: bool = False) -> ChatResponseUpdate:
            return ChatResponseUpdate(
                contents=contents,
                role="assistant",
                message_id=message_id,
                response_id=response_id,
                model=MODEL,
                finish_reason=("tool_calls" if reply.calls else "stop") if end else None,
            )

        for content in _contents(reply):
            # A blank belongs to the word after it: no piece ends with one.
            pieces = re.findall(r"\s*\S+|\s+$", content.text) if content.text else []
            for piece in pieces:
                await asyncio.sleep(self.word_seconds)
                yield update(Content.from_text(piece))
            if not pieces:
                yield update(content)
        yield update(Content.from_usage(_usage(messages, reply)), end=True)

    async def _tools(self, options: Mapping[str, Any]) -> frozenset[str]:
        options = await self._validate_options(options)
        if options.get("tool_choice") == "none":
            return frozenset()
        return frozenset(tool.name for tool in options.get("tools") or () if hasattr(tool, "name"))


def _contents(reply: Reply) -> list[Content]:
    if not reply.calls:
        return [Content.from_text(reply.text)]
    return [Content.from_function_call(_new_id("call"), name, arguments=arguments) for name, arguments in reply.calls]


def _usage(messages: Sequence[Message], reply: Reply) -> UsageDetails:
    taken = sum(len((content.text or "").split()) for message in messages for content in message.contents)
    given = len(reply.text.split()) + len(reply.calls)
    return UsageDetails(input_token_count=taken, output_token_count=given, total_token_count=taken + given)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid4().hex}"
