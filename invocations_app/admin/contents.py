"""Who may read what was said, and the note of who did.

Contents are texts of messages, arguments and results of tools, answers, states,
metadata, requests and their replies, and whatever JSON holds them. Ids, times,
statuses, error codes and numbers are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import Model
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from invocations_app.admin.display import preformatted
from invocations_app.admin.redaction import Redactor

PERMISSION = "invocations_app.view_transcript"
WITHHELD = _("Contents are shown only to those who may read what was said in sessions.")


def may_read(request: HttpRequest) -> bool:
    """Return whether the user of a request may read contents.

    Args:
        request: A request of the admin.
    """
    return request.user.has_perm(PERMISSION)


def log_read(request: HttpRequest, objects: Iterable[Model], message: str) -> None:
    """Leave an entry in the admin's log for each object whose contents somebody reads.

    One for each page that is loaded or file that is made; pages that refresh
    themselves leave none. Call it before anything is shown.

    Args:
        request: The reader's request.
        objects: What is read.
        message: What was read, in English and without any of it.
    """
    user: Any = request.user  # nobody anonymous has the permission
    # Of the flags that there are, the others would say what is not true.
    LogEntry.objects.log_actions(user_id=user.pk, queryset=list(objects), action_flag=CHANGE, change_message=message)


def block(text: str) -> str:
    """Return stored contents as an escaped block of a page: redacted, bounded, JSON over several lines.

    Args:
        text: JSON or any other text.
    """
    return preformatted(Redactor().json(text))


def without_contents(fieldsets: Iterable[Any], names: Sequence[str]) -> list[Any]:
    """Return fieldsets without some fields, and with a note that says why.

    Args:
        fieldsets: Those of a page.
        names: Fields that hold contents.
    """
    left = []
    for title, options in fieldsets:
        fields = [_without(field, names) for field in options["fields"]]
        if kept := [field for field in fields if field]:
            left.append((title, {**options, "fields": kept}))
    title, options = left[0]
    left[0] = (title, {**options, "description": WITHHELD})
    return left


def _without(field: Any, names: Sequence[str]) -> Any:
    if isinstance(field, (list, tuple)):
        return tuple(item for item in field if item not in names)
    return None if field in names else field
