"""From the kernel to a `State`: of just the things that are asked about, or of everything that is niso's.

What is ours is told from the kernel alone: our two tables, and the alias on our links and on ``lo`` of our namespaces.
Something of a needed name that is not ours is a Conflict.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from niso.base import files, paths
from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import bridge_flags, neighbours, netns, rtnetlink, sysctl
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.kernel.rtnetlink import KERNEL, Link, Rtnl
from niso.kernel.rtnl_sockets import Sockets
from niso.plan import hosts_text, nft
from niso.plan.records import family_of
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
    Veth,
)

if TYPE_CHECKING:
    from niso.plan.findings import Problem

OWN_ROUTES = (
    3  # RTPROT_BOOT: what niso (like iproute2) adds; the kernel's own routes are its business
)


NOWHERE = {number: word for word, number in rtnetlink.NOWHERE.items()}

Foreign = dict[str, Conflict]
"""Name of a link or namespace that should be ours and is not -> what is wrong with it."""


def read(
    candidates: State,
    alias: str,
    foreign: Foreign | None = None,
    sockets: Sockets | None = None,
    strays: bool = False,
    rules: bool = True,
) -> State:
    """Which of ``candidates`` the kernel has, with the fields as they are there; by ``sockets``, or by its own.

    Its cost depends on ``candidates`` alone. ``alias`` marks what is ours. Raises KernelError, and Conflict where something
    of a candidate's name is somebody else's; with ``foreign`` that is noted there, and the thing left out. With ``strays`` also
    what others have done to the links of the candidates: neighbour entries, links on our bridges, routes that are gone. Without
    ``rules`` the tables are not looked at, and have the rules of ``candidates``.
    """
    if sockets is None:
        with Sockets() as own:
            return read(candidates, alias, foreign, own, strays, rules)
    state_id = alias.partition(":")[2]
    tables = (
        _tables(candidates, state_id, foreign is not None) if rules else State(candidates.rulesets)
    )
    bridges: set[Bridge] = set()
    veths: set[Veth] = set()
    namespaces: set[Netns] = set()
    addresses: set[Address] = set()
    routes: set[Route] = set()
    sysctls: set[Sysctl] = set()
    attached: set[Attached] = set()
    found_by_hand: set[Neighbour] = set()

    rtnl = sockets.here()
    for bridge in {thing.name for thing in candidates.bridges}:
        link = rtnl.link(bridge)
        if link is None or not _own(link, alias, foreign):
            continue
        tracked = (link.call_iptables, link.call_ip6tables)
        bridges.add(
            Bridge(link.name, link.mtu, link.alias, link.up, *tracked, link.mac, link.strange)
        )
    wanted = _by_namespace(candidates)
    here = wanted.pop("", _Wanted())
    _addresses(rtnl, "", here.links, addresses, routes)
    sysctls |= _sysctls(here.sysctls)
    if strays and Sysctl("", "net/ipv4/ip_forward", "1") in sysctls:
        # bridges follow that one, until somebody sets theirs
        forwarding = (f"net/ipv4/conf/{bridge.name}/forwarding" for bridge in bridges)
        sysctls |= {
            found
            for found in _sysctls(Sysctl("", each, "1") for each in forwarding)
            if found.value == "0"
        }
    for name in sorted({thing.name for thing in candidates.netns}):
        if not netns.exists(name):
            continue
        here = wanted.pop(name, _Wanted())
        host_ends = {}
        for veth in here.veths:
            if veth.name not in host_ends and (link := rtnl.link(veth.name)):
                if not _own(link, alias, foreign):
                    continue
                host_ends[veth.name] = link
        inner = _inside(
            sockets.at(name), here, name, alias, foreign, addresses, routes, sysctls, namespaces
        )
        if strays and inner is not None:
            routes |= {
                Route(name, found.destination, "", "", NOWHERE[found.type])
                for found in sockets.at(name).routes()
                if found.type in NOWHERE and found.protocol != KERNEL
            }
            for link in inner.values():
                found_by_hand |= {
                    Neighbour(name, link.name, entry.address, entry.mac)
                    for entry in neighbours.of_link(sockets.at(name), link.index)
                }
        if inner is not None:
            for link in host_ends.values():
                # a port that has just begun to carry takes a moment to forward
                seen = (
                    link
                    if strays
                    else link._replace(strange=link.strange.partition("state ")[0].rstrip(", "))
                )
                veths.add(_veth(seen, name, inner, rtnl.name(link.master)))
    for name, here in wanted.items():
        for veth in here.veths:  # a pair whose namespace has lost its name
            if (
                not netns.exists(name)
                and (link := rtnl.link(veth.name))
                and _own(link, alias, foreign)
            ):
                veths.add(_veth(link, "", {}, rtnl.name(link.master)))

    if strays:
        _host_strays(bridges, alias, attached, found_by_hand, addresses)
    whole, present = _hosts_lines(candidates)
    return tables._replace(
        bridges=frozenset(bridges),
        netns=frozenset(namespaces),
        sysctls=frozenset(sysctls),
        veths=frozenset(veths),
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        attached=frozenset(attached),
        neighbours=frozenset(found_by_hand),
        hosts_files=whole,
        hosts_lines=present,
    )


def _host_strays(
    bridges: set[Bridge],
    alias: str,
    attached: set[Attached],
    found: set[Neighbour],
    addresses: set[Address],
) -> None:
    """Of our bridges: ports that are not ours, entries set by hand, and which of their addresses have lost their route."""
    names = {bridge.name for bridge in bridges}
    with Rtnl() as rtnl:
        links = rtnl.links()
        by_index = {link.index: link for link in links}
        for bridge in (link for link in links if link.name in names):
            ports = [link for link in links if link.master == bridge.index]
            attached |= {Attached(bridge.name, link.name) for link in ports if link.alias != alias}
            fixed = neighbours.of_link(rtnl, bridge.index)
            fixed += neighbours.of_bridge(
                rtnl, bridge.index, {link.mac for link in (bridge, *ports)}
            )
            found |= {
                Neighbour("", by_index[entry.link_index].name, entry.address, entry.mac)
                for entry in fixed
                if entry.link_index in by_index
            }
            there = {route.destination for route in rtnl.routes(bridge.index) if not route.gateway}
            own = {each for each in addresses if not each.netns and each.link == bridge.name}
            addresses -= own
            addresses |= {each._replace(routed=_is_routed(each.address, there)) for each in own}


def _is_routed(address: str, there: set[str]) -> bool:
    """Whether an address's own prefix is among the destinations ``there``; one of a single address has no route."""
    return (
        address.endswith("/128" if family_of(address) == 6 else "/32")
        or rtnetlink.prefix(address) in there
    )


