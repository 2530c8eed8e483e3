"""Snapshots: what a session is stored as comes back the same, and only what changed is written."""

from __future__ import annotations

import copy
import enum
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from agent_framework import AgentSession, Content, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.storage import snapshots
from invocations_app.storage.snapshots import Change, History, MessageRow
from tests.session_fakes import Mood

ROOT = Path(__file__).resolve().parent.parent
CALL = Content.from_function_call("c1", "weather", arguments={"city": "Berlin", "days": [1, 2]})

CONTENTS = {
    "text": Content.from_text("hé\r\n\u2028 \x00 \ud800"),
    "empty text": Content.from_text(""),
    "annotated text": Content.from_text("a", annotations=[{"type": "citation", "title": "t", "url": "https://a.b/"}]),
    "reasoning": Content.from_text_reasoning(id="r1", text="think", protected_data="opaque"),
    "data": Content.from_data(b"\x89PNG\x00", "image/png", name="a.png"),
    "uri": Content.from_uri("https://a.b/c.png", media_type="image/png"),
    "error": Content.from_error(message="no", error_code="e1", error_details="more"),
    "call": CALL,
    "call with text arguments": Content.from_function_call("c1", "weather", arguments='{"broken": '),
    "result": Content.from_function_result("c1", result="sunny"),
    "result that is an object": Content.from_function_result("c1", result={"degrees": 21.5, "rain": None}),
    "result of contents": Content.from_function_result(
        "c1", result=[Content.from_text("a"), Content.from_data(b"x", "image/png")]
    ),
    "usage": Content.from_usage({"input_token_count": 1, "output_token_count": 2, "total_token_count": 3}),
    "hosted file": Content.from_hosted_file("f1", media_type="application/pdf", name="a.pdf"),
    "vector store": Content.from_hosted_vector_store("v1"),
    "code call": Content.from_code_interpreter_tool_call(call_id="c1", inputs=[Content.from_text("print(1)")]),
    "code result": Content.from_code_interpreter_tool_result(call_id="c1", outputs=[Content.from_text("1")]),
    "image call": Content.from_image_generation_tool_call(image_id="i1"),
    "image result": Content.from_image_generation_tool_result(image_id="i1", outputs="data:image/png;base64,AA=="),
    "search call": Content.from_search_tool_call("c1", tool_name="web", arguments={"q": "x"}),
    "search result": Content.from_search_tool_result("c1", tool_name="web", result={"hits": 1}),
    "shell call": Content.from_shell_tool_call(call_id="c1", commands=["ls"], timeout_ms=5),
    "shell result": Content.from_shell_tool_result(
        call_id="c1", outputs=[Content.from_shell_command_output(stdout="a", stderr="", exit_code=0, timed_out=False)]
    ),
    "mcp call": Content.from_mcp_server_tool_call("c1", "search", server_name="s", arguments={"q": "x"}),
    "mcp result": Content.from_mcp_server_tool_result("c1", output=[Content.from_text("found")]),
    "approval request": Content.from_function_approval_request("a1", CALL),
    "approval response": Content.from_function_approval_response(True, "a1", CALL),
    "consent": Content.from_oauth_consent_request("https://a.b/consent"),
    "properties": Content.from_text("a", additional_properties={"deep": {"list": [1, {"x": None}]}}),
}

Rows = dict[tuple[str, int], MessageRow]


def message(text: str, role: str = "user", **kwargs: Any) -> Message:
    return Message(role, [Content.from_text(text)], **kwargs)


def session_of(*messages: Message, source_id: str = "in_memory") -> AgentSession:
    session = AgentSession(session_id="opaque")
    session.state[source_id] = {"messages": list(messages)}
    return session


def dicts(session: AgentSession, source_id: str = "in_memory") -> list[dict[str, Any]]:
    return [item.to_dict() for item in session.state[source_id]["messages"]]


