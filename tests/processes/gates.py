"""Places where one process waits for another, as files; and the journal of what agents did."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

_PAUSE_SECONDS = 0.005


def directory() -> Path:
    """Return the directory in which the processes of a test meet."""
    return Path(os.environ["PROCESSES_DIR"])


@dataclass(frozen=True)
class Gate:
    """A place to wait at.

    Attributes:
        name: Its name, the same in all processes.
        where: The directory; None for that of the environment.
    """

    name: str
    where: Path | None = None

    def _file(self, what: str) -> Path:
        return (self.where or directory()) / f"{self.name}.{what}"

    # The test's side

    def arm(self) -> None:
        """Let the next one who comes wait."""
        self._file("armed").touch()

    def open(self) -> None:
        """Let through whoever waits."""
        self._file("open").touch()

    def clear(self) -> None:
        """Forget what was."""
        for what in ("armed", "open", "reached"):
            self._file(what).unlink(missing_ok=True)

    async def reached(self, seconds: float = 10) -> None:
        """Wait until somebody stands here."""
        deadline = time.monotonic() + seconds
        while not self._file("reached").exists():
            assert time.monotonic() < deadline, f"nobody came to {self.name}"
            await asyncio.sleep(_PAUSE_SECONDS)

    # The site's side

    def is_armed(self) -> bool:
        """Say whether to wait; true for one caller only."""
        try:
            self._file("armed").unlink()
        except FileNotFoundError:
            return False
        return True

    async def wait(self) -> None:
        """Wait here until it is opened."""
        self._file("reached").touch()
        while not self._file("open").exists():
            await asyncio.sleep(_PAUSE_SECONDS)

    def block(self) -> None:
        """Wait here until it is opened, with the whole thread."""
        self._file("reached").touch()
        while not self._file("open").exists():
            time.sleep(_PAUSE_SECONDS)


@dataclass(frozen=True)
class Entry:
    """A line of the journal.

    Attributes:
        what: ``begins``, ``ends`` or ``stops``.
        token: What the user said last.
        at: When, in seconds of the machine's monotonic clock.
        pid: In which process.
    """

    what: str
    token: str
    at: float
    pid: int


def note(what: str, token: str) -> None:
    """Append a line to the journal, in one write, which the kernel keeps whole.

    Args:
        what: What happened.
        token: To what.
    """
    descriptor = os.open(directory() / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\t{token}\t{time.monotonic()}\t{os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def journal(where: Path, token: str) -> list[Entry]:
    """Return what happened to a text, in order.

    Args:
        where: The directory.
        token: What the journal's line was about, or how it began.
    """
    path = where / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = (line.split("\t") for line in lines)
    return [Entry(what, said, float(at), int(pid)) for what, said, at, pid in entries if said.startswith(token)]
