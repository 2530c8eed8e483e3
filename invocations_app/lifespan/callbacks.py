"""Calls what the site wants called at start-up and shutdown."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import close_old_connections
from django.utils.module_loading import import_string

logger = logging.getLogger("invocations_app.lifespan")


class CallbackFailed(Exception):
    """A callback could not be called, or raised an exception, which is chained; the text names it."""


async def call_all(key: str, paths: Iterable[str]) -> None:
    """Call callbacks one after the other, each of them, whatever becomes of the others.

    A sync one is called in a thread and may use the ORM.

    Args:
        key: The setting that names them, for the log.
        paths: Their dotted paths.

    Raises:
        CallbackFailed: The first failure; each has been logged.
    """
    first: CallbackFailed | None = None
    for path in paths:
        name = path
        try:
            callback = import_string(path)
            name = _qualified_name(callback, path)
            await _call(callback)
        except Exception as error:
            logger.exception("The %s callback %s failed.", key, name)
            if first is None:
                first = CallbackFailed(f"the {key} callback {name} failed: {type(error).__name__}: {error}")
                first.__cause__ = error
    if first is not None:
        raise first


def _qualified_name(callback: Any, path: str) -> str:
    """Return where a callback is defined, which may be elsewhere than where it is named."""
    name = getattr(callback, "__qualname__", None)
    return path if name is None else f"{callback.__module__}.{name}"


async def _call(callback: Callable[[], Any]) -> None:
    if iscoroutinefunction(callback) or iscoroutinefunction(getattr(callback, "__call__", None)):  # noqa: B004
        returned = callback()
    else:
        returned = await sync_to_async(_call_in_thread)(callback)
    # A plain function may hand on the coroutine of another one.
    while inspect.isawaitable(returned):
        returned = await returned


def _call_in_thread(callback: Callable[[], Any]) -> Any:
    try:
        return callback()
    finally:
        # The thread lives as long as the process, and nobody would close what was opened for this one call.
        close_old_connections()
