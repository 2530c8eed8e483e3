"""Sessions kept in memory: a turn sees what the rows say and nothing else, whoever wrote them, whatever failed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agent_framework import AgentSession, Content, InMemoryHistoryProvider, Message

from invocations_app.isolation import Scope
from invocations_app.models import MessageRecord, SessionRecord
from invocations_app.storage import OrmSessionStore, groups, kept, reset_session, snapshots
from invocations_app.storage.grouping import NotSwift
from invocations_app.storage.kept import SessionKeep
from invocations_app.storage.snapshots import Change, History
from tests import approval_fakes, fakes
from tests.client import endpoint, post
from tests.durable import Reader, ask, cancel, expire, on_database, scripted, until_idle, until_status
from tests.session_fakes import Mood, failing_statements, table

pytestmark = pytest.mark.django_db(transaction=True)

SCOPE = Scope("default")


@contextlib.contextmanager
def no_message_is_read() -> Iterator[None]:
    """Fail every statement that reads messages: only a turn that needs none gets through. They may be counted."""
    messages = f'FROM "{MessageRecord._meta.db_table}"'
    with failing_statements(lambda sql: messages in sql and "COUNT(*)" not in sql):
        yield


async def say(text: str, session_id: str = "s1", **headers: str) -> list[str]:
    """Post a message, and return the texts that the model was given."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await post({"message": text, "session_id": session_id}, headers=names)
    assert response.status_code == 200, response.content
    return [said for _, said in fakes.calls[-1].texts]


async def is_cold(text: str = "cold?") -> bool:
    """Return whether the next turn has to read its messages; it fails then, and nothing is kept."""
    with no_message_is_read():
        response = await post({"message": text, "session_id": "s1"})
    assert response.status_code in (200, 503)
    return response.status_code == 503


# Warm


async def test_a_turn_after_another_reads_no_message():
    await say("one")
    with no_message_is_read():
        assert await say("two") == ["one", "one", "two"]
        assert await say("three") == ["one", "one", "two", "two", "three"]
    assert [json.loads(row["payload"])["contents"][0]["text"] for row in await table(MessageRecord)] == [
        "one",
        "one",
        "two",
        "two",
        "three",
        "three",
    ]


async def test_a_streamed_turn_is_kept_too(async_client):
    response = await post({"message": "one", "session_id": "s1", "stream": True})
    assert b"".join([chunk async for chunk in response.streaming_content]).endswith(b"[DONE]\n\n")
    with no_message_is_read():
        assert await say("two") == ["one", "one", "two"]


async def test_a_turn_that_waited_for_the_one_before_reads_no_message(settings):
    settings.INVOCATIONS = scripted()
    fakes.script([lambda: fakes.gate().pass_through(), "first"], ["second"])
    first = asyncio.ensure_future(say("one"))
    await fakes.gate().wait_reached()
    with no_message_is_read():
        second = asyncio.ensure_future(ask("i2", {"message": "two", "session_id": "s1"}))
        await until_status("i2", "queued")
        fakes.gate().open()
        await first
        assert (await second).status_code == 200
    assert [text for _, text in fakes.calls[-1].texts] == ["one", "first", "two"]


