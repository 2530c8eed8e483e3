"""``POST`` to an endpoint: parse, start the run or join one, answer."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from invocations_app.dialects.status import background_body
from invocations_app.dialects.strict_json import dump_compact
from invocations_app.envelope import ParsedRequest
from invocations_app.events import Failed
from invocations_app.exceptions import InvocationError, SessionBusy, StreamsNeedAsgi
from invocations_app.runs import FirstReader, Joiner, Run, RunRequest, StoredInvocation, start
from invocations_app.targets import known_kind
from invocations_app.views.base import NO_FIELDS, InvocationsView
from invocations_app.views.responses import MetaHeaders, invocation_headers, json_response, stream_response


class InvokeView(InvocationsView):
    """``POST {path}/invoke``: run the target."""

    @property
    def asks_rest_request(self) -> bool:
        """Whether the run hook is to have DRF's request: nothing else asks for it."""
        return self.endpoint.run_hook is not None

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Parse the body, start the run and answer, as JSON or as a stream.

        Args:
            body: The raw body.
            *args: Unused.
            **kwargs: Unused.
        """
        request = self.request
        parsed = self.dialect.invocations_to_run(
            body,
            endpoint=self.endpoint,
            headers=MetaHeaders(request.META),
            query=request.GET if request.META.get("QUERY_STRING") else NO_FIELDS,
            kind=known_kind(self.endpoint),
        )
        run = start(
            RunRequest(
                parsed=parsed,
                endpoint=self.endpoint,
                scope=self.scope,
                keys=self.keys,
                user_pk=self.user_pk,
                request=request,
                can_stream=self.can_stream,
            )
        )
        reader = FirstReader(run)
        try:
            stored = await reader.started()
        except InvocationError as error:
            reader.leave()
            return self.error_response(error, invocation_headers(run.invocation.id, run.session_id))
        if stored is not None:
            reader.leave()
            try:
                return await self._replay(parsed, stored)
            except InvocationError as error:
                return self.error_response(error, invocation_headers(stored.invocation_id, stored.session_id))
        return await self._answer(run, reader)

    async def _answer(self, run: Run, reader: FirstReader) -> HttpResponseBase:
        invocation = run.invocation
        headers = invocation_headers(invocation.id, run.session_id)
        if invocation.is_acknowledged:
            reader.leave()
            return self._accepted(invocation.id, "queued" if run.is_queued else "running", run.session_id)
        if invocation.stream:
            return stream_response(reader.body(), headers)
        outcome = await reader.outcome()
        reader.leave()
        if isinstance(outcome, Failed):
            return self.error_response(outcome.error, headers)
        body = self.dialect.invocations_from_run(outcome.answer)
        return json_response(self.dialect.encode_json(body), 200, headers)

    async def _replay(self, parsed: ParsedRequest, stored: StoredInvocation) -> HttpResponseBase:
        """Answer a repeated request, in the kind that its own body asks for."""
        invocation = parsed.invocation
        headers = invocation_headers(stored.invocation_id, stored.session_id)
        acknowledged = invocation.background or stored.is_delivered_elsewhere
        if (invocation.stream or acknowledged) and not self.can_stream:
            return self.error_response(StreamsNeedAsgi(), headers)
        if acknowledged:
            return self._accepted(stored.invocation_id, stored.status, stored.session_id)
        if stored.error is not None:
            return self.error_response(stored.error, headers)
        if invocation.stream:
            return stream_response(Joiner(stored, self.endpoint).body(), headers)
        ended = await Joiner(stored, self.endpoint).outcome()
        if ended is None:
            # It waited for its session, in vain, and left no trace.
            return self.error_response(SessionBusy(), headers)
        if ended.answer is None:
            return self.error_response(ended.error or SessionBusy(), headers)
        body = self.dialect.invocations_from_run(ended.answer)
        return json_response(self.dialect.encode_json(body), 200, headers)

    def _accepted(self, invocation_id: str, status: str, session_id: str | None) -> HttpResponse:
        headers = invocation_headers(invocation_id, session_id)
        headers["Location"] = reverse(f"invocations:{self.alias}-invocation", args=[invocation_id])
        body = dump_compact(background_body(invocation_id, status, session_id))
        return json_response(body.encode(), 202, headers)
