"""``python -m benchmarks.instructions``: how many instructions of the processor a turn takes, counted by valgrind.

Times differ from one moment to the next on a machine that others use too; this does not, so it tells changes of half a
percent apart. It says nothing of what waits: the system's calls, the disk, memory that is far away. What the functions
of the interpreter and of its extensions took is in the file it names, for ``callgrind_annotate``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import in_process
from benchmarks.fleet import Fleet
from benchmarks.plan import KINDS

_COLLECTED = re.compile(r"Collected : (\d+)")
_TURNS = re.compile(r"^TURNS (\d+)$", re.MULTILINE)


def main(given: Sequence[str] | None = None) -> int:
    """Count the instructions of some turns, and print how many one takes.

    Args:
        given: The command line's arguments; those of this process when omitted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=__doc__, parents=[in_process.arguments()]
    )
    parser.add_argument("--output", default="callgrind.out", help="file for callgrind_annotate")
    options = parser.parse_args(given)
    if shutil.which("valgrind") is None:
        parser.error("this needs valgrind (Debian: apt-get install valgrind)")
    kind = KINDS[options.server]
    with Fleet() as fleet:
        environment = fleet.prepared(kind) | {"PYTHONHASHSEED": "1"}
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={options.output}"]
        command += [str(kind.python), "-W", "ignore", "-m", "benchmarks.in_process", "--server", options.server]
        for name in ("connections", "stream", "turns"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--saves"] * options.saves
        # Of whichever process valgrind runs: there is one.
        command += ["--switch", "callgrind_control -i"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    counted = per_turn(done.stdout, done.stderr)
    if counted is None:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        return 1
    print(f"{options.server}: {counted:,} instructions a turn; {options.output}")
    return 0


def per_turn(output: str, log: str) -> int | None:
    """Return how many instructions a turn took; None where that was not counted.

    Args:
        output: What the turns printed.
        log: What valgrind said.
    """
    turns, collected = _TURNS.search(output), _COLLECTED.search(log)
    if turns is None or collected is None:
        return None
    return int(collected[1]) // int(turns[1])


if __name__ == "__main__":
    sys.exit(main())
