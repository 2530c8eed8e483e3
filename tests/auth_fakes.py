"""Authentication, permissions, throttles and middleware that tests name by dotted path.

What each one saw or did is in `seen`; `fail_with` says what `Failing` and its
kind raise.
"""

from __future__ import annotations

import threading
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.contrib.auth import get_user_model
from django.http import HttpResponse
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.throttling import BaseThrottle, SimpleRateThrottle

seen: list[tuple[str, Any]] = []
fail_with: list[Exception] = []


def reset() -> None:
    """Forget everything that a test left."""
    seen.clear()
    fail_with.clear()


class NamedUser(BaseAuthentication):
    """The header ``x-user`` is the primary key of a user that need not exist; ``nobody`` is refused."""

    def authenticate(self, request: Any) -> Any:
        seen.append(("authenticate", threading.get_ident()))
        name = request.headers.get("x-user")
        if name is None:
            return None
        if name == "nobody":
            raise AuthenticationFailed("no such user")
        return get_user_model()(pk=int(name)), None


class NamedUserWithChallenge(NamedUser):
    def authenticate_header(self, request: Any) -> str:
        return 'Named realm="api"'


class BrokenChallenge(NamedUser):
    def authenticate_header(self, request: Any) -> str:
        raise RuntimeError("no challenge")


class Failing(BaseAuthentication):
    """Raises what the test has put down."""

    def authenticate(self, request: Any) -> Any:
        raise fail_with[0]


class FailingPermission(BasePermission):
    """Raises what the test has put down."""

    def has_permission(self, request: Any, view: Any) -> bool:
        raise fail_with[0]


class Nobody(BasePermission):
    """Lets nobody in."""

    message = "members only"

    def has_permission(self, request: Any, view: Any) -> bool:
        seen.append(("permission", threading.get_ident()))
        return False


class Everybody(BasePermission):
    """Lets everybody in, and notes that it was asked."""

    def has_permission(self, request: Any, view: Any) -> bool:
        seen.append(("permission", threading.get_ident()))
        return True


class AsyncNobody(BasePermission):
    message = "async members only"

    async def has_permission(self, request: Any, view: Any) -> bool:  # type: ignore[override]
        seen.append(("async permission", threading.get_ident()))
        return False


class AsyncEverybody(BasePermission):
    async def has_permission(self, request: Any, view: Any) -> bool:  # type: ignore[override]
        seen.append(("async permission", threading.get_ident()))
        return True


class Closed(BaseThrottle):
    """Lets nobody through, and says when to come back where `seconds` does."""

    seconds: float | None = 12.3

    def allow_request(self, request: Any, view: Any) -> bool:
        seen.append(("throttle", threading.get_ident()))
        return False

    def wait(self) -> float | None:
        return self.seconds


class ClosedForever(Closed):
    seconds = None


class OnceAnHour(SimpleRateThrottle):
    rate = "1/hour"
    scope = "once"

    def get_cache_key(self, request: Any, view: Any) -> str:
        return "once-an-hour"


def teapot(exc: Exception, context: Any) -> HttpResponse:
    """An exception handler of a site: nothing of ours may go through it."""
    return HttpResponse("<h1>teapot</h1>", status=418)


class _Middleware:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        assert iscoroutinefunction(get_response)
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        self.touch(request)
        return await self.get_response(request)

    def touch(self, request: Any) -> None:
        raise NotImplementedError


class ReadsBody(_Middleware):
    """Reads the raw body ahead of the view."""

    def touch(self, request: Any) -> None:
        seen.append(("body", bytes(request.body)))


class ReadsForm(_Middleware):
    """Parses the body as a form ahead of the view."""

    def touch(self, request: Any) -> None:
        seen.append(("form", dict(request.POST)))