def read_all(want: State, alias: str, foreign: Foreign) -> State:
    """Everything that is ours in the kernel, whether it is in ``want`` or not; ``want`` says which sysctls matter."""
    with Rtnl() as rtnl:
        links = rtnl.links()
    ours = [link for link in links if link.alias == alias]
    namespaces = {name for name in netns.names() if _lo_alias(name) == alias}
    candidates = want._replace(
        elements=frozenset(),  # all are read below
        bridges=want.bridges
        | {Bridge(link.name, 0, alias) for link in ours if link.kind == "bridge"},
        netns=want.netns | {Netns(name, alias) for name in namespaces},
    )
    have = read(candidates, alias, foreign, strays=True)
    by_index = {link.index: link.name for link in links}
    known = {veth.name for veth in have.veths}
    ends: dict[int, tuple[str, Link]] = {}
    addresses, routes = set(have.addresses), set(have.routes)
    with Rtnl() as rtnl:
        known_links = {each.link for each in addresses if not each.netns}
        _addresses(
            rtnl, "", {bridge.name for bridge in have.bridges} - known_links, addresses, routes
        )
    for name in sorted(namespaces):
        with netns.inside(name), Rtnl() as rtnl:
            inner = {link.name: link for link in rtnl.links() if link.kind == "veth"}
            ends.update({link.peer_index: (name, link) for link in inner.values()})
            _addresses(rtnl, name, inner, addresses, routes)
    strays = set()
    for link in ours:
        if link.kind == "veth" and link.name not in known:
            name, far = ends.get(link.index, ("", link))
            strays.add(_veth(link, name, {far.name: far}, by_index.get(link.master, "")))
    whole, lines = _hosts_files(set(_folders()))
    tables = _all_tables(alias.partition(":")[2])
    return have._replace(
        rulesets=tables.rulesets,
        elements=tables.elements,
        veths=have.veths | strays,
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        hosts_files=whole,
        hosts_lines=frozenset(lines),
    )


