"""Tokens of Django REST framework, looked up by a statement that is put together once.

What is asked, what is refused and how is its own `TokenAuthentication`'s.
"""

from __future__ import annotations

import functools
from typing import Any

from rest_framework.authentication import TokenAuthentication

from invocations_app.storage.lookup import Lookup


class QuickTokenAuthentication(TokenAuthentication):
    """`TokenAuthentication` with another way to its rows."""

    def get_model(self) -> Any:
        """Return what is asked as the model would be: ``objects.select_related("user").get(key=…)``."""
        return _tokens()


def model() -> Any:
    """Return the model of the tokens, whose application need not be installed where nobody uses it."""
    from rest_framework.authtoken.models import Token

    return Token


def quickened(authenticator: Any) -> Any:
    """Return the quick one in place of DRF's own; any other, and one that the site has changed, as it is.

    Args:
        authenticator: What the endpoint's settings name.
    """
    if type(authenticator) is not TokenAuthentication or TokenAuthentication.model is not None:
        return authenticator
    asked = (getattr(TokenAuthentication, name) for name in ("get_model", "authenticate", "authenticate_credentials"))
    is_its_own = all(function.__module__ == TokenAuthentication.__module__ for function in asked)
    return QuickTokenAuthentication() if is_its_own else authenticator


class _Tokens:
    """As much of the model as `TokenAuthentication` uses."""

    def __init__(self) -> None:
        self._lookup = Lookup(model(), "key", "user")
        self.DoesNotExist = model().DoesNotExist
        self.objects = self

    def select_related(self, _: str) -> _Tokens:
        return self

    def get(self, key: str) -> Any:
        return self._lookup.get(key)


_tokens = functools.cache(_Tokens)
