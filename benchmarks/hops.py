"""How often a turn is handed to a thread pool or back: counted, not timed."""

from __future__ import annotations

from statistics import median

from benchmarks.asking import Connection
from benchmarks.fleet import Server
from benchmarks.wrk import WrongAnswers

_TURNS = 20


def measure(server: Server) -> dict[str, float]:
    """Take turns, each with a new session, and return the median of what the server counted, ``hops``.

    Args:
        server: A server that counts (``BENCH_COUNT_HOPS``).

    Raises:
        WrongAnswers: If an answer is another one.
    """
    counts = []
    with Connection(server) as connection:
        for number in range(_TURNS):
            answer = connection.ask(f"turn {number}", f"hops-{number}")
            if answer.text != f"pong turn {number}":
                raise WrongAnswers(f"{server.kind.name}: {answer.text[:100]!r}")
            counts.append(int(answer.headers["x-thread-hops"]))
    return {"hops": median(counts)}
