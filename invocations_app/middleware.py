"""The middleware that lifts trusted isolation headers into ContextVars, and the one that knows who is logged in.

The first decides nothing: what a header may be is in ``isolation``, and a
request whose headers break those rules is answered by the view. The second is
for the handler of the endpoints' URLs, which Django's would cost threads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token
from importlib import import_module
from typing import TypeAlias, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import SimpleLazyObject

from invocations_app import conf
from invocations_app.exceptions import InvalidIsolationHeader
from invocations_app.isolation import (
    IsolationKeys,
    RequestKeys,
    request_keys,
    reset_current_call_id,
    reset_current_isolation_keys,
    set_current_call_id,
    set_current_isolation_keys,
)

GetResponse: TypeAlias = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_Tokens: TypeAlias = tuple[Token[IsolationKeys | None], Token[str | None]]


class IsolationKeysMiddleware:
    """Holds a request's isolation keys and call id in ContextVars while it is answered.

    It acts on the paths of endpoints with ``TRUST_ISOLATION_HEADERS`` only, in
    the caller's own thread, sync or async. The ContextVars are unset again when
    the response is returned, so before a streamed body is sent: a run has a
    context of its own.

    Args:
        get_response: The next layer.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request, with its keys in the ContextVars where they are trusted."""
        if not _is_trusted(request.path_info):
            return self.get_response(request)
        if self._is_async:
            return self._answer(request)
        tokens = _set(request)
        try:
            return self.get_response(request)
        finally:
            _reset(tokens)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        tokens = _set(request)
        try:
            # Whether the next layer is async was asked of it in __init__.
            return await cast("Awaitable[HttpResponseBase]", self.get_response(request))
        finally:
            _reset(tokens)


def _is_trusted(path_info: str) -> bool:
    """Tell by prefix: a middleware runs before the URL is resolved."""
    path = f"{path_info}/"
    return any(
        path.startswith(f"/{endpoint.path}/")
        for endpoint in conf.get_endpoints().values()
        if endpoint.trust_isolation_headers
    )


def _set(request: HttpRequest) -> _Tokens:
    try:
        keys = request_keys(request)
    except InvalidIsolationHeader:
        keys = RequestKeys()
    # None too is set: a request made inside another one must not inherit its keys.
    isolation = None if keys.isolation.is_empty else keys.isolation
    return set_current_isolation_keys(isolation), set_current_call_id(keys.call_id)


def _reset(tokens: _Tokens) -> None:
    reset_current_isolation_keys(tokens[0])
    reset_current_call_id(tokens[1])


class SessionUserMiddleware:
    """Gives a request the user of its login session, looked up when it is asked for, in the thread that asks.

    For `handler.InvocationsHandler`, in the place of Django's session and
    authentication middleware, and only where the site's ``MIDDLEWARE`` has the
    latter. The session is read and never saved.

    Args:
        get_response: The next layer.

    Raises:
        MiddlewareNotUsed: If the site logs nobody in by session.
    """

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        if _AUTHENTICATION not in settings.MIDDLEWARE:
            raise MiddlewareNotUsed
        self.get_response = get_response
        self._engine = import_module(settings.SESSION_ENGINE)
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a request that knows its user."""
        from django.contrib.auth import get_user

        request.session = self._engine.SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
        request.user = SimpleLazyObject(lambda: get_user(request))  # type: ignore[assignment]
        return await cast("Awaitable[HttpResponseBase]", self.get_response(request))
