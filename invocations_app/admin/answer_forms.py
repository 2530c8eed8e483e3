"""The forms by which a person answers what an invocation left pending, one for each request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _
from pydantic import TypeAdapter

from invocations_app import conf
from invocations_app.admin.display import Excerpt, excerpt, pretty
from invocations_app.admin.redaction import Redactor
from invocations_app.dialects import strict_json
from invocations_app.exceptions import InvocationError, ResponsesMismatch
from invocations_app.models import InvocationRecord, PendingRecord
from invocations_app.pending import PendingRequest
from invocations_app.runs.workflow_requests import reply_checker, wanted_type
from invocations_app.storage.pending import request_of

MAX_REASON_CHARACTERS = 1_000


class ApprovalForm(forms.Form):
    """Whether a call may run; nothing is chosen beforehand."""

    verdict = forms.ChoiceField(
        label=_("Answer"),
        choices=[("approve", _("Approve: it runs")), ("refuse", _("Refuse: it does not run"))],
        widget=forms.RadioSelect,
    )
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=MAX_REASON_CHARACTERS,
        help_text=_("Recorded with the answer. The model is not shown it."),
        widget=forms.TextInput(attrs={"class": "vTextField", "dir": "auto"}),
    )

    @property
    def reply(self) -> Any:
        """The reply, as a caller would send it."""
        approved = self.cleaned_data["verdict"] == "approve"
        reason = self.cleaned_data["reason"]
        return {"approved": approved, "reason": reason} if reason else approved


class ValueForm(forms.Form):
    """A JSON value: the result of a call, or what a workflow asked for."""

    value = forms.CharField(
        label=_("JSON value"),
        strip=True,
        help_text=_("Text stands in quotation marks."),
        widget=forms.Textarea(
            attrs={"rows": 4, "class": "vLargeTextField", "spellcheck": "false", "autocapitalize": "off", "dir": "auto"}
        ),
    )

    def clean_value(self) -> Any:
        """Return the value that the text stands for."""
        try:
            return strict_json.loads(self.cleaned_data["value"].encode())
        except strict_json.InvalidJson as error:
            raise forms.ValidationError(_("This is not JSON: %(problem)s."), params={"problem": str(error)}) from None

    @property
    def reply(self) -> Any:
        """The reply, as a caller would send it."""
        return self.cleaned_data["value"]


@dataclass(frozen=True, slots=True)
class Question:
    """A pending request, and the form that answers it.

    Attributes:
        request: The request.
        form: Its form.
        title: The tool's name, or the executor that asks.
        asked: Arguments or question, fit for a page.
        wanted: What the reply has to be, as JSON schema; empty where anything is taken or it is not known.
    """

    request: PendingRequest
    form: Any
    title: str
    asked: Excerpt
    wanted: str


class Answers:
    """All questions that an invocation left pending; they are answered together.

    Args:
        invocation: Record of the invocation that asked.
        data: The posted form; None for an empty one.
    """

    def __init__(self, invocation: InvocationRecord, data: Any = None) -> None:
        self._endpoint = conf.get_endpoints().get(invocation.endpoint)
        redactor = Redactor()
        self.questions = [self._question(record, data, redactor) for record in open_records(invocation)]

    def is_valid(self) -> bool:
        """Return whether every form has a reply of the right type."""
        # All of them, so that each says what is wrong.
        fine = [question.form.is_valid() and self._fits(question) for question in self.questions]
        return bool(fine) and all(fine)

    @property
    def replies(self) -> dict[str, Any]:
        """Request id to reply."""
        return {question.request.request_id: question.form.reply for question in self.questions}

    def _question(self, record: PendingRecord, data: Any, redactor: Redactor) -> Question:
        request = request_of(record)
        kind: type[forms.Form] = ApprovalForm if request.kind == "approval" else ValueForm
        # Ids are the model's: they do not make names of fields.
        form = kind(data, prefix=f"request-{record.pk}", label_suffix="")
        is_tool = request.kind != "request_info"
        title = request.data.get("tool" if is_tool else "source_executor_id")
        asked = redactor.value(request.data.get("arguments" if is_tool else "data"))
        return Question(
            request, form, excerpt(str(title or ""), 200).text, excerpt(pretty(asked)), self._wanted(request)
        )

    def _wanted(self, request: PendingRequest) -> str:
        if request.kind != "request_info" or self._endpoint is None:
            return ""
        try:
            return json.dumps(TypeAdapter(wanted_type(self._endpoint, request)).json_schema(), indent=2)
        # Pydantic has many ways to say that a type has no schema.
        except Exception:
            return ""

    def _fits(self, question: Question) -> bool:
        if question.request.kind != "request_info" or self._endpoint is None:
            return True
        try:
            reply_checker(self._endpoint)(question.request, question.form.reply)
        except ResponsesMismatch as error:
            text = str(error.__cause__ or error)
            question.form.add_error("value", _("This is not what was asked for: %(problem)s") % {"problem": text})
        except InvocationError as error:
            question.form.add_error("value", error.text)
        return not question.form.errors


def open_records(invocation: InvocationRecord) -> Sequence[PendingRecord]:
    """Return what an invocation left pending and nobody has answered, in the order it was asked.

    Args:
        invocation: Its record.
    """
    if invocation.status != InvocationRecord.Status.AWAITING_INPUT:
        return []
    return list(invocation.pending.filter(closed_at=None).order_by("pk"))
