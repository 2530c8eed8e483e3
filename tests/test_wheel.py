"""The wheel in an empty environment: three lines in an empty site, and its agent answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20

# An adopter's own agent: anything with the framework's `run` will do, but this is the usual kind.
AGENTS = """
from agent_framework import Agent, BaseChatClient, ChatResponse, ChatResponseUpdate, Content, Message


class CountingClient(BaseChatClient):
    def _inner_get_response(self, *, messages, stream, options, **kwargs):
        text = f"{sum(message.role == 'user' for message in messages)}: {messages[-1].text}"

        async def updates():
            yield ChatResponseUpdate(contents=[Content.from_text(text)], role="assistant", message_id="m1")

        async def response():
            return ChatResponse(messages=[Message("assistant", [text], message_id="m1")])

        return self._build_response_stream(updates()) if stream else response()


def build_agent():
    return Agent(client=CountingClient())
"""
SETTINGS = """
INSTALLED_APPS += ["invocations_app"]
INVOCATIONS = {"default": {"TARGET": "yoursite.agents.build_agent"}}
"""
URLS = """
from django.urls import include
urlpatterns.append(path("", include("invocations_app.urls")))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def environment() -> dict[str, str]:
    """What an adopter's shell has: nothing of this test run."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "DJANGO_SETTINGS_MODULE"}}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT, cwd=directory)
    return next(directory.glob("*.whl"))


@contextmanager
def serving(python: Path, site: Path) -> Iterator[str]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    log = site / "uvicorn.log"
    command = [python, "-m", "uvicorn", "yoursite.asgi:application", "--port", str(port)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=site, env=environment(), stdout=output, stderr=output) as server,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while "Uvicorn running" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def post(url: str, **body: object) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/invocations/invoke", data=json.dumps(body).encode(), timeout=10) as answer:
        content: bytes = answer.read()
        return content


def test_wheel_holds_the_app_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"invocations_app"}
    held = {str(path.relative_to(ROOT)) for path in (ROOT / "invocations_app").rglob("*") if path.is_file()}
    assert {name for name in held if not name.endswith(".pyc")} <= set(names)
    assert {"invocations_app/py.typed", "invocations_app/migrations/0001_initial.py"} <= set(names)
    assert any(name.startswith("invocations_app/templates/") for name in names)


def test_three_lines_make_an_empty_site_answer(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", wheel, "uvicorn", cwd=tmp_path)
    run(python, "-m", "django", "startproject", "yoursite", cwd=tmp_path)
    site = tmp_path / "yoursite"
    (site / "yoursite" / "agents.py").write_text(AGENTS)
    for name, lines in (("settings.py", SETTINGS), ("urls.py", URLS)):
        with (site / "yoursite" / name).open("a") as file:
            file.write(lines)
    run(python, "manage.py", "check", "--fail-level", "ERROR", cwd=site)
    run(python, "manage.py", "migrate", cwd=site)
    assert run(python, "manage.py", "makemigrations", "--check", "--dry-run", cwd=site) == "No changes detected\n"
    with serving(python, site) as url:
        assert post(url, message="ping", session_id="s1") == b'{"response":"1: ping","session_id":"s1"}'
        assert post(url, message="pong", session_id="s1", stream=True) == b"data: 2: pong\n\ndata: [DONE]\n\n"
    with serving(python, site) as url:
        assert post(url, message="back", session_id="s1") == b'{"response":"3: back","session_id":"s1"}'
