"""The request context that context providers of an earlier host ask for, by the name of a method.

A provider with a callable ``bind_request_context(response_id=…, previous_response_id=…)``
gets the invocation's id and that of the session's previous one. What it returns, a sync
or async context manager, is entered and left in the task of the run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

logger = logging.getLogger("invocations_app.runs")

_METHOD = "bind_request_context"
_NOTHING = nullcontext()


def _binders(agents: Iterable[Any]) -> list[Callable[..., Any]]:
    """Return the methods of all providers that have one, each provider's once."""
    providers = {
        id(provider): provider for agent in agents for provider in getattr(agent, "context_providers", None) or ()
    }
    methods = (getattr(provider, _METHOD, None) for provider in providers.values())
    return [method for method in methods if callable(method)]


def bound(
    agents: Iterable[Any], invocation_id: str, previous_id: Callable[[], Awaitable[str | None]]
) -> AbstractAsyncContextManager[None]:
    """Hold the request contexts of all providers for one run.

    How the run ended stays as it is: a context that swallows exceptions swallows none here.

    Args:
        agents: The agents whose providers are asked.
        invocation_id: The invocation's id.
        previous_id: Finds the id of the session's previous invocation; called only where a provider asks.

    Raises:
        Exception: Whatever binding, entering or leaving raises.
    """
    binders = _binders(agents)
    return _bound(binders, invocation_id, previous_id) if binders else _NOTHING


@asynccontextmanager
async def _bound(
    binders: Iterable[Callable[..., Any]], invocation_id: str, previous_id: Callable[[], Awaitable[str | None]]
) -> AsyncIterator[None]:
    previous = await previous_id()
    held: list[_Held] = []
    try:
        for bind in binders:
            context = _Held(bind(response_id=invocation_id, previous_response_id=previous))
            await context.enter()
            held.append(context)
        yield
    finally:
        await _leave(held)


class _Held:
    """A sync or async context manager."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._is_async = hasattr(type(context), "__aenter__")

    async def enter(self) -> None:
        if self._is_async:
            await self._context.__aenter__()
        else:
            self._context.__enter__()

    async def leave(self) -> None:
        if self._is_async:
            await self._context.__aexit__(*sys.exc_info())
        else:
            self._context.__exit__(*sys.exc_info())


async def _leave(held: list[_Held]) -> None:
    """Leave in reverse order, all of them; what leaving raises fails a run that ended well, and no other."""
    ended_badly = sys.exc_info()[1] is not None
    failed: BaseException | None = None
    while held:
        try:
            await held.pop().leave()
        except Exception as error:
            logger.exception("A request context of a provider was not left cleanly.")
            failed = failed or error
    if failed is not None and not ended_badly:
        raise failed
