"""Pending requests as values: what a caller sees, what answers them, what the agent gets, how calls are closed."""

from __future__ import annotations

from typing import Any

import pytest
from agent_framework import AgentSession, Content, Message

from invocations_app.exceptions import ResponsesMismatch
from invocations_app.pending import (
    OUTCOME_UNKNOWN,
    PendingRequest,
    check_replies,
    close_calls,
    from_content,
    is_approved,
    reply_messages,
    tools_asked_for,
)


def call(call_id: str = "c1", name: str = "pay", arguments: Any = '{"to":"Ada"}', **more: Any) -> Content:
    return Content.from_function_call(call_id=call_id, name=name, arguments=arguments, **more)


def approval(request_id: str = "r1", **more: Any) -> Content:
    return Content.from_function_approval_request(id=request_id, function_call=call(**more))


def requests(*contents: Content) -> list[PendingRequest]:
    return [from_content(content) for content in contents]


def declared(request_id: str = "c2") -> Content:
    return call(request_id, "ring", None, id=request_id)


# What a caller sees.


def test_an_approval_is_told_with_its_keys_in_order():
    request = from_content(approval())
    assert (request.request_id, request.kind) == ("r1", "approval")
    assert list(request.data.items()) == [
        ("request_id", "r1"),
        ("type", "approval"),
        ("tool", "pay"),
        ("arguments", {"to": "Ada"}),
    ]


def test_a_declared_tool_is_told_as_a_tool_call():
    request = from_content(declared())
    assert request.data == {"request_id": "c2", "type": "tool_call", "tool": "ring", "arguments": None}


