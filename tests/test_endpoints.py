"""Several endpoints in one site: paths, names, settings of their own; and readiness."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from django.db import OperationalError
from django.test import AsyncClient
from django.urls import NoReverseMatch, Resolver404, resolve, reverse

from invocations_app import runs
from invocations_app.models import SessionRecord
from tests import fakes
from tests.client import endpoint, post, records, rows

in_database = pytest.mark.django_db(transaction=True)


def site(**endpoints: dict[str, Any]) -> dict[str, Any]:
    """Return an ``INVOCATIONS`` of open endpoints, by alias."""
    return {alias: endpoint(**keys)["default"] for alias, keys in endpoints.items()}


@in_database
async def test_each_endpoint_has_its_own_target_path_and_settings(settings):
    settings.INVOCATIONS = site(
        default={},
        pieces={"TARGET": "tests.fakes.build_pieces", "PATH": "api/pieces", "SESSION_MODE": "disabled"},
        small={"PATH": "small", "MAX_BODY_BYTES": 5, "AUTHENTICATION_CLASSES": ["tests.auth_fakes.NamedUser"]},
    )
    body = {"message": "hi", "session_id": "s1"}
    assert (await post(body)).content == b'{"response":"hi","session_id":"s1"}'
    assert (await post(body, "/api/pieces/invoke")).content == b'{"response":"hello","session_id":null}'
    assert (await post(body, "/small/invoke")).status_code == 413
    assert (await post(b"{}", "/small/invoke/", headers={"x-user": "nobody"})).status_code == 403
    assert [record.endpoint for record in await records()] == ["default", "pieces"]


@in_database
async def test_sessions_and_invocation_ids_of_two_endpoints_do_not_meet(settings):
    settings.INVOCATIONS = site(default={}, other={"PATH": "other"})
    for path in ("/invocations/invoke", "/other/invoke"):
        headers = {"x-agent-invocation-id": "i1"}
        response = await post({"message": f"at {path}", "session_id": "s1"}, path, headers=headers)
        assert response.status_code == 200
    assert [len(call.messages) for call in fakes.calls] == [1, 1]
    sessions = await rows(lambda: SessionRecord.objects.order_by("endpoint"))
    assert [(session.endpoint, session.session_id) for session in sessions] == [("default", "s1"), ("other", "s1")]
    assert len({session.key for session in sessions} | {session.opaque_id for session in sessions}) == 4
    await post({"message": "again", "session_id": "s1"}, "/other/invoke")
    assert fakes.calls[-1].texts == [
        ("user", "at /other/invoke"),
        ("assistant", "at  /other/invoke"),
        ("user", "again"),
    ]


@in_database
async def test_isolation_headers_are_trusted_by_the_endpoint_that_says_so(settings):
    settings.INVOCATIONS = site(default={}, trusting={"PATH": "trusting", "TRUST_ISOLATION_HEADERS": True})
    headers = {"x-agent-user-isolation-key": "ada", "x-agent-chat-isolation-key": "c1"}
    body = {"message": "/tool whoami {}", "session_id": "s1"}
    assert (await post(body, headers=headers)).json()["response"] == "nobody"
    assert (await post(body, "/trusting/invoke", headers=headers)).json()["response"] == "ada|c1"
    assert [record.user_key for record in await records()] == ["", "platform:ada"]


@in_database
async def test_the_agent_is_told_the_endpoint_it_runs_for(settings):
    settings.INVOCATIONS = site(default={}, other={"PATH": "other"})
    await post({"message": "a"}, "/other/invoke")
    [message] = fakes.calls[0].messages
    assert message.additional_properties["hosting"] == {
        "channel": "invocations",
        "endpoint": "other",
        "dialect": "channel",
    }


# Paths and names.


def test_urls_have_names_and_follow_the_path(settings):
    settings.INVOCATIONS = site(default={"PATH": "api/v1/agent"}, other={"PATH": "other"})
    assert reverse("invocations:default-invoke") == "/api/v1/agent/invoke"
    assert reverse("invocations:other-invoke") == "/other/invoke"
    assert reverse("invocations:readiness") == "/readiness"
    for path in ("/api/v1/agent/invoke", "/api/v1/agent/invoke/"):
        assert resolve(path).func.view_initkwargs == {"alias": "default", "dialect_name": "channel"}


def test_urls_follow_settings_that_change_and_change_back(settings):
    before = copy.deepcopy(settings.INVOCATIONS)
    assert reverse("invocations:default-invoke") == "/invocations/invoke"
    settings.INVOCATIONS = site(other={"PATH": "elsewhere"})
    assert reverse("invocations:other-invoke") == "/elsewhere/invoke"
    with pytest.raises(NoReverseMatch):
        reverse("invocations:default-invoke")
    with pytest.raises(Resolver404):
        resolve("/invocations/invoke")
    settings.INVOCATIONS = before
    assert reverse("invocations:default-invoke") == "/invocations/invoke"


async def test_a_changed_setting_holds_for_the_next_request(settings):
    for limit, status in ((1, 413), (100, 400), (1, 413)):
        settings.INVOCATIONS = endpoint(MAX_BODY_BYTES=limit)
        assert (await post(b"{{")).status_code == status


@in_database
@pytest.mark.parametrize("target", ["build_echo", "build_echo_async"])
async def test_a_kept_target_is_built_once_and_a_fresh_one_for_each_run(settings, target):
    settings.INVOCATIONS = site(default={"TARGET": f"tests.fakes.{target}"})
    for _ in range(3):
        assert (await post({"message": "a"})).status_code == 200
    assert len(fakes.built) == 1
    settings.INVOCATIONS = site(default={"TARGET": f"tests.fakes.{target}", "CACHE_TARGET": False})
    for _ in range(3):
        assert (await post({"message": "a"})).status_code == 200
    assert len(fakes.built) == 4


@in_database
async def test_a_target_may_be_an_instance(settings):
    settings.INVOCATIONS = site(default={"TARGET": "tests.fakes.custom_agent"})
    assert (await post({"message": "a"})).json()["response"] == "a"


@in_database
async def test_one_endpoints_broken_target_leaves_the_other_alone(settings):
    settings.INVOCATIONS = site(default={}, broken={"PATH": "broken", "TARGET": "tests.fakes.build_broken"})
    assert (await post({"message": "a"}, "/broken/invoke")).status_code == 500
    assert (await post({"message": "a"})).status_code == 200


# Readiness.


@in_database
async def test_a_site_that_can_serve_is_ready():
    for method, content in (("GET", b'{"status":"healthy"}'), ("HEAD", b"")):
        response = await AsyncClient().generic(method, "/readiness")
        assert (response.status_code, response.content) == (200, content)
        assert response.headers["Content-Type"] == "application/json"


@in_database
async def test_readiness_names_the_targets_that_cannot_be_built(settings):
    settings.INVOCATIONS = site(
        default={},
        b={"PATH": "b", "TARGET": "tests.fakes.build_broken"},
        a={"PATH": "a", "TARGET": "tests.fakes.build_nothing"},
    )
    response = await AsyncClient().get("/readiness")
    assert (response.status_code, response.content) == (
        503,
        b'{"status":"unhealthy","failing":["target:a","target:b"]}',
    )


@in_database
async def test_readiness_names_an_endpoint_whose_settings_are_wrong(settings):
    settings.INVOCATIONS = site(default={}) | {'gr\u00fc"n': {"TARGET": 5}}
    response = await AsyncClient().get("/readiness")
    assert response.status_code == 503
    assert response.content == '{"status":"unhealthy","failing":["target:gr\u00fc\\"n"]}'.encode()


async def test_readiness_names_a_database_that_is_away(settings, monkeypatch):
    def away() -> None:
        raise OperationalError("the database is away")

    monkeypatch.setattr(runs, "_ping", away)
    settings.INVOCATIONS = site(default={"TARGET": "tests.fakes.build_broken"})
    response = await AsyncClient().get("/readiness")
    assert response.status_code == 503
    assert response.content == b'{"status":"unhealthy","failing":["database","target:default"]}'


@in_database
async def test_a_target_that_comes_back_is_ready_again(settings):
    settings.INVOCATIONS = site(default={"TARGET": "tests.fakes.build_flaky"})
    fakes.switches["broken"] = "not yet"
    assert (await AsyncClient().get("/readiness")).status_code == 503
    fakes.switches.clear()
    assert (await post({"message": "a"})).status_code == 200
    assert (await AsyncClient().get("/readiness")).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_readiness_takes_no_other_method(settings, method):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    response = await AsyncClient(enforce_csrf_checks=True).generic(method, "/readiness", b"x")
    assert (response.status_code, response.content) == (405, b'{"error":"method not allowed"}')
    assert response.headers["Allow"] == "GET, HEAD"
