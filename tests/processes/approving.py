"""An agent of the processes that asks before it pays; the token that it pays for says what comes then.

The last user text is ``<token>``, or ``<token> gate <name>``: the model then
waits at that gate after the tool ran.
"""

from __future__ import annotations

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
    tool,
)
from agent_framework.observability import ChatTelemetryLayer

from tests.processes import gates


class Client(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, BaseChatClient):  # type: ignore[misc]
    """Calls the tool for a user's text, and says its result."""

    OTEL_PROVIDER_NAME = "processes"

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        updates = _answer(messages)
        if stream:
            return self._build_response_stream(updates)
        return ChatResponse.from_update_generator(updates)


async def _answer(messages: Sequence[Message]) -> AsyncGenerator[ChatResponseUpdate]:
    results = [content for content in messages[-1].contents if content.type == "function_result"]
    texts = [message.text for message in messages if message.role == "user" and message.text]
    token, _, rest = texts[-1].partition(" ")
    if token == "next":
        # What it reads of the calls before.
        told = [content.result for message in messages for content in message.contents if content.result is not None]
        yield _update(Content.from_text("|".join(map(str, told))))
    elif results:
        if rest:
            await gates.Gate(rest.removeprefix("gate ")).wait()
        yield _update(Content.from_text(str(results[0].result)))
    else:
        yield _update(Content.from_function_call(call_id="call", name="pay", arguments={"token": token}))


def _update(content: Content) -> ChatResponseUpdate:
    return ChatResponseUpdate(contents=[content], role="assistant", message_id="m")


@tool(approval_mode="always_require")
async def pay(token: str) -> str:
    """Pay, once somebody has agreed."""
    gates.note("pays", token)
    return f"paid {token}"


def build() -> Agent:
    return Agent(Client(), name="approving", tools=[pay])
