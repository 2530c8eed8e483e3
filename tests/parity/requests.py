"""The raw requests that both hosts are sent, in the groups of servers that they go to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

AGENT_CONTROLLED = (
    "additional_function_arguments",
    "client_kwargs",
    "compaction_strategy",
    "function_invocation_kwargs",
    "instructions",
    "middleware",
    "session",
    "tokenizer",
    "tools",
)
HOST_CONTROLLED = (
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
)

# Of `tests.parity.target`.
WORKFLOW_OUTPUTS = (
    "set",
    "not a number",
    "number as key",
    "dataclass",
    "dataclass of a set",
    "model",
    "model with a number as key",
    "circle",
    "message",
    "response",
    "type",
)


@dataclass(frozen=True)
class Group:
    """One server of each kind.

    Attributes:
        target: Name of a factory in `tests.parity.target`.
        is_instance: Whether the published host is given the agent itself.
        unsupported_options: As the setting, and the published host's argument.
        is_workflow: Whether the target is a workflow.
        environment: Variables of the servers' processes.
    """

    target: str = "build_agent"
    is_instance: bool = True
    unsupported_options: str = "warn"
    is_workflow: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


GROUPS = {
    "agent": Group(),
    "plain": Group("build_plain"),
    "plain, error": Group("build_plain", unsupported_options="error"),
    "plain from a factory, error": Group("build_plain", is_instance=False, unsupported_options="error"),
    "broken": Group("build_broken", is_instance=False),
    "workflow": Group("build_workflow", is_instance=False, is_workflow=True),
    "workflow of an agent": Group("build_workflow_of_agent", is_instance=False, is_workflow=True),
    "environment": Group(environment={"FOUNDRY_AGENT_SESSION_ID": "from-environment"}),
}


@dataclass(frozen=True)
class Request:
    """One raw request.

    Attributes:
        name: What it is about; unique.
        group: The server it goes to.
        raw: The bytes.
        is_live: Whether our answer needs the published packages: compared by ``make parity`` only.
    """

    name: str
    group: str
    raw: bytes
    is_live: bool = False


REQUESTS: list[Request] = []


def _add(
    name: str,
    body: Any,
    session: str | None = "s",
    *,
    group: str = "agent",
    path: str = "/invocations",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    is_live: bool = False,
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    # Unless it says otherwise, each request has a session of its own.
    session = f"s{len(REQUESTS)}" if session == "s" else session
    query = "" if session is None else "?agent_session_id=" + quote(session, safe="")
    lines = [f"{method} {path}{query} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(content)}"]
    lines += [f"{key}: {value}" for key, value in ({"connection": "close"} | dict(headers or {})).items()]
    REQUESTS.append(Request(name, group, "\r\n".join(lines).encode() + b"\r\n\r\n" + content, is_live))


_add("message", {"message": "ping"})
_add("message of two turns, first", {"message": "ping"}, "turns")
_add("message of two turns, second", {"message": "pong"}, "turns")
_add("empty message", {"message": ""})
_add("any characters", {"message": 'gr\u00fc\u00df \U0001f600 \u2028 \x7f \\ "'})
_add("stream false, empty options", {"message": "ping", "stream": False, "options": {}})
_add("unknown fields", {"message": "ping", "x": [1, None], "session_id": "other"})
_add("null fields that do not count", {"message": "ping", "input": None, "metadata": None, "background": None})
_add("duplicate keys", b'{"message":"first","message":"last"}')
_add("byte order mark", b'\xef\xbb\xbf{"message":"ping"}')
_add("white space around", b' \r\n\t{"message":"ping"}\n')
_add("another content type", {"message": "ping"}, headers={"content-type": "text/plain"})
_add("another accept", {"message": "ping"}, headers={"accept": "image/png"})

_add("stream", {"message": '/pieces ["hel", "lo"]', "stream": True})
_add("stream of two turns, first", {"message": "ping", "stream": True}, "streamed-turns")
_add("stream of two turns, second", {"message": "pong", "stream": True}, "streamed-turns")
_add("stream of two turns, third", {"message": "pong", "stream": True}, "streamed-turns")
_add("stream of any characters", {"message": '/pieces ["gr\u00fc\u00df", "\U0001f600\u2028"]', "stream": True})
_add("stream of line ends", {"message": '/pieces ["a\\nb", "\\r\\n", "\\r", "[DONE]", "\\""]', "stream": True})
_add("stream of empty pieces", {"message": '/pieces ["", "hel", "", "lo", ""]', "stream": True})
_add("stream of nothing", {"message": "/pieces []", "stream": True})

_add("options", {"message": "/options", "options": {"temperature": 0.5, "max_tokens": 9, "x_unknown": {"a": [1]}}})
_add("options, streamed", {"message": "/options", "options": {"seed": 1, "stop": ["x"]}, "stream": True})

_add("failure", {"message": "/fail"})
_add("failure, streamed", {"message": "/fail", "stream": True})
_add("failure after a piece", {"message": '/fail ["hel"]', "stream": True}, "failed")
_add("turn after a failure", {"message": "ping"}, "failed")

_add("no body", b"")
_add("broken JSON", b"{")
_add("no JSON", b"ping")
_add("more than JSON", b'{"message":"a"} x')
_add("no UTF-8", b'{"message":"\xff"}')
for name, value in {"array": [], "null": None, "text": "a", "number": 1, "boolean": True}.items():
    _add(f"{name} in place of an object", value)
_add("message absent", {})
for name, value in {"null": None, "number": 5, "array": ["a"], "object": {}, "boolean": True}.items():
    _add(f"message is {name}", {"message": value})
for name, value in {"null": None, "number": 1, "text": "true", "array": []}.items():
    _add(f"stream is {name}", {"message": "a", "stream": value})
for name, value in {"null": None, "number": 0, "text": "x", "array": []}.items():
    _add(f"options is {name}", {"message": "a", "options": value})
_add("all is wrong", {"message": 1, "stream": 1, "options": 1})
_add("stream and options are wrong", {"message": "a", "stream": 1, "options": 1})
_add("wrong, streamed", {"message": 1, "stream": True})

for name in HOST_CONTROLLED + AGENT_CONTROLLED:
    _add(f"option {name}", {"message": "a", "options": {name: 1}})
_add("all options of the host", {"message": "a", "options": dict.fromkeys(reversed(HOST_CONTROLLED), 1)})
_add("all options of the agent", {"message": "a", "options": dict.fromkeys(reversed(AGENT_CONTROLLED), 1)})
_add("options of both", {"message": "a", "options": {"tools": 1, "store": 1, "user": 1}})
_add("option of the host, streamed", {"message": "a", "options": {"store": None}, "stream": True})

_add("no session id", {"message": "ping"}, None)
_add("no session id, streamed", {"message": "ping", "stream": True}, None)
_add("empty session id", {"message": "ping"}, "")
for name, value in {"blank": "a b", "slash": "a/b", "letter": "\u00fc", "length": "x" * 257}.items():
    _add(f"session id with a {name}", {"message": "/pieces []", "stream": True}, value)
_add("longest session id", {"message": "ping", "stream": True}, "Az09._:-" * 32)
_add(
    "two session ids",
    {"message": "ping", "stream": True},
    None,
    path="/invocations?agent_session_id=a&agent_session_id=b",
)
_add("invocation id", {"message": "ping"}, headers={"x-agent-invocation-id": "Az09._:-"})
_add("invocation id, streamed", {"message": "ping", "stream": True}, headers={"x-agent-invocation-id": "id-2"})
_add("invocation id with a blank", {"message": "ping"}, headers={"x-agent-invocation-id": "a b"})
_add("headers of a failure", {"message": "/fail"}, "failing", headers={"x-agent-invocation-id": "id-3"})
_add(
    "headers of refused options",
    {"message": "a", "options": {"store": 1}},
    "refused",
    headers={"x-agent-invocation-id": "id-4"},
)

_add("session id of the environment", {"message": "ping", "stream": True}, None, group="environment")
_add("session id before the environment's", {"message": "ping", "stream": True}, "asked", group="environment")
_add("wrong session id and the environment", {"message": "ping", "stream": True}, "a b", group="environment")

_add("options dropped", {"message": "a", "options": {"seed": 1}}, group="plain")
_add("options dropped, streamed", {"message": "a", "options": {"seed": 1}, "stream": True}, group="plain")
_add("options refused", {"message": "a", "options": {"seed": 1}}, group="plain, error")
_add("options refused, streamed", {"message": "a", "options": {"seed": 1}, "stream": True}, group="plain, error")
_add("no options to refuse", {"message": "a", "options": {}}, group="plain, error")

_add("workflow, input", {"input": "hi"}, "w1", group="workflow")
_add("workflow, second turn", {"input": "hi"}, "w1", group="workflow")
_add("workflow, message", {"message": "hi"}, group="workflow")
_add("workflow, streamed", {"input": "hi", "stream": True}, group="workflow")
for kind in (False, True):
    suffix = ", streamed" if kind else ""
    stream = {"stream": kind}
    _add(f"workflow, outputs{suffix}", {"input": '/outputs ["\u00fc", 1, null, {"a": []}]'} | stream, group="workflow")
    _add(f"workflow, no output{suffix}", {"input": "/outputs []"} | stream, group="workflow")
    _add(f"workflow, failure{suffix}", {"input": "/fail"} | stream, group="workflow")
    for output in WORKFLOW_OUTPUTS:
        _add(f"workflow, output: {output}{suffix}", {"input": f"/give {output}"} | stream, group="workflow")
    session = f"asked{kind:d}"
    _add(f"workflow, asks{suffix}", {"input": '/ask ["who", "why"]'} | stream, session, group="workflow")
    _add(f"workflow, new input while asked{suffix}", {"input": "new"}, session, group="workflow")
    if kind:
        # Two that differ on purpose: see `tests.parity.differences`.
        _add("workflow, new input refused late", {"input": "x"} | stream, session, group="workflow")
        _add("workflow, replies refused late", {"responses": {"x": "y"}} | stream, session, group="workflow")
    _add(f"workflow, unknown replies{suffix}", {"responses": {"x": "y"}}, session, group="workflow")
    _add(f"workflow, some replies{suffix}", {"responses": {"ask-who": "me"}}, session, group="workflow")
    replies = {"responses": {"ask-who": "me", "ask-why": "so"}}
    _add(f"workflow, replies{suffix}", replies | stream, session, group="workflow")
    _add(f"workflow, replies again{suffix}", replies, session, group="workflow")
    _add(f"workflow, turn after the replies{suffix}", {"input": "hi"} | stream, session, group="workflow")

# The first two differ on purpose: see `tests.parity.differences`.
_add("workflow of an agent", {"input": "hi"}, "wa", group="workflow of an agent")
_add("workflow of an agent, pieces", {"input": '/pieces ["hel", "lo"]'}, group="workflow of an agent")
_add("workflow of an agent, streamed", {"input": "hi", "stream": True}, "wa", group="workflow of an agent")
_add(
    "workflow of an agent, pieces, streamed",
    {"input": '/pieces ["hel", "lo"]', "stream": True},
    group="workflow of an agent",
)
_add("workflow of an agent, failure", {"input": '/fail ["hel"]'}, group="workflow of an agent")
_add(
    "workflow of an agent, failure, streamed", {"input": '/fail ["hel"]', "stream": True}, group="workflow of an agent"
)

# Where the two differ on purpose: see `tests.parity.differences`.
_add("two text contents", {"message": '/contents ["hel", "lo"]'})
for name in ("base_url", "extra_headers", "extra_query", "model", "timeout"):
    _add(f"option {name}", {"message": "a", "options": {name: "x"}})
_add("input", {"input": "ping"})
_add("message and input", {"message": "ping", "input": "pong"})
_add("message and responses", {"message": None, "responses": {}})
_add("responses", {"responses": {"r1": True}})
_add("metadata is text", {"message": "ping", "metadata": "x"})
_add("background", {"message": "ping", "background": True}, "background", headers={"x-agent-invocation-id": "id-5"})
_add("background is a number", {"message": "ping", "background": 1})
_add("not a number", b'{"message":"ping","x":NaN}')
_add("infinite number", b'{"message":"ping","x":1e999}')
_add("UTF-16", '{"message":"ping"}'.encode("utf-16"))
_add("deep nesting", b'{"message":"ping","x":' + b"[" * 100 + b"]" * 100 + b"}")
_add("lone surrogate", b'{"message":"\\ud800"}')
_add("lone surrogate, streamed", b'{"message":"\\ud800","stream":true}')
_add("final slash", {"message": "ping"}, None, path="/invocations/")
_add("another method", b"", None, method="PUT")
_add("session id that is a word of the URLs", {"message": "/pieces []", "stream": True}, "docs")
_add("session id with a line end", {"message": "/pieces []", "stream": True}, "a\n")
_add("invocation id used again", {"message": "ping"}, "again", headers={"x-agent-invocation-id": "id-6"})
_add("invocation id used again, the same", {"message": "ping"}, "again", headers={"x-agent-invocation-id": "id-6"})
_add("invocation id used again, another body", {"message": "pong"}, "again", headers={"x-agent-invocation-id": "id-6"})
_add(
    "options refused late",
    {"message": "a", "options": {"seed": 1}, "stream": True},
    group="plain from a factory, error",
)
for kind in (False, True):
    _add(
        "workflow, approval" + ", streamed" * kind,
        {"input": "/call Ann", "stream": kind},
        f"approval{kind:d}",
        group="workflow of an agent",
    )
_add("workflow, failed", {"input": "/fail"}, "w-failed", group="workflow")
_add("workflow, turn after a failure", {"input": "hi"}, "w-failed", group="workflow")
_add("workflow, input of another type", {"input": 5}, group="workflow")
_add("workflow, replies when nothing was asked", {"responses": {"x": 1}}, group="workflow")
_add("workflow, input and replies", {"input": "a", "responses": {"x": 1}}, group="workflow")
for kind in (False, True):
    _add(
        "workflow, output with a lone surrogate" + ", streamed" * kind,
        {"input": '/outputs ["\\ud800"]', "stream": kind},
        group="workflow",
    )
_add("target that cannot be built", {"message": "a"}, group="broken")
_add("target that cannot be built, streamed", {"message": "a", "stream": True}, group="broken")

_add(
    "request context",
    {"message": "/context"},
    "context",
    headers={"x-agent-user-id": "user 1", "x-agent-foundry-call-id": "call 1"},
    is_live=True,
)
_add("request context, streamed", {"message": "/context", "stream": True}, "context-2", is_live=True)
