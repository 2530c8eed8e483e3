"""When the garbage collector goes over what there is, in a server process."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from invocations_app.lifespan import collector
from invocations_app.lifespan.collector import Collector

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="full rounds are made of small steps")

OWN = (700, 10, 3)


class Cycle:
    """What only the collector ends."""

    def __init__(self) -> None:
        self.me = self


class Server:
    """Says what runs, and looks for a moment every few milliseconds."""

    def __init__(self) -> None:
        self.is_busy = True
        self._started: list[Collector] = []

    def start(self, defer_seconds: float = 60.0, young_objects: int = 0) -> Collector:
        made = Collector(
            freeze=False, young_objects=young_objects, defer_seconds=defer_seconds, is_busy=lambda: self.is_busy
        )
        made.start()
        self._started.append(made)
        return made

    def stop(self) -> None:
        for made in self._started:
            made.stop()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(collector, "_LOOK_SECONDS", 0.005)
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(*OWN)
    server = Server()
    yield server
    server.stop()
    gc.set_threshold(*before)


def old_garbage(further_rounds: int = OWN[2]) -> Callable[[], object]:
    """Make garbage that only a full round finds, and let smaller ones pass: so many that Python would make one."""
    cycle = Cycle()
    gc.collect(1)
    found = weakref.ref(cycle)
    del cycle
    for _ in range(further_rounds):
        gc.collect(1)
    return found


async def some_looks() -> None:
    await asyncio.sleep(0.05)


async def test_a_full_round_waits_while_something_runs(server: Server) -> None:
    server.start()
    found = old_garbage()
    await some_looks()
    assert found() is not None
    server.is_busy = False
    await some_looks()
    assert found() is None


async def test_it_waits_only_so_long(server: Server) -> None:
    server.start(defer_seconds=0.2)
    found = old_garbage()
    await some_looks()
    assert found() is not None
    await asyncio.sleep(0.3)
    assert found() is None


async def test_what_python_would_not_look_at_yet_is_left(server: Server) -> None:
    server.is_busy = False
    server.start()
    gc.collect()
    found = old_garbage(further_rounds=0)
    await some_looks()
    assert found() is not None


async def test_the_rounds_for_young_objects_stay_as_they_are_where_python_decides(server: Server) -> None:
    server.start(young_objects=0)
    assert gc.get_threshold() == (*OWN[:2], 300)


@pytest.mark.parametrize(("pythons", "full"), [((700, 10, 10), 1), ((2000, 10, 10), 2)])
async def test_fewer_rounds_for_young_objects_and_full_ones_after_as_many_as_before(
    server: Server, pythons: tuple[int, int, int], full: int
) -> None:
    gc.set_threshold(*pythons)
    made = server.start(young_objects=10_000, defer_seconds=0)
    assert gc.get_threshold() == (10_000, 10, full)
    made.stop()
    assert gc.get_threshold() == pythons
    server.start(young_objects=10_000)
    assert gc.get_threshold() == (10_000, 10, 21)


async def test_a_full_round_is_due_after_as_many_objects_whatever_the_short_ones_are(server: Server) -> None:
    server.is_busy = False
    server.start(young_objects=OWN[0] * OWN[2] + 1)
    gc.collect()
    found = old_garbage(further_rounds=0)
    await some_looks()
    assert found() is None


@pytest.mark.parametrize("own", [(0, 10, 10), (50_000, 10, 10), (699, 10, 10)])
async def test_a_site_that_has_chosen_its_own_rounds_for_young_objects_keeps_them(
    server: Server, own: tuple[int, int, int]
) -> None:
    gc.set_threshold(*own)
    server.start(young_objects=10_000, defer_seconds=0)
    assert gc.get_threshold() == own


async def test_full_rounds_that_a_site_has_switched_off_stay_off(server: Server) -> None:
    gc.set_threshold(700, 10, 0)
    server.start(young_objects=10_000)
    assert gc.get_threshold() == (10_000, 10, 0)


async def test_python_decides_where_nothing_is_to_wait(server: Server) -> None:
    server.start(defer_seconds=0)
    assert gc.get_threshold() == OWN
    server.is_busy = False
    found = old_garbage()
    await some_looks()
    assert found() is not None


async def test_a_collector_that_is_off_stays_off(server: Server) -> None:
    server.is_busy = False
    server.start()
    found = old_garbage()
    gc.disable()
    try:
        await some_looks()
        assert found() is not None
    finally:
        gc.enable()


@pytest.mark.parametrize("own", [(700, 10, 0), (700, 10, 1000)])
async def test_a_site_that_has_chosen_its_own_keeps_it(server: Server, own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    server.start()
    assert gc.get_threshold() == own


async def test_the_end_leaves_it_as_it_was(server: Server) -> None:
    made = server.start()
    made.stop()
    assert gc.get_threshold() == OWN
    server.is_busy = False
    found = old_garbage()
    await some_looks()
    assert found() is not None
