"""``manage.py invoke``: what it sends and prints, in process and to a real server, with and without a terminal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from invocations_app.management.invoking import questions
from invocations_app.management.invoking.events import Event, EventReader
from invocations_app.management.invoking.terminal import plain
from invocations_app.models import InvocationRecord
from tests import approval_fakes, fakes
from tests.client import endpoint
from tests.cutting import cutting
from tests.frames import read_events
from tests.server import Wire, wait_until
from tests.workflow_fakes import Order

REPO = Path(__file__).resolve().parent.parent
SCRIPTED = "tests.fakes.build_scripted"
over_http = pytest.mark.parametrize("wire", ["uvloop"], indirect=True)


class Pieces(io.StringIO):
    """Keeps what is written piece by piece.

    Args:
        on_piece: Told of each piece.
        is_terminal: What it says to be.
    """

    def __init__(self, on_piece: Callable[[str], Any] = str, *, is_terminal: bool = False) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._on_piece = on_piece
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, piece: str) -> int:
        self.pieces.append(piece)
        self._on_piece(piece)
        return super().write(piece)


def invoke(*arguments: str, out: io.StringIO | None = None) -> tuple[str, str]:
    """Run the command, and return what it wrote to standard output and error."""
    out, err = out or io.StringIO(), io.StringIO()
    call_command("invoke", *arguments, stdout=out, stderr=err, no_color=True)
    return out.getvalue(), err.getvalue()


def refused(*arguments: str) -> tuple[str, int]:
    """Run the command where it fails, and return the message and the exit status."""
    with pytest.raises(CommandError) as caught:
        invoke(*arguments)
    return str(caught.value), caught.value.returncode


def only_record() -> InvocationRecord:
    return InvocationRecord.objects.get()


# In process.


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("mode", [[], ["--stream"]])
def test_answer_is_all_that_is_printed(settings, mode):
    settings.INVOCATIONS = endpoint()
    assert invoke("hello there", *mode) == ("hello there\n", "")
    assert [call.stream for call in fakes.calls] == [bool(mode)]


def test_pieces_are_printed_when_they_come(settings):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["hel", fakes.gate(), "lo"])
    # The agent goes on only when its first piece has been printed.
    out = Pieces(lambda piece: fakes.gate().open())
    invoke("a", "--stream", out=out)
    assert [piece for piece in out.pieces if piece] == ["hel", "lo", "\n"]


def test_answer_that_ends_with_a_line_end_gets_no_other(settings):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["one\ntwo\n"])
    assert invoke("a", "--stream")[0] == "one\ntwo\n"


def test_session_remembers(settings):
    settings.INVOCATIONS = endpoint()
    invoke("one", "--session", "s1")
    invoke("two", "--session", "s1", "--stream")
    assert fakes.calls[-1].texts == [("user", "one"), ("assistant", "one"), ("user", "two")]


def test_message_is_read_from_standard_input(settings, monkeypatch):
    settings.INVOCATIONS = endpoint()
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines"))
    assert invoke("-")[0] == "two\nlines\n"


def test_endpoint_is_chosen_by_alias(settings):
    settings.INVOCATIONS = endpoint() | {"other": endpoint(TARGET=SCRIPTED)["default"] | {"PATH": "o/p"}}
    fakes.script(["from the other"])
    assert invoke("a", "--endpoint", "other")[0] == "from the other\n"
    assert only_record().endpoint == "other"


def test_site_is_started_and_stopped_around_it(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_managed")
    before = signal.getsignal(signal.SIGINT)
    assert invoke("hello")[0] == "hello\n"
    assert fakes.managed_noted() == ["enter", "leave"]
    assert signal.getsignal(signal.SIGINT) is before


def test_site_that_does_not_start_is_told(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.fakes.build_broken")
    reason = "the target of endpoint 'default' is not available: RuntimeError: no model today"
    assert refused("hello") == (f"The site does not start: {reason}", 1)


def test_callback_that_fails_at_the_end_is_told(settings):
    settings.INVOCATIONS = endpoint()
    settings.INVOCATIONS_HOST = {"SHUTDOWN": ["tests.fakes.build_broken"]}
    text, status = refused("hello")
    assert (text.partition(": ")[0], status) == ("The site does not stop as it should", 1)
    assert "no model today" in text


# Who calls.


def note_user(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A middleware of the site that asks who is logged in."""

    def middleware(request: Any) -> Any:
        fakes.notes.append(request.user.get_username())
        return get_response(request)

    return middleware


