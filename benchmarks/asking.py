"""One connection with a stopwatch: sends a turn, takes the answer apart and says when which part came."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httptools

from benchmarks.fleet import Server
from benchmarks.prepare import TOKEN
from benchmarks.wrk import WrongAnswers

_TIMEOUT_SECONDS = 60


@dataclass(slots=True)
class Answer:
    """An answer, as httptools reads it; times in seconds since the request was sent.

    Attributes:
        status: HTTP status.
        headers: By lower-case name.
        body: The whole body.
        headers_after: When the headers had come.
        first_byte_after: When the first byte of the body had come.
        total: When the last one had come.
    """

    sent_at: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    headers_after: float = 0.0
    first_byte_after: float = 0.0
    total: float = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        """Note the time."""
        self.headers_after = time.perf_counter() - self.sent_at

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        if not self.body:
            self.first_byte_after = time.perf_counter() - self.sent_at
        self.body += part

    def on_message_complete(self) -> None:
        """Note the time."""
        self.total = time.perf_counter() - self.sent_at

    @property
    def text(self) -> str:
        """The answer's text: of the JSON, or of the stream's events up to its end.

        Raises:
            WrongAnswers: If it is no answer, or a stream without its end.
        """
        body = self.body.decode()
        if self.status != 200:
            raise WrongAnswers(f"status {self.status}: {body[:300]}")
        if body.startswith("{"):
            return str(json.loads(body)["response"])
        events = body.split("\n\n")
        if events[-2:] != ["data: [DONE]", ""]:
            raise WrongAnswers(f"a stream ended with {body[-100:]!r}")
        return "".join(event.removeprefix("data: ") for event in events[:-2])


class Connection:
    """A connection to a server, kept open.

    Args:
        server: The server, answering.
    """

    def __init__(self, server: Server) -> None:
        self._kind = server.kind
        self._socket = socket.create_connection(("127.0.0.1", server.port), _TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, message: str, session: str | None = None, *, stream: bool = False) -> Answer:
        """Send a turn and wait for the whole answer.

        Args:
            message: What is said.
            session: Session id, if any.
            stream: Ask for a stream.

        Raises:
            WrongAnswers: If the server closes the connection.
        """
        request = request_bytes(self._kind.path, self._kind.session_in, message, session, stream=stream)
        answer = Answer(time.perf_counter())
        parser = httptools.HttpResponseParser(answer)
        self._socket.sendall(request)
        while not answer.total:
            data = self._socket.recv(262_144)
            if not data:
                raise WrongAnswers(f"{self._kind.name} closed the connection")
            parser.feed_data(data)
        answer.status = parser.get_status_code()
        return answer


def request_bytes(path: str, session_in: str, message: str, session: str | None, *, stream: bool) -> bytes:
    """Return a turn as bytes.

    Args:
        path: URL path.
        session_in: ``body`` or ``query``.
        message: What is said.
        session: Session id, if any.
        stream: Ask for a stream.
    """
    given: dict[str, Any] = {"message": message}
    if stream:
        given["stream"] = True
    if session is not None and session_in == "body":
        given["session_id"] = session
    elif session is not None:
        path = f"{path}?agent_session_id={quote(session)}"
    body = json.dumps(given).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Token {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
