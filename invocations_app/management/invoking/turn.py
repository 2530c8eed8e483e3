"""One turn as its caller sees it: sent, read as it comes, picked up again when the way breaks, cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from invocations_app.management.invoking.events import Event, EventReader
from invocations_app.management.invoking.transport import (
    Answer,
    ConnectionLost,
    HeaderLines,
    Transport,
    Unreachable,
)
from invocations_app.sse import TERMINATOR

# Pauses before a request whose connection was lost is sent again, with the same id: it is never run twice.
_AGAIN_SECONDS = (0.2, 1, 2, 4, 8)
# A request that has just been sent may not have its record yet when it is to be cancelled.
_CANCEL_TRIES = 5
_CANCEL_PAUSE_SECONDS = 0.2
# With these a turn may have failed; with all others it was refused before it had a record. A stream has none.
_RECORDED = {None, 409, 500, 504}


class Refused(Exception):
    """The endpoint refused the turn, or it failed.

    Attributes:
        text: What the endpoint says.
        status: HTTP status; None where it is not known.
        code: The contract's code; None for what has no record.
        pending: What the session awaits, where that is the reason.
    """

    def __init__(
        self, text: str, status: int | None = None, code: str | None = None, pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.code = code
        self.pending = tuple(pending)

    def __str__(self) -> str:
        known = ", ".join(str(part) for part in (self.code, self.status) if part is not None)
        return f"{self.text} ({known})" if known else self.text


@dataclass(frozen=True)
class Outcome:
    """How a turn ended that ended well.

    Attributes:
        pending: What a person must answer.
        is_elsewhere: Whether the answer goes elsewhere, and was not waited for.
    """

    pending: tuple[Mapping[str, Any], ...] = ()
    is_elsewhere: bool = False


class Reader(Protocol):
    """Takes what comes, as it comes."""

    def text(self, piece: str) -> None:
        """Take a piece of the answer."""

    def event(self, event: Event) -> None:
        """Take an event of a stream, before its text."""

    def body(self, text: str) -> None:
        """Take the whole body of an answer that is no stream, before its text."""


class Turn:
    """One turn.

    Args:
        transport: The way to the endpoint.
        path: Path of the endpoint, below the site's root.
        headers: Header lines of all requests.
        body: What is posted.
        invocation_id: The id that it has.
        reader: Who takes what comes.

    Attributes:
        status_at_end: Status of the invocation after `run` was cancelled; None where there is none.
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        headers: HeaderLines,
        body: Mapping[str, Any],
        invocation_id: str,
        reader: Reader,
    ) -> None:
        self.status_at_end: str | None = None
        self._transport = transport
        self._path = path.rstrip("/")
        self._headers = headers
        self._content = json.dumps(body).encode()
        self._one = f"{self._path}/{quote(invocation_id, safe=':')}"
        self._invocation_id = invocation_id
        self._reader = reader
        self._shown = ""
        self._pending: dict[str, Mapping[str, Any]] = {}

    async def run(self) -> Outcome:
        """Send it and read the answer; cancelling this cancels the invocation, which is waited for.

        Raises:
            Refused: If it is refused or fails.
            Unreachable: If nobody could be asked.
            ConnectionLost: If the connection was lost, and could not be made again.
        """
        try:
            return await self._run()
        except asyncio.CancelledError:
            self.status_at_end = await self._cancel()
            raise

    async def _run(self) -> Outcome:
        was_lost = False
        for seconds in (*_AGAIN_SECONDS, None):
            try:
                return await self._attempt()
            except ConnectionLost:
                was_lost = True
                if seconds is None:
                    raise
            except Unreachable:
                # A server that was there may be on its way back.
                if seconds is None or not was_lost:
                    raise
            await asyncio.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self) -> Outcome:
        headers = [
            ("content-type", "application/json"),
            ("x-agent-invocation-id", self._invocation_id),
            *self._headers,
        ]
        async with self._transport.request("POST", f"{self._path}/invoke", headers, self._content) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                failed = await self._read_stream(answer)
                if failed is None:
                    return Outcome(tuple(self._pending.values()))
                text, status, pending = failed, None, ()
            else:
                body = await self._read_body(answer)
                if answer.status == 200:
                    return Outcome(tuple(body.get("pending", ())))
                if answer.status == 202:
                    return Outcome(is_elsewhere=True)
                text, status, pending = str(body["error"]), answer.status, body.get("pending", ())
        raise await self._refusal(text, status, pending)

    async def _read_body(self, answer: Answer) -> Mapping[str, Any]:
        text = (await answer.body()).decode("utf-8", "replace")
        try:
            body = json.loads(text)
            is_ours = isinstance(body, dict) and ("error" in body or answer.status in {200, 202})
        except ValueError:
            is_ours = False
        if not is_ours:
            raise Refused("This is no answer of an endpoint.", answer.status)
        self._reader.body(text)
        if answer.status == 200:
            self._reader.text(body.get("response") or "")
        return dict(body)

    async def _read_stream(self, answer: Answer) -> str | None:
        """Read a stream to its end; return the text of its failure, or None."""
        events = EventReader()
        # A request that is sent again is answered from the beginning.
        before = self._shown
        async for block in answer.blocks:
            for event in events.feed(block):
                if event.type == "error":
                    self._reader.event(event)
                    return event.data
                if event.type == "message" and event.data == TERMINATOR:
                    self._reader.event(event)
                    return None
                if event.type == "message":
                    known = len(event.data) if before.startswith(event.data) else len(before)
                    before = before[known:]
                    self._take_text(event.data[known:])
                elif event.type == "request_info":
                    self._take_request(event)
        raise ConnectionLost("the stream was cut off")

    def _take_text(self, piece: str) -> None:
        if piece:
            self._shown += piece
            self._reader.event(Event(piece))
            self._reader.text(piece)

    def _take_request(self, event: Event) -> None:
        request = json.loads(event.data)
        if request["request_id"] not in self._pending:
            self._pending[request["request_id"]] = request
            self._reader.event(event)

    async def _refusal(self, text: str, status: int | None, pending: Sequence[Mapping[str, Any]]) -> Refused:
        """Return the error with its code, which the record has: an answer has only text and status."""
        if status not in _RECORDED:
            return Refused(text, status, pending=pending)
        async with self._transport.request("GET", self._one, self._headers) as answer:
            try:
                error = json.loads(await answer.body())["error"] if answer.status == 200 else None
            except (ValueError, KeyError, TypeError):
                error = None
        if error and status in {None, error["status"]}:
            return Refused(text, error["status"], error["code"], pending)
        return Refused(text, status, pending=pending)

    async def _cancel(self) -> str | None:
        for _ in range(_CANCEL_TRIES):
            try:
                async with self._transport.request("POST", f"{self._one}/cancel", self._headers) as answer:
                    if answer.status == 200:
                        return str(json.loads(await answer.body())["status"])
            except (Unreachable, ConnectionLost):
                return None
            await asyncio.sleep(_CANCEL_PAUSE_SECONDS)
        return None
