"""The platform dialect: the contract of ``POST {path}``, which is that of Foundry's hosted agents.

What differs from the published host on purpose is listed in docs/platform.md;
rules, texts and bytes are those of docs/contract.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from invocations_app import sse
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import parsing, request, strict_json
from invocations_app.dialects.parsing import FieldError
from invocations_app.entropy import new_uuid
from invocations_app.envelope import DialectName, Invocation, ParsedRequest, TargetKind, fingerprint, is_well_formed_id
from invocations_app.events import Answer, Done, Event, Failed, Output, RequestInfo, TextDelta, workflow_frame
from invocations_app.exceptions import AwaitingResponses, InvocationError, MalformedInvocation, ResponsesMismatch

SESSION_QUERY = "agent_session_id"
SESSION_VARIABLE = "FOUNDRY_AGENT_SESSION_ID"

# In the order in which their rules are checked, once those with a text of their own are met.
_FIELDS = (*request.INPUTS, "stream", "options", "metadata", "background")
# Null is absent here; in the other fields it is malformed.
_NULLABLE = frozenset({"input", "responses", "metadata", "background"})

_HOST_CONTROLLED = frozenset(
    {
        "agent",
        "agent_reference",
        "agent_session_id",
        "background",
        "call_id",
        "continuation_token",
        "conversation",
        "conversation_id",
        "extra_body",
        "input",
        "previous_response_id",
        "response_id",
        "service_session_id",
        "session_id",
        "store",
        "stream",
        "user",
        "user_id",
        # The framework would pass these on to the provider; the published host lets them through.
        "base_url",
        "extra_headers",
        "extra_query",
        "model",
        "timeout",
    }
)
_AGENT_CONTROLLED = frozenset(
    {
        "additional_function_arguments",
        "client_kwargs",
        "compaction_strategy",
        "function_invocation_kwargs",
        "instructions",
        "middleware",
        "session",
        "tokenizer",
        "tools",
    }
)

# Refusals that this dialect answers in its own words.
_OWN_ANSWERS: dict[type[InvocationError], tuple[int, str]] = {
    ResponsesMismatch: (400, "Workflow replies must answer exactly the complete pending request batch."),
    AwaitingResponses: (400, "This workflow is awaiting replies; do not replace them with new input."),
}


def _malformed(text: str) -> MalformedInvocation:
    return MalformedInvocation(text, status=400)


def _read_object(raw: bytes) -> dict[str, Any]:
    try:
        body = strict_json.loads(raw)
    except strict_json.InvalidJson as error:
        raise _malformed(error.text) from None
    if not isinstance(body, dict):
        raise _malformed("The invocation must be a JSON object.")
    return parsing.without_nulls(body, _NULLABLE)


def _check_shape(body: Mapping[str, Any]) -> None:
    """Check the rules that have a text of their own, in their order."""
    clash = request.clash_of(body)
    if clash is not None:
        raise _malformed(clash)
    if "input" not in body and "responses" not in body and not isinstance(body.get("message"), str):
        raise _malformed("message must be a string.")
    if not isinstance(body.get("stream", False), bool):
        raise _malformed("stream must be a boolean.")
    if not isinstance(body.get("options", {}), dict):
        raise _malformed("options must be an object.")


def _read_session_id(query: Mapping[str, str]) -> tuple[str, str | None, str | None]:
    """Return the session id, the one that the caller gave, and the one that was generated."""
    given = query.get(SESSION_QUERY, "")
    session_id = given or os.environ.get(SESSION_VARIABLE, "")
    if is_well_formed_id(session_id):
        return session_id, given or None, None
    generated = new_uuid()
    return generated, None, generated


class PlatformDialect:
    """The platform dialect; see `invocations_app.dialects.Dialect`."""

    name: DialectName = "platform"

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
            query: Query parameters, for the session id.
            kind: What the target is; None where that cannot be told.

        Returns:
            The invocation, with the caller's ids where they are well formed.

        Raises:
            MalformedInvocation: If it breaks a rule of the dialect: status 400.
        """
        fields = _read_object(body)
        _check_shape(fields)
        invocation_id, id_given = request.invocation_id_of(headers)
        session_id, given_session_id, generated_session_id = _read_session_id(query)
        try:
            request.refuse_surrogates(body, fields, _FIELDS)
            invocation = self._read_fields(fields, invocation_id, session_id, endpoint, kind)
        except FieldError as error:
            raise _malformed(str(error)) from None
        return ParsedRequest(
            invocation=invocation,
            fingerprint=fingerprint(endpoint.alias, self.name, given_session_id, fields),
            id_given=id_given,
            generated_session_id=generated_session_id,
            kind=kind,
            has_message="message" in fields,
        )

    def _read_fields(
        self,
        body: Mapping[str, Any],
        invocation_id: str,
        session_id: str,
        endpoint: EndpointSettings,
        kind: TargetKind | None,
    ) -> Invocation:
        responses = request.read_responses(body)
        value = request.read_input(body, endpoint, self.name, kind)
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
            stream=body.get("stream", False),
            background=background,
            options=body.get("options", {}),
            metadata=metadata,
        )

    def check_options(self, invocation: Invocation) -> None:
        """Refuse options that the host or the agent owns, whoever set them.

        Args:
            invocation: The invocation after the run hook.

        Raises:
            MalformedInvocation: If the options hold such a name: status 400.
        """
        _refuse(invocation, _HOST_CONTROLLED, "prepare_options cannot set host-controlled fields")
        _refuse(invocation, _AGENT_CONTROLLED, "Invocations options cannot set agent-controlled fields")

    def invocations_from_run(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON body of an answer.

        Args:
            answer: What the run answers.

        Returns:
            A workflow's frames; else ``response``, and ``pending`` only where something is.
        """
        if answer.frames is not None:
            return {"output": [dict(frame) for frame in answer.frames]}
        body: dict[str, Any] = {"response": answer.text}
        if answer.pending:
            body["pending"] = [dict(item) for item in answer.pending]
        return body

    def invocations_from_streaming_run(self) -> PlatformStreamEncoder:
        """Return a fresh encoder for the events of one run."""
        return PlatformStreamEncoder(self)

    def invocations_from_answer(self, answer: Answer) -> list[bytes]:
        """Return the wire events of an answer but for the last: a workflow's frames, or text and pending requests.

        Args:
            answer: What the run answered.
        """
        if answer.frames is not None:
            return [_encode(frame["type"], frame) for frame in answer.frames]
        frames = [_encode("delta", {"text": answer.text})] if answer.text else []
        return frames + [_encode("request_info", pending) for pending in answer.pending]

    def status_of(self, error: InvocationError) -> int:
        """Return the HTTP status of an error in this dialect.

        Args:
            error: The error.
        """
        if isinstance(error, MalformedInvocation):
            return 400
        own = _OWN_ANSWERS.get(type(error))
        return error.status if own is None else own[0]

    def error_body(self, error: InvocationError, text: str) -> dict[str, Any]:
        """Return the JSON body of an error.

        Args:
            error: The error.
            text: Its public text, or the exception's own where those are shown.
        """
        own = _OWN_ANSWERS.get(type(error))
        return {"error": text if own is None else own[1]}

    def encode_json(self, body: Mapping[str, Any]) -> bytes:
        """Return a JSON body as compact raw UTF-8.

        Args:
            body: The body.
        """
        return strict_json.dump_compact(body).encode()


def _refuse(invocation: Invocation, reserved: Iterable[str], problem: str) -> None:
    refused = sorted(name for name in reserved if name in invocation.options)
    if refused:
        raise _malformed(f"{problem}: {', '.join(refused)}.")


def _encode(event: str, data: Mapping[str, Any]) -> bytes:
    """Return one wire event; its data is ASCII-escaped JSON, so that no line can break in it."""
    return sse.encode_event(json.dumps(data, allow_nan=False), event)


class PlatformStreamEncoder:
    """Makes the events of one run into the platform's wire events.

    Args:
        dialect: The dialect, for the answers to errors.
    """

    __slots__ = ("_dialect",)

    def __init__(self, dialect: PlatformDialect) -> None:
        self._dialect = dialect

    def encode(self, event: Event) -> list[bytes]:
        """Return the wire events of one neutral event, each whole and without an id line.

        Args:
            event: The next event of the run.

        Returns:
            None for what this dialect does not show, and for an empty piece.
        """
        if isinstance(event, TextDelta):
            # As `_encode` would have it, without an encoder for each piece.
            return [f'event: delta\ndata: {{"text": {json.dumps(event.text)}}}\n\n'.encode()] if event.text else []
        if isinstance(event, Output):
            return [_encode("output", workflow_frame(event))]
        if isinstance(event, RequestInfo):
            is_agents = event.source_executor_id is None
            return [_encode("request_info", event.data if is_agents else workflow_frame(event))]
        if isinstance(event, Done):
            return [_encode("done", {"session_id": event.answer.session_id})]
        if isinstance(event, Failed):
            return [self._encode_error(event.error)]
        return []

    def _encode_error(self, error: InvocationError) -> bytes:
        message = self._dialect.error_body(error, error.text)["error"]
        return _encode("error", {"message": message, "code": error.code, "status": self._dialect.status_of(error)})
