"""The garbage collector rests while many objects are made, and is left as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from invocations_app.exceptions import StoredStateUnreadable
from invocations_app.storage import collecting, snapshots


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def test_it_rests_and_goes_on():
    with collecting.paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with collecting.paused(), collecting.paused():
        pass
    assert not gc.isenabled()


def test_it_goes_on_when_the_last_of_several_threads_is_done():
    reached, go = threading.Event(), threading.Event()

    def other() -> None:
        with collecting.paused():
            reached.set()
            go.wait()

    thread = threading.Thread(target=other)
    with collecting.paused():
        thread.start()
        reached.wait()
    assert not gc.isenabled()
    go.set()
    thread.join()
    assert gc.isenabled()


def test_it_goes_on_after_a_failure():
    state = snapshots.dump(snapshots.AgentSession(session_id="x"), snapshots.History()).state
    state = state.replace('"history":{}', '"history":{"a":1}')
    with pytest.raises(StoredStateUnreadable):
        snapshots.load(state, [snapshots.MessageRow("a", 0, "user", "broken")])
    assert gc.isenabled()
