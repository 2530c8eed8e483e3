"""What is measured, on which servers, and what the figures should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks import crowd, history, hops, streams, wrk
from benchmarks.fleet import FOUNDRY_PYTHON, Kind, Server

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        name: Its name in the results.
        rounds: How often.
        seconds: How long each load lasts, in seconds.
        lengths: Lengths of history, in messages; 1000 among them, or the goal cannot be judged.
        turns: Turns that a figure on a history is the median of.
        streams: Open slow streams.
        warm_up_seconds: How long a server is loaded before it is measured, in seconds.
    """

    name: str
    rounds: int
    seconds: int
    lengths: tuple[int, ...]
    turns: int
    streams: int
    warm_up_seconds: int = 1


FULL = Size("full", 5, 10, (10, 250, 500, 1000, 2000), 10, 500)
QUICK = Size("quick", 1, 2, (10, 1000), 4, 500)
TINY = Size("tiny", 1, 1, (4, 8), 2, 10, 0)
SIZES = {size.name: size for size in (FULL, QUICK, TINY)}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One measurement.

    Attributes:
        name: Its name in the results.
        kinds: Names of the servers that it is made on.
        measure: Makes it.
        quick: Names of those that it is made on when there is a minute for everything; None: all of them.
        needs_wrk: wrk makes it.
    """

    name: str
    kinds: tuple[str, ...]
    measure: Callable[[Server, Size], Metrics]
    quick: tuple[str, ...] | None = None
    needs_wrk: bool = True

    def kinds_of(self, size: Size) -> tuple[str, ...]:
        """Return the names of the servers that it is made on; none: it is left out.

        Args:
            size: How much is measured.
        """
        return self.kinds if self.quick is None or size.name != QUICK.name else self.quick


def _wrk(load: wrk.Load) -> Callable[[Server, Size], Metrics]:
    return lambda server, size: wrk.run(server, load, size.seconds, size.warm_up_seconds)


def _streams(*, saves: bool) -> Callable[[Server, Size], Metrics]:
    return lambda server, size: streams.measure(server, size.seconds, saves=saves)


def _crowd(server: Server, size: Size) -> Metrics:
    return crowd.measure(server, size.streams, size.seconds)


def _hops(server: Server, size: Size) -> Metrics:
    return hops.measure(server)


def _history(server: Server, size: Size) -> Metrics:
    return history.measure(server, size.lengths, size.turns, restarts=server.kind.name != "floor")


_DEFAULT_SITE = {"BENCH_HANDLER": "django", "BENCH_MIDDLEWARE": "default"}
_COUNT = {"BENCH_COUNT_HOPS": "1"}
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("floor", "floor"),
        Kind("floor, sent together", "floor", environment={"BENCH_TOGETHER": "1"}),
        Kind("stock adrf view", "adrf_by_hand", environment={"DJANGO_SETTINGS_MODULE": "benchmarks.adrf_settings"}),
        Kind("FastAPI by hand", "fastapi_by_hand"),
        Kind("Foundry host", "foundry", "/invocations", "query", python=FOUNDRY_PYTHON),
        Kind("ours", "ours"),
        Kind("ours, PostgreSQL", "ours", on_postgres=True),
        Kind("ours, PostgreSQL, 2 workers", "ours", on_postgres=True, workers=2),
        Kind("ours, no event log", "ours", environment={"BENCH_EVENT_LOG": "off"}),
        Kind("ours, token", "ours", environment={"BENCH_AUTH": "token"}),
        Kind("ours, no middleware", "ours", environment={"BENCH_HANDLER": "bare"}),
        Kind("ours, Django's handler", "ours", environment={"BENCH_HANDLER": "django"}),
        Kind(
            "ours, Django's handler, default middleware",
            "ours",
            environment=_DEFAULT_SITE,
        ),
        Kind("hops, no authentication", "ours", environment=_COUNT),
        Kind("hops, token", "ours", environment=_COUNT | {"BENCH_AUTH": "token"}),
        Kind("hops, Django's handler, default middleware", "ours", environment=_COUNT | _DEFAULT_SITE),
    )
}
_STREAM = wrk.Load(16, saves=True, message="stream 50", stream=True, expected="data: [DONE]")
_STOCK = "stock adrf view"
_TOGETHER = "floor, sent together"
_TWO = ("FastAPI by hand", "ours")
_THREE = ("floor", "FastAPI by hand", "ours")
_MIDDLEWARE = (
    "ours",
    "ours, no middleware",
    "ours, Django's handler",
    "ours, Django's handler, default middleware",
)
_HOPS = ("hops, no authentication", "hops, token", "hops, Django's handler, default middleware")
SCENARIOS = (
    Scenario("session saved, 16 connections", (*_THREE, "Foundry host"), _wrk(wrk.Load(16, saves=True))),
    Scenario(
        "no session, 16 connections",
        (*_THREE, "Foundry host", _STOCK),
        _wrk(wrk.Load(16, saves=False)),
        quick=_TWO,
    ),
    Scenario("session saved, 1 connection", _THREE, _wrk(wrk.Load(1, saves=True)), quick=_TWO),
    Scenario("no session, 1 connection", (*_THREE, _STOCK), _wrk(wrk.Load(1, saves=False)), quick=_TWO),
    Scenario("stream, session saved", _THREE, _streams(saves=True), quick=_TWO, needs_wrk=False),
    Scenario("stream, no session", (*_THREE, _TOGETHER, _STOCK), _streams(saves=False), quick=(), needs_wrk=False),
    Scenario("history", _THREE, _history, quick=_TWO, needs_wrk=False),
    Scenario("open streams", _TWO, _crowd, needs_wrk=False),
    Scenario(
        "session saved, PostgreSQL",
        ("FastAPI by hand", "ours, PostgreSQL", "ours, PostgreSQL, 2 workers"),
        _wrk(wrk.Load(16, saves=True)),
        quick=(),
    ),
    Scenario("streams of 50 updates", ("ours", "ours, no event log"), _wrk(_STREAM), quick=()),
    Scenario("token", ("ours", "ours, token"), _wrk(wrk.Load(1, saves=True)), quick=()),
    Scenario("hops to threads and back a turn", _HOPS, _hops, quick=(), needs_wrk=False),
    Scenario("middleware", _MIDDLEWARE, _wrk(wrk.Load(16, saves=True)), quick=()),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of ours beside that of another server.

    Attributes:
        number: Number of the goal.
        scenario: Name of the scenario.
        metric: Name of the figure.
        ours: Name of our server.
        peer: Name of the other one; empty for a figure that stands alone.
        bound: What ours divided by the other's should be, or ours minus the other's; None: it is told only.
        sense: Whether it should be at least so or at most.
        is_difference: Ours minus the other's, not divided by it.
        cores: Cores without which it says nothing.
    """

    number: int
    scenario: str
    metric: str
    ours: str
    peer: str
    bound: float | None = None
    sense: Literal["at least", "at most"] = "at most"
    is_difference: bool = False
    cores: int = 1

    @property
    def can_be_judged(self) -> bool:
        """Whether this machine has the cores for it."""
        return (os.cpu_count() or 1) >= self.cores


