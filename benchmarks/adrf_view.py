"""As little as an adrf view that runs the agent can be, on stock adrf."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from adrf.views import APIView
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from benchmarks.agent import build_agent

_AGENT = build_agent()


class InvokeView(APIView):  # type: ignore[misc]  # adrf is not typed
    """Run the agent, as JSON or as a stream; no session, no record, no task of the run's own."""

    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()

    async def post(self, request: Any) -> Any:
        """Answer."""
        given = json.loads(request.body)
        if given.get("stream"):
            return StreamingHttpResponse(_events(given["message"]), content_type="text/event-stream")
        result = await _AGENT.run(given["message"])
        body = json.dumps({"response": result.text, "session_id": None}, separators=(",", ":"))
        return HttpResponse(body.encode(), content_type="application/json")


async def _events(message: str) -> AsyncGenerator[bytes]:
    async for update in _AGENT.run(message, stream=True):
        if update.text:
            yield f"data: {update.text}\n\n".encode()
    yield b"data: [DONE]\n\n"


urlpatterns = [path("invocations/invoke", InvokeView.as_view())]
