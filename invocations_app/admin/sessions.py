"""Sessions in the admin: the list, the transcript of one, its files, resets and deletion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from invocations_app.admin import contents, exports
from invocations_app.admin.base import EndpointFilter, username_lookup
from invocations_app.admin.conversation import read_page
from invocations_app.admin.display import EMPTY, seconds
from invocations_app.admin.filters import AgeFilter, ArchivedFilter, PendingFilter, UserFilter, UserKeyFilter
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.workflows import WorkflowPages
from invocations_app.exceptions import SessionBusy
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage.reset import reset_row

MAX_INVOCATIONS = 10
MAX_EXPORTED = 1000
MAX_NAMED_IN_DELETION = 100

_NUMBER = re.compile("[1-9][0-9]{0,8}")


@admin.register(SessionRecord)
class SessionAdmin(WorkflowPages):
    """Sessions: to read, to take along as files, to reset, and to delete together with their messages."""

    actions = ("export_as_json", "export_as_markdown", "reset")
    deferred_in_list = ("state",)
    content_columns = ("state",)
    content_fields = ("shown_state",)
    list_display = ("shown_id", "endpoint", "caller", "message_count", "pending", "updated_at", "archived_at")
    list_filter = (UserFilter, UserKeyFilter, PendingFilter, EndpointFilter, AgeFilter, ArchivedFilter)
    ordering = ("-updated_at", "-id")
    sortable_by = ("updated_at",)
    search_help_text = _("Part of a session id, user key or user name")
    fieldsets = (
        (None, {"fields": ("session_id", ("endpoint", "user"), ("message_count", "pending_count"), "updated_at")}),
        (_("Scope"), {"classes": ("collapse",), "fields": ("user_key", "chat_key", "opaque_id", "key")}),
        (
            _("Storage"),
            {
                "classes": ("collapse",),
                "fields": (("created_at", "archived_at"), ("version", "claim_expires_at"), "shown_state"),
            },
        ),
    )

    def get_urls(self) -> list[URLPattern]:
        """Return the admin's own pages, and the files of one session."""
        return [
            path(
                "<path:object_id>/export.<str:extension>",
                self.admin_site.admin_view(self.export_view),
                name="invocations_app_sessionrecord_export",
            ),
            *super().get_urls(),
        ]

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
            number = request.GET.get("page", "")
            talk = read_page(session, int(number) if _NUMBER.fullmatch(number) else None, Redactor())
            contents.log_read(request, [session], f"Read the transcript, page {talk.page.number}.")
            context |= {"talk": talk, "page": talk.page, "formats": exports.FORMATS}
        context["shows_invocations"] = self.may_view(request, InvocationRecord)
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

    def export_view(self, request: HttpRequest, object_id: str, extension: str) -> HttpResponseBase:
        """Send one session as a file.

        Args:
            request: The request.
            object_id: The session's primary key.
            extension: The file's.

        Raises:
            Http404: If there is no such session, or no such form.
            PermissionDenied: If the user may not see sessions, or not read contents.
        """
        if not self.has_view_permission(request) or not self.has_export_permission(request):
            raise PermissionDenied
        session = self.get_object(request, object_id)
        if session is None or extension not in exports.FORMATS:
            raise Http404
        return self._export(request, [session], extension)

    def has_export_permission(self, request: HttpRequest) -> bool:
        """Who may read what was said may take it along."""
        return contents.may_read(request)

    @admin.action(description=_("Export selected sessions as JSON"), permissions=["export"])
    def export_as_json(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase | None:
        """Send sessions as one JSON document."""
        return self._export_chosen(request, queryset, "json")

    @admin.action(description=_("Export selected sessions as Markdown"), permissions=["export"])
    def export_as_markdown(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase | None:
        """Send sessions as one Markdown document."""
        return self._export_chosen(request, queryset, "md")

    def _export_chosen(self, request: HttpRequest, queryset: QuerySet[Any], extension: str) -> HttpResponseBase | None:
        chosen = list(queryset.defer("state")[: MAX_EXPORTED + 1])
        if len(chosen) > MAX_EXPORTED:
            text = _("Choose at most %(count)d sessions to export.") % {"count": MAX_EXPORTED}
            self.message_user(request, text, messages.ERROR)
            return None
        return self._export(request, chosen, extension)

    def _export(self, request: HttpRequest, sessions: list[Any], extension: str) -> HttpResponseBase:
        contents.log_read(request, sessions, f"Exported as {exports.FORMATS[extension].name}.")
        return exports.download(request, sessions, extension, with_ids=self.may_view(request, InvocationRecord))

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

    @admin.display(description=_("user"))
    def caller(self, session: SessionRecord) -> str:
        """Return who it belongs to, as a link to all sessions of the same."""
        query = {"user": str(session.user_id)} if session.user else {"user_key": session.user_key}
        if not any(query.values()):
            return EMPTY
        return format_html('<a href="?{}">{}</a>', urlencode(query), Truncator(self.who(session)).chars(60))

    @admin.display(description=_("pending"))
    def pending(self, session: SessionRecord) -> int | str:
        """Return how many answers it waits for."""
        return session.pending_count or EMPTY

    @admin.display(description=_("state"))
    def shown_state(self, session: SessionRecord) -> str:
        """Return the beginning of the stored state, readable or not."""
        return contents.block(session.state)
