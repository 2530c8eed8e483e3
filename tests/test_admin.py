"""The admin: what its pages show, to whom, with how many queries, and that nothing in a record harms them."""

import base64
import json
from datetime import timedelta

import pytest
from agent_framework import Content
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.timezone import localtime

from invocations_app.admin import base, sessions, transcript
from invocations_app.admin.display import MAX_TEXT_CHARACTERS, excerpt, pretty_json, seconds
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.transcript import MAX_CONTENTS, MAX_IMAGE_BYTES
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from tests.admin_records import (
    ESCAPED,
    INVOCATIONS,
    NOW,
    PNG,
    SCRIPT,
    SESSIONS,
    make_invocation,
    make_session,
    page_of,
    payload,
    text_of,
)

call = Content.from_function_call(call_id="c1", name="get_weather", arguments='{"city":"Rome"}')
approval = Content.from_function_approval_request(id="af-call-1", function_call=call)


def read_message(payload, calls):
    return transcript.read_message(payload, calls, Redactor())


def read(*contents, calls=None):
    return read_message(payload(*contents), {} if calls is None else calls).parts


def one(*contents, **kwargs):
    [part] = read(*contents, **kwargs)
    return part


class TestDisplay:
    def test_excerpt_says_how_much_it_left_out(self):
        shown = excerpt("abcdef", 4)
        assert (shown.text, shown.left_out, shown.more) == ("abcd", 2, "… (2 more characters)")
        assert excerpt("abcd", 4).more == ""

    def test_excerpt_replaces_what_a_page_cannot_carry(self):
        assert excerpt("a\x00b\ud800c😀").text == "a\ufffdb\ufffdc😀"

    @pytest.mark.parametrize("text", ["", "{", "12", '"a"', "9" * 5000, "[" * 100_000])
    def test_text_that_is_no_object_or_list_stays_as_it_is(self, text):
        assert pretty_json(text) == text

    def test_json_is_spread_over_lines_unescaped(self):
        assert pretty_json('{"a":["\\u00e9"]}') == '{\n  "a": [\n    "é"\n  ]\n}'

    @pytest.mark.parametrize(
        ("milliseconds", "shown"), [(0, "0 ms"), (350, "350 ms"), (1000, "1.0 s"), (61_250, "61.2 s")]
    )
    def test_durations_have_a_unit(self, milliseconds, shown):
        assert seconds(NOW, NOW + timedelta(milliseconds=milliseconds)) == shown

    def test_what_has_not_ended_has_no_duration(self):
        assert seconds(NOW, None) == "-"


