"""The channel dialect: the contract of ``POST {path}/invoke``.

A message or messages in; text, as JSON or as a stream, out. The rules, texts
and bytes are those of docs/contract.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invocations_app import sse
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import parsing, request, strict_json
from invocations_app.dialects.parsing import FieldError
from invocations_app.envelope import DialectName, Invocation, ParsedRequest, TargetKind, fingerprint
from invocations_app.events import Answer, Done, Event, Failed, Output, RequestInfo, TextDelta
from invocations_app.exceptions import AwaitingResponses, InvocationError, MalformedInvocation

# In the order in which their rules are checked.
_FIELDS = (*request.INPUTS, "session_id", "stream", "options", "metadata", "background")

_STATUS_BY_CODE = {"unsupported_options": 422}

_DONE = sse.encode_event(sse.TERMINATOR)


def _read_object(raw: bytes) -> dict[str, Any]:
    """Return the body without its null keys: absent and null are the same here."""
    try:
        body = strict_json.loads(raw)
    except strict_json.InvalidJson:
        raise MalformedInvocation("invalid json", status=400) from None
    if not isinstance(body, dict):
        raise MalformedInvocation("request body must be an object")
    return parsing.without_nulls(body)


def _check_shape(body: Mapping[str, Any]) -> None:
    """Check what is answered ahead of every rule of a single field."""
    clash = request.clash_of(body)
    if clash is not None:
        raise MalformedInvocation(clash)
    message = body.get("message")
    if "input" not in body and "responses" not in body and (not isinstance(message, str) or not message):
        raise MalformedInvocation("missing or empty 'message'")
    if not isinstance(body.get("session_id", ""), str):
        raise MalformedInvocation("'session_id' must be a string")


def _read_options(body: Mapping[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    options = parsing.read_object(body, "options")
    refused = sorted(options.keys() - allowed)
    if refused:
        raise FieldError("options", f"must not set {', '.join(refused)}")
    return options


class ChannelDialect:
    """The channel dialect; see `invocations_app.dialects.Dialect`."""

    name: DialectName = "channel"

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
            body: The raw bytes, within the endpoint's limit.
            endpoint: The endpoint that was called.
            headers: Request headers, names in lower case.
            query: Query parameters; this dialect has none.
            kind: What the target is; None where that cannot be told.

        Returns:
            The invocation, with the caller's id where it is well formed.

        Raises:
            MalformedInvocation: If it breaks a rule of the dialect: status 400
                where the body is no JSON, else 422.
        """
        fields = _read_object(body)
        _check_shape(fields)
        invocation_id, id_given = request.invocation_id_of(headers)
        try:
            request.refuse_surrogates(body, fields, _FIELDS)
            invocation = self._read_fields(fields, invocation_id, endpoint, kind)
        except FieldError as error:
            raise MalformedInvocation(str(error)) from None
        digest = fingerprint(endpoint.alias, self.name, invocation.session_id, fields)
        return ParsedRequest(
            invocation=invocation,
            fingerprint=digest,
            id_given=id_given,
            kind=kind,
            has_message="message" in fields,
        )

    def _read_fields(
        self, body: Mapping[str, Any], invocation_id: str, endpoint: EndpointSettings, kind: TargetKind | None
    ) -> Invocation:
        """Return the invocation; the rules are checked in the order of the contract's table."""
        responses = request.read_responses(body)
        value = request.read_input(body, endpoint, self.name, kind)
        session_id = body.get("session_id")
        if session_id:
            parsing.check_session_id(session_id)
        stream = parsing.read_boolean(body, "stream")
        options = _read_options(body, endpoint.allowed_options)
        metadata = parsing.read_object(body, "metadata")
        background = parsing.read_boolean(body, "background")
        return Invocation(
            id=invocation_id,
            endpoint=endpoint.alias,
            dialect=self.name,
            input=value,
            responses=responses,
            session_id=session_id,
            session_mode=endpoint.session_mode,
            stream=stream,
            background=background,
            options=options,
            metadata=metadata,
        )

    def check_options(self, invocation: Invocation) -> None:
        """Accept all: what a caller may send is checked in parsing, and a hook may add any.

        Args:
            invocation: The invocation after the run hook.
        """

    def invocations_from_run(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON body of an answer.

        Args:
            answer: What the run answers.

        Returns:
            ``response`` and ``session_id``; ``pending`` only where something is.
        """
        body: dict[str, Any] = {"response": answer.text, "session_id": answer.session_id}
        if answer.pending:
            body["pending"] = [dict(request) for request in answer.pending]
        return body

    def invocations_from_streaming_run(self) -> ChannelStreamEncoder:
        """Return a fresh encoder for the events of one run."""
        return ChannelStreamEncoder()

    def invocations_from_answer(self, answer: Answer) -> list[bytes]:
        """Return the wire events of an answer but for the last: the whole text as one piece, pending requests.

        Args:
            answer: What the run answered.
        """
        encoder = self.invocations_from_streaming_run()
        frames = encoder.encode(TextDelta(answer.text))
        for pending in answer.pending:
            frames += encoder.encode(RequestInfo(request_id=str(pending["request_id"]), data=pending))
        return frames

    def status_of(self, error: InvocationError) -> int:
        """Return the HTTP status of an error in this dialect.

        Args:
            error: The error.
        """
        return _STATUS_BY_CODE.get(error.code, error.status)

    def error_body(self, error: InvocationError, text: str) -> dict[str, Any]:
        """Return the JSON body of an error.

        Args:
            error: The error.
            text: Its public text, or the exception's own where those are shown.
        """
        body: dict[str, Any] = {"error": text}
        if isinstance(error, AwaitingResponses):
            body["invocation_id"] = error.invocation_id
            body["pending"] = [dict(item) for item in error.pending]
        return body

    def encode_json(self, body: Mapping[str, Any]) -> bytes:
        """Return a JSON body as compact raw UTF-8.

        Args:
            body: The body.
        """
        return strict_json.dump_compact(body).encode()


class ChannelStreamEncoder:
    """Makes the events of one run into the channel's wire events.

    Text, pending requests, the end or the error; of a workflow's outputs the text,
    and usage is not shown.
    """

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = sse.TextCutter()

    def encode(self, event: Event) -> list[bytes]:
        """Return the wire events of one neutral event, each whole and without an id line.

        Args:
            event: The next event of the run.

        Returns:
            None for what this dialect does not show, and for an empty piece.
        """
        if isinstance(event, TextDelta):
            return self._text.cut(event.text)
        if isinstance(event, Output):
            return self._text.cut(event.text)
        if isinstance(event, RequestInfo):
            return [sse.encode_event(strict_json.dump_compact(event.data), "request_info")]
        if isinstance(event, Done):
            return [_DONE]
        if isinstance(event, Failed):
            return [sse.encode_event(event.error.text, "error")]
        return []
