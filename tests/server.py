"""Real servers for tests, and two clients with one face: a raw socket and a raw ASGI call.

- `SiteServer` is uvicorn on a socket, in a thread with a loop of its own. Tests stand outside:
  they are sync, use the ORM as they like, and share `fakes.Gate` with the agents.
- `SocketCall` speaks HTTP by hand: it reads as slowly as it is told, or not at all, and closes abruptly.
- `AsgiCall` is the server's side of ASGI by hand, in the loop of a `SiteServer`: its ``send`` blocks when it is held.
- `server_process` is uvicorn in a process of its own, on the same database.

The send buffers are as small as the kernel allows, so that a reader who does not read is felt at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import django
import pytest
import uvicorn
import uvloop
from django.core.handlers.asgi import ASGIHandler

from invocations_app import targets
from invocations_app.handler import ASGIApplication, by_path
from invocations_app.runs.host import live_runs

T = TypeVar("T")
Message: TypeAlias = MutableMapping[str, Any]

INVOKE = "/invocations/invoke"
WAIT_SECONDS = 15.0
_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}

#: For tests that could go another way with the handler of the endpoints' own.
every_handler = pytest.mark.parametrize("wire", ["uvloop", "raw", "own", "own raw"], indirect=True)
#: For those that could so with asyncio's own loop and its transports too.
every_loop = pytest.mark.parametrize("wire", ["uvloop", "asyncio", "raw", "own", "own raw"], indirect=True)


def wait_until(condition: Callable[[], Any], what: str = "the condition", seconds: float = WAIT_SECONDS) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: If it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds} s"
        time.sleep(0.003)


def listen() -> socket.socket:
    """Return a listening socket on a free port; what it accepts has a small send buffer."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    listening.bind(("127.0.0.1", 0))
    return listening


