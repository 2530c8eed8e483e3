"""A local server that speaks OpenAI's Chat Completions, streamed and not.

What it says depends on the conversation it is sent: a user's message with a
product such as ``6 * 7`` makes it call the tool ``calculate`` (where it is
offered), a tool's result makes it tell that result, anything else is repeated
together with the number of user messages it was sent.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stub-model"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass
class OpenAIStub:
    """A running stub: where it is, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failing: bool = False


@contextmanager
def run_openai_stub() -> Iterator[OpenAIStub]:
    """Serve on a free loopback port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    stub = server.stub = OpenAIStub(url=f"http://127.0.0.1:{server.server_port}/v1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        stub: OpenAIStub = self.server.stub  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub.requests.append(body)
        stub.keys.append(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            self._send(404, "application/json", b'{"error":{"message":"no such path"}}')
        elif stub.failing:
            # 400: the client does not try again.
            self._send(400, "application/json", b'{"error":{"message":"the stub refuses","type":"invalid_request"}}')
        elif body.get("stream"):
            events = [f"data: {json.dumps(event)}\n\n" for event in _stream(_message(body), body)]
            self._send(200, "text/event-stream", "".join([*events, "data: [DONE]\n\n"]).encode())
        else:
            self._send(200, "application/json", json.dumps(_completion(_message(body))).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _message(body: dict[str, Any]) -> dict[str, Any]:
    last = body["messages"][-1]
    if last["role"] == "tool":
        return {"role": "assistant", "content": f"The result is {_text(last)}."}
    product = re.search(r"\d+ \* \d+", _text(last))
    if product and any(tool["function"]["name"] == "calculate" for tool in body.get("tools", ())):
        function = {"name": "calculate", "arguments": json.dumps({"expression": product[0]})}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        }
    said = sum(message["role"] == "user" for message in body["messages"])
    return {"role": "assistant", "content": f"{said}: {_text(last)}"}


def _finish_reason(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _completion(message: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(message)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": USAGE,
    }


def _stream(message: dict[str, Any], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    def event(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
        }

    yield event({"role": "assistant", "content": ""})
    for call in message.get("tool_calls", ()):
        # As the service does it: the name first, the arguments in pieces.
        arguments = call["function"]["arguments"]
        yield event({"tool_calls": [{"index": 0, **call, "function": {**call["function"], "arguments": ""}}]})
        for piece in (arguments[:7], arguments[7:]):
            yield event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    for piece in re.findall(r"\s*\S+|\s+$", message["content"] or ""):
        yield event({"content": piece})
    yield event({}, _finish_reason(message))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**event({}), "choices": [], "usage": USAGE}
