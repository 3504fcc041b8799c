"""Define the kind of forwarding entries (FDB) for services of other hosts.

Each object is two entries of the kernel: the bridge sends frames to the MAC to its VXLAN port, and
the VXLAN device sends them to the host.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.kind import Kind, Step, link_place
from niso.kernel.kinds.vxlan import Vxlan

if TYPE_CHECKING:
    from niso.kernel.netlink import Message
    from niso.kernel.reading import Space
    from niso.kernel.writing import Writer


class Fdb(NamedTuple):
    """The entries of a MAC. The VXLAN device sends it to ``host``; "" if it has no entry."""

    link: str  # the VXLAN device
    mac: str
    host: str
    fixed: bool = True  # whether the bridge sends the MAC to the device

    def key(self) -> tuple[str, ...]:
        return (self.link, self.mac)


class _Entries(Kind[Fdb]):
    replaces = True

    def lies_in(self, thing: Fdb) -> tuple[str, ...]:
        return (link_place("", thing.link),)

    def describe(self, step: Step[Fdb]) -> str:
        entry = step.thing
        start = f"bridge fdb {'delete' if step.action == 'delete' else 'replace'} {entry.mac}"
        to = "" if step.action == "delete" else f" dst {entry.host} permanent"
        static = "" if step.action == "delete" else " static"
        return f"{start} dev {entry.link} self{to} && {start} dev {entry.link} master{static}"

    def what(self, thing: Fdb) -> str:
        return f"forwarding entry {thing.mac} of VXLAN device {thing.link}"

    def follows_from(self, thing: Fdb, was: Fdb | None) -> tuple[str, ...]:
        return (f"{link_place('', thing.link)} another",)

    def field_follows(
        self, thing: Fdb, field: str, present: object, known: Collection[str]
    ) -> bool:
        place = link_place("", thing.link)
        return field == "fixed" and f"{place} off its bridge" in known

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "fixed":
            return "the bridge has no static forwarding entry for it"
        return f"it leads to {present or 'no host'}, should be {wanted}"

    def read(self, space: Space, things: Collection[Fdb]) -> Iterable[Fdb]:
        if space.name:
            return
        from niso.kernel import neighbours

        reading = space.reading
        if reading.everything:
            for vxlan in reading.so_far(Vxlan):
                if (link := space.link(vxlan.name)) is not None:
                    yield from _all(vxlan.name, neighbours.of_tunnel(space.rtnl, link.index))
            return
        for thing in things:
            link = space.own_link(thing.link)
            if link is not None:
                host, fixed = neighbours.tunnel_entry(space.rtnl, link.index, thing.mac)
                if host or fixed:
                    yield Fdb(thing.link, thing.mac, host, fixed)

    def batch(self, step: Step[Fdb], writer: Writer) -> Hashable:
        return step.action == "delete"

    def write(self, writer: Writer, steps: Sequence[Step[Fdb]]) -> None:
        from niso.kernel import neighbours

        messages: list[Message] = []
        for step in steps:
            entry = step.thing
            index = writer.link("", entry.link)[1]
            if step.action != "delete":
                was = step.was.host if step.was else ""
                index = writer.existing(index, entry.link)
                messages += neighbours.lead(index, entry.mac, entry.host, was)
            elif index is not None:
                messages += neighbours.unlead(index, entry.mac)
        for start in range(0, len(messages), neighbours.AT_ONCE):
            writer.rtnl("").transact(*messages[start : start + neighbours.AT_ONCE])


def _all(link: str, entries: Iterable[tuple[str, str]]) -> Iterable[Fdb]:
    """Yield the entries of a device, combined to one object for each MAC and host."""
    pairs = list(entries)
    fixed = {mac for mac, host in pairs if not host}
    led = {mac for mac, host in pairs if host}
    for mac, host in pairs:
        if host or mac not in led:
            yield Fdb(link, mac, host, mac in fixed)


KIND = _Entries(Fdb)
