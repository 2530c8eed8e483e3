"""What an answer leaves pending: told, asked on a terminal, and how it is answered from a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from invocations_app.management.invoking.terminal import plain

Request = Mapping[str, Any]
Ask = Callable[[str], str]

_YES = {"y": True, "yes": True, "n": False, "no": False}


def ask(request: Request, tell: Callable[[str], None], read: Ask) -> Any:
    """Ask a person for the reply to one pending request.

    Args:
        request: The request, as the contract has it.
        tell: Writes lines.
        read: Writes a question and returns the line that was typed. Raises EOFError at the end of the input.

    Returns:
        The reply.
    """
    kind = request["type"]
    if kind == "approval":
        tell(f"The agent asks to run {plain(request['tool'])}:{_lines(request['arguments'])}")
        while (reply := _YES.get(read("Approve? [y/n] ").strip().lower())) is None:
            pass
        return reply
    if kind == "tool_call":
        tell(f"The agent asks for the result of {plain(request['tool'])}:{_lines(request['arguments'])}")
    else:
        tell(f"{plain(request['source_executor_id'])} asks:{_lines(request['data'])}")
    while True:
        try:
            return json.loads(read("Reply, as JSON: "))
        except ValueError as error:
            tell(f"This is no JSON: {error}")


def how_to_answer(pending: Sequence[Request], command: Sequence[str]) -> str:
    """Return what is pending, and the command line that answers it.

    Args:
        pending: The requests.
        command: The words of the command line up to the replies.
    """
    lines = ["The session awaits an answer:"]
    words = list(command)
    others: dict[str, Any] = {}
    for request in pending:
        told = f"{request['tool']} {_json(request['arguments'])}" if "tool" in request else _json(request["data"])
        lines.append(plain(f"  {request['type']} {request['request_id']}: {told}"))
        if request["type"] == "approval":
            words += ["--approve", request["request_id"]]
        else:
            others[request["request_id"]] = "…"
    if others:
        words += ["--responses", json.dumps(others, ensure_ascii=False)]
    hints = [" (or --refuse)"] if "--approve" in words else []
    lines.append(f"Answer with: {plain(shlex.join(words))}{''.join(hints)}")
    return "\n".join(lines)


def _lines(value: Any) -> str:
    if isinstance(value, dict):
        return plain("".join(f"\n  {_one_line(name)}: {_json(item)}" for name, item in value.items()))
    return plain(f"\n  {_json(value)}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
