"""Ask a name server until it has an address, without waiting for its other answers: ``ask_names.py SERVER NAME SECONDS``.

Prints when it had one (monotonic clock, in s). An answer to an unknown name may take seconds, if the server asks others first.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

EVERY_S = 0.005


def main(server: str, name: str, seconds: str) -> None:
    # RFC 1035, 4.1: one question for an A record, recursion desired
    question = bytes([len(name), *name.encode(), 0]) + struct.pack("!HH", 1, 1)
    asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asks.connect((server, 53))
    end = time.monotonic() + float(seconds)
    number = 0
    while time.monotonic() < end:
        number += 1
        asks.send(struct.pack("!6H", number % 65536, 0x100, 1, 0, 0, 0) + question)
        again = time.monotonic() + EVERY_S
        while select.select([asks], [], [], max(0.0, again - time.monotonic()))[0]:
            if struct.unpack("!6H", asks.recv(512)[:12])[3]:
                print(time.monotonic())
                return
    sys.exit(f"{name} is not resolved after {seconds} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
