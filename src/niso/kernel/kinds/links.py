"""Define the kinds for bridges (one per network), veth pairs (one per endpoint) and rate limits.

Another kind is for network interfaces that other programs have added to niso's bridges. The desired
state never contains such an interface, since niso's rules do not check its frames.

A rate limit belongs to a veth pair. The traffic that a service receives is limited on the host's
end of the pair, and the traffic that the service sends is limited on the inner end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import partial

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import BRIDGE_GROUP, PORT_GROUP
from niso.kernel import link_records, neighbour_tables, proc_sys
from niso.kernel.kinds.kind import AnyStep, Kind, Reading, Space, State, Step, Steps, existing
from niso.kernel.link_records import ARP_OFF, ARP_OFF_INSIDE, GROUPS, NEW_PORT, Link, new_port
from niso.kernel.neighbour_tables import is_fixed
from niso.kernel.netns import open_fd
from niso.kernel.nft_elements import Element
from niso.kernel.proc_sys import (
    bridge_netfilter_acts,
    filter_bridge,
    filters,
    load_bridge_netfilter,
)
from niso.kernel.rtnetlink import Rtnl
from niso.kernel.ruleset import BRIDGE, INET

if TYPE_CHECKING:
    from niso.kernel.real import Writer


class Bridge(NamedTuple):
    """The bridge of a network.

    With ``tracked4`` and ``tracked6``, IPv4 and IPv6 frames on the bridge pass the inet tables even
    if the global sysctls (bridge-nf-call-*) are off. ``drift`` names settings that differ from
    niso's (kernel/link_records.py). ``takes_own`` is true if the forwarding database has a local
    entry for the bridge's own MAC. This entry, which the kernel adds with the bridge, makes the
    bridge pass frames up to the host. If the entry is missing or is for a port, services can reach
    neither the host nor networks behind the host. ``filtered`` is true if the bridge has niso's
    bridge filters, or if the kernel does not support them (kernel/proc_sys.py). An ``internal``
    network's bridge has one filter more.
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
    filtered: bool = True
    internal: bool = False

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Bridges(Kind[Bridge], of=Bridge):
    noun_format = "bridge {0.name}"
    field_texts = (
        ("drift", "non-default settings: {}"),
        ("takes_own", "its forwarding entry for its own MAC is missing or leads to a port"),
        ("filtered", "its filters, which stop packets after a flush of nftables, are missing"),
    )
    parent_name_format = "link //{0.name}"

    def guards(self, obj: Bridge) -> Iterable[Element]:
        same = Element(INET, "same_bridge", (obj.name, obj.name))
        return (Element(INET, "bridges", (obj.name,)), same)

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        """Return the steps for bridges.

        A step after which a bridge's frames no longer pass the inet tables comes after all
        deletions: until a service is removed, policies must apply to the service. A bridge of an
        earlier version of niso is added to niso's interface group (`BRIDGE_GROUP`) first, because
        the new rules compare the group.
        """
        _, changes, deleted, _ = super().steps(want, have, disappearing)
        grouped: list[AnyStep] = []
        made: list[AnyStep] = []
        stopped: list[AnyStep] = []
        for step in changes:
            if not isinstance(step, Step) or step.actual is None:
                made.append(step)
                continue
            bridge, actual = step.obj, step.actual
            if (in_group := _in_group(actual)) != actual:
                grouped.append(Step("change", in_group, actual))
                actual = in_group
            kept = bridge._replace(
                tracked4=bridge.tracked4 or actual.tracked4,
                tracked6=bridge.tracked6 or actual.tracked6,
            )
            if kept != actual:
                made.append(Step("change", kept, actual))
            if kept != bridge:
                stopped.append(Step("change", bridge, kept))
        return grouped, made, [*deleted, *stopped], ()

    def describe(self, step: Step[Bridge]) -> str:
        bridge = step.obj
        if step.action == "delete":
            return f"ip link delete {bridge.name}"
        tracked = (
            f"type bridge nf_call_iptables {int(bridge.tracked4)}"
            f" nf_call_ip6tables {int(bridge.tracked6)}"
        )
        if step.action == "add":
            start = f"ip link add {bridge.name} mtu {bridge.mtu} group {BRIDGE_GROUP} {tracked}"
            return f"{start} && ip link set {bridge.name} alias {bridge.alias} up"
        actual = step.actual or bridge
        if actual != bridge == _in_group(actual):
            return f"ip link set {bridge.name} group {BRIDGE_GROUP}"
        wanted = actual._replace(mtu=bridge.mtu, tracked4=bridge.tracked4, tracked6=bridge.tracked6)
        if wanted == bridge:
            return f"ip link set {bridge.name} mtu {bridge.mtu} {tracked}"
        return super().describe(step)

    def conditions(self, obj: Bridge, actual: Bridge) -> Iterable[str]:
        if actual.mac != obj.mac or ARP_OFF in actual.drift:
            yield f"{self.parent_name(actual)} forgets"
        if not actual.up:
            yield f"{self.parent_name(actual)} down"

    def claimed(self, reading: Reading) -> Iterable[Bridge]:
        return (Bridge(link.name, 0, link.alias) for link in reading.host.own_links("bridge"))

    def read(self, space: Space, objects: Collection[Bridge]) -> Iterable[Bridge]:
        # whether a network is internal never changes
        internal = {obj.name for obj in objects if obj.internal}
        for name in {obj.name for obj in objects}:
            link = space.own_link(name)
            if link is not None:
                reading = space.reading
                # no command of niso replaces the entry or filters, so they are read for check and
                # repair alone
                takes_own = filtered = True
                if reading.everything or reading.with_strays:
                    takes_own = (link.index, link.mac, True) in space.bridge_table(link.index)
                    filtered = not filters(name, name in internal)
                tracked = (link.call_iptables, link.call_ip6tables)
                if any(tracked) and not bridge_netfilter_acts():
                    tracked = (False, False)  # the module was removed
                own = (*tracked, link.mac, link.drift, takes_own, filtered, name in internal)
                yield Bridge(link.name, link.mtu, link.alias, link.up, *own)

    def write(self, writer: Writer, steps: Sequence[Step[Bridge]]) -> None:
        (step,) = steps
        bridge = step.obj
        rtnl = writer.rtnl("")
        if step.action == "delete":
            rtnl.delete_link(bridge.name)
            return
        if bridge.tracked4 or bridge.tracked6:
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
                up=False,
            )
            filter_bridge(bridge.name, bridge.internal)
            rtnl.set_link(bridge.name, up=True)
            return
        actual = step.actual or bridge._replace(mac="")
        if actual != bridge == _in_group(actual):
            rtnl.set_group(bridge.name, BRIDGE_GROUP)
            return
        if not (actual.filtered and actual.up):  # a killed command may have left it without
            filter_bridge(bridge.name, bridge.internal)
        rtnl.set_link(
            bridge.name,
            mtu=bridge.mtu,
            # setting even the same MAC would make the kernel drop all neighbour entries
            # (neigh_changeaddr)
            mac=bridge.mac if bridge.mac and bridge.mac != actual.mac else None,
            up=True,
            drift=step.actual.drift if step.actual else "",
        )
        rtnl.set_calls(bridge.name, bridge.tracked4, bridge.tracked6)
        if not actual.takes_own:
            rtnl.transact(neighbour_tables.take(rtnl.index(bridge.name), bridge.mac))


