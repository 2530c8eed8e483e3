"""Session modes, by the setting and by the run hook: what is required, loaded and stored."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from invocations_app.envelope import Invocation
from invocations_app.models import InvocationRecord, SessionRecord
from tests import fakes
from tests.client import endpoint, post, rows
from tests.durable import ask, body_of, scripted, until_status

pytestmark = pytest.mark.django_db(transaction=True)

MODES = ("auto", "required", "disabled")
_set: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _no_mode_left() -> Iterator[None]:
    _set.clear()
    yield
    _set.clear()


async def set_mode(invocation: Invocation, **kwargs: Any) -> Invocation:
    return dataclasses.replace(invocation, **_set)


def cases() -> Iterator[tuple[str, str | None, str | None, str]]:
    """Yield setting, hook's mode, session id given, and the mode that holds."""
    for setting in MODES:
        for hook in (None, *MODES):
            for session_id in ("s1", None, ""):
                yield setting, hook, session_id, hook or setting


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("setting", "hook", "session_id", "mode"), list(cases()))
async def test_the_hooks_mode_holds_and_else_the_settings(settings, setting, hook, session_id, mode, stream):
    settings.INVOCATIONS = endpoint(SESSION_MODE=setting, RUN_HOOK="tests.test_session_modes.set_mode")
    if hook is not None:
        _set["session_mode"] = hook
    response = await post({"message": "a", "session_id": session_id, "stream": stream})
    stored = [session.session_id for session in await rows(SessionRecord.objects.all)]
    recorded = [record.session_id for record in await rows(InvocationRecord.objects.all)]
    if mode == "required" and not session_id:
        assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')
        assert (stored, recorded, fakes.calls) == ([], [], [])
        return
    is_used = bool(session_id) and mode != "disabled"
    assert response.headers.get("x-agent-session-id") == ("s1" if is_used else None)
    if stream:
        assert await body_of(response) == b"data: a\n\ndata: [DONE]\n\n"
    else:
        assert response.json() == {"response": "a", "session_id": None if mode == "disabled" else session_id}
    assert stored == (["s1"] if is_used else [])
    recorded = [record.session_id for record in await rows(InvocationRecord.objects.all)]
    assert recorded == [None if mode == "disabled" else session_id]


async def test_a_disabled_turn_neither_loads_nor_changes_what_is_stored(settings):
    settings.INVOCATIONS = endpoint(RUN_HOOK="tests.test_session_modes.set_mode")
    body = {"message": "a", "session_id": "s1"}
    await post(body)
    before = await rows(SessionRecord.objects.values)
    _set["session_mode"] = "disabled"
    await post(body)
    assert fakes.calls[-1].texts == [("user", "a")]
    assert await rows(SessionRecord.objects.values) == before
    _set.clear()
    await post(body)
    assert fakes.calls[-1].texts == [("user", "a"), ("assistant", "a"), ("user", "a")]


async def test_a_disabled_turn_does_not_wait_for_the_session(settings):
    settings.INVOCATIONS = scripted(RUN_HOOK="tests.test_session_modes.set_mode")
    fakes.script([fakes.gate(), "first"], ["second"])
    first = asyncio.ensure_future(ask("i1", {"message": "a", "session_id": "s1"}))
    await fakes.gate().wait_reached()
    _set["session_mode"] = "disabled"
    second = await ask("i2", {"message": "b", "session_id": "s1"})
    assert second.json() == {"response": "second", "session_id": None}
    await until_status("i1", "running")
    fakes.gate().open()
    assert (await first).json() == {"response": "first", "session_id": "s1"}
