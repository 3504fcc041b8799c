"""Create and change network interfaces, addresses, routes and routing rules through rtnetlink(7).

See linux/rtnetlink.h, linux/if_link.h, linux/fib_rules.h and ip-rule(8).

An interface ("link" in the kernel's terms) that niso creates always has niso's alias, even if niso
is killed: one message creates the interface, another sets the alias, and one system call sends
both. If the creation fails because another program's interface has the name, the second message
must not change the alias of that interface. Both messages therefore identify the interface by an
index that niso chooses, from a range that the kernel's own counter does not reach. Creating the
interface with a temporary name would be an alternative, but a rename waits for RCU.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from fcntl import ioctl

from niso.base.errors import KernelError
from niso.base.names import BRIDGE_GROUP, PORT_GROUP
from niso.base.native import socket
from niso.kernel import link_records, netlink
from niso.kernel.link_records import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_MASTER,
    IFLA_MTU,
    RTA_DST,
    RTA_OIF,
    RTA_PRIORITY,
    Link,
    LinkAddress,
    alias_data,
    ifaddrmsg,
    of_kind,
    packed_mac,
    parse_cidr,
    prefix,
    rtmsg,
)
from niso.kernel.netlink import Message, attribute, attributes, nested, refused, string, text, u32
from niso.kernel.policy_rules import CHECKED

# --- links, addresses and routes ------------------------------------------------------------------

MAIN = 254  # RT_TABLE_MAIN
KERNEL = 2  # RTPROT_KERNEL: added by the kernel with an address
BOOT = 3  # RTPROT_BOOT: routes added by hand, as by iproute2
UNICAST = 1  # RTN_UNICAST
# the types of routes that lead to no interface: RTN_*
NOWHERE = {"blackhole": 6, "unreachable": 7, "prohibit": 8, "throw": 9}

NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26

IFLA_NET_NS_FD, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 28, 26, 29
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_MOST_ROUTES = 64  # to the same destination, which differ in metric
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_MCAST_SNOOPING = 1, 5, 23
_VETH_INFO_PEER = 1
_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1
_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS

_RTNH_F_ONLINK = 4  # linux/rtnetlink.h
_IFA_BROADCAST, _IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 4, 0x02, 0x200
_RTA_PREFSRC = 7
_METRIC6 = 256  # IP6_RT_PRIO_ADDRCONF: routes that the kernel adds with IPv6 addresses
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255

_SIOCGIFNAME, _SIOCGIFINDEX, _SIOCETHTOOL, _SIOCGSKNS = 0x8910, 0x8933, 0x8946, 0x894C
_GTXCSUM, _STXCSUM, _SGRO = 0x16, 0x17, 0x2C
_LO = 1  # LOOPBACK_IFINDEX
_OWN_INDEX = 1 << 20  # the first index of links made by niso; the kernel counts up from 1
_INDEX_TRIES = 16
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_ifreq = struct.Struct("=16si20x")
_ifr_data = struct.Struct("@16sP16x")


class Rtnl(netlink.Netlink):
    """A context manager for an rtnetlink socket in the network namespace that opened it. Methods
    raise KernelError with the object's name and the kernel's error message. It is not an error to
    delete an object that does not exist.
    """

    def __init__(self) -> None:
        super().__init__(netlink.ROUTE)

    def link(self, name: str) -> Link | None:
        what = f"read link '{name}'"
        body = _named(name) + u32(_IFLA_EXT_MASK, _SKIP_STATS)
        answer = self.get_one(what, _GETLINK, body, (errno.ENODEV,))
        return (
            netlink.parse_reply(what, link_records.parse_link, answer)
            if answer is not None
            else None
        )

    def index(self, name: str) -> int:
        """Return an interface's index (netdevice(7)). This is 10 times faster than `link`."""
        with netlink.refusing(f"find link '{name}'"):
            answer = ioctl(self._socket, _SIOCGIFINDEX, _ifreq.pack(name.encode(), 0))
        return int(_ifreq.unpack(answer)[1])

    def open_netns(self) -> int:
        """Return a descriptor of the network namespace of this socket. The caller closes it."""
        with netlink.refusing("open the network namespace of a socket"):
            return int(ioctl(self._socket, _SIOCGSKNS))

    def name(self, index: int) -> str:
        try:
            answer = ioctl(self._socket, _SIOCGIFNAME, _ifreq.pack(b"", index))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return ""
            raise refused(f"find link {index}", error.errno or 0) from error
        return string(_ifreq.unpack(answer)[0])

    def links(self) -> list[Link]:
        body = ifinfo() + u32(_IFLA_EXT_MASK, _SKIP_STATS)
        return self.dump("list links", _GETLINK, body, link_records.parse_link)

    def makes_sums(self, name: str) -> bool:
        return not self._ethtool(f"read offloads of link '{name}'", name, _GTXCSUM, 0)

    def make_sums(self, name: str) -> None:
        """Switch off an interface's checksum offload. The kernel then completes checksums and
        splits large packets before it sends them.
        """
        self._ethtool(f"switch off checksum offload of link '{name}'", name, _STXCSUM, 0)

    def join_segments(self, name: str) -> None:
        """Switch on GRO, if possible, to make an interface join small TCP segments."""
        try:
            self._ethtool(f"switch on GRO of link '{name}'", name, _SGRO, 1)
        except KernelError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise

    def _ethtool(self, what: str, name: str, command: int, value: int) -> int:
        data = array("I", (command, value))
        with netlink.refusing(what):
            ioctl(self._socket, _SIOCETHTOOL, _ifr_data.pack(name.encode(), data.buffer_info()[0]))
        return data[1]

    def add_bridge(
        self,
        name: str,
        *,
        mtu: int,
        alias: str,
        mac: str | None = None,
        call_iptables: bool = False,
        call_ip6tables: bool = False,
        up: bool = True,
    ) -> None:
        """Create a bridge, without STP, multicast snooping and link-local address.

        If ``mac`` is None, the bridge gets a random MAC, which never changes. By default a bridge
        takes the lowest MAC of its ports. This MAC would change while services have it in their
        neighbour tables. With ``call_iptables`` and ``call_ip6tables``, bridged frames pass the
        IPv4 and IPv6 hooks, whatever the values of the sysctls bridge-nf-call-*.
        """
        index = self.free_index()
        data = (
            u32(_BR_FORWARD_DELAY, 0),
            u32(_BR_STP_STATE, 0),
            attribute(_BR_MCAST_SNOOPING, b"\0"),
            *link_records.call_flags(call_iptables, call_ip6tables),
        )
        own = packed_mac(mac) if mac else _random_mac()
        self.create(
            index,
            f"create bridge '{name}'",
            text(IFLA_IFNAME, name)
            + attribute(IFLA_ADDRESS, own)
            + u32(IFLA_GROUP, BRIDGE_GROUP)
            + u32(IFLA_MTU, mtu ^ 1)
            + of_kind("bridge", *data),
            # only a change counts as set by hand. The kernel does not adapt an MTU set by hand to
            # the ports' MTUs, and need not walk all ports (br_mtu_auto_adjust)
            alias_data(alias) + u32(IFLA_MTU, mtu),
            *((raise_up(name, index),) if up else ()),
        )

    def add_veth(  # noqa: PLR0913  # settings, by keyword
        self,
        name: str,
        *,
        peer: str,
        peer_netns_fd: int,
        peer_mac: str,
        mtu: int,
        bridge: str,
        port: bytes,
        alias: str,
        entries: Callable[[int, str], Sequence[Message]] = lambda *_: (),
    ) -> tuple[int, str]:
        """Create a veth pair, and return (index, MAC) of the end in this socket's namespace. This
        end is called ``name``. It is up and a port of ``bridge``, with the settings ``port``
        (`link_records.new_port`). The other end, ``peer``, is down. The interface is set up last,
        because the kernel walks all IPv6 routes for each change of an interface that is up.
        ``entries`` returns the messages to send before that, for the index and MAC of the port.
        """
        master = self.index(bridge)
        index = self.free_index()
        own = _random_mac()  # udev replaces a MAC that the kernel has chosen
        # By default, the kernel creates a queue for each processor and removes all but one of them
        # again, for which it waits for RCU (veth_init_queues, drivers/net/veth.c).
        queues = u32(_IFLA_NUM_TX_QUEUES, 1) + u32(_IFLA_NUM_RX_QUEUES, 1)
        far = (
            ifinfo()
            + text(IFLA_IFNAME, peer)
            + attribute(IFLA_ADDRESS, packed_mac(peer_mac))
            + u32(IFLA_MTU, mtu)
            + queues
            + u32(IFLA_NET_NS_FD, peer_netns_fd)
        )
        self.create(
            index,
            f"create veth '{name}'",
            text(IFLA_IFNAME, name)
            + u32(IFLA_MTU, mtu)
            + u32(IFLA_GROUP, PORT_GROUP)
            + queues
            + attribute(IFLA_ADDRESS, own)
            + of_kind("veth", attribute(_VETH_INFO_PEER, far)),
            alias_data(alias),
            join(name, index, bridge, master),
            change_link(f"set port '{name}'", ifinfo(index) + port),
            *entries(index, own.hex(":")),
            raise_up(name, index),
        )
        return index, own.hex(":")

    def set_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        alias: str | None = None,
        master: str | None = None,
        hairpin: bool | None = None,
        mac: str | None = None,
        drift: str = "",
    ) -> None:
        """Change settings of a network interface. A setting whose parameter is None stays
        unchanged. If ``master`` is "", the interface is detached from its bridge. ``drift`` names
        settings to reset to niso's values (`link_records.usual`).
        """
        flags, switched = IFF_UP if up else 0, 0 if up is None else IFF_UP
        if link_records.ARP_OFF in drift.split(", "):
            switched |= link_records.IFF_NOARP
        changes = b""
        shown = []
        if mtu is not None:
            changes += u32(IFLA_MTU, mtu)
            shown.append(f"mtu {mtu}")
        if alias is not None:
            changes += alias_data(alias)
            shown.append(f"alias '{alias}'")
        if mac is not None:
            changes += attribute(IFLA_ADDRESS, packed_mac(mac))
            shown.append(f"mac {mac}")
        if master is not None:
            changes += u32(IFLA_MASTER, self.index(master) if master else 0)
            shown.append(f"master {master or 'none'}")
        if up is not None:
            shown.append("up" if up else "down")
        messages = []
        if shown:
            what = f"set link '{name}' {', '.join(shown)}"
            messages.append(change_link(what, _named(name, flags, switched) + changes))
        if hairpin is not None:
            what = f"set hairpin of '{name}' {'on' if hairpin else 'off'}"
            messages.append(change_link(what, _named(name) + link_records.hairpin(hairpin)))
        messages += [
            change_link(f"reset '{name}' ({drift})", _named(name) + reset)
            for reset in link_records.usual(drift)
        ]
        if messages:
            self.transact(*messages)

    def set_calls(self, name: str, call_iptables: bool | None, call_ip6tables: bool | None) -> None:
        what = f"set nf_call_iptables, nf_call_ip6tables of '{name}'"
        own = of_kind("bridge", *link_records.call_flags(call_iptables, call_ip6tables))
        self.transact(change_link(what, _named(name) + own))

    def set_group(self, name: str, group: int) -> None:
        what = f"set the group of link '{name}'"
        self.transact(change_link(what, _named(name) + u32(IFLA_GROUP, group)))

    def detach(self, names: Sequence[str]) -> None:
        """Set interfaces down and detach them from their bridge. After this, no packet passes
        through them, even if a program sets the other end of a veth pair up.
        """
        bodies = ((n, _named(n, change=IFF_UP) + u32(IFLA_MASTER, 0)) for n in names)
        self.transact_each(
            change_link(f"detach link '{name}'", body, (errno.ENODEV,)) for name, body in bodies
        )

    def delete_link(self, name: str) -> None:
        """Delete an interface. If it is an end of a veth pair, the other end is deleted too."""
        what = f"delete link '{name}'"
        self.transact(Message(what, _DELLINK, 0, _named(name), (errno.ENODEV,)))

    def delete_links(self, names: Sequence[str]) -> None:
        """Delete several interfaces, and the other ends of veth pairs, in the time that one
        deletion takes. The interfaces are put into a group with a random number, and the group is
        deleted. The kernel then unregisters all of them at once, and waits for RCU only once
        (rtnl_group_dellink, net/core/rtnetlink.c).
        """
        number = int.from_bytes(os.urandom(4)) >> 1 | 1
        what = f"delete links {', '.join(repr(name) for name in names)}"
        group = u32(IFLA_GROUP, number)
        self.transact_each(
            change_link(what, _named(name) + group, (errno.ENODEV,)) for name in names
        )
        self.transact(Message(what, _DELLINK, 0, ifinfo() + group, (errno.ENODEV,)))

    def addresses(self, link_index: int | None = None) -> list[LinkAddress]:
        result: list[LinkAddress] = []
        # a dump of both families would walk all links to find this one
        for family in _FAMILIES if link_index else (socket.AF_UNSPEC,):
            body = ifaddrmsg.pack(family, 0, 0, 0, link_index or 0)
            found = self.dump(
                "list addresses", _GETADDR, body, link_records.parse_address, (errno.ENODEV,)
            )
            # without IPv6 the kernel answers with all families
            result += [entry for entry in found if family in (entry.family, socket.AF_UNSPEC)]
        return result

    def add_address(
        self, link_index: int, cidr: str, replace: bool = False, routed: bool = True
    ) -> None:
        """Add an address with its prefix length to an interface, unless the interface has it
        (`new_address`). Raises KernelError.
        """
        self.transact(*new_address(link_index, cidr, replace, routed))

    def add_connected_route(self, link_index: int, cidr: str) -> None:
        """Add the route to an address's prefix that the kernel normally adds with the address."""
        family, packed, length = parse_cidr(cidr)
        _, network, _ = parse_cidr(prefix(cidr))
        is_4 = family == socket.AF_INET
        scope = _SCOPE_LINK if is_4 else _SCOPE_UNIVERSE
        body = rtmsg.pack(family, length, 0, 0, MAIN, KERNEL, scope, UNICAST, 0)
        body += attribute(RTA_DST, network) + u32(RTA_OIF, link_index)
        body += attribute(_RTA_PREFSRC, packed) if is_4 else u32(RTA_PRIORITY, _METRIC6)
        what = f"add the route to {cidr} by link {link_index}"
        self.transact(Message(what, _NEWROUTE, netlink.CREATE, body, (errno.EEXIST,)))

    def delete_connected_route(self, link_index: int, cidr: str) -> None:
        what = f"delete the route to {cidr} by link {link_index}"
        self._delete_routes(what, _route(prefix(cidr), "", link_index, KERNEL))

    def delete_address(self, link_index: int, cidr: str) -> None:
        family, packed, length = parse_cidr(cidr)
        body = ifaddrmsg.pack(family, length, 0, _SCOPE_UNIVERSE, link_index) + attribute(
            link_records.IFA_LOCAL, packed
        )
        what = f"delete address {cidr} from link {link_index}"
        self.transact(Message(what, _DELADDR, 0, body, (errno.EADDRNOTAVAIL, errno.ENODEV)))

    def routes(
        self, link_index: int | None = None, table: int = MAIN
    ) -> list[link_records.LinkRoute]:
        """Return the IPv4 and IPv6 routes of a table. If ``link_index`` is not None, only routes
        through this interface are returned.
        """
        body = rtmsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0) + u32(
            link_records.RTA_TABLE, table
        )
        body += u32(RTA_OIF, link_index) if link_index else b""
        absent = (errno.ENOENT, errno.ENODEV)  # no such table yet; no such link
        dumped = self.dump("list routes", _GETROUTE, body, link_records.parse_route, absent)
        return [route for family, route in dumped if family in _FAMILIES and route.table == table]

    def add_route(self, destination: str, gateway: str, index: int, metric: int = 0) -> None:
        """Add a unicast route to the main table. If ``gateway`` is "", the destination is on the
        link. With ``metric`` 0, the route has the kernel's default metric. A gateway needs no route
        of its own (flag onlink). An equal route is left unchanged. Another route with the same
        destination and metric is an error.
        """
        try:
            self.transact(new_route(destination, gateway, index, metric))
        except KernelError as error:
            wanted = (link_records.canonical(destination), gateway, index)
            exists = error.errno == errno.EEXIST
            if not exists or wanted not in (route[:3] for route in self.routes(index)):
                raise

    def delete_route(self, destination: str, gateway: str, index: int, metric: int) -> None:
        """Delete the route to ``destination`` through this gateway. Metric 0 means any metric."""
        body = _route(destination, gateway, index, 0)
        body += u32(RTA_PRIORITY, metric) if metric else b""
        self._delete_routes(f"delete route {destination} via {gateway or 'link'} {index}", body)

    def delete_nowhere(self, destination: str, kind: str) -> None:
        """Delete the routes of a type in `NOWHERE`, such as blackhole, with any metric."""
        family, packed, length = parse_cidr(destination)
        body = rtmsg.pack(family, length, 0, 0, MAIN, 0, _SCOPE_NOWHERE, NOWHERE[kind], 0)
        body += attribute(RTA_DST, packed) if length else b""
        # IPv6 ignores the type, and has such routes on lo
        body += u32(RTA_OIF, _LO) if family == socket.AF_INET6 else b""
        self._delete_routes(f"delete {kind} route {destination}", body)

    def _delete_routes(self, what: str, body: bytes) -> None:
        """Delete all routes that match a request. The kernel deletes one route per request."""
        for _ in range(_MOST_ROUTES):
            try:
                self.transact(Message(what, _DELROUTE, 0, body))
            except KernelError as error:
                if error.errno not in (errno.ESRCH, errno.ENODEV):
                    raise
                return

    def free_index(self) -> int:
        """Return an unused interface index, from a range that the kernel itself does not use."""
        for _ in range(_INDEX_TRIES):
            index = _OWN_INDEX + int.from_bytes(os.urandom(4), "big") % (1 << 29)
            if not self.name(index):
                return index
        raise refused("find a free link index", errno.EBUSY)

    def create(self, index: int, what: str, made: bytes, marked: bytes, *more: Message) -> None:
        """Create an interface, set its alias, and send the messages ``more``, all in one system
        call. ``made`` has the interface's attributes, and ``marked`` the attribute with the alias.
        The interface gets no automatic link-local address. If a message fails, the interface is
        deleted.
        """
        new = Message(what, NEWLINK, netlink.CREATE | netlink.EXCL, ifinfo(index) + made)
        mark = change_link(what, ifinfo(index) + marked)
        try:
            self.transact(new, mark, no_link_local(what, index), *more)
        except KernelError:
            undo = "delete the unfinished link"
            self.transact(Message(undo, _DELLINK, 0, ifinfo(index), (errno.ENODEV,)))
            raise


