"""Runs wrk against a server, and reads what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import Server
from benchmarks.prepare import TOKEN

SCRIPT = Path(__file__).with_name("load.lua")


class WrongAnswers(Exception):
    """Answers were not what they should be: the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk sends.

    Attributes:
        connections: How many connections ask at once, each again when it was answered.
        saves: Each request has a new session.
        message: What is said.
        stream: Ask for a stream.
        expected: What each answer must hold.
    """

    connections: int
    saves: bool
    message: str = "ping"
    stream: bool = False
    expected: str = '"response":"pong"'


def is_installed() -> bool:
    """Return whether there is a wrk to run."""
    return shutil.which("wrk") is not None


def run(server: Server, load: Load, seconds: int, warm_up_seconds: int = 1) -> dict[str, float]:
    """Warm a server up, then load it.

    Args:
        server: The server, answering.
        load: What to send.
        seconds: How long, in seconds.
        warm_up_seconds: How long before that, in seconds; 0: not at all.

    Returns:
        ``rate`` (requests a second), ``p50_ms``, ``p99_ms``, and ``cpu_ms`` (processor time of the server a request).

    Raises:
        WrongAnswers: If one answer was wrong, or none came.
    """
    if warm_up_seconds:
        _wrk(server, load, warm_up_seconds)
    before = server.cpu_seconds()
    found = _wrk(server, load, seconds)
    used = server.cpu_seconds() - before
    return {
        "rate": found["requests"] / found["seconds"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "cpu_ms": 1000 * used / found["requests"],
    }


def command(server: Server, load: Load, seconds: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that loads a server, and its environment.

    Args:
        server: The server.
        load: What to send.
        seconds: How long, in seconds.
    """
    environment = os.environ | {
        "BENCH_MESSAGE": load.message,
        "BENCH_EXPECTED": load.expected,
        "BENCH_STREAM": "true" if load.stream else "false",
        "BENCH_SALT": uuid.uuid4().hex[:12],
    }
    if load.saves:
        environment["BENCH_SESSION"] = server.kind.session_in
    if server.kind.environment.get("BENCH_AUTH") == "token":
        environment["BENCH_TOKEN"] = TOKEN
    connections = str(load.connections)
    return ["wrk", "-t1", "-c", connections, "-d", f"{seconds}s", "-s", str(SCRIPT), server.url], environment


def _wrk(server: Server, load: Load, seconds: int) -> dict[str, float]:
    arguments, environment = command(server, load, seconds)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    results = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise WrongAnswers(f"wrk found nothing at {server.kind.name}:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(results[0])
    if found["wrong"] or not found["requests"]:
        raise WrongAnswers(f"{server.kind.name}: {found['wrong']:g} of {found['requests']:g} answers were wrong")
    return found
