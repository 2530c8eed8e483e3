"""On PostgreSQL a process hears of what is new in another one, by one connection of its own."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.processes.asking import Asking, cut, eventually, new, without_ids
from tests.processes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

_LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %%'"


@pytest.fixture
def listening(request: pytest.FixtureRequest) -> Cluster:
    """The processes on PostgreSQL: nothing else can tell them."""
    cluster: Cluster = request.getfixturevalue("postgresql")
    return cluster


async def test_a_follower_elsewhere_listens_on_one_connection_and_is_woken(listening: Cluster, asking: Asking) -> None:
    worker, other = listening.workers("ab")
    name = new("turn")
    stream = await asking.open(worker, f"{name} words 40 0.05", id=name)
    await stream.events(1)
    followers = [await asking.follow(other, name) for _ in range(5)]
    for follower in followers:
        await follower.events(1)
    await eventually(lambda: len(listening.database.rows(_LISTENERS)) == 1, "one who listens")
    # Whoever listens looks by itself every 2 seconds only: what comes sooner was told.
    waited = []
    for count in range(2, 6):
        since = time.monotonic()
        await followers[0].events(count * 3)
        waited.append(time.monotonic() - since)
    assert max(waited) < 1.5
    posted = await stream.rest()
    for follower in followers:
        assert without_ids(await follower.rest()) == posted


async def test_followers_poll_while_the_listening_connection_is_lost(listening: Cluster, asking: Asking) -> None:
    worker, other = listening.workers("ab")
    name = new("turn")
    stream = await asking.open(worker, f"{name} words 40 0.05", id=name)
    await stream.events(1)
    follower = await asking.follow(other, name)
    await follower.events(1)
    await eventually(lambda: len(listening.database.rows(_LISTENERS)) == 1, "one who listens")
    listening.database.rows(f"SELECT pg_terminate_backend(pid) FROM ({_LISTENERS}) AS found")
    posted = await stream.rest()
    assert without_ids(await asyncio.wait_for(follower.rest(), 10)) == posted
    assert len(cut(posted)) == 42
