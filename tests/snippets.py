"""The snippets of a documentation page: what is run, and what the page says that it prints.

A block with a ``text`` block below it is run, together with the blocks of its
language above it that have none, which only define something. A comment above a
block, ``<!-- the connection breaks at: … -->``, has its connection cut there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from scripts.demo_check import README_URL, is_printed

_BLOCK = re.compile(
    r"(?:^<!-- the connection breaks at: (?P<cut>.*?) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """One block that is run.

    Attributes:
        language: As the page names it.
        code: The block, below the definitions above it.
        printed: What it prints, as the page says.
        cut: Bytes of the answer after which its connection breaks; empty for never.
        number: Its place among the blocks of its language, from 1.
    """

    language: str
    code: str
    printed: str
    cut: bytes
    number: int

    def at(self, url: str) -> str:
        """Return the code for a server at another address than the page's."""
        return self.code.replace(README_URL, url)

    def is_printed(self, text: str) -> bool:
        """Return whether a text is what the page says; white space at its ends does not count."""
        return is_printed(text.strip(), self.printed.strip())


def read_snippets(page: str, language: str) -> list[Snippet]:
    """Return the blocks of a page that are run.

    Args:
        page: Its Markdown.
        language: The language of the blocks.
    """
    snippets: list[Snippet] = []
    definitions = ""
    for block in _BLOCK.finditer(page):
        if block["language"] != language:
            continue
        if block["printed"] is None:
            definitions += block["code"] + "\n"
            continue
        cut = (block["cut"] or "").encode()
        snippets.append(Snippet(language, definitions + block["code"], block["printed"], cut, len(snippets) + 1))
    return snippets