IN_ONLY = {
    "AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
    "PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}


def test_user_calls_as_if_logged_in(settings):
    settings.INVOCATIONS = endpoint(**IN_ONLY)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_invoke_command.note_user"]
    user = get_user_model().objects.create_user("ada")
    assert invoke("hello", "--user", "ada")[0] == "hello\n"
    assert only_record().user_key == f"user:{user.pk}"
    assert fakes.notes == ["ada"]


def test_nobody_is_refused_as_over_http(settings):
    settings.INVOCATIONS = endpoint(**IN_ONLY)
    assert refused("hello") == ("Authentication credentials were not provided. (403)", 1)


def test_user_who_is_not_there_or_not_active_is_an_error(settings):
    settings.INVOCATIONS = endpoint()
    get_user_model().objects.create_user("gone", is_active=False)
    assert refused("hello", "--user", "ada") == ("There is no user 'ada'.", 1)
    assert refused("hello", "--user", "gone") == ("The user 'gone' is not active.", 1)


def test_headers_are_sent(settings):
    settings.INVOCATIONS = endpoint(TRUST_ISOLATION_HEADERS=True)
    invoke("hello", "--header", "X-Agent-User-Isolation-Key: u:1", "--header", "x-agent-chat-isolation-key:c")
    assert (only_record().user_key, only_record().chat_key) == ("platform:u:1", "c")


@pytest.mark.parametrize("allowed", [["*"], ["other.example", "*"], [".example.com"], ["10.0.0.1"]])
def test_host_is_an_allowed_one(settings, allowed):
    settings.INVOCATIONS = endpoint()
    settings.ALLOWED_HOSTS = allowed
    settings.SECURE_SSL_REDIRECT = True
    settings.MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
    settings.MIDDLEWARE += ["tests.test_invoke_command.ask_host"]
    assert invoke("hello")[0] == "hello\n"


def ask_host(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A middleware that fails where the host is not allowed."""

    def middleware(request: Any) -> Any:
        request.get_host()
        return get_response(request)

    return middleware


# What is sent.


def test_file_goes_with_the_message(settings, tmp_path):
    settings.INVOCATIONS = endpoint()
    (tmp_path / "dot.png").write_bytes(b"png")
    assert invoke("look", "--attach", str(tmp_path / "dot.png"))[0] == "look\n"
    [message] = fakes.calls[0].messages
    uri = f"data:image/png;base64,{base64.b64encode(b'png').decode()}"
    assert [(content.type, content.text or content.uri) for content in message.contents] == [
        ("text", "look"),
        ("data", uri),
    ]


def test_input_of_a_workflow_is_any_json(settings):
    settings.INVOCATIONS = endpoint(TARGET="tests.workflow_fakes.build_orders")
    invoke("--input", '{"item": "tea", "quantity": 2}')
    assert fakes.notes == [Order("tea", 2)]


WRONG = [
    ([], "Give either a message, or --input, or replies (--approve, --refuse, --responses)."),
    (["a", "--approve", "r"], "Give either a message, or --input, or replies (--approve, --refuse, --responses)."),
    (["--input", '"a"', "--attach", "x.png"], "--attach goes with a message."),
    (["a", "--attach", "x.nothing"], "What kind of file 'x.nothing' is cannot be told by its name."),
    (["a", "--attach", "x.png"], "'x.png' cannot be read: No such file or directory"),
    (["--responses", "[]"], "--responses takes a JSON object."),
    (["a", "--invocation-id", "docs"], "--invocation-id takes 1 to 256 characters of A-Z a-z 0-9 . _ : -"),
    (["a", "--endpoint", "none"], "There is no URL of an endpoint 'none'."),
    (
        ["a", "--url", "http://x", "--user", "a"],
        "--user is for this process only; a server knows callers by --header.",
    ),
    (["a", "--header", "x"], "Error: argument --header: a header is 'Name: value'"),
    (["a", "--header", "x: a\nb: c"], "Error: argument --header: a header is 'Name: value'"),
    (["--input", "{"], "Error: argument --input: no JSON: Expecting property name enclosed in double quotes"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_told_and_nothing_is_sent(settings, arguments, message):
    settings.INVOCATIONS = endpoint()
    text, status = refused(*arguments)
    assert text.startswith(message)
    assert status == 1
    assert not InvocationRecord.objects.exists()


# Failures.


@pytest.mark.parametrize("mode", [[], ["--stream"]])
def test_failure_is_told_with_its_code(settings, mode):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["hel", RuntimeError("no model today")])
    out = io.StringIO()
    with pytest.raises(CommandError, match=r"^Agent invocation failed\. \(invocation_failed, 500\)$") as caught:
        invoke("a", *mode, out=out)
    assert caught.value.returncode == 1
    assert out.getvalue() == ("hel\n" if mode else "")


def test_refusal_is_told_with_its_status(settings):
    settings.INVOCATIONS = endpoint()
    assert refused("") == ("missing or empty 'message' (422)", 1)
    assert refused("a", "--session", "x" * 257)[0].endswith("(422)")


def test_log_of_a_server_is_not_among_the_answer(settings, caplog):
    settings.INVOCATIONS = endpoint()
    refused("")
    assert caplog.messages == []
    refused("", "-v", "2")
    # The reason in front of it is Python's, and not the same in all of them.
    assert [text.partition(": ")[2] for text in caplog.messages if text.startswith("Unprocess")] == [
        "/invocations/invoke"
    ]


def test_repeated_id_is_answered_again_and_nothing_runs(settings):
    settings.INVOCATIONS = endpoint()
    assert invoke("a b", "--invocation-id", "i-1", "--stream")[0] == "a b\n"
    assert invoke("a b", "--invocation-id", "i-1")[0] == "a b\n"
    assert refused("c", "--invocation-id", "i-1") == ("this invocation id was used for another request (422)", 1)
    assert len(fakes.calls) == 1


def test_answer_that_goes_elsewhere_is_not_waited_for(settings):
    settings.INVOCATIONS = endpoint(RUN_HOOK="tests.test_invoke_command.keep")
    out, err = invoke("a", "--invocation-id", "i-1")
    assert (out, err) == ("", "The answer goes elsewhere. Invocation i-1.\n")


def keep(invocation: Any, **kwargs: Any) -> Any:
    """A run hook that lets the answer wait to be fetched."""
    import dataclasses

    return dataclasses.replace(invocation, delivery="none")


# JSON.


def test_json_is_the_body(settings):
    settings.INVOCATIONS = endpoint()
    assert invoke("é", "--session", "s", "--json")[0] == '{"response":"é","session_id":"s"}\n'


def test_json_of_a_stream_is_a_line_an_event(settings):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["é\n", "b"])
    assert invoke("a", "--stream", "--json")[0] == (
        '{"event": "message", "data": "é\\n"}\n{"event": "message", "data": "b"}\n'
        '{"event": "message", "data": "[DONE]"}\n'
    )


def test_json_of_a_failure_is_its_body(settings):
    settings.INVOCATIONS = endpoint()
    out = io.StringIO()
    with pytest.raises(CommandError):
        invoke("", "--json", out=out)
    assert out.getvalue() == '{"error":"missing or empty \'message\'"}\n'


# Approvals.


def ask_to_pay(settings: Any, *mode: str) -> str:
    """Let the agent ask, and return the request's id."""
    settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET)
    fakes.script([fakes.call("pay", {"to": "Ada"})], ["It is done."])
    text, status = refused("Pay Ada", "--session", "s 1", *mode)
    [found] = re.findall(r"approval (\S+): ", text)
    assert status == 3
    assert text == (
        f'The session awaits an answer:\n  approval {found}: pay {{"to": "Ada"}}\n'
        f"Answer with: manage.py invoke --session 's 1' {''.join(f'{word} ' for word in mode)}--approve {found}"
        " (or --refuse)"
    )
    return str(found)


@pytest.mark.parametrize("mode", [[], ["--stream"]])
@pytest.mark.parametrize(("word", "ran"), [("--approve", [("pay", "Ada")]), ("--refuse", [])])
def test_what_is_asked_is_answered_by_the_next_command(settings, mode, word, ran):
    request_id = ask_to_pay(settings, *mode)
    assert invoke("--session", "s 1", word, request_id, *mode)[0] == "It is done.\n"
    assert fakes.notes == ran


def test_replies_must_be_those_that_are_asked_for(settings):
    ask_to_pay(settings)
    text = "'responses' must answer exactly the pending requests (422)"
    assert refused("--session", "s 1", "--approve", "other") == (text, 1)


def test_message_while_something_is_asked_tells_how_to_answer(settings):
    request_id = ask_to_pay(settings)
    text, status = refused("And now?", "--session", "s 1")
    assert status == 3
    assert text.startswith("the session awaits responses (409)\nThe session awaits an answer:\n")
    assert text.endswith(f"--approve {request_id} (or --refuse)")


def test_results_are_given_as_json(settings):
    settings.INVOCATIONS = endpoint(TARGET=approval_fakes.TARGET)
    fakes.script([fakes.call("ring", {"times": 2})], ["Rung."])
    text, _ = refused("Ring", "--session", "s")
    [found] = re.findall(r"tool_call (\S+): ", text)
    assert text.endswith(f'Answer with: manage.py invoke --session s --responses \'{{"{found}": "…"}}\'')
    assert invoke("--session", "s", "--responses", json.dumps({found: {"rung": 2}}))[0] == "Rung.\n"


def asked(request: questions.Request, *typed: str) -> tuple[Any, list[str]]:
    told: list[str] = []
    lines = iter(typed)

    def read(question: str) -> str:
        told.append(question)
        return next(lines)

    return questions.ask(request, told.append, read), told


def test_question_is_asked_until_it_is_answered():
    request = {"type": "approval", "request_id": "r", "tool": "pay", "arguments": {"to": "Ada", "n": [1]}}
    reply, told = asked(request, "\n", "perhaps\n", " YES \n")
    assert reply is True
    assert told == ['The agent asks to run pay:\n  to: "Ada"\n  n: [1]', *["Approve? [y/n] "] * 3]
    assert asked(request, "n\n")[0] is False


def test_other_questions_are_answered_by_json():
    call = {"type": "tool_call", "request_id": "r", "tool": "ring", "arguments": None}
    reply, told = asked(call, "{oh\n", '{"a": 1}\n')
    assert reply == {"a": 1}
    assert told == [
        "The agent asks for the result of ring:\n  null",
        "Reply, as JSON: ",
        "This is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "Reply, as JSON: ",
    ]
    request = {"type": "request_info", "request_id": "r", "data": "Which?", "source_executor_id": "desk"}
    assert asked(request, '"this"\n') == ("this", ['desk asks:\n  "Which?"', "Reply, as JSON: "])


# A terminal.


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J a\rb\x7f \u202eevil\u2066 ok\tfine\n"


def test_terminal_gets_nothing_that_steers_it(settings):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script([HOSTILE])
    out = Pieces(is_terminal=True)
    invoke("a", out=out)
    assert out.getvalue() == "[31mred]0;title 2J ab evil ok\tfine\n"


def test_file_gets_what_came(settings):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script([HOSTILE])
    assert invoke("a")[0] == HOSTILE


def test_question_gets_nothing_that_steers_a_terminal():
    request = {"type": "approval", "request_id": "r\x1b", "tool": "pay\x1b[2K", "arguments": {"t\x1bo\n": "\u202e\x9b"}}
    _, [told, _] = asked(request, "y")
    assert told == 'The agent asks to run pay[2K:\n  to : ""'
    assert plain(told) == told
    how = questions.how_to_answer([request], ["invoke"])
    assert plain(how) == how


@given(st.text())
def test_plain_text_has_no_control_character(text):
    kept = plain(text)
    assert all(character.isprintable() or character in "\t\n" or ord(character) >= 0xA0 for character in kept)
    assert plain(kept) == kept


class Terminal:
    """The command in a process of its own, on a terminal.

    Args:
        arguments: Its arguments.
        settings: Settings to override there.
    """

    def __init__(self, arguments: Sequence[str], settings: Any) -> None:
        self.output = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:  # pragma: no cover
            environment = os.environ | {
                "DJANGO_SETTINGS_MODULE": "tests.command_settings",
                "TEST_SETTINGS": json.dumps(settings),
                "TERM": "xterm",
                "PYTHONIOENCODING": "utf-8",
            }
            os.chdir(REPO)
            # Tests that a shell runs in the background have it ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            command = [sys.executable, "-W", "ignore", "manage.py", "invoke", "--no-color", *arguments]
            os.execve(sys.executable, command, environment)

    def read_until(self, text: str) -> None:
        """Read until a text has come."""
        while text not in self.output:
            assert self._read(), self.output

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def end(self) -> tuple[str, int]:
        """Return all that was shown, without the spinner, and the exit status."""
        while self._read():
            pass
        _, status = os.waitpid(self._pid, 0)
        os.close(self._terminal)
        return SPINNING.sub("", self.output).replace("\r\n", "\n"), os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        try:
            block = os.read(self._terminal, 4096)
        except OSError:  # Linux says so when the other side is gone
            return False
        self.output += block.decode()
        return bool(block)


SPINNING = re.compile(r"\r\x1b\[K(?:[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] waiting(?: \d+ s)?)?")
slow = [pytest.mark.slow, pytest.mark.timeout(60)]


def in_order(test: Any) -> Any:
    for mark in slow:
        test = mark(test)
    return test


def database_settings(**invocations: Any) -> dict[str, Any]:
    """Return the settings of a process on this test's database."""
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    database = {key: connection.settings_dict[key] for key in keys}
    return {"INVOCATIONS": endpoint(**invocations), "DATABASES": {"default": database}}


@in_order
def test_spinner_turns_until_the_answer_comes():
    terminal = Terminal(["hello there", "--stream", "--invocation-id", "i-1"], database_settings())
    shown = terminal.end()
    assert terminal.output.startswith("\r\x1b[K⠋ waiting")
    assert shown == ("hello there\ninvocation i-1\n", 0)


@in_order
def test_question_on_a_terminal_is_answered_there():
    settings = database_settings(TARGET="project.agents.build_assistant")
    terminal = Terminal(["Book room Blue for Friday.", "--session", "s"], settings)
    terminal.read_until("[y/n] ")
    terminal.type("y\n")
    shown, status = terminal.end()
    assert status == 0
    assert re.sub("invocation [0-9a-f-]{36}", "invocation …", shown) == (
        'invocation …\nThe agent asks to run book_room:\n  room: "Blue"\n  day: "Friday"\nApprove? [y/n] y\n'
        "Room Blue is booked for Friday.\ninvocation …\n"
    )


@in_order
@pytest.mark.parametrize(("keys", "status"), [("\x04", 3), ("\x03", 130)])
def test_question_that_is_left_stays_open(keys, status):
    settings = database_settings(TARGET="project.agents.build_assistant")
    terminal = Terminal(["Book room Blue for Friday.", "--session", "s"], settings)
    terminal.read_until("[y/n] ")
    terminal.type(keys)
    shown, ended = terminal.end()
    assert ended == status
    assert "Answer with: manage.py invoke --session s --approve af-call-" in shown
    assert only_record().status == "awaiting_input"


@in_order
def test_interrupt_cancels_the_run():
    terminal = Terminal(['/tool wait_at {"name": "x"}', "--invocation-id", "i-1"], database_settings())
    wait_until(lambda: InvocationRecord.objects.filter(status="running").exists(), "the run", 30)
    terminal.type("\x03")
    shown, status = terminal.end()
    assert status == 130
    assert shown == "^C\nCancelled. Invocation i-1.\n"
    assert only_record().status == "cancelled"


async def build_late() -> Any:
    await asyncio.sleep(30)


@in_order
def test_interrupt_ends_a_start_that_takes_long():
    terminal = Terminal(["a"], database_settings(TARGET="tests.test_invoke_command.build_late"))
    terminal.read_until("waiting 1 s")
    terminal.type("\x03")
    assert terminal.end() == ("^C", 130)


@in_order
def test_second_interrupt_waits_for_nothing():
    settings = database_settings(TARGET="tests.test_invoke_command.build_deaf")
    terminal = Terminal(["a", "--invocation-id", "i-1"], settings)
    wait_until(lambda: InvocationRecord.objects.filter(status="running").exists(), "the run", 30)
    terminal.type("\x03")
    wait_until(lambda: InvocationRecord.objects.filter(cancel_requested=True).exists(), "the cancellation", 30)
    terminal.type("\x03")
    shown, status = terminal.end()
    assert status == 130
    assert shown.startswith("^C")
    assert "Traceback" not in shown


def build_deaf() -> Any:
    """An agent that hears of its cancellation late."""

    async def hold() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        await asyncio.sleep(2)

    return fakes._agent(lambda messages: [hold, "a"])


@in_order
def test_reader_of_a_pipe_may_leave():
    settings = json.dumps(database_settings(TARGET="tests.fakes.build_slow"))
    command = f"set -o pipefail; {sys.executable} -W ignore manage.py invoke a --stream | head -c 4"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.command_settings", "TEST_SETTINGS": settings}
    done = subprocess.run(["bash", "-c", command], cwd=REPO, env=environment, capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"0 1 ", b"", 0)
    assert only_record().status == "succeeded"


# A running site.


@over_http
@in_order
def test_interrupt_cancels_the_run_of_a_server(settings, wire: Wire):
    settings.INVOCATIONS = endpoint()
    url = f"http://127.0.0.1:{wire.server.port}"
    arguments = ['/tool wait_at {"name": "x"}', "--stream", "--invocation-id", "i-1", "--url", url]
    terminal = Terminal(arguments, database_settings())
    wait_until(fakes.gate("x").reached.is_set, "the run", 30)
    terminal.type("\x03")
    assert terminal.end() == ("^C\nCancelled. Invocation i-1.\n", 130)
    assert only_record().status == "cancelled"


@over_http
def test_running_site_is_asked_over_http(settings, wire: Wire):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["hel", fakes.gate(), "lo"])
    out = Pieces(lambda piece: fakes.gate().open())
    invoke("a", "--stream", "--url", f"http://127.0.0.1:{wire.server.port}/", out=out)
    assert [piece for piece in out.pieces if piece] == ["hel", "lo", "\n"]


