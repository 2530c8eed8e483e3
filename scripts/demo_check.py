"""Prove the README: start the demonstration, send its curl lines, compare the answers.

The blocks share their shell variables, as in a reader's terminal. A ``…`` in a
printed answer stands for an id or a time, ``{…}`` for an object without others
in it. On a free port, with a database of its own and the offline agent; the
server is stopped on every way out. Exit status 1: an answer differs, or there
is none.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README_URL = "http://127.0.0.1:8000"
START_SECONDS = 60
STOP_SECONDS = 15

_EXAMPLE = re.compile(r"^```bash\n(?P<command>.*?)\n```\n(?:(?!```).)*?^```text\n(?P<answer>.*?)^```$", re.M | re.S)
# What a "…" stands for: a piece of an id or of a time, and nothing that ends a JSON string.
_ANY = r"[\w.:+-]+"
_ANY_OBJECT = r"\{[^{}]*\}"
# The variables of a block are read from a file and left in it for the next one.
_SHELL = 'test ! -e variables || . ./variables; set -a\n{}\nended=$?; export -p >variables; exit "$ended"'


class DemoFailed(Exception):
    """The demonstration is not what the README says."""


def read_examples(readme: str) -> list[tuple[str, str]]:
    """Return the curl commands of a README, each with the answer printed below it.

    Args:
        readme: Its text; a command is a ``bash`` block, its answer the next
            block, a ``text`` one.

    Raises:
        DemoFailed: If a curl command has no answer, or there is none at all.
    """
    examples = [(found["command"], found["answer"].strip("\n")) for found in _EXAMPLE.finditer(readme)]
    if not examples or len(examples) != len(re.findall(r"^```bash$", readme, re.M)):
        raise DemoFailed("README.md: each bash block needs a text block with its answer below it")
    return examples


def check(examples: list[tuple[str, str]], url: str) -> None:
    """Send the commands to a server and compare what they print.

    Args:
        examples: Commands and answers, as `read_examples` returns them.
        url: Where the server is, in place of the README's address.

    Raises:
        DemoFailed: If a command fails or prints something else.
    """
    with tempfile.TemporaryDirectory(prefix="demo-check-") as directory:
        for command, expected in examples:
            print(f"$ {command}")
            done = subprocess.run(
                ["/bin/sh", "-c", _SHELL.format(command.replace(README_URL, url))],
                cwd=directory,
                env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            answer = done.stdout.strip("\n")
            print(answer + done.stderr, flush=True)
            if done.returncode != 0 or not is_printed(answer, expected):
                raise DemoFailed(f"curl ended with {done.returncode}; expected was:\n{expected}")


def is_printed(answer: str, expected: str) -> bool:
    """Return whether an answer is the printed one.

    Args:
        answer: What a command printed.
        expected: What the README prints; each ``…`` stands for an id or a time,
            or the rest of one, and ``{…}`` for an object.
    """
    objects = [_ANY.join(map(re.escape, part.split("…"))) for part in expected.split("{…}")]
    return re.fullmatch(_ANY_OBJECT.join(objects), answer) is not None


@contextmanager
def running_demo(extra_env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run ``scripts/demo.py`` on a free port with a database that is thrown away.

    Args:
        extra_env: Further environment variables; without any the agent is offline.

    Yields:
        The server's address.

    Raises:
        DemoFailed: If it is not ready within `START_SECONDS`.
    """
    with tempfile.TemporaryDirectory(prefix="demo-check-") as directory, socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
        chosen.close()
        env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        env |= {"DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "1", "PYTHONUNBUFFERED": "1"}
        env |= {"DATABASE_URL": f"sqlite:///{directory}/demo.sqlite3", **(extra_env or {})}
        command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", str(port)]
        with subprocess.Popen(command, env=env, stdout=sys.stderr, start_new_session=True) as server:
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_ready(url, server)
                yield url
            finally:
                _stop(server)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    reason = "no answer"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoFailed(f"the server ended with {server.returncode} before it was ready")
        try:
            with direct.open(f"{url}/readiness", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError as problem:
            reason = str(problem)
        time.sleep(0.1)
    raise DemoFailed(f"{url}/readiness is not 200 after {START_SECONDS} seconds: {reason}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def main() -> int:
    """Check the README and return the exit status."""
    if shutil.which("curl") is None:
        print("demo-check: curl is not installed", file=sys.stderr)
        return 1
    # A signal too must stop the server: it becomes an exception here, which it passes on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        examples = read_examples((ROOT / "README.md").read_text(encoding="utf-8"))
        with running_demo() as url:
            check(examples, url)
    except (DemoFailed, subprocess.TimeoutExpired) as problem:
        print(f"demo-check: {problem}", file=sys.stderr)
        return 1
    print(f"demo-check: {len(examples)} answers are as README.md says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
