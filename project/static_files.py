"""Static files through WhiteNoise, without a thread for every other request.

WhiteNoise's middleware is synchronous: under ASGI each request would pass
through a thread, and a stream would keep it. This one hands everything but
static files straight on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from whitenoise.middleware import WhiteNoiseMiddleware

GetResponse = Callable[[HttpRequest], Any]


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]  # WhiteNoise has no types
    """WhiteNoise for sync and async sites; only paths below ``STATIC_URL`` cost a thread.

    Args:
        get_response: The rest of the site.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        super().__init__(get_response)
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer with a static file, or with what the rest of the site answers."""
        if not request.path_info.startswith(self.static_prefix):
            answer: HttpResponseBase | Awaitable[HttpResponseBase] = self.get_response(request)
            return answer
        return self._answer_async(request) if self.is_async else self._answer(request) or self.get_response(request)

    async def _answer_async(self, request: HttpRequest) -> HttpResponseBase:
        found = await sync_to_async(self._answer, thread_sensitive=False)(request)
        if found is not None:
            return found
        answer: HttpResponseBase = await self.get_response(request)
        return answer

    def _answer(self, request: HttpRequest) -> HttpResponse | None:
        path = request.path_info
        static_file = self.find_file(path) if self.autorefresh else self.files.get(path)
        if static_file is None:
            return None
        served = self.serve(static_file, request)
        # Read here, in the thread: a file response iterated under ASGI is collected with a warning.
        answer = HttpResponse(b"".join(served.streaming_content), status=served.status_code)
        served.close()
        del answer["Content-Type"]
        for name, value in served.items():
            answer[name] = value
        return answer
