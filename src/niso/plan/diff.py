"""From the state that is wanted and the state that is there to the steps between them. Pure.

The order is data (`State`'s fields): things are made in that order and taken away in reverse, additions before deletions.
Each step can say what it does in words that also work when pasted into a shell.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from niso.base.lite_typing import NamedTuple
from niso.plan import nft
from niso.plan.state import (
    Address,
    Attached,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Neighbour,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Thing,
    Veth,
    kinds,
)


class Step(NamedTuple):
    """``action`` is add, delete or change; for change, ``was`` is the thing as it is now."""

    action: str
    thing: Thing
    was: Thing | None = None

    def describe(self) -> str:
        return _WORDS[type(self.thing)](self)


class Edit(NamedTuple):
    """An element that an nftables transaction adds or deletes."""

    verb: str  # "add" or "delete"
    element: Element

    def text(self) -> str:
        """As nft reads it."""
        return nft.statement(self.verb, self.element)


class NftTransaction(NamedTuple):
    """What the kernel takes as a whole or not at all: edits of elements, and where the tables are made anew, nft's text."""

    edits: tuple[Edit | str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """All of it as nft reads it."""
        return tuple(edit if isinstance(edit, str) else edit.text() for edit in self.edits)

    def describe(self) -> str:
        first, last = self.edits[0], self.edits[-1]
        if isinstance(last, str) and last.startswith("destroy table"):
            return f"nft '{'; '.join(self.statements)}'"
        if isinstance(first, str) and first.startswith("destroy table"):
            return f"nft -f -   # both tables anew, with {len(self.edits) - 3} elements"
        return "\n".join(f"nft {statement!r}" for statement in self.statements)


class HostsEdit(NamedTuple):
    """One hosts file: made (``create``) or edited, by renaming a new one over it."""

    folder: str
    create: bool
    remove: tuple[HostsLine, ...]
    add: tuple[HostsLine, ...]

    def describe(self) -> str:
        words = [f"hosts file {self.folder}: {'create' if self.create else 'edit'}"]
        words += [f"-{line.address} {line.names}" for line in self.remove]
        words += [f"+{line.address} {line.names}" for line in self.add]
        return words[0] if len(words) > 4 else ", ".join(words)


AnyStep = Step | NftTransaction | HostsEdit


def diff(want: State, have: State) -> list[AnyStep]:
    """The steps that make ``have`` into ``want``. Both must be of the same extent; equal states give no step."""
    want = unhindered(want, have)
    first, last = _nft(want, have)
    early = _veths_in_the_way(want, have)
    have = _without(have, early)
    going = {thing.name for thing in have.netns} - {thing.name for thing in want.netns}
    going_links = {("", thing.name) for thing in have.bridges} - {
        ("", thing.name) for thing in want.bridges
    }
    going_links |= {
        (veth.netns, veth.peer) for veth in have.veths if veth.key() not in _keys(want.veths)
    }
    made: list[AnyStep] = []
    gone: list[AnyStep] = []
    for kind, wanted, present in zip(State._fields, kinds(want), kinds(have), strict=True):
        if kind in ("rulesets", "elements", "hosts_files", "hosts_lines"):
            continue
        if kind == "veths":
            made += [Step("delete", veth) for veth in sorted(early)]
        before, more = by_key(wanted, present)
        for thing in sorted(wanted, key=_sysctl_order) if kind == "sysctls" else sorted(wanted):
            was = before.pop(thing.key(), None)
            if was is None:
                made.append(Step("add", thing))
            elif was != thing or _resets(made, thing):
                made.append(Step("change", thing, was))
        for thing in sorted([*before.values(), *more], reverse=True):
            # a sysctl has no end of its own; what lies in or on something that goes, goes with it: but a veth pair, since
            # whoever holds its namespace would keep it on the bridge, where nothing guards it any more
            if isinstance(thing, Sysctl):
                continue
            if isinstance(thing, Address | Route | Neighbour) and (
                thing.netns in going or (thing.netns, thing.link) in going_links
            ):
                continue
            gone.append(Step("delete", thing))
    edits, files_gone = _hosts(want, have)
    gone.reverse()
    return [*first, *made, *edits, *files_gone, *_ordered(gone), *last]


def by_key(
    wanted: Collection[Thing], present: Collection[Thing]
) -> tuple[dict[tuple[str, ...], Thing], list[Thing]]:
    """What is there by its key, and what more has a key of these: the kernel has several routes to one place, by their metric."""
    found: dict[tuple[str, ...], Thing] = {}
    more = []
    for thing in present:
        other = found.setdefault(thing.key(), thing)
        if other is not thing:
            right = thing in wanted
            found[thing.key()] = thing if right else other
            more.append(other if right else thing)
    return found, more


def unhindered(want: State, have: State) -> State:
    """``want`` with the right values of sysctls that niso leaves as a new link has them, where ``have`` shows one that is in
    its way: IPv6 switched off for a service, IPv4 forwarding for a bridge (`niso.kernel.read` looks where it can be)."""
    inside, bridges = {thing.name for thing in want.netns}, {thing.name for thing in want.bridges}
    known = _keys(want.sysctls)
    added = set()
    for thing in have.sysctls:
        if thing.key() in known:
            continue
        _, family, _, link, name = (*thing.name.split("/"), "", "", "")[:5]
        if (family, name, thing.value) == ("ipv6", "disable_ipv6", "1") and thing.netns in inside:
            added.add(thing._replace(value="0"))
        if (
            (family, name, thing.value) == ("ipv4", "forwarding", "0")
            and not thing.netns
            and link in bridges
        ):
            added.add(thing._replace(value="1"))
    return want._replace(sysctls=want.sysctls | added) if added else want


_FORWARDING_OF_ALL = "net/ipv6/conf/all/forwarding"


def _sysctl_order(thing: Thing) -> tuple[bool, bool, Thing]:
    """accept_ra comes before forwarding: a host that begins to forward forgets the routers that it was not told to keep."""
    name = thing.name if isinstance(thing, Sysctl) else ""
    return name.endswith("forwarding"), name != _FORWARDING_OF_ALL, thing


def _resets(made: list[AnyStep], thing: Thing) -> bool:
    """Whether a step sets the forwarding of all links, and so of this one, which must have its own value again."""
    if (
        not isinstance(thing, Sysctl)
        or not thing.name.startswith("net/ipv6/conf/")
        or not thing.name.endswith("/forwarding")
    ):
        return False
    return any(
        isinstance(step, Step)
        and isinstance(step.thing, Sysctl)
        and (step.thing.netns, step.thing.name) == (thing.netns, _FORWARDING_OF_ALL)
        for step in made
    )


def _keys(things: Iterable[Thing]) -> set[tuple[str, ...]]:
    return {thing.key() for thing in things}


def _veths_in_the_way(want: State, have: State) -> set[Veth]:
    """Veth pairs that must go before others come: those whose other end is wrong or has a name that another one needs."""
    wanted = {veth.key(): veth for veth in want.veths}
    right = {
        veth
        for veth in have.veths
        if veth.key() in wanted and _far_end(veth) == _far_end(wanted[veth.key()])
    }
    ends = {(veth.netns, veth.peer) for veth in want.veths}
    return {
        veth
        for veth in have.veths - right
        if veth.key() in wanted or (veth.netns, veth.peer) in ends
    }


def _far_end(veth: Veth) -> tuple[str, str, str]:
    return (veth.netns, veth.peer, veth.mac)


def _without(have: State, veths: set[Veth]) -> State:
    """``have`` without these pairs, and without the addresses and routes that go with them."""
    ends = {(veth.netns, veth.peer) for veth in veths}
    return have._replace(
        veths=have.veths - veths,
        addresses=frozenset(a for a in have.addresses if (a.netns, a.link) not in ends),
        routes=frozenset(r for r in have.routes if (r.netns, r.link) not in ends),
    )


def _ordered(gone: list[AnyStep]) -> list[AnyStep]:
    """Deletions in the reverse of the order in which things are made."""
    position = {Bridge: 0, Netns: 1, Veth: 2, Address: 3, Route: 4, Neighbour: 5, Attached: 6}
    return sorted(
        gone, key=lambda step: -position[type(step.thing)] if isinstance(step, Step) else 0
    )


def _nft(want: State, have: State) -> tuple[list[AnyStep], list[AnyStep]]:
    """The transaction before everything else and the one after it.

    Elements that guard something go only when what they guard is gone; without additions all goes in one.
    """
    if want.rulesets != have.rulesets:
        tables = tuple(f"destroy table {table}" for table in nft.CONTAINERS)
        if not want.rulesets:
            return [], [NftTransaction(tables)]
        guards = _guards_of_what_goes(want, have)
        adds = (Edit("add", element) for element in sorted(want.elements | guards))
        drops = tuple(Edit("delete", element) for element in sorted(guards))
        return [NftTransaction((*tables, nft.TABLES, *adds))], [
            NftTransaction(drops)
        ] if drops else []
    before = {element.key(): element for element in have.elements}
    added: list[Edit] = []
    early: list[Edit] = []
    late: list[Edit] = []
    for element in sorted(want.elements):
        was = before.pop(element.key(), None)
        if was == element:
            continue
        if was is not None:
            early.append(Edit("delete", element))
        added.append(Edit("add", element))
    going = {
        address.address.partition("/")[0]
        for address in have.addresses - want.addresses
        if address.netns
    }
    going |= {
        e.element.rpartition(" . ")[2]
        for e in before.values()
        if e.container in ("sources4", "sources6")
    }
    renewed = {_room(edit.element) for edit in added} - {None}
    for element in sorted(before.values()):
        guards_on = element.container in nft.LATE
        if element.container in nft.POLICIES:
            # what an address was denied holds until it is gone; but intervals that replace others need their room at once
            guards_on = (
                bool(set(element.element.split(" . ")[:2]) & going)
                and _room(element) not in renewed
            )
        (late if guards_on else early).append(Edit("delete", element))
    if not added:
        early, late = [], [*early, *late]
    first = [NftTransaction((*early, *added))] if early or added else []
    return [*first], [NftTransaction(tuple(late))] if late else []


def _room(element: Element) -> tuple[str, ...] | None:
    """What intervals of policies share, so that one may overlap another that is to go; None of what are no intervals."""
    part = element.container.partition("_")[2]
    if element.container not in nft.POLICIES or not nft.POLICY_PARTS.get(part, ("", False))[1]:
        return None
    own, peer = element.element.split(" . ")[:2]
    return (element.container, own, peer) if part == "ports" else (element.container, own)


def _guards_of_what_goes(want: State, have: State) -> set[Element]:
    """New tables know nothing of links that are about to go: until then these let nothing out of them."""
    guards: set[Element] = set()
    for name in {veth.name for veth in have.veths} - {veth.name for veth in want.veths}:
        guards.update(nft.endpoint("", name, "", ()))
    for name in {bridge.name for bridge in have.bridges} - {bridge.name for bridge in want.bridges}:
        guards.update(nft.network("", name, ()))
    return guards


def _hosts(want: State, have: State) -> tuple[list[AnyStep], list[AnyStep]]:
    edits: list[AnyStep] = []
    for file in sorted(want.hosts_files):
        create = file not in have.hosts_files
        wanted = {line for line in want.hosts_lines if line.folder == file.folder}
        present = (
            set() if create else {line for line in have.hosts_lines if line.folder == file.folder}
        )
        if create or wanted != present:
            edits.append(
                HostsEdit(
                    file.folder,
                    create,
                    tuple(sorted(present - wanted)),
                    tuple(sorted(wanted - present)),
                )
            )
    return edits, [Step("delete", file) for file in sorted(have.hosts_files - want.hosts_files)]


def _inside(netns: str) -> str:
    return f"ip -n {netns} " if netns else "ip "


def _bridge_words(step: Step) -> str:
    bridge = step.thing
    assert isinstance(bridge, Bridge)
    if step.action == "delete":
        return f"ip link delete {bridge.name}"
    tracked = f"type bridge nf_call_iptables {int(bridge.tracked4)} nf_call_ip6tables {int(bridge.tracked6)}"
    if step.action == "add":
        return f"ip link add {bridge.name} mtu {bridge.mtu} {tracked} && ip link set {bridge.name} alias {bridge.alias} up"
    was = step.was if isinstance(step.was, Bridge) else bridge
    address = f" address {bridge.mac}" if was.mac != bridge.mac else ""
    names = _first_words(was.strange)
    arp = " arp on" if "arp" in names else ""
    usual = (f"{name} {30000 if name == 'ageing_time' else 0}" for name in names if name != "arp")
    return " ".join(
        (f"ip link set {bridge.name} mtu {bridge.mtu}{address}{arp} up {tracked}", *usual)
    )


def _first_words(strange: str) -> list[str]:
    """Of ``stp_state 1, vlan_filtering 1`` the names."""
    return [each.partition(" ")[0] for each in strange.split(", ")] if strange else []


def _netns_words(step: Step) -> str:
    assert isinstance(step.thing, Netns)
    if step.action == "change":
        return f"ip -n {step.thing.name} link set lo up"
    return f"ip netns {'delete' if step.action == 'delete' else 'add'} {step.thing.name}"


def _veth_words(step: Step) -> str:
    veth = step.thing
    assert isinstance(veth, Veth)
    if step.action == "delete":
        return f"ip link delete {veth.name}"
    if step.action == "add":
        return (
            f"ip link add {veth.name} mtu {veth.mtu} type veth peer {veth.peer} address {veth.mac} netns {veth.netns}"
            f" && ip link set {veth.name} master {veth.bridge} alias {veth.alias} up"
        )
    words = f"ip link set {veth.name} mtu {veth.mtu} master {veth.bridge} up"
    was = step.was if isinstance(step.was, Veth) else veth
    flags = [f"hairpin {'on' if veth.hairpin else 'off'}"] if was.hairpin != veth.hairpin else []
    arp = {
        "arp off": f"ip link set {veth.name} arp on",
        "arp off inside": f"ip -n {veth.netns} link set {veth.peer} arp on",
    }
    also: list[str] = []
    for each in was.strange.split(", ") if was.strange else []:
        name, _, value = each.partition(" ")
        if each in arp:
            also.append(arp[each])
            continue
        flags.append(f"{name} {({'on': 'off', 'off': 'on', 'set': '0'}).get(value, '3')}")
    if flags:
        also.append(f"bridge link set dev {veth.name} {' '.join(flags)}")
    alone = also and was._replace(hairpin=veth.hairpin, strange="") == veth
    return " && ".join(also if alone else [words, *also])


def _address_words(step: Step) -> str:
    address = step.thing
    assert isinstance(address, Address)
    if step.action == "change":
        was = step.was if isinstance(step.was, Address) else address
        words = []
        if not was.lasting:
            forever = "valid_lft forever preferred_lft forever"
            words.append(
                f"{_inside(address.netns)}address replace {address.address} dev {address.link} {forever}"
            )
        if not was.routed:
            prefix = ipaddress.ip_interface(address.address).network
            words.append(
                f"{_inside(address.netns)}route add {prefix} dev {address.link} proto kernel"
            )
        return " && ".join(words)
    verb = "delete" if step.action == "delete" else "add"
    return f"{_inside(address.netns)}address {verb} {address.address} dev {address.link}"


def _route_words(step: Step) -> str:
    route = step.thing
    assert isinstance(route, Route)
    if route.type:
        return f"{_inside(route.netns)}route delete {route.type} {route.destination}"
    verb = {"add": "add", "delete": "delete", "change": "replace"}[step.action]
    return f"{_inside(route.netns)}route {verb} {route.destination} via {route.gateway} dev {route.link}"


def _sysctl_words(step: Step) -> str:
    sysctl = step.thing
    assert isinstance(sysctl, Sysctl)
    prefix = f"ip netns exec {sysctl.netns} " if sysctl.netns else ""
    value = sysctl.value.replace("\t", " ")
    return f"{prefix}sysctl -w '{sysctl.name}={value}'"


def _attached_words(step: Step) -> str:
    assert isinstance(step.thing, Attached)
    return f"ip link set {step.thing.link} nomaster"


def _neighbour_words(step: Step) -> str:
    entry = step.thing
    assert isinstance(entry, Neighbour)
    if not entry.address:
        return f"bridge fdb delete {entry.mac} dev {entry.link} master"
    return f"{_inside(entry.netns)}neighbour delete {entry.address} dev {entry.link}"


def _file_words(step: Step) -> str:
    assert isinstance(step.thing, HostsFile)
    return f"hosts file {step.thing.folder}: {step.action}"


def _plain_words(step: Step) -> str:
    return f"{step.action} {type(step.thing).__name__.lower()} {' '.join(step.thing.key())}"


_WORDS = {
    Bridge: _bridge_words,
    Netns: _netns_words,
    Veth: _veth_words,
    Address: _address_words,
    Route: _route_words,
    Sysctl: _sysctl_words,
    Attached: _attached_words,
    Neighbour: _neighbour_words,
    HostsFile: _file_words,
    HostsLine: _plain_words,
    Element: _plain_words,
    Ruleset: _plain_words,
}
