"""The wire contracts: everything that knows what bytes come in and go out.

One module a dialect, each with the face of `Dialect`. They know neither the
ORM nor Django's requests and responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from invocations_app.conf import EndpointSettings
from invocations_app.dialects import channel, platform
from invocations_app.envelope import DialectName, Invocation, ParsedRequest, TargetKind
from invocations_app.events import Answer, Event
from invocations_app.exceptions import InvocationError


class StreamEncoder(Protocol):
    """Makes the events of one run into wire events; it holds what was cut between two."""

    def encode(self, event: Event) -> list[bytes]:
        """Return the wire events of one neutral event, each whole and without an id line."""
        ...


class Dialect(Protocol):
    """What every dialect can do, named as upstream's helper families."""

    name: DialectName

    def invocations_to_run(
        self,
        body: bytes,
        *,
        endpoint: EndpointSettings,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        kind: TargetKind | None = "agent",
    ) -> ParsedRequest:
        """Parse a request body.

        Args:
            body: The raw bytes.
            endpoint: The endpoint that was called.
            headers: Request headers, names in lower case.
            query: Query parameters.
            kind: What the target is; None where that cannot be told.

        Raises:
            MalformedInvocation: If it breaks a rule of the dialect.
        """
        ...

    def check_options(self, invocation: Invocation) -> None:
        """Refuse options that the dialect reserves, after the run hook.

        Raises:
            MalformedInvocation: If the options hold a reserved name.
        """
        ...

    def invocations_from_run(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON body of an answer."""
        ...

    def invocations_from_streaming_run(self) -> StreamEncoder:
        """Return a fresh encoder for the events of one run."""
        ...

    def invocations_from_answer(self, answer: Answer) -> list[bytes]:
        """Return the wire events of a stored answer, but for the last: its text is one piece."""
        ...

    def status_of(self, error: InvocationError) -> int:
        """Return the HTTP status of an error in this dialect."""
        ...

    def error_body(self, error: InvocationError, text: str) -> dict[str, Any]:
        """Return the JSON body of an error.

        Args:
            error: The error.
            text: Its public text, or the exception's own where those are shown.
        """
        ...

    def encode_json(self, body: Mapping[str, Any]) -> bytes:
        """Return a JSON body as the dialect's bytes."""
        ...


_DIALECTS: dict[DialectName, Dialect] = {"channel": channel.ChannelDialect(), "platform": platform.PlatformDialect()}


def get_dialect(name: DialectName) -> Dialect:
    """Return the dialect of that name."""
    return _DIALECTS[name]
