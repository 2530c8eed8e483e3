"""Images that are attached: drawn anew in the page, small enough for the endpoint, and sent as data."""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from typing import Any

import pytest
from playwright.async_api import FilePayload, Page, expect

from tests.browser.playground import Playground


def png(width: int, height: int, *, noise: bool = False) -> bytes:
    """Return a picture: one colour, or noise, which no format makes small."""
    rows = (b"\0" + (os.urandom(width * 3) if noise else b"\x1f\x6b\x66" * width) for _ in range(height))

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(rows), 1)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


def picture(name: str, content: bytes, media_type: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": media_type, "buffer": content}


async def sent_body(play: Playground, text: str) -> dict[str, Any]:
    """Send a message and return its body."""
    async with play.page.expect_request("**/invoke") as asked:
        await play.ask(text)
    body = (await asked.value).post_data_json
    assert isinstance(body, dict)
    return body


async def size_of(page: Page, uri: str) -> list[int]:
    """Return width and height of an image."""
    found = await page.evaluate(
        """async (src) => { const image = new Image(); image.src = src; await image.decode();
             return [image.naturalWidth, image.naturalHeight]; }""",
        uri,
    )
    assert isinstance(found, list)
    return found


async def test_large_image_is_scaled_down_to_fit_the_limit(play: Playground) -> None:
    await play.page.set_input_files("#file", [picture("large.png", png(2400, 1200, noise=True))])
    attached = play.page.get_by_label("Attached images").get_by_role("listitem")
    await expect(attached).to_have_count(1, timeout=20_000)
    body = await sent_body(play, "What is this?")
    await expect(play.body).to_contain_text("I see 1 attachment.")
    text, data = body["input"][0]["contents"]
    assert text == {"type": "text", "text": "What is this?"}
    assert data["uri"].startswith("data:image/jpeg;base64,")
    assert len(json.dumps(body)) < 2_097_152
    width, height = await size_of(play.page, data["uri"])
    assert (width, height) != (2400, 1200)
    assert abs(width / height - 2) < 0.02
    await expect(attached).to_have_count(0)
    await expect(play.page.locator(".user img")).to_have_count(1)
    await play.page.reload()
    assert await play.page.locator(".user img").get_attribute("src") == data["uri"]


async def test_small_limit_makes_smaller_images(play: Playground) -> None:
    await play.open("small")
    pictures = [picture(f"{number}.png", png(600, 600, noise=True)) for number in range(4)]
    await play.page.set_input_files("#file", pictures)
    await expect(play.page.get_by_label("Attached images").get_by_role("listitem")).to_have_count(4, timeout=20_000)
    body = await sent_body(play, "")
    await expect(play.body).to_contain_text("I see 4 attachments.")
    assert [content["type"] for content in body["input"][0]["contents"]] == ["data"] * 4
    assert len(json.dumps(body)) < 60_000


async def test_small_image_keeps_its_size(play: Playground) -> None:
    await play.page.set_input_files("#file", [picture("small.png", png(40, 30))])
    await expect(play.page.get_by_label("Attached images")).to_contain_text("40 × 30, 1 KB")
    body = await sent_body(play, "small")
    assert await size_of(play.page, body["input"][0]["contents"][1]["uri"]) == [40, 30]


async def test_one_too_many_and_what_is_no_image_are_refused_in_words(play: Playground) -> None:
    status = play.page.get_by_role("status")
    await play.page.set_input_files("#file", [picture("notes.txt", b"no image", "text/plain")])
    await expect(status).to_have_text("notes.txt is no image that this browser can read.")
    await play.page.set_input_files("#file", [picture(f"{number}.png", png(9, 9)) for number in range(5)])
    await expect(status).to_have_text("A message takes 4 images.")
    attached = play.page.get_by_label("Attached images").get_by_role("listitem")
    await expect(attached).to_have_count(4)
    await play.page.get_by_role("button", name="Remove 0.png").click()
    await expect(attached).to_have_count(3)
    await expect(play.message).to_be_focused()


async def test_image_is_pasted(play: Playground) -> None:
    await play.message.focus()
    await play.page.evaluate(
        """(base64) => {
          const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
          document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        base64.b64encode(png(20, 10)).decode(),
    )
    await expect(play.page.get_by_alt_text("pasted.png")).to_be_visible()


@pytest.mark.parametrize("name", ["transparent", "turned"])
async def test_image_is_drawn_as_it_looks(play: Playground, name: str) -> None:
    # Made by the browser itself: a transparent PNG; a JPEG whose EXIF says that it lies on its side.
    uri = await play.page.evaluate(
        """() => { const canvas = document.createElement("canvas"); canvas.width = 60; canvas.height = 20;
             return [canvas.toDataURL("image/png"), canvas.toDataURL("image/jpeg")]; }"""
    )
    content = base64.b64decode(uri[name == "turned"].partition(",")[2])
    if name == "turned":
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    await play.page.set_input_files("#file", [picture(f"{name}.img", content, "image/png")])
    attached = play.page.get_by_label("Attached images").get_by_role("img")
    sent = await attached.get_attribute("src")
    assert sent is not None
    assert b"Exif" not in base64.b64decode(sent.partition(",")[2])
    assert await size_of(play.page, sent) == ([20, 60] if name == "turned" else [60, 20])
    if name == "transparent":
        colour = await attached.evaluate(
            """(image) => { const canvas = document.createElement("canvas"); const context = canvas.getContext("2d");
                 context.drawImage(image, 0, 0); return [...context.getImageData(5, 5, 1, 1).data]; }"""
        )
        assert colour == [255, 255, 255, 255]
