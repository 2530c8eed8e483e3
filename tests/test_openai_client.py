"""The demonstration agent with the real OpenAI client, against a local stub of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from agent_framework import Agent, AgentSession
from agent_framework.openai import OpenAIChatCompletionClient

from project.agents import DEFAULT_MODEL, build_assistant
from project.offline import OfflineChatClient
from scripts.demo_check import running_demo
from tests.openai_stub import OpenAIStub, run_openai_stub


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIStub]:
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_CHAT_COMPLETION_MODEL", "OPENAI_ORG_ID"):
        monkeypatch.delenv(name, raising=False)
    with run_openai_stub() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


@asynccontextmanager
async def assistant() -> AsyncIterator[Agent[Any]]:
    """Leaving the agent does not close the connections of its OpenAI client."""
    async with build_assistant() as agent:
        client = agent.client
        assert isinstance(client, OpenAIChatCompletionClient)
        assert client.client is not None
        async with client.client:
            yield agent


async def test_plain_run_tells_the_result_of_a_tool(stub: OpenAIStub) -> None:
    async with assistant() as agent:
        response = await agent.run("What is 6 * 7?")
    assert response.text == "The result is 42."
    assert response.usage_details is not None
    assert response.usage_details["total_token_count"] == 36
    assert [request["messages"][-1]["role"] for request in stub.requests] == ["user", "tool"]


async def test_streamed_run_tells_the_result_of_a_tool(stub: OpenAIStub) -> None:
    async with assistant() as agent:
        stream = agent.run("What is 6 * 7?", stream=True)
        pieces = [update.text async for update in stream if update.text]
        response = await stream.get_final_response()
    assert pieces == ["The", " result", " is", " 42."]
    assert response.text == "The result is 42."
    assert response.usage_details is not None
    assert response.usage_details["total_token_count"] == 36


async def test_a_second_run_of_a_session_sends_the_first(stub: OpenAIStub) -> None:
    session = AgentSession()
    async with assistant() as agent:
        assert (await agent.run("hello", session=session)).text == "1: hello"
        assert (await agent.run("again", session=session)).text == "2: again"


async def test_url_alone_needs_no_key_and_has_a_default_model(stub: OpenAIStub) -> None:
    async with assistant() as agent:
        await agent.run("hello")
    assert stub.keys == ["Bearer no-key-needed"]
    assert stub.requests[0]["model"] == DEFAULT_MODEL


async def test_key_and_model_of_the_environment_are_sent(stub: OpenAIStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_MODEL", "other-model")
    async with assistant() as agent:
        await agent.run("hello")
    assert stub.keys == ["Bearer sk-test"]
    assert stub.requests[0]["model"] == "other-model"


def test_key_alone_speaks_to_the_service_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    client = build_assistant().client
    assert isinstance(client, OpenAIChatCompletionClient)
    assert client.service_url() == "https://api.openai.com/v1/"


def test_without_key_and_url_the_agent_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert isinstance(build_assistant().client, OfflineChatClient)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The demonstration site as a process of its own, its agent speaking to a stub."""
    with run_openai_stub() as running, running_demo({"OPENAI_BASE_URL": running.url}) as url:
        yield url


def invoke(site: str, **body: object) -> httpx.Response:
    return httpx.post(f"{site}/invocations/invoke", json=body, trust_env=False, timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(60)
class TestThroughTheSite:
    """From the socket to the service and back."""

    def test_plain_answer_tells_the_result_of_a_tool(self, site: str) -> None:
        answer = invoke(site, message="What is 6 * 7?", session_id="plain")
        assert answer.status_code == 200
        assert answer.content == b'{"response":"The result is 42.","session_id":"plain"}'

    def test_streamed_answer_tells_the_result_of_a_tool(self, site: str) -> None:
        answer = invoke(site, message="What is 6 * 7?", session_id="streamed", stream=True)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.content == b"data: The\n\ndata:  result\n\ndata:  is\n\ndata:  42.\n\ndata: [DONE]\n\n"

    def test_later_turn_sends_the_earlier_ones_with_their_tool_calls(self, site: str) -> None:
        invoke(site, message="What is 6 * 7?", session_id="later")
        invoke(site, message="What is 2 * 3?", session_id="later", stream=True)
        assert invoke(site, message="again", session_id="later").json()["response"] == "3: again"

    def test_options_reach_the_service(self) -> None:
        with run_openai_stub() as running, running_demo({"OPENAI_BASE_URL": running.url}) as url:
            invoke(url, message="hello", options={"temperature": 0.5, "max_tokens": 9, "stop": ["x"]})
            running.failing = True
            failed = invoke(url, message="hello", stream=True)
        sent = running.requests[0]
        assert (sent["temperature"], sent["stop"]) == (0.5, ["x"])
        assert 9 in (sent.get("max_tokens"), sent.get("max_completion_tokens"))
        assert failed.status_code == 200
        assert failed.content.startswith(b"event: error\ndata: ")
        assert b"[DONE]" not in failed.content
