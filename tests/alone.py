"""Transactions one by one, by the code that knows every case: for tests that hold or break one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from invocations_app.storage import endings, groups, turns
from invocations_app.storage.grouping import NotSwift


def _not_swift(*args: Any) -> Any:
    raise NotSwift


def go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do every begin and commit alone."""
    for group in (groups._begins, groups._commits):
        monkeypatch.setattr(group, "_swift", _not_swift)
        monkeypatch.setattr(group, "_at_once", None)


def replace_begin(monkeypatch: pytest.MonkeyPatch, begin: Callable[..., Any]) -> None:
    """Begin turns by another function, on the database thread."""
    go_alone(monkeypatch)
    monkeypatch.setattr(turns, "begin_now", begin)


def replace_commit(monkeypatch: pytest.MonkeyPatch, commit: Callable[..., Any]) -> None:
    """Commit turns by another function, on the database thread."""
    go_alone(monkeypatch)
    monkeypatch.setattr(endings, "commit_now", commit)
