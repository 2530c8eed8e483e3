"""What was sent off and cannot be called back: it is waited for, even by one who is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

T = TypeVar("T")

#: How long it is waited for then, in seconds.
SETTLE_SECONDS = 30


class Certain(asyncio.Future[T]):
    """A future that a cancellation reaches after 30 seconds only: whoever waits for it hears of its end first.

    ``asyncio.shield`` around a future does the same with another future, two callbacks, and a further wait for whoever
    is cancelled.
    """

    _is_called_back = False

    def cancel(self, msg: Any | None = None) -> bool:
        """Do nothing for now; the task that waits is cancelled at the end, and by then this is done.

        Args:
            msg: As of ``asyncio.Future.cancel``.
        """
        if not self._is_called_back and not self.done():
            self._is_called_back = True
            self.get_loop().call_later(SETTLE_SECONDS, super().cancel, msg)
        return False