def _in_group(bridge: Bridge) -> Bridge:
    texts = bridge.drift.split(", ")
    return bridge._replace(drift=", ".join(t for t in texts if not t.startswith("group ")))


_MANY = 100
"""So many veth pairs are deleted at once, and not first detached from their bridges. For each link
that is detached, the kernel waits for RCU twice (dev_deactivate_many and
netdev_rx_handler_unregister, net/).
"""


class Veth(NamedTuple):
    """A veth pair between the host and a service.

    ``name`` is the host's end, a port of ``bridge``. ``peer`` is the inner end, in the namespace
    ``netns``. ``up`` is true if both ends are up. ``drift`` names settings of the bridge port that
    differ from niso's, and also names ARP if it is off on the inner end (kernel/link_records.py).
    ``fixed`` is true if the bridge has a static forwarding entry for the inner end's MAC. Without
    this entry, the bridge would flood frames to a service that has not sent for a while.

    ``sums`` is true if the inner end completes checksums before it sends. Otherwise the interface
    through which a packet leaves the host writes the checksum. With a packet socket, a program can
    choose the position of this checksum (PACKET_VNET_HDR), and so change a packet after all rules
    have accepted it.
    """

    name: str
    netns: str
    peer: str
    mac: str  # the MAC of the inner end
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


