"""Define the kinds for addresses, routes in services, neighbour and forwarding entries, and routing
rules that isolate networks. Neighbour and forwarding entries are niso's permanent ones, or foreign.

Routing rules (ip-rule(8)) remain when another program flushes niso's nftables rules. They refuse
forwarded packets from internal networks, and packets to any network of niso, unless the packets
have the packet mark that niso's nftables rules set. niso adds them only if the kernel has no bridge
filters (kernel/proc_sys.py).

On a network's bridge, the host has a permanent neighbour entry for each address of a service. Each
service has a permanent neighbour entry for each of its gateways. Therefore a packet between host
and service needs no ARP, and no entry among the 1,024 non-permanent ones of the kernel's neighbour
table (gc_thresh3, arp(7)). For services of other hosts, the bridge also answers ARP requests and
neighbour solicitations from these entries (neigh_suppress), so that no such packet has to be sent
to another host.

The kernel queues packets to an address without an entry for up to 3 s, and sends them when the
address gets an entry. A service could therefore receive packets that were meant for the previous
holder of its address, and that only earlier rules allowed. To prevent this, niso deletes the queue
before it adds an entry.

An Fdb (forwarding database) object is for a service of another host, and represents two entries of
the kernel. The first makes the bridge send frames for the service's MAC to its VXLAN port. The
second makes the VXLAN device send these frames to the other host. Entries of other programs are
never part of the desired state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import neighbour_tables, rtnetlink
from niso.kernel.kinds.kind import (
    KINDS,
    TOGETHER,
    Kind,
    Reading,
    Space,
    State,
    Step,
    existing,
    in_netns,
    inside,
)
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.link_records import Link, prefix
from niso.kernel.netlink import Message
from niso.kernel.proc_sys import can_filter
from niso.kernel.rtnetlink import KERNEL, NOWHERE, selector

if TYPE_CHECKING:
    from niso.kernel.kinds.tunnels import Vxlan
    from niso.kernel.real import Writer


class Address(NamedTuple):
    """An address with its prefix length, on a network interface. ``routed`` is whether the kernel
    adds a route to the address's prefix, as it does by default. Addresses of bridges have this
    route. Addresses in services lack it, because a service sends packets for the prefix to its
    gateway's MAC (plan/desired.py). ``lasting`` is whether the address never expires.
    """

    netns: str
    link: str
    address: str
    routed: bool = True
    lasting: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.link, self.address)


def ipv6_losses(obj: Address | Route | PermanentNeighbour) -> tuple[str, ...]:
    """Return the conditions under which the kernel drops an IPv6 object: its interface is down, or
    IPv6 is disabled. `Kind.conditions` defines the names of conditions.
    """
    link = f"link /{obj.netns}/{obj.link}"
    return (f"link /{obj.netns}/all without IPv6", f"{link} down", f"{link} without IPv6")


class _Addresses(Kind[Address], of=Address):
    parents_format = ("netns {0.netns}", "link /{0.netns}/{0.link}")
    names_links = True
    is_read_by_link = True
    is_acknowledged = True

    def links(self, obj: Address) -> tuple[str, ...]:
        return (obj.link,)

    def parent_name(self, obj: Address) -> str:
        # the kernel deletes the routes and neighbour entries of an interface with its last IPv4
        # address
        return "" if ":" in obj.address else f"link /{obj.netns}/{obj.link} IPv4"

    def describe(self, step: Step[Address]) -> str:
        if step.action == "change":
            return super().describe(step)
        address = step.obj
        is_alone = not address.routed and step.action == "add"
        brd = " brd +" if is_alone and ":" not in address.address else ""
        alone = " noprefixroute" if is_alone else ""
        words = f"{step.action} {address.address}{brd} dev {address.link}{alone}"
        return f"{inside(address.netns)}address {words}"

    def noun(self, obj: Address) -> str:
        return f"address {obj.address} on {obj.link}{in_netns(obj.netns)}"

    def causes(self, obj: Address, actual: Address | None) -> tuple[str, ...]:
        if ":" in obj.address:
            return ipv6_losses(obj)
        return (f"link /{obj.netns}/{obj.link} down",) if actual is not None else ()

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "lasting":
            return "its lifetime is limited"
        if wanted:
            return "the kernel's route to its prefix is missing"
        return "the kernel's route to its prefix bypasses the gateway"

    def read(self, space: Space, objects: Collection[Address]) -> Iterable[Address]:
        """Return all addresses of the interfaces on which requested addresses are.

        Whether the kernel's route to a prefix exists (``routed``) is read in services. On the host
        it is read only with `Reading.with_strays`, and otherwise assumed to be True.
        """
        for link in space.links_of_concern:
            by_link = space.routes(link) if space.name or space.reading.with_strays else None
            destinations = {route.destination for route in by_link or () if not route.gateway}
            for address in space.addresses(link):
                routed = by_link is None or _is_routed(address.address, destinations)
                yield Address(space.name, link.name, address.address, routed, address.lasts)

    def batch(self, step: Step[Address], writer: Writer) -> Hashable:
        return TOGETHER if step.action == "add" else None

    def messages(self, step: Step[Address], index: int | None) -> Iterable[Message]:
        link, address, routed = step.obj[1:4]
        return rtnetlink.new_address(existing(index, link), address, routed=routed)

    def write(self, writer: Writer, steps: Sequence[Step[Address]]) -> None:
        step = steps[0]
        if step.action == "add":
            writer.send(steps)
            return
        address = step.obj
        rtnl, index = writer.link(address.netns, address.link)
        if step.action == "delete":
            if index is not None:
                rtnl.delete_address(index, address.address)
                if address.netns:
                    # the kernel keeps the route to a prefix while the link has another address in
                    # it
                    rtnl.delete_connected_route(index, address.address)
            return
        index = existing(index, address.link)
        if step.actual is not None and not step.actual.lasting:
            rtnl.add_address(index, address.address, replace=True, routed=address.routed)
        if address.routed:
            rtnl.add_connected_route(index, address.address)
        else:
            rtnl.delete_connected_route(index, address.address)


def _is_routed(address: str, destinations: set[str]) -> bool:
    return address.endswith("/128" if ":" in address else "/32") or prefix(address) in destinations


LAST = 0x7FFFFFFF
"""The metric of routes that the kernel uses only if no route with a lower metric matches."""


class Route(NamedTuple):
    """A route of a service. The ``destination`` of a default route is ``0.0.0.0/0`` or ``::/0``.
    ``type`` is "" for a unicast route; niso adds no other routes. Routes of the types blackhole,
    unreachable, prohibit and throw lead to no interface. With ``last``, the kernel uses the route
    only if there is no other route to the same destination.
    """

    netns: str
    destination: str
    gateway: str
    link: str
    type: str = ""
    last: bool = False

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.destination, self.type)


class _Routes(Kind[Route], of=Route):
    parents_format = ("netns {0.netns}", "link /{0.netns}/{0.link}")
    names_links = True
    is_read_by_link = True
    is_acknowledged = True

    def links(self, obj: Route) -> tuple[str, ...]:
        return (obj.link,)

    def describe(self, step: Step[Route]) -> str:
        route = step.obj
        start = f"{inside(route.netns)}route"
        if route.type:
            return f"{start} delete {route.type} {route.destination}"
        verb = "replace" if step.action == "change" else step.action
        dev = f"dev {route.link}"
        by = f"via {route.gateway} {dev} onlink" if route.gateway else dev
        metric = f" metric {LAST}" if route.last else ""
        return f"{start} {verb} {route.destination} {by}{metric}"

    def noun(self, obj: Route) -> str:
        if obj.type:
            return f"route {obj.type} {obj.destination}{in_netns(obj.netns)}"
        by = f" via {obj.gateway}" if obj.gateway else ""
        last = ", after all others" if obj.last else ""
        return f"route {obj.destination}{by} on {obj.link}{last}{in_netns(obj.netns)}"

    def causes(self, obj: Route, actual: Route | None) -> tuple[str, ...]:
        """Return the conditions under which the kernel drops all routes of an interface. It drops
        IPv4 routes with the interface's last IPv4 address (fib_disable_ip,
        net/ipv4/fib_frontend.c).
        """
        if ":" in obj.destination:
            return ipv6_losses(obj)
        link = f"link /{obj.netns}/{obj.link}"
        return (f"{link} down", f"{link} IPv4")

    def read(self, space: Space, objects: Collection[Route]) -> Iterable[Route]:
        """Return all routes in a service that use the interfaces of requested objects. With
        `Reading.with_strays`, return also routes of the types in `NOWHERE`, such as blackhole.

        Routes to an address's own prefix are left out: `Address.routed` represents them. They are
        recognised by their destination, because any program can label a route as the kernel's.
        """
        if not space.name:
            return
        for link in space.links_of_concern:
            prefixes = {prefix(address.address) for address in space.addresses(link)}
            for route in space.routes(link):
                connected = route.protocol == KERNEL and not route.gateway
                if not connected or route.destination not in prefixes:
                    last = route.metric == LAST
                    yield Route(space.name, route.destination, route.gateway, link.name, last=last)
        if space.reading.with_strays:
            names = {number: word for word, number in NOWHERE.items()}
            for route in space.all_routes:
                if route.type in names and route.protocol != KERNEL:
                    yield Route(space.name, route.destination, "", "", names[route.type])

    def batch(self, step: Step[Route], writer: Writer) -> Hashable:
        return TOGETHER if step.action == "add" else None

    def messages(self, step: Step[Route], index: int | None) -> Iterable[Message]:
        _, destination, gateway, link, _, last = step.obj
        metric = LAST if last else 0
        return (rtnetlink.new_route(destination, gateway, existing(index, link), metric),)

    def write(self, writer: Writer, steps: Sequence[Step[Route]]) -> None:
        if len(steps) > 1:
            writer.send(steps)
            return
        (step,) = steps
        route = step.obj
        if route.type:  # none of these types is ever desired
            writer.rtnl(route.netns).delete_nowhere(route.destination, route.type)
            return
        gone = route if step.action == "delete" else step.actual
        if gone is not None:
            rtnl, index = writer.link(gone.netns, gone.link)
            if index is not None:
                metric = LAST if gone.last else 0
                rtnl.delete_route(gone.destination, gone.gateway, index, metric)
        if step.action != "delete":
            rtnl, index = writer.link(route.netns, route.link)
            index = existing(index, route.link)
            rtnl.add_route(route.destination, route.gateway, index, LAST if route.last else 0)


class RoutingRule(NamedTuple):
    """A routing rule (ip-rule(8)) of niso for one IP version, 4 or 6.

    niso's nftables rules set a packet mark on the packets that they have checked. The routing rules
    reject packets without this mark, even after another program has flushed all nftables rules.
    ``name`` is one of:

    - the bridge of an internal network: the rule rejects packets without the mark from this bridge.
    - a subnet: the rule rejects packets without the mark to the subnet.
    - "lo SUBNET": the rule lets the host's own packets reach the subnet.

    ``drift`` describes how an existing rule differs from the rule that niso adds. It is "" if the
    rules are equal.
    """

    name: str
    family: int
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name, str(self.family))


class _RoutingRules(Kind[RoutingRule], of=RoutingRule):
    is_of_host = True
    field_texts = (("drift", "{}"),)

    def noun(self, obj: RoutingRule) -> str:
        what = f"of bridge {obj.name}"
        if "/" in obj.name:
            host, _, subnet = obj.name.rpartition(" ")
            what = f"{'from the host ' if host else ''}to {subnet}"
        return f"IPv{obj.family} routing rule {what}"

    def describe(self, step: Step[RoutingRule]) -> str:
        rule = step.obj
        start = f"ip -{rule.family} rule"
        add = f"{start} add {selector(rule.name)}"
        if step.action == "add":
            return add
        delete = f"{start} delete {selector(rule.name)}"
        return delete if step.action == "delete" else f"{delete} && {add}"

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[RoutingRule]:
        """Return the desired routing rules. If the kernel has bridge filters, which stop the same
        packets, return none: any routing rule makes the host's route look-ups slower.
        """
        return frozenset() if can_filter() else want[RoutingRule]

    def claimed(self, reading: Reading) -> Iterable[RoutingRule]:
        return (
            RoutingRule(name, family)
            for family in (4, 6)
            for name, _, _ in rtnetlink.of_niso(reading.host.rtnl, family)
        )

    def read(self, space: Space, objects: Collection[RoutingRule]) -> Iterable[RoutingRule]:
        for family in sorted({obj.family for obj in objects}):
            names = {obj.name for obj in objects if obj.family == family}
            for name, drift, _ in rtnetlink.of_niso(space.rtnl, family):
                if name in names:
                    yield RoutingRule(name, family, drift)

    def write(self, writer: Writer, steps: Sequence[Step[RoutingRule]]) -> None:
        (step,) = steps
        rtnl, rule = writer.rtnl(""), step.obj
        if step.action != "delete":
            rtnetlink.add(rtnl, rule.name, rule.family)
        # a different rule is deleted once the desired one exists
        old = rule if step.action == "delete" else step.actual
        if old is not None:
            rtnetlink.delete(rtnl, rule.name, rule.family, old.drift)


# --- neighbour and forwarding entries -------------------------------------------------------------


class PermanentNeighbour(NamedTuple):
    netns: str
    link: str  # the bridge, or the service's end of its veth pair
    address: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.link, self.address)


class _PermanentNeighbours(Kind[PermanentNeighbour], of=PermanentNeighbour):
    parents_format = ("netns {0.netns}", "link /{0.netns}/{0.link}")
    replaces = True
    is_acknowledged = True

    def describe(self, step: Step[PermanentNeighbour]) -> str:
        peer = step.obj
        start = f"{inside(peer.netns)}neighbour"
        if step.action == "delete":
            return f"{start} delete {peer.address} dev {peer.link}"
        entry = f"{peer.address} lladdr {peer.mac} dev {peer.link}"
        return f"{start} replace {entry} nud permanent"

    def noun(self, obj: PermanentNeighbour) -> str:
        return f"neighbour entry {obj.address} on {obj.link}{in_netns(obj.netns)}"

    def causes(self, obj: PermanentNeighbour, actual: PermanentNeighbour | None) -> tuple[str, ...]:
        """Return the conditions under which the kernel drops a permanent neighbour entry.

        The kernel drops IPv4 entries with the last IPv4 address of the interface (fib_disable_ip,
        net/ipv4/fib_frontend.c). It drops all entries when the interface's MAC changes, or when ARP
        is switched on or off (neigh_changeaddr).
        """
        link = f"link /{obj.netns}/{obj.link}"
        lost = ipv6_losses(obj) if ":" in obj.address else (f"{link} down", f"{link} IPv4")
        return (*lost, f"{link} forgets")

    def read(
        self, space: Space, objects: Collection[PermanentNeighbour]
    ) -> Iterable[PermanentNeighbour]:
        """Read the requested neighbour entries. If changes of other programs are read too
        (`Reading.with_strays`), read all permanent entries of interfaces in services. On bridges,
        which many services share, all entries are read only if all of niso's objects are read.
        """
        reading = space.reading
        if reading.everything or (space.name and reading.with_strays):
            links = {link.index: link.name for link in _links(space)}
            for index, address, mac in neighbour_tables.permanent(space.rtnl) if links else ():
                if index in links:
                    yield PermanentNeighbour(space.name, links[index], address, mac)
            return
        for obj in objects:
            link = space.link(obj.link) if space.name else space.own_link(obj.link)
            if link is not None:
                mac = neighbour_tables.mac_of(space.rtnl, link.index, obj.address)
                if mac:
                    yield obj._replace(mac=mac)

    def batch(self, step: Step[PermanentNeighbour], writer: Writer) -> Hashable:
        return TOGETHER

    def messages(self, step: Step[PermanentNeighbour], index: int | None) -> Iterable[Message]:
        peer = step.obj
        if step.action == "delete":
            return () if index is None else (neighbour_tables.forget(index, peer.address),)
        index = existing(index, peer.link)
        new = neighbour_tables.resolve(index, peer.address, peer.mac)
        if step.action == "change":
            return (new,)
        return (neighbour_tables.forget(index, peer.address), new)

    def write(self, writer: Writer, steps: Sequence[Step[PermanentNeighbour]]) -> None:
        writer.send(steps)


def _links(space: Space) -> list[Link]:
    """Return the interfaces in a namespace on which only niso should have permanent entries."""
    if space.name:
        return space.links_of_concern
    bridges = {bridge.name for bridge in space.reading.so_far(Bridge)}
    return [link for link in space.all_links if link.name in bridges]


class Neighbour(NamedTuple):
    """A static forwarding entry that another program has added to a bridge of niso."""

    link: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _Neighbours(Kind[Neighbour], of=Neighbour):
    is_of_host = True
    parents_format = ("link //{0.link}",)
    noun_format = "forwarding entry {0.mac} of bridge port {0.link}"

    def describe(self, step: Step[Neighbour]) -> str:
        return f"bridge fdb delete {step.obj.mac} dev {step.obj.link} master"

    def read(self, space: Space, objects: Collection[Neighbour]) -> Iterable[Neighbour]:
        """Yield the static entries of niso's bridges that are not part of a Veth or Fdb object."""
        if not space.reading.with_strays:
            return
        tunnels = {vxlan.name for vxlan in _vxlans(space.reading)}
        names = {bridge.name for bridge in space.reading.so_far(Bridge)}
        links = space.all_links
        by_index = {link.index: link.name for link in links}
        asked = {veth.name: veth.mac for veth in space.reading.candidates[Veth]}
        alias = space.reading.alias
        ports = {link.index: asked.get(link.name) for link in links if link.alias == alias}
        macs: dict[int, set[str]] = {}  # by the index of the bridge
        for link in links:
            macs.setdefault(link.master, set()).add(link.mac)
        for bridge in (link for link in links if link.name in names):
            own = macs.get(bridge.index, set()) | {bridge.mac}
            for index, mac, is_local in space.bridge_table(bridge.index):
                port = by_index.get(index)
                # static entries of services that are not read are not reported
                right = ports.get(index, "") in (None, mac) or (is_local and mac in own)
                if port is not None and port not in tunnels and not right:
                    yield Neighbour(port, mac)

    def write(self, writer: Writer, steps: Sequence[Step[Neighbour]]) -> None:
        entry = steps[0].obj
        rtnl, index = writer.link("", entry.link)
        if index is not None:
            rtnl.transact(neighbour_tables.delete_fdb_entry(index, entry.mac))


