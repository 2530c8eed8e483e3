"""Framing of server-sent events, to the byte and through an independent reader."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from invocations_app import sse
from tests.frames import SseEvent, SseReader, read_events, read_text

DONE = sse.encode_event("[DONE]")

TROUBLE = [
    "",
    " ",
    "  two",
    "\r",
    "\n",
    "\r\n",
    "\n\r",
    "a\r",
    "\nb",
    "\n[DONE]",
    "[DONE]",
    " [DONE]",
    "[DONE]\n",
    "[",
    "DONE]",
    "data: x",
    ": comment",
    "event: error\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b\x0c",
    "\ufeff",
    "\ud83d",
    "\ude00",
    "😀",
]
PIECES = st.lists(
    st.one_of(st.sampled_from(TROUBLE), st.text(st.characters(exclude_categories=()), max_size=8)),
    max_size=12,
)


def as_read(text: str) -> str:
    """Return what the contract promises of a text."""
    return re.sub("[\ud800-\udfff]", "\ufffd", re.sub("\r\n|\r", "\n", text))


def cut(*pieces: str) -> list[bytes]:
    cutter = sse.TextCutter()
    return [frame for piece in pieces for frame in cutter.cut(piece)]


@settings(derandomize=True, deadline=None, max_examples=400)
@given(pieces=PIECES)
@example(pieces=["a\r", "\nb"])
@example(pieces=["a\r", "", "\n", "\n"])
@example(pieces=["\r", "\n[DONE]"])
@example(pieces=["\r", "\n\r", "\n"])
@example(pieces=["[DONE]"])
@example(pieces=["\ud83d", "\ude00", "\ud83d\ude00"])
def test_reader_gets_every_text_back_from_every_cutting(pieces: list[str]) -> None:
    assert read_text([*cut(*pieces), DONE]) == as_read("".join(pieces))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from(["\r", "\n", "a", "[", "]", "\ud83d", " "]), max_size=12), data=st.data())
def test_cutting_a_text_elsewhere_does_not_change_what_is_read(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    assert read_text([*cut(text[:at], text[at:]), DONE]) == read_text([*cut(text), DONE]) == as_read(text)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(pieces=PIECES, size=st.integers(1, 7))
def test_how_the_bytes_are_written_does_not_change_the_events(pieces: list[str], size: int) -> None:
    stream = b"".join([*cut(*pieces), sse.KEEPALIVE, DONE])
    blocks = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert read_events(blocks) == read_events(stream)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(pieces=PIECES)
def test_nothing_is_held_back(pieces: list[str]) -> None:
    """After each piece the reader has all of the text that was given so far."""
    cutter, reader = sse.TextCutter(), SseReader()
    for count, piece in enumerate(pieces, 1):
        for frame in cutter.cut(piece):
            reader.feed(frame)
        assert "".join(event.data for event in reader.events) == as_read("".join(pieces[:count]))


@pytest.mark.parametrize(
    ("pieces", "frames"),
    [
        (["hel", "lo"], [b"data: hel\n\n", b"data: lo\n\n"]),
        ([""], []),
        (["a\n"], [b"data: a\ndata: \n\n"]),
        (["\n"], [b"data: \ndata: \n\n"]),
        (["a\rb\r\nc\nd"], [b"data: a\ndata: b\ndata: c\ndata: d\n\n"]),
        (["a\r", "\nb"], [b"data: a\ndata: \n\n", b"data: b\n\n"]),
        (["a\r", "", "\nb"], [b"data: a\ndata: \n\n", b"data: b\n\n"]),
        (["a\r", "\n"], [b"data: a\ndata: \n\n"]),
        (["a\r", "\n\n"], [b"data: a\ndata: \n\n", b"data: \ndata: \n\n"]),
        (["a\r", "\n", "\n"], [b"data: a\ndata: \n\n", b"data: \ndata: \n\n"]),
        (["a\r", "b", "\n"], [b"data: a\ndata: \n\n", b"data: b\n\n", b"data: \ndata: \n\n"]),
        (["a\r", "\n\r", "\nb"], [b"data: a\ndata: \n\n", b"data: \ndata: \n\n", b"data: b\n\n"]),
        (["a\r\n", "\nb"], [b"data: a\ndata: \n\n", b"data: \ndata: b\n\n"]),
        (["a\r", "\n[DONE]"], [b"data: a\ndata: \n\n", b"data: [\n\n", b"data: DONE]\n\n"]),
        (["[DONE]"], [b"data: [\n\n", b"data: DONE]\n\n"]),
        ([" [DONE]"], [b"data:  [DONE]\n\n"]),
        (["[DONE]\n"], [b"data: [DONE]\ndata: \n\n"]),
        ([" two blanks  "], [b"data:  two blanks  \n\n"]),
        (["a\u2028b\u2029c\x85d\x0be\x0cf"], ["data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode()]),
        (["\ud83d", "\ude00"], [b"data: \xef\xbf\xbd\n\n", b"data: \xef\xbf\xbd\n\n"]),
        (["\ud83d\nx"], [b"data: \xef\xbf\xbd\ndata: x\n\n"]),
        (["grüße 😀"], ["data: grüße 😀\n\n".encode()]),
    ],
)
def test_pieces_give_exactly_these_frames(pieces: list[str], frames: list[bytes]) -> None:
    assert cut(*pieces) == frames


def test_event_type_comes_before_the_data() -> None:
    assert sse.encode_event("it\r\nbroke", "error") == b"event: error\ndata: it\ndata: broke\n\n"


def test_event_without_data_has_an_empty_data_line() -> None:
    assert sse.encode_event("", "error") == b"event: error\ndata: \n\n"


@pytest.mark.parametrize("name", ["a\nb", "a\r", "\r\n"])
def test_event_type_with_a_line_end_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^An event type must not hold a line end\.$"):
        sse.encode_event("x", name)


def test_id_is_the_first_line_of_an_event() -> None:
    frame = sse.with_id(sse.encode_event("x", "error"), 12)
    assert frame == b"id: 12\nevent: error\ndata: x\n\n"
    assert read_events(frame) == [SseEvent("x", "error", "12")]


def test_keepalive_is_a_comment_that_dispatches_nothing() -> None:
    assert sse.KEEPALIVE == b": keep-alive\n\n"
    reader = SseReader()
    assert reader.feed(sse.KEEPALIVE) == []
    assert reader.comments == [" keep-alive"]


def test_each_surrogate_is_replaced_paired_or_not() -> None:
    assert sse.replace_surrogates("a\ud83d\ude00b\udfff") == "a\ufffd\ufffdb\ufffd"


STANDARD_EXAMPLES = [
    # The examples of the standard, section 9.2.6.
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SseEvent("YHOO\n+2\n10")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [SseEvent("first event", last_id="1"), SseEvent("second event"), SseEvent(" third event")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [SseEvent(""), SseEvent("\n")]),
    (b"data:test\n\ndata: test\n\n", [SseEvent("test"), SseEvent("test")]),
    # And what else it says.
    (b"\xef\xbb\xbfdata: a\n\n", [SseEvent("a")]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    (b"data: \xef\xbb\xbfa\n\n", [SseEvent("\ufeffa")]),
    (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [SseEvent("a"), SseEvent("b"), SseEvent("c")]),
    (b"event: error\n\ndata: a\n\n", [SseEvent("a")]),
    (b"id: 7\n\ndata: a\n\n", [SseEvent("a", last_id="7")]),
    (b"id: 7\nid: 8\x00\nretry: 10\nother: x\n data: y\ndata: a\n\n", [SseEvent("a", last_id="7")]),
    (b"data: cut off\n", []),
    (b"data: \xff\n\n", [SseEvent("\ufffd")]),
]


@pytest.mark.parametrize(("stream", "events"), STANDARD_EXAMPLES)
def test_independent_reader_reads_as_the_standard_says(stream: bytes, events: list[SseEvent]) -> None:
    assert read_events(stream) == events
    assert read_events(stream[at : at + 1] for at in range(len(stream))) == events
