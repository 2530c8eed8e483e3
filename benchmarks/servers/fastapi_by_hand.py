"""What one writes by hand: FastAPI, ``AgentState`` and the file store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import Any

from agent_framework import FileSessionStore
from agent_framework_hosting import AgentState
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from benchmarks.agent import build_agent

app = FastAPI()
_STATE = AgentState(build_agent, session_store=FileSessionStore(os.environ["BENCH_DIR"]))


class Envelope(BaseModel):
    """The request body."""

    message: str
    session_id: str | None = None
    stream: bool = False


@app.post("/invocations/invoke", response_model=None)
async def invoke(envelope: Envelope) -> Any:
    """Run the agent, as JSON or as a stream."""
    agent = await _STATE.get_target()
    session = await _STATE.get_or_create_session(envelope.session_id) if envelope.session_id else None
    if envelope.stream:
        return StreamingResponse(_events(agent, envelope, session), media_type="text/event-stream")
    result = await agent.run(envelope.message, session=session)
    if session is not None and envelope.session_id:
        await _STATE.set_session(envelope.session_id, session)
    return {"response": result.text, "session_id": envelope.session_id}


async def _events(agent: Any, envelope: Envelope, session: Any) -> AsyncGenerator[str]:
    async for update in agent.run(envelope.message, stream=True, session=session):
        if update.text:
            yield f"data: {update.text}\n\n"
    if session is not None and envelope.session_id:
        await _STATE.set_session(envelope.session_id, session)
    yield "data: [DONE]\n\n"
