"""What an error code of a record means, and where to look next."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from invocations_app.exceptions import error_of_code
from invocations_app.models import InvocationRecord

_LOG = _("The log has the traceback, beside the correlation id.")
_HINTS: dict[str, str | Promise] = {
    "invocation_failed": _LOG,
    "workflow_invocation_failed": _LOG,
    "invalid_workflow_output": _("An executor gave what is no JSON; the log says which."),
    "invalid_checkpoint": _(
        "The workflow was changed since, or the checkpoint has work in flight. Resetting the session is the way out."
    ),
    "stored_state_unreadable": _(
        "The session was stored with types that this site does not know any more; the log says more. "
        "Resetting the session is the way out."
    ),
    "session_required": _("The turn ended with a question, or the endpoint wants sessions, and there was no session."),
    "session_conflict": _("Something else wrote the session meanwhile; the turn was not stored, and may be repeated."),
    "timeout": _("The run outlasted RUN_TIMEOUT_SECONDS of its endpoint; the session stayed as it was."),
    "cancelled": _("A caller or somebody in the admin stopped it; the session stayed as it was."),
    "interrupted": _("Its process ended, or was silent for longer than its lease; the session stayed as it was."),
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """An error as a page tells it.

    Attributes:
        code: The recorded code.
        status: HTTP status of the answer, or None.
        text: What the caller was told.
        hint: What it means for who looks into it.
    """

    code: str
    status: int | None
    text: str
    hint: str | Promise


def explain(invocation: InvocationRecord) -> Explanation | None:
    """Return what the error of an invocation means; None where it has none.

    Args:
        invocation: Its record.
    """
    code = invocation.error_code
    if not code:
        return None
    error = error_of_code(code, invocation.error_status)
    return Explanation(code, invocation.error_status, error.text, _HINTS.get(code, _LOG))
