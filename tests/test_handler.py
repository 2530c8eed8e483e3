"""The endpoints' own handler: the answers are Django's, and threads are made for those who ask for them only."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.conf import settings as site_settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished, request_started
from django.db import connection
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import get_script_prefix, path, reverse
from django.utils.decorators import async_only_middleware, sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from pytest_django import Settings
from rest_framework.authentication import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed

from invocations_app import urls
from invocations_app.handler import DEFAULT_MIDDLEWARE, InvocationsHandler, by_path
from invocations_app.isolation import get_current_isolation_keys
from invocations_app.models import InvocationRecord
from invocations_app.storage import database
from tests import fakes
from tests.client import INVOKE, endpoint, records
from tests.durable import until_idle

in_database = pytest.mark.django_db(transaction=True)

Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """A request as a server hands it over."""

    body: bytes = b""
    path: str = INVOKE
    method: str = "POST"
    headers: Mapping[str, str] | None = None
    query: bytes = b""
    root_path: str = ""

    def scope(self) -> dict[str, Any]:
        lines = {"host": "testserver", **(self.headers or {})}
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": self.root_path,
            "scheme": "http",
            "query_string": self.query,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }


async def never() -> Any:
    return await asyncio.Event().wait()


async def ask(application: Application, asked: Asked, chunks: Sequence[bytes] | None = None) -> list[Any]:
    """Return the messages with which an application answers."""
    parts = list(chunks if chunks is not None else [asked.body])
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            return await never()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(asked.scope(), receive, send)
    return sent


def body_of(sent: Sequence[Any]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent[1:])


def as_json(**body: Any) -> bytes:
    return json.dumps(body).encode()


async def no_django(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"{scope.get('path', scope['type'])} went to Django's handler")


def own(*middleware: str) -> Application:
    """Return a site whose every request has to go to the endpoints' own handler."""
    return by_path(no_django, InvocationsHandler(middleware) if middleware else None)


# The same answers


def same(answer: str) -> str:
    """Return what two answers have in common: all but times and random ids."""
    answer = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "a time", answer)
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "an id", answer)


GIVEN = {"x-agent-invocation-id": "given"}
STEPS = {
    "json": [Asked(as_json(message="pong", session_id="s1"), headers=GIVEN)],
    "slash": [Asked(as_json(message="pong"), path=INVOKE + "/", headers=GIVEN)],
    "stream": [Asked(as_json(message="a b\nc", stream=True, session_id="s1"), headers=GIVEN)],
    "platform": [
        Asked(as_json(message="pong"), path="/invocations", headers=GIVEN, query=b"agent_session_id=s1"),
        Asked(as_json(message="pong", stream=True), path="/invocations/", headers={"x-agent-invocation-id": "other"}),
    ],
    "background": [Asked(as_json(message="pong", background=True), headers=GIVEN)],
    "invalid json": [Asked(b"{")],
    "empty body": [Asked(b"")],
    "wrong type": [Asked(as_json(message=5))],
    "unknown option": [Asked(as_json(message="pong", options={"model": "m"}))],
    "method": [Asked(method="GET"), Asked(method="PUT"), Asked(method="OPTIONS"), Asked(method="HEAD")],
    "too long": [Asked(b" " * (3 * 1024 * 1024))],
    "nothing there": [
        Asked(path="/invocations/nothing", method="GET"),
        Asked(path="/invocations/nothing/events", method="GET"),
        Asked(path="/invocations/nothing/cancel"),
    ],
    "an id used before": [Asked(as_json(message="a"), headers=GIVEN), Asked(as_json(message="b"), headers=GIVEN)],
    "events": [
        Asked(as_json(message="a b c", stream=True), headers=GIVEN),
        Asked(path="/invocations/given/events", method="GET"),
        Asked(path="/invocations/given/events", method="GET", headers={"last-event-id": "2"}),
        Asked(path="/invocations/given/events", method="GET", query=b"after=99"),
        Asked(path="/invocations/given/events", method="GET", query=b"after=x"),
    ],
    "cancel": [
        Asked(as_json(message="a"), headers=GIVEN),
        Asked(path="/invocations/given/cancel"),
        Asked(path="/invocations/given/cancel", method="GET"),
    ],
    "query that is no text": [Asked(as_json(message="a"), query=b"\xff")],
    "content length that is none": [Asked(as_json(message="a"), headers={**GIVEN, "content-length": "x"})],
    "host that is none": [Asked(as_json(message="a"), headers={**GIVEN, "host": "a b"})],
    "below a prefix": [
        Asked(as_json(message="a", background=True), path="/app" + INVOKE, headers=GIVEN, root_path="/app")
    ],
}


