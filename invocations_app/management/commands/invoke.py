"""``manage.py invoke``: sends one message to an endpoint and shows the answer as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.urls import NoReverseMatch, reverse

from invocations_app.envelope import is_well_formed_id
from invocations_app.management.invoking import arguments, questions
from invocations_app.management.invoking.in_process import InProcess
from invocations_app.management.invoking.over_http import OverHttp
from invocations_app.management.invoking.terminal import Output, Spinner, plain
from invocations_app.management.invoking.transport import ConnectionLost, Transport, Unreachable
from invocations_app.management.invoking.turn import Outcome, Refused, Turn

#: Exit status where a person must answer before the session goes on.
AWAITS_INPUT = 3
#: Exit status after Ctrl-C, as a shell has it.
INTERRUPTED = 130
_VERBOSE = 2


class Command(BaseCommand):
    """Sends one message to an endpoint and shows the answer."""

    help = (
        "Sends one message to an endpoint of this site, in this process or (--url) to a running server, and shows "
        "the answer. Ctrl-C cancels the run. Exit status: 0 answered, 1 refused or failed, "
        f"{AWAITS_INPUT} a person must answer first, {INTERRUPTED} cancelled."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments of the command.

        Args:
            parser: Its parser.
        """
        parser.add_argument("message", nargs="?", help="what to say; - reads it from standard input")
        parser.add_argument("--session", metavar="ID", help="session id; without one nothing is remembered")
        parser.add_argument("--stream", action="store_true", help="show the answer piece by piece")
        parser.add_argument("--endpoint", default="default", help="alias in INVOCATIONS; default: %(default)s")
        parser.add_argument("--user", metavar="NAME", help="user who calls; in this process only; default: nobody")
        parser.add_argument("--url", help="root of a running site, such as http://127.0.0.1:8000")
        parser.add_argument(
            "--header",
            type=arguments.header,
            action="append",
            default=[],
            help="'Name: value'; repeatable",
        )
        parser.add_argument(
            "--attach", metavar="FILE", type=Path, action="append", default=[], help="a picture or other file to send"
        )
        parser.add_argument(
            "--input", metavar="JSON", type=arguments.json_value, help="instead of a message, the body's 'input'"
        )
        parser.add_argument("--approve", metavar="ID", action="append", default=[], help="say yes to a pending request")
        parser.add_argument("--refuse", metavar="ID", action="append", default=[], help="say no to a pending request")
        parser.add_argument(
            "--responses",
            metavar="JSON",
            type=arguments.json_value,
            default={},
            help="replies to pending requests, by their ids",
        )
        parser.add_argument("--invocation-id", metavar="ID", help="id to send; with an id that was used nothing runs")
        parser.add_argument(
            "--json", action="store_true", help="the body as it came; of a stream one line of JSON an event"
        )
        parser.add_argument(
            "--no-input", "--noinput", action="store_false", dest="interactive", help="never ask, also on a terminal"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the message, show the answer, ask what is to be asked.

        Args:
            *args: Unused.
            **options: The arguments.

        Raises:
            CommandError: If the arguments are wrong, or the turn is refused, fails or awaits an answer.
            SystemExit: If it was cancelled.
        """
        self._options = options
        body = arguments.body_of(options)
        invocation_id = options["invocation_id"] or str(uuid.uuid4())
        if not is_well_formed_id(invocation_id):
            raise CommandError("--invocation-id takes 1 to 256 characters of A-Z a-z 0-9 . _ : -")
        try:
            path = reverse(f"invocations:{options['endpoint']}-platform")
        except NoReverseMatch:
            raise CommandError(f"There is no URL of an endpoint {options['endpoint']!r}.") from None
        try:
            with _quiet(options["verbosity"]):
                self._talk(self._transport(), path, body, invocation_id)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except (Refused, Unreachable, ConnectionLost) as error:
            text = f"The connection was lost: {error}" if isinstance(error, ConnectionLost) else plain(str(error))
            if isinstance(error, Refused) and error.pending:
                raise CommandError(f"{text}\n{self._how_to_answer(error.pending)}", returncode=AWAITS_INPUT) from None
            raise CommandError(text) from None

    def _transport(self) -> Transport:
        url, name = self._options["url"], self._options["user"]
        if url is not None:
            if name is not None:
                raise CommandError("--user is for this process only; a server knows callers by --header.")
            return OverHttp(url)
        if name is None:
            return InProcess()
        users = get_user_model()
        try:
            user = users._default_manager.get_by_natural_key(name)
        except users.DoesNotExist:
            raise CommandError(f"There is no user {name!r}.") from None
        if not user.is_active:
            raise CommandError(f"The user {name!r} is not active.")
        return InProcess(user)

    # The talk

    def _talk(self, transport: Transport, path: str, body: dict[str, Any], invocation_id: str) -> None:
        before = signal.getsignal(signal.SIGINT)
        with asyncio.Runner() as runner:
            try:
                runner.run(self._start(transport))
                # Ctrl-C is for the run that is waited for, not for the process that the lifespan believes to serve.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                while pending := self._take_turn(runner, transport, path, body, invocation_id):
                    body = {key: body[key] for key in ("stream", "session_id") if key in body}
                    body["responses"] = self._ask(pending)
                    invocation_id = str(uuid.uuid4())
            except KeyboardInterrupt:
                # What is given up now, such as a target half built, is no failure to log.
                logging.getLogger("invocations_app").setLevel(logging.CRITICAL)
                raise
            finally:
                try:
                    runner.run(transport.stop())
                finally:
                    signal.signal(signal.SIGINT, before)

    async def _start(self, transport: Transport) -> None:
        with Spinner(self.stderr).turning():
            await transport.start()

    def _take_turn(
        self, runner: asyncio.Runner, transport: Transport, path: str, body: Mapping[str, Any], invocation_id: str
    ) -> tuple[questions.Request, ...]:
        """Run one turn to its end, and return what it leaves pending."""
        spinner = Spinner(self.stderr)
        output = Output(self.stdout, spinner, is_json=self._options["json"])
        turn = Turn(transport, path, self._options["header"], body, invocation_id, output)

        async def run() -> Outcome:
            with spinner.turning():
                return await turn.run()

        try:
            outcome = runner.run(run())
        except KeyboardInterrupt:
            self._tell(f"\n{_CANCELLED.get(turn.status_at_end or '', _NOT_CANCELLED)} Invocation {invocation_id}.")
            raise SystemExit(INTERRUPTED) from None
        finally:
            output.end()
        if outcome.is_elsewhere:
            self._tell(f"The answer goes elsewhere. Invocation {invocation_id}.")
        elif self.stderr.isatty() and self._options["verbosity"]:
            self.stderr.write(f"invocation {invocation_id}", self.style.HTTP_NOT_MODIFIED)
        return outcome.pending

    def _ask(self, pending: tuple[questions.Request, ...]) -> dict[str, Any]:
        if not (self._options["interactive"] and sys.stdin.isatty() and self.stderr.isatty()):
            raise CommandError(self._how_to_answer(pending), returncode=AWAITS_INPUT)
        try:
            return {request["request_id"]: questions.ask(request, self._tell, self._read) for request in pending}
        except EOFError:
            raise CommandError(f"\n{self._how_to_answer(pending)}", returncode=AWAITS_INPUT) from None
        except KeyboardInterrupt:
            self._tell(f"\n{self._how_to_answer(pending)}")
            raise SystemExit(INTERRUPTED) from None

    def _how_to_answer(self, pending: tuple[questions.Request, ...]) -> str:
        command = ["manage.py", "invoke"]
        for name in ("session", "endpoint", "user", "url"):
            value = self._options[name]
            if value is not None and (name, value) != ("endpoint", "default"):
                command += [f"--{name}", value]
        command += ["--stream"] * self._options["stream"] + ["--json"] * self._options["json"]
        return questions.how_to_answer(pending, command)

    def _tell(self, text: str) -> None:
        self.stderr.write(text, self.style.WARNING)

    def _read(self, question: str) -> str:
        self.stderr.write(question, self.style.WARNING, "")
        self.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line


_NOT_CANCELLED = "Interrupted; whether the run goes on is not known."
_CANCELLED = {
    "cancelled": "Cancelled.",
    "running": "Cancelled; the run has not ended yet.",
    "succeeded": "It had ended already.",
    "awaiting_input": "It had ended already.",
    "failed": "It had failed already.",
}


@contextlib.contextmanager
def _quiet(verbosity: int) -> Iterator[None]:
    """Keep what a server would log of every request from among the answer; errors and their tracebacks stay."""
    levels = {"invocations_app": logging.WARNING, "django.request": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    if verbosity < _VERBOSE:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
