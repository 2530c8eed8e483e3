"""What the playground is told beside the endpoints' own answers: sessions of the caller, and one in full.

The views are the endpoints' own but for what they answer: authentication, permissions, throttles and the scope
are the same, so a caller sees exactly the sessions that the endpoint would go on with.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.functions import Substr
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse

from invocations_app import conf
from invocations_app.envelope import is_well_formed_id
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.runs import look_up
from invocations_app.targets import known_kind
from invocations_app.views.base import InvocationsView
from project.conversations import parts_of, title_of

MAX_SESSIONS = 50
MAX_MESSAGES = 200
TITLE_PAYLOAD_CHARACTERS = 2_000

# What the demonstration's targets have something to say to.
SUGGESTIONS = {
    "default": ("What is 6 * 7?", "Show me some Markdown.", "Book room Blue for Friday.", "Count to 60."),
    "announcement": ("The library is open on Sunday",),
}
_UNSETTLED = (
    InvocationRecord.Status.QUEUED,
    InvocationRecord.Status.RUNNING,
    InvocationRecord.Status.AWAITING_INPUT,
)


def may_play(user: Any) -> bool:
    """Return whether a user may open the playground: staff, or everybody in ``DEBUG``.

    Args:
        user: The request's user.
    """
    return bool(settings.DEBUG or (user.is_active and user.is_staff))


def describe_endpoints() -> list[dict[str, Any]]:
    """Return what the page has to know of each endpoint: addresses, limits, and what it takes."""
    return [
        {
            "alias": alias,
            "kind": known_kind(endpoint) or "agent",
            "invoke": reverse(f"invocations:{alias}-invoke"),
            "base": reverse(f"invocations:{alias}-platform"),
            "about": reverse(f"playground-{alias}-sessions").removesuffix("sessions"),
            "maxBodyBytes": endpoint.max_body_bytes,
            "imageTypes": sorted(name for name in endpoint.input_media_types if name.startswith("image/")),
            "hasSessions": endpoint.session_mode != "disabled",
            "suggestions": SUGGESTIONS.get(alias, ()),
        }
        for alias, endpoint in conf.get_endpoints().items()
    ]


def _for_players(view: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Awaitable[HttpResponseBase]]:
    @functools.wraps(view)
    async def admitted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not may_play(await request.auser()):
            return JsonResponse({"error": "the playground is for staff"}, status=403)
        return await view(request, *args, **kwargs)

    return admitted


class PlaygroundView(InvocationsView):
    """A view of the page on what an endpoint has stored for its caller."""

    http_method_names = ["get"]

    async def respond(self, body: bytes, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer the page.

        Args:
            body: Unused.
            *args: Unused.
            **kwargs: Named parts of the URL.
        """
        return JsonResponse(await self.told(**kwargs))

    async def told(self, **kwargs: Any) -> dict[str, Any]:
        """Return what is answered; what is not in the caller's scope is no error, there is just nothing to tell.

        Args:
            **kwargs: Named parts of the URL.
        """
        raise NotImplementedError


class SessionsView(PlaygroundView):
    """``GET playground/{alias}/sessions``: the caller's latest ones, and with ``?id=`` one of them in full."""

    async def told(self, **kwargs: Any) -> dict[str, Any]:
        """Return the sessions or, where an id is given, one.

        Args:
            **kwargs: Unused.
        """
        session_id = self.request.query_params.get("id")
        if session_id is None:
            return {"sessions": await sync_to_async(list_sessions)(self.scope)}
        return await sync_to_async(read_session)(self.scope, session_id)


class InvocationView(PlaygroundView):
    """``GET playground/{alias}/invocations/{id}``: its status body, and where logs and admin have it."""

    async def told(self, **kwargs: Any) -> dict[str, Any]:
        """Return the status body and the correlation id, which logs name; nothing where nothing is recorded.

        Args:
            **kwargs: ``invocation_id``.
        """
        invocation_id = kwargs["invocation_id"]
        stored = await look_up(self.scope, invocation_id) if is_well_formed_id(invocation_id) else None
        if stored is None:
            return {}
        record = await InvocationRecord.objects.only("correlation_id").aget(pk=stored.pk)
        told = {**stored.status_body(), "correlation_id": record.correlation_id}
        if self.request.user.is_staff:
            told["admin"] = reverse("admin:invocations_app_invocationrecord_change", args=[stored.pk])
        return told


