"""The URLs of all endpoints: ``path("", include("invocations_app.urls"))`` at the site's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connections, transaction
from django.urls import URLPattern, URLResolver, clear_url_caches, get_resolver, path

from invocations_app import conf
from invocations_app.conf import EndpointSettings
from invocations_app.views import CancelView, EventsView, InvocationView, InvokeView, readiness

app_name = "invocations"

urlpatterns: list[URLPattern] = []


def _non_atomic(view: Callable[..., Any]) -> Callable[..., Any]:
    """Take a view out of ``ATOMIC_REQUESTS``, with which Django answers no async view at all."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def _endpoint_urls(endpoint: EndpointSettings) -> list[URLPattern]:
    alias, base = endpoint.alias, endpoint.path
    invoke = _non_atomic(InvokeView.as_view(alias=alias, dialect_name="channel"))
    platform = _non_atomic(InvokeView.as_view(alias=alias, dialect_name="platform"))
    one = f"{base}/<str:invocation_id>"
    return [
        path(f"{base}/invoke", invoke, name=f"{alias}-invoke"),
        path(f"{base}/invoke/", invoke),
        path(base, platform, name=f"{alias}-platform"),
        path(f"{base}/", platform),
        path(one, _non_atomic(InvocationView.as_view(alias=alias)), name=f"{alias}-invocation"),
        path(f"{one}/events", _non_atomic(EventsView.as_view(alias=alias)), name=f"{alias}-events"),
        path(f"{one}/cancel", _non_atomic(CancelView.as_view(alias=alias)), name=f"{alias}-cancel"),
    ]


def reload() -> None:
    """Make the patterns anew from the settings, in place, and forget what Django made of the old ones."""
    urlpatterns[:] = [path("readiness", _non_atomic(readiness), name="readiness")]
    for endpoint in conf.get_endpoints().values():
        urlpatterns.extend(_endpoint_urls(endpoint))
    _forget(get_resolver())
    clear_url_caches()


def _forget(resolver: URLResolver) -> None:
    for child in resolver.__dict__.get("url_patterns", ()):
        if isinstance(child, URLResolver):
            _forget(child)
    resolver.__dict__.pop("url_patterns", None)
    resolver._populated = False  # type: ignore[attr-defined]


urlpatterns.append(path("readiness", _non_atomic(readiness), name="readiness"))
for _endpoint in conf.get_endpoints().values():
    urlpatterns.extend(_endpoint_urls(_endpoint))
