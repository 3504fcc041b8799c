"""Read, add and delete neighbour and forwarding entries; read how full neighbour tables are.

See linux/neighbour.h. A neighbour entry maps an address to a MAC, so that packets need no ARP. An
entry in a bridge's forwarding database (FDB) maps a MAC to a port. An entry in a VXLAN device's FDB
maps a MAC to another host. niso adds the first two entries for each service of this host, and all
three for each service of another host. Functions with an rtnetlink socket raise KernelError.
"""

from __future__ import annotations

import errno
import struct
import sys

from niso.base.errors import KernelError
from niso.base.named_tuples import NamedTuple
from niso.base.names import packed, unpacked
from niso.base.native import socket
from niso.kernel import netlink
from niso.kernel.link_records import packed_mac
from niso.kernel.netlink import Message, address_family, attribute, attributes, u32
from niso.kernel.rtnetlink import Rtnl

_NEWNEIGH, _DELNEIGH, _GETNEIGH, _GETNEIGHTBL = 28, 29, 30, 66
_AF_BRIDGE = 7
_DST, _LLADDR, _VLAN, _MASTER = 1, 2, 5, 9  # NDA_*
_NOARP, _PERMANENT = 0x40, 0x80  # NUD_*
_MASTERS, _SELF = 0x04, 0x02  # NTF_MASTER: the bridge's table; NTF_SELF: the device's own filter
_LEARNED = 0x10  # NTF_EXT_LEARNED: a routing daemon's
_MOST, _STATS = 4, 7  # NDTA_THRESH3, NDTA_STATS
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EINVAL)  # no entry; no link; not a bridge port
_MISSING = (errno.ENOENT, errno.ENODEV)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# (port's index, MAC, whether frames to the MAC are for the host) in a bridge's table; the kernel
# adds entries for the host for the ports' own MACs
StaticEntry = tuple[int, str, bool]

_ndmsg = struct.Struct("=BxxxiHBB")
_ndt_stats = struct.Struct("=80xQ")  # ten other counters, ndts_table_fulls


class Table(NamedTuple):
    """The fill level of the kernel's neighbour table for one IP version. The host and all services
    share this table.

    ``most`` is the limit net.ipv{4,6}.neigh.default.gc_thresh3. If the table has this many entries,
    the kernel refuses a new neighbour with ENOBUFS (neigh_alloc, net/core/neighbour.c). Permanent
    entries and entries of routing daemons do not count. The kernel reports only the number of all
    entries (ndtc_entries), so niso cannot know how many entries in other namespaces count.
    """

    family: int  # 4 or 6
    own: int  # entries of this namespace that count
    most: int
    refused: int = 0  # new neighbours that were refused since boot, in all namespaces


def tables(rtnl: Rtnl) -> list[Table]:
    def parse(body: bytes) -> Table | None:
        have = attributes(body, 4)
        if body[0] not in _FAMILIES or _STATS not in have or _MOST not in have:
            return None  # the parameters of one link
        (refused,) = _ndt_stats.unpack_from(have[_STATS])
        family = 6 if body[0] == socket.AF_INET6 else 4
        return Table(family, 0, int.from_bytes(have[_MOST], sys.byteorder), refused)

    def counted(body: bytes) -> bool | None:
        _, _, state, flags, _ = _ndmsg.unpack_from(body)
        return not (state & _PERMANENT or flags & _LEARNED) or None

    present = rtnl.dump("read the neighbour tables", _GETNEIGHTBL, bytes(4), parse)
    for position, table in enumerate(present):
        family = socket.AF_INET6 if table.family == 6 else socket.AF_INET
        own = rtnl.dump("list neighbours", _GETNEIGH, _request(family), counted)
        present[position] = table._replace(own=len(own))
    return present


def permanent(rtnl: Rtnl) -> list[tuple[int, str, str]]:
    """Return all permanent neighbour entries, IPv4 and IPv6: (interface index, address, MAC)."""

    def parse(body: bytes) -> tuple[int, str, str] | None:
        family, index, state, _, _ = _ndmsg.unpack_from(body)
        entry = attributes(body, 12)
        if not state & _PERMANENT or family not in _FAMILIES or _DST not in entry:
            return None
        return index, unpacked(entry[_DST]), entry.get(_LLADDR, b"").hex(":")

    return rtnl.dump("list neighbours", _GETNEIGH, _request(socket.AF_UNSPEC), parse)


