"""The request context of Foundry's agent server, for storage and tools that were written for its host.

The package ``azure.ai.agentserver.core`` is no dependency: where it cannot be
imported, nothing is bound.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

from invocations_app.isolation import RequestKeys

logger = logging.getLogger("invocations_app.runs")

_PACKAGE = "azure.ai.agentserver.core"


@functools.cache
def _core() -> Any:
    """Return the package, imported once a process; None where there is none."""
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError:
        return None
    except Exception:
        logger.warning("The package %s is there but cannot be imported; its context is not bound.", _PACKAGE)
        return None


def bind(keys: RequestKeys, session_id: str | None) -> None:
    """Bind the request context of a run, in the context that is the run's own: nothing is to be reset.

    Args:
        keys: The trusted headers' values; empty where they are not trusted.
        session_id: The session id in force; None or empty for none.
    """
    core = _core()
    if core is not None:
        context = core.FoundryAgentRequestContext(
            call_id=keys.call_id, user_id=keys.user_id, session_id=session_id or None
        )
        core.set_request_context(context)


# With the app, and not in the midst of the first run: the package takes its time.
_core()
