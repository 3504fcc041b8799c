"""Limit the egress rate of a link with the queueing discipline tbf (tc-tbf(8)).

Messages and numbers: linux/rtnetlink.h, linux/pkt_sched.h, net/sched/sch_tbf.c.
"""

from __future__ import annotations

import errno
import struct

from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import Message, attribute, attributes, nested, text, u32
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from niso.kernel.rtnl_records import Link

TBF = "tbf"
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_PARMS, _RATE64, _BURST = 1, 4, 6  # TCA_TBF_*
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel computes times itself, without a table
_NONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
_MOST_32 = (1 << 32) - 1
_LEAST_BURST = 32 << 10
"""Half of the largest packet of the link (64 KiB, GSO); tbf splits larger packets."""

_tcmsg = struct.Struct("=BxxxiIII")  # family, link, handle, parent, info
_ratespec = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_parms = struct.Struct("=12s12sIII")  # tc_tbf_qopt: rate, peak rate, limit, buffer, mtu


class Qdisc(NamedTuple):
    """The root queueing discipline of a link; ``rate`` and ``limit`` are those of tbf."""

    kind: str
    rate: int  # bytes per second
    limit: int  # bytes that queue


def burst(rate: int) -> int:
    """Return the bytes that may pass at once: those of 20 ms at this rate."""
    return max(rate // 50, _LEAST_BURST)


def limit(rate: int) -> int:
    """Return the bytes that may queue: those of 50 ms more. Further packets are dropped."""
    return rate // 20 + burst(rate)


def limit_of(rtnl: Rtnl, link: Link) -> Qdisc | None:
    """Return the root queueing discipline of a link if it is tbf, else None. Raises KernelError."""
    if link.qdisc != TBF:
        return None
    what = f"read the qdisc of link {link.index}"
    body = _tcmsg.pack(0, link.index, 0, _ROOT, 0)
    # The kernel answers with a notification to a requester that sets the echo flag, but not for a
    # built-in qdisc, such as noop of a link that is down. The acknowledgement comes in any case.
    answer = rtnl.get_one(what, _GETQDISC, body, _NONE, netlink.ECHO | netlink.ACK)
    return None if answer is None else netlink.understood(what, _parse, answer)


def _parse(body: bytes) -> Qdisc:
    fields = attributes(body[_tcmsg.size :])
    kind = netlink.string(fields[_KIND])
    if kind != TBF:
        return Qdisc(kind, 0, 0)
    options = attributes(fields[_OPTIONS])
    spec, _, waits, _, _ = _parms.unpack(options[_PARMS][: _parms.size])
    rate = _ratespec.unpack(spec)[5]
    if _RATE64 in options:
        rate = int(struct.unpack("=Q", options[_RATE64])[0])
    return Qdisc(kind, rate, waits)


def set_rate(rtnl: Rtnl, link_index: int, rate: int) -> None:
    """Limit the egress of a link to ``rate`` bytes per second. Raises KernelError."""
    what = f"limit the rate of link {link_index}"
    spec = _ratespec.pack(0, _ETHERNET, 0, 0, 0, min(rate, _MOST_32))
    options = [attribute(_PARMS, _parms.pack(spec, bytes(12), limit(rate), 0, 0))]
    if rate > _MOST_32:
        options.append(attribute(_RATE64, struct.pack("=Q", rate)))
    body = _tcmsg.pack(0, link_index, 0, _ROOT, 0) + text(_KIND, TBF)
    body += nested(_OPTIONS, *options, u32(_BURST, burst(rate)))
    try:
        rtnl.transact(Message(what, _NEWQDISC, netlink.CREATE | netlink.REPLACE, body))
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise
        raise KernelError(
            "this kernel cannot limit bandwidth: it has no queueing discipline tbf",
            "load the module sch_tbf (CONFIG_NET_SCH_TBF), or leave out network.bandwidth",
            errno=error.errno,
        ) from error


def clear(rtnl: Rtnl, link_index: int) -> None:
    """Restore the link's default queueing discipline; no-op if it has it. Raises KernelError."""
    body = _tcmsg.pack(0, link_index, 0, _ROOT, 0)
    rtnl.transact(Message(f"clear the rate of link {link_index}", _DELQDISC, 0, body, _NONE))
