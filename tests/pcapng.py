"""Read files of captured packets."""

from __future__ import annotations

import struct

BLOCKS = {0x0A0D0D0A: "section", 4: "names", 1: "interface", 6: "packet"}


def blocks(data: bytes) -> list[tuple[str, bytes]]:
    """Return the kind and the content of each block of a pcapng file."""
    found = []
    while data:
        kind, size = struct.unpack_from("=II", data)
        assert data[size - 4 : size] == struct.pack("=I", size) and size % 4 == 0
        found.append((BLOCKS[kind], data[8 : size - 4]))
        data = data[size:]
    return found
