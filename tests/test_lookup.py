"""A row by its key with a statement that is put together once: the ORM's row, by the ORM's own SQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.models.functions import Length
from django.db.models.sql.compiler import SQLCompiler
from django.test.utils import CaptureQueriesContext
from rest_framework.authtoken.models import Token

from invocations_app.storage.lookup import Lookup

pytestmark = pytest.mark.django_db

USER = {
    "username": "ada",
    "first_name": "Ada",
    "is_staff": True,
    "is_active": False,
    "last_login": datetime(2026, 11, 28, 1, 2, 3, 456789, UTC),
}


@pytest.fixture
def tokens() -> Lookup[Token]:
    for number, fields in enumerate([USER, {"username": "eve"}]):
        Token.objects.create(key=f"k{number}", user=get_user_model().objects.create(**fields))
    return Lookup(Token, "key", "user")


def fields_of(row: Any) -> dict[str, Any]:
    known = {"db": row._state.db, "adding": row._state.adding, "related": sorted(row._state.fields_cache)}
    return {name: value for name, value in vars(row).items() if name != "_state"} | known


@pytest.mark.parametrize("key", ["k0", "k1"])
def test_row_and_its_related_one_are_those_of_the_orm(tokens: Lookup[Token], key: str) -> None:
    expected = Token.objects.select_related("user").get(key=key)
    for _ in range(2):
        found = tokens.get(key)
        assert type(found) is Token
        assert fields_of(found) == fields_of(expected)
        with CaptureQueriesContext(connection) as queries:
            assert fields_of(found.user) == fields_of(expected.user)
            assert found.user.auth_token is found
        assert len(queries) == 0


def test_each_look_is_a_row_of_its_own(tokens: Lookup[Token]) -> None:
    first = tokens.get("k0")
    first.user.first_name = "Changed"
    assert tokens.get("k0").user.first_name == "Ada"


def test_what_changed_meanwhile_is_seen(tokens: Lookup[Token]) -> None:
    tokens.get("k0")
    get_user_model().objects.update(first_name="Grace")
    assert tokens.get("k0").user.first_name == "Grace"
    Token.objects.filter(key="k0").delete()
    with pytest.raises(Token.DoesNotExist):
        tokens.get("k0")


@pytest.mark.parametrize("key", ["", "k", "k0 ", "%s", "k0' OR '1'='1"])
def test_another_key_is_not_there(tokens: Lookup[Token], key: str) -> None:
    with pytest.raises(Token.DoesNotExist):
        tokens.get(key)


def test_statement_is_put_together_once_and_is_the_orms(tokens: Lookup[Token], monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureQueriesContext(connection) as expected:
        Token.objects.select_related("user").filter(key="k0").first()
    real, calls = SQLCompiler.as_sql, []
    monkeypatch.setattr(SQLCompiler, "as_sql", lambda *args, **kwargs: (calls.append(1), real(*args, **kwargs))[1])
    with CaptureQueriesContext(connection) as queries:
        for _ in range(3):
            tokens.get("k0")
    assert calls == [1]
    [sql] = {query["sql"] for query in queries}
    assert expected[0]["sql"].startswith(sql)


def test_rows_in_an_order_of_the_models_are_found_too() -> None:
    expected = Permission.objects.select_related("content_type").get(codename="add_logentry")
    assert fields_of(Lookup(Permission, "codename", "content_type").get("add_logentry")) == fields_of(expected)


@pytest.mark.parametrize(
    "narrow",
    [
        lambda rows: rows.filter(user__is_staff__in=[True, None]),
        lambda rows: rows.filter(user__is_staff=True).defer("created"),
        lambda rows: rows.filter(user__is_staff=True).annotate(length=Length("key")),
        lambda rows: rows.filter(user__is_staff=True).prefetch_related("user__groups"),
        lambda rows: rows.filter(user__is_staff=True).extra(select={"one": "1"}),
        lambda rows: rows.filter(user__username="ada"),
    ],
)
def test_statement_that_is_not_the_plain_one_is_left_to_the_orm(
    tokens: Lookup[Token], monkeypatch: pytest.MonkeyPatch, narrow: Any
) -> None:
    rows = narrow(Token.objects.select_related("user"))
    monkeypatch.setattr(tokens, "_queryset", lambda _: rows.all())
    found = tokens.get("k0")
    assert tokens._statements == {"default": None}
    assert fields_of(found) == fields_of(rows.get(key="k0"))
    assert found.user.username == "ada"
    with pytest.raises(Token.DoesNotExist):
        tokens.get("k1")
