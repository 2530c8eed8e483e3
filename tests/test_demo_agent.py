"""The demonstration agent offline: it streams, calls its tools and remembers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from agent_framework import Agent, AgentSession, Content, Message, tool

from project import tools
from project.agents import build_assistant
from project.offline import OfflineChatClient
from project.offline_replies import HINT, MARKDOWN


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent[Any]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    built = build_assistant()
    assert isinstance(built.client, OfflineChatClient)
    built.client.word_seconds = 0
    return built


async def ask(agent: Agent[Any], text: str, session: AgentSession | None = None) -> str:
    return (await agent.run(text, session=session)).text


async def test_stream_comes_word_by_word_under_one_message_id(agent: Agent[Any]) -> None:
    stream = agent.run("My name is Ada.", stream=True)
    updates = [update async for update in stream]
    assert [update.text for update in updates if update.text] == ["Nice", " to", " meet", " you,", " Ada."]
    assert len({update.message_id for update in updates}) == 1
    response = await stream.get_final_response()
    assert response.text == "Nice to meet you, Ada."
    assert response.usage_details == {"input_token_count": 4, "output_token_count": 5, "total_token_count": 9}


async def test_plain_answer_equals_the_streamed_one(agent: Agent[Any]) -> None:
    stream = agent.run("Hello\n there ", stream=True)
    streamed = "".join([update.text async for update in stream])
    await stream.get_final_response()
    assert streamed == await ask(agent, "Hello\n there ") == f"You said: “Hello\n there ”. {HINT}"


async def test_name_is_remembered_from_the_history_of_the_session(agent: Agent[Any]) -> None:
    session = AgentSession()
    assert await ask(agent, "My name is Ada Lovelace and I am early", session) == "Nice to meet you, Ada Lovelace."
    assert await ask(agent, "hello", session) == "You said: “hello”. That is message 2 of our talk."
    restored = AgentSession.from_dict(session.to_dict())
    assert await ask(agent, "what's my name?", restored) == "Your name is Ada Lovelace."
    assert await ask(agent, "What is my name?", AgentSession()) == "You have not told me your name."


async def test_said_texts_are_told_in_order(agent: Agent[Any]) -> None:
    session = AgentSession()
    assert await ask(agent, "What did I say?", session) == "Nothing before this."
    assert await ask(agent, "What did I say?", session) == "You said: “What did I say?”."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 6 * 7?", "6 * 7 = 42"),
        ("calculate (1 + 2) / 4", "(1 + 2) / 4 = 0.75"),
        ("2 ** 10 =", "2 ** 10 = 1024"),
        ("What is 1 / 0?", "I tried calculate and failed."),
        ("How many words are in “one two three”?", "That makes 3 words."),
        ("Count the words in: one", "That makes 1 word."),
    ],
)
async def test_tool_is_called_through_the_framework(agent: Agent[Any], text: str, answer: str) -> None:
    stream = agent.run(text, stream=True)
    updates = [update async for update in stream]
    kinds = [content.type for update in updates for content in update.contents]
    assert kinds[0] == "function_call"
    assert "function_result" in kinds
    assert (await stream.get_final_response()).text == answer
    assert await ask(agent, text) == answer


async def test_two_tools_are_called_in_one_answer(agent: Agent[Any]) -> None:
    response = await agent.run("What time is it in Europe/Paris, and how many words are in: a b")
    calls = [
        content for message in response.messages for content in message.contents if content.type == "function_call"
    ]
    assert [(call.name, call.parse_arguments()) for call in calls] == [
        ("current_time", {"zone": "Europe/Paris"}),
        ("word_count", {"text": "a b"}),
    ]
    assert response.text.endswith(" (Europe/Paris). That makes 2 words.")


@pytest.mark.parametrize(
    ("text", "room", "day"),
    [("Book room Blue for Friday.", "Blue", "Friday"), ("please book the room B-2 on 1 March!", "B-2", "1 March")],
)
@pytest.mark.parametrize(
    ("approved", "answer"),
    [(True, "Room {} is booked for {}."), (False, "Room {} is not booked for {}: you refused it.")],
)
async def test_room_is_booked_when_a_person_approves(
    agent: Agent[Any], text: str, room: str, day: str, approved: bool, answer: str
) -> None:
    session = AgentSession()
    asked = await agent.run(text, session=session)
    assert asked.text == ""
    [request] = asked.user_input_requests
    assert request.function_call is not None
    assert request.function_call.name == "book_room"
    assert request.function_call.parse_arguments() == {"room": room, "day": day}
    restored = AgentSession.from_dict(session.to_dict())
    reply = Message("user", [request.to_function_approval_response(approved)])
    assert (await agent.run(reply, session=restored)).text == answer.format(room, day)
    assert await ask(agent, "hello", restored) == "You said: “hello”. That is message 2 of our talk."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Show me some Markdown.", MARKDOWN),
        ("Count to 3.", "1 …  \n2 …  \n3 …"),
        ("Say: <b>my name is Ada</b>\n", "<b>my name is Ada</b>\n"),
    ],
)
async def test_shows_for_the_playground(agent: Agent[Any], text: str, answer: str) -> None:
    stream = agent.run(text, stream=True)
    assert "".join([update.text async for update in stream]) == answer
    assert await ask(agent, text) == answer


async def test_tool_choice_none_calls_nothing(agent: Agent[Any]) -> None:
    response = await agent.run("What is 6 * 7?", options={"tool_choice": "none"})
    assert response.text == f"You said: “What is 6 * 7?”. {HINT}"


async def test_attachments_are_counted(agent: Agent[Any]) -> None:
    image = Content.from_uri("data:image/png;base64,AAAA", media_type="image/png")
    response = await agent.run(Message("user", [Content.from_text("look"), image]))
    assert response.text == f"You said: “look”. I see 1 attachment. {HINT}"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("-3 + 4.5", "1.5"), ("7 // 2 % 2", "1"), ("0.1 + 0.2", "0.3"), ("+(2)", "2"), ("2 ** -1", "0.5")],
)
def test_calculate_works_out(expression: str, value: str) -> None:
    assert tools.calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os')", "only numbers, brackets and + - * / // % ** are understood"),
        ("True + 1", "only numbers, brackets and + - * / // % ** are understood"),
        ("9 ** 9 ** 9", "the power is too large"),
        ("(-8) ** 0.5", "a root of a negative number is no real number"),
        ("1e308 * 10", "'1e308 * 10' has no finite value"),
        ("1 +", "'1 +' cannot be worked out"),
        ("1 % 0", "'1 % 0' cannot be worked out"),
        ("1" * 201, "the expression has more than 200 characters"),
    ],
)
def test_calculate_refuses(expression: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        tools.calculate(expression)
    assert str(refused.value) == message


def test_current_time_is_of_now_and_of_the_zone() -> None:
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    told = datetime.strptime(tools.current_time(), "%H:%M on %A, %d %B %Y (UTC)").replace(tzinfo=UTC)
    assert before <= told <= datetime.now(UTC)
    assert tools.current_time("Asia/Tokyo").endswith("(Asia/Tokyo)")


@pytest.mark.parametrize("zone", ["Nowhere/Land", "../etc/passwd", "Europe", ""])
def test_current_time_refuses_what_is_no_zone(zone: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown time zone '{zone}'$"):
        tools.current_time(zone)


@pytest.mark.parametrize("function", [tools.current_time, tools.word_count, tools.calculate, tools.book_room])
def test_tools_describe_themselves_to_a_model(function: Callable[..., Any]) -> None:
    described = tool(function)
    assert described.description
    assert all(parameter["description"] for parameter in described.parameters()["properties"].values())
