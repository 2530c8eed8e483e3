"""Wraps Django's ASGI application with the server's lifespan.

What is done at start-up and shutdown is told in ``process``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["with_lifespan"]

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def with_lifespan(asgi_app: AsgiApp) -> AsgiApp:
    """Return an ASGI application that starts and stops the app with its server.

    At start-up every target is resolved and, where it is kept, entered; then the
    ``STARTUP`` callbacks of ``INVOCATIONS_HOST`` are called, and what there is by
    then is taken out of the garbage collector's rounds (``GC_FREEZE``). Wrong settings, a
    target that cannot be had, or a callback that fails stop the boot with the
    reason. With ``REQUIRE_TARGETS`` False the first two are logged instead, 503
    at ``/readiness`` and 500 to callers.

    From SIGTERM or SIGINT on, in the main thread, no new run is taken, and those
    that live have ``SHUTDOWN_GRACE_SECONDS`` to end; then they are interrupted. A
    server waits for open streams before it calls the lifespan's shutdown, so the
    grace cannot begin there, unless no signal came. After it the ``SHUTDOWN``
    callbacks are called, the targets left, and the app's connections closed.

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
    # Here, so that an asgi module may import this one before it has set Django up.
    from invocations_app.lifespan.process import Process

    await receive()
    process = Process()
    refusal: str | None = None
    is_cut = True
    try:
        refusal = await process.start()
        if refusal is None:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        is_cut = False
    finally:
        # However it ends: refused, by a shutdown, or by a server that cancels this task and waits for nothing.
        problem = await process.stop(is_cut=is_cut)
    # Last, as the process may end at once.
    if refusal is not None:
        await send({"type": "lifespan.startup.failed", "message": refusal})
    elif problem is not None:
        await send({"type": "lifespan.shutdown.failed", "message": problem})
    else:
        await send({"type": "lifespan.shutdown.complete"})
