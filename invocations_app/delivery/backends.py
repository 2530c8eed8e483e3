"""The backends of ``PUSH_DESTINATIONS``: made once a process, for as long as the setting says the same.

A backend is any object with ``async push(result, destination)``.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from invocations_app.conf import EndpointSettings, PushDestination


class PushBackend(Protocol):
    """Takes results to somewhere else."""

    def push(self, result: Mapping[str, Any], destination: str) -> Awaitable[None]:
        """Push a result; whatever is raised means that it was not taken.

        Args:
            result: The status body of an invocation that has ended.
            destination: Name under which the backend stands in the settings.
        """


_lock = threading.Lock()
_made: dict[tuple[str, str], tuple[PushDestination, PushBackend]] = {}


def get_backend(endpoint: EndpointSettings, name: str) -> PushBackend:
    """Return the backend of a destination.

    Args:
        endpoint: The endpoint.
        name: A key of its ``PUSH_DESTINATIONS``.

    Raises:
        KeyError: If there is no such destination.
        Exception: Whatever importing or making the backend raises.
    """
    destination = endpoint.push_destinations[name]
    place = (endpoint.alias, name)
    with _lock:
        made = _made.get(place)
        if made is None or made[0] != destination:
            made = _made[place] = (destination, make_backend(destination))
        return made[1]


def make_backend(destination: PushDestination) -> PushBackend:
    """Make the backend of a destination.

    Args:
        destination: Its settings.

    Raises:
        ImportError: If the path cannot be imported.
        ImproperlyConfigured: If what it names cannot be called with the
            options, or makes no backend; the text holds no value of them.
        Exception: Whatever else making it raises.
    """
    factory = import_string(destination.backend)
    if not callable(factory):
        raise ImproperlyConfigured("'BACKEND' must name a class, or a function that returns a backend.")
    options = {name.lower(): value for name, value in destination.options.items()}
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ImproperlyConfigured(f"'OPTIONS' does not fit: {error}.") from None
    except ValueError:
        # It has no signature that could be asked.
        pass
    backend: PushBackend = factory(**options)
    if not callable(getattr(backend, "push", None)):
        raise ImproperlyConfigured("'BACKEND' has no method 'push'.")
    return backend
