"""Who may call: authentication, permissions, throttles, CSRF, and the order of the checks."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404
from django.test import AsyncClient
from rest_framework import exceptions as drf
from rest_framework.settings import api_settings

from invocations_app import views
from invocations_app.exceptions import InvocationRejected
from invocations_app.models import SessionRecord
from tests import auth_fakes, fakes
from tests.client import INVOKE, endpoint, post, post_raw, records, rows

in_database = pytest.mark.django_db(transaction=True)
PONG = b'{"response":"pong","session_id":null}'


@pytest.fixture(autouse=True)
def _fresh_auth_fakes() -> Iterator[None]:
    auth_fakes.reset()
    cache.clear()
    yield
    auth_fakes.reset()
    cache.clear()


def guarded(**classes: Any) -> dict[str, Any]:
    """Return settings with classes of `auth_fakes`, by the kind of class."""
    keys = {kind: [f"tests.auth_fakes.{name}" for name in names.split()] for kind, names in classes.items()}
    return endpoint(**{f"{kind.upper()}_CLASSES": names for kind, names in keys.items()})


def refusal(response: Any) -> tuple[int, bytes]:
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, response.content


# Authentication.


async def test_a_caller_who_must_sign_in_gets_401_where_the_first_class_has_a_challenge(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUserWithChallenge NamedUser", permission="Nobody")
    response = await post({"message": "pong"})
    assert refusal(response) == (401, b'{"error":"Authentication credentials were not provided."}')
    assert response.headers["WWW-Authenticate"] == 'Named realm="api"'


async def test_a_caller_who_must_sign_in_gets_403_where_the_first_class_has_no_challenge(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUser NamedUserWithChallenge", permission="Nobody")
    response = await post({"message": "pong"})
    assert refusal(response) == (403, b'{"error":"Authentication credentials were not provided."}')
    assert "WWW-Authenticate" not in response.headers


@pytest.mark.parametrize(("name", "status"), [("NamedUserWithChallenge", 401), ("NamedUser", 403)])
async def test_credentials_that_are_wrong_are_refused(settings, name, status):
    settings.INVOCATIONS = guarded(authentication=name)
    response = await post({"message": "pong"}, headers={"x-user": "nobody"})
    assert refusal(response) == (status, b'{"error":"no such user"}')
    assert response.headers.get("WWW-Authenticate") == ('Named realm="api"' if status == 401 else None)


async def test_a_user_who_is_not_allowed_gets_403_with_the_permissions_message(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUserWithChallenge", permission="Nobody")
    response = await post({"message": "pong"}, headers={"x-user": "7"})
    assert refusal(response) == (403, b'{"error":"members only"}')


async def test_async_permissions_are_asked(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUser", permission="AsyncEverybody AsyncNobody")
    response = await post({"message": "pong"}, headers={"x-user": "7"})
    assert refusal(response) == (403, b'{"error":"async members only"}')
    assert [name for name, _ in auth_fakes.seen] == ["authenticate", "async permission", "async permission"]


@in_database
async def test_sync_and_async_permissions_that_let_in_do(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUser", permission="Everybody AsyncEverybody")
    assert (await post({"message": "pong"}, headers={"x-user": "7"})).content == PONG


@in_database
async def test_what_an_authenticated_user_does_is_bound_to_the_user(settings):
    settings.INVOCATIONS = guarded(authentication="NamedUser")
    for user in ("7", "8"):
        await post({"message": f"from {user}", "session_id": "s1"}, headers={"x-user": user})
    assert [(record.user_key, record.user_id) for record in await records()] == [("user:7", 7), ("user:8", 8)]
    assert len(await rows(SessionRecord.objects.all)) == 2
    assert [len(call.messages) for call in fakes.calls] == [1, 1]


# Throttles.


async def test_a_throttled_caller_gets_429_and_when_to_come_back(settings):
    settings.INVOCATIONS = guarded(throttle="Closed")
    response = await post({"message": "pong"})
    assert refusal(response) == (429, b'{"error":"Request was throttled. Expected available in 13 seconds."}')
    assert response.headers["Retry-After"] == "13"


async def test_a_throttle_that_does_not_know_when_names_no_time(settings):
    settings.INVOCATIONS = guarded(throttle="ClosedForever")
    response = await post({"message": "pong"})
    assert refusal(response) == (429, b'{"error":"Request was throttled."}')
    assert "Retry-After" not in response.headers


@in_database
async def test_a_throttle_of_drf_counts_calls(settings):
    settings.INVOCATIONS = guarded(throttle="OnceAnHour")
    assert (await post({"message": "pong"})).content == PONG
    response = await post({"message": "pong"})
    assert response.status_code == 429
    assert 3590 <= int(response.headers["Retry-After"]) <= 3600


# What the classes raise.


async def test_the_sites_exception_handler_has_no_say(settings, monkeypatch):
    settings.INVOCATIONS = guarded(authentication="NamedUser", permission="Nobody")
    monkeypatch.setattr(api_settings, "EXCEPTION_HANDLER", auth_fakes.teapot, raising=False)
    monkeypatch.setattr(views.InvokeView, "get_exception_handler", lambda self: auth_fakes.teapot)
    assert refusal(await post({"message": "pong"}, headers={"x-user": "7"})) == (403, b'{"error":"members only"}')


RAISED: list[tuple[Exception, int, str]] = [
    (drf.ValidationError({"field": ["first", "second"]}), 400, "first"),
    (drf.ValidationError(["only"]), 400, "only"),
    (drf.PermissionDenied({"reason": {"deep": ["down"]}}), 403, "down"),
    (drf.APIException("broken"), 500, "broken"),
    (drf.NotFound(), 404, "Not found."),
    (drf.Throttled(wait=1.2), 429, "Request was throttled. Expected available in 2 seconds."),
    (PermissionDenied(), 403, "You do not have permission to perform this action."),
    (PermissionDenied("not you"), 403, "not you"),
    (Http404(), 404, "Not found."),
    (InvocationRejected("out of hours", 451), 451, "out of hours"),
    (SuspiciousOperation("strange"), 500, "Agent invocation failed."),
    (RuntimeError("secret"), 500, "Agent invocation failed."),
    (AttributeError("secret"), 500, "Agent invocation failed."),
    (OperationalError("gone"), 503, "storage is not available"),
    (InterfaceError("gone"), 503, "storage is not available"),
]


@pytest.mark.parametrize("kind", ["authentication", "permission"])
@pytest.mark.parametrize(("raised", "status", "text"), RAISED)
async def test_whatever_is_raised_is_answered_in_json(settings, kind, raised, status, text):
    settings.INVOCATIONS = guarded(**{kind: "FailingPermission" if kind == "permission" else "Failing"})
    auth_fakes.fail_with.append(raised)
    response = await post({"message": "pong"})
    assert refusal(response) == (status, f'{{"error":"{text}"}}'.encode())
    assert response.headers.get("Retry-After") == {503: "1", 429: "2"}.get(status)
    assert "x-agent-invocation-id" not in response.headers


async def test_what_is_unexpected_is_logged_with_its_traceback(settings, caplog):
    settings.INVOCATIONS = guarded(authentication="Failing")
    auth_fakes.fail_with.append(RuntimeError("the reason"))
    await post({"message": "pong"})
    assert "RuntimeError: the reason" in caplog.text


async def test_a_class_that_cannot_be_imported_is_500_in_json(settings):
    settings.INVOCATIONS = guarded(authentication="NoSuchClass")
    assert refusal(await post({"message": "pong"})) == (500, b'{"error":"Agent invocation failed."}')


async def test_a_challenge_that_cannot_be_made_is_500_in_json(settings, caplog):
    settings.INVOCATIONS = guarded(authentication="BrokenChallenge")
    response = await post({"message": "pong"}, headers={"x-user": "nobody"})
    assert refusal(response) == (500, b'{"error":"Agent invocation failed."}')
    assert "RuntimeError: no challenge" in caplog.text


# CSRF holds for callers known by their session cookie, and takes the token from the header only.

SESSION = "rest_framework.authentication.SessionAuthentication"
TOKEN = "x" * 32


async def signed_in() -> AsyncClient:
    client = AsyncClient(enforce_csrf_checks=True)
    user = await sync_to_async(get_user_model().objects.create_user)("ada")
    await client.aforce_login(user)
    client.cookies["csrftoken"] = TOKEN
    return client


@in_database
async def test_a_session_cookie_without_a_token_is_403(settings):
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=[SESSION])
    response = await post({"message": "pong"}, client=await signed_in())
    assert refusal(response) == (403, b'{"error":"CSRF Failed: CSRF token missing."}')


@in_database
async def test_a_session_cookie_with_the_token_in_the_header_is_let_in(settings):
    settings.INVOCATIONS = endpoint(
        AUTHENTICATION_CLASSES=[SESSION], PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"]
    )
    response = await post({"message": "pong"}, client=await signed_in(), headers={"x-csrftoken": TOKEN})
    assert response.content == PONG
    [record] = await records()
    assert record.user_key == f"user:{record.user_id}"


@in_database
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"csrfmiddlewaretoken=" + TOKEN.encode()),
        ("application/x-www-form-urlencoded", b"a=" + b"b" * 50_000),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n'
            + TOKEN.encode()
            + b"\r\n--b--\r\n",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken"),
        ("application/json", b"{"),
        ("application/json", b'{"csrfmiddlewaretoken":"' + TOKEN.encode() + b'"}'),
        ("application/json; charset=no-such-charset", b"{}"),
    ],
)
async def test_a_token_in_a_body_is_not_looked_for(settings, content_type, body):
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=[SESSION])
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    response = await post(body, client=await signed_in(), content_type=content_type)
    assert refusal(response) == (403, b'{"error":"CSRF Failed: CSRF token missing."}')


@in_database
async def test_the_sites_csrf_middleware_does_not_stand_in_the_way(settings):
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=[SESSION])
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    response = await post({"message": "pong"}, client=AsyncClient(enforce_csrf_checks=True))
    assert response.content == PONG


@in_database
async def test_a_caller_without_a_session_cookie_needs_no_token(settings):
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=[SESSION])
    assert (await post({"message": "pong"}, client=AsyncClient(enforce_csrf_checks=True))).content == PONG


# DRF's defaults.


@in_database
async def test_without_classes_those_of_rest_framework_hold(settings):
    settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_echo"}}
    credentials = base64.b64encode(b"ada:lovelace").decode()
    wrong = await post({"message": "pong"}, headers={"authorization": f"Basic {credentials}"})
    # SessionAuthentication comes first, and has no challenge.
    assert refusal(wrong) == (403, b'{"error":"Invalid username/password."}')
    await sync_to_async(get_user_model().objects.create_user)("ada", password="lovelace")
    right = await post({"message": "pong"}, headers={"authorization": f"Basic {credentials}"})
    assert right.content == PONG
    assert (await post({"message": "pong"})).content == PONG
    assert [record.user_id is None for record in await records()] == [False, True]


async def test_basic_authentication_first_gives_its_challenge(settings):
    settings.INVOCATIONS = endpoint(
        AUTHENTICATION_CLASSES=["rest_framework.authentication.BasicAuthentication", SESSION],
        PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"],
    )
    response = await post({"message": "pong"})
    assert refusal(response) == (401, b'{"error":"Authentication credentials were not provided."}')
    assert response.headers["WWW-Authenticate"] == 'Basic realm="api"'


@in_database
async def test_classes_themselves_may_stand_in_the_settings(settings):
    settings.INVOCATIONS = endpoint(
        AUTHENTICATION_CLASSES=[auth_fakes.NamedUser], PERMISSION_CLASSES=[auth_fakes.Everybody]
    )
    assert (await post({"message": "pong"}, headers={"x-user": "7"})).content == PONG


# Threads.


@in_database
@pytest.mark.parametrize("permissions", [[], ["rest_framework.permissions.AllowAny"]])
async def test_an_open_endpoint_costs_no_thread_hop(settings, monkeypatch, permissions):
    settings.INVOCATIONS = endpoint(PERMISSION_CLASSES=permissions)
    monkeypatch.setattr(views.checking, "sync_to_async", None)
    assert (await post({"message": "pong"})).content == PONG


@in_database
@pytest.mark.parametrize(
    "classes",
    [
        {"authentication": "NamedUser"},
        {"permission": "Everybody"},
        {"authentication": "NamedUser", "permission": "Everybody"},
    ],
)
async def test_checks_run_together_in_one_thread_that_is_not_the_loops(settings, monkeypatch, classes):
    settings.INVOCATIONS = guarded(**classes)
    hops = []

    def counted(function: Any, **how: Any) -> Any:
        hop = sync_to_async(function, **how)

        async def count(*args: Any) -> Any:
            hops.append(function.__name__)
            return await hop(*args)

        return count

    views.checking.close()
    monkeypatch.setattr(views.checking, "sync_to_async", counted)
    assert (await post({"message": "pong"}, headers={"x-user": "7"})).content == PONG
    threads = {thread for _, thread in auth_fakes.seen}
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert hops == ["_call"]
    views.checking.close()


# A body that somebody read before.


@in_database
@pytest.mark.parametrize("middleware", ["ReadsBody", "ReadsForm"])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
async def test_a_body_that_a_middleware_read_is_read_again(settings, middleware, content_type):
    settings.INVOCATIONS = endpoint()
    settings.MIDDLEWARE = [f"tests.auth_fakes.{middleware}"]
    assert (await post({"message": "pong"}, content_type=content_type)).content == PONG
    assert len(auth_fakes.seen) == 1


async def test_a_multipart_body_that_a_middleware_parsed_is_refused_in_json(settings):
    settings.INVOCATIONS = endpoint()
    settings.MIDDLEWARE = ["tests.auth_fakes.ReadsForm"]
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--b--\r\n'
    response = await post(body, content_type="multipart/form-data; boundary=b")
    assert refusal(response) == (400, b'{"error":"invalid json"}')
    assert auth_fakes.seen == [("form", {"a": ["b"]})]


async def test_a_body_over_the_limit_that_a_middleware_read_is_refused(settings):
    settings.INVOCATIONS = endpoint(MAX_BODY_BYTES=10)
    settings.MIDDLEWARE = ["tests.auth_fakes.ReadsBody"]
    assert refusal(await post(b"x" * 11)) == (413, b'{"error":"request body too large"}')


# The order of the checks.

ALL_WRONG = [("x-agent-user-isolation-key", "a"), ("x-agent-user-isolation-key", "b")]


def stages() -> Iterator[tuple[dict[str, Any], list[tuple[str, str]], bytes, int, str]]:
    """Yield requests that break every check from one on, each with the answer of the first that is broken."""
    size: dict[str, Any] = {"MAX_BODY_BYTES": 1}
    authentication = {"AUTHENTICATION_CLASSES": ["tests.auth_fakes.NamedUserWithChallenge"]}
    permission = {"PERMISSION_CLASSES": ["tests.auth_fakes.Nobody"]}
    throttle = {"THROTTLE_CLASSES": ["tests.auth_fakes.Closed"]}
    target = {"TARGET": "tests.fakes.build_broken"}
    hook = {"RUN_HOOK": "tests.test_admission.reject"}
    options = {"UNSUPPORTED_OPTIONS": "error"}
    mode = {"SESSION_MODE": "required"}
    rest = authentication | {"TRUST_ISOLATION_HEADERS": True} | permission | throttle | target | hook | options | mode
    nobody = [("x-user", "nobody")]
    someone = [("x-user", "7")]
    good = b'{"message":"a","options":{"temperature":1}}'
    yield size | rest, ALL_WRONG + nobody, b"{}", 413, "request body too large"
    yield rest, ALL_WRONG + nobody, b"{", 401, "no such user"
    yield rest, ALL_WRONG + someone, b"{", 400, "invalid isolation header"
    yield rest, someone, b"{", 403, "members only"
    rest = rest | {"PERMISSION_CLASSES": []}
    yield rest, someone, b"{", 429, "Request was throttled. Expected available in 13 seconds."
    rest = rest | {"THROTTLE_CLASSES": []}
    yield rest, someone, b"{", 400, "invalid json"
    yield rest, someone, good, 500, "The agent is not available."
    rest = rest | {"TARGET": "tests.fakes.build_custom"}
    yield rest, someone, good, 422, "not by this hook"
    rest = rest | {"RUN_HOOK": None}
    yield rest, someone, good, 422, "The hosted agent does not accept caller runtime options."
    rest = rest | {"UNSUPPORTED_OPTIONS": "warn"}
    yield rest, someone, good, 409, "a session is required"


def reject(invocation: Any, **kwargs: Any) -> Any:
    raise InvocationRejected("not by this hook")


@pytest.mark.parametrize(("keys", "lines", "body", "status", "text"), list(stages()))
async def test_the_first_broken_check_answers(settings, keys, lines, body, status, text):
    settings.INVOCATIONS = endpoint(**keys)
    response = await post_raw(body, lines, INVOKE)
    assert (response.status, response.content) == (status, f'{{"error":"{text}"}}'.encode())
    parsed = status not in {401, 403, 413, 429} and text not in {"invalid isolation header", "invalid json"}
    assert ("x-agent-invocation-id" in response.headers) is parsed


async def test_a_trusted_header_that_is_too_long_is_refused(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    for name in ("x-agent-user-isolation-key", "x-agent-chat-isolation-key", "x-agent-user-id"):
        response = await post({"message": "a"}, headers={name: "x" * 257})
        assert refusal(response) == (400, b'{"error":"invalid isolation header"}')


@in_database
async def test_headers_that_are_not_trusted_are_neither_checked_nor_used(settings):
    settings.INVOCATIONS = endpoint()
    lines = [*ALL_WRONG, ("x-agent-chat-isolation-key", "x" * 257), ("x-agent-user-id", "eve")]
    response = await post_raw(b'{"message":"/tool whoami {}"}', lines)
    assert response.content == b'{"response":"nobody","session_id":null}'
    [record] = await records()
    assert (record.user_key, record.chat_key) == ("", "")


@in_database
async def test_trusted_headers_win_over_the_user_and_bind_the_record(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True, AUTHENTICATION_CLASSES=["tests.auth_fakes.NamedUser"])
    headers = {"x-agent-user-isolation-key": "a:b", "x-agent-chat-isolation-key": "c/d", "x-user": "7"}
    response = await post({"message": "/tool whoami {}", "session_id": "s1"}, headers=headers)
    assert response.content == b'{"response":"a:b|c/d","session_id":"s1"}'
    [record] = await records()
    assert (record.user_key, record.chat_key, record.user_id) == ("platform:a:b", "c/d", 7)
