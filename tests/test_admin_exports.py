"""Sessions as files: what is in them, that nothing in them breaks out, who may have them, and how they are sent."""

import json
import re
from datetime import timedelta

import pytest
from agent_framework import Content
from asgiref.sync import sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.handlers.asgi import ASGIRequest
from django.test import AsyncClient, RequestFactory
from django.urls import reverse

from invocations_app.admin import sessions
from invocations_app.admin.exports import as_markdown, response, source
from invocations_app.models import MessageRecord, SessionRecord
from tests.admin_records import NOW, PNG, SESSIONS, ask, make_invocation, make_session, payload, say

call = Content.from_function_call(call_id="c1", name="get_weather", arguments='{"city":"Rome"}')
approval = Content.from_function_approval_request(id="af-call-1", function_call=call)


def file_of(session, extension="json"):
    return reverse("admin:invocations_app_sessionrecord_export", args=[session.pk, extension])


def body(answer):
    assert answer.status_code == 200
    assert answer.streaming
    return b"".join(answer.streaming_content).decode()


def act(client, extension, *chosen):
    action = {"json": "export_as_json", "md": "export_as_markdown"}[extension]
    return client.post(SESSIONS, {"action": action, "_selected_action": [session.pk for session in chosen]})


@pytest.fixture
def talk(alice):
    """A session with a refused approval."""
    session = make_session("trip", user=alice, user_key=f"user:{alice.pk}", state='{"a":["b"]}', archived_at=NOW)
    turn = make_invocation(
        session_record=session, finished_at=NOW + timedelta(seconds=2), total_tokens=15, answer="secret",
        user_key="platform:contoso",
        usage='{"input_token_count":12,"note":"text"}',
    )  # fmt: skip
    say(session, turn, "user", "Is it nice in Rome?")
    say(session, turn, "assistant", call, approval, author_name="Concierge")
    ask(session, turn, reply='{"approved":false,"reason":"no"}', answered_by=turn, closed_at=NOW)
    say(session, None, "tool", Content.from_function_result(call_id="c1", result="refused"))
    return session


class TestJson:
    def test_document_holds_the_session_with_all_that_belongs_to_it(self, staff, talk):
        document = json.loads(body(staff.get(file_of(talk))))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["exported_at"])
        [session] = document["sessions"]
        messages, requests, turns = session.pop("messages"), session.pop("requests"), session.pop("turns")
        at = "2026-03-04T05:06:07.000Z"
        assert session == {
            "session_id": "trip", "endpoint": "default", "user": "alice", "user_key": talk.user_key, "chat_key": "",
            "created_at": at, "last_activity_at": at, "archived_at": at, "state": {"a": ["b"]},
        }  # fmt: skip
        stored = [json.loads(row.payload) for row in MessageRecord.objects.order_by("position")]
        assert messages == [
            {
                "history_provider": "in_memory", "position": place, "role": role, "created_at": at,
                "turn": turn, "message": message,
            }
            for place, (role, turn, message) in enumerate(
                zip(("user", "assistant", "tool"), ("correlation-0", "correlation-0", None), stored, strict=True)
            )
        ]  # fmt: skip
        assert requests == [
            {
                "request_id": "af-call-1", "kind": "approval", "tool": "get_weather",
                "request": {
                    "request_id": "af-call-1", "type": "approval", "tool": "get_weather", "arguments": {"city": "Rome"}
                },
                "asked_at": at, "reply": {"approved": False, "reason": "no"},
                "answered_by": "platform:contoso", "closed_at": at,
            }
        ]  # fmt: skip
        assert turns == [
            {
                "turn": "correlation-0", "invocation_id": "call-0", "status": "succeeded", "error_code": None,
                "created_at": at, "finished_at": "2026-03-04T05:06:09.000Z",
                "usage": {"input_token_count": 12}, "total_tokens": 15,
            }
        ]  # fmt: skip

    def test_empty_session_is_a_document_too(self, staff):
        [session] = json.loads(body(staff.get(file_of(make_session()))))["sessions"]
        assert (session["state"], session["messages"], session["requests"], session["turns"]) == (None, [], [], [])

    def test_texts_are_readable_and_lone_surrogates_stay_escaped(self, staff):
        session = make_session("é", [payload("naïve \ud800 \x00 😀")], state='"\\ud800"')
        text = body(staff.get(file_of(session)))
        assert "naïve \\ud800 \\u0000 😀" in text
        [read] = json.loads(text)["sessions"]
        assert read["messages"][0]["message"]["contents"][0]["text"] == "naïve \ud800 \x00 😀"
        assert read["state"] == "\ud800"

    def test_what_cannot_be_read_is_there_as_text(self, staff):
        session = make_session(messages=["{broken", "[1]"], state="{broken")
        ask(session, None, data="x", reply="{broken")
        [read] = json.loads(body(staff.get(file_of(session))))["sessions"]
        assert [message["unreadable"] for message in read["messages"]] == ["{broken", "[1]"]
        assert (read["state"], read["requests"][0]["reply"]) == ("{broken", "{broken")

    def test_several_sessions_are_one_document_in_the_order_of_the_list(self, staff):
        chosen = [make_session(f"s{number}", [payload(str(number))]) for number in range(3)]
        document = json.loads(body(act(staff, "json", chosen[0], chosen[2])))
        assert [session["session_id"] for session in document["sessions"]] == ["s2", "s0"]

    def test_long_session_is_read_in_order_and_a_little_at_a_time(self, staff, monkeypatch, django_assert_num_queries):
        monkeypatch.setattr(source, "MESSAGES_AT_ONCE", 4)
        monkeypatch.setattr(source, "ROWS_AT_ONCE", 4)
        session = make_session(messages=[payload(str(number)) for number in range(10)], source_id="b")
        for place in range(5):
            MessageRecord.objects.create(
                session=session, source_id="a", position=place, role="user", payload=payload("x"), created_at=NOW
            )
        for _ in range(9):
            make_invocation(session_record=session)
        answer = staff.get(file_of(session))
        # Session; 4 times messages and once none; requests; 3 times turns and once none.
        with django_assert_num_queries(11) as queries:
            [read] = json.loads(body(answer))["sessions"]
        assert [(row["history_provider"], row["position"]) for row in read["messages"]] == [
            *(("a", place) for place in range(5)),
            *(("b", place) for place in range(10)),
        ]
        assert len(read["turns"]) == 9
        assert not any('"answer"' in query["sql"] for query in queries.captured_queries)

    def test_session_that_goes_in_the_meantime_is_left_out(self, staff):
        gone, stays = make_session("gone"), make_session("stays")
        answer = act(staff, "json", gone, stays)
        gone.delete()
        assert [session["session_id"] for session in json.loads(body(answer))["sessions"]] == ["stays"]


