"""Sessions of workflows: what a turn goes on from, what it leaves, and what cannot be used."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from invocations_app.isolation import Scope
from invocations_app.models import CheckpointRecord, SessionRecord
from invocations_app.runs import workflow_checkpoints
from invocations_app.storage import OrmCheckpointStorage
from invocations_app.storage.checkpoints import KEPT
from tests import fakes
from tests.client import endpoint, post, records, rows
from tests.durable import ask, body_of, until_idle
from tests.workflow_fakes import Approval

pytestmark = pytest.mark.django_db(transaction=True)

FAKES = "tests.workflow_fakes."
ROOT = Path(__file__).resolve().parent.parent
UNUSABLE = b'{"error":"the stored workflow state cannot be used"}'


def use(settings: Any, name: str, **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=FAKES + name, **keys)


async def checkpoints() -> list[CheckpointRecord]:
    return await rows(lambda: CheckpointRecord.objects.order_by("pk"))


async def count(session_id: str = "s1", message: str = "x", **headers: str) -> str:
    response = await post({"message": message, "session_id": session_id}, headers=headers or None)
    assert response.status_code == 200, response.content
    text: str = response.json()["response"]
    return text


# What a turn goes on from.


async def test_each_turn_goes_on_from_the_latest_checkpoint_plain_and_streamed(settings):
    use(settings, "build_counting")
    assert [await count() for _ in range(2)] == ["x 1", "x 2"]
    body = {"message": "y", "session_id": "s1", "stream": True}
    assert await body_of(await post(body)) == b"data: y 3\n\ndata: [DONE]\n\n"
    assert await count() == "x 4"
    (session,) = await rows(SessionRecord.objects.all)
    assert (session.version, session.state, session.claimed_by) == (4, "", None)
    # The workflow that ran was a fresh one each time.
    assert len({id(built) for built in fakes.built[-4:]}) == 4


async def test_both_dialects_share_a_session(settings):
    use(settings, "build_counting")
    await count()
    response = await post({"message": "y"}, "/invocations?agent_session_id=s1")
    assert response.json()["output"][0]["data"] == "y 2"


async def test_sessions_users_and_endpoints_never_meet(settings):
    mine = endpoint(TARGET=FAKES + "build_counting", TRUST_ISOLATION_HEADERS=True)
    settings.INVOCATIONS = mine | {"other": mine["default"] | {"PATH": "other"}}
    key = "x-agent-user-isolation-key"
    assert [await count(**{key: user}) for user in ("alice", "bob", "alice")] == ["x 1", "x 1", "x 2"]
    assert await count("s2", **{key: "alice"}) == "x 1"
    chat = {key: "alice", "x-agent-chat-isolation-key": "c1"}
    assert await count(**chat) == "x 1"
    response = await post({"message": "x", "session_id": "s1"}, "/other/invoke", headers={key: "alice"})
    assert response.json()["response"] == "x 1"


async def test_without_a_session_nothing_is_kept(settings):
    use(settings, "build_counting", SESSION_MODE="disabled")
    assert [await count(), await count()] == ["x 1", "x 1"]
    assert await checkpoints() == []
    assert await rows(SessionRecord.objects.all) == []


async def test_agents_inside_remember(settings):
    use(settings, "build_speaking")
    fakes.script(["hello"])
    for message in ("a", "b"):
        assert await count(message=message) == "hello"
    assert fakes.calls[1].texts == [("user", "a"), ("assistant", "hello"), ("user", "b")]


_TURN_IN_A_NEW_PROCESS = """
import asyncio, sys, django
import tests.settings as s
s.INVOCATIONS["default"] = {"TARGET": "tests.workflow_fakes." + sys.argv[2],
    "CHECKPOINT_TYPES": ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]}
django.setup()
from django.db import connections
connections["default"].settings_dict["NAME"] = sys.argv[1]
from tests.client import post
async def main():
    import json
    print((await post(json.loads(sys.argv[3]))).content.decode())