class _Veths(Kind[Veth], of=Veth):
    field_texts = (
        ("drift", "non-default settings: {}"),
        ("fixed", "the bridge has no static forwarding entry for it"),
        ("sums", "its other end leaves checksums to later links, so packets can change there"),
    )
    parents_format = ("netns {0.netns}",)
    names_links = True
    parent_name_format = "link /{0.netns}/{0.peer}"
    is_acknowledged = True
    reads_closed_spaces = True

    def links(self, obj: Veth) -> tuple[str, ...]:
        return (obj.peer,)

    def dependencies(self, obj: Veth) -> tuple[str, ...]:
        # a foreign link may have its name
        return (*self.parents(obj), f"link //{obj.bridge}", f"link //{obj.name}")

    def guards(self, obj: Veth) -> Iterable[Element]:
        return tuple(Element(table, "ports", (obj.name,)) for table in (INET, BRIDGE))

    def describe(self, step: Step[Veth]) -> str:
        veth = step.obj
        if step.action == "delete":
            return f"ip link delete {veth.name}"
        if step.action == "add":
            return (
                f"ip link add {veth.name} mtu {veth.mtu} group {PORT_GROUP} type veth"
                f" peer {veth.peer} address {veth.mac} netns {veth.netns}"
                f" && ip link set {veth.name} master {veth.bridge} alias {veth.alias} up"
                f" && bridge link set dev {veth.name} learning off flood off"
                f" && bridge fdb replace {veth.mac} dev {veth.name} master static"
                f" && sysctl -w '{_no_ipv6(veth.name)}=1'"
                f"{f' && {_sums_command(veth)}' if veth.sums else ''}"
            )
        actual = step.actual or veth
        same = actual._replace(mtu=veth.mtu, hairpin=veth.hairpin, sums=veth.sums)
        commands = [f"ip link set {veth.name} mtu {veth.mtu}"] if actual.mtu != veth.mtu else []
        if actual.hairpin != veth.hairpin:
            hairpin = "on" if veth.hairpin else "off"
            commands.append(f"bridge link set dev {veth.name} hairpin {hairpin}")
        if veth.sums and not actual.sums:
            commands.append(_sums_command(veth))
        return " && ".join(commands) if commands and same == veth else super().describe(step)

    def noun(self, obj: Veth) -> str:
        return f"veth {obj.name}{f' to {obj.netns} {obj.peer}' if obj.netns else ''}"

    def wanted(self, want: State, have: State) -> frozenset[Veth]:
        """Return the desired veth pairs. A pair whose inner end already completes checksums
        (``sums``) continues to do so, because a running process may still have capabilities that
        the manifest no longer grants.
        """
        kept = {veth.key() for veth in have[Veth] if veth.sums}
        if not kept:
            return want[Veth]
        return frozenset(
            veth._replace(sums=True) if veth.key() in kept else veth for veth in want[Veth]
        )

    def blocking(self, want: State, have: State) -> frozenset[Veth]:
        wanted = {veth.name: veth[1:4] for veth in want[Veth]}
        ends = {(veth.netns, veth.peer) for veth in want[Veth]}
        return frozenset(
            veth
            for veth in have[Veth]
            if (veth.name in wanted or (veth.netns, veth.peer) in ends)
            and wanted.get(veth.name) != (veth.netns, veth.peer, veth.mac)
        )

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        # a pair in a deleted namespace needs a step: a process could keep the namespace alive, and
        # so the link on the bridge, without guards
        return super().steps(want, have, ())

    def conditions(self, obj: Veth, actual: Veth) -> Iterable[str]:
        if not actual.peer:  # objects on the inner end cannot be seen
            yield self.parent_name(obj)
        if actual.mac != obj.mac or ARP_OFF_INSIDE in actual.drift:
            yield f"{self.parent_name(actual)} forgets"
        if not actual.up:
            yield from (f"{self.parent_name(actual)} down", f"link //{actual.name} down")

    def is_field_explained(
        self, obj: Veth, field: str, present: object, known: Collection[str]
    ) -> bool:
        bridge = f"link //{obj.bridge}"
        return (
            (field in ("bridge", "hairpin", "fixed") and bridge in known)
            or (field in ("netns", "peer", "mac", "up") and f"netns {obj.netns}" in known)
            or (present == "state disabled" and f"{bridge} down" in known)
        )

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        shown = "not in the pair" if present in ("", -1) else present
        return super().describe_field(field, wanted, shown)

    def read(self, space: Space, objects: Collection[Veth]) -> Iterable[Veth]:
        """Read both ends of the requested veth pairs. If the namespace is missing or foreign, only
        the host's end is read.
        """
        if not objects:
            return
        host = space.reading.host
        if space.is_foreign:  # whether the host end is foreign too
            for veth in objects:
                host.own_link(veth.name)
            return
        peers = {veth.peer for veth in objects} if space.is_open else set()
        asked = {veth.name for veth in objects if veth.sums}
        inner = [link for name in peers if (link := space.link(name)) is not None]
        for name in {veth.name for veth in objects}:
            link = host.own_link(name)
            if link is not None:
                if space.is_open and not space.reading.with_strays:
                    # a new port needs a moment until it forwards
                    drift = link.drift.partition("state ")[0].rstrip(", ")
                    link = link._replace(drift=drift)
                pair = _pair(link, space.name, inner, host.rtnl.name(link.master))
                if pair.peer and pair.bridge:
                    fixed = (
                        (link.index, pair.mac, False) in host.bridge_table(link.master)
                        if host.reading.everything
                        else is_fixed(host.rtnl, link.index, pair.mac)
                    )
                    pair = pair._replace(fixed=fixed)
                if pair.peer and name in asked:
                    pair = pair._replace(sums=space.rtnl.makes_sums(pair.peer))
                yield pair

    def leftovers(self, reading: Reading) -> Iterable[Veth]:
        known = {veth.name for veth in reading.so_far(Veth)}
        left = [link for link in reading.host.own_links("veth") if link.name not in known]
        if not left:
            return
        ends = {
            link.peer_index: (space.name, link)
            for space in reading.inner_spaces()
            for link in space.all_links
            if link.kind == "veth"
        }
        names = {link.index: link.name for link in reading.host.all_links}
        for link in left:
            name, far = ends.get(link.index, ("", link))
            yield _pair(link, name, [far], names.get(link.master, ""))

    def batch(self, step: Step[Veth], writer: Writer) -> Hashable:
        """Return a key that groups the deletions of veth pairs. The deletion of many pairs takes as
        long as that of one pair, because the kernel waits for RCU only once, about 20 ms.
        """
        if step.action != "delete":
            return None
        return "detach" if step.obj.netns in writer.deleted_netns else "delete"

    def write(self, writer: Writer, steps: Sequence[Step[Veth]]) -> None:
        step, names = steps[0], [step.obj.name for step in steps]
        is_detached = step.obj.netns in writer.deleted_netns and len(names) < _MANY
        if step.action == "delete" and is_detached:
            writer.rtnl("").detach(names)  # deleted later, with its namespace
            writer.detached += names
        elif step.action == "delete":
            delete_links(writer.rtnl(""), names)
        elif step.action == "add":
            _add(writer, step.obj)
        else:
            _change(writer, step.obj, step.actual or step.obj)


