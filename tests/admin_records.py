"""Rows for the tests of the admin, and their pages."""

import json
from datetime import UTC, datetime

from agent_framework import Message
from django.urls import reverse

from invocations_app.models import InvocationRecord, MessageRecord, PendingRecord, SessionRecord

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
SCRIPT = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
SESSIONS = reverse("admin:invocations_app_sessionrecord_changelist")
INVOCATIONS = reverse("admin:invocations_app_invocationrecord_changelist")


def payload(*contents, role="user", **kwargs):
    return json.dumps(Message(role=role, contents=list(contents), **kwargs).to_dict())


def make_session(session_id="s1", messages=(), *, source_id="in_memory", **kwargs):
    count = SessionRecord.objects.count()
    values = {"endpoint": "default", "user_key": "platform:contoso", "created_at": NOW, "updated_at": NOW}
    values |= {"session_id": session_id, "key": f"key-{count}", "opaque_id": f"opaque-{count}"}
    session = SessionRecord.objects.create(**values | {"message_count": len(messages)} | kwargs)
    MessageRecord.objects.bulk_create(
        MessageRecord(
            session=session, source_id=source_id, position=place, role="user", payload=message, created_at=NOW
        )
        for place, message in enumerate(messages)
    )
    return session


def make_invocation(**kwargs):
    count = InvocationRecord.objects.count()
    values = {"endpoint": "default", "dialect": "channel", "status": "succeeded", "created_at": NOW}
    values |= {"key": f"key-{count}", "invocation_id": f"call-{count}", "correlation_id": f"correlation-{count}"}
    return InvocationRecord.objects.create(**values | kwargs)


def page_of(record):
    return reverse(f"admin:invocations_app_{record._meta.model_name}_change", args=[record.pk])


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def say(session, turn, role, *contents, **kwargs):
    """Add a message to a session."""
    place = MessageRecord.objects.filter(session=session).count()
    return MessageRecord.objects.create(
        session=session, source_id="in_memory", position=place, role=role, invocation=turn, created_at=NOW,
        payload=payload(*contents, role=role, **kwargs),
    )  # fmt: skip


def ask(session, turn, kind="approval", request_id="af-call-1", data=None, **kwargs):
    """Leave a request pending."""
    asked = {"request_id": request_id, "type": kind, "tool": "get_weather", "arguments": {"city": "Rome"}}
    return PendingRecord.objects.create(
        session_record=session, invocation=turn, position=0, request_id=request_id, kind=kind,
        data=json.dumps(asked if data is None else data), payload="{}", created_at=NOW, **kwargs,
    )  # fmt: skip
