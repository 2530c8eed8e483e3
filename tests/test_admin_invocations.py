"""One invocation in the admin: its state while it lives, its events, and what can be done to it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import AsyncClient, Client
from django.urls import reverse

from invocations_app.admin import InvocationAdmin, answering
from invocations_app.admin.events import EVENTS_PER_PAGE, decode, load_events
from invocations_app.admin.explain import explain
from invocations_app.models import InvocationRecord, PendingRecord
from invocations_app.runs.host import live_runs
from tests import approval_fakes, fakes
from tests.admin_records import ESCAPED, INVOCATIONS, SCRIPT, make_invocation, make_session, page_of, text_of
from tests.client import endpoint, records, rows
from tests.durable import ask, body_of, scripted, until_idle

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ONE = {"message": "hi", "session_id": "s1"}
FLOW = "tests.workflow_fakes.build_asking"


def url(name: str, record: Any) -> str:
    return reverse(f"admin:invocations_app_invocationrecord_{name}", args=[record.pk])


def make_user(name: str, *codenames: str) -> Any:
    user = get_user_model().objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


def client_of(*codenames: str) -> Client:
    client = Client()
    client.force_login(make_user("-".join(codenames), *codenames))
    return client


SEE = "view_invocationrecord"
OPERATE = "change_invocationrecord"
READ = "view_transcript"


@pytest.fixture
def viewer(db: None) -> Client:
    """Somebody who sees lists and figures."""
    return client_of(SEE)


@pytest.fixture
def reader(db: None) -> Client:
    """Somebody who reads what was said, and changes nothing."""
    return client_of(SEE, READ)


@pytest.fixture
def operator(transactional_db: None) -> Client:
    """Somebody who may do everything there is to do."""
    return client_of(SEE, READ, OPERATE)


def said(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def logged() -> list[str]:
    return [entry.change_message for entry in LogEntry.objects.order_by("pk")]


class TestPage:
    def test_state_and_timeline_are_there_without_any_script(self, viewer):
        record = make_invocation(status="running", stream=True)
        text = text_of(viewer.get(page_of(record)))
        assert '<span class="invocations-status invocations-status-running">running</span>' in text
        assert 'data-live="true"' in text
        assert 'type="module" src="/static/invocations_app/live.js"' in text

    def test_page_has_no_inline_script_style_or_handler(self, operator):
        make_record_that_asks()
        [record] = InvocationRecord.objects.all()
        text = text_of(operator.get(page_of(record)))
        assert "style=" not in text
        assert "<style" not in text
        assert not [part for part in text.split("<script")[1:] if "src=" not in part.split(">")[0]]

    def test_error_is_explained_beside_the_correlation_id(self, viewer):
        record = make_invocation(status="failed", error_code="timeout", error_status=504)
        text = text_of(viewer.get(page_of(record)))
        for part in (
            "<code>timeout</code> (504)",
            "the run timed out",
            "The run outlasted RUN_TIMEOUT_SECONDS",
            'data-invocations-copy="correlation-0"',
        ):
            assert part in text, part

    def test_every_recorded_code_is_explained_and_an_unknown_one_points_to_the_log(self):
        known = explain(InvocationRecord(error_code="interrupted", error_status=409))
        unknown = explain(InvocationRecord(error_code="of a later version"))
        assert known.text == "this invocation was interrupted"
        assert str(unknown.hint) == "The log has the traceback, beside the correlation id."
        assert explain(InvocationRecord()) is None

    def test_pushes_are_a_table_with_the_worst_first(self, viewer):
        report = {"pushed": ["crm"], "skipped": [SCRIPT], "failed": [{"destination": "mail", "error": "OSError"}]}
        record = make_invocation(delivery="failed", delivery_report=json.dumps(report | {"unsent": ["chat"]}))
        text = text_of(viewer.get(page_of(record)))
        places = [text.index(f'<th scope="row">{name}</th>') for name in ("mail", "chat", ESCAPED, "crm")]
        assert places == sorted(places)
        assert "<code>OSError</code>" in text

    @pytest.mark.parametrize("report", ["{", "{}", "[]", '{"pushed":1}', "null"])
    def test_report_that_cannot_be_read_breaks_nothing(self, viewer, report):
        record = make_invocation(delivery_report=report)
        assert "invocations-pushes" not in text_of(viewer.get(page_of(record)))

    def test_nothing_can_be_done_by_those_who_only_read(self, reader):
        text = text_of(reader.get(page_of(make_invocation(status="running", delivery_report='{"failed":[]}'))))
        assert "/cancel/" not in text
        assert "/push/" not in text

    @pytest.mark.django_db(transaction=True)
    def test_dead_run_is_written_down_as_interrupted(self):
        record = make_invocation(status="running", lease_expires_at=NOW)
        text = text_of(client_of(SEE).get(page_of(record)))
        assert "invocations-status-interrupted" in text
        record.refresh_from_db()
        assert record.status == "interrupted"


def test_pages_link_within_their_own_admin_site(rf, admin_user):
    site = AdminSite(name="other")
    site.register(InvocationRecord, InvocationAdmin)
    request = rf.get("/")
    request.user = admin_user
    site.get_model_admin(InvocationRecord).page(request, "a page")
    assert request.current_app == "other"


class TestEvents:
    def events(self, record: InvocationRecord, number: str | None = None) -> list[tuple[int, str, str]]:
        return [(event.number, event.kind, event.data.text) for event in load_events(record, number).events]

    def make(self, *frames: str, **keys: Any) -> InvocationRecord:
        values = {"answer": '{"text":"x","session_id":null}', "event_count": len(frames)}
        record = make_invocation(stream=True, **values | keys)
        record.events.create(
            first=1, last=len(frames), frames=json.dumps(frames), created_at=NOW + timedelta(seconds=2)
        )
        return record

    @pytest.mark.parametrize(
        ("frame", "read"),
        [
            ("data: a\ndata: \n\n", ("message", "a\n")),
            ("event: error\ndata: no\n\n", ("error", "no")),
            ("id: 5\n: comment\ndata:x\n\n", ("message", "x")),
            ("data:  two\n\n", ("message", " two")),
        ],
    )
    def test_frame_is_read_as_a_standard_parser_does(self, frame, read):
        assert decode(frame) == read

    @pytest.mark.django_db
    def test_events_have_their_numbers_and_the_last_is_told_from_the_record(self):
        record = self.make("data: hel\n\n", 'event: request_info\ndata: {"a":1}\n\n')
        assert self.events(record) == [
            (1, "message", "hel"),
            (2, "request_info", '{\n  "a": 1\n}'),
            (3, "message", "[DONE]"),
        ]
        assert [event.logged for event in load_events(record, None).events] == ["+2.0 s", "+2.0 s", ""]

    @pytest.mark.django_db
    def test_text_that_is_json_stays_as_it_was_streamed(self):
        assert self.events(self.make('data: {"a":1}\n\n'))[0] == (1, "message", '{"a":1}')

    @pytest.mark.django_db
    def test_failed_stream_ends_with_its_error(self):
        record = self.make("data: a\n\n", status="failed", error_code="timeout", error_status=504)
        assert self.events(record)[-1] == (2, "error", "the run timed out")

    @pytest.mark.django_db
    def test_running_stream_has_what_is_in_the_log(self):
        record = self.make("data: a\n\n", status="running", event_count=0)
        assert self.events(record) == [(1, "message", "a")]

    @pytest.mark.django_db
    def test_plain_run_shows_what_a_follower_gets(self):
        record = make_invocation(answer='{"text":"hello","session_id":null}')
        assert self.events(record) == [(1, "message", "hello"), (2, "message", "[DONE]")]
        assert load_events(record, None).is_derived

    @pytest.mark.django_db
    def test_long_streams_are_paged_and_read_page_by_page(self, django_assert_num_queries):
        count = EVENTS_PER_PAGE * 2 + 1
        record = make_invocation(stream=True, event_count=count, answer='{"text":"x","session_id":null}')
        for first in range(1, count + 1, 64):
            last = min(first + 63, count)
            frames = json.dumps([f"data: {number}\n\n" for number in range(first, last + 1)])
            record.events.create(first=first, last=last, frames=frames, created_at=NOW)
        with django_assert_num_queries(1):
            page = load_events(record, "2")
        assert [event.number for event in page.events] == list(range(101, 201))
        assert [event.data.text for event in page.events] == [str(number) for number in range(101, 201)]
        assert self.events(record, "3") == [(201, "message", "201"), (202, "message", "[DONE]")]
        assert self.events(record, "nonsense")[0] == (1, "message", "1")

    @pytest.mark.django_db
    def test_trimmed_events_are_told(self):
        record = make_invocation(stream=True, event_count=5, answer='{"text":"x","session_id":null}')
        page = load_events(record, None)
        assert page.trimmed_note == "5 events of this page are not in the log any more: they were trimmed by age."
        assert [event.number for event in page.events] == [6]

    @pytest.mark.django_db
    @pytest.mark.parametrize("answer", ["", "{", "[]", '{"text":1}', '{"text":"a","session_id":1,"frames":3}'])
    def test_record_that_cannot_be_read_breaks_nothing(self, reader, answer):
        text_of(reader.get(page_of(make_invocation(answer=answer, stream=True))))
        text_of(reader.get(page_of(make_invocation(answer=answer))))

    @pytest.mark.django_db
    def test_contents_are_escaped(self, reader):
        record = self.make(f"event: {SCRIPT}\ndata: {SCRIPT}\n\n")
        text = text_of(reader.get(page_of(record)))
        assert "<script>alert" not in text
        assert text.count(ESCAPED) == 4

    @pytest.mark.django_db
    def test_without_the_permission_there_are_none(self, viewer, django_assert_max_num_queries):
        record = self.make("data: secret\n\n")
        with django_assert_max_num_queries(10) as queries:
            assert "secret" not in text_of(viewer.get(page_of(record)))
        assert not any("eventrecord" in query["sql"] for query in queries.captured_queries)

    @pytest.mark.django_db
    def test_redactor_gets_no_chance_to_miss_what_is_cut_in_two(self, settings):
        settings.INVOCATIONS_HOST = {"REDACTOR": "tests.test_admin_invocations.no_rome"}
        frames = ["data: Ro\n\n", "data: me\n\n", 'event: request_info\ndata: {"a":"to Rome"}\n\n']
        page = load_events(self.make(*frames), None)
        assert [event.data.text for event in page.events] == [
            "[2 characters of the text: a piece may cut what is to be redacted]",
            "[2 characters of the text: a piece may cut what is to be redacted]",
            '{\n  "a": "to ***"\n}',
            "[DONE]",
        ]
        assert "Ro" not in "".join(event.raw.text for event in page.events)


def no_rome(text: str) -> str:
    return text.replace("Rome", "***")


class TestLive:
    def test_fragment_has_state_and_timeline_and_no_page(self, viewer, django_assert_num_queries):
        record = make_invocation(status="running", stream=True)
        # Session, user, permissions of the user and of the groups; the row, its lease; the log.
        with django_assert_num_queries(7):
            text = text_of(viewer.get(url("live", record)))
        assert text.lstrip().startswith('<section class="module invocations-live" data-live="true"')
        assert "<html" not in text
        assert "no-store" in viewer.get(url("live", record))["Cache-Control"]

    def test_it_holds_no_contents_and_leaves_no_entry(self, reader):
        record = make_invocation(status="succeeded", answer='{"text":"Rome"}', metadata='{"a":"Rome"}')
        assert "Rome" not in text_of(reader.get(url("live", record)))
        assert logged() == []

    def test_ended_one_says_so(self, viewer):
        assert 'data-live="false"' in text_of(viewer.get(url("live", make_invocation())))

    def test_states_of_rows_are_asked_for_at_once(self, viewer, django_assert_num_queries):
        first, second = make_invocation(status="running"), make_invocation()
        asked = {"id": [first.pk, second.pk, 999, "x", "²", "9" * 40]}
        with django_assert_num_queries(5):
            response = viewer.get(reverse("admin:invocations_app_invocationrecord_states"), asked)
        assert response.json() == {str(first.pk): "running", str(second.pk): "succeeded"}

    @pytest.mark.parametrize("name", ["live", "cancel", "answer"])
    def test_strangers_see_nothing(self, db, name):
        record = make_invocation(status="running")
        assert client_of("view_sessionrecord").get(url(name, record)).status_code == 403
        assert Client().get(url(name, record)).status_code == 302
        assert client_of(SEE, OPERATE, READ).get(url(name, InvocationRecord(pk=999))).status_code == 404

    def test_states_are_for_those_who_see_the_list(self, db):
        address = reverse("admin:invocations_app_invocationrecord_states")
        assert client_of("view_sessionrecord").get(address).status_code == 403

    @pytest.mark.parametrize("name", ["live", "push"])
    def test_methods_are_what_they_do(self, operator, name):
        send = operator.post if name == "live" else operator.get
        assert send(url(name, make_invocation())).status_code == 405

    def test_rows_are_marked_for_the_script(self, viewer):
        record = make_invocation(status="queued")
        text = text_of(viewer.get(INVOCATIONS))
        assert f'data-invocations-row="{record.pk}" data-status="queued" data-live="true"' in text


class TestCancel:
    def test_page_asks_first(self, operator):
        record = make_invocation(status="queued")
        text = text_of(operator.get(url("cancel", record)))
        assert "Cancel the invocation?" in text
        assert InvocationRecord.objects.get().status == "queued"

    def test_queued_one_is_cancelled_and_noted(self, operator):
        record = make_invocation(status="queued", invocation_id="i1")
        InvocationRecord.objects.update(key=scope_key(record))
        response = operator.post(url("cancel", record), follow=True)
        assert said(response) == ["1 invocation was cancelled."]
        assert (InvocationRecord.objects.get().status, logged()) == ("cancelled", ["Cancelled.", "Read the contents."])

    def test_ended_one_is_left(self, operator):
        record = make_invocation()
        assert said(operator.post(url("cancel", record), follow=True)) == ["It has ended: nothing was cancelled."]
        asked = operator.get(url("cancel", record), follow=True)
        assert said(asked) == ["It has ended: there is nothing to cancel."]
        assert InvocationRecord.objects.get().status == "succeeded"

    @pytest.mark.django_db(transaction=True)
    def test_readers_may_not(self):
        record = make_invocation(status="queued")
        client = client_of(SEE, READ)
        assert client.post(url("cancel", record)).status_code == 403
        assert "cancel_chosen" not in text_of(client.get(INVOCATIONS))
        assert InvocationRecord.objects.get().status == "queued"

    def test_several_are_cancelled_once_that_is_confirmed(self, operator):
        chosen = [make_invocation(status="queued", invocation_id=f"i{number}") for number in range(2)]
        for record in chosen:
            InvocationRecord.objects.filter(pk=record.pk).update(key=scope_key(record))
        ended = make_invocation()
        body = {"action": "cancel_chosen", "_selected_action": [record.pk for record in [*chosen, ended]]}
        text = text_of(operator.post(INVOCATIONS, body))
        assert "Cancel 2 invocations?" in text
        assert ended.correlation_id not in text
        assert not InvocationRecord.objects.filter(status="cancelled").exists()
        response = operator.post(INVOCATIONS, body | {"confirmed": "yes"}, follow=True)
        assert said(response) == ["2 invocations were cancelled."]
        assert InvocationRecord.objects.filter(status="cancelled").count() == 2

    def test_nothing_to_cancel_is_said(self, operator):
        body = {"action": "cancel_chosen", "_selected_action": [make_invocation().pk]}
        response = operator.post(INVOCATIONS, body, follow=True)
        assert said(response) == ["All of them have ended: there is nothing to cancel."]

    @pytest.mark.django_db(transaction=True)
    async def test_running_one_is_stopped_for_real(self, settings):
        settings.INVOCATIONS = scripted()
        fakes.script(["a", fakes.gate(), "b"])
        await ask("i1", ONE | {"background": True})
        await fakes.gate().wait_reached()
        client = await async_client(SEE, OPERATE)
        [record] = await records()
        response = await client.post(url("cancel", record))
        assert response.status_code == 302
        await until_idle()
        [record] = await records()
        assert record.status == "cancelled"
        assert isinstance(fakes.gate().left, asyncio.CancelledError)


def scope_key(record: InvocationRecord) -> str:
    from invocations_app.isolation import Scope

    return Scope(record.endpoint, record.user_key, record.chat_key).key(record.invocation_id)


async def async_client(*codenames: str) -> AsyncClient:
    client = AsyncClient()
    user = await sync_to_async(make_user)("-".join(codenames), *codenames)
    await client.aforce_login(user)
    return client


def make_record_that_asks(kind: str = "approval", **keys: Any) -> InvocationRecord:
    session = make_session(pending_count=1)
    record = make_invocation(status="awaiting_input", session_record=session, session_id="s1", **keys)
    data = {"request_id": "r1", "type": kind, "tool": "pay", "arguments": {"to": SCRIPT}}
    PendingRecord.objects.create(
        session_record=session, invocation=record, position=0, request_id="r1", kind=kind,
        data=json.dumps(data), payload="{}", created_at=NOW,
    )  # fmt: skip
    return record


class TestAnswerForm:
    def test_page_asks_and_nothing_is_chosen_beforehand(self, operator):
        text = text_of(operator.get(page_of(make_record_that_asks())))
        assert "May <code>pay</code> run?" in text
        assert "&quot;to&quot;: &quot;&lt;script&gt;alert(1)&lt;/script&gt;&quot;" in text
        assert "checked" not in text.split('class="module invocations-answer"')[1].split("</section>")[0]
        assert "<script>alert" not in text

    def test_arguments_are_redacted(self, operator, settings):
        settings.INVOCATIONS_HOST = {"REDACTOR": "tests.test_admin_invocations.no_script"}
        text = text_of(operator.get(page_of(make_record_that_asks())))
        assert "&quot;to&quot;: &quot;***&quot;" in text

    @pytest.mark.django_db(transaction=True)
    def test_who_may_not_read_may_not_answer(self):
        record = make_record_that_asks()
        client = client_of(SEE, OPERATE)
        text = text_of(client.get(page_of(record)))
        assert "nobody should approve what they cannot read" in text
        assert "pay" not in text
        assert client.post(url("answer", record), {}).status_code == 403

    @pytest.mark.django_db(transaction=True)
    def test_who_only_reads_sees_no_form(self):
        client, record = client_of(SEE, READ), make_record_that_asks()
        assert "/answer/" not in text_of(client.get(page_of(record)))
        assert client.post(url("answer", record), {}).status_code == 403

    @pytest.mark.parametrize(
        ("kind", "body", "problem"),
        [
            ("approval", {}, "This field is required."),
            ("approval", {"verdict": "maybe"}, "Select a valid choice."),
            ("approval", {"verdict": "refuse", "reason": "x" * 1001}, "at most 1000 characters"),
            ("tool_call", {"value": ""}, "This field is required."),
            ("tool_call", {"value": "{"}, "This is not JSON:"),
            ("tool_call", {"value": "NaN"}, "This is not JSON: NaN is not JSON."),
        ],
    )
    def test_wrong_answer_is_told_and_kept(self, operator, kind, body, problem):
        record = make_record_that_asks(kind)
        prefix = f"request-{PendingRecord.objects.get().pk}-"
        response = operator.post(url("answer", record), {prefix + name: value for name, value in body.items()})
        assert problem in text_of(response)
        assert PendingRecord.objects.get().closed_at is None
        assert logged() == []

    def test_what_no_caller_could_send_is_refused(self, operator, settings):
        settings.INVOCATIONS = endpoint()
        record = make_record_that_asks("tool_call")
        body = {f"request-{PendingRecord.objects.get().pk}-value": '"\\ud800"'}
        response = operator.post(url("answer", record), body, follow=True)
        assert said(response) == ["It was not answered: 'responses' must not contain lone surrogates"]

    def test_nothing_pending_is_said(self, operator):
        response = operator.post(url("answer", make_invocation()), {}, follow=True)
        assert said(response) == ["Nothing waits for an answer any more."]

    def test_endpoint_that_is_gone_is_said(self, operator):
        record = make_record_that_asks(endpoint="gone")
        body = {f"request-{PendingRecord.objects.get().pk}-verdict": "approve"}
        response = operator.post(url("answer", record), body, follow=True)
        assert said(response) == ["It was not answered: The agent is not available."]
        assert PendingRecord.objects.get().closed_at is None


def no_script(text: str) -> str:
    return "***" if "script" in text else text


def seen_by_hook(invocation: Any, *, target: Any, request: Any) -> Any:
    fakes.notes.append((invocation.responses, dict(invocation.metadata), str(request.user), dict(request.headers)))
    return invocation


@pytest.mark.django_db(transaction=True)
class TestAnswering:
    @pytest.fixture(autouse=True)
    def _endpoint(self, settings: Any) -> None:
        settings.INVOCATIONS = endpoint(
            TARGET=approval_fakes.TARGET, TRUST_ISOLATION_HEADERS=True, RUN_HOOK=f"{__name__}.seen_by_hook"
        )

    async def asked(self, body: Any = ONE, **headers: str) -> InvocationRecord:
        fakes.script([fakes.call("pay", {"to": "Ada"})], ["it is paid"])
        await ask("i1", body, **headers)
        [record] = await records()
        assert record.status == "awaiting_input"
        return record

    async def form(self, **values: str) -> dict[str, str]:
        [pending] = await rows(lambda: PendingRecord.objects.filter(closed_at=None))
        return {f"request-{pending.pk}-{name}": value for name, value in values.items()}

    async def test_approved_over_asgi_goes_on_after_the_request(self):
        record = await self.asked()
        client = await async_client(SEE, READ, OPERATE)
        response = await client.post(url("answer", record), await self.form(verdict="approve"))
        asked, answering_one = await rows(lambda: InvocationRecord.objects.order_by("pk"))
        assert response["Location"] == page_of(answering_one)
        await until_idle()
        asked, answering_one = await rows(lambda: InvocationRecord.objects.order_by("pk"))
        assert (asked.status, answering_one.status) == ("succeeded", "succeeded")
        assert json.loads(answering_one.answer)["text"] == "it is paid"
        assert ("pay", "Ada") in fakes.notes
        assert answering_one.background

    async def test_run_is_not_lost_with_the_request(self):
        record = await self.asked()
        fakes.script([fakes.gate(), "it is paid"])
        client = await async_client(SEE, READ, OPERATE)
        await client.post(url("answer", record), await self.form(verdict="approve"))
        await fakes.gate().wait_reached()
        fakes.gate().open()
        await until_idle()
        assert [record.status for record in await records()] == ["succeeded", "succeeded"]

    async def test_refused_with_a_reason_is_recorded(self):
        record = await self.asked()
        client = await async_client(SEE, READ, OPERATE)
        await client.post(url("answer", record), await self.form(verdict="refuse", reason="too much"))
        await until_idle()
        [pending] = await rows(PendingRecord.objects.all)
        assert json.loads(pending.reply) == {"approved": False, "reason": "too much"}
        assert ("pay", "Ada") not in fakes.notes

    async def test_it_is_the_callers_turn_and_not_the_admins(self):
        keys = {"x_agent_user_isolation_key": "alice", "x_agent_chat_isolation_key": "c1"}
        record = await self.asked(ONE | {"metadata": {"to": "chat"}}, **keys)
        client = await async_client(SEE, READ, OPERATE)
        await client.post(url("answer", record), await self.form(verdict="approve"))
        await until_idle()
        _, made = await records()
        assert (made.user_key, made.chat_key, made.user_id, made.session_id) == ("platform:alice", "c1", None, "s1")
        replies, metadata, user, headers = fakes.notes[1]
        assert list(replies.values()) == [True]
        # Nothing of whoever answers reaches the run hook: no cookie, no user.
        assert (metadata, user, headers) == ({"to": "chat"}, "AnonymousUser", {})
        assert fakes.calls[-1].keys.user_key == "alice"
        assert fakes.calls[-1].keys.chat_key == "c1"

    @pytest.mark.parametrize("path", ["channel", "platform"])
    async def test_both_dialects_and_streamed_runs_are_answered_alike(self, path):
        fakes.script([fakes.call("pay", {"to": "Ada"})], ["it is ", "paid"])
        if path == "channel":
            await body_of(await ask("i1", ONE | {"stream": True}))
        else:
            from tests.client import post

            await body_of(await post({"message": "hi", "stream": True}, "/invocations?agent_session_id=s1"))
        [record] = await records()
        client = await async_client(SEE, READ, OPERATE)
        await client.post(url("answer", record), await self.form(verdict="approve"))
        await until_idle()
        _, made = await records()
        assert (made.dialect, made.status, made.stream, made.event_count) == (path, "succeeded", True, 2)

    async def test_second_answer_comes_too_late(self):
        record = await self.asked()
        client = await async_client(SEE, READ, OPERATE)
        body = await self.form(verdict="approve")
        await client.post(url("answer", record), body)
        await client.post(url("answer", record), body)
        await until_idle()
        assert len(await records()) == 2
        assert fakes.notes.count(("pay", "Ada")) == 1

    async def test_hook_that_refuses_leaves_the_question(self, settings):
        record = await self.asked()
        settings.INVOCATIONS["default"]["RUN_HOOK"] = f"{__name__}.refuse"
        from invocations_app import conf

        conf.clear_cache()
        client = await async_client(SEE, READ, OPERATE)
        await client.post(url("answer", record), await self.form(verdict="approve"))
        [pending] = await rows(PendingRecord.objects.all)
        assert pending.closed_at is None
        assert len(await records()) == 1


def refuse(invocation: Any, *, target: Any, request: Any) -> Any:
    from invocations_app.exceptions import InvocationRejected

    raise InvocationRejected("not by you")


@pytest.mark.django_db(transaction=True)
class TestAnsweringOverWsgi:
    def asked(self, settings: Any, **keys: Any) -> tuple[InvocationRecord, dict[str, str]]:
        settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET, **keys)
        fakes.script([fakes.call("pay", {"to": "Ada"})], ["it is paid"])
        Client().post("/invocations/invoke", json.dumps(ONE), content_type="application/json")
        record = InvocationRecord.objects.get()
        return record, {f"request-{PendingRecord.objects.get().pk}-verdict": "approve"}

    def test_run_ends_within_the_request(self, settings, operator):
        record, body = self.asked(settings)
        response = operator.post(url("answer", record), body, follow=True)
        assert said(response) == ["Your answer was taken. This is the invocation that goes on with it."]
        made = InvocationRecord.objects.latest("pk")
        assert (made.status, made.background, json.loads(made.answer)["text"]) == ("succeeded", False, "it is paid")
        assert response.redirect_chain == [(page_of(made), 302)]
        assert not live_runs()
        assert logged() == ["Sent an answer to what was pending.", "Read the contents."]

    def test_run_that_takes_too_long_is_stopped(self, settings, operator, monkeypatch, caplog):
        record, body = self.asked(settings)
        monkeypatch.setattr(answering, "IN_REQUEST_SECONDS", 0.2)
        fakes.script([fakes.gate()])
        operator.post(url("answer", record), body)
        made = InvocationRecord.objects.latest("pk")
        assert (made.status, made.error_code) == ("failed", "timeout")
        assert not live_runs()

    def test_values_of_a_workflow_are_checked_before_anything_is_consumed(self, settings, operator):
        types = ["tests.workflow_fakes:Question", "tests.workflow_fakes:Approval"]
        settings.INVOCATIONS = endpoint(TARGET=FLOW, CHECKPOINT_TYPES=types)
        Client().post(
            "/invocations/invoke",
            json.dumps({"message": "budget", "session_id": "s1"}),
            content_type="application/json",
        )
        record, pending = InvocationRecord.objects.get(), PendingRecord.objects.get()
        page = text_of(operator.get(page_of(record)))
        assert "<code>asking</code> asks" in page
        assert "&quot;approved&quot;: {" in page
        field = f"request-{pending.pk}-value"
        wrong = operator.post(url("answer", record), {field: '{"approved":"perhaps"}'})
        assert "This is not what was asked for" in text_of(wrong)
        assert PendingRecord.objects.get().closed_at is None
        operator.post(url("answer", record), {field: '{"approved":true}'})
        made = InvocationRecord.objects.latest("pk")
        assert (made.status, json.loads(made.answer)["text"]) == ("succeeded", "budget: yes of 1")


@pytest.mark.django_db(transaction=True)
def test_push_again_is_on_the_page(settings, operator):
    settings.INVOCATIONS = endpoint(PUSH_DESTINATIONS={"crm": {"BACKEND": f"{__name__}.Taking"}})
    report = {"pushed": [], "skipped": [], "failed": [{"destination": "crm", "error": "OSError"}], "unsent": []}
    record = make_invocation(
        answer='{"text":"x","session_id":null}', delivery="failed", delivery_report=json.dumps(report)
    )
    assert said(operator.post(url("push", record), follow=True)) == ["Everything arrived."]
    record.refresh_from_db()
    assert record.delivery == "pushed"
    assert said(operator.post(url("push", record), follow=True)) == ["There is nothing to push."]
    assert Client().post(url("push", record)).status_code == 302
    assert client_of(SEE, READ).post(url("push", record)).status_code == 403


class Taking:
    """A destination that takes everything."""

    async def push(self, result: Any, destination: str) -> None:
        fakes.notes.append((destination, result["response"]))
