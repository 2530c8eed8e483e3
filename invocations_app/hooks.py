"""Loads an endpoint's hooks and calls them, with what each may see and must return.

A hook that fails, or returns something else, fails the invocation with an error
that names it. When a hook is called is left to the run.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from agent_framework import AgentResponse, AgentResponseUpdate, Content, Message, WorkflowEvent, WorkflowRunResult
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.utils.module_loading import import_string

from invocations_app.conf import EndpointSettings
from invocations_app.dialects.parsing import FieldError, check_session_id
from invocations_app.dialects.strict_json import has_surrogates
from invocations_app.envelope import Invocation
from invocations_app.exceptions import InvocationRejected, TargetFailed

T = TypeVar("T")

_FIXED_FIELDS = ("id", "endpoint", "dialect", "background")
_SESSION_MODES = ("auto", "required", "disabled")
_MAX_DESTINATION_CHARACTERS = 64
_COPIED = (AgentResponse, AgentResponseUpdate, Message, Content, WorkflowEvent, WorkflowRunResult)


class HookError(Exception):
    """A hook raised an exception, which is chained; the text names the hook."""


async def apply_run_hook(
    endpoint: EndpointSettings, invocation: Invocation, *, target: object, request: object
) -> Invocation:
    """Let the endpoint's run hook change or refuse an invocation.

    A sync hook is called in a thread and may use the ORM.

    Args:
        endpoint: The endpoint that was called.
        invocation: The invocation as it was parsed.
        target: The resolved agent or workflow.
        request: The DRF request.

    Returns:
        The invocation to carry out; the same one where there is no hook.

    Raises:
        InvocationRejected: If the hook refuses.
        TargetFailed: If the hook fails, returns no invocation, or changes what
            it may not; the cause names the hook.
    """
    path = endpoint.run_hook
    if path is None:
        return invocation
    # Asked before the call: a hook may change the list itself.
    asks_agent = _is_messages(invocation.input)
    try:
        returned = await _call_in_thread(_load(path), invocation, target=target, request=request)
    except InvocationRejected as rejected:
        if isinstance(rejected.status, int) and 400 <= rejected.status <= 599:
            raise
        raise TargetFailed from ValueError(f"run hook {path!r} refused with the status {rejected.status!r}")
    except Exception as error:
        raise TargetFailed from _named("run hook", path, error)
    problem = _problem_of(invocation, returned, asks_agent=asks_agent)
    if problem is not None:
        raise TargetFailed from TypeError(f"run hook {path!r} {problem}")
    return cast(Invocation, returned)


async def apply_response_hook(endpoint: EndpointSettings, result: T, *, invocation: Invocation) -> T:
    """Let the endpoint's response hook change a result before it is answered.

    The hook gets a copy: what it changes is answered and never reaches the
    history. A sync hook is called in a thread and may use the ORM.

    Args:
        endpoint: The endpoint that was called.
        result: An ``AgentResponse``, or a workflow's ``WorkflowRunResult``.
        invocation: The invocation that was carried out.

    Returns:
        What the hook returned; the same object where there is no hook.

    Raises:
        TargetFailed: If the hook fails or returns another type; the cause names it.
    """
    path = endpoint.response_hook
    if path is None:
        return result
    try:
        returned = await _call_in_thread(_load(path), detached(result), invocation=invocation)
    except Exception as error:
        raise TargetFailed from _named("response hook", path, error)
    return _of_type("response hook", path, returned, result)


async def apply_stream_transform_hook(endpoint: EndpointSettings, update: T, *, invocation: Invocation) -> T | None:
    """Let the endpoint's stream transform hook change or drop one update.

    The hook gets a copy, as a response hook does. It is called for every
    update, so a sync one is called in the event loop itself: it has to be
    cheap, and cannot use the ORM.

    Args:
        endpoint: The endpoint that was called.
        update: An ``AgentResponseUpdate``, or a ``WorkflowEvent``.
        invocation: The invocation that is being carried out.

    Returns:
        What the hook returned, None to drop the update; the same object where
        there is no hook.

    Raises:
        TargetFailed: If the hook fails or returns another type; the cause names it.
    """
    path = endpoint.stream_transform_hook
    if path is None:
        return update
    try:
        returned = _load(path)(detached(update), invocation=invocation)
        if inspect.isawaitable(returned):
            returned = await returned
    except Exception as error:
        raise TargetFailed from _named("stream transform hook", path, error)
    return None if returned is None else _of_type("stream transform hook", path, returned, update)


@functools.cache
def _load(path: str) -> Callable[..., Any]:
    """Import a hook, once a process; a path that cannot be imported is tried again."""
    hook: Callable[..., Any] = import_string(path)
    return hook


async def _call_in_thread(hook: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a hook, in a thread unless it is async."""
    if not (iscoroutinefunction(hook) or iscoroutinefunction(getattr(hook, "__call__", None))):  # noqa: B004
        hook = sync_to_async(hook, thread_sensitive=True)
    returned = hook(*args, **kwargs)
    # A plain function may hand on the coroutine of another one.
    while inspect.isawaitable(returned):
        returned = await returned
    return returned


