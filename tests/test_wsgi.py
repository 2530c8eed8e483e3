"""Over WSGI an endpoint answers plain JSON; streams need an ASGI server."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import setup_testing_defaults

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client
from pytest_django import Settings

from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.runs.host import live_runs
from tests import fakes
from tests.server import INVOKE, SocketCall

pytestmark = pytest.mark.django_db(transaction=True)
NEEDS_ASGI = b'{"error":"streams and background need an ASGI server"}'


@pytest.fixture(autouse=True)
def _nothing_left(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert not live_runs()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("invocations-run")]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def post(body: Any, client: Client | None = None) -> Any:
    return (client or Client()).post(INVOKE, json.dumps(body), content_type="application/json")


def test_plain_json_works() -> None:
    response = post({"message": "ping pong", "session_id": "s1"})
    assert (response.status_code, response.content) == (200, b'{"response":"ping pong","session_id":"s1"}')
    assert InvocationRecord.objects.get().status == "succeeded"


def test_second_turn_remembers_the_first() -> None:
    post({"message": "one", "session_id": "s1"})
    post({"message": "two", "session_id": "s1"})
    assert fakes.calls[-1].texts == [("user", "one"), ("assistant", "one"), ("user", "two")]
    assert SessionRecord.objects.get().message_count == 4


@pytest.mark.parametrize("sync", [False, True], ids=["", "sync middleware"])
def test_stream_is_refused_before_it_begins(settings: Settings, sync: bool, caplog: pytest.LogCaptureFixture) -> None:
    if sync:
        settings.MIDDLEWARE = ["tests.sync_middleware.SyncOnlyMiddleware", *settings.MIDDLEWARE]
    response = post({"message": "hi", "stream": True, "session_id": "s1"})
    assert (response.status_code, response.content) == (501, NEEDS_ASGI)
    assert response["Content-Type"] == "application/json"
    assert not InvocationRecord.objects.exists()
    assert not SessionRecord.objects.exists()
    assert fakes.calls == []
    caplog.clear()


def ask_for_a_stream(invocation: Any, *, target: Any, request: Any) -> Any:
    from dataclasses import replace

    return replace(invocation, stream=not invocation.stream)


def test_what_counts_is_what_the_run_hook_made_of_it(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.INVOCATIONS = {
        "default": {"TARGET": "tests.fakes.build_echo", "RUN_HOOK": "tests.test_wsgi.ask_for_a_stream"}
    }
    assert post({"message": "hi"}).status_code == 501
    assert post({"message": "hi", "stream": True}).content == b'{"response":"hi","session_id":null}'
    caplog.clear()


@pytest.mark.parametrize("cache", [True, False])
def test_target_is_entered_and_left_in_the_loop_of_the_request(settings: Settings, cache: bool) -> None:
    settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_managed", "CACHE_TARGET": cache}}
    for _ in range(2):
        assert post({"message": "hi"}).content == b'{"response":"hi","session_id":null}'
    assert fakes.managed_noted() == ["enter", "leave"] * 2


def test_failure_is_json(caplog: pytest.LogCaptureFixture, settings: Settings) -> None:
    settings.INVOCATIONS = {"default": {"TARGET": "tests.fakes.build_scripted"}}
    fakes.script([RuntimeError("no")])
    response = post({"message": "hi"})
    assert (response.status_code, response.content) == (500, b'{"error":"Agent invocation failed."}')
    caplog.clear()


def test_handler_alone_answers() -> None:
    body = json.dumps({"message": "hi"}).encode()
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": INVOKE,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        started.append((status, dict(headers)))

    response = WSGIHandler()(environ, start_response)
    assert b"".join(response) == b'{"response":"hi","session_id":null}'
    assert started[0][0] == "200 OK"
    assert started[0][1]["Content-Type"] == "application/json"
    response.close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_server_on_a_socket_answers() -> None:
    with make_server("127.0.0.1", 0, WSGIHandler(), handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            plain = SocketCall(server.server_port, INVOKE, b'{"message":"hi"}')
            assert plain.rest() == b'{"response":"hi","session_id":null}'
            streamed = SocketCall(server.server_port, INVOKE, b'{"message":"hi","stream":true}')
            assert streamed.rest() == NEEDS_ASGI
            assert streamed.status == 501
            plain.close()
            streamed.close()
        finally:
            server.shutdown()
            thread.join()
