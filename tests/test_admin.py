"""The admin: what its pages show, to whom, with how many queries, and that nothing in a record harms them."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.urls import reverse

from invocations_app.admin import base
from invocations_app.admin.display import MAX_TEXT_CHARACTERS, excerpt, pretty_json, seconds
from invocations_app.models import InvocationRecord, MessageRecord, SessionRecord
from tests.admin_records import (
    ESCAPED,
    INVOCATIONS,
    NOW,
    SCRIPT,
    SESSIONS,
    make_invocation,
    make_session,
    page_of,
    text_of,
)

STYLES = Path(base.__file__).parent.parent / "static" / "invocations_app" / "admin.css"


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


def test_no_rule_of_the_style_sheet_swallows_the_next_one():
    """A brace that is missing makes all that follows part of the rule, and no browser complains."""
    text = re.sub(r"/\*.*?\*/", "", STYLES.read_text(), flags=re.DOTALL)
    opened = []
    for selector, brace in re.findall(r"([^{}]*)([{}])", text):
        if brace == "}":
            opened.pop()
        else:
            assert all(outer.startswith("@media") for outer in opened), selector
            opened.append(selector.strip())
    assert opened == []


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
            "endpoint": "default", "who": "alice", "shown_session_id": "trip",
            "dialect": "channel", "duration": "2.0 s", "total_tokens": "150",
        }.items():  # fmt: skip
            assert f'<td class="field-{name}">{value}</td>' in text, name
        assert ">failed</span></td>" in text

    def test_running_one_has_no_duration(self, staff):
        make_invocation(status="running")
        assert '<td class="field-duration">-</td>' in text_of(staff.get(INVOCATIONS))

    @pytest.mark.parametrize("word", ["correlation-1", "call-1", "trip"])
    def test_search_is_for_whole_ids(self, staff, word):
        for number in range(12):
            make_invocation(session_id="trip" if number == 1 else "trips")
        [found] = staff.get(INVOCATIONS, {"q": word}).context["cl"].result_list
        assert found.invocation_id == "call-1"

    def test_search_takes_blanks_for_a_part_of_the_id(self, staff):
        for session_id in ("trip", "trip to Delft", "Delft"):
            make_invocation(session_id=session_id)
        [found] = staff.get(INVOCATIONS, {"q": " trip to Delft "}).context["cl"].result_list
        assert found.session_id == "trip to Delft"

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
        # Session, user, two of permissions; the row; what it asked; who reads.
        with django_assert_num_queries(7) as queries:
            staff.get(page_of(record))
        assert not any('"state"' in query["sql"] for query in queries.captured_queries)
