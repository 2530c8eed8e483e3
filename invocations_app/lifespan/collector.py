"""Python's garbage collector in a server process: fewer short rounds, and full ones when nothing runs.

A full round goes over every object there is, and nothing else happens in the
process meanwhile: half a second with 500 open streams, each of which holds what
the framework has gathered of its answer. Python makes one whenever a quarter
has come to what there was, so while streams grow it makes many, and finds
nothing: they are not garbage yet. Once they have ended a round takes
milliseconds.

A short round goes over the objects that came since the last one. Python makes
it whenever 700 came that did not go, which is what two turns on their way hold:
sixteen at once are gone over several times each, and none of it is garbage.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable

# How often a moment is looked for.
_LOOK_SECONDS = 1.0
# The place of full rounds among Python's counts and thresholds.
_OLDEST = 2
# How many objects come, and do not go, while full rounds are left to this module, before Python makes one after all.
_MOST_OBJECTS = 2_100_000
# The thresholds of short rounds that Pythons come with; any other one is a site's own.
_PYTHONS_YOUNG = (700, 2000)
# From here on a full round is made of small steps, and there is nothing to wait with.
_STEPS_ARE_SMALL = sys.version_info >= (3, 14)


class Collector:
    """Lets the collector pass over what is there at the start, look less often, and do its full rounds later.

    Args:
        freeze: Whether it passes over what is there at the start.
        young_objects: How many objects come, and do not go, between two short rounds; 0: Python decides.
        defer_seconds: How long a full round waits at most, in seconds; 0: Python decides.
        is_busy: Tells whether anything runs.
    """

    def __init__(self, *, freeze: bool, young_objects: int, defer_seconds: float, is_busy: Callable[[], bool]) -> None:
        self._freeze = freeze
        self._young_objects = young_objects
        self._defer_seconds = defer_seconds
        self._is_busy = is_busy
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._thresholds = gc.get_threshold()
        self._due_count = self._thresholds[_OLDEST]
        self._due_since: float | None = None

    def start(self) -> None:
        """Begin, when all is there that lives as long as the process."""
        if self._freeze:
            gc.collect()
            gc.freeze()
        if _STEPS_ARE_SMALL:
            return
        young, middle, oldest = self._thresholds
        if young in _PYTHONS_YOUNG and self._young_objects:
            # Full rounds come after as many objects as before: after fewer rounds, of more.
            self._due_count = oldest * young // self._young_objects
            oldest = max(1, self._due_count) if oldest else 0
            young = self._young_objects
        most = max(1, _MOST_OBJECTS // max(1, young * middle))
        if self._defer_seconds and 0 < oldest < most:
            oldest = most
            self._look_later()
        gc.set_threshold(young, middle, oldest)

    def stop(self) -> None:
        """Leave the collector as it was; harmless when done before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not _STEPS_ARE_SMALL:
            gc.set_threshold(*self._thresholds)
        if self._freeze:
            gc.unfreeze()

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._look_later()
        if not gc.isenabled() or gc.get_count()[_OLDEST] <= self._due_count:
            self._due_since = None
            return
        now = self._loop.time()
        if self._due_since is None:
            self._due_since = now
        if not self._is_busy() or now - self._due_since >= self._defer_seconds:
            self._due_since = None
            gc.collect()
