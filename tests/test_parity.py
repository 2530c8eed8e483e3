"""Our platform dialect against the recorded answers of the published host of Foundry's agents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import parity
from tests.parity.compare import our_settings, problems
from tests.parity.differences import DIFFERENCES, OURS
from tests.parity.requests import GROUPS, REQUESTS
from tests.parity.wire import Answer, exchange
from tests.server import SiteServer

ROOT = Path(__file__).resolve().parent.parent
RECORDING: dict[str, Any] = json.loads((ROOT / "tests" / "parity" / "recording.json").read_text())
RECORDED = {item["name"]: Answer(**item["answer"]) for item in RECORDING["exchanges"]}


def test_recording_holds_the_requests_as_they_are_sent() -> None:
    recorded = [(item["name"], item["group"], item["request"]) for item in RECORDING["exchanges"]]
    assert recorded == [(request.name, request.group, request.raw.decode("latin-1")) for request in REQUESTS]
    assert len({request.name for request in REQUESTS}) == len(REQUESTS)


def test_recording_is_of_the_version_that_the_extra_installs() -> None:
    [pinned] = re.findall(r'"agent-framework-foundry-hosting==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert (RECORDING["package"], RECORDING["version"]) == ("agent-framework-foundry-hosting", pinned)


@pytest.mark.parametrize("name", GROUPS)
def test_answers_are_those_of_the_published_host_but_for_the_listed_differences(
    name: str,
    site_servers: dict[str, SiteServer],
    transactional_db: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = GROUPS[name]
    settings.INVOCATIONS = our_settings(group)
    monkeypatch.delenv("FOUNDRY_AGENT_SESSION_ID", raising=False)
    for variable, value in group.environment.items():
        monkeypatch.setenv(variable, value)
    if "uvloop" not in site_servers:
        site_servers["uvloop"] = SiteServer("uvloop")
        site_servers["uvloop"].start()
    server = site_servers["uvloop"]
    found: list[str] = []
    asked = 0
    try:
        for request in REQUESTS:
            if request.group == name and not request.is_live:
                found += problems(request, RECORDED[request.name], exchange(server.port, request.raw))
                asked += 1
    finally:
        server.end_test()
    assert found == []
    assert asked > 0


def test_a_difference_that_is_none_any_more_is_found() -> None:
    request = next(request for request in REQUESTS if request.name == "input")
    status, body = OURS["input"]
    same = Answer(status, {}, body)
    assert problems(request, same, same) == [
        "input: the published host answers the same, so it is no difference any more"
    ]


@pytest.mark.parametrize(
    "ours",
    [
        Answer(500, RECORDED["message"].headers, RECORDED["message"].body),
        Answer(200, RECORDED["message"].headers, '{"response": "1: ping"}'),
        Answer(200, {}, RECORDED["message"].body),
    ],
)
def test_another_answer_is_found(ours: Answer) -> None:
    assert problems(REQUESTS[0], RECORDED["message"], ours) != []


def test_every_difference_is_shown_by_requests_of_its_own() -> None:
    named = [name for difference in DIFFERENCES for name in difference.answers]
    assert len(named) == len(set(named))
    assert set(named) <= {request.name for request in REQUESTS}


def test_docs_list_exactly_the_differences() -> None:
    text = (ROOT / "docs" / "platform.md").read_text()
    table = text.partition("| what | the published host | here |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [difference.row for difference in DIFFERENCES]
    assert RECORDING["version"] in text


# What makes the recording.


def test_recording_is_written_once_and_a_fresh_one_that_differs_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "recording.json"
    monkeypatch.setattr(parity, "ROOT", tmp_path)
    monkeypatch.setattr(parity, "RECORDING", kept)
    first = {"package": "p", "version": "1", "exchanges": [{"name": "a", "answer": 1}, {"name": "b", "answer": 1}]}
    assert parity._compare_recordings(first) == []
    written = kept.read_text()
    assert json.loads(written) == first
    assert parity._compare_recordings(first) == []
    fresh = {"package": "p", "version": "2", "exchanges": [{"name": "a", "answer": 1}, {"name": "b", "answer": 2}]}
    assert parity._compare_recordings(fresh) == [
        "The version is 2, recorded: 1",
        "b: {'name': 'b', 'answer': 2}, recorded: {'name': 'b', 'answer': 1}",
        "The recording differs. To keep the fresh one, delete recording.json and run this again.",
    ]
    assert kept.read_text() == written


GUARDED = """
import socket
from tests.parity.published import guard
guard()
listening = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listening.getsockname()).close()
socket.getaddrinfo("localhost", 80)
for connect in (
    lambda: socket.socket().connect(("192.0.2.1", 9)),
    lambda: socket.socket().connect_ex(("192.0.2.1", 9)),
    lambda: socket.getaddrinfo("example.invalid", 443),
):
    try:
        connect()
    except PermissionError as error:
        print(error)
"""


def test_process_of_the_published_host_reaches_loopback_only() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "no connection but to loopback: 192.0.2.1",
        "no connection but to loopback: 192.0.2.1",
        "no connection but to loopback: example.invalid",
    ]
