"""The playground by keyboard, for a screen reader, on a narrow screen, and for those who want it calm."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Guard, NewPage
from tests.browser.playground import Playground

NARROW = {"viewport": {"width": 360, "height": 640}}
LONG = "Say: " + "Donaudampfschifffahrtsgesellschaftskapitän" * 6 + "\n\n| " + " | ".join("abcdefghij" * 8) + " |\n"

_FOCUSED = """() => { const one = document.activeElement;
  return one.id || one.name || one.closest("label, li, form")?.textContent.trim() || one.textContent.trim(); }"""


async def tabs(page: Page, *, key: str = "Tab", count: int) -> list[str]:
    """Press a key some times and return what was focused after each."""
    found = []
    for _ in range(count):
        await page.keyboard.press(key)
        found.append(str(await page.evaluate(_FOCUSED)))
    return found


async def test_order_of_the_focus_is_that_of_the_page(new_page: NewPage) -> None:
    page = await new_page(viewport={"width": 1500, "height": 900})
    await Playground(page).open()
    await expect(page.get_by_role("button", name="Count to 60.")).to_be_visible()
    await page.locator(".skip").focus()
    expected = [
        *("show-sessions", "endpoint", "Log in", "Admin", "show-wire", "new-session"),
        "scroller",
        *("What is 6 * 7?", "Show me some Markdown.", "Book room Blue for Friday.", "Count to 60."),
        *("message", "file", "mode", "send", "language", "snippet"),
    ]
    assert await tabs(page, count=len(expected)) == expected


async def test_everything_is_done_by_keyboard(play: Playground) -> None:
    page = play.page
    await expect(play.message).to_be_focused()
    await page.keyboard.type("first line")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("second line")
    await page.keyboard.press("Enter")
    await play.ended()
    assert await page.locator(".user .body").inner_text() == "first line\nsecond line"
    # The mode by the arrows, as of any group of radio buttons.
    assert await tabs(page, count=2) == ["file", "mode"]
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_label("Plain")).to_be_checked()
    await page.keyboard.press("ArrowLeft")
    await play.message.focus()
    await page.keyboard.type("Book room Blue for Friday.")
    await page.keyboard.press("Enter")
    await expect(page.locator(".pending")).to_be_visible()
    await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Drop the question")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("button", name="Refuse")).to_be_focused()
    await page.keyboard.press("Space")
    await expect(play.body).to_contain_text("you refused it.")
    await play.ended()
    await play.message.focus()
    await page.keyboard.type("Count to 60.")
    await page.keyboard.press("Enter")
    await expect(play.body).to_contain_text("2 …")
    await page.keyboard.press("Escape")
    await expect(play.answer).to_contain_text("Stopped.")


async def test_skip_link_leads_to_the_message(play: Playground) -> None:
    await play.page.get_by_role("button", name="Sessions").focus()
    await play.page.keyboard.press("Shift+Tab")
    skip = play.page.get_by_role("link", name="Skip to the message")
    await expect(skip).to_be_focused()
    await expect(skip).to_be_in_viewport()
    await play.page.keyboard.press("Enter")
    await expect(play.message).to_be_focused()


async def test_focus_is_seen(play: Playground) -> None:
    for _ in range(8):
        await play.page.keyboard.press("Shift+Tab")
        seen = await play.page.evaluate(
            """() => { const one = document.activeElement;
              const places = [one, one.nextElementSibling, one.closest("label"), one.closest(".composer")];
              return places.some((place) => { if (!place) return false; const style = getComputedStyle(place);
                return style.outlineStyle !== "none" || style.boxShadow.includes("1px"); }); }"""
        )
        assert seen, await play.page.evaluate("document.activeElement.outerHTML")


async def test_screen_reader_hears_the_answer_once_it_is_there(play: Playground) -> None:
    await play.page.evaluate(
        """() => { window.heard = []; const said = document.getElementById("said");
             new MutationObserver(() => heard.push(said.textContent)).observe(said, {childList: true}); }"""
    )
    await play.ask("What is 6 * 7?")
    await play.ask("Count to 40.")
    await play.ask("Book room Blue for Friday.")
    heard = await play.page.evaluate("heard")
    assert heard[:2] == ["The agent is answering.", "The agent says: 6 * 7 = 42"]
    assert heard[4:] == ["The agent is answering.", " The agent waits for your answer."]
    assert len(heard) == 6, "one for each, and none for a word"
    assert await play.page.locator("#conversation [aria-live], #conversation [role=log]").count() == 0


async def test_every_control_has_a_name(admin_page: Page) -> None:
    play = await Playground(admin_page).open()
    await play.ask("Show me some Markdown.")
    await play.ask("Book room Blue for Friday.")
    await admin_page.get_by_role("button", name="Wire").click()
    nameless = await admin_page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a, [tabindex='0'], aside, section")]
             .filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim()))
             .map((one) => one.outerHTML)"""
    )
    assert nameless == []


