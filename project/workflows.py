"""The workflow of the site: it drafts an announcement and asks a person before it is final. No model is asked."""

from __future__ import annotations

import re
from typing import Any

from agent_framework import Executor, Workflow, WorkflowBuilder, WorkflowContext, handler, response_handler

_AGREES = re.compile(r"(?i)^\s*(?:yes|ok|okay|publish|go)\b")


def build_announcement() -> Workflow:
    """Build the workflow behind the endpoint ``announcement``.

    Returns:
        A new workflow: it takes a text, asks whether its draft may stand, and
        gives the final text.
    """
    editor = Editor(id="editor")
    return WorkflowBuilder(start_executor=editor, name="announcement", output_from=[editor]).build()


class Editor(Executor):
    """Drafts, asks, and drafts again until the reply is a yes."""

    @handler
    async def draft(self, text: str, context: WorkflowContext[Any, str]) -> None:
        """Draft an announcement of what is told, and ask."""
        await self._ask(text, context)

    @response_handler
    async def told(self, request: dict[str, Any], reply: str, context: WorkflowContext[Any, str]) -> None:
        """Take the reply: a yes, or a better text."""
        if _AGREES.match(reply):
            await context.yield_output(f"### Announcement\n\n{request['draft']}\n\n*Agreed on by you.*")
        else:
            await self._ask(reply, context)

    async def _ask(self, text: str, context: WorkflowContext[Any, str]) -> None:
        words = " ".join(text.split())
        draft = f"{words[:1].upper()}{words[1:].rstrip('.!')}."
        await context.request_info(
            {"question": "May this stand? Reply yes, or tell a better text.", "draft": draft}, str
        )
