"""Making many objects at once without the garbage collector in between.

The collector takes fresh objects that stay for garbage to look through: while a
long history is decoded it goes over all of the process again and again, and
finds nothing.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_paused = 0
_was_enabled = False


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Let the collector rest, in the whole process; of any thread, for a few milliseconds and no `await`."""
    global _paused, _was_enabled
    with _lock:
        if _paused == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _lock:
            _paused -= 1
            if _paused == 0 and _was_enabled:
                gc.enable()
