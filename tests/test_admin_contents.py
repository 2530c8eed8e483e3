"""Who may read contents in the admin, what the redactor leaves of them, and the entry that a reader leaves."""

import json
import logging
import re
from pathlib import Path

import pytest
from agent_framework import Content
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.core.checks import Error

from invocations_app import checks
from invocations_app.admin import contents
from invocations_app.admin.display import figures
from invocations_app.admin.redaction import Redactor
from invocations_app.admin.stored import load_message
from tests import redactors
from tests.admin_records import (
    INVOCATIONS,
    PNG,
    SCRIPT,
    SESSIONS,
    make_invocation,
    make_session,
    page_of,
    payload,
    text_of,
)

DOCS = Path(__file__).resolve().parent.parent / "docs" / "admin.md"
FAILED = "[not shown: the redactor failed]"
WITHHELD = "Contents are shown only to those who may read what was said in sessions."
call = Content.from_function_call(call_id="c1", name="f", arguments="{}")
IMAGE = "[image/png, withheld: it cannot be redacted]"


@pytest.fixture
def redactor(settings):
    """Set a redactor by its name, and return what then redacts."""

    def set_redactor(name):
        settings.INVOCATIONS_HOST = {"REDACTOR": name if "." in name else f"tests.redactors.{name}"}
        return Redactor()

    return set_redactor


def talk(**kwargs):
    """A session with each kind of content, each with the word Rome."""
    asked = Content.from_function_call(call_id="c1", name="get_weather", arguments='{"city":"\\u0052ome"}')
    approval = Content.from_function_approval_request(id="a1", function_call=asked)
    messages = [
        payload("What is it like in Rome?", author_name="Rome"),
        payload(asked, Content.from_text_reasoning(text="Rome?"), role="assistant"),
        payload(Content.from_function_result(call_id="c1", result={"Rome": "sunny in rome"}), role="tool"),
        payload(approval, approval.to_function_approval_response(True)),
        payload(Content.from_error(message="no Rome", error_code="rome")),
        payload(Content.from_uri(uri="https://example.org/rome.png", media_type="image/png")),
        payload(Content.from_data(data=PNG, media_type="image/png")),
        '{"no message": "Rome"}',
        "broken: Rome",
    ]
    return make_session(messages=messages, state='{"a":"Rome"}', **kwargs)


