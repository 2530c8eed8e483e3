"""``GET /readiness``: whether this process can serve."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from invocations_app.dialects.strict_json import dump_compact
from invocations_app.runs import is_ready
from invocations_app.views.responses import json_response


@csrf_exempt
async def readiness(request: HttpRequest) -> HttpResponse:
    """Say whether this process can serve: 200, or 503 with what is failing.

    Args:
        request: Django's request.
    """
    if request.method not in {"GET", "HEAD"}:
        return json_response(b'{"error":"method not allowed"}', 405, {"Allow": "GET, HEAD"})
    failing = await is_ready()
    if not failing:
        return json_response(b'{"status":"healthy"}', 200)
    body = dump_compact({"status": "unhealthy", "failing": failing})
    return json_response(body.encode(), 503)
