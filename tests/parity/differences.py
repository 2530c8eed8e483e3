"""Where our platform dialect differs from the published host on purpose: the data of the test and of the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One deliberate difference.

    Attributes:
        what: What differs; first cell of the row in docs/platform.md.
        published: What the published host does; second cell.
        here: What happens here, and why; third cell.
        answers: Our status and body for each recorded request that shows it.
    """

    what: str
    published: str
    here: str
    answers: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def row(self) -> str:
        return f"| {self.what} | {self.published} | {self.here} |"


def _error(text: str) -> str:
    return f'{{"error":"{text}"}}'


def _host_owns(name: str) -> tuple[int, str]:
    return 400, _error(f"prepare_options cannot set host-controlled fields: {name}.")


_SURROGATE = (400, _error("'message' must not contain lone surrogates"))
_NOT_BUILT = (500, _error("The agent is not available."))
_GENERATED_DONE = (200, 'event: done\ndata: {"session_id": "<uuid>"}\n\n')

_AWAITING = (400, _error("This workflow is awaiting replies; do not replace them with new input."))
_MISMATCH = (400, _error("Workflow replies must answer exactly the complete pending request batch."))
_NO_JSON = "Workflow output type str is not JSON-serializable."
_CALL = {
    "type": "function_call",
    "call_id": "call-1",
    "name": "greet",
    "arguments": '{"name": "Ann"}',
    "hosted": False,
    "id": "af-call-<uuid>",
    "additional_properties": {},
}
_UPDATE = {
    "type": "agent_response_update",
    "contents": [_CALL],
    "role": "assistant",
    "author_name": "parity",
    "message_id": "m",
}
_APPROVAL = {
    "type": "request_info",
    "data": {"request_id": "af-call-<uuid>", "type": "approval", "tool": "greet", "arguments": {"name": "Ann"}},
    "request_id": "af-call-<uuid>",
    "source_executor_id": "agent",
}


def _response_frame(text: str) -> dict[str, Any]:
    content = {"type": "text", "text": text, "additional_properties": {}}
    message = {"type": "message", "role": "assistant", "contents": [content], "author_name": "parity"}
    response = {"type": "agent_response", "messages": [message | {"additional_properties": {}}]}
    return _output(response | {"usage_details": {}, "additional_properties": {}})


def _output(data: Any, executor_id: str = "agent") -> dict[str, Any]:
    return {"type": "output", "data": data, "executor_id": executor_id}


def _frames(*frames: Mapping[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"output": frames}, separators=(",", ":"))


def _events(*events: tuple[str, Mapping[str, Any]]) -> tuple[int, str]:
    return 200, "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


