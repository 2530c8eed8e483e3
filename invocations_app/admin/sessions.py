"""Sessions in the admin: the list, the transcript of one, and deletion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.db.models.functions import Length
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from invocations_app.admin import contents
from invocations_app.admin.base import EndpointFilter, ReadOnlyAdmin, username_lookup
from invocations_app.admin.display import Excerpt, seconds
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.transcript import Part, Reading, read_message
from invocations_app.exceptions import SessionBusy
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage.reset import reset_row

MESSAGES_PER_PAGE = 50
MAX_PAGE_CHARACTERS = 8 * 1024 * 1024
MAX_INVOCATIONS = 10
MAX_NAMED_IN_DELETION = 100

_NUMBER = re.compile("[1-9][0-9]{0,8}")
_ROLES = frozenset({"user", "assistant", "tool", "system"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the transcript, as its template wants it."""

    role: str
    style: str
    source_id: str
    position: int
    created_at: datetime
    invocation_id: int | None
    reading: Reading


class ArchivedFilter(admin.SimpleListFilter):
    """Sessions in use, or those that a reset has put away."""

    title = _("archived")
    parameter_name = "archived"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Offer both."""
        return [("no", _("No")), ("yes", _("Yes"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows that were chosen."""
        match self.value():
            case "no":
                return queryset.filter(archived_at=None)
            case "yes":
                return queryset.exclude(archived_at=None)
        return queryset


def load_transcript(session: SessionRecord, number: str | None) -> tuple[Page[Any], list[Entry]]:
    """Read one page of a session's messages, and no more of them than a page can show.

    Args:
        session: The session.
        number: Number of the page; None or nonsense is the last one, where a reader
            finds what was said last.

    Returns:
        The page, and its messages in order. Three queries.
    """
    rows = session.messages.order_by("source_id", "position").defer("payload").annotate(size=Length("payload"))
    pages = Paginator(rows, MESSAGES_PER_PAGE)
    page = pages.get_page(number if number and _NUMBER.fullmatch(number) else pages.num_pages)
    records: list[Any] = list(page.object_list)  # with their size, which the model does not have
    room = MAX_PAGE_CHARACTERS
    wanted = []
    for record in records:
        if record.size <= room:
            wanted.append(record.pk)
            room -= record.size
    payloads = dict(MessageRecord.objects.filter(pk__in=wanted).values_list("pk", "payload"))
    calls: dict[str, str] = {}
    redactor = Redactor()
    return page, [_entry(record, payloads.get(record.pk), calls, redactor) for record in records]


def _entry(record: Any, payload: str | None, calls: dict[str, str], redactor: Redactor) -> Entry:
    if payload is None:
        note = _("%(size)s, too large for this page") % {"size": filesizeformat(record.size)}
        reading = Reading((Part("note", Excerpt(note)),))
    else:
        reading = read_message(payload, calls, redactor)
    return Entry(
        role=record.role,
        style=record.role if record.role in _ROLES else "other",
        source_id=record.source_id,
        position=record.position,
        created_at=record.created_at,
        invocation_id=record.invocation_id,
        reading=reading,
    )


