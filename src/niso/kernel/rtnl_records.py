"""Parse links, addresses and routes in the kernel's replies.

See linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.
"""

from __future__ import annotations

import socket
import struct

from niso.base.addresses import family_of
from niso.base.lite_typing import NamedTuple
from niso.kernel import bridge_flags, netlink
from niso.kernel.netlink import attribute, attributes, nested, text

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS = 18, 20
_IFLA_QDISC = 6
_IFLA_OPERSTATE, _IFLA_LINK_NETNSID = 16, 37
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
    """A network interface of the queried namespace.

    ``kind`` is "bridge", "veth", or "" for those without a driver kind (lo, hardware). ``mtu`` is
    in bytes. ``master`` is the index of its bridge, 0 for none. ``peer_index`` is IFLA_LINK (a
    veth's other end, 0 for none) and ``peer_netnsid`` that end's namespace, -1 for this one.
    ``hairpin`` is of a bridge port, ``call_iptables`` and ``call_ip6tables`` of a bridge. ``drift``
    names non-default settings of a bridge or port (`niso.kernel.bridge_flags`). ``data`` is the
    IFLA_INFO_DATA of a VXLAN device. ``qdisc`` is the kind of its root queueing discipline.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    name: str
    kind: str
    mtu: int
    mac: str
    up: bool
    master: int
    alias: str
    peer_index: int
    peer_netnsid: int
    hairpin: bool
    call_iptables: bool
    call_ip6tables: bool
    drift: str = ""
    data: bytes = b""
    qdisc: str = ""


class LinkAddress(NamedTuple):
    """An address of a link.

    ``family`` is AF_INET or AF_INET6, ``address`` like "10.99.1.1/24", ``flags`` are IFA_F_*.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    family: int
    address: str
    scope: int
    flags: int

    @property
    def lasts(self) -> bool:
        """Return whether the address is permanent: its valid and preferred lifetimes never end."""
        return self.flags & (_IFA_F_PERMANENT | _IFA_F_DEPRECATED) == _IFA_F_PERMANENT


class LinkRoute(NamedTuple):
    """A route.

    ``destination`` is a prefix ("0.0.0.0/0" for default), ``gateway`` "" for none, ``index`` that
    of its link or 0. Of several routes to a destination the one with the lowest metric is taken.
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
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return family, socket.inet_pton(family, address), int(length)


def prefix(cidr: str) -> str:
    """Return the prefix of an address with its length: "10.0.0.0/8" for "10.1.2.3/8"."""
    family, packed, length = parse_cidr(cidr)
    beyond = 8 * len(packed) - length
    number = int.from_bytes(packed, "big") >> beyond << beyond
    return f"{socket.inet_ntop(family, number.to_bytes(len(packed), 'big'))}/{length}"


def canonical(cidr: str) -> str:
    family, packed, length = parse_cidr(cidr)
    return f"{socket.inet_ntop(family, packed)}/{length}"


def _number(attributes_: dict[int, bytes], kind: int, default: int) -> int:
    payload = attributes_.get(kind)
    return (
        int.from_bytes(payload, "little" if _LITTLE else "big", signed=default < 0)
        if payload
        else default
    )


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = ifinfomsg.unpack_from(body)
    fields = attributes(body, 16)
    info = attributes(fields.get(IFLA_LINKINFO, b""))
    kind = netlink.string(info.get(INFO_KIND, b""))
    own = attributes(info.get(INFO_DATA, b"")) if kind == "bridge" else {}
    is_port = netlink.string(info.get(INFO_SLAVE_KIND, b"")) == "bridge"
    port = attributes(info.get(INFO_SLAVE_DATA, b"")) if is_port else {}
    drift = (
        bridge_flags.drift_of_port(port, _number(fields, _IFLA_OPERSTATE, 0), kind == "vxlan")
        if port
        else bridge_flags.drift_of_bridge(own)
    )
    if flags & IFF_NOARP:
        drift = f"{bridge_flags.ARP_OFF}, {drift}" if drift else bridge_flags.ARP_OFF
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
        peer_netnsid=_number(fields, _IFLA_LINK_NETNSID, -1),
        hairpin=port.get(BRPORT_MODE, b"\0") != b"\0",
        call_iptables=own.get(BR_NF_CALL_IPTABLES, b"\0") != b"\0",
        call_ip6tables=own.get(BR_NF_CALL_IP6TABLES, b"\0") != b"\0",
        drift=drift,
        data=info.get(INFO_DATA, b"") if kind == "vxlan" else b"",
        qdisc=netlink.string(fields.get(_IFLA_QDISC, b"")),
    )


def parse_address(body: bytes) -> LinkAddress | None:
    """Return an address; None if it is of a family other than IPv4 and IPv6."""
    family, length, flags, scope, index = ifaddrmsg.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    fields = attributes(body, 8)
    # IFA_LOCAL is the address itself; a point-to-point link has its peer in IFA_ADDRESS. IPv6
    # mostly has IFA_ADDRESS only.
    packed = fields.get(IFA_LOCAL) or fields[IFA_ADDRESS]
    return LinkAddress(
        index,
        family,
        f"{socket.inet_ntop(family, packed)}/{length}",
        scope,
        _number(fields, IFA_FLAGS, flags),
    )


def parse_route(body: bytes) -> tuple[int, LinkRoute]:
    family, length, _, _, table, protocol, _, kind, _ = rtmsg.unpack_from(body)
    fields = attributes(body, 12)
    packed = fields.get(RTA_DST) or bytes(16 if family == socket.AF_INET6 else 4)
    gateway = fields.get(RTA_GATEWAY)
    route = LinkRoute(
        destination=f"{socket.inet_ntop(family, packed)}/{length}",
        gateway=socket.inet_ntop(family, gateway) if gateway else "",
        index=_number(fields, RTA_OIF, 0),
        table=_number(fields, RTA_TABLE, table),
        protocol=protocol,
        type=kind,
        metric=_number(fields, RTA_PRIORITY, 0),
    )
    return family, route


def packed_mac(mac: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def call_flags(call_iptables: bool | None, call_ip6tables: bool | None) -> list[bytes]:
    """Return the attributes of a bridge that set these flags; None leaves a flag unchanged."""
    wanted = ((BR_NF_CALL_IPTABLES, call_iptables), (BR_NF_CALL_IP6TABLES, call_ip6tables))
    return [attribute(kind, bytes([on])) for kind, on in wanted if on is not None]


def of_kind(kind: str, *settings: bytes) -> bytes:
    """Return the attribute for a link's kind and the settings of that kind (IFLA_LINKINFO)."""
    data = (nested(INFO_DATA, *settings),) if settings else ()
    return nested(IFLA_LINKINFO, text(INFO_KIND, kind), *data)


def alias_data(alias: str) -> bytes:
    """Return the attribute with a link's alias."""
    return attribute(IFLA_IFALIAS, alias.encode())


def hairpin(on: bool) -> bytes:
    """Return the attribute that sets a bridge port's hairpin mode."""
    data = nested(INFO_SLAVE_DATA, attribute(BRPORT_MODE, bytes([on])))
    return nested(IFLA_LINKINFO, text(INFO_SLAVE_KIND, "bridge"), data)
