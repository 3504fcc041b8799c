"""Define the kind of veth pairs: one for each network of a service."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.kind import Kind, Step, link_place, netns_place
from niso.kernel.nft_tables import BRIDGE, INET

if TYPE_CHECKING:
    from niso.kernel.reading import Reading, Space
    from niso.kernel.rtnetlink import Rtnl
    from niso.kernel.rtnl_records import Link
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class Veth(NamedTuple):
    """A veth pair.

    ``name`` is the end on the host, a port of ``bridge``; ``peer`` is the end in ``netns``. ``up``
    means both ends. ``drift`` names settings of the port that differ from niso's, and the peer's
    ARP flag (kernel/bridge_flags.py). ``fixed``: the bridge has a static forwarding entry of the
    peer's MAC; without one it would flood frames to a service that has been silent for a while.

    ``sums``: the peer completes checksums before it sends, and does not leave them to the link by
    which a packet leaves the host. A packet socket chooses where such a checksum is written
    (PACKET_VNET_HDR), so it could change a packet that all rules have let pass.
    """

    name: str
    netns: str
    peer: str
    mac: str  # of the peer
    mtu: int
    bridge: str
    hairpin: bool
    alias: str
    up: bool = True
    drift: str = ""
    fixed: bool = True
    sums: bool = False

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Veths(Kind[Veth]):
    names_links = True
    holds_others = True
    # a process could keep the namespace alive, and so the link on the bridge, without guards
    goes_along = False
    reads_closed_spaces = True

    def space(self, thing: Veth) -> str:
        return thing.netns

    def links(self, thing: Veth) -> tuple[str, ...]:
        return (thing.peer,)

    def place(self, thing: Veth) -> str:
        return link_place(thing.netns, thing.peer)

    def lies_in(self, thing: Veth) -> tuple[str, ...]:
        return (netns_place(thing.netns),)

    def hangs_on(self, thing: Veth) -> tuple[str, ...]:
        host_end = link_place("", thing.name)  # a foreign link may have its name
        return (*self.lies_in(thing), link_place("", thing.bridge), host_end)

    def guards(self, thing: Veth) -> Iterable[Element]:
        name = f'"{thing.name}"'
        return (Element(INET, "ports", name, "", ""), Element(BRIDGE, "ports", name, "", ""))

    # --- descriptions ---

    def describe(self, step: Step[Veth]) -> str:
        veth = step.thing
        if step.action == "delete":
            return f"ip link delete {veth.name}"
        if step.action == "add":
            return (
                f"ip link add {veth.name} mtu {veth.mtu} type veth"
                f" peer {veth.peer} address {veth.mac} netns {veth.netns}"
                f" && ip link set {veth.name} master {veth.bridge} alias {veth.alias} up"
                f" && bridge link set dev {veth.name} learning off flood off"
                f" && {_fix_command(veth)}"
                f" && sysctl -w '{_no_ipv6(veth.name)}=1'"
                f"{f' && {_sums_command(veth)}' if veth.sums else ''}"
            )
        was = step.was or veth
        also = _drift_commands(veth, was)
        same = was._replace(hairpin=veth.hairpin, drift="", fixed=True, sums=veth.sums)
        if also and same == veth:
            return " && ".join(also)
        command = f"ip link set {veth.name} mtu {veth.mtu} master {veth.bridge} up"
        return " && ".join([command, *also])

    def what(self, thing: Veth) -> str:
        return f"veth {thing.name}{f' to {thing.netns} {thing.peer}' if thing.netns else ''}"

    # --- planning ---

    def wanted(self, want: State, have: State) -> frozenset[Veth]:
        """Leave ``sums`` on as long as the pair exists.

        A service that loses its capabilities keeps them until its process has been restarted.
        """
        kept = {veth.key() for veth in have[Veth] if veth.sums}
        if not kept:
            return want[Veth]
        return frozenset(
            veth._replace(sums=True) if veth.key() in kept else veth for veth in want[Veth]
        )

    def in_the_way(self, want: State, have: State) -> frozenset[Veth]:
        """Return pairs with a wrong inner end, or with a name that another pair needs."""
        wanted = {veth.key(): veth for veth in want[Veth]}
        ends = {_end(veth) for veth in want[Veth]}
        return frozenset(
            veth
            for veth in have[Veth]
            if (veth.key() in wanted or _end(veth) in ends)
            and not (veth.key() in wanted and _far_end(veth) == _far_end(wanted[veth.key()]))
        )

    def settled(self, have: State, want: State, candidates: State) -> frozenset[Veth]:
        """Leave out detached pairs of deleted namespaces: the kernel deletes them later."""
        from niso.kernel.kinds.named import Named
        from niso.kernel.kinds.namespace import Netns

        stays = {space.name for space in want[Netns]} | {name.name for name in want[Named]}
        dying = {veth.name for veth in candidates[Veth] if veth.netns not in stays}
        dying -= {veth.name for veth in want[Veth]}
        return frozenset(veth for veth in have[Veth] if veth.name not in dying or veth.bridge)

    # --- findings ---

    def conditions(self, thing: Veth, was: Veth) -> Iterable[str]:
        from niso.kernel.bridge_flags import ARP_OFF_INSIDE

        if not was.peer:  # objects on the inner end cannot be seen
            yield self.place(thing)
        if was.mac != thing.mac or ARP_OFF_INSIDE in was.drift:
            yield f"{self.place(was)} forgets"
        if not was.up:
            yield from (f"{self.place(was)} down", f"{link_place('', was.name)} down")

    def field_follows(
        self, thing: Veth, field: str, present: object, known: Collection[str]
    ) -> bool:
        bridge = link_place("", thing.bridge)
        return (
            (field in ("bridge", "hairpin", "fixed") and bridge in known)
            or (field in ("netns", "peer", "mac", "up") and netns_place(thing.netns) in known)
            or (present == "state disabled" and f"{bridge} down" in known)
        )

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "drift":
            return f"non-default settings: {present}"
        if field == "fixed":
            return "the bridge has no static forwarding entry for it"
        if field == "sums":
            return "its other end leaves checksums to later links, so packets can change there"
        shown = "not in the pair" if present in ("", -1) else present
        return f"{field} is {shown!r}, should be {wanted!r}"

    # --- reading ---

    def read(self, space: Space, things: Collection[Veth]) -> Iterable[Veth]:
        """Read both ends; if the namespace is missing or foreign, only the host end."""
        from niso.kernel.neighbours import Fixed, is_fixed

        if not things:
            return
        host = space.reading.host
        if space.is_foreign:  # whether the host end is foreign too
            for veth in things:
                host.own_link(veth.name)
            return
        peers = {veth.peer for veth in things} if space.is_open else set()
        asked = {veth.name for veth in things if veth.sums}
        inner = [link for name in peers if (link := space.link(name)) is not None]
        for name in {veth.name for veth in things}:
            link = host.own_link(name)
            if link is not None:
                if space.is_open and not space.reading.strays:
                    # a new port needs a moment until it forwards
                    drift = link.drift.partition("state ")[0].rstrip(", ")
                    link = link._replace(drift=drift)
                pair = _pair(link, space.name, inner, host.rtnl.name(link.master))
                if pair.peer and pair.bridge:
                    fixed = (
                        Fixed(link.index, pair.mac) in host.bridge_table(link.master)
                        if host.reading.everything
                        else is_fixed(host.rtnl, link.index, pair.mac)
                    )
                    pair = pair._replace(fixed=fixed)
                if pair.peer and name in asked:
                    pair = pair._replace(sums=space.rtnl.makes_sums(pair.peer))
                yield pair

    def left_over(self, reading: Reading) -> Iterable[Veth]:
        known = {veth.name for veth in reading.so_far(Veth)}
        links = reading.host.all_links()
        left = [
            link
            for link in links
            if link.alias == reading.alias and link.kind == "veth" and link.name not in known
        ]
        if not left:
            return
        ends = {
            link.peer_index: (space.name, link)
            for space in reading.inner_spaces()
            for link in space.all_links()
            if link.kind == "veth"
        }
        names = {link.index: link.name for link in links}
        for link in left:
            name, far = ends.get(link.index, ("", link))
            yield _pair(link, name, [far], names.get(link.master, ""))

    # --- writing ---

    def batch(self, step: Step[Veth], writer: Writer) -> Hashable:
        """Batch deletions: the kernel waits some 20 ms for RCU, for one pair or many."""
        if step.action != "delete":
            return None
        return "detach" if step.thing.netns in writer.detached else "delete"

    def write(self, writer: Writer, steps: Sequence[Step[Veth]]) -> None:
        step = steps[0]
        if step.action == "delete":
            _end_pairs(writer, [step.thing for step in steps])
        elif step.action == "add":
            _add(writer, step.thing)
        else:
            _change(writer, step.thing, step.was or step.thing)


def _end(veth: Veth) -> tuple[str, str]:
    return (veth.netns, veth.peer)


def _far_end(veth: Veth) -> tuple[str, str, str]:
    return (veth.netns, veth.peer, veth.mac)


def _drift_commands(veth: Veth, was: Veth) -> list[str]:
    """Return the commands that reset the drifted settings."""
    from niso.kernel.bridge_flags import ARP_OFF, ARP_OFF_INSIDE

    flags = [f"hairpin {'on' if veth.hairpin else 'off'}"] if was.hairpin != veth.hairpin else []
    arp = {
        ARP_OFF: f"ip link set {veth.name} arp on",
        ARP_OFF_INSIDE: f"ip -n {veth.netns} link set {veth.peer} arp on",
    }
    commands: list[str] = []
    for text in was.drift.split(", ") if was.drift else []:
        name, _, value = text.partition(" ")
        if text in arp:
            commands.append(arp[text])
        else:
            flags.append(f"{name} {({'on': 'off', 'off': 'on', 'set': '0'}).get(value, '3')}")
    if flags:
        commands.append(f"bridge link set dev {veth.name} {' '.join(flags)}")
    if not was.fixed:
        commands.append(_fix_command(veth))
    if veth.sums and not was.sums:
        commands.append(_sums_command(veth))
    return commands


def _fix_command(veth: Veth) -> str:
    return f"bridge fdb replace {veth.mac} dev {veth.name} master static"


def _sums_command(veth: Veth) -> str:
    inside = f"ip netns exec {veth.netns} ethtool -K {veth.peer} tx off"
    return f"{inside} && ethtool -K {veth.name} gro on"


def _pair(link: Link, netns: str, inner: Iterable[Link], bridge: str) -> Veth:
    """Return the actual pair; ``inner`` are the links in the namespace of the inner end."""
    from niso.kernel.bridge_flags import ARP_OFF, ARP_OFF_INSIDE

    pairs = (f for f in inner if f.index == link.peer_index and f.peer_index == link.index)
    peer = next(pairs, None)
    own = (bridge, link.hairpin, link.alias)
    if peer is None:
        return Veth(link.name, "", "", "", link.mtu, *own, link.up, link.drift)
    mtu = link.mtu if link.mtu == peer.mtu else -1
    # a container may have its end on a bridge of its own, whose settings are not niso's
    arp = [ARP_OFF_INSIDE] if ARP_OFF in peer.drift.split(", ") else []
    drift = ", ".join([*filter(None, [link.drift]), *arp])
    return Veth(link.name, netns, peer.name, peer.mac, mtu, *own, link.up and peer.up, drift)


def _end_pairs(writer: Writer, veths: list[Veth]) -> None:
    """Delete all pairs, or only detach them from the bridge if their namespace is deleted too.

    A deletion takes the kernel some 20 ms, for one pair or many.
    """
    names = [veth.name for veth in veths]
    if veths[0].netns in writer.detached:
        writer.rtnl("").detach(names)
        writer.ending += names
    else:
        delete_links(writer.rtnl(""), names)


def delete_links(rtnl: Rtnl, names: list[str]) -> None:
    """Delete links. Only several links use a group, since deleting a group walks all links."""
    if len(names) == 1:
        rtnl.delete_link(names[0])
    else:
        rtnl.delete_links(names)


def _add(writer: Writer, veth: Veth) -> None:
    from niso.kernel import neighbours, netns
    from niso.kernel.bridge_flags import new_port
    from niso.kernel.kinds.setting import write_first

    rtnl = writer.rtnl("")
    fd = netns.open_fd(veth.netns)
    try:
        index, own = rtnl.add_veth(
            veth.name,
            peer=veth.peer,
            peer_netns_fd=fd,
            peer_mac=veth.mac,
            mtu=veth.mtu,
            bridge=veth.bridge,
            port=new_port(veth.hairpin),
            alias=veth.alias,
        )
    finally:
        os.close(fd)
    neighbours.fix(rtnl, index, veth.mac, own)
    _disable_ipv6(veth.name)
    write_first(writer, veth.netns, veth.peer)
    inside = writer.rtnl(veth.netns)
    if veth.sums:
        _make_sums(writer, veth)
    inside.set_link(veth.peer, mtu=veth.mtu, up=True)


def _make_sums(writer: Writer, veth: Veth) -> None:
    """Let the peer complete checksums, and the port join the small segments that this makes.

    The kernel has checked the checksums of what it joins. Joining gives back most of the
    throughput that the peer loses with its offloads.
    """
    writer.rtnl(veth.netns).make_sums(veth.peer)
    writer.rtnl("").join_segments(veth.name)


def _no_ipv6(port: str) -> str:
    return f"net/ipv6/conf/{port}/disable_ipv6"


def _disable_ipv6(port: str) -> None:
    """Disable IPv6 of a port itself, which needs no address; its bridge still forwards IPv6.

    Otherwise the kernel adds a route to ff00::/8 for each port that has a carrier, in one list for
    all ports, and walks the list for each change of a link (fib6_add, fib6_clean_all).
    """
    from niso.kernel import sysctl

    try:
        sysctl.write(_no_ipv6(port), "1")
    except KernelError as error:
        if error.errno != errno.ENOENT:  # a kernel without IPv6
            raise


def _change(writer: Writer, veth: Veth, was: Veth) -> None:
    from niso.kernel import neighbours
    from niso.kernel.bridge_flags import ARP_OFF, ARP_OFF_INSIDE, NEW_PORT

    rtnl = writer.rtnl("")
    if was.bridge != veth.bridge:
        rtnl.set_link(veth.name, master=veth.bridge)
    neighbours.fix(rtnl, rtnl.index(veth.name), veth.mac)  # before flooding is switched off
    rtnl.set_link(
        veth.name,
        mtu=veth.mtu,
        master=veth.bridge,
        hairpin=veth.hairpin,
        up=True,
        # on another bridge it is a new port
        drift=was.drift if was.bridge == veth.bridge else NEW_PORT,
    )
    drift = ARP_OFF if ARP_OFF_INSIDE in was.drift else ""
    inside = writer.rtnl(veth.netns)
    if veth.sums and not was.sums:
        _make_sums(writer, veth)
    inside.set_link(veth.peer, mtu=veth.mtu, up=True, drift=drift)


KIND = _Veths(Veth)
