"""Delivery elsewhere: the caller's acknowledgement, the pushes, the report on the record, and sending again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone

from invocations_app import checks, conf, delivery
from invocations_app.delivery import DeliveryReport, FailedPush, sending
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.runs import host
from invocations_app.storage import deliveries
from tests import fakes
from tests.client import endpoint, post
from tests.durable import ask, cancel, events_of, expire, get, on_database, status, until, until_idle
from tests.receiver import Receiver, hang, plain, receiving, verify

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "a secret of both sides"
change: dict[str, Any] = {}
pushes: list[tuple[dict[str, Any], str]] = []
made: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh_handles() -> None:
    change.clear()
    pushes.clear()
    made.clear()
    delivery.backends._made.clear()


def hook(invocation: Any, **kwargs: Any) -> Any:
    return dataclasses.replace(invocation, **change)


async def hook_at_gate(invocation: Any, **kwargs: Any) -> Any:
    await fakes.gate("hook").pass_through()
    return dataclasses.replace(invocation, **change)


# Backends.


class Noting:
    """Notes what is pushed."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        made.append(self)

    async def push(self, result: dict[str, Any], destination: str) -> None:
        pushes.append((result, destination))


class Raising:
    async def push(self, result: Any, destination: str) -> None:
        raise KeyError(SECRET)


class AtGate:
    async def push(self, result: Any, destination: str) -> None:
        await fakes.gate("push").pass_through()
        pushes.append((result, destination))


