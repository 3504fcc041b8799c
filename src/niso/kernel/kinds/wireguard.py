"""Define the kind of the encrypted link between the hosts of a cluster: one WireGuard per host.

VXLAN packets go through the link, between addresses that exist only on it. WireGuard accepts a
packet of another host only with the address of that host as its source (cryptokey routing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.kind import Kind, Step, link_place
from niso.kernel.nft_tables import INET
from niso.kernel.nft_wire import TUNNEL

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer

KERNEL, USERSPACE = "wireguard", "tun"
"""The forms of links: WireGuard of the kernel, and a device that wireguard-go serves.

If the process of wireguard-go ends, the device stays and drops all packets.
"""


class FarEnd(NamedTuple):
    """Another host, as a WireGuard peer."""

    public: str  # its public key, as wg(8) writes it
    endpoint: str  # "198.51.100.1:4800", "[2001:db8::1]:4800"
    address: str  # its address inside the tunnel, IPv6: the source of all packets that it sends


class WireGuard(NamedTuple):
    """The link. Its private key is in the file `niso.base.paths.wireguard_key`."""

    name: str
    form: str  # KERNEL or USERSPACE
    address: str  # address inside the tunnel, with the length of the prefix that contains all hosts
    port: int  # UDP port to which other hosts send
    mtu: int  # bytes
    public: str
    alias: str
    others: tuple[FarEnd, ...] = ()  # sorted
    up: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _WireGuards(Kind[WireGuard]):
    holds_others = True

    def place(self, thing: WireGuard) -> str:
        return link_place("", thing.name)

    def guards(self, thing: WireGuard) -> Iterable[Element]:
        return (Element(INET, "ports", f'"{thing.name}"', "", ""),)

    def describe(self, step: Step[WireGuard]) -> str:
        from niso.base import paths

        link = step.thing
        if step.action == "delete":
            return f"ip link delete {link.name}"
        made = (
            f"ip link add {link.name} type wireguard"
            if link.form == KERNEL
            else f"ip tuntap add {link.name} mode tun; wireguard-go {link.name}"
        )
        others = "".join(
            f" peer {far.public} endpoint {far.endpoint} allowed-ips {far.address}/128"
            for far in link.others
        )
        start = f"{made}; " if step.action == "add" else ""
        return (
            f"{start}wg set {link.name} private-key {paths.wireguard_key()} listen-port"
            f" {link.port}{others} && ip address replace {link.address} dev {link.name} &&"
            f" ip link set {link.name} alias {link.alias} mtu {link.mtu} up"
        )

    def what(self, thing: WireGuard) -> str:
        return f"WireGuard {thing.name}"

    def in_the_way(self, want: State, have: State) -> frozenset[WireGuard]:
        """Return links of the other form, after the kernel has gained or lost WireGuard support."""
        forms = {link.name: link.form for link in want[WireGuard]}
        return frozenset(
            link for link in have[WireGuard] if forms.get(link.name, link.form) != link.form
        )

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "public" and not present:
            return "it has no key: wireguard-go does not run, or wg(8) is missing"
        if field == "others":
            return "its keys, endpoints or addresses of other hosts differ"
        return super().describe_field(field, wanted, present)

    def field_follows(
        self, thing: WireGuard, field: str, present: object, known: Collection[str]
    ) -> bool:
        return field in ("others", "port") and f"{self.place(thing)} without key" in known

    def conditions(self, thing: WireGuard, was: WireGuard) -> Iterable[str]:
        if not was.public:
            yield f"{self.place(was)} without key"

    def claimed(self, reading: Reading) -> Iterable[WireGuard]:
        link = reading.host.link(TUNNEL)
        if link is not None and link.alias == reading.alias:
            yield WireGuard(TUNNEL, "", "", 0, 0, "", link.alias)

    def read(self, space: Space, things: Collection[WireGuard]) -> Iterable[WireGuard]:
        """Read links.

        Settings that only wg(8) can read are taken as desired, unless a change is planned.
        """
        reading = space.reading
        for name in {thing.name for thing in things}:
            link = space.own_link(name)
            if link is None:
                continue
            same = [thing for thing in things if thing.name == name]
            read = same[0]._replace(form=link.kind, mtu=link.mtu, alias=link.alias, up=link.up)
            if reading.strays or reading.everything or len(same) > 1:
                from niso.kernel import wireguard_links

                inside = [assigned.address for assigned in space.addresses(link)]
                shown = wireguard_links.shown(name, {f.public: f for t in same for f in t.others})
                read = read._replace(
                    address=", ".join(sorted(inside)),
                    port=shown.port,
                    public=shown.public,
                    others=shown.others,
                )
            yield read

    def write(self, writer: Writer, steps: Sequence[Step[WireGuard]]) -> None:
        from niso.kernel import wireguard_links

        (step,) = steps
        if step.action == "delete":
            wireguard_links.remove(writer.rtnl(""), step.thing.name)
        else:
            wireguard_links.make(writer.rtnl(""), step.thing)


KIND = _WireGuards(WireGuard)
