"""Define the kind of foreign forwarding entries of bridges. Never desired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, link_place

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Neighbour(NamedTuple):
    """A static entry that sends frames for a MAC to a bridge port."""

    link: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _Neighbours(Kind[Neighbour]):
    def lies_in(self, thing: Neighbour) -> tuple[str, ...]:
        return (link_place("", thing.link),)

    def describe(self, step: Step[Neighbour]) -> str:
        return f"bridge fdb delete {step.thing.mac} dev {step.thing.link} master"

    def what(self, thing: Neighbour) -> str:
        return f"forwarding entry {thing.mac} of bridge port {thing.link}"

    def read(self, space: Space, things: Collection[Neighbour]) -> Iterable[Neighbour]:
        """Yield the static entries of niso's bridges, without those of kinds/veth.py and fdb.py."""
        if space.name or not space.reading.strays:
            return
        from niso.kernel.kinds.bridge import Bridge
        from niso.kernel.kinds.veth import Veth
        from niso.kernel.kinds.vxlan import Vxlan

        tunnels = {vxlan.name for vxlan in space.reading.so_far(Vxlan)}
        names = {bridge.name for bridge in space.reading.so_far(Bridge)}
        links = space.all_links()
        by_index = {link.index: link.name for link in links}
        asked = {veth.name: veth.mac for veth in space.reading.candidates[Veth]}
        alias = space.reading.alias
        ports = {link.index: asked.get(link.name) for link in links if link.alias == alias}
        macs: dict[int, set[str]] = {}  # by the index of the bridge
        for link in links:
            macs.setdefault(link.master, set()).add(link.mac)
        for bridge in (link for link in links if link.name in names):
            own = macs.get(bridge.index, set()) | {bridge.mac}
            for entry in space.bridge_table(bridge.index):
                port = by_index.get(entry.link_index)
                # entries of services that are not read may be right
                right = ports.get(entry.link_index, "") in (None, entry.mac)
                right = right or (entry.is_local and entry.mac in own)
                if port is not None and port not in tunnels and not right:
                    yield Neighbour(port, entry.mac)

    def write(self, writer: Writer, steps: Sequence[Step[Neighbour]]) -> None:
        from niso.kernel import neighbours

        entry = steps[0].thing
        rtnl, index = writer.link("", entry.link)
        if index is not None:
            rtnl.transact(neighbours.unfix(index, entry.mac))


KIND = _Neighbours(Neighbour)
