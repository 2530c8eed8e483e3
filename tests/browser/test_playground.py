"""The playground in a browser: answers as they come, stopping, leaving and coming back, sessions, errors."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Guard, NewPage, Site
from tests.browser.playground import Playground


def text_of_count(last: int) -> str:
    """Return what the page shows of "Count to …"."""
    return "\n".join(f"{number} …" for number in range(1, last + 1))


async def test_answer_appears_as_it_streams(play: Playground) -> None:
    invocation_id = await play.say("Count to 30.")
    lengths: list[int] = []
    while await play.page.get_by_role("button", name="Stop").is_visible():
        assert await play.answer.get_attribute("aria-busy") in ("true", None)
        lengths.append(len(await play.body.inner_text()))
        await asyncio.sleep(0.05)
    assert len(set(lengths)) > 4
    assert lengths == sorted(lengths)
    await expect(play.answer).not_to_have_attribute("aria-busy", "true")
    assert await play.body.inner_text() == text_of_count(30)
    assert (await play.status(invocation_id))["status"] == "succeeded"


async def test_frames_are_shown_as_they_came_with_their_times(new_page: NewPage) -> None:
    play = await Playground(await new_page(viewport={"width": 1500, "height": 900})).open()
    await play.ask("What is 6 * 7?")
    rows = await play.frames.locator("code").all_inner_texts()
    assert rows == [
        "POST /invocations/invoke",
        "200 OK · text/event-stream; charset=utf-8",
        *[f"data: {piece}" for piece in ("6", " *", " 7", " =", " 42", "[DONE]")],
    ]
    times = [
        float(re.fullmatch(r"\+(\d+\.\d{3}) s", text)[1])  # type: ignore[index]
        for text in await play.frames.locator("time").all_inner_texts()
    ]
    assert times == sorted(times)
    # The stand-in takes 30 milliseconds for a word; a slow browser sees some of them together, and none earlier.
    assert times[6] - times[0] > 0.09
    assert len(set(times)) > 2
    await expect(play.page.locator("#frames-figures")).to_have_text("6 frames, 52 bytes")


async def test_plain_answer_comes_at_once(play: Playground) -> None:
    await play.choose("Plain")
    async with play.page.expect_response("**/invocations/invoke") as answered:
        await play.ask("What is 6 * 7?")
    answer = await answered.value
    assert answer.request.post_data_json["stream"] is False
    assert (await answer.json())["response"] == await play.body.inner_text() == "6 * 7 = 42"


@pytest.mark.parametrize("how", ["button", "Escape"])
@pytest.mark.parametrize("mode", ["Stream", "Plain"])
async def test_stop_cancels_on_the_server(play: Playground, guard: Guard, how: str, mode: str) -> None:
    # Stopped, a plain answer is an error of HTTP.
    guard.allow("status of 409")
    await play.open("slow")
    await play.choose(mode)
    invocation_id = await play.say("Count to 400.")
    if mode == "Stream":
        await expect(play.body).to_contain_text("3 …")
    if how == "Escape":
        await play.page.keyboard.press("Escape")
    else:
        await play.page.get_by_role("button", name="Stop").click()
    await play.ended()
    await expect(play.answer).to_contain_text("Stopped. The session does not have this turn.")
    told = await play.status(invocation_id, "slow")
    assert (told["status"], told["error"]["code"]) == ("cancelled", "cancelled")
    await expect(play.page.locator(".failure")).to_have_count(0)
    await play.choose("Stream")
    await play.ask("What did I say?")
    await expect(play.body).to_have_text("Nothing before this.")


async def test_reload_during_a_run_picks_it_up(play: Playground) -> None:
    invocation_id = await play.say("Count to 40.")
    await expect(play.body).to_contain_text("5 …")
    await play.page.reload()
    await expect(play.page.locator(".user .body")).to_have_text("Count to 40.")
    assert (await play.status(invocation_id))["status"] == "running"
    await expect(play.body).to_contain_text("9 …")
    await expect(play.page.get_by_role("button", name="Stop")).to_be_visible()
    await play.ended()
    assert await play.body.inner_text() == text_of_count(40)
    await play.page.reload()
    await expect(play.page.locator("#conversation > li")).to_have_count(2)
    assert await play.body.inner_text() == text_of_count(40)


async def test_run_that_ended_while_nobody_looked_is_shown(play: Playground) -> None:
    address = play.page.url
    invocation_id = await play.say("Count to 20.")
    # A page that is left before its request is out has sent nothing.
    await expect(play.body).to_contain_text("2 …")
    await play.page.goto("/readiness")
    while (await play.status(invocation_id))["status"] == "running":
        await asyncio.sleep(0.1)
    await play.page.goto(address)
    await expect(play.page.locator("#conversation > li")).to_have_count(2)
    assert await play.body.inner_text() == text_of_count(20)


async def test_other_session_can_be_looked_at_during_a_run(play: Playground) -> None:
    await play.say("Count to 40.")
    await expect(play.body).to_contain_text("3 …")
    await play.page.get_by_role("button", name="New session").click()
    await expect(play.page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    await play.ask("What is 1 + 1?")
    await expect(play.body).to_have_text("1 + 1 = 2")
    await play.page.get_by_role("link", name="Count to 40.").click()
    await expect(play.page.get_by_role("button", name="Stop")).to_be_visible()
    await play.ended()
    assert await play.body.inner_text() == text_of_count(40)
    await play.page.go_back()
    await expect(play.body).to_have_text("1 + 1 = 2")


async def test_second_page_follows_the_same_run(admin_page: Page, new_page: NewPage) -> None:
    play = await Playground(admin_page).open(session="followed")
    await play.say("Count to 40.")
    await expect(play.body).to_contain_text("3 …")
    # Another browser of the same user: what was said is not there yet, the answer is.
    other = await Playground(await new_page(admin=True)).open(session="followed")
    await expect(other.body).to_contain_text("3 …")
    await other.page.get_by_role("button", name="Stop").click()
    for one in (play, other):
        await one.ended()
        await expect(one.answer).to_contain_text("Stopped.")


async def test_cut_stream_goes_on_where_it_was_cut(play: Playground, site: Site, guard: Guard) -> None:
    read = 7

    async def cut(route: Route) -> None:
        request = route.request
        async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
            headers = {"x-agent-invocation-id": request.headers["x-agent-invocation-id"]}
            async with client.stream("POST", "/invocations/invoke", content=request.post_data, headers=headers) as sent:
                got = b""
                async for piece in sent.aiter_raw():
                    got += piece
                    if got.count(b"\n\n") >= read:
                        break
        begun = b"\n\n".join(got.split(b"\n\n")[:read]) + b"\n\n"
        await route.fulfill(status=200, headers={"Content-Type": "text/event-stream"}, body=begun)

    await play.page.route("**/invocations/invoke", cut, times=1)
    async with play.page.expect_request("**/events") as followed:
        await play.ask("Count to 20.")
    assert (await followed.value).headers["last-event-id"] == str(read)
    assert await play.body.inner_text() == text_of_count(20)
    assert len([url for url in guard.requests if url.endswith("/events")]) == 1


async def test_request_that_never_arrived_is_sent_again(play: Playground, guard: Guard) -> None:
    guard.allow("net::ERR_FAILED")
    ids: list[str] = []

    async def fail(route: Route) -> None:
        ids.append(route.request.headers["x-agent-invocation-id"])
        await route.abort()

    await play.page.route("**/invocations/invoke", fail, times=2)
    invocation_id = await play.say("What is 6 * 7?")
    await expect(play.page.get_by_role("status")).to_contain_text("The connection was lost. Trying again in")
    await play.ended()
    await expect(play.body).to_have_text("6 * 7 = 42")
    assert ids == [invocation_id] * 2
    await expect(play.page.get_by_role("status")).to_have_text("")


# Sessions


async def test_message_waits_until_the_earlier_ones_are_shown(play: Playground) -> None:
    await play.ask("What is 6 * 7?")

    async def delay(route: Route) -> None:
        await asyncio.sleep(0.3)
        await route.continue_()

    await play.page.route("**/sessions?id=*", delay)
    await play.page.reload()
    await play.message.fill("What is 1 + 1?")
    await play.message.press("Enter")
    await expect(play.page.locator("#conversation .body")).to_have_text(
        ["What is 6 * 7?", "6 * 7 = 42", "What is 1 + 1?", "1 + 1 = 2"]
    )


async def test_message_that_waited_is_not_sent_into_another_session(play: Playground, guard: Guard) -> None:
    await play.ask("What is 6 * 7?")
    asked = len([url for url in guard.requests if url.endswith("/invoke")])
    may_come = asyncio.Event()

    async def delay(route: Route) -> None:
        await may_come.wait()
        await route.continue_()

    await play.page.route("**/sessions?id=*", delay, times=1)
    await play.page.reload()
    await play.message.fill("What is 1 + 1?")
    await play.message.press("Enter")
    await play.page.get_by_role("button", name="New session").click()
    async with play.page.expect_response("**/sessions?id=*"):
        may_come.set()
    await play.page.wait_for_timeout(200)
    assert len([url for url in guard.requests if url.endswith("/invoke")]) == asked
    await expect(play.message).to_have_value("What is 1 + 1?")
    await play.message.press("Enter")
    await expect(play.page.locator("#conversation .body")).to_have_text(["What is 1 + 1?", "1 + 1 = 2"])


async def test_earlier_sessions_of_the_user_are_listed_and_shown(admin_page: Page) -> None:
    play = await Playground(admin_page).open()
    await play.ask("My name is Ada, what is more.")
    await play.ask("What is 6 * 7?")
    await admin_page.get_by_role("button", name="New session").click()
    await play.ask("What is my name?")
    await expect(play.body).to_have_text("You have not told me your name.")
    await admin_page.get_by_role("link", name="My name is Ada, what is more.").click()
    await expect(admin_page.locator(".user .body")).to_have_text(["My name is Ada, what is more.", "What is 6 * 7?"])
    await expect(admin_page.get_by_text("Called calculate")).to_be_visible()
    await expect(play.body).to_have_text("6 * 7 = 42")
    await play.ask("What is my name?")
    await expect(play.body).to_have_text("Your name is Ada.")
    current = admin_page.locator("#session-list a[aria-current=page]")
    await expect(current).to_have_count(1)
    await expect(current).to_contain_text("My name is Ada")


async def test_own_sessions_only(new_page: NewPage, admin_page: Page) -> None:
    mine = await Playground(admin_page).open(session="mine")
    await mine.ask("A secret of the admin's.")
    other = await Playground(await new_page()).open(session="mine")
    await expect(other.page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    await other.ask("What did I say?")
    await expect(other.body).to_have_text("Nothing before this.")
    await expect(other.page.locator("#session-list a")).to_have_count(1)


async def test_endpoint_is_chosen_and_kept(play: Playground) -> None:
    await play.page.get_by_label("Endpoint").select_option("announcement")
    await expect(play.page).to_have_url(re.compile(r"\?endpoint=announcement$"))
    await play.page.goto("/")
    await expect(play.page.get_by_label("Endpoint")).to_have_value("announcement")


# Errors


@pytest.mark.parametrize("mode", ["Stream", "Plain"])
async def test_failure_is_shown_with_its_code_and_correlation_id(
    admin_page: Page, guard: Guard, site: Site, mode: str
) -> None:
    guard.allow("status of 500")
    play = await Playground(admin_page).open("breaking")
    await play.choose(mode)
    invocation_id = await play.ask("hello")
    failure = play.answer.locator(".failure")
    await expect(failure).to_contain_text("Agent invocation failed.")
    await expect(failure).to_contain_text("invocation_failed · HTTP 500")
    code = (
        "from invocations_app.models import *; print(InvocationRecord.objects.get(invocation_id='{}').correlation_id)"
    )
    correlation_id = site.manage("shell", "-v", "0", "-c", code.format(invocation_id)).strip()
    await expect(failure.locator("code")).to_have_text(correlation_id)
    if mode == "Stream":
        await expect(play.body).to_have_text("so far")
    await failure.get_by_role("link", name="open in the admin").click()
    await expect(admin_page.get_by_text(correlation_id).first).to_be_visible()


async def test_refusal_gives_the_text_back(play: Playground, guard: Guard) -> None:
    guard.allow("status of 422")
    text = "x" * 20_001
    await play.ask(text)
    await expect(play.answer.locator(".failure")).to_contain_text("'message' has 20001 characters, 20000 are allowed")
    await expect(play.answer.locator(".failure")).to_contain_text("HTTP 422")
    await expect(play.message).to_have_value(text)


async def test_what_is_too_large_is_not_sent_and_stays(play: Playground, guard: Guard) -> None:
    await play.open("small")
    await play.message.fill("ü" * 30_000)
    await play.message.press("Enter")
    await expect(play.page.get_by_role("status")).to_have_text("This is too large: the endpoint takes 60000 bytes.")
    await expect(play.message).to_have_value("ü" * 30_000)
    assert [url for url in guard.requests if url.endswith("/invoke")] == []


async def test_server_that_cannot_be_asked_to_stop_is_told(play: Playground, guard: Guard) -> None:
    guard.allow("net::ERR_FAILED")
    await play.page.route("**/cancel", lambda route: route.abort(), times=1)
    await play.say("Count to 40.")
    await expect(play.body).to_contain_text("2 …")
    await play.page.keyboard.press("Escape")
    await expect(play.page.get_by_role("status")).to_have_text("The server could not be asked to stop.")
    await play.page.keyboard.press("Escape")
    await play.ended()
    await expect(play.answer).to_contain_text("Stopped.")


async def test_page_follows_a_long_answer_unless_its_reader_has_scrolled_back(play: Playground) -> None:
    scroller = play.page.locator("#scroller")
    below = "(one) => one.scrollHeight - one.scrollTop - one.clientHeight"
    await play.ask("Say: " + "line\n\n" * 30 + "Donaudampfschifffahrt" * 90)
    assert await scroller.evaluate(below) < 2
    await play.say("Count to 60.")
    await expect(play.body).to_contain_text("2 …")
    await scroller.evaluate("(one) => one.scrollTo(0, 0)")
    await expect(play.body).to_contain_text("30 …")
    assert await scroller.evaluate("(one) => one.scrollTop") == 0
    await play.page.keyboard.press("Escape")
    await play.ended()
    assert await scroller.evaluate("(one) => one.scrollTop") == 0


async def test_server_that_stays_away_is_told_and_the_run_is_found_later(play: Playground, guard: Guard) -> None:
    guard.allow("net::ERR_FAILED")
    # Without the patience of a minute.
    await play.page.add_init_script(
        "const timer = setTimeout; window.setTimeout = (todo, delay) => timer(todo, delay >= 300 ? 1 : delay)"
    )
    await play.page.reload()
    invocation_id = await play.say("Count to 20.")
    await expect(play.body).to_contain_text("2 …")
    await play.page.route("**/invocations/**", lambda route: route.abort())
    await play.page.evaluate("stop()")
    await expect(play.answer.locator(".failure")).to_contain_text("the server does not answer", timeout=20_000)
    await play.page.unroute_all()
    await play.page.reload()
    await expect(play.body).to_contain_text("20 …")
    assert await play.body.inner_text() == text_of_count(20)
    assert (await play.status(invocation_id))["status"] == "succeeded"