class TestReadMessage:
    def test_text_is_running_text(self):
        part = one(Content.from_text("hello"))
        assert (part.kind, part.body.text) == ("text", "hello")

    def test_text_is_bounded(self):
        part = one(Content.from_text("x" * (MAX_TEXT_CHARACTERS + 5)))
        assert (len(part.body.text), part.body.left_out) == (MAX_TEXT_CHARACTERS, 5)

    def test_call_is_folded_with_its_arguments(self):
        part = one(call)
        assert (part.kind, part.label, part.title) == ("fold", "Tool call", "get_weather")
        assert part.body.text == '{\n  "city": "Rome"\n}'
        assert part.hint == '{ "city": "Rome" }'

    def test_arguments_that_are_no_json_are_shown_as_they_are(self):
        assert one(Content.from_function_call(call_id="c", name="f", arguments='{"a":')).body.text == '{"a":'

    def test_result_is_told_by_the_name_of_its_call(self):
        calls = {}
        read(call, calls=calls)
        part = one(Content.from_function_result(call_id="c1", result={"sky": "clear"}), calls=calls)
        assert (part.label, part.title, part.body.text) == ("Tool result", "get_weather", '{\n  "sky": "clear"\n}')

    def test_result_shows_its_images(self):
        result = [Content.from_text("a map"), Content.from_data(data=PNG, media_type="image/png")]
        text, image = read(Content.from_function_result(call_id="c1", result=result))
        assert (text.kind, text.body.text, image.kind) == ("fold", "a map", "image")

    def test_failed_tool_shows_as_error(self):
        part = one(Content.from_function_result(call_id="c1", result=None, exception="secret"))
        assert (part.label, part.body.text) == ("Tool error", "FunctionInvocationError")

    def test_approval_shows_what_was_asked_and_answered(self):
        asked, yes, no = read(
            approval, approval.to_function_approval_response(True), approval.to_function_approval_response(False)
        )
        assert [part.label for part in (asked, yes, no)] == ["Approval asked", "Approved", "Refused"]
        assert {part.title for part in (asked, yes, no)} == {"get_weather"}

    def test_reasoning_and_usage_are_folded(self):
        reasoning, usage = read(Content.from_text_reasoning(text="hm"), Content.from_usage({"total_token_count": 3}))
        assert (reasoning.kind, reasoning.label, reasoning.body.text) == ("fold", "Reasoning", "hm")
        assert (usage.kind, usage.label, usage.body.text) == ("fold", "Token usage", '{\n  "total_token_count": 3\n}')

    def test_error_shows_message_and_code(self):
        part = one(Content.from_error(message="no", error_code="refused"))
        assert (part.kind, part.label, part.title, part.body.text) == ("problem", "Error", "refused", "no")

    def test_other_content_is_folded_as_json(self):
        part = one(Content.from_hosted_file(file_id="f1"))
        assert (part.kind, part.label) == ("fold", "hosted_file")
        assert '"file_id": "f1"' in part.body.text

    @pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/gif", "image/webp"])
    def test_small_image_is_previewed(self, media_type):
        part = one(Content.from_data(data=PNG, media_type=media_type))
        assert part.kind == "image"
        assert part.image == f"data:{media_type};base64,{base64.b64encode(PNG).decode()}"

    def test_image_of_the_largest_size_is_previewed_and_one_byte_more_is_not(self):
        largest = one(Content.from_data(data=bytes(MAX_IMAGE_BYTES), media_type="image/png"))
        larger = one(Content.from_data(data=bytes(MAX_IMAGE_BYTES + 1), media_type="image/png"))
        assert (largest.kind, larger.kind) == ("image", "note")
        assert larger.body.text == "1.0\xa0MB, too large for a preview"

    @pytest.mark.parametrize("media_type", ["image/svg+xml", "text/html", "application/pdf"])
    def test_other_data_is_a_note_of_its_size(self, media_type):
        part = one(Content.from_data(data=b"abcde", media_type=media_type))
        assert (part.kind, part.label, part.body.text, part.image) == ("note", media_type, "5\xa0bytes", "")

    @pytest.mark.parametrize(
        "uri",
        [
            "https://example.org/a.png",
            "javascript:alert(1)",
            "data:image/png,abc",
            'data:image/png;base64,AA"onerror="x',
            "data:image/svg+xml;x=image/png;base64,AAAA",
        ],
    )
    def test_address_that_is_no_raster_image_makes_no_image(self, uri):
        message = {
            "type": "message",
            "role": "user",
            "contents": [{"type": "uri", "uri": uri, "media_type": "image/png"}],
        }
        [part] = read_message(json.dumps(message), {}).parts
        assert (part.kind, part.image) == ("note", "")

    @pytest.mark.parametrize(
        "broken",
        ["", "{", "[]", "null", '{"contents": 3}', '{"role": "user"}', "[" * 100_000, '{"contents": [1' + "0" * 5000],
    )
    def test_unreadable_message_says_so_and_shows_itself(self, broken):
        [part] = read_message(broken, {}).parts
        assert (part.kind, part.label) == ("problem", "This message cannot be read")
        assert part.body.text == broken[:MAX_TEXT_CHARACTERS]

    @pytest.mark.parametrize(
        "content",
        [
            *(
                1,
                [],
                {},
                {"type": 3},
                {"type": "data"},
                {"type": "error"},
                {"type": "usage"},
                {"type": "function_call"},
            ),
            {"type": "text", "text": 3},
            {"type": "uri", "uri": 4},
            {"type": "function_call", "arguments": [[]], "name": {}},
            {"type": "function_result", "items": 4},
            {"type": "function_result", "call_id": []},
            {"type": "function_approval_request"},
        ],
    )
    def test_content_of_any_shape_gives_a_part(self, content):
        assert len(read_message(json.dumps({"contents": [content]}), {}).parts) == 1

    def test_contents_are_bounded(self):
        parts = read(*[Content.from_text("x")] * (MAX_CONTENTS + 7))
        assert len(parts) == MAX_CONTENTS + 1
        assert parts[-1].body.text == "7 more contents are not shown"

    def test_author_is_read(self):
        assert read_message(payload("hi", author_name="Concierge"), {}).author == "Concierge"


