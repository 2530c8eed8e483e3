"""A browser's pages against the demonstration site, each watched for what it must not do.

One server and one browser serve the whole session, so what a test leaves in the database is there for the
next one: take session ids of your own. The fixtures and tests live in the event loop of the session.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from scripts.demo import ADMIN
from scripts.demo_check import ROOT, running_demo
from tests.browser.playground import Playground
from tests.chromium import find_browser

_HERE = Path(__file__).parent
#: Opens a page in a context of its own; takes what ``Browser.new_context`` takes, and ``admin=True`` to be logged in.
NewPage = Callable[..., Awaitable[Page]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here are slow ones, and share the loop of the browser."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(60))
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@dataclass(frozen=True)
class Site:
    """The demonstration site in a process of its own, with the offline agent.

    Attributes:
        url: Its address, without a slash at the end.
        environment: What its process was given: settings and database.
    """

    url: str
    environment: dict[str, str]

    def manage(self, *arguments: str) -> str:
        """Run a management command on its database and return what it printed.

        Args:
            *arguments: Its name and arguments; ``"shell", "-c", code`` reaches the ORM.
        """
        command = [sys.executable, "-W", "ignore", "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass
class Guard:
    """What the pages of a test asked for and complained of.

    Attributes:
        origin: The only one that may be asked.
        allowed: Regular expressions of console errors that the test expects. Chromium
            writes one for every answer of status 400 and above.
        requests: The URL of every request, in order.
        problems: What must not have happened.
    """

    origin: str
    allowed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def allow(self, *patterns: str) -> None:
        """Expect console errors.

        Args:
            *patterns: Regular expressions, searched for in the error's text.
        """
        self.allowed += patterns

    def watch(self, context: BrowserContext) -> None:
        """Note what all pages of a context do from now on."""
        context.on("request", self._note_request)
        context.on("console", self._note_console)
        context.on("weberror", lambda problem: self.problems.append(f"uncaught: {problem.error}"))

    def _note_request(self, request: Request) -> None:
        self.requests.append(request.url)
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.problems.append(f"a request to another host: {request.url}")

    def _note_console(self, message: ConsoleMessage) -> None:
        # A refusal by the content security policy is such an error too.
        if message.type == "error" and not any(re.search(pattern, message.text) for pattern in self.allowed):
            self.problems.append(f"console: {message.text} ({message.location.get('url', '')})")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser of the session."""
    path = find_browser()
    async with async_playwright() as playwright:
        # Chromium has no sandbox for root; the pages are our own.
        browser = await playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def site(browser: Browser) -> Iterator[Site]:
    """The site of the session; not started where there is no browser."""
    with tempfile.TemporaryDirectory(prefix="browser-tests-") as directory:
        own = {
            "DJANGO_SETTINGS_MODULE": "tests.browser.settings",
            "DATABASE_URL": f"sqlite:///{directory}/site.sqlite3",
            "DEBUG": "1",
        }
        with running_demo(own) as url:
            yield Site(url, own)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def admin_state(browser: Browser, site: Site) -> Any:
    """Cookies of the demonstration's admin, who logged in through the form."""
    context = await browser.new_context(base_url=site.url)
    page = await context.new_page()
    await page.goto("/admin/login/?next=/admin/")
    await page.get_by_label("Username").fill(ADMIN)
    await page.get_by_label("Password").fill(ADMIN)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/admin/")
    state = await context.storage_state()
    await context.close()
    return state


@pytest.fixture
def guard(site: Site) -> Guard:
    """What the pages of this test did; looked at when it ends."""
    return Guard(site.url)


@pytest_asyncio.fixture(loop_scope="session")
async def new_page(browser: Browser, site: Site, admin_state: Any, guard: Guard) -> AsyncIterator[NewPage]:
    """Open pages, in any colour scheme, width and language; all of them are watched."""
    contexts: list[BrowserContext] = []

    async def open_page(*, admin: bool = False, **options: Any) -> Page:
        context = await browser.new_context(base_url=site.url, storage_state=admin_state if admin else None, **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        guard.watch(context)
        return await context.new_page()

    yield open_page
    for context in contexts:
        await context.close()
    assert guard.problems == []


@pytest_asyncio.fixture(loop_scope="session")
async def page(new_page: NewPage) -> Page:
    """A page of somebody who is not logged in."""
    return await new_page()


@pytest_asyncio.fixture(loop_scope="session")
async def admin_page(new_page: NewPage) -> Page:
    """A page of the admin, logged in."""
    return await new_page(admin=True)


@pytest_asyncio.fixture(loop_scope="session")
async def play(page: Page) -> Playground:
    """The playground of somebody who is not logged in, on a session of its own."""
    return await Playground(page).open()
