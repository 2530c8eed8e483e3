"""Requests to an endpoint as a client makes them, and the rows that they leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.test import AsyncClient

from invocations_app.models import InvocationRecord
from invocations_app.storage import database

INVOKE = "/invocations/invoke"
ECHO = "tests.fakes.build_echo"


def endpoint(**keys: Any) -> dict[str, dict[str, Any]]:
    """Return an ``INVOCATIONS`` with one endpoint, an open echo unless the keys say otherwise."""
    open_to_all = {"AUTHENTICATION_CLASSES": [], "PERMISSION_CLASSES": [], "THROTTLE_CLASSES": []}
    return {"default": {"TARGET": ECHO} | open_to_all | keys}


async def post(
    body: Any,
    path: str = INVOKE,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
    client: AsyncClient | None = None,
) -> Any:
    """Post a body, bytes as they are and anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await (client or AsyncClient()).generic("POST", path, content, content_type, headers=headers)


@dataclass(frozen=True)
class RawResponse:
    """An answer as the server gets it."""

    status: int
    headers: Mapping[str, str]
    content: bytes


async def post_raw(body: bytes, lines: Sequence[tuple[str, str]], path: str = INVOKE) -> RawResponse:
    """Post over a bare ASGI call, where a header may come twice."""
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if inbox:
            return inbox.pop()
        return await _never()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await ASGIHandler()(scope, receive, send)
    start, *parts = sent
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return RawResponse(start["status"], headers, b"".join(part.get("body", b"") for part in parts))


async def _never() -> Any:
    return await asyncio.Event().wait()


async def rows(query: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return what a query finds, asked on the app's own connection."""
    return await database.run(lambda: list(query()))


async def records() -> list[InvocationRecord]:
    """Return all records of invocations, in order."""
    return await rows(lambda: InvocationRecord.objects.order_by("pk"))
