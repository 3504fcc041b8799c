"""Define the kind of static neighbour entries on niso's links, which are never desired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, in_netns, inside, link_place, netns_place

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Neighbour(NamedTuple):
    """An entry. In a bridge's forwarding table ``address`` is "" and ``link`` the port."""

    netns: str
    link: str
    address: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _Neighbours(Kind[Neighbour]):
    def space(self, thing: Neighbour) -> str:
        return thing.netns

    def lies_in(self, thing: Neighbour) -> tuple[str, ...]:
        return (netns_place(thing.netns), link_place(thing.netns, thing.link))

    def describe(self, step: Step[Neighbour]) -> str:
        entry = step.thing
        if not entry.address:
            return f"bridge fdb delete {entry.mac} dev {entry.link} master"
        return f"{inside(entry.netns)}neighbour delete {entry.address} dev {entry.link}"

    def what(self, thing: Neighbour) -> str:
        if not thing.address:
            return f"forwarding entry {thing.mac} of bridge port {thing.link}"
        where = f"on {thing.link}{in_netns(thing.netns)}"
        return f"neighbour entry {thing.address} lladdr {thing.mac} {where}"

    def read(self, space: Space, things: Collection[Neighbour]) -> Iterable[Neighbour]:
        if not space.reading.strays:
            return ()
        return _of_services(space) if space.name else _of_bridges(space)

    def write(self, writer: Writer, steps: Sequence[Step[Neighbour]]) -> None:
        from niso.kernel import neighbours

        entry = steps[0].thing
        rtnl, index = writer.link(entry.netns, entry.link)
        if index is not None:
            neighbours.delete(rtnl, neighbours.Fixed(index, entry.address, entry.mac))


def _of_services(space: Space) -> Iterable[Neighbour]:
    """Yield entries on the namespace's ends of candidate veth pairs."""
    from niso.kernel import neighbours
    from niso.kernel.kinds.veth import Veth

    for name in {veth.peer for veth in space.things(Veth)}:
        link = space.link(name)
        for entry in neighbours.of_link(space.rtnl, link.index) if link is not None else ():
            yield Neighbour(space.name, name, entry.address, entry.mac)


def _of_bridges(space: Space) -> Iterable[Neighbour]:
    """Yield entries on niso's bridges and in their forwarding tables.

    Those of networks that span hosts are left out: kinds/fdb.py and kinds/peer.py read them.
    """
    from niso.kernel import neighbours
    from niso.kernel.kinds.bridge import Bridge
    from niso.kernel.kinds.peer import bridges_that_span
    from niso.kernel.kinds.veth import Veth
    from niso.kernel.kinds.vxlan import Vxlan

    spans = bridges_that_span(space.reading)
    tunnels = {vxlan.name for vxlan in space.reading.so_far(Vxlan)}
    names = {bridge.name for bridge in space.reading.so_far(Bridge)}
    links = space.all_links()
    by_index = {link.index: link.name for link in links}
    asked = {veth.name: veth.mac for veth in space.reading.candidates[Veth]}
    alias = space.reading.alias
    ports = {link.index: asked.get(link.name) for link in links if link.alias == alias}
    for bridge in (link for link in links if link.name in names):
        macs = {link.mac for link in links if link.master == bridge.index} | {bridge.mac}
        for entry in (
            *neighbours.of_link(space.rtnl, bridge.index),
            *neighbours.of_bridge(space.rtnl, bridge.index, macs),
        ):
            # niso's own; those of services that are not read may be right
            own = not entry.address and ports.get(entry.link_index, "") in (None, entry.mac)
            own = own or (bool(entry.address) and bridge.name in spans)
            link = by_index.get(entry.link_index)
            if link is not None and link not in tunnels and not own:
                yield Neighbour("", link, entry.address, entry.mac)


KIND = _Neighbours(Neighbour)