def _sums_command(veth: Veth) -> str:
    inside = f"ip netns exec {veth.netns} ethtool -K {veth.peer} tx off"
    return f"{inside} && ethtool -K {veth.name} gro on"


def _pair(link: Link, netns: str, inner: Iterable[Link], bridge: str) -> Veth:
    # ``inner`` are the interfaces in the namespace ``netns``; the other end may be in none of them
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


def delete_links(rtnl: Rtnl, names: list[str]) -> None:
    """Delete network interfaces. Missing interfaces are ignored. Several interfaces are deleted as
    a group; for a single one this would be slow, because the kernel walks all interfaces.
    """
    if len(names) == 1:
        rtnl.delete_link(names[0])
    else:
        rtnl.delete_links(names)


def _add(writer: Writer, veth: Veth) -> None:
    rtnl = writer.rtnl("")
    fd = open_fd(veth.netns)
    add = partial(
        rtnl.add_veth,
        veth.name,
        peer=veth.peer,
        peer_netns_fd=fd,
        peer_mac=veth.mac,
        mtu=veth.mtu,
        bridge=veth.bridge,
        port=new_port(veth.hairpin),
        alias=veth.alias,
    )
    try:
        try:
            add(entries=lambda index, own: neighbour_tables.new_fdb_entry(index, veth.mac, own))
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            index, own = add()  # the bridge has an entry for the MAC: it is replaced, or an error
            neighbour_tables.add_fdb_entry(rtnl, index, veth.mac, own)
    finally:
        os.close(fd)
    # A port needs no address, and the bridge still forwards IPv6. Otherwise the kernel adds a route
    # to ff00::/8 for each port that has a carrier, in one list for all ports, and walks the list
    # for each change of an interface (fib6_add, fib6_clean_all).
    try:
        proc_sys.write(_no_ipv6(veth.name), "1")
    except KernelError as error:
        if error.errno != errno.ENOENT:  # a kernel without IPv6
            raise
    writer.write_sysctls(veth.netns, veth.peer)
    if veth.sums:
        _make_sums(writer, veth)
    writer.rtnl(veth.netns).set_link(veth.peer, mtu=veth.mtu, up=True)