def apply(rows: Rows, change: Change) -> Rows:
    """Do to rows what the tables do, unique places included."""
    after = dict(rows)
    if not change.appended_only:
        for place in rows:
            if place[1] >= change.kept.get(place[0], 0):
                del after[place]
        for row in change.written:
            after.pop((row.source_id, row.position), None)
    for row in change.written:
        assert (row.source_id, row.position) not in after, "a place is taken"
        after[row.source_id, row.position] = row
    return after


def reload(rows: Rows, change: Change) -> tuple[AgentSession, History]:
    return snapshots.load(change.state, [rows[place] for place in sorted(rows)])


def stored(*messages: Message) -> tuple[AgentSession, History, Rows]:
    """Return the session of these messages as it comes back, and its rows."""
    change = snapshots.dump(session_of(*messages), History())
    rows = apply({}, change)
    return *reload(rows, change), rows


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_every_content_comes_back_as_it_was(content):
    given_message = Message(
        "assistant", [content], author_name="Ann", message_id="m1", additional_properties={"a": {"b": [1]}}
    )
    session, _, rows = stored(given_message)
    assert dicts(session) == [given_message.to_dict()]
    assert [row.role for row in rows.values()] == ["assistant"]
    assert all(row.payload.isascii() for row in rows.values())


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"tuple": (1, 2)},
        {"at": datetime(2026, 2, 3)},
        {"enum": Colour.RED},
        {1: {2: 3}},
        {"mood": Mood("x", 1)},
        {"set": {1}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_message_is_written_as_upstream_writes_it(content, properties):
    given_message = Message("assistant", [copy.deepcopy(content)], message_id="m1", additional_properties=properties)
    session = session_of(given_message)
    (row,) = snapshots.dump(session, History()).written
    assert json.loads(row.payload) == json.loads(json.dumps(session.to_dict()["state"]["in_memory"]["messages"][0]))


def test_a_text_of_every_kind_of_character_comes_back():
    text = "".join(map(chr, range(0x300))) + "\u2028\ud800\U0001f600"
    session, _, _ = stored(message(text))
    assert session.state["in_memory"]["messages"][0].text == text


def test_ids_and_state_come_back():
    session = AgentSession(session_id="opaque", service_session_id="conv-1")
    state = {"a": {"b": [1, 2.5, None, True, "é"]}, "list": [], "in_memory": {"messages": [], "more": 1}}
    session.state.update(copy.deepcopy(state))
    change = snapshots.dump(session, History())
    back, _ = snapshots.load(change.state, [])
    assert (back.session_id, back.service_session_id, back.state) == ("opaque", "conv-1", state)
    assert snapshots.load(change.state, [], "other")[0].session_id == "other"


def test_a_service_session_id_that_is_an_object_comes_back():
    session = AgentSession(session_id="opaque", service_session_id={"conversation": "c", "response": "r"})
    assert snapshots.load(snapshots.dump(session, History()).state, [])[0].service_session_id == {
        "conversation": "c",
        "response": "r",
    }


def test_only_appended_messages_are_written():
    session, history, rows = stored(message("a"), message("b", "assistant"))
    session.state["in_memory"]["messages"] = [
        *session.state["in_memory"]["messages"],
        message("c"),
        message("d", "assistant"),
    ]
    change = snapshots.dump(session, history)
    assert [(row.position, row.role) for row in change.written] == [(2, "user"), (3, "assistant")]
    assert change.appended_only
    assert [m["contents"][0]["text"] for m in dicts(reload(apply(rows, change), change)[0])] == ["a", "b", "c", "d"]


def test_an_unchanged_history_writes_no_row():
    session, history, _ = stored(message("a"), message("b"))
    change = snapshots.dump(session, history)
    assert change.written == ()
    assert change.appended_only


def test_a_session_that_is_written_again_and_again_encodes_a_message_twice_at_most(monkeypatch):
    session, history = AgentSession(session_id="s"), History()
    encoded: list[str] = []
    original = snapshots.encode_message
    monkeypatch.setattr(snapshots, "encode_message", lambda each: encoded.append(each.text) or original(each))
    session.state["in_memory"] = {"messages": []}
    for text in "abc":
        session.state["in_memory"]["messages"].append(message(text))
        change = snapshots.dump(session, history)
        assert [row.position for row in change.written] == ["abc".index(text)]
        history = change.history
    assert encoded == ["a", "a", "b", "b", "c"]


def test_properties_of_a_provider_beside_its_messages_come_back():
    session = AgentSession(session_id="s")
    session.state["in_memory"] = {"messages": [message("a")]}
    session.state["other"] = {"messages": [message("b")], "count": 1}
    change = snapshots.dump(session, History())
    assert json.loads(change.state)["session"]["state"] == {"in_memory": {}, "other": {"count": 1}}
    assert list(json.loads(change.state)["session"]) == list(session.to_dict())


def test_equal_copies_of_the_messages_write_no_row():
    session, history, _ = stored(message("a"), message("b"))
    session.state["in_memory"]["messages"] = copy.deepcopy(session.state["in_memory"]["messages"])
    assert snapshots.dump(session, history).written == ()


def test_a_repeated_exchange_is_kept():
    exchange = [message("yes"), message("Done.", "assistant")]
    session, _, rows = stored(*exchange, *copy.deepcopy(exchange), exchange[0], exchange[0])
    assert [m["contents"][0]["text"] for m in dicts(session)] == ["yes", "Done.", "yes", "Done.", "yes", "yes"]
    assert len(rows) == 6


def _mark(messages: list[Message]) -> None:
    messages[0].additional_properties["_excluded"] = True


def _mark_deeply(messages: list[Message]) -> None:
    messages[0].additional_properties["_group"]["token_count"] = 7


def _mark_most_deeply(messages: list[Message]) -> None:
    messages[0].additional_properties["_group"]["of"].append("x")


def _change_text(messages: list[Message]) -> None:
    messages[0].contents[0].text = "shorter"


def _change_arguments(messages: list[Message]) -> None:
    messages[0].contents[1].arguments["city"] = "Paris"


def _change_result(messages: list[Message]) -> None:
    messages[0].contents[2].items[0].text = "cloudy"


def _change_nested_call(messages: list[Message]) -> None:
    messages[0].contents[3].function_call.arguments["days"].append(3)


def _change_content_properties(messages: list[Message]) -> None:
    messages[0].contents[0].additional_properties["deep"]["x"] = 2


def _drop_content(messages: list[Message]) -> None:
    del messages[0].contents[0]


@pytest.mark.parametrize(
    "edit",
    [
        _mark,
        _mark_deeply,
        _mark_most_deeply,
        _change_text,
        _change_arguments,
        _change_result,
        _change_nested_call,
        _change_content_properties,
        _drop_content,
    ],
)
def test_a_message_changed_in_place_is_written_again(edit: Callable[[list[Message]], None]):
    rich = Message(
        "assistant",
        [
            Content.from_text("long", additional_properties={"deep": {"x": 1}}),
            copy.deepcopy(CALL),
            Content.from_function_result("c1", result=[Content.from_text("sunny")]),
            Content.from_function_approval_request("a1", copy.deepcopy(CALL)),
        ],
        additional_properties={"_group": {"token_count": None, "of": []}},
    )
    session, history, rows = stored(rich, message("b"))
    before = dicts(session)
    edit(session.state["in_memory"]["messages"])
    after = dicts(session)
    assert after != before
    change = snapshots.dump(session, history)
    assert [row.position for row in change.written] == [0]
    assert not change.appended_only
    assert dicts(reload(apply(rows, change), change)[0]) == after


def test_a_message_changed_in_place_right_after_a_dump_is_written_again():
    session = session_of(message("a", additional_properties={"_group": {"x": 1}}))
    first = snapshots.dump(session, History())
    session.state["in_memory"]["messages"][0].additional_properties["_group"]["x"] = 2
    second = snapshots.dump(session, first.history)
    assert dicts(reload(apply(apply({}, first), second), second)[0]) == dicts(session)


def test_two_providers_keep_their_own_histories():
    session = session_of(message("a"))
    session.state["audit"] = {"messages": [message("x"), message("y")], "since": 1}
    change = snapshots.dump(session, History())
    rows = apply({}, change)
    back, history = reload(rows, change)
    assert history.count == 3
    del back.state["audit"]
    back.state["in_memory"]["messages"].append(message("b"))
    change = snapshots.dump(back, history)
    rows = apply(rows, change)
    assert sorted(rows) == [("in_memory", 0), ("in_memory", 1)]
    assert list(reload(rows, change)[0].state) == ["in_memory"]


def test_a_provider_with_too_long_a_name_keeps_its_messages_in_the_state():
    session = session_of(message("a"), source_id="s" * 256)
    change = snapshots.dump(session, History())
    assert change.written == ()
    assert dicts(snapshots.load(change.state, [])[0], "s" * 256) == dicts(session, "s" * 256)


# Any edit of the list


def _edit(messages: list[Message], name: str, number: int) -> list[Message]:
    at = number % len(messages) if messages else 0
    if name == "append":
        return [*messages, message(f"new {number}", message_id=f"m{number}")]
    if name == "insert in front":
        return [message(f"summary {number}", "assistant"), *messages]
    if name == "clear":
        return []
    if not messages:
        return messages
    if name == "remove":
        return messages[:at] + messages[at + 1 :]
    if name == "cut":
        return messages[at:]
    if name == "rotate":
        return messages[at:] + messages[:at]
    if name == "reverse":
        return messages[::-1]
    if name == "repeat":
        return [*messages, messages[at]]
    if name == "copy":
        return [*messages[:at], copy.deepcopy(messages[at]), *messages[at + 1 :]]
    if name == "mark":
        messages[at].additional_properties["_excluded"] = number
    elif name == "mark deeply":
        messages[at].additional_properties.setdefault("_group", {"of": []})["of"].append(number)
    elif name == "change text":
        messages[at].contents[0].text = f"changed {number}"
    elif name == "add content":
        messages[at].contents.append(copy.deepcopy(CALL))
    elif name == "change arguments" and len(messages[at].contents) > 1:
        messages[at].contents[1].arguments["days"].append(number)
    return messages


EDITS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "append",
                "insert in front",
                "clear",
                "remove",
                "cut",
                "rotate",
                "reverse",
                "repeat",
                "copy",
                "mark",
                "mark deeply",
                "change text",
                "add content",
                "change arguments",
            ]
        ),
        st.integers(0, 9),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(size=st.integers(0, 5), turns=st.lists(st.tuples(EDITS, st.booleans()), min_size=1, max_size=3))
