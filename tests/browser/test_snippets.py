"""The exact request, to copy: each of the programs is run, and gets the answer that the page got."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewPage
from tests.browser.playground import Playground
from tests.browser.test_images import picture, png
from tests.frames import read_events

WIDE = {"viewport": {"width": 1500, "height": 900}}
# What shells, Python and JavaScript would each take for something else.
AWKWARD = (
    "Say: It's \"quoted\" $HOME `id` $(id) \\n \\\\ 100% ! # {\"a\": 1} '''x''' \"\"\" ${x} 👩‍🚀 ü\u2028\n\nnew line\t."
)


async def snippet(page: Page, language: str) -> str:
    """Return what the pane shows in a language."""
    await page.locator("#wire label", has_text=language).click()
    return await page.locator("#snippet").text_content() or ""


async def run(page: Page, language: str, program: str) -> str:
    """Run a program of the pane and return what it prints."""
    if language == "JavaScript":
        # In the console of the page itself, which may do what the page's own scripts may not.
        printed = await page.evaluate(
            f"""async () => {{ const printed = []; const console = {{ log: (one) => printed.push(one) }};
            {program}
            return printed.map((one) => typeof one === "string" ? one : JSON.stringify(one)).join(""); }}"""
        )
        return str(printed)
    cookies = {cookie["name"]: cookie["value"] for cookie in await page.context.cookies()}  # type: ignore[typeddict-item]
    own = {"SESSIONID": cookies.get("sessionid", ""), "CSRFTOKEN": cookies.get("csrftoken", "")}
    command = ["/bin/sh", "-s"] if language == "curl" else [sys.executable, "-"]
    env = {**os.environ, **own, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, input=program, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def text_of(printed: str, mode: str) -> str:
    """Return the answer's text."""
    if mode == "Plain":
        return str(json.loads(printed)["response"])
    events = read_events(printed.encode())
    assert events[-1].data == "[DONE]"
    return "".join(event.data for event in events[:-1])


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
@pytest.mark.parametrize("mode", ["Stream", "Plain"])
@pytest.mark.parametrize("admin", [False, True], ids=["nobody", "admin"])
async def test_shown_program_gets_the_same_answer(new_page: NewPage, language: str, mode: str, admin: bool) -> None:
    play = await Playground(await new_page(admin=admin, **WIDE)).open()
    await play.choose(mode)
    invocation_id = await play.ask(AWKWARD)
    stored = await play.status(invocation_id)
    program = await snippet(play.page, language)
    assert invocation_id in program
    printed = await run(play.page, language, program)
    assert text_of(printed, mode) == stored["response"] == AWKWARD.removeprefix("Say: ")
    # Without the id it is another turn of the session.
    await play.page.get_by_label("with its id").uncheck()
    program = await snippet(play.page, language)
    assert invocation_id not in program
    assert text_of(await run(play.page, language, program), mode) == stored["response"]


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
async def test_program_with_an_image_is_copied_whole(new_page: NewPage, language: str) -> None:
    page = await new_page(permissions=["clipboard-read", "clipboard-write"], **WIDE)
    play = await Playground(page).open()
    await page.set_input_files("#file", [picture("noise.png", png(500, 500, noise=True))])
    await expect(page.get_by_label("Attached images").get_by_role("listitem")).to_have_count(1)
    invocation_id = await play.ask("look")
    shown = await snippet(page, language)
    assert len(shown) < 3_000
    assert "…" in shown
    await page.locator("#snippet-tools").get_by_role("button", name="Copy").click()
    await expect(page.locator("#snippet-tools").get_by_role("button", name="Copied")).to_be_visible()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert len(copied) > 131_072, "more than an argument may have"
    assert text_of(await run(page, language, copied), "Stream") == (await play.status(invocation_id))["response"]


async def test_copy_works_without_a_clipboard(new_page: NewPage) -> None:
    page = await new_page(**WIDE)
    await page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    play = await Playground(page).open()
    await play.message.fill("to be copied")
    copy = page.locator("#snippet-tools").get_by_role("button")
    await copy.click()
    await expect(copy).to_have_text("Copied")
    await expect(copy).to_be_focused()
    await play.message.fill("")
    await play.message.press("ControlOrMeta+V")
    assert "curl -sSN" in await play.message.input_value()
    await page.evaluate("document.execCommand = () => false")
    await copy.click()
    await expect(copy).to_have_text("Select it and press Ctrl+C")


async def test_draft_is_shown_before_it_is_sent(new_page: NewPage) -> None:
    page = await new_page(**WIDE)
    play = await Playground(page).open(session="drafted")
    await play.message.fill("not sent yet")
    shown = await snippet(page, "curl")
    assert """-d '{"message":"not sent yet","session_id":"drafted","stream":true}'""" in shown
    assert "x-agent-invocation-id" not in shown
    await expect(page.get_by_label("with its id")).to_be_hidden()
    await play.choose("Plain")
    await expect(page.locator("#snippet")).to_contain_text('"stream":false')


async def test_reply_is_shown_as_what_was_sent(new_page: NewPage) -> None:
    page = await new_page(**WIDE)
    play = await Playground(page).open()
    await play.ask("Book room Blue for Friday.")
    await page.get_by_role("button", name="Approve").click()
    await play.ended()
    await expect(play.body).to_have_text("Room Blue is booked for Friday.")
    shown = await snippet(page, "Python")
    assert '"responses": {' in shown
    assert ": True," in shown
    assert text_of(await run(page, "Python", shown), "Stream") == "Room Blue is booked for Friday."
