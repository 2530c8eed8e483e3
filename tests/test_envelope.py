"""Ids, session header values and fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invocations_app.envelope import Invocation, fingerprint, is_well_formed_id, session_header_value


@pytest.mark.parametrize("value", ["a", "A.z_0:9-", "x" * 256, "...", "Invoke", "invoke2", "a.."])
def test_id_of_the_set_is_well_formed(value: str) -> None:
    assert is_well_formed_id(value)


@pytest.mark.parametrize(
    "value",
    ["", "x" * 257, "a b", " a", "a\n", "a/b", "a,b", "a~b", "ä", "\u0660", "invoke", "docs", "sessions", ".", ".."],
)
def test_id_outside_the_set_is_not_well_formed(value: str) -> None:
    assert not is_well_formed_id(value)


@pytest.mark.parametrize(
    ("session_id", "value"),
    [
        ("s1", "s1"),
        ("A.z_0:9-", "A.z_0:9-"),
        ("a b/c", "a%20b%2Fc"),
        ("100%", "100%25"),
        ("a~b+c", "a%7Eb%2Bc"),
        ("ä😀", "%C3%A4%F0%9F%98%80"),
        ("a\r\nx-evil: 1", "a%0D%0Ax-evil:%201"),
        ("\ud800", "%3F"),
    ],
)
def test_session_header_value_is_percent_encoded_outside_the_set(session_id: str, value: str) -> None:
    assert session_header_value(session_id) == value


@settings(derandomize=True, deadline=None, max_examples=100)
@given(session_id=st.text("aZ09._:-~%+/ \x00\n\x7fäß\u2028\ufffd😀", max_size=20))
def test_session_header_value_can_be_decoded(session_id: str) -> None:
    value = session_header_value(session_id)
    assert unquote(value) == session_id
    assert set(value) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-%")


def test_fingerprint_is_the_sha256_of_endpoint_dialect_session_and_sorted_body() -> None:
    text = '["default", "channel", "s1", {"a": {"b": 1, "c": "\\u00e4"}, "message": "m"}]'
    body = {"message": "m", "a": {"c": "ä", "b": 1}}
    assert fingerprint("default", "channel", "s1", body) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        ("e", "channel", None, {"b": 2, "a": 1}),
        ("e", "channel", "", {"a": 1, "b": 2}),
        ("e", "channel", None, {"a": 1, "b": 2, "stream": True}),
        ("e", "channel", None, {"a": 1, "b": 2, "stream": False, "background": True}),
    ],
)
def test_fingerprint_ignores_order_stream_background_and_an_empty_session(same: tuple[Any, ...]) -> None:
    assert fingerprint(*same) == fingerprint("e", "channel", None, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    "other",
    [
        ("f", "channel", None, {"a": {"stream": 1}}),
        ("e", "platform", None, {"a": {"stream": 1}}),
        ("e", "channel", "s", {"a": {"stream": 1}}),
        ("e", "channel", None, {"a": {"stream": 2}}),
        ("e", "channel", None, {"a": {}}),
        ("e", "channel", None, {"a": {"stream": True}}),
        ("e", "channel", None, {"a": {"stream": "1"}}),
    ],
)
def test_fingerprint_tells_requests_apart(other: tuple[Any, ...]) -> None:
    assert fingerprint(*other) != fingerprint("e", "channel", None, {"a": {"stream": 1}})


def test_fingerprint_takes_whatever_a_body_may_hold() -> None:
    body = {"a": "\ud800\u2028", "b": int("9" * 4300), "c": [None, 1e308]}
    assert len(fingerprint("e", "channel", "ä", body)) == 64


def test_invocation_is_frozen_and_changed_by_replacement() -> None:
    invocation = Invocation(id="i", endpoint="e", dialect="channel")
    with pytest.raises(dataclasses.FrozenInstanceError):
        invocation.stream = True  # type: ignore[misc]
    assert dataclasses.replace(invocation, stream=True).stream
    assert not invocation.stream
