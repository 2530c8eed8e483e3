"""Isolation keys: read from trusted headers, held in a ContextVar, bound to a scope.

The public names are those that upstream's host had. Whether a header may be
trusted is the caller's decision; this module knows no settings and no models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextvars import Context, ContextVar, Token
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

from invocations_app.exceptions import InvalidIsolationHeader

ISOLATION_HEADER_USER = "x-agent-user-isolation-key"
ISOLATION_HEADER_CHAT = "x-agent-chat-isolation-key"
USER_ID_HEADER = "x-agent-user-id"
CALL_ID_HEADER = "x-agent-foundry-call-id"

MAX_KEY_CHARACTERS = 256

# Its first 12 digits are milliseconds since 1970 (RFC 9562, section 5.7).
_TIMED_UUID = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}").fullmatch
_TIME_DIGITS = 12

_HEADERS = (ISOLATION_HEADER_USER, ISOLATION_HEADER_CHAT, USER_ID_HEADER, CALL_ID_HEADER)


@dataclass(frozen=True, slots=True)
class IsolationKeys:
    """The raw header values of one request.

    Attributes:
        user_key: Value of the user isolation header, or None.
        chat_key: Value of the chat isolation header, or None.
    """

    user_key: str | None = None
    chat_key: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether neither key is set."""
        return self.user_key is None and self.chat_key is None


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """Everything that trusted headers say of one request.

    Attributes:
        isolation: The two isolation keys, as the ContextVar holds them.
        user_id: Value of ``x-agent-user-id``, or None.
        call_id: Value of ``x-agent-foundry-call-id``, or None; never logged.
    """

    isolation: IsolationKeys = IsolationKeys()
    user_id: str | None = None
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a store or an invocation is bound to.

    Attributes:
        endpoint: Alias of the endpoint.
        user_key: ``platform:<value>``, ``user:<pk>`` or empty.
        chat_key: Value of the trusted chat header, or empty.
    """

    endpoint: str
    user_key: str = ""
    chat_key: str = ""

    def key(self, name: str) -> str:
        """Return the unique key of a session id or invocation id in this scope.

        Args:
            name: The id as the caller gave it.

        Returns:
            SHA-256, 64 hexadecimal digits, of the JSON array of the four values:
            no joined string, so no separator can make two of them meet. In place of
            the first 12 digits the time of a name that begins with one, as a UUID of
            version 7 does: what is written together stands together in the index.
        """
        digest = _digest([self.endpoint, self.user_key, self.chat_key, name])
        timed = _TIMED_UUID(name)
        return digest if timed is None else f"{timed[1]}{timed[2]}{digest[_TIME_DIGITS:]}"

    @property
    def digest(self) -> str:
        """A short digest that stands for the keys in logs (12 digits)."""
        return _digest([self.endpoint, self.user_key, self.chat_key])[:12]


def _digest(values: list[str]) -> str:
    # What json.dumps makes of the list, without the encoder that it makes anew each time.
    text = f"[{', '.join(map(encode_basestring_ascii, values))}]"
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def user_key_of(keys: RequestKeys, user_pk: object | None) -> str:
    """Return the user key of a caller.

    Args:
        keys: What the trusted headers say; empty where they are not trusted.
        user_pk: Primary key of the authenticated Django user, or None.

    Returns:
        ``platform:<value>`` from a header, else ``user:<pk>``, else an empty
        string; the prefixes keep the two name spaces apart.
    """
    platform = keys.isolation.user_key or keys.user_id
    if platform is not None:
        return f"platform:{platform}"
    return "" if user_pk is None else f"user:{user_pk}"


def read_request_keys(headers: Iterable[tuple[str, str]]) -> RequestKeys:
    """Read the keys from the header lines of a request whose headers are trusted.

    Args:
        headers: Name and value of each header line; names in lower case.

    Returns:
        The keys; an absent or empty header is None.

    Raises:
        InvalidIsolationHeader: If a header is repeated or longer than 256
            characters.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        if name in _HEADERS:
            if name in found or len(value) > MAX_KEY_CHARACTERS:
                raise InvalidIsolationHeader
            found[name] = value
    return RequestKeys(
        isolation=IsolationKeys(
            user_key=found.get(ISOLATION_HEADER_USER) or None,
            chat_key=found.get(ISOLATION_HEADER_CHAT) or None,
        ),
        user_id=found.get(USER_ID_HEADER) or None,
        call_id=found.get(CALL_ID_HEADER) or None,
    )


def header_lines(request: Any) -> Iterator[tuple[str, str]]:
    """Yield the header lines of a Django or DRF request, as the server gave them.

    Over ASGI they come from the scope, where a repeated header is still two
    lines. A WSGI server has already joined them with a comma, which cannot be
    told from a value that holds one.

    Args:
        request: The request; nothing of its body is read.

    Returns:
        Name, in lower case, and value of each line.
    """
    scope = getattr(request, "scope", None)
    if scope is not None:
        for name, value in scope["headers"]:
            yield name.decode("latin-1").lower(), value.decode("latin-1")
        return
    for name, value in request.META.items():
        if name.startswith("HTTP_"):
            yield name[5:].replace("_", "-").lower(), value


def request_keys(request: Any) -> RequestKeys:
    """Read the keys from a request to an endpoint that trusts its headers.

    Args:
        request: A Django or DRF request.

    Raises:
        InvalidIsolationHeader: If a header is repeated or longer than 256
            characters.
    """
    return read_request_keys(header_lines(request))


_keys: ContextVar[IsolationKeys | None] = ContextVar("invocations_isolation_keys", default=None)
_call_id: ContextVar[str | None] = ContextVar("invocations_call_id", default=None)


def hold(context: Context, keys: RequestKeys) -> None:
    """Set the keys and the call id in a context that is left with its run, where it does not have them yet.

    Args:
        context: The context.
        keys: What the trusted headers say; empty where they are not trusted.
    """
    isolation = None if keys.isolation.is_empty else keys.isolation
    if context.get(_keys) != isolation:
        context.run(_keys.set, isolation)
    if context.get(_call_id) != keys.call_id:
        context.run(_call_id.set, keys.call_id)


def get_current_isolation_keys() -> IsolationKeys | None:
    """Return the isolation keys of the current request or run, or None."""
    return _keys.get()


def set_current_isolation_keys(keys: IsolationKeys | None) -> Token[IsolationKeys | None]:
    """Set the isolation keys of the current context.

    Args:
        keys: The keys, or None for none.

    Returns:
        A token for `reset_current_isolation_keys`.
    """
    return _keys.set(keys)


def reset_current_isolation_keys(token: Token[IsolationKeys | None]) -> None:
    """Undo one `set_current_isolation_keys`.

    Args:
        token: What that call returned.
    """
    _keys.reset(token)


def get_current_call_id() -> str | None:
    """Return the platform's call id of the current request or run, or None."""
    return _call_id.get()


def set_current_call_id(call_id: str | None) -> Token[str | None]:
    """Set the platform's call id of the current context.

    Args:
        call_id: The call id, or None for none.

    Returns:
        A token for `reset_current_call_id`.
    """
    return _call_id.set(call_id)


def reset_current_call_id(token: Token[str | None]) -> None:
    """Undo one `set_current_call_id`.

    Args:
        token: What that call returned.
    """
    _call_id.reset(token)
