"""Workflows in the admin: the checkpoints of a session, what each holds, and the graph of an endpoint.

Pages of their own, linked from the session's, so that it costs them nothing.
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from invocations_app import conf
from invocations_app.admin import contents
from invocations_app.admin.base import ReadOnlyAdmin
from invocations_app.admin.checkpoints import contents_of, figures_of, get_checkpoint, list_checkpoints
from invocations_app.admin.graphs import Graph, NoWorkflow, can_draw, draw, load_graph
from invocations_app.conf import EndpointSettings
from invocations_app.models import InvocationRecord, SessionRecord
from invocations_app.storage.checkpoints import KEPT
from invocations_app.targets import known_kind

_TEMPLATES = "admin/invocations_app/workflow/"
# The picture is somebody's source made into a document: nothing of it may run or load.
_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class WorkflowPages(ReadOnlyAdmin):
    """The pages of sessions that are a workflow's."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages of checkpoints and graphs, ahead of the admin's own."""
        wrap = self.admin_site.admin_view
        name = "invocations_app_sessionrecord_"
        own = [
            path("<int:pk>/checkpoints/", wrap(require_GET(self.checkpoints_view)), name=f"{name}checkpoints"),
            path("<int:pk>/checkpoints/<int:row>/", wrap(require_GET(self.checkpoint_view)), name=f"{name}checkpoint"),
            path("graph/<str:alias>/", wrap(require_GET(self.graph_view)), name=f"{name}graph"),
            path("graph/<str:alias>/picture.svg", wrap(require_GET(self.picture_view)), name=f"{name}picture"),
        ]
        return [*own, *super().get_urls()]

    def has_workflow(self, session: SessionRecord) -> bool:
        """Return whether a session is a workflow's, in at most one query.

        Args:
            session: The session.
        """
        if session.message_count:
            # An agent's: a workflow keeps no messages here.
            return False
        endpoint = conf.get_endpoints().get(session.endpoint)
        kind = None if endpoint is None else known_kind(endpoint)
        # What it was when its checkpoints were written counts too.
        return kind == "workflow" or session.checkpoints.exists()

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show one session, with a way to its checkpoints if it is a workflow's."""
        context["has_workflow"] = self.has_workflow(context["original"])
        return super().render_change_form(request, context, *args, **kwargs)

    def checkpoints_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show the checkpoints of a session in order, and what each holds in figures."""
        session = self._session(request, pk)
        context = self.page(request, _("Checkpoints"), session) | {
            "entries": list_checkpoints(session),
            "kept": KEPT,
            "may_read": contents.may_read(request),
            "shows_invocations": self.may_view(request, InvocationRecord),
            "has_graph": session.endpoint in conf.get_endpoints(),
        }
        return TemplateResponse(request, _TEMPLATES + "checkpoints.html", context)

    def checkpoint_view(self, request: HttpRequest, pk: int, row: int) -> HttpResponse:
        """Show what one checkpoint holds, to those who may read it, and note who did."""
        session = self._session(request, pk)
        if not contents.may_read(request):
            raise PermissionDenied
        checkpoint = get_checkpoint(session, row)
        if checkpoint is None:
            raise Http404
        contents.log_read(request, [session], "Read a checkpoint.")
        parts, is_decoded = contents_of(checkpoint, session.endpoint)
        context = self.page(request, _("Checkpoint"), session) | {
            "checkpoint": checkpoint,
            "figures": figures_of(checkpoint.payload),
            "parts": parts,
            "is_decoded": is_decoded,
        }
        return TemplateResponse(request, _TEMPLATES + "checkpoint.html", context)

    def graph_view(self, request: HttpRequest, alias: str) -> HttpResponse:
        """Show the graph of an endpoint's workflow."""
        graph, problem = self._graph(self._endpoint(request, alias))
        context = self.page(request, _("Graph of %(endpoint)s") % {"endpoint": alias}) | {
            "alias": alias,
            "graph": graph,
            "problem": problem,
            "can_draw": can_draw(),
        }
        return TemplateResponse(request, _TEMPLATES + "graph.html", context)

    def picture_view(self, request: HttpRequest, alias: str) -> HttpResponse:
        """Answer the graph of an endpoint's workflow as a picture."""
        graph, _problem = self._graph(self._endpoint(request, alias))
        drawn = None if graph is None else draw(graph)
        if drawn is None:
            raise Http404
        headers = {"Content-Security-Policy": _PICTURE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HttpResponse(drawn, content_type="image/svg+xml", headers=headers)

    def _graph(self, endpoint: EndpointSettings) -> tuple[Graph | None, str]:
        """Return the graph, or what is said where there is none; why is for the log."""
        try:
            return load_graph(endpoint), ""
        except NoWorkflow:
            return None, _("The target of this endpoint is an agent: it has no graph.")
        except TimeoutError:
            return None, _("Building the workflow takes too long to show its graph.")
        # Whatever the site's factory or the framework raises: its text may hold anything.
        except Exception:
            return None, _("The workflow cannot be built at present; the log says why.")

    def _session(self, request: HttpRequest, pk: int) -> SessionRecord:
        if not self.has_view_permission(request):
            raise PermissionDenied
        found = self.get_queryset(request).defer("state").filter(pk=pk).first()
        if found is None:
            raise Http404
        session: SessionRecord = found
        return session

    def _endpoint(self, request: HttpRequest, alias: str) -> EndpointSettings:
        if not self.has_view_permission(request):
            raise PermissionDenied
        endpoint = conf.get_endpoints().get(alias)
        if endpoint is None:
            raise Http404
        return endpoint
