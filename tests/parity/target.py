"""The agents and workflows that both hosts serve: they need nothing but the framework.

What an agent answers is told by the message:

- ``/pieces ["hel", "lo"]``: these pieces, one update each, or one content when it is not streamed;
- ``/contents ["hel", "lo"]``: the same, but one content each;
- ``/fail``, ``/fail ["hel"]``: an exception, after these pieces;
- ``/options``: the run options that reached the model;
- ``/call Ann``: a call of the tool ``greet``, where the agent has one, and then what it returned;
- ``/context``: the request context of Foundry's agent server, where it can be imported;
- anything else: the number of user messages so far, and the message.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_framework import (
    Agent,
    AgentExecutor,
    AgentResponse,
    AgentResponseUpdate,
    AgentSession,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Executor,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    handler,
    response_handler,
    tool,
)
from pydantic import BaseModel

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


class ScriptedClient(FunctionInvocationLayer, BaseChatClient):  # type: ignore[misc]
    """Answers as the last message says."""

    OTEL_PROVIDER_NAME = "parity"

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        contents = [content for message in messages for content in message.contents]
        if contents[-1].type == "function_result":
            return self._tell([Content.from_text(str(contents[-1].result))], stream)
        if messages[-1].text.startswith("/call "):
            arguments = json.dumps({"name": messages[-1].text.partition(" ")[2]})
            return self._tell([Content.from_function_call("call-1", "greet", arguments=arguments)], stream)
        pieces, fails = _reply(messages, options)
        if stream:
            return self._build_response_stream(_updates(pieces, fails))
        apart = messages[-1].text.startswith("/contents")
        return _response(pieces if apart else ["".join(pieces)], fails)

    def _tell(
        self, contents: list[Content], stream: bool
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        return self._build_response_stream(_one_update(contents)) if stream else _one_message(contents)


async def _one_update(contents: list[Content]) -> AsyncGenerator[ChatResponseUpdate]:
    yield ChatResponseUpdate(contents=contents, role="assistant", message_id="m")


async def _one_message(contents: list[Content]) -> ChatResponse:
    return ChatResponse(messages=[Message("assistant", contents)])


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


@dataclass
class Place:
    """An output that is no JSON by itself."""

    name: str
    near: Any = None


class Counts(BaseModel):
    """An output of Pydantic's."""

    counts: dict[int | str, int]


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


_OUTPUTS: dict[str, Callable[[], Any]] = {
    "set": lambda: {1},
    "not a number": lambda: {"a": [1, float("nan")]},
    "number as key": lambda: {"a": {1: 2}},
    "dataclass": lambda: Place("here", (Place("there"),)),
    "dataclass of a set": lambda: Place("here", [Place("there", {1})]),
    "model": lambda: Counts(counts={"a": 1}),
    "model with a number as key": lambda: Counts(counts={1: 1}),
    "circle": _circle,
    "message": lambda: [Message("assistant", ["hi"])],
    "response": lambda: AgentResponse(messages=[Message("assistant", ["hi"])], response_id="r"),
    "type": lambda: Place,
}


class Speaker(Executor):
    """Outputs ``/outputs [...]`` or ``/give name``, asks ``/ask [...]`` after an output, fails, or echoes."""

    @handler
    async def speak(self, message: str, ctx: WorkflowContext[Any, Any]) -> None:
        command, _, rest = message.partition(" ")
        if command == "/fail":
            raise RuntimeError("the secret reason")
        if command == "/give":
            await ctx.yield_output(_OUTPUTS[rest]())
        elif command == "/outputs":
            for item in json.loads(rest):
                await ctx.yield_output(item)
        elif command == "/ask":
            await ctx.yield_output("before")
            for item in json.loads(rest):
                await ctx.request_info(item, str, request_id=f"ask-{item}")
        else:
            await ctx.yield_output({"said": message})

    @response_handler
    async def hear(self, question: str, reply: str, ctx: WorkflowContext[Any, Any]) -> None:
        await ctx.yield_output([question, reply])


def build_workflow(request: object = None) -> Workflow:
    return WorkflowBuilder(start_executor=Speaker(id="speaker"), name="parity").build()


def build_workflow_of_agent(request: object = None) -> Workflow:
    # The published host refuses a tool that two workflows share.
    @tool(approval_mode="always_require")
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"Hello {name}"

    agent = Agent(ScriptedClient(), name="parity", id="inside", tools=[greet])
    return WorkflowBuilder(start_executor=AgentExecutor(agent, id="agent"), name="parity-agent").build()


def build_agent() -> Agent:
    return Agent(ScriptedClient(), name="parity")


def build_plain() -> PlainAgent:
    return PlainAgent()


def build_broken() -> Agent:
    raise RuntimeError("no model today")
