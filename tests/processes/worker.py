"""``python -m tests.processes.worker <descriptor>``: uvicorn on an inherited socket."""

from __future__ import annotations

import socket
import sys

import uvicorn


def main() -> None:
    config = uvicorn.Config(
        "tests.processes.asgi:application", loop="uvloop", http="httptools", log_config=None, access_log=False
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
