"""The middleware that lifts trusted isolation headers into ContextVars.

It decides nothing: what a header may be is in ``isolation``, and a request
whose headers break those rules is answered by the view.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token
from typing import TypeAlias, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

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