def _random_mac() -> bytes:
    return bytes([0x0A, *os.urandom(5)])


def ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return link_records.ifinfomsg.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _named(name: str, flags: int = 0, change: int = 0) -> bytes:
    return ifinfo(0, flags, change) + text(IFLA_IFNAME, name)


def change_link(what: str, body: bytes, fine: tuple[int, ...] = ()) -> Message:
    return Message(what, NEWLINK, 0, body, fine)


def join(name: str, index: int, bridge: str, master: int) -> Message:
    return change_link(
        f"attach '{name}' to bridge '{bridge}'", ifinfo(index) + u32(IFLA_MASTER, master)
    )


def raise_up(name: str, index: int) -> Message:
    return change_link(f"set link '{name}' up", ifinfo(index, IFF_UP, IFF_UP))


def no_link_local(what: str, index: int) -> Message:
    """Return the netlink message that stops the kernel from adding an IPv6 link-local address to an
    interface. Without IPv6, or if the interface's MTU is too small for IPv6, the message has no
    effect.
    """
    mode = attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_MODE_NONE]))
    body = ifinfo(index) + nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return change_link(what, body, (errno.EAFNOSUPPORT,))


def new_address(
    link_index: int, cidr: str, replace: bool = False, routed: bool = True
) -> list[Message]:
    """Return the messages that add an address with its prefix length to an interface, unless the
    interface has it.

    With ``replace``, an existing address becomes permanent. If ``routed`` is False, the kernel
    adds no route to the address's prefix. An IPv4 address then gets a broadcast address, which
    programs in a service may request (SIOCGIFBRDADDR, netdevice(7)). IPv6 addresses skip
    duplicate address detection: niso assigns no address twice, and the service would have to
    wait. The kernel derives the scope of an IPv6 address from the address: fe80::1/64 is
    link-local.
    """
    family, packed, length = parse_cidr(cidr)
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    body = ifaddrmsg.pack(family, length, flags, _SCOPE_UNIVERSE, link_index)
    body += attribute(link_records.IFA_LOCAL, packed) + attribute(link_records.IFA_ADDRESS, packed)
    if not routed:
        body += u32(link_records.IFA_FLAGS, flags | _IFA_F_NOPREFIXROUTE)
        if family == socket.AF_INET and length < 31:  # RFC 3021: none on a /31
            last = int.from_bytes(packed, "big") | (1 << (32 - length)) - 1
            body += attribute(_IFA_BROADCAST, last.to_bytes(4, "big"))
    what = f"add address {cidr} to link {link_index}"
    how = netlink.REPLACE if replace else netlink.EXCL
    messages = [Message(what, _NEWADDR, netlink.CREATE | how, body, (errno.EEXIST,))]
    if not routed:
        # another address of the prefix may already have added the route
        route = _route(prefix(cidr), "", link_index, KERNEL)
        messages.append(Message(what, _DELROUTE, 0, route, (errno.ESRCH,)))
    return messages


