"""Random digits for ids, read from the system a few hundred ids at a time: to ask it for each costs more than the id.

The ids are secrets (an anonymous caller's invocation id is all that is asked of
who comes back for it), so the system's generator it is, and none of Python's.
"""

from __future__ import annotations

import os
import time
from collections import deque

#: Hexadecimal digits that are there at once at most: 128 bits.
DIGITS = 32

_AT_ONCE = 256
# The fixed digits of a UUID that begins with the time (RFC 9562, section 5.7): its version, and what its variant makes
# of any digit.
_VERSION = "7"
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}

# Taken from by any thread: a deque needs no lock for that.
_pool: deque[str] = deque()
# What a parent has read is not for its child too.
os.register_at_fork(after_in_child=_pool.clear)


def random_hex(digits: int = DIGITS) -> str:
    """Return random hexadecimal digits, never any of them twice.

    Args:
        digits: How many, 32 at most.
    """
    while True:
        try:
            return _pool.pop()[:digits]
        except IndexError:
            _pool.extend(os.urandom(_AT_ONCE * DIGITS // 2).hex(" ", DIGITS // 2).split())


def new_uuid() -> str:
    """Return a new UUID in its usual form: the milliseconds since 1970, and 74 random bits (version 7).

    Rows that are found by such ids stand beside one another in an index, see `isolation.Scope.key`.
    """
    text = random_hex()
    time_text = f"{time.time_ns() // 1_000_000:012x}"
    return f"{time_text[:8]}-{time_text[8:]}-{_VERSION}{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"