class Stubborn:
    """Swallows its cancellation, and raises much later."""

    async def push(self, result: Any, destination: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise ValueError(SECRET) from None


class Cancelling:
    async def push(self, result: Any, destination: str) -> None:
        raise asyncio.CancelledError


class Exiting:
    async def push(self, result: Any, destination: str) -> None:
        raise SystemExit(3)


class NotAsync:
    def push(self, result: Any, destination: str) -> None:
        pushes.append((result, destination))


class Changing:
    async def push(self, result: dict[str, Any], destination: str) -> None:
        result.clear()


class Unmakeable:
    def __init__(self, **options: Any) -> None:
        raise ValueError(str(options))

    async def push(self, result: Any, destination: str) -> None: ...


class Pushless:
    pass


def named(name: str, **options: Any) -> dict[str, Any]:
    return {"BACKEND": f"{__name__}.{name}", "OPTIONS": options}


def webhook(receiver: Receiver, **options: Any) -> dict[str, Any]:
    return {
        "BACKEND": "invocations_app.delivery.WebhookPush",
        "OPTIONS": {"URL": receiver.url(), "SECRET": SECRET, "ALLOW_HTTP": True, "ALLOW_PRIVATE": True} | options,
    }


def delivering(to: Any, destinations: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    change["delivery"] = to
    return endpoint(**{"RUN_HOOK": f"{__name__}.hook", "PUSH_DESTINATIONS": destinations or {}} | keys)


async def record_of(invocation_id: str) -> InvocationRecord:
    return await on_database(lambda: InvocationRecord.objects.get(invocation_id=invocation_id))


async def report_of(invocation_id: str) -> DeliveryReport | None:
    await until_idle()
    return await deliveries.read((await record_of(invocation_id)).pk)


async def deliver(to: Any, destinations: dict[str, Any], settings: Any, **keys: Any) -> DeliveryReport | None:
    """Invoke once, and return the report when all is over."""
    settings.INVOCATIONS = delivering(to, destinations, **keys)
    response = await ask("i1", {"message": "hi"})
    assert response.status_code == 202
    return await report_of("i1")


# The acknowledgement.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("to", ["none", ("crm",)])
async def test_the_caller_is_acknowledged_streamed_or_not(settings, to, stream):
    settings.INVOCATIONS = delivering(to, {"crm": named("Noting")})
    response = await ask("i1", {"message": "hi", "session_id": "s1", "stream": stream})
    assert response.status_code == 202
    assert response.content == b'{"invocation_id":"i1","status":"running","session_id":"s1"}'
    assert response["Location"] == "/invocations/i1"
    assert (response["x-agent-invocation-id"], response["x-agent-session-id"]) == ("i1", "s1")
    await until_idle()
    body = await status("i1")
    assert (body["status"], body["response"]) == ("succeeded", "hi")
    record = await record_of("i1")
    assert (record.stream, record.background) == (stream, False)


async def test_without_destinations_the_answer_waits(settings):
    assert await deliver("none", {"crm": named("Noting")}, settings) is None
    assert pushes == []
    record = await record_of("i1")
    assert (record.delivery, record.delivery_report) == ("none", "")
    assert await events_of("i1") == b"id: 1\ndata: hi\n\nid: 2\ndata: [DONE]\n\n"


async def test_originating_is_the_caller(settings):
    settings.INVOCATIONS = delivering("originating")
    response = await ask("i1", {"message": "hi"})
    assert response.content == b'{"response":"hi","session_id":null}'
    record = await record_of("i1")
    assert (record.delivery, record.delivery_report) == ("", "")


async def test_the_platform_dialect_is_acknowledged_likewise(settings):
    settings.INVOCATIONS = delivering("none")
    path = "/invocations?agent_session_id=s1"
    response = await post({"message": "hi"}, path, headers={"x-agent-invocation-id": "i1"})
    assert response.status_code == 202
    assert response.content == b'{"invocation_id":"i1","status":"running","session_id":"s1"}'
    await until_idle()


async def test_a_busy_session_queues_it_without_limit(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted")
    settings.INVOCATIONS["default"]["SESSION_WAIT_SECONDS"] = 0
    fakes.script([fakes.gate(), "first"], ["second"])
    assert (await ask("i1", {"message": "a", "session_id": "s1"})).status_code == 202
    await fakes.gate().wait_reached()
    response = await ask("i2", {"message": "b", "session_id": "s1", "stream": True})
    assert response.content == b'{"invocation_id":"i2","status":"queued","session_id":"s1"}'
    await asyncio.sleep(0.1)
    fakes.gate().open()
    await until_idle()
    assert [(result["invocation_id"], result["response"]) for result, _ in pushes] == [
        ("i1", "first"),
        ("i2", "second"),
    ]


async def test_a_refusal_before_the_begin_is_answered_as_ever(settings):
    settings.INVOCATIONS = delivering("none", SESSION_MODE="required")
    response = await ask("i1", {"message": "hi"})
    assert (response.status_code, response.content) == (409, b'{"error":"a session is required"}')


async def test_a_repeated_request_is_acknowledged_with_the_status_as_it_is(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "hi"])
    body = {"message": "hi"}
    await ask("i1", body)
    await fakes.gate().wait_reached()
    running = await ask("i1", body)
    assert (running.status_code, running.json()["status"]) == (202, "running")
    fakes.gate().open()
    await until_idle()
    for again in (body, body | {"stream": True}, body | {"background": True}):
        response = await ask("i1", again)
        assert (response.status_code, response["Location"]) == (202, "/invocations/i1")
        assert response.content == b'{"invocation_id":"i1","status":"succeeded","session_id":null}'
    assert len(pushes) == 1


async def test_a_repeated_request_of_a_failed_one_is_acknowledged_too(settings):
    settings.INVOCATIONS = delivering("none", TARGET="tests.fakes.build_scripted")
    fakes.script([RuntimeError("no")])
    await ask("i1", {"message": "hi"})
    await until_idle()
    response = await ask("i1", {"message": "hi"})
    assert (response.status_code, response.json()["status"]) == (202, "failed")


async def test_on_disconnect_is_ignored(settings):
    settings.INVOCATIONS = delivering(
        ("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted", ON_DISCONNECT="cancel"
    )
    fakes.script([fakes.gate(), "hi"])
    assert (await ask("i1", {"message": "hi"})).status_code == 202
    await fakes.gate().wait_reached()
    await asyncio.sleep(0.05)
    fakes.gate().open()
    await until_idle()
    assert [result["status"] for result, _ in pushes] == ["succeeded"]


@pytest.mark.parametrize("to", ["none", ("crm",)])
def test_wsgi_cannot_acknowledge(settings, client, to):
    settings.INVOCATIONS = delivering(to, {"crm": named("Noting")})
    response = client.post("/invocations/invoke", b'{"message":"hi"}', "application/json")
    assert (response.status_code, response.content) == (
        501,
        b'{"error":"streams and background need an ASGI server"}',
    )
    assert not InvocationRecord.objects.exists()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("crm", "str"),
        (["crm"], "list"),
        ((), "tuple"),
        (("crm", "crm"), "tuple"),
        (("",), "tuple"),
        (("a\nb",), "tuple"),
        (("x" * 65,), "tuple"),
        ((1,), "tuple"),
        (None, "NoneType"),
    ],
)
async def test_another_value_fails_and_names_the_hook(settings, caplog, value, kind):
    settings.INVOCATIONS = delivering(value, {"crm": named("Noting")})
    response = await ask("i1", {"message": "hi"})
    assert (response.status_code, response.content) == (500, b'{"error":"Agent invocation failed."}')
    assert (
        f"run hook '{__name__}.hook' set 'delivery' to {kind}, not 'originating', 'none' or a tuple of "
        "names of push destinations, each once"
    ) in caplog.text
    assert not await on_database(InvocationRecord.objects.exists)


# Pushing.


async def test_each_destination_gets_the_status_body_and_its_name(settings):
    report = await deliver(("crm", "mail"), {"crm": named("Noting"), "mail": named("Noting", A=1)}, settings)
    body = await status("i1")
    assert sorted(pushes, key=lambda push: push[1]) == [(body, "crm"), (body, "mail")]
    assert report is not None
    assert (sorted(report.pushed), report.skipped, report.failed, report.unsent) == (["crm", "mail"], (), (), ())
    record = await record_of("i1")
    assert (record.delivery, record.delivery_claimed_until) == ("pushed", None)


async def test_pushed_skipped_and_failed_are_kept_apart(settings, caplog):
    destinations = {"crm": named("Noting"), "bad": named("Raising"), "unmade": named("Unmakeable", KEY=SECRET)}
    report = await deliver(("crm", "nobody", "bad", "unmade"), destinations, settings, EXPOSE_ERRORS=True)
    assert report is not None
    assert (report.pushed, report.skipped, report.unsent) == (("crm",), ("nobody",), ())
    assert sorted(report.failed, key=lambda push: push.destination) == [
        FailedPush("bad", "KeyError"),
        FailedPush("unmade", "ValueError"),
    ]
    record = await record_of("i1")
    assert record.delivery == "failed"
    assert set(json.loads(record.delivery_report)) == {"pushed", "skipped", "failed", "unsent"}
    assert SECRET not in caplog.text + record.delivery_report + json.dumps(await status("i1"))
    assert f"Invocation {record.correlation_id} was not pushed to 'bad': KeyError at {__file__}:" in caplog.text
    assert f"Invocation {record.correlation_id} names unknown push destinations: ['nobody']." in caplog.messages


async def test_a_failed_push_changes_nothing_of_the_invocation(settings):
    await deliver(("bad",), {"bad": named("Raising")}, settings)
    body = await status("i1")
    assert (body["status"], body["response"], body["error"]) == ("succeeded", "hi", None)


async def test_only_an_unknown_name_is_skipped(settings):
    report = await deliver(("nobody",), {}, settings)
    assert report == DeliveryReport(skipped=("nobody",))
    assert (await record_of("i1")).delivery == "skipped"


@pytest.mark.parametrize(
    ("backend", "error"),
    [
        ("Cancelling", "CancelledPush"),
        ("Exiting", "RuntimeError"),
        ("NotAsync", "TypeError"),
        ("Pushless", "ImproperlyConfigured"),
    ],
)
async def test_whatever_a_backend_does_is_a_failed_push(settings, backend, error):
    report = await deliver(("bad", "crm"), {"bad": named(backend), "crm": named("Noting")}, settings)
    assert report is not None
    assert (report.pushed, report.failed) == (("crm",), (FailedPush("bad", error),))


async def test_a_backend_that_does_not_stop_is_left_in_time(settings, monkeypatch, caplog):
    monkeypatch.setattr(sending, "PUSH_SECONDS", 0.1)
    report = await deliver(("slow", "crm"), {"slow": named("Stubborn"), "crm": named("Noting")}, settings)
    assert report is not None
    assert (report.pushed, report.failed) == (("crm",), (FailedPush("slow", "TimeoutError"),))
    await asyncio.sleep(0.1)
    assert SECRET not in caplog.text


async def test_a_backend_gets_a_result_of_its_own(settings):
    destinations = {"a": named("Changing"), "b": named("Noting"), "c": named("Changing")}
    await deliver(("a", "b", "c"), destinations, settings)
    assert pushes == [(await status("i1"), "b")]


async def test_a_failed_run_is_pushed_with_its_error(settings):
    fakes.script([RuntimeError("inside")])
    await deliver(("crm",), {"crm": named("Noting")}, settings, TARGET="tests.fakes.build_scripted", EXPOSE_ERRORS=True)
    [(result, _)] = pushes
    assert (result["status"], result["response"]) == ("failed", None)
    assert result["error"] == {"message": "Agent invocation failed.", "code": "invocation_failed", "status": 500}


async def test_a_cancelled_run_is_pushed_too(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "hi"])
    await ask("i1", {"message": "hi"})
    await fakes.gate().wait_reached()
    await cancel("i1")
    await until_idle()
    assert [(result["status"], result["error"]["code"]) for result, _ in pushes] == [("cancelled", "cancelled")]