_HAND = "FastAPI by hand"
_DEFAULT = "ours, Django's handler, default middleware"
# Two workers, PostgreSQL's processes and wrk each want a core of their own.
_CORES_FOR_TWO_WORKERS = 4
GOALS = (
    Goal(1, "session saved, 16 connections", "rate", "ours", _HAND, 2.5, "at least"),
    Goal(1, "session saved, 16 connections", "rate", "ours", "Foundry host", 2.0, "at least"),
    Goal(1, "session saved, 16 connections", "rate", "ours", "floor"),
    Goal(2, "no session, 16 connections", "rate", "ours", _HAND, 0.8, "at least"),
    Goal(2, "no session, 16 connections", "rate", "ours", "Foundry host"),
    Goal(2, "no session, 16 connections", "rate", "ours", "floor"),
    Goal(2, "no session, 16 connections", "rate", _STOCK, _HAND),
    Goal(2, "no session, 1 connection", "p50_ms", "ours", _HAND, 1.6),
    Goal(2, "no session, 1 connection", "p50_ms", _STOCK, _HAND),
    Goal(2, "session saved, 1 connection", "p50_ms", "ours", _HAND, 0.6),
    Goal(3, "stream, session saved", "first_byte_ms", "ours", _HAND, 1.2),
    Goal(3, "stream, session saved", "total_ms", "ours", _HAND, 0.6),
    Goal(3, "stream, no session", "first_byte_ms", "ours", _HAND, 1.2),
    Goal(3, "stream, no session", "total_ms", "ours", _HAND, 0.6),
    Goal(3, "stream, no session", "first_byte_ms", _STOCK, _HAND),
    Goal(3, "stream, no session", "total_ms", _TOGETHER, _HAND),
    Goal(4, "history", "warm_1000_ms", "ours", _HAND, 0.3),
    Goal(4, "history", "cold_1000_ms", "ours", _HAND, 0.45),
    Goal(4, "history", "warm_message_us", "ours", _HAND, 0.3),
    Goal(4, "history", "cold_message_us", "ours", _HAND, 0.45),
    Goal(5, "open streams", "p99_ms", "ours", _HAND, 1.0),
    Goal(5, "open streams", "slowest_p99_ms", "ours", _HAND),
    Goal(5, "open streams", "peak_mib", "ours", _HAND, 1.3),
    Goal(6, "session saved, PostgreSQL", "rate", "ours, PostgreSQL", _HAND, 1.2, "at least"),
    Goal(
        6,
        "session saved, PostgreSQL",
        "rate",
        "ours, PostgreSQL, 2 workers",
        "ours, PostgreSQL",
        1.5,
        "at least",
        cores=_CORES_FOR_TWO_WORKERS,
    ),
    Goal(7, "streams of 50 updates", "rate", "ours", "ours, no event log", 0.9, "at least"),
    Goal(7, "token", "p50_ms", "ours, token", "ours", 1.0, is_difference=True),
    *(Goal(7, "hops to threads and back a turn", "hops", name, "") for name in _HOPS),
    Goal(7, "middleware", "rate", "ours", "ours, no middleware", 0.85, "at least"),
    Goal(7, "middleware", "rate", "ours, Django's handler", "ours"),
    Goal(7, "middleware", "rate", _DEFAULT, "ours"),
)
