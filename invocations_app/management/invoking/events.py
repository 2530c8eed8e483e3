"""Server-sent events from bytes, by the WHATWG HTML standard, section 9.2.6: what ``sse`` writes, read again."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        data: Its data.
        type: Its type.
    """

    data: str
    type: str = "message"


class EventReader:
    """Reads one stream, however it is cut into blocks. Ids and retry times are for others."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = True
        self._after_cr = False
        self._rest = ""
        self._data: list[str] = []
        self._type = ""

    def feed(self, block: bytes) -> list[Event]:
        """Return the events that some more bytes complete.

        Args:
            block: The bytes that came.
        """
        text = self._decoder.decode(block)
        if not text:
            return []
        if self._is_first:
            self._is_first = False
            text = text.removeprefix("\ufeff")
        if self._after_cr:
            # Its CR ended a line already.
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r") if text else False
        *lines, self._rest = _LINE_END.split(self._rest + text)
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> Event | None:
        if not line:
            event = Event("\n".join(self._data), self._type or "message") if self._data else None
            self._data, self._type = [], ""
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        return None
