"""Turns of one session, asked for in several processes at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import pytest

from tests.processes.asking import BUSY, Asking, eventually, new
from tests.processes.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
_soak = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.mark.parametrize("turns", [12, pytest.param(50, marks=_soak)])
async def test_waiting_turns_all_end_in_an_order_that_answers_and_rows_agree_on(
    cluster: Cluster, asking: Asking, figure: Callable[[str], None], turns: int
) -> None:
    workers = itertools.cycle(cluster.workers("ab"))
    session = new("session")
    tokens = [new("turn") for _ in range(turns)]
    began = time.monotonic()
    answers = await asyncio.gather(*(asking.post(next(workers), token, session=session) for token in tokens))
    figure(f"{turns} turns in {time.monotonic() - began:.1f} s")

    assert {answer.status_code for answer in answers} == {200}
    seen = {
        int(answer.json()["response"].partition("|")[0]): token for answer, token in zip(answers, tokens, strict=True)
    }
    assert sorted(seen) == list(range(1, turns + 1))
    assert cluster.said(session) == [seen[number] for number in range(1, turns + 1)]
    assert cluster.said(session, "assistant") == [f"{number}|ok" for number in range(1, turns + 1)]
    row = cluster.session(session)
    assert (row["version"], row["claim_number"], row["claimed_by"]) == (turns, turns, None)
    spans = sorted([entry.at for entry in cluster.journal(token)] for token in tokens)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), "two turns overlapped"


@pytest.mark.parametrize("clients", [12, pytest.param(50, marks=_soak)])
async def test_rejected_turns_leave_no_trace_beside_the_one_winner(
    cluster: Cluster, asking: Asking, clients: int
) -> None:
    workers = itertools.cycle(cluster.workers("ab"))
    session = new("session")
    for rounds in (1, 2):
        gate = cluster.gate(new("gate"))
        names = [new("turn") for _ in range(clients)]
        posts = [
            asyncio.create_task(
                asking.post(next(workers), f"{name} gate {gate.name}", id=name, session=session, path="rejects")
            )
            for name in names
        ]
        await eventually(lambda posts=posts: sum(post.done() for post in posts) == clients - 1, "the losers' answers")
        gate.open()
        answers = dict(zip(names, await asyncio.gather(*posts), strict=True))
        (winner,) = [name for name, answer in answers.items() if answer.status_code == 200]
        assert answers.pop(winner).json()["response"] == f"{rounds}|before after"
        for name, answer in answers.items():
            assert (answer.status_code, answer.json()) == (409, BUSY)
            assert cluster.record(name) is None
            assert cluster.executions(name) == 0
        assert len(cluster.said(session)) == rounds
        assert cluster.session(session)["version"] == rounds


@pytest.mark.parametrize(("turns", "processes"), [(16, "abcd"), pytest.param(80, "abcdefgh", marks=_soak)])
async def test_turns_of_a_session_come_in_order_of_arrival_over_all_processes(
    cluster: Cluster, asking: Asking, figure: Callable[[str], None], turns: int, processes: str
) -> None:
    workers = itertools.cycle(cluster.workers(processes))
    session = new("session")
    gate = cluster.gate(new("gate"))
    tokens = [new("turn") for _ in range(turns)]
    posts = [asyncio.create_task(asking.post(next(workers), f"{tokens[0]} gate {gate.name}", session=session))]
    await gate.reached()
    for number, token in enumerate(tokens[1:], start=1):
        posts.append(asyncio.create_task(asking.post(next(workers), token, session=session)))
        await eventually(lambda number=number: cluster.waiting(session) == number, "a record that waits")
    began = time.monotonic()
    gate.open()
    answers = [answer.json()["response"] for answer in await asyncio.gather(*posts)]
    figure(f"{turns} of {turns} in order over {len(processes)} processes in {time.monotonic() - began:.1f} s")
    assert [answer.partition("|")[0] for answer in answers] == [str(number) for number in range(1, turns + 1)]
    assert [text.partition(" ")[0] for text in cluster.said(session)] == tokens