def new_route(destination: str, gateway: str, index: int, metric: int) -> Message:
    """Return the message that adds a route (`Rtnl.add_route`). An equal route must not exist."""
    what = f"add route {destination} via {gateway or 'link'} {index}"
    body = _route(destination, gateway, index, BOOT)
    body += u32(RTA_PRIORITY, metric) if metric else b""
    return Message(what, _NEWROUTE, netlink.CREATE | netlink.EXCL, body)


def _route(destination: str, gateway: str, index: int, protocol: int) -> bytes:
    family, packed, length = parse_cidr(destination)
    # IPv4 refuses a gateway in a route of link scope, and deletes routes of any scope for scope
    # "nowhere"; IPv6 has no scopes, and deletes routes without a gateway for the gateway "::"
    scope = _SCOPE_UNIVERSE if gateway or family == socket.AF_INET6 else _SCOPE_LINK
    scope = scope if protocol or not gateway else _SCOPE_NOWHERE
    gateway = gateway or ("::" if family == socket.AF_INET6 and not protocol else "")
    flags = _RTNH_F_ONLINK if gateway and protocol else 0
    body = rtmsg.pack(family, length, 0, 0, MAIN, protocol, scope, UNICAST, flags)
    body += attribute(RTA_DST, packed) if length else b""
    if gateway:
        body += attribute(link_records.RTA_GATEWAY, socket.inet_pton(family, gateway))
    return body + u32(RTA_OIF, index)


