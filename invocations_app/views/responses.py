"""HTTP responses: bodies made elsewhere, with the headers that the contract gives them."""

from __future__ import annotations

import django
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse

from invocations_app.envelope import INVOCATION_ID_HEADER, SESSION_ID_HEADER, session_header_value
from invocations_app.runs import StreamBody

_GZIP = "django.middleware.gzip.GZipMiddleware"


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
