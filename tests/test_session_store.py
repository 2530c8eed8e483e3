"""Session stores: upstream's contract for its own stores and ours, and what only ours promises."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from agent_framework import AgentSession, Content, FileSessionStore, Message, SessionStore
from django.db import connection
from django.test.utils import CaptureQueriesContext

from invocations_app.exceptions import SessionConflict, StoredStateUnreadable
from invocations_app.isolation import Scope
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from invocations_app.storage import OrmSessionStore, database
from tests.session_fakes import Mood, drive, run_inline, statements, table

pytestmark = pytest.mark.django_db(transaction=True)

SCOPE = Scope("default", "platform:alice", "chat")


def message(text: str, role: str = "user") -> Message:
    return Message(role, [Content.from_text(text)])


def session_of(*texts: str, session_id: str = "opaque") -> AgentSession:
    session = AgentSession(session_id=session_id)
    session.state["in_memory"] = {"messages": [message(text) for text in texts]}
    return session


def texts(session: AgentSession | None) -> list[str]:
    assert session is not None
    return [item.text for item in session.state["in_memory"]["messages"]]


class StoreContract:
    """What upstream promises of every session store."""

    @pytest.fixture
    def store(self, tmp_path: Any) -> SessionStore:
        raise NotImplementedError

    async def test_get_of_an_unknown_id_is_none(self, store):
        assert await store.get("unknown") is None

    async def test_what_was_set_comes_back(self, store):
        session = session_of("a", "b")
        session.service_session_id = "conv-1"
        session.state["provider"] = {"count": 1, "deep": {"list": [1, 2.5, None, True, "é"]}}
        await store.set("s1", session)
        back = await store.get("s1")
        assert (back.session_id, back.service_session_id) == ("opaque", "conv-1")
        assert texts(back) == ["a", "b"]
        assert back.state["provider"] == session.state["provider"]

    async def test_a_registered_type_comes_back_as_itself(self, store):
        session = session_of()
        session.state["moody"] = {"mood": Mood("glad", 1)}
        await store.set("s1", session)
        assert (await store.get("s1")).state["moody"] == {"mood": Mood("glad", 1)}

    async def test_what_is_changed_after_set_is_not_stored(self, store):
        session = session_of("a")
        await store.set("s1", session)
        session.state["in_memory"]["messages"].append(message("b"))
        session.state["later"] = True
        back = await store.get("s1")
        assert texts(back) == ["a"]
        assert "later" not in back.state

    async def test_every_get_returns_a_copy_of_its_own(self, store):
        await store.set("s1", session_of("a"))
        first, second = await store.get("s1"), await store.get("s1")
        first.state["in_memory"]["messages"][0].additional_properties["mark"] = 1
        first.state["in_memory"]["messages"].append(message("b"))
        assert texts(second) == texts(await store.get("s1")) == ["a"]
        assert second.state["in_memory"]["messages"][0].additional_properties == {}

    async def test_a_session_can_be_set_again_and_again(self, store):
        await store.set("s1", session_of("a"))
        session = await store.get("s1")
        for text in "bcd":
            session.state["in_memory"]["messages"].append(message(text))
            await store.set("s1", session)
        assert texts(await store.get("s1")) == ["a", "b", "c", "d"]

    async def test_another_session_replaces_what_is_stored(self, store):
        await store.set("s1", session_of("a", "b", "c"))
        await store.set("s1", session_of("x", session_id="other"))
        back = await store.get("s1")
        assert (back.session_id, texts(back)) == ("other", ["x"])

    async def test_a_copy_under_another_id_is_another_session(self, store):
        await store.set("s1", session_of("a"))
        session = await store.get("s1")
        await store.set("s2", session)
        session.state["in_memory"]["messages"].append(message("b"))
        await store.set("s2", session)
        assert texts(await store.get("s1")) == ["a"]
        assert texts(await store.get("s2")) == ["a", "b"]

    async def test_deleting_is_idempotent_and_of_one_session(self, store):
        await store.set("s1", session_of("a"))
        await store.set("s2", session_of("b"))
        await store.delete("s1")
        await store.delete("s1")
        assert await store.get("s1") is None
        assert texts(await store.get("s2")) == ["b"]

    async def test_a_deleted_session_can_be_set_anew(self, store):
        await store.set("s1", session_of("a"))
        await store.delete("s1")
        await store.set("s1", session_of("b"))
        assert texts(await store.get("s1")) == ["b"]

    @pytest.mark.parametrize("session_id", ["", None, 5, b"s1"])
    async def test_an_id_that_is_no_text_is_refused(self, store, session_id):
        with pytest.raises(ValueError, match="session_id"):
            store.validate_session_id(session_id)
        with pytest.raises(ValueError, match="session_id"):
            await store.get(session_id)
        with pytest.raises(ValueError, match="session_id"):
            await store.set(session_id, session_of())
        with pytest.raises(ValueError, match="session_id"):
            await store.delete(session_id)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return SessionStore()


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileSessionStore(tmp_path)


class TestOrmStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return OrmSessionStore(SCOPE)


# Ours alone


@pytest.mark.parametrize(
    ("session_id", "problem"),
    [
        ("a\n", "control characters"),
        ("\x00", "control characters"),
        ("\x7f", "control characters"),
        ("\x9f", "control characters"),
        ("\ud800", "valid Unicode"),
        ("a" * 257, "at most 256 characters"),
    ],
)
async def test_an_id_that_no_caller_may_send_is_refused(session_id, problem):
    with pytest.raises(ValueError, match=problem):
        await OrmSessionStore(SCOPE).get(session_id)


@pytest.mark.parametrize("session_id", ["a" * 256, "é\U0001f600 '\"%/:;", " ", "..", "\ue000"])
async def test_any_other_id_is_taken(session_id):
    store = OrmSessionStore(SCOPE)
    await store.set(session_id, session_of("a"))
    assert texts(await store.get(session_id)) == ["a"]


async def test_scopes_do_not_meet():
    scopes = [
        Scope("default"),
        Scope("other"),
        Scope("default", "platform:a"),
        Scope("default", "user:a"),
        Scope("default", "platform:a", "b"),
        Scope("default", "platform:a:b"),
        Scope("default", "platform:a/b"),
        Scope("default", "", "platform:a"),
        Scope("default", "platform:a:b", "c"),
        Scope("default", "platform:a", "b:c"),
        Scope("default", "platform:a", "b/c"),
        Scope("default", "platform:A", "b"),
    ]
    for number, scope in enumerate(scopes):
        await OrmSessionStore(scope).set("s1", session_of(str(number)))
    # An id that continues where a key ends.
    await OrmSessionStore(Scope("default", "platform:a", "b")).set("c:s1", session_of("joined"))
    assert [texts(await OrmSessionStore(scope).get("s1")) for scope in scopes] == [[str(n)] for n in range(len(scopes))]
    await OrmSessionStore(scopes[2]).delete("s1")
    remaining = [await OrmSessionStore(scope).get("s1") is not None for scope in scopes]
    assert remaining == [number != 2 for number in range(len(scopes))]


async def test_ids_differ_by_case_and_by_form():
    store = OrmSessionStore(SCOPE)
    for session_id in ("a", "A", "á", "a\u0301", "a "):
        await store.set(session_id, session_of(session_id))
    assert [texts(await store.get(i)) for i in ("a", "A", "á", "a\u0301", "a ")] == [
        ["a"],
        ["A"],
        ["á"],
        ["a\u0301"],
        ["a "],
    ]


async def test_a_stale_write_is_refused_and_changes_nothing():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a"))
    mine, theirs = await store.get("s1"), await store.get("s1")
    theirs.state["in_memory"]["messages"].append(message("theirs"))
    await store.set("s1", theirs)
    before = await table(SessionRecord), await table(MessageRecord)
    mine.state["in_memory"]["messages"].append(message("mine"))
    with pytest.raises(SessionConflict) as caught:
        await store.set("s1", mine)
    assert caught.value.text == "Another request advanced this agent session; reload before retrying."
    assert (await table(SessionRecord), await table(MessageRecord)) == before
    assert texts(await store.get("s1")) == ["a", "theirs"]


async def test_a_deep_copy_of_a_stale_session_is_stale_too():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a"))
    mine = copy.deepcopy(await store.get("s1"))
    await store.set("s1", await store.get("s1"))
    with pytest.raises(SessionConflict):
        await store.set("s1", mine)


async def test_a_write_of_a_deleted_session_is_refused():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a"))
    session = await store.get("s1")
    await store.delete("s1")
    with pytest.raises(SessionConflict):
        await store.set("s1", session)
    assert await table(SessionRecord) == []


async def test_of_several_writers_at_once_one_wins():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a"))
    copies = [await store.get("s1") for _ in range(5)]
    for number, session in enumerate(copies):
        session.state["in_memory"]["messages"].append(message(str(number)))
    outcomes = await asyncio.gather(*(store.set("s1", session) for session in copies), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["SessionConflict"] * 4
    assert texts(await store.get("s1")) == ["a", str(outcomes.index(None))]


async def test_state_that_is_not_json_leaves_what_is_stored():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a"))
    before = await table(SessionRecord), await table(MessageRecord)
    session = await store.get("s1")
    session.state["in_memory"]["messages"].append(message("b"))
    session.state["provider"] = {"value": (1, 2)}
    with pytest.raises(TypeError, match=r"session state at state.provider.value is a tuple"):
        await store.set("s1", session)
    assert (await table(SessionRecord), await table(MessageRecord)) == before
    del session.state["provider"]
    await store.set("s1", session)
    assert texts(await store.get("s1")) == ["a", "b"]


async def test_appended_messages_leave_the_stored_rows_alone():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a", "b"))
    before = await table(MessageRecord)
    session = await store.get("s1")
    session.state["in_memory"]["messages"].append(message("c"))
    await store.set("s1", session)
    after = await table(MessageRecord)
    assert after[:2] == before
    assert [(row["position"], row["role"]) for row in after] == [(0, "user"), (1, "user"), (2, "user")]
    (record,) = await table(SessionRecord)
    assert (record["version"], record["message_count"]) == (2, 3)


async def test_a_rewritten_history_is_stored_as_it_is():
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a", "b", "c", "d"))
    session = await store.get("s1")
    old = session.state["in_memory"]["messages"]
    old[3].additional_properties["_excluded"] = True
    session.state["in_memory"]["messages"] = [message("summary", "assistant"), old[0], old[3]]
    await store.set("s1", session)
    back = await store.get("s1")
    assert texts(back) == ["summary", "a", "d"]
    assert back.state["in_memory"]["messages"][2].additional_properties == {"_excluded": True}
    assert [row["position"] for row in await table(MessageRecord)] == [0, 1, 2]


def _spoil_state(record: SessionRecord) -> None:
    SessionRecord.objects.filter(pk=record.pk).update(state="{")


def _spoil_format(record: SessionRecord) -> None:
    SessionRecord.objects.filter(pk=record.pk).update(state=record.state.replace('"format":1', '"format":9'))


def _spoil_message(record: SessionRecord) -> None:
    record.messages.filter(position=0).update(payload="[]")


def _drop_message(record: SessionRecord) -> None:
    record.messages.filter(position=0).delete()


def _add_message(record: SessionRecord) -> None:
    first = record.messages.get(position=0)
    first.pk, first.source_id = None, "foreign"
    first.save()


def _move_to_another_user(record: SessionRecord) -> None:
    SessionRecord.objects.filter(pk=record.pk).update(user_key="platform:mallory")


@pytest.mark.parametrize(
    "spoil", [_spoil_state, _spoil_format, _spoil_message, _drop_message, _add_message, _move_to_another_user]
)
async def test_what_cannot_be_read_is_told_and_left_alone(spoil, caplog):
    store = OrmSessionStore(SCOPE)
    await store.set("s1", session_of("a", "b"))
    await database.run(lambda: spoil(SessionRecord.objects.get()))
    before = await table(SessionRecord), await table(MessageRecord)
    with pytest.raises(StoredStateUnreadable):
        await store.get("s1")
    assert (await table(SessionRecord), await table(MessageRecord)) == before
    assert f"The stored session with the key digest {SCOPE.key('s1')} " in caplog.text


async def test_the_stored_row_holds_its_four_values_and_their_digest():
    await OrmSessionStore(SCOPE).set("s1", session_of("a"))
    (record,) = await table(SessionRecord)
    assert [record[name] for name in ("endpoint", "user_key", "chat_key", "session_id")] == [
        "default",
        "platform:alice",
        "chat",
        "s1",
    ]
    assert record["key"] == SCOPE.key("s1")
    assert record["opaque_id"].isalnum()
    assert len(record["opaque_id"]) == 32
    assert await table(InvocationRecord) == []


def test_it_works_outside_a_request_and_in_another_loop():
    store = OrmSessionStore(SCOPE)
    asyncio.run(store.set("s1", session_of("a")))
    assert texts(asyncio.run(store.get("s1"))) == ["a"]


def test_its_queries_are_few(monkeypatch):
    monkeypatch.setattr(database, "run", run_inline)
    store = OrmSessionStore(SCOPE)
    with CaptureQueriesContext(
        connection,
    ) as made:
        drive(store.set("s1", session_of("a")))
    with CaptureQueriesContext(connection) as got:
        session = drive(store.get("s1"))
    session.state["in_memory"]["messages"] += [message(str(number)) for number in range(20)]
    with CaptureQueriesContext(connection) as appended:
        drive(store.set("s1", session))
    with CaptureQueriesContext(connection) as unknown:
        assert drive(store.get("unknown")) is None
    assert statements(made) == [
        "SELECT sessionrecord",
        "INSERT sessionrecord",
        "SELECT sessionrecord",
        "DELETE messagerecord",
        "UPDATE sessionrecord",
        "INSERT messagerecord",
    ]
    assert statements(got) == ["SELECT sessionrecord", "SELECT messagerecord"]
    assert statements(appended) == ["SELECT sessionrecord", "UPDATE sessionrecord", "INSERT messagerecord"]
    assert statements(unknown) == ["SELECT sessionrecord"]