def of_bridges(rtnl: Rtnl, bridge_index: int) -> dict[int, set[StaticEntry]]:
    """Return {bridge index: static entries} for the forwarding databases of bridges. If
    ``bridge_index`` is 0, all bridges are read. The kernel walks all interfaces for each call.

    Entries with a VLAN are left out: the kernel adds a copy of each entry for VLAN 1 if it supports
    VLANs in bridges, and niso's bridges use only entries without a VLAN (net/bridge/br_fdb.c).
    """

    def parse(body: bytes) -> tuple[int, StaticEntry] | None:
        _, index, state, flags, _ = _ndmsg.unpack_from(body)
        if not state & (_NOARP | _PERMANENT) or flags & _SELF:
            return None
        entry = attributes(body, 12)
        if _VLAN in entry:
            return None
        bridge = int.from_bytes(entry.get(_MASTER, b""), sys.byteorder)
        mac = entry.get(_LLADDR, b"").hex(":")
        return bridge, (index, mac, bool(state & _PERMANENT))

    body = _request(_AF_BRIDGE) + (u32(_MASTER, bridge_index) if bridge_index else b"")
    tables: dict[int, set[StaticEntry]] = {}
    for bridge, entry in rtnl.dump("list bridges' tables", _GETNEIGH, body, parse):
        tables.setdefault(bridge, set()).add(entry)
    return tables


def is_fixed(rtnl: Rtnl, port_index: int, mac: str) -> bool:
    """Return whether a static FDB entry sends frames for ``mac`` to the port ``port_index``."""
    index, _, state = _entry(rtnl, port_index, mac)
    return index == port_index and bool(state & _NOARP)


def _entry(rtnl: Rtnl, port_index: int, mac: str) -> tuple[int, int, int]:
    # (index of the interface to which frames are sent, index of the bridge, NUD_* state), or zeros;
    # both indexes are equal if the bridge passes the frames to the host
    body = _request(_AF_BRIDGE, port_index) + _mac(mac)
    answer = rtnl.get_one(f"find the port of {mac}", _GETNEIGH, body, _ABSENT)
    if answer is None:
        return 0, 0, 0
    _, index, state, _, _ = _ndmsg.unpack_from(answer)
    bridge = int.from_bytes(attributes(answer, 12).get(_MASTER, b""), sys.byteorder)
    return index, bridge, state


def new_fdb_entry(port_index: int, mac: str, own: str) -> list[Message]:
    """Return the messages that add a static entry to a bridge, which makes the bridge send frames
    for ``mac`` to the port ``port_index``. If the bridge has an entry for ``mac``, the kernel
    returns EEXIST.

    For a new port, ``own`` is the MAC of the port itself. The kernel has added an entry for this
    MAC. The second message deletes the entry: no service sends frames to this MAC, and the kernel
    walks all entries whenever a port is added or removed.
    """
    body = _ndmsg.pack(_AF_BRIDGE, port_index, _NOARP, _MASTERS, 0) + _mac(mac)
    what = f"add the forwarding entry of {mac} for link {port_index}"
    new = Message(what, _NEWNEIGH, netlink.CREATE | netlink.EXCL, body)
    return [new, delete_fdb_entry(port_index, own)] if own else [new]


def add_fdb_entry(rtnl: Rtnl, port_index: int, mac: str, own: str = "") -> None:
    """Add or replace the static entry that makes a bridge send frames for ``mac`` to a port.

    Raises KernelError with EADDRINUSE if ``mac`` is the bridge's own MAC, because services could
    then no longer reach the host. For a new port, the same error is raised if ``mac`` is the MAC of
    any interface of the host.
    """
    new, *more = new_fdb_entry(port_index, mac, own)
    try:
        rtnl.transact(new, *more)
        return
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
    index, bridge, state = _entry(rtnl, port_index, mac)
    if state & _PERMANENT and (own or index == bridge):
        reason = "it is the MAC address of the bridge or of the host's end of a port"
        raise netlink.refused(new.what, errno.EADDRINUSE, reason)
    rtnl.transact(new._replace(flags=netlink.CREATE | netlink.REPLACE), *more)


def take(bridge_index: int, mac: str) -> Message:
    """Return the netlink message that adds a local FDB entry for a bridge's own MAC. The entry
    makes the bridge pass frames for this MAC up to the host.
    """
    body = _ndmsg.pack(_AF_BRIDGE, bridge_index, _PERMANENT, _SELF, 0) + _mac(mac)
    what = f"add the forwarding entry of {mac} for bridge {bridge_index} itself"
    return Message(what, _NEWNEIGH, netlink.CREATE | netlink.REPLACE, body)


def delete_fdb_entry(port_index: int, mac: str) -> Message:
    """Return the netlink message that deletes a bridge's static forwarding entry for a MAC."""
    body = _request(_AF_BRIDGE, port_index, _MASTERS) + _mac(mac)
    what = f"delete the forwarding entry of {mac}"
    return Message(what, _DELNEIGH, 0, body, _MISSING)


