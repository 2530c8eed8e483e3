"""Answering what an invocation left pending, in the name of the caller's scope.

The replies begin a turn as the caller's own would: the dialect parses them, the
run hook sees them, and the transaction that begins the turn checks and consumes
them. What differs is who waits for the answer: nobody does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.urls import reverse
from rest_framework.request import Request

from invocations_app import conf
from invocations_app.conf import EndpointSettings
from invocations_app.dialects import get_dialect
from invocations_app.envelope import ParsedRequest
from invocations_app.exceptions import InvocationError, RunTimedOut, TargetUnavailable
from invocations_app.isolation import IsolationKeys, RequestKeys, Scope
from invocations_app.models import InvocationRecord
from invocations_app.runs import Run, RunRequest, start
from invocations_app.targets import known_kind

#: How long a page waits for an answering turn that cannot go on without it (WSGI).
IN_REQUEST_SECONDS = 60
_STOP_SECONDS = 5
_PLATFORM = "platform:"


def answer(invocation: InvocationRecord, replies: Mapping[str, Any], *, outlives_request: bool) -> int | None:
    """Begin the turn that answers what an invocation left pending.

    Args:
        invocation: Record of the invocation that asked.
        replies: Request id to reply.
        outlives_request: Whether the event loop is the server's (ASGI): the run then goes on by itself.
            Elsewhere it is waited for, at most `IN_REQUEST_SECONDS`, and stopped then; unless a tasks
            backend has workers for it.

    Returns:
        Primary key of the answering invocation's record; None where there is none.

    Raises:
        InvocationError: If it was refused before it began; nothing is consumed then.
    """
    endpoint = conf.get_endpoints().get(invocation.endpoint)
    if endpoint is None:
        raise TargetUnavailable
    return async_to_sync(_answer)(endpoint, invocation, replies, outlives_request)


async def _answer(
    endpoint: EndpointSettings, invocation: InvocationRecord, replies: Mapping[str, Any], outlives_request: bool
) -> int | None:
    in_background = outlives_request or conf.get_host().background_tasks_backend is not None
    run = start(
        RunRequest(
            parsed=_parse(endpoint, invocation, replies, in_background),
            endpoint=endpoint,
            scope=Scope(invocation.endpoint, invocation.user_key, invocation.chat_key),
            keys=_keys_of(invocation),
            user_pk=invocation.user_id,
            request=_request_of(invocation),
            # Nobody reads a stream of it.
            can_stream=True,
        )
    )
    if not in_background:
        await _wait(run)
    # A refusal, where there was one; a run that is waited for has ended by now.
    await asyncio.shield(run.started)
    return run.record_pk


async def _wait(run: Run) -> None:
    """Wait for the end of a run whose loop ends with the request."""
    await asyncio.wait([run.task], timeout=IN_REQUEST_SECONDS)
    if not run.task.done():
        run.cancel(RunTimedOut())
        await asyncio.wait([run.task], timeout=_STOP_SECONDS)


def _parse(
    endpoint: EndpointSettings, invocation: InvocationRecord, replies: Mapping[str, Any], in_background: bool
) -> ParsedRequest:
    body: dict[str, Any] = {"responses": dict(replies), "background": in_background}
    if invocation.metadata:
        # A run hook decides by it, as it did for the turn that asked: where the answer is pushed, for one.
        body["metadata"] = json.loads(invocation.metadata)
    dialect: Any = invocation.dialect
    if dialect == "channel":
        body["session_id"] = invocation.session_id
    parsed = get_dialect(dialect).invocations_to_run(
        json.dumps(body).encode(),
        endpoint=endpoint,
        headers={},
        query={"agent_session_id": invocation.session_id or ""},
        kind=known_kind(endpoint),
    )
    # As the turn that asked: it decides which hook applies.
    return parsed._replace(invocation=dataclasses.replace(parsed.invocation, stream=invocation.stream))


def _keys_of(invocation: InvocationRecord) -> RequestKeys:
    """Return the keys that the caller's headers gave, as far as the record tells them."""
    user_key = invocation.user_key
    value = user_key.removeprefix(_PLATFORM) if user_key.startswith(_PLATFORM) else None
    return RequestKeys(isolation=IsolationKeys(user_key=value, chat_key=invocation.chat_key or None))


def _request_of(invocation: InvocationRecord) -> Request:
    """Return a request for the run hook: of the caller's user, and nothing of the admin's.

    Cookies, headers and permissions of whoever answers are not the caller's.
    """
    request = HttpRequest()
    request.method = "POST"
    name = "invoke" if invocation.dialect == "channel" else "platform"
    request.path = request.path_info = reverse(f"invocations:{invocation.endpoint}-{name}")
    request.user = invocation.user or AnonymousUser()
    made = Request(request, parsers=(), authenticators=())
    made.user = request.user
    return made


__all__ = ["IN_REQUEST_SECONDS", "InvocationError", "answer"]
