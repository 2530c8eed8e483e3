"""Sessions in the admin: the list and its filters, the transcript of one as a conversation, with how many queries."""

import base64
import json
import re
from datetime import timedelta

import pytest
from agent_framework import Content
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.timezone import localtime

from invocations_app.admin import base, conversation, sessions
from invocations_app.admin.display import MAX_TEXT_CHARACTERS
from invocations_app.models import MessageRecord, PendingRecord
from tests.admin_records import (
    ESCAPED,
    INVOCATIONS,
    NOW,
    PNG,
    SCRIPT,
    SESSIONS,
    ask,
    make_invocation,
    make_session,
    page_of,
    payload,
    say,
    text_of,
)

call = Content.from_function_call(call_id="c1", name="get_weather", arguments='{"city":"Rome"}')
approval = Content.from_function_approval_request(id="af-call-1", function_call=call)


class TestSessionList:
    def test_row_shows_what_a_session_is(self, staff, alice):
        make_session("trip", ["{}"] * 3, user=alice, user_key=f"user:{alice.pk}", archived_at=NOW)
        text = text_of(staff.get(SESSIONS))
        for cell in (">trip<", ">default<", ">alice<", ">3<", date_format(localtime(NOW), "DATETIME_FORMAT")):
            assert cell in text, cell

    def test_row_without_user_shows_the_user_key(self, staff):
        make_session()
        link = '<td class="field-caller"><a href="?user_key=platform%3Acontoso">platform:contoso</a></td>'
        assert link in text_of(staff.get(SESSIONS))

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
            make_session(f"s{number}", ["{}"], pending_count=number, user=alice, state="x" * 1000)
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


class TestFilters:
    def found(self, staff, **query):
        return [row.session_id for row in staff.get(SESSIONS, query).context["cl"].result_list]

    def test_user_in_the_list_links_to_all_sessions_of_the_same(self, staff, alice):
        make_session("a", user=alice, user_key=f"user:{alice.pk}")
        make_session("b", user=alice)
        make_session("c")
        make_session("d", user_key="")
        text = text_of(staff.get(SESSIONS))
        assert text.count(f'<td class="field-caller"><a href="?user={alice.pk}">alice</a></td>') == 2
        assert '<td class="field-caller">-</td>' in text
        assert self.found(staff, user=alice.pk) == ["b", "a"]
        assert self.found(staff, user_key="platform:contoso") == ["c", "b"]

    def test_filter_by_user_offers_nobody_but_the_one_asked_for(self, staff, alice):
        get_user_model().objects.create_user("bob")
        make_session("a", user=alice)
        assert "By user" not in text_of(staff.get(SESSIONS))
        text = text_of(staff.get(SESSIONS, {"user": alice.pk}))
        assert "By user" in text
        assert ">alice</a>" in text
        assert "bob" not in text

    def test_user_who_is_gone_is_named_by_key(self, staff):
        make_session("a")
        assert "#987654</a>" in text_of(staff.get(SESSIONS, {"user": "987654"}))

    @pytest.mark.parametrize("nonsense", ["", "x", "²", "9" * 30, "-" + "9" * 30, "1.5", "\x00"])
    def test_nonsense_for_a_user_filters_nothing(self, staff, nonsense):
        make_session("a")
        assert self.found(staff, user=nonsense) == ["a"]

    def test_by_age(self, staff):
        ages = {"now": 0, "hours": 5, "days": 24 * 3, "weeks": 24 * 14, "months": 24 * 90}
        for name, hours in ages.items():
            make_session(name, updated_at=timezone.now() - timedelta(hours=hours))
        for age, ids in {
            "hour": ["now"],
            "day": ["now", "hours"],
            "week": ["now", "hours", "days"],
            "month": ["now", "hours", "days", "weeks"],
            "older": ["months"],
            "nonsense": list(ages),
        }.items():
            assert self.found(staff, age=age) == ids, age

    def test_by_pending_requests(self, staff):
        make_session("a", pending_count=2)
        make_session("b")
        make_session("c", pending_count=1)
        assert self.found(staff, pending="yes") == ["c", "a"]
        assert self.found(staff, pending="no") == ["b"]
        assert self.found(staff, pending="nonsense") == ["c", "b", "a"]
        assert '<td class="field-pending">2</td>' in text_of(staff.get(SESSIONS))

    @pytest.mark.skipif(connection.vendor == "mysql", reason="MySQL has no partial indexes")
    def test_pending_ones_are_read_by_their_index_in_its_order(self, staff):
        make_session("a", pending_count=2)
        rows = staff.get(SESSIONS, {"pending": "yes"}).context["cl"].queryset
        plan = rows[:50].explain()
        if connection.vendor == "sqlite":
            assert "USING INDEX invocations_pending" in plan
            assert "TEMP B-TREE" not in plan

    @pytest.mark.parametrize("query", [{"age": "day"}, {"age": "older"}, {}])
    @pytest.mark.skipif(connection.vendor != "sqlite", reason="Plans are told in other words elsewhere")
    def test_lists_are_read_in_the_order_of_an_index(self, staff, query):
        make_session("a")
        plan = staff.get(SESSIONS, query).context["cl"].queryset[:50].explain()
        assert "USING INDEX invocations_active" in plan
        # The last term, the primary key, is sorted among equals only.
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan


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
        monkeypatch.setattr(conversation, "MAX_PAGE_CHARACTERS", 2000)
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
        session = make_session(messages=[payload("earlier")] * 100, user=alice)
        for _ in range(20):
            turn = make_invocation(session_record=session, user=alice, answer="x", usage='{"input_token_count":1}')
            say(session, turn, "assistant", call, approval)
            ask(session, turn, answered_by=turn, reply="true", closed_at=NOW)
        # Session, user, permissions (2); row; count, messages, payloads, turns, requests; the entry; invocations.
        with django_assert_num_queries(12) as queries:
            text = text_of(staff.get(page_of(session)))
        assert text.count("invocations-answer") == 20
        assert not any('"answer"' in query["sql"] for query in queries.captured_queries)

    def test_session_without_messages_says_so(self, staff):
        text = text_of(staff.get(page_of(make_session())))
        assert "No messages yet." in text
        assert "No invocations are recorded." in text


