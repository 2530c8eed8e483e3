"""What templates of the admin take: the overview, for those who may view invocations."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import Context
from django.utils import timezone

from invocations_app.admin import charts, display, overview
from invocations_app.admin.overview import Span
from invocations_app.models import InvocationRecord

register = template.Library()

register.filter("about", display.about)
register.filter("begin_of", charts.begin_of)
register.filter("whole", display.whole)


@register.inclusion_tag("admin/invocations_app/overview.html", takes_context=True)
def invocations_overview(context: Context) -> dict[str, Any]:
    """Show the overview; nothing to those who may not view invocations in this admin.

    Args:
        context: That of an index page of the admin: its ``app_list`` tells what the reader may do on that site.
    """
    listed = [model for app in context.get("app_list") or () for model in app["models"]]
    for entry in listed:
        if entry["model"] is InvocationRecord and entry["perms"].get("view"):
            return {"parts": overview.read(timezone.now()), "list_url": entry["admin_url"]}
    return {"parts": []}


@register.inclusion_tag("admin/invocations_app/chart.html")
def invocations_chart(span: Span, kind: str, *numbers: int) -> dict[str, Any]:
    """Show a small chart.

    Args:
        span: What is shown.
        kind: ``runs`` or ``durations``.
        *numbers: Those of part and span: the ids of its texts are the only ones of the page.
    """
    made = charts.runs(span) if kind == "runs" else charts.durations(span)
    chart_id = "-".join(["invocations", kind, *map(str, numbers)])
    return {"chart": made, "id": chart_id, "width": charts.WIDTH, "height": charts.HEIGHT}
