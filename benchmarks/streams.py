"""How soon a stream begins, and how long one of many updates takes: on one connection, one after the other."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.asking import Answer, Connection
from benchmarks.fleet import Server
from benchmarks.wrk import WrongAnswers

UPDATES = 2000
_WARM_UP = 3
_FEWEST = 3


def measure(server: Server, seconds: float, *, saves: bool) -> dict[str, float]:
    """Ask for streams of `UPDATES` updates.

    Args:
        server: The server, answering.
        seconds: How long, in seconds.
        saves: Each stream has a new session.

    Returns:
        Medians: ``first_byte_ms`` of the body of a stream, ``headers_ms``, and ``total_ms`` of the whole of it.

    Raises:
        WrongAnswers: If a stream did not hold every update, in order, and its end.
    """
    expected = "".join(f"{number} " for number in range(UPDATES))
    headers: list[float] = []
    first_bytes: list[float] = []
    totals: list[float] = []
    asked = 0
    with Connection(server) as connection:

        def ask() -> Answer:
            nonlocal asked
            asked += 1
            answer = connection.ask(f"stream {UPDATES}", f"stream-{asked}" if saves else None, stream=True)
            if answer.text != expected:
                raise WrongAnswers(f"{server.kind.name}: a stream of {len(answer.text)} characters")
            return answer

        for _ in range(_WARM_UP):
            ask()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or len(totals) < _FEWEST:
            answer = ask()
            headers.append(answer.headers_after)
            first_bytes.append(answer.first_byte_after)
            totals.append(answer.total)
    return {
        "headers_ms": 1000 * median(headers),
        "first_byte_ms": 1000 * median(first_bytes),
        "total_ms": 1000 * median(totals),
    }