class TestConversation:
    def talk(self, *, request=None, answer=None, result=None, **turn):
        """A session in which the agent asks for an approval, and what becomes of it."""
        session = make_session()
        asking = make_invocation(session_record=session)
        answering = make_invocation(session_record=session, **turn)
        say(session, asking, "user", "Is it nice in Rome?")
        say(session, asking, "assistant", call, approval, author_name="Concierge")
        if request is not None:
            ask(session, asking, **request)
        if answer is not None:
            say(session, answering, "user", approval.to_function_approval_response(answer))
        if result is not None:
            say(session, answering, "tool", Content.from_function_result(call_id="c1", result=result))
        return session, answering

    def page(self, staff, session):
        text = text_of(staff.get(page_of(session)))
        return text[text.index('id="transcript"') : text.index('class="submit-row"')]

    def test_call_is_one_fold_with_arguments_and_result(self, staff):
        session, _ = self.talk(answer=True, result="sunny")
        text = self.page(staff, session)
        [fold] = re.findall(r'<details class="invocations-call">(.*?)</details>', text, re.DOTALL)
        assert "&quot;city&quot;: &quot;Rome&quot;" in fold
        assert '<pre class="invocations-text" dir="auto">sunny</pre>' in fold
        assert "→ sunny" in fold
        assert text.count("sunny") == 4  # hint, result, and twice in the JSON of its message
        assert "Tool result <code>get_weather</code>: shown with its call" in text

    def test_call_without_a_result_says_so(self, staff):
        session, _ = self.talk()
        assert "No result on this page." in self.page(staff, session)

    def test_result_without_its_call_stands_alone(self, staff):
        session = make_session()
        picture = [Content.from_text("a map"), Content.from_data(data=PNG, media_type="image/png")]
        say(session, None, "tool", Content.from_function_result(call_id="c9", result=picture))
        text = self.page(staff, session)
        assert '<span class="invocations-label">Tool result</span>' in text
        assert text.count("<img ") == 1

    def test_pictures_of_a_result_are_shown_with_its_call(self, staff):
        picture = [Content.from_text("a map"), Content.from_data(data=PNG, media_type="image/png")]
        session, _ = self.talk(result=picture)
        source = f'<img src="data:image/png;base64,{base64.b64encode(PNG).decode()}"'
        text = self.page(staff, session)
        assert text.index("invocations-call") < text.index(source) < text.index("shown with its call")

    def test_failed_tool_is_told_in_the_fold(self, staff):
        session, answering = self.talk()
        say(session, answering, "tool", Content.from_function_result(call_id="c1", result=None, exception="x"))
        assert '<span class="invocations-label">Tool error</span>' in self.page(staff, session)

    def test_id_that_is_used_again_gets_the_results_in_order(self, staff):
        session = make_session()
        for result in ("first", "second"):
            say(session, None, "assistant", call)
            say(session, None, "tool", Content.from_function_result(call_id="c1", result=result))
        folds = re.findall(r'<details class="invocations-call">(.*?)</details>', self.page(staff, session), re.DOTALL)
        assert [("first" in fold, "second" in fold) for fold in folds] == [(True, False), (False, True)]

    def test_open_request_says_that_it_waits(self, staff):
        session, _ = self.talk(request={})
        text = self.page(staff, session)
        assert '<p class="invocations-answer invocations-open">' in text
        assert "<strong>Waits for an answer</strong>" in text
        assert "No result before it is answered." in text

    @pytest.mark.parametrize(
        ("reply", "status", "reason"),
        [
            (True, "Approved", None),
            (False, "Refused", None),
            ({"approved": False, "reason": "too <far>"}, "Refused", "too &lt;far&gt;"),
        ],
    )
    def test_answer_is_told_with_who_when_and_why(self, staff, alice, reply, status, reason):
        session, answering = self.talk(answer=status == "Approved", user=alice)
        closed = NOW + timedelta(hours=3)
        ask(session, session.invocations.first(), reply=json.dumps(reply), answered_by=answering, closed_at=closed)
        text = self.page(staff, session)
        [told] = re.findall(r'<p class="invocations-answer.*?</p>', text, re.DOTALL)
        assert f"<strong>{status}</strong>" in told
        assert "alice" in told
        assert date_format(localtime(closed), "DATETIME_FORMAT") in told
        assert ("invocations-refused" in told) == (status == "Refused")
        assert (f'<q dir="auto">{reason}</q>' in told) == (reason is not None)

    def test_request_that_nobody_answered_says_so(self, staff):
        session, _ = self.talk(request={"closed_at": NOW})
        assert "<strong>Closed without an answer</strong>" in self.page(staff, session)

    def test_without_the_request_the_message_tells_the_answer(self, staff):
        session, _ = self.talk(answer=False)
        text = self.page(staff, session)
        assert '<p class="invocations-answer invocations-refused"><strong>Refused</strong></p>' in text

    def test_approval_without_its_call_shows_what_was_asked(self, staff):
        session = make_session()
        say(session, None, "assistant", approval)
        text = self.page(staff, session)
        assert "&quot;city&quot;: &quot;Rome&quot;" in text
        assert "<strong>Approval asked</strong>" in text

    def test_question_of_a_workflow_is_shown_with_its_reply(self, staff, alice):
        session = make_session()
        turn = make_invocation(session_record=session, user=alice)
        data = {"request_id": "r1", "type": "request_info", "data": {"how": "many?"}, "source_executor_id": "ask"}
        ask(session, turn, "request_info", "r1", data, reply='{"n":7}', answered_by=turn, closed_at=NOW)
        ask(session, turn, "request_info", "r2", SCRIPT)
        text = self.page(staff, session)
        for part in ("<strong>Question</strong>", "many?", "<strong>Answered</strong>", "alice", "&quot;n&quot;: 7"):
            assert part in text, part
        assert "<strong>Waits for an answer</strong>" in text
        assert ESCAPED in text
        assert "<script" not in text

    def test_broken_request_and_reply_are_shown_as_they_are(self, staff):
        session = make_session()
        ask(session, None, reply="{reply", closed_at=NOW)
        PendingRecord.objects.update(data="{data")
        text = self.page(staff, session)
        assert "{data" in text
        assert "{reply" in text
        assert "<strong>Refused</strong>" in text

    def test_turn_shows_its_figures_once_and_links_to_its_invocation(self, staff):
        session = make_session()
        turn = make_invocation(
            session_record=session, finished_at=NOW + timedelta(seconds=2), total_tokens=1,
            usage='{"input_token_count":12,"output_token_count":3}',
        )  # fmt: skip
        say(session, turn, "user", "hi")
        say(session, turn, "assistant", "hello")
        text = self.page(staff, session)
        [told] = re.findall(r'<p class="invocations-turn">.*?</p>', text, re.DOTALL)
        for part in (f'<a href="{page_of(turn)}">Turn</a>', "succeeded", "2.0 s", "1 token (12 in, 3 out)"):
            assert part in told, part

    def test_turn_is_no_link_for_whoever_may_not_see_invocations(self, staff):
        session = make_session()
        turn = make_invocation(session_record=session)
        say(session, turn, "user", "hi")
        get_user_model().objects.get(username="staff").user_permissions.set(
            Permission.objects.filter(codename__in=["view_sessionrecord", "view_transcript"])
        )
        text = self.page(staff, session)
        assert "<span>Turn</span>" in text
        assert page_of(turn) not in text

    def test_roles_are_told_in_words(self, staff):
        session = make_session()
        for role in ("user", "assistant", "tool", "system", "developer"):
            say(session, None, role, "x")
        text = self.page(staff, session)
        assert re.findall(r"<strong>(\w+)</strong>", text) == ["User", "Agent", "Tool", "System", "developer"]

    def test_json_of_each_message_is_behind_a_fold(self, staff):
        session = make_session(messages=[payload("hi", message_id="m<1>")])
        text = self.page(staff, session)
        assert '<details class="invocations-json">' in text
        assert "&quot;message_id&quot;: &quot;m&lt;1&gt;&quot;" in text
