"""Upstream's ``CheckpointStorage`` on the ORM: the protocol, its scope, and the encoding that it stands on."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from agent_framework import (
    CheckpointStorage,
    InMemoryCheckpointStorage,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowEvent,
)
from agent_framework._workflows import _checkpoint_encoding

from invocations_app.isolation import Scope
from invocations_app.models import CheckpointRecord
from invocations_app.storage import OrmCheckpointStorage, checkpoint_encoding
from invocations_app.storage.checkpoints import KEPT
from tests.client import endpoint, post, rows
from tests.workflow_fakes import Approval, build_counting

pytestmark = pytest.mark.django_db(transaction=True)

SCOPE = Scope("default", "user:1", "chat")


def checkpoint(name: str = "flow", number: int = 0, **state: Any) -> WorkflowCheckpoint:
    return WorkflowCheckpoint(name, "hash", checkpoint_id=f"{name}-{number}", state=state, iteration_count=number)


@pytest.fixture(params=["orm", "upstream"])
def storage(request: pytest.FixtureRequest) -> CheckpointStorage:
    return OrmCheckpointStorage(SCOPE, "s1") if request.param == "orm" else InMemoryCheckpointStorage()


async def test_what_is_saved_is_loaded_as_a_copy(storage):
    saved = checkpoint(turns=[1, (2, 3)], more={"a": None})
    assert await storage.save(saved) == "flow-0"
    saved.state["turns"].append(4)
    loaded = await storage.load("flow-0")
    assert loaded.timestamp == saved.timestamp
    assert loaded.state == {"turns": [1, (2, 3)], "more": {"a": None}}
    assert (await storage.load("flow-0")) is not loaded


async def test_what_is_not_there_is_an_error(storage):
    with pytest.raises(WorkflowCheckpointException, match=r"^No checkpoint found with ID flow-0$"):
        await storage.load("flow-0")
    assert await storage.delete("flow-0") is False
    assert await storage.get_latest(workflow_name="flow") is None
    assert await storage.list_checkpoints(workflow_name="flow") == []


async def test_each_workflow_has_its_own(storage):
    for name, number in (("flow", 1), ("other", 1), ("flow", 2)):
        await storage.save(checkpoint(name, number))
    assert await storage.list_checkpoint_ids(workflow_name="flow") == ["flow-1", "flow-2"]
    assert [item.iteration_count for item in await storage.list_checkpoints(workflow_name="flow")] == [1, 2]
    latest = await storage.get_latest(workflow_name="other")
    assert latest is not None
    assert latest.checkpoint_id == "other-1"


async def test_the_latest_is_the_one_saved_last(storage):
    for number in (1, 2):
        await storage.save(checkpoint(number=number))
    latest = await storage.get_latest(workflow_name="flow")
    assert latest is not None
    assert latest.checkpoint_id == "flow-2"
    assert await storage.delete("flow-2") is True
    assert (await storage.get_latest(workflow_name="flow")).checkpoint_id == "flow-1"


async def test_an_id_that_is_saved_again_is_replaced(storage):
    await storage.save(checkpoint(turns=1))
    await storage.save(checkpoint(turns=2))
    assert await storage.list_checkpoint_ids(workflow_name="flow") == ["flow-0"]
    assert (await storage.load("flow-0")).state == {"turns": 2}


def test_the_protocol_is_upstreams():
    for name, method in inspect.getmembers(CheckpointStorage, inspect.isfunction):
        if not name.startswith("_"):
            mine = inspect.signature(getattr(OrmCheckpointStorage, name))
            assert list(mine.parameters) == list(inspect.signature(method).parameters)


@pytest.mark.parametrize(
    "other",
    [
        (Scope("other", "user:1", "chat"), "s1"),
        (Scope("default", "user:2", "chat"), "s1"),
        (Scope("default", "user:1", ""), "s1"),
        (SCOPE, "s2"),
    ],
)
async def test_no_other_scope_or_session_meets_it(other):
    mine, others = OrmCheckpointStorage(SCOPE, "s1"), OrmCheckpointStorage(*other)
    await mine.save(checkpoint())
    assert await others.get_latest(workflow_name="flow") is None
    assert await others.list_checkpoint_ids(workflow_name="flow") == []
    assert await others.delete("flow-0") is False
    with pytest.raises(WorkflowCheckpointException):
        await others.load("flow-0")
    await others.save(checkpoint(turns=5))
    assert (await mine.load("flow-0")).state == {}


async def test_the_last_ten_of_a_session_are_kept():
    storage = OrmCheckpointStorage(SCOPE, "s1")
    for number in range(KEPT + 3):
        await storage.save(checkpoint(number=number))
    assert await storage.list_checkpoint_ids(workflow_name="flow") == [f"flow-{number}" for number in range(3, 13)]


def test_a_session_id_is_needed():
    with pytest.raises(ValueError, match=r"^session_id must be a non-empty string$"):
        OrmCheckpointStorage(SCOPE, "")


async def test_types_are_those_of_the_endpoint(settings):
    storage = OrmCheckpointStorage(Scope("default"), "s1")
    with pytest.raises(WorkflowCheckpointException, match=r"tests\.workflow_fakes:Approval"):
        await storage.save(checkpoint(approval=Approval(approved=True)))
    settings.INVOCATIONS = endpoint(CHECKPOINT_TYPES=["tests.workflow_fakes:Approval"])
    await storage.save(checkpoint(approval=Approval(approved=True)))
    assert (await storage.load("flow-0")).state == {"approval": Approval(approved=True)}
    settings.INVOCATIONS = endpoint()
    with pytest.raises(WorkflowCheckpointException, match=r"tests\.workflow_fakes:Approval"):
        await storage.load("flow-0")


async def test_a_workflow_runs_on_it_outside_a_request():
    storage = OrmCheckpointStorage(SCOPE, "s1")
    await build_counting().run("a", checkpoint_storage=storage)
    latest = await storage.get_latest(workflow_name="counting")
    assert latest is not None
    fresh = build_counting()
    await fresh.run(checkpoint_id=latest.checkpoint_id, checkpoint_storage=storage)
    assert (await fresh.run("b", checkpoint_storage=storage)).get_outputs() == ["b 2"]


async def test_it_sees_what_turns_left(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.workflow_fakes.build_counting")
    await post({"message": "x", "session_id": "s1"})
    latest = await OrmCheckpointStorage(Scope("default"), "s1").get_latest(workflow_name="counting")
    assert latest is not None
    assert latest.state["_executor_state"] == {"counting": {"turns": 1}}


async def test_rows_are_ascii_text():
    await OrmCheckpointStorage(SCOPE, "s1").save(checkpoint(text="é\x00\ud800"))
    (row,) = await rows(CheckpointRecord.objects.all)
    assert row.payload.isascii()
    assert json.loads(row.payload)["state"] == {"text": "é\x00\ud800"}


# The encoding, which the framework does not export.


def test_the_private_encoding_is_as_it_was():
    assert list(inspect.signature(_checkpoint_encoding.encode_checkpoint_value).parameters) == ["value"]
    decode = inspect.signature(_checkpoint_encoding.decode_checkpoint_value).parameters
    assert list(decode) == ["value", "allowed_types"]
    assert decode["allowed_types"].kind is inspect.Parameter.KEYWORD_ONLY
    assert _checkpoint_encoding.encode_checkpoint_value({"a": [1, None]}) == {"a": [1, None]}
    encoded = _checkpoint_encoding.encode_checkpoint_value((1, 2))
    assert sorted(encoded) == ["__pickled__", "__type__"]
    assert _checkpoint_encoding.decode_checkpoint_value(encoded, allowed_types=frozenset()) == (1, 2)


def test_without_a_list_nothing_but_the_frameworks_is_read():
    encoded = checkpoint_encoding.encode_value(Approval(approved=True))
    with pytest.raises(WorkflowCheckpointException, match="blocked"):
        checkpoint_encoding.decode_value(encoded, ())
    event = WorkflowEvent.request_info("1", "x", "data", list[str])
    decoded = checkpoint_encoding.decode_value(checkpoint_encoding.encode_value(event), ())
    assert decoded.response_type == list[str]


@pytest.mark.parametrize("payload", ["", "{}", "[]", "null", '{"workflow_name":"x"}', '{"a":'])
def test_what_is_no_checkpoint_cannot_be_read(payload):
    with pytest.raises(WorkflowCheckpointException):
        checkpoint_encoding.decode(payload, ())
