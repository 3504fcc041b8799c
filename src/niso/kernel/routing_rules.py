"""Read, add and delete niso's routing rules (RTM_NEWRULE, linux/fib_rules.h, ip-rule(8))."""

from __future__ import annotations

import errno
import socket
import struct

from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import Message, attribute, attributes, string, text, u32
from niso.kernel.nft_bridge import CHECKED
from niso.kernel.rtnetlink import Rtnl

PROTOCOL = 78
"""The mark of niso's rules (FRA_PROTOCOL). No entry of iproute2's rt_protos has this number."""
PRIORITY = 1  # after the rule of the local table, before rules of other programs
_MASK = int(CHECKED, 16)

_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_IIFNAME, _PRIORITY, _FWMARK, _TABLE, _SUPPRESS, _FWMASK, _PROTOCOL = 3, 6, 10, 15, 14, 16, 21
_PROHIBIT = 8  # FR_ACT_PROHIBIT
_INVERT = 0x2  # FIB_RULE_INVERT
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_header = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr


class Rule(NamedTuple):
    """A rule with niso's mark.

    ``body`` is the kernel's answer, ``drift`` the differences from niso's.
    """

    link: str
    drift: str
    body: bytes


def selector(link: str) -> str:
    """Return a bridge's rule in the syntax of ip-rule(8)."""
    return f"iif {link} fwmark 0/{CHECKED} priority {PRIORITY} protocol {PROTOCOL} prohibit"


def of_niso(rtnl: Rtnl, family: int) -> list[Rule]:
    """Return all rules of a family with niso's mark. Raises KernelError."""
    body = _header.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
    # a kernel without IPv6 or without policy routing has none
    absent = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    return rtnl.dump("list routing rules", _GETRULE, body, _parse, absent)


def add(rtnl: Rtnl, link: str, family: int) -> None:
    """Add the rule of a bridge, which need not exist yet. Raises KernelError."""
    body = _header.pack(_FAMILIES[family], 0, 0, 0, 0, 0, 0, _PROHIBIT, 0)
    body += text(_IIFNAME, link) + u32(_PRIORITY, PRIORITY) + u32(_FWMARK, 0)
    body += u32(_FWMASK, _MASK) + attribute(_PROTOCOL, bytes([PROTOCOL]))
    rtnl.transact(Message(f"add the routing rule of '{link}'", _NEWRULE, netlink.CREATE, body))


def delete(rtnl: Rtnl, link: str, family: int, drift: str = "") -> None:
    """Delete the rules of a bridge with this ``drift`` from niso's rule. Raises KernelError."""
    what = f"delete the routing rule of '{link}'"
    for rule in of_niso(rtnl, family):
        if (rule.link, rule.drift) == (link, drift):
            rtnl.transact(Message(what, _DELRULE, 0, rule.body, (errno.ENOENT,)))


def _parse(body: bytes) -> Rule | None:
    family, to, from_, tos, table, _, _, action, flags = _header.unpack_from(body)
    fields = attributes(body, _header.size)
    if fields.get(_PROTOCOL, b"") != bytes([PROTOCOL]):
        return None

    def number(kind: int) -> int:
        return int.from_bytes(fields.get(kind, b""), "little" if _LITTLE else "big")

    known = {_IIFNAME, _PRIORITY, _FWMARK, _TABLE, _SUPPRESS, _FWMASK, _PROTOCOL}
    words = []
    if action != _PROHIBIT:
        words.append("it does not prohibit")
    if number(_PRIORITY) != PRIORITY:
        words.append(f"priority is {number(_PRIORITY)}, should be {PRIORITY}")
    if (number(_FWMARK), number(_FWMASK)) != (0, _MASK):
        mark = f"{number(_FWMARK):#x}/{number(_FWMASK):#x}"
        words.append(f"fwmark is {mark}, should be 0/{CHECKED}")
    if to or from_ or tos or flags & _INVERT or fields.keys() - known:
        words.append("it has other selectors")
    # as a request, the flags say nothing about whether the link exists
    head = _header.pack(family, to, from_, tos, table, 0, 0, action, flags & _INVERT)
    return Rule(string(fields.get(_IIFNAME, b"")), "; ".join(words), head + body[_header.size :])


_LITTLE = struct.pack("=H", 1) == b"\1\0"
