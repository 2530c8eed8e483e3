"""The start page in a browser."""

from __future__ import annotations

from playwright.async_api import Page, expect


async def test_answer_of_the_agent_appears(page: Page) -> None:
    await page.goto("/")
    await page.get_by_label("Message").fill("What is 6 * 7?")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("6 * 7 = 42")).to_be_visible()