class TestSessionList:
    def test_row_shows_what_a_session_is(self, staff, alice):
        make_session("trip", ["{}"] * 3, user=alice, user_key=f"user:{alice.pk}", archived_at=NOW)
        text = text_of(staff.get(SESSIONS))
        for cell in (">trip<", ">default<", ">alice<", ">3<", date_format(localtime(NOW), "DATETIME_FORMAT")):
            assert cell in text, cell

    def test_row_without_user_shows_the_user_key(self, staff):
        make_session()
        assert '<td class="field-who">platform:contoso</td>' in text_of(staff.get(SESSIONS))

    def test_session_id_is_escaped(self, staff):
        make_session(SCRIPT)
        text = text_of(staff.get(SESSIONS))
        assert ESCAPED in text
        assert SCRIPT not in text

    @pytest.mark.parametrize("word", ["rip", "alice", "user:77"])
    def test_search_finds_by_session_id_user_name_and_user_key(self, staff, alice, word):
        make_session("trip", user=alice, user_key="user:77")
        make_session("other")
        [found] = staff.get(SESSIONS, {"q": word}).context["cl"].result_list
        assert found.session_id == "trip"

    @pytest.mark.parametrize(
        ("query", "ids"),
        [
            ({"endpoint": "support"}, ["b"]),
            ({"archived": "yes"}, ["c"]),
            ({"archived": "no"}, ["b", "a"]),
            ({"updated_at__gte": "2026-03-05T00:00:00Z"}, ["c"]),
        ],
    )
    def test_filters(self, staff, query, ids):
        make_session("a")
        make_session("b", endpoint="support")
        make_session("c", archived_at=NOW, updated_at=NOW + timedelta(days=3))
        assert [row.session_id for row in staff.get(SESSIONS, query).context["cl"].result_list] == ids

    def test_number_of_queries_does_not_grow_with_the_rows(self, staff, alice, django_assert_num_queries):
        for number in range(20):
            make_session(f"s{number}", ["{}"], user=alice, state="x" * 1000)
        # Session, user, permissions of the user and of the groups; bounded count, rows.
        with django_assert_num_queries(6) as queries:
            staff.get(SESSIONS)
        assert not any('"state"' in query["sql"] for query in queries.captured_queries)

    def test_list_counts_and_pages_to_a_bound_and_says_so(self, staff, monkeypatch):
        monkeypatch.setattr(base, "MAX_LISTED", 3)
        for number in range(5):
            make_session(f"s{number}")
        response = staff.get(SESSIONS)
        assert response.context["cl"].result_count == 3
        assert "The list ends after 3 rows." in text_of(response)


