"""Write captured packets with the names of services (pcapng, draft-ietf-opsawg-pcapng). Pure."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping

_MAGIC = 0xA1B2C3D4  # of a pcap file with microseconds (draft-ietf-opsawg-pcap)
_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_NAME4, _NAME6 = 1, 2


class Converter:
    """Turn the bytes of a pcap file into those of a pcapng file, as they come."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._rest = b""
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        """Return the blocks that are complete. Raises ValueError if it is not pcap."""
        self._rest += data
        return b"".join(self._blocks())

    def _blocks(self) -> Iterator[bytes]:
        if not self._begun:
            if len(self._rest) < _HEADER.size:
                return
            magic, _, _, _, _, most, link = _HEADER.unpack_from(self._rest)
            if magic != _MAGIC:
                raise ValueError("not a pcap file")
            self._rest, self._begun = self._rest[_HEADER.size :], True
            yield _block(_SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))
            yield _names(self._names)
            yield _block(_INTERFACE, struct.pack("=HHI", link & 0xFFFF, 0, most))
        while len(self._rest) >= _RECORD.size:
            seconds, micros, kept, whole = _RECORD.unpack_from(self._rest)
            end = _RECORD.size + kept
            if len(self._rest) < end:
                return
            time = seconds * 1_000_000 + micros
            head = struct.pack("=IIIII", 0, time >> 32, time & 0xFFFFFFFF, kept, whole)
            yield _block(_PACKET, head + _padded(self._rest[_RECORD.size : end]))
            self._rest = self._rest[end:]


def _names(names: Mapping[str, str]) -> bytes:
    """Return a Name Resolution Block: (address, name) of each service."""
    records = []
    for address, name in names.items():
        packed = ipaddress.ip_address(address).packed
        value = packed + name.encode() + b"\0"
        kind = _NAME4 if len(packed) == 4 else _NAME6
        records.append(struct.pack("=HH", kind, len(value)) + _padded(value))
    return _block(_NAMES, b"".join(records) + struct.pack("=HH", 0, 0))


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
