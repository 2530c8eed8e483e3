"""Fill the demonstration's database with a week of what people did: for screenshots, and to try the admin with.

Talks are real ones, of the offline agent; the many runs behind the overview's
figures are rows alone. The same every time, but for ids and the time of day.

    DATABASE_URL=sqlite:////tmp/sample.sqlite3 .venv/bin/python scripts/sample_data.py
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import random
import re
import struct
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ADMIN = "admin"
USERS = ("ada", "grace", "hedy")
DAYS = 7
RUNS_A_DAY = 420
AWAITS_INPUT = 3

_RIGHT_TO_LEFT = "Say: שלום! הפגישה ביום שישי בשעה 10:30, בחדר הכחול."
_LONG = "Say: " + " ".join(f"This is sentence {number} of a text that goes on for a while." for number in range(1, 41))
_ANNOUNCEMENT = "the library is open on Sunday, from ten to four"


def main() -> None:
    """Set Django up, migrate, and fill."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--runs-a-day", type=int, default=RUNS_A_DAY, help="for the overview to count, on a working day (%(default)s)"
    )
    runs_a_day: int = parser.parse_args().runs_a_day
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    fill(runs_a_day=runs_a_day)


def fill(*, runs_a_day: int) -> None:
    """Make users, talks and runs.

    Args:
        runs_a_day: How many runs the overview has to count, on a working day.
    """
    from django.contrib.auth import get_user_model

    users = get_user_model()._default_manager
    for name in (ADMIN, *USERS):
        if not users.filter(username=name).exists():
            make = users.create_superuser if name == ADMIN else users.create_user
            make(username=name, password=name)
    _talk(_Runs(runs_a_day))


# Talks


def _talk(runs: _Runs) -> None:
    def _ago(ago: timedelta) -> contextlib.AbstractContextManager[None]:
        # In the order of time, as records come.
        runs.make_until(_now() - ago)
        return _moved(ago)

    with _ago(timedelta(days=2, hours=3)):
        _say("ada", "trip to Delft", "My name is Ada.")
        _say("ada", "trip to Delft", "What is the time in Europe/Amsterdam?")
        _say("ada", "trip to Delft", "What is 2 * 89 + 12?")
    with _ago(timedelta(days=1, hours=2)):
        _say("grace", "schedule", _RIGHT_TO_LEFT)
    with _ago(timedelta(hours=20)):
        _say("hedy", "minutes of the meeting", _LONG, stream=False)
        _say("hedy", "minutes of the meeting", "How many words are in: all is well that ends well?")
    with _picture() as path, _ago(timedelta(hours=5)):
        _say("ada", "receipts", "What is on this picture?", "--attach", path)
    with _ago(timedelta(hours=2)), _no_model():
        _say("hedy", "no model today", "Is anybody there?", ends=1)
    with _ago(timedelta(minutes=40)):
        _say("ada", "garden party", "My name is Ada.")
        _say("ada", "garden party", "How many words are in: rain is not expected on Friday?")
        _answer("ada", "garden party", "Book room Blue for Friday.", reply=True)
        _answer("ada", "garden party", "Book room Red for Friday.", reply=False)
        _say("ada", "garden party", "Show me some Markdown.")
    with _ago(timedelta(minutes=12)):
        _answer("grace", "Sunday", _ANNOUNCEMENT, "--endpoint", "announcement", reply="yes")
    with _ago(timedelta(minutes=4)):
        _say("hedy", "opening hours", _ANNOUNCEMENT, "--endpoint", "announcement", ends=AWAITS_INPUT)
        _say("grace", "stand-up", "Book room Green for Monday.", ends=AWAITS_INPUT)


def _say(user: str, session: str, message: str, *more: str, ends: int = 0, stream: bool = True) -> str:
    """Say something as a user, with an exit status to expect, and return what the command says of that."""
    from django.core.management import CommandError, call_command

    words = ["invoke", message, "--user", user, "--session", session, *["--stream"] * stream, *more]
    try:
        call_command(*words, stdout=io.StringIO(), stderr=io.StringIO())
    except CommandError as error:
        if error.returncode != ends:
            raise
        return str(error)
    return ""


def _answer(user: str, session: str, message: str, *more: str, reply: bool | str) -> None:
    """Say something that ends with a question, and answer it."""
    from django.core.management import call_command

    asked = _say(user, session, message, *more, ends=AWAITS_INPUT)
    [found] = re.findall(r"^  \w+ (\S+): ", asked, re.MULTILINE)
    words = ["invoke", "--user", user, "--session", session, "--stream", *more]
    call_command(*words, "--responses", json.dumps({found: reply}), stdout=io.StringIO(), stderr=io.StringIO())


@contextlib.contextmanager
def _no_model() -> Iterator[None]:
    """Let the model be a service that nobody answers at."""
    os.environ["OPENAI_BASE_URL"] = "http://127.0.0.1:9/v1"
    # Its traceback would look as if something had gone wrong here.
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del os.environ["OPENAI_BASE_URL"]


