"""Compute the elements of nftables sets and maps for services and networks, without I/O.

The elements are for published ports, allowed source addresses, service addresses and bridges.
`niso.kernel.ruleset` defines the purpose of each set and map. `niso.plan.policy_elements` computes
the elements of policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache

from niso.base.names import family_of, prefix
from niso.base.native import sha256
from niso.kernel.nft_elements import Element
from niso.kernel.policy_rules import WATCHED
from niso.kernel.ruleset import (
    ARP,
    ASKERS,
    BRIDGE,
    FLOWS,
    FRAGMENTS,
    INET,
    MULTICAST,
    SLOTS,
    TO_ALL,
    limit,
)
from niso.plan.records import LIMITS, Limits, PortMapping, SubnetRecord


def closed(family: int) -> Element:
    """Return the nftables element that stops the host from forwarding other programs' packets of an
    IP version. It is needed if the host forwards packets only because of niso's services.
    """
    return Element(INET, "closed", (f"ipv{family}",))


def links_before(family: int, links: Iterable[tuple[int, str]]) -> Iterator[Element]:
    """Yield the elements that list the host's interfaces (index, name) from before niso enabled
    forwarding. The rules do not forward other programs' packets between these interfaces.

    An interface is listed by its index, in case it is renamed, and by its name, in case it is
    deleted and created again.
    """
    version = f"ipv{family}"
    yield Element(INET, "later", (version,))
    for index, name in links:
        yield Element(INET, "old_index", (version, index))
        if _QUOTABLE.issuperset(name):
            yield Element(INET, "old_name", (version, name))


_QUOTABLE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:@-")
_SHORT = {"force_forwarding": "force"}  # an interface name has at most 15 characters


def before(sysctl: str, value: str) -> list[Element]:
    """Return a list with the nftables element that records a host sysctl's value from before niso
    changed it. `niso reset` restores this value if there is no store.

    The list is empty if no element can contain the sysctl, for example because nft cannot express
    the name of its network interface.
    """
    match sysctl.split("/"):
        case ["net", "ipv4", "ip_forward" as what]:
            link = "all"
        case ["net", "ipv6", "conf", link, what] if len(link) <= 15:
            pass
        case _:
            return []
    if not (link and what and _QUOTABLE.issuperset(link + what)):
        return []
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        return []
    return [Element(INET, "before", (link, _SHORT.get(what, what), value))]


def sysctl_before(element: Element) -> tuple[str, str]:
    """Return the (sysctl, value) that an element of `before` records."""
    link, what, value = element.fields
    if what == "ip_forward":
        return "net/ipv4/ip_forward", value
    long = {short: name for name, short in _SHORT.items()}.get(what, what)
    return f"net/ipv6/conf/{link}/{long}", value


def network(
    name: str,
    bridge: str,
    mac: str,
    subnets: Iterable[SubnetRecord],
    internal: bool = False,
    observe: bool = True,
    multicast: bool = False,
) -> list[Element]:
    """Return the elements of a network. ``mac`` is the MAC of its bridge. With ``internal``, the
    network has no access to the outside. With ``observe``, its flows are recorded. With
    ``multicast``, multicasts and broadcasts pass between its services.
    """
    keys = [(INET, "bridges", (bridge,)), (INET, "same_bridge", (bridge, bridge))]
    keys += [(INET, "internal", (bridge,))] if internal else []
    keys += [(INET, WATCHED, (bridge,))] if observe else []
    keys += [(INET, MULTICAST, (bridge,))] if multicast else []
    keys.append((BRIDGE, "host_macs", (mac,)))
    for family, cidr, gateway in subnets:
        keys += [(table, f"subnets{family}", (cidr,)) for table in (INET, BRIDGE)]
        keys.append((BRIDGE, f"own{family}", (mac, cidr)))
        keys.append((BRIDGE, f"gateways{family}", (gateway,)))
        if family == 4:
            whole = prefix(cidr)
            keys.append((BRIDGE, "broadcasts", (whole.address_at(whole.num_addresses - 1),)))
    return [Element(*key, (), name) for key in keys]


def wire(port: int) -> Element:
    """Return the nftables element that makes the rules check packets to ``port``, a UDP port on
    which this host receives VXLAN packets.
    """
    return Element(INET, "wire", (port,))


def sealed(port: int) -> Element:
    """Return the nftables element that makes the rules drop packets to ``port``, a VXLAN port of an
    encrypted cluster, unless they arrive through WireGuard.
    """
    return Element(INET, "sealed", (port,))


def spans(network: str, vxlan: str) -> list[Element]:
    """Return the elements that add the VXLAN device of a network that spans hosts to the sets of
    niso's bridge ports and VXLAN devices.
    """
    sets = ((INET, "ports"), (BRIDGE, "ports"), (INET, "vxlans"))
    return [Element(*one, (vxlan,), (), network) for one in sets]


def here(service: str, vni: int, mac: str) -> Element:
    """Return the nftables element that allows other hosts to send VXLAN packets to a service of
    this host. ``vni`` is the VNI of a network that spans hosts, and ``mac`` the service's MAC on
    this network.
    """
    return Element(INET, "here", (vni, mac or _NO_MAC), (), service)


def claim(
    service: str,
    host: str,
    number: int,
    vni: int,
    vxlan: str,
    mac: str,
    addresses: Iterable[str],
) -> list[Element]:
    """Return the nftables elements that allow the addresses of another host's service as source
    addresses, but only in VXLAN packets from that host. ``host`` is the address of that host,
    ``number`` its number on this host, and ``vxlan`` the VXLAN device of the service's network.
    """
    elements: list[Element] = []
    outer = family_of(host)
    for address in addresses:
        family = family_of(address)
        elements += _source(service, vxlan, mac, address)
        key = (host, vni, mac or _NO_MAC, address)
        elements.append(Element(INET, f"vx{outer}{family}", key, (number,), service))
        elements.append(Element(BRIDGE, f"heard{family}", (number, address), (), service))
    return elements


_NO_MAC = "00:00:00:00:00:00"


_limit = cache(limit)  # services share the values


@cache
def _of(name: str, suffix: int | str) -> str:
    """Return the name of a set: ``name`` with a suffix, such as the IP version. All elements share
    the string.
    """
    return f"{name}{suffix}"


def _source(service: str, link: str, mac: str, address: str) -> list[Element]:
    """Return the elements that allow a source address on a bridge port or VXLAN device."""
    family = family_of(address)
    elements = [
        Element(BRIDGE, _of("sources", family), (link, mac, address), (), service),
        Element(BRIDGE, _of("quoted", family), (link, address), (), service),
    ]
    if family == 6:
        elements.append(Element(BRIDGE, "links", (link, mac or _NO_MAC), (), service))
    return elements


def receivers(service: str, bridge_mac: str, mac: str, addresses: Iterable[str]) -> list[Element]:
    """Return the nftables elements that make a bridge forward packets to a service. Services send
    all packets to the bridge's MAC. The rules replace this MAC by the service's if the destination
    is in ``addresses``.
    """
    return [
        Element(
            BRIDGE, _of("receivers", family_of(address)), (bridge_mac, address), (mac,), service
        )
        for address in addresses
    ]


def endpoint(
    service: str,
    host_end: str,
    mac: str,
    addresses: Iterable[str],
    limits: Limits = LIMITS,
    observe: bool = True,
    multicast: bool = False,
) -> list[Element]:
    """Return the elements for a service's port on a bridge: the service's MAC, source addresses and
    limits. ``host_end`` is the name of the port. With ``observe``, its flows are recorded. With
    ``multicast``, multicasts and broadcasts pass between services of the network.
    """
    port = (host_end,)
    elements = [Element(table, "ports", port, (), service) for table in (INET, BRIDGE)]
    if observe:
        elements.append(Element(BRIDGE, WATCHED, port, (), service))
    for address in addresses:
        family = family_of(address)
        elements += _source(service, host_end, mac, address)
        for map_, most in ((FLOWS, limits.new_flows), (ASKERS, limits.neighbours)):
            if most:
                value = _limit(map_, most)
                elements.append(Element(INET, _of(map_, family), (address,), value, service))
    if multicast:
        elements.append(Element(BRIDGE, MULTICAST, port, (), service))
    to_all = limits.multicast if multicast else 0
    for map_, most in ((FRAGMENTS, limits.fragments), (ARP, limits.arp), (TO_ALL, to_all)):
        if most:
            elements.append(Element(BRIDGE, map_, port, _limit(map_, most), service))
    return elements


PUBLISHED = {
    f"{way}_{where}{family}": where == "addr"
    for way in ("publish", "range")
    for where in ("addr", "any")
    for family in (4, 6)
}
"""The nftables maps that `published` fills.

