"""``MAX_CONCURRENT_RUNS``: what is over it is refused before it begins, and leaves nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from invocations_app.models import SessionRecord
from invocations_app.runs import host
from tests import fakes
from tests.client import endpoint, records, rows
from tests.durable import Reader, ask, body_of, cancel, get, scripted, until_idle, until_status

pytestmark = pytest.mark.django_db(transaction=True)

FULL = b'{"error":"too many runs"}'


@pytest.fixture(autouse=True)
def _two_at_once(settings: Any) -> None:
    settings.INVOCATIONS = scripted()
    settings.INVOCATIONS_HOST = {"MAX_CONCURRENT_RUNS": 2}


def one(session_id: str = "s1", **more: Any) -> dict[str, Any]:
    return {"message": "hi", "session_id": session_id, **more}


async def fill() -> list[asyncio.Task[Any]]:
    """Let two runs stand at the gate."""
    tasks = [asyncio.create_task(ask(f"full{number}", one(f"full{number}"))) for number in range(2)]
    for number in range(2):
        await until_status(f"full{number}", "running")
    await fakes.gate().wait_reached()
    return tasks


@pytest.mark.parametrize("kind", [{}, {"stream": True}, {"background": True}], ids=["plain", "stream", "background"])
async def test_a_run_too_many_is_503_and_leaves_nothing(kind):
    fakes.script([fakes.gate(), "a"])
    running = await fill()
    refused = await ask("i1", one("new", **kind))
    assert (refused.status_code, refused.content) == (503, FULL)
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["x-agent-invocation-id"] == "i1"
    assert [record.invocation_id for record in await records()] == ["full0", "full1"]
    assert {session.session_id for session in await rows(SessionRecord.objects.all)} == {"full0", "full1"}
    fakes.gate().open()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
    await until_idle()
    # Its id may be used again, for anything.
    answer = await ask("i1", one("new") | {"message": "other"})
    assert answer.json()["response"] == "a"


async def test_turns_that_wait_count():
    fakes.script([fakes.gate(), "a"])
    running = asyncio.create_task(ask("i0", one()))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", one()))
    await until_status("i1", "queued")
    assert (await ask("i2", one("other"))).content == FULL
    fakes.gate().open()
    assert [answer.status_code for answer in await asyncio.gather(running, waiting)] == [200, 200]


async def test_those_who_join_or_follow_do_not_count():
    fakes.script([fakes.gate(), "a"])
    running = await fill()
    joined = [asyncio.create_task(ask("full0", one("full0"))) for _ in range(3)]
    streams = [Reader(await ask("full1", one("full1", stream=True))) for _ in range(3)]
    follower = Reader(await get("full0/events"))
    assert (await ask("full0", one("full0", background=True))).status_code == 202
    assert (await get("full1")).json()["status"] == "running"
    fakes.gate().open()
    assert [answer.status_code for answer in await asyncio.gather(*running, *joined)] == [200] * 5
    for reader in (*streams, follower):
        assert (await reader.rest()).endswith(b"data: [DONE]\n\n")


async def test_a_stored_answer_is_given_though_all_is_full():
    fakes.script(["stored"], [fakes.gate(), "a"])
    await ask("i1", one())
    running = await fill()
    assert (await ask("i1", one())).json()["response"] == "stored"
    fakes.gate().open()
    await asyncio.gather(*running)


async def test_a_cancelled_run_makes_room():
    fakes.script([fakes.gate(), "a"], [fakes.gate(), "a"], ["b"])
    running = await fill()
    await cancel("full0")
    assert (await running[0]).status_code == 409
    assert (await ask("i1", one("new"))).json()["response"] == "b"
    fakes.gate().open()
    await running[1]


@pytest.mark.parametrize(
    ("steps", "body", "code"),
    [
        (["a"], {}, 200),
        ([RuntimeError("no")], {}, 500),
        (["a"], {"stream": True}, 200),
        ([RuntimeError("no")], {"stream": True}, 200),
        (["a"], {"background": True}, 202),
    ],
)
async def test_every_end_makes_room(steps, body, code):
    fakes.script(steps)
    for _ in range(5):
        response = await ask("", one(**body))
        assert response.status_code == code
        if response.streaming:
            await body_of(response)
        await until_idle()
    assert host._running.value == 0


async def test_what_is_refused_makes_room(settings):
    settings.INVOCATIONS = endpoint(SESSION_MODE="required")
    for _ in range(5):
        assert (await ask("", {"message": "hi"})).status_code == 409
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    for _ in range(5):
        assert (await ask("", one())).status_code == 500
    settings.INVOCATIONS = scripted(ON_BUSY_SESSION="reject")
    fakes.script([fakes.gate(), "a"])
    running = asyncio.create_task(ask("i0", one()))
    await fakes.gate().wait_reached()
    for _ in range(5):
        assert (await ask("", one())).content == b'{"error":"the session is busy"}'
    fakes.gate().open()
    await running
    await until_idle()
    assert host._running.value == 0
