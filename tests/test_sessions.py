"""Sessions over HTTP: what a turn sees of the ones before, who meets whom, and other stores."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_framework import AgentSession, Content, Message
from django.db import connection
from django.utils import timezone

from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.runs import sessions
from invocations_app.storage import OrmSessionStore, database
from tests import fakes
from tests.frames import read_text
from tests.session_fakes import Mood, post, stream, table

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parent.parent
SCOPE = Scope("default")


@pytest.fixture(autouse=True)
def _fresh_stores():
    sessions.get_store.cache_clear()


@pytest.fixture
def target(settings: Any):
    """Set the target and other settings of the endpoint."""

    def use(name: str, **more: Any) -> None:
        settings.INVOCATIONS = {"default": {"TARGET": name if "." in name else f"tests.fakes.{name}", **more}}

    return use


async def texts() -> list[str]:
    return [
        "".join(content.get("text", "") for content in json.loads(row["payload"])["contents"])
        for row in await table(MessageRecord)
    ]


# What a turn sees


async def test_the_second_turn_sees_the_first(async_client):
    first = await post(async_client, {"message": "ping", "session_id": "s1"})
    assert first.content == b'{"response":"ping","session_id":"s1"}'
    await post(async_client, {"message": "pong", "session_id": "s1"})
    assert fakes.calls[1].texts == [("user", "ping"), ("assistant", "ping"), ("user", "pong")]
    assert await texts() == ["ping", "ping", "pong", "pong"]
    (session,) = await table(SessionRecord)
    assert (session["version"], session["message_count"], session["claimed_by"]) == (2, 4, None)


async def test_streamed_and_plain_turns_see_each_other(async_client):
    assert read_text(await stream(async_client, {"message": "one two", "session_id": "s1"})) == "one two"
    await post(async_client, {"message": "three", "session_id": "s1"})
    await stream(async_client, {"message": "four", "session_id": "s1"})
    assert [text for _, text in fakes.calls[2].texts] == ["one two", "one two", "three", "three", "four"]
    assert await texts() == ["one two", "one two", "three", "three", "four", "four"]
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded"] * 3


async def test_a_repeated_identical_exchange_is_kept(async_client):
    for _ in range(3):
        await post(async_client, {"message": "yes", "session_id": "s1"})
    await stream(async_client, {"message": "yes", "session_id": "s1"})
    assert [text for _, text in fakes.calls[3].texts] == ["yes"] * 7
    assert await texts() == ["yes"] * 8


async def test_a_tool_call_and_its_result_are_part_of_the_history(async_client):
    await post(async_client, {"message": "/tool whoami {}", "session_id": "s1"})
    kinds = [[c["type"] for c in json.loads(row["payload"])["contents"]] for row in await table(MessageRecord)]
    assert kinds == [["text"], ["function_call"], ["function_result"], ["text"]]
    await post(async_client, {"message": "next", "session_id": "s1"})
    assert [role for role, _ in fakes.calls[2].texts] == ["user", "assistant", "tool", "assistant", "user"]


async def test_an_image_is_part_of_the_history(async_client):
    uri = "data:image/png;base64,iVBORw0KGgo="
    contents = [{"type": "text", "text": "look"}, {"type": "data", "uri": uri}]
    await post(async_client, {"input": [{"role": "user", "contents": contents}], "session_id": "s1"})
    await post(async_client, {"message": "again", "session_id": "s1"})
    assert [content.uri for content in fakes.calls[1].messages[0].contents if content.type == "data"] == [uri]


async def test_every_message_has_an_id_of_ours(async_client):
    await post(async_client, {"message": "a", "session_id": "s1"})
    await post(async_client, {"message": "a", "session_id": "s1"})
    ids = [json.loads(row["payload"]).get("message_id") for row in await table(MessageRecord) if row["role"] == "user"]
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)
    assert len(set(ids)) == 2


_TURN_IN_A_NEW_PROCESS = """
import asyncio, json, sys
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
import django
django.setup()
from django.test import AsyncClient
from tests import fakes, session_fakes
async def main():
    response = await session_fakes.post(AsyncClient(), {"message": "after", "session_id": "s1"})
    print(json.dumps([response.content.decode(), fakes.calls[0].texts, [repr(note) for note in fakes.notes]]))
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_the_next_turn_sees_the_first_after_a_restart(async_client, target):
    target("tests.session_fakes.build_moody")
    await post(async_client, {"message": "before", "session_id": "s1"})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "import tests.settings as s; s.INVOCATIONS['default']['TARGET'] = 'tests.session_fakes.build_moody'\n"
        + _TURN_IN_A_NEW_PROCESS,
        str(connection.settings_dict["NAME"]),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    out, _ = await process.communicate()
    body, seen, notes = json.loads(out)
    assert body == '{"response":"after","session_id":"s1"}'
    assert seen == [["user", "before"], ["assistant", "before"], ["user", "after"]]
    assert notes == ["Mood(name='cheerful', turns=1)"]
    assert await texts() == ["before", "before", "after", "after"]


