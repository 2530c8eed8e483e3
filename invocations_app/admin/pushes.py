"""The pushes of an invocation and what became of them, as a table shows it."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from invocations_app.admin.display import excerpt
from invocations_app.models import InvocationRecord
from invocations_app.storage.deliveries import decode_report


@dataclass(frozen=True, slots=True)
class Push:
    """One destination of a result.

    Attributes:
        destination: Its name in the settings.
        state: What became of it.
        label: The same for people.
        problem: Class of the error; empty for none.
    """

    destination: str
    state: str
    label: str | Promise
    problem: str = ""


def pushes_of(invocation: InvocationRecord) -> list[Push]:
    """Return the destinations of an invocation's result, those that did not take it first.

    Args:
        invocation: Its record.
    """
    try:
        report = decode_report(invocation.delivery_report)
    except (KeyError, TypeError, ValueError):
        return []
    if report is None:
        return []
    found = [Push(push.destination, "failed", _("failed"), push.error) for push in report.failed]
    found += [Push(name, "unsent", _("not known to have arrived")) for name in report.unsent]
    found += [Push(name, "skipped", _("unknown destination")) for name in report.skipped]
    found += [Push(name, "pushed", _("arrived")) for name in report.pushed]
    return [Push(excerpt(push.destination, 200).text, push.state, push.label, push.problem) for push in found]
