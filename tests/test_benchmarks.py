"""The benchmarks run, check what they are answered, and say what they found. How fast anything is, is not tested."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import by_turns, instructions, plan, plot, profile, report, rounds, wrk
from benchmarks.asking import Answer, request_bytes
from benchmarks.fleet import Fleet, Kind, ServerFailed
from benchmarks.in_process import Driver
from benchmarks.plan import GOALS, KINDS, QUICK, SCENARIOS, TINY, Goal, Scenario
from benchmarks.report import Row
from benchmarks.rounds import Results, Sample
from benchmarks.wrk import WrongAnswers

needs_wrk = pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed")


# They run.


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_runs_on_all_its_servers(scenario: Scenario) -> None:
    if scenario.needs_wrk and not wrk.is_installed():
        pytest.skip("wrk is not installed")
    told: list[str] = []
    kept: list[Results] = []
    results = rounds.run(TINY, [scenario], told.append, kept.append)
    assert results.failures == []
    there = [name for name in scenario.kinds if KINDS[name].python.exists()]
    assert [sample.kind for sample in results.samples] == there
    assert len(told) == len(there)
    assert kept == [results]
    values = [value for sample in results.samples for value in sample.metrics.values()]
    assert values
    assert all(math.isfinite(value) for value in values)


@pytest.mark.slow
@pytest.mark.timeout(60)
@needs_wrk
def test_servers_are_loaded_by_turns(capsys: Any) -> None:
    assert by_turns.main(["floor", "ours", "--turns", "1", "--connections", "1"]) == 0
    first, other = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"floor: \S+/s \(1\.000×\), \S+ ms of processor time \(1\.000×\)", first)
    assert re.fullmatch(r"ours: \S+/s \(\d\.\d{3}×\), \S+ ms of processor time \(\d+\.\d{3}×\)", other)


def test_servers_that_there_are_not_are_told(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        by_turns.main(["ours", "nobody's"])
    assert "no such server: nobody's" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(60)
@needs_wrk
def test_wrong_answers_are_found_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    expects_another = plan._wrk(wrk.Load(1, saves=False, expected="another answer"))
    monkeypatch.setattr(command, "SCENARIOS", (Scenario("wrong", ("floor",), expects_another),))
    assert command.main(["--size", "tiny", "--results", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["samples"] == []
    [failure] = found["failures"]
    assert failure.startswith("round 1, wrong, floor: WrongAnswers(")
    assert f"FAILED: {failure}" in capsys.readouterr().out
    ElementTree.parse(tmp_path / "tiny.svg")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_server_that_does_not_start_says_why() -> None:
    with (
        Fleet() as fleet,
        pytest.raises(ServerFailed, match="broken did not start") as raised,
        fleet.start(Kind("broken", "no_such_server")),
    ):
        pass
    assert "no_such_server" in raised.value.__notes__[0]


# The plan.


def test_goals_compare_what_is_measured() -> None:
    kinds_of = {scenario.name: scenario.kinds for scenario in SCENARIOS}
    for goal in GOALS:
        assert goal.ours in kinds_of[goal.scenario]
        assert goal.peer in {"", *kinds_of[goal.scenario]}
    assert {goal.number for goal in GOALS} == set(range(1, 8))


def test_quick_measures_part_of_it() -> None:
    for scenario in SCENARIOS:
        assert set(scenario.kinds_of(QUICK)) <= set(scenario.kinds_of(plan.FULL)) == set(scenario.kinds)


def test_another_server_begins_each_round() -> None:
    assert [rounds.order(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "no such thing"])
    assert "no scenario has such a name: session saved, 16 connections;" in capsys.readouterr().err


# Answers.


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"data: 0 \n\n", r"a stream ended with 'data: 0 \n\n'"),
        (b"data: 0 \n\nevent: error\ndata: no\n\n", r"a stream ended with 'data: 0 \n\nevent: error\ndata: no\n\n'"),
    ],
)
def test_stream_without_its_end_is_wrong(body: bytes, problem: str) -> None:
    with pytest.raises(wrk.WrongAnswers) as raised:
        _ = Answer(0.0, 200, body=bytearray(body)).text
    assert str(raised.value) == problem


def test_text_of_a_stream_is_that_of_its_events() -> None:
    assert Answer(0.0, 200, body=bytearray(b"data: 0 \n\ndata: 1 \n\ndata: [DONE]\n\n")).text == "0 1 "


def test_error_status_is_wrong() -> None:
    with pytest.raises(wrk.WrongAnswers, match="status 500: no"):
        _ = Answer(0.0, 500, body=bytearray(b"no")).text


def test_session_goes_where_the_server_wants_it() -> None:
    in_body = request_bytes("/p", "body", "hi", "s 1", stream=True)
    assert in_body.endswith(b'{"message": "hi", "stream": true, "session_id": "s 1"}')
    in_query = request_bytes("/p", "query", "hi", "s 1", stream=False)
    assert in_query.startswith(b"POST /p?agent_session_id=s%201 HTTP/1.1\r\n")
    assert in_query.endswith(b'{"message": "hi"}')


# The report.

RATE = Goal(1, "saved", "rate", "ours", "peer", 2.5, "at least")


@pytest.mark.parametrize(
    ("goal", "ours", "verdict"),
    [
        (RATE, 250.0, "met"),
        (RATE, 249.0, "missed"),
        (Goal(1, "saved", "p50_ms", "ours", "peer", 2.5), 250.0, "met"),
        (Goal(1, "saved", "p50_ms", "ours", "peer", 2.5), 251.0, "missed"),
        (Goal(1, "saved", "p50_ms", "ours", "peer", 1.0, is_difference=True), 101.0, "met"),
        (Goal(1, "saved", "rate", "ours", "peer"), 1.0, "reported"),
        (Goal(1, "saved", "rate", "ours", "peer", 2.5, cores=1_000_000), 1.0, "not judged: fewer than 1000000 cores"),
    ],
)
def test_goal_is_judged_by_its_bound(goal: Goal, ours: float, verdict: str) -> None:
    assert Row(goal, [ours], [100.0]).verdict == verdict


def test_ratio_is_of_the_medians_and_its_spread_of_the_rounds() -> None:
    row = Row(RATE, [200.0, 300.0, 100.0], [100.0, 50.0, 100.0])
    assert row.value == 2.0
    assert row.spread == (1.0, 6.0)
    assert row.cells == [
        "1",
        "saved: rate",
        "ours: 200/s (100–300)",
        "peer: 100/s (50–100)",
        "2.00× (1.00–6.00)",
        "at least 2.5×",
        "missed",
    ]


def test_round_with_one_side_only_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "GOALS", (RATE,))
    samples = [
        Sample(0, "saved", "ours", 1.0, {"rate": 500.0}),
        Sample(1, "saved", "peer", 1.0, {"rate": 100.0}),
        Sample(1, "saved", "ours", 1.0, {"rate": 300.0}),
    ]
    [row] = report.rows(Results(TINY, {}, samples))
    assert (row.ours, row.peers) == ([300.0], [100.0])


def test_table_says_how_busy_the_machine_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "GOALS", (RATE,))
    samples = [Sample(0, "saved", kind, load, {"rate": 9.0}) for kind, load in (("ours", 0.5), ("peer", 3.5))]
    text = report.table(Results(TINY, {"cores": "2"}, samples, ["Foundry host: there is no python"], ["round 1, x"]))
    assert "Machine: cores 2." in text
    assert "Load average of the last minute before the measurements: 0.5–3.5, median 2.0;" in text
    assert text.endswith("Left out: Foundry host: there is no python.\nFAILED: round 1, x\n")


def test_plot_is_an_image_with_each_ratio_and_the_turn_times(tmp_path: Path) -> None:
    samples = [
        Sample(
            0, "history", kind, 1.0, {f"{warmth}_{length}_ms": 5.0 for warmth in ("warm", "cold") for length in (4, 8)}
        )
        for kind in ("ours", "FastAPI by hand")
    ]
    samples += [
        Sample(0, "session saved, 16 connections", kind, 1.0, {"rate": rate})
        for kind, rate in (("ours", 300.0), ("FastAPI by hand", 100.0))
    ]
    plot.write_svg(Results(TINY, {}, samples), tmp_path / "plot.svg")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "1. session saved, 16 connections: rate / FastAPI by hand" in texts
    assert "3.00" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 4


def test_profile_counts_a_function_once_a_stack() -> None:
    text = profile.summary("thread (1): Main;a (x.py:1);b (x.py:2);a (x.py:1) 3\nthread (2): db;c (x.py:3) 1\n")
    assert text.splitlines() == [
        "Share of 4 samples, by thread:",
        "   75.0 %  thread (1): Main",
        "   25.0 %  thread (2): db",
        "Share of 4 samples, by itself:",
        "   75.0 %  a (x.py:1)",
        "   25.0 %  c (x.py:3)",
        "Share of 4 samples, with what it calls:",
        "   75.0 %  a (x.py:1)",
        "   75.0 %  b (x.py:2)",
        "   25.0 %  c (x.py:3)",
    ]


def test_instructions_are_those_of_one_turn() -> None:
    assert instructions.per_turn("TURNS 32\n", "==7== \n==7== Collected : 64000032\n") == 2_000_001
    assert instructions.per_turn("", "==7== Collected : 64000000\n") is None
    assert instructions.per_turn("TURNS 32\n", "valgrind: fatal error\n") is None


def answering(status: int, body: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        given.append((scope["path"], json.loads((await receive())["body"])))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    given: list[Any] = []
    app.given = given  # type: ignore[attr-defined]
    return app


async def test_turns_in_process_are_counted_and_have_sessions_of_their_own() -> None:
    app = answering(200, b'{"response":"pong"}')
    driver = Driver(app, "/invoke", 2, saves=True, updates=0)
    assert await driver.take(5) == 4
    assert sorted(body["session_id"] for _, body in app.given) == ["s-1", "s-2", "s-3", "s-4"]
    assert {path for path, _ in app.given} == {"/invoke"}


@pytest.mark.parametrize(("status", "body"), [(500, b'{"response":"pong"}'), (200, b"{}")])
async def test_a_wrong_answer_in_process_ends_the_count(status: int, body: bytes) -> None:
    driver = Driver(answering(status, body), "/invoke", 1, saves=False, updates=0)
    with pytest.raises(WrongAnswers):
        await driver.take(1)
