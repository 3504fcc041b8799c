"""Parse what the kernel reports about network interfaces: addresses, routes, settings and counters.

See linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h. For rate limits, see also tc-tbf(8),
linux/pkt_sched.h and net/sched/sch_tbf.c.

Each setting of a bridge or port changes where frames are sent: for example, an isolated port
reaches no other isolated port, and a port without bcast_flood receives no ARP request. On bridge
ports, niso changes two defaults of the kernel. A frame to an unknown MAC is not flooded to the
ports, since all services of the network could then read it. MACs are not learned, since each MAC
has a static entry.

Traffic counters (rtnl_link_stats64) are read with RTM_GETSTATS, which returns only counters. This
takes 1.6 ms for 1,000 interfaces; a list of interfaces with all their attributes takes 39 ms.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
import sys
from collections.abc import Iterable

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import BRIDGE_GROUP, PORT_GROUP, TUNNEL_GROUP, packed
from niso.base.native import socket
from niso.kernel import netlink
from niso.kernel.netlink import Message, address_family, attribute, attributes, nested, text, u32

if TYPE_CHECKING:
    from niso.kernel.rtnetlink import Rtnl


# --- links, addresses and routes ------------------------------------------------------------------

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS = 18, 20
_IFLA_QDISC = 6
IFLA_GROUP = 27
GROUPS = {"bridge": BRIDGE_GROUP, "veth": PORT_GROUP, "vxlan": TUNNEL_GROUP}  # by kind of link
_IFLA_OPERSTATE = 16
# the length in bytes up to which an interface joins packets of one flow (GRO)
IFLA_GRO_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE = 58, 64
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
BR_NF_CALL_IPTABLES, BR_NF_CALL_IP6TABLES = 36, 37
BRPORT_MODE = 4  # hairpin

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
_IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x20, 0x80
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15

IFF_UP, IFF_NOARP = 1, 0x80

ifinfomsg = struct.Struct("=BxHiII")
ifaddrmsg = struct.Struct("=BBBBI")
rtmsg = struct.Struct("=BBBBBBBBI")


class Link(NamedTuple):
    """A network interface of the namespace that was queried."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    name: str
    kind: str  # "bridge", "veth" ...; "" for interfaces without a driver kind (lo, hardware)
    mtu: int  # in bytes
    mac: str
    up: bool
    master: int  # index of its bridge, or 0
    alias: str
    peer_index: int  # IFLA_LINK: for a veth interface the index of the other end, else mostly 0
    hairpin: bool  # whether a bridge port has hairpin mode
    call_iptables: bool  # nf_call_iptables of a bridge
    call_ip6tables: bool
    drift: str = ""  # settings of a bridge or port that differ from niso's
    data: bytes = b""  # IFLA_INFO_DATA of a VXLAN device
    qdisc: str = ""  # kind of the root queueing discipline
    group: int = 0


