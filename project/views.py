"""The site's start page: a playground that talks to the endpoints."""

from __future__ import annotations

import json

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from project.playground import describe_endpoints, may_play

# The page brings its own script and style from this host, and nothing else: attached images are data, and the one
# library that makes elements of text does it under the policy named here.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


@require_safe
def start_page(request: HttpRequest) -> HttpResponse:
    """Return the playground, to staff, or to everybody in ``DEBUG``; others may log in.

    Args:
        request: The request.
    """
    if may_play(request.user):
        config = {"endpoints": describe_endpoints(), "user": request.user.get_username()}
        response = render(request, "start.html", {"config": json.dumps(config)})
    elif request.user.is_authenticated:
        response = render(request, "not_for_you.html", status=403)
    else:
        response = redirect_to_login(request.get_full_path(), reverse("admin:login"))
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response["Cache-Control"] = "no-store"
    return response