def test_any_edit_of_the_history_is_stored_as_it_is(size, turns):
    session, history, rows = stored(
        *(message(f"text {n % 3}", additional_properties={"_group": {"of": []}}) for n in range(size))
    )
    for edits, is_reloaded in turns:
        messages = session.state["in_memory"]["messages"]
        before = [row.payload for row in rows.values()]
        for name, number in edits:
            messages = _edit(messages, name, number)
        session.state["in_memory"]["messages"] = messages
        change = snapshots.dump(session, history)
        rows = apply(rows, change)
        back, reloaded = reload(rows, change)
        assert dicts(back) == dicts(session)
        assert all(row.position >= len(before) or row.payload != before[row.position] for row in change.written)
        session, history = (back, reloaded) if is_reloaded else (session, change.history)
        rows = dict(sorted(rows.items()))


# What JSON does not have


@pytest.mark.filterwarnings("ignore:AgentSession state value:RuntimeWarning")
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({1, 2}, TypeError),
        (frozenset(), TypeError),
        ((1, 2), TypeError),
        (b"x", TypeError),
        (object(), TypeError),
        ({1: "a"}, TypeError),
        ({None: "a"}, TypeError),
        (OrderedDict({1: "a"}), TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ([{"deep": [float("-inf")]}], ValueError),
        ([{"deep": {"tuple": (1,)}}], TypeError),
        ({"x": {2: 3}}, TypeError),
    ],
    ids=repr,
)
def test_state_that_json_does_not_have_is_refused(value, error):
    session = session_of(message("a"))
    session.state["provider"] = {"value": value}
    with pytest.raises(error):
        snapshots.dump(session, History())


