"""Define the kinds for neighbour and forwarding entries: niso's permanent ones, and foreign ones.

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

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import neighbour_tables
from niso.kernel.kinds.addresses import ipv6_losses
from niso.kernel.kinds.kind import TOGETHER, Kind, Space, Step, existing, in_netns, inside
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.tunnels import Vxlan
from niso.kernel.link_records import Link
from niso.kernel.netlink import Message

if TYPE_CHECKING:
    from niso.kernel.real import Writer


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
        tunnels = {vxlan.name for vxlan in space.reading.so_far(Vxlan)}
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
            for vxlan in reading.so_far(Vxlan):
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