class LinkAddress(NamedTuple):
    """An address of a network interface, such as "10.99.1.1/24". ``index`` is the interface's
    index. ``family`` is AF_INET or AF_INET6, and ``flags`` are IFA_F_*.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    family: int
    address: str
    scope: int
    flags: int

    @property
    def lasts(self) -> bool:
        """Return whether both lifetimes of this address, valid and preferred, are unlimited."""
        return self.flags & (_IFA_F_PERMANENT | _IFA_F_DEPRECATED) == _IFA_F_PERMANENT


class LinkRoute(NamedTuple):
    """A route. The ``destination`` of a default route is "0.0.0.0/0" or "::/0". ``gateway`` is ""
    for a route without a gateway. ``index`` is the index of the network interface, or 0 for a route
    without an interface. Of several routes to the same destination, the kernel uses the route with
    the lowest metric.
    """

    destination: str
    gateway: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    table: int
    protocol: int
    type: int
    metric: int


def parse_cidr(cidr: str) -> tuple[int, bytes, int]:
    address, _, length = cidr.partition("/")
    return address_family(address), packed(address), int(length)


def prefix(cidr: str) -> str:
    """Return the network prefix of an address with a length: "10.0.0.0/8" for "10.1.2.3/8"."""
    family, address, length = parse_cidr(cidr)
    beyond = 8 * len(address) - length
    number = int.from_bytes(address) >> beyond << beyond
    return f"{socket.inet_ntop(family, number.to_bytes(len(address)))}/{length}"


def canonical(cidr: str) -> str:
    family, address, length = parse_cidr(cidr)
    return f"{socket.inet_ntop(family, address)}/{length}"


def _number(attributes_: dict[int, bytes], kind: int, default: int) -> int:
    payload = attributes_.get(kind)
    return int.from_bytes(payload, sys.byteorder, signed=default < 0) if payload else default


def parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = ifinfomsg.unpack_from(body)
    fields = attributes(body, 16)
    info = attributes(fields.get(IFLA_LINKINFO, b""))
    kind = netlink.string(info.get(INFO_KIND, b""))
    own = attributes(info.get(INFO_DATA, b"")) if kind == "bridge" else {}
    is_port = netlink.string(info.get(INFO_SLAVE_KIND, b"")) == "bridge"
    port = attributes(info.get(INFO_SLAVE_DATA, b"")) if is_port else {}
    drift = [ARP_OFF] if flags & IFF_NOARP else []
    group = _number(fields, IFLA_GROUP, 0)
    if group != GROUPS.get(kind, group):
        drift.append(f"group {group}")
    if kind == "vxlan":
        longest = max(_number(fields, n, 0) for n in (IFLA_GRO_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE))
        drift += [f"gro_max_size {longest}"] if longest > 1 else []
    if port:
        drift += _port_drift(port, _number(fields, _IFLA_OPERSTATE, 0), kind == "vxlan")
    else:
        drift += _bridge_drift(own)
    return Link(
        index=index,
        name=netlink.string(fields[IFLA_IFNAME]),
        kind=kind,
        mtu=_number(fields, IFLA_MTU, 0),
        mac=fields.get(IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
        master=_number(fields, IFLA_MASTER, 0),
        alias=netlink.string(fields.get(IFLA_IFALIAS, b"")),
        peer_index=_number(fields, IFLA_LINK, 0),
        hairpin=port.get(BRPORT_MODE, b"\0") != b"\0",
        call_iptables=own.get(BR_NF_CALL_IPTABLES, b"\0") != b"\0",
        call_ip6tables=own.get(BR_NF_CALL_IP6TABLES, b"\0") != b"\0",
        drift=", ".join(drift),
        data=info.get(INFO_DATA, b"") if kind == "vxlan" else b"",
        qdisc=netlink.string(fields.get(_IFLA_QDISC, b"")),
        group=group,
    )


def parse_address(body: bytes) -> LinkAddress | None:
    family, length, flags, scope, index = ifaddrmsg.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    fields = attributes(body, 8)
    # IFA_LOCAL is the address itself; a point-to-point link has its peer in IFA_ADDRESS. IPv6
    # mostly has IFA_ADDRESS only.
    address = socket.inet_ntop(family, fields.get(IFA_LOCAL) or fields[IFA_ADDRESS])
    flags = _number(fields, IFA_FLAGS, flags)
    return LinkAddress(index, family, f"{address}/{length}", scope, flags)


def parse_route(body: bytes) -> tuple[int, LinkRoute]:
    family, length, _, _, table, protocol, _, kind, _ = rtmsg.unpack_from(body)
    fields = attributes(body, 12)
    network = fields.get(RTA_DST) or bytes(16 if family == socket.AF_INET6 else 4)
    gateway = fields.get(RTA_GATEWAY)
    route = LinkRoute(
        destination=f"{socket.inet_ntop(family, network)}/{length}",
        gateway=socket.inet_ntop(family, gateway) if gateway else "",
        index=_number(fields, RTA_OIF, 0),
        table=_number(fields, RTA_TABLE, table),
        protocol=protocol,
        type=kind,
        metric=_number(fields, RTA_PRIORITY, 0),
    )
    return family, route


def packed_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def call_flags(call_iptables: bool | None, call_ip6tables: bool | None) -> list[bytes]:
    wanted = ((BR_NF_CALL_IPTABLES, call_iptables), (BR_NF_CALL_IP6TABLES, call_ip6tables))
    return [attribute(kind, bytes([on])) for kind, on in wanted if on is not None]


def of_kind(kind: str, *settings: bytes) -> bytes:
    """Return the attribute IFLA_LINKINFO with an interface's type ("bridge") and its settings."""
    data = (nested(INFO_DATA, *settings),) if settings else ()
    return nested(IFLA_LINKINFO, text(INFO_KIND, kind), *data)


