"""An ASGI handler for the endpoints' URLs alone, without a thread for each request.

Django makes a thread, and so a database connection, for every request whose
handler touches sync code, and its default middleware does. This one has a
middleware list of its own, async throughout, and leaves threads to what asks
for them. Every other URL belongs to Django's own handler, which is right for
these URLs too.

Deliberate differences from Django's: the signals ``request_started`` and
``request_finished`` are not sent, their receivers are sync; a client's leaving
is watched for after 50 ms only, when most answers are on their way; of a body
that is longer than any endpoint takes, no more is kept than tells so.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed, RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.handlers.exception import convert_exception_to_response
from django.urls import Resolver404, ResolverMatch, URLResolver, get_resolver, set_script_prefix, set_urlconf
from django.utils.log import log_response
from django.utils.module_loading import import_string

from invocations_app import conf
from invocations_app.runs import StreamBody
from invocations_app.storage import database
from invocations_app.views.base import InvocationsView

ASGIApplication: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

#: Middleware that is right for these URLs and costs no thread.
DEFAULT_MIDDLEWARE = (
    "invocations_app.middleware.SessionUserMiddleware",
    "invocations_app.middleware.IsolationKeysMiddleware",
)

_WATCH_SECONDS = 0.05
# Where a scope carries what its path was resolved to, and below which prefix.
_MATCH = "invocations_app.match"
_PREFIX = "invocations_app.prefix"


class InvocationsHandler(ASGIHandler):
    """Serves the endpoints' URLs.

    Args:
        middleware: Dotted paths of the middleware, outermost first; async-capable.

    Raises:
        ImproperlyConfigured: If a middleware is sync only.
    """

    def __init__(self, middleware: Sequence[str] = DEFAULT_MIDDLEWARE) -> None:
        self._paths = tuple(middleware)
        self._watches = _Watches()
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
            layer = _layer(path, chain)
            if layer is None:
                continue
            if hasattr(layer, "process_view"):
                handler._view_middleware.insert(0, self.adapt_method_mode(True, layer.process_view))
            if hasattr(layer, "process_exception"):
                handler._exception_middleware.append(self.adapt_method_mode(False, layer.process_exception))
            chain = convert_exception_to_response(layer)
        handler._middleware_chain = chain

    def resolve_request(self, request: Any) -> ResolverMatch:
        """Return what the path was resolved to when it was found to be an endpoint's.

        Args:
            request: The request.
        """
        match: ResolverMatch | None = request.scope.get(_MATCH)
        if match is None or hasattr(request, "urlconf"):
            return super().resolve_request(request)
        request.resolver_match = match
        return match

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
        # Python asks the system for its process each time that it is asked for the running loop.
        loop = asyncio.get_running_loop()
        watch = _Watch(receive, loop)
        self._watches.start_later(watch, loop)
        try:
            await self._respond(scope, body, send)
        except asyncio.CancelledError:
            if not watch.is_cause():
                raise
        finally:
            watch.end()

    async def _respond(self, scope: Any, body: io.BytesIO, send: Any) -> None:
        set_script_prefix(scope[_PREFIX] if _PREFIX in scope else get_script_prefix(scope))
        request, refused = self.create_request(scope, body)
        response: Any = refused
        closers: list[Callable[[], None]] = [body.close]
        if request is not None:
            # As Django does; to unset one that is not set takes three times as long.
            set_urlconf(settings.ROOT_URLCONF)
            response = await self._answer(request)
            closers.insert(0, request.close)
        try:
            await self._send(response, send)
        finally:
            for close in (*response._resource_closers, *closers):
                try:  # noqa: SIM105 - a context manager for each is dear
                    close()
                except Exception:  # noqa: S110 - as Django does
                    pass

    async def _answer(self, request: Any) -> Any:
        handler: Any = self
        chain = handler._middleware_chain
        if self._paths == DEFAULT_MIDDLEWARE:
            # A view asks for a thread of its own, and gives it back when its caller is admitted.
            response = await chain(request)
        else:
            async with ThreadSensitiveContext() as context:
                try:
                    response = await chain(request)
                finally:
                    if context in SyncToAsync.context_to_thread_executor:
                        await sync_to_async(database.release_thread)()
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            say: Callable[..., Any] = log_response
            if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                # Django's own logging sends a mail then.
                say = sync_to_async(log_response, thread_sensitive=False)
            said = say("%s: %s", response.reason_phrase, request.path, response=response, request=request)
            if said is not None:
                await said
        return response

    async def _send(self, response: Any, send: Any) -> None:
        """Send a response; one of the app's own streams without Django's layers around each of its pieces."""
        body = getattr(response, "_iterator", None) if response.streaming else None
        if response.streaming and not isinstance(body, StreamBody):
            await self.send_response(response, send)
            return
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in response.items()]
        headers += [(b"Set-Cookie", cookie.OutputString().encode("ascii")) for cookie in response.cookies.values()]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if body is None:
            await send({"type": "http.response.body", "body": response.content, "more_body": False})
            return
        try:
            async for chunk in body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except asyncio.CancelledError:
            # The body cancels the task that sends it when its reader takes nothing: for the server no failure.
            if not body.is_cause():
                raise
            return
        finally:
            body.leave()
        await send({"type": "http.response.body"})


def _layer(path: str, chain: Any) -> Any:
    """Return a middleware around a chain; None where it does not want to be used."""
    kind = import_string(path)
    sync_only = ImproperlyConfigured(f"The middleware {path!r} is sync only: it would cost a thread a request.")
    if not getattr(kind, "async_capable", False):
        raise sync_only
    try:
        layer = kind(chain)
    except MiddlewareNotUsed:
        return None
    if layer is None:
        raise ImproperlyConfigured(f"The middleware factory {path!r} returned None.")
    if not iscoroutinefunction(layer):
        raise sync_only
    return layer


class _Watch:
    """Cancels the request's task when its client leaves."""

    __slots__ = ("_has_left", "_receive", "_request", "_task", "is_over")

    def __init__(self, receive: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.is_over = False
        self._receive = receive
        self._request = asyncio.current_task(loop)
        self._task: asyncio.Task[None] | None = None
        self._has_left = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch."""
        self._task = loop.create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._request is not None:
            self._has_left = True
            self._request.cancel()

    def is_cause(self) -> bool:
        """Return whether the request was cancelled by this alone; then it counts as not cancelled any more."""
        return self._has_left and self._request is not None and self._request.uncancel() == 0

    def end(self) -> None:
        """Stop watching; most have not begun by then."""
        self.is_over = True
        if self._task is not None:
            self._task.cancel()


class _Watches:
    """Those that wait to begin: one timer for all of them, as most are over before it comes."""

    def __init__(self) -> None:
        # Together, as loops of several threads may come by turns; each one's timer knows its own.
        self._latest: tuple[asyncio.AbstractEventLoop | None, deque[tuple[float, _Watch]]] = (None, deque())

    def start_later(self, watch: _Watch, loop: asyncio.AbstractEventLoop) -> None:
        """Have a watch begin after 50 ms, if it is not over by then."""
        known, young = self._latest
        if loop is not known:
            young = deque()
            self._latest = loop, young
        young.append((loop.time() + _WATCH_SECONDS, watch))
        if len(young) == 1:
            self._call_later(loop, young, _WATCH_SECONDS)

    def _call_later(self, loop: asyncio.AbstractEventLoop, young: deque[tuple[float, _Watch]], seconds: float) -> None:
        # Not in the context of the request that happens to be the first.
        loop.call_later(seconds, self._start_due, loop, young, context=contextvars.Context())

    def _start_due(self, loop: asyncio.AbstractEventLoop, young: deque[tuple[float, _Watch]]) -> None:
        now = loop.time()
        while young and (young[0][1].is_over or young[0][0] <= now):
            _, watch = young.popleft()
            if not watch.is_over:
                watch.start(loop)
        if young:
            self._call_later(loop, young, young[0][0] - now)


async def _read_body(receive: Any) -> io.BytesIO:
    body = io.BytesIO()
    room = 1 + conf.get_largest_body_bytes()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestAborted
        chunk = message.get("body", b"")[:room]
        room -= body.write(chunk)
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
        if scope["type"] == "http":
            prefix = get_script_prefix(scope)
            match = matches.find(scope["path"].removeprefix(prefix))
            if match is not None:
                await own({**scope, _MATCH: match, _PREFIX: prefix}, receive, send)
                return
        await django(scope, receive, send)

    matches = _Matches()
    return application


class _Matches:
    """What the endpoints' own paths were resolved to."""

    def __init__(self) -> None:
        self._resolver: URLResolver | None = None
        self._known: dict[str, ResolverMatch] = {}

    def find(self, path: str) -> ResolverMatch | None:
        """Return the match of a path that belongs to a view of an endpoint, and to nobody else's below its path.

        Args:
            path: The path below the script's prefix.
        """
        resolver = get_resolver(settings.ROOT_URLCONF)
        if resolver is not self._resolver:
            # Where Django forgets its resolvers, what they found is forgotten too.
            self._resolver, self._known = resolver, {}
        match = self._known.get(path)
        if match is None:
            match = _match(resolver, path)
            if match is not None and not match.kwargs:
                # These are a few: those with an id in them are without number.
                self._known[path] = match
        return match


def _match(resolver: URLResolver, path: str) -> ResolverMatch | None:
    if not any(f"{path}/".startswith(f"/{endpoint.path}/") for endpoint in conf.get_endpoints().values()):
        return None
    try:
        match = resolver.resolve(path)
    except Resolver404:
        return None
    view = getattr(match.func, "view_class", None)
    return match if isinstance(view, type) and issubclass(view, InvocationsView) else None
