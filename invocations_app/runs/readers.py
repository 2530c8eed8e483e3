"""Those who wait for the answer of a POST: the first caller, and who repeats the request."""

from __future__ import annotations

import asyncio
import contextlib

from invocations_app import conf
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect
from invocations_app.events import Done, Failed
from invocations_app.exceptions import SessionBusy, ShuttingDown
from invocations_app.runs.body import StreamBody
from invocations_app.runs.follow import Follower, final_frames, wait_for_end, whole_frames
from invocations_app.runs.host import get_host
from invocations_app.runs.run import Run
from invocations_app.storage import database, invocations
from invocations_app.storage.invocations import StoredInvocation

_RENEWALS = 3


class FirstReader:
    """The POST that started a run; the run waits for it where it is slow."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._place = run.tape.hold()
        self._final = False
        self._left = False
        run.reader_came()

    def leave(self) -> None:
        """Stop reading; harmless when done before."""
        if not self._left:
            self._left = True
            self._run.tape.release(self._place)
            self._run.reader_left()

    async def started(self) -> StoredInvocation | None:
        """Wait until the turn was begun.

        Returns:
            None; or the invocation that was begun with this id before.

        Raises:
            InvocationError: If it was refused.
        """
        try:
            # Nobody else waits for it, so it may be cancelled with the one who does.
            return await self._run.started
        except asyncio.CancelledError:
            self.leave()
            raise

    async def outcome(self) -> Done | Failed:
        """Wait for the end; what is read is the last event only."""
        self._run.tape.release(self._place)
        ended = self._run.ended
        try:
            # The run is not the reader's to cancel.
            return ended.result() if ended.done() else await asyncio.shield(ended)
        except asyncio.CancelledError:
            self.leave()
            raise

    def ready(self) -> bytes | None:
        """Return the wire events that are ready, with the last one after them; empty at the end, None for nothing."""
        tape, place = self._run.tape, self._place
        frames = place.take()
        if not tape.closed:
            return b"".join(frames) if frames else None
        frames = frames or []
        if place.position >= tape.last and not self._final:
            self._final = True
            frames.append(tape.final)
        return b"".join(frames)

    async def next(self) -> bytes:
        """Wait for wire events; return those that are ready, empty at the end."""
        while True:
            # At once where something is there.
            await self._place.wait()
            chunk = self.ready()
            if chunk is not None:
                return chunk

    def body(self) -> StreamBody:
        """Return the wire events from the first one, as the body of a response."""
        endpoint = self._run.endpoint
        return StreamBody(
            self, keepalive_seconds=endpoint.keepalive_seconds, stall_seconds=endpoint.reader_stall_seconds
        )


class Joiner:
    """A POST that repeats one: it gets what the first one gets, and never slows the run.

    Args:
        stored: The invocation that was begun with the id.
        endpoint: The endpoint.

    Raises:
        ShuttingDown: If it runs elsewhere, and this process is to end.
    """

    def __init__(self, stored: StoredInvocation, endpoint: EndpointSettings) -> None:
        self._stored = stored
        self._endpoint = endpoint
        self._follower = Follower(stored.pk, 0, _stored_whole)
        host = get_host()
        self._run = None if stored.has_ended else host.runs.get(stored.pk)
        if host.closing and self._run is None and not stored.has_ended:
            raise ShuttingDown
        self._renewing: asyncio.Task[None] | None = None
        self._told = False
        if self._run is not None:
            self._run.reader_came()
        elif not stored.has_ended and endpoint.on_disconnect == "cancel":
            self._renewing = asyncio.create_task(self._stay_joined())

    def leave(self) -> None:
        """Stop reading; harmless when done before."""
        run, self._run = self._run, None
        if run is not None:
            run.reader_left()
        if self._renewing is not None:
            self._renewing.cancel()

    async def outcome(self) -> StoredInvocation | None:
        """Wait for the end, in whichever process the run is.

        Returns:
            The ended invocation; None where the record is gone.

        Raises:
            ShuttingDown: If it runs elsewhere, and this process is to end.
        """
        try:
            return self._stored if self._stored.has_ended else await wait_for_end(self._stored.pk)
        finally:
            self.leave()

    def ready(self) -> bytes | None:
        """Return None: what is ready may be in another process, and is waited for."""
        return None

    async def next(self) -> bytes:
        """Wait for wire events; return those that are ready, empty at the end."""
        frames = [frame for _, frame in await self._follower.next()]
        if not frames and self._follower.is_gone and not self._told:
            self._told = True
            # It waited for its session, in vain, and left no trace.
            encoder = get_dialect(self._stored.dialect).invocations_from_streaming_run()
            frames = encoder.encode(Failed(SessionBusy()))
        return b"".join(frames)

    def body(self) -> StreamBody:
        """Return the wire events from the first one, as the body of a response."""
        endpoint = self._endpoint
        return StreamBody(
            self, keepalive_seconds=endpoint.keepalive_seconds, stall_seconds=endpoint.reader_stall_seconds
        )

    async def _stay_joined(self) -> None:
        """Tell the process that runs it that somebody waits here."""
        seconds = conf.get_host().lease_seconds
        while True:
            # What is missed is told again before the lease is over.
            with contextlib.suppress(*database.UNREACHABLE):
                await invocations.keep_joined(self._stored.pk, seconds)
            await asyncio.sleep(seconds / _RENEWALS)


def _stored_whole(stored: StoredInvocation) -> list[bytes]:
    """Return the stored text as one event, where the recorded ones are trimmed."""
    return whole_frames(stored) + final_frames(stored)
