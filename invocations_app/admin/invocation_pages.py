"""What the page of one invocation shows beside its columns, and what can be done to it there.

Its state as it is now, its timeline and its events; the questions that it left
pending; and to cancel it, answer it, or push its result again. The list's own
actions are left to ``invocations``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib import messages
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_GET, require_POST

from invocations_app import conf, delivery
from invocations_app.admin import contents
from invocations_app.admin.answer_forms import Answers
from invocations_app.admin.answering import answer
from invocations_app.admin.base import ReadOnlyAdmin
from invocations_app.admin.cancelling import CANCELLABLE, cancel_all
from invocations_app.admin.events import load_events
from invocations_app.admin.explain import explain
from invocations_app.admin.pushes import pushes_of
from invocations_app.admin.timeline import WIDTH, timeline_of
from invocations_app.exceptions import InvocationError
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage import clock, invocations
from invocations_app.targets import known_kind

Status = InvocationRecord.Status

#: Rows of a list whose state is asked for at once.
MAX_ASKED_FOR = 100
#: What the names of these URLs begin with.
NAME = "invocations_app_invocationrecord"
_TEMPLATES = "admin/invocations_app/invocationrecord/"
_NUMBER = re.compile("[0-9]{1,18}")
_ANSWERING_NEEDS_READING = gettext_lazy(
    "Answering needs the permission to read what was said: nobody should approve what they cannot read."
)


class InvocationPages(ReadOnlyAdmin):
    """The pages of one invocation beside the list."""

    change_form_template = _TEMPLATES + "change_form.html"

    def get_urls(self) -> list[URLPattern]:
        """Return the pages of one invocation, ahead of the admin's own."""
        wrap = self.admin_site.admin_view
        own = [
            path("live/", wrap(require_GET(self.states_view)), name=f"{NAME}_states"),
            path("<int:pk>/live/", wrap(require_GET(self.live_view)), name=f"{NAME}_live"),
            path("<int:pk>/cancel/", wrap(self.cancel_view), name=f"{NAME}_cancel"),
            path("<int:pk>/answer/", wrap(self.answer_view), name=f"{NAME}_answer"),
            path("<int:pk>/push/", wrap(require_POST(self.push_view)), name=f"{NAME}_push"),
        ]
        return [*own, *super().get_urls()]

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Who may change invocations may cancel, answer and push: the pages themselves change nothing."""
        codename = get_permission_codename("change", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the record; of one whose process was silent for too long, that it was interrupted."""
        found = super().get_object(request, object_id, from_field)
        return None if found is None else self._settled(found)

    def _settled(self, record: InvocationRecord) -> InvocationRecord:
        rows = InvocationRecord.objects.filter(clock.is_past("lease_expires_at"), pk=record.pk)
        if record.status in invocations.LIVE and rows.exists():
            # Whoever meets it writes it down.
            async_to_sync(invocations.read)(record.pk)
            record.refresh_from_db()
        return record

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show one invocation with its state, timeline, events, pushes and questions."""
        invocation = context["original"]
        may_read, may_operate = contents.may_read(request), self.has_operate_permission(request)
        context |= self._live_context(invocation) | {
            "explanation": explain(invocation),
            "pushes": pushes_of(invocation),
            "may_cancel": may_operate and invocation.status in CANCELLABLE,
            "graph_of": self._graph_of(request, invocation),
            "may_push": may_operate and bool(invocation.delivery_report),
            "events": load_events(invocation, request.GET.get("events")) if may_read else None,
        }
        if invocation.status == Status.AWAITING_INPUT and may_operate:
            context["needs_reading"] = "" if may_read else _ANSWERING_NEEDS_READING
            context["answers"] = Answers(invocation) if may_read else None
        return super().render_change_form(request, context, *args, **kwargs)

    def _graph_of(self, request: HttpRequest, invocation: InvocationRecord) -> str:
        """Return the endpoint whose graph can be shown; empty where it is no workflow, as far as is known."""
        endpoint = conf.get_endpoints().get(invocation.endpoint)
        if endpoint is None or known_kind(endpoint) != "workflow" or not self.may_view(request, SessionRecord):
            return ""
        return invocation.endpoint

    def _live_context(self, invocation: InvocationRecord) -> dict[str, Any]:
        return {"original": invocation, "timeline": timeline_of(invocation), "bar_width": WIDTH}

    # What a page asks for while it is open

    def live_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Answer the state and timeline of one invocation, as a fragment of its page."""
        context = self._live_context(self._record(request, pk))
        return TemplateResponse(request, _TEMPLATES + "live.html", context)

    def states_view(self, request: HttpRequest) -> JsonResponse:
        """Answer the states of some invocations, by their ids: for the rows of a list."""
        self._demand(self.has_view_permission(request))
        asked = [pk for pk in request.GET.getlist("id")[:MAX_ASKED_FOR] if _NUMBER.fullmatch(pk)]
        rows = InvocationRecord.objects.filter(pk__in=asked).values_list("pk", "status")
        return JsonResponse({str(pk): status for pk, status in rows})

    # What is done to it

    def cancel_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask whether to cancel one invocation, and cancel it."""
        invocation = self._record(request, pk)
        self._demand(self.has_operate_permission(request))
        if request.method != "POST":
            if invocation.status not in CANCELLABLE:
                return self._back(request, invocation, messages.INFO, _("It has ended: there is nothing to cancel."))
            return self.cancel_page(request, [invocation])
        if invocation.status not in CANCELLABLE:
            return self._back(request, invocation, messages.INFO, _("It has ended: nothing was cancelled."))
        self.cancel_and_tell(request, [invocation])
        return self._to(invocation)

    def cancel_page(self, request: HttpRequest, records: Sequence[InvocationRecord], **more: Any) -> HttpResponse:
        """Ask whether to cancel invocations.

        Args:
            request: The request.
            records: What would be cancelled.
            **more: What else the page's form holds, name to value.
        """
        title = ngettext("Cancel the invocation?", "Cancel %d invocations?", len(records))
        context = self.page(
            request, title % len(records) if len(records) != 1 else title, records[0] if len(records) == 1 else None
        )
        context |= {"records": records, "more": more}
        return TemplateResponse(request, _TEMPLATES + "cancel.html", context)

    def cancel_and_tell(self, request: HttpRequest, records: Sequence[InvocationRecord]) -> None:
        """Cancel invocations, and say what became of it.

        Args:
            request: The request.
            records: What is cancelled.
        """
        by_pk = {record.pk: record for record in records}
        ended = {stored.pk: stored for stored in cancel_all(records)}
        done = [pk for pk, stored in ended.items() if stored.status == Status.CANCELLED]
        told = [pk for pk, stored in ended.items() if not stored.has_ended]
        for pk in [*done, *told]:
            self.log_change(request, by_pk[pk], "Cancelled.")
        if done:
            text = ngettext("%d invocation was cancelled.", "%d invocations were cancelled.", len(done)) % len(done)
            self.message_user(request, text, messages.SUCCESS)
        if told:
            text = ngettext(
                "%d invocation was told to stop, and has not stopped yet.",
                "%d invocations were told to stop, and have not stopped yet.",
                len(told),
            )
            self.message_user(request, text % len(told), messages.WARNING)
        if left := len(records) - len(done) - len(told):
            text = ngettext("%d invocation had ended before.", "%d invocations had ended before.", left) % left
            self.message_user(request, text, messages.INFO)

    def answer_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Answer what one invocation left pending."""
        invocation = self._record(request, pk)
        self._demand(self.has_operate_permission(request) and contents.may_read(request))
        answers = Answers(invocation, request.POST if request.method == "POST" else None)
        if not answers.questions:
            return self._back(request, invocation, messages.INFO, _("Nothing waits for an answer any more."))
        if request.method != "POST":
            contents.log_read(request, [invocation], "Read the contents.")
            return self._answer_page(request, invocation, answers)
        if not answers.is_valid():
            return self._answer_page(request, invocation, answers)
        # Ahead of the run, which may take its time.
        self.log_change(request, invocation, "Sent an answer to what was pending.")
        try:
            answered_by = answer(invocation, answers.replies, outlives_request=hasattr(request, "scope"))
        except InvocationError as error:
            text = _("It was not answered: %(problem)s") % {"problem": error.text}
            return self._back(request, invocation, messages.ERROR, text)
        found = None if answered_by is None else InvocationRecord.objects.filter(pk=answered_by).first()
        if found is None:
            return self._back(request, invocation, messages.SUCCESS, _("Your answer was taken."))
        text = _("Your answer was taken. This is the invocation that goes on with it.")
        return self._back(request, found, messages.SUCCESS, text)

    def push_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Push the result of one invocation to the destinations that did not take it."""
        invocation = self._record(request, pk)
        self._demand(self.has_operate_permission(request))
        [report] = async_to_sync(delivery.resend_all)([invocation.pk])
        if report is None:
            return self._back(request, invocation, messages.INFO, _("There is nothing to push."))
        self.log_change(request, invocation, "Pushed again what did not arrive.")
        if report.open:
            return self._back(request, invocation, messages.WARNING, _("Something did not arrive."))
        return self._back(request, invocation, messages.SUCCESS, _("Everything arrived."))

    # What they share

    def _record(self, request: HttpRequest, pk: int) -> InvocationRecord:
        """Return a record that the user may see."""
        self._demand(self.has_view_permission(request))
        found = self.get_object(request, str(pk))
        if found is None:
            raise Http404
        record: InvocationRecord = found
        return record

    def _demand(self, may: bool) -> None:
        if not may:
            raise PermissionDenied

    def _back(self, request: HttpRequest, invocation: InvocationRecord, level: int, text: str) -> HttpResponse:
        self.message_user(request, text, level)
        return self._to(invocation)

    def _to(self, invocation: InvocationRecord) -> HttpResponse:
        address = reverse(f"admin:{NAME}_change", args=[invocation.pk], current_app=self.admin_site.name)
        return HttpResponseRedirect(address)

    def _answer_page(self, request: HttpRequest, invocation: InvocationRecord, answers: Answers) -> HttpResponse:
        context = self.page(request, _("Answer what is pending"), invocation) | {"answers": answers}
        return TemplateResponse(request, _TEMPLATES + "answer_page.html", context)