def alias_data(alias: str) -> bytes:
    return attribute(IFLA_IFALIAS, alias.encode())


def hairpin(on: bool) -> bytes:
    return _port_setting(attribute(BRPORT_MODE, bytes([on])))


def _port_setting(setting: bytes) -> bytes:
    data = nested(INFO_SLAVE_DATA, setting)
    return nested(IFLA_LINKINFO, text(INFO_SLAVE_KIND, "bridge"), data)


# --- settings of bridges and their ports ----------------------------------------------------------

_UP = 6  # IF_OPER_UP
_FORWARDING = 3  # BR_STATE_FORWARDING
_PORT_STATE = 1
NEW_PORT = "learning on, flood on"
"""The drift of a new port: the kernel's defaults that differ from niso's settings."""
_STATES = {0: "disabled", 1: "listening", 2: "learning", 4: "blocking"}

_LEARNING, _FLOOD = 8, 9  # IFLA_BRPORT_*

# IFLA_BRPORT_*: (name in bridge(8), value of niso's ports)
_FLAGS: dict[int, tuple[str, int]] = {
    5: ("guard", 0),
    6: ("root_block", 0),
    7: ("fastleave", 0),
    8: ("learning", 0),
    9: ("flood", 0),
    10: ("proxy_arp", 0),
    12: ("proxy_arp_wifi", 0),
    27: ("mcast_flood", 1),
    28: ("mcast_to_unicast", 0),
    29: ("vlan_tunnel", 0),
    30: ("bcast_flood", 1),
    32: ("neigh_suppress", 0),
    33: ("isolated", 0),
    39: ("locked", 0),
    40: ("mab", 0),
}
# A port that is a VXLAN device floods nothing, and the bridge itself answers ARP requests and
# neighbour solicitations for addresses behind it.
_OF_TUNNELS = {27: 0, 30: 0, 32: 1}
# the settings that must be changed on a new port that is a VXLAN device
TUNNEL_PORT = ("learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress")
# IFF_NOARP, which stops ARP, on a bridge or port, and on the other end of a pair
ARP_OFF, ARP_OFF_INSIDE = "arp off", "arp off inside"
_GROUP_FORWARD = 31  # IFLA_BRPORT_GROUP_FWD_MASK

# IFLA_BR_*: (name in ip-link(8), struct format, value of niso's bridges)
_SETTINGS: dict[int, tuple[str, str, int]] = {
    5: ("stp_state", "=I", 0),  # first: it decides which values the other settings may have
    1: ("forward_delay", "=I", 0),
    4: ("ageing_time", "=I", 30_000),
    7: ("vlan_filtering", "=B", 0),
    9: ("group_fwd_mask", "=H", 0),
    23: ("mcast_snooping", "=B", 0),
}


