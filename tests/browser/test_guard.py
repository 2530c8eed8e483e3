"""The pages' guard sees what it is there for."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests import chromium
from tests.browser.conftest import Guard

FOREIGN = "fetch('http://127.0.0.1:9/').catch(() => {})"


async def test_what_the_policy_refuses_and_what_nobody_catches_is_a_problem(page: Page, guard: Guard) -> None:
    await page.goto("/")
    await page.evaluate(FOREIGN)
    async with page.expect_event("pageerror"):
        await page.evaluate("setTimeout(() => { throw new Error('nobody catches it') })")
    problems = " ".join(guard.problems)
    guard.problems.clear()
    assert "Content Security Policy" in problems
    assert "uncaught: nobody catches it" in problems


async def test_request_to_another_host_is_a_problem(page: Page, guard: Guard) -> None:
    await page.goto("/readiness")
    await page.evaluate(FOREIGN)
    problems, guard.problems[:] = guard.problems[:], []
    assert "a request to another host: http://127.0.0.1:9/" in problems


async def test_admin_is_logged_in(admin_page: Page) -> None:
    await admin_page.goto("/admin/")
    await expect(admin_page.get_by_role("button", name="Log out")).to_be_visible()


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
async def test_missing_browser_skips_and_fails_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="^there is no Chromium: apt-get install chromium$"):
        chromium.find_browser()