def owners() -> dict[str, set[str]]:
    """Table -> the state ids that its owner set names; a table that is not there is left out."""
    from niso.kernel.libnftables import Nft

    found = {}
    with Nft() as kernel:
        for table in nft.CONTAINERS:
            marks = kernel.elements(table, "owner")
            if marks is not None:
                found[table] = {mark.strip('"')[3:] for mark in marks if mark.startswith('"id-')}
    return found


def _own(link: Link, alias: str, foreign: Foreign | None) -> bool:
    if link.alias == alias:
        return True
    whose = f"it carries the alias {link.alias!r}" if link.alias else "it has no alias"
    error = Conflict(
        f"link {link.name!r} exists and is not this niso's own ({whose})",
        f"rename it (ip link set {link.name} down name NEW), or choose another name",
    )
    if foreign is None:
        raise error
    foreign[link.name] = error
    return False


def _own_namespace(name: str, lo: Link | None, alias: str, foreign: Foreign | None) -> bool:
    if lo is not None and lo.alias == alias:
        return True
    error = Conflict(
        f"network namespace {name!r} exists and is not this niso's own",
        f"remove it (ip netns delete {name}), or choose another name for the service",
    )
    if foreign is None:
        raise error
    foreign[name] = error
    return False


def _tables(candidates: State, state_id: str, adopts: bool) -> State:
    """What of the candidates lies in the two tables."""
    marked = set(nft.owner(state_id))
    keys = {element.key() for element in marked | candidates.elements}
    with Nfnetlink() as netlink:
        found = netlink.get_many((HEADERS[table, container], key) for table, container, key in keys)
    elements = frozenset(
        Element(table, container, key, *found[HEADERS[table, container], key])
        for table, container, key in keys
        if (HEADERS[table, container], key) in found
    )
    asked = {element.key() for element in candidates.elements}
    have = State(
        rulesets=frozenset({Ruleset(nft.DIGEST)}),
        elements=frozenset(element for element in elements if element.key() in asked),
    )
    return (
        have
        if elements.issuperset(nft.owner(state_id))
        else have._replace(rulesets=_strange_tables(state_id, adopts))
    )


def _strange_tables(state_id: str, adopts: bool) -> frozenset[Ruleset]:
    """The tables where they are not marked as they should be."""
    from niso.kernel.libnftables import Nft

    with Nft() as kernel:
        digests: list[str] = []
        gone: list[tuple[Problem, str]] = []
        for table in nft.CONTAINERS:
            marks = kernel.elements(table, "owner")
            if marks is None:
                gone.append(("missing", f"table {table}"))
                continue
            texts = {mark.strip('"') for mark in marks}
            if (
                texts or not adopts
            ):  # tables of this form that have lost their mark are mended where everything is
                _owned(table, texts, state_id)
            digests += [text[6:] for text in texts if text.startswith("rules-")]
        if len(digests) != len(nft.CONTAINERS) or len(set(digests)) != 1:
            return frozenset({Ruleset("incomplete", tuple(gone))} if digests else ())
    return frozenset({Ruleset(digests[0])})


def _owned(table: str, texts: set[str], state_id: str) -> None:
    others = {text[3:] for text in texts if text.startswith("id-")} - {state_id}
    if others or not texts:
        whose = f"the niso state folder with id {min(others)}" if others else "somebody else"
        raise Conflict(
            f"table {table} in this network namespace belongs to {whose}, not to {paths.state_dir()}",
            "set NISO_STATE_DIR to that folder; if it is lost, niso net repair --sweep ends and clears all that it left",
        )


