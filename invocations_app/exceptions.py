"""Every way an invocation can be refused or fail, as named exceptions.

An exception says what happened: a stable code, a fixed public text and the
status of the HTTP answer. Turning it into bytes is left to the dialects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class InvocationError(Exception):
    """An invocation was refused or failed.

    Args:
        text: Public text of the answer; the class's fixed text when omitted.
        status: HTTP status of the answer; the class's when omitted.

    Attributes:
        code: Stable code, recorded and sent in the platform dialect's events.
        retry_after_seconds: Value of ``Retry-After``, or None.
    """

    code: ClassVar[str] = "invocation_failed"
    default_text: ClassVar[str] = "Agent invocation failed."
    default_status: ClassVar[int] = 500
    retry_after_seconds: int | None = None

    def __init__(self, text: str | None = None, *, status: int | None = None) -> None:
        self.text = self.default_text if text is None else text
        self.status = self.default_status if status is None else status
        super().__init__(self.text)


# Refused before anything was begun: no record is written.


class BodyTooLarge(InvocationError):
    """The request body is over ``MAX_BODY_BYTES``."""

    code = "body_too_large"
    default_text = "request body too large"
    default_status = 413


class MalformedInvocation(InvocationError):
    """The body breaks a rule of its dialect; the dialect gives text and status."""

    code = "malformed"
    default_status = 422


class InvalidIsolationHeader(InvocationError):
    """A trusted isolation header is repeated or too long."""

    code = "invalid_isolation_header"
    default_text = "invalid isolation header"
    default_status = 400


class InvocationRejected(InvocationError):
    """A run hook refuses the invocation.

    Args:
        text: Public text of the answer.
        status: HTTP status of the answer, 400 to 599.
    """

    code = "rejected"
    default_status = 422

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text, status=status)


class UnsupportedOptions(InvocationError):
    """The target's ``run`` cannot take the options."""

    code = "unsupported_options"
    default_text = "The hosted agent does not accept caller runtime options."
    default_status = 400


class StreamsNeedAsgi(InvocationError):
    """A stream or a background run was asked of a WSGI server."""

    code = "needs_asgi"
    default_text = "streams and background need an ASGI server"
    default_status = 501


class SessionRequired(InvocationError):
    """The session mode is ``required`` and there is no session id."""

    code = "session_required"
    default_text = "a session is required"
    default_status = 409


class SessionBusy(InvocationError):
    """Another turn of the session is running."""

    code = "session_busy"
    default_text = "the session is busy"
    default_status = 409


class ResponsesMismatch(InvocationError):
    """The responses do not answer exactly what is pending, or nothing is; each dialect has its own answer."""

    code = "invalid_workflow_turn"
    default_text = "'responses' must answer exactly the pending requests"
    default_status = 422


class AwaitingResponses(InvocationError):
    """New input came while requests are pending; each dialect has its own answer.

    Args:
        invocation_id: Id of the invocation that left them pending.
        pending: The pending requests, as the contract's objects.
    """

    code = "invalid_workflow_turn"
    default_text = "the session awaits responses"
    default_status = 409

    def __init__(self, invocation_id: str, pending: Sequence[Mapping[str, Any]]) -> None:
        self.invocation_id = invocation_id
        self.pending = tuple(pending)
        super().__init__()


class Overloaded(InvocationError):
    """The process has as many runs as it may have."""

    code = "overloaded"
    default_text = "too many runs"
    default_status = 503
    retry_after_seconds = 1


class ShuttingDown(InvocationError):
    """The process is shutting down and takes no new run."""

    code = "shutting_down"
    default_text = "the server is shutting down"
    default_status = 503
    retry_after_seconds = 1


class StorageUnavailable(InvocationError):
    """The database could not be reached before the turn began."""

    code = "storage_unavailable"
    default_text = "storage is not available"
    default_status = 503
    retry_after_seconds = 1


class TargetUnavailable(InvocationError):
    """The target could not be built."""

    code = "target_unavailable"
    default_text = "The agent is not available."
    default_status = 500


class InvocationIdReused(InvocationError):
    """The invocation id was used before, for a request with another body."""

    code = "invocation_id_reused"
    default_text = "this invocation id was used for another request"
    default_status = 422


class InvocationNotFound(InvocationError):
    """There is no such invocation in the caller's scope."""

    code = "not_found"
    default_text = "not found"
    default_status = 404


# Failures of a turn that was begun: they stand in its record.


class TargetFailed(InvocationError):
    """The target, a hook or the commit failed; the cause is chained."""


class WorkflowFailed(InvocationError):
    """A workflow, or the commit of its turn, failed; the cause is chained."""

    code = "workflow_invocation_failed"
    default_text = "Workflow invocation failed."


class InvalidWorkflowOutput(InvocationError):
    """An output of a workflow is no JSON; the text names its type."""

    code = "invalid_workflow_output"
    default_text = "A workflow output is not JSON."


class InvalidCheckpoint(InvocationError):
    """The stored checkpoint is of another graph, or has work in flight."""

    code = "invalid_checkpoint"
    default_text = "the stored workflow state cannot be used"
    default_status = 409


class StoredStateUnreadable(InvocationError):
    """The session's stored state cannot be read; the row is left as it is."""

    code = "stored_state_unreadable"
    default_text = "the stored session cannot be read"


class SessionConflict(InvocationError):
    """Another writer changed the session since it was loaded."""

    code = "session_conflict"
    default_text = "Another request advanced this agent session; reload before retrying."
    default_status = 409


class RunTimedOut(InvocationError):
    """The run outlasted ``RUN_TIMEOUT_SECONDS``."""

    code = "timeout"
    default_text = "the run timed out"
    default_status = 504


class RunCancelled(InvocationError):
    """The run was cancelled."""

    code = "cancelled"
    default_text = "this invocation was cancelled"
    default_status = 409


class RunInterrupted(InvocationError):
    """The run lost its claim, or its process ended."""

    code = "interrupted"
    default_text = "this invocation was interrupted"
    default_status = 409


class MalformedEventId(InvocationError):
    """``Last-Event-ID`` or ``after`` is no whole number of 0 or more."""

    code = "malformed_event_id"
    default_text = "malformed event id"
    default_status = 400


_RECORDED: tuple[type[InvocationError], ...] = (
    TargetFailed,
    WorkflowFailed,
    InvalidWorkflowOutput,
    InvalidCheckpoint,
    SessionRequired,
    StoredStateUnreadable,
    SessionConflict,
    RunTimedOut,
    RunCancelled,
    RunInterrupted,
)


def error_of_code(code: str, status: int | None) -> InvocationError:
    """Return the error that a record's code stands for, with its fixed text.

    Args:
        code: The recorded code.
        status: The recorded HTTP status.
    """
    kinds = {kind.code: kind for kind in _RECORDED}
    return kinds.get(code, TargetFailed)(status=status)
