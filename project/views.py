"""The site's start page: a form that talks to an endpoint and shows what it answers."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from invocations_app.conf import get_endpoints

# The page brings its own script and style from this host, and nothing else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def start_page(request: HttpRequest) -> HttpResponse:
    """Return the page, with the endpoints of this site to choose from."""
    endpoints = [{"alias": alias, "url": reverse(f"invocations:{alias}-invoke")} for alias in get_endpoints()]
    response = render(request, "start.html", {"endpoints": endpoints})
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