class TestSessionPage:
    def test_transcript_shows_the_messages_in_order(self, staff):
        messages = [payload("What is the weather?"), payload(call, role="assistant"), payload("It is clear.")]
        text = text_of(staff.get(page_of(make_session(messages=messages))))
        places = [text.index(part) for part in ("What is the weather?", "Tool call", "get_weather", "It is clear.")]
        assert places == sorted(places)
        assert '<pre class="invocations-text" dir="auto">{\n  &quot;city&quot;: &quot;Rome&quot;\n}</pre>' in text

    def test_contents_are_escaped_everywhere(self, staff):
        hostile = Content.from_function_call(call_id=SCRIPT, name=SCRIPT, arguments={SCRIPT: SCRIPT})
        messages = [
            payload(SCRIPT, author_name=SCRIPT),
            payload(hostile),
            payload(Content.from_function_result(call_id=SCRIPT, result=SCRIPT)),
            payload(Content.from_uri(uri=f"https://example.org/{SCRIPT}", media_type="image/png")),
            payload(Content.from_error(message=SCRIPT, error_code=SCRIPT)),
            SCRIPT,
        ]
        session = make_session(SCRIPT, messages, source_id=SCRIPT, state=SCRIPT, user_key=SCRIPT, chat_key=SCRIPT)
        MessageRecord.objects.update(role=SCRIPT[:32])
        text = text_of(staff.get(page_of(session)))
        assert text.count(ESCAPED) > 10
        assert "<script>alert" not in text

    def test_image_is_previewed(self, staff):
        session = make_session(messages=[payload(Content.from_data(data=PNG, media_type="image/png"))])
        source = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        assert f'<img src="{source}" alt="image/png, 24\xa0bytes" loading="lazy">' in text_of(
            staff.get(page_of(session))
        )

    def test_page_has_no_inline_script_or_style_of_its_own(self, staff):
        text = text_of(staff.get(page_of(make_session(messages=[payload("hi")]))))
        own = text[text.index('id="transcript"') : text.index('class="submit-row"')]
        assert "<script" not in own
        assert "style=" not in own
        assert " on" not in own.replace(" on ", "")

    def test_broken_message_shows_as_such(self, staff):
        text = text_of(staff.get(page_of(make_session(messages=["{broken", payload("fine")]))))
        assert "This message cannot be read" in text
        assert "{broken" in text
        assert "fine" in text

    def test_lone_surrogates_and_nul_do_not_break_the_page(self, staff):
        text = text_of(staff.get(page_of(make_session(messages=[payload("a\ud800\x00b")], state='{"a":"\\ud800"}'))))
        assert "a\ufffd\ufffdb" in text

    def test_long_transcript_is_paged_and_starts_at_its_end(self, staff):
        session = make_session(messages=[payload(f"message {number};") for number in range(120)])
        last, first = text_of(staff.get(page_of(session))), text_of(staff.get(page_of(session), {"page": "1"}))
        assert "Messages 101 to 120 of 120" in last
        assert ("message 119;" in last, "message 99;" in last) == (True, False)
        assert "Messages 1 to 50 of 120" in first
        assert ("message 49;" in first, "message 50;" in first) == (True, False)
        assert '<a href="?page=2#transcript" rel="next">' in first

    @pytest.mark.parametrize("page", ["0", "-1", "999", "x", "²", "9" * 5000])
    def test_page_that_is_not_there_is_the_last_one(self, staff, page):
        session = make_session(messages=[payload(f"message {number};") for number in range(51)])
        assert "message 50;" in text_of(staff.get(page_of(session), {"page": page}))

    def test_huge_messages_are_not_loaded(self, staff, monkeypatch):
        monkeypatch.setattr(sessions, "MAX_PAGE_CHARACTERS", 2000)
        session = make_session(messages=[payload("small"), payload("x" * 3000), payload("after")])
        text = text_of(staff.get(page_of(session)))
        assert "xxxx" not in text
        assert "3.1\xa0KB, too large for this page" in text
        assert ("small" in text, "after" in text) == (True, True)

    def test_state_is_shown_bounded(self, staff):
        session = make_session(state=json.dumps({"note": "n" * MAX_TEXT_CHARACTERS}))
        text = text_of(staff.get(page_of(session)))
        assert "… (16 more characters)" in text

    def test_invocations_are_linked_and_bounded(self, staff):
        session = make_session()
        records = [make_invocation(session_record=session) for _ in range(sessions.MAX_INVOCATIONS + 2)]
        text = text_of(staff.get(page_of(session)))
        assert page_of(records[-1]) in text
        assert page_of(records[0]) not in text
        assert f'<a href="{INVOCATIONS}?session_record={session.pk}">Show all invocations of this session</a>' in text

    def test_without_the_permission_no_invocation_is_shown(self, staff):
        session = make_session()
        record = make_invocation(session_record=session)
        get_user_model().objects.get(username="staff").user_permissions.set(
            Permission.objects.filter(codename="view_sessionrecord")
        )
        text = text_of(staff.get(page_of(session)))
        assert page_of(record) not in text
        assert staff.get(page_of(record)).status_code == 403

    def test_number_of_queries_does_not_grow_with_messages_and_invocations(
        self, staff, alice, django_assert_num_queries
    ):
        session = make_session(messages=[payload(call)] * 120, user=alice)
        for _ in range(20):
            make_invocation(session_record=session, user=alice, answer="x")
        # Session, user, two of permissions; the row; count, messages, payloads; who reads; invocations.
        with django_assert_num_queries(10) as queries:
            staff.get(page_of(session))
        assert not any('"answer"' in query["sql"] for query in queries.captured_queries)

    def test_session_without_messages_says_so(self, staff):
        text = text_of(staff.get(page_of(make_session())))
        assert "No messages yet." in text
        assert "No invocations are recorded." in text


