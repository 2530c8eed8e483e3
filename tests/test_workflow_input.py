"""What a workflow is given: JSON made into the start executor's type, or refused before anything is begun."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any

import pytest
from agent_framework import Message

from invocations_app import targets
from invocations_app.runs.workflow_input import Unfit, fit
from tests import fakes
from tests.client import endpoint, post, records
from tests.workflow_fakes import Address, Order

pytestmark = pytest.mark.django_db(transaction=True)

FAKES = "tests.workflow_fakes."


def use(settings: Any, name: str, **keys: Any) -> None:
    settings.INVOCATIONS = endpoint(TARGET=FAKES + name, **keys)


async def test_a_dataclass_and_a_pydantic_model_are_made_of_json(settings):
    use(settings, "build_orders")
    response = await post({"input": {"item": "tea", "quantity": 2, "notes": ["green"]}})
    assert response.json()["response"] == '{"item":"tea","quantity":2,"wanted":null,"notes":["green"]}'
    assert fakes.notes[0] == Order("tea", 2, None, ["green"])
    await post({"input": {"item": "tea", "wanted": "2026-03-01"}})
    assert fakes.notes[1] == Order("tea", wanted=date(2026, 3, 1))
    await post({"input": {"street": "Elm", "number": 5}})
    assert fakes.notes[2] == Address(street="Elm", number=5)


@pytest.mark.parametrize(
    ("name", "body", "rule"),
    [
        ("build_deliveries", {"street": "Elm", "number": "5"}, ": number: Input should be a valid integer"),
        ("build_deliveries", {"street": "Elm"}, ": number: Field required"),
        ("build_deliveries", "Elm 5", ": Input should be an object"),
        ("build_orders", {"item": 1}, ""),
        ("build_orders", {}, ""),
        ("build_counting", 5, ": Input should be a valid string"),
        ("build_counting", False, ": Input should be a valid string"),
        ("build_counting", [], ": Input should be a valid string"),
        (
            "build_reading",
            [{"role": "system", "contents": [{"type": "text", "text": "x"}]}],
            ": it must hold messages of the role user only",
        ),
    ],
)
async def test_input_of_another_type_is_refused_before_anything_is_begun(settings, name, body, rule):
    use(settings, name)
    text = f'{{"error":"\'input\' is not what the workflow takes{rule}"}}'.encode()
    for path, status in (("/invocations/invoke", 422), ("/invocations", 400)):
        response = await post({"input": body}, path)
        assert (response.status_code, response.content) == (status, text)
        assert "x-agent-invocation-id" in response.headers
    assert await records() == []
    assert fakes.notes == []


async def test_a_message_is_the_input_in_both_dialects(settings):
    use(settings, "build_counting")
    assert (await post({"message": "ping"})).content == b'{"response":"ping 1","session_id":null}'
    assert (await post({"message": ""}, "/invocations")).json() == {
        "output": [{"type": "output", "data": " 1", "executor_id": "counting"}]
    }
    assert (await post({"message": ""})).content == b'{"error":"missing or empty \'message\'"}'


async def test_a_message_that_the_workflow_does_not_take_is_refused(settings):
    use(settings, "build_deliveries")
    assert (await post({"message": "Elm 5"})).status_code == 422


async def test_messages_are_read_as_an_agent_reads_them(settings):
    use(settings, "build_reading")
    said = [{"role": "user", "contents": [{"type": "text", "text": text}]} for text in ("a", "b")]
    assert (await post({"input": said})).content == b'{"response":"a b","session_id":null}'
    assert (await post({"message": "c"})).content == b'{"response":"c","session_id":null}'
    first, second = fakes.notes[0]
    assert all(message.message_id for message in (first, second))
    assert second.additional_properties["hosting"]["dialect"] == "channel"
    assert "hosting" not in first.additional_properties


def make_order(invocation: Any, *, target: Any, request: Any) -> Any:
    fakes.notes.append(target.name)
    return dataclasses.replace(invocation, input=Order(str(invocation.input)))


def make_object(invocation: Any, *, target: Any, request: Any) -> Any:
    return dataclasses.replace(invocation, input=object())


async def test_a_run_hook_makes_the_input_of_the_envelope(settings):
    use(settings, "build_orders", RUN_HOOK=f"{__name__}.make_order")
    await post({"message": "tea"})
    assert fakes.notes == ["orders", Order("tea")]


async def test_what_a_hook_makes_that_the_workflow_does_not_take_is_refused(settings):
    use(settings, "build_orders", RUN_HOOK=f"{__name__}.make_object")
    response = await post({"message": "tea"})
    assert (response.status_code, response.content) == (
        422,
        b'{"error":"\'input\' is not what the workflow takes"}',
    )


# Types.


class Colour(Enum):
    RED = "red"


@dataclass
class Told:
    messages: list[Message]
    by: str = "nobody"


@pytest.mark.parametrize(
    ("value", "wanted", "made"),
    [
        ("2026-03-01", date, date(2026, 3, 1)),
        ("red", Colour, Colour.RED),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], set[int], {1, 2}),
        (5, float, 5.0),
        (5, int | str, 5),
        ("5", int | str, "5"),
        (None, int | None, None),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": [None]}, Any, {"a": [None]}),
        ([], list[Message], []),
    ],
)
def test_json_is_made_into_a_type(value, wanted, made):
    fitted = fit(value, [wanted], ())
    assert fitted == made
    assert type(fitted) is type(made)


def test_a_dataclass_of_messages_is_made_of_json():
    said = {"messages": [{"role": "user", "contents": [{"type": "text", "text": "more"}]}]}
    told = fit(said, [Told], ())
    assert (type(told), told.by, [message.text for message in told.messages]) == (Told, "nobody", ["more"])


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("5", int),
        (True, int),
        (1, bool),
        ("x", Colour),
        (1.5, int),
        ({"1": 1}, dict[int, str]),
        (5, Message),
        ({"by": "me"}, Told),
        ({"messages": [], "more": 1}, Told),
        ("x", object()),
        ({}, type("Plain", (), {})),
    ],
)
def test_what_is_not_of_a_type_does_not_fit(value, wanted):
    with pytest.raises(Unfit):
        fit(value, [wanted], ())


# The first request of a process: what the target is, is known only once it was built.


@pytest.fixture
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_kinds", {})


@pytest.mark.usefixtures("_unknown")
@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"message": "ping"}, (200, b'{"response":"ping","session_id":null}')),
        ({"input": "ping"}, (200, b'{"response":"ping","session_id":null}')),
        (
            {"input": ""},
            (422, b'{"error":"\'input\' must be a non-empty string or a non-empty list of messages"}'),
        ),
        (
            {"input": [{}]},
            (422, b'{"error":"\'input\' must hold messages that have a role, contents and no other keys"}'),
        ),
    ],
)
async def test_the_first_request_to_an_agent_is_read_as_any_other(settings, body, answer):
    settings.INVOCATIONS = endpoint()
    response = await post(body)
    assert (response.status_code, response.content) == answer
    # And so is the next one.
    response = await post(body)
    assert (response.status_code, response.content) == answer


@pytest.mark.usefixtures("_unknown")
@pytest.mark.parametrize("body", [{"message": "ping"}, {"input": "ping"}])
async def test_the_first_request_to_a_workflow_is_read_as_any_other(settings, body):
    use(settings, "build_counting")
    for _ in range(2):
        assert (await post(body)).content == b'{"response":"ping 1","session_id":null}'


@pytest.mark.usefixtures("_unknown")
async def test_the_first_empty_message_of_the_platform_reaches_an_agent(settings):
    settings.INVOCATIONS = endpoint()
    assert (await post({"message": ""}, "/invocations")).content == b'{"response":""}'
    assert fakes.calls[0].texts == [("user", "")]
