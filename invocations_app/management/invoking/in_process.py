"""The site in the command's own process: its URLs, middleware and lifespan, as a server would have them.

``httpx.ASGITransport`` collects the whole answer before it gives any, so this one is written here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from rest_framework.test import force_authenticate

from invocations_app.lifespan import with_lifespan
from invocations_app.management.invoking.transport import Answer, ConnectionLost, HeaderLines, Unreachable

_LEAVE_SECONDS = 10


class _UserHandler(ASGIHandler):
    """Django's handler for requests that all come from one user, by whatever authentication the site has.

    Args:
        user: The user; None for nobody.
    """

    def __init__(self, user: Any) -> None:
        super().__init__()
        self._user = user

    def create_request(self, scope: Any, body_file: Any) -> Any:
        """Make a request that knows its user already, for the views and for Django's own middleware.

        Args:
            scope: The ASGI scope.
            body_file: The body.
        """
        request, refused = super().create_request(scope, body_file)
        if request is not None and self._user is not None:
            force_authenticate(request, self._user)
            known: Any = request
            # Where Django's authentication middleware keeps a user it has looked up.
            known._cached_user = known._acached_user = self._user
        return request, refused


class InProcess:
    """The site in this process. See `transport.Transport`.

    Args:
        user: Who is calling; None for nobody.
    """

    def __init__(self, user: Any = None) -> None:
        self._app = with_lifespan(_UserHandler(user))
        self._to_app: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._living: asyncio.Task[None] | None = None
        self._is_started = False

    async def start(self) -> None:
        """Begin the lifespan: the targets are built, the start-up callbacks called.

        Raises:
            Unreachable: If the site refuses to start.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self._living = asyncio.create_task(_await(self._app(scope, self._to_app.get, self._from_app.put)))
        await self._to_app.put({"type": "lifespan.startup"})
        said = await self._from_app.get()
        if said["type"] != "lifespan.startup.complete":
            raise Unreachable(f"The site does not start: {said.get('message', '')}")
        self._is_started = True

    async def stop(self) -> None:
        """End the lifespan: runs that live have their grace, the targets are left.

        Raises:
            Unreachable: If a callback of the shutdown fails.
        """
        if self._living is None:
            return
        if not self._is_started:
            self._living.cancel()
            await asyncio.wait([self._living])
            return
        await self._to_app.put({"type": "lifespan.shutdown"})
        said = await self._from_app.get()
        await self._living
        if said["type"] != "lifespan.shutdown.complete":
            raise Unreachable(f"The site does not stop as it should: {said.get('message', '')}")

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: HeaderLines = (), body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Call the site, and give its answer as it comes.

        Args:
            method: HTTP method.
            path: Path, with its leading slash.
            headers: Name and value of each header line.
            body: The body.

        Raises:
            ConnectionLost: If the site ends without an answer.
        """
        call = _Call(self._app, _scope(method, path, headers, len(body)), body)
        try:
            start = await call.next()
            if start is None:
                raise ConnectionLost("the site gave no answer")
            lines = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
            yield Answer(start["status"], lines, call.blocks())
        finally:
            await call.leave()


class _Call:
    """One call of an ASGI application, in a task of its own; what it sends waits until it is taken."""

    def __init__(self, app: Any, scope: Any, body: bytes) -> None:
        self._inbox = [{"type": "http.request", "body": body, "more_body": False}]
        self._sent: asyncio.Queue[Any] = asyncio.Queue(1)
        self._has_left = asyncio.Event()
        self._task = asyncio.create_task(_await(app(scope, self._receive, self._sent.put)))

    async def _receive(self) -> Any:
        if self._inbox:
            return self._inbox.pop()
        await self._has_left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Any:
        """Return the next message; None where the application has ended."""
        taking = asyncio.create_task(self._sent.get())
        try:
            await asyncio.wait([taking, self._task], return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                return taking.result()
        finally:
            taking.cancel()
        return None if self._sent.empty() else self._sent.get_nowait()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks of the body.

        Raises:
            ConnectionLost: If the application ends before its answer does.
        """
        while message := await self.next():
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return
        raise ConnectionLost("the site ended its answer too early")

    async def leave(self) -> None:
        """Be gone, as a client that closes its connection; the application ends in its own time."""
        self._has_left.set()
        while not self._sent.empty():
            self._sent.get_nowait()
        await asyncio.wait([self._task], timeout=_LEAVE_SECONDS)
        self._task.cancel()
        # What it raised was logged by Django, and answered where there was somebody to answer.
        await asyncio.gather(self._task, return_exceptions=True)


async def _await(call: Awaitable[None]) -> None:
    await call


def _scope(method: str, path: str, headers: HeaderLines, length: int) -> dict[str, Any]:
    lines = [("host", _host()), ("content-length", str(length)), *headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        # A site that sends everybody to HTTPS has nothing to gain from that here.
        "scheme": "https",
        "query_string": b"",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in lines],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 443),
    }


def _host() -> str:
    """Return a host that ``ALLOWED_HOSTS`` allows."""
    # Without any, Django allows localhost where DEBUG is on.
    allowed = settings.ALLOWED_HOSTS or ["localhost"]
    return "localhost" if "*" in allowed else allowed[0].lstrip(".")
