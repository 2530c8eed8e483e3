"""Callers with a token of Django REST framework: looked up without a thread, where nothing else is asked."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AbstractUser, User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError, connection, connections, models
from django.db.models.signals import post_init
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.authtoken.models import Token
from rest_framework.permissions import BasePermission, IsAdminUser, IsAuthenticated, IsAuthenticatedOrReadOnly
from rest_framework.request import ForcedAuthentication
from rest_framework.throttling import UserRateThrottle

from invocations_app import conf
from invocations_app.storage import database, loop_reader
from invocations_app.storage.loop_reader import NotHere
from invocations_app.views import InvokeView, checking, tokens
from invocations_app.views.tokens import QuickTokenAuthentication
from tests.client import endpoint, post, records
from tests.session_fakes import failing_statements

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "0123456789abcdef0123456789abcdef01234567"
PONG = b'{"response":"pong","session_id":null}'
WITH_TOKEN = endpoint(
    AUTHENTICATION_CLASSES=["rest_framework.authentication.TokenAuthentication"],
    PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"],
)
sqlite_only = pytest.mark.skipif("connection.vendor != 'sqlite'", reason="other databases are read in threads")


@pytest.fixture(autouse=True)
def _fresh(settings: Any) -> Iterator[None]:
    settings.INVOCATIONS = WITH_TOKEN
    checking.close()
    checking._tokens.close()
    yield
    checking.close()
    checking._tokens.close()


async def settled() -> None:
    """Wait until the database's threads have nothing to do."""
    while not database.is_idle():
        await asyncio.sleep(0.001)


def new_user(name: str = "ada", key: str = KEY, **fields: Any) -> Any:
    user = get_user_model().objects.create(username=name, **fields)
    Token.objects.create(key=key, user=user)
    return user


async def ask(key: str | None = KEY, **kwargs: Any) -> Any:
    headers = None if key is None else {"authorization": f"Token {key}"}
    return await post({"message": "pong"}, headers=headers, **kwargs)


async def ready() -> None:
    """Have the connection opened, which the first caller asks for and does not wait for."""
    await ask(None)
    await settled()
    await asyncio.to_thread(checking.close)


def used_a_thread() -> bool:
    return checking._executor is not None


@sqlite_only
async def test_token_is_looked_up_without_a_thread_and_says_who_it_is() -> None:
    user = await database.run(new_user)
    await ready()
    assert (await ask()).content == PONG
    assert not used_a_thread()
    assert [(record.user_key, record.user_id) for record in await records()] == [(f"user:{user.pk}", user.pk)]


@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("f" * 40, "Invalid token."),
        ("", "Invalid token header. No credentials provided."),
        ("a b", "Invalid token header. Token string should not contain spaces."),
        ("inactive", "User inactive or deleted."),
        (None, "Authentication credentials were not provided."),
    ],
)
async def test_token_that_is_none_is_refused_here_as_in_a_thread(is_ready: bool, key: str | None, text: str) -> None:
    await database.run(lambda: new_user("eve", "inactive", is_active=False))
    if is_ready:
        await ready()
    response = await ask(key)
    assert (response.status_code, response.content) == (401, f'{{"error":"{text}"}}'.encode())
    assert response.headers["WWW-Authenticate"] == "Token"
    if connection.vendor == "sqlite":
        assert used_a_thread() is not is_ready


async def test_token_made_or_taken_back_counts_at_once() -> None:
    await ready()
    assert (await ask()).status_code == 401
    await database.run(new_user)
    assert (await ask()).status_code == 200
    await database.run(Token.objects.all().delete)
    assert (await ask()).status_code == 401


