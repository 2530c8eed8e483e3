"""A real HTTP server on a thread that takes pushes, and answers as the test says."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Received:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def result(self) -> Any:
        return json.loads(self.body)


Answer = Callable[["Receiver", socket.socket], None]


def plain(answer: bytes) -> Answer:
    """Answer these bytes and close."""

    def send(receiver: Receiver, connection: socket.socket) -> None:
        connection.sendall(answer)

    return send


def hang(answer: bytes = b"") -> Answer:
    """Answer these bytes, and then nothing until the test is over."""

    def wait(receiver: Receiver, connection: socket.socket) -> None:
        connection.sendall(answer)
        receiver.over.wait(10)

    return wait


def endless(head: bytes, piece: bytes) -> Answer:
    """Answer a piece again and again, until the other side goes."""

    def send(receiver: Receiver, connection: socket.socket) -> None:
        connection.sendall(head)
        with contextlib.suppress(OSError):
            while not receiver.over.is_set():
                connection.sendall(piece)
                receiver.sent += len(piece)

    return send


class Receiver:
    """The server.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        received: The requests, in order.
        connections: Number of connections that were made.
        server_names: The names asked for in TLS.
        sent: Bytes that `endless` sent.
    """

    def __init__(self, answer: Answer | None = None, context: ssl.SSLContext | None = None) -> None:
        self.answer = answer or plain(OK)
        self.received: list[Received] = []
        self.connections = 0
        self.server_names: list[str | None] = []
        self.sent = 0
        self.over = threading.Event()
        if context is not None:
            context.sni_callback = lambda sock, name, ctx: self.server_names.append(name)
        receiver = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                receiver.connections += 1
                with contextlib.suppress(OSError):
                    connection = self.request
                    if context is not None:
                        connection = context.wrap_socket(connection, server_side=True)
                    receiver._take(connection)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def _take(self, connection: Any) -> None:
        with contextlib.closing(connection), connection.makefile("rb") as file:
            line = file.readline().decode().rstrip("\r\n")
            headers: dict[str, str] = {}
            while header := file.readline().decode().rstrip("\r\n"):
                name, _, value = header.partition(": ")
                assert name.lower() not in headers, f"{name} came twice"
                headers[name.lower()] = value
            body = file.read(int(headers["content-length"]))
            self.received.append(Received(line, headers, body))
            self.answer(self, connection)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def receiving(answer: Answer | None = None, context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(answer, context)
    try:
        yield receiver
    finally:
        receiver.close()


def verify(received: Received, secret: str) -> None:
    """Verify a push as the documentation tells a receiver to, without the app's code."""
    timestamp = received.headers["x-invocations-timestamp"]
    assert abs(int(timestamp) - time.time()) < 5
    mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    mac.update(timestamp.encode())
    mac.update(b".")
    mac.update(received.body)
    assert received.headers["x-invocations-signature"] == "v1=" + mac.hexdigest()
