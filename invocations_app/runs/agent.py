"""Runs an agent for one invocation: plain or streamed, in the task of the run.

One task pulls the stream, finalizes it and closes it on every way out: the
framework's telemetry sets ContextVars at the first pull and resets them at the
end, so another task would break it. Storage and answering are left to the run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agent_framework import AgentResponse, AgentSession, Message

from invocations_app import hooks
from invocations_app.conf import EndpointSettings
from invocations_app.dialects.parsing import stamp_messages
from invocations_app.envelope import Invocation
from invocations_app.events import Event, RequestInfo, StepTaken, TextDelta
from invocations_app.pending import PendingRequest, from_content, reply_messages, tools_asked_for
from invocations_app.runs.tape import AT_ONCE
from invocations_app.storage.checkpoints import EncodedCheckpoint
from invocations_app.targets import ResolvedTarget

logger = logging.getLogger("invocations_app.runs")

Publish = Callable[[Event], Awaitable[None]]

# An agent whose stream never waits would keep the loop to itself. Twice the interpreter's switch interval: threads
# that are woken more often than that, each time too late, never ask for the interpreter and starve.
_BREATH_SECONDS = 0.01
_CLOSE_SECONDS = 10
_CALLS = frozenset({"function_call", "function_result"})


class Result(NamedTuple):
    """What a run gave.

    Attributes:
        text: The answer's text, after the hooks.
        usage: The framework's usage details, or None.
        pending: What the agent asks of a person before it goes on.
        frames: The outputs and requests of a workflow; None for an agent.
        checkpoints: What a workflow leaves of its state.
    """

    text: str
    usage: dict[str, Any] | None
    pending: tuple[PendingRequest, ...] = ()
    frames: tuple[dict[str, Any], ...] | None = None
    checkpoints: tuple[EncodedCheckpoint, ...] = ()


class Breath:
    """Lets the loop breathe: at the first update, and when a stream has kept it to itself for 5 ms."""

    def __init__(self) -> None:
        self._last = 0.0

    async def take(self) -> None:
        """Give way where it is time to."""
        if time.monotonic() - self._last > _BREATH_SECONDS:
            await asyncio.sleep(0)
            self._last = time.monotonic()


async def run_agent(
    endpoint: EndpointSettings,
    resolved: ResolvedTarget,
    invocation: Invocation,
    messages: list[Message],
    session: AgentSession | None,
    publish: Publish,
) -> Result:
    """Run an agent and publish the pieces of its answer.

    Args:
        endpoint: The endpoint, for its hooks.
        resolved: The agent.
        invocation: The invocation, for options and hooks.
        messages: What it is run with; see `messages_of`.
        session: Its session, changed in place; None for none.
        publish: Called with each piece of text, and waited for.

    Raises:
        TargetFailed: If a hook fails.
        Exception: Whatever the agent raises.
    """
    arguments: dict[str, Any] = {"session": session}
    if invocation.options and resolved.takes_options:
        arguments["options"] = dict(invocation.options)
    if invocation.stream:
        stream = resolved.target.run(messages, stream=True, **arguments)
        return await _run_streamed(endpoint, stream, invocation, publish)
    response = resolved.target.run(messages, **arguments)
    if inspect.isawaitable(response):
        response = await response
    usage = _usage_of(response)
    asked = _requests_of(response)
    calls = _Calls(publish, is_timed=False)
    for message in getattr(response, "messages", ()):
        for content in message.contents:
            if content.type in _CALLS:
                await calls.tell(content)
    response = await hooks.apply_response_hook(endpoint, response, invocation=invocation)
    text = text_of(response.messages)
    if text:
        await publish(TextDelta(text))
    return Result(text, usage, await _publish_pending(asked, publish))


async def _run_streamed(endpoint: EndpointSettings, stream: Any, invocation: Invocation, publish: Publish) -> Result:
    if not hasattr(stream, "__aiter__"):
        stream = await stream
    pieces: list[str] = []
    calls = _Calls(publish, is_timed=True)
    is_hooked = endpoint.stream_transform_hook is not None
    try:
        breath = time.monotonic() + _BREATH_SECONDS
        async for update in stream:
            contents = update.contents
            if not is_hooked and isinstance(contents, list) and len(contents) == 1 and contents[0].type == "text":
                # A piece of text and nothing else, of which a stream has many.
                text = contents[0].text
            else:
                for content in contents:
                    if content.type in _CALLS:
                        await calls.tell(content)
                changed: Any = update
                if is_hooked:
                    changed = await hooks.apply_stream_transform_hook(endpoint, update, invocation=invocation)
                text = "" if changed is None else _join(changed.contents)
            if text:
                pieces.append(text)
                published = publish(TextDelta(text))
                if published is not AT_ONCE:
                    await published
            if time.monotonic() > breath:
                await asyncio.sleep(0)
                breath = time.monotonic() + _BREATH_SECONDS
        finalize = getattr(stream, "get_final_response", None)
        final = await finalize() if finalize is not None else None
    except BaseException as error:
        await abort(stream, error)
        raise
    await close(stream)
    return Result("".join(pieces), _usage_of(final), await _publish_pending(_requests_of(final), publish))


class _Calls:
    """Tells the calls of tools, and that they have returned, before any hook sees them; a call comes in pieces."""

    def __init__(self, publish: Publish, *, is_timed: bool) -> None:
        self._publish = publish
        self._is_timed = is_timed
        self._names: dict[str | None, str] = {}

    async def tell(self, content: Any) -> None:
        if content.type == "function_result":
            await self._publish(StepTaken("result", self._names.get(content.call_id, ""), self._is_timed))
        elif content.name and content.call_id not in self._names:
            self._names[content.call_id] = content.name
            await self._publish(StepTaken("call", content.name, self._is_timed))


def _requests_of(response: Any) -> tuple[PendingRequest, ...]:
    return tuple(from_content(content) for content in getattr(response, "user_input_requests", ()))


async def _publish_pending(requests: tuple[PendingRequest, ...], publish: Publish) -> tuple[PendingRequest, ...]:
    for request in requests:
        await publish(RequestInfo(request.request_id, request.data))
    return requests


def messages_of(agent: Any, invocation: Invocation, answered: Sequence[PendingRequest]) -> list[Message]:
    """Return what an agent is run with: the caller's messages, or the replies to what it asked.

    Args:
        agent: The agent.
        invocation: The invocation.
        answered: The pending requests that it answers.

    Raises:
        LookupError: If a tool that was approved is gone: the bare approval would reach the model.
    """
    if invocation.responses is None:
        return stamp_messages(invocation.input, invocation.endpoint, invocation.dialect)
    refuse_missing_tools([agent], answered)
    replies = reply_messages(answered, invocation.responses)
    return stamp_messages(replies, invocation.endpoint, invocation.dialect)


def refuse_missing_tools(agents: Sequence[Any], answered: Sequence[PendingRequest]) -> None:
    """Refuse to go on when a tool that was approved is gone.

    Args:
        agents: The agents that may have it; none where they cannot be told.
        answered: The pending requests that are answered.

    Raises:
        LookupError: If it is gone: the bare approval would reach the model.
    """
    asked = tools_asked_for(answered)
    missing = asked.difference(*(_tools_of(agent, asked) for agent in agents))
    if missing and agents:
        raise LookupError(f"the agent has no tool {', '.join(sorted(missing))} any more")


def _tools_of(agent: Any, unknown: set[str]) -> set[str]:
    """Return the names of an agent's tools; those asked for where they cannot be told before it runs."""
    options = getattr(agent, "default_options", None)
    if (
        not isinstance(options, Mapping)
        or getattr(agent, "mcp_tools", None)
        or getattr(agent, "context_providers", None)
    ):
        return unknown
    return {str(getattr(tool, "name", "")) for tool in options.get("tools") or ()}


