"""A reader of server-sent events, written from the WHATWG HTML standard, section 9.2.6.

It shares nothing with the encoder it judges.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SseEvent:
    """One dispatched event."""

    data: str
    type: str = "message"
    last_id: str = ""


class SseReader:
    """Reads a byte stream, however it is cut into blocks.

    Attributes:
        events: The events dispatched so far.
        comments: The comment lines so far, without their colon.
    """

    def __init__(self) -> None:
        self.events: list[SseEvent] = []
        self.comments: list[str] = []
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._at_start = True
        self._after_cr = False
        self._line = ""
        self._data = ""
        self._type = ""
        self._last_id = ""

    def feed(self, block: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they completed."""
        before = len(self.events)
        for character in self._decode(block):
            if self._at_start:
                self._at_start = False
                if character == "\ufeff":
                    continue
            if character == "\n" and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = character == "\r"
            if character in "\r\n":
                line, self._line = self._line, ""
                self._process(line)
            else:
                self._line += character
        return self.events[before:]

    def _process(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif line.startswith(":"):
            self.comments.append(line[1:])
        else:
            name, _, value = line.partition(":")
            self._field(name, value.removeprefix(" "))

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._last_id = value
        # "retry" only tells a client when to come back; other fields are ignored.

    def _dispatch(self) -> None:
        data, self._data = self._data, ""
        event_type, self._type = self._type, ""
        if data:
            self.events.append(SseEvent(data.removesuffix("\n"), event_type or "message", self._last_id))


def read_events(blocks: bytes | Iterable[bytes]) -> list[SseEvent]:
    """Return the events of a whole stream; one that its end cut off is not dispatched."""
    reader = SseReader()
    for block in [blocks] if isinstance(blocks, bytes) else blocks:
        reader.feed(block)
    return reader.events


def read_text(blocks: bytes | Iterable[bytes]) -> str:
    """Return the text of a channel stream: its message events up to the terminator.

    Raises:
        AssertionError: If the stream has no terminator, or goes on behind it.
    """
    events = read_events(blocks)
    assert events, "the stream is empty"
    assert events[-1] == SseEvent("[DONE]", last_id=events[-1].last_id), f"the stream ends with {events[-1]}"
    texts = [event.data for event in events[:-1] if event.type == "message"]
    assert "[DONE]" not in texts, "the terminator is not the last event"
    return "".join(texts)
