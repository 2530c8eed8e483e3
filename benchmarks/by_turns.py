"""``python -m benchmarks.by_turns``: servers that all live, each loaded for a second by turns, and their ratios.

What the machine does meanwhile hits all of them alike, so this tells smaller differences apart than rounds of fresh
servers do; what a server becomes in a long time under load it does not tell. The goals are measured by `rounds`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from benchmarks import wrk
from benchmarks.fleet import Fleet
from benchmarks.plan import KINDS


def main(given: Sequence[str] | None = None) -> int:
    """Load servers by turns, and print medians and ratios.

    Args:
        given: The command line's arguments; those of this process when omitted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.by_turns", description=__doc__)
    parser.add_argument("servers", nargs="*", default=["FastAPI by hand", "ours"], help=", ".join(KINDS))
    parser.add_argument("--turns", type=int, default=20, help="how often each is loaded")
    parser.add_argument("--seconds", type=int, default=1, help="how long each time")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--saves", action="store_true", help="a new session each")
    options = parser.parse_args(given)
    if unknown := sorted(set(options.servers) - KINDS.keys()):
        parser.error(f"no such server: {', '.join(unknown)}")
    names = list(dict.fromkeys(options.servers))
    load = wrk.Load(options.connections, saves=options.saves)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with Fleet() as fleet, ExitStack() as living:
        servers = {name: living.enter_context(fleet.start(KINDS[name])) for name in names}
        for server in servers.values():
            wrk.run(server, load, options.seconds, warm_up_seconds=0)
        for turn in range(options.turns):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(wrk.run(servers[name], load, options.seconds, warm_up_seconds=0))
    for name in names:
        print(f"{name}: {_line(found[name], found[names[0]])}")
    return 0


def _line(found: Sequence[dict[str, float]], first: Sequence[dict[str, float]]) -> str:
    """Return the medians of one server, and those of its ratios to the first in each turn."""
    parts = []
    for metric, unit in (("rate", "/s"), ("cpu_ms", " ms of processor time")):
        ratio = median(one[metric] / other[metric] for one, other in zip(found, first, strict=True))
        parts.append(f"{median(one[metric] for one in found):.4g}{unit} ({ratio:.3f}×)")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