def _named(kind: str, path: str, error: Exception) -> HookError:
    named = HookError(f"{kind} {path!r} raised {type(error).__name__}: {error}")
    named.__cause__ = error
    return named


def _of_type(kind: str, path: str, returned: Any, given: T) -> T:
    if isinstance(returned, type(given)):
        return returned
    raise TargetFailed from TypeError(f"{kind} {path!r} returned {type(returned).__name__}, not {type(given).__name__}")


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Message) for item in value)


def _is_storable(session_id: str) -> bool:
    try:
        check_session_id(session_id)
    except FieldError:
        return False
    return not has_surrogates(session_id)


def _is_delivery(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("originating", "none")
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(name, str) and 0 < len(name) <= _MAX_DESTINATION_CHARACTERS for name in value)
        and all(name.isprintable() for name in value)
        and len(set(value)) == len(value)
    )


def _is_json(value: Mapping[str, Any]) -> bool:
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _problem_of(given: Invocation, returned: Any, *, asks_agent: bool) -> str | None:
    """Say what is wrong with what a run hook returned, or None."""
    if not isinstance(returned, Invocation):
        return f"returned {type(returned).__name__}, not Invocation"
    for name in _FIXED_FIELDS:
        if getattr(returned, name) != getattr(given, name):
            return f"changed {name!r}, which a run hook may not"
    if asks_agent and not _is_messages(returned.input):
        return "set 'input' to something else than a non-empty list of Message"
    session_id = returned.session_id
    if session_id is not None and (not isinstance(session_id, str) or len(session_id) > 256):
        return "set 'session_id' to something else than None or a string of at most 256 characters"
    if session_id and not _is_storable(session_id):
        return "set 'session_id' to a string with control characters or lone surrogates"
    if returned.session_mode not in _SESSION_MODES:
        return f"set 'session_mode' to {returned.session_mode!r}, not one of {', '.join(_SESSION_MODES)}"
    if not _is_delivery(returned.delivery):
        return (
            f"set 'delivery' to {type(returned.delivery).__name__}, not 'originating', 'none' or a tuple of "
            "names of push destinations, each once"
        )
    if not isinstance(returned.stream, bool):
        return f"set 'stream' to {type(returned.stream).__name__}, not bool"
    for name in ("options", "metadata"):
        if not isinstance(getattr(returned, name), Mapping):
            return f"set {name!r} to {type(getattr(returned, name)).__name__}, not a mapping"
    if not _is_json(returned.metadata):
        return "set 'metadata' to something that JSON does not have"
    return None


def detached(value: T) -> T:
    """Return a copy of a result or update that shares nothing a hook may change.

    Messages, contents, events of a workflow, lists and dictionaries are copied;
    a provider's own objects (``raw_representation``) and other values are shared,
    as they may not survive a deep copy.

    Args:
        value: An ``AgentResponse``, ``AgentResponseUpdate``, ``WorkflowRunResult``,
            ``WorkflowEvent``, or a part of one.
    """
    given: Any = value
    if isinstance(given, _COPIED):
        copied = copy.copy(given)
        for name, item in vars(given).items():
            if name != "raw_representation" and item is not None and not isinstance(item, (str, int, float)):
                setattr(copied, name, detached(item))
        if isinstance(copied, WorkflowRunResult):
            # It is a list of its events.
            copied[:] = [detached(event) for event in copied]
        return cast("T", copied)
    if type(given) is list:
        return cast("T", [detached(item) for item in given])
    if type(given) is dict:
        return cast("T", {key: detached(item) for key, item in given.items()})
    return value