class TestRedactor:
    def test_without_one_everything_stays_as_it_is(self):
        redactor = Redactor()
        assert redactor.active is False
        assert redactor.text("Rome") == "Rome"
        assert redactor.json('{"a" :1}') == '{"a" :1}'
        value = {"a": [1]}
        assert redactor.value(value) is value

    def test_text_is_redacted(self, redactor):
        assert redactor("hide_rome").text("In Rome, in ROME") == "In […], in […]"

    def test_json_is_redacted_string_by_string_and_stays_json(self, redactor):
        text = '{"a":["rome",{"b":"\\u0052ome"}],"n":[1,2.5,null,true]}'
        assert redactor("hide_rome").json(text) == '{"a": ["[…]", {"b": "[…]"}], "n": [1, 2.5, null, true]}'

    def test_json_in_a_string_is_redacted_inside_and_stays_json(self, redactor):
        [inner] = json.loads(redactor("hide_rome").json(json.dumps(['{"city":"\\u0052ome","\\"Rome":1}'])))
        assert json.loads(inner) == {"city": "[…]", '"[…]': 1}

    def test_number_that_is_redacted_becomes_a_string(self, redactor):
        assert redactor("hide_rome").json("[4111, 4112, 0.4111]") == '["[…]", 4112, "0.[…]"]'

    def test_keys_are_redacted_and_stay_apart(self, redactor):
        assert redactor("hide_rome").json('{"Rome":1,"rome":2}') == '{"[…]": 1, "[…] (2)": 2}'

    @pytest.mark.parametrize("text", ["{broken Rome", "[1] Rome", "Rome"])
    def test_what_is_no_json_is_redacted_as_text(self, redactor, text):
        assert redactor("hide_rome").json(text) == text.replace("Rome", "[…]")

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("data:image/png;base64,AAAA", IMAGE),
            ("DATA:image/PNG;charset=x;base64,AA==", IMAGE),
            ("see ![](data:image/png;base64,AA\nAA==) here", f"see ![]({IMAGE}) here"),
            ("data:image/svg+xml,%3Csvg%3E", "[image/svg+xml, withheld: it cannot be redacted]"),
            ("data: the figures, all of them", "data: the figures, all of them"),
        ],
    )
    def test_pictures_and_files_are_withheld(self, redactor, text, shown):
        assert redactor("note").text(text) == shown
        assert redactor("note").value([text]) == [shown]

    def test_whole_text_is_given_to_the_redactor(self, redactor, db):
        redactors.calls.clear()
        contents.block("x" * 50_000)
        assert redactors.calls == []
        redactor("note")
        contents.block("x" * 50_000)
        assert redactors.calls == ["x" * 50_000]

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("fail", "ValueError"),
            ("nothing", "it returned NoneType"),
            ("later", "it is no plain function"),
            ("later_object", "it is no plain function"),
            ("NOT_CALLABLE", "it is no plain function"),
            ("tests.redactors.missing", "ImportError"),
            ("tests.no_module.missing", "ModuleNotFoundError"),
        ],
    )
    def test_one_that_fails_shows_nothing_and_is_logged_once_without_the_text(self, redactor, caplog, name, told):
        broken = redactor(name)
        assert broken.active is True
        assert broken.text("a secret") == FAILED
        assert broken.value({"k": "a secret"}) == {FAILED: FAILED}
        assert broken.json("a secret") == FAILED
        [record] = caplog.records
        assert (record.name, record.levelno) == ("invocations_app.admin", logging.ERROR)
        assert record.getMessage() == f"INVOCATIONS_HOST['REDACTOR'] failed: {told}. Texts are not shown."
        assert "secret" not in caplog.text

    def test_the_example_of_the_docs_works(self):
        [example] = re.findall(r"```python\n(import re.*?)```", DOCS.read_text(), re.DOTALL)
        names = {}
        exec(example, names)
        assert names["redact"]("pay with 4111111111111111!") == "pay with [card number]!"

    def test_depth_shows_nothing(self, redactor):
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        assert redactor("hide_rome").value(deep) == FAILED

    def test_message_keeps_the_names_and_ids_it_is_read_by(self, redactor):
        redactor("hide_all")
        approval = Content.from_function_approval_request(
            id="a1", function_call=Content.from_function_call(call_id="c1", name="f", arguments={"x": "y"})
        )
        message = load_message(payload("hi", approval, author_name="Ann", message_id="m1"), Redactor())
        assert (message["type"], message["role"], message["message_id"]) == ("message", "user", "m1")
        text, asked = message["contents"]
        assert (text["type"], text["text"], message["author_name"]) == ("text", "*", "*")
        assert (asked["type"], asked["id"], asked["function_call"]["call_id"]) == (
            "function_approval_request", "a1", "c1",
        )  # fmt: skip
        assert asked["function_call"]["name"] == "*"
        assert asked["function_call"]["arguments"] == {"*": "*"}

    def test_texts_that_follow_each_other_are_redacted_as_one(self, redactor):
        redactor("hide_rome")
        thought = Content.from_text_reasoning(text="me?")
        message = load_message(
            payload("in Ro", "me", call, "Ro", thought, Content.from_text_reasoning(text="")), Redactor()
        )
        assert [(content["type"], content.get("text")) for content in message["contents"]] == [
            ("text", "in […]"),
            ("function_call", None),
            ("text", "Ro"),
            ("text_reasoning", "me?"),
        ]

    def test_what_looks_like_no_id_is_redacted_in_the_place_of_one(self, redactor):
        redactor("hide_all")
        message = json.dumps({"contents": [{"type": "a text", "id": "b c", "Rome": 1, "media_type": ["x"]}]})
        assert load_message(message, Redactor()) == {
            "contents": [{"type": "*", "id": "*", "*": "*", "media_type": ["*"]}]
        }