async def test_one_cancelled_while_it_waits_is_pushed_too(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "hi"])
    await ask("i1", {"message": "hi", "session_id": "s1"})
    await fakes.gate().wait_reached()
    await ask("i2", {"message": "hi", "session_id": "s1"})
    await cancel("i2")
    await until(lambda: pushes)
    assert [(result["invocation_id"], result["status"]) for result, _ in pushes] == [("i2", "cancelled")]
    fakes.gate().open()
    await until_idle()


async def test_the_push_comes_after_the_commit_and_holds_no_session(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("AtGate")})
    await ask("i1", {"message": "hi", "session_id": "s1"})
    await fakes.gate("push").wait_reached()
    record = await record_of("i1")
    assert (record.status, record.delivery) == ("succeeded", "unsent")
    assert json.loads(record.delivery_report)["unsent"] == ["crm"]
    assert (await on_database(SessionRecord.objects.get)).claimed_by is None
    # It has ended: there is nothing to cancel any more.
    assert (await cancel("i1")).json()["status"] == "succeeded"
    fakes.gate("push").open()
    assert await report_of("i1") == DeliveryReport(pushed=("crm",))


async def test_a_background_invocation_is_pushed_too(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")})
    response = await ask("i1", {"message": "hi", "background": True})
    assert response.status_code == 202
    assert await report_of("i1") == DeliveryReport(pushed=("crm",))


async def test_a_backend_is_made_once_for_as_long_as_its_settings_are_the_same(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting", Key="a")})
    for number in range(3):
        await ask(f"i{number}", {"message": "hi"})
    await until_idle()
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting", Key="a")})
    await ask("i3", {"message": "hi"})
    await until_idle()
    assert [backend.options for backend in made] == [{"key": "a"}]
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting", Key="b")})
    await ask("i4", {"message": "hi"})
    await until_idle()
    assert [backend.options for backend in made] == [{"key": "a"}, {"key": "b"}]


# Over a real socket.


async def test_the_webhook_takes_the_bytes_of_the_status_signed(settings):
    with receiving() as receiver:
        report = await deliver(("crm",), {"crm": webhook(receiver)}, settings)
    assert report == DeliveryReport(pushed=("crm",))
    [received] = receiver.received
    verify(received, SECRET)
    assert received.body == (await get("i1")).content


@pytest.mark.parametrize(
    ("answer", "options", "error"),
    [
        (plain(b"HTTP/1.1 503 No\r\n\r\n"), {}, "StatusRefused"),
        (plain(b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1/\r\n\r\n"), {}, "RedirectRefused"),
        (hang(), {"TIMEOUT_SECONDS": 0.1}, "TimeoutError"),
        (plain(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000), {"MAX_BYTES": 1000}, "ResponseTooLarge"),
        (plain(b""), {"MAX_BYTES": 10}, "RequestTooLarge"),
        (plain(b""), {"ALLOW_PRIVATE": False}, "AddressNotAllowed"),
        (plain(b""), {}, "MalformedResponse"),
    ],
)
async def test_what_a_receiver_does_not_take_is_reported_by_its_class(settings, caplog, answer, options, error):
    with receiving(answer) as receiver:
        report = await deliver(("crm",), {"crm": webhook(receiver, **options)}, settings)
    assert report == DeliveryReport(failed=(FailedPush("crm", error),))
    assert SECRET not in caplog.text


# Sending again.


async def test_what_failed_is_sent_again_and_what_arrived_is_not(settings):
    destinations = {"crm": named("Noting"), "bad": named("Raising")}
    await deliver(("crm", "bad", "later"), destinations, settings)
    pk = (await record_of("i1")).pk
    pushes.clear()
    settings.INVOCATIONS = delivering("none", {name: named("Noting") for name in ("crm", "bad", "later")})
    report = await delivery.resend(pk)
    assert report is not None
    assert sorted(name for _, name in pushes) == ["bad", "later"]
    assert (sorted(report.pushed), report.open) == (["bad", "crm", "later"], ())
    assert await delivery.resend(pk) is None
    assert (await record_of("i1")).delivery == "pushed"


async def test_what_fails_again_stays_failed_with_its_new_class(settings):
    await deliver(("crm",), {"crm": named("Raising")}, settings)
    pk = (await record_of("i1")).pk
    settings.INVOCATIONS = delivering("none", {"crm": named("Cancelling")})
    assert await delivery.resend(pk) == DeliveryReport(failed=(FailedPush("crm", "CancelledPush"),))


async def test_an_endpoint_that_is_gone_has_nobody_to_send_to(settings):
    await deliver(("crm",), {"crm": named("Raising")}, settings)
    pk = (await record_of("i1")).pk
    settings.INVOCATIONS = {"other": endpoint()["default"]}
    assert await delivery.resend(pk) == DeliveryReport(skipped=("crm",))


async def test_two_do_not_send_the_same_at_once(settings):
    await deliver(("crm",), {"crm": named("Raising")}, settings)
    pk = (await record_of("i1")).pk
    settings.INVOCATIONS = delivering("none", {"crm": named("AtGate")})
    sending_again = asyncio.ensure_future(delivery.resend(pk))
    await fakes.gate("push").wait_reached()
    assert await delivery.resend(pk) is None
    assert await delivery.deliver(pk) is None
    fakes.gate("push").open()
    assert await sending_again == DeliveryReport(pushed=("crm",))
    assert len(pushes) == 1


async def test_what_a_process_that_died_did_not_send_can_be_seen_and_sent(settings):
    settings.INVOCATIONS = delivering(("crm", "mail"), {"crm": named("AtGate"), "mail": named("Noting")})
    await ask("i1", {"message": "hi"})
    await fakes.gate("push").wait_reached()
    [run] = host.live_runs()
    await until(lambda: pushes)
    await asyncio.sleep(0.05)
    run.task.cancel()
    await until_idle()
    record = await record_of("i1")
    report = await report_of("i1")
    assert (record.delivery, report) == ("unsent", DeliveryReport(pushed=("mail",), unsent=("crm",)))
    # Nobody knows yet that it is gone.
    assert await delivery.resend(record.pk) is None
    past = timezone.now() - timedelta(seconds=1)
    await on_database(lambda: InvocationRecord.objects.update(delivery_claimed_until=past))
    fakes.gate("push").open()
    report = await delivery.resend(record.pk)
    assert report is not None
    assert (sorted(report.pushed), report.open) == (["crm", "mail"], ())
    assert [name for _, name in pushes] == ["mail", "crm"]


async def test_a_run_whose_process_died_is_sent_as_interrupted(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("Noting")}, TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "hi"])
    await ask("i1", {"message": "hi"})
    await fakes.gate().wait_reached()
    pk = (await record_of("i1")).pk
    # It runs: there is nothing to send yet.
    assert await delivery.resend(pk) is None
    await on_database(lambda: InvocationRecord.objects.update(owner="a process that is gone"))
    await on_database(lambda: expire(pk=pk))
    assert await delivery.resend(pk) == DeliveryReport(pushed=("crm",))
    assert [result["status"] for result, _ in pushes] == ["interrupted"]
    fakes.gate().open()
    await until_idle()
    assert len(pushes) == 1


async def test_shutdown_cuts_a_push_after_its_grace_and_leaves_it_unsent(settings):
    settings.INVOCATIONS = delivering(("crm",), {"crm": named("AtGate")})
    await ask("i1", {"message": "hi"})
    await fakes.gate("push").wait_reached()
    here = host.get_host()
    await here.drain(0.05)
    here.closing = False
    assert not host.live_runs()
    assert await report_of("i1") == DeliveryReport(unsent=("crm",))


async def test_there_is_nothing_to_send_of_others(settings):
    settings.INVOCATIONS = delivering("originating")
    await ask("i1", {"message": "hi"})
    assert await delivery.resend((await record_of("i1")).pk) is None
    assert await delivery.resend(10**9) is None


def test_a_report_keeps_each_destination_in_one_place():
    stands = DeliveryReport(pushed=("a",), skipped=("b",), failed=(FailedPush("c", "OSError"),), unsent=("d",))
    assert stands.open == ("d", "c", "b")
    assert stands.merged(DeliveryReport(unsent=stands.open)) == DeliveryReport(("a",), (), (), ("d", "c", "b"))
    assert stands.merged(DeliveryReport(failed=(FailedPush("a", "X"), FailedPush("d", "X")))) == DeliveryReport(
        ("a",), ("b",), (FailedPush("c", "OSError"), FailedPush("d", "X")), ()
    )
    assert deliveries.decode_report(deliveries.encode_report(stands)) == stands


# The admin.

INVOCATIONS = reverse("admin:invocations_app_invocationrecord_changelist")
ACTION = "Push again what did not arrive"


def make_record(**values: Any) -> InvocationRecord:
    count = InvocationRecord.objects.count()
    kept = {"endpoint": "default", "dialect": "channel", "status": "succeeded", "created_at": timezone.now()}
    kept |= {"key": f"key-{count}", "invocation_id": f"call-{count}", "correlation_id": f"correlation-{count}"}
    kept |= {"answer": '{"text":"hi","session_id":null}', "finished_at": timezone.now()}
    return InvocationRecord.objects.create(**kept | values)


def failed_record() -> InvocationRecord:
    report = DeliveryReport(failed=(FailedPush("crm", "TimeoutError"),))
    return make_record(delivery="failed", delivery_report=deliveries.encode_report(report))


@pytest.fixture
def staff(client):
    """A client of somebody who may see everything."""
    user = get_user_model().objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    return client


def send_again(client: Any, *records: InvocationRecord) -> Any:
    chosen = {"action": "send_again", "_selected_action": [record.pk for record in records]}
    return client.post(INVOCATIONS, chosen, follow=True)


def test_the_page_shows_the_report(staff):
    page = reverse("admin:invocations_app_invocationrecord_change", args=[failed_record().pk])
    text = staff.get(page).content.decode()
    assert "&quot;destination&quot;: &quot;crm&quot;" in text
    assert "&quot;error&quot;: &quot;TimeoutError&quot;" in text


def test_the_list_can_be_narrowed_to_what_did_not_arrive(staff):
    failed, _other = failed_record(), make_record()
    results = staff.get(INVOCATIONS, {"delivery__exact": "failed"}).context["cl"].result_list
    assert [record.pk for record in results] == [failed.pk]


def test_the_action_sends_again_and_tells(settings, admin_client):
    with receiving() as receiver:
        settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": webhook(receiver)})
        record = failed_record()
        response = send_again(admin_client, record, make_record())
    [message] = [str(message) for message in response.context["messages"]]
    assert message == "Everything arrived: 1. Something did not: 0. Nothing to push: 1."
    verify(receiver.received[0], SECRET)
    assert receiver.received[0].result["response"] == "hi"
    record.refresh_from_db()
    assert record.delivery == "pushed"
    assert (
        "Pushed again what did not arrive."
        in admin_client.get(
            reverse("admin:invocations_app_invocationrecord_history", args=[record.pk])
        ).content.decode()
    )


def test_the_action_tells_what_failed_again_without_secrets(settings, admin_client):
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": named("Raising")})
    record = failed_record()
    response = send_again(admin_client, record)
    assert [str(message) for message in response.context["messages"]] == [
        "Everything arrived: 0. Something did not: 1. Nothing to push: 0."
    ]
    page = reverse("admin:invocations_app_invocationrecord_change", args=[record.pk])
    text = admin_client.get(page).content.decode()
    assert "KeyError" in text
    assert SECRET not in text + response.content.decode()


def test_too_many_are_refused(settings, admin_client, monkeypatch):
    monkeypatch.setattr("invocations_app.admin.invocations.MAX_SENT_AGAIN", 1)
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": named("Noting")})
    response = send_again(admin_client, failed_record(), failed_record())
    assert [str(message) for message in response.context["messages"]] == ["Choose at most 1 invocations to push again."]
    assert pushes == []


def test_who_may_only_look_cannot_send(settings, staff):
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": named("Noting")})
    record = failed_record()
    assert ACTION not in staff.get(INVOCATIONS).content.decode()
    send_again(staff, record)
    assert pushes == []
    get_user_model().objects.get(username="staff").user_permissions.add(
        Permission.objects.get(codename="change_invocationrecord")
    )
    assert ACTION in staff.get(INVOCATIONS).content.decode()
    send_again(staff, record)
    assert len(pushes) == 1
    page = reverse("admin:invocations_app_invocationrecord_change", args=[record.pk])
    assert 'name="_save"' not in staff.get(page).content.decode()


# Settings.


def messages_of(destinations: Any) -> list[tuple[str, str]]:
    with override_settings(INVOCATIONS=endpoint(PUSH_DESTINATIONS=destinations)):
        found = checks.check_settings() + checks.check_endpoints()
        return [(str(message.id), str(message.msg)) for message in found]


PLACE = "INVOCATIONS['default']['PUSH_DESTINATIONS']"


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"a b": {"BACKEND": "a.b"}},
        {1: {"BACKEND": "a.b"}},
        {"crm": "a.b"},
        {"crm": {}},
        {"crm": {"BACKEND": "nodots"}},
        {"crm": {"BACKEND": "a.b", "OPTION": {}}},
        {"crm": {"BACKEND": "a.b", "OPTIONS": [SECRET]}},
        {"crm": {"BACKEND": "a.b", "OPTIONS": {"KEY": SECRET, "key": SECRET}}},
        {"crm": {"BACKEND": "a.b", "OPTIONS": {1: SECRET}}},
    ],
)
def test_e003_destinations_of_a_wrong_shape(value):
    assert messages_of(value) == [("invocations.E003", f"{PLACE} has a value that it cannot have.")]
    with override_settings(INVOCATIONS=endpoint(PUSH_DESTINATIONS=value)):
        assert SECRET not in str(conf.get_problems())


