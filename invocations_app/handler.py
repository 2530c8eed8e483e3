"""An ASGI handler for the endpoints' URLs alone, without a thread for each request.

Django makes a thread, and so a database connection, for every request whose
handler touches sync code, and its default middleware does. This one has a
middleware list of its own, async throughout, and leaves threads to what asks
for them. Every other URL belongs to Django's own handler, which is right for
these URLs too.

Deliberate differences from Django's: the signals ``request_started`` and
``request_finished`` are not sent, their receivers are sync; a client's leaving
is watched for after 50 ms only, when most answers are on their way.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured, RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.handlers.exception import convert_exception_to_response
from django.urls import set_script_prefix, set_urlconf
from django.utils.log import log_response
from django.utils.module_loading import import_string

from invocations_app import conf

ASGIApplication: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

#: Middleware that is right for these URLs and costs no thread.
DEFAULT_MIDDLEWARE = ("invocations_app.middleware.IsolationKeysMiddleware",)

_WATCH_SECONDS = 0.05


class InvocationsHandler(ASGIHandler):
    """Serves the endpoints' URLs.

    Args:
        middleware: Dotted paths of the middleware, outermost first; async-capable.

    Raises:
        ImproperlyConfigured: If a middleware is sync only.
    """

    def __init__(self, middleware: Sequence[str] = DEFAULT_MIDDLEWARE) -> None:
        self._paths = tuple(middleware)
        super().__init__()

    def load_middleware(self, is_async: bool = True) -> None:
        """Build the chain from this handler's own list.

        Args:
            is_async: Always true here.
        """
        handler: Any = self  # Django's own parts, which its types do not show
        handler._view_middleware = []
        handler._template_response_middleware = []
        handler._exception_middleware = []
        chain: Any = convert_exception_to_response(handler._get_response_async)
        for path in reversed(self._paths):
            kind = import_string(path)
            if not getattr(kind, "async_capable", False):
                raise ImproperlyConfigured(f"The middleware {path!r} is sync only: it would cost a thread a request.")
            layer = kind(chain)
            if hasattr(layer, "process_view"):
                handler._view_middleware.insert(0, self.adapt_method_mode(True, layer.process_view))
            if hasattr(layer, "process_exception"):
                handler._exception_middleware.append(self.adapt_method_mode(False, layer.process_exception))
            chain = convert_exception_to_response(layer)
        assert iscoroutinefunction(chain)  # noqa: S101 - an async chain all the way
        handler._middleware_chain = chain

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request.

        Args:
            scope: The ASGI scope.
            receive: Its receive callable.
            send: Its send callable.
        """
        if scope["type"] != "http":
            raise ValueError(f"Only HTTP is served here, not {scope['type']}.")
        try:
            body = await _read_body(receive)
        except RequestAborted:
            return
        watch = _Watch(receive)
        try:
            await self._respond(scope, body, send)
        except asyncio.CancelledError:
            if not watch.has_left:
                raise
        finally:
            watch.end()

    async def _respond(self, scope: Any, body: io.BytesIO, send: Any) -> None:
        set_script_prefix(get_script_prefix(scope))
        request, refused = self.create_request(scope, body)
        response: Any = refused
        if request is not None:
            set_urlconf(None)
            handler: Any = self
            response = await handler._middleware_chain(request)
            if response.status_code >= 400:
                log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        try:
            await self.send_response(response, send)
        finally:
            for close in [*response._resource_closers, body.close]:
                close()


class _Watch:
    """Cancels the request's task when its client leaves."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._request = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._start)
        self.has_left = False

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._request is not None:
            self.has_left = True
            self._request.cancel()

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


async def _read_body(receive: Any) -> io.BytesIO:
    body = io.BytesIO()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestAborted
        body.write(message.get("body", b""))
        if not message.get("more_body", False):
            body.seek(0)
            return body


def by_path(django: ASGIApplication, invocations: ASGIApplication | None = None) -> ASGIApplication:
    """Return an application that serves the endpoints' URLs by a handler of their own.

    Args:
        django: The site's application, for every other URL, and for lifespan and websockets.
        invocations: The handler of the endpoints' URLs; an `InvocationsHandler` when omitted.
    """
    own = InvocationsHandler() if invocations is None else invocations

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await (own if scope["type"] == "http" and _is_ours(scope) else django)(scope, receive, send)

    return application


def _is_ours(scope: Any) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", "")) + "/"
    return any(path.startswith(f"/{endpoint.path}/") for endpoint in conf.get_endpoints().values())
