"""A session in the admin, in a real browser: read, opened, taken along, on small screens and in the dark."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewPage, Site

# The smallest picture that a browser takes for one: a GIF of one pixel.
GIF = (
    "data:image/gif;base64,"
    + base64.b64encode(
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00"
        b"\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    ).decode()
)
SESSIONS = "/admin/invocations_app/sessionrecord/"


@pytest.fixture
def talk(site: Site) -> str:
    """The id of a session with a picture, a tool's call, and an approval that was refused."""
    session_id = f"talk-{uuid.uuid4()}"

    def say(**body: Any) -> Any:
        return httpx.post(f"{site.url}/invocations/invoke", json={"session_id": session_id, **body}).json()

    contents = [{"type": "text", "text": "What is 6 * 7?"}, {"type": "data", "uri": GIF}]
    assert say(input=[{"role": "user", "contents": contents}])["response"] == "6 * 7 = 42"
    [pending] = say(message="Book room Red for Monday.")["pending"]
    say(responses={pending["request_id"]: {"approved": False, "reason": "too far"}})
    return session_id


async def open_session(page: Page, session_id: str) -> None:
    await page.goto(f"{SESSIONS}?q={session_id}")
    await page.get_by_role("link", name=session_id[:30]).click()
    await expect(page.get_by_role("heading", name="Transcript")).to_be_visible()


async def test_transcript_reads_as_a_conversation(admin_page: Page, talk: str) -> None:
    await open_session(admin_page, talk)
    calls = admin_page.locator(".invocations-call")
    await expect(calls).to_have_count(2)
    await expect(calls.nth(0).locator("pre").first).to_be_hidden()
    await calls.nth(0).locator("summary").press("Enter")
    await expect(calls.nth(0).locator("pre")).to_have_text(['{\n  "expression": "6 * 7"\n}', "42"])
    refused = admin_page.locator(".invocations-refused")
    await expect(refused).to_contain_text("Refused")
    await expect(refused.locator("q")).to_have_text("too far")
    picture = admin_page.locator("#transcript img")
    await picture.scroll_into_view_if_needed()
    assert await picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1


async def test_files_are_downloaded(admin_page: Page, talk: str, tmp_path: Path) -> None:
    await open_session(admin_page, talk)
    async with admin_page.expect_download() as waiting:
        await admin_page.get_by_role("link", name="Export as JSON").click()
    download = await waiting.value
    await download.save_as(tmp_path / "file")
    [session] = json.loads((tmp_path / "file").read_text())["sessions"]
    assert session["session_id"] == talk
    assert len(session["messages"]) == 9
    assert download.suggested_filename.endswith(f"-{talk}.json")
    async with admin_page.expect_download() as waiting:
        await admin_page.get_by_role("link", name="Export as Markdown").click()
    await (await waiting.value).save_as(tmp_path / "file")
    assert (tmp_path / "file").read_text().startswith(f"# Session `{talk}`\n")


async def test_list_filters_what_waits(admin_page: Page, site: Site) -> None:
    session_id = f"waits-{uuid.uuid4()}"
    body = {"message": "Book room Red for Monday.", "session_id": session_id}
    httpx.post(f"{site.url}/invocations/invoke", json=body)
    await admin_page.goto(SESSIONS)
    await admin_page.get_by_role("link", name="Waits for an answer").click()
    await expect(admin_page.get_by_role("link", name=session_id[:30])).to_be_visible()
    await admin_page.get_by_role("link", name="Nothing pending").click()
    await expect(admin_page.get_by_role("link", name=session_id[:30])).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_small_screen_needs_no_scrolling_sideways(new_page: NewPage, site: Site, talk: str, scheme: Any) -> None:
    page = await new_page(admin=True, viewport={"width": 360, "height": 700}, color_scheme=scheme)
    text = "unbreakable" * 100
    httpx.post(f"{site.url}/invocations/invoke", json={"message": text, "session_id": talk})
    await open_session(page, talk)
    await page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for box in await page.locator(".invocations-message").all():
        assert await box.evaluate("box => box.scrollWidth - box.clientWidth") <= 0
