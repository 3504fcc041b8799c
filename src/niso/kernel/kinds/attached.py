"""Define the kind of foreign links on niso's bridges. Never desired, since no rule checks them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.kind import Kind, Step

if TYPE_CHECKING:
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Attached(NamedTuple):
    bridge: str
    link: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _AttachedLinks(Kind[Attached]):
    def describe(self, step: Step[Attached]) -> str:
        return f"ip link set {step.thing.link} nomaster"

    def what(self, thing: Attached) -> str:
        return f"link {thing.link} on bridge {thing.bridge}"

    def read(self, space: Space, things: Collection[Attached]) -> Iterable[Attached]:
        reading = space.reading
        if space.name or not reading.strays:
            return ()
        names = {bridge.name for bridge in reading.so_far(Bridge)}
        by_index = {link.index: link.name for link in space.all_links() if link.name in names}
        return (
            Attached(by_index[link.master], link.name)
            for link in space.all_links()
            if link.master in by_index and link.alias != reading.alias
        )

    def write(self, writer: Writer, steps: Sequence[Step[Attached]]) -> None:
        writer.rtnl("").set_link(steps[0].thing.link, master="")


KIND = _AttachedLinks(Attached)
