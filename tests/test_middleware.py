"""The isolation middleware: where it acts, what it sets, and that it always resets."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings

from invocations_app.isolation import (
    IsolationKeys,
    get_current_call_id,
    get_current_isolation_keys,
    set_current_isolation_keys,
)
from invocations_app.middleware import IsolationKeysMiddleware

TRUSTING = {
    "default": {"TARGET": "tests.fakes.build_echo", "TRUST_ISOLATION_HEADERS": True},
    "public": {"TARGET": "tests.fakes.build_echo", "PATH": "public"},
}
KEYS = {
    "x-agent-user-isolation-key": "tenant:1/a",
    "x-agent-chat-isolation-key": "chat",
    "x-agent-foundry-call-id": "call-9",
}
EXPECTED = (IsolationKeys("tenant:1/a", "chat"), "call-9")


@pytest.fixture(autouse=True)
def _trusting():
    with override_settings(INVOCATIONS=TRUSTING):
        yield


def seen() -> tuple[IsolationKeys | None, str | None]:
    return get_current_isolation_keys(), get_current_call_id()


def call_sync(request: HttpRequest) -> Any:
    found: list[Any] = []

    def view(_: HttpRequest) -> HttpResponse:
        found.append(seen())
        return HttpResponse()

    IsolationKeysMiddleware(view)(request)
    return found[0]


async def call_async(request: HttpRequest) -> Any:
    found: list[Any] = []

    async def view(_: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        found.append(seen())
        return HttpResponse()

    await IsolationKeysMiddleware(view)(request)
    return found[0]


def raw_request(*headers: tuple[bytes, bytes], path: str = "/invocations/invoke") -> ASGIRequest:
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": list(headers)}
    return ASGIRequest(scope, __import__("io").BytesIO())


@pytest.mark.parametrize("path", ["/invocations", "/invocations/", "/invocations/invoke", "/invocations/x/events"])
async def test_keys_are_set_during_the_view_and_unset_afterwards(path):
    assert call_sync(RequestFactory().post(path, headers=KEYS)) == EXPECTED
    assert await call_async(AsyncRequestFactory().post(path, headers=KEYS)) == EXPECTED
    assert seen() == (None, None)


@pytest.mark.parametrize("path", ["/public/invoke", "/invocationsX/invoke", "/x/invocations/invoke", "/", "/readiness"])
async def test_untrusted_paths_leave_the_context_alone(path):
    assert call_sync(RequestFactory().post(path, headers=KEYS)) == (None, None)
    assert await call_async(AsyncRequestFactory().post(path, headers=KEYS)) == (None, None)


def test_the_script_name_does_not_count():
    request = RequestFactory(SCRIPT_NAME="/site").post("/invocations/invoke", headers=KEYS)
    assert request.path == "/site/invocations/invoke"
    assert call_sync(request) == EXPECTED


@pytest.mark.parametrize("headers", [{}, {"x-agent-user-isolation-key": "", "x-agent-chat-isolation-key": ""}])
async def test_absent_and_empty_headers_leave_the_keys_none(headers):
    assert call_sync(RequestFactory().post("/invocations/invoke", headers=headers)) == (None, None)
    assert await call_async(AsyncRequestFactory().post("/invocations/invoke", headers=headers)) == (None, None)


async def test_one_key_alone_is_enough():
    headers = {"x-agent-chat-isolation-key": "c"}
    assert call_sync(RequestFactory().post("/invocations", headers=headers)) == (IsolationKeys(None, "c"), None)


async def test_a_repeated_header_leaves_the_context_empty_and_reaches_the_view():
    line = (b"x-agent-user-isolation-key", b"a")
    assert await call_async(raw_request(line)) == (IsolationKeys("a"), None)
    assert await call_async(raw_request(line, line)) == (None, None)
    assert await call_async(raw_request(line, (b"x-agent-user-isolation-key", b"b"))) == (None, None)


async def test_a_header_over_256_characters_leaves_the_context_empty():
    name = "x-agent-user-isolation-key"
    assert call_sync(RequestFactory().post("/invocations", headers={name: "a" * 257})) == (None, None)
    assert call_sync(RequestFactory().post("/invocations", headers={name: "a" * 256})) == (
        IsolationKeys("a" * 256),
        None,
    )


async def test_bytes_beyond_ascii_are_read_as_latin_1():
    assert await call_async(raw_request((b"X-Agent-User-Isolation-Key", b"\xe9"))) == (IsolationKeys("é"), None)


async def test_underscores_do_not_stand_for_hyphens_over_asgi():
    assert await call_async(raw_request((b"x_agent_user_isolation_key", b"spoofed"))) == (None, None)


async def test_a_request_inside_another_one_does_not_inherit_its_keys():
    set_current_isolation_keys(IsolationKeys("outer"))
    assert await call_async(AsyncRequestFactory().post("/invocations/invoke")) == (None, None)
    assert get_current_isolation_keys() == IsolationKeys("outer")


async def test_an_exception_unsets_the_keys():
    def fail(_: HttpRequest) -> HttpResponse:
        assert seen() == EXPECTED
        raise ValueError("view")

    async def fail_async(_: HttpRequest) -> HttpResponse:
        assert seen() == EXPECTED
        raise ValueError("view")

    with pytest.raises(ValueError, match="view"):
        IsolationKeysMiddleware(fail)(RequestFactory().post("/invocations", headers=KEYS))
    assert seen() == (None, None)
    with pytest.raises(ValueError, match="view"):
        await IsolationKeysMiddleware(fail_async)(AsyncRequestFactory().post("/invocations", headers=KEYS))
    assert seen() == (None, None)


async def test_cancellation_unsets_the_keys():
    waiting = asyncio.Event()
    after: list[Any] = []

    async def view(_: HttpRequest) -> HttpResponse:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def request() -> None:
        try:
            await IsolationKeysMiddleware(view)(AsyncRequestFactory().post("/invocations", headers=KEYS))
        finally:
            after.append(seen())

    task = asyncio.ensure_future(request())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert after == [(None, None)]


async def test_concurrent_requests_never_see_each_others_keys():
    async def one(number: int) -> bool:
        headers = {"x-agent-user-isolation-key": f"user-{number}"}
        keys, _ = await call_async(AsyncRequestFactory().post("/invocations", headers=headers))
        return keys == IsolationKeys(f"user-{number}")

    assert all(await asyncio.gather(*(one(number) for number in range(50))))


async def test_async_middleware_stays_in_the_thread_of_the_loop():
    threads: list[int] = []

    async def view(_: HttpRequest) -> HttpResponse:
        threads.append(threading.get_ident())
        return HttpResponse()

    middleware = IsolationKeysMiddleware(view)
    assert iscoroutinefunction(middleware)
    await middleware(AsyncRequestFactory().post("/invocations", headers=KEYS))
    assert threads == [threading.get_ident()]


def test_sync_middleware_is_not_marked_as_a_coroutine_function():
    assert not iscoroutinefunction(IsolationKeysMiddleware(lambda request: HttpResponse()))


def sync_only(get_response):
    def middleware(request):
        return get_response(request)

    return middleware


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
async def test_keys_pass_sync_only_middleware_on_both_sides(before, after):
    found: list[Any] = []

    async def view(_: HttpRequest) -> HttpResponse:
        found.append(seen())
        found.append(await sync_to_async(seen)())
        return HttpResponse()

    chain = [f"{__name__}.sync_only"] * before
    chain.append("invocations_app.middleware.IsolationKeysMiddleware")
    chain += [f"{__name__}.sync_only"] * after
    handler = BaseHandler()
    handler._get_response_async = view
    handler._get_response = lambda request: __import__("asgiref.sync").sync.async_to_sync(view)(request)
    with override_settings(MIDDLEWARE=chain):
        handler.load_middleware(is_async=True)
    response = await handler._middleware_chain(AsyncRequestFactory().post("/invocations/invoke", headers=KEYS))
    assert response.status_code == 200
    assert found == [EXPECTED, EXPECTED]
    assert seen() == (None, None)
