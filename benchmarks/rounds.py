"""Makes the measurements: round after round, the servers of each scenario in rotated order, each a fresh process."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from benchmarks.fleet import Fleet, Kind, ServerFailed
from benchmarks.plan import KINDS, Metrics, Scenario, Size
from benchmarks.wrk import WrongAnswers

_PACKAGES = ("agent-framework-core", "django", "adrf", "fastapi", "uvicorn", "uvloop", "httptools")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round found on one server.

    Attributes:
        round: Number of the round, from 0.
        scenario: Name of the scenario.
        kind: Name of the server.
        load_before: The machine's load average of the last minute, before it.
        metrics: The figures by name.
    """

    round: int
    scenario: str
    kind: str
    load_before: float
    metrics: Metrics


@dataclass(slots=True)
class Results:
    """All that one run of the benchmarks found.

    Attributes:
        size: How much was measured.
        machine: What it was measured on.
        samples: The figures.
        left_out: What was not measured, and why.
        failures: Measurements that failed: a server did, or an answer was wrong.
    """

    size: Size
    machine: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, scenario: str, kind: str, metric: str) -> dict[int, float]:
        """Return the figures by the number of their round.

        Args:
            scenario: Name of the scenario.
            kind: Name of the server.
            metric: Name of the figure.
        """
        return {
            sample.round: sample.metrics[metric]
            for sample in self.samples
            if sample.scenario == scenario and sample.kind == kind and metric in sample.metrics
        }


def order(kinds: Sequence[str], number: int) -> list[str]:
    """Return the servers of a scenario in the order of a round: another one begins each time."""
    start = number % max(len(kinds), 1)
    return [*kinds[start:], *kinds[:start]]


def run(
    size: Size, scenarios: Sequence[Scenario], tell: Callable[[str], None], keep: Callable[[Results], None]
) -> Results:
    """Measure.

    Args:
        size: How much.
        scenarios: What.
        tell: Called with a line of progress.
        keep: Called with what was found so far, after each round.
    """
    results = Results(size, machine())
    absent = {name for scenario in scenarios for name in scenario.kinds_of(size) if not KINDS[name].python.exists()}
    results.left_out = [f"{name}: there is no {KINDS[name].python}" for name in sorted(absent)]
    with Fleet() as fleet:
        for number in range(size.rounds):
            for scenario, kind in _of_round(size, scenarios, absent, number):
                load = os.getloadavg()[0]
                began = time.monotonic()
                try:
                    with fleet.start(kind) as server:
                        metrics = scenario.measure(server, size)
                except (ServerFailed, WrongAnswers, OSError) as error:
                    # The other figures are as good as before.
                    failure = f"round {number + 1}, {scenario.name}, {kind.name}: {error!r}"
                    results.failures.append(failure)
                    tell("\n".join([failure, *getattr(error, "__notes__", [])]))
                    continue
                results.samples.append(Sample(number, scenario.name, kind.name, load, metrics))
                figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                where = f"{number + 1}/{size.rounds}, {time.monotonic() - began:.0f} s, load {load:.1f}"
                tell(f"[{where}] {scenario.name}: {kind.name}: {figures}")
            keep(results)
    return results


def _of_round(
    size: Size, scenarios: Sequence[Scenario], absent: set[str], number: int
) -> Iterator[tuple[Scenario, Kind]]:
    for scenario in scenarios:
        for name in order(scenario.kinds_of(size), number):
            if name not in absent:
                yield scenario, KINDS[name]


def machine() -> dict[str, str]:
    """Return what this machine is, and what runs on it."""
    return {
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    } | {name: version(name) for name in _PACKAGES}