def test_e004_a_backend_that_cannot_be_imported():
    [(code, text)] = messages_of({"crm": {"BACKEND": "no_such.module"}})
    assert code == "invocations.E004"
    assert text.startswith(f"{PLACE}['crm']: 'no_such.module' cannot be imported: ")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"BACKEND": f"{__name__}.PLACE"}, "'BACKEND' must name a class, or a function that returns a backend."),
        (named("Pushless"), "'BACKEND' has no method 'push'."),
        (named("Unmakeable", KEY=SECRET), "the backend cannot be made: ValueError."),
        (named("Raising", KEY=SECRET), "'OPTIONS' does not fit: "),
        (
            {
                "BACKEND": "invocations_app.delivery.WebhookPush",
                "OPTIONS": {"URL": "http://a.example/", "SECRET": SECRET},
            },
            "'URL' must start with https://.",
        ),
        (
            {"BACKEND": "invocations_app.delivery.WebhookPush", "OPTIONS": {"URL": "https://a.example/"}},
            "'OPTIONS' does not fit: missing a required argument: 'secret'.",
        ),
    ],
)
def test_e011_a_backend_that_cannot_be_made(entry, problem):
    [(code, text)] = messages_of({"crm": entry})
    assert code == "invocations.E011"
    assert text.startswith(f"{PLACE}['crm']: {problem}")
    assert SECRET not in text


