"""Compare our platform dialect with the published host of Foundry's agents, and keep what that one answers.

Started by ``make parity`` with the Python of an environment of its own, which has the extra ``parity``. Starts
the published host and ours on loopback, sends both the same raw requests, and compares the answers. Writes
``tests/parity/recording.json`` where there is none; otherwise fails when the fresh recording differs from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "tests" / "parity" / "recording.json"
_PACKAGE = "agent-framework-foundry-hosting"
_START_SECONDS = 60


def main() -> int:
    """Record, compare, and say what differs."""
    sys.path.insert(0, str(ROOT))
    from tests.parity.compare import problems
    from tests.parity.requests import REQUESTS

    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = _ask_both(Path(directory))
    found = [problem for request in REQUESTS for problem in problems(request, theirs[request.name], ours[request.name])]
    fresh = {
        "package": _PACKAGE,
        "version": version(_PACKAGE),
        "exchanges": [
            {
                "name": request.name,
                "group": request.group,
                "request": request.raw.decode("latin-1"),
                "answer": theirs[request.name].as_json(),
            }
            for request in REQUESTS
        ],
    }
    found += _compare_recordings(fresh)
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(REQUESTS)} requests, {len(found)} problems")
    return 1 if found else 0


def _ask_both(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the answers of both hosts, by the names of the requests."""
    from tests.parity.compare import our_settings
    from tests.parity.requests import GROUPS, REQUESTS
    from tests.parity.wire import exchange

    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        # Both keep what they store in here.
        "HOME": str(directory),
        "TESTS_DB": str(directory / "ours.sqlite3"),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    environment.pop("DATABASE_URL", None)
    environment.pop("FOUNDRY_AGENT_SESSION_ID", None)
    migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, check=True, cwd=directory, env=environment)
    theirs, ours = {}, {}
    for name, group in GROUPS.items():
        settings = json.dumps({"INVOCATIONS": our_settings(group)})
        variables = environment | dict(group.environment)
        uvicorn = ["uvicorn", "tests.asgi:application", "--lifespan", "off", "--log-level", "warning", "--port"]
        with (
            _server(["tests.parity.published"], [name], directory, variables) as published_port,
            _server(uvicorn, [], directory, variables | {"TEST_SETTINGS": settings}) as our_port,
        ):
            for request in REQUESTS:
                if request.group == name:
                    theirs[request.name] = exchange(published_port, request.raw)
                    ours[request.name] = exchange(our_port, request.raw)
    return theirs, ours


@contextlib.contextmanager
def _server(
    command: list[str], after_port: list[str], directory: Path, environment: Mapping[str, str]
) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    arguments = [sys.executable, "-m", *command, str(port), *after_port]
    log = directory / f"{port}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(arguments, cwd=directory, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            _wait_open(port, process, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"A server did not start:\n{log.read_text()}")


def _compare_recordings(fresh: dict[str, Any]) -> list[str]:
    text = json.dumps(fresh, indent=1) + "\n"
    if not RECORDING.exists():
        RECORDING.write_text(text)
        print(f"Recorded {RECORDING.relative_to(ROOT)}.")
        return []
    kept = json.loads(RECORDING.read_text())
    if kept == fresh:
        return []
    found = []
    if kept["version"] != fresh["version"]:
        found.append(f"The version is {fresh['version']}, recorded: {kept['version']}")
    old = {item["name"]: item for item in kept["exchanges"]}
    new = {item["name"]: item for item in fresh["exchanges"]}
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            found.append(f"{name}: {new.get(name)}, recorded: {old.get(name)}")
    found.append(
        f"The recording differs. To keep the fresh one, delete {RECORDING.relative_to(ROOT)} and run this again."
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
