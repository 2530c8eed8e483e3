"""One HTTP/1.1 POST whose answer is wanted for its status only.

Over a socket that is connected already. Nothing is followed, kept open or
decoded; what is read is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping

from invocations_app.delivery.errors import MalformedResponse, ResponseTooLarge

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: .*)?", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r\n", re.DOTALL)
_MAX_HEAD_BYTES = 65536
_WITHOUT_BODY = frozenset({204, 304})


def encode_request(target: str, host: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a POST request as bytes.

    Args:
        target: Path and query.
        host: Value of ``Host``.
        headers: Further headers; ASCII without line breaks.
        body: The body.
    """
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


async def exchange(
    connection: socket.socket, request: bytes, *, context: ssl.SSLContext | None, server_name: str, max_bytes: int
) -> int:
    """Send a request and read its answer; return the status.

    The body is read to its end for a 2xx only.

    Args:
        connection: A connected socket; closed afterwards.
        request: The whole request.
        context: What certificates are verified with; None for plain HTTP.
        server_name: Name that the certificate has to have.
        max_bytes: Longest answer, head and body.

    Raises:
        ResponseTooLarge: If the answer is longer.
        MalformedResponse: If it is no HTTP, or ends too early.
        OSError: If the connection breaks, or the certificate is not right (``ssl.SSLError``).
    """
    limit = min(max_bytes, _MAX_HEAD_BYTES)
    async with _stream(connection, context, server_name, limit) as (reader, writer):
        writer.write(request)
        await writer.drain()
        try:
            return await _Answer(reader, max_bytes).read()
        except asyncio.IncompleteReadError:
            raise MalformedResponse from None
        except asyncio.LimitOverrunError:
            raise ResponseTooLarge from None


@contextlib.asynccontextmanager
async def _stream(
    connection: socket.socket, context: ssl.SSLContext | None, server_name: str, limit: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    name = server_name if context is not None else None
    try:
        reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=name, limit=limit)
    except BaseException:
        connection.close()
        raise
    try:
        yield reader, writer
    finally:
        # Not a graceful end: a peer that says nothing would be waited for.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class _Answer:
    """Reads one answer, and counts."""

    def __init__(self, reader: asyncio.StreamReader, max_bytes: int) -> None:
        self._reader = reader
        self._room = max_bytes

    async def read(self) -> int:
        status, headers = await self._head()
        while status < 200:
            # Interim answers; their end is the final one.
            status, headers = await self._head()
        if status < 300 and status not in _WITHOUT_BODY:
            await self._body(headers)
        return status

    def _take(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise ResponseTooLarge

    async def _head(self) -> tuple[int, dict[bytes, bytes]]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._take(len(head))
        first, *lines = head[:-4].split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise MalformedResponse
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        return int(match[1]), headers

    async def _body(self, headers: Mapping[bytes, bytes]) -> None:
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            await self._chunked()
        elif b"content-length" in headers:
            length = headers[b"content-length"]
            if _NUMBER.fullmatch(length) is None:
                raise MalformedResponse
            await self._skip(int(length))
        else:
            while piece := await self._reader.read(_MAX_HEAD_BYTES):
                self._take(len(piece))

    async def _chunked(self) -> None:
        while True:
            line = await self._reader.readuntil(b"\r\n")
            self._take(len(line))
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise MalformedResponse
            size = int(match[1], 16)
            if size == 0:
                return
            await self._skip(size + 2)

    async def _skip(self, count: int) -> None:
        self._take(count)
        while count:
            piece = await self._reader.read(min(count, _MAX_HEAD_BYTES))
            if not piece:
                raise MalformedResponse
            count -= len(piece)
