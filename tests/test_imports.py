"""Imports that the framework does within its functions, in a server process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import django.http
import pytest
from agent_framework import Message
from django.test import override_settings

from invocations_app.lifespan import imports
from invocations_app.lifespan.imports import Imports
from tests.test_lifespan import MANAGED, Server

TYPES = importlib.import_module("agent_framework._types")
ANSWERS_ITSELF = importlib.import_module("agent_framework._workflows._runner")
PACKAGE = importlib.import_module("agent_framework")


class Own(ModuleType):
    """What somebody else has made of a module."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imports]:
    """Imports are cheap, on whatever Python this is."""
    monkeypatch.setattr(imports, "_IS_DEAR", True)
    made = Imports()
    made.quicken()
    yield made
    made.release()


def is_quick(module: ModuleType) -> bool:
    return type(module).__getattribute__ is object.__getattribute__


@pytest.mark.usefixtures("quick")
def test_modules_of_the_framework_look_up_their_attributes_as_any_object_does():
    assert is_quick(TYPES)
    assert is_quick(sys.modules["agent_framework._tools"])
    assert isinstance(TYPES, ModuleType)


@pytest.mark.usefixtures("quick")
def test_imports_find_what_they_found():
    within: dict[str, object] = {"__name__": "agent_framework._agents", "__package__": "agent_framework"}
    exec("def one():\n    from ._types import Message\n    return Message", within)  # noqa: S102
    assert within["one"]() is Message  # type: ignore[operator]
    with pytest.raises(ImportError, match="^cannot import name 'nothing' from 'agent_framework._types' "):
        from agent_framework._types import nothing  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.usefixtures("quick")
def test_what_a_module_has_not_is_told():
    assert not hasattr(TYPES, "nothing")
    with pytest.raises(AttributeError, match="^'module' object has no attribute 'nothing'$"):
        _ = TYPES.nothing


@pytest.mark.usefixtures("quick")
def test_what_answers_by_itself_is_left_alone():
    assert type(PACKAGE) is ModuleType
    assert type(ANSWERS_ITSELF) is ModuleType
    with pytest.raises(AttributeError):
        _ = ANSWERS_ITSELF.nothing


@pytest.mark.usefixtures("quick")
def test_modules_of_others_are_left_alone():
    assert type(django.http) is ModuleType
    assert type(sys.modules["invocations_app.conf"]) is ModuleType


def test_the_end_leaves_them_as_they_were(quick):
    quick.release()
    assert type(TYPES) is ModuleType
    with pytest.raises(AttributeError, match="^module 'agent_framework._types' has no attribute 'nothing'$"):
        _ = TYPES.nothing


def test_a_class_that_somebody_else_has_given_stays(quick):
    quick.release()
    TYPES.__class__ = Own
    try:
        quick.quicken()
        assert type(TYPES) is Own
        quick.release()
        assert type(TYPES) is Own
        TYPES.__class__ = ModuleType
        quick.quicken()
        TYPES.__class__ = Own
        quick.release()
        assert type(TYPES) is Own
    finally:
        TYPES.__class__ = ModuleType


def test_a_python_that_asks_without_an_exception_is_left_alone(monkeypatch):
    monkeypatch.setattr(imports, "_IS_DEAR", False)
    made = Imports()
    made.quicken()
    assert type(TYPES) is ModuleType


@pytest.mark.parametrize("is_on", [True, False])
async def test_it_lasts_from_the_start_to_the_end_of_a_server(monkeypatch, is_on):
    monkeypatch.setattr(imports, "_IS_DEAR", True)
    host = {"QUICK_IMPORTS": is_on, "GC_FREEZE": False}
    with override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST=host):
        server = Server()
        await server.tell("lifespan.startup")
        assert is_quick(TYPES) is is_on
        await server.tell("lifespan.shutdown")
        await server.task
        assert type(TYPES) is ModuleType