@over_http
def test_running_site_knows_the_caller_by_header(settings, wire: Wire):
    settings.INVOCATIONS = endpoint(AUTHENTICATION_CLASSES=["tests.auth_fakes.NamedUserWithChallenge"])
    url = f"http://127.0.0.1:{wire.server.port}"
    assert invoke("hello", "--url", url, "--header", "X-User: 7")[0] == "hello\n"
    assert only_record().user_key == "user:7"
    assert refused("hello", "--url", url, "--header", "X-User: nobody") == ("no such user (401)", 1)


@over_http
def test_address_that_is_no_site_of_this_kind_is_told(settings, wire: Wire):
    settings.INVOCATIONS = endpoint()
    url = f"http://127.0.0.1:{wire.server.port}/nothing"
    assert refused("hello", "--url", url) == ("This is no answer of an endpoint. (404)", 1)


def test_server_that_is_not_there_is_told(settings):
    settings.INVOCATIONS = endpoint()
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert refused("a", "--url", url) == (f"{url} cannot be reached: All connection attempts failed", 1)
    assert refused("a", "--url", "nothing")[0].startswith("nothing cannot be reached: ")


def test_without_httpx_the_extra_is_named(settings, monkeypatch):
    settings.INVOCATIONS = endpoint()
    monkeypatch.setitem(sys.modules, "httpx", None)
    text = "--url needs httpx: pip install 'django-invocations[client]'."
    assert refused("a", "--url", "http://127.0.0.1:1") == (text, 1)


