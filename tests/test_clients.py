"""The snippets of ``docs/clients.md`` for a shell and for Python, and the command lines; pages are in ``browser``."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.demo_check import ROOT, is_printed, running_demo
from tests.cutting import cutting
from tests.snippets import Snippet, read_snippets

PAGE = (ROOT / "docs" / "clients.md").read_text()
COMMANDS = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"]}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demonstration site."""
    with running_demo() as url:
        yield url


def snippets() -> list[Snippet]:
    return [snippet for language in COMMANDS for snippet in read_snippets(PAGE, language)]


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: f"{snippet.language}-{snippet.number}")
def test_snippet_prints_what_the_page_says(url, snippet):
    with contextlib.ExitStack() as stack:
        cut = stack.enter_context(cutting(int(url.rpartition(":")[2]), snippet.cut)) if snippet.cut else None
        address = url if cut is None else f"http://127.0.0.1:{cut.port}"
        done = subprocess.run(
            [*COMMANDS[snippet.language], snippet.at(address)],
            env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert snippet.is_printed(done.stdout), done.stdout
        assert cut is None or cut.happened.is_set()


def test_every_block_of_the_page_is_run():
    languages = re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)
    assert set(languages) == {"bash", "python", "javascript", "text", "console"}
    assert {language: len(read_snippets(PAGE, language)) for language in ("bash", "python", "javascript")} == {
        "bash": 5,
        "python": 4,
        "javascript": 4,
    }
    assert len(re.findall("<!-- the connection breaks", PAGE)) == sum(
        bool(snippet.cut) for language in ("bash", "python", "javascript") for snippet in read_snippets(PAGE, language)
    )


def test_command_lines_print_what_the_page_says(tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env |= {"DJANGO_SETTINGS_MODULE": "project.settings", "DATABASE_URL": f"sqlite:///{tmp_path}/site.sqlite3"}
    env |= {"DEBUG": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {"DJANGO_SUPERUSER_PASSWORD": "admin"}

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=50,
            check=False,
        )
        return done.stdout

    run("./manage.py migrate -v 0; ./manage.py createsuperuser --no-input --username admin --email a@example.com")
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
        for line in re.split(r"^\$ ", block, flags=re.M)
    ]
    examples = [line.partition("\n")[::2] for line in lines if line]
    assert len(examples) == 4
    for command, printed in examples:
        shown = run(command)
        assert is_printed(shown.strip(), printed.strip()), shown
