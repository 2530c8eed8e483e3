"""Strict JSON: request bodies read, answers written.

What a refused body is answered with is left to the dialects.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NoReturn

from invocations_app import json_text
from invocations_app.sse import replace_surrogates

MAX_DEPTH = 100
MAX_INTEGER_DIGITS = 4300

_BLANKS = " \t\n\r"
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class InvalidJson(Exception):
    """A body is not strict JSON.

    Args:
        text: What is wrong; where Python's decoder found it, its own text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


def _integer(digits: str) -> int:
    # Python's own limit is the same, but a process may have lifted it.
    if len(digits) - digits.startswith("-") > MAX_INTEGER_DIGITS:
        raise ValueError(f"Integers have at most {MAX_INTEGER_DIGITS} digits")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("Numbers must be finite")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_compact = json_text.encoder(ensure_ascii=False, allow_nan=False, compact=True)
_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _depth(text: str) -> int:
    """Return how deep the brackets of a JSON text nest.

    Counted in the text, before it is decoded: decoding nests as deep as the
    text does, and the value no longer holds what a duplicate key replaced.
    """
    bare = text.replace("\\\\", "").replace('\\"', "")
    outside_strings = "".join(bare.split('"')[::2])
    steps = outside_strings.encode().translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def loads(body: bytes) -> Any:
    """Decode a request body.

    UTF-8, one leading byte order mark allowed; of duplicate keys the last wins;
    non-finite numbers (by overflow too), integers of more than 4300 digits and a
    depth over 100 are refused.

    Args:
        body: The raw bytes.

    Returns:
        The JSON value; its strings may hold lone surrogates.

    Raises:
        InvalidJson: If the body is anything else.
    """
    try:
        # The codec that knows the mark is written in Python, and looked up for each body.
        text = body.removeprefix(codecs.BOM_UTF8).decode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise InvalidJson(f"Values nest deeper than {MAX_DEPTH}")
        if text.startswith("{"):
            # As ``decode`` does where nothing stands before the value, without looking for that.
            value, end = _decoder.raw_decode(text)
            if not text[end:].strip(_BLANKS):
                return value
        return _decoder.decode(text)
    except ValueError as error:
        raise InvalidJson(str(error)) from None


def may_hold_surrogates(body: bytes) -> bool:
    """Return whether a decoded body may hold lone surrogates.

    They can come from an escape only: strict UTF-8 has none. Hence a cheap test
    that spares most bodies the thorough one.

    Args:
        body: The raw bytes.
    """
    return b"\\ud" in body or b"\\uD" in body


def has_surrogates(value: Any) -> bool:
    """Return whether any string of a JSON value, keys included, holds a lone surrogate.

    Args:
        value: A decoded JSON value.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def dump_compact(value: Mapping[str, Any]) -> str:
    """Return a body as compact JSON, characters unescaped, surrogates as U+FFFD.

    Args:
        value: A JSON object.

    Raises:
        ValueError: If a number in it is not finite.
    """
    return replace_surrogates(_compact(value))
