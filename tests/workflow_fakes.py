"""Workflow factories that tests name by dotted path, as a site would: each builds everything anew.

- ``build_counting`` takes a text, counts its turns in its state, and outputs ``"<text> <turn>"``.
- ``build_orders`` takes an `Order` (a dataclass) and outputs what it came to, as JSON.
- ``build_asking`` asks a person for an `Approval` and outputs what it was told.
- ``build_speaking`` is one agent executor that plays the test's script, see `fakes.script`.
- ``build_sequential`` is the sequential orchestration of two scripted agents.

`fakes.notes` holds what executors noted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from agent_framework import (
    Agent,
    AgentExecutor,
    AgentSession,
    ContextProvider,
    Executor,
    Message,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    WorkflowExecutor,
    handler,
    response_handler,
    tool,
)
from agent_framework_orchestrations import (
    ConcurrentBuilder,
    GroupChatBuilder,
    GroupChatState,
    HandoffBuilder,
    SequentialBuilder,
)
from pydantic import BaseModel

from invocations_app.isolation import get_current_isolation_keys
from tests import fakes


@dataclass
class Order:
    """What a workflow is given."""

    item: str
    quantity: int = 1
    wanted: date | None = None
    notes: list[str] = field(default_factory=list)


class Address(BaseModel):
    """What another workflow is given."""

    street: str
    number: int


@dataclass
class Question:
    """What a workflow asks."""

    text: str


class Approval(BaseModel):
    """What it wants to be told."""

    approved: bool
    by: str = "nobody"


class Opaque:
    """No JSON."""


class Counting(Executor):
    """Counts its turns."""

    def __init__(self) -> None:
        super().__init__(id="counting")
        self.turns = 0

    @handler
    async def count(self, text: str, context: WorkflowContext[Any, str]) -> None:
        self.turns += 1
        if text == "break":
            raise RuntimeError("the executor is broken")
        if text == "wait":
            await fakes.gate().pass_through()
        if text == "keys":
            fakes.notes.append(get_current_isolation_keys())
        await context.yield_output(f"{text} {self.turns}")

    async def on_checkpoint_save(self) -> dict[str, Any]:
        if fakes.switches.get("unsavable") == self.turns:
            raise RuntimeError("the executor has no state to give")
        return {"turns": self.turns, **fakes.switches.get("state", {})}

    async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
        if fakes.switches.get("unrestorable"):
            raise RuntimeError("the executor takes no state")
        self.turns = state["turns"]


class Slow(Executor):
    """Sends its text through as many supersteps as it has letters."""

    @handler
    async def go(self, text: str, context: WorkflowContext[str, str]) -> None:
        await context.yield_output(text[:1])
        if len(text) > 1:
            await context.send_message(text[1:])


class Ordering(Executor):
    """Takes orders of two kinds."""

    @handler
    async def order(self, order: Order, context: WorkflowContext[Any, Any]) -> None:
        fakes.notes.append(order)
        await context.yield_output(order)

    @handler
    async def address(self, address: Address, context: WorkflowContext[Any, Any]) -> None:
        fakes.notes.append(address)
        await context.yield_output(address)


class Delivering(Executor):
    """Takes addresses alone."""

    @handler
    async def address(self, address: Address, context: WorkflowContext[Any, Any]) -> None:
        fakes.notes.append(address)
        await context.yield_output({"to": address})


class Reading(Executor):
    """Takes messages."""

    @handler
    async def read(self, messages: list[Message], context: WorkflowContext[Any, str]) -> None:
        fakes.notes.append(messages)
        await context.yield_output(" ".join(message.text for message in messages))


class Giving(Executor):
    """Outputs what the test has put down as ``switches["outputs"]``."""

    @handler
    async def give(self, text: str, context: WorkflowContext[Any, Any]) -> None:
        for output in fakes.switches["outputs"]:
            await context.yield_output(output)


class Asking(Executor):
    """Asks a person, and again when it is told so."""

    def __init__(self) -> None:
        super().__init__(id="asking")
        self.asked = 0

    @handler
    async def ask(self, text: str, context: WorkflowContext[Any, str]) -> None:
        await context.yield_output(f"asking {text}, ")
        for part in text.split("+"):
            self.asked += 1
            await context.request_info(Question(part), Approval, request_id=f"{part}-{self.asked}")

    @response_handler
    async def told(self, question: Question, approval: Approval, context: WorkflowContext[Any, str]) -> None:
        fakes.notes.append((question.text, approval))
        if approval.by == "break":
            raise RuntimeError("the executor is broken")
        if approval.by == "again":
            self.asked += 1
            await context.request_info(Question("again"), bool, request_id=f"again-{self.asked}")
            return
        await context.yield_output(f"{question.text}: {'yes' if approval.approved else 'no'} of {self.asked}")

    @response_handler
    async def told_again(self, question: Question, reply: bool, context: WorkflowContext[Any, str]) -> None:
        await context.yield_output(f"{question.text}: {reply} of {self.asked}")

    async def on_checkpoint_save(self) -> dict[str, Any]:
        return {"asked": self.asked}

    async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


@tool(approval_mode="always_require")
async def delete(name: str) -> str:
    """Delete something."""
    fakes.notes.append(("deleted", name))
    return f"deleted {name}"


class Managed(Agent):
    """An agent that notes entering and leaving."""

    async def __aenter__(self) -> Any:
        fakes.notes.append("enter")
        return await super().__aenter__()

    async def __aexit__(self, *reason: Any) -> None:
        fakes.notes.append("leave")
        await super().__aexit__(*reason)


def agent(name: str, **keys: Any) -> Agent:
    """Return an agent that plays the test's script."""
    return Agent(fakes.FakeChatClient(fakes.scripted), name=name, **keys)