DIFFERENCES = [
    Difference(
        "several text contents in one message",
        "joined with a blank: JSON and stream disagree",
        "joined with nothing, as they are streamed",
        {"two text contents": (200, '{"response":"hello"}')},
    ),
    Difference(
        "the options `base_url`, `extra_headers`, `extra_query`, `model` and `timeout`",
        "go to the provider",
        "400, as any option of the host: a caller could turn the site's key against another server or model",
        {
            f"option {name}": _host_owns(name)
            for name in ("base_url", "extra_headers", "extra_query", "model", "timeout")
        },
    ),
    Difference(
        "`input`",
        "unknown, so `message` is missed",
        "messages with contents, in place of `message`; both are 400",
        {
            "input": (200, '{"response":"1: ping"}'),
            "message and input": (400, _error("'message' and 'input' must not be given together")),
        },
    ),
    Difference(
        "`responses`",
        "unknown: an agent that asks a person for approval cannot be answered",
        "answers what an earlier turn left pending, in place of `message`",
        {
            "message and responses": (400, _error("'message' and 'responses' must not be given together")),
            "responses": _MISMATCH,
        },
    ),
    Difference(
        "`metadata`",
        "ignored",
        "an object for hooks and the record; anything else is 400",
        {"metadata is text": (400, _error("'metadata' must be an object"))},
    ),
    Difference(
        "`background`",
        "ignored",
        "true is answered 202 at once, and the run goes on; what is no boolean is 400",
        {
            "background": (202, '{"invocation_id":"id-5","status":"running","session_id":"background"}'),
            "background is a number": (400, _error("'background' must be a boolean")),
        },
    ),
    Difference(
        "JSON that is not strict: `NaN`, numbers that overflow, UTF-16, more than 100 levels",
        "read",
        "400: it could be neither stored nor passed on",
        {
            "not a number": (400, _error("NaN is not JSON")),
            "infinite number": (400, _error("Numbers must be finite")),
            "UTF-16": (400, _error("'utf-8' codec can't decode byte 0xff in position 0: invalid start byte")),
            "deep nesting": (400, _error("Values nest deeper than 100")),
        },
    ),
    Difference(
        "lone surrogates in a string of the body",
        "500, or passed on where it streams",
        "400, naming the field",
        {"lone surrogate": _SURROGATE, "lone surrogate, streamed": _SURROGATE},
    ),
    Difference(
        "a body over `MAX_BODY_BYTES`",
        "read, whatever its size",
        '413 `{"error":"request body too large"}`',
    ),
    Difference(
        "`POST {path}/`",
        "307 to the path without the slash",
        "answered: not every client repeats a body",
        {"final slash": (200, '{"response":"1: ping"}')},
    ),
    Difference(
        "any other method",
        "405 with a plain text",
        "405 with the JSON of every error",
        {"another method": (405, _error("method not allowed"))},
    ),
    Difference(
        "session ids that are words of the URLs (`docs`, `invoke`, `sessions`, `.`, `..`) or end in a line feed",
        "taken, the line feed too",
        "not well formed, so replaced by a new UUID",
        {"session id that is a word of the URLs": _GENERATED_DONE, "session id with a line end": _GENERATED_DONE},
    ),
    Difference(
        "an invocation id that was used before",
        "runs the agent again",
        "the same request gets the same answer, another one 422",
        {
            "invocation id used again, the same": (200, '{"response":"1: ping"}'),
            "invocation id used again, another body": (
                422,
                _error("this invocation id was used for another request"),
            ),
        },
    ),
    Difference(
        "options that a factory's agent does not take, streamed, `UNSUPPORTED_OPTIONS` being `error`",
        "an error event, as the agent is built after the headers",
        "400: the agent is built before them",
        {"options refused late": (400, _error("The hosted agent does not accept caller runtime options."))},
    ),
    Difference(
        "a factory that fails",
        "as a run that fails, after the headers of a stream",
        "500 with a text of its own, before them",
        {"target that cannot be built": _NOT_BUILT, "target that cannot be built, streamed": _NOT_BUILT},
    ),
    Difference(
        "a turn of a workflow after one that failed",
        "409, for good: the session is lost",
        "goes on from the last turn that ended well",
        {"workflow, turn after a failure": _frames(_output({"said": "hi"}, "speaker"))},
    ),
    Difference(
        "an input that the workflow does not take",
        "400 with a fixed text",
        "400, naming what is wrong with it",
        {
            "workflow, input of another type": (
                400,
                _error("'input' is not what the workflow takes: Input should be a valid string"),
            )
        },
    ),
    Difference(
        "`responses` where a workflow never asked anything",
        "400 with a text about checkpoints",
        "400 with the text for any other replies that do not fit",
        {"workflow, replies when nothing was asked": _MISMATCH},
    ),
    Difference(
        "`input` and `responses` for a workflow",
        "400 in the words of its parser",
        "400, naming both",
        {"workflow, input and replies": (400, _error("'input' and 'responses' must not be given together"))},
    ),
    Difference(
        "input or replies that do not go with what is pending, streamed",
        "an error event, as it is found after the headers",
        "400: it is found before them",
        {"workflow, new input refused late": _AWAITING, "workflow, replies refused late": _MISMATCH},
    ),
    Difference(
        "the outputs of agents inside a workflow, plain",
        "an `agent_response_update` for each update, as the agents are streamed",
        "one `agent_response` with all that was said, as the agents are not",
        {
            "workflow of an agent": _frames(_response_frame("1: hi")),
            "workflow of an agent, pieces": _frames(_response_frame("hello")),
        },
    ),
    Difference(
        "an approval that an agent inside a workflow needs",
        "`data` is the framework's content",
        "`data` is the object that tells any other approval",
        {
            "workflow, approval": _frames(_APPROVAL),
            "workflow, approval, streamed": _events(
                ("output", _output(_UPDATE)), ("request_info", _APPROVAL), ("done", {"session_id": "approval1"})
            ),
        },
    ),
    Difference(
        "an output of a workflow that holds lone surrogates or nests too deep",
        "the error names the type of the frame, `dict`",
        "the error names the type of the output",
        {
            "workflow, output with a lone surrogate": (500, _error(_NO_JSON)),
            "workflow, output with a lone surrogate, streamed": _events(
                ("error", {"message": _NO_JSON, "code": "invalid_workflow_output", "status": 500})
            ),
        },
    ),
    Difference(
        "`x-agent-invocation-id` and `x-agent-session-id` of a body refused in parsing",
        "sent",
        "not sent: there is no invocation",
    ),
    Difference(
        "`Cache-Control` of a stream",
        "`no-cache`, and `Connection: keep-alive`",
        "`no-cache, no-transform`, and `X-Accel-Buffering: no`: proxies hold nothing back",
    ),
    Difference(
        "`x-agent-user-id` and `x-agent-foundry-call-id`",
        "believed from anyone",
        "read only where `TRUST_ISOLATION_HEADERS` is on",
    ),
]

OURS = {name: answer for difference in DIFFERENCES for name, answer in difference.answers.items()}