async def test_many_at_once_are_told_apart() -> None:
    users = [await database.run(new_user, f"user{number}", f"{number:040}") for number in range(8)]
    await ready()
    answers = await asyncio.gather(*(ask(f"{number:040}") for number in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert {record.user_id for record in await records()} == {user.pk for user in users}


@sqlite_only
async def test_database_that_refuses_here_is_asked_in_a_thread() -> None:
    await database.run(new_user)
    await ready()
    driver = checking._tokens._own._connection.connection
    driver.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
    assert (await ask()).content == PONG
    assert used_a_thread()
    # Another connection is opened, and does.
    await ready()
    assert checking._tokens._own._connection.connection is not driver
    assert (await ask()).content == PONG
    assert not used_a_thread()


@sqlite_only
@pytest.mark.parametrize("error", [OperationalError("database is locked"), InterfaceError("misuse")])
async def test_refusal_that_passes_costs_a_thread_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    await database.run(new_user)
    await ready()
    kept = checking._tokens._own._connection
    with monkeypatch.context() as patch:
        patch.setattr(kept, "cursor", lambda: (_ for _ in ()).throw(error))
        assert (await ask()).content == PONG
    assert used_a_thread()
    await asyncio.to_thread(checking.close)
    assert (await ask()).content == PONG
    assert not used_a_thread()
    assert checking._tokens._own._connection is kept


async def test_database_that_is_away_is_told_as_ever() -> None:
    await ready()
    checking._tokens.close()
    with failing_statements(lambda sql: "authtoken_token" in sql):
        response = await ask()
    assert (response.status_code, response.content) == (503, b'{"error":"storage is not available"}')


async def test_sites_own_token_class_is_left_as_it_is(settings: Any) -> None:
    classes = ["rest_framework.authentication.TokenAuthentication", "tests.test_token_lookup.Own"]
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=classes)
    view = InvokeView(endpoint=conf.get_endpoint("default"))
    assert [type(each) for each in view.get_authenticators()] == [QuickTokenAuthentication, Own]
    assert QuickTokenAuthentication().authenticate_header(None) == "Token"


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", Token), ("get_model", lambda self: Token), ("authenticate_credentials", lambda self, key: None)],
)
def test_token_class_that_the_site_has_changed_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    assert type(tokens.quickened(TokenAuthentication())) is QuickTokenAuthentication
    monkeypatch.setattr(TokenAuthentication, name, value)
    assert type(tokens.quickened(TokenAuthentication())) is TokenAuthentication


# What is looked up here, and what is not


class Own(TokenAuthentication):  # type: ignore[misc]
    """May wait for anything."""


class Asks(BasePermission):  # type: ignore[misc]
    """May wait for anything."""


@pytest.mark.parametrize(
    ("authenticators", "permissions", "throttles", "expected"),
    [
        ([QuickTokenAuthentication], [], [], True),
        ([QuickTokenAuthentication], [IsAuthenticated, IsAdminUser, IsAuthenticatedOrReadOnly], [], True),
        ([QuickTokenAuthentication, QuickTokenAuthentication], [], [], True),
        ([], [], [], False),
        ([Own], [], [], False),
        # What a site's tests have in place of it.
        ([lambda: ForcedAuthentication(None, None)], [], [], False),
        ([QuickTokenAuthentication, SessionAuthentication], [], [], False),
        ([QuickTokenAuthentication], [IsAuthenticated, Asks], [], False),
        ([QuickTokenAuthentication], [], [UserRateThrottle], False),
    ],
)
def test_only_what_waits_for_nothing_else_is_done_here(
    authenticators: list[Any], permissions: list[Any], throttles: list[Any], expected: bool
) -> None:
    made = ([kind() for kind in kinds] for kinds in (authenticators, permissions, throttles))
    assert checking.only_looks_up(*made) is expected


def test_users_whose_making_the_site_hears_of_are_not_made_here() -> None:
    def hear(**_: Any) -> None:
        """May wait for anything."""

    for model in (get_user_model(), Token):
        post_init.connect(hear, sender=model)
        try:
            assert not checking.only_looks_up([QuickTokenAuthentication()], [], [])
        finally:
            post_init.disconnect(hear, sender=model)
    assert checking.only_looks_up([QuickTokenAuthentication()], [], [])


class Member(AbstractUser):
    """A user with fields and methods of the site's, of which none is asked here."""

    nickname = models.TextField()
    is_staff = models.BooleanField(default=True)

    class Meta:
        app_label = "invocations_tests"
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """May wait for anything."""


