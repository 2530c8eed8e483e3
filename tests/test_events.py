"""``GET …/{id}/events``: replayed from any number, followed live, and never in the run's way."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.signals import post_save
from django.test import AsyncClient, Client
from django.utils import timezone

from invocations_app.models import EventRecord, InvocationRecord
from invocations_app.runs.host import get_host, live_runs
from invocations_app.runs.tape import FLUSH_EVENTS, HIGH_WATER
from invocations_app.storage import event_log, leases
from tests import fakes
from tests.client import endpoint, rows
from tests.durable import (
    DONE,
    Reader,
    abandon,
    ask,
    body_of,
    cancel,
    events_of,
    get,
    on_database,
    scripted,
    status,
    until,
    until_idle,
    until_status,
)
from tests.frames import SseReader, read_events

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"message": "hi", "session_id": "s1"}
STREAM = {"message": "hi", "session_id": "s1", "stream": True}
HELLO = b"id: 1\ndata: hel\n\nid: 2\ndata: lo\n\nid: 3\ndata: [DONE]\n\n"


@pytest.fixture(autouse=True)
def _endpoint(settings: Any) -> None:
    settings.INVOCATIONS = scripted()


def split(body: bytes) -> list[bytes]:
    """Return the events of a stream, each with its blank line."""
    return [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]


async def run(steps: list[Any], **keys: Any) -> bytes:
    """Carry out an invocation ``i1`` and return its stream."""
    fakes.script(steps)
    return await body_of(await ask("i1", STREAM | keys))


# What an event looks like


async def test_each_event_has_its_number_as_its_first_line():
    await run(["hel", "lo"])
    response = await get("i1/events")
    assert await body_of(response) == HELLO
    assert [event.last_id for event in read_events(HELLO)] == ["1", "2", "3"]


async def test_the_headers_are_those_of_a_stream():
    await run(["hel"])
    response = await get("i1/events")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    await body_of(response)


async def test_events_are_numbered_as_they_reach_the_client():
    body = await run(["a\r", "\n", "", "[DONE]", fakes.usage(1, 2), "b\nc"])
    assert body == b"data: a\ndata: \n\ndata: [\n\ndata: DONE]\n\ndata: b\ndata: c\n\ndata: [DONE]\n\n"
    numbered = b"".join(b"id: %d\n%b" % (number, event) for number, event in enumerate(split(body), start=1))
    assert await events_of("i1") == numbered


async def test_the_events_of_a_plain_run_are_its_text_and_the_end():
    fakes.script(["hel", "lo"])
    await ask("i1", ONE)
    assert await events_of("i1") == b"id: 1\ndata: hello\n\nid: 2\ndata: [DONE]\n\n"
    assert await events_of("i1", 1) == b"id: 2\ndata: [DONE]\n\n"
    assert (await get("i1/events?after=2")).status_code == 204


async def test_the_text_of_a_plain_run_that_reads_as_the_end_is_cut():
    fakes.script(["[DONE]"])
    await ask("i1", ONE)
    assert await events_of("i1") == b"id: 1\ndata: [\n\nid: 2\ndata: DONE]\n\nid: 3\ndata: [DONE]\n\n"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_text_has_one_event(stream):
    fakes.script([])
    response = await ask("i1", ONE | {"stream": stream})
    if stream:
        await body_of(response)
    assert await events_of("i1") == b"id: 1\ndata: [DONE]\n\n"
    assert (await get("i1/events?after=1")).status_code == 204


async def test_the_last_event_of_a_failure_is_the_error_with_its_fixed_text(settings):
    settings.INVOCATIONS = scripted(EXPOSE_ERRORS=True)
    await run(["par", RuntimeError("the reason")])
    assert await events_of("i1") == b"id: 1\ndata: par\n\nid: 2\nevent: error\ndata: Agent invocation failed.\n\n"
    assert (await get("i1/events?after=2")).status_code == 204


async def test_a_plain_failure_is_one_event():
    fakes.script([RuntimeError("the reason")])
    await ask("i1", ONE)
    assert await events_of("i1") == b"id: 1\nevent: error\ndata: Agent invocation failed.\n\n"


# From where


@pytest.mark.parametrize("pieces", [1, FLUSH_EVENTS - 1, FLUSH_EVENTS, 2 * FLUSH_EVENTS + 3])
async def test_a_replay_from_every_number_is_the_rest(pieces):
    await run([f"{number} " for number in range(pieces)])
    events = split(await events_of("i1"))
    assert len(events) == pieces + 1
    step = 1 if pieces < 64 else 9
    for after in {*range(0, len(events), step), len(events) - 1}:
        assert await events_of("i1", after) == b"".join(events[after:])


async def test_a_long_log_is_read_whole():
    pieces = 20 * FLUSH_EVENTS
    body = await run([f"{number} " for number in range(pieces)])
    events = split(await events_of("i1"))
    assert [event.partition(b"\n")[2] for event in events] == split(body)


async def test_the_header_wins_over_the_query():
    await run(["hel", "lo"])
    response = await get("i1/events?after=0", last_event_id="2")
    assert await body_of(response) == b"id: 3\ndata: [DONE]\n\n"


async def test_leading_zeros_and_numbers_of_any_length_are_whole_numbers():
    await run(["hel", "lo"])
    assert await events_of("i1", "0" * 30 + "2") == b"id: 3\ndata: [DONE]\n\n"
    for huge in (10**18, 10**40):
        assert (await events_of("i1", huge)).startswith(b"id: 3\nevent: reset\n")


@pytest.mark.parametrize("given", ["-1", "1.0", "x", "", " 1", "1 ", "+1", "0x1", "\u0661", "1,2"])
async def test_what_is_no_whole_number_is_malformed(given):
    client = AsyncClient()
    refused = await client.get("/invocations/i1/events", {"after": given})
    assert (refused.status_code, refused.content) == (400, b'{"error":"malformed event id"}')
    if given.isascii():
        refused = await client.get("/invocations/i1/events", headers={"last-event-id": given})
        assert refused.status_code == 400


async def test_at_the_last_number_there_is_no_content():
    await run(["hel", "lo"])
    response = await get("i1/events", last_event_id="3")
    assert (response.status_code, response.content) == (204, b"")
    assert "html" not in response.headers.get("Content-Type", "")


async def test_beyond_the_last_number_there_is_one_reset_with_the_result():
    await run(["hel", "lö"])
    body = json.dumps(await status("i1"), ensure_ascii=False, separators=(",", ":")).encode()
    assert b'"response":"hell\xc3\xb6"' in body
    assert await events_of("i1", 4) == b"id: 3\nevent: reset\ndata: " + body + b"\n\n"


async def test_trimmed_events_are_one_reset_with_the_result():
    await run([f"{number} " for number in range(2 * FLUSH_EVENTS)])
    whole = split(await events_of("i1"))
    [kept] = await rows(lambda: EventRecord.objects.order_by("-first")[:1])
    await on_database(EventRecord.objects.filter(first__lt=kept.first).delete)
    body = json.dumps(await status("i1"), separators=(",", ":")).encode()
    reset = b"id: %d\nevent: reset\ndata: " % len(whole) + body + b"\n\n"
    for after in (0, kept.first - 2):
        assert await events_of("i1", after) == reset
    assert await events_of("i1", kept.first - 1) == b"".join(whole[kept.first - 1 :])
    # A standard reader that is reset stands behind the last event, and stops at its next try.
    [event] = read_events(reset)
    assert (await get("i1/events", last_event_id=event.last_id)).status_code == 204


async def test_the_result_in_a_reset_holds_no_surrogates():
    await run(["a\ud800b"])
    assert '"response":"a\ufffdb"'.encode() in await events_of("i1", 9)


@pytest.mark.parametrize("path", ["i2/events", "not well formed/events", "i2/events?after=9"])
async def test_an_unknown_invocation_has_no_events(path):
    response = await get(path)
    assert (response.status_code, response.content) == (404, b'{"error":"not found"}')


async def test_another_callers_invocation_has_no_events(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    await body_of(await ask("i1", STREAM, x_agent_user_id="alice"))
    assert (await get("i1/events", x_agent_user_id="bob")).content == b'{"error":"not found"}'
    assert await events_of("i1", x_agent_user_id="alice") == b"id: 1\ndata: hi\n\nid: 2\ndata: [DONE]\n\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_events_are_only_got(method):
    response = await AsyncClient().generic(method, "/invocations/i1/events")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")


def test_over_wsgi_there_are_no_events():
    response = Client().get("/invocations/i1/events")
    assert (response.status_code, response.content) == (501, b'{"error":"streams and background need an ASGI server"}')


# Live


async def test_a_follower_is_sent_what_comes_at_once(monkeypatch):
    def refuse(*args: Any) -> Any:
        raise AssertionError("the log is not asked")

    fakes.script(["hel", fakes.gate(), "lo", fakes.gate("end")])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: hel\n\n")
    # In the same process events come from memory.
    monkeypatch.setattr(event_log, "_read", refuse)
    follower = Reader(await get("i1/events"))
    late = Reader(await get("i1/events?after=1"))
    await follower.until(b"id: 1\ndata: hel\n\n")
    fakes.gate().open()
    await follower.until(b"id: 2\ndata: lo\n\n")
    await late.until(b"id: 2\ndata: lo\n\n")
    monkeypatch.undo()
    fakes.gate("end").open()
    assert await follower.rest() == HELLO
    assert await late.rest() == HELLO[HELLO.index(b"id: 2") :]
    assert await first.rest() == b"data: hel\n\ndata: lo\n\n" + DONE


async def test_every_point_of_leaving_and_coming_back_gives_the_whole():
    pieces = [f"{number} " for number in range(12)]
    gates = [fakes.gate(f"g{number}") for number in range(12)]
    # Held before its end, which would come together with the last piece.
    fakes.script([*(step for pair in zip(gates, pieces, strict=True) for step in pair), fakes.gate("end")])
    first = Reader(await ask("i1", STREAM))
    parts: list[tuple[int, bytes]] = []
    followers: list[tuple[int, Reader]] = []
    for number, gate in enumerate(gates):
        gate.open()
        await first.until(b"data: %d \n\n" % number)
        parts.append((number + 1, first.body))
        followers.append((number + 1, Reader(await get("i1/events", last_event_id=str(number + 1)))))
    fakes.gate("end").open()
    whole = await first.rest()
    for (seen, before), (after, follower) in zip(parts, followers, strict=True):
        assert seen == after
        events = split(await follower.rest())
        assert before + b"".join(event.partition(b"\n")[2] for event in events) == whole


async def test_a_follower_of_a_run_that_starts_waits_for_its_first_event():
    fakes.script([fakes.gate(), "hel", "lo"])
    first = Reader(await ask("i1", STREAM))
    follower = Reader(await get("i1/events"))
    await asyncio.sleep(0.02)
    assert follower.body == b""
    fakes.gate().open()
    assert await follower.rest() == HELLO
    await first.rest()


async def test_a_follower_of_a_queued_turn_waits_with_it():
    fakes.script([fakes.gate(), "first"], ["hel", "lo"])
    holder = asyncio.create_task(ask("i0", ONE))
    await fakes.gate().wait_reached()
    waiting = asyncio.create_task(ask("i1", STREAM))
    await until_status("i1", "queued")
    follower = Reader(await get("i1/events"))
    fakes.gate().open()
    assert await follower.rest() == HELLO
    await body_of(await waiting)
    await holder


async def test_a_follower_of_a_plain_run_gets_its_text_at_the_end():
    fakes.script(["hel", fakes.gate(), "lo"])
    first = asyncio.create_task(ask("i1", ONE))
    await fakes.gate().wait_reached()
    follower = Reader(await get("i1/events"))
    await asyncio.sleep(0.02)
    assert follower.body == b""
    fakes.gate().open()
    assert await follower.rest() == b"id: 1\ndata: hello\n\nid: 2\ndata: [DONE]\n\n"
    await first


async def test_a_client_that_is_ahead_of_the_log_waits_for_the_next_event():
    # The number is beyond what the run has made so far, as after a server that sent more than it logged.
    fakes.script(["a", fakes.gate(), "b", "c", "d"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: a\n\n")
    follower = Reader(await get("i1/events", last_event_id="3"))
    await asyncio.sleep(0.02)
    assert follower.body == b""
    fakes.gate().open()
    assert await follower.rest() == b"id: 4\ndata: d\n\nid: 5\ndata: [DONE]\n\n"
    await first.rest()


async def test_silence_sends_comments_to_followers(settings):
    settings.INVOCATIONS = scripted(KEEPALIVE_SECONDS=0.02)
    fakes.script(["a", fakes.gate(), "b"])
    follower = None
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: a\n\n")
    follower = Reader(await get("i1/events"))
    await follower.until(b"id: 1\ndata: a\n\n: keep-alive\n\n")
    fakes.gate().open()
    reader = SseReader()
    reader.feed(await follower.rest())
    assert [(event.last_id, event.data) for event in reader.events] == [("1", "a"), ("2", "b"), ("3", "[DONE]")]
    await first.rest()


async def test_a_follower_sees_the_cancellation():
    fakes.script(["a", fakes.gate(), "b"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: a\n\n")
    follower = Reader(await get("i1/events"))
    await cancel("i1")
    error = b"event: error\ndata: this invocation was cancelled\n\n"
    assert await follower.rest() == b"id: 1\ndata: a\n\nid: 2\n" + error
    assert await first.rest() == b"data: a\n\n" + error


# Elsewhere: by the log


async def elsewhere() -> int:
    """Let ``i1`` be a run of another process that has logged two events; return its primary key."""
    await run(["hel", "lo"])

    def change() -> int:
        InvocationRecord.objects.update(status="running", answer="", finished_at=None, event_count=0, owner="elsewhere")
        InvocationRecord.objects.update(lease_expires_at=timezone.now() + timedelta(seconds=60))
        return InvocationRecord.objects.get().pk

    return await on_database(change)


async def test_a_run_of_another_process_is_followed_by_the_log():
    pk = await elsewhere()
    follower = Reader(await get("i1/events"))
    ahead = Reader(await get("i1/events", last_event_id="3"))
    await follower.until(b"id: 2\ndata: lo\n\n")
    for number, text in ((3, b"and"), (4, b"on")):
        batch = event_log.Batch(pk, number, (b"data: %b\n\n" % text,))
        assert await event_log.append("elsewhere", [batch]) == {pk}
        await follower.until(b"id: %d\ndata: %b\n\n" % (number, text))
    assert await ahead.until(b"data: on\n\n") == b"id: 4\ndata: on\n\n"
    await on_database(abandon)
    error = b"id: 5\nevent: error\ndata: this invocation was interrupted\n\n"
    assert (await follower.rest()).endswith(b"id: 4\ndata: on\n\n" + error)
    assert await ahead.rest() == b"id: 4\ndata: on\n\n" + error


async def test_the_end_of_an_interrupted_run_is_numbered_after_the_last_one_logged():
    await elsewhere()
    await on_database(abandon)
    error = b"id: 3\nevent: error\ndata: this invocation was interrupted\n\n"
    assert await events_of("i1") == b"id: 1\ndata: hel\n\nid: 2\ndata: lo\n\n" + error
    assert await events_of("i1", 2) == error
    assert (await get("i1/events?after=3")).status_code == 204
    # A client may have read more than was logged.
    [reset] = read_events(await events_of("i1", 7))
    assert (reset.type, reset.last_id, json.loads(reset.data)["status"]) == ("reset", "3", "interrupted")


async def test_a_process_that_lost_its_lease_logs_nothing_more():
    pk = await elsewhere()
    await on_database(lambda: abandon(pk=pk))
    batch = event_log.Batch(pk, 3, (b"data: late\n\n",))
    assert await event_log.append("a process that is gone", [batch]) == set()
    assert await event_log.append("another", [batch]) == set()
    assert await on_database(lambda: EventRecord.objects.filter(first=3).exists()) is False


# Never in the run's way


async def test_a_follower_that_takes_nothing_does_not_slow_the_run():
    pieces = 3 * HIGH_WATER
    fakes.script([fakes.gate(), *[f"{number} " for number in range(pieces)]])
    first = Reader(await ask("i1", STREAM))
    stalled = await get("i1/events")
    content = aiter(stalled.streaming_content)
    fakes.gate().open()
    assert split(await first.rest())[-1] == DONE
    chunks = [chunk async for chunk in content]
    assert split(b"".join(chunks)) == split(await events_of("i1"))


async def test_followers_do_not_count_as_readers(settings):
    settings.INVOCATIONS = scripted(ON_DISCONNECT="cancel")
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: hel\n\n")
    follower = Reader(await get("i1/events"))
    await follower.until(b"data: hel\n\n")
    await follower.leave()
    await asyncio.sleep(0.02)
    assert fakes.gate().left is None
    follower = Reader(await get("i1/events"))
    await follower.until(b"data: hel\n\n")
    await first.leave()
    await fakes.gate().wait_left()
    assert (await follower.rest()).endswith(b"event: error\ndata: this invocation was cancelled\n\n")


async def test_a_follower_that_left_is_forgotten():
    fakes.script(["hel", fakes.gate(), "lo"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: hel\n\n")
    followers = [Reader(await get("i1/events")) for _ in range(5)]
    for follower in followers:
        await follower.until(b"data: hel\n\n")
    [live] = live_runs()
    await until(lambda: len(live.tape._followers) == 5, "five followers")
    for follower in followers:
        await follower.leave()
    assert len(live.tape._followers) == 0
    fakes.gate().open()
    await first.rest()


# The log


async def test_the_log_is_written_in_batches_and_not_for_each_piece(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 5000}
    appended: list[int] = []

    def note(sender: Any, instance: Any, **kwargs: Any) -> None:
        raise AssertionError("written one by one")

    real = event_log._append

    def append(owner: str, batches: Any) -> Any:
        appended.append(sum(len(batch.frames) for batch in batches))
        return real(owner, batches)

    post_save.connect(note, sender=EventRecord)
    event_log_append, event_log._append = event_log._append, append
    try:
        await run([f"{number} " for number in range(200)])
    finally:
        event_log._append = event_log_append
        post_save.disconnect(note, sender=EventRecord)
    batches = await rows(lambda: EventRecord.objects.order_by("first"))
    assert [batch.first for batch in batches] == [1, *[batch.last + 1 for batch in batches[:-1]]]
    assert batches[-1].last == 200
    # Three full batches while it runs; the rest goes with the commit.
    assert len(appended) <= 3
    assert len(batches) == len(appended) + (sum(appended) < 200)
    assert all(count >= FLUSH_EVENTS for count in appended)


async def test_events_are_in_the_log_after_the_interval(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 30}
    fakes.script(["a", "b", fakes.gate(), "c"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: b\n\n")
    for _ in range(100):
        batches = await rows(lambda: EventRecord.objects.order_by("first"))
        if batches and batches[-1].last == 2:
            break
        await asyncio.sleep(0.01)
    assert len(batches) <= 2
    assert batches[-1].last == 2
    fakes.gate().open()
    await first.rest()


async def test_the_events_of_many_runs_are_one_transaction(settings, monkeypatch):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 600}
    calls: list[int] = []
    real = event_log._append
    monkeypatch.setattr(event_log, "_append", lambda owner, some: (calls.append(len(some)), real(owner, some))[1])
    fakes.script(["a", fakes.gate(), "b"])
    readers = [Reader(await ask(f"i{number}", {"message": "hi", "stream": True})) for number in range(8)]
    for reader in readers:
        await reader.until(b"data: a\n\n")
    await until(lambda: sum(calls) == 8, "all logged")
    assert len(calls) <= 3
    fakes.gate().open()
    await asyncio.gather(*[reader.rest() for reader in readers])


# Tending


async def test_nothing_is_tended_when_nothing_runs(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 10}
    await run(["a"])
    await until_idle()
    host = get_host()
    await until(lambda: host._timer is None and host._tending is None, "rest")
    assert host.runs == {}


async def test_leases_are_renewed_in_one_batch_while_runs_live(settings, monkeypatch):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 20, "LEASE_SECONDS": 1}
    renewals: list[list[int]] = []
    real = leases._renew
    monkeypatch.setattr(
        leases, "_renew", lambda owner, pks, seconds: (renewals.append(list(pks)), real(owner, pks, seconds))[1]
    )
    fakes.script([fakes.gate(), "a"])
    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(ask(f"i{number}", ONE | {"session_id": f"s{number % 2}"})))
        await until_status(f"i{number}", "running" if number < 2 else "queued")
    renewals.clear()
    await asyncio.sleep(1.3)
    assert 3 <= len(renewals) <= 7
    assert {len(pks) for pks in renewals} == {4}
    fakes.gate().open()
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_a_run_that_lost_its_lease_is_stopped_and_commits_nothing(settings):
    settings.INVOCATIONS_HOST = {"EVENT_FLUSH_MILLISECONDS": 10}
    fakes.script(["a", fakes.gate(), "b"])
    first = Reader(await ask("i1", STREAM))
    await first.until(b"data: a\n\n")
    await on_database(abandon)
    assert await first.rest() == b"data: a\n\nevent: error\ndata: this invocation was interrupted\n\n"
    assert isinstance(fakes.gate().left, asyncio.CancelledError)
    assert (await status("i1"))["status"] == "interrupted"
    fakes.script(["next"])
    assert (await ask("i2", ONE)).json()["response"] == "next"
    assert [call.texts for call in fakes.calls][-1] == [("user", "hi")]