@in_database
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
async def test_answers_are_those_of_djangos_handler(settings: Settings, steps: list[Asked]) -> None:
    settings.MIDDLEWARE = ["invocations_app.middleware.IsolationKeysMiddleware"]
    settings.INVOCATIONS = endpoint()
    answers = []
    for application in (ASGIHandler(), own()):
        messages = []
        for step in steps:
            sent = await ask(application, step)
            # In how many pieces a stream comes is a matter of time.
            messages.append((same(repr(sent[0])), same(body_of(sent).decode()), sent[-1].get("more_body", False)))
        await until_idle()
        await database.run(lambda: InvocationRecord.objects.all().delete())
        answers.append(messages)
    assert answers[1] == answers[0]


@in_database
async def test_stored_answer_has_the_same_columns(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint()
    step = Asked(as_json(message="pong"), headers=GIVEN)
    await ask(own(), step)
    sent = await ask(own(), Asked(path="/invocations/given", method="GET"))
    body = json.loads(body_of(sent))
    assert (body["invocation_id"], body["status"], body["response"]) == ("given", "succeeded", "pong")


# Which requests are the handler's


@pytest.fixture
def seen_by_django() -> list[str]:
    return []


@pytest.fixture
def site(seen_by_django: list[str]) -> Application:
    """A site whose Django notes what it is handed."""

    async def django(scope: Any, receive: Any, send: Any) -> None:
        seen_by_django.append(scope.get("path", scope["type"]))

    return by_path(django)


@pytest.mark.parametrize(
    "asked",
    [
        Asked(path="/readiness", method="GET"),
        Asked(path="/admin/"),
        Asked(path="/"),
        Asked(path=""),
        Asked(path="/invocationsx/invoke"),
        Asked(path="/invocations/a/b/c"),
        Asked(path="/app/invocations/invoke"),
        Asked(path="/invocations//invoke"),
    ],
    ids=lambda asked: asked.path or "empty",
)
async def test_every_other_path_goes_to_django(site: Application, seen_by_django: list[str], asked: Asked) -> None:
    assert await ask(site, asked) == []
    assert seen_by_django == [asked.path]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_go_to_django(site: Application, seen_by_django: list[str], kind: str) -> None:
    await site({"type": kind}, never, never)
    assert seen_by_django == [kind]
    with pytest.raises(ValueError, match=f"Only HTTP is served here, not {kind}."):
        await InvocationsHandler()({"type": kind}, never, never)


@in_database
async def test_other_endpoints_paths_are_the_handlers_too(settings: Settings) -> None:
    settings.INVOCATIONS = {**endpoint(), "deep": {**endpoint(PATH="api/agent")["default"]}}
    sent = await ask(own(), Asked(as_json(message="pong"), path="/api/agent/invoke"))
    assert body_of(sent) == b'{"response":"pong","session_id":null}'


async def sites_own(request: Any, **kwargs: Any) -> HttpResponse:
    return HttpResponse(b"the site's own")


async def test_sites_own_view_below_an_endpoints_path_keeps_the_sites_middleware(
    settings: Settings, site: Application, seen_by_django: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.urls.urlpatterns", [path("invocations/report", sites_own), *urls.urlpatterns])
    settings.ROOT_URLCONF = "tests.urls"  # reads the patterns anew
    await ask(site, Asked(path="/invocations/report", method="GET"))
    assert seen_by_django == ["/invocations/report"]


@in_database
async def test_forced_script_name_is_left_out_of_the_path(settings: Settings) -> None:
    settings.FORCE_SCRIPT_NAME = "/app"
    sent = await ask(own(), Asked(as_json(message="pong"), path="/app" + INVOKE))
    assert body_of(sent) == b'{"response":"pong","session_id":null}'


@in_database
async def test_script_prefix_of_one_request_is_not_the_nexts(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint()
    application = own()
    step = Asked(as_json(message="a", background=True), headers={"x-agent-invocation-id": "one"})
    below = Asked(
        as_json(message="a", background=True),
        path="/app" + INVOKE,
        headers={"x-agent-invocation-id": "two"},
        root_path="/app",
    )
    locations = []
    for asked in (below, step, below):
        sent = await ask(application, asked)
        locations.append(dict(sent[0]["headers"])[b"Location"])
    assert locations == [b"/app/invocations/two", b"/invocations/one", b"/app/invocations/two"]
    await ask(application, step)
    assert get_script_prefix() == "/"
    assert reverse("invocations:default-invoke") == INVOKE


# The body


@in_database
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_body_may_come_in_chunks(size: int) -> None:
    body = as_json(message="gr\u00fc\u00df " * 50)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    sent = await ask(own(), Asked(), [b"", *chunks, b""])
    assert json.loads(body_of(sent))["response"] == "gr\u00fc\u00df " * 50


async def test_body_that_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(MAX_BODY_BYTES=1000)
    kept: list[int] = []
    create = InvocationsHandler.create_request

    def note(self: Any, scope: Any, body: Any) -> Any:
        kept.append(len(body.getvalue()))
        return create(self, scope, body)

    monkeypatch.setattr(InvocationsHandler, "create_request", note)
    sent = await ask(own(), Asked(), [b" " * 900] * 50)
    assert (sent[0]["status"], body_of(sent)) == (413, b'{"error":"request body too large"}')
    assert kept == [1001]


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_client_who_leaves_while_sending_its_body_is_not_answered(before: int) -> None:
    parts: list[Any] = [{"type": "http.request", "body": b"{", "more_body": True}] * before
    parts.append({"type": "http.disconnect"})

    async def receive() -> Any:
        return parts.pop(0)

    await own()(Asked().scope(), receive, no_django)
    assert fakes.calls == []


# Leaving; most of it is in test_disconnect


@in_database
async def test_client_who_leaves_cancels_nothing_outside_the_request(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script([fakes.gate(), "pong"])
    inbox = [{"type": "http.request", "body": as_json(message="hi")}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return inbox.pop(0)

    await own()(Asked().scope(), receive, no_django)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    fakes.gate().open()


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_cancellation_by_the_server_goes_on(settings: Settings, stream: bool) -> None:
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_scripted")
    fakes.script(["pi", fakes.gate(), "ng"])
    task = asyncio.ensure_future(ask(own(), Asked(as_json(message="hi", stream=stream))))
    await fakes.gate().wait_reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fakes.gate().open()


@in_database
@pytest.mark.parametrize("stream", [False, True])
async def test_what_send_raises_goes_on(stream: bool) -> None:
    parts = [{"type": "http.request", "body": as_json(message="hi", stream=stream)}]

    async def receive() -> Any:
        return parts.pop() if parts else await never()

    async def send(message: Any) -> None:
        raise OSError("the socket is gone")

    with pytest.raises(OSError, match="the socket is gone"):
        await own()(Asked().scope(), receive, send)


# Threads, connections and signals


@pytest.fixture
def threads_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that are started, but for the app's own for its database."""
    made: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        if not thread.name.startswith("invocations-db"):
            made.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    return made


@in_database
async def test_open_endpoint_makes_no_thread(settings: Settings, threads_made: list[str]) -> None:
    settings.INVOCATIONS = endpoint()
    application = own()
    for body in (as_json(message="a", session_id="s1"), as_json(message="a b", stream=True), b"{"):
        await ask(application, Asked(body))
    await ask(application, Asked(path="/invocations/nothing", method="GET"))
    assert threads_made == []


@in_database
async def test_signals_of_requests_are_not_sent(settings: Settings) -> None:
    heard: list[Any] = []

    def hear(**kwargs: Any) -> None:
        heard.append(kwargs["sender"])

    for signal in (request_started, request_finished):
        signal.connect(hear)
    try:
        await ask(own(), Asked(as_json(message="a")))
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(hear)
    assert heard == []


seen: list[Any] = []


class NameIsToken(TokenAuthentication):  # type: ignore[misc]
    """DRF's way of tokens, with a user's name in the place of the token."""

    def authenticate_credentials(self, key: str) -> Any:
        user = get_user_model().objects.filter(username=key).first()
        seen.append((connection.settings_dict["NAME"] is not None, connection, threading.current_thread()))
        if user is None:
            raise AuthenticationFailed("Invalid token.")
        return user, key


@pytest.fixture
def _seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@in_database
@pytest.mark.usefixtures("_seen")
@pytest.mark.parametrize("stream", [False, True])
async def test_token_is_looked_up_in_a_thread_that_the_next_caller_uses_too(settings: Settings, stream: bool) -> None:
    settings.INVOCATIONS = endpoint(
        TARGET="tests.fakes.build_scripted",
        AUTHENTICATION_CLASSES=[NameIsToken],
        PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"],
    )
    fakes.script([fakes.gate(), "pong"], ["again"])
    user = await sync_to_async(get_user_model().objects.create_user)("ada")
    asked = Asked(as_json(message="hi", stream=stream), headers={"authorization": "Token ada"})
    task = asyncio.ensure_future(ask(own(), asked))
    await fakes.gate().wait_reached()
    # The answer is still open.
    [(_, _, thread)] = seen
    assert thread is not threading.main_thread()
    assert b"again" in body_of(await ask(own(), asked))
    # No thread and no connection for each open stream.
    assert len(seen) == 2
    assert all(other.is_alive() and other.name.startswith("invocations-check") for _, _, other in seen)
    fakes.gate().open()
    assert b"pong" in body_of(await task)
    assert [record.user_id for record in await records()] == [user.pk] * 2
    refused = await ask(own(), Asked(as_json(message="hi"), headers={"authorization": "Token eve"}))
    assert (refused[0]["status"], body_of(refused)) == (401, b'{"error":"Invalid token."}')


SESSION = "rest_framework.authentication.SessionAuthentication"
TOKEN = "x" * 32


async def cookies_of(name: str) -> str:
    client = AsyncClient()
    await client.aforce_login(await sync_to_async(get_user_model().objects.create_user)(name))
    return f"{site_settings.SESSION_COOKIE_NAME}={client.cookies[site_settings.SESSION_COOKIE_NAME].value}"


@in_database
async def test_user_who_is_logged_in_is_known(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(
        AUTHENTICATION_CLASSES=[SESSION], PERMISSION_CLASSES=["rest_framework.permissions.IsAuthenticated"]
    )
    cookie = await cookies_of("ada")
    both = {"cookie": f"{cookie}; csrftoken={TOKEN}", "x-csrftoken": TOKEN}
    answers = []
    for headers in (
        both,
        {"cookie": f"{cookie}; csrftoken={TOKEN}"},
        {},
        {**both, "cookie": f"sessionid=none; csrftoken={TOKEN}"},
    ):
        step = Asked(as_json(message="pong"), headers=headers)
        answers.append([body_of(await ask(application, step)) for application in (ASGIHandler(), own())])
    assert [one == other for one, other in answers] == [True] * 4
    assert answers[0][0] == b'{"response":"pong","session_id":null}'
    assert answers[1][0] == b'{"error":"CSRF Failed: CSRF token missing."}'
    assert answers[2][0] == answers[3][0] == b'{"error":"Authentication credentials were not provided."}'
    keys = {(record.user_key == f"user:{record.user_id}", record.user_id is None) for record in await records()}
    assert keys == {(True, False)}


@in_database
async def test_site_that_logs_nobody_in_has_no_users(settings: Settings, threads_made: list[str]) -> None:
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=[SESSION])
    cookie = await cookies_of("ada")
    settings.MIDDLEWARE = []
    await ask(own(), Asked(as_json(message="pong"), headers={"cookie": cookie}))
    assert [record.user_id for record in await records()] == [None]


@in_database
async def test_isolation_headers_reach_the_run(settings: Settings) -> None:
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    step = Asked(as_json(message="/tool whoami {}"), headers={"x-agent-user-isolation-key": "alice"})
    assert b"alice|" in body_of(await ask(own(), step))
    assert get_current_isolation_keys() is None


# Middleware of a site's own


@sync_only_middleware
def sync_only(get_response: Any) -> Any:
    return get_response


@async_only_middleware
def unused(get_response: Any) -> Any:
    raise MiddlewareNotUsed


@async_only_middleware
def nothing(get_response: Any) -> None:
    return None


def claims_to_be_async(get_response: Any) -> Any:
    return lambda request: get_response(request)


claims_to_be_async.async_capable = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sync_only", "claims_to_be_async"])
def test_sync_only_middleware_is_refused(name: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        InvocationsHandler([*DEFAULT_MIDDLEWARE, f"tests.test_handler.{name}"])
    text = f"The middleware 'tests.test_handler.{name}' is sync only: it would cost a thread a request."
    assert str(refused.value) == text


def test_middleware_that_is_none_is_refused() -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"The middleware factory 'tests.test_handler.nothing' returned None."
    ):
        InvocationsHandler(["tests.test_handler.nothing"])


@in_database
async def test_middleware_that_is_not_used_is_left_out() -> None:
    sent = await ask(own("tests.test_handler.unused", *DEFAULT_MIDDLEWARE), Asked(as_json(message="pong")))
    assert body_of(sent) == b'{"response":"pong","session_id":null}'


class Layer:
    """Notes its place, and answers what the test says."""

    sync_capable = False
    async_capable = True
    name = "outer"

    def __init__(self, get_response: Any) -> None:
        from asgiref.sync import markcoroutinefunction

        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        seen.append(f"{self.name} in")
        if request.headers.get("x-break") == self.name:
            raise RuntimeError("the middleware is broken")
        response = await self.get_response(request)
        seen.append(f"{self.name} out")
        response["x-layer"] = response.get("x-layer", "") + self.name
        return response

    async def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> Any:
        seen.append(f"{self.name} view {view.view_class.__name__}")
        return HttpResponse(b"a view's place") if request.headers.get("x-view") == self.name else None

    def process_exception(self, request: Any, error: Exception) -> Any:
        seen.append(f"{self.name} exception {error}")
        return HttpResponse(b"saved", status=418) if request.headers.get("x-save") == self.name else None


class Inner(Layer):
    name = "inner"


LAYERS = ("tests.test_handler.Layer", "tests.test_handler.Inner", *DEFAULT_MIDDLEWARE)


@in_database
@pytest.mark.usefixtures("_seen")
async def test_middleware_is_called_in_the_order_of_the_list() -> None:
    sent = await ask(own(*LAYERS), Asked(as_json(message="pong")))
    assert body_of(sent) == b'{"response":"pong","session_id":null}'
    assert dict(sent[0]["headers"])[b"x-layer"] == b"innerouter"
    views = ["outer view InvokeView", "inner view InvokeView"]
    assert seen == ["outer in", "inner in", *views, "inner out", "outer out"]


@pytest.mark.usefixtures("_seen")
async def test_process_view_may_answer() -> None:
    sent = await ask(own(*LAYERS), Asked(as_json(message="pong"), headers={"x-view": "inner"}))
    assert body_of(sent) == b"a view's place"
    assert fakes.calls == []


@pytest.mark.usefixtures("_seen")
@pytest.mark.parametrize("saver", ["inner", "outer"])
async def test_process_exception_may_answer(monkeypatch: pytest.MonkeyPatch, saver: str) -> None:
    async def broken(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the view is broken")

    monkeypatch.setattr("invocations_app.views.InvokeView.async_dispatch", broken)
    sent = await ask(own(*LAYERS), Asked(as_json(message="pong"), headers={"x-save": saver}))
    assert (sent[0]["status"], body_of(sent)) == (418, b"saved")


@pytest.mark.usefixtures("_seen")
@pytest.mark.parametrize("name", ["outer", "inner"])
async def test_broken_middleware_is_answered_as_by_djangos_handler(settings: Settings, name: str) -> None:
    """The site's own 500: what is not the app's is not answered in its name."""
    settings.MIDDLEWARE = list(LAYERS[:2])
    step = Asked(as_json(message="pong"), headers={"x-break": name})
    by_django, ours = [await ask(application, step) for application in (ASGIHandler(), own(*LAYERS))]
    assert ours == by_django
    assert ours[0]["status"] == 500
    assert b"the middleware is broken" not in body_of(ours)


class UsesDatabase(MiddlewareMixin):
    """As Django's own middleware: sync inside, called in a thread."""

    def process_request(self, request: Any) -> None:
        seen.append((get_user_model().objects.count(), connection, threading.current_thread()))


@in_database
@pytest.mark.usefixtures("_seen")
async def test_middleware_that_is_sync_inside_gets_a_thread_that_ends_with_its_connection() -> None:
    sent = await ask(own("tests.test_handler.UsesDatabase", *DEFAULT_MIDDLEWARE), Asked(as_json(message="pong")))
    assert body_of(sent) == b'{"response":"pong","session_id":null}'
    [(count, used, thread)] = seen
    assert count == 0
    assert not thread.is_alive()
    assert used.__dict__.get("connection") is None
    assert len(SyncToAsync.context_to_thread_executor) == 0


# Log lines


@in_database
@pytest.mark.parametrize(
    ("asked", "level"),
    [
        (Asked(b"{"), logging.WARNING),
        (Asked(path="/invocations/nothing", method="GET"), logging.WARNING),
        (Asked(as_json(message="a", session_id="s1")), logging.ERROR),
        (Asked(as_json(message="a", stream=True)), None),
    ],
)
async def test_log_lines_are_those_of_djangos_handler(
    settings: Settings, caplog: pytest.LogCaptureFixture, asked: Asked, level: int | None
) -> None:
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    settings.MIDDLEWARE = list(DEFAULT_MIDDLEWARE)
    lines = []
    for application in (ASGIHandler(), own()):
        caplog.clear()
        await ask(application, asked)
        found = [record for record in caplog.records if record.name == "django.request"]
        lines.append([(record.levelno, record.getMessage(), record.status_code) for record in found])  # type: ignore[attr-defined]
    assert lines[1] == lines[0]
    assert len(lines[1]) == 1
    assert level is None or lines[1][0][0] == level


async def test_log_of_an_error_does_not_hold_the_loop_up(settings: Settings) -> None:
    """Django's own logging sends a mail for one."""
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    threads: list[threading.Thread] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            threads.append(threading.current_thread())

    handler = Handler()
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        await ask(own(), Asked(as_json(message="a")))
    finally:
        logger.removeHandler(handler)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
