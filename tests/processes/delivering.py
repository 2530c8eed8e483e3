"""An endpoint of the processes whose answers are pushed to the journal, past a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from invocations_app.envelope import Invocation
from tests.processes import gates


def elsewhere(invocation: Invocation, **kwargs: Any) -> Invocation:
    """Send every answer to both destinations."""
    return dataclasses.replace(invocation, delivery=("held", "free"))


class JournalPush:
    """Notes what arrives; with a gate, waits there first where the test wants it."""

    def __init__(self, *, gate: str = "") -> None:
        self.gate = gate

    async def push(self, result: Mapping[str, Any], destination: str) -> None:
        gate = gates.Gate(self.gate)
        if self.gate and gate.is_armed():
            await gate.wait()
        gates.note(f"{destination}:{result['status']}", str(result["invocation_id"]))
