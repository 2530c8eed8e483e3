"""Agents, tools and providers that tests name by dotted path, as a site would.

How to use them:

- ``build_echo`` answers with the last user text, word by word when streamed;
  the text ``/tool whoami {}`` makes it call that tool and answer with the result.
- ``build_pieces`` plays the ``PIECES`` "hel" and "lo".
- ``build_scripted`` plays what the test has put down with `script`: one list of
  steps for each model call, the last one again and again. A step is a text
  piece, a `Content`, an exception to raise, a `Gate` to wait at, or a callable
  (sync or async) to call.
- ``build_custom`` is no `Agent`: a class with the methods of ``SupportsAgentRun``.

`gate`, `calls`, `built`, `notes` and `reset` are the test's handles. They are the
process's, so a server in another process has its own; `reset` runs before
every test.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent_framework import (
    Agent,
    AgentResponse,
    AgentResponseUpdate,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    ContextProvider,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    WorkflowBuilder,
    WorkflowContext,
    executor,
    tool,
)
from agent_framework.observability import ChatTelemetryLayer

from invocations_app.isolation import IsolationKeys, get_current_call_id, get_current_isolation_keys

PIECES = ("hel", "lo")


class Gate:
    """A place where an agent waits until the test lets it through.

    It belongs to no event loop, so that a test may stand in another thread than the agent.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.left: BaseException | None = None
        """Why an agent stopped waiting before the gate was opened."""

    def open(self) -> None:
        self.opened.set()

    async def wait_reached(self) -> None:
        """Wait until an agent stands at the gate."""
        while not self.reached.is_set():
            await asyncio.sleep(0.002)

    async def wait_left(self) -> None:
        """Wait until an agent was driven away from the gate."""
        while self.left is None:
            await asyncio.sleep(0.002)

    async def pass_through(self) -> None:
        self.reached.set()
        try:
            while not self.opened.is_set():
                await asyncio.sleep(0.002)
        except BaseException as reason:
            self.left = reason
            raise


Step: TypeAlias = str | Content | Exception | Gate | Callable[[], Any]
Reply: TypeAlias = Callable[[Sequence[Message]], Iterable[Step]]


