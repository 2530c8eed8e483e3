"""The webhook: what it sends, to whom it refuses to, and what counts as taken; against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from django.core.exceptions import ImproperlyConfigured

from invocations_app.delivery import (
    AddressNotAllowed,
    MalformedResponse,
    RedirectRefused,
    RequestTooLarge,
    ResponseTooLarge,
    StatusRefused,
    WebhookPush,
)
from invocations_app.delivery.addresses import is_public
from invocations_app.delivery.webhook import sign
from tests.receiver import OK, Receiver, endless, hang, plain, receiving, verify

SECRET = "a secret of both sides"
RESULT = {"invocation_id": "i1", "status": "succeeded", "response": "é\ud800"}
SENT = '{"invocation_id":"i1","status":"succeeded","response":"é\ufffd"}'.encode()


def webhook(url: str, **options: Any) -> WebhookPush:
    """Return a webhook that may reach this machine."""
    return WebhookPush(**{"url": url, "secret": SECRET, "allow_http": True, "allow_private": True} | options)


async def pushed_to(receiver: Receiver, **options: Any) -> None:
    await webhook(receiver.url(), **options).push(RESULT, "crm")


# What is sent.


async def test_a_push_is_a_signed_post_of_compact_json():
    with receiving() as receiver:
        await webhook(receiver.url("/a/b?c=d")).push(RESULT, "crm")
    [received] = receiver.received
    assert (received.line, received.body) == ("POST /a/b?c=d HTTP/1.1", SENT)
    verify(received, SECRET)
    signed = {"x-invocations-timestamp", "x-invocations-signature"}
    assert {name: value for name, value in received.headers.items() if name not in signed} == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "user-agent": "django-invocations",
        "x-invocations-destination": "crm",
        "content-length": str(len(SENT)),
        "connection": "close",
    }


def test_the_signature_has_a_fixed_form():
    # printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
    known = "a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
    assert sign(b"key", "1700000000", b'{"a":1}') == "v1=" + known


async def test_another_secret_gives_another_signature():
    with receiving() as receiver:
        await pushed_to(receiver, secret=b"other")
    verify(receiver.received[0], "other")
    with pytest.raises(AssertionError):
        verify(receiver.received[0], SECRET)


async def test_a_name_of_a_destination_breaks_no_header():
    with receiving() as receiver:
        await webhook(receiver.url()).push(RESULT, "a\r\nx: y\ud800é")
    assert receiver.received[0].headers["x-invocations-destination"] == "a%0D%0Ax%3A%20y%3F%C3%A9"


def test_it_works_in_uvloop_too():
    with receiving() as receiver, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(pushed_to(receiver))
    verify(receiver.received[0], SECRET)


# What counts as taken.


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_a_2xx_is_taken(answer):
    with receiving(plain(answer)) as receiver:
        await pushed_to(receiver)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        OK,
    ],
)
async def test_a_connection_that_stays_open_is_not_waited_for(answer):
    with receiving(hang(answer)) as receiver:
        await asyncio.wait_for(pushed_to(receiver), 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status):
    with receiving() as other:
        answer = f"HTTP/1.1 {status} Moved\r\nLocation: {other.url()}\r\nContent-Length: 0\r\n\r\n"
        with receiving(plain(answer.encode())) as receiver, pytest.raises(RedirectRefused):
            await pushed_to(receiver)
    assert (receiver.connections, other.connections) == (1, 0)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
async def test_another_status_is_a_failure_that_the_log_tells(status, caplog):
    answer = plain(f"HTTP/1.1 {status} No\r\n\r\nwhy".encode())
    with receiving(answer) as receiver, pytest.raises(StatusRefused) as raised:
        await pushed_to(receiver)
    assert str(raised.value) == "the answer is no success"
    assert caplog.messages == [f"The push to 'crm' was answered with the status {status}."]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    ],
)
async def test_what_is_no_whole_answer_is_a_failure(answer):
    with receiving(plain(answer)) as receiver, pytest.raises(MalformedResponse):
        await pushed_to(receiver)


async def test_nobody_listening_is_a_failure():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await webhook(f"http://127.0.0.1:{port}/").push(RESULT, "crm")


async def test_a_name_without_address_is_a_failure(monkeypatch):
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(socket.gaierror):
        await webhook("http://nowhere.example/").push(RESULT, "crm")


# Bounds.


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
async def test_a_receiver_that_hangs_is_left_in_time(answer):
    with receiving(hang(answer)) as receiver:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            await pushed_to(receiver, timeout_seconds=0.2)
        assert 0.2 <= time.monotonic() - start < 1


async def test_a_receiver_that_dribbles_is_left_in_time():
    def dribble(receiver: Receiver, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not receiver.over.wait(0.02):
                connection.sendall(b"x")

    with receiving(dribble) as receiver, pytest.raises(TimeoutError):
        await pushed_to(receiver, timeout_seconds=0.3)


async def test_looking_up_the_name_counts_in_the_time(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(0.5) or [])
    with pytest.raises(TimeoutError):
        await webhook("http://slow.example/", timeout_seconds=0.1).push(RESULT, "crm")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 1000 + b"\r\n"),
        (b"", b"x" * 1000),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    ],
)
async def test_a_huge_answer_is_not_read_on(head, piece):
    with receiving(endless(head, piece)) as receiver:
        with pytest.raises(ResponseTooLarge):
            await pushed_to(receiver, max_bytes=5000)
        # What the operating system takes beyond that is not read.
        assert receiver.sent < 20_000_000


async def test_a_body_as_long_as_allowed_is_read_and_one_byte_more_is_not():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with receiving(plain(head + b"x" * 1000)) as receiver:
        await pushed_to(receiver, max_bytes=len(head) + 1000)
        with pytest.raises(ResponseTooLarge):
            await pushed_to(receiver, max_bytes=len(head) + 999)


async def test_a_result_that_is_too_large_is_not_sent():
    with receiving() as receiver:
        with pytest.raises(RequestTooLarge):
            await pushed_to(receiver, max_bytes=len(SENT) - 1)
        await pushed_to(receiver, max_bytes=len(SENT))
    assert len(receiver.received) == 1


# Addresses.


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2001:db8::1", "100::1"),
        # Routers may unwrap these: 6to4, NAT64, Teredo.
        *("2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2001:0:7f00:1::1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0"]
)
async def test_this_machine_is_not_reached_under_any_name(host):
    with receiving() as receiver:
        url = f"http://{host}:{receiver.port}/"
        with pytest.raises((AddressNotAllowed, socket.gaierror)) as raised:
            await webhook(url, allow_private=False).push(RESULT, "crm")
    assert receiver.connections == 0
    if host != "[::1]":
        # A machine without IPv6 may not know it.
        assert raised.type is AddressNotAllowed


class Names:
    """Answers look-ups of names with addresses, one answer after the other; the last one again and again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answer]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if ":" in address else (address, port))
            for family, address in zip(families, answer, strict=True)
        ]


