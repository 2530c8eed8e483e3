"""The lifespan: targets before requests, a boot that is refused with the reason, and leaving."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from invocations_app import targets
from invocations_app.lifespan import with_lifespan
from tests import fakes

REPO = Path(__file__).resolve().parent.parent
MANAGED = {"default": {"TARGET": "tests.fakes.build_managed"}}
BROKEN = {
    "default": {"TARGET": "tests.fakes.build_broken"},
    "good": {"TARGET": "tests.fakes.build_managed", "PATH": "g"},
}
REASON = "the target of endpoint 'default' is not available: RuntimeError: no model today"


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("Django gets no lifespan events")


class Server:
    """What a server does with an application's lifespan."""

    def __init__(self, app: Any = refuse) -> None:
        self.sent: list[dict[str, Any]] = []
        self.to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answered = asyncio.Event()
        self.task = asyncio.ensure_future(with_lifespan(app)({"type": "lifespan"}, self.to_app.get, self.send))

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.answered.set()

    async def tell(self, event: str) -> dict[str, Any]:
        self.answered.clear()
        await self.to_app.put({"type": event})
        await self.answered.wait()
        return self.sent[-1]


@pytest.fixture
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_thawed")
@pytest.mark.parametrize("is_on", [True, False])
async def test_what_lives_as_long_as_the_process_is_frozen(is_on):
    with override_settings(INVOCATIONS=MANAGED, INVOCATIONS_HOST={"GC_FREEZE": is_on}):
        server = Server()
        await server.tell("lifespan.startup")
        assert (gc.get_freeze_count() > 10_000) is is_on
        await server.tell("lifespan.shutdown")
        await server.task
        assert gc.get_freeze_count() == 0


@override_settings(INVOCATIONS=MANAGED)
async def test_the_collector_looks_less_often_between_start_and_end():
    before = gc.get_threshold()
    server = Server()
    await server.tell("lifespan.startup")
    assert gc.get_threshold() == (10_000, before[1], 21)
    await server.tell("lifespan.shutdown")
    await server.task
    assert gc.get_threshold() == before


@pytest.mark.usefixtures("_thawed")
@override_settings(INVOCATIONS=BROKEN)
async def test_a_boot_that_is_refused_freezes_nothing():
    server = Server()
    assert (await server.tell("lifespan.startup"))["type"] == "lifespan.startup.failed"
    assert gc.get_freeze_count() == 0