async def test_a_warm_turn_leaves_the_rows_that_a_cold_one_leaves(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.session_fakes.build_rewriting")
    for session_id in ("warm", "cold"):
        for text in ("one", "two", "three", "four"):
            await say(text, session_id)
            if session_id == "cold":
                kept.sessions.clear()

    def rows_of(session_id: str) -> list[Any]:
        payloads = MessageRecord.objects.filter(session__session_id=session_id).order_by("position")
        documents = [json.loads(payload) for payload in payloads.values_list("payload", flat=True)]
        return [{**document, "message_id": "an id"} for document in documents]

    assert await on_database(lambda: rows_of("warm")) == await on_database(lambda: rows_of("cold"))


async def test_the_state_of_providers_is_made_anew_for_each_turn(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.session_fakes.build_moody")
    for text in ("one", "two", "three"):
        await say(text)
    assert fakes.notes == [None, Mood("cheerful", 1), Mood("cheerful", 2)]


async def test_what_a_tool_raised_is_told_as_the_rows_tell_it(settings):
    settings.INVOCATIONS = scripted()
    fakes.script([fakes.call("break_down")], ["sorry"], ["again"], ["and again"])
    await say("one")
    await say("two")
    warm = [message.to_dict() for message in fakes.calls[-1].messages[:-1]]
    warm_exceptions = [content.exception for message in fakes.calls[-1].messages for content in message.contents]
    kept.sessions.clear()
    await say("three")
    cold = fakes.calls[-1].messages[: len(warm)]
    assert [message.to_dict() for message in cold] == warm
    assert [content.exception for message in cold for content in message.contents] == warm_exceptions[: len(warm)]


# Whoever else writes


async def test_a_turn_that_another_process_wrote_is_seen():
    await say("one")
    here = kept.sessions._kept.copy()
    kept.sessions.clear()
    await say("two")
    # What this process would hold if the second turn had been another one's.
    kept.sessions._kept.update(here)
    assert await say("three") == ["one", "one", "two", "two", "three"]


async def test_a_session_that_a_store_wrote_is_seen():
    await say("one")
    store = OrmSessionStore(SCOPE)
    session = await store.get("s1")
    assert session is not None
    session.state["in_memory"]["messages"] = [Message("user", [Content.from_text("other")])]
    await store.set("s1", session)
    assert await say("two") == ["other", "two"]


@pytest.mark.parametrize("column", ["state", "version", "opaque_id"])
async def test_a_row_that_says_something_else_is_believed(column):
    await say("one")

    def write() -> None:
        session = SessionRecord.objects.get()
        other = {
            # As the same turn would have written it in a database that was put back before it.
            "state": session.state.replace(json.loads(session.state)["mark"], "0" * 16),
            "version": session.version + 1,
            "opaque_id": "0" * 32,
        }
        SessionRecord.objects.update(**{column: other[column]})
        message = MessageRecord.objects.first()
        assert message is not None
        MessageRecord.objects.filter(pk=message.pk).update(payload=message.payload.replace("one", "other"))

    await on_database(write)
    assert await say("two") == ["other", "one", "two"]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("is_grouped", [True, False])
async def test_a_message_that_is_gone_is_missed(monkeypatch, position, is_grouped):
    await say("one")
    await on_database(lambda: MessageRecord.objects.filter(position=position).delete())
    if not is_grouped:
        monkeypatch.setattr(groups._begins, "_swift", _not_swift)
    response = await post({"message": "two", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    assert len(kept.sessions) == 0


def _not_swift(*_: Any) -> Any:
    raise NotSwift


async def test_a_session_that_was_reset_starts_afresh():
    await say("one")
    assert len(kept.sessions) == 1
    assert await reset_session(SCOPE, "s1")
    assert len(kept.sessions) == 0
    assert await say("two") == ["two"]


async def test_a_session_that_was_deleted_is_forgotten():
    await say("one")
    await OrmSessionStore(SCOPE).delete("s1")
    assert len(kept.sessions) == 0
    assert await say("two") == ["two"]


async def test_another_session_in_a_row_of_the_same_number_is_not_mistaken_for_it():
    await say("one", "old")
    (old,) = await table(SessionRecord)
    await on_database(lambda: SessionRecord.objects.all().delete())
    await say("two", "new")

    def renumber() -> None:
        # SQLite gives the number of the last row again; PostgreSQL never does.
        (new,) = SessionRecord.objects.all()
        MessageRecord.objects.filter(session_id=new.pk).update(session_id=old["id"])
        SessionRecord.objects.filter(pk=new.pk).update(id=old["id"])

    here = kept.sessions._kept.copy()
    await on_database(renumber)
    kept.sessions._kept.update(here)
    assert await say("three", "new") == ["two", "two", "three"]


async def test_users_with_the_same_session_id_never_meet(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    await say("alice's", x_agent_user_id="alice")
    assert await say("bob's", x_agent_user_id="bob") == ["bob's"]
    assert await say("alice's too", x_agent_user_id="alice") == ["alice's", "alice's", "alice's too"]


# What fails


class Spoiling(InMemoryHistoryProvider):
    """Changes the first old message in place, and its own state, before the model is called."""

    async def before_run(self, *, state: dict[str, Any], **kwargs: Any) -> None:
        for message in state.get("messages", [])[:1]:
            message.contents[0].text = "spoiled"
            message.additional_properties["spoiled"] = True
        state["spoiled"] = True
        await super().before_run(state=state, **kwargs)


def build_spoiling() -> Any:
    providers = [Spoiling() if fakes.switches.get("spoil") else InMemoryHistoryProvider()]
    return fakes._agent(fakes.scripted, context_providers=providers)


async def _fails() -> None:
    assert (await post({"message": "two", "session_id": "s1"})).status_code == 500


async def _times_out() -> None:
    assert (await post({"message": "two", "session_id": "s1"})).status_code == 504


async def _is_cancelled() -> None:
    asked = asyncio.ensure_future(ask("i2", {"message": "two", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await cancel("i2")
    await asked


async def _loses_its_claim() -> None:
    asked = asyncio.ensure_future(ask("i2", {"message": "two", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    await on_database(lambda: expire(invocation_id="i2"))
    fakes.gate().open()
    await asked


async def _cannot_be_committed() -> None:
    with failing_statements(lambda sql: sql.startswith("INSERT") and MessageRecord._meta.db_table in sql):
        asked = asyncio.ensure_future(ask("i2", {"message": "two", "session_id": "s1"}))
        await asyncio.sleep(0.3)
        await on_database(lambda: expire(invocation_id="i2"))
    await asked


@pytest.mark.parametrize(
    ("ends", "step"),
    [
        (_fails, RuntimeError("no")),
        (_times_out, lambda: asyncio.sleep(60)),
        (_is_cancelled, lambda: fakes.gate().pass_through()),
        (_loses_its_claim, lambda: fakes.gate().pass_through()),
        (_cannot_be_committed, "never stored"),
    ],
)
async def test_what_a_failed_turn_did_is_never_seen(settings, ends: Callable[[], Any], step: Any):
    settings.INVOCATIONS = endpoint(TARGET="tests.test_kept.build_spoiling", CACHE_TARGET=False, RUN_TIMEOUT_SECONDS=1)
    fakes.script(["first"], [step], ["third"])
    await say("one")
    fakes.switches["spoil"] = True
    await ends()
    await until_idle()
    assert len(kept.sessions) == 0
    fakes.switches["spoil"] = False
    assert await say("three") == ["one", "first", "three"]
    assert not any("spoiled" in message.additional_properties for message in fakes.calls[-1].messages)
    session = await OrmSessionStore(SCOPE).get("s1")
    assert session is not None
    assert "spoiled" not in session.state["in_memory"]


async def test_a_reader_who_leaves_takes_nothing_along(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["first"], ["begun ", lambda: fakes.gate().pass_through()], ["third"])
    await say("one")
    reader = Reader(await ask("i2", {"message": "two", "session_id": "s1", "stream": True}))
    await reader.until(b"data: begun \n\n")
    await reader.leave()
    await until_idle()
    assert len(kept.sessions) == 0
    assert await say("three") == ["one", "first", "three"]


async def test_what_is_changed_after_its_turn_is_not_seen_by_the_next(settings):
    settings.INVOCATIONS = scripted()
    fakes.script(["first"], ["second"], ["third"])
    await say("one")
    await say("two")
    # Somebody who still has the messages of the second turn: these are the kept ones.
    ((_, held),) = kept.sessions._kept.items()
    [first, *_] = held.history.sources["in_memory"]
    assert first.message is not None
    first.message.contents[0].text = "spoiled"
    assert await say("three") == ["one", "first", "two", "second", "three"]


# What is pending


async def test_what_a_person_must_answer_is_not_kept(settings):
    settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET)
    fakes.script(["first"], [fakes.call("pay", {"to": "bob"})], ["paid"], ["last"])
    await say("one")
    response = await post({"message": "pay", "session_id": "s1"})
    (asked,) = json.loads(response.content)["pending"]
    assert len(kept.sessions) == 0
    answer = {"session_id": "s1", "responses": {asked["request_id"]: {"approved": True}}}
    response = await post(answer)
    assert response.status_code == 200, response.content
    with no_message_is_read():
        warm = await say("more")
    kept.sessions.clear()
    assert (await say("even more"))[: len(warm)] == warm


# Bounds


async def test_none_is_kept_where_that_is_turned_off(settings):
    for host in ({"SESSION_CACHE_COUNT": 0}, {"SESSION_CACHE_BYTES": 0}):
        await say("one")
        assert len(kept.sessions) == 1
        settings.INVOCATIONS_HOST = host
        await say("two")
        assert (len(kept.sessions), kept.sessions.size) == (0, 0)
        assert await is_cold()
        settings.INVOCATIONS_HOST = {}


def change_of(*texts: str) -> Change:
    session = AgentSession(session_id="opaque")
    session.state["in_memory"] = {"messages": [Message("user", [Content.from_text(text)]) for text in texts]}
    return snapshots.dump(session, History())


def put(keep: SessionKeep, session_pk: int, *texts: str, version: int = 1) -> Change:
    change = change_of(*texts)
    keep.put(session_pk, "opaque", version, change)
    return change


def holds(keep: SessionKeep) -> list[int]:
    return list(keep._kept)


def test_the_oldest_go_when_there_are_too_many(settings):
    settings.INVOCATIONS_HOST = {"SESSION_CACHE_COUNT": 2}
    keep = SessionKeep()
    for session_pk in (1, 2, 1, 3):
        put(keep, session_pk, "a")
    assert holds(keep) == [1, 3]


def test_the_oldest_go_when_they_are_too_large(settings):
    settings.INVOCATIONS_HOST = {"SESSION_CACHE_BYTES": 10_000}
    keep = SessionKeep()
    for session_pk in (1, 2, 3):
        put(keep, session_pk, "x" * 2_000)
    assert holds(keep) == [2, 3]
    assert 2 * 3_500 < keep.size < 10_000
    put(keep, 4, "x" * 9_000)
    assert holds(keep) == [2, 3]
    put(keep, 3, "x" * 9_000)
    assert holds(keep) == [2]
    put(keep, 5, "x" * 7_000)
    assert holds(keep) == [5]


def test_those_without_room_are_handed_back(settings):
    settings.INVOCATIONS_HOST = {"SESSION_CACHE_COUNT": 1}
    keep = SessionKeep()
    first, second = change_of("a"), change_of("b")
    assert keep.put(1, "opaque", 1, first) == []
    (gone,) = keep.put(2, "opaque", 1, second)
    assert [item.payload for item in gone.sources["in_memory"]] == [first.written[0].payload]


def test_a_history_is_freed_in_pieces():
    history = change_of(*map(str, range(250))).history
    history.sources["other"] = []
    left = []
    while kept.free(history):
        left.append(history.count)
    assert left == [150, 50, 0]
    assert not kept.free(History())


async def test_what_there_is_no_room_for_is_freed_while_nobody_waits(settings, monkeypatch):
    settings.INVOCATIONS_HOST = {"SESSION_CACHE_COUNT": 1}
    monkeypatch.setattr(kept, "PIECE", 1)
    monkeypatch.setattr(groups, "_FREE_SECONDS", 0.3)
    freed = asyncio.Event()
    original = kept.free
    monkeypatch.setattr(kept, "free", lambda history: original(history) or freed.set())
    await say("one")
    (was_kept,) = [each.history for each in kept.sessions._kept.values()]
    await say("one", "s2")
    assert was_kept.count == 2
    await asyncio.wait_for(freed.wait(), 5)
    assert was_kept.count == 0


def test_the_size_is_that_of_what_is_kept():
    keep = SessionKeep()
    first = put(keep, 1, "a", "b")
    size = keep.size
    put(keep, 2, "c" * 1_000)
    assert keep.take(2, "opaque", 9, "other") is None
    assert keep.size == size
    assert keep.take(1, "opaque", 1, first.state) is not None
    assert (len(keep), keep.size) == (0, 0)
    put(keep, 1, "a")
    put(keep, 1, "a")
    keep.drop(1)
    keep.drop(1)
    assert keep.size == 0


def test_decoded_messages_count_as_larger():
    keep = SessionKeep()
    change = put(keep, 1, "a")
    as_text = keep.size
    history = keep.take(1, "opaque", 1, change.state)
    assert history is not None
    session, history = snapshots.load(change.state, history)
    keep.put(1, "opaque", 2, snapshots.dump(session, history))
    assert keep.size > as_text + 1_000


def test_who_was_silent_for_long_goes_with_the_next_put(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    keep = SessionKeep()
    put(keep, 1, "a")
    now[0] += 600
    put(keep, 2, "a")
    now[0] += 600
    put(keep, 3, "a")
    assert holds(keep) == [2, 3]


def test_what_was_taken_is_not_there_again():
    keep = SessionKeep()
    change = put(keep, 1, "a")
    assert keep.take(1, "opaque", 1, change.state) is not None
    assert keep.take(1, "opaque", 1, change.state) is None


@pytest.mark.parametrize("told", [("other", 1, None), ("opaque", 2, None), ("opaque", 1, "other")])
def test_what_does_not_fit_is_dropped(told):
    keep = SessionKeep()
    change = put(keep, 1, "a")
    opaque_id, version, state = told
    assert keep.take(1, opaque_id, version, state or change.state) is None
    assert keep.take(1, "opaque", 1, change.state) is None


def test_two_states_of_the_same_contents_differ():
    assert change_of("a").state != change_of("a").state


def test_nothing_of_the_turns_own_objects_is_kept():
    session = AgentSession(session_id="opaque")
    mine = Message("user", [Content.from_text("a")], raw_representation=object())
    session.state["in_memory"] = {"messages": [mine]}
    session.state["provider"] = {"list": [1]}
    change = snapshots.dump(session, History())
    keep = SessionKeep()
    keep.put(1, "opaque", 1, change)
    history = keep.take(1, "opaque", 1, change.state)
    assert history is not None
    session.state["provider"]["list"].append(2)
    back, _ = snapshots.load(change.state, history)
    (message,) = back.state["in_memory"]["messages"]
    assert message is not mine
    assert message.raw_representation is None
    assert back.state["provider"] == {"list": [1]}


async def test_a_loop_that_is_closed_leaves_what_is_kept_of_use():
    """Nothing that is kept belongs to an event loop: tests and commands bring others."""
    await say("one")

    def another_loop() -> list[str]:
        async def turn() -> list[str]:
            with no_message_is_read():
                return await say("two")

        return asyncio.run(turn())

    assert await asyncio.to_thread(another_loop) == ["one", "one", "two"]


def test_messages_that_are_kept_are_those_that_the_rows_give():
    """Whatever stands in a message: kept as objects over a turn, and read from its rows, it is the same."""
    from tests.test_snapshots import CONTENTS

    session = AgentSession(session_id="opaque")
    session.state["in_memory"] = {
        "messages": [Message("assistant", [copy.deepcopy(content)]) for content in CONTENTS.values()]
    }
    change = snapshots.dump(session, History())
    rows = change.history.rows()
    keep = SessionKeep()
    for version in (1, 2):
        keep.put(1, "opaque", version, change)
        history = keep.take(1, "opaque", version, change.state)
        assert history is not None
        warm, history = snapshots.load(change.state, history)
        cold, _ = snapshots.load(change.state, rows)
        assert [message.to_dict() for message in warm.state["in_memory"]["messages"]] == [
            message.to_dict() for message in cold.state["in_memory"]["messages"]
        ]
        change = snapshots.dump(warm, history)
        assert change.written == ()
