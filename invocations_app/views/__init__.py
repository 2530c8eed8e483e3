"""The endpoints' views: admit the caller, parse, start or look up a run, answer. No SQL and no agent code."""

from invocations_app.views.invocations import CancelView, EventsView, InvocationView
from invocations_app.views.invoke import InvokeView
from invocations_app.views.readiness import readiness

__all__ = ["CancelView", "EventsView", "InvocationView", "InvokeView", "readiness"]
