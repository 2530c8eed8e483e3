"""Every page of the app's admin, with sample data: errors, colours, names, narrow screens, and the keyboard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from playwright.async_api import Page, expect

from scripts.demo_check import ROOT
from tests.browser.conftest import NewPage, Site

ADMIN = "/admin/invocations_app/"
SESSIONS = f"{ADMIN}sessionrecord/"
# Django's own pages, for what is its own doing.
STOCK = ("/admin/", "/admin/auth/user/", "/admin/auth/user/1/change/", "/admin/auth/user/1/history/")

#: Addresses of one page of each kind there is, and of each that looks different.
PAGES_OF_DATA = """
from invocations_app.models import CheckpointRecord, InvocationRecord, SessionRecord
for record in SessionRecord.objects.filter(user__username__in=["ada", "grace", "hedy"]):
    print("page", f"sessionrecord/{record.pk}/change/")
print("page", f"sessionrecord/{record.pk}/history/")
checkpoint = CheckpointRecord.objects.first()
print("page", f"sessionrecord/{checkpoint.session_record_id}/checkpoints/")
print("page", f"sessionrecord/{checkpoint.session_record_id}/checkpoints/{checkpoint.pk}/")
talked = InvocationRecord.objects.filter(session_record__user__username__in=["ada", "grace", "hedy"])
for status in talked.values_list("status", "endpoint").distinct():
    record = talked.filter(status=status[0], endpoint=status[1]).first()
    print("page", f"invocationrecord/{record.pk}/change/")
    if status[0] == "awaiting_input":
        print("page", f"invocationrecord/{record.pk}/cancel/")
print("page", f"invocationrecord/{record.pk}/history/")
for status in ("cancelled", "interrupted"):
    print("page", f"invocationrecord/{InvocationRecord.objects.filter(status=status).first().pk}/change/")
"""
WITHOUT_DATA = (
    "",
    "sessionrecord/",
    "sessionrecord/?q=nothing",
    "sessionrecord/graph/announcement/",
    "invocationrecord/",
    "invocationrecord/?q=nothing",
)


@pytest.fixture(scope="module")
def pages(site: Site) -> list[str]:
    """The addresses of all pages, with a week of sample data behind them."""
    command = [sys.executable, "-W", "ignore", "scripts/sample_data.py", "--runs-a-day", "60"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **site.environment}, check=True)
    printed = re.findall(r"^page (\S+)$", site.manage("shell", "-c", PAGES_OF_DATA), re.MULTILINE)
    assert len(printed) > 15
    return [ADMIN + path for path in (*WITHOUT_DATA, *printed)]


async def wait_until_loaded(page: Page, path: str) -> None:
    response = await page.goto(path)
    assert response is not None
    assert response.ok, f"{path}: {response.status}"
    await page.wait_for_load_state("load")


async def open_folds(page: Page) -> None:
    await page.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")


# The colours of each text that stands in something of the app's, and of what is behind it.
FAINT_TEXTS = """
() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [red, green, blue] = channels(color).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (let here = element; here; here = here.parentElement) {
      const color = getComputedStyle(here).backgroundColor;
      const [, , , alpha = 1] = channels(color);
      if (alpha === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const element of document.querySelectorAll("[class*='invocations-'], [class*='invocations-'] *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest("svg")) continue;
    const color = getComputedStyle(element).color;
    const values = [light(color), light(behind(element))];
    const ratio = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${element.className || element.tagName}: ${text.slice(0, 30)}`);
  }
  return faint;
}
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_loads_without_a_problem_and_can_be_read(
    new_page: NewPage, pages: list[str], scheme: Any
) -> None:
    page = await new_page(admin=True, color_scheme=scheme)
    faint, nameless = {}, {}
    for path in pages:
        await wait_until_loaded(page, path)
        await open_folds(page)
        if found := await page.evaluate(FAINT_TEXTS):
            faint[path] = found
        pictures = page.locator("main :is(svg, img):visible")
        named = page.locator("main").get_by_role("img", name=re.compile(r"\S"))
        if await pictures.count() != await named.count():
            nameless[path] = await pictures.evaluate_all("all => all.map((one) => one.outerHTML.slice(0, 120))")
    assert (faint, nameless) == ({}, {})
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 18, 18)")


async def sideways(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    pixels: int = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return pixels


@pytest.mark.timeout(120)
async def test_no_page_is_wider_on_a_narrow_screen_than_djangos_own(new_page: NewPage, pages: list[str]) -> None:
    page = await new_page(admin=True, viewport={"width": 360, "height": 740})
    allowed = 0
    for path in STOCK:
        await wait_until_loaded(page, path)
        allowed = max(allowed, await sideways(page))
    wide = {}
    # A history is Django's own page, as wide as the name of what it is the history of.
    for path in [path for path in pages if not path.endswith("/history/")]:
        await wait_until_loaded(page, path)
        await open_folds(page)
        if (pixels := await sideways(page)) > allowed:
            wide[path] = pixels
    assert wide == {}


async def test_folds_of_a_transcript_are_reached_and_opened_by_the_keyboard(admin_page: Page, pages: list[str]) -> None:
    await admin_page.goto(f"{SESSIONS}?q=garden")
    await admin_page.locator("#result_list tbody tr", has_text="ada").locator("th a").click()
    fold = admin_page.locator(".invocations-call").first
    await admin_page.locator("#transcript a").first.focus()
    for _ in range(40):
        await admin_page.keyboard.press("Tab")
        if await fold.locator("summary").evaluate("summary => summary === document.activeElement"):
            break
    await expect(fold.locator("summary")).to_be_focused()
    await admin_page.keyboard.press("Space")
    await expect(fold.locator("pre").first).to_be_visible()