@dataclass(frozen=True)
class ModelCall:
    """One call of the model, as the client saw it."""

    messages: tuple[Message, ...]
    options: Mapping[str, Any]
    stream: bool
    keys: IsolationKeys | None
    call_id: str | None

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Role and text of each message."""
        return [(str(message.role), message.text) for message in self.messages]


calls: list[ModelCall] = []
"""Every model call, in order."""
built: list[Any] = []
"""Every agent that a factory built, in order."""
notes: list[Any] = []
"""What tools, providers and managed agents noted, in order."""
switches: dict[str, Any] = {}
"""What a test turns on: ``broken`` (a text) makes ``build_flaky`` and ``build_flaky_entry`` fail."""
_gates: dict[str, Gate] = {}
_script: list[list[Step]] = []


def reset() -> None:
    """Forget everything that a test left."""
    for waiting in _gates.values():
        waiting.open()
    for handle in (calls, built, notes, switches, _gates, _script):
        handle.clear()


def gate(name: str = "gate") -> Gate:
    """Return the gate of that name."""
    return _gates.setdefault(name, Gate(name))


def script(*turns: Sequence[Step]) -> None:
    """Say what ``build_scripted`` plays: the steps of each model call."""
    _script[:] = [list(turn) for turn in turns]


def call(name: str, arguments: Mapping[str, Any] | None = None, *, call_id: str = "call-1") -> Content:
    """Return the step in which the model calls a tool."""
    return Content.from_function_call(call_id=call_id, name=name, arguments=json.dumps(arguments or {}))


def usage(input_tokens: int, output_tokens: int) -> Content:
    """Return the step in which the model reports its tokens."""
    return Content.from_usage(
        {
            "input_token_count": input_tokens,
            "output_token_count": output_tokens,
            "total_token_count": input_tokens + output_tokens,
        }
    )


# The chat client: every layer of a real one above a script.


class FakeChatClient(FunctionInvocationLayer, ChatMiddlewareLayer, ChatTelemetryLayer, BaseChatClient):  # type: ignore[misc]
    """Plays the steps that `reply` gives for the messages of a call."""

    OTEL_PROVIDER_NAME = "fake"

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        calls.append(
            ModelCall(tuple(messages), dict(options), stream, get_current_isolation_keys(), get_current_call_id())
        )
        contents = _play(self.reply(messages))
        if stream:
            return self._build_response_stream(_updates(contents, f"message-{len(calls)}"))
        return _response(contents, f"message-{len(calls)}")


async def _play(steps: Iterable[Step]) -> AsyncGenerator[Content]:
    for step in steps:
        # A generator that never really awaits can be neither cancelled nor overtaken.
        await asyncio.sleep(0)
        if isinstance(step, str):
            yield Content.from_text(step)
        elif isinstance(step, Content):
            yield step
        elif isinstance(step, BaseException):
            raise step
        elif isinstance(step, Gate):
            await step.pass_through()
        else:
            outcome = step()
            if inspect.isawaitable(outcome):
                await outcome


async def _updates(contents: AsyncGenerator[Content], message_id: str) -> AsyncGenerator[ChatResponseUpdate]:
    try:
        async for content in contents:
            yield ChatResponseUpdate(contents=[content], role="assistant", message_id=message_id)
    finally:
        await contents.aclose()


async def _response(contents: AsyncGenerator[Content], message_id: str) -> ChatResponse:
    collected = [content async for content in contents]
    usages = [content.usage_details for content in collected if content.type == "usage"]
    message = Message("assistant", [content for content in collected if content.type != "usage"], message_id=message_id)
    return ChatResponse(messages=[message], usage_details=usages[-1] if usages else None)


# What the agents answer.


def last_user_text(messages: Sequence[Message]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def echo(messages: Sequence[Message]) -> list[Step]:
    """Answer with a tool's result, call a tool that was asked for, or repeat the user."""
    results = [content for content in messages[-1].contents if content.type == "function_result"]
    if results:
        return [str(content.result) for content in results]
    text = last_user_text(messages)
    asked = re.fullmatch(r"/tool (\w+) (\{.*\})", text, flags=re.DOTALL)
    if asked is not None:
        return [call(asked[1], json.loads(asked[2]))]
    return list(re.findall(r"\S+\s*|\s+", text))


def scripted(messages: Sequence[Message]) -> list[Step]:
    if not _script:
        raise AssertionError("the test has put down no script")
    return _script.pop(0) if len(_script) > 1 else _script[0]


# Tools and providers.


@tool
async def whoami() -> str:
    """Say who the caller is."""
    keys = get_current_isolation_keys()
    return "nobody" if keys is None else f"{keys.user_key}|{keys.chat_key}"


@tool
def whoami_sync() -> str:
    """Say who the caller is, from a thread."""
    keys = get_current_isolation_keys()
    return "nobody" if keys is None else f"{keys.user_key}|{keys.chat_key}"


@tool
async def wait_at(name: str) -> str:
    """Wait at the gate of that name."""
    await gate(name).pass_through()
    return f"passed {name}"


@tool
async def break_down() -> str:
    """Raise an exception."""
    raise RuntimeError("the tool is broken")


TOOLS = [whoami, whoami_sync, wait_at, break_down]


def note_keys(moment: str) -> Callable[[], None]:
    """Return a step that notes the isolation keys that are in force."""
    return lambda: notes.append((moment, get_current_isolation_keys()))


class NotingProvider(ContextProvider):
    """Notes isolation keys and session id before and after a run, and counts the turns in its state."""

    async def before_run(self, *, session: AgentSession, state: dict[str, Any], **kwargs: Any) -> None:
        state["turns"] = state.get("turns", 0) + 1
        notes.append(("before_run", get_current_isolation_keys(), session.session_id, state["turns"]))

    async def after_run(self, *, session: AgentSession, state: dict[str, Any], **kwargs: Any) -> None:
        notes.append(("after_run", get_current_isolation_keys(), session.session_id, state["turns"]))


# Factories.


def _agent(reply: Reply, **kwargs: Any) -> Agent:
    agent = Agent(FakeChatClient(reply), name="fake", tools=TOOLS, **kwargs)
    built.append(agent)
    return agent


