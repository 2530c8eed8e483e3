"""Pushes a result to a URL: JSON, signed, to a checked address.

No dependency does this as it has to be: a client that resolves the name by
itself would connect to an address that nobody checked. ``docs/delivery.md``
tells a receiver how to verify the signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from invocations_app.delivery import addresses, http
from invocations_app.delivery.errors import RedirectRefused, RequestTooLarge, StatusRefused
from invocations_app.dialects.strict_json import dump_compact

DESTINATION_HEADER = "x-invocations-destination"
TIMESTAMP_HEADER = "x-invocations-timestamp"
SIGNATURE_HEADER = "x-invocations-signature"

logger = logging.getLogger("invocations_app.delivery")

_PORTS = {"https": 443, "http": 80}
# As long as any push may take; see delivery/sending.py.
_MAX_SECONDS = 60


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the signature of a push: ``v1=`` and the hexadecimal HMAC-SHA256 of timestamp, ``.`` and body.

    Args:
        secret: The secret that sender and receiver share.
        timestamp: Whole seconds since 1970, as the header has them.
        body: The body as it is sent.
    """
    return "v1=" + hmac.new(secret, timestamp.encode("ascii") + b"." + body, hashlib.sha256).hexdigest()


class WebhookPush:
    """A backend of ``PUSH_DESTINATIONS`` that posts results to a URL.

    Args:
        url: Where to; https, without user or fragment.
        secret: What the signature is made with; text or bytes, never shown.
        allow_http: Whether the URL may be http.
        allow_private: Whether the host may have an address that is not of the
            public internet.
        timeout_seconds: Time for the whole exchange, from the name to the end
            of the answer; at most 60.
        max_bytes: Longest body that is sent, and longest answer that is read.

    Raises:
        ImproperlyConfigured: If an option cannot be; the text names it and holds no value.
    """

    __slots__ = (
        "_allow_private",
        "_context",
        "_host",
        "_host_header",
        "_max_bytes",
        "_port",
        "_secret",
        "_target",
        "_timeout",
    )

    def __init__(
        self,
        *,
        url: str,
        secret: str | bytes,
        allow_http: bool = False,
        allow_private: bool = False,
        timeout_seconds: float = 10,
        max_bytes: int = 1048576,
    ) -> None:
        for name, value in (("ALLOW_HTTP", allow_http), ("ALLOW_PRIVATE", allow_private)):
            if not isinstance(value, bool):
                raise ImproperlyConfigured(f"'{name}' must be True or False.")
        if not isinstance(secret, (str, bytes)) or not secret:
            raise ImproperlyConfigured("'SECRET' must be a text that is not empty.")
        if not _is_number(timeout_seconds) or not 0 < timeout_seconds <= _MAX_SECONDS:
            raise ImproperlyConfigured(f"'TIMEOUT_SECONDS' must be more than 0 and at most {_MAX_SECONDS}.")
        if not _is_number(max_bytes) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ImproperlyConfigured("'MAX_BYTES' must be a whole number of 1 or more.")
        parts = _split(url, allow_http=allow_http)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._host_header = _host_header(self._host, parts)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._allow_private = allow_private
        self._timeout = timeout_seconds
        self._max_bytes = max_bytes
        self._context = ssl.create_default_context() if parts.scheme == "https" else None

    def __repr__(self) -> str:
        # A URL may hold a secret of its own.
        return f"<{type(self).__name__}>"

    async def push(self, result: Mapping[str, Any], destination: str) -> None:
        """Post a result; returning means that it was taken with a 2xx.

        Args:
            result: The status body of an invocation.
            destination: Name of the destination.

        Raises:
            PushError: If it was not taken.
            TimeoutError: If the exchange took too long.
            OSError: If the host cannot be reached, or its certificate is not right.
        """
        body = dump_compact(result).encode()
        if len(body) > self._max_bytes:
            raise RequestTooLarge
        async with asyncio.timeout(self._timeout):
            status = await self._post(body, destination)
        if status >= 300:
            logger.warning("The push to %r was answered with the status %d.", destination, status)
            raise RedirectRefused if status < 400 else StatusRefused

    async def _post(self, body: bytes, destination: str) -> int:
        resolved = await addresses.resolve(self._host, self._port, allow_private=self._allow_private)
        connection = await addresses.connect(resolved, seconds=self._timeout)
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "django-invocations",
            DESTINATION_HEADER: quote(destination, safe="", errors="replace"),
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: sign(self._secret, timestamp, body),
        }
        request = http.encode_request(self._target, self._host_header, headers, body)
        return await http.exchange(
            connection, request, context=self._context, server_name=self._host, max_bytes=self._max_bytes
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _split(url: Any, *, allow_http: bool) -> SplitResult:
    """Return the parts of a URL that may be pushed to."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise ImproperlyConfigured("'URL' must be ASCII text without blanks: the host in Punycode, the rest escaped.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ImproperlyConfigured("'URL' is no URL.") from None
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in schemes:
        raise ImproperlyConfigured(f"'URL' must start with {' or '.join(f'{scheme}://' for scheme in schemes)}.")
    if not host or port == 0:
        raise ImproperlyConfigured("'URL' must name a host, and a port other than 0 if any.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ImproperlyConfigured("'URL' must have no user, password or fragment.")
    return parts


def _host_header(host: str, parts: SplitResult) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if parts.port in (None, _PORTS[parts.scheme]) else f"{name}:{parts.port}"
