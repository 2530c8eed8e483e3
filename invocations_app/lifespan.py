"""Wraps Django's ASGI application with the server's lifespan: targets are there before a request is.

What a target is, and how it is entered and left, is left to ``targets``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from invocations_app import conf, targets

logger = logging.getLogger(__name__)

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def with_lifespan(asgi_app: AsgiApp) -> AsgiApp:
    """Return an ASGI application that starts and stops the app with its server.

    At start-up every target is resolved and, where it is kept, entered. Wrong
    settings, or a target that cannot be had, stop the boot with the reason
    unless ``INVOCATIONS_HOST["REQUIRE_TARGETS"]`` is False; then they are
    logged, 503 at ``/readiness`` and 500 to callers. At shutdown the targets
    are left.

    Args:
        asgi_app: Django's application, which gets everything else untouched.
            It gets no lifespan events: Django refuses them.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await asgi_app(scope, receive, send)

    return application


async def _live(receive: Receive, send: Send) -> None:
    """Start, wait for the shutdown, stop: in the one task that the server gives to it."""
    await receive()
    try:
        refusal = await _start()
        if refusal is None:
            await send({"type": "lifespan.startup.complete"})
            await receive()
    finally:
        # However it ends: refused, by a shutdown, or by a server that cancels this task.
        await targets.stop_all()
    if refusal is None:
        await send({"type": "lifespan.shutdown.complete"})
    else:
        # Last, as the process may end at once.
        await send({"type": "lifespan.startup.failed", "message": refusal})


async def _start() -> str | None:
    """Resolve the targets; return why the boot is refused, or None."""
    try:
        reasons = await _reasons()
        is_refused = bool(reasons) and conf.get_host().require_targets
    except Exception as error:
        # A server takes an exception for an application without lifespan, and would serve.
        logger.exception("The start failed.")
        return f"the start failed: {type(error).__name__}: {error}"
    return "; ".join(reasons) if is_refused else None


async def _reasons() -> list[str]:
    """Return the reasons not to serve, each logged."""
    reasons = [f"{problem.id}: {problem.message} {problem.hint}" for problem in conf.get_problems()]
    for reason in reasons:
        logger.error("The settings are wrong: %s", reason)
    failures = await targets.start_all()
    broken = conf.get_broken_aliases()
    reasons.extend(
        f"the target of endpoint {alias!r} is not available: {type(error).__name__}: {error}"
        for alias, error in failures.items()
        if alias not in broken
    )
    return reasons
