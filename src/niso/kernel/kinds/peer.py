"""Define the kind of neighbour entries of services of other hosts, on the bridge of a network.

The bridge answers ARP requests and neighbour solicitations of its services with them
(neigh_suppress), so that none has to cross to another host.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.fdb import AT_ONCE
from niso.kernel.kinds.kind import Kind, Step, link_place
from niso.kernel.kinds.vxlan import Vxlan

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.writing import Writer


class Peer(NamedTuple):
    link: str  # the bridge
    address: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return (self.link, self.address)


class _Peers(Kind[Peer]):
    replaces = True

    def lies_in(self, thing: Peer) -> tuple[str, ...]:
        return (link_place("", thing.link),)

    def describe(self, step: Step[Peer]) -> str:
        peer = step.thing
        if step.action == "delete":
            return f"ip neighbour delete {peer.address} dev {peer.link}"
        entry = f"{peer.address} lladdr {peer.mac} dev {peer.link}"
        return f"ip neighbour replace {entry} nud permanent"

    def what(self, thing: Peer) -> str:
        return f"neighbour entry {thing.address} of bridge {thing.link}"

    def follows_from(self, thing: Peer, was: Peer | None) -> tuple[str, ...]:
        """Return the conditions under which the kernel drops all entries of the link."""
        link = link_place("", thing.link)
        return (
            (f"{link} down", f"{link} without IPv6") if ":" in thing.address else (f"{link} down",)
        )

    def read(self, space: Space, things: Collection[Peer]) -> Iterable[Peer]:
        if space.name:
            return
        from niso.kernel import neighbours

        reading = space.reading
        if reading.everything:
            for bridge in sorted(bridges_that_span(reading)):
                if (link := space.link(bridge)) is not None:
                    for entry in neighbours.of_link(space.rtnl, link.index):
                        yield Peer(bridge, entry.address, entry.mac)
            return
        for thing in things:
            link = space.own_link(thing.link)
            if link is not None:
                mac = neighbours.mac_of(space.rtnl, link.index, thing.address)
                if mac:
                    yield thing._replace(mac=mac)

    def batch(self, step: Step[Peer], writer: Writer) -> Hashable:
        return step.action == "delete"

    def write(self, writer: Writer, steps: Sequence[Step[Peer]]) -> None:
        from niso.kernel import neighbours

        messages = []
        for step in steps:
            peer = step.thing
            index = writer.link("", peer.link)[1]
            if step.action != "delete":
                index = writer.existing(index, peer.link)
                messages.append(neighbours.resolve(index, peer.address, peer.mac))
            elif index is not None:
                messages.append(neighbours.forget(index, peer.address))
        for start in range(0, len(messages), AT_ONCE):
            writer.rtnl("").transact(*messages[start : start + AT_ONCE])


def bridges_that_span(reading: Reading) -> set[str]:
    """Return the bridges whose permanent entries are of this kind."""
    wanted = {peer.link for peer in reading.candidates[Peer]}
    return wanted | {vxlan.bridge for vxlan in reading.so_far(Vxlan)} - {""}


KIND = _Peers(Peer)