def _make_sums(writer: Writer, veth: Veth) -> None:
    """Make the inner end complete checksums, and the host's end join small TCP segments (GRO).

    Without offloads on the inner end, throughput drops; joining segments recovers most of it. The
    kernel checks the checksums of segments that it joins.
    """
    writer.rtnl(veth.netns).make_sums(veth.peer)
    writer.rtnl("").join_segments(veth.name)


def _no_ipv6(port: str) -> str:
    return f"net/ipv6/conf/{port}/disable_ipv6"


def _change(writer: Writer, veth: Veth, actual: Veth) -> None:
    rtnl = writer.rtnl("")
    if "group " in actual.drift:
        rtnl.set_group(veth.name, PORT_GROUP)
    if actual.bridge != veth.bridge:
        rtnl.set_link(veth.name, master=veth.bridge)
    neighbour_tables.add_fdb_entry(
        rtnl, rtnl.index(veth.name), veth.mac
    )  # before flooding is switched off
    rtnl.set_link(
        veth.name,
        mtu=veth.mtu,
        master=veth.bridge,
        hairpin=veth.hairpin,
        up=True,
        # on another bridge it is a new port
        drift=actual.drift if actual.bridge == veth.bridge else NEW_PORT,
    )
    drift = ARP_OFF if ARP_OFF_INSIDE in actual.drift else ""
    if veth.sums and not actual.sums:
        _make_sums(writer, veth)
    writer.rtnl(veth.netns).set_link(veth.peer, mtu=veth.mtu, up=True, drift=drift)


