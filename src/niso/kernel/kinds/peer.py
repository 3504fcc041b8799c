"""Define the kind of permanent neighbour entries: for addresses of services, and for gateways.

The host has one on the bridge for each address of a service, and a service has one for each of its
gateways. So a packet between them needs no ARP and no place in the machine's neighbour table, which
has room for 1,024 other entries (gc_thresh3, arp(7)). For services of other hosts, the bridge also
answers ARP requests and neighbour solicitations from these entries (neigh_suppress), so that no
request has to cross.

The host queues packets to an unresolved address for up to 3 s, and sends them once the address has
an entry. They may have been meant for an earlier holder of the address, and have passed rules that
did not know the present holder. So the queue is dropped before an entry is added.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.kind import Kind, Step, in_netns, inside, link_place, netns_place

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.rtnl_records import Link
    from niso.kernel.writing import Writer


class Peer(NamedTuple):
    netns: str
    link: str  # the bridge, or the service's end of its veth pair
    address: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.link, self.address)


class _Peers(Kind[Peer]):
    replaces = True

    def space(self, thing: Peer) -> str:
        return thing.netns

    def lies_in(self, thing: Peer) -> tuple[str, ...]:
        return (netns_place(thing.netns), link_place(thing.netns, thing.link))

    def describe(self, step: Step[Peer]) -> str:
        peer = step.thing
        start = f"{inside(peer.netns)}neighbour"
        if step.action == "delete":
            return f"{start} delete {peer.address} dev {peer.link}"
        entry = f"{peer.address} lladdr {peer.mac} dev {peer.link}"
        return f"{start} replace {entry} nud permanent"

    def what(self, thing: Peer) -> str:
        return f"neighbour entry {thing.address} on {thing.link}{in_netns(thing.netns)}"

    def follows_from(self, thing: Peer, was: Peer | None) -> tuple[str, ...]:
        """Return the conditions under which the kernel drops all entries of the link.

        IPv4 entries are lost with the link's last IPv4 address (fib_disable_ip,
        net/ipv4/fib_frontend.c). All entries are lost when its MAC changes or ARP is switched on or
        off (neigh_changeaddr).
        """
        link = link_place(thing.netns, thing.link)
        lost = (f"{link} down", f"{link} forgets")
        if ":" in thing.address:
            whole = link_place(thing.netns, "all")
            return (*lost, f"{whole} without IPv6", f"{link} without IPv6")
        return (*lost, f"{link} IPv4")

    def read(self, space: Space, things: Collection[Peer]) -> Iterable[Peer]:
        """Read the candidates; with strays also all other permanent entries of services' links.

        Those of bridges are read only with everything, since they belong to many services.
        """
        from niso.kernel import neighbours

        reading = space.reading
        if reading.everything or (space.name and reading.strays):
            links = {link.index: link.name for link in _links(space)}
            for entry in neighbours.permanent(space.rtnl) if links else ():
                if entry.link_index in links:
                    name = links[entry.link_index]
                    yield Peer(space.name, name, entry.address, entry.mac)
            return
        for thing in things:
            link = space.link(thing.link) if space.name else space.own_link(thing.link)
            if link is not None:
                mac = neighbours.mac_of(space.rtnl, link.index, thing.address)
                if mac:
                    yield thing._replace(mac=mac)

    def is_read_back(self, thing: Peer) -> bool:
        """Read back the host's entries only: the kernel has acknowledged those of services."""
        return not thing.netns

    def batch(self, step: Step[Peer], writer: Writer) -> Hashable:
        return (step.action == "delete", step.thing.netns)

    def write(self, writer: Writer, steps: Sequence[Step[Peer]]) -> None:
        from niso.kernel import neighbours

        messages = []
        netns = steps[0].thing.netns
        for step in steps:
            peer = step.thing
            index = writer.link(netns, peer.link)[1]
            if step.action != "delete":
                index = writer.existing(index, peer.link)
                if step.action == "add":
                    messages.append(neighbours.forget(index, peer.address))
                messages.append(neighbours.resolve(index, peer.address, peer.mac))
            elif index is not None:
                messages.append(neighbours.forget(index, peer.address))
        for start in range(0, len(messages), neighbours.AT_ONCE):
            writer.rtnl(netns).transact(*messages[start : start + neighbours.AT_ONCE])


def _links(space: Space) -> list[Link]:
    """Return the links in a namespace whose permanent entries are of this kind."""
    if space.name:
        return space.links_of_concern()
    bridges = {bridge.name for bridge in space.reading.so_far(Bridge)}
    return [link for link in space.all_links() if link.name in bridges]


KIND = _Peers(Peer)