def _all_tables(state_id: str) -> State:
    """All that lies in the two tables."""
    from niso.kernel import ruleset
    from niso.kernel.libnftables import Nft

    with Nft() as kernel:
        wrong = ruleset.differences(kernel)
        if wrong is None:
            return State()
        elements: set[Element] = set()
        for table, containers in nft.CONTAINERS.items():
            for container in containers:
                found = kernel.elements(table, container) or {}
                if container == "owner" and found:
                    _owned(table, {mark.strip('"') for mark in found}, state_id)
                elements.update(
                    Element(table, container, key, *rest) for key, rest in found.items()
                )
    return State(frozenset({Ruleset(nft.DIGEST, wrong)}), frozenset(elements))


class _Wanted:
    """What of the candidates is in one namespace, or in the host's."""

    def __init__(self) -> None:
        self.veths: list[Veth] = []
        self.links: set[str] = set()  # that have a candidate address or route
        self.addresses6: set[tuple[str, str]] = set()  # (link, address)
        self.sysctls: list[Sysctl] = []


def _by_namespace(candidates: State) -> dict[str, _Wanted]:
    found: dict[str, _Wanted] = {}
    for veth in candidates.veths:
        found.setdefault(veth.netns, _Wanted()).veths.append(veth)
    for thing in candidates.addresses | candidates.routes:
        here = found.setdefault(thing.netns, _Wanted())
        here.links.add(thing.link)
        if isinstance(thing, Address) and family_of(thing.address) == 6:
            here.addresses6.add((thing.link, thing.address))
    for each in candidates.sysctls:
        found.setdefault(each.netns, _Wanted()).sysctls.append(each)
    return found


def _addresses(
    rtnl: Rtnl, name: str, links: Iterable[str], addresses: set[Address], routes: set[Route]
) -> None:
    """Add the addresses and, in a namespace, the routes of the named links: all that they have."""
    for link_name in links:
        link = rtnl.link(link_name)
        if link is not None:
            _addresses_of(rtnl, name, link, addresses, routes)


def _addresses_of(
    rtnl: Rtnl, name: str, link: Link, addresses: set[Address], routes: set[Route]
) -> None:
    own = rtnl.addresses(link.index)
    if not name:  # the host's other routes are not ours
        addresses |= {Address(name, link.name, found.address, True, found.lasts) for found in own}
        return
    by_link = rtnl.routes(link.index)
    there = {found.destination for found in by_link if not found.gateway}
    addresses |= {
        Address(name, link.name, found.address, _is_routed(found.address, there), found.lasts)
        for found in own
    }
    routes |= {
        Route(name, found.destination, found.gateway, link.name)
        for found in by_link
        if found.protocol == OWN_ROUTES or found.gateway
    }


def _inside(
    rtnl: Rtnl,
    wanted: _Wanted,
    name: str,
    alias: str,
    foreign: Foreign | None,
    addresses: set[Address],
    routes: set[Route],
    sysctls: set[Sysctl],
    namespaces: set[Netns],
) -> dict[str, Link] | None:
    """Read one namespace, by a socket in it; gives its links of candidate veth pairs by name, None where it is somebody else's."""
    peers = {veth.peer for veth in wanted.veths}
    lo = rtnl.link("lo")
    if not _own_namespace(name, lo, alias, foreign):
        return None
    namespaces.add(Netns(name, alias, lo is not None and lo.up))
    links = {}
    there = set()
    for link_name in peers | wanted.links:
        link = rtnl.link(link_name)
        if link is not None:
            there.add(link_name)
            _addresses_of(rtnl, name, link, addresses, routes)
            if link_name in peers:
                links[link_name] = link
    lost = wanted.addresses6 - {
        (each.link, each.address) for each in addresses if each.netns == name
    }
    without = sorted({link for link, _ in lost} & there)
    if wanted.sysctls or without:
        with netns.inside(name):
            sysctls |= _sysctls(wanted.sysctls)
            sysctls |= _switched_off(name, without)
    return links