async def test_a_name_is_resolved_once_and_that_address_is_connected_to(monkeypatch):
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    with receiving() as receiver:
        await webhook(receiver.url(host="hooks.example")).push(RESULT, "crm")
    assert names.asked == ["hooks.example"]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1", "8.8.8.8"]]
)
async def test_a_name_with_a_private_address_is_refused_before_any_connection(monkeypatch, answer):
    names = Names(answer)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    made: list[Any] = []
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: made.append(args))
    with pytest.raises(AddressNotAllowed):
        await webhook("http://hooks.example/", allow_private=False).push(RESULT, "crm")
    assert (names.asked, made) == (["hooks.example"], [])


async def test_the_next_address_is_tried_where_one_does_not_answer(monkeypatch):
    with receiving() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", Names(["127.0.0.2", "127.0.0.1"]))
        await webhook(receiver.url(host="hooks.example")).push(RESULT, "crm")
    assert len(receiver.received) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        await pushed_to(receiver)
    assert (proxy.connections, len(receiver.received)) == (0, 1)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for hooks.example that nobody has signed but itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example"]
    files = ["-keyout", f"{path}.key", "-out", f"{path}.crt"]
    subprocess.run([openssl, *made, *named, *files], check=True, capture_output=True)
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_tls_asks_for_the_host_of_the_url_and_verifies_its_certificate(monkeypatch, certificate, server_side):
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    monkeypatch.setattr(socket, "getaddrinfo", Names(["127.0.0.1"]))
    with receiving(context=server_side) as receiver:
        await webhook(receiver.url(host="hooks.example", scheme="https"), allow_http=False).push(RESULT, "crm")
    verify(receiver.received[0], SECRET)
    assert receiver.server_names == ["hooks.example"]


