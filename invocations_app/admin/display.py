"""Stored text made fit for a page: bounded, and without what a page cannot carry.

Escaping is left to the templates, but for `preformatted`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

EMPTY = "-"
MAX_TEXT_CHARACTERS = 20_000
HINT_CHARACTERS = 80

_NAME = re.compile(r"[\w./:-]{1,64}", re.ASCII)

# Factor from seconds, name, and the number from which the next unit is told.
_UNITS = ((1000, _("ms"), 1000), (1, _("s"), 120), (1 / 60, _("min"), 120), (1 / 3600, _("h"), math.inf))

# A response is encoded as UTF-8, which has no lone surrogates; NUL has no place in HTML.
_UNFIT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a text.

    Attributes:
        text: What is shown.
        left_out: Number of characters that are not shown.
    """

    text: str
    left_out: int = 0

    @property
    def more(self) -> str:
        """What is said where text is left out; empty where all is shown."""
        if not self.left_out:
            return ""
        return ngettext("… (%d more character)", "… (%d more characters)", self.left_out) % self.left_out


def fit(text: str) -> str:
    """Return a text with U+FFFD for what a page or a file cannot carry.

    Args:
        text: Any text, lone surrogates included.
    """
    return _UNFIT.sub("\ufffd", text)


def excerpt(text: str, limit: int = MAX_TEXT_CHARACTERS) -> Excerpt:
    """Return the beginning of a text, with U+FFFD for what a page cannot carry.

    Args:
        text: Any text, lone surrogates included.
        limit: Most characters to show.
    """
    return Excerpt(fit(text[:limit]), max(0, len(text) - limit))


def one_line(text: str) -> str:
    """Return the beginning of a text on one line, as a hint of what is folded.

    Args:
        text: Any text.
    """
    line = " ".join(excerpt(text, 4 * HINT_CHARACTERS).text.split())
    return line[:HINT_CHARACTERS] + "…" if len(line) > HINT_CHARACTERS else line


def pretty(value: Any) -> str:
    """Return a JSON value over several lines, a string as it is."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        # A whole number of more than 4,300 digits has no text; depth has its limit too.
        return "\ufffd"


def pretty_json(text: str) -> str:
    """Return JSON text over several lines; text that is no JSON object or list stays as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return pretty(value) if isinstance(value, (dict, list)) else text


def preformatted(text: str) -> str:
    """Return the beginning of stored text, JSON over several lines, as an escaped block of a page."""
    if not text:
        return EMPTY
    shown = excerpt(pretty_json(text))
    return format_html('<pre class="invocations-text" dir="auto">{}{}</pre>', shown.text, shown.more)


def figures(usage: str) -> dict[str, int]:
    """Return the numbers of a stored token usage by name, and nothing that could be text.

    Args:
        usage: JSON text, ``InvocationRecord.usage``.
    """
    try:
        value = json.loads(usage)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: count for name, count in value.items() if type(count) is int and _NAME.fullmatch(name)}


def seconds(start: datetime, end: datetime | None) -> str:
    """Return the time between two moments, as a list shows it."""
    if end is None:
        return EMPTY
    return duration_of((end - start).total_seconds())


def duration_of(duration: float) -> str:
    """Return a time of some seconds with its unit.

    Args:
        duration: The seconds.
    """
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def about(value: float | None) -> str:
    """Return a time that is known to a few percent, in three digits.

    Args:
        value: The time in seconds; None for none.
    """
    if value is None:
        return EMPTY
    number, unit = next((value * factor, unit) for factor, unit, limit in _UNITS if value * factor < limit)
    digits = 2 if number < 10 else 1 if number < 100 else 0
    # Without rounding first the rest would be cut off.
    return f"{number_format(round(number, digits), digits)} {unit}"


def whole(value: int) -> str:
    """Return a whole number in groups of digits."""
    return number_format(value, force_grouping=True)