class TestFigures:
    @pytest.mark.parametrize("usage", ["", "{", "[1]", '"text"', '{"note": "text", "a name with Rome": 3, "b": true}'])
    def test_what_is_no_number_by_a_name_is_none(self, usage):
        assert figures(usage) == {}

    def test_numbers_are_given_by_name(self):
        assert figures('{"total_token_count": 3, "openai.cached": 1, "x": {"y": 1}}') == {
            "total_token_count": 3,
            "openai.cached": 1,
        }


class TestChecks:
    @pytest.mark.parametrize("name", [None, "hide_rome", "note"])
    def test_one_that_can_be_called_or_none_is_right(self, settings, name):
        settings.INVOCATIONS_HOST = {"REDACTOR": name and f"tests.redactors.{name}"}
        assert checks.check_redactor() == []
        assert checks.check_settings() == []

    def test_e003_no_dotted_path(self, settings):
        settings.INVOCATIONS_HOST = {"REDACTOR": str.upper}
        [error] = checks.check_settings()
        assert (error.id, error.hint) == (
            "invocations.E003", "Write a dotted path, such as 'project.hooks.run_hook', or None.",
        )  # fmt: skip

    def test_e004_one_that_cannot_be_imported(self, redactor):
        redactor("tests.redactors.missing")
        [error] = checks.check_redactor()
        assert error.id == "invocations.E004"
        assert error.msg.startswith("INVOCATIONS_HOST['REDACTOR']: 'tests.redactors.missing' cannot be imported: ")

    def test_e008_one_that_cannot_be_called(self, redactor):
        redactor("NOT_CALLABLE")
        assert checks.check_redactor() == [
            Error(
                "INVOCATIONS_HOST['REDACTOR']: 'tests.redactors.NOT_CALLABLE' is not callable.",
                hint="Name a plain function that takes a text and returns a text.",
                id="invocations.E008",
            )
        ]

    @pytest.mark.parametrize("name", ["later", "later_object"])
    def test_e016_one_that_is_async(self, redactor, name):
        redactor(name)
        assert checks.check_redactor() == [
            Error(
                f"INVOCATIONS_HOST['REDACTOR']: 'tests.redactors.{name}' is async.",
                hint="Name a plain function that takes a text and returns a text.",
                id="invocations.E016",
            )
        ]


class TestRedactedPages:
    def test_session_page_shows_nothing_unredacted(self, staff, redactor):
        redactor("hide_rome")
        text = text_of(staff.get(page_of(talk())))
        assert "rome" not in text.lower().replace("chromium", "")
        for part in (
            "What is it like in […]?",
            "Tool call",
            "get_weather",
            "Approved",
            "no […]",
            "https://example.org/",
        ):
            assert part in text, part
        assert "<img" not in text
        assert IMAGE in text

    def test_invocation_page_shows_nothing_unredacted(self, staff, redactor):
        redactor("hide_rome")
        record = make_invocation(answer='{"response":"\\u0052ome"}', metadata='{"Rome":"rome"}', input="Rome")
        text = text_of(staff.get(page_of(record)))
        assert "rome" not in text.lower()
        assert text.count("[…]") == 3

    @pytest.mark.parametrize("make", [talk, lambda: make_invocation(answer="Rome", metadata='{"a":"Rome"}')])
    def test_with_one_that_fails_pages_show_notes(self, staff, redactor, make):
        redactor("fail")
        text = text_of(staff.get(page_of(make())))
        assert FAILED in text
        assert "rome" not in text.lower()

    def test_what_the_redactor_returns_is_escaped(self, staff, redactor, monkeypatch):
        monkeypatch.setattr(redactors, "note", lambda text: SCRIPT)
        redactor("note")
        assert "<script>alert" not in text_of(staff.get(page_of(talk())))