def test_a_good_destination_has_no_message():
    options = {"URL": "https://crm.example/hook", "SECRET": SECRET}
    assert messages_of({"crm": {"BACKEND": "invocations_app.delivery.WebhookPush", "OPTIONS": options}}) == []


def test_no_text_of_the_settings_holds_a_secret(settings):
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": named("Noting", KEY=SECRET)})
    entry = conf.get_endpoint("default")
    assert SECRET not in repr(entry)
    assert isinstance(hash(entry), int)


def test_a_backend_that_cannot_be_made_raises_without_the_values(settings):
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": named("Raising", KEY=SECRET)})
    with pytest.raises(ImproperlyConfigured) as raised:
        delivery.get_backend(conf.get_endpoint("default"), "crm")
    assert SECRET not in str(raised.value)
    with pytest.raises(KeyError):
        delivery.get_backend(conf.get_endpoint("default"), "other")


# The page of the documentation.


def examples() -> list[str]:
    page = Path(__file__).resolve().parent.parent / "docs" / "delivery.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_documented_settings_are_right():
    [example] = [text for text in examples() if "PUSH_DESTINATIONS" in text]
    names: dict[str, Any] = {}
    exec(example, names)
    assert messages_of(names["INVOCATIONS"]["default"]["PUSH_DESTINATIONS"]) == []


