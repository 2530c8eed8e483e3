"""``manage.py reset_session``: lets a session id start afresh."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser

from invocations_app.exceptions import SessionBusy
from invocations_app.isolation import Scope
from invocations_app.storage import database, reset_session


class Command(BaseCommand):
    """Resets one session of one scope."""

    help = (
        "Lets a session id start afresh: the next turn begins a new session. "
        "The old one is archived and stays readable in the admin."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the four values by which a session is found.

        Args:
            parser: The command's parser.
        """
        parser.add_argument("session_id", metavar="SESSION_ID", help="the session id, as the caller gives it")
        parser.add_argument("--endpoint", default="default", help="alias in INVOCATIONS; default: %(default)s")
        parser.add_argument(
            "--user-key",
            default="",
            help="user key as the admin shows it: 'user:<pk>' of a Django user, 'platform:<value>' of a trusted "
            "header; default: none",
        )
        parser.add_argument("--chat-key", default="", help="value of the trusted chat header; default: none")

    def handle(self, *args: Any, **options: Any) -> None:
        """Reset the session.

        Args:
            *args: Unused.
            **options: The arguments.

        Raises:
            CommandError: If there is no such session, or it is busy.
        """
        scope = Scope(options["endpoint"], options["user_key"], options["chat_key"])
        try:
            was_there = async_to_sync(reset_session)(scope, options["session_id"])
        except SessionBusy:
            raise CommandError("A turn of this session runs or waits; nothing was changed.") from None
        finally:
            database.close()
        if not was_there:
            raise CommandError("There is no such session at this endpoint with these keys.")
        self.stdout.write(self.style.SUCCESS("The session was reset."))
