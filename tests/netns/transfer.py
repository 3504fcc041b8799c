"""Run as a client: an endless TCP transfer through an echo service, compared byte for byte.

Words on stdin, each answered by a line with how many bytes have come back: ``pause`` (when all have), ``go``, ``count``.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

BLOCK = 1 << 14
PAUSE_S = 0.02


def main(host: str, port: int) -> None:
    connection = socket.create_connection((host, port), 10)
    hello = b""
    while not hello.endswith(b"\n"):
        hello += connection.recv(1)
    print(hello.decode().strip(), flush=True)
    connection.setblocking(False)
    outstanding, unsent, received = bytearray(), b"", 0
    going, waiting, due = True, False, 0.0
    while True:
        now = time.monotonic()
        if going and not outstanding and now >= due:
            unsent = os.urandom(BLOCK)
            outstanding += unsent
            due = now + PAUSE_S
        if waiting and not outstanding:
            waiting = False
            print(received, flush=True)
        pause = None if outstanding or not going else max(0.0, due - now)
        ready, writable, _ = select.select(
            [connection, 0], [connection] if unsent else [], [], pause
        )
        if writable:
            unsent = unsent[connection.send(unsent) :]
        if connection in ready:
            data = connection.recv(1 << 20)
            if not data or not outstanding.startswith(data):
                sys.exit(
                    "the connection has ended" if not data else f"other bytes after {received}"
                )
            del outstanding[: len(data)]
            received += len(data)
        if 0 in ready:
            word = os.read(0, 100).decode().strip()
            if not word:
                return
            going = word != "pause"
            waiting = word == "pause"
            if not waiting:
                print(received, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
