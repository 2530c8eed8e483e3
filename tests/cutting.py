"""A way to a server that breaks, once, in the middle of an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cut:
    """A proxy that cuts one connection, and leaves all others alone.

    Attributes:
        port: Its port.
        happened: Set when the connection was cut.
    """

    port: int
    happened: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def cutting(port: int, after: bytes, on_cut: Callable[[], Any] = bool) -> Iterator[Cut]:
    """Run a proxy that cuts the first connection over which some bytes have come.

    Args:
        port: Port of the server on this machine.
        after: The bytes of an answer; they are the last thing that comes through, or not even they.
        on_cut: Called when it was cut.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        cut = Cut(listening.getsockname()[1])

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=pass_on, args=(client,), daemon=True).start()

        def pass_on(client: socket.socket) -> None:
            with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as server:
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                seen = b""
                while block := server.recv(4096):
                    seen += block
                    if after in seen and not cut.happened.is_set():
                        cut.happened.set()
                        client.sendall(block[: block.find(after) + len(after)] if after in block else block)
                        # Closing alone would wait for the other thread, which reads.
                        client.shutdown(socket.SHUT_RDWR)
                        on_cut()
                        return
                    client.sendall(block)
                client.shutdown(socket.SHUT_RDWR)

        def copy(client: socket.socket, server: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while block := client.recv(4096):
                    server.sendall(block)
                server.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=serve, daemon=True).start()
        yield cut
        # Wakes the accept.
        listening.shutdown(socket.SHUT_RDWR)
