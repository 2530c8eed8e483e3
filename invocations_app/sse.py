"""Server-sent events: values to bytes, by the WHATWG HTML standard, section 9.2.

Pure encoding. What the events mean is left to the dialects, when they are sent
to the views.
"""

from __future__ import annotations

import re

KEEPALIVE = b": keep-alive\n\n"
TERMINATOR = "[DONE]"

_SURROGATE = re.compile("[\ud800-\udfff]")


def replace_surrogates(text: str) -> str:
    """Return a text with each surrogate as U+FFFD.

    Each one on its own, paired or not: then cutting a text between the two
    halves of a pair changes nothing.

    Args:
        text: Any string.
    """
    return _SURROGATE.sub("\ufffd", text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return replace_surrogates(text).encode()


def encode_event(data: str, event: str | None = None) -> bytes:
    r"""Return one event as bytes, up to and with its blank line.

    Only CR, LF and CRLF break lines, as in the standard: not U+2028, NEL, VT or
    any other end of line that ``str.splitlines`` knows. A trailing line end is
    kept, so ``a\n`` gives two data lines.

    Args:
        data: The event's data; surrogates become U+FFFD.
        event: The event's type; None for the default type, ``message``.

    Returns:
        The event, its lines ended by LF, without an id line.

    Raises:
        ValueError: If the type holds a line end, which would start a new field.
    """
    if "\r" in data:
        data = data.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in data:
        data = data.replace("\n", "\ndata: ")
    frame = b"data: " + _utf8(data) + b"\n\n"
    if event is None:
        return frame
    if "\r" in event or "\n" in event:
        raise ValueError("An event type must not hold a line end.")
    return b"event: " + _utf8(event) + b"\n" + frame


def with_id(frame: bytes, number: int) -> bytes:
    """Return an event with its number as id, which is its first line.

    Args:
        frame: The event, as `encode_event` gives it.
        number: Its number in its stream, from 1.
    """
    return b"id: %d\n%b" % (number, frame)


class TextCutter:
    """Frames the pieces of one text so that a standard reader gets all of it back.

    The data of the events, concatenated, is the text with CR and CRLF as LF and
    surrogates as U+FFFD, however the text was cut. Nothing is held back: each
    piece is sent when it comes. So a CR at the end of a piece is sent as a line
    end at once, and an LF that opens the next piece belongs to it and is dropped.
    """

    __slots__ = ("_after_cr",)

    def __init__(self) -> None:
        self._after_cr = False

    def cut(self, piece: str) -> list[bytes]:
        """Return the events of one piece of text.

        Args:
            piece: The next piece, in the order of the text.

        Returns:
            One event; none where the piece is empty, or is the LF of a CRLF whose
            CR was sent; two where one would read as the terminator.
        """
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == "\n":
                piece = piece[1:]
        if not piece:
            return []
        if "\n" in piece or "\r" in piece:
            self._after_cr = piece[-1] == "\r"
        elif piece == TERMINATOR:
            return [encode_event(piece[:1]), encode_event(piece[1:])]
        else:
            # Almost all of them.
            try:
                return [f"data: {piece}\n\n".encode()]
            except UnicodeEncodeError:
                pass
        return [encode_event(piece)]
