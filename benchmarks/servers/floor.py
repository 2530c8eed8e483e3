"""The floor: bare ASGI around ``Agent.run``, sessions in a capped dictionary.

``BENCH_TOGETHER=1``: of a stream the first update is sent at once, and what follows together, 256 at a time.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from typing import Any

from agent_framework import AgentSession, Message

from benchmarks.agent import build_agent

_AGENT = build_agent()
_SESSIONS: OrderedDict[str, AgentSession] = OrderedDict()
_KEPT = 10_000
_TOGETHER = 256 if os.environ.get("BENCH_TOGETHER") else 1
_JSON = [(b"content-type", b"application/json")]
_SSE = [(b"content-type", b"text/event-stream")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer the channel dialect's requests, as far as the benchmarks send them."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    given = json.loads(body)
    session_id = given.get("session_id")
    session = None
    if session_id:
        session = _SESSIONS.get(session_id)
        if session is None:
            session = _SESSIONS[session_id] = AgentSession(session_id=session_id)
            if len(_SESSIONS) > _KEPT:
                _SESSIONS.popitem(last=False)
    message = Message("user", [given["message"]])
    if given.get("stream"):
        await send({"type": "http.response.start", "status": 200, "headers": _SSE})
        chunk, ready, wanted = b"", 0, 1
        async for update in _AGENT.run(message, stream=True, session=session):
            chunk += b"data: " + update.text.encode() + b"\n\n"
            ready += 1
            if ready == wanted:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk, ready, wanted = b"", 0, _TOGETHER
        await send({"type": "http.response.body", "body": chunk + b"data: [DONE]\n\n"})
        return
    result = await _AGENT.run(message, session=session)
    answer = json.dumps({"response": result.text, "session_id": session_id}, separators=(",", ":")).encode()
    await send({"type": "http.response.start", "status": 200, "headers": _JSON})
    await send({"type": "http.response.body", "body": answer})
