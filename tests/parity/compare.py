"""What is compared of the two hosts' answers to one request."""

from __future__ import annotations

from tests.parity.differences import OURS
from tests.parity.requests import Group, Request
from tests.parity.wire import Answer

_IDS = ("x-agent-invocation-id", "x-agent-session-id")


def our_settings(group: Group) -> dict[str, dict[str, object]]:
    """Return the ``INVOCATIONS`` with which we serve what the published host serves."""
    return {
        "default": {
            "TARGET": f"tests.parity.target.{group.target}",
            "CACHE_TARGET": group.is_instance,
            "UNSUPPORTED_OPTIONS": group.unsupported_options,
            "TRUST_ISOLATION_HEADERS": True,
            "AUTHENTICATION_CLASSES": [],
            "PERMISSION_CLASSES": [],
            "THROTTLE_CLASSES": [],
        }
    }


def problems(request: Request, theirs: Answer, ours: Answer) -> list[str]:
    """Return where our answer is not what it has to be: theirs, or what a deliberate difference says."""
    expected = OURS.get(request.name, (theirs.status, theirs.body))
    found = []
    if (ours.status, ours.body) != expected:
        found.append(f"{request.name}: {(ours.status, ours.body)} instead of {expected}")
    if request.name in OURS:
        if (theirs.status, theirs.body) == expected:
            found.append(f"{request.name}: the published host answers the same, so it is no difference any more")
        return found
    if ours.headers.get("content-type") != theirs.headers.get("content-type"):
        found.append(f"{request.name}: Content-Type {ours.headers.get('content-type')}")
    ids = {name: ours.headers[name] for name in _IDS if name in ours.headers}
    if ids != ({} if _was_refused_in_parsing(ours) else {name: theirs.headers[name] for name in _IDS}):
        found.append(f"{request.name}: {ids} instead of {theirs.headers}")
    is_stream = ours.headers.get("content-type", "").startswith("text/event-stream")
    if ours.headers.get("cache-control") != ("no-cache, no-transform" if is_stream else None):
        found.append(f"{request.name}: Cache-Control {ours.headers.get('cache-control')}")
    return found


def _was_refused_in_parsing(ours: Answer) -> bool:
    later = ("-controlled fields: ", "runtime options", "Workflow replies", "awaiting replies")
    return ours.status == 400 and not any(words in ours.body for words in later)
