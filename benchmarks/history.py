"""How long a turn takes on a long history: in a session in use (warm), and after a restart of the server (cold)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import linear_regression, median

from benchmarks.asking import Answer, Connection
from benchmarks.fleet import Server
from benchmarks.wrk import WrongAnswers

_WARM_UP = 20


def measure(server: Server, lengths: Sequence[int], turns: int, *, restarts: bool = True) -> dict[str, float]:
    """Take turns in sessions of given lengths.

    Args:
        server: The server, answering.
        lengths: Numbers of messages that the sessions begin with.
        turns: How many turns each figure is the median of; as many sessions are made for the cold ones.
        restarts: Measure cold turns too, for which the server is started again on what it stored.

    Returns:
        ``warm_<length>_ms`` and ``cold_<length>_ms``, and what each message adds to them, ``warm_message_us`` and
        ``cold_message_us``, by linear regression.

    Raises:
        WrongAnswers: If an answer is another one, or the agent does not see the whole history.
    """
    found: dict[str, float] = {}
    with Connection(server) as connection:
        _warm_up(server, connection)
        for length in lengths:
            for number in range(turns if restarts else 1):
                _ask(server, connection, f"seed {length}", f"long-{length}-{number}")
        for length in lengths:
            _count(server, connection, length)
        # The lengths in turn, so that a slow moment does not meet one of them only.
        warm: dict[int, list[float]] = {length: [] for length in lengths}
        for number in range(turns):
            for length in lengths:
                warm[length].append(_turn(server, connection, f"long-{length}-0", number))
        found |= {f"warm_{length}_ms": 1000 * median(times) for length, times in warm.items()}
    kinds = ["warm"]
    if restarts:
        kinds.append("cold")
        server.restart()
        with Connection(server) as connection:
            _warm_up(server, connection)
            # Likewise.
            cold: dict[int, list[float]] = {length: [] for length in lengths}
            for number in range(turns):
                for length in lengths:
                    cold[length].append(_turn(server, connection, f"long-{length}-{number}", turns + 1))
            found |= {f"cold_{length}_ms": 1000 * median(times) for length, times in cold.items()}
    for kind in kinds:
        slope, _ = linear_regression(lengths, [found[f"{kind}_{length}_ms"] for length in lengths])
        found[f"{kind}_message_us"] = 1000 * slope
    return found


def _warm_up(server: Server, connection: Connection) -> None:
    for number in range(_WARM_UP):
        _turn(server, connection, f"warm-up-{server.pid}-{number // 2}", number)


def _count(server: Server, connection: Connection, length: int) -> None:
    text = _ask(server, connection, "count", f"long-{length}-0").text
    if int(text.removeprefix("pong ")) <= length:
        raise WrongAnswers(f"{server.kind.name}: after {length} messages the agent was given {text}")


def _turn(server: Server, connection: Connection, session: str, number: int) -> float:
    answer = _ask(server, connection, f"turn {number}", session)
    if answer.text != f"pong turn {number}":
        raise WrongAnswers(f"{server.kind.name}: {answer.text[:100]!r}")
    return answer.total


def _ask(server: Server, connection: Connection, message: str, session: str) -> Answer:
    answer = connection.ask(message, session)
    if answer.status != 200:
        raise WrongAnswers(f"{server.kind.name}: status {answer.status} for {message!r}")
    return answer
