"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from invocations_app import conf
from tests import fakes


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """Settings are read afresh: a test may have changed them without Django's signal."""
    conf.clear_cache()
    yield
    conf.clear_cache()


@pytest.fixture(autouse=True)
def _fresh_fakes() -> Iterator[None]:
    """What agents and gates of one test noted does not reach the next one."""
    fakes.reset()
    yield
    fakes.reset()
