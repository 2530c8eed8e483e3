"""What a terminal needs: texts that cannot steer it, and a sign that something is going on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from invocations_app.management.invoking.events import Event

# All control characters but tab and line feed; and those that turn the direction of the text around them.
_STEERING = dict.fromkeys(
    code
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n"
)
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"
_FRAME_SECONDS = 0.1
_CLEAR_LINE = "\r\x1b[K"


def plain(text: str) -> str:
    """Return a text without what would steer a terminal: colours, cursor, title, clipboard, direction.

    Args:
        text: Whatever a model, a tool or a server said.
    """
    return text.translate(_STEERING)


class Spinner:
    """Turns on a terminal while somebody waits; nothing at all elsewhere.

    Args:
        stream: Where to draw: a stream, or Django's wrapper of one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_shown = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._frames = _FRAMES if "utf" in (getattr(stream, "encoding", "") or "").lower() else _PLAIN_FRAMES
        self._turning: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        """Turn from here on, until `stop` or the end of the block; for the running loop."""
        if self._is_shown:
            self._turning = asyncio.create_task(self._turn())
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop, and leave an empty line."""
        if self._turning is not None:
            self._turning.cancel()
            self._turning = None
            self._draw("")

    async def _turn(self) -> None:
        began = time.monotonic()
        number = 0
        while True:
            seconds = int(time.monotonic() - began)
            self._draw(f"{self._frames[number % len(self._frames)]} waiting" + (f" {seconds} s" if seconds else ""))
            number += 1
            await asyncio.sleep(_FRAME_SECONDS)

    def _draw(self, text: str) -> None:
        self._stream.write(f"{_CLEAR_LINE}{text}", str, "")
        self._stream.flush()


class Output:
    """Writes an answer as it comes. See `turn.Reader`.

    Args:
        stream: Django's wrapper of a stream; where that is a terminal, nothing that comes can steer it.
        spinner: Stopped when the first piece is written.
        is_json: Write bodies and events in place of text.
    """

    def __init__(self, stream: Any, spinner: Spinner, *, is_json: bool) -> None:
        self._stream = stream
        self._spinner = spinner
        self._is_json = is_json
        self._is_line_open = False

    def text(self, piece: str) -> None:
        """Write a piece of the answer."""
        if not self._is_json:
            self._write(piece)

    def event(self, event: Event) -> None:
        """Write an event as a line of JSON."""
        if self._is_json:
            self._write(json.dumps({"event": event.type, "data": event.data}, ensure_ascii=False) + "\n")

    def body(self, text: str) -> None:
        """Write a body as it is."""
        if self._is_json:
            self._write(text + "\n")

    def end(self) -> None:
        """End the last line."""
        if self._is_line_open:
            self._write("\n")

    def _write(self, text: str) -> None:
        if not text:
            return
        self._spinner.stop()
        self._is_line_open = not text.endswith("\n")
        try:
            self._stream.write(plain(text) if self._stream.isatty() else text, ending="")
            self._stream.flush()
        except BrokenPipeError:
            # Who read has left, which is no stop: the run goes on, and nobody is told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