asyncio.run(main())
"""


async def in_a_new_process(name: str, body: dict[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", _TURN_IN_A_NEW_PROCESS),
        *(str(connection.settings_dict["NAME"]), name, json.dumps(body)),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    out, _ = await process.communicate()
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_turn_goes_on_after_a_restart(settings):
    use(settings, "build_counting")
    await count()
    answer = await in_a_new_process("build_counting", {"message": "y", "session_id": "s1"})
    assert answer == {"response": "y 2", "session_id": "s1"}
    assert await count() == "x 3"


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_what_is_pending_is_answered_after_a_restart(settings):
    types = ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]
    use(settings, "build_asking", CHECKPOINT_TYPES=types)
    await post({"message": "a", "session_id": "s1"})
    body = {"responses": {"a-1": {"approved": True}}, "session_id": "s1"}
    assert await in_a_new_process("build_asking", body) == {"response": "a: yes of 1", "session_id": "s1"}


# What a turn leaves.


async def test_the_last_checkpoints_of_a_session_are_kept(settings):
    use(settings, "build_counting")
    for turn in range(8):
        assert await count() == f"x {turn + 1}"
    kept = await checkpoints()
    assert len(kept) == KEPT
    ids = [item.pk for item in await records()]
    assert [row.invocation_id for row in kept] == [pk for pk in ids[-5:] for _ in range(2)]
    assert {row.workflow_name for row in kept} == {"counting"}


async def test_a_turn_of_many_supersteps_leaves_room_for_the_one_before(settings):
    use(settings, "build_supersteps")
    await post({"message": "a", "session_id": "s1"})
    assert await count(message="abcdefghijklmnop") == "abcdefghijklmnop"
    first, second = [record.pk for record in await records()]
    assert [row.invocation_id for row in await checkpoints()] == [first] + [second] * (KEPT - 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failed_turn_leaves_none(settings, stream):
    use(settings, "build_counting")
    await count()
    before = [row.pk for row in await checkpoints()]
    await until_idle()
    response = await post({"message": "break", "session_id": "s1", "stream": stream})
    if stream:
        await body_of(response)
    assert [row.pk for row in await checkpoints()] == before
    assert await count() == "x 2"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_type_that_is_not_allowed_fails_this_turn(settings, stream):
    use(settings, "build_counting")
    await count()
    fakes.switches["state"] = {"approval": Approval(approved=True)}
    response = await post({"message": "x", "session_id": "s1", "stream": stream})
    if stream:
        assert await body_of(response) == b"data: x 2\n\nevent: error\ndata: Workflow invocation failed.\n\n"
    else:
        assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')
    fakes.switches.clear()
    assert await count() == "x 2"


async def test_a_type_that_only_an_earlier_checkpoint_holds_fails_this_turn_too(settings):
    # The input is in flight in the first checkpoint, and gone in the last one.
    use(settings, "build_orders")
    response = await post({"input": {"item": "tea"}, "session_id": "s1"})
    assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')
    use(settings, "build_orders", CHECKPOINT_TYPES=["tests.workflow_fakes:Order"])
    assert (await post({"input": {"item": "tea"}, "session_id": "s1"})).status_code == 200


async def test_an_allowed_type_is_kept(settings):
    use(settings, "build_counting", CHECKPOINT_TYPES=["tests.workflow_fakes:Approval"])
    fakes.switches["state"] = {"approval": Approval(approved=True)}
    assert [await count(), await count()] == ["x 1", "x 2"]


async def test_what_cannot_be_encoded_fails_this_turn(settings):
    use(settings, "build_counting")
    fakes.switches["state"] = {"lambda": lambda: None}
    response = await post({"message": "x", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, b'{"error":"Workflow invocation failed."}')
    assert await checkpoints() == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_whose_last_checkpoint_was_not_saved_fails(settings, stream):
    use(settings, "build_counting")
    fakes.switches["unsavable"] = 1
    response = await post({"message": "x", "session_id": "s1", "stream": stream})
    content = await body_of(response) if stream else response.content
    assert b"Workflow invocation failed." in content
    assert b"[DONE]" not in content
    assert await checkpoints() == []


# What cannot be used.


async def test_a_checkpoint_of_another_graph_is_a_conflict(settings, caplog):
    use(settings, "build_changing")
    await count()
    fakes.switches["graph"] = True
    for stream in (True, False):
        response = await post({"message": "x", "session_id": "s1", "stream": stream})
        assert (response.status_code, response.content) == (409, UNUSABLE)
    assert [record.error_code for record in await records()][1:] == ["invalid_checkpoint"] * 2
    latest = (await checkpoints())[-1].checkpoint_id
    assert f"The checkpoint {latest} of the workflow counting cannot be used: it is of another graph." in caplog.text
    fakes.switches.clear()
    assert await count() == "x 2"


async def test_work_in_flight_is_refused_and_not_replayed(settings, caplog):
    use(settings, "build_counting")
    await count()
    storage = OrmCheckpointStorage(Scope("default"), "s1")
    entry, last = await storage.list_checkpoints(workflow_name="counting")
    assert entry.messages
    assert not last.messages
    await storage.delete(last.checkpoint_id)
    before = len(fakes.notes)
    response = await ask("i1", {"message": "keys", "session_id": "s1"})
    assert (response.status_code, response.content) == (409, UNUSABLE)
    assert len(fakes.notes) == before
    assert "cannot be used: it is in the midst of work." in caplog.text


async def test_an_executor_that_cannot_be_restored_is_a_conflict(settings):
    use(settings, "build_counting")
    await count()
    fakes.switches["unrestorable"] = True
    response = await post({"message": "x", "session_id": "s1"})
    assert (response.status_code, response.content) == (409, UNUSABLE)


async def test_a_checkpoint_that_cannot_be_read_is_an_error(settings, caplog):
    use(settings, "build_counting", CHECKPOINT_TYPES=["tests.workflow_fakes:Approval"])
    fakes.switches["state"] = {"approval": Approval(approved=True)}
    await count()
    use(settings, "build_counting")
    response = await post({"message": "x", "session_id": "s1"})
    assert (response.status_code, response.content) == (500, b'{"error":"the stored session cannot be read"}')
    assert "The latest checkpoint of the session with the key digest" in caplog.text
    assert "s1" not in caplog.text.replace("sessions", "")


async def test_a_restore_that_yields_nothing_is_a_warning(settings, caplog):
    class Silent:
        name = "silent"

        def run(self, **arguments: Any) -> Any:
            async def nothing() -> Any:
                for event in ():
                    yield event

            return nothing()

    use(settings, "build_counting")
    await count()
    latest = await OrmCheckpointStorage(Scope("default"), "s1").get_latest(workflow_name="counting")
    assert latest is not None
    silent: Any = Silent()
    await workflow_checkpoints.restore(silent, latest)
    (record,) = [item for item in caplog.records if "yielded nothing" in item.getMessage()]
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        f"Restoring the workflow silent from the checkpoint {latest.checkpoint_id} yielded nothing.",
    )


async def test_a_restore_runs_no_executor_and_keeps_the_lineage(settings):
    use(settings, "build_counting")
    await count()
    await count()
    storage = OrmCheckpointStorage(Scope("default"), "s1")
    saved = await storage.list_checkpoints(workflow_name="counting")
    assert [item.previous_checkpoint_id for item in saved] == [None, *(item.checkpoint_id for item in saved[:-1])]