# Who meets whom


async def test_two_users_with_one_session_id_do_not_meet(async_client, target):
    target("build_echo", TRUST_ISOLATION_HEADERS=True)
    for user in ("alice", "bob", "alice"):
        await post(async_client, {"message": user, "session_id": "s1"}, x_agent_user_isolation_key=user)
    assert [[text for _, text in call.texts] for call in fakes.calls] == [["alice"], ["bob"], ["alice"] * 3]
    assert [row["user_key"] for row in await table(SessionRecord)] == ["platform:alice", "platform:bob"]


async def test_two_endpoints_with_one_session_id_do_not_meet(async_client, settings):
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_echo"},
        "other": {"TARGET": "tests.fakes.build_echo", "PATH": "other"},
    }
    await post(async_client, {"message": "a", "session_id": "s1"})
    await post(async_client, {"message": "b", "session_id": "s1"}, path="/other/invoke")
    assert fakes.calls[1].texts == [("user", "b")]
    assert [row["endpoint"] for row in await table(SessionRecord)] == ["default", "other"]


async def test_the_agent_sees_an_opaque_id_and_never_the_callers(async_client, target):
    target("build_noting")
    await post(async_client, {"message": "a", "session_id": "the-raw-id"})
    await post(async_client, {"message": "b", "session_id": "the-raw-id"})
    await post(async_client, {"message": "c", "session_id": "another"})
    first, second = [row["opaque_id"] for row in await table(SessionRecord)]
    assert [note[2] for note in fakes.notes] == [first] * 4 + [second] * 2
    assert first != second
    assert "the-raw-id" not in repr([fakes.notes, fakes.calls])
    assert "the-raw-id" not in repr([(row["state"], row["opaque_id"]) for row in await table(SessionRecord)])
    assert "the-raw-id" not in repr(await table(MessageRecord))


async def test_messages_carry_where_they_came_from_and_no_keys(async_client, target):
    target("build_echo", TRUST_ISOLATION_HEADERS=True)
    body = {"message": "a", "session_id": "the-raw-id", "metadata": {"k": "the-metadata"}}
    for _ in range(2):
        await post(async_client, body, x_agent_user_isolation_key="the-user", x_agent_chat_isolation_key="the-chat")
    hosting = {"channel": "invocations", "endpoint": "default", "dialect": "channel"}
    assert [message.additional_properties.get("hosting") for message in fakes.calls[1].messages] == [
        hosting,
        None,
        hosting,
    ]
    for secret in ("the-raw-id", "the-metadata", "the-user", "the-chat"):
        assert secret not in repr([await table(MessageRecord), [row["state"] for row in await table(SessionRecord)]])


# Which sessions there are


async def test_without_a_session_id_nothing_but_the_record_is_kept(async_client):
    response = await post(async_client, {"message": "a"})
    assert response.content == b'{"response":"a","session_id":null}'
    assert "x-agent-session-id" not in response.headers
    assert (await table(SessionRecord), await table(MessageRecord)) == ([], [])
    (record,) = await table(InvocationRecord)
    assert (record["status"], record["session_id"], record["session_record_id"]) == ("succeeded", None, None)


async def test_an_empty_session_id_is_none_and_is_echoed(async_client):
    response = await post(async_client, {"message": "a", "session_id": ""})
    assert response.content == b'{"response":"a","session_id":""}'
    assert "x-agent-session-id" not in response.headers
    assert (await table(SessionRecord), await table(MessageRecord)) == ([], [])
    (record,) = await table(InvocationRecord)
    assert (record["status"], record["session_id"], record["session_record_id"]) == ("succeeded", "", None)