def of_tunnel(rtnl: Rtnl, index: int) -> list[tuple[str, str]]:
    """Return the forwarding entries for a VXLAN device. An entry in the device's own FDB is (MAC,
    address of the other host). An entry in its bridge's FDB that sends frames to the device is
    (MAC, ""). Entries that the kernel adds by itself are left out.
    """
    body = _request(_AF_BRIDGE, index)
    parsed = rtnl.dump("list a VXLAN device's table", _GETNEIGH, body, _tunnel_entry)
    return [entry[1:] for entry in parsed if entry[0] == index]


def _tunnel_entry(body: bytes) -> tuple[int, str, str] | None:
    _, index, state, flags, _ = _ndmsg.unpack_from(body)
    have = attributes(body, 12)
    if _VLAN in have:
        return None
    mac = have.get(_LLADDR, b"").hex(":")
    if flags & _SELF and _DST in have:
        return index, mac, unpacked(have[_DST])
    if flags & _SELF or state & _PERMANENT:  # the device's own MAC
        return None
    return index, mac, ""


def tunnel_entry(rtnl: Rtnl, index: int, mac: str) -> tuple[str, bool]:
    """Return (address of the host to which a VXLAN device sends frames for a MAC, whether the
    device's bridge sends these frames to the device). The address is "" if the device has no entry
    for the MAC.
    """
    body = _request(_AF_BRIDGE, index, _SELF) + _mac(mac)
    answer = rtnl.get_one(f"find the host of {mac}", _GETNEIGH, body, _ABSENT)
    entry = _tunnel_entry(answer) if answer is not None else None
    return (entry[2] if entry else "", is_fixed(rtnl, index, mac))


def add_tunnel_entry(index: int, mac: str, host: str, was: str) -> list[Message]:
    """Return the messages that make a VXLAN device and its bridge send frames for a MAC to another
    host. ``host`` is the address of that host. ``was`` is the address to which the device sent
    these frames before, or "" if the device has no entry for the MAC.
    """
    what = f"add the forwarding entry of {mac} to {host}"
    flags = netlink.CREATE | netlink.REPLACE
    port = _ndmsg.pack(_AF_BRIDGE, index, _NOARP, _MASTERS, 0) + _mac(mac)
    device = _ndmsg.pack(_AF_BRIDGE, index, _PERMANENT | _NOARP, _SELF, 0) + _mac(mac)
    messages = [
        Message(what, _NEWNEIGH, flags, device + attribute(_DST, packed(host))),
        Message(what, _NEWNEIGH, flags, port),
    ]
    # the entry has an address of another family: the kernel would replace it, but 4 bytes fill an
    # IPv6 address only partly
    return [*delete_tunnel_entry(index, mac, port=False), *messages] if was else messages


def delete_tunnel_entry(index: int, mac: str, port: bool = True) -> list[Message]:
    """Return the messages that delete the entry for a MAC from a VXLAN device. With ``port``, the
    entry of the bridge that sends frames for the MAC to the device is deleted too.
    """
    what = f"delete the forwarding entry of {mac}"
    body = _request(_AF_BRIDGE, index, _SELF) + _mac(mac)
    device = Message(what, _DELNEIGH, 0, body, _MISSING)
    return [delete_fdb_entry(index, mac), device] if port else [device]


def mac_of(rtnl: Rtnl, index: int, address: str) -> str:
    """Return the MAC in an interface's permanent neighbour entry for an address, or ""."""
    body = _request(address_family(address), index) + attribute(_DST, packed(address))
    answer = rtnl.get_one(f"find the MAC of {address}", _GETNEIGH, body, _ABSENT)
    if answer is None or not _ndmsg.unpack_from(answer)[2] & _PERMANENT:
        return ""
    return attributes(answer, 12).get(_LLADDR, b"").hex(":")


def resolve(index: int, address: str, mac: str) -> Message:
    body = _ndmsg.pack(address_family(address), index, _PERMANENT, 0, 0)
    body += attribute(_DST, packed(address)) + _mac(mac)
    what = f"add neighbour {address} of link {index}"
    return Message(what, _NEWNEIGH, netlink.CREATE | netlink.REPLACE, body)


def forget(index: int, address: str) -> Message:
    body = _request(address_family(address), index) + attribute(_DST, packed(address))
    what = f"delete neighbour {address} of link {index}"
    return Message(what, _DELNEIGH, 0, body, _MISSING)


def _mac(mac: str) -> bytes:
    return attribute(_LLADDR, packed_mac(mac))


def _request(family: int, index: int = 0, flags: int = 0) -> bytes:
    return _ndmsg.pack(family, index, 0, flags, 0)