class SiteServer:
    """The site behind uvicorn, in a thread.

    Args:
        loop: ``uvloop`` or ``asyncio``.
        own: Whether the endpoints' URLs are served by a handler of their own.
    """

    def __init__(self, loop: str, *, own: bool = False) -> None:
        self._listening = listen()
        self.port: int = self._listening.getsockname()[1]
        self.sending: dict[int, float] = {}
        """When each send that still waits was begun."""
        self._new_loop = _LOOPS[loop]
        self._own = self.is_own = own
        self._handler: ASGIApplication | None = None
        self._own_tasks: set[asyncio.Task[Any]] = set()
        self._server = uvicorn.Server(
            uvicorn.Config(self, http="httptools", lifespan="off", log_config=None, access_log=False)
        )
        self._thread = threading.Thread(target=self._serve, name=f"server-{loop}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self._server.started, "the server")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    def _serve(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self._own_tasks = asyncio.all_tasks()
            await self._server.serve(sockets=[self._listening])

        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(main())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer as the site; its middleware is loaded at the first request of a test."""
        if self._handler is None:
            self._handler = by_path(ASGIHandler()) if self._own else ASGIHandler()

        async def timed_send(message: Any) -> None:
            self.sending[id(message)] = time.monotonic()
            try:
                await send(message)
            finally:
                del self.sending[id(message)]

        await self._handler(scope, receive, timed_send)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_SECONDS)

    def wait_blocked(self, seconds: float = 0.07) -> None:
        """Wait until a send has waited for a while."""
        wait_until(lambda: any(time.monotonic() - since > seconds for since in list(self.sending.values())), "a block")

    def wait_unread(self) -> None:
        """Wait until no live run has a reader."""
        wait_until(lambda: not any(run._readers for run in live_runs()), "the readers' leaving")

    def leftovers(self, *, targets_stay: bool) -> list[str]:
        """Return what still runs: runs, tasks of the loop, threads of runs."""
        tasks = [
            task
            for task in self.run(_all_tasks())
            # A kept target's task is no leftover while the target is kept.
            if task not in self._own_tasks and not task.done() and not (targets_stay and _keeps_target(task))
        ]
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("invocations-run")]
        return [*map(repr, live_runs()), *map(repr, tasks), *threads]

    def wait_idle(self, *, targets_stay: bool = True) -> None:
        """Wait until nothing runs any more but the server itself, and what holds the kept targets.

        Raises:
            AssertionError: If something is left; it is cancelled then.
        """
        deadline = time.monotonic() + 2
        left: list[str] = ["not looked"]
        while left and time.monotonic() < deadline:
            left = self.leftovers(targets_stay=targets_stay)
            if left:
                time.sleep(0.003)
        if left:
            self.run(self._cancel_all())
        assert not left, left

    async def _cancel_all(self) -> None:
        current = asyncio.current_task()
        for task in asyncio.all_tasks() - self._own_tasks:
            if task is not current:
                task.cancel()
        await asyncio.sleep(0.05)

    def end_test(self) -> None:
        """Leave the targets, look that nothing else is left, and load the middleware anew for the next test."""
        try:
            self.run(targets.stop_all())
            self.wait_idle(targets_stay=False)
        finally:
            self._handler = None


async def _all_tasks() -> set[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


def _keeps_target(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith("invocations target")


class Call:
    """One POST and its answer, read in pieces.

    Attributes:
        status: The status, once `head` was read.
        headers: The headers as they came, names in lower case.
        complete: Whether the answer ended as its protocol wants; False when it was cut off.
        pieces: The pieces of the body as they came: chunks, or ASGI messages.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.complete = False
        self.pieces: list[bytes] = []
        self._body = b""

    def head(self) -> Call:
        """Wait for status and headers."""
        raise NotImplementedError

    def leave(self) -> None:
        """Go away without a word."""
        raise NotImplementedError

    def hold(self) -> None:
        """Take nothing any more: the site's ``send`` blocks, at once or when the socket's buffers are full."""

    def is_silent(self, seconds: float) -> bool:
        """Say whether nothing comes for that time; nothing is lost when something does."""
        raise NotImplementedError

    def _more(self) -> bytes:
        """Return the next piece of the body, empty at its end."""
        raise NotImplementedError

    def _read(self) -> bool:
        if not self.status:
            self.head()
        piece = self._more()
        if piece:
            self.pieces.append(piece)
            self._body += piece
        return bool(piece)

    def event(self) -> bytes:
        """Return the next event or comment, up to and with its blank line."""
        while b"\n\n" not in self._body:
            assert self._read(), f"the stream ended with {self._body!r}"
        event, _, self._body = self._body.partition(b"\n\n")
        return event + b"\n\n"

    def rest(self) -> bytes:
        """Return all that follows, up to the end."""
        while self._read():
            pass
        body, self._body = self._body, b""
        return body

    def header(self, name: str) -> str | None:
        """Return a header; it must not be there twice."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, values
        return values[0] if values else None


class SocketCall(Call):
    """A POST over a socket.

    Args:
        port: Port of the server.
        path: Path and query.
        body: The body.
        headers: Further request headers.
        bite: Most bytes taken from the socket at once.
        seconds: Longest time to wait for the next bytes.
    """

    def __init__(
        self,
        port: int,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        bite: int = 65536,
        seconds: float = WAIT_SECONDS,
    ) -> None:
        super().__init__()
        self._bite = bite
        self._seconds = seconds
        self._raw = b""
        self._left: int | None = None
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._socket.settimeout(seconds)
        self._socket.connect(("127.0.0.1", port))
        self._ask(path, body, headers or {})

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        lines = [f"POST {path} HTTP/1.1", "host: testserver", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def again(self, path: str, body: bytes) -> None:
        """Send another POST over the same connection, after the answer was read."""
        assert self.complete
        self.status, self.headers, self.complete = 0, [], False
        self._ask(path, body, {})

    def _receive(self) -> bool:
        try:
            taken = self._socket.recv(self._bite)
        except ConnectionResetError:
            taken = b""
        self._raw += taken
        return bool(taken)

    def is_silent(self, seconds: float) -> bool:
        if self._raw or self._body:
            return False
        self._socket.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(self._seconds)
        return False

    def head(self) -> Call:
        while b"\r\n\r\n" not in self._raw:
            assert self._receive(), "the connection was closed before the headers"
        head, _, self._raw = self._raw.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status_line.split(" ")[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers.append((name.lower(), value.strip()))
        length = self.header("content-length")
        self._left = None if length is None else int(length)
        return self

    def _more(self) -> bytes:
        if self.complete:
            return b""
        if self._left is not None:
            return self._next_of_length(self._left)
        return self._next_chunk() if self.header("transfer-encoding") == "chunked" else self._next_to_the_end()

    def _next_to_the_end(self) -> bytes:
        # HTTP/1.0: the body ends with the connection.
        self.complete = not self._raw and not self._receive()
        piece, self._raw = self._raw, b""
        return piece

    def _next_of_length(self, left: int) -> bytes:
        if left and not self._raw:
            self._receive()
        piece, self._raw = self._raw[:left], self._raw[left:]
        self._left = left - len(piece)
        self.complete = self._left == 0
        return piece

    def _next_chunk(self) -> bytes:
        while b"\r\n" not in self._raw:
            if not self._receive():
                return b""
        size = int(self._raw.partition(b"\r\n")[0], 16)
        start = self._raw.index(b"\r\n") + 2
        while len(self._raw) < start + size + 2:
            if not self._receive():
                return b""
        piece, self._raw = self._raw[start : start + size], self._raw[start + size + 2 :]
        self.complete = size == 0
        return piece

    def is_closed(self) -> bool:
        """Say whether the server has closed the connection; takes what still comes."""
        try:
            return not self._receive()
        except TimeoutError:
            return False

    def leave(self) -> None:
        # A reset, as when a process dies.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Close the connection in the ordinary way."""
        self._socket.close()


class AsgiCall(Call):
    """A POST as an ASGI server would hand it to the site.

    Args:
        server: Whose loop and site are used.
        path: Path.
        body: The body.
        headers: Further request headers.
        held: Whether ``send`` blocks from the first message on.
    """

    def __init__(
        self,
        server: SiteServer,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        held: bool = False,
    ) -> None:
        super().__init__()
        self._server = server
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._peeked: Message | None = None
        self._body_parts = [body]
        self._takes = asyncio.Event()
        if not held:
            self._takes.set()
        self._gone = asyncio.Event()
        self._scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver")]
            + [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        self.ended = asyncio.run_coroutine_threadsafe(self._main(), server.loop)

    async def _main(self) -> None:
        try:
            await self._server(self._scope, self._receive, self._send)
        finally:
            self._messages.put(None)

    async def _receive(self) -> Message:
        if self._body_parts:
            return {"type": "http.request", "body": self._body_parts.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._takes.wait()
        self._messages.put(message)

    def hold(self) -> None:
        self._server.run(_call(self._takes.clear))

    def release(self) -> None:
        """Take again."""
        self._server.run(_call(self._takes.set))

    def leave(self) -> None:
        # What hangs in send goes on hanging: the site must not count on its end.
        self._server.run(_call(self._gone.set))

    def _next(self, seconds: float = WAIT_SECONDS) -> Message | None:
        if self._peeked is not None:
            message, self._peeked = self._peeked, None
            return message
        return self._messages.get(timeout=seconds)

    def is_silent(self, seconds: float) -> bool:
        if self._body or self._peeked:
            return False
        try:
            self._peeked = self._next(seconds)
        except queue.Empty:
            return True
        return False

    def head(self) -> Call:
        message = self._next()
        assert message is not None, "the site ended before the headers"
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        self.headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in message["headers"]]
        return self

    def _more(self) -> bytes:
        while not self.complete:
            message = self._next()
            if message is None:
                return b""
            assert message["type"] == "http.response.body"
            self.complete = not message.get("more_body", False)
            if message.get("body"):
                return bytes(message["body"])
        return b""


async def _call(function: Callable[[], None]) -> None:
    function()


class Wire:
    """A way to the site: calls over the socket of a server, or raw ASGI in its loop.

    Args:
        server: The server.
        is_raw: Whether calls are raw ASGI.
    """

    def __init__(self, server: SiteServer, *, is_raw: bool = False) -> None:
        self.server = server
        self.is_raw = is_raw
        self._calls: list[Call] = []

    def post(self, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Call:
        """Send a POST to the endpoint and return the call, with nothing read of it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = kwargs.pop("path", INVOKE)
        call: Call
        if self.is_raw:
            call = AsgiCall(self.server, path, content, headers, **kwargs)
        else:
            call = SocketCall(self.server.port, path, content, headers, **kwargs)
        self._calls.append(call)
        return call

    def close(self) -> None:
        """Close the connections of all calls."""
        for call in self._calls:
            if isinstance(call, SocketCall):
                call.close()
            elif isinstance(call, AsgiCall):
                call.leave()

    def failures(self) -> list[BaseException]:
        """Return what the site raised into its server, which is never right."""
        ended = [call.ended for call in self._calls if isinstance(call, AsgiCall) and call.ended.done()]
        # Django's handler runs in the server's own task since 6.0: there the cut of a reader who hangs in send shows.
        counted = [call for call in ended if not (django.VERSION >= (6, 0) and call.cancelled())]
        return [error for error in (call.exception() for call in counted) if error is not None]


@contextlib.contextmanager
def server_process(settings: Mapping[str, Any], *, loop: str = "uvloop") -> Iterator[int]:
    """Run uvicorn in a process of its own, on the tests' database.

    Args:
        settings: Settings to override there; JSON values only.
        loop: ``uvloop`` or ``asyncio``.

    Yields:
        Its port.
    """
    with listen() as free:
        port: int = free.getsockname()[1]
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_SETTINGS": json.dumps(settings)}
    command = [sys.executable, "-m", "uvicorn", "tests.asgi:application", "--lifespan", "off"]
    command += ["--port", str(port), "--loop", loop, "--http", "httptools", "--log-level", "warning"]
    with subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, env=environment) as process:
        try:
            wait_until(lambda: process.poll() is not None or _is_open(port), "the server process", 30)
            assert process.poll() is None, "the server process ended"
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