def test_a_call_without_an_id_of_its_own_is_known_by_its_call_id():
    assert from_content(call("c3")).request_id == "c3"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('{"a":1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("{}", {}),
        ({}, {}),
        ("", None),
        (None, None),
        ('{"a":', {"raw": '{"a":'}),
        ("[1]", {"raw": "[1]"}),
        ('"x"', {"raw": '"x"'}),
        ("null", {"raw": "null"}),
        ('{"a":NaN}', {"raw": '{"a":NaN}'}),
        ('{"a":-Infinity}', {"raw": '{"a":-Infinity}'}),
        ('{"a":1e999}', {"raw": '{"a":1e999}'}),
        ('{"a":' + "9" * 5000 + "}", {"raw": '{"a":' + "9" * 5000 + "}"}),
        ('{"a":' + "[" * 100_000, {"raw": '{"a":' + "[" * 100_000}),
        ('{"a":"\\ud800"}', {"a": "\ud800"}),
        ('{"raw":1}', {"raw": 1}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_arguments_are_an_object_or_come_raw(given, told):
    assert from_content(approval(arguments=given)).data["arguments"] == told


def test_what_cannot_be_answered_is_an_error():
    with pytest.raises(TypeError, match=r"^an agent asked for 'oauth_consent_request', which cannot be answered$"):
        from_content(Content.from_oauth_consent_request(consent_link="https://example.com"))


# Which replies answer.


@pytest.mark.parametrize(
    ("reply", "approved"),
    [
        (True, True),
        (False, False),
        ({"approved": True}, True),
        ({"approved": False}, False),
        ({"approved": True, "reason": ""}, True),
        ({"approved": False, "reason": "too much"}, False),
    ],
)
def test_an_approval_is_a_boolean_perhaps_with_a_reason(reply, approved):
    assert is_approved(reply) is approved


@pytest.mark.parametrize(
    "reply",
    [
        None,
        1,
        0,
        "true",
        "",
        [],
        [True],
        {},
        {"approved": 1},
        {"approved": None},
        {"approved": {"approved": True}},
        {"reason": "fine"},
        {"approved": True, "reason": None},
        {"approved": True, "reason": 1},
        {"approved": True, "arguments": {"to": "Eve"}},
    ],
    ids=repr,
)
def test_nothing_else_is_an_approval(reply):
    with pytest.raises(ResponsesMismatch):
        is_approved(reply)
    with pytest.raises(ResponsesMismatch):
        check_replies(requests(approval()), {"r1": reply})


@pytest.mark.parametrize(
    "replies",
    [{}, {"r1": True}, {"c2": 1}, {"r1": True, "c2": 1, "r3": True}, {"r1": True, "r2": 1}, {"r1": 1, "c2": True}],
    ids=repr,
)
def test_replies_answer_exactly_what_is_pending(replies):
    with pytest.raises(ResponsesMismatch):
        check_replies(requests(approval(), declared()), replies)


@pytest.mark.parametrize("result", [None, True, 0, "", "text", [1], {"a": {"b": []}}], ids=repr)
def test_a_declared_tool_is_answered_by_any_value(result):
    check_replies(requests(approval(), declared()), {"c2": result, "r1": False})


@pytest.mark.parametrize("replies", [{}, {"r1": True}])
def test_nothing_answers_where_nothing_is_pending(replies):
    with pytest.raises(ResponsesMismatch):
        check_replies([], replies)


def test_values_beyond_approvals_are_checked_further():
    seen: list[Any] = []
    check_replies(
        requests(approval(), declared()),
        {"r1": True, "c2": 5},
        lambda request, reply: seen.append((request.request_id, reply)),
    )
    assert seen == [("c2", 5)]


# What the agent gets.


def test_the_agent_gets_approvals_then_results_and_nothing_beside():
    asked = requests(declared(), approval(), approval("r2", call_id="c3"))
    user, tool = reply_messages(asked, {"r2": {"approved": False, "reason": "no"}, "r1": True, "c2": {"rung": 2}})
    assert (user.role, tool.role) == ("user", "tool")
    assert [(content.type, content.id, content.approved) for content in user.contents] == [
        ("function_approval_response", "r1", True),
        ("function_approval_response", "r2", False),
    ]
    assert [content.function_call.arguments for content in user.contents] == ['{"to":"Ada"}'] * 2
    assert [(content.type, content.call_id) for content in tool.contents] == [("function_result", "c2")]
    assert "no" not in [content.text for content in user.contents]


def test_replies_of_one_kind_are_one_message():
    assert [message.role for message in reply_messages(requests(approval()), {"r1": True})] == ["user"]
    assert [message.role for message in reply_messages(requests(declared()), {"c2": None})] == ["tool"]


def test_the_tools_asked_for_are_those_of_approvals_that_run_here():
    hosted = approval("r2", call_id="c3", name="theirs", hosted=True)
    assert tools_asked_for(requests(approval(), declared(), hosted)) == {"pay"}


# How open calls are closed.


def result(call_id: str) -> Content:
    return Content.from_function_result(call_id=call_id, result="done")


def session_of(*messages: Message, **state: Any) -> AgentSession:
    session = AgentSession(session_id="s")
    session.state.update(state, history={"messages": list(messages), "other": 1})
    return session


def closed(*messages: Message) -> list[tuple[str, list[Any]]]:
    session = session_of(*messages)
    close_calls(session)
    return [
        (message.role, [content.text or content.result or content.type for content in message.contents])
        for message in session.state["history"]["messages"]
    ]


def test_open_calls_get_a_result_that_says_nothing_is_known():
    session = session_of(Message("assistant", [call("c1"), call("c2")]))
    close_calls(session)
    _, closing = session.state["history"]["messages"]
    assert closing.role == "tool"
    assert [(content.type, content.call_id, content.result) for content in closing.contents] == [
        ("function_result", "c1", OUTCOME_UNKNOWN),
        ("function_result", "c2", OUTCOME_UNKNOWN),
    ]
    assert session.state["history"]["other"] == 1


def test_what_is_answered_is_left_as_it_is():
    messages = [Message("assistant", [call("c1")]), Message("tool", [result("c1")]), Message("assistant", ["bye"])]
    session = session_of(*messages)
    before = session.state["history"]["messages"]
    close_calls(session)
    assert session.state["history"]["messages"] is before
    assert before == messages


def test_of_two_calls_the_one_without_a_result_is_closed_behind_the_other():
    assert closed(Message("assistant", [call("c1"), call("c2")]), Message("tool", [result("c2")])) == [
        ("assistant", ["function_call", "function_call"]),
        ("tool", ["done"]),
        ("tool", [OUTCOME_UNKNOWN]),
    ]


def test_an_open_call_is_closed_right_behind_it_and_not_behind_what_came_later():
    assert closed(Message("assistant", [call("c1")]), Message("user", ["and now?"])) == [
        ("assistant", ["function_call"]),
        ("tool", [OUTCOME_UNKNOWN]),
        ("user", ["and now?"]),
    ]


def test_a_call_id_that_was_used_before_is_open_again():
    first = [Message("assistant", [call("c1")]), Message("tool", [result("c1")])]
    assert closed(*first, Message("assistant", [call("c1")])) == [
        ("assistant", ["function_call"]),
        ("tool", ["done"]),
        ("assistant", ["function_call"]),
        ("tool", [OUTCOME_UNKNOWN]),
    ]


def test_calls_that_are_carried_out_elsewhere_stay():
    assert closed(Message("assistant", [call("c1", hosted=True), call("c2", informational_only=True)])) == [
        ("assistant", ["function_call", "function_call"])
    ]


def test_histories_of_every_provider_are_closed_and_other_state_stays():
    session = session_of(
        Message("assistant", [call("c1")]),
        second={"messages": [Message("assistant", [call("c2")])]},
        notes={"messages": ["no message"]},
        number=5,
    )
    close_calls(session)
    assert [len(session.state[name]["messages"]) for name in ("history", "second")] == [2, 2]
    assert (session.state["notes"], session.state["number"]) == ({"messages": ["no message"]}, 5)


def test_what_the_framework_noted_of_the_calls_goes_and_standing_rules_stay():
    session = session_of(
        tool_approval={"rules": [{"tool": "pay"}], "pending_approval_requests": [{}], "pending_mixed_pause_batch": {}},
        _function_invocation_budget_state={"attempt_count": 1},
    )
    close_calls(session)
    assert session.state["tool_approval"] == {"rules": [{"tool": "pay"}]}
    assert "_function_invocation_budget_state" not in session.state
    session.state["tool_approval"] = {"pending_approval_requests": [{}]}
    close_calls(session)
    assert "tool_approval" not in session.state
