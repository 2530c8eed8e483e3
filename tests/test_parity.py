"""Our platform dialect against the recorded answers of the published host of Foundry's agents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.timeout(30)
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