@contextlib.contextmanager
def _moved(ago: timedelta) -> Iterator[None]:
    """Let what is said inside have been said a while ago."""
    from django.db.models import F

    from invocations_app.models import EventRecord, InvocationRecord, MessageRecord, PendingRecord, SessionRecord
    from invocations_app.storage import figures

    began = _now()
    yield
    for model in (EventRecord, MessageRecord, PendingRecord):
        model._default_manager.filter(created_at__gte=began).update(created_at=F("created_at") - ago)
    PendingRecord.objects.filter(closed_at__gte=began).update(closed_at=F("closed_at") - ago)
    SessionRecord.objects.filter(created_at__gte=began).update(
        created_at=F("created_at") - ago, updated_at=F("updated_at") - ago
    )
    for record in InvocationRecord.objects.filter(created_at__gte=began):
        record.created_at -= ago
        record.first_byte_at = record.first_byte_at and record.first_byte_at - ago
        if record.finished_at:
            record.finished_at -= ago
            record.finished_minute = figures.minute(record.finished_at)
        record.save()


@contextlib.contextmanager
def _picture() -> Iterator[str]:
    """Give a file with a small picture: a bill, seen from far away."""
    width, height = 160, 200
    rows = []
    for y in range(height):
        inked = y in range(20, 28) or (y > 44 and y % 14 < 4)
        end = 60 if y < 30 else 90 + (y * 37 // 14) % 50
        rows.append(b"\0" + bytes(70 if inked and 16 < x < end else 244 - (x + y) // 40 for x in range(width)))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(rows)),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in parts.items():
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "receipt.png")
        path.write_bytes(content)
        yield str(path)


# Runs


class _Runs:
    """A week of runs: more by day than by night, fewer on its weekend, slow and failing in one of its hours.

    Counted back from now, so that the picture is the same at any time of day.

    Args:
        a_day: How many, on a working day.
    """

    def __init__(self, a_day: int) -> None:
        chance = random.Random(7)
        now = _now()
        self._records = []
        for hour in range(DAYS * 24):
            begin = now - timedelta(hours=hour + 1)
            is_weekend = hour // 24 in {3, 4}
            busy = 0.15 + (1 - abs((hour % 24) - 6) / 12) ** 2 * 1.6 if hour % 24 <= 18 else 0.12
            for _ in range(round(a_day / 24 * busy * (0.3 if is_weekend else 1))):
                began = begin + timedelta(seconds=chance.uniform(0, 3500))
                self._records.append(_record(chance, began, is_bad_hour=hour == 9))
        self._records.sort(key=lambda record: record.created_at, reverse=True)

    def make_until(self, moment: datetime) -> None:
        """Make the records of all runs up to a moment that have none yet."""
        from invocations_app.models import InvocationRecord

        due = []
        while self._records and self._records[-1].created_at <= moment:
            due.append(self._records.pop())
        InvocationRecord.objects.bulk_create(due, batch_size=500)


def _record(chance: random.Random, began: datetime, *, is_bad_hour: bool) -> Any:
    from invocations_app.models import InvocationRecord
    from invocations_app.storage import figures

    failed = chance.random() < (0.22 if is_bad_hour else 0.012)
    cancelled = not failed and chance.random() < 0.01
    seconds = chance.lognormvariate(1.9 if is_bad_hour else 0.9, 0.6)
    status, code, number = "succeeded", "", None
    if failed:
        status, code, number = chance.choice(
            [("failed", "timeout", 504), ("failed", "invocation_failed", 500), ("interrupted", "interrupted", 409)]
        )
    elif cancelled:
        status, code, number = "cancelled", "cancelled", 409
    first_byte = None if failed else began + timedelta(seconds=seconds * chance.uniform(0.15, 0.35))
    finished = began + timedelta(seconds=seconds)
    tokens = None if failed else round(chance.lognormvariate(6.2, 0.5))
    name = uuid.UUID(int=chance.getrandbits(128), version=4)
    figure = figures.of(began, first_byte, finished)
    return InvocationRecord(
        endpoint="announcement" if chance.random() < 0.15 else "default",
        key=hashlib.sha256(name.bytes).hexdigest(),
        invocation_id=str(name),
        correlation_id=name.hex,
        dialect="channel",
        stream=chance.random() < 0.7,
        fingerprint=hashlib.sha256(name.bytes).hexdigest(),
        status=status,
        answer="" if failed or cancelled else json.dumps({"text": "Done."}),
        error_code=code,
        error_status=number,
        usage="" if tokens is None else json.dumps({"total_token_count": tokens}),
        total_tokens=tokens,
        created_at=began,
        first_byte_at=first_byte,
        finished_at=finished,
        **figure._asdict(),
    )


def _now() -> datetime:
    from django.utils import timezone

    return timezone.now()


if __name__ == "__main__":
    main()