class TestWithoutThePermission:
    def test_session_is_shown_without_its_texts(self, outsider):
        text = text_of(outsider.get(page_of(talk(session_id="trip"))))
        assert "rome" not in text.lower()
        assert text.count(WITHHELD) == 2
        assert "trip" in text
        assert "data:image" not in text

    def test_session_list_is_shown(self, outsider):
        talk(session_id="trip")
        assert ">trip<" in text_of(outsider.get(SESSIONS))

    def test_invocation_is_shown_without_its_texts(self, outsider):
        record = make_invocation(
            answer="Rome", metadata='{"a":"Rome"}', input="Rome", fingerprint="f" * 64, error_code="timeout",
            usage='{"total_token_count":3,"note":"Rome"}',
        )  # fmt: skip
        text = text_of(outsider.get(page_of(record)))
        assert "rome" not in text.lower()
        assert "f" * 64 not in text
        assert text.count(WITHHELD) == 1
        for part in ("timeout", "correlation-0", "&quot;total_token_count&quot;: 3"):
            assert part in text, part

    def test_nothing_of_a_message_is_read_from_the_database(self, outsider, django_assert_max_num_queries):
        session = talk()
        with django_assert_max_num_queries(10) as queries:
            outsider.get(page_of(session))
        assert not any("messagerecord" in query["sql"] for query in queries.captured_queries)

    def test_superusers_have_it(self, admin_client):
        assert "What is it like in Rome?" in text_of(admin_client.get(page_of(talk())))

    def test_deletion_page_names_the_session_and_counts_its_messages_only(self, outsider, admin_client):
        text = text_of(admin_client.get(page_of(talk()).replace("change", "delete")))
        assert "9 messages" in text
        assert "rome" not in text.lower()


@pytest.mark.parametrize(
    ("page", "lookup"),
    [
        (SESSIONS, "state__contains"),
        (SESSIONS, "state"),
        (SESSIONS, "messages__payload__contains"),
        (SESSIONS, "invocations__answer__contains"),
        (SESSIONS, "pending__data__contains"),
        (INVOCATIONS, "answer__startswith"),
        (INVOCATIONS, "metadata__contains"),
        (INVOCATIONS, "input__contains"),
        (INVOCATIONS, "fingerprint"),
        (INVOCATIONS, "session_record__state__contains"),
        (INVOCATIONS, "events__frames__contains"),
    ],
)
def test_nobody_finds_rows_by_what_is_in_contents(staff, caplog, page, lookup):
    """With a redactor, what is found would tell readers too what it hides."""
    talk()
    make_invocation(answer="Rome")
    assert staff.get(page, {lookup: "Rome"}).status_code == 400


class TestAudit:
    @pytest.mark.parametrize(
        ("make", "said"), [(talk, "Read the transcript, page 1."), (make_invocation, "Read the contents.")]
    )
    def test_reader_leaves_an_entry_a_page_load(self, staff, make, said):
        record = make()
        for _ in range(2):
            text_of(staff.get(page_of(record)))
        user = get_user_model().objects.get(username="staff")
        entries = list(LogEntry.objects.all())
        assert [(entry.user, entry.get_edited_object(), entry.action_flag) for entry in entries] == [
            (user, record, CHANGE)
        ] * 2
        assert [entry.get_change_message() for entry in entries] == [said] * 2

    def test_page_that_was_read_is_named(self, staff):
        session = make_session(messages=[payload("x")] * 60)
        staff.get(page_of(session))
        staff.get(page_of(session), {"page": "1"})
        assert [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")] == [
            "Read the transcript, page 2.",
            "Read the transcript, page 1.",
        ]

    @pytest.mark.parametrize("make", [talk, make_invocation])
    def test_who_reads_nothing_leaves_none(self, outsider, make):
        record = make()
        outsider.get(page_of(record))
        outsider.get(SESSIONS)
        outsider.get(INVOCATIONS)
        assert not LogEntry.objects.exists()

    def test_entry_is_in_the_history_of_the_session(self, staff):
        session = talk()
        staff.get(page_of(session))
        assert "Read the transcript, page 1." in text_of(staff.get(page_of(session).replace("change", "history")))