class Asked(Member):
    class Meta:
        app_label = "invocations_tests"
        abstract = True

    @property
    def is_active(self) -> bool:
        """May wait for anything."""
        return True


class Made(Member):
    class Meta:
        app_label = "invocations_tests"
        abstract = True

    @classmethod
    def from_db(cls, *args: Any) -> Any:
        """May wait for anything."""


class Service(AbstractBaseUser):
    is_staff = False

    class Meta:
        app_label = "invocations_tests"
        abstract = True


@pytest.mark.parametrize(
    ("model", "expected"),
    [(User, True), (Member, True), (Service, True), (AbstractBaseUser, True), (Asked, False), (Made, False)],
)
def test_user_whose_answers_are_the_sites_own_code_is_looked_up_in_a_thread(model: type, expected: bool) -> None:
    assert checking._is_plain(model) is expected


# The connection


@pytest.fixture
async def reader() -> Any:
    made = loop_reader.LoopReader(database.alias)
    with pytest.raises(NotHere):
        made.read(lambda: None)
    await settled()
    yield made
    made.close()


def names() -> list[str]:
    return [user.username for user in get_user_model().objects.all()]


@sqlite_only
async def test_reading_leaves_the_loop_guarded_and_without_a_connection(reader: loop_reader.LoopReader) -> None:
    await database.run(new_user)
    before = connections.all(initialized_only=True)
    assert reader.read(names) == ["ada"]
    assert connections.all(initialized_only=True) == before
    with pytest.raises(SynchronousOnlyOperation):
        names()


@sqlite_only
async def test_nothing_is_written_here(reader: loop_reader.LoopReader) -> None:
    with pytest.raises(NotHere):
        reader.read(new_user)
    assert await database.run(names) == []


@sqlite_only
async def test_what_is_raised_reaches_the_caller_and_what_another_database_says_does_not(
    reader: loop_reader.LoopReader,
) -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        reader.read(fail, ZeroDivisionError())
    for refused in (OperationalError("locked"), SynchronousOnlyOperation("elsewhere")):
        with pytest.raises(NotHere):
            reader.read(fail, refused)


@sqlite_only
async def test_connection_that_is_closed_while_it_is_opened_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop_reader.LoopReader(database.alias)
    opened: list[sqlite3.Connection] = []
    may_go_on = threading.Event()

    def suits(driver: sqlite3.Connection) -> bool:
        opened.append(driver)
        return may_go_on.wait(15)

    monkeypatch.setattr(made._own, "_suits", suits)
    with pytest.raises(NotHere):
        made.read(names)
    while not opened:
        await asyncio.sleep(0.001)
    made.close()
    may_go_on.set()
    await settled()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
    with pytest.raises(NotHere):
        made.read(names)
    await settled()
    assert made.read(names) == []
    await asyncio.to_thread(database.close)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[1].execute("SELECT 1")


@sqlite_only
async def test_reader_that_cannot_ask_is_sent_away_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loop_reader.LoopReader(database.alias)

    def send(function: Any) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(database, "send", send)
        with pytest.raises(NotHere):
            made.read(names)
    with pytest.raises(NotHere):
        made.read(names)
    await settled()
    assert made.read(names) == []
    made.close()


@sqlite_only
async def test_who_comes_while_another_reads_is_sent_away(reader: loop_reader.LoopReader) -> None:
    with pytest.raises(NotHere):
        reader.read(lambda: reader.read(names))
    assert reader.read(names) == []


@pytest.mark.parametrize(("mode", "expected"), [("WAL", True), ("DELETE", False), ("MEMORY", False)])
def test_only_a_database_whose_readers_do_not_wait_is_read_here(tmp_path: Path, mode: str, expected: bool) -> None:
    driver = sqlite3.connect(tmp_path / "other.sqlite3")
    driver.execute(f"PRAGMA journal_mode={mode}")
    assert loop_reader._writes_nothing(driver) is expected
    driver.close()