class TestMarkdown:
    def test_document_reads_as_a_conversation(self, staff, talk):
        assert body(staff.get(file_of(talk, "md"))) == (
            "# Session `trip`\n"
            "\n"
            "- Endpoint: `default`\n"
            "- User: `alice`\n"
            "- Created: 2026-03-04T05:06:07.000Z\n"
            "- Last activity: 2026-03-04T05:06:07.000Z\n"
            "- Archived: 2026-03-04T05:06:07.000Z\n"
            "- Messages: 0\n"
            "\n"
            "## User, 2026-03-04T05:06:07.000Z\n"
            "\n"
            "- Turn `correlation-0`: succeeded, 2.0 s, 15 tokens\n"
            "\n"
            "```text\nIs it nice in Rome?\n```\n"
            "\n"
            "## Agent `Concierge`, 2026-03-04T05:06:07.000Z\n"
            "\n"
            "**Tool call `get_weather`**\n"
            "\n"
            '```\n{\n  "city": "Rome"\n}\n```\n'
            "\n"
            "**Approval asked `get_weather`**\n"
            "\n"
            "## Tool, 2026-03-04T05:06:07.000Z\n"
            "\n"
            "**Tool result `get_weather`**\n"
            "\n"
            "```\nrefused\n```\n"
            "\n"
            "## Requests\n"
            "\n"
            "### Approval `get_weather`, 2026-03-04T05:06:07.000Z\n"
            "\n"
            '```json\n{\n  "tool": "get_weather",\n  "arguments": {\n    "city": "Rome"\n  }\n}\n```\n'
            "\n"
            "- Refused, `platform:contoso`, 2026-03-04T05:06:07.000Z\n"
            "\n"
            '```json\n{\n  "approved": false,\n  "reason": "no"\n}\n```\n'
        )

    @pytest.mark.parametrize(
        ("text", "ticks"),
        [("plain", 3), ("a ` b", 3), ("```\ncode\n```", 4), ("```` `````", 6), ("~~~", 3), ("\r```", 4)],
    )
    def test_fence_is_longer_than_any_in_the_text(self, text, ticks):
        assert as_markdown.fence(text) == f"{'`' * ticks}\n{text}\n{'`' * ticks}\n"

    def test_fence_needs_no_line_end_of_its_own(self):
        assert as_markdown.fence("a\n", "text") == "```text\na\n```\n"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a", "`a`"),
            ("a`b", "``a`b``"),
            ("`a`", "`` `a` ``"),
            ("a\n\n# b", "`a # b`"),
            ("", "`-`"),
            ("\x00", "`\ufffd`"),
        ],
    )
    def test_names_stay_on_their_line(self, text, shown):
        assert as_markdown.code(text) == shown

    def test_nothing_that_was_said_is_markup(self, staff):
        hostile = "\n# Heading\n```\n![](https://example.org/x.png)\n<script>\n"
        session = make_session(hostile, endpoint="`x`", user_key=hostile)
        say(session, None, "assistant", hostile, Content.from_text_reasoning(text=hostile), author_name=hostile)
        say(session, None, hostile[:32], Content.from_function_call(call_id="c", name=hostile, arguments=hostile))
        say(session, None, "tool", Content.from_function_result(call_id="c", result=hostile))
        say(session, None, "user", Content.from_uri(uri="https://example.org/`x`", media_type="image/png"))
        ask(session, None, data={"tool": hostile, "data": hostile})
        outside, inside = [], ""
        for line in body(staff.get(file_of(session, "md"))).splitlines():
            ticks = re.match("`{3,}", line)
            if inside:
                inside = "" if line == inside else inside
            elif ticks:
                inside = ticks[0]
            else:
                outside.append(re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", line))
        assert inside == ""
        assert not [line for line in outside if re.search(r"Heading|!\[|<|example", line)]
        assert len([line for line in outside if line.startswith("# ")]) == 1

    def test_pictures_are_told_by_kind_and_size(self, staff):
        picture = [Content.from_text("a map"), Content.from_data(data=PNG, media_type="image/png")]
        session = make_session(messages=[payload(Content.from_data(data=PNG, media_type="image/png"))])
        say(session, None, "tool", Content.from_function_result(call_id="c", result=picture))
        assert body(staff.get(file_of(session, "md"))).count("- image/png: `24 bytes`\n") == 2

    def test_all_contents_of_a_message_are_there(self, staff):
        session = make_session(messages=[payload(*(f"text {number};" for number in range(70)))])
        assert "text 69;" in body(staff.get(file_of(session, "md")))

    def test_several_sessions_are_kept_apart(self, staff):
        chosen = [make_session(f"s{number}") for number in range(2)]
        text = body(act(staff, "md", *chosen))
        assert re.findall("^(?:# .*|---)$", text, re.MULTILINE) == ["# Session `s1`", "---", "# Session `s0`"]


class TestRedacted:
    @pytest.mark.parametrize("extension", ["json", "md"])
    def test_file_holds_nothing_unredacted(self, staff, settings, talk, extension):
        settings.INVOCATIONS_HOST = {"REDACTOR": "tests.redactors.hide_rome"}
        say(talk, None, "user", Content.from_data(data=PNG, media_type="image/png"))
        SessionRecord.objects.update(state='{"rome":"\\u0052ome"}')
        ask(talk, None, "request_info", "r2", {"data": "rome"}, reply='"rome"', closed_at=NOW)
        text = body(staff.get(file_of(talk, extension)))
        assert "rome" not in text.lower()
        assert "Is it nice in […]?" in text
        assert "base64" not in text
        assert "image/png, withheld: it cannot be redacted" in text

    @pytest.mark.parametrize("extension", ["json", "md"])
    def test_file_of_one_that_fails_holds_notes(self, staff, settings, talk, extension):
        settings.INVOCATIONS_HOST = {"REDACTOR": "tests.redactors.fail"}
        text = body(staff.get(file_of(talk, extension)))
        assert "rome" not in text.lower()
        assert "[not shown: the redactor failed]" in text


class TestWhoMay:
    @pytest.mark.parametrize("extension", ["json", "md"])
    def test_without_the_permission_there_is_no_file(self, outsider, talk, extension):
        assert outsider.get(file_of(talk, extension)).status_code == 403
        answer = act(outsider, extension, talk)
        assert not answer.streaming
        text = outsider.get(SESSIONS).content.decode()
        assert "Export selected" not in text
        assert "export.json" not in outsider.get(file_of(talk).replace("export.json", "change/")).content.decode()
        assert not LogEntry.objects.exists()

    def test_permission_to_read_alone_is_not_enough(self, staff, talk):
        get_user_model().objects.get(username="staff").user_permissions.set(
            Permission.objects.filter(codename="view_transcript")
        )
        assert staff.get(file_of(talk)).status_code == 403

    def test_nobody_else_gets_one(self, client, talk):
        assert client.get(file_of(talk)).status_code == 302

    def test_invocation_ids_are_for_those_who_may_see_invocations(self, staff, talk):
        get_user_model().objects.get(username="staff").user_permissions.set(
            Permission.objects.filter(codename__in=["view_sessionrecord", "view_transcript"])
        )
        [session] = json.loads(body(staff.get(file_of(talk))))["sessions"]
        assert [set(turn) & {"turn", "invocation_id"} for turn in session["turns"]] == [{"turn"}]

    def test_each_session_in_a_file_has_an_entry(self, staff, talk):
        other = make_session("other")
        act(staff, "md", talk, other)
        staff.get(file_of(talk))
        told = [(entry.object_repr, entry.get_change_message()) for entry in LogEntry.objects.order_by("pk")]
        assert sorted(told[:2]) == [("other", "Exported as Markdown."), ("trip", "Exported as Markdown.")]
        assert told[2:] == [("trip", "Exported as JSON.")]

    @pytest.mark.parametrize("pk", ["999", "x", "9" * 30])
    def test_session_that_is_not_there_is_not_found(self, staff, pk):
        assert staff.get(f"{SESSIONS}{pk}/export.json").status_code == 404

    @pytest.mark.parametrize("extension", ["xml", "JSON", "json.exe"])
    def test_other_forms_are_not_found(self, staff, talk, extension):
        assert staff.get(file_of(talk, extension)).status_code == 404

    def test_too_many_are_refused(self, staff, monkeypatch):
        monkeypatch.setattr(sessions, "MAX_EXPORTED", 2)
        chosen = [make_session(f"s{number}") for number in range(3)]
        answer = act(staff, "json", *chosen)
        assert answer.status_code == 302
        assert "Choose at most 2 sessions to export." in staff.get(SESSIONS).content.decode()
        assert not LogEntry.objects.exists()


class TestSending:
    @pytest.mark.parametrize(
        ("extension", "media_type"), [("json", "application/json"), ("md", "text/markdown; charset=utf-8")]
    )
    def test_headers_make_it_a_file_that_is_not_kept_on_the_way(self, staff, talk, extension, media_type):
        answer = staff.get(file_of(talk, extension))
        assert answer["Content-Type"] == media_type
        assert answer["Content-Disposition"] == f'attachment; filename="session-{talk.pk}-trip.{extension}"'
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in answer["Cache-Control"]
        body(answer)

    @pytest.mark.parametrize(
        ("session_id", "name"),
        [
            ("trip", "session-7-trip"),
            ('../..\\"; x\r\nA: b', "session-7-x-A-b"),
            ("日本", "session-7"),
            ("..", "session-7"),
            ("a" * 256, f"session-7-{'a' * 60}"),
            ("con.txt", "session-7-con-txt"),
        ],
    )
    def test_file_names_are_safe(self, session_id, name):
        assert response.file_name([SessionRecord(pk=7, session_id=session_id)]) == name

    def test_file_of_several_is_named_by_the_day(self, staff):
        answer = act(staff, "json", make_session("a"), make_session("b"))
        assert re.search(r'filename="sessions-\d{4}-\d\d-\d\d\.json"', answer["Content-Disposition"])
        body(answer)

    def test_it_is_made_while_it_is_sent(self, rf: RequestFactory, db, monkeypatch):
        monkeypatch.setattr(response, "BLOCK_CHARACTERS", 1000)
        session = make_session(messages=[payload("x" * 600)] * 50)
        blocks = response.download(rf.get("/"), [session], "json", with_ids=False).streaming_content
        first = next(iter(blocks))
        assert len(first) < 3000
        MessageRecord.objects.filter(position__gte=30).delete()
        [read] = json.loads(first + b"".join(blocks))["sessions"]
        assert len(read["messages"]) == 30

    @pytest.mark.django_db(transaction=True)
    async def test_over_asgi_it_is_sent_by_an_async_iterator(self, monkeypatch):
        monkeypatch.setattr(response, "BLOCK_CHARACTERS", 1000)
        session = await sync_to_async(make_session)(messages=[payload("x" * 600)] * 50)
        user = await sync_to_async(get_user_model().objects.create_superuser)("root")
        client = AsyncClient()
        await client.aforce_login(user)
        answer = await client.get(file_of(session))
        assert isinstance(answer.asgi_request, ASGIRequest)
        assert answer.is_async
        blocks = [block async for block in answer.streaming_content]
        assert len(blocks) > 10
        [read] = json.loads(b"".join(blocks))["sessions"]
        assert len(read["messages"]) == 50