def _vxlans(reading: Reading) -> list[Vxlan]:
    """Return the VXLAN devices that are already read. Their kind is loaded only if it is needed."""
    types = [kind.type for kind in KINDS if kind.type.__name__ == "Vxlan"]
    return [vxlan for kind in types for vxlan in reading.so_far(kind)]


class Fdb(NamedTuple):
    """The forwarding entries for the MAC of another host's service. One entry is on the bridge, and
    one on its VXLAN device ``link``. The device sends frames for the MAC to the address ``host``,
    which is "" if the device has no entry.
    """

    link: str  # the VXLAN device
    mac: str
    host: str
    fixed: bool = True  # whether the bridge sends the MAC to the device

    def key(self) -> tuple[str, ...]:
        return (self.link, self.mac)


class _FdbKind(Kind[Fdb], of=Fdb):
    is_of_host = True
    parents_format = ("link //{0.link}",)
    noun_format = "forwarding entry {0.mac} of VXLAN device {0.link}"
    replaces = True

    def describe(self, step: Step[Fdb]) -> str:
        entry = step.obj
        verb, to, static = "replace", f" dst {entry.host} permanent", " static"
        if step.action == "delete":
            verb, to, static = "delete", "", ""
        start = f"bridge fdb {verb} {entry.mac}"
        return f"{start} dev {entry.link} self{to} && {start} dev {entry.link} master{static}"

    def causes(self, obj: Fdb, actual: Fdb | None) -> tuple[str, ...]:
        return (f"link //{obj.link} another",)

    def is_field_explained(
        self, obj: Fdb, field: str, present: object, known: Collection[str]
    ) -> bool:
        return field == "fixed" and f"link //{obj.link} off its bridge" in known

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "fixed":
            return "the bridge has no static forwarding entry for it"
        return f"it leads to {present or 'no host'}, should be {wanted}"

    def read(self, space: Space, objects: Collection[Fdb]) -> Iterable[Fdb]:
        reading = space.reading
        if reading.everything:
            for vxlan in _vxlans(reading):
                if (link := space.link(vxlan.name)) is not None:
                    yield from _all(vxlan.name, neighbour_tables.of_tunnel(space.rtnl, link.index))
            return
        for obj in objects:
            link = space.own_link(obj.link)
            if link is not None:
                host, fixed = neighbour_tables.tunnel_entry(space.rtnl, link.index, obj.mac)
                if host or fixed:
                    yield Fdb(obj.link, obj.mac, host, fixed)

    def batch(self, step: Step[Fdb], writer: Writer) -> Hashable:
        return step.action == "delete"

    def write(self, writer: Writer, steps: Sequence[Step[Fdb]]) -> None:
        messages: list[Message] = []
        for step in steps:
            entry = step.obj
            index = writer.link("", entry.link)[1]
            if step.action != "delete":
                actual = step.actual.host if step.actual else ""
                index = existing(index, entry.link)
                messages += neighbour_tables.add_tunnel_entry(index, entry.mac, entry.host, actual)
            elif index is not None:
                messages += neighbour_tables.delete_tunnel_entry(index, entry.mac)
        writer.rtnl("").transact_each(messages)


def _all(link: str, entries: Iterable[tuple[str, str]]) -> Iterable[Fdb]:
    # ``entries`` are pairs (MAC, host); the host "" means the entry of the device's bridge
    pairs = list(entries)
    fixed = {mac for mac, host in pairs if not host}
    led = {mac for mac, host in pairs if host}
    for mac, host in pairs:
        if host or mac not in led:
            yield Fdb(link, mac, host, mac in fixed)
