"""What the command line of ``manage.py invoke`` says, as the body of a request."""

from __future__ import annotations

import base64
import json
import mimetypes
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError


def header(text: str) -> tuple[str, str]:
    """Return name and value of a header line.

    Args:
        text: ``Name: value``.

    Raises:
        ArgumentTypeError: If it is none.
    """
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not (name + value).isprintable():
        raise ArgumentTypeError("a header is 'Name: value'")
    return name.strip(), value.strip()


def json_value(text: str) -> Any:
    """Return a value from JSON.

    Args:
        text: The JSON.

    Raises:
        ArgumentTypeError: If it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"no JSON: {error}") from None


def body_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the request.

    Args:
        options: The command's arguments; the message ``-`` is read from standard input.

    Raises:
        CommandError: If they give no message or more than one, or a file cannot be read.
    """
    replies = options["responses"]
    if not isinstance(replies, dict):
        raise CommandError("--responses takes a JSON object.")
    replies = replies | dict.fromkeys(options["approve"], True) | dict.fromkeys(options["refuse"], False)
    given = [value for value in (options["message"], options["input"], replies or None) if value is not None]
    if len(given) != 1:
        raise CommandError("Give either a message, or --input, or replies (--approve, --refuse, --responses).")
    if options["attach"] and options["message"] is None:
        raise CommandError("--attach goes with a message.")
    body: dict[str, Any] = {"stream": options["stream"]}
    if options["session"] is not None:
        body["session_id"] = options["session"]
    if replies:
        return body | {"responses": replies}
    if options["input"] is not None:
        return body | {"input": options["input"]}
    message = sys.stdin.read() if options["message"] == "-" else options["message"]
    if not options["attach"]:
        return body | {"message": message}
    contents = [{"type": "text", "text": message}, *(_attachment(path) for path in options["attach"])]
    return body | {"input": [{"role": "user", "contents": contents}]}


def _attachment(path: Path) -> dict[str, str]:
    kind, _ = mimetypes.guess_type(path)
    if kind is None:
        raise CommandError(f"What kind of file {str(path)!r} is cannot be told by its name.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return {"type": "data", "uri": f"data:{kind};base64,{base64.b64encode(content).decode()}"}
