"""The sessions of the last turns, kept in this process's memory, so that the next turn need not read them.

The database decides: a turn reads the session's row first, and goes on from what
is kept only if that is what the row says, by its opaque id, its version and its
whole state text, in which each writing has a mark of its own. So another
process's turn, a reset, a row of the same number after a deletion, or a
database that was put back are all told apart.

What is kept is what reading the rows would give: messages that were read and
have not changed since, and the texts of all others. It is taken out for the
turn, so no two turns ever hold the same objects, and comes back with a commit
that was confirmed; whatever else becomes of a turn, it is gone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from invocations_app import conf
from invocations_app.storage.snapshots import Change, History

# Rough sizes of what is kept beside the texts, in bytes: of a session, of a message's text, and of its objects.
_SESSION_BYTES = 1500
_MESSAGE_BYTES = 150
_OBJECTS_BYTES = 3000
#: Messages that are freed at once: less than half a millisecond.
PIECE = 100
# Whoever said nothing for so long has most likely left.
_IDLE_SECONDS = 900


class _Kept(NamedTuple):
    opaque_id: str
    version: int
    state: str
    history: History
    size: int
    since: float


class SessionKeep:
    """Sessions by the primary key of their row, the latest last; of any thread.

    How many and how much it holds is bounded by ``SESSION_CACHE_COUNT`` and
    ``SESSION_CACHE_BYTES``. Who was silent for 15 minutes goes with the next put.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Estimated memory of what is kept, in bytes."""
        return self._size

    def take(self, session_pk: int, opaque_id: str, version: int, state: str) -> History | None:
        """Take out what is kept of a session, for the turn that has claimed it.

        Args:
            session_pk: Primary key of its row.
            opaque_id: What the row says.
            version: Likewise.
            state: Likewise.

        Returns:
            Its history; None where nothing is kept, or something else than the row says.
        """
        kept = self._pop(session_pk)
        if kept is None or (kept.opaque_id, kept.version, kept.state) != (opaque_id, version, state):
            return None
        return kept.history

    def put(self, session_pk: int, opaque_id: str, version: int, change: Change) -> list[History]:
        """Keep a session as a turn has left it, once the commit is confirmed.

        Args:
            session_pk: Primary key of its row.
            opaque_id: What the row says.
            version: The version that the turn has written.
            change: What it has written. Neither it nor its session must be used any more.

        Returns:
            The histories for which there is no room any more. To free a long one takes milliseconds, which is left to
            the caller; see `free`.
        """
        host = conf.get_host()
        if not host.session_cache_count or not host.session_cache_bytes:
            self.drop(session_pk)
            return []
        size = _make_as_read(change.history) + len(change.state)
        now = time.monotonic()
        gone = []
        with self._lock:
            self._remove(session_pk)
            if size > host.session_cache_bytes:
                return []
            self._kept[session_pk] = _Kept(opaque_id, version, change.state, change.history, size, now)
            self._size += size
            while (
                len(self._kept) > host.session_cache_count
                or self._size > host.session_cache_bytes
                or next(iter(self._kept.values())).since < now - _IDLE_SECONDS
            ):
                _, oldest = self._kept.popitem(last=False)
                self._size -= oldest.size
                gone.append(oldest.history)
        return gone

    def drop(self, session_pk: int) -> None:
        """Forget a session.

        Args:
            session_pk: Primary key of its row.
        """
        self._pop(session_pk)

    def clear(self) -> None:
        """Forget all sessions."""
        with self._lock:
            self._kept.clear()
            self._size = 0

    def _pop(self, session_pk: int) -> _Kept | None:
        with self._lock:
            return self._remove(session_pk)

    def _remove(self, session_pk: int) -> _Kept | None:
        kept = self._kept.pop(session_pk, None)
        if kept is not None:
            self._size -= kept.size
        return kept


def free(history: History) -> bool:
    """Free a piece of a history that nobody holds any more: 100 messages.

    Args:
        history: The history.

    Returns:
        Whether something is left of it.
    """
    if history.sources:
        source_id, known = next(iter(history.sources.items()))
        del known[-PIECE:]
        if not known:
            del history.sources[source_id]
    return bool(history.sources)


def _make_as_read(history: History) -> int:
    """Make of a history what the next turn would read, and return its size; what was not read is left as text."""
    size = _SESSION_BYTES
    for known in history.sources.values():
        size += _MESSAGE_BYTES * len(known)
        for item in known:
            size += len(item.payload)
            if not item.is_read:
                item.message, item.look, item.is_read = None, None, True
            elif item.message is not None:
                size += _OBJECTS_BYTES + len(item.payload)
    return size


#: What this process keeps.
sessions = SessionKeep()
