"""``python -m benchmarks.profile``: load a server, and say by py-spy what its threads do meanwhile.

Prints the functions that were on the processor most often, by themselves and with what they call, and writes a
flame graph to ``benchmarks/results/``. py-spy has to be allowed to read other processes: root, or on Linux
``sysctl kernel.yama.ptrace_scope=0``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks import wrk
from benchmarks.__main__ import RESULTS
from benchmarks.fleet import Fleet, Server
from benchmarks.plan import KINDS

_RATE = 200
_SHOWN = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile a server.

    Args:
        arguments: The command line's; those of this process when omitted.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--server", choices=KINDS, default="ours")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--no-session", action="store_true", help="turns without a session")
    parser.add_argument("--stream", type=int, metavar="UPDATES", help="streams of so many updates")
    parser.add_argument("--seconds", type=int, default=8, help="how long each of the two recordings lasts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    load = wrk.Load(given.connections, saves=not given.no_session)
    if given.stream:
        load = wrk.Load(load.connections, load.saves, f"stream {given.stream}", True, "data: [DONE]")
    given.results.mkdir(parents=True, exist_ok=True)
    with Fleet() as fleet, fleet.start(KINDS[given.server]) as server:
        with tempfile.TemporaryDirectory() as directory:
            raw = Path(directory) / "raw"
            _record(server, load, given.seconds, "raw", raw)
            print(summary(raw.read_text()))
        flames = given.results / "profile.svg"
        _record(server, load, given.seconds, "flamegraph", flames)
    print(f"Written: {flames}")
    return 0


def _record(server: Server, load: wrk.Load, seconds: int, form: str, path: Path) -> None:
    arguments, environment = wrk.command(server, load, seconds + 2)
    py_spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(server.pid), "--threads"]
    py_spy += ["--duration", str(seconds), "--rate", str(_RATE), "--format", form, "--output", str(path)]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL) as wrk_process:
        try:
            subprocess.run(py_spy, check=True, stdout=subprocess.DEVNULL)
        finally:
            wrk_process.terminate()


def summary(raw: str) -> str:
    """Return shares of the samples, by thread and by function.

    Args:
        raw: py-spy's raw format: ``frame;frame;frame count`` a line, outermost first, a thread's name before them.
    """
    threads: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        threads[thread] += int(count)
        if frames:
            alone[frames[-1]] += int(count)
        within.update(dict.fromkeys(frames, int(count)))
    total = max(sum(threads.values()), 1)
    parts = []
    for title, counts in (("by thread", threads), ("by itself", alone), ("with what it calls", within)):
        parts.append(f"Share of {total} samples, {title}:")
        parts += [f"  {100 * count / total:5.1f} %  {name}" for name, count in counts.most_common(_SHOWN)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