@override_settings(INVOCATIONS=MANAGED)
async def test_targets_are_entered_before_start_up_completes_and_left_at_shutdown():
    server = Server()
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.complete"}
    assert fakes.managed_noted() == ["enter"]
    assert await server.tell("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
    assert fakes.managed_noted() == ["enter", "leave"]
    await server.task
    assert fakes.notes[0][1] is fakes.notes[1][1]


@override_settings(INVOCATIONS=BROKEN)
async def test_a_target_that_cannot_be_built_stops_the_boot_with_the_reason():
    server = Server()
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.failed", "message": REASON}
    # The others were left before the refusal: the process may end at once.
    assert fakes.managed_noted() == ["enter", "leave"]
    await server.task
    assert server.sent == [{"type": "lifespan.startup.failed", "message": REASON}]


@override_settings(INVOCATIONS=BROKEN, INVOCATIONS_HOST={"REQUIRE_TARGETS": False})
async def test_a_target_that_is_not_required_is_logged_and_the_boot_goes_on(caplog):
    server = Server()
    assert await server.tell("lifespan.startup") == {"type": "lifespan.startup.complete"}
    assert [record.getMessage() for record in caplog.records] == [
        "The target of endpoint 'default' (tests.fakes.build_broken) is not available: RuntimeError"
    ]
    assert fakes.managed_noted() == ["enter"]
    await server.tell("lifespan.shutdown")
    await server.task


@override_settings(INVOCATIONS={"default": {"TARGT": "x"}, "good": {"TARGET": "tests.fakes.build_echo"}})
async def test_wrong_settings_stop_the_boot_with_every_reason():
    message = (await Server().tell("lifespan.startup"))["message"]
    assert message.startswith("invocations.E002: INVOCATIONS['default'] has an unknown key 'TARGT'. Known keys: ")
    assert message.endswith(
        "; invocations.E003: INVOCATIONS['default'] has no 'TARGET'. "
        "Add 'TARGET': a dotted path to an agent or its factory."
    )


@override_settings(INVOCATIONS=MANAGED)
async def test_an_unforeseen_exception_stops_the_boot(monkeypatch, caplog):
    async def fail() -> None:
        raise LookupError("unforeseen")

    monkeypatch.setattr(targets, "start_all", fail)
    assert await Server().tell("lifespan.startup") == {
        "type": "lifespan.startup.failed",
        "message": "the start failed: LookupError: unforeseen",
    }
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [("The start failed.", True)]


@override_settings(INVOCATIONS=MANAGED)
async def test_a_server_that_cancels_its_lifespan_leaves_the_targets():
    server = Server()
    await server.tell("lifespan.startup")
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.task
    assert fakes.managed_noted() == ["enter", "leave"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_everything_else_passes_untouched(kind):
    got: list[Any] = []

    async def app(*args: Any) -> None:
        got.extend(args)

    given = ({"type": kind, "path": "/"}, object(), object())
    await with_lifespan(app)(*given)
    assert all(one is other for one, other in zip(got, given, strict=True))


# A real server: uvicorn in a process of its own.


def settings_of(tmp_path: Path, setting: str, **host: Any) -> dict[str, str]:
    """Write settings and an asgi module, and return the environment that uses them."""
    (tmp_path / "site_settings.py").write_text(
        f"from tests.settings import *\nINVOCATIONS = {{'default': {{'TARGET': {setting!r}}}}}\n"
        f"INVOCATIONS_HOST = {host!r}\nROOT_URLCONF = 'site_urls'\nINSTALLED_APPS = ['invocations_app']\n"
        "MIDDLEWARE = []\n"
    )
    (tmp_path / "site_urls.py").write_text(
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "from tests import fakes\n"
        "urlpatterns = [path('noted', lambda request: HttpResponse(','.join(fakes.managed_noted())))]\n"
    )
    (tmp_path / "site_asgi.py").write_text(
        "from django.core.asgi import get_asgi_application\n"
        "from invocations_app.lifespan import with_lifespan\n"
        "from tests import fakes\n"
        "class Agent(fakes.ManagedAgent):\n"
        "    async def __aexit__(self, *reason):\n"
        "        await super().__aexit__(*reason)\n"
        "        print('the agent was left', flush=True)\n"
        "application = with_lifespan(get_asgi_application())\n"
    )
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)]),
    }


def serve(env: dict[str, str], port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "site_asgi:application", "--port", str(port)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_uvicorn_refuses_to_boot_and_prints_the_reason(tmp_path):
    server = serve(settings_of(tmp_path, "tests.fakes.build_broken"), free_port())
    output, _ = server.communicate(timeout=50)
    assert server.returncode == 3
    assert REASON in output
    assert 'raise RuntimeError("no model today")' in output
    assert "Uvicorn running on" not in output


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("target", "host", "noted"),
    [("site_asgi.Agent", {}, "enter"), ("tests.fakes.build_broken", {"REQUIRE_TARGETS": False}, "")],
)
def test_uvicorn_serves_and_leaves_the_agent_at_the_end(tmp_path, target, host, noted):
    port = free_port()
    server = serve(settings_of(tmp_path, target, **host), port)
    try:
        assert fetch(f"http://127.0.0.1:{port}/noted") == noted
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=20)
    assert ("the agent was left" in output) == bool(noted)
    assert ("no model today" in output) != bool(noted)
    assert "Application shutdown complete." in output


def fetch(url: str) -> str:
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                text: str = response.read().decode()
                return text
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
