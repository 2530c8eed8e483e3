"""Turns in the process itself, without a server and a socket around them: for counting what they cost.

``python -m benchmarks.in_process``: what `instructions` starts under valgrind. ``--switch COMMAND`` is run with ``on``
before the turns that count and with ``off`` after them; the server's start and a warm-up are not among them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.plan import KINDS
from benchmarks.prepare import TOKEN
from benchmarks.wrk import WrongAnswers

_HEADERS = [
    (b"host", b"127.0.0.1"),
    (b"content-type", b"application/json"),
    # What only one of the servers asks for.
    (b"authorization", f"Token {TOKEN}".encode()),
]


async def turn(app: Any, path: str, body: dict[str, Any]) -> bytes:
    """Take one turn by the application's ASGI interface and return the body of its answer.

    Args:
        app: The ASGI application.
        path: URL path that runs the agent.
        body: The JSON body.

    Raises:
        WrongAnswers: If the status is another one than 200.
    """
    raw = json.dumps(body).encode()
    is_read = False
    status = 0
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal is_read
        if is_read:
            # The client stays.
            await asyncio.get_running_loop().create_future()
        is_read = True
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*_HEADERS, (b"content-length", str(len(raw)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    await app(scope, receive, send)
    if status != 200:
        raise WrongAnswers(f"{status}: {b''.join(parts)[:100]!r}")
    return b"".join(parts)


class Driver:
    """Callers of one application who each ask again when they were answered.

    Args:
        app: The ASGI application.
        path: URL path that runs the agent.
        connections: How many callers there are.
        saves: Each turn has a new session.
        updates: Updates of the stream that each turn asks for; 0: JSON.
    """

    def __init__(self, app: Any, path: str, connections: int, *, saves: bool, updates: int) -> None:
        self._app = app
        self._path = path
        self._connections = connections
        self._saves = saves
        self._updates = updates
        self._asked = 0

    async def take(self, turns: int) -> int:
        """Take turns and check their answers; return how many: a multiple of the callers.

        Args:
            turns: About how many.

        Raises:
            WrongAnswers: If an answer is another one.
        """
        each = max(1, turns // self._connections)
        await asyncio.gather(*(self._call(each) for _ in range(self._connections)))
        return each * self._connections

    async def _call(self, turns: int) -> None:
        expected = b"data: [DONE]\n\n" if self._updates else b'"response":"pong"'
        for _ in range(turns):
            self._asked += 1
            body: dict[str, Any] = {"message": "ping"}
            if self._updates:
                body = {"message": f"stream {self._updates}", "stream": True}
            if self._saves:
                body["session_id"] = f"s-{self._asked}"
            # A task for each, as a server makes it.
            answer = await asyncio.create_task(turn(self._app, self._path, body))
            if expected not in answer:
                raise WrongAnswers(answer[:100].decode())


async def _start(app: Any) -> None:
    """Start the application as a server does; not every one has anything to do then."""
    started = asyncio.Event()
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    events.put_nowait({"type": "lifespan.startup"})

    async def send(message: dict[str, Any]) -> None:
        started.set()

    living = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}, "state": {}}, events.get, send))
    await asyncio.wait([living, asyncio.ensure_future(started.wait())], return_when=asyncio.FIRST_COMPLETED)


async def _drive(given: argparse.Namespace) -> int:
    kind = KINDS[given.server]
    app = importlib.import_module(f"benchmarks.servers.{kind.app}").app
    await _start(app)
    driver = Driver(app, kind.path, given.connections, saves=given.saves, updates=given.stream)
    await driver.take(given.turns)
    _switch(given.switch, "on")
    turns = await driver.take(given.turns)
    _switch(given.switch, "off")
    return turns


def _switch(command: str | None, to: str) -> None:
    if command:
        subprocess.run([*shlex.split(command), to], check=True, stdout=subprocess.DEVNULL)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of what is to be measured, for this and for who starts it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--server", choices=KINDS, default="ours")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--saves", action="store_true", help="a new session each")
    parser.add_argument("--stream", type=int, default=0, metavar="UPDATES", help="streams of so many updates")
    parser.add_argument("--turns", type=int, default=160)
    return parser


def main(given: Sequence[str] | None = None) -> int:
    """Take turns, and print how many counted.

    Args:
        given: The command line's arguments; those of this process when omitted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_process", description=__doc__, parents=[arguments()])
    parser.add_argument("--switch", help="a command that is run with on before the turns that count, and with off")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(f"TURNS {runner.run(_drive(parser.parse_args(given)))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
