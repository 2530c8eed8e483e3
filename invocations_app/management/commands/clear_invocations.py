"""``clear_invocations``: remove what is older than the settings keep it."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from invocations_app import conf
from invocations_app.storage import retention
from invocations_app.storage.retention import Counts, Cutoffs

_BAR_WIDTH = 30


class Command(BaseCommand):
    """Remove sessions, records of invocations and event logs by their age."""

    help = (
        "Removes sessions, records of invocations and event logs that are older than INVOCATIONS_HOST's "
        "SESSION_TTL_SECONDS, INVOCATION_TTL_SECONDS and EVENT_TTL_SECONDS keep them (None keeps for ever). "
        "Never what runs or waits; may be run while the site serves."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of the command.

        Args:
            parser: Its parser.
        """
        parser.add_argument("--dry-run", action="store_true", help="Say what would go, and remove nothing.")

    def handle(self, *args: Any, dry_run: bool, verbosity: int, **options: Any) -> None:
        """Remove what may go, and say how much it was.

        Args:
            *args: Unused.
            dry_run: Only say it.
            verbosity: 0 says nothing.
            **options: Unused.
        """
        cutoffs = Cutoffs.of(conf.get_host(), timezone.now())
        if dry_run:
            cleared = retention.count(cutoffs)
        elif verbosity and self.stderr.isatty():
            bar = _Bar(self.stderr, retention.count(cutoffs))
            try:
                cleared = retention.clear(cutoffs, bar.advance)
            finally:
                bar.end()
        else:
            cleared = retention.clear(cutoffs)
        if verbosity:
            verb = "Would remove" if dry_run else "Removed"
            noted = "would be noted" if dry_run else "noted"
            self.stdout.write(
                f"{verb} sessions: {cleared.sessions}, messages: {cleared.messages}, "
                f"invocations: {cleared.invocations}, event rows: {cleared.events}; "
                f"interrupted invocations {noted}: {cleared.interrupted}."
            )


class _Bar:
    """A bar on a terminal, of rows gone among those counted before."""

    def __init__(self, stream: Any, expected: Counts) -> None:
        self._stream = stream
        self._expected = max(1, sum(getattr(expected, item.name) for item in fields(expected)))
        self._done = 0
        self._draw("")

    def advance(self, what: str, rows: int) -> None:
        """Draw the bar with some more rows gone."""
        self._done += rows
        self._draw(what)

    def _draw(self, what: str) -> None:
        # The site goes on serving: there may be more to do than was counted.
        part = min(1.0, self._done / self._expected)
        bar = ("#" * round(part * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
        self._stream.write(f"\r[{bar}] {part:4.0%} {what:<12}", ending="")
        self._stream.flush()

    def end(self) -> None:
        """Leave the bar's line."""
        self._stream.write("")
