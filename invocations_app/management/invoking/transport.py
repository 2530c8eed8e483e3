"""Ways to an endpoint: a request, and its answer as it comes. What is said over them is left to ``turn``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

HeaderLines: TypeAlias = Sequence[tuple[str, str]]


class Unreachable(Exception):
    """Nobody answers there; the text says why."""


class ConnectionLost(Exception):
    """The way to the server broke after a request was sent."""


@dataclass(frozen=True)
class Answer:
    """An answer whose headers have come.

    Attributes:
        status: HTTP status.
        headers: Its headers, names in lower case.
        blocks: The body, in the blocks in which it comes. Raises `ConnectionLost` where it is cut off.
    """

    status: int
    headers: Mapping[str, str]
    blocks: AsyncIterator[bytes]

    async def body(self) -> bytes:
        """Wait for the whole body.

        Raises:
            ConnectionLost: If it is cut off.
        """
        return b"".join([block async for block in self.blocks])


class Transport(Protocol):
    """A way to an endpoint."""

    async def start(self) -> None:
        """Get ready for requests.

        Raises:
            Unreachable: If there is nobody who could answer.
        """

    async def stop(self) -> None:
        """Let go of everything; also where `start` did not end well."""

    def request(
        self, method: str, path: str, headers: HeaderLines = (), body: bytes = b""
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request, and give its answer; leaving the context before its end is a client's leaving.

        Args:
            method: HTTP method.
            path: Path below the site's root, with its leading slash.
            headers: Name and value of each header line.
            body: The body.

        Raises:
            Unreachable: If nobody could be asked.
            ConnectionLost: If the connection broke before the headers came.
        """
