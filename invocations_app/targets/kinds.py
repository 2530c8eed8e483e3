"""Tells what a target is, and refuses what cannot be shared by callers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

from agent_framework import (
    FunctionalWorkflow,
    FunctionalWorkflowAgent,
    FunctionalWorkflowDefinition,
    Workflow,
    WorkflowAgent,
)

from invocations_app.conf import EndpointSettings
from invocations_app.envelope import TargetKind

_WORKFLOWS = (Workflow, WorkflowAgent, FunctionalWorkflow, FunctionalWorkflowAgent, FunctionalWorkflowDefinition)


class NotATarget(TypeError):
    """What ``TARGET`` names, or its factory returned, cannot be run.

    Args:
        problem: What it is.

    Attributes:
        problem: What it is.
        fix: What to write instead.
    """

    fix: ClassVar[str] = "Name an agent, or a function without arguments, sync or async, that returns one."

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem} {self.fix}")


class WorkflowInstance(NotATarget):
    """The target is a workflow, an agent made of one, or a builder.

    A workflow runs one turn at a time, and all that one builder builds share
    their executors, and with them conversations.
    """

    fix = (
        "Name a function that builds a workflow anew, executors and agents included, and gives it a name: "
        "callers cannot share one, nor what one builder builds."
    )


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """A target that a run may use.

    Attributes:
        endpoint: The endpoint it belongs to.
        target: The agent or workflow itself.
        kind: What it is.
        takes_options: Whether its ``run`` takes ``options``.
        takes_session: Whether its ``run`` takes ``session``.
        owned: Whether it was built for one run, which enters and leaves it
            (see ``targets.entered``).
    """

    endpoint: EndpointSettings
    target: Any
    kind: TargetKind
    takes_options: bool
    takes_session: bool
    owned: bool


def is_factory(found: object) -> bool:
    """Return whether what ``TARGET`` names is to be called, and is not the target itself.

    Args:
        found: What the dotted path names.
    """
    return callable(found) and not _has_run(found) and not isinstance(found, _WORKFLOWS)


def kind_of(target: object, *, is_built: bool = False) -> TargetKind:
    """Return what a target is.

    Args:
        target: What a factory returned, or ``TARGET`` names.
        is_built: Whether a factory built it for one run.

    Raises:
        WorkflowInstance: If it is a workflow that callers would share, an agent made of one, or a builder.
        NotATarget: If it is neither agent nor workflow.
    """
    name = type(target).__name__
    if is_built and isinstance(target, Workflow):
        return "workflow"
    if isinstance(target, _WORKFLOWS):
        raise WorkflowInstance(f"'{name}' object is no agent.")
    if not _has_run(target):
        if callable(getattr(target, "build", None)):
            raise WorkflowInstance(f"'{name}' object is a builder, not an agent.")
        raise NotATarget(f"'{name}' object is no agent: it has no method 'run'.")
    return "agent"


def describe(endpoint: EndpointSettings, target: Any, *, owned: bool) -> ResolvedTarget:
    """Return a target with what a run has to know of it.

    Args:
        endpoint: The endpoint it belongs to.
        target: The built target.
        owned: Whether it was built for one run.

    Raises:
        NotATarget: If it cannot be run.
    """
    kind = kind_of(target, is_built=owned)
    return ResolvedTarget(
        endpoint=endpoint,
        target=target,
        kind=kind,
        takes_options=_takes(target, "options"),
        takes_session=_takes(target, "session"),
        owned=owned,
    )


def is_context_manager(target: object) -> bool:
    """Return whether a target is to be entered and left.

    Args:
        target: A built target.
    """
    return hasattr(type(target), "__aenter__") and hasattr(type(target), "__aexit__")


def _has_run(found: object) -> bool:
    return not isinstance(found, type) and callable(getattr(found, "run", None))


def _takes(target: Any, name: str) -> bool:
    try:
        inspect.signature(target.run).bind_partial(**{name: None})
    except (TypeError, ValueError):
        return False
    return True
