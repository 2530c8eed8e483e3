"""The site's ``REDACTOR``: what the admin shows or exports of contents goes through it, string by string."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from invocations_app import conf

logger = logging.getLogger("invocations_app.admin")

# A picture or a file in a text. Of base64 white space is taken too: it may be broken into lines.
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:[^,\s]*;base64,[\w+/=%\s-]*|(?:;[^,\s]*)?,\S*)", re.IGNORECASE)


class Redactor:
    """Contents as the site lets people see them; without a ``REDACTOR`` as they are.

    It never raises. Where the site's function cannot be used, raises, or returns
    no text, a note stands in the text's place, and the log says so once for each
    object of this class, without the text.

    Attributes:
        active: Whether a ``REDACTOR`` is set. Pictures and files cannot be redacted
            and are then withheld.
    """

    def __init__(self) -> None:
        path = conf.get_host().redactor
        self.active = path is not None
        self._failed = False
        self._function: Callable[[str], Any] | None = None if path is None else self._load(path)

    def text(self, text: str) -> str:
        """Return a text, redacted.

        Args:
            text: Any text, in full: what is cut off first could cut through what is looked for.
        """
        if not self.active:
            return text
        if self._function is None:
            return _failure_note()
        try:
            redacted = self._function(_DATA_URI.sub(_withheld, text))
        except Exception as error:
            # Its text and traceback may hold what was to be redacted.
            self._tell(type(error).__name__)
            return _failure_note()
        if not isinstance(redacted, str):
            self._tell(f"it returned {type(redacted).__name__}")
            return _failure_note()
        return redacted

    def value(self, value: Any) -> Any:
        """Return a JSON value with each string in it redacted.

        Keys are redacted too, and kept apart where they become equal. JSON in a
        string is redacted inside. A number that the redactor changes becomes a string.

        Args:
            value: What ``json.loads`` returned.
        """
        if not self.active:
            return value
        try:
            return self._walk(value)
        except RecursionError:
            self._tell("RecursionError")
            return _failure_note()

    def json(self, text: str) -> str:
        """Return JSON text with each string in it redacted; what is no JSON is redacted as text.

        Args:
            text: What is stored.
        """
        if not self.active or not text:
            return text
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        return json.dumps(self.value(value), ensure_ascii=False)

    def _walk(self, value: Any) -> Any:
        match value:
            case str():
                return self._string(value)
            case list():
                return [self._walk(item) for item in value]
            case dict():
                redacted: dict[str, Any] = {}
                for key, item in value.items():
                    redacted[_apart(self.text(key), redacted)] = self._walk(item)
                return redacted
            case bool() | None:
                return value
            case _:
                written = json.dumps(value)
                shown = self.text(written)
                return value if shown == written else shown

    def _string(self, text: str) -> str:
        if text.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                return self.text(text)
            return json.dumps(self._walk(value), ensure_ascii=False)
        return self.text(text)

    def _load(self, path: str) -> Callable[[str], Any] | None:
        try:
            function = import_string(path)
        # A module may raise anything while it is imported.
        except Exception as error:
            self._tell(type(error).__name__)
            return None
        if not callable(function) or is_async(function):
            self._tell("it is no plain function")
            return None
        found: Callable[[str], Any] = function
        return found

    def _tell(self, what: str) -> None:
        if not self._failed:
            self._failed = True
            logger.error("%s['REDACTOR'] failed: %s. Texts are not shown.", conf.HOST_SETTING, what)


def is_async(function: Any) -> bool:
    """Return whether calling something gives a coroutine.

    Args:
        function: A function, or an object that can be called.
    """
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def withheld_note(media_type: str) -> str:
    """Return what stands in the place of a picture or file that is withheld.

    Args:
        media_type: Its media type.
    """
    return _("[%(media_type)s, withheld: it cannot be redacted]") % {"media_type": media_type}


def _withheld(found: re.Match[str]) -> str:
    return withheld_note(found[1].lower())


def _failure_note() -> str:
    return _("[not shown: the redactor failed]")


def _apart(key: str, taken: dict[str, Any]) -> str:
    unique, number = key, 2
    while unique in taken:
        unique, number = f"{key} ({number})", number + 1
    return unique