class TestWhoMayWhat:
    @pytest.mark.parametrize("make", [make_session, make_invocation])
    def test_nobody_adds_or_changes(self, admin_client, make):
        record = make()
        add = reverse(f"admin:invocations_app_{record._meta.model_name}_add")
        assert admin_client.get(add).status_code == 403
        assert admin_client.post(page_of(record), {"endpoint": "other"}).status_code == 403
        record.refresh_from_db()
        assert record.endpoint == "default"

    def test_nobody_deletes_an_invocation(self, admin_client):
        record = make_invocation()
        delete = reverse("admin:invocations_app_invocationrecord_delete", args=[record.pk])
        assert admin_client.post(delete, {"post": "yes"}).status_code == 403
        assert InvocationRecord.objects.filter(pk=record.pk).exists()

    def test_viewers_do_not_delete_a_session(self, staff):
        session = make_session()
        delete = reverse("admin:invocations_app_sessionrecord_delete", args=[session.pk])
        assert staff.post(delete, {"post": "yes"}).status_code == 403
        action = {"action": "delete_selected", "_selected_action": [session.pk], "post": "yes"}
        staff.post(SESSIONS, action)
        assert SessionRecord.objects.filter(pk=session.pk).exists()

    def test_messages_have_no_pages(self, admin_client):
        assert admin_client.get("/admin/invocations_app/messagerecord/").status_code == 404

    def test_deletion_takes_the_messages_and_leaves_the_invocations(self, admin_client):
        session, other = make_session(messages=["{}", "{}"]), make_session("other", ["{}"])
        record = make_invocation(session_record=session, session_id="s1")
        delete = reverse("admin:invocations_app_sessionrecord_delete", args=[session.pk])
        assert "2 messages" in text_of(admin_client.get(delete))
        assert admin_client.post(delete, {"post": "yes"}).status_code == 302
        assert list(SessionRecord.objects.all()) == [other]
        assert [message.session_id for message in MessageRecord.objects.all()] == [other.pk]
        record.refresh_from_db()
        assert (record.session_record_id, record.session_id) == (None, "s1")

    def test_several_are_deleted_at_once_without_reading_messages(self, admin_client, django_assert_max_num_queries):
        chosen = [make_session(f"s{number}", ["{}"] * 30) for number in range(3)]
        action = {"action": "delete_selected", "_selected_action": [session.pk for session in chosen]}
        text = text_of(admin_client.post(SESSIONS, action))
        assert "90 messages" in text
        with django_assert_max_num_queries(25) as queries:
            admin_client.post(SESSIONS, action | {"post": "yes"})
        assert not any('"payload"' in query["sql"] for query in queries.captured_queries)
        assert (SessionRecord.objects.count(), MessageRecord.objects.count()) == (0, 0)