@pytest.mark.parametrize("body", [{"message": "a"}, {"message": "a", "session_id": ""}])
async def test_a_required_session_is_required(async_client, target, body):
    target("build_echo", SESSION_MODE="required")
    response = await post(async_client, body)
    assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')
    response = await post(async_client, {**body, "stream": True})
    assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')
    assert fakes.calls == []
    assert await table(InvocationRecord) == []
    assert (await post(async_client, {"message": "a", "session_id": "s1"})).status_code == 200


async def test_a_disabled_session_stores_nothing(async_client, target):
    target("build_noting", SESSION_MODE="disabled")
    for _ in range(2):
        response = await post(async_client, {"message": "a", "session_id": "s1"})
    assert response.content == b'{"response":"a","session_id":null}'
    assert "x-agent-session-id" not in response.headers
    assert fakes.calls[1].texts == [("user", "a")]
    assert (await table(SessionRecord), await table(MessageRecord)) == ([], [])
    assert [row["session_id"] for row in await table(InvocationRecord)] == [None, None]


async def test_the_longest_session_id_and_odd_characters_are_kept(async_client):
    for session_id in ("s" * 256, "é:/ %\U0001f600"):
        response = await post(async_client, {"message": "a", "session_id": session_id})
        assert json.loads(response.content) == {"response": "a", "session_id": session_id}
        await post(async_client, {"message": "b", "session_id": session_id})
        assert [text for _, text in fakes.calls[-1].texts] == ["a", "a", "b"]
    assert [row["session_id"] for row in await table(SessionRecord)] == ["s" * 256, "é:/ %\U0001f600"]


# Busy sessions and other writers


