"""Hooks of the site's endpoint: what it asks of an invocation before it runs."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from invocations_app.envelope import Invocation
from invocations_app.exceptions import InvocationRejected

MAX_INPUT_CHARACTERS = 20_000


def limit_input(invocation: Invocation, *, target: Any, request: HttpRequest) -> Invocation:
    """Refuse long texts: each character is paid for when a model reads it.

    Args:
        invocation: The invocation as parsed.
        target: The resolved agent.
        request: The request it came in.

    Returns:
        The invocation, unchanged.

    Raises:
        InvocationRejected: 422, if its texts have more than
            `MAX_INPUT_CHARACTERS` characters together.
    """
    characters = sum(len(content.text or "") for message in invocation.input or () for content in message.contents)
    if characters > MAX_INPUT_CHARACTERS:
        raise InvocationRejected(f"'message' has {characters} characters, {MAX_INPUT_CHARACTERS} are allowed")
    return invocation
