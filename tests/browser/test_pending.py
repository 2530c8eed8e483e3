"""Questions to a person, on the page: approve, refuse, reply, drop."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Guard
from tests.browser.playground import Playground

BOOK = "Book room Blue for Friday."


@pytest.mark.parametrize(
    ("button", "answer"),
    [("Approve", "Room Blue is booked for Friday."), ("Refuse", "Room Blue is not booked for Friday: you refused it.")],
)
@pytest.mark.parametrize("mode", ["Stream", "Plain"])
async def test_approval_is_given_or_refused(play: Playground, button: str, answer: str, mode: str) -> None:
    await play.choose(mode)
    invocation_id = await play.ask(BOOK)
    card = play.page.get_by_role("region", name="The agent waits for you")
    await expect(card).to_contain_text("May the agent call book_room?")
    await expect(card.locator("dd")).to_have_text(["Blue", "Friday"])
    assert (await play.status(invocation_id))["status"] == "awaiting_input"
    # The focus stays in the message: an Enter too many approves nothing.
    await expect(play.message).to_be_focused()
    await play.message.press("Enter")
    await expect(play.page.get_by_role("button", name="Send")).to_be_disabled()
    await card.get_by_role("button", name=button).click()
    await expect(play.body).to_have_text(answer)
    await expect(play.page.get_by_role("button", name="Send")).to_be_enabled()
    await expect(card.get_by_role("button", name="Approve")).to_be_disabled()
    assert (await play.status(invocation_id))["status"] == "succeeded"
    await play.ask("What did I say?")
    await expect(play.body).to_contain_text(BOOK)


async def test_question_is_there_again_after_a_reload(admin_page: Page) -> None:
    play = await Playground(admin_page).open()
    await play.ask(BOOK)
    await admin_page.reload()
    await expect(admin_page.locator("#session-list a[aria-current] b")).to_have_text("waits for you")
    await admin_page.get_by_role("button", name="Approve").click()
    await expect(play.body).to_have_text("Room Blue is booked for Friday.")
    await admin_page.reload()
    await expect(admin_page.locator(".pending")).to_have_count(0)
    await expect(admin_page.locator(".tool summary")).to_have_text(["Asked to call book_room", "Result"])
    await expect(play.body).to_have_text("Room Blue is booked for Friday.")


async def test_question_is_dropped(play: Playground) -> None:
    invocation_id = await play.ask(BOOK)
    await play.page.get_by_role("button", name="Drop the question").click()
    await expect(play.page.get_by_text("The question was dropped.")).to_be_visible()
    assert (await play.status(invocation_id))["status"] == "cancelled"
    await play.ask("What is 6 * 7?")
    await expect(play.body).to_have_text("6 * 7 = 42")


async def test_question_that_was_answered_elsewhere_is_told(play: Playground, guard: Guard) -> None:
    guard.allow("status of 422")
    invocation_id = await play.ask(BOOK)
    session = (await play.status(invocation_id))["session_id"]
    [request] = (await play.status(invocation_id))["pending"]
    body = {"responses": {request["request_id"]: False}, "session_id": session}
    assert (await play.page.request.post("/invocations/invoke", data=json.dumps(body))).ok
    await play.page.get_by_role("button", name="Approve").click()
    await expect(play.answer.locator(".failure")).to_contain_text(
        "'responses' must answer exactly the pending requests"
    )
    await play.page.reload()
    await expect(play.page.locator(".pending")).to_have_count(0)


async def test_message_into_a_session_that_waits_shows_its_question(play: Playground, guard: Guard) -> None:
    guard.allow("status of 409")
    session = "asked-elsewhere"
    await play.open(session=session)
    body = json.dumps({"message": BOOK, "session_id": session})
    assert (await play.page.request.post("/invocations/invoke", data=body)).ok
    await play.ask("hello")
    await expect(play.answer.locator(".failure")).to_contain_text("the session awaits responses")
    await play.page.get_by_role("button", name="Approve").click()
    await expect(play.body).to_have_text("Room Blue is booked for Friday.")


async def test_workflow_asks_and_is_given_a_text(play: Playground) -> None:
    await play.open("announcement")
    await expect(play.page.get_by_text("Attach images")).to_be_hidden()
    await play.ask("the library is open on sunday")
    card = play.page.locator(".pending")
    await expect(card).to_contain_text("May this stand? Reply yes, or tell a better text.")
    await expect(card.locator("dd")).to_have_text("The library is open on sunday.")
    await card.get_by_label("Reply", exact=True).fill("The library is open on Sunday")
    await card.get_by_role("button", name="Reply").click()
    again = play.answer.locator(".pending")
    await expect(again.locator("dd")).to_have_text("The library is open on Sunday.")
    await again.get_by_label("Reply", exact=True).fill("yes")
    await again.get_by_label("Reply", exact=True).press("Enter")
    await expect(play.body.get_by_role("heading", name="Announcement")).to_be_visible()
    await expect(play.body).to_contain_text("The library is open on Sunday.")


async def test_reply_as_json_is_checked_here_and_there(play: Playground, guard: Guard) -> None:
    guard.allow("status of 422")
    await play.open("announcement")
    await play.choose("JSON")
    await play.message.fill("{")
    await play.message.press("Enter")
    await expect(play.page.get_by_role("status")).to_contain_text("This is no JSON:")
    await play.ask('"a text as JSON"')
    card = play.page.locator(".pending").first
    await card.get_by_label("Form of the reply").select_option("json")
    await card.get_by_label("Reply", exact=True).fill("yes")
    await card.get_by_role("button", name="Reply").click()
    await expect(card.get_by_role("alert")).to_contain_text("This is no JSON:")
    # JSON, but no text, which is what the workflow asks for: refused, and the question stays open.
    await card.get_by_label("Reply", exact=True).fill("5")
    await card.get_by_role("button", name="Reply").click()
    await expect(play.answer.locator(".failure")).to_contain_text(
        "'responses' must answer exactly the pending requests"
    )
    await card.get_by_label("Reply", exact=True).fill('"yes"')
    await card.get_by_role("button", name="Reply").click()
    await expect(play.body).to_contain_text("A text as JSON.")


async def test_several_questions_are_answered_together(play: Playground) -> None:
    await play.open("asking")
    await play.choose("Plain")
    await play.ask("do it all")
    card = play.page.locator(".pending")
    blue, red, ring = (card.locator("form").nth(number) for number in range(3))
    await blue.get_by_role("button", name="Approve").click()
    # The next one that is open.
    await expect(red.get_by_role("button", name="Approve")).to_be_focused()
    await expect(blue.get_by_role("button", name="Refuse")).to_be_disabled()
    await red.get_by_role("button", name="Refuse").click()
    await expect(ring).to_contain_text("Carry out ring and tell its result.")
    await expect(ring.locator("dd")).to_have_text("2")
    reply = ring.get_by_label("Reply", exact=True)
    await expect(reply).to_be_focused()
    await reply.fill('{"rang": ["ding", "dong"]}')
    async with play.page.expect_request("**/asking/invoke") as asked:
        await reply.press("Enter")
    body = (await asked.value).post_data_json
    assert isinstance(body, dict)
    assert list(body["responses"].values()) == [True, False, {"rang": ["ding", "dong"]}]
    await expect(play.body).to_contain_text("Room Blue is booked for Friday.")
    await expect(play.body).to_contain_text("Room Red is not booked for Friday: you refused it.")
    await expect(play.body).to_contain_text('{"rang": ["ding", "dong"]}')
    said = play.page.locator(".user .body").last
    assert (await said.inner_text()).startswith("Approved: book_room\nRefused: book_room\n")