async def test_a_receiver_as_documented_takes_what_is_genuine(settings):
    [example] = [text for text in examples() if "is_genuine" in text]
    names: dict[str, Any] = {}
    exec(example, names)
    with receiving() as receiver:
        await deliver(("crm",), {"crm": webhook(receiver)}, settings)
    [received] = receiver.received
    is_genuine = names["is_genuine"]
    assert is_genuine(received.headers, received.body, SECRET)
    assert not is_genuine(received.headers, received.body, "another secret")
    assert not is_genuine(received.headers, received.body + b" ", SECRET)
    assert not is_genuine(received.headers | {"x-invocations-timestamp": "1700000000"}, received.body, SECRET)


async def test_a_database_that_is_away_for_a_moment_does_not_lose_the_report(settings, monkeypatch, caplog):
    from django.db import OperationalError

    monkeypatch.setattr(sending, "_WRITE_PAUSE_SECONDS", 0.01)
    write, tries = deliveries.report, []

    async def fails_twice(pk: int, news: DeliveryReport) -> None:
        tries.append(pk)
        if len(tries) < 3:
            raise OperationalError("away")
        await write(pk, news)

    monkeypatch.setattr(deliveries, "report", fails_twice)
    assert await deliver(("crm",), {"crm": named("Noting")}, settings) == DeliveryReport(pushed=("crm",))
    assert (len(tries), len(pushes)) == (3, 1)


async def test_a_report_that_is_not_written_leaves_the_push_unsent(settings, monkeypatch, caplog):
    from django.db import OperationalError

    monkeypatch.setattr(sending, "_WRITE_PAUSE_SECONDS", 0)

    async def fails(pk: int, news: DeliveryReport) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(deliveries, "report", fails)
    assert await deliver(("crm",), {"crm": named("Noting")}, settings) == DeliveryReport(unsent=("crm",))
    record = await record_of("i1")
    assert f"The delivery report of invocation {record.correlation_id} was not written." in caplog.messages