@over_http
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_stream_that_breaks_is_picked_up_where_it_was(settings, wire: Wire, extra):
    settings.INVOCATIONS = endpoint(TARGET=SCRIPTED)
    fakes.script(["hel", "lo ", fakes.gate(), "you"])
    out = Pieces()
    with cutting(wire.server.port, b"data: lo ", fakes.gate().open) as cut:
        invoke("a", "--stream", "--url", f"http://127.0.0.1:{cut.port}", *extra, out=out)
    assert cut.happened.is_set()
    if extra:
        events = [json.loads(line)["data"] for line in out.getvalue().splitlines()]
        assert events == ["hel", "lo ", "you", "[DONE]"]
    else:
        assert [piece for piece in out.pieces if piece] == ["hel", "lo ", "you", "\n"]
    assert len(fakes.calls) == 1


# The reader of events, beside one that shares nothing with it.


@given(
    st.lists(st.sampled_from(["data: a", "data:b", "data", "event: x", "id: 1", ": c", "", "é\u2028", "\ufeff"])),
    st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=1),
    st.data(),
)
def test_events_are_those_of_an_independent_reader(lines, ends, data):
    text = "".join(line + ends[number % len(ends)] for number, line in enumerate(lines))
    content = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)))))
    blocks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    reader = EventReader()
    events = [event for block in blocks for event in reader.feed(block)]
    assert events == [Event(event.data, event.type) for event in read_events(content)]
