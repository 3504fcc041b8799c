"""Convert values of nftables elements to the bytes of the kernel's registers, and back."""

from __future__ import annotations

import socket
import sys

from niso.kernel import nft_wire
from niso.kernel.netlink import attribute, attributes, nested, string, text

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}

ELEM_EXPR = 7  # NFTA_SET_ELEM_EXPR
_EXPR_NAME, _EXPR_DATA = 1, 2
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_LIMIT_INV = 1  # NFT_LIMIT_F_INV: matches what is over the rate

# nftables, include/datatype.h: number and width in bytes of each type that niso uses
_NFPROTO, _IPV4, _IPV6, _ETHER, _PROTO, _SERVICE, _CLASS, _IFNAME = 2, 7, 8, 9, 12, 13, 23, 41
# bytes of a packet without an nft type: a MAC, addresses of a quoted or wrapped packet, a VNI
_MAC_NUMBER, _QUOTED4, _QUOTED6, _VNI = -1, -2, -3, -4
_SORTED_CLASS = -5  # a class as intervals have it
_NUMBERS = (_MAC_NUMBER, _QUOTED4, _QUOTED6, _VNI)
WIDTHS = {
    _VNI: 3,
    _MAC_NUMBER: 6,
    _QUOTED4: 4,
    _QUOTED6: 16,
    _NFPROTO: 1,
    _IPV4: 4,
    _IPV6: 16,
    _ETHER: 6,
    _PROTO: 1,
    _SERVICE: 2,
    _CLASS: 4,
    _SORTED_CLASS: 4,
    _IFNAME: 16,
}
_NFPROTOS = {"ipv4": 2, "ipv6": 10}  # NFPROTO_*
NAMES = {
    "nf_proto": _NFPROTO,
    "ipv4_addr": _IPV4,
    "ipv6_addr": _IPV6,
    "ether_addr": _ETHER,
    "inet_proto": _PROTO,
    "inet_service": _SERVICE,
    "classid": _CLASS,
    "ifname": _IFNAME,
    "iifname": _IFNAME,
    "@th,208,48": _MAC_NUMBER,
    "@th,192,32": _QUOTED4,
    "@th,256,128": _QUOTED6,
    "ip saddr": _IPV4,
    "ip6 saddr": _IPV6,
    nft_wire.VNI: _VNI,
    nft_wire.TO: _MAC_NUMBER,
    nft_wire.FROM: _MAC_NUMBER,
    "@th,336,32": _QUOTED4,
    "@th,304,128": _QUOTED6,
}


def in_intervals(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the types of a key as a set with intervals has them: all in network byte order."""
    return tuple(_SORTED_CLASS if kind == _CLASS else kind for kind in kinds)


def pack_limit(value: str) -> bytes:
    """Return the expression of a limit written as by `nft_limits.limit`, with the unit second."""
    rate, burst = (int(word.partition("/")[0]) for word in value.split()[3:6:2])
    return nested(
        ELEM_EXPR,
        text(_EXPR_NAME, "limit"),
        nested(
            _EXPR_DATA,
            attribute(_LIMIT_RATE, rate.to_bytes(8, "big")),
            attribute(_LIMIT_UNIT, (1).to_bytes(8, "big")),
            attribute(_LIMIT_BURST, burst.to_bytes(4, "big")),
            attribute(_LIMIT_TYPE, bytes(4)),  # NFT_LIMIT_PKTS
            attribute(_LIMIT_FLAGS, _LIMIT_INV.to_bytes(4, "big")),
        ),
    )


def limit(expression: dict[int, bytes]) -> str:
    """Return the limit of an element as nft writes it, "" if the element has another expression."""
    if string(expression[_EXPR_NAME]) != "limit":
        return ""
    data = attributes(expression[_EXPR_DATA])
    rate, unit, burst, _, flags = (int.from_bytes(data[n], "big") for n in range(1, 6))
    over = " over" if flags & _LIMIT_INV else ""
    per = {1: "second", 60: "minute", 3600: "hour"}.get(unit, f"{unit} s")
    return f"limit rate{over} {rate}/{per} burst {burst} packets"


def pack_range(kind: int, field: str) -> tuple[bytes, bytes]:
    address, slash, length = field.partition("/")
    if slash and kind in (_IPV4, _IPV6):
        first = pack(kind, address)
        host = (1 << len(first) * 8 - int(length)) - 1
        return first, (int.from_bytes(first, "big") | host).to_bytes(len(first), "big")
    low, dash, high = field.partition("-")
    if dash and kind in (_IPV4, _IPV6, _SERVICE):
        return pack(kind, low), pack(kind, high)
    return pack(kind, field), pack(kind, field)


def pack(kind: int, field: str) -> bytes:
    if kind == _IPV4:
        return socket.inet_pton(socket.AF_INET, field)
    if kind == _IPV6:
        return socket.inet_pton(socket.AF_INET6, field)
    if kind == _ETHER:
        return bytes.fromhex(field.replace(":", ""))
    if kind in _NUMBERS:
        return int(field, 0).to_bytes(WIDTHS[kind], "big")
    if kind == _SERVICE:
        return int(field).to_bytes(2, "big")
    if kind in (_CLASS, _SORTED_CLASS):
        major, _, minor = field.partition(":")
        number = int(major, 16) << 16 | int(minor, 16)
        return number.to_bytes(4, sys.byteorder if kind == _CLASS else "big")
    if kind == _NFPROTO:
        return bytes([_NFPROTOS[field]])
    if kind == _PROTO:
        return bytes([PROTOCOLS[field] if field in PROTOCOLS else int(field)])
    return field.strip('"').encode().ljust(16, b"\0")


def unpack_range(kind: int, first: bytes, last: bytes) -> str:
    """Return a range packed by `pack_range` as nft lists it: as a prefix if possible."""
    if first == last:
        return unpack(kind, first)
    if kind in (_IPV4, _IPV6):
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        length = (low ^ high).bit_length()
        if low ^ high == (1 << length) - 1 and high & low == low:
            return f"{unpack(kind, first)}/{8 * len(first) - length}"
    return f"{unpack(kind, first)}-{unpack(kind, last)}"


def unpack(kind: int, packed: bytes) -> str:
    if kind == _IPV4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if kind == _IPV6:
        return socket.inet_ntop(socket.AF_INET6, packed)
    if kind == _ETHER:
        return packed.hex(":")
    if kind in _NUMBERS:
        number = int.from_bytes(packed, "big")
        return hex(number) if kind == _QUOTED6 else str(number)  # nft has no longer integer type
    if kind == _SERVICE:
        return str(int.from_bytes(packed, "big"))
    if kind in (_CLASS, _SORTED_CLASS):
        number = int.from_bytes(packed, sys.byteorder if kind == _CLASS else "big")
        return f"{number >> 16:x}:{number & 0xFFFF:x}"
    if kind == _NFPROTO:
        return next(
            (name for name, number in _NFPROTOS.items() if number == packed[0]), str(packed[0])
        )
    if kind == _PROTO:
        return next(
            (name for name, number in PROTOCOLS.items() if number == packed[0]), str(packed[0])
        )
    return f'"{string(packed)}"'
