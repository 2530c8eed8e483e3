"""An agent whose tools want a person's word, or a caller's result, or neither, and how tests ask it.

``build`` plays the test's script with the tools of ``switches["tools"]``, all where
that is not set. Each tool that runs notes its name and its argument.
"""

from __future__ import annotations

from agent_framework import Agent, FunctionTool, SessionStore, tool

from tests import fakes

TARGET = "tests.approval_fakes.build"


@tool(approval_mode="always_require")
async def pay(to: str) -> str:
    """Pay somebody, once somebody else has agreed."""
    fakes.notes.append(("pay", to))
    return f"paid {to}"


@tool(approval_mode="always_require")
async def shred(name: str) -> str:
    """Shred a paper, once somebody has agreed."""
    fakes.notes.append(("shred", name))
    return f"shredded {name}"


@tool
async def look(name: str) -> str:
    """Look something up; nobody need agree."""
    fakes.notes.append(("look", name))
    return f"saw {name}"


#: Declared only: the caller carries it out.
ring = FunctionTool(
    name="ring",
    description="Ring a bell at the caller's.",
    func=None,
    input_model={"type": "object", "properties": {"times": {"type": "integer"}}},
)

TOOLS = [pay, shred, look, ring]


def build() -> Agent:
    return Agent(fakes.FakeChatClient(fakes.scripted), name="asking", tools=fakes.switches.get("tools", TOOLS))


class Store(SessionStore):
    """A store of one's own: upstream's, in memory."""