def _switched_off(name: str, links: list[str]) -> set[Sysctl]:
    """What keeps these links of a namespace from having IPv6 addresses: the switch of all, else those of their own."""
    for some in (["all"], links) if links else ():
        wanted = (Sysctl(name, f"net/ipv6/conf/{link}/disable_ipv6", "0") for link in some)
        found = {thing for thing in _sysctls(wanted) if thing.value == "1"}
        if found:
            return found
    return set()


def _lo_alias(name: str) -> str:
    with netns.inside(name), Rtnl() as rtnl:
        lo = rtnl.link("lo")
        return lo.alias if lo else ""


def _sysctls(wanted: Iterable[Sysctl]) -> set[Sysctl]:
    things = list(wanted)
    found = zip(things, sysctl.read_all(thing.name for thing in things), strict=True)
    return {Sysctl(thing.netns, thing.name, value) for thing, value in found if value is not None}


def _veth(link: Link, name: str, inner: dict[str, Link], bridge: str) -> Veth:
    """The pair as it is; its other end is looked for among ``inner``, the links of its namespace."""
    peer = next(
        (
            far
            for far in inner.values()
            if far.index == link.peer_index and far.peer_index == link.index
        ),
        None,
    )
    if peer is None:
        return Veth(
            link.name, "", "", "", link.mtu, bridge, link.hairpin, link.alias, link.up, link.strange
        )
    mtu = link.mtu if link.mtu == peer.mtu else -1
    up = link.up and peer.up
    strange = ", ".join(
        [*filter(None, [link.strange]), *([bridge_flags.ARP_OFF_INSIDE] if peer.strange else [])]
    )
    return Veth(
        link.name, name, peer.name, peer.mac, mtu, bridge, link.hairpin, link.alias, up, strange
    )


def _folders() -> list[str]:
    try:
        return os.listdir(paths.hosts_root())
    except FileNotFoundError:
        return []


def hosts_remnants(but: Collection[HostsFile]) -> frozenset[HostsFile]:
    """All that `is_remnant`, but these."""
    return frozenset(
        file for file in map(HostsFile, _folders()) if file not in but and is_remnant(file)
    )


def is_remnant(file: HostsFile) -> bool:
    """Whether a hosts file has left a folder with nothing in it, or nothing but a draft: what a kill leaves, and reads as no file."""
    path = os.path.join(paths.hosts_root(), file.folder)
    try:
        return not os.path.islink(path) and set(os.listdir(path)) <= {"hosts.new"}
    except OSError:
        return False


def _hosts_lines(candidates: State) -> tuple[frozenset[HostsFile], frozenset[HostsLine]]:
    """Which candidate files and lines are there, without taking the files apart: they have a line for each service."""
    texts = {
        file: text
        for file in candidates.hosts_files
        if (text := _hosts_text(file.folder)) is not None
    }
    found = frozenset(
        line
        for line in candidates.hosts_lines
        if f"\n{hosts_text.line(line.address, line.names)}" in texts.get(HostsFile(line.folder), "")
    )
    return frozenset(texts), found


def _hosts_text(folder: str) -> str | None:
    """The text of a hosts file that begins as niso writes it and that everybody may read; any other counts as absent."""
    try:
        text = (
            files.read(os.path.join(paths.hosts_root(), folder, "hosts"), 0o444) or b""
        ).decode()
    except (OSError, ValueError):
        return None
    return text if text.startswith(hosts_text.HEADER) and text.endswith("\n") else None


def _hosts_files(folders: set[str]) -> tuple[frozenset[HostsFile], set[HostsLine]]:
    """The files that look as niso writes them, and their lines; any other, or one that not everybody gets at, counts as absent."""
    whole, lines = set(), set()
    for folder in folders:
        text = _hosts_text(folder)
        found = hosts_text.lines(text) if text is not None and _is_open(folder) else None
        if found is not None:
            whole.add(HostsFile(folder))
            lines |= {HostsLine(folder, address, names) for address, names in found}
    return frozenset(whole), lines


def _is_open(folder: str) -> bool:
    try:
        return os.lstat(os.path.join(paths.hosts_root(), folder)).st_mode & 0o555 == 0o555
    except OSError:
        return False