async def test_a_busy_session_is_refused_before_its_target_runs(async_client, target):
    target("build_scripted", ON_BUSY_SESSION="reject")
    fakes.script([fakes.gate(), "done"])
    first = asyncio.create_task(post(async_client, {"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    calls = len(fakes.calls)
    for body in ({"message": "b", "session_id": "s1"}, {"message": "b", "session_id": "s1", "stream": True}):
        response = await post(async_client, body, x_agent_invocation_id="second")
        assert (response.status_code, response.content) == (409, b'{"error":"the session is busy"}')
        assert response.headers["x-agent-invocation-id"] == "second"
        assert response.headers["x-agent-session-id"] == "s1"
    assert len(fakes.calls) == calls == 1
    assert len(await table(InvocationRecord)) == 1
    fakes.gate().open()
    assert (await first).content == b'{"response":"done","session_id":"s1"}'
    assert (await post(async_client, {"message": "b", "session_id": "s1"})).status_code == 200


async def test_other_sessions_are_not_busy(async_client, target):
    target("build_scripted")
    fakes.script([fakes.gate(), "slow"], ["fast"])
    first = asyncio.create_task(post(async_client, {"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    assert (await post(async_client, {"message": "b", "session_id": "s2"})).json()["response"] == "fast"
    assert (await post(async_client, {"message": "b"})).json()["response"] == "fast"
    fakes.gate().open()
    assert (await first).json()["response"] == "slow"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_session_written_in_the_middle_of_a_turn_is_a_conflict(async_client, target, is_streamed):
    target("build_scripted")
    await _store_by_hand("mine")
    fakes.script([fakes.gate(), "done"])
    ask = stream if is_streamed else post
    turn = asyncio.create_task(ask(async_client, {"message": "b", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await _store_by_hand("theirs")
    before = await table(MessageRecord)
    fakes.gate().open()
    answer = await turn
    text = "Another request advanced this agent session; reload before retrying."
    if is_streamed:
        assert answer == f"data: done\n\nevent: error\ndata: {text}\n\n".encode()
    else:
        assert (answer.status_code, answer.json()) == (409, {"error": text})
    (record,) = await table(InvocationRecord)
    assert (record["status"], record["error_code"], record["error_status"]) == ("failed", "session_conflict", 409)
    assert await table(MessageRecord) == before
    (session,) = await table(SessionRecord)
    assert session["claimed_by"] is None
    await post(async_client, {"message": "c", "session_id": "s1"})
    assert [text for _, text in fakes.calls[-1].texts] == ["theirs", "c"]


async def _store_by_hand(text: str) -> None:
    session = AgentSession(session_id="by-hand")
    session.state["in_memory"] = {"messages": [Message("user", [Content.from_text(text)], message_id=text)]}
    await OrmSessionStore(SCOPE).set("s1", session)


async def test_a_turn_whose_claim_was_taken_over_ends_interrupted(async_client, target):
    target("build_scripted")
    fakes.script([fakes.gate(), "late"], ["new"])
    turn = asyncio.create_task(post(async_client, {"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await database.run(lambda: SessionRecord.objects.update(claim_expires_at=timezone.now()))
    assert (await post(async_client, {"message": "b", "session_id": "s1"})).json()["response"] == "new"
    fakes.gate().open()
    response = await turn
    assert (response.status_code, response.content) == (409, b'{"error":"this invocation was interrupted"}')
    assert [row["status"] for row in await table(InvocationRecord)] == ["interrupted", "succeeded"]
    assert await texts() == ["b", "new"]


async def test_an_invocation_id_is_used_once(async_client):
    body = {"message": "a", "session_id": "s1"}
    assert (await post(async_client, body, x_agent_invocation_id="i1")).status_code == 200
    response = await post(async_client, {**body, "message": "b"}, x_agent_invocation_id="i1")
    assert (response.status_code, response.content) == (
        422,
        b'{"error":"this invocation id was used for another request"}',
    )
    assert len(fakes.calls) == 1
    assert len(await table(InvocationRecord)) == 1


# What providers keep


async def test_a_providers_own_state_and_types_persist(async_client, target):
    target("tests.session_fakes.build_moody")
    await post(async_client, {"message": "a", "session_id": "s1"})
    await stream(async_client, {"message": "b", "session_id": "s1"})
    await post(async_client, {"message": "c", "session_id": "s1"})
    assert fakes.notes == [None, Mood("cheerful", 1), Mood("cheerful", 2)]


async def test_a_provider_that_rewrites_its_history_is_stored_as_it_left_it(async_client, target):
    target("tests.session_fakes.build_rewriting")
    await post(async_client, {"message": "a", "session_id": "s1"})
    assert await texts() == ["a", "a"]
    await post(async_client, {"message": "b", "session_id": "s1"})
    assert await texts() == ["b", "b"]
    payloads = [json.loads(row["payload"]) for row in await table(MessageRecord)]
    assert [payload["additional_properties"]["_group"] for payload in payloads] == [{"seen": 1}, {"seen": 1}]
    await post(async_client, {"message": "c", "session_id": "s1"})
    assert [text for _, text in fakes.calls[-1].texts] == ["b", "b", "c"]


async def test_what_compaction_marks_is_stored(async_client, target):
    target("tests.session_fakes.build_compacting")
    for text in "abcd":
        await post(async_client, {"message": text, "session_id": "s1"})
    marks = [json.loads(row["payload"])["additional_properties"] for row in await table(MessageRecord)]
    assert await texts() == ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert [bool(mark.get("_excluded")) for mark in marks] == [True] * 4 + [False] * 4
    await post(async_client, {"message": "e", "session_id": "s1"})
    assert [text for _, text in fakes.calls[-1].texts] == ["c", "c", "d", "d", "e"]


# Stores of one's own


@pytest.mark.parametrize("store", ["tests.session_fakes.NotingStore", "tests.session_fakes.build_noting_store"])
async def test_another_store_gets_the_opaque_id_only(async_client, target, store):
    target("build_echo", SESSION_STORE=store)
    await post(async_client, {"message": "a", "session_id": "raw:id/é"})
    await stream(async_client, {"message": "b", "session_id": "raw:id/é"})
    (session,) = await table(SessionRecord)
    opaque_id = session["opaque_id"]
    assert fakes.notes == [("get", opaque_id), ("set", opaque_id)] * 2
    assert re.fullmatch("[A-Za-z0-9-]{1,64}", opaque_id)
    assert [text for _, text in fakes.calls[1].texts] == ["a", "a", "b"]
    assert (session["state"], session["version"], session["message_count"]) == ("", 2, 0)
    assert await table(MessageRecord) == []
    assert [row["status"] for row in await table(InvocationRecord)] == ["succeeded"] * 2


async def test_upstreams_own_store_can_be_named(async_client, target):
    target("build_echo", SESSION_STORE="agent_framework.SessionStore")
    await post(async_client, {"message": "a", "session_id": "s1"})
    await post(async_client, {"message": "b", "session_id": "s1"})
    assert [text for _, text in fakes.calls[1].texts] == ["a", "a", "b"]
