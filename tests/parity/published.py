"""The published host, as a process: ``python -m tests.parity.published PORT GROUP``.

Its telemetry is off, and nothing in this process connects anywhere but to loopback.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

OFF = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
)


def _is_loopback(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def guard() -> None:
    """Refuse every connection that is not to loopback, and every look-up of another host's name.

    The events are those of ``socket.connect``, ``connect_ex`` and ``getaddrinfo`` themselves: no library gets
    round it with a reference that it took before.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else "localhost"
        elif event == "socket.getaddrinfo":
            host = arguments[0] or "localhost"
        else:
            return
        if not _is_loopback(host):
            raise PermissionError(f"no connection but to loopback: {host}")

    sys.addaudithook(refuse)


def main() -> None:
    """Serve the target of a group until the process is ended."""
    for name in OFF:
        os.environ[name] = "true"
    guard()
    from agent_framework_foundry_hosting import InvocationsHostServer, WorkflowTurn

    from tests.parity import target
    from tests.parity.requests import GROUPS

    group = GROUPS[sys.argv[2]]
    factory = getattr(target, group.target)
    port = int(sys.argv[1])
    if group.is_workflow:
        # That host leaves the body of a workflow's request to the site.
        async def parse(request: Any) -> Any:
            body = await request.json()
            value = body.get("input", body.get("message"))
            return WorkflowTurn(input=value, responses=body.get("responses"), stream=body.get("stream", False))

        InvocationsHostServer(workflow=factory, parse_request=parse).run("127.0.0.1", port)
        return
    agent = factory() if group.is_instance else factory
    InvocationsHostServer(agent, unsupported_options=group.unsupported_options).run("127.0.0.1", port)


if __name__ == "__main__":
    main()