def _workflow(name: str, start: Any) -> Workflow:
    built = WorkflowBuilder(start_executor=start, name=name).build()
    fakes.built.append(built)
    return built


def build_counting() -> Workflow:
    return _workflow("counting", Counting())


async def build_counting_async() -> Workflow:
    await asyncio.sleep(0.01)
    return build_counting()


def build_changing() -> Workflow:
    """One whose graph is another when ``switches["graph"]`` is set."""
    first = Counting()
    builder = WorkflowBuilder(start_executor=first, name="counting")
    if fakes.switches.get("graph"):
        builder.add_edge(first, Slow(id="slow"))
    return builder.build()


def build_supersteps() -> Workflow:
    first, second = Slow(id="first"), Slow(id="second")
    return (
        WorkflowBuilder(start_executor=first, name="supersteps").add_edge(first, second).add_edge(second, first).build()
    )


def build_orders() -> Workflow:
    return _workflow("orders", Ordering(id="ordering"))


def build_deliveries() -> Workflow:
    return _workflow("deliveries", Delivering(id="delivering"))


def build_reading() -> Workflow:
    return _workflow("reading", Reading(id="reading"))


def build_giving() -> Workflow:
    return _workflow("giving", Giving(id="giving"))


def build_asking() -> Workflow:
    return _workflow("asking", Asking())


def build_speaking() -> Workflow:
    return _workflow("speaking", AgentExecutor(agent("speaker"), id="speaker"))


def build_deleting() -> Workflow:
    """An agent inside that has a tool which needs approval, unless ``switches["tools"]`` says otherwise."""
    tools = fakes.switches.get("tools", [delete])
    return _workflow("deleting", AgentExecutor(agent("cleaner", tools=tools), id="cleaner"))


def build_managed() -> Workflow:
    managed = Managed(fakes.FakeChatClient(fakes.scripted), name="managed")
    return _workflow("managed", AgentExecutor(managed, id="managed"))


class Binding(ContextProvider):
    """A provider written for the earlier host."""

    def bind_request_context(self, *, response_id: str, previous_response_id: str | None) -> Any:
        return _Bound(self.source_id, response_id, previous_response_id)


class _Bound:
    def __init__(self, *noted: Any) -> None:
        self.noted = noted

    def __enter__(self) -> None:
        fakes.notes.append(("enter", *self.noted, asyncio.current_task()))
        if fakes.switches.get("unbindable"):
            raise RuntimeError("the provider binds nothing")

    def __exit__(self, kind: Any, *reason: Any) -> bool:
        fakes.notes.append(("leave", *self.noted, asyncio.current_task(), kind))
        if fakes.switches.get("unleavable"):
            raise RuntimeError("the provider is not left")
        # One that swallows what happens within.
        return True


class AsyncBinding(ContextProvider):
    """One whose context manager is async."""

    def bind_request_context(self, *, response_id: str, previous_response_id: str | None) -> Any:
        return _AsyncBound(self.source_id, response_id, previous_response_id)


class _AsyncBound(_Bound):
    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.__enter__()

    async def __aexit__(self, *reason: Any) -> bool:
        await asyncio.sleep(0)
        return self.__exit__(*reason)


def build_binding_agent() -> Agent:
    """An agent with such providers, one of them twice."""
    plain = Binding("plain")
    return agent("binding", context_providers=[plain, AsyncBinding("async"), plain])


def build_binding() -> Workflow:
    return _workflow("binding", AgentExecutor(agent("bound", context_providers=[Binding("inner")]), id="bound"))


# Orchestrations.


def build_sequential() -> Workflow:
    return SequentialBuilder(participants=[agent("writer"), agent("reviewer")], name="sequential").build()


def build_concurrent() -> Workflow:
    return ConcurrentBuilder(participants=[agent("one"), agent("two")], name="concurrent").build()


def _next(state: GroupChatState) -> str:
    return ("first", "second")[state.current_round % 2]


def build_group_chat() -> Workflow:
    return GroupChatBuilder(
        participants=[agent("first"), agent("second")], selection_func=_next, max_rounds=2, name="group"
    ).build()


def build_handoff() -> Workflow:
    triage = agent("triage", require_per_service_call_history_persistence=True)
    expert = agent("expert", require_per_service_call_history_persistence=True)
    return HandoffBuilder(participants=[triage, expert], name="handoff").with_start_agent(triage).build()


# Wrong ones.


_shared = Counting()
_shared_agent = agent("shared")
_shared_session = AgentSession()


def build_sharing_executor() -> Workflow:
    return _workflow("sharing", _shared)


def build_sharing_agent() -> Workflow:
    return _workflow("sharing", AgentExecutor(_shared_agent, id="speaker"))


def build_sharing_session() -> Workflow:
    return _workflow("sharing", AgentExecutor(agent("own"), session=_shared_session, id="speaker"))


def build_sharing_inner() -> Workflow:
    inner = WorkflowBuilder(start_executor=_shared, name="inner").build()
    return _workflow("outer", WorkflowExecutor(inner, id="inner"))


def build_nameless() -> Workflow:
    return WorkflowBuilder(start_executor=Counting()).build()


def build_unsteady() -> Workflow:
    """Another graph each time."""
    fakes.notes.append("built")
    return _workflow("unsteady", Slow(id=f"slow-{len(fakes.notes)}"))


# Not among what factories built: it is made when this module is imported, in the midst of whichever test does.
_kept = WorkflowBuilder(start_executor=Counting(), name="counting").build()


def build_kept() -> Workflow:
    return _kept


def build_builder() -> WorkflowBuilder:
    return WorkflowBuilder(start_executor=Counting(), name="counting")
