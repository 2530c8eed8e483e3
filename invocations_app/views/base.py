"""What all views of an endpoint share: who may call, and how errors are answered.

The views are DRF's through adrf, so a site's authentication, permissions and
throttles apply; every body is made here or by the dialect, so that no answer is
a page, whatever went wrong.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from adrf.views import APIView
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from django.http.request import QueryDict, RawPostDataException, UnreadablePostError
from django.http.response import HttpResponseBase
from django.utils.datastructures import MultiValueDict
from rest_framework import exceptions as drf
from rest_framework.permissions import AllowAny

from invocations_app import conf, isolation
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import Dialect, get_dialect
from invocations_app.envelope import DialectName
from invocations_app.exceptions import BodyTooLarge, InvocationError, StorageUnavailable, TargetFailed
from invocations_app.isolation import RequestKeys, Scope
from invocations_app.runs import UNREACHABLE
from invocations_app.views import checking, tokens
from invocations_app.views.responses import json_response

logger = logging.getLogger("invocations_app.views")

#: No fields of a form or a query: what nobody need parse, and nobody can change.
NO_FIELDS = QueryDict()
_NO_KEYS = RequestKeys()


class InvocationsView(APIView):  # type: ignore[misc]  # adrf is not typed
    """What the views of an endpoint share: who may call, and how errors are answered.

    Attributes:
        alias: The endpoint's alias.
        dialect_name: The dialect of the URL.
        endpoint: The settings of the endpoint, while a request is answered.
        request: The request, while it is answered.
    """

    alias: str = ""
    endpoint: EndpointSettings
    request: Any
    dialect_name: DialectName = "channel"
    http_method_names = ["post"]
    # Django asks the handlers by their names; here there is one for all methods.
    view_is_async = True

    @property
    def asks_rest_request(self) -> bool:
        """Whether ``self.request`` has to be DRF's where there is nothing to check; else it is Django's."""
        return True

    @property
    def dialect(self) -> Dialect:
        """The dialect of the URL."""
        return get_dialect(self.dialect_name)

    async def async_dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer a request; every failure becomes the contract's JSON.

        Args:
            request: Django's request.
            *args: Positional parts of the URL.
            **kwargs: Named parts of the URL.
        """
        self.args, self.kwargs = args, kwargs
        try:
            if (request.method or "").lower() not in self.http_method_names:
                return self._method_not_allowed()
            # Looked up once: a view is made for one request.
            self.endpoint = conf.get_endpoint(self.alias)
            body = read_body(request, self.endpoint.max_body_bytes)
            try:
                await self._admit(request)
            except (drf.APIException, PermissionDenied, Http404) as error:
                return self._refusal(error)
            return await self.respond(body, *args, **kwargs)
        except InvocationError as error:
            return self.error_response(error)
        except UNREACHABLE:
            logger.exception("The database was not reachable before a run began.")
            return self.error_response(StorageUnavailable())
        except Exception:
            logger.exception("A view of endpoint %r failed.", self.alias)
            return self.error_response(TargetFailed())
        finally:
            # DRF's request holds the view: each would keep the other until the garbage collector comes.
            self.request = request

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer a caller who was admitted.

        Args:
            body: The raw body.
            *args: Positional parts of the URL.
            **kwargs: Named parts of the URL.
        """
        raise NotImplementedError

    # Who may call

    async def _admit(self, request: HttpRequest) -> None:
        permissions = [permission for permission in self.get_permissions() if type(permission) is not AllowAny]
        throttles = self.get_throttles()
        is_checked = bool(self.get_authenticators() or permissions or throttles)
        # A site's tests say who it is without asking anybody.
        is_checked = is_checked or hasattr(request, "_force_auth_user")
        if is_checked or self.asks_rest_request:
            self.request = _without_form(self.initialize_request(request, *self.args, **self.kwargs))
        if is_checked:
            is_lookup = checking.only_looks_up(self.request.authenticators, permissions, throttles)
            await checking.check(self.initial, self.request, is_lookup=is_lookup)
        else:
            # There is nothing to check, so nothing that would touch the database in a thread.
            self.keys = self._read_keys(request)

    def _read_keys(self, request: Any) -> RequestKeys:
        return isolation.request_keys(request) if self.endpoint.trust_isolation_headers else _NO_KEYS

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """Authenticate, read the isolation keys, check permissions and throttles, in this order.

        Args:
            request: DRF's request.
            *args: Unused.
            **kwargs: Unused.
        """
        self.perform_authentication(request)
        self.keys = self._read_keys(request)
        self.check_permissions(request)
        self.check_throttles(request)

    def get_parsers(self) -> list[Any]:
        """Return none: the body counts as parsed."""
        return []

    def get_authenticators(self) -> list[Any]:
        """Return the endpoint's authentication, or DRF's."""
        found = _instances(self.endpoint.authentication_classes, self.authentication_classes)
        return [tokens.quickened(each) for each in found]

    def get_permissions(self) -> list[Any]:
        """Return the endpoint's permissions, or DRF's."""
        if self.endpoint.permission_classes is None:
            return list(super().get_permissions())
        return _instances(self.endpoint.permission_classes, ())

    def get_throttles(self) -> list[Any]:
        """Return the endpoint's throttles, or DRF's."""
        return _instances(self.endpoint.throttle_classes, self.throttle_classes)

    @property
    def user_pk(self) -> Any:
        """Primary key of the authenticated Django user, or None."""
        if not getattr(self.request, "authenticators", None):
            # Nobody was asked who it is; DRF makes an anonymous user when one is asked for.
            return None
        user = self.request.user
        return user.pk if user is not None and user.is_authenticated else None

    @property
    def scope(self) -> Scope:
        """What the caller's invocations and sessions are bound to."""
        return Scope(
            endpoint=self.alias,
            user_key=isolation.user_key_of(self.keys, self.user_pk),
            chat_key=self.keys.isolation.chat_key or "",
        )

    @property
    def can_stream(self) -> bool:
        """Whether the server can stream: whether it is an ASGI server."""
        return hasattr(self.request, "scope")

    # Answers

    def error_response(self, error: InvocationError, headers: dict[str, str] | None = None) -> HttpResponse:
        """Return the answer to an invocation that was refused or failed.

        Args:
            error: The error; its text is what the caller may see.
            headers: The invocation's headers, where there are any.
        """
        body = self.dialect.error_body(error, error.text)
        response = json_response(self.dialect.encode_json(body), self.dialect.status_of(error), headers)
        if error.retry_after_seconds is not None:
            response["Retry-After"] = str(error.retry_after_seconds)
        return response

    def _method_not_allowed(self) -> HttpResponse:
        response = json_response(self.dialect.encode_json({"error": "method not allowed"}), 405)
        response["Allow"] = ", ".join(name.upper() for name in self.http_method_names)
        return response

    def _refusal(self, error: Exception) -> HttpResponse:
        """Answer what authentication, permissions or throttles raise, as DRF would, in the contract's shape."""
        if isinstance(error, PermissionDenied):
            error = drf.PermissionDenied(*error.args)
        elif isinstance(error, Http404):
            error = drf.NotFound(*error.args)
        status = getattr(error, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
        headers = {}
        if isinstance(error, (drf.NotAuthenticated, drf.AuthenticationFailed)):
            challenge = self.get_authenticate_header(self.request)
            if challenge:
                headers["WWW-Authenticate"] = challenge
            else:
                status = HTTPStatus.FORBIDDEN
        wait = getattr(error, "wait", None)
        if wait is not None:
            headers["Retry-After"] = f"{wait:.0f}"
        detail = _text_of(getattr(error, "detail", ""))
        return json_response(self.dialect.encode_json({"error": detail}), int(status), headers)


def read_body(request: HttpRequest, limit: int) -> bytes:
    """Return the raw body, and hide it from everything that would parse a form.

    Django's own limit for forms does not apply, and DRF's CSRF check, which reads
    ``request.POST``, takes its token from the header only.

    Args:
        request: Django's request.
        limit: Largest body, in bytes.

    Raises:
        BodyTooLarge: If the body is longer.
    """
    try:
        if hasattr(request, "_body") or getattr(request, "_read_started", False):
            # A middleware has read it already, or at least tried to.
            body = request.body
        else:
            body = request.read(limit + 1)
    except RequestDataTooBig:
        raise BodyTooLarge from None
    except (RawPostDataException, UnreadablePostError):
        body = b""
    if len(body) > limit:
        raise BodyTooLarge
    hidden: Any = request
    hidden._body = body
    hidden._post = NO_FIELDS
    hidden._files = MultiValueDict()
    return body


def _without_form(request: Any) -> Any:
    """Return a DRF request whose body counts as parsed, with nothing in it: DRF would parse it by itself.

    Its CSRF check asks for ``request.POST``, which reads JSON too, and answers what it cannot read ahead of
    who may call.
    """
    request._data = request._full_data = NO_FIELDS
    request._files = MultiValueDict()
    # DRF's request holds itself there, for its parsers: both would wait for the garbage collector.
    del request.parser_context["request"]
    return request


def _instances(classes: tuple[Any, ...] | None, default: Any) -> list[Any]:
    return [kind() for kind in conf.load_classes(tuple(default if classes is None else classes))]


def _text_of(detail: Any) -> str:
    """Return the text of what DRF calls a detail: a text, or texts in lists and dictionaries."""
    while isinstance(detail, (list, dict)) and detail:
        detail = next(iter(detail.values() if isinstance(detail, dict) else detail))
    return str(detail)