async def close(stream: Any) -> None:
    """Close a stream that ended well.

    Args:
        stream: A stream of an agent or workflow.
    """
    method = getattr(stream, "close", None) or getattr(stream, "aclose", None)
    if method is not None:
        await method()


async def abort(stream: Any, error: BaseException) -> None:
    """Close a stream that did not end well; with the reason no provider is called any more.

    Args:
        stream: A stream of an agent or workflow.
        error: The reason.
    """
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            if hasattr(stream, "close"):
                await stream.close(error)
            elif hasattr(stream, "aclose"):
                await stream.aclose()
    except Exception:
        logger.warning("Closing the stream of a failed run failed.", exc_info=True)


def text_of(messages: Iterable[Any]) -> str:
    """Return the text of messages, contents joined with nothing.

    Upstream's ``.text`` puts blanks between them, and would not equal the stream.

    Args:
        messages: Messages of the framework.
    """
    return "".join(_join(message.contents) for message in messages)


def _join(contents: Iterable[Any]) -> str:
    if isinstance(contents, list) and len(contents) == 1:
        # As almost all of them.
        (content,) = contents
        return content.text or "" if content.type == "text" else ""
    return "".join(content.text for content in contents if content.type == "text" and content.text)


def _usage_of(response: Any) -> dict[str, Any] | None:
    details = getattr(response, "usage_details", None) if isinstance(response, AgentResponse) else None
    if not details:
        return None
    return {key: value for key, value in details.items() if isinstance(value, (int, float)) or value is None}
