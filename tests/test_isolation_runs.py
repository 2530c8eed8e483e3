"""Isolation keys in runs: seen at every moment of one's own, never of another's, and only where trusted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.asgi import get_asgi_application

from invocations_app.isolation import IsolationKeys, get_current_isolation_keys
from invocations_app.models import InvocationRecord, SessionRecord
from tests import fakes
from tests.frames import read_text
from tests.session_fakes import PATH, post, stream, table

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = [
    ("alice", "one"),
    ("alice", "two"),
    ("bob", "one"),
    ("a:b", "c"),
    ("a", "b:c"),
    ("a/b", "c"),
    ("a", "b/c"),
    ("platform:alice", "one"),
]


@pytest.fixture
def target(settings: Any):
    def use(name: str, **more: Any) -> None:
        more = {"TRUST_ISOLATION_HEADERS": True, **more}
        settings.INVOCATIONS = {"default": {"TARGET": name if "." in name else f"tests.fakes.{name}", **more}}

    return use


def headers(user: str | None = None, chat: str | None = None) -> dict[str, str]:
    found = {"x_agent_user_isolation_key": user, "x_agent_chat_isolation_key": chat}
    return {name: value for name, value in found.items() if value is not None}


def moments(keys: str) -> str:
    """Return what ``build_watching`` answers when it sees these keys at every moment."""
    return "".join(f"{moment} {keys}\n" for moment in ("first", "middle", "tool", "tool", "last"))


async def ask(client: Any, is_streamed: bool, *, session_id: str = "s1", **given: str) -> str:
    body = {"message": "who?", "session_id": session_id}
    if is_streamed:
        return read_text(await stream(client, body, **given))
    return (await post(client, body, **given)).json()["response"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_keys_are_seen_at_every_moment_of_a_run(async_client, target, is_streamed):
    target("tests.session_fakes.build_watching")
    assert await ask(async_client, is_streamed, **headers("alice", "one")) == moments("alice|one")
    (session,) = await table(SessionRecord)
    assert json.loads(session["state"])["session"]["state"]["keys"]["seen"] == ["before alice|one", "after alice|one"]
    assert get_current_isolation_keys() is None


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_hooks_and_stores_of_ones_own_see_the_keys(async_client, target, is_streamed):
    target(
        "build_pieces",
        RUN_HOOK="tests.session_fakes.key_run_hook",
        RESPONSE_HOOK="tests.session_fakes.key_response_hook",
        STREAM_TRANSFORM_HOOK="tests.session_fakes.key_transform_hook",
        SESSION_STORE="tests.session_fakes.KeyNotingStore",
    )
    await ask(async_client, is_streamed, **headers("alice", "one"))
    hooks = ["transform hook alice|one"] * 2 if is_streamed else ["response hook alice|one"]
    assert fakes.notes == ["run hook alice|one", "get alice|one", *hooks, "set alice|one"]


async def test_concurrent_requests_never_see_each_others_keys(async_client, target):
    target("tests.session_fakes.build_watching")
    asked = [(user, chat, is_streamed) for user, chat in KEYS for is_streamed in (True, False)]
    answers = await asyncio.gather(
        *(
            ask(async_client, is_streamed, session_id=f"s{is_streamed}", **headers(user, chat))
            for user, chat, is_streamed in asked
        )
    )
    assert answers == [moments(f"{user}|{chat}") for user, chat, _ in asked]
    seen = {
        (row["user_key"], row["chat_key"], row["session_id"]): json.loads(row["state"])["session"]["state"]["keys"][
            "seen"
        ]
        for row in await table(SessionRecord)
    }
    assert seen == {
        (f"platform:{user}", chat, f"s{is_streamed}"): [f"before {user}|{chat}", f"after {user}|{chat}"]
        for user, chat, is_streamed in asked
    }


async def test_keys_with_separators_never_meet(async_client, target):
    target("build_noting")
    for user, chat in KEYS:
        response = await post(async_client, {"message": f"{user}|{chat}", "session_id": "s1"}, **headers(user, chat))
        assert response.status_code == 200
    assert [call.texts for call in fakes.calls] == [[("user", f"{user}|{chat}")] for user, chat in KEYS]
    rows = await table(SessionRecord)
    assert len({row["key"] for row in rows}) == len({row["opaque_id"] for row in rows}) == len(KEYS)
    assert [call.keys for call in fakes.calls] == [IsolationKeys(user, chat) for user, chat in KEYS]


@pytest.mark.parametrize(
    ("user", "chat", "seen"),
    [("alice", None, "alice|None"), (None, "one", "None|one"), ("", "", "nobody"), (None, None, "nobody")],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_absent_and_empty_headers_leave_the_keys_empty(async_client, target, user, chat, seen, is_streamed):
    target("tests.session_fakes.build_watching")
    assert await ask(async_client, is_streamed, **headers(user, chat)) == moments(seen)
    (session,) = await table(SessionRecord)
    assert (session["user_key"], session["chat_key"]) == (f"platform:{user}" if user else "", chat or "")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_spoofed_headers_are_ignored_while_untrusted(async_client, target, is_streamed):
    target("tests.session_fakes.build_watching", TRUST_ISOLATION_HEADERS=False)
    spoofed = {**headers("alice", "one"), "x_agent_user_id": "alice", "x_agent_foundry_call_id": "call"}
    assert await ask(async_client, is_streamed, **spoofed) == moments("nobody")
    assert {(call.keys, call.call_id) for call in fakes.calls} == {(None, None)}
    for model in (SessionRecord, InvocationRecord):
        assert [(row["user_key"], row["chat_key"]) for row in await table(model)] == [("", "")]


async def test_untrusted_headers_are_not_even_checked(async_client, target):
    target("build_echo", TRUST_ISOLATION_HEADERS=False)
    response = await post(async_client, {"message": "a"}, **headers("x" * 300))
    assert response.status_code == 200


async def test_only_the_endpoint_that_trusts_them_believes_headers(async_client, settings):
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_echo"},
        "behind": {"TARGET": "tests.fakes.build_echo", "PATH": "behind", "TRUST_ISOLATION_HEADERS": True},
    }
    for path in (PATH, "/behind/invoke"):
        await post(async_client, {"message": "/tool whoami {}", "session_id": "s1"}, path=path, **headers("alice"))
    assert [call.keys for call in fakes.calls] == [None, None] + [IsolationKeys("alice")] * 2
    assert [(row["endpoint"], row["user_key"]) for row in await table(SessionRecord)] == [
        ("default", ""),
        ("behind", "platform:alice"),
    ]


async def test_the_user_id_header_stands_in_for_the_user_key(async_client, target):
    target("build_echo")
    await post(async_client, {"message": "a", "session_id": "s1"}, x_agent_user_id="carol")
    await post(async_client, {"message": "b", "session_id": "s1"}, x_agent_user_id="carol", **headers("dave"))
    assert [row["user_key"] for row in await table(SessionRecord)] == ["platform:carol", "platform:dave"]
    # The ContextVar holds the isolation headers alone.
    assert [call.keys for call in fakes.calls] == [None, IsolationKeys("dave")]


async def test_the_call_id_is_there_for_the_run_and_nowhere_else(async_client, target):
    target("build_echo")
    await post(async_client, {"message": "a", "session_id": "s1"}, x_agent_foundry_call_id="THE-CALL")
    assert fakes.calls[0].call_id == "THE-CALL"
    assert "THE-CALL" not in repr([await table(SessionRecord), await table(InvocationRecord)])


@pytest.mark.parametrize(
    "name", ["x_agent_user_isolation_key", "x_agent_chat_isolation_key", "x_agent_user_id", "x_agent_foundry_call_id"]
)
async def test_a_header_may_have_256_characters_and_no_more(async_client, target, name):
    target("build_echo")
    assert (await post(async_client, {"message": "a"}, **{name: "k" * 256})).status_code == 200
    response = await post(async_client, {"message": "a"}, **{name: "k" * 257})
    assert (response.status_code, response.content) == (400, b'{"error":"invalid isolation header"}')
    assert len(fakes.calls) == len(await table(InvocationRecord)) == 1


@pytest.mark.parametrize("values", [("alice", "bob"), ("alice", "alice"), ("alice", "")])
@pytest.mark.parametrize("name", ["x-agent-user-isolation-key", "X-Agent-Chat-Isolation-Key", "x-agent-user-id"])
async def test_a_repeated_header_is_refused(target, name, values):
    target("build_echo")
    status, body = await raw_post([(name, value) for value in values])
    assert (status, body) == (400, b'{"error":"invalid isolation header"}')
    assert fakes.calls == []


async def raw_post(lines: list[tuple[str, str]]) -> tuple[int, bytes]:
    """Post over bare ASGI, where a header may stand on several lines."""
    body = b'{"message":"a","session_id":"s1"}'
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in [("host", "testserver"), *lines]],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await get_asgi_application()(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


# Django's own users


@pytest.fixture
def signed_in(settings: Any, async_client: Any):
    """Sign a new user in and return the primary key."""

    async def sign_in(name: str, **more: Any) -> Any:
        settings.INVOCATIONS = {
            "default": {
                "TARGET": "tests.fakes.build_echo",
                "AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
                **more,
            }
        }
        user = await sync_to_async(get_user_model().objects.create_user)(name)
        await async_client.aforce_login(user)
        return user.pk

    return sign_in


async def test_an_authenticated_user_is_the_user_key(async_client, signed_in):
    for name in ("ann", "ben"):
        pk = await signed_in(name)
        await post(async_client, {"message": name, "session_id": "s1"}, **headers("platform", "chat"))
        row = (await table(SessionRecord))[-1]
        assert (row["user_key"], row["chat_key"], row["user_id"]) == (f"user:{pk}", "", pk)
        record = (await table(InvocationRecord))[-1]
        assert (record["user_key"], record["user_id"]) == (f"user:{pk}", pk)
    assert [call.texts for call in fakes.calls] == [[("user", "ann")], [("user", "ben")]]
    assert {call.keys for call in fakes.calls} == {None}


async def test_a_trusted_header_goes_before_the_authenticated_user(async_client, signed_in):
    pk = await signed_in("ann", TRUST_ISOLATION_HEADERS=True)
    await post(async_client, {"message": "a", "session_id": "s1"}, **headers("alice"))
    await post(async_client, {"message": "b", "session_id": "s1"})
    # A header cannot name a Django user.
    await post(async_client, {"message": "c", "session_id": "s1"}, **headers(f"user:{pk}"))
    rows = await table(SessionRecord)
    assert [row["user_key"] for row in rows] == ["platform:alice", f"user:{pk}", f"platform:user:{pk}"]
    assert {row["user_id"] for row in rows} == {pk}
    assert [call.texts for call in fakes.calls] == [[("user", "a")], [("user", "b")], [("user", "c")]]
