"""The engine: starts runs, and knows whether this process can serve."""

from __future__ import annotations

from django.db import connections

from invocations_app import targets
from invocations_app.runs.run import Reader, Run, RunRequest
from invocations_app.storage import database
from invocations_app.storage.database import UNREACHABLE

__all__ = ["UNREACHABLE", "Reader", "Run", "RunRequest", "is_ready", "start"]


def start(request: RunRequest) -> Run:
    """Start the run of a parsed request, in a task of its own.

    Args:
        request: What starts it.
    """
    return Run(request)


async def is_ready() -> list[str]:
    """Return what keeps this process from serving: ``database``, ``target:<alias>``; empty for nothing."""
    failing = []
    try:
        await database.run(_ping)
    except UNREACHABLE:
        failing.append("database")
    return failing + [f"target:{alias}" for alias in await targets.failing()]


def _ping() -> None:
    with connections[database.alias()].cursor() as cursor:
        cursor.execute("SELECT 1")
