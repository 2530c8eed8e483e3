"""A running site, asked over HTTP with httpx, which ``pip install django-invocations[client]`` brings."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from invocations_app.management.invoking.transport import Answer, ConnectionLost, HeaderLines, Unreachable

_CONNECT_SECONDS = 10


class OverHttp:
    """A running site. See `transport.Transport`.

    Redirects are not followed: they would take the headers along.

    Args:
        url: Address of the site's root.

    Raises:
        Unreachable: If httpx is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import httpx
        except ImportError:
            raise Unreachable("--url needs httpx: pip install 'django-invocations[client]'.") from None
        self._httpx = httpx
        self._root = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Make the client; nothing is sent yet."""
        # How long an answer may take is the endpoint's affair (RUN_TIMEOUT_SECONDS), not the reader's.
        self._client = self._httpx.AsyncClient(timeout=self._httpx.Timeout(None, connect=_CONNECT_SECONDS))

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: HeaderLines = (), body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Send a request, and give its answer as it comes.

        Args:
            method: HTTP method.
            path: Path below the site's root, with its leading slash.
            headers: Name and value of each header line.
            body: The body.

        Raises:
            Unreachable: If the server cannot be reached, or the address is none.
            ConnectionLost: If the connection broke after it was made.
        """
        if self._client is None:
            raise Unreachable("The client was not started.")
        httpx = self._httpx
        try:
            sending = self._client.stream(method, self._root + path, headers=list(headers), content=body)
            async with sending as response:
                yield Answer(response.status_code, dict(response.headers), self._blocks(response))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"{self._root} cannot be reached: {error or type(error).__name__}") from None
        except httpx.TransportError as error:
            raise ConnectionLost(str(error) or type(error).__name__) from None

    async def _blocks(self, response: Any) -> AsyncIterator[bytes]:
        try:
            async for block in response.aiter_bytes():
                yield block
        except self._httpx.TransportError as error:
            raise ConnectionLost(str(error) or type(error).__name__) from None
