"""``python -m benchmarks``: measure, print one table, and write the figures and a plot to ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot, report, rounds, wrk
from benchmarks.plan import SCENARIOS, SIZES
from benchmarks.rounds import Results

RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 where a measurement failed, not where a goal was missed.

    Args:
        arguments: The command line's; those of this process when omitted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full", help="how much is measured")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="scenarios whose names hold this; may be repeated"
    )
    parser.add_argument("--rounds", type=int, help="another number of rounds")
    parser.add_argument("--seconds", type=int, help="another length of each load")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the files go")
    given = parser.parse_args(arguments)
    chosen = [scenario for scenario in SCENARIOS if not given.only or any(text in scenario.name for text in given.only)]
    if not chosen:
        parser.error("no scenario has such a name: " + "; ".join(scenario.name for scenario in SCENARIOS))
    if not wrk.is_installed() and any(scenario.needs_wrk for scenario in chosen):
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    size = SIZES[given.size]
    changes = {"rounds": given.rounds, "seconds": given.seconds}
    size = type(size)(**{name: changes.get(name) or getattr(size, name) for name in size.__slots__})
    name = f"{size.name}-partial" if given.only else size.name
    given.results.mkdir(parents=True, exist_ok=True)

    def keep(results: Results) -> None:
        report.write_json(results, given.results / f"{name}.json")
        plot.write_svg(results, given.results / f"{name}.svg")

    results = rounds.run(size, chosen, lambda line: print(line, file=sys.stderr, flush=True), keep)
    print(report.every_figure(results))
    print(report.table(results))
    print(f"Written: {given.results / name}.json and .svg")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
