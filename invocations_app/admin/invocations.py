"""Invocations in the admin: the list, and what became of one. They are evidence: nobody deletes them here."""

from __future__ import annotations

import json
import re
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from invocations_app import delivery
from invocations_app.admin import contents
from invocations_app.admin.base import EndpointFilter, ReadOnlyAdmin
from invocations_app.admin.display import EMPTY, figures, preformatted, seconds
from invocations_app.models import InvocationRecord, SessionRecord

# They are pushed at the same time, while the page waits.
MAX_SENT_AGAIN = 50

_NUMBER = re.compile("[0-9]{1,18}")


class DialectFilter(admin.SimpleListFilter):
    """The wire contract that an invocation came in."""

    title = _("dialect")
    parameter_name = "dialect"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Offer the two dialects."""
        return [("channel", "channel"), ("platform", "platform")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the chosen dialect."""
        return queryset.filter(dialect=self.value()) if self.value() else queryset


class SessionFilter(admin.SimpleListFilter):
    """The one session that a link from its page asks for; there is nothing to choose from."""

    title = _("session")
    parameter_name = "session_record"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        """Offer the session that is asked for, so that it can be seen and left."""
        chosen = self.value() or ""
        return [(chosen, f"#{chosen}")] if _NUMBER.fullmatch(chosen) else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of that session."""
        chosen = self.value() or ""
        return queryset.filter(session_record=chosen) if _NUMBER.fullmatch(chosen) else queryset


@admin.register(InvocationRecord)
class InvocationAdmin(ReadOnlyAdmin):
    """Invocations, to read."""

    actions = ("send_again",)
    deferred_in_list = ("answer", "delivery_report", "metadata", "usage")
    # Of a short message the fingerprint of its body lets one try guesses.
    content_columns = ("answer", "fingerprint", "input", "metadata")
    content_fields = ("shown_answer", "shown_metadata", "fingerprint")
    list_display = (
        "created",
        "status",
        "endpoint",
        "who",
        "shown_session_id",
        "dialect",
        "duration",
        "total_tokens",
    )
    list_filter = (SessionFilter, "status", "delivery", EndpointFilter, DialectFilter, "created_at")
    # In order of begin, by the one index that every table has.
    ordering = ("-id",)
    sortable_by = ("created",)
    search_fields = ("correlation_id__exact", "invocation_id__exact", "session_id__exact")
    search_help_text = _("A whole correlation id, invocation id or session id")
    fieldsets = (
        (None, {"fields": ("status", ("error_code", "error_status"), "shown_answer")}),
        (_("Delivery"), {"fields": ("delivery", "shown_delivery_report")}),
        (_("Caller"), {"fields": (("endpoint", "session_link"), ("user", "user_key"), "chat_key", "shown_metadata")}),
        (
            _("Times and tokens"),
            {"fields": (("created_at", "finished_at"), ("first_byte", "duration"), "total_tokens", "shown_usage")},
        ),
        (
            _("Record"),
            {"fields": ("correlation_id", "invocation_id", "dialect", ("stream", "background"), "fingerprint", "key")},
        ),
    )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show one invocation, and note who reads what was said in it."""
        if contents.may_read(request):
            contents.log_read(request, [context["original"]], "Read the contents.")
        return super().render_change_form(request, context, *args, **kwargs)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Nobody deletes: while its record is kept, an invocation id runs at most once."""
        return False

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        """Who may change invocations may send one again: the pages themselves change nothing."""
        codename = get_permission_codename("change", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    @admin.action(description=_("Push again what did not arrive"), permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[InvocationRecord]) -> None:
        """Push results to the destinations that did not take them, and tell what became of it."""
        chosen = list(queryset.order_by("-id").defer(*self.deferred_in_list)[: MAX_SENT_AGAIN + 1])
        if len(chosen) > MAX_SENT_AGAIN:
            text = _("Choose at most %(count)d invocations to push again.") % {"count": MAX_SENT_AGAIN}
            self.message_user(request, text, messages.ERROR)
            return
        reports = async_to_sync(delivery.resend_all)([record.pk for record in chosen])
        sent = [(record, report) for record, report in zip(chosen, reports, strict=True) if report is not None]
        for record, _report in sent:
            self.log_change(request, record, "Pushed again what did not arrive.")
        arrived = sum(not report.open for _record, report in sent)
        counts = {"arrived": arrived, "open": len(sent) - arrived, "nothing": len(chosen) - len(sent)}
        text = _("Everything arrived: %(arrived)d. Something did not: %(open)d. Nothing to push: %(nothing)d.") % counts
        self.message_user(request, text, messages.WARNING if counts["open"] else messages.SUCCESS)

    @admin.display(description=_("delivery report"))
    def shown_delivery_report(self, invocation: InvocationRecord) -> str:
        """Return what became of each push."""
        return preformatted(invocation.delivery_report)

    @admin.display(description=_("created"), ordering="id")
    def created(self, invocation: InvocationRecord) -> Any:
        """Return when the invocation was begun."""
        return invocation.created_at

    @admin.display(description=_("session id"))
    def shown_session_id(self, invocation: InvocationRecord) -> str:
        """Return the caller's session id, short enough for a list."""
        return Truncator(invocation.session_id or EMPTY).chars(30)

    @admin.display(description=_("duration"))
    def duration(self, invocation: InvocationRecord) -> str:
        """Return the time from begin to end."""
        return seconds(invocation.created_at, invocation.finished_at)

    @admin.display(description=_("first byte after"))
    def first_byte(self, invocation: InvocationRecord) -> str:
        """Return the time from begin to the first byte of the answer."""
        return seconds(invocation.created_at, invocation.first_byte_at)

    @admin.display(description=_("session"))
    def session_link(self, invocation: InvocationRecord) -> str:
        """Return the session id, as a link while the session is there."""
        if invocation.session_record_id is None or not self.admin_site.is_registered(SessionRecord):
            return invocation.session_id or EMPTY
        address = reverse(
            "admin:invocations_app_sessionrecord_change",
            args=[invocation.session_record_id],
            current_app=self.admin_site.name,
        )
        return format_html('<a href="{}">{}</a>', address, invocation.session_id or EMPTY)

    @admin.display(description=_("answer"))
    def shown_answer(self, invocation: InvocationRecord) -> str:
        """Return the stored answer."""
        return contents.block(invocation.answer)

    @admin.display(description=_("metadata"))
    def shown_metadata(self, invocation: InvocationRecord) -> str:
        """Return what the caller sent along."""
        return contents.block(invocation.metadata)

    @admin.display(description=_("token usage"))
    def shown_usage(self, invocation: InvocationRecord) -> str:
        """Return the numbers of the token usage as the agent reported it."""
        return preformatted(json.dumps(figures(invocation.usage))) if invocation.usage else EMPTY
