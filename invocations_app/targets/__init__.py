"""The endpoints' targets: resolved once for each event loop, or afresh for each run.

A target is used in the loop that built it. What a target may be is told in
``kinds``; how one is kept, entered and left in ``holder``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from django.core.exceptions import ImproperlyConfigured

from invocations_app import conf
from invocations_app.conf import EndpointSettings
from invocations_app.envelope import TargetKind
from invocations_app.exceptions import TargetUnavailable
from invocations_app.targets.holder import TargetHolder
from invocations_app.targets.kinds import (
    NotATarget,
    ResolvedTarget,
    WorkflowInstance,
    is_context_manager,
    is_factory,
    kind_of,
)
from invocations_app.targets.workflows import UnstableWorkflow, agents_of, enter_agents, executors_of

__all__ = [
    "NotATarget",
    "ResolvedTarget",
    "UnstableWorkflow",
    "WorkflowInstance",
    "agents_of",
    "entered",
    "executors_of",
    "failing",
    "is_factory",
    "kind_of",
    "known_kind",
    "resolve",
    "start_all",
    "stop_all",
]

logger = logging.getLogger(__name__)

_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[EndpointSettings, TargetHolder]] = WeakKeyDictionary()
_loops_lock = threading.Lock()
# By dotted path: what a path gives is one kind in every loop.
_kinds: dict[str, TargetKind] = {}


async def resolve(endpoint: EndpointSettings) -> ResolvedTarget:
    """Return an endpoint's target: the kept one, already entered, or a fresh one.

    Args:
        endpoint: The endpoint; other settings of it are another target.

    Raises:
        TargetUnavailable: If the target cannot be imported, built or entered.
            The cause is chained and has been logged; the next call tries again.
    """
    resolved = await _holder(endpoint).resolve()
    _kinds[endpoint.target] = resolved.kind
    return resolved


def known_kind(endpoint: EndpointSettings) -> TargetKind | None:
    """Return what an endpoint's target is; None when it was never resolved in this process.

    Args:
        endpoint: The endpoint.
    """
    return _kinds.get(endpoint.target)


def entered(resolved: ResolvedTarget) -> AbstractAsyncContextManager[Any]:
    """Hold a target for one run, and enter and leave it where the run owns it.

    To be used in the run's own task. How the run ended stays as it is: a
    failure to leave is logged, and an exception of the run is never swallowed.

    Args:
        resolved: What `resolve` returned.

    Returns:
        A context manager that gives the target.

    Raises:
        TargetUnavailable: If the target cannot be entered; logged.
    """
    target = resolved.target
    if not resolved.owned or (resolved.kind == "agent" and not is_context_manager(target)):
        return nullcontext(target)
    return _entered(resolved)


@asynccontextmanager
async def _entered(resolved: ResolvedTarget) -> AsyncIterator[Any]:
    target = resolved.target
    holder = _holder(resolved.endpoint)
    stack = AsyncExitStack()
    try:
        if resolved.kind == "workflow":
            await enter_agents(target, stack)
        else:
            await stack.enter_async_context(target)
    except BaseException as error:
        await stack.aclose()
        if not isinstance(error, Exception):
            raise
        holder.note_failure(error)
        raise TargetUnavailable from error
    holder.failure = None
    try:
        yield target
    finally:
        try:
            await stack.__aexit__(*sys.exc_info())
        except Exception:
            logger.exception("The target of endpoint %r was not left cleanly.", resolved.endpoint.alias)


async def start_all() -> dict[str, BaseException]:
    """Resolve the target of every endpoint, and enter those that are kept.

    One that is built for each run is built, entered and left once, to see that
    it can be.

    Returns:
        Why the others failed, by alias; each has been logged.
    """
    endpoints = conf.get_endpoints()
    errors = await asyncio.gather(*(_try(endpoint) for endpoint in endpoints.values()))
    failures = {alias: error for alias, error in zip(endpoints, errors, strict=True) if error is not None}
    for alias in conf.get_broken_aliases():
        failures[alias] = ImproperlyConfigured("its settings are wrong; 'manage.py check' says what to write")
        logger.error("The settings of endpoint %r are wrong.", alias)
    return failures


async def stop_all() -> None:
    """Leave every target that this event loop keeps; failures are logged."""
    with _loops_lock:
        holders = _loops.pop(asyncio.get_running_loop(), {})
    await asyncio.gather(*(holder.stop() for holder in holders.values()))


async def failing() -> list[str]:
    """Return the aliases of endpoints whose target cannot be had at present, sorted.

    A target that was never asked for is resolved now; one that failed is tried
    again at most once a second.
    """
    endpoints = conf.get_endpoints().values()
    await asyncio.gather(*(_try(endpoint) for endpoint in endpoints if _holder(endpoint).is_due()))
    failed = [endpoint.alias for endpoint in endpoints if _holder(endpoint).failure is not None]
    return sorted([*failed, *conf.get_broken_aliases()])


def _holder(endpoint: EndpointSettings) -> TargetHolder:
    loop = asyncio.get_running_loop()
    holders = _loops.get(loop)
    if holders is None:
        with _loops_lock:
            # A holder's tasks and locks know their loop: the weak key alone would never be dropped.
            for closed in [other for other in _loops if other.is_closed()]:
                del _loops[closed]
            holders = _loops[loop] = {}
    holder = holders.get(endpoint)
    if holder is None:
        holder = holders[endpoint] = TargetHolder(endpoint)
    return holder


async def _try(endpoint: EndpointSettings) -> BaseException | None:
    try:
        async with entered(await resolve(endpoint)):
            return None
    except TargetUnavailable as unavailable:
        return unavailable.__cause__ or unavailable
