"""An invocation in the admin, in a real browser: it keeps itself up to date, is answered and cancelled."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, Request, Route, expect

from tests.browser.conftest import Guard, NewPage, Site

INVOCATIONS = "/admin/invocations_app/invocationrecord/"
STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)


def begin(site: Site, message: str, path: str = "invocations", **body: Any) -> str:
    """Post a message in the background, and return its session id, which is its own."""
    session_id = f"seen-{uuid.uuid4()}"
    body = {"message": message, "session_id": session_id, "background": True} | body
    assert httpx.post(f"{site.url}/{path}/invoke", json=body).status_code in (200, 202)
    return session_id


async def open_invocation(page: Page, session_id: str) -> None:
    await page.goto(f"{INVOCATIONS}?q={session_id}")
    await page.locator("#result_list tbody th a").first.click()
    await expect(page.get_by_role("heading", name="State")).to_be_visible()


def asked_of(page: Page) -> list[Request]:
    """Return a list to which every look at the state is added."""
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if "/live/" in request.url else None)
    return asked


@pytest_asyncio.fixture(loop_scope="session")
async def strict_page(new_page: NewPage) -> Page:
    """A page of the admin under a strict policy."""
    page = await new_page(admin=True)

    async def with_policy(route: Route) -> None:
        response = await route.fetch()
        await route.fulfill(response=response, headers={**response.headers, "content-security-policy": STRICT})

    await page.route(lambda url: "/admin/" in url and "/live/" not in url, with_policy)
    return page


async def test_running_one_updates_by_itself_and_says_when_it_has_ended(admin_page: Page, site: Site) -> None:
    asked = asked_of(admin_page)
    await open_invocation(admin_page, begin(site, "Count to 120.", stream=True))
    state = admin_page.locator(".invocations-state")
    await expect(state).to_contain_text("running")
    await expect(admin_page.get_by_text("This page keeps itself up to date.")).to_be_visible()
    await expect(state).to_contain_text("succeeded", timeout=20_000)
    await expect(admin_page.locator("[data-invocations-said]")).to_have_text("The invocation has ended: succeeded.")
    # The rest of the page is there as well.
    await expect(admin_page.locator(".invocations-timeline")).to_contain_text("Committed")
    await expect(admin_page.locator(".invocations-events")).to_contain_text("Events 1 to 100 of")
    await expect(admin_page.get_by_role("link", name="Cancel…")).to_have_count(0)
    count = len(asked)
    await asyncio.sleep(2.5)
    assert len(asked) == count


async def test_it_works_under_a_strict_policy(strict_page: Page, site: Site) -> None:
    await open_invocation(strict_page, begin(site, "Count to 60.", stream=True))
    await expect(strict_page.locator(".invocations-state")).to_contain_text("succeeded", timeout=20_000)


async def test_row_of_the_list_updates_by_itself(admin_page: Page, site: Site) -> None:
    session_id = begin(site, "Count to 80.", stream=True)
    await admin_page.goto(f"{INVOCATIONS}?q={session_id}")
    row = admin_page.locator("#result_list tbody tr")
    await expect(row).to_contain_text("running")
    await row.locator("input[type=checkbox]").check()
    await expect(row).to_contain_text("succeeded", timeout=20_000)
    await expect(row.locator(".field-duration")).not_to_have_text("-")


async def test_hidden_page_asks_for_nothing(admin_page: Page, site: Site) -> None:
    asked = asked_of(admin_page)
    await open_invocation(admin_page, begin(site, "Count to 200.", stream=True))
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    await admin_page.evaluate(hide, True)
    await asyncio.sleep(0.3)
    count = len(asked)
    await asyncio.sleep(2.5)
    assert len(asked) == count
    await admin_page.evaluate(hide, False)
    async with admin_page.expect_request("**/live/"):
        pass


async def test_whoever_is_signed_out_meanwhile_is_told(admin_page: Page, site: Site, guard: Guard) -> None:
    await open_invocation(admin_page, begin(site, "Count to 200.", stream=True))
    cookies = [cookie for cookie in await admin_page.context.cookies() if cookie["name"] != "sessionid"]
    await admin_page.context.clear_cookies()
    await admin_page.context.add_cookies(cookies)
    said = admin_page.locator("[data-invocations-said]")
    await expect(said).to_have_text("This page is not kept up to date any more. Load it again.")


async def test_selected_text_is_not_taken_away(admin_page: Page, site: Site) -> None:
    asked = asked_of(admin_page)
    await open_invocation(admin_page, begin(site, "Count to 200.", stream=True))
    await admin_page.locator(".invocations-timeline tbody th").first.select_text()
    count = len(asked)
    while len(asked) < count + 2:
        await asyncio.sleep(0.1)
    assert await admin_page.evaluate("document.getSelection().toString().trim()") == "Begun"


async def test_approval_is_given_on_the_page(admin_page: Page, site: Site) -> None:
    session_id = begin(site, "Book room Red for Monday.", background=False)
    await open_invocation(admin_page, session_id)
    form = admin_page.locator(".invocations-answer")
    await expect(form).to_contain_text("May book_room run?")
    await form.get_by_role("button", name="Answer").click()
    await expect(admin_page.locator(".errorlist")).to_have_text("This field is required.")
    await admin_page.get_by_label("Approve: it runs").check()
    await admin_page.get_by_role("button", name="Answer").click()
    await expect(admin_page.locator(".messagelist")).to_contain_text("Your answer was taken.")
    await expect(admin_page.locator(".invocations-state")).to_contain_text("succeeded")
    answer = admin_page.locator(".field-shown_answer")
    await expect(answer).to_contain_text("Red")


async def test_running_one_is_cancelled(admin_page: Page, site: Site) -> None:
    await open_invocation(admin_page, begin(site, "Hello.", "slow"))
    await admin_page.get_by_role("link", name="Cancel…").click()
    await expect(admin_page.get_by_role("heading", name="Cancel the invocation?")).to_be_visible()
    await admin_page.get_by_role("button", name="Yes, cancel").click()
    await expect(admin_page.locator(".messagelist")).to_have_text("1 invocation was cancelled.")
    await expect(admin_page.locator(".invocations-state")).to_contain_text("cancelled")


async def test_page_is_right_without_any_script(new_page: NewPage, site: Site) -> None:
    page = await new_page(admin=True, java_script_enabled=False)
    await open_invocation(page, begin(site, "Hello.", "slow"))
    await expect(page.locator(".invocations-state")).to_contain_text("running")
    await expect(page.get_by_text("This page keeps itself up to date.")).to_be_hidden()
    await expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    await page.get_by_role("link", name="Cancel…").click()
    await page.get_by_role("button", name="Yes, cancel").click()
    await expect(page.locator(".invocations-state")).to_contain_text("cancelled")


async def test_correlation_id_is_copied(new_page: NewPage, site: Site) -> None:
    page = await new_page(admin=True, permissions=["clipboard-read", "clipboard-write"])
    await open_invocation(page, begin(site, "Hello.", background=False))
    await page.get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    shown = await page.locator(".invocations-copied").inner_text()
    assert await page.evaluate("navigator.clipboard.readText()") == shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_small_screen_needs_no_scrolling_sideways(new_page: NewPage, site: Site, scheme: Any) -> None:
    page = await new_page(admin=True, viewport={"width": 360, "height": 700}, color_scheme=scheme)
    await open_invocation(page, begin(site, "unbreakable" * 100, background=False, stream=True))
    await page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    await open_invocation(page, begin(site, "Book room Red for Monday.", background=False))
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
