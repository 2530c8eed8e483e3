"""The steps of a run between its first and its last moment: calls and results, as a record keeps them.

JSON ``[[kind, name, milliseconds], …]``: what, of which tool or executor, and when
after the begin; null where a run tells the order only. Names, and nothing that was said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

#: Steps of one run that are kept: its first ones.
KEPT = 200
_MAX_NAME_CHARACTERS = 200

Kind: TypeAlias = Literal["call", "result", "invoked", "completed"]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a run.

    Attributes:
        kind: ``call`` and ``result`` of a tool, ``invoked`` and ``completed`` of an executor.
        name: Name of the tool, id of the executor.
        milliseconds: Time since the begin; None where it is not known.
    """

    kind: Kind
    name: str
    milliseconds: int | None = None


class Steps:
    """The steps of one run, as they are taken."""

    def __init__(self) -> None:
        self._taken: list[tuple[Kind, str, datetime | None]] = []

    def take(self, kind: Kind, name: str, at: datetime | None) -> None:
        """Note a step.

        Args:
            kind: What it is.
            name: Name of the tool, id of the executor.
            at: When; None where only the order is known.
        """
        if len(self._taken) < KEPT:
            self._taken.append((kind, name[:_MAX_NAME_CHARACTERS], at))

    def text(self, begun_at: datetime) -> str:
        """Return the steps as a record keeps them; empty for none.

        Args:
            begun_at: When the invocation was begun.
        """
        if not self._taken:
            return ""
        rows = [
            (kind, name, None if at is None else max(0, round((at - begun_at).total_seconds() * 1000)))
            for kind, name, at in self._taken
        ]
        return json.dumps(rows, separators=(",", ":"))


def read(text: str) -> list[Step]:
    """Return the steps that a record keeps; none of what cannot be read.

    Args:
        text: The column.
    """
    try:
        return [Step(kind, str(name), milliseconds) for kind, name, milliseconds in json.loads(text or "[]")]
    except (TypeError, ValueError):
        return []
