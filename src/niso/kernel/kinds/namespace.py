"""Define the kind of network namespaces: one per service with mode bridge or none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, netns_place

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.writing import Writer


class Netns(NamedTuple):
    """A namespace that niso made; its ``lo`` has ``alias``. ``up`` says whether lo is up."""

    name: str
    alias: str
    up: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Namespaces(Kind[Netns]):
    holds_others = True
    reads_closed_spaces = True

    def space(self, thing: Netns) -> str:
        return thing.name

    def place(self, thing: Netns) -> str:
        return netns_place(thing.name)

    def describe(self, step: Step[Netns]) -> str:
        if step.action == "change":
            return f"ip -n {step.thing.name} link set lo up"
        return f"ip netns {'delete' if step.action == 'delete' else 'add'} {step.thing.name}"

    def what(self, thing: Netns) -> str:
        return f"network namespace {thing.name}"

    def claimed(self, reading: Reading) -> Iterable[Netns]:
        from niso.kernel import netns
        from niso.kernel.kinds.named import Named
        from niso.kernel.rtnetlink import Rtnl

        wanted = {thing.name for thing in reading.candidates[Netns]}
        attached = {thing.cookie for thing in reading.candidates[Named]}
        for name in netns.own_names():
            # what is wanted is read anyway; what is on record as an attachment is its engine's
            if name in wanted or (attached and netns.cookie_of(name) in attached):
                continue
            with netns.inside(name), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is not None and lo.alias == reading.alias:
                yield Netns(name, reading.alias)

    def read(self, space: Space, things: Collection[Netns]) -> Iterable[Netns]:
        from niso.kernel import netns

        if not things or not netns.exists(space.name):
            return ()
        lo = space.link("lo")
        if lo is None or lo.alias != space.reading.alias:
            space.reading.note_foreign_netns(space.name)
            space.is_foreign = True
            return ()
        space.is_open = True
        return (Netns(space.name, lo.alias, lo.up),)

    def write(self, writer: Writer, steps: Sequence[Step[Netns]]) -> None:
        from niso.kernel import netns

        (step,) = steps
        name = step.thing.name
        if step.action == "delete":
            netns.delete(name)
        elif step.action == "change":
            writer.rtnl(name).set_link("lo", up=True)
        else:
            writer.sockets.keep(name, netns.make(name, alias=step.thing.alias))


KIND = _Namespaces(Netns)
