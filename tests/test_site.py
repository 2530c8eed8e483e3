"""The demonstration site as a browser and an adopter meet it."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from project.static_files import StaticFilesMiddleware
from scripts.demo_check import running_demo

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "project" / "static" / "project" / "vendor"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def site() -> Iterator[httpx.Client]:
    with running_demo() as url, httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        yield client


def test_start_page_offers_the_endpoints_and_brings_no_inline_script(site: httpx.Client) -> None:
    page = site.get("/")
    assert page.status_code == 200
    config = re.search(r'data-config="([^"]*)"', page.text)
    assert config is not None
    told = json.loads(html.unescape(config[1]))
    assert [(one["alias"], one["kind"], one["invoke"]) for one in told["endpoints"]] == [
        ("default", "agent", "/invocations/invoke"),
        ("announcement", "workflow", "/announcement/invoke"),
    ]
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    )
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=", page.text) == []


def test_every_file_of_the_start_page_is_served(site: httpx.Client) -> None:
    files = re.findall(r'(?:href|src)="(/static/[^"]+)"', site.get("/").text)
    assert len(files) == 4
    for name in files:
        answer = site.get(name)
        assert (answer.status_code, bool(answer.content)) == (200, True), name
        if name.endswith("js"):
            assert answer.headers["content-type"].startswith("text/javascript"), name
            imported = re.findall(r'^(?:import|export) .*from "([^"]+)";$', answer.text, re.M)
            files += [path for module in imported if (path := urljoin(name, module)) not in files]
    assert any(name.endswith("marked.esm.js") for name in files)
    assert site.get("/static/admin/css/base.css").status_code == 200
    assert site.get("/static/nothing.js").status_code == 404
    assert site.get("/favicon.ico").headers["location"] == "/static/project/icon.svg"


def test_vendored_files_are_those_of_their_table() -> None:
    table = (VENDOR / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", table, re.M))
    files = {str(path.relative_to(VENDOR)): path for path in VENDOR.glob("*/*js")}
    assert told == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    for name, path in files.items():
        version = re.search(rf"{path.parent.name} (\d+\.\d+\.\d+)", table)
        assert version is not None
        assert version[1] in path.read_text(encoding="utf-8")[:400], name
        assert (path.parent / "LICENSE").exists()


def test_unchanged_static_file_is_not_sent_again(site: httpx.Client) -> None:
    first = site.get("/static/project/start.js")
    again = site.get("/static/project/start.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_demo_admin_sees_the_session_of_a_turn(site: httpx.Client) -> None:
    site.post("/invocations/invoke", json={"message": "hello", "session_id": "seen-in-admin"}).raise_for_status()
    with httpx.Client(base_url=site.base_url, trust_env=False, follow_redirects=True) as browser:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/admin/login/").text)
        assert token is not None
        form = {"username": "admin", "password": "admin", "csrfmiddlewaretoken": token[1], "next": "/admin/"}
        assert browser.post("/admin/login/", data=form).url.path == "/admin/"
        assert "seen-in-admin" in browser.get("/admin/invocations_app/sessionrecord/").text


def test_logged_in_caller_needs_the_token_that_the_page_carries(site: httpx.Client) -> None:
    with httpx.Client(base_url=site.base_url, trust_env=False, follow_redirects=True) as browser:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/admin/login/").text)
        assert token is not None
        form = {"username": "admin", "password": "admin", "csrfmiddlewaretoken": token[1]}
        browser.post("/admin/login/", data=form)
        carried = re.search(r'data-csrf="(\w+)"', browser.get("/").text)
        assert carried is not None
        body = {"message": "hello"}
        assert browser.post("/invocations/invoke", json=body).status_code == 403
        headers = {"X-CSRFToken": carried[1]}
        assert browser.post("/invocations/invoke", json=body, headers=headers).status_code == 200


def test_run_hook_refuses_a_long_text(site: httpx.Client) -> None:
    answer = site.post("/invocations/invoke", json={"message": "x" * 20_001})
    assert answer.status_code == 422
    assert answer.json() == {"error": "'message' has 20001 characters, 20000 are allowed"}


@override_settings(DEBUG=True, STATICFILES_DIRS=[ROOT / "project" / "static"])
def test_static_files_are_served_over_wsgi_too() -> None:
    middleware = StaticFilesMiddleware(lambda request: HttpResponse("the rest"))
    served = middleware(RequestFactory().get("/static/project/icon.svg"))
    assert isinstance(served, HttpResponse)
    assert served.content == (ROOT / "project" / "static" / "project" / "icon.svg").read_bytes()
    for path in ("/static/nothing.js", "/else"):
        rest = middleware(RequestFactory().get(path))
        assert isinstance(rest, HttpResponse)
        assert rest.content == b"the rest"


def test_lines_to_copy_are_marked() -> None:
    marked = re.compile(r"# >>> copy.*?\n(.*?)# <<< copy", re.DOTALL)
    settings = "".join(marked.findall((ROOT / "project" / "settings.py").read_text(encoding="utf-8")))
    assert '"invocations_app",' in settings
    assert "INVOCATIONS = {" in settings
    urls = marked.findall((ROOT / "project" / "urls.py").read_text(encoding="utf-8"))
    assert [line.strip() for line in urls] == ['path("", include("invocations_app.urls")),']
