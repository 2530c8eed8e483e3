"""The app in one server process: ready before the first request, drained before the end.

What a target is, and how it is entered and left, is left to ``targets``; what
becomes of the runs at the end, to ``runs.host``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging

from django.db import connections

from invocations_app import conf, targets
from invocations_app.lifespan.callbacks import CallbackFailed, call_all
from invocations_app.lifespan.collector import Collector
from invocations_app.lifespan.imports import Imports
from invocations_app.lifespan.signals import SignalChain
from invocations_app.runs.host import get_host
from invocations_app.storage import database
from invocations_app.targets import telemetry
from invocations_app.views import checking

logger = logging.getLogger("invocations_app.lifespan")

# How long the targets are waited for when they are left.
_LEAVE_SECONDS = 10


class Process:
    """The app in one server process, from its start to its end."""

    def __init__(self) -> None:
        self._host = get_host()
        self._signals = SignalChain(self._begin_to_drain)
        self._draining: asyncio.Task[None] | None = None
        self._was_started = False
        self._collector: Collector | None = None
        self._imports = Imports()

    async def start(self) -> str | None:
        """Get ready to serve; return why the boot is refused, or None."""
        self._host.open()
        try:
            reasons = await _reasons()
            if reasons and conf.get_host().require_targets:
                return "; ".join(reasons)
            self._was_started = True
            await call_all("STARTUP", conf.get_host().startup)
        except CallbackFailed as failure:
            return str(failure)
        except Exception as error:
            # A server takes an exception for an application without lifespan, and would serve.
            logger.exception("The start failed.")
            return f"the start failed: {type(error).__name__}: {error}"
        self._signals.install()
        host = conf.get_host()
        self._collector = Collector(
            freeze=host.gc_freeze,
            young_objects=host.gc_young_objects,
            defer_seconds=host.gc_defer_seconds,
            is_busy=lambda: bool(self._host.live),
        )
        self._collector.start()
        if host.telemetry_rests:
            telemetry.switch.watch()
        if host.quick_imports:
            self._imports.quicken()
        return None

    async def stop(self, *, is_cut: bool) -> str | None:
        """Let the runs end, call the callbacks, leave the targets, close the connections.

        Args:
            is_cut: Whether there is no time for a grace.

        Returns:
            What failed, or None.
        """
        if self._collector is not None:
            self._collector.stop()
        try:
            await self._drain(is_cut=is_cut)
            if self._was_started:
                await call_all("SHUTDOWN", conf.get_host().shutdown)
        except CallbackFailed as failure:
            return str(failure)
        finally:
            self._signals.restore()
            telemetry.switch.release()
            self._imports.release()
            await _leave_targets()
            await asyncio.to_thread(_close_database)
        return None

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            grace_seconds = conf.get_host().shutdown_grace_seconds
            logger.info("Shutting down: %d runs, %s seconds of grace.", len(self._host.live), grace_seconds)
            # Not in the context of what the signal happened to interrupt.
            self._draining = asyncio.get_running_loop().create_task(
                self._host.drain(grace_seconds), context=contextvars.Context()
            )

    async def _drain(self, *, is_cut: bool) -> None:
        if is_cut:
            if self._draining is not None:
                self._draining.cancel()
            await self._host.drain(0)
            return
        self._begin_to_drain()
        draining = self._draining
        if draining is not None:
            await asyncio.wait([draining])
            if not draining.cancelled() and draining.exception() is not None:
                logger.error("Ending the runs failed.", exc_info=draining.exception())


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


def _close_database() -> None:
    """Close the app's connections, and the pool that they may come from."""
    checking.close()
    database.close()
    close_pool = getattr(connections[database.alias()], "close_pool", None)
    if close_pool is not None:
        close_pool()


async def _leave_targets() -> None:
    try:
        async with asyncio.timeout(_LEAVE_SECONDS):
            await targets.stop_all()
    except TimeoutError:
        logger.error("The targets were not left within %d seconds.", _LEAVE_SECONDS)  # noqa: TRY400
