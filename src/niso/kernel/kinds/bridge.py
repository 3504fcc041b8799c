"""Define the kind of bridges: one per network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.kind import AnyStep, Kind, Step, Steps, link_place
from niso.kernel.nft_tables import INET

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.rtnl_records import Link
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class Bridge(NamedTuple):
    """A bridge.

    ``tracked4`` and ``tracked6``: its IPv4 or IPv6 frames pass the inet tables, even if the global
    sysctls (bridge-nf-call-*) are off. ``drift`` names settings that differ from niso's
    (kernel/bridge_flags.py). ``takes_own``: its forwarding
    table has its own MAC for the host. The kernel adds that entry with the bridge. If the entry is
    missing or leads to a port, services reach neither the host nor what is behind it.
    """

    name: str
    mtu: int  # bytes
    alias: str
    up: bool = True
    tracked4: bool = False
    tracked6: bool = False
    mac: str = ""
    drift: str = ""
    takes_own: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Bridges(Kind[Bridge]):
    holds_others = True

    def place(self, thing: Bridge) -> str:
        return link_place("", thing.name)

    def guards(self, thing: Bridge) -> Iterable[Element]:
        name = f'"{thing.name}"'
        return (
            Element(INET, "bridges", name, "", ""),
            Element(INET, "same_bridge", f"{name} . {name}", "", ""),
        )

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Stop tracking after deletions, so that policies apply to a service until its removal."""
        steps = super().steps(want, have, going)
        made: list[AnyStep] = []
        stopped: list[AnyStep] = []
        for step in steps.made:
            if not isinstance(step, Step) or step.was is None:
                made.append(step)
                continue
            bridge, was = step.thing, step.was
            kept = bridge._replace(
                tracked4=bridge.tracked4 or was.tracked4, tracked6=bridge.tracked6 or was.tracked6
            )
            if kept != was:
                made.append(Step("change", kept, was))
            if kept != bridge:
                stopped.append(Step("change", bridge, kept))
        return Steps(made=made, gone=[*steps.gone, *stopped])

    def describe(self, step: Step[Bridge]) -> str:
        bridge = step.thing
        if step.action == "delete":
            return f"ip link delete {bridge.name}"
        tracked = (
            f"type bridge nf_call_iptables {int(bridge.tracked4)}"
            f" nf_call_ip6tables {int(bridge.tracked6)}"
        )
        if step.action == "add":
            return (
                f"ip link add {bridge.name} mtu {bridge.mtu} {tracked}"
                f" && ip link set {bridge.name} alias {bridge.alias} up"
            )
        was = step.was or bridge
        address = f" address {bridge.mac}" if was.mac != bridge.mac else ""
        local = f" && bridge fdb replace {bridge.mac} dev {bridge.name} self permanent"
        names = [text.partition(" ")[0] for text in was.drift.split(", ")] if was.drift else []
        arp = " arp on" if "arp" in names else ""
        usual = (
            f"{name} {30000 if name == 'ageing_time' else 0}" for name in names if name != "arp"
        )
        command = f"ip link set {bridge.name} mtu {bridge.mtu}{address}{arp} up {tracked}"
        return " ".join((command, *usual)) + ("" if was.takes_own else local)

    def what(self, thing: Bridge) -> str:
        return f"bridge {thing.name}"

    def conditions(self, thing: Bridge, was: Bridge) -> Iterable[str]:
        from niso.kernel.bridge_flags import ARP_OFF

        if was.mac != thing.mac or ARP_OFF in was.drift:
            yield f"{self.place(was)} forgets"
        if not was.up:
            yield f"{self.place(was)} down"

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "drift":
            return f"non-default settings: {present}"
        if field == "takes_own":
            return "its forwarding entry for its own MAC is missing or leads to a port"
        return super().describe_field(field, wanted, present)

    def claimed(self, reading: Reading) -> Iterable[Bridge]:
        alias = reading.alias
        return (
            Bridge(link.name, 0, alias)
            for link in reading.host.all_links()
            if link.alias == alias and link.kind == "bridge"
        )

    def read(self, space: Space, things: Collection[Bridge]) -> Iterable[Bridge]:
        for name in {thing.name for thing in things}:
            link = space.own_link(name)
            if link is not None:
                tracked = (link.call_iptables, link.call_ip6tables)
                takes_own = _takes_own(space, link)
                own = (link.mac, link.drift)
                yield Bridge(
                    link.name, link.mtu, link.alias, link.up, *tracked, *own, takes_own=takes_own
                )

    def write(self, writer: Writer, steps: Sequence[Step[Bridge]]) -> None:
        (step,) = steps
        bridge = step.thing
        rtnl = writer.rtnl("")
        if step.action == "delete":
            rtnl.delete_link(bridge.name)
            return
        if bridge.tracked4 or bridge.tracked6:
            from niso.kernel.modules import load_bridge_netfilter

            load_bridge_netfilter()
        if step.action == "add":
            rtnl.add_bridge(
                bridge.name,
                mtu=bridge.mtu,
                alias=bridge.alias,
                # recreate with the same MAC: services have it in their neighbour tables for up to a
                # minute
                mac=bridge.mac or None,
                call_iptables=bridge.tracked4,
                call_ip6tables=bridge.tracked6,
            )
            return
        was = step.was or bridge._replace(mac="")
        rtnl.set_link(
            bridge.name,
            mtu=bridge.mtu,
            # setting even the same MAC would make the kernel drop all neighbour entries
            # (neigh_changeaddr)
            mac=bridge.mac if bridge.mac and bridge.mac != was.mac else None,
            up=True,
            drift=step.was.drift if step.was else "",
        )
        rtnl.set_calls(bridge.name, bridge.tracked4, bridge.tracked6)
        if not was.takes_own:
            from niso.kernel import neighbours

            rtnl.transact(neighbours.take(rtnl.index(bridge.name), bridge.mac))


def _takes_own(space: Space, link: Link) -> bool:
    """Return whether a bridge's table has its own MAC for the host.

    Only `niso net check` and repair ask: no command of niso's replaces that entry.
    """
    if not (space.reading.everything or space.reading.strays):
        return True
    from niso.kernel.neighbours import Fixed

    return Fixed(link.index, link.mac, is_local=True) in space.bridge_table(link.index)


KIND = _Bridges(Bridge)