async def no_overflow(page: Page) -> None:
    """Check that the page is as wide as its screen, and that nothing that is used sticks out of it."""
    wide = await page.evaluate(
        """() => { const width = innerWidth;
             const out = [...document.querySelectorAll("button, select, textarea, .user, .agent, aside, header, form")]
               .filter((one) => one.checkVisibility()).map((one) => [one, one.getBoundingClientRect()])
               .filter(([, box]) => box.left < -1 || box.right > width + 1).map(([one]) => one.outerHTML.slice(0, 80));
             return [document.scrollingElement.scrollWidth - width, document.querySelector("#scroller").scrollWidth
               - document.querySelector("#scroller").clientWidth, out]; }"""
    )
    assert wide == [0, 0, []]


async def test_narrow_screen_has_no_horizontal_scrolling(new_page: NewPage) -> None:
    page = await new_page(**NARROW)
    play = await Playground(page).open()
    await no_overflow(page)
    for text in (LONG, "Show me some Markdown.", "x" * 400, "Book room " + "B" * 60 + " for Friday."):
        await play.ask(text)
        await no_overflow(page)
    await page.get_by_role("button", name="Wire").click()
    await no_overflow(page)
    await page.get_by_role("button", name="Sessions").click()
    await expect(page.locator("#wire")).to_be_hidden()
    await no_overflow(page)


async def test_narrow_screen_lays_panels_over_the_conversation(new_page: NewPage, guard: Guard) -> None:
    page = await new_page(**NARROW)
    play = await Playground(page).open()
    await expect(page.locator("#sessions")).to_be_hidden()
    opener = page.get_by_role("button", name="Sessions")
    await expect(opener).to_have_attribute("aria-expanded", "false")
    await opener.click()
    await expect(opener).to_have_attribute("aria-expanded", "true")
    await expect(page.get_by_role("button", name="New session")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#sessions")).to_be_hidden()
    await expect(opener).to_be_focused()
    # Escape closed the panel and stopped nothing; now it stops.
    await play.say("Count to 60.")
    await expect(play.body).to_contain_text("2 …")
    await opener.click()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    await page.keyboard.press("Escape")
    await expect(play.answer).to_contain_text("Stopped.")
    assert not [url for url in guard.requests if url.endswith("/cancel")][1:]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_stands_out(new_page: NewPage, scheme: str) -> None:
    page = await new_page(color_scheme=scheme, viewport={"width": 1500, "height": 900})
    play = await Playground(page).open()
    await play.ask("Show me some Markdown.")
    await play.ask("Book room Blue for Friday.")
    weak = await page.evaluate(
        """() => {
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const light = (colour) => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
            if (a < 255) return null;
            const [x, y, z] = [r, g, b].map((one) => one / 255)
              .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
            return 0.2126 * x + 0.7152 * y + 0.0722 * z;
          };
          const behind = (one) => { for (let at = one; at; at = at.parentElement) {
            const found = light(getComputedStyle(at).backgroundColor); if (found !== null) return found; } };
          return [...document.querySelectorAll("body *")]
            .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
            .filter((one) => one.checkVisibility() && !one.disabled && !one.closest("option, .offscreen"))
            .map((one) => [one, [light(getComputedStyle(one).color), behind(one)].sort((a, b) => b - a)])
            .filter(([, [a, b]]) => (a + 0.05) / (b + 0.05) < 4.5)
            .map(([one]) => one.outerHTML.slice(0, 100));
        }"""
    )
    assert weak == []


async def test_nothing_moves_for_who_wants_it_still(new_page: NewPage, guard: Guard) -> None:
    page = await new_page(reduced_motion="reduce")
    play = await Playground(page).open("slow")
    await play.choose("Plain")
    guard.allow("status of 409")
    await play.say("hello")
    await expect(page.locator(".wait")).to_be_visible()
    assert await page.evaluate("document.getAnimations().length") == 0
    await page.keyboard.press("Escape")


async def test_right_to_left_text_reads_so(play: Playground) -> None:
    await play.ask("Say: שלום עולם\n\nhello in between\n\n- אחת\n- שתיים")
    directions = await play.page.evaluate(
        """() => [...document.querySelectorAll(".user .body, .agent .body > p, .agent li")].map((one) => {
             const range = document.createRange(); range.selectNodeContents(one.firstChild);
             const text = range.getBoundingClientRect(), box = one.getBoundingClientRect();
             return text.left - box.left > box.right - text.right ? "right" : "left"; })"""
    )
    assert directions == ["left", "right", "left", "right", "right"]