def list_sessions(scope: Scope) -> list[dict[str, Any]]:
    """Return the latest sessions of a scope, the last used one first.

    Args:
        scope: The scope. One without any key is everybody's who is not logged in, and there the session
            ids are secrets: none is listed.
    """
    if not scope.user_key:
        return []
    first = MessageRecord.objects.filter(session=OuterRef("pk"), role="user").order_by("position")
    start = Subquery(first.annotate(start=Substr("payload", 1, TITLE_PAYLOAD_CHARACTERS)).values("start")[:1])
    rows = _sessions(scope).order_by("-updated_at", "-pk").annotate(first=start)
    values = rows.values_list("session_id", "updated_at", "pending_count", "first")[:MAX_SESSIONS]
    return [
        {"id": session_id, "title": title_of(first or ""), "at": at, "pending": pending > 0}
        for session_id, at, pending, first in values
    ]


def read_session(scope: Scope, session_id: str) -> dict[str, Any]:
    """Return one session of a scope: what was said, and which turns are not over.

    Args:
        scope: The scope.
        session_id: The caller's id of it.

    Returns:
        ``messages``, the last `MAX_MESSAGES` in order, ``isWhole``, and
        ``unsettled`` invocations; both are empty where there is no such session.
    """
    session = _sessions(scope).filter(key=scope.key(session_id)).only("pk").first()
    if session is None:
        return {"messages": [], "isWhole": True, "unsettled": []}
    # First of all: a turn that ends in between is then left out below, and followed by the page.
    unsettled = list(
        InvocationRecord.objects.filter(session_record=session.pk, status__in=_UNSETTLED)
        .order_by("pk")
        .values("pk", "invocation_id", "status")
    )
    live = [row["pk"] for row in unsettled if row["status"] != InvocationRecord.Status.AWAITING_INPUT]
    rows = (
        MessageRecord.objects.filter(session=session.pk)
        .exclude(invocation__in=live)
        .order_by("-source_id", "-position")
        .values_list("role", "payload", "created_at", "invocation__invocation_id")[: MAX_MESSAGES + 1]
    )
    messages = [
        {"role": role, "parts": parts_of(payload), "at": at, "invocation": invocation_id}
        for role, payload, at, invocation_id in rows
    ]
    if not messages:
        messages = _answers(session)
    return {
        "messages": messages[:MAX_MESSAGES][::-1],
        "isWhole": len(messages) <= MAX_MESSAGES,
        "unsettled": [{"id": row["invocation_id"], "status": row["status"]} for row in unsettled],
    }


def _answers(session: SessionRecord) -> list[dict[str, Any]]:
    """Return what a workflow gave, the last turn first: of its turns the answers are stored, not what it was told."""
    rows = InvocationRecord.objects.filter(session_record=session.pk, status=InvocationRecord.Status.SUCCEEDED)
    values = rows.order_by("-pk").values_list("answer", "created_at", "invocation_id")[: MAX_MESSAGES + 1]
    return [
        {"role": "assistant", "parts": [{"text": text}], "at": at, "invocation": invocation_id}
        for answer, at, invocation_id in values
        if (text := json.loads(answer)["text"])
    ]


def _sessions(scope: Scope) -> QuerySet[SessionRecord]:
    mine = SessionRecord.objects.filter(
        endpoint=scope.endpoint, user_key=scope.user_key, chat_key=scope.chat_key, archived_at=None
    )
    kind, _, user = scope.user_key.partition(":")
    # The user's column has an index, the key has none.
    return mine.filter(user_id=user) if kind == "user" else mine


def _endpoint_urls(alias: str) -> list[URLPattern]:
    sessions: Any = _for_players(SessionsView.as_view(alias=alias))
    invocation: Any = _for_players(InvocationView.as_view(alias=alias))
    return [
        path(f"{alias}/sessions", sessions, name=f"playground-{alias}-sessions"),
        path(f"{alias}/invocations/<str:invocation_id>", invocation, name=f"playground-{alias}-invocation"),
    ]


urlpatterns = [pattern for alias in conf.get_endpoints() for pattern in _endpoint_urls(alias)]
