"""One invocation: its status and result, its events, and its cancellation."""

from __future__ import annotations

import re
from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase

from invocations_app import runs, sse
from invocations_app.dialects.status import reset_frame
from invocations_app.dialects.strict_json import dump_compact
from invocations_app.envelope import is_well_formed_id
from invocations_app.exceptions import InvocationNotFound, MalformedEventId, StreamsNeedAsgi
from invocations_app.runs import Follower, StoredInvocation, StreamBody
from invocations_app.views.base import InvocationsView
from invocations_app.views.responses import invocation_headers, json_response, no_content, stream_response

_NUMBER = re.compile(r"0*([0-9]+)")
# Beyond every number that an event has, and within what a database column compares with.
_BEYOND = 10**9


class InvocationView(InvocationsView):
    """``GET {path}/{id}``: status and result."""

    http_method_names = ["get"]

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer the status body.

        Args:
            body: Unused.
            *args: Unused.
            **kwargs: ``invocation_id``.

        Raises:
            InvocationNotFound: If there is no such invocation in the caller's scope.
        """
        return _status_response(await self.stored(kwargs["invocation_id"]))

    async def stored(self, invocation_id: str) -> StoredInvocation:
        """Return an invocation of the caller's scope.

        Args:
            invocation_id: Its id, as the URL has it.

        Raises:
            InvocationNotFound: If there is none; the same for another caller's.
        """
        found = await runs.look_up(self.scope, invocation_id) if is_well_formed_id(invocation_id) else None
        if found is None:
            raise InvocationNotFound
        return found


class EventsView(InvocationView):
    """``GET {path}/{id}/events``: the wire events, replayed and then followed."""

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer the events after a number, to the end of the run.

        Args:
            body: Unused.
            *args: Unused.
            **kwargs: ``invocation_id``.

        Raises:
            MalformedEventId: If the number is none.
            StreamsNeedAsgi: If the server cannot stream.
            InvocationNotFound: If there is no such invocation in the caller's scope.
        """
        after = self._after()
        if not self.can_stream:
            raise StreamsNeedAsgi
        stored = await self.stored(kwargs["invocation_id"])
        if stored.has_ended and after == runs.event_count(stored):
            # What stops an EventSource.
            return no_content()
        source = _Numbered(Follower(stored.pk, after, lambda ended: [reset_frame(ended.status_body())]))
        stream = StreamBody(
            source,
            keepalive_seconds=self.endpoint.keepalive_seconds,
            stall_seconds=self.endpoint.reader_stall_seconds,
        )
        return stream_response(stream)

    def _after(self) -> int:
        given = self.request.headers.get("last-event-id", self.request.query_params.get("after", "0"))
        number = _NUMBER.fullmatch(given)
        if number is None:
            raise MalformedEventId
        return int(number[1]) if len(number[1]) < len(str(_BEYOND)) else _BEYOND


class CancelView(InvocationsView):
    """``POST {path}/{id}/cancel``: stop a run."""

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Cancel, wait a moment for the end, and answer the status body as it is then.

        Args:
            body: Unused.
            *args: Unused.
            **kwargs: ``invocation_id``.

        Raises:
            InvocationNotFound: If there is no such invocation in the caller's scope.
        """
        invocation_id = kwargs["invocation_id"]
        stored = await runs.cancel(self.scope, invocation_id) if is_well_formed_id(invocation_id) else None
        if stored is None:
            raise InvocationNotFound
        return _status_response(stored, invocation_headers(stored.invocation_id, stored.session_id))


class _Numbered:
    """The events of a follower, each with its number as id."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def ready(self) -> bytes | None:
        """Return None: what is ready may be in another process, and is waited for."""
        return None

    async def next(self) -> bytes:
        return b"".join(sse.with_id(frame, number) for number, frame in await self._follower.next())

    def leave(self) -> None:
        """A follower holds nothing: the run does not know of it."""


def _status_response(stored: StoredInvocation, headers: dict[str, str] | None = None) -> HttpResponse:
    return json_response(dump_compact(stored.status_body()).encode(), 200, headers)