class ForeignPort(NamedTuple):
    """Another program's network interface ``link`` that is a port of niso's bridge ``bridge``. If
    ``bridge`` is "", the interface is in one of niso's interface groups (`GROUPS`).
    """

    bridge: str
    link: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class _ForeignPorts(Kind[ForeignPort], of=ForeignPort):
    is_of_host = True

    def noun(self, obj: ForeignPort) -> str:
        where = f"on bridge {obj.bridge}" if obj.bridge else "in a group of niso"
        return f"link {obj.link} {where}"

    def describe(self, step: Step[ForeignPort]) -> str:
        return f"ip link set {step.obj.link} {'nomaster' if step.obj.bridge else 'group default'}"

    def read(self, space: Space, objects: Collection[ForeignPort]) -> Iterable[ForeignPort]:
        reading = space.reading
        if not reading.with_strays:
            return ()
        names = {bridge.name for bridge in reading.so_far(Bridge)}
        by_index = {link.index: link.name for link in space.all_links if link.name in names}
        others = [link for link in space.all_links if link.alias != reading.alias]
        ports = [link for link in others if link.master in by_index]
        grouped = [link for link in others if link.group in GROUPS.values()]
        return (
            *(ForeignPort(by_index[link.master], link.name) for link in ports),
            *(ForeignPort("", link.name) for link in grouped),
        )

    def write(self, writer: Writer, steps: Sequence[Step[ForeignPort]]) -> None:
        rtnl, port = writer.rtnl(""), steps[0].obj
        if port.bridge:
            rtnl.set_link(port.link, master="")
        else:
            rtnl.set_group(port.link, 0)


class Shaper(NamedTuple):
    """The rate limits of a veth pair, in bytes per second; 0 means no limit. ``inward`` limits what
    the service receives, ``outward`` what it sends. ``drift`` names settings that differ from
    niso's.
    """

    name: str  # the host end of the pair
    netns: str
    peer: str  # the inner end of the pair
    inward: int  # the limit of what the service receives
    outward: int  # the limit of what the service sends
    drift: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class _Shapers(Kind[Shaper], of=Shaper):
    parents_format = ("netns {0.netns}", "link /{0.netns}/{0.peer}")
    noun_format = "bandwidth of {0.netns} {0.peer}"

    def describe(self, step: Step[Shaper]) -> str:
        shaper, actual = step.obj, step.actual
        return " && ".join(
            _command(inside, link, 0 if step.action == "delete" else rate)
            for inside, link, rate, before in (
                ("", shaper.name, shaper.inward, actual.inward if actual else 0),
                (shaper.netns, shaper.peer, shaper.outward, actual.outward if actual else 0),
            )
            if rate or before or shaper.drift
        )

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        if field == "drift":
            return f"it has {present}"
        return f"{field[:-4]} is {_bits(present)}, should be {_bits(wanted)}"

    def read(self, space: Space, objects: Collection[Shaper]) -> Iterable[Shaper]:
        host = space.reading.host
        asked = {obj.name: (obj.netns, obj.peer) for obj in objects}
        if space.reading.everything and space.name:
            for link in space.links_of_concern:
                end = host.other_end(link)
                if end is not None and end.alias == space.reading.alias:
                    asked[end.name] = (space.name, link.name)
        for name, (netns, peer) in asked.items():
            near, far = host.own_link(name), space.link(peer)
            if near is None or far is None:
                continue
            ends = (link_records.limit_of(host.rtnl, near), link_records.limit_of(space.rtnl, far))
            drift = ", ".join(
                f"a queue of {size} bytes"
                for rate, size in ends
                if rate and size != link_records.limit(rate)
            )
            inward, outward = (rate for rate, _ in ends)
            if inward or outward:
                yield Shaper(name, netns, peer, inward, outward, drift)

    def write(self, writer: Writer, steps: Sequence[Step[Shaper]]) -> None:
        (step,) = steps
        shaper = step.obj
        for netns, link, rate in (
            ("", shaper.name, shaper.inward),
            (shaper.netns, shaper.peer, shaper.outward),
        ):
            rtnl, index = writer.link(netns, link)
            if rate and step.action != "delete":
                link_records.set_rate(rtnl, existing(index, link), rate)
            elif index is not None:
                link_records.clear(rtnl, index)


def _command(netns: str, link: str, rate: int) -> str:
    start = f"tc {f'-n {netns} ' if netns else ''}qdisc"
    if not rate:
        return f"{start} delete dev {link} root"
    sizes = f"burst {link_records.burst(rate)} limit {link_records.limit(rate)}"
    return f"{start} replace dev {link} root tbf rate {rate * 8}bit {sizes}"


def _bits(rate: object) -> str:
    return f"{int(str(rate)) * 8}bit/s" if rate else "unlimited"