def test_a_number_in_a_message_that_is_not_finite_is_refused():
    session = session_of(message("a", additional_properties={"value": float("nan")}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        snapshots.dump(session, History())


# Types of one's own


def test_a_registered_type_comes_back_as_itself():
    session = session_of(message("a"))
    session.state["moody"] = {"mood": Mood("glad", 2), "all": [Mood("sad", 1)]}
    change = snapshots.dump(session, History())
    back, _ = reload(apply({}, change), change)
    assert back.state["moody"] == {"mood": Mood("glad", 2), "all": [Mood("sad", 1)]}


_IN_A_NEW_PROCESS = """
import json, sys
import django
django.setup()
import tests.session_fakes
from invocations_app.storage import snapshots
state, rows = json.load(sys.stdin)
session, _ = snapshots.load(state, [snapshots.MessageRow(*row) for row in rows])
print(repr(session.state["moody"]["mood"]), session.state["in_memory"]["messages"][0].text)
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_registered_type_comes_back_in_a_new_process():
    session = session_of(message("a"))
    session.state["moody"] = {"mood": Mood("glad", 2)}
    change = snapshots.dump(session, History())
    rows = [(row.source_id, row.position, row.role, row.payload) for row in change.written]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _IN_A_NEW_PROCESS],
        input=json.dumps([change.state, rows]),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": ""},
    )
    assert done.stdout == "Mood(name='glad', turns=2) a\n"


# What cannot be read


GOOD = snapshots.dump(session_of(message("a"), message("b")), History())
ROWS = list(GOOD.written)


@pytest.mark.parametrize(
    ("state", "rows"),
    [
        ("", ROWS),
        ("{", ROWS),
        ("null", ROWS),
        ("[]", ROWS),
        ("{}", ROWS),
        (GOOD.state.replace('"format":1', '"format":2'), ROWS),
        (GOOD.state.replace('"format":1', '"format":"1"'), ROWS),
        (GOOD.state.replace('"session":', '"sessions":'), ROWS),
        (GOOD.state.replace('"history":', '"histories":'), ROWS),
        (GOOD.state, ROWS[:1]),
        (GOOD.state, ROWS[1:]),
        (GOOD.state, []),
        (GOOD.state, [*ROWS, MessageRow("in_memory", 2, "user", ROWS[0].payload)]),
        (GOOD.state, [*ROWS, MessageRow("in_memory", 3, "user", ROWS[0].payload)]),
        (GOOD.state, [*ROWS, MessageRow("foreign", 0, "user", ROWS[0].payload)]),
        (GOOD.state, [ROWS[1], ROWS[0]]),
        (GOOD.state, [MessageRow("in_memory", 0, "user", "{"), ROWS[1]]),
        (GOOD.state, [MessageRow("in_memory", 0, "user", "null"), ROWS[1]]),
        (GOOD.state, [MessageRow("in_memory", 0, "user", '{"type":"session"}'), ROWS[1]]),
        (GOOD.state, [MessageRow("in_memory", 0, "user", '{"type":"message","contents":[{}]}'), ROWS[1]]),
    ],
)
def test_what_was_not_written_here_is_unreadable(state, rows):
    with pytest.raises(StoredStateUnreadable) as caught:
        snapshots.load(state, rows)
    assert caught.value.text == "the stored session cannot be read"
    assert caught.value.__cause__ is not None
