"""Pending requests as pages and exports tell of them: what was asked, and by whom and when it was answered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from invocations_app.admin.display import Excerpt, excerpt, one_line, pretty_json
from invocations_app.admin.redaction import Redactor
from invocations_app.exceptions import ResponsesMismatch
from invocations_app.models import InvocationRecord, PendingRecord, SessionRecord
from invocations_app.pending import is_approved

_LARGE = ("answer", "metadata", "usage", "input", "delivery_report")


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what became of it.

    Attributes:
        request_id: Its id.
        kind: What it is, in the reader's language.
        tool: The tool that it is about; empty for a workflow's own request.
        status: Whether it waits, or how it ended, in the reader's language.
        is_open: Whether it waits.
        good: False for a refusal, and for one that was closed without an answer.
        who: Who answered: the Django user, or the user key.
        when: When it was answered or closed.
        answered_by: Primary key of the invocation that answered.
        asked_by: Primary key of the invocation that asked.
        asked_at: When it was asked.
        reason: The reason of an approval's answer.
        text: What was asked, as JSON over several lines, in full.
        reply: What was answered, likewise; empty without an answer.
    """

    request_id: str
    kind: str
    tool: str
    status: str
    is_open: bool
    good: bool
    who: str
    when: datetime | None
    answered_by: int | None
    asked_by: int | None
    asked_at: datetime
    reason: str
    text: str
    reply: str

    @property
    def body(self) -> Excerpt:
        """What was asked, as a page shows it."""
        return excerpt(self.text)

    @property
    def hint(self) -> str:
        """The beginning of what was asked, on one line."""
        return one_line(self.text)

    @property
    def reply_body(self) -> Excerpt:
        """What was answered, as a page shows it."""
        return excerpt(self.reply)


def requests_of(session: SessionRecord) -> QuerySet[PendingRecord]:
    """Return the rows of a session's requests in the order they were asked, with who answered them.

    Args:
        session: The session.
    """
    rows = PendingRecord.objects.filter(session_record=session).select_related("answered_by__user")
    return rows.order_by("pk").defer("payload", *(f"answered_by__{name}" for name in _LARGE))


def read_request(record: PendingRecord, redactor: Redactor) -> Request:
    """Return what is told of a request.

    Args:
        record: Its row, as `requests_of` gives it.
        redactor: What its texts go through.
    """
    data = _load(record.data)
    data = data if isinstance(data, dict) else {}
    reply = _load(record.reply) if record.reply else None
    status, good = _status(record, reply)
    tool = data.get("tool")
    reason = reply.get("reason") if isinstance(reply, dict) and record.kind == "approval" else None
    answered_by: InvocationRecord | None = record.answered_by
    asked = {key: value for key, value in data.items() if key not in ("request_id", "type")}
    return Request(
        request_id=record.request_id,
        kind=_kinds().get(record.kind, record.kind),
        tool=redactor.text(tool) if isinstance(tool, str) else "",
        status=status,
        is_open=record.closed_at is None,
        good=good,
        who=str(answered_by.user or answered_by.user_key) if answered_by else "",
        when=record.closed_at,
        answered_by=record.answered_by_id,
        asked_by=record.invocation_id,
        asked_at=record.created_at,
        reason=redactor.text(reason) if isinstance(reason, str) else "",
        text=pretty_json(redactor.json(json.dumps(asked) if asked else record.data)),
        reply=pretty_json(redactor.json(record.reply)),
    )


def read_requests(records: Iterable[PendingRecord], redactor: Redactor) -> list[Request]:
    """Return what is told of several requests.

    Args:
        records: Their rows.
        redactor: What their texts go through.
    """
    return [read_request(record, redactor) for record in records]


def _kinds() -> dict[str, str]:
    return {"approval": _("Approval"), "tool_call": _("Tool call"), "request_info": _("Question")}


def _status(record: PendingRecord, reply: Any) -> tuple[str, bool]:
    if record.closed_at is None:
        return _("Waits for an answer"), True
    if not record.reply:
        return _("Closed without an answer"), False
    if record.kind != "approval":
        return _("Answered"), True
    try:
        approved = is_approved(reply)
    except ResponsesMismatch:
        approved = False
    return (_("Approved"), True) if approved else (_("Refused"), False)


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
