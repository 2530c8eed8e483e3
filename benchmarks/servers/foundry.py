"""The published Foundry host: sessions in the framework's in-memory store, no telemetry, nothing but loopback.

Needs ``agent-framework-foundry-hosting``, so the Python of an environment of its own. Served by the server that
serves the others, not by the host's own choice.
"""

from __future__ import annotations

import os
from typing import Any

from tests.parity.published import OFF, guard

for _name in OFF:
    os.environ[_name] = "true"
guard()

# Only once the guard stands.
from agent_framework import SessionStore  # noqa: E402
from agent_framework_foundry_hosting import AgentSessionStoreProvider, InvocationsHostServer  # noqa: E402

from benchmarks.agent import build_agent  # noqa: E402


class _InMemory(AgentSessionStoreProvider):  # type: ignore[misc]  # it is in an environment of its own
    def __init__(self) -> None:
        super().__init__()
        self._store = SessionStore()

    def get_store(self, *, config: Any, platform_context: Any) -> SessionStore:
        return self._store


app = InvocationsHostServer(build_agent(), agent_session_store_provider=_InMemory())