# --- routing rules --------------------------------------------------------------------------------

# FRA_PROTOCOL by which niso's routing rules are recognised; no entry of iproute2's rt_protos
PROTOCOL = 78
# after the rule of the local table, before rules of other programs
PRIORITY, _SECOND = 1, 2
_MASK = int(CHECKED, 16)

_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_IIFNAME, _PRIORITY, _FWMARK, _TABLE, _SUPPRESS, _FWMASK, _PROTOCOL = 3, 6, 10, 15, 14, 16, 21
_DST = 1
_TO_TABLE, _PROHIBIT = 1, 8  # FR_ACT_TO_TBL, FR_ACT_PROHIBIT
_INVERT = 0x2  # FIB_RULE_INVERT
_RULE_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_header = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr


def _parts(rule: str) -> tuple[str, str, int]:
    """Parse the name of a `RoutingRule` into (input interface, destination prefix, priority)."""
    *link, last = rule.split(" ")
    if "/" not in last:
        return last, "", PRIORITY
    return "".join(link), last, PRIORITY if link else _SECOND


def selector(rule: str) -> str:
    """Return a routing rule of niso in the syntax of ip-rule(8), for both IP versions."""
    link, to, priority = _parts(rule)
    words = [f"iif {link}"] * bool(link) + [f"to {to}"] * bool(to)
    passes = link and to
    words += [] if passes else [f"fwmark 0/{CHECKED}"]
    words += [f"priority {priority} protocol {PROTOCOL}", "lookup main" if passes else "prohibit"]
    return " ".join(words)


