"""The playground as a person uses it, for tests."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import Locator, Page, expect


@dataclass
class Playground:
    """A page of the playground.

    Attributes:
        page: The page.
    """

    page: Page

    @property
    def message(self) -> Locator:
        """The field for the message."""
        return self.page.get_by_label("Message", exact=True)

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.page.locator("#conversation > .agent").last

    @property
    def body(self) -> Locator:
        """The Markdown of the last answer."""
        return self.answer.locator(".body")

    @property
    def frames(self) -> Locator:
        """The rows of the side pane."""
        return self.page.locator("#frames li")

    async def open(self, endpoint: str = "default", session: str | None = None) -> Playground:
        """Open the page on a session, one of its own unless told, and wait until all that is stored of it is shown."""
        await self.page.goto(f"/?{urlencode({'endpoint': endpoint, 'session': session or f'test-{uuid.uuid4()}'})}")
        await expect(self.page.get_by_label("Endpoint")).to_have_value(endpoint)
        await expect(self.page.locator("#conversation")).to_have_attribute("aria-busy", "false")
        return self

    async def say(self, text: str) -> str:
        """Send a message by the keyboard and return the id that the page gave the invocation."""
        await self.message.fill(text)
        async with self.page.expect_request(lambda request: request.url.endswith("/invoke")) as asked:
            await self.message.press("Enter")
        return (await asked.value).headers["x-agent-invocation-id"]

    async def ended(self) -> None:
        """Wait until nothing runs any more."""
        await expect(self.page.get_by_role("button", name="Send")).to_be_visible(timeout=20_000)

    async def ask(self, text: str) -> str:
        """Send a message, wait for the end of its answer, and return the invocation's id."""
        invocation_id = await self.say(text)
        await self.ended()
        return invocation_id

    async def status(self, invocation_id: str, endpoint: str = "invocations") -> dict[str, Any]:
        """Return the status body as the server has it."""
        answer = await self.page.request.get(f"/{endpoint}/{invocation_id}")
        assert answer.ok
        told: dict[str, Any] = await answer.json()
        return told

    async def choose(self, name: str) -> None:
        """Choose one of several things by its label."""
        await self.page.locator("label", has_text=re.compile(f"^{name}$")).click()