The value says whether keys begin with the host's address, before protocol and port.
"""

LOCAL = {
    f"local_{where}{family}": where == "addr" for where in ("addr", "any") for family in (4, 6)
}
"""The nftables maps that `published` fills for clients on other networks of a service.

The value says whether keys have the host's address after the bridge, before protocol and port.
"""


def published(
    service: str,
    port: PortMapping,
    addresses: Iterable[str],
    bridge: str = "",
    front: bool = False,
) -> list[Element]:
    """Return the elements that translate a published port or port range to a service's addresses.
    Addresses are ignored if the port is not published for their IP version. A port range needs only
    one element if its ports are the same on the host and in the service.

    ``bridge`` is "" if the addresses are on the service's primary network. Otherwise ``bridge`` is
    the bridge of another network of the service, with the service's addresses there, and the
    elements are for clients on this network. If a connection from this network were translated to
    an address on another network, replies would reach the client directly, without the host that
    translates them back. With ``front``, the addresses are service addresses, whose slots then
    determine an instance.
    """
    if bridge and port.host_ip.startswith("127."):
        return []
    elements = []
    where, start = ("any", ()) if port.is_wide else ("addr", (port.host_ip,))
    start = (*start, port.proto)
    if bridge:
        map_, key = "front_local" if front else "local", (bridge, *start)
    else:
        map_, key = "front" if front else "publish", start
    for address in addresses:
        family = family_of(address)
        if family not in port.families:
            continue
        if not bridge:
            elements.append(_kept(service, port, f"{where}{family}", start))
            if port.count > 1 and port.host_port == port.container_port and not front:
                ports = (*key, (port.host_port, port.last))
                elements.append(Element(INET, f"range_{where}{family}", ports, (address,), service))
                continue
        for n in range(port.count):
            outside, inside = port.host_port + n, port.container_port + n
            to = (address,) if front else (address, inside)
            name = _of(f"{map_}_{where}", family)
            elements.append(Element(INET, name, (*key, outside), to, service))
            if front:
                port_of = (address, port.proto, outside)
                elements.append(Element(INET, f"front_port{family}", port_of, (inside,), service))
    return elements


def _kept(service: str, port: PortMapping, where: str, start: tuple[str, ...]) -> Element:
    if port.count > 1:
        key = (*start, (port.host_port, port.last))
        return Element(INET, f"kept_range_{where}", key, (), service)
    return Element(INET, _of("kept_", where), (*start, port.host_port), (), service)


def hairpin(service: str, own: Iterable[tuple[str, str]]) -> list[Element]:
    """Return the elements that let a service connect to its own published port. The rules replace
    the source address of such a connection by the gateway's address. ``own`` are pairs (address of
    the service, gateway).
    """
    pairs = list(own)
    return [
        Element(INET, _of("hairpin", family_of(to)), (source, to), (gateway,), service)
        for to, gateway in pairs
        for source, _ in pairs
        if family_of(source) == family_of(to)
    ]


# --- service addresses ----------------------------------------------------------------------------


@lru_cache
def fill(ordinals: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ordinal of the instance for each slot of a service address. A hash of the client's
    address and port selects the slot of a connection. Each instance has its own order of the slots,
    and the instances take turns choosing a free slot (Maglev, NSDI 2016). So all instances get
    almost the same number of slots, and few slots change if an instance is added.
    """
    orders = {
        ordinal: iter(sorted(range(SLOTS), key=lambda n: sha256(b"%d.%d" % (ordinal, n)).digest()))
        for ordinal in ordinals
    }
    slots: dict[int, int] = {}
    while ordinals and len(slots) < SLOTS:
        for ordinal in ordinals[: SLOTS - len(slots)]:
            slots[next(slot for slot in orders[ordinal] if slot not in slots)] = ordinal
    return tuple(slots[slot] for slot in sorted(slots))


