"""A process that is killed between the commit of a turn and its push, and one killed during the run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.processes.asking import Asking, eventually, new
from tests.processes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

# What the admin's action does, once nobody can be sending any more.
SEND_AGAIN = """
from asgiref.sync import async_to_sync
from invocations_app import delivery
from invocations_app.models import InvocationRecord
record = InvocationRecord.objects.get(invocation_id={id!r})
if {waited}:
    InvocationRecord.objects.filter(pk=record.pk).update(delivery_claimed_until=None)
async_to_sync(delivery.resend)(record.pk)
"""


def report(cluster: Cluster, id: str) -> dict[str, Any]:
    query = "SELECT delivery_report FROM invocations_app_invocationrecord WHERE invocation_id = %s"
    [(text,)] = cluster.database.rows(query, id)
    found: dict[str, Any] = json.loads(text)
    return found


def arrived(cluster: Cluster, id: str) -> list[str]:
    return sorted(entry.what for entry in cluster.journal(id))


def send_again(cluster: Cluster, id: str, *, waited: bool) -> None:
    cluster.manage("shell", "--no-imports", "-c", SEND_AGAIN.format(id=id, waited=waited))


async def test_killed_before_the_push_leaves_it_unsent_and_it_can_be_sent_from_elsewhere(
    cluster: Cluster, asking: Asking
) -> None:
    worker, other = cluster.workers("ab")
    gate, name = cluster.gate("push"), new("push")
    gate.arm()
    answer = await asking.post(worker, "first", id=name, path="delivers")
    assert answer.status_code == 202
    await gate.reached()
    await eventually(lambda: arrived(cluster, name) == ["free:succeeded"], "the free push")
    await eventually(lambda: report(cluster, name)["pushed"] == ["free"], "its report")
    worker.kill()
    gate.clear()
    body = await asking.status(other, name, path="delivers")
    assert (body["status"], body["response"]) == ("succeeded", "1|ok")
    unsent = {"pushed": ["free"], "skipped": [], "failed": [], "unsent": ["held"]}
    assert report(cluster, name) == unsent
    send_again(cluster, name, waited=False)
    # It may still be on its way, for all that anybody knows.
    assert (report(cluster, name), arrived(cluster, name)) == (unsent, ["free:succeeded"])
    send_again(cluster, name, waited=True)
    assert report(cluster, name) == {"pushed": ["free", "held"], "skipped": [], "failed": [], "unsent": []}
    assert arrived(cluster, name) == ["free:succeeded", "held:succeeded"]


async def test_killed_during_the_run_is_sent_as_interrupted(cluster: Cluster, asking: Asking) -> None:
    worker, other = cluster.workers("ab")
    gate, name = cluster.gate(new("gate")), new("push")
    assert (await asking.post(worker, f"{name} gate {gate.name}", id=name, path="delivers")).status_code == 202
    await gate.reached()
    worker.kill()

    async def is_interrupted() -> bool:
        return bool((await asking.status(other, name, path="delivers"))["status"] == "interrupted")

    await eventually(is_interrupted, "the interruption")
    assert report(cluster, name)["unsent"] == ["held", "free"]
    send_again(cluster, name, waited=False)
    assert report(cluster, name)["unsent"] == []
    assert [what for what in arrived(cluster, name) if ":" in what] == ["free:interrupted", "held:interrupted"]
