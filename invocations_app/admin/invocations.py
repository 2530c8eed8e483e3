"""Invocations in the admin: the list, and what became of one. They are evidence: nobody deletes them here."""

from __future__ import annotations

import json
import re
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib import admin, messages
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from invocations_app import delivery
from invocations_app.admin import contents
from invocations_app.admin.base import EndpointFilter
from invocations_app.admin.cancelling import CANCELLABLE
from invocations_app.admin.display import EMPTY, excerpt, figures, preformatted, pretty_json, seconds
from invocations_app.admin.invocation_pages import NAME, InvocationPages
from invocations_app.admin.search import find_by_correlation_id
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage.invocations import LIVE

# They are pushed at the same time, while the page waits.
MAX_SENT_AGAIN = 50
MAX_CANCELLED = 50

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
class InvocationAdmin(InvocationPages):
    """Invocations: to read, and to cancel, answer or push again."""

    actions = ("cancel_chosen", "send_again")
    change_list_template = "admin/invocations_app/invocationrecord/change_list.html"
    deferred_in_list = ("answer", "delivery_report", "metadata", "usage")
    # Of a short message the fingerprint of its body lets one try guesses.
    content_columns = ("answer", "fingerprint", "input", "metadata")
    content_fields = ("shown_answer", "shown_metadata", "fingerprint")
    list_display = (
        "created",
        "state",
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
        (None, {"fields": ("shown_answer",)}),
        (_("Caller"), {"fields": (("endpoint", "session_link"), ("user", "user_key"), "chat_key", "shown_metadata")}),
        (
            _("Times and tokens"),
            {"fields": (("created_at", "finished_at"), ("first_byte", "duration"), "total_tokens", "shown_usage")},
        ),
        (
            _("Record"),
            {
                "fields": (
                    "invocation_id",
                    "dialect",
                    ("stream", "background"),
                    "delivery",
                    "fingerprint",
                    "key",
                )
            },
        ),
    )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show one invocation, and note who reads what was said in it."""
        if contents.may_read(request):
            contents.log_read(request, [context["original"]], "Read the contents.")
        context["raw_report"] = excerpt(pretty_json(context["original"].delivery_report))
        return super().render_change_form(request, context, *args, **kwargs)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Nobody deletes: while its record is kept, an invocation id runs at most once."""
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find a whole id, a correlation id by its time; words are not looked for one by one: ids may have blanks."""
        term = search_term.strip()
        found = find_by_correlation_id(InvocationRecord.objects.all(), term)
        if found is not None:
            return queryset.filter(pk=found), False
        if not term:
            return queryset, False
        return queryset.filter(Q(correlation_id=term) | Q(invocation_id=term) | Q(session_id=term)), False

    @admin.action(description=_("Cancel selected invocations…"), permissions=["operate"])
    def cancel_chosen(self, request: HttpRequest, queryset: QuerySet[InvocationRecord]) -> HttpResponse | None:
        """Ask whether to cancel what has not ended, and cancel it."""
        rows = queryset.filter(status__in=CANCELLABLE).order_by("-id").defer(*self.deferred_in_list)
        chosen = list(rows[: MAX_CANCELLED + 1])
        if len(chosen) > MAX_CANCELLED:
            text = _("Choose at most %(count)d invocations to cancel.") % {"count": MAX_CANCELLED}
            self.message_user(request, text, messages.ERROR)
        elif not chosen:
            self.message_user(request, _("All of them have ended: there is nothing to cancel."), messages.INFO)
        elif "confirmed" not in request.POST:
            return self.cancel_page(request, chosen, action="cancel_chosen", confirmed="yes")
        else:
            self.cancel_and_tell(request, chosen)
        return None

    @admin.action(description=_("Push again what did not arrive"), permissions=["operate"])
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

    @admin.display(description=_("created"), ordering="id")
    def created(self, invocation: InvocationRecord) -> Any:
        """Return when the invocation was begun."""
        return invocation.created_at

    @admin.display(description=_("status"))
    def state(self, invocation: InvocationRecord) -> str:
        """Return the status, marked for the script that keeps rows up to date."""
        return format_html(
            '<span class="invocations-status invocations-status-{}" data-invocations-row="{}" data-status="{}"'
            ' data-live="{}" data-address="{}">{}</span>',
            invocation.status,
            invocation.pk,
            invocation.status,
            "true" if invocation.status in LIVE else "false",
            reverse(f"admin:{NAME}_states", current_app=self.admin_site.name),
            invocation.get_status_display(),
        )

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
