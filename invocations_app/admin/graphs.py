"""The graph of an endpoint's workflow: its source as the framework gives it, and a picture where Graphviz is there.

The target is built as for a run, so the graph is that of the code as it is now.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from dataclasses import dataclass

from agent_framework import Workflow, WorkflowViz
from asgiref.sync import async_to_sync

from invocations_app import targets
from invocations_app.conf import EndpointSettings

logger = logging.getLogger("invocations_app.admin")

BUILD_SECONDS = 10
DRAW_SECONDS = 10
_DOT = "dot"


class NoWorkflow(Exception):
    """The endpoint's target is an agent, and has no graph."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph of a workflow.

    Attributes:
        name: The workflow's name.
        signature: By which checkpoints know their graph.
        executors: Ids of its executors.
        mermaid: Its source for Mermaid.
        dot: Its source for Graphviz.
    """

    name: str
    signature: str
    executors: tuple[str, ...]
    mermaid: str
    dot: str


def load_graph(endpoint: EndpointSettings) -> Graph:
    """Build an endpoint's workflow and return its graph.

    Args:
        endpoint: The endpoint.

    Raises:
        NoWorkflow: If the target is an agent.
        TargetUnavailable: If it cannot be built; logged.
        TimeoutError: If that takes longer than `BUILD_SECONDS`.
        Exception: Whatever the framework raises over the graph.
    """
    if targets.known_kind(endpoint) == "agent":
        # Not built to find that out: entering an agent may take connections.
        raise NoWorkflow
    return async_to_sync(_load)(endpoint)


async def _load(endpoint: EndpointSettings) -> Graph:
    async with asyncio.timeout(BUILD_SECONDS):
        resolved = await targets.resolve(endpoint)
    workflow = resolved.target
    if not isinstance(workflow, Workflow):
        raise NoWorkflow
    drawn = WorkflowViz(workflow)
    return Graph(
        name=str(workflow.name),
        signature=str(workflow.graph_signature_hash),
        executors=tuple(executor.id for executor in workflow.get_executors_list()),
        mermaid=drawn.to_mermaid(),
        dot=drawn.to_digraph(),
    )


def can_draw() -> bool:
    """Return whether Graphviz is installed."""
    return shutil.which(_DOT) is not None


def draw(graph: Graph) -> bytes | None:
    """Return the graph as SVG; None where Graphviz is not installed, fails, or takes too long.

    Args:
        graph: The graph.
    """
    program = shutil.which(_DOT)
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the program that was found, and no argument of anybody's
            [program, "-Tsvg"],
            input=graph.dot.encode(errors="replace"),
            capture_output=True,
            timeout=DRAW_SECONDS,
            check=True,
            # As on a web server: an attribute in the source then reads no file.
            env={"SERVER_NAME": "invocations", "GV_FILE_PATH": ""},
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("The graph of the workflow %r was not drawn: %s.", graph.name, type(error).__name__)
        return None
    return done.stdout