def _port_drift(settings: dict[int, bytes], operstate: int, tunnel: bool) -> list[str]:
    """Return the settings of a bridge port (IFLA_INFO_SLAVE_DATA) that differ from niso's, such as
    ``isolated on``. ``operstate`` is IF_OPER_*. The port's STP state is compared only while the
    port has a carrier, because at other times the kernel sets the state itself.
    """
    parts = [
        f"{name} {'on' if settings[kind][0] else 'off'}"
        for kind, (name, usual) in _flags(tunnel).items()
        if settings.get(kind, b"\0")[:1] != bytes([usual]) and kind in settings
    ]
    if any(settings.get(_GROUP_FORWARD, b"")):
        parts.append("group_fwd_mask set")
    state = settings.get(_PORT_STATE, b"")[:1]
    if operstate == _UP and state and state[0] != _FORWARDING:
        parts.append(f"state {_STATES.get(state[0], state[0])}")
    return parts


def _bridge_drift(settings: dict[int, bytes]) -> list[str]:
    parts = []
    for kind, (name, form, usual) in _SETTINGS.items():
        payload = settings.get(kind, b"")
        value = struct.unpack(form, payload)[0] if len(payload) == struct.calcsize(form) else usual
        if value != usual:
            parts.append(f"{name} {value}")
    return parts


def _flags(tunnel: bool) -> dict[int, tuple[str, int]]:
    if not tunnel:
        return _FLAGS
    return {kind: (name, _OF_TUNNELS.get(kind, usual)) for kind, (name, usual) in _FLAGS.items()}


def new_port(hairpin: bool, learns: bool = False) -> bytes:
    """Return the netlink attributes that apply niso's settings to a new bridge port.

    With ``learns``, the port has the kernel's defaults for MACs: it learns them, and frames to
    unknown MACs are flooded to it. All settings are in one RTM_NEWLINK message: for each message
    that changes learning or flooding, the kernel walks all ports (nbp_update_port_count,
    net/bridge/br_if.c).
    """
    flags = {BRPORT_MODE: hairpin, _LEARNING: learns, _FLOOD: learns}
    return _port_setting(b"".join(attribute(kind, bytes([on])) for kind, on in flags.items()))


def usual(drift: str, tunnel: bool = False) -> list[bytes]:
    """Return the netlink attributes that reset settings of a bridge or bridge port to niso's
    values. ``drift`` names the settings to reset, as `Link.drift` does. ``tunnel`` is true if the
    port is a VXLAN device. Each attribute must be sent in a separate RTM_NEWLINK message, in the
    returned order.
    """
    names = [part.partition(" ")[0] for part in drift.split(", ")] if drift else []
    port = [
        attribute(kind, bytes([usual]))
        for kind, (name, usual) in _flags(tunnel).items()
        if name in names
    ]
    if "group_fwd_mask" in names:
        port.append(attribute(_GROUP_FORWARD, struct.pack("=H", 0)))
    if "state" in names:
        port.append(attribute(_PORT_STATE, bytes([_FORWARDING])))
    own = [
        attribute(kind, struct.pack(form, usual))
        for kind, (name, form, usual) in _SETTINGS.items()
        if name in names
    ]
    return [*map(_port_setting, port), *(of_kind("bridge", setting) for setting in own)]


# --- rate limits (queueing discipline tbf) --------------------------------------------------------

TBF = "tbf"
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_PARMS, _RATE64, _BURST = 1, 4, 6  # TCA_TBF_*
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel computes times itself, without a table
_NONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
_MOST_32 = (1 << 32) - 1
# in bytes: half of the largest packet of an interface (64 KiB, GSO); tbf splits larger packets
_LEAST_BURST = 32 << 10

_tcmsg = struct.Struct("=BxxxiIII")  # family, link, handle, parent, info
_ratespec = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_parms = struct.Struct("=12s12sIII")  # tc_tbf_qopt: rate, peak rate, limit, buffer, mtu


