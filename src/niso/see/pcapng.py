"""Write captured packets as pcapng with service names (draft-ietf-opsawg-pcapng). Pure."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator, Mapping

_MAGIC = 0xA1B2C3D4  # of a pcap file with microseconds (draft-ietf-opsawg-pcap)
_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_NAME4, _NAME6 = 1, 2
_COMMENT, _IF_NAME = 1, 2  # options
_RAW = 101  # LINKTYPE_RAW: begins with an IP header
_MOST = 262_144  # snapshot length: bytes of a packet


class File:
    """A pcapng file that merges several captures, as it grows.

    ``names`` maps addresses to names. ``comment`` returns the comment for a packet with a given
    time (microseconds since 1970), or "". ``most`` is the number of packets after which the file is
    full.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        comment: Callable[[int], str] = lambda _: "",
        most: int | None = None,
    ) -> None:
        self._names, self._comment, self._left = names, comment, most
        self._interfaces = 0

    @property
    def is_full(self) -> bool:
        """Return whether the file has as many packets as it takes."""
        return self._left is not None and self._left <= 0

    def interface(self, name: str, link: int, most: int) -> tuple[int, bytes]:
        """Add an interface; return its number and the blocks before its packets."""
        head = b""
        if not self._interfaces:
            head = _block(_SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))
            head += _block_of_names(self._names)
        number, self._interfaces = self._interfaces, self._interfaces + 1
        body = struct.pack("=HHI", link & 0xFFFF, 0, most) + _option(_IF_NAME, name)
        return number, head + _block(_INTERFACE, body)

    def packet(self, interface: int, time: int, data: bytes, length: int) -> bytes:
        """Return the block of a packet, or b"" if the file is full."""
        if self.is_full:
            return b""
        if self._left is not None:
            self._left -= 1
        halves = time >> 32, time & 0xFFFFFFFF
        head = struct.pack("=IIIII", interface, *halves, len(data), length)
        comment = self._comment(time)
        return _block(
            _PACKET, head + _padded(data) + (_option(_COMMENT, comment) if comment else b"")
        )


class Converter:
    """Convert a pcap stream into blocks of a pcapng file."""

    def __init__(self, file: File, name: str) -> None:
        self._file, self._name = file, name
        self._rest = b""
        self._interface: int | None = None

    def feed(self, data: bytes) -> bytes:
        """Convert more bytes; return the complete blocks.

        Raises ValueError if the stream is not pcap.
        """
        self._rest += data
        return b"".join(self._blocks())

    def _blocks(self) -> Iterator[bytes]:
        if self._interface is None:
            if len(self._rest) < _HEADER.size:
                return
            magic, _, _, _, _, most, link = _HEADER.unpack_from(self._rest)
            if magic != _MAGIC:
                raise ValueError("not a pcap file")
            self._rest = self._rest[_HEADER.size :]
            self._interface, head = self._file.interface(self._name, link, most)
            yield head
        while len(self._rest) >= _RECORD.size:
            seconds, micros, kept, whole = _RECORD.unpack_from(self._rest)
            end = _RECORD.size + kept
            if len(self._rest) < end:
                return
            data = self._rest[_RECORD.size : end]
            yield self._file.packet(self._interface, seconds * 1_000_000 + micros, data, whole)
            self._rest = self._rest[end:]


def pcap_header() -> bytes:
    """Return the header of a pcap file whose packets begin with an IP header."""
    return _HEADER.pack(_MAGIC, 2, 4, 0, 0, _MOST, _RAW)


def pcap_packet(time: int, data: bytes, length: int) -> bytes:
    """Return a packet record of a pcap file; ``time`` is in microseconds since 1970."""
    return _RECORD.pack(*divmod(time, 1_000_000), len(data), max(length, len(data))) + data


def _block_of_names(names: Mapping[str, str]) -> bytes:
    """Return a Name Resolution Block that maps the addresses to names."""
    records = []
    for address, name in names.items():
        packed = ipaddress.ip_address(address).packed
        value = packed + name.encode() + b"\0"
        kind = _NAME4 if len(packed) == 4 else _NAME6
        records.append(struct.pack("=HH", kind, len(value)) + _padded(value))
    return _block(_NAMES, b"".join(records) + struct.pack("=HH", 0, 0))


def _option(code: int, text: str) -> bytes:
    """Return one option, followed by the end of options."""
    value = text.encode()
    return struct.pack("=HH", code, len(value)) + _padded(value) + struct.pack("=HH", 0, 0)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
