"""An export as a response that is made while it is sent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone

from invocations_app.admin.exports import as_json, as_markdown
from invocations_app.admin.redaction import Redactor
from invocations_app.models import SessionRecord

BLOCK_CHARACTERS = 64 * 1024

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class Write(Protocol):
    """What makes a document of sessions."""

    def __call__(self, pks: Sequence[int], redactor: Redactor, *, with_ids: bool) -> Iterator[str]:
        """Yield the document piece by piece."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """A form of the document.

    Attributes:
        name: Its name.
        media_type: Its ``Content-Type``.
        write: What makes it.
    """

    name: str
    media_type: str
    write: Write


FORMATS = {
    "json": Format("JSON", "application/json", as_json.write),
    "md": Format("Markdown", "text/markdown; charset=utf-8", as_markdown.write),
}


def download(
    request: HttpRequest, sessions: Sequence[SessionRecord], extension: str, *, with_ids: bool
) -> StreamingHttpResponse:
    """Return sessions as a file to keep.

    Args:
        request: The request; over ASGI the document is made in its thread, block by block.
        sessions: The sessions, their states not needed.
        extension: The file's, a key of `FORMATS`.
        with_ids: Whether invocation ids are in it.
    """
    kind = FORMATS[extension]
    blocks = _blocks(kind.write([session.pk for session in sessions], Redactor(), with_ids=with_ids))
    body = _pull(blocks) if isinstance(request, ASGIRequest) else blocks
    return StreamingHttpResponse(
        body,
        content_type=kind.media_type,
        headers={
            "Content-Disposition": f'attachment; filename="{file_name(sessions)}.{extension}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


def file_name(sessions: Sequence[SessionRecord]) -> str:
    """Return a name that every file system takes and no header trips over, without its extension.

    Args:
        sessions: What is in the file.
    """
    if len(sessions) != 1:
        return f"sessions-{timezone.now():%Y-%m-%d}"
    [session] = sessions
    safe = _UNSAFE.sub("-", session.session_id)[:60].strip("-")
    return f"session-{session.pk}-{safe}".rstrip("-")


def _blocks(pieces: Iterator[str]) -> Iterator[bytes]:
    gathered: list[str] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= BLOCK_CHARACTERS:
            yield "".join(gathered).encode()
            gathered, size = [], 0
    yield "".join(gathered).encode()


async def _pull(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    pull: Callable[..., object] = next
    while isinstance(block := await sync_to_async(pull)(blocks, None), bytes):
        yield block
