"""The site of the processes: Django's, a page for a browser, a look inside, and gates around its database and answers.

``GET /debug`` tells what this process holds. ``GET /page?<URL>`` follows that
URL with an ``EventSource`` and posts what it got to ``/report``, which the test
finds as a file. The gates ``begin`` and ``commit`` lie inside the two transactions of a turn,
``answer`` behind the second one, before the end of the answer is sent.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import psycopg
from django.core.asgi import get_asgi_application
from django.db.backends.signals import connection_created

from invocations_app.lifespan import with_lifespan
from tests.processes.gates import Gate, directory

PAGE = b"""<!doctype html><title>events</title><script>
const got = [], source = new EventSource(location.search.slice(1));
let opened = 0;
const take = event => got.push([event.type, event.lastEventId, event.data]);
source.onopen = () => { opened += 1; };
source.onmessage = take;
source.addEventListener("reset", take);
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED)
    fetch("/report", {method: "POST", body: JSON.stringify({got, opened})});
};
</script>"""

_django = with_lifespan(get_asgi_application())


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer the test's own paths, and let Django answer all others."""
    path = scope.get("path")
    if path == "/debug":
        await _respond(send, json.dumps(_inside()).encode(), b"application/json")
    elif path == "/page":
        await _respond(send, PAGE, b"text/html")
    elif path == "/report":
        message = await receive()
        temporary = directory() / "report.part"
        temporary.write_bytes(message["body"])
        temporary.rename(directory() / "report")
        await _respond(send, b"", b"text/plain")
    else:
        await _django(scope, receive, _held(send))


async def _respond(send: Any, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _held(send: Any) -> Any:
    async def held(message: Any) -> None:
        body = message.get("body", b"")
        if b"[DONE]" in body or body.startswith(b'{"response"'):
            gate = Gate("answer")
            if gate.is_armed():
                await gate.wait()
        await send(message)

    return held


def _inside() -> dict[str, Any]:
    """Return what this process holds."""
    from invocations_app.runs.host import live_runs

    gc.collect()
    # What is free goes back to the system: what is left is held by something.
    ctypes.CDLL(None).malloc_trim(0)
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except OSError:
            continue
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "pid": os.getpid(),
        "tasks": sum(not task.done() for task in asyncio.all_tasks()) - 1,
        "runs": len(live_runs()),
        "threads": threading.active_count(),
        # Not by file descriptors: SQLite keeps that of a closed connection while another one is open.
        "connections": sum(wrapper.connection is not None for wrapper in list(_wrappers)),
        "sockets": sum(link.startswith("socket:") for link in links),
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }


def _at_statement(statement: str, parameters: Any = ()) -> None:
    """Wait before a statement of a turn's two transactions, whoever sends it to the driver."""
    plain = statement.replace('"', "").lstrip()
    name = None
    if plain.startswith("UPDATE invocations_app_invocationrecord"):
        if "'succeeded'" in plain or "succeeded" in (parameters or ()):
            name = "commit"
    elif plain.startswith("UPDATE invocations_app_sessionrecord SET claim_number"):
        name = "begin"
    if name is not None and Gate(name).is_armed():
        Gate(name).block()


def _watch_psycopg() -> None:
    execute = psycopg.Cursor.execute

    def watched(self: Any, query: Any, params: Any = None, **kwargs: Any) -> Any:
        if isinstance(query, str):
            _at_statement(query, params)
        return execute(self, query, params, **kwargs)

    psycopg.Cursor.execute = watched  # type: ignore[method-assign,assignment]


_wrappers: weakref.WeakSet[Any] = weakref.WeakSet()


def _wrap(connection: Any, **kwargs: Any) -> None:
    _wrappers.add(connection)
    if connection.vendor == "sqlite":
        connection.connection.set_trace_callback(_at_statement)


_watch_psycopg()
connection_created.connect(_wrap)
