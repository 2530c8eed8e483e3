"""Raw requests over a socket, and what of an answer is compared."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

HEADERS = ("allow", "cache-control", "content-type", "location", "x-agent-invocation-id", "x-agent-session-id")
# The second is what the framework names a call by.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=af-call-)[0-9a-f]{32}")
_SECONDS = 20


@dataclass(frozen=True)
class Answer:
    """What came back; each UUID, which nobody can foretell, as ``<uuid>``."""

    status: int
    headers: dict[str, str]
    body: str

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "headers": self.headers, "body": self.body}


def exchange(port: int, raw: bytes) -> Answer:
    """Send a raw request to a server on loopback and read the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(raw)
        response = HTTPResponse(connection)
        response.begin()
        body = response.read().decode()
    headers = {name: response.getheader(name) for name in HEADERS}
    told = {name: _UUID.sub("<uuid>", value) for name, value in headers.items() if value is not None}
    return Answer(response.status, told, _UUID.sub("<uuid>", body))