class TestInvocationList:
    def test_row_shows_what_an_invocation_was(self, staff, alice):
        make_invocation(
            user=alice, session_id="trip", status="failed", total_tokens=150, finished_at=NOW + timedelta(seconds=2)
        )
        text = text_of(staff.get(INVOCATIONS))
        for name, value in {
            "status": "failed", "endpoint": "default", "who": "alice", "shown_session_id": "trip",
            "dialect": "channel", "duration": "2.0 s", "total_tokens": "150",
        }.items():  # fmt: skip
            assert f'<td class="field-{name}">{value}</td>' in text, name

    def test_running_one_has_no_duration(self, staff):
        make_invocation(status="running")
        assert '<td class="field-duration">-</td>' in text_of(staff.get(INVOCATIONS))

    @pytest.mark.parametrize("word", ["correlation-1", "call-1", "trip"])
    def test_search_is_for_whole_ids(self, staff, word):
        for number in range(12):
            make_invocation(session_id="trip" if number == 1 else "trips")
        [found] = staff.get(INVOCATIONS, {"q": word}).context["cl"].result_list
        assert found.invocation_id == "call-1"

    @pytest.mark.parametrize(
        ("query", "ids"),
        [
            ({"status__exact": "failed"}, ["call-1"]),
            ({"endpoint": "support"}, ["call-2"]),
            ({"dialect": "platform"}, ["call-3"]),
            ({"created_at__gte": "2026-03-05T00:00:00Z"}, ["call-4"]),
        ],
    )
    def test_filters(self, staff, query, ids):
        later = {"created_at": NOW + timedelta(days=3)}
        for change in ({}, {"status": "failed"}, {"endpoint": "support"}, {"dialect": "platform"}, later):
            make_invocation(**change)
        assert [row.invocation_id for row in staff.get(INVOCATIONS, query).context["cl"].result_list] == ids

    def test_session_filter_is_there_only_when_a_session_is_asked_for(self, staff):
        session = make_session()
        make_invocation(session_record=session)
        make_invocation()
        response = staff.get(INVOCATIONS, {"session_record": session.pk})
        assert [row.invocation_id for row in response.context["cl"].result_list] == ["call-0"]
        assert "By session" in text_of(response)
        assert "By session" not in text_of(staff.get(INVOCATIONS))
        for nonsense in ("x", "²", "9" * 30):
            assert len(staff.get(INVOCATIONS, {"session_record": nonsense}).context["cl"].result_list) == 2

    def test_number_of_queries_does_not_grow_with_the_rows(self, staff, alice, django_assert_num_queries):
        for _ in range(20):
            make_invocation(user=alice, session_record=make_session(), answer="x", metadata="{}", usage="{}")
        with django_assert_num_queries(6) as queries:
            staff.get(INVOCATIONS)
        rows = queries.captured_queries[-1]["sql"]
        assert not any(f'"{column}"' in rows for column in ("answer", "metadata", "usage", "state"))


class TestInvocationPage:
    def test_record_is_shown_with_its_json_spread_out(self, staff):
        session = make_session("trip")
        record = make_invocation(
            session_record=session, session_id="trip", answer='{"text":"hi"}', usage='{"total_token_count":3}',
            metadata='{"a":[1]}', error_code="timeout", error_status=504,
            first_byte_at=NOW + timedelta(milliseconds=250),
        )  # fmt: skip
        text = text_of(staff.get(page_of(record)))
        for part in (
            "{\n  &quot;text&quot;: &quot;hi&quot;\n}", "{\n  &quot;total_token_count&quot;: 3\n}",
            "{\n  &quot;a&quot;: [\n    1\n  ]\n}", "timeout", "504", "250 ms", "correlation-0", "call-0",
            f'<a href="{page_of(session)}">trip</a>',
        ):  # fmt: skip
            assert part in text, part

    def test_contents_are_escaped_and_bounded(self, staff):
        record = make_invocation(
            session_id=SCRIPT, answer=SCRIPT, metadata=json.dumps({SCRIPT: "y" * MAX_TEXT_CHARACTERS}),
            usage=json.dumps({SCRIPT: 3, "note": SCRIPT, "total_token_count": 5}),
        )  # fmt: skip
        text = text_of(staff.get(page_of(record)))
        assert text.count(ESCAPED) == 3
        assert "<script>alert" not in text
        assert "… (37 more characters)" in text
        assert "{\n  &quot;total_token_count&quot;: 5\n}</pre>" in text

    def test_number_of_queries(self, staff, alice, django_assert_num_queries):
        record = make_invocation(user=alice, session_record=make_session(state="x"), session_id="s1")
        # Session, user, two of permissions; the row; who reads.
        with django_assert_num_queries(6) as queries:
            staff.get(page_of(record))
        assert not any('"state"' in query["sql"] for query in queries.captured_queries)
