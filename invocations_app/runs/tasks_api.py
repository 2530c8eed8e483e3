"""Django's tasks API: ``django.tasks``, or its backport ``django_tasks`` where Django has none."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ImproperlyConfigured

# They run a task where it is enqueued, or never.
_NO_WORKERS = ("backends.immediate", "backends.dummy")


def get() -> Any:
    """Return the module of the tasks API.

    Raises:
        ImproperlyConfigured: If there is none.
    """
    for name in ("django.tasks", "django_tasks"):
        if find_spec(name) is not None:
            return import_module(name)
    raise ImproperlyConfigured("Django has no tasks API before 6.0; its backport is not installed.")


def has_workers(backend: object) -> bool:
    """Return whether a tasks backend has workers in processes of their own.

    Args:
        backend: The backend.
    """
    kinds = {f"{api}.{module}" for api in ("django.tasks", "django_tasks") for module in _NO_WORKERS}
    return all(kind.__module__ not in kinds for kind in type(backend).__mro__)


def task_for(alias: str) -> Any:
    """Return the task that runs an invocation by the primary key of its record.

    Args:
        alias: Alias of the tasks backend.

    Raises:
        Exception: If the backend cannot be had, or cannot take the task.
    """
    # Late: it needs the tasks API and its settings, and itself starts runs, which hand over by this module.
    from invocations_app.runs.background import run_invocation

    return run_invocation.using(backend=alias)


async def enqueue(alias: str, record_pk: int) -> None:
    """Have a worker run an invocation.

    Args:
        alias: Alias of the tasks backend.
        record_pk: Primary key of the invocation's record, all that the backend is given.

    Raises:
        Exception: If the backend does not take it.
    """
    await task_for(alias).aenqueue(record_pk)
