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


class _Tokens:
    """As much of the model as `TokenAuthentication` uses."""

    def __init__(self) -> None:
        # The application need not be installed where nobody uses it.
        from rest_framework.authtoken.models import Token

        self._lookup = Lookup(Token, "key", "user")
        self.DoesNotExist = Token.DoesNotExist
        self.objects = self

    def select_related(self, _: str) -> _Tokens:
        return self

    def get(self, key: str) -> Any:
        return self._lookup.get(key)


_tokens = functools.cache(_Tokens)
