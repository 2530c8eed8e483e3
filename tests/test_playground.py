"""Who may open the playground, and what it is told of sessions: the caller's own, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, override_settings
from django.utils import timezone

from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from project import playground
from project.conversations import parts_of, title_of

TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [Path(__file__).resolve().parent.parent / "templates"]}]
SESSIONS = "/playground/default/sessions"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(ROOT_URLCONF="project.urls", TEMPLATES=TEMPLATES):
        yield


def client_of(user: User | None) -> Client:
    client = Client()
    if user is not None:
        client.force_login(user)
    return client


@pytest.fixture
def staff() -> User:
    return User.objects.create_user("ada", is_staff=True)


def add_session(scope: Scope, session_id: str, *texts: str, user: User | None = None) -> SessionRecord:
    now = timezone.now()
    session = SessionRecord.objects.create(
        endpoint=scope.endpoint,
        user_key=scope.user_key,
        chat_key=scope.chat_key,
        user=user,
        key=scope.key(session_id),
        session_id=session_id,
        opaque_id=scope.key(session_id)[:32],
        created_at=now,
        updated_at=now,
    )
    for position, text in enumerate(texts):
        add_message(session, position, {"type": "text", "text": text})
    return session


def add_message(session: SessionRecord, position: int, content: dict[str, Any], **values: Any) -> None:
    role = values.pop("role", "assistant" if position % 2 else "user")
    payload = json.dumps({"role": role, "contents": [content]})
    values = {"source_id": "memory", "role": role, "payload": payload, "created_at": timezone.now(), **values}
    MessageRecord.objects.create(session=session, position=position, **values)


def add_invocation(session: SessionRecord, invocation_id: str, status: str) -> InvocationRecord:
    scope = Scope(session.endpoint, session.user_key, session.chat_key)
    return InvocationRecord.objects.create(
        endpoint=scope.endpoint,
        user_key=scope.user_key,
        key=scope.key(invocation_id),
        invocation_id=invocation_id,
        correlation_id=f"correlation-{invocation_id}",
        dialect="channel",
        fingerprint="",
        session_record=session,
        session_id=session.session_id,
        status=status,
        error_code="invocation_failed" if status == "failed" else "",
        error_status=500 if status == "failed" else None,
        created_at=timezone.now(),
        finished_at=timezone.now(),
    )


def scope_of(user: User) -> Scope:
    return Scope("default", user_key=f"user:{user.pk}")


# Who may


def test_staff_opens_the_page_without_debug(staff: User) -> None:
    answer = client_of(staff).get("/")
    assert (answer.status_code, answer.templates[0].name) == (200, "start.html")
    assert answer["Cache-Control"] == "no-store"


@override_settings(DEBUG=True)
def test_everybody_opens_the_page_in_debug() -> None:
    assert client_of(None).get("/").status_code == 200


def test_who_is_not_logged_in_is_sent_to_the_login() -> None:
    answer = client_of(None).get("/?session=s1")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/login/?next=/%3Fsession%3Ds1")
    assert answer["Content-Security-Policy"].startswith("default-src 'none'; ")


def test_who_is_no_staff_is_told_so() -> None:
    answer = client_of(User.objects.create_user("<b>eve")).get("/")
    assert answer.status_code == 403
    assert "You are logged in as &lt;b&gt;eve, who is not one of them." in answer.content.decode()


@pytest.mark.parametrize("user", [None, "eve"])
@pytest.mark.parametrize("path", [SESSIONS, "/playground/default/invocations/i1"])
def test_others_are_told_nothing(user: str | None, path: str) -> None:
    answer = client_of(User.objects.create_user(user) if user else None).get(path)
    assert (answer.status_code, answer.content) == (403, b'{"error": "the playground is for staff"}')


def test_page_takes_no_post(staff: User) -> None:
    assert client_of(staff).post("/").status_code == 405
    assert client_of(staff).post(SESSIONS).status_code == 405


# What they are told


def test_sessions_of_the_caller_are_listed_with_their_first_words(staff: User) -> None:
    other = User.objects.create_user("bob", is_staff=True)
    add_session(scope_of(staff), "old", "first words", "an answer", "later words", user=staff)
    add_session(scope_of(staff), "empty", user=staff)
    add_session(scope_of(other), "theirs", "a secret", user=other)
    add_session(Scope("elsewhere", user_key=f"user:{staff.pk}"), "other endpoint", "no", user=staff)
    add_session(Scope("default", f"user:{staff.pk}", "chat"), "other chat", "no", user=staff)
    waiting = add_session(scope_of(staff), "waiting", "book it", user=staff)
    SessionRecord.objects.filter(pk=waiting.pk).update(pending_count=1)
    archived = add_session(scope_of(staff), "archived", "gone", user=staff)
    SessionRecord.objects.filter(pk=archived.pk).update(archived_at=timezone.now(), key=None)
    told = client_of(staff).get(SESSIONS).json()["sessions"]
    assert [(one["id"], one["title"], one["pending"]) for one in told] == [
        ("waiting", "book it", True),
        ("empty", "", False),
        ("old", "first words", False),
    ]


@override_settings(DEBUG=True)
def test_nobody_s_sessions_are_not_listed_but_found_by_who_knows_their_id() -> None:
    add_session(Scope("default"), "a secret id", "hello")
    assert client_of(None).get(SESSIONS).json() == {"sessions": []}
    found = client_of(None).get(SESSIONS, {"id": "a secret id"}).json()
    assert [message["parts"] for message in found["messages"]] == [[{"text": "hello"}]]


def test_nothing_is_told_of_what_is_another_s(staff: User) -> None:
    other = User.objects.create_user("bob", is_staff=True)
    add_invocation(add_session(scope_of(other), "theirs", "a secret", user=other), "i1", "succeeded")
    answers = [
        client_of(staff).get(SESSIONS, {"id": "theirs"}),
        client_of(staff).get(SESSIONS, {"id": "nobody's"}),
        client_of(staff).get("/playground/default/invocations/i1"),
        client_of(staff).get("/playground/default/invocations/no+id"),
    ]
    nothing = {"messages": [], "isWhole": True, "unsettled": []}
    assert [(one.status_code, one.json()) for one in answers] == [(200, nothing)] * 2 + [(200, {})] * 2


def test_turn_that_still_runs_is_told_by_its_id_and_without_its_messages(staff: User) -> None:
    session = add_session(scope_of(staff), "s1", "earlier", user=staff)
    running = add_invocation(session, "i-running", "running")
    add_invocation(session, "i-done", "succeeded")
    add_invocation(session, "i-waits", "awaiting_input")
    add_message(session, 1, {"type": "text", "text": "written just now"}, invocation=running)
    told = client_of(staff).get(SESSIONS, {"id": "s1"}).json()
    assert told["unsettled"] == [
        {"id": "i-running", "status": "running"},
        {"id": "i-waits", "status": "awaiting_input"},
    ]
    assert [message["parts"] for message in told["messages"]] == [[{"text": "earlier"}]]
    assert told["isWhole"] is True


def test_long_session_is_told_from_its_end(staff: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "MAX_MESSAGES", 2)
    add_session(scope_of(staff), "s1", "one", "two", "three", user=staff)
    told = client_of(staff).get(SESSIONS, {"id": "s1"}).json()
    assert [message["parts"][0]["text"] for message in told["messages"]] == ["two", "three"]
    assert told["isWhole"] is False


def test_answers_of_a_workflow_are_told(staff: User) -> None:
    session = add_session(scope_of(staff), "s1", user=staff)
    record = add_invocation(session, "i1", "succeeded")
    InvocationRecord.objects.filter(pk=record.pk).update(answer=json.dumps({"text": "done", "session_id": "s1"}))
    told = client_of(staff).get(SESSIONS, {"id": "s1"}).json()
    assert [(message["role"], message["parts"]) for message in told["messages"]] == [("assistant", [{"text": "done"}])]


def test_invocation_is_told_with_its_correlation_id_and_its_place_in_the_admin(staff: User) -> None:
    record = add_invocation(add_session(scope_of(staff), "s1", user=staff), "i1", "failed")
    told = client_of(staff).get("/playground/default/invocations/i1").json()
    assert told["error"] == {"message": "Agent invocation failed.", "code": "invocation_failed", "status": 500}
    assert told["correlation_id"] == "correlation-i1"
    assert told["admin"] == f"/admin/invocations_app/invocationrecord/{record.pk}/change/"


def test_list_takes_one_query_however_many_sessions(staff: User, django_assert_num_queries: Any) -> None:
    for number in range(5):
        add_session(scope_of(staff), f"s{number}", "hello", user=staff)
    with django_assert_num_queries(1):
        assert len(playground.list_sessions(scope_of(staff))) == 5


# Stored messages


@pytest.mark.parametrize(
    ("payload", "title"),
    [
        ('{"contents": [{"type": "text", "text": "two\\n words"}]}', "two words"),
        ('{"contents":[{"type":"text","text":"\\u00fcber \\"alles\\""}]}', 'über "alles"'),
        ('{"contents": [{"type": "text", "text": "cut in an escape \\u00', "cut in an escape"),
        ('{"contents": [{"type": "text", "text": "' + "x" * 200, "x" * 79 + "…"),
        ('{"contents": [{"type": "data", "uri": "data:image/png;base64,AAAA"}]}', ""),
        ("no json", ""),
    ],
)
def test_title_is_the_first_words(payload: str, title: str) -> None:
    assert title_of(payload) == title


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"type": "text", "text": "hello"}, {"text": "hello"}),
        ({"type": "data", "uri": "data:image/png;base64,AAAA"}, {"image": "data:image/png;base64,AAAA"}),
        ({"type": "data", "uri": "data:image/svg+xml;base64,AAAA"}, None),
        ({"type": "data", "uri": 'data:image/png;base64,AA" onerror="'}, None),
        ({"type": "uri", "uri": "https://example.com/x.png"}, None),
        (
            {"type": "function_call", "name": "sum", "arguments": '{"a": 1}'},
            {"call": "sum", "arguments": {"a": 1}},
        ),
        ({"type": "function_call", "name": "sum", "arguments": "{"}, {"call": "sum", "arguments": "{"}),
        ({"type": "function_result", "result": 3}, {"result": "3"}),
        (
            {"type": "function_approval_request", "function_call": {"name": "book", "arguments": {"day": "Friday"}}},
            {"asked": "book", "arguments": {"day": "Friday"}},
        ),
        (
            {"type": "function_approval_response", "approved": False, "function_call": {"name": "book"}},
            {"approved": False, "tool": "book"},
        ),
        ({"type": "usage"}, None),
        ("no object", None),
    ],
)
def test_stored_content_becomes_a_part(content: Any, part: dict[str, Any] | None) -> None:
    assert parts_of(json.dumps({"contents": [content]})) == ([part] if part else [])


@pytest.mark.parametrize("payload", ["", "[]", "{}", '{"contents": 1}', "null"])
def test_message_that_cannot_be_read_has_no_parts(payload: str) -> None:
    assert parts_of(payload) == []


def test_answers_are_no_pages() -> None:
    answer: HttpResponse = client_of(None).get(SESSIONS)
    assert answer["Content-Type"] == "application/json"