def build_echo() -> Agent:
    return _agent(echo)


async def build_echo_async() -> Agent:
    await asyncio.sleep(0.01)
    return _agent(echo)


def build_pieces() -> Agent:
    return _agent(lambda messages: PIECES)


def build_scripted() -> Agent:
    return _agent(scripted)


def build_noting() -> Agent:
    """An echo with a context provider that notes keys and turns."""
    return _agent(echo, context_providers=[NotingProvider("noting")])


def build_scripted_noting() -> Agent:
    return _agent(scripted, context_providers=[NotingProvider("noting")])


def build_slow() -> Agent:
    """Forty words, one each 50 ms."""

    def reply(messages: Sequence[Message]) -> Iterable[Step]:
        for number in range(40):
            yield lambda: asyncio.sleep(0.05)
            yield f"{number} "

    return _agent(reply)


def build_broken() -> Agent:
    raise RuntimeError("no model today")


def build_flaky() -> Agent:
    """An echo, but for as long as ``switches["broken"]`` is set."""
    notes.append("build_flaky")
    if switches.get("broken"):
        raise RuntimeError(switches["broken"])
    return _agent(echo)


def build_nothing() -> None:
    return None


class CustomAgent:
    """An agent of one's own: a plain async generator streamed, no options, no framework."""

    id = "custom"
    name = "custom"
    description = None

    def __init__(self, reply: Reply = echo) -> None:
        self.reply = reply

    def run(
        self, messages: Any = None, *, stream: bool = False, session: AgentSession | None = None
    ) -> Awaitable[AgentResponse] | AsyncIterable[AgentResponseUpdate]:
        return self._stream(messages) if stream else self._run(messages)

    async def _run(self, messages: Sequence[Message]) -> AgentResponse:
        contents = [content async for content in _play(self.reply(messages))]
        return AgentResponse(messages=[Message("assistant", contents)])

    async def _stream(self, messages: Sequence[Message]) -> AsyncGenerator[AgentResponseUpdate]:
        contents = _play(self.reply(messages))
        try:
            async for content in contents:
                yield AgentResponseUpdate(contents=[content], role="assistant")
        finally:
            await contents.aclose()
            notes.append("custom stream closed")

    def create_session(self, *, session_id: str | None = None) -> AgentSession:
        return AgentSession(session_id=session_id)

    def get_session(self, service_session_id: str, *, session_id: str | None = None) -> AgentSession:
        return AgentSession(service_session_id=service_session_id, session_id=session_id)


def build_custom() -> CustomAgent:
    agent = CustomAgent()
    built.append(agent)
    return agent


def build_custom_scripted() -> CustomAgent:
    agent = CustomAgent(scripted)
    built.append(agent)
    return agent


class ManagedAgent(CustomAgent):
    """An agent that notes which task enters and which one leaves it."""

    async def __aenter__(self) -> ManagedAgent:
        await asyncio.sleep(0)
        if switches.get("broken"):
            raise RuntimeError(switches["broken"])
        notes.append(("enter", asyncio.current_task(), get_current_isolation_keys()))
        return self

    async def __aexit__(self, *reason: object) -> None:
        await asyncio.sleep(0)
        notes.append(("leave", asyncio.current_task(), reason[0]))
        if switches.get("broken on leaving"):
            raise RuntimeError(switches["broken on leaving"])


def build_managed() -> ManagedAgent:
    agent = ManagedAgent()
    built.append(agent)
    return agent


def managed_noted() -> list[str]:
    """Return what managed agents noted, without the tasks."""
    return [note[0] for note in notes if isinstance(note, tuple) and note[0] in {"enter", "leave"}]


# Instances, right and wrong, and what is no target at all.


@executor(id="start")
async def _start(messages: list[Message], context: WorkflowContext[Any, str]) -> None:
    await context.yield_output(last_user_text(messages))


custom_agent = CustomAgent()
managed_agent = ManagedAgent()
builder = WorkflowBuilder(start_executor=_start, name="fake")
workflow = builder.build()
number = 5


def build_workflow() -> Any:
    return WorkflowBuilder(start_executor=_start, name="fake").build()


def build_workflow_agent() -> Any:
    return build_workflow().as_agent()