def of_niso(rtnl: Rtnl, family: int) -> list[tuple[str, str, bytes]]:
    """Return niso's routing rules of an IP version (4 or 6) as (name, drift, kernel's answer).
    The drift describes how a rule differs from the rule that `add` creates.
    """
    body = _header.pack(_RULE_FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
    # a kernel without IPv6 or without policy routing has none
    absent = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    return rtnl.dump("list routing rules", _GETRULE, body, _parse, absent)


def add(rtnl: Rtnl, rule: str, family: int) -> None:
    """Add a routing rule of niso. ``family`` is 4 or 6. Its interface need not exist yet."""
    link, to, priority = _parts(rule)
    _, prefix, length = parse_cidr(to) if to else (0, b"", 0)
    passes = link and to
    table, action = (MAIN, _TO_TABLE) if passes else (0, _PROHIBIT)
    body = _header.pack(_RULE_FAMILIES[family], length, 0, 0, table, 0, 0, action, 0)
    body += attribute(_DST, prefix) if to else b""
    body += text(_IIFNAME, link) if link else b""
    body += u32(_PRIORITY, priority)
    body += b"" if passes else u32(_FWMARK, 0) + u32(_FWMASK, _MASK)
    body += attribute(_PROTOCOL, bytes([PROTOCOL]))
    what = f"add the routing rule '{selector(rule)}'"
    rtnl.transact(Message(what, _NEWRULE, netlink.CREATE, body))


def delete(rtnl: Rtnl, name: str, family: int, drift: str) -> None:
    """Delete niso's routing rules that `of_niso` returns with this name and this drift."""
    what = f"delete the routing rule '{selector(name)}'"
    for *rule, body in of_niso(rtnl, family):
        if rule == [name, drift]:
            rtnl.transact(Message(what, _DELRULE, 0, body, (errno.ENOENT,)))


def _parse(body: bytes) -> tuple[str, str, bytes] | None:
    family, to, from_, tos, table, _, _, action, flags = _header.unpack_from(body)
    fields = attributes(body, _header.size)
    if fields.get(_PROTOCOL, b"") != bytes([PROTOCOL]):
        return None

    def number(kind: int) -> int:
        return int.from_bytes(fields.get(kind, b""), sys.byteorder)

    known = {_DST, _IIFNAME, _PRIORITY, _FWMARK, _TABLE, _SUPPRESS, _FWMASK, _PROTOCOL}
    link, prefix = string(fields.get(_IIFNAME, b"")), ""
    if _DST in fields:
        prefix = f"{socket.inet_ntop(family, fields[_DST])}/{to}"
    is_narrower = bool(prefix) and link not in ("", "lo")
    name = link if is_narrower else " ".join(filter(None, (link, prefix)))
    passes = link == "lo" and prefix
    words = []
    if (action, table) != ((_TO_TABLE, MAIN) if passes else (_PROHIBIT, 0)):
        words.append(f"it does not {'look up the main table' if passes else 'prohibit'}")
    if number(_PRIORITY) != (priority := _parts(name)[2] if name else PRIORITY):
        words.append(f"priority is {number(_PRIORITY)}, should be {priority}")
    if (number(_FWMARK), number(_FWMASK)) != (0, 0 if passes else _MASK):
        mark = f"{number(_FWMARK):#x}/{number(_FWMASK):#x}"
        words.append(f"fwmark is {mark}, should be 0/{'0' if passes else CHECKED}")
    if is_narrower or from_ or tos or flags & _INVERT or fields.keys() - known:
        words.append("it has other selectors")
    # as a request, the flags say nothing about whether the link exists
    head = _header.pack(family, to, from_, tos, table, 0, 0, action, flags & _INVERT)
    return name, "; ".join(words), head + body[_header.size :]
