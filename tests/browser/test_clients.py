"""The snippets of ``docs/clients.md`` for a page of the site, run in one."""

from __future__ import annotations

import contextlib

import pytest
from playwright.async_api import ConsoleMessage

from scripts.demo_check import ROOT
from tests.browser.conftest import Guard, NewPage, Site
from tests.cutting import cutting
from tests.snippets import Snippet, read_snippets

SNIPPETS = read_snippets((ROOT / "docs" / "clients.md").read_text(), "javascript")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: str(snippet.number))
async def test_snippet_prints_what_the_page_says(new_page: NewPage, site: Site, guard: Guard, snippet: Snippet) -> None:
    printed: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "log":
            printed.append(message.text)

    with contextlib.ExitStack() as stack:
        cut = stack.enter_context(cutting(int(site.url.rpartition(":")[2]), snippet.cut)) if snippet.cut else None
        if cut is not None:
            guard.origin = f"http://127.0.0.1:{cut.port}"
            # What Chromium says of a connection that breaks.
            guard.allow("net::ERR_")
        # It asks for an icon, too.
        guard.allow(r"404 \(Not Found\)")
        page = await new_page()
        page.on("console", note)
        await page.goto(f"{guard.origin}/readiness")
        await page.evaluate(f"async () => {{\n{snippet.code}\n}}")
        assert snippet.is_printed("\n".join(printed)), printed
        assert cut is None or cut.happened.is_set()
