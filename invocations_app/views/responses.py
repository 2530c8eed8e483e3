"""HTTP responses: bodies made elsewhere, with the headers that the contract gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import django
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse

from invocations_app.envelope import INVOCATION_ID_HEADER, SESSION_ID_HEADER, session_header_value
from invocations_app.runs import StreamBody

_GZIP = "django.middleware.gzip.GZipMiddleware"


class MetaHeaders(Mapping[str, str]):
    """Headers by their names in lower case, looked up one by one: making all of them costs more than a parse.

    Args:
        meta: The request's ``META``.
    """

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self._meta = meta

    def __getitem__(self, name: str) -> str:
        value: str = self._meta["HTTP_" + name.upper().replace("-", "_")]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header's value.

        Args:
            name: Its name.
            default: What is returned where there is none.
        """
        return self._meta.get("HTTP_" + name.upper().replace("-", "_"), default)

    def __iter__(self) -> Iterator[str]:
        return (name[5:].lower().replace("_", "-") for name in self._meta if name.startswith("HTTP_"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def json_response(content: bytes, status: int, headers: dict[str, str] | None = None) -> HttpResponse:
    """Return a JSON response.

    Args:
        content: The body.
        status: The HTTP status.
        headers: Further headers.
    """
    return HttpResponse(content, status=status, headers=headers, content_type="application/json")


def no_content() -> HttpResponse:
    """Return an answer without a body, and without the type that Django would give it."""
    response = HttpResponse(status=204)
    del response["Content-Type"]
    return response


def stream_response(body: StreamBody, headers: dict[str, str] | None = None) -> StreamingHttpResponse:
    """Return a stream of server-sent events.

    Args:
        body: The wire events.
        headers: Further headers.
    """
    fields = (headers or {}) | {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    if django.VERSION < (6, 0) and _GZIP in settings.MIDDLEWARE:
        # It would hold events back until its buffer is full; it leaves encoded answers alone. Fixed in Django 6.0.
        fields["Content-Encoding"] = "identity"
    return StreamingHttpResponse(body, headers=fields, content_type="text/event-stream; charset=utf-8")


def invocation_headers(invocation_id: str, session_id: str | None) -> dict[str, str]:
    """Return the headers of an answer to an invocation.

    Args:
        invocation_id: Its id.
        session_id: The session id in force; None or empty for none.
    """
    headers = {INVOCATION_ID_HEADER: invocation_id}
    if session_id:
        headers[SESSION_ID_HEADER] = session_header_value(session_id)
    return headers
