"""Imports that the framework does within its functions, without an exception for each.

It does some twenty a turn, to keep its modules from importing each other in a
circle. Of every module that is imported from, Python asks for its ``__path__``,
to know a package by it. Up to Python 3.11 the answer that there is none is an
exception with a text, made twice and thrown away: most of what such an import
costs. A module may be of a class of its own ("Customizing module attribute
access" in Python's reference); with the plain look-up of any other object
Python asks without an exception, as later Pythons do of all modules.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

# Later Pythons ask without an exception.
_IS_DEAR = sys.version_info < (3, 12)

_PACKAGE = "agent_framework"


class _Module(ModuleType):
    """A module whose attributes are looked up as those of any object: it has no ``__getattr__`` of its own."""

    __getattribute__ = object.__getattribute__


# What is not there is told by the name of the class.
_Module.__name__ = "module"


class Imports:
    """Makes imports from the framework's modules cheap, for as long as it is told to."""

    def __init__(self) -> None:
        self._changed: list[Any] = []

    def quicken(self) -> None:
        """Begin, with the modules that are imported by now."""
        if not _IS_DEAR:
            return
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{_PACKAGE}.") and type(module) is ModuleType and not _is_left_alone(module):
                module.__class__ = _Module
                self._changed.append(module)

    def release(self) -> None:
        """Leave the modules as they were; harmless when done before."""
        for module in self._changed:
            its_class: type = type(module)
            if its_class is _Module:
                module.__class__ = ModuleType
        self._changed.clear()


def _is_left_alone(module: ModuleType) -> bool:
    """Return whether a module answers by itself for what it has not, or is a package, which has its path."""
    return not {"__getattr__", "__path__"}.isdisjoint(vars(module))
