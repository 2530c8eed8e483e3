"""Isolation keys: which headers say them, what they are bound to, where they are held."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
from itertools import combinations, product

import pytest

from invocations_app.exceptions import InvalidIsolationHeader
from invocations_app.isolation import (
    ISOLATION_HEADER_CHAT,
    ISOLATION_HEADER_USER,
    IsolationKeys,
    RequestKeys,
    Scope,
    get_current_call_id,
    get_current_isolation_keys,
    hold,
    read_request_keys,
    reset_current_call_id,
    reset_current_isolation_keys,
    set_current_call_id,
    set_current_isolation_keys,
    user_key_of,
)

HEADERS = (ISOLATION_HEADER_USER, ISOLATION_HEADER_CHAT, "x-agent-user-id", "x-agent-foundry-call-id")


def test_header_names_are_upstreams() -> None:
    assert ISOLATION_HEADER_USER == "x-agent-user-isolation-key"
    assert ISOLATION_HEADER_CHAT == "x-agent-chat-isolation-key"


def test_keys_are_empty_only_without_both() -> None:
    assert IsolationKeys().is_empty
    assert not IsolationKeys(user_key="u").is_empty
    assert not IsolationKeys(chat_key="c").is_empty


def test_each_header_says_its_key() -> None:
    lines = [*zip(HEADERS, ["a:b/c", "chat", "u1", "call"], strict=True), ("x-other", "z"), ("x-other", "z")]
    assert read_request_keys(lines) == RequestKeys(IsolationKeys("a:b/c", "chat"), "u1", "call")


def test_absent_and_empty_headers_say_nothing() -> None:
    assert read_request_keys([]) == RequestKeys()
    assert read_request_keys([(name, "") for name in HEADERS]) == RequestKeys()


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("values", [["a", "b"], ["a", "a"], ["", "a"], ["a", ""], ["x" * 257]])
def test_repeated_or_too_long_header_is_refused(name: str, values: list[str]) -> None:
    with pytest.raises(InvalidIsolationHeader, match="^invalid isolation header$") as caught:
        read_request_keys([(name, value) for value in values])
    assert caught.value.status == 400


@pytest.mark.parametrize("name", HEADERS)
def test_header_of_256_characters_is_read(name: str) -> None:
    assert read_request_keys([(name, "x" * 256)]) != RequestKeys()


def test_user_key_comes_from_the_isolation_header_then_the_user_id_then_the_user() -> None:
    both = RequestKeys(IsolationKeys(user_key="k"), user_id="u")
    assert user_key_of(both, 7) == "platform:k"
    assert user_key_of(RequestKeys(IsolationKeys(chat_key="c"), user_id="u"), 7) == "platform:u"
    assert user_key_of(RequestKeys(IsolationKeys(chat_key="c")), 7) == "user:7"
    assert user_key_of(RequestKeys(), None) == ""


def test_header_cannot_name_a_user_of_the_site() -> None:
    assert user_key_of(RequestKeys(user_id="user:7"), None) == "platform:user:7"
    assert user_key_of(RequestKeys(), "platform:7") == "user:platform:7"


def test_scope_key_is_the_sha256_of_the_json_array_of_the_four() -> None:
    expected = hashlib.sha256(b'["e", "user:1", "c", "\\u00e4"]').hexdigest()
    assert Scope("e", "user:1", "c").key("ä") == expected


def test_scope_key_of_an_id_that_begins_with_the_time_begins_with_it_too() -> None:
    name = "019ad1f3-5c2e-7abc-8def-0123456789ab"
    digest = hashlib.sha256(f'["e", "", "", "{name}"]'.encode()).hexdigest()
    assert Scope("e").key(name) == "019ad1f35c2e" + digest[12:]
    assert Scope("e", "user:1").key(name)[:12] == "019ad1f35c2e"
    assert Scope("e", "user:1").key(name) != Scope("e").key(name)


@pytest.mark.parametrize(
    "name",
    [
        "019ad1f3-5c2e-4abc-8def-0123456789ab",
        "019ad1f3-5c2e-7abc-cdef-0123456789ab",
        "019AD1F3-5C2E-7ABC-8DEF-0123456789AB",
        "019ad1f35c2e7abc8def0123456789ab",
        "019ad1f3-5c2e-7abc-8def-0123456789ab\n",
        " 019ad1f3-5c2e-7abc-8def-0123456789ab",
    ],
)
def test_scope_key_of_any_other_id_is_the_whole_digest(name: str) -> None:
    expected = hashlib.sha256(json.dumps(["e", "", "", name]).encode()).hexdigest()
    assert Scope("e").key(name) == expected


def test_no_separator_makes_two_scopes_meet() -> None:
    parts = ["", "a", "a:", ":a", "a:a", "a/a", "/", ":", '"', '","', "a\\", "A"]
    keys = {Scope(*values[:3]).key(values[3]) for values in product(parts, repeat=4)}
    assert len(keys) == len(parts) ** 4


def test_digest_stands_for_the_scope_and_shows_no_key() -> None:
    scopes = [Scope("e"), Scope("e", "user:1"), Scope("e", "", "user:1"), Scope("f"), Scope("e", "user:1", "c")]
    assert all(first.digest != second.digest for first, second in combinations(scopes, 2))
    assert all(len(scope.digest) == 12 and int(scope.digest, 16) >= 0 for scope in scopes)


def test_keys_are_set_and_reset_in_the_current_context() -> None:
    assert get_current_isolation_keys() is None
    outer = set_current_isolation_keys(IsolationKeys("u"))
    inner = set_current_isolation_keys(None)
    assert get_current_isolation_keys() is None
    reset_current_isolation_keys(inner)
    assert get_current_isolation_keys() == IsolationKeys("u")
    reset_current_isolation_keys(outer)
    assert get_current_isolation_keys() is None


def test_call_id_is_set_and_reset_in_the_current_context() -> None:
    token = set_current_call_id("call")
    assert get_current_call_id() == "call"
    reset_current_call_id(token)
    assert get_current_call_id() is None


@pytest.mark.parametrize("before", [RequestKeys(), RequestKeys(IsolationKeys("u", "c"), call_id="before")])
@pytest.mark.parametrize(
    "keys", [RequestKeys(), RequestKeys(IsolationKeys(chat_key="c")), RequestKeys(user_id="u", call_id="call")]
)
def test_a_context_holds_the_keys_of_its_run_whatever_it_was_copied_from(
    before: RequestKeys, keys: RequestKeys
) -> None:
    copied = contextvars.Context()
    hold(copied, before)
    hold(copied, keys)
    held = copied.run(get_current_isolation_keys), copied.run(get_current_call_id)
    assert held == (None if keys.isolation.is_empty else keys.isolation, keys.call_id)
    assert (get_current_isolation_keys(), get_current_call_id()) == (None, None)


async def test_concurrent_tasks_never_see_each_others_keys() -> None:
    async def hold(name: str) -> list[IsolationKeys | None]:
        set_current_isolation_keys(IsolationKeys(name))
        seen = []
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(get_current_isolation_keys())
        return seen

    names = ["a", "b", "a:b"]
    assert await asyncio.gather(*map(hold, names)) == [[IsolationKeys(name)] * 3 for name in names]
    assert get_current_isolation_keys() is None
