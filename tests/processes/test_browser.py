"""A browser's own ``EventSource``, whose connection is cut and which comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator

import pytest

from tests.chromium import find_browser
from tests.processes.asking import Asking, eventually, new
from tests.processes.cluster import Cluster, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


class CuttingProxy:
    """Carries bytes to a process, and cuts the first answer of events after some of them."""

    def __init__(self, worker: Worker, events: int) -> None:
        self._worker = worker
        self._events = events
        self.asked: list[bytes] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            # Browsers open connections that they may need, and close them unused.
            writer.close()
            return
        is_events = head.startswith(b"GET /waits/")
        if is_events:
            self.asked.append(head)
        inward, outward = await asyncio.open_connection("127.0.0.1", self._worker.port)
        # One request a connection, so that each is seen.
        outward.write(head.replace(b"Connection: keep-alive", b"Connection: close"))
        sending = asyncio.create_task(self._send(reader, outward))
        cut = is_events and len(self.asked) == 1
        content = b""
        with contextlib.suppress(ConnectionError):
            while block := await inward.read(65536):
                before = len(content)
                content += block
                parts = content.split(b"\nid: ")
                is_enough = cut and len(parts) > self._events + 1
                end = len(b"\nid: ".join(parts[: self._events + 1])) + 1 if is_enough else len(content)
                writer.write(content[before : max(before, end)])
                await writer.drain()
                if is_enough:
                    # A reset throws away what the browser has not read yet.
                    await asyncio.sleep(0.3)
                    writer.transport.abort()
                    break
        sending.cancel()
        outward.close()
        writer.close()

    async def _send(self, reader: asyncio.StreamReader, outward: asyncio.StreamWriter) -> None:
        while block := await reader.read(65536):
            outward.write(block)


def last_event_id(head: bytes) -> bytes | None:
    """Return the value of a request's header, or None."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"last-event-id":
            return value.strip()
    return None


@contextlib.asynccontextmanager
async def browser(url: str) -> AsyncIterator[None]:
    """Open a page in a browser with nothing but that."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            find_browser(),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
            f"--user-data-dir={profile}",
            url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            await process.wait()


async def test_an_event_source_that_is_cut_reconnects_and_stops_at_the_end(sqlite: Cluster, asking: Asking) -> None:
    worker = sqlite.worker("a")
    report = sqlite.directory / "report"
    report.unlink(missing_ok=True)
    name = new("turn")
    stream = await asking.open(worker, f"{name} words 40 0.1", id=name)
    await stream.events(1)
    await stream.leave()
    proxy = CuttingProxy(worker, 5)
    server = await asyncio.start_server(proxy.carry, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with browser(f"http://127.0.0.1:{port}/page?/waits/{name}/events"):
            await eventually(report.exists, "the browser's report", 40)
    told = json.loads(report.read_text())
    texts = ["1|", *(f"w{number} " for number in range(40)), "[DONE]"]
    assert told["got"] == [["message", str(number), text] for number, text in enumerate(texts, start=1)]
    assert told["opened"] == 2
    # The cut one, the one that came back where it had been, and the one that was told to stop.
    assert [last_event_id(head) for head in proxy.asked] == [None, b"5", str(len(texts)).encode()]
    assert sqlite.executions(name) == 1
