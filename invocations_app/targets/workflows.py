"""What a workflow target is made of, and whether its factory builds everything anew.

A workflow runs one turn at a time, and executors hold conversations: whatever
two builds share, two callers share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from agent_framework import AgentSession, Executor, Workflow

from invocations_app.targets.kinds import NotATarget, is_context_manager


class UnstableWorkflow(NotATarget):
    """Two workflows of one factory are not alike, or share what callers must not share."""

    fix: ClassVar[str] = "Build everything in the function, executors and agents included, and name the workflow."


def executors_of(workflow: Workflow) -> Iterator[Executor]:
    """Yield every executor of a workflow, those of workflows within it too.

    Args:
        workflow: The workflow.
    """
    for executor in workflow.get_executors_list():
        yield executor
        inner = getattr(executor, "workflow", None)
        if isinstance(inner, Workflow):
            yield from executors_of(inner)


def agents_of(workflow: Workflow) -> list[Any]:
    """Return the agents that the executors of a workflow hold, each once.

    Args:
        workflow: The workflow.
    """
    agents = {id(held): held for executor in executors_of(workflow) for held in _held(executor) if _is_agent(held)}
    return list(agents.values())


def check_twins(first: Workflow, second: Workflow) -> None:
    """Check that two workflows of one factory are alike and share nothing.

    Args:
        first: What the factory built.
        second: What it built next.

    Raises:
        UnstableWorkflow: If they are not, or do.
    """
    if not first.name or first.name != second.name:
        raise UnstableWorkflow(f"The workflow has no name of its own: two builds are {first.name!r}, {second.name!r}.")
    if first.graph_signature_hash != second.graph_signature_hash:
        raise UnstableWorkflow(f"Two builds of the workflow {first.name!r} have different graphs.")
    if first is second:
        raise UnstableWorkflow(f"Two builds of the workflow {first.name!r} are one object.")
    executors = {id(executor) for executor in executors_of(first)}
    held = {id(item) for executor in executors_of(first) for item in _held(executor)}
    for executor in executors_of(second):
        if id(executor) in executors:
            raise UnstableWorkflow(f"Two builds of the workflow {first.name!r} share the executor {executor.id!r}.")
        shared = next((item for item in _held(executor) if id(item) in held), None)
        if shared is not None:
            what = "agent" if _is_agent(shared) else "session"
            raise UnstableWorkflow(f"Two builds of the workflow {first.name!r} share the {what} of {executor.id!r}.")


async def enter_agents(workflow: Workflow, stack: AsyncExitStack) -> None:
    """Enter the agents of a workflow, as an agent that is a target is entered.

    Args:
        workflow: The workflow.
        stack: Leaves them, in the task of the run.
    """
    for agent in agents_of(workflow):
        if is_context_manager(agent):
            await stack.enter_async_context(agent)


def _held(executor: Executor) -> Iterator[Any]:
    for value in vars(executor).values():
        if _is_agent(value) or isinstance(value, AgentSession):
            yield value


def _is_agent(value: Any) -> bool:
    return (
        not isinstance(value, (type, Workflow))
        and callable(getattr(value, "run", None))
        and callable(getattr(value, "create_session", None))
    )
