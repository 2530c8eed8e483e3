"""JSON encoders that are made once say what the standard library's say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invocations_app import json_text

TEXTS = st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
KINDS: list[dict[str, Any]] = [
    {},
    {"sort_keys": True},
    {"ensure_ascii": False},
    {"compact": True},
    {"ensure_ascii": False, "allow_nan": False, "compact": True},
]


def standard(value: Any, *, compact: bool = False, **arguments: Any) -> str:
    return json.dumps(value, separators=(",", ":") if compact else None, **arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=20, deadline=None)
@given(value=VALUES)
def test_text_is_the_standard_librarys(kind: dict[str, Any], value: Any) -> None:
    assert json_text.encoder(**kind)(value) == standard(value, **kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_text_is_the_same_without_the_quick_encoder(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"b": ["ä\u2028\ud800", 1, 2.5, None, True], "a": {}}
    quick = json_text.encoder(**kind)(value)
    monkeypatch.setattr(json_text, "_make_encoder", None)
    assert json_text.encoder(**kind)(value) == quick == standard(value, **kind)


def test_the_quick_encoder_is_there() -> None:
    assert json_text._make_encoder is not None


def test_an_encoder_may_be_used_again_after_a_failure() -> None:
    encode = json_text.encoder()
    for _ in range(2):
        with pytest.raises(TypeError, match="not JSON serializable"):
            encode({"a": object()})
        assert encode({"a": 1}) == '{"a": 1}'


def test_numbers_that_are_not_finite_are_refused_where_they_are_to_be() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text.encoder(allow_nan=False)([float("nan")])
    assert json_text.encoder()([float("nan")]) == "[NaN]"


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        json_text.encoder()(endless)