def service_address(
    service: str,
    bridge: str,
    bridge_mac: str,
    address: str,
    near: Mapping[int, str],
    far: Mapping[int, str],
) -> list[Element]:
    """Return the elements of a service address on one network.

    A service address is one address for all instances of a service. ``near`` and ``far`` map the
    ordinals of instances that receive connections to their addresses. ``near`` has the instances on
    this host, ``far`` those on other hosts. If both are empty, there are no elements, and
    connections to the service address are refused. The nftables maps ``near`` have elements only if
    instances run both on this host and on other hosts.
    """
    serving = {**near, **far}
    if not serving:
        return []
    family = family_of(address)
    maps = {f"slots{family}": serving} | ({f"near{family}": near} if near and far else {})
    return [
        Element(INET, f"vips{family}", (bridge, address), (), service),
        Element(BRIDGE, f"vips{family}", (bridge_mac, address), (), service),
        *(
            Element(INET, name, (address, slot), (some[ordinal],), service)
            for name, some in maps.items()
            for slot, ordinal in enumerate(fill(tuple(sorted(some))))
        ),
    ]


FRONTS = {
    f"front_{where}{family}": where == "addr" for where in ("addr", "any") for family in (4, 6)
}
"""The nftables maps from a published port to a service address, as in `PUBLISHED`."""
