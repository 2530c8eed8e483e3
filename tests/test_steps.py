"""The steps of a run: what tools and executors did, noted with their times where they are known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from agent_framework import Content

from invocations_app.storage import steps
from tests import fakes
from tests.client import endpoint, post, records
from tests.durable import ask, body_of, scripted, until_idle

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ONE = {"message": "hi", "session_id": "s1"}


def after(milliseconds: float) -> datetime:
    return NOW + timedelta(milliseconds=milliseconds)


async def the_steps() -> list[steps.Step]:
    [record] = await records()
    return steps.read(record.steps)


@pytest.mark.django_db(transaction=True)
class TestRecording:
    async def test_streamed_run_notes_calls_and_results_with_their_times(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script(["a", fakes.call("whoami")], ["b"])
        assert (await body_of(await post(ONE | {"stream": True}))).endswith(b"data: [DONE]\n\n")
        [call, result] = await the_steps()
        assert [(step.kind, step.name) for step in (call, result)] == [("call", "whoami"), ("result", "whoami")]
        assert 0 <= call.milliseconds <= result.milliseconds < 60_000

    async def test_call_in_pieces_is_one_step(self, settings):
        settings.INVOCATIONS = scripted()
        rest = Content.from_function_call(call_id="call-1", name="", arguments="")
        fakes.script([fakes.call("whoami"), rest], ["b"])
        await body_of(await post(ONE | {"stream": True}))
        assert [step.kind for step in await the_steps()] == ["call", "result"]

    async def test_plain_run_notes_the_order_only(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script([fakes.call("whoami")], ["b"])
        await post(ONE)
        assert await the_steps() == [steps.Step("call", "whoami"), steps.Step("result", "whoami")]

    async def test_without_a_session_they_are_noted_too(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script([fakes.call("whoami")], ["b"])
        await post({"message": "hi"})
        assert [step.name for step in await the_steps()] == ["whoami", "whoami"]

    async def test_run_that_fails_leaves_the_steps_it_took(self, settings, caplog):
        settings.INVOCATIONS = scripted()
        fakes.script([fakes.call("whoami")], [RuntimeError("no")])
        await body_of(await post(ONE | {"stream": True}))
        assert [step.kind for step in await the_steps()] == ["call", "result"]

    async def test_run_without_tools_notes_none(self, settings):
        settings.INVOCATIONS = endpoint()
        await post(ONE)
        [record] = await records()
        assert record.steps == ""

    @pytest.mark.parametrize("stream", [True, False])
    async def test_workflow_notes_its_executors(self, settings, stream):
        settings.INVOCATIONS = endpoint(TARGET="tests.workflow_fakes.build_supersteps")
        response = await post({"message": "ab", "session_id": "s1", "stream": stream})
        if stream:
            await body_of(response)
        noted = [(step.kind, step.name, step.milliseconds is not None) for step in await the_steps()]
        assert noted == [
            ("invoked", "first", stream),
            ("completed", "first", stream),
            ("invoked", "second", stream),
            ("completed", "second", stream),
        ]

    async def test_steps_reach_no_caller(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script([fakes.call("whoami")], ["b"])
        assert await body_of(await post(ONE | {"stream": True})) == b"data: b\n\ndata: [DONE]\n\n"
        [record] = await records()
        assert record.event_count == 1

    async def test_waiter_notes_when_it_claimed_its_session(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script([fakes.gate(), "a"], ["b"])
        await ask("i1", ONE | {"background": True})
        await fakes.gate().wait_reached()
        await ask("i2", ONE | {"background": True})
        fakes.gate().open()
        await until_idle()
        first, second = await records()
        assert first.claimed_at is None
        assert first.finished_at <= second.claimed_at <= second.finished_at


class TestSteps:
    def test_what_is_kept_is_bounded(self):
        taken = steps.Steps()
        for _ in range(steps.KEPT + 5):
            taken.take("call", "x" * 1000, after(5))
        kept = steps.read(taken.text(NOW))
        assert (len(kept), len(kept[0].name)) == (steps.KEPT, 200)
        assert kept[0].milliseconds == 5

    def test_clock_that_was_set_back_gives_no_time_before_the_begin(self):
        taken = steps.Steps()
        taken.take("call", "a", after(-5))
        assert taken.text(NOW) == '[["call","a",0]]'

    @pytest.mark.parametrize("text", ["", "{", "[1]", '[["call"]]', "null"])
    def test_what_cannot_be_read_is_no_step(self, text):
        assert steps.read(text) == []