async def test_a_certificate_of_another_name_is_refused(monkeypatch, certificate, server_side):
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    monkeypatch.setattr(socket, "getaddrinfo", Names(["127.0.0.1"]))
    with receiving(context=server_side) as receiver, pytest.raises(ssl.SSLCertVerificationError):
        await webhook(receiver.url(host="other.example", scheme="https")).push(RESULT, "crm")
    assert receiver.received == []


async def test_a_certificate_that_nobody_trusts_is_refused(monkeypatch, server_side):
    monkeypatch.setattr(socket, "getaddrinfo", Names(["127.0.0.1"]))
    with receiving(context=server_side) as receiver, pytest.raises(ssl.SSLCertVerificationError):
        await webhook(receiver.url(host="hooks.example", scheme="https")).push(RESULT, "crm")
    assert receiver.received == []


# Options.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://a.example/"}, "'URL' must start with https://."),
        ({"url": "ftp://a.example/", "allow_http": True}, "'URL' must start with https:// or http://."),
        ({"url": "https:///hook"}, "'URL' must name a host, and a port other than 0 if any."),
        ({"url": "https://a.example:0/"}, "'URL' must name a host, and a port other than 0 if any."),
        ({"url": "https://a.example:99999/"}, "'URL' is no URL."),
        ({"url": "https://u:p@a.example/"}, "'URL' must have no user, password or fragment."),
        ({"url": "https://a.example/#f"}, "'URL' must have no user, password or fragment."),
        ({"secret": ""}, "'SECRET' must be a text that is not empty."),
        ({"secret": None}, "'SECRET' must be a text that is not empty."),
        ({"allow_http": 1}, "'ALLOW_HTTP' must be True or False."),
        ({"allow_private": "no"}, "'ALLOW_PRIVATE' must be True or False."),
        ({"timeout_seconds": 0}, "'TIMEOUT_SECONDS' must be more than 0 and at most 60."),
        ({"timeout_seconds": 61}, "'TIMEOUT_SECONDS' must be more than 0 and at most 60."),
        ({"timeout_seconds": True}, "'TIMEOUT_SECONDS' must be more than 0 and at most 60."),
        ({"max_bytes": 0}, "'MAX_BYTES' must be a whole number of 1 or more."),
        ({"max_bytes": 1.5}, "'MAX_BYTES' must be a whole number of 1 or more."),
    ],
)
def test_options_that_cannot_be_are_named(options, text):
    with pytest.raises(ImproperlyConfigured) as raised:
        WebhookPush(**{"url": "https://a.example/", "secret": SECRET} | options)
    assert str(raised.value) == text


@pytest.mark.parametrize("url", [None, "https://a.example/\r\nx: y", "https://a.example/a b", "https://é.example/"])
def test_a_url_is_printable_ascii(url):
    with pytest.raises(ImproperlyConfigured, match="^'URL' must be ASCII text without blanks"):
        WebhookPush(url=url, secret=SECRET)


def test_nothing_shows_the_secret_or_the_url():
    push = WebhookPush(url="https://a.example/token", secret=SECRET)
    assert (repr(push), str(push)) == ("<WebhookPush>", "<WebhookPush>")


async def test_no_log_holds_secret_url_or_result(caplog):
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    with receiving(plain(b"HTTP/1.1 500 No\r\n\r\n")) as receiver, pytest.raises(StatusRefused):
        await webhook(receiver.url("/token")).push(RESULT, "crm")
    with pytest.raises(AddressNotAllowed):
        await webhook("http://localhost/token", allow_private=False).push(RESULT, "crm")
    for word in (SECRET, "token", "succeeded"):
        assert word not in caplog.text
