"""The documentation says what the code does: settings, errors, layers, links, examples."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from agent_framework import AgentResponse, AgentResponseUpdate, Content, Message
from django.urls import reverse

from invocations_app import checks, conf, exceptions, hooks
from invocations_app.conf import EndpointSettings, HostSettings
from invocations_app.envelope import Invocation
from invocations_app.exceptions import InvocationRejected
from tests.client import endpoint, post

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
APP = ROOT / "invocations_app"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level."""
    level = heading.split(" ", 1)[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each table row."""
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


# Settings.


def documented(heading: str) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, default, meaning in rows(section(page("settings.md"), heading)):
        if key.startswith("`"):
            assert key.strip("`") not in keys, f"{key} is documented twice"
            assert meaning
            keys[key.strip("`")] = default if default == "required" else ast.literal_eval(default.strip("`"))
    return keys


def defined(kind: type[EndpointSettings] | type[HostSettings]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if "read" in field.metadata:
            default = "required" if field.default is dataclasses.MISSING else field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            keys[field.name.upper()] = sorted(default) if isinstance(default, frozenset) else default
    return keys


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("## `INVOCATIONS`, each endpoint", EndpointSettings), ("## `INVOCATIONS_HOST`, the process", HostSettings)],
)
def test_every_setting_is_documented_with_its_default(heading, kind):
    written = documented(heading)
    assert written == defined(kind)
    # 1 and True are equal.
    assert {key: type(value) for key, value in written.items()} == {
        key: type(value) for key, value in defined(kind).items()
    }


def test_the_example_of_settings_is_right(settings):
    [example] = re.findall(r"```python\n(.*?)```", page("settings.md"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "settings.md", "exec"), names)
    settings.INVOCATIONS = names["INVOCATIONS"]
    assert conf.get_problems() == ()
    assert reverse("invocations:support-invoke") == "/support/agent/invoke"


def test_every_check_is_documented():
    source = Path(checks.__file__).read_text() + Path(conf.__file__).read_text()
    used = set(re.findall(r'"(invocations\.[EW]\d{3})"', source))
    assert used
    assert {row[0].strip("`") for row in rows(page("checks.md"))} - {"id", "---"} >= used


# Contract.


def raised() -> list[type[exceptions.InvocationError]]:
    """Return the errors with a fixed text that the app raises."""
    source = "".join(path.read_text() for path in APP.rglob("*.py") if path.name != "exceptions.py")
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    return [
        kind
        for kind in kinds
        if issubclass(kind, exceptions.InvocationError)
        and ("default_text" in vars(kind) or kind is exceptions.TargetFailed)
        and re.search(rf"\b{kind.__name__}\b", source)
    ]


_ARGUMENTS: dict[type[exceptions.InvocationError], tuple[Any, ...]] = {exceptions.AwaitingResponses: ("i1", ())}


@pytest.mark.parametrize("kind", raised())
def test_the_contract_holds_every_error_with_its_status(kind):
    error = kind(*_ARGUMENTS.get(kind, ()))
    # In the channel dialect options are refused as any other field.
    status = 422 if kind is exceptions.UnsupportedOptions else error.status
    body = json.dumps({"error": error.text}, separators=(",", ":"))
    if kind is exceptions.AwaitingResponses:
        body = body.replace("}", ',"invocation_id":"…","pending":[…]}')
    text = page("contract.md")
    stated = [row[1] for row in rows(text) if f"`{body}`" in row[2:]]
    in_prose = re.search(rf"{status} `{re.escape(body)}`", " ".join(text.split()))
    assert in_prose or any(cell.startswith(str(status)) for cell in stated), body
    if error.retry_after_seconds is not None:
        assert any(f"`Retry-After: {error.retry_after_seconds}`" in cell for cell in stated)


BODIES = [
    (b"", "not JSON, or empty"),
    (b"[]", "no object"),
    (b"{}", "`message` absent, empty or no string, and no `input`"),
    (b'{"message":"a","input":"b"}', "more than one of `message`, `input`, `responses`"),
    (b'{"message":"a","session_id":1}', "`session_id` no string"),
    (b" " * 3_000_000, "longer than `MAX_BODY_BYTES`, 2 MiB by default"),
]


@pytest.mark.parametrize(("body", "what"), BODIES)
async def test_a_refused_body_is_answered_as_the_contract_says(settings, body, what):
    settings.INVOCATIONS = endpoint()
    [(status, stated)] = [row[1:] for row in rows(page("contract.md")) if row[0] == what]
    response = await post(body)
    assert str(response.status_code) == status
    assert stated.startswith(f"`{response.content.decode()}`")


@pytest.mark.django_db(transaction=True)
async def test_the_contracts_example_of_a_stream_is_what_is_sent(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_pieces")
    response = await post({"message": "a", "stream": True})
    body = b"".join([block async for block in response.streaming_content]).decode()
    indented = "".join(f"    {line}\n" if line else "\n" for line in body.splitlines())
    assert indented.rstrip() in page("contract.md")


def test_the_contract_names_the_defaults_of_what_a_caller_may_send():
    text = page("contract.md")
    assert all(f"`{name}`" in text for name in conf.DEFAULT_OPTIONS)
    [sentence] = re.findall(r"by default PNG, JPEG, GIF, WebP, PDF, WAV and MP3", text)
    kinds = {name.split("/")[1].replace("mpeg", "mp3") for name in conf.DEFAULT_MEDIA_TYPES}
    assert kinds == {"png", "jpeg", "gif", "webp", "pdf", "wav", "mp3"}


# Hooks.


async def test_the_examples_of_hooks_work():
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", page("hooks.md"), re.DOTALL):
        exec(compile(example, "hooks.md", "exec"), names)

    class User:
        is_authenticated = False
        pk = 7

    class Request:
        user = User()

    invocation = Invocation(id="i", endpoint="default", dialect="channel", input=[Message("user", ["a"])])
    assert names["run_hook"](invocation, target=None, request=Request()).options == {"user": "7"}
    with pytest.raises(InvocationRejected, match="streams are for members"):
        names["run_hook"](dataclasses.replace(invocation, stream=True), target=None, request=Request())
    result = AgentResponse(messages=[Message("assistant", ["ACME says"])])
    assert names["response_hook"](result, invocation=invocation).text == "Acme says"
    transform = names["stream_transform_hook"]
    update = AgentResponseUpdate(contents=[Content.from_text("a")], role="assistant")
    thought = AgentResponseUpdate(contents=[Content.from_text_reasoning(text="hm")], role="assistant")
    assert await transform(update, invocation=invocation) is update
    assert await transform(thought, invocation=invocation) is None


def test_the_fields_a_run_hook_may_not_change_are_documented():
    [row] = [row for row in rows(page("hooks.md")) if row[1] == "nothing else than they are"]
    assert tuple(re.findall(r"`(\w+)`", row[0])) == hooks._FIXED_FIELDS


# Architecture.


def test_the_layers_are_those_that_are_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [contract] = [item for item in project["tool"]["importlinter"]["contracts"] if item["type"] == "layers"]
    drawn = re.findall(r"^    ([a-z_ ·]+)$", section(page("architecture.md"), "## Layers"), re.MULTILINE)
    assert [line.replace(" · ", " | ") for line in drawn] == contract["layers"]


def test_every_module_has_a_place_in_the_table():
    named = re.findall(r"`(invocations_app/[\w./]+)`", section(page("architecture.md"), "## Where each thing lives"))
    assert [name for name in named if not (ROOT / name).exists()] == []
    covered = [ROOT / name for name in named]
    elsewhere = {"apps.py", "events.py", "middleware.py"}
    missing = [
        str(path.relative_to(ROOT))
        for path in APP.rglob("*.py")
        if path.name not in {"__init__.py", *elsewhere}
        and not {"migrations", "management"} & set(path.relative_to(APP).parts)
        and not any(path == place or place in path.parents for place in covered)
    ]
    assert missing == []
    assert all(f"`{name}`" in page("architecture.md") for name in elsewhere - {"apps.py"})


# All pages.


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / unquote(target.split("#")[0])).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_app_exist(path):
    for name in set(re.findall(r"\binvocations_app(?:\.\w+)+", path.read_text())):
        if re.fullmatch(r"invocations_app\.\w+_\w*record.*", name):
            continue
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), last), name


def test_decisions_are_numbered_and_have_the_same_parts():
    paths = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))
    for number, path in enumerate(paths, start=1):
        text = path.read_text()
        assert text.startswith(f"# {number}. ")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], path.name
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE)
