"""This project, as a site would serve it.

``BENCH_HANDLER``: ``own`` (the handler of `by_path` with its documented middleware), ``bare`` (the same without
middleware) or ``django`` (Django's handler). ``BENCH_EVENT_LOG=off``: streamed events are not recorded, which no
site can choose. ``BENCH_COUNT_HOPS=1``: each answer says in ``x-thread-hops`` how often work was handed to a thread
pool or back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site_settings")

from asgiref.current_thread_executor import CurrentThreadExecutor
from django.core.asgi import get_asgi_application


def _count_hops(application: Any) -> Any:
    hops = 0

    def counted(submit: Any) -> Any:
        def submit_counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal hops
            hops += 1
            return submit(*args, **kwargs)

        return submit_counted

    for kind in (ThreadPoolExecutor, CurrentThreadExecutor):
        setattr(kind, "submit", counted(kind.submit))  # noqa: B010 - mypy forbids the assignment

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        before = hops

        async def send_counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-thread-hops", str(hops - before).encode())]
            await send(message)

        await application(scope, receive, send_counted)

    return counting


def _forget_events() -> None:
    from invocations_app.storage import event_log
    from invocations_app.storage.event_log import Batch

    async def append(owner: str, batches: Sequence[Batch]) -> set[int]:
        return {batch.record_pk for batch in batches}

    def write_batch(using: str, batch: Batch) -> None:
        return None

    event_log.append = append
    event_log.write_batch = write_batch


def _build() -> Any:
    application: Any = get_asgi_application()
    # Only importable once Django is set up.
    from invocations_app.handler import InvocationsHandler, by_path
    from invocations_app.lifespan import with_lifespan

    if os.environ.get("BENCH_EVENT_LOG") == "off":
        _forget_events()
    handler = os.environ.get("BENCH_HANDLER", "own")
    if handler != "django":
        application = by_path(application, InvocationsHandler(()) if handler == "bare" else None)
    application = with_lifespan(application)
    return _count_hops(application) if os.environ.get("BENCH_COUNT_HOPS") else application


app = _build()
