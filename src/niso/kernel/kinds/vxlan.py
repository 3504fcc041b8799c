"""Define the kind of VXLAN devices: one for each network that spans hosts, a port of its bridge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.kind import Kind, Step, link_place
from niso.kernel.nft_tables import BRIDGE, INET

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class Vxlan(NamedTuple):
    """A VXLAN device.

    It neither learns nor floods: static entries say where frames go (kinds/fdb.py). ``device``
    names settings of the device that differ from niso's, ``drift`` those of the bridge port
    (kernel/bridge_flags.py).
    """

    name: str
    vni: int
    local: str  # this host's underlay address, of either family
    port: int  # UDP, the same on all hosts
    mtu: int  # bytes
    bridge: str
    alias: str
    device: str = ""
    up: bool = True
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def fixed(self) -> tuple[object, ...]:
        """Return the fields that cannot be changed while the device exists."""
        return (self.vni, self.local, self.port, self.device)


class _Vxlans(Kind[Vxlan]):
    holds_others = True

    def place(self, thing: Vxlan) -> str:
        return link_place("", thing.name)

    def hangs_on(self, thing: Vxlan) -> tuple[str, ...]:
        return (link_place("", thing.bridge), self.place(thing))  # a foreign link may have its name

    def guards(self, thing: Vxlan) -> Iterable[Element]:
        name = f'"{thing.name}"'
        return (
            Element(INET, "ports", name, "", ""),
            Element(BRIDGE, "ports", name, "", ""),
            Element(INET, "vxlans", name, "", ""),
            Element(INET, "wire", str(thing.port), "", ""),
        )

    def describe(self, step: Step[Vxlan]) -> str:
        vxlan = step.thing
        if step.action == "delete":
            return f"ip link delete {vxlan.name}"
        flags = "learning off flood off mcast_flood off bcast_flood off neigh_suppress on"
        port = (
            f"ip link set {vxlan.name} master {vxlan.bridge} alias {vxlan.alias} mtu {vxlan.mtu}"
            f" && bridge link set dev {vxlan.name} {flags} && ip link set {vxlan.name} up"
        )
        if step.action == "change":
            return port
        return (
            f"ip link add {vxlan.name} type vxlan id {vxlan.vni} local {vxlan.local}"
            f" dstport {vxlan.port} nolearning ttl 64 && {port}"
        )

    def what(self, thing: Vxlan) -> str:
        return f"VXLAN device {thing.name}"

    def in_the_way(self, want: State, have: State) -> frozenset[Vxlan]:
        """Return devices with another VNI, address or port, or with a VNI that another needs."""
        wanted = {vxlan.name: vxlan for vxlan in want[Vxlan]}
        numbers = {(vxlan.vni, vxlan.port) for vxlan in want[Vxlan]}
        return frozenset(
            vxlan
            for vxlan in have[Vxlan]
            if (
                wanted[vxlan.name].fixed != vxlan.fixed
                if vxlan.name in wanted
                else (vxlan.vni, vxlan.port) in numbers
            )
        )

    def conditions(self, thing: Vxlan, was: Vxlan) -> Iterable[str]:
        if not was.up:
            yield f"{self.place(was)} down"
        if was.bridge != thing.bridge:
            yield f"{self.place(was)} off its bridge"
        if was.fixed != thing.fixed:
            yield f"{self.place(was)} another"

    def field_follows(
        self, thing: Vxlan, field: str, present: object, known: Collection[str]
    ) -> bool:
        return field in ("bridge", "drift") and link_place("", thing.bridge) in known

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field in ("drift", "device"):
            return f"non-default settings: {present}"
        return super().describe_field(field, wanted, present)

    def claimed(self, reading: Reading) -> Iterable[Vxlan]:
        alias = reading.alias
        return (
            Vxlan(link.name, 0, "", 0, 0, "", alias)
            for link in reading.host.all_links()
            if link.alias == alias and link.kind == "vxlan"
        )

    def read(self, space: Space, things: Collection[Vxlan]) -> Iterable[Vxlan]:
        for name in {thing.name for thing in things}:
            link = space.own_link(name)
            if link is not None:
                from niso.kernel.tunnels import parse

                bridge = space.rtnl.name(link.master) if link.master else ""
                yield Vxlan(
                    link.name,
                    *parse(link.data)[:3],
                    link.mtu,
                    bridge,
                    link.alias,
                    parse(link.data).drift,
                    link.up,
                    link.drift,
                )

    def write(self, writer: Writer, steps: Sequence[Step[Vxlan]]) -> None:
        from niso.kernel import tunnels

        (step,) = steps
        rtnl, thing = writer.rtnl(""), step.thing
        if step.action == "delete":
            rtnl.delete_link(thing.name)
        elif step.action == "add":
            tunnel = tunnels.Tunnel(thing.vni, thing.local, thing.port)
            tunnels.add(rtnl, thing.name, tunnel, thing.mtu, thing.bridge, thing.alias)
        else:
            tunnels.attach(rtnl, thing.name, thing.mtu, thing.bridge)


KIND = _Vxlans(Vxlan)
