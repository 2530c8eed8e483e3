"""Take the pictures in ``docs/images``: the demonstration site with sample data, in a browser without a window.

    make screenshots

Each is one page at one width and in one colour scheme. Times and random ids
differ from one run to the next; everything else is the same. Needs Chromium on
the machine; none is downloaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from scripts.demo_check import ROOT, running_demo
from scripts.sample_data import ADMIN

IMAGES = ROOT / "docs" / "images"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WIDE = (1280, 800)
# As wide as the playground needs to show all that it has side by side.
_WIDER = (1500, 800)
_NARROW = (360, 740)


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: Its file's name, without ``.png``.
        show: Brings the page to what is to be seen.
        size: Width and height in pixels.
        is_dark: Whether the browser asks for dark pages.
    """

    name: str
    show: Callable[[Page], None]
    size: tuple[int, int] = _WIDE
    is_dark: bool = False


def _say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Send").wait_for(timeout=30_000)


def _playground(page: Page) -> None:
    page.goto("/?session=garden%20party")
    for text in ("What is 6 * 7?", "Show me some Markdown.", "Book room Blue for Friday."):
        _say(page, text)
    page.get_by_role("button", name="Approve").scroll_into_view_if_needed()


def _playground_again(page: Page) -> None:
    page.goto("/?session=garden%20party")
    page.get_by_role("button", name="Approve").scroll_into_view_if_needed()


def _playground_wire(page: Page) -> None:
    page.goto("/?session=first%20steps")
    _say(page, "Show me some Markdown.")
    _say(page, "What is 6 * 7?")


def _overview(page: Page) -> None:
    page.goto("/admin/invocations_app/")


def _sessions(page: Page) -> None:
    page.goto("/admin/invocations_app/sessionrecord/")


def _transcript(page: Page) -> None:
    page.goto("/admin/invocations_app/sessionrecord/?q=garden")
    page.locator("#result_list tbody tr", has_text="ada").locator("th a").click()
    page.locator(".invocations-call").nth(1).locator("summary").first.click()
    page.locator("#transcript").evaluate("transcript => transcript.scrollIntoView()")


def _graph(page: Page) -> None:
    page.goto("/admin/invocations_app/sessionrecord/graph/announcement/")


def _invocations(page: Page) -> None:
    page.request.post(
        "/invocations/invoke",
        data={"message": "Count to 150.", "session_id": "count", "stream": True, "background": True},
        headers={"X-CSRFToken": next(c["value"] for c in page.context.cookies() if c["name"] == "csrftoken")},
    )
    page.goto("/admin/invocations_app/invocationrecord/")


def _invocation(page: Page) -> None:
    page.goto("/admin/invocations_app/invocationrecord/?status__exact=awaiting_input")
    page.locator("#result_list tbody th a").first.click()


SHOTS = (
    Shot("playground", _playground),
    Shot("playground-dark", _playground_again, is_dark=True),
    Shot("playground-narrow", _playground_again, size=_NARROW),
    Shot("playground-wire", _playground_wire, size=_WIDER),
    Shot("overview", _overview),
    Shot("overview-dark", _overview, is_dark=True),
    Shot("sessions", _sessions),
    Shot("transcript", _transcript),
    Shot("workflow", _graph),
    Shot("invocations", _invocations),
    Shot("invocation", _invocation),
)


def main() -> int:
    """Make the data, start the site, take the pictures; return the exit status."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, default=IMAGES, help="folder for the pictures (default: %(default)s)")
    into: Path = parser.parse_args().into
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        print("screenshots: there is no Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="screenshots-") as directory:
        own = {"DATABASE_URL": f"sqlite:///{directory}/site.sqlite3", "DEBUG": "1"}
        subprocess.run([sys.executable, str(ROOT / "scripts" / "sample_data.py")], env=os.environ | own, check=True)
        with running_demo(own) as url, sync_playwright() as playwright:
            # Chromium has no sandbox for root; the pages are our own.
            browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
            _take(browser, url, into)
            browser.close()
    return 0


def _take(browser: Browser, url: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(base_url=url)
    page = context.new_page()
    page.goto("/admin/login/?next=/admin/")
    page.get_by_label("Username").fill(ADMIN)
    page.get_by_label("Password").fill(ADMIN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin/")
    state = context.storage_state()
    context.close()
    for shot in SHOTS:
        width, height = shot.size
        context = browser.new_context(
            base_url=url,
            storage_state=state,
            viewport={"width": width, "height": height},
            color_scheme="dark" if shot.is_dark else "light",
            locale="en-GB",
            timezone_id="UTC",
        )
        # The pages have the width to themselves.
        context.add_init_script("localStorage.setItem('django.admin.navSidebarIsOpen', 'false')")
        page = context.new_page()
        shot.show(page)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=into / f"{shot.name}.png", animations="disabled", caret="hide")
        print(f"{shot.name}: {(into / f'{shot.name}.png').stat().st_size // 1024} KiB", flush=True)
        context.close()


if __name__ == "__main__":
    sys.exit(main())