def burst(rate: int) -> int:
    """Return how many bytes a rate limit lets pass at once. This is the traffic of 20 ms, but at
    least 32 KiB. ``rate`` is in bytes per second.
    """
    return max(rate // 50, _LEAST_BURST)


def limit(rate: int) -> int:
    """Return the maximum length of a rate limit's queue in bytes: one burst, and the traffic of 50
    ms. ``rate`` is in bytes per second.
    """
    return rate // 20 + burst(rate)


def limit_of(rtnl: Rtnl, link: Link) -> tuple[int, int]:
    """Return the rate limit of an interface as (bytes per second, bytes that may be queued).
    Without a rate limit, both are 0. Only a root queueing discipline of type tbf counts as a rate
    limit. Raises KernelError.
    """
    if link.qdisc != TBF:
        return 0, 0
    what = f"read the qdisc of link {link.index}"
    body = _tcmsg.pack(0, link.index, 0, _ROOT, 0)
    # The kernel answers with a notification to a requester that sets the echo flag, but not for a
    # built-in qdisc, such as noop of a link that is down. The acknowledgement comes in any case.
    answer = rtnl.get_one(what, _GETQDISC, body, _NONE, netlink.ECHO | netlink.ACK)
    return (0, 0) if answer is None else netlink.parse_reply(what, _parse_qdisc, answer)


def _parse_qdisc(body: bytes) -> tuple[int, int]:
    fields = attributes(body[_tcmsg.size :])
    if netlink.string(fields[_KIND]) != TBF:
        return 0, 0
    options = attributes(fields[_OPTIONS])
    spec, _, waits, _, _ = _parms.unpack(options[_PARMS][: _parms.size])
    rate = _ratespec.unpack(spec)[5]
    if _RATE64 in options:
        rate = int(struct.unpack("=Q", options[_RATE64])[0])
    return rate, waits


def set_rate(rtnl: Rtnl, link_index: int, rate: int) -> None:
    """Limit what a network interface sends to ``rate`` bytes per second. Raises KernelError."""
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
    """Remove the rate limit of a network interface. Raises KernelError."""
    body = _tcmsg.pack(0, link_index, 0, _ROOT, 0)
    rtnl.transact(Message(f"clear the rate of link {link_index}", _DELQDISC, 0, body, _NONE))


# --- traffic counters -----------------------------------------------------------------------------

_GETSTATS = 94
_IFLA_STATS_LINK_64 = 1
_if_stats_msg = struct.Struct("=BxxxII")  # family, ifindex, filter_mask
_stats = struct.Struct("=QQQQ")  # rtnl_link_stats64
TRAFFIC = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes")  # since the interface was created
_SIOCGIFINDEX = 0x8933
_ifreq = struct.Struct("=16si20x")


def of_links(names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return {existing interface: {counter of `TRAFFIC`: value}}. Raises KernelError."""
    indexes = _indexes(names)
    if not indexes:
        return {}
    with netlink.Netlink(netlink.ROUTE) as kernel:
        body = _if_stats_msg.pack(socket.AF_UNSPEC, 0, 1 << _IFLA_STATS_LINK_64 - 1)
        counters = dict(kernel.dump("read the counters of links", _GETSTATS, body, _parse_counters))
    return {name: counters[index] for name, index in indexes.items() if index in counters}


def _indexes(names: Iterable[str]) -> dict[str, int]:
    # missing interfaces are left out; if_nametoindex(3) would open a socket for each name
    indexes = {}
    with contextlib.closing(
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    ) as any_socket:
        for name in names:
            with contextlib.suppress(OSError):  # ENODEV
                answer = fcntl.ioctl(any_socket, _SIOCGIFINDEX, _ifreq.pack(name.encode(), 0))
                indexes[name] = _ifreq.unpack(answer)[1]
    return indexes


def _parse_counters(body: bytes) -> tuple[int, dict[str, int]] | None:
    stats = attributes(body, _if_stats_msg.size)
    if _IFLA_STATS_LINK_64 not in stats:
        return None
    _, index, _ = _if_stats_msg.unpack_from(body)
    return index, dict(zip(TRAFFIC, _stats.unpack_from(stats[_IFLA_STATS_LINK_64]), strict=True))