@admin.register(SessionRecord)
class SessionAdmin(ReadOnlyAdmin):
    """Sessions: to read, to reset, and to delete together with their messages."""

    actions = ("reset",)
    deferred_in_list = ("state",)
    content_columns = ("state",)
    content_fields = ("shown_state",)
    list_display = ("shown_id", "endpoint", "who", "message_count", "updated_at", "archived_at")
    list_filter = (EndpointFilter, ArchivedFilter, "updated_at")
    ordering = ("-updated_at", "-id")
    sortable_by = ("updated_at",)
    search_help_text = _("Part of a session id, user key or user name")
    fieldsets = (
        (None, {"fields": ("session_id", ("endpoint", "user"), ("message_count", "updated_at"))}),
        (_("Scope"), {"classes": ("collapse",), "fields": ("user_key", "chat_key", "opaque_id", "key")}),
        (
            _("Storage"),
            {
                "classes": ("collapse",),
                "fields": (("created_at", "archived_at"), ("version", "claim_expires_at"), "shown_state"),
            },
        ),
    )

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the columns that a search looks in."""
        return ("session_id", "user_key", username_lookup())

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show one session with its transcript and its latest invocations."""
        session = context["original"]
        context["withheld"] = contents.WITHHELD
        context["may_read"] = contents.may_read(request)
        if context["may_read"]:
            page, entries = load_transcript(session, request.GET.get("page"))
            contents.log_read(request, [session], f"Read the transcript, page {page.number}.")
            context |= {
                "page": page,
                "entries": entries,
                "several_sources": len({entry.source_id for entry in entries}) > 1,
            }
        context["shows_invocations"] = self._may_view_invocations(request)
        if context["shows_invocations"]:
            found = list(
                session.invocations.order_by("-id").defer("answer", "metadata", "usage")[: MAX_INVOCATIONS + 1]
            )
            shown = [
                {"record": record, "duration": seconds(record.created_at, record.finished_at)}
                for record in found[:MAX_INVOCATIONS]
            ]
            context |= {"invocations": shown, "more_invocations": len(found) > MAX_INVOCATIONS}
        return super().render_change_form(request, context, *args, **kwargs)

    # It takes a session away from its caller as a deletion does, and is the lesser of the two.
    @admin.action(description=_("Reset selected sessions: their ids start afresh"), permissions=["delete"])
    def reset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Put sessions away, so that the next turn of each id begins a new one; busy ones are left.

        Args:
            request: The request.
            queryset: The chosen sessions.
        """
        done = busy = 0
        for session in queryset.filter(archived_at=None).defer("state"):
            try:
                if reset_row(session.pk):
                    done += 1
                    self.log_change(request, session, "Reset.")
            except SessionBusy:
                busy += 1
        told = ngettext("%d session was reset.", "%d sessions were reset.", done) % done
        self.message_user(request, told, messages.SUCCESS if done else messages.INFO)
        if busy:
            told = ngettext(
                "%d session has a turn that runs or waits, and was left as it is.",
                "%d sessions have turns that run or wait, and were left as they are.",
                busy,
            )
            self.message_user(request, told % busy, messages.WARNING)

    def _may_view_invocations(self, request: HttpRequest) -> bool:
        if not self.admin_site.is_registered(InvocationRecord):
            return False
        return self.admin_site.get_model_admin(InvocationRecord).has_view_permission(request)

    def get_deleted_objects(
        self, objs: Iterable[Any], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Tell what a deletion takes along, without reading the messages one by one as Django would."""
        sessions = list(objs)
        messages = MessageRecord.objects.filter(session__in=[session.pk for session in sessions]).count()
        named: list[Any] = [f"{SessionRecord._meta.verbose_name}: {name}" for name in sessions[:MAX_NAMED_IN_DELETION]]
        if left_out := len(sessions) - len(named):
            named.append(ngettext("%d more session", "%d more sessions", left_out) % left_out)
        named.append(ngettext("%d message", "%d messages", messages) % messages)
        counts = {str(SessionRecord._meta.verbose_name_plural): len(sessions)}
        counts[str(MessageRecord._meta.verbose_name_plural)] = messages
        lacking = set() if self.has_delete_permission(request) else {str(SessionRecord._meta.verbose_name)}
        return named, counts, lacking, []

    @admin.display(description=_("session id"))
    def shown_id(self, session: SessionRecord) -> str:
        """Return the session id, short enough for a list."""
        return Truncator(session.session_id).chars(40)

    @admin.display(description=_("state"))
    def shown_state(self, session: SessionRecord) -> str:
        """Return the beginning of the stored state, readable or not."""
        return contents.block(session.state)
