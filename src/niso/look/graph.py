"""Draw which services communicate, as Mermaid or as Graphviz's dot, for `Host.graph`.

A graph shows recorded traffic, or what policies allow. It can also show the policies of a
stack.toml that is not active. The services of such a stack have made-up addresses.

Names and addresses come from manifests, which others may write. All characters that could be syntax
of the output language are therefore escaped, even if names cannot contain them.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from niso.base import names
from niso.base.errors import Error, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import span
from niso.look import services, stack_members
from niso.look.flows import AUDIT, DROP, EVERYBODY, HOST, OUTSIDE, PASS, Flow, read
from niso.look.top import runs
from niso.manifest.stack import Stack
from niso.plan.records import OUTSIDE as MACHINES
from niso.plan.records import Entry, NetworkRecord, Peer, PortMapping, ServiceEndpoint, SubnetRecord
from niso.plan.verdict import KnownService, PolicyContext, addresses_of, evaluate, matches
from niso.reconcile.live_world import read_world

if TYPE_CHECKING:
    from niso.look.session import Session


_ALL = (0, 65_535)
_PORTED = ("tcp", "udp", "sctp")
_MOST_OUTSIDE = 8  # outside addresses that get a node each
_MOST_PORTS = 5  # ports that an edge's label lists
_WORDS = {PASS: "", AUDIT: " would be denied", DROP: " denied"}
_COLOURS = {AUDIT: "#9a6700", DROP: "#c62f2b"}
_ARROWS = {PASS: "-- {} -->", AUDIT: "-. {} .->", DROP: "-. {} .-x"}  # of Mermaid
_LINES = {AUDIT: "style=dotted", DROP: "style=dashed, arrowhead=tee"}  # of dot
_PLAIN = re.compile(r"[A-Za-z0-9 .,:/_→*()-]")


Node = tuple[str, tuple[str, ...]]
"""The identifier and text of a box: services in one namespace, the host, or another address."""
Edge = tuple[str, str, str, str]  # the source, destination, label and verdict of an edge
Picture = tuple[list[tuple[str, list[Node]]], list[Node], list[Edge]]
"""The boxes of services, in titled groups by networks, then the other boxes, and the edges."""


def of_traffic(
    context: PolicyContext,
    seen: Iterable[Flow],
    only: frozenset[str] | None,
    states: Mapping[str, str] = MappingProxyType({}),
) -> Picture:
    """Draw the recorded flows of all services, or only flows to or from the services ``only``.

    ``states`` maps services to a status such as ``exited (1)``. Other services are running.
    """
    rows = [s for s in seen if only is None or not only.isdisjoint(s.services)]
    addresses = {e.address for row in rows for e in (row.from_, row.to) if not e.is_known}
    folded = len(addresses) > _MOST_OUTSIDE
    ports: dict[tuple[str, str, str], set[tuple[int, str]]] = {}
    for row in rows:
        source, target = (
            end.name if end.is_known or not folded else OUTSIDE for end in (row.from_, row.to)
        )
        ports.setdefault((source, target, row.verdict), set()).add((row.port, row.proto))
    edges = [
        (source, target, _ports_text(used), verdict_)
        for (source, target, verdict_), used in ports.items()
    ]
    drawn = {name for name, known in context.services.items() if not known.front}
    drawn = drawn if only is None else set(only)
    drawn = drawn.union(*(row.services for row in rows))
    return _picture(context, drawn, edges, True, states)


def of_policies(
    context: PolicyContext,
    only: frozenset[str] | None,
    with_addresses: bool,
    states: Mapping[str, str] = MappingProxyType({}),
) -> Picture:
    """Draw what policies and published ports allow, whether or not there is traffic.

    ``states`` maps services to a status such as ``exited (1)``. A published port has an edge from
    each client that may use the port, and an edge "denied" from each client that a policy entry
    refuses. Between two services of one network, there is an edge for each deny entry, and for each
    range of ports that allow entries let through. Packets that match no entry are not drawn.
    """
    known = [
        service
        for name, service in sorted(context.services.items())
        if not service.front and (only is None or name in only)
    ]
    edges: list[Edge] = []
    for receiver in known:
        for port in receiver.ports:
            edges += _clients(context, receiver, port)
        for sender in known:
            if sender is not receiver:
                edges += _between(context, sender, receiver)
        if all(context.networks[end.network].internal for end in receiver.endpoints):
            continue  # no packet leaves these networks
        for entries, verdict_ in (
            (receiver.policy.egress_allow or (), PASS),
            (receiver.policy.egress_deny, AUDIT if receiver.audits else DROP),
        ):
            for entry in entries:
                for name in _outer(context, entry.peer):
                    edges.append((receiver.name, name, _entry_text(entry), verdict_))
    return _picture(context, {service.name for service in known}, edges, with_addresses, states)


def _clients(context: PolicyContext, receiver: KnownService, port: PortMapping) -> Iterator[Edge]:
    """Yield an edge from each outside client that may use a published port, or to which an entry
    denies the port. Parts of a range of ports with different clients have separate edges.
    """
    own, first = receiver.policy, port.container_port
    after = first + port.count
    entries = [
        entry
        for entry in (*(own.allow_from or ()), *own.deny_from)
        if entry.proto in ("", port.proto)
    ]
    cuts = {first, *(p for e in entries for p in (e.first, e.last + 1) if first < p < after)}
    parts: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for start, end in itertools.pairwise((*sorted(cuts), after)):
        about = [entry for entry in entries if entry.first <= start <= entry.last]
        for client in _users(context, receiver, port, about):
            spans = parts.setdefault(client, [])
            if spans and spans[-1][1] == start:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((start, end))
    for (name, verdict_), spans in parts.items():
        for start, end in spans:
            host_port = port.host_port and port.host_port + start - first
            part = port._replace(host_port=host_port, container_port=start, count=end - start)
            yield name, receiver.name, _port_text(part), verdict_


def _users(
    context: PolicyContext, receiver: KnownService, port: PortMapping, about: list[Entry]
) -> Iterator[tuple[str, str]]:
    """Yield (label of a client, verdict) for each client that may use a published port, or to which
    an entry denies the port. ``about`` are the entries of the ingress policy that match the port.
    """
    if port.host_ip and ipaddress.ip_address(port.host_ip).is_loopback:
        yield HOST, PASS
        return
    own = receiver.policy
    allowed = [entry.peer for entry in about if entry in (own.allow_from or ())]
    denied = {entry.peer.name for entry in about if entry in own.deny_from}
    everybody = {EVERYBODY[family] for family in port.families}
    admitted = everybody
    if own.allow_from is not None:
        names = {peer.name for peer in allowed}
        admitted = everybody if MACHINES.name in names else everybody & names
    if admitted - denied and MACHINES.name not in denied:
        yield OUTSIDE, PASS
    # a client outside may have any address, so no published port is for a DNS name
    for peer in allowed:
        if peer.kind not in ("outside", MACHINES.kind) and peer.name not in everybody | denied:
            yield from ((name, PASS) for name in _outer(context, peer))
    for entry in about:
        if entry in own.deny_from:
            word = AUDIT if receiver.audits else DROP
            yield from ((name, word) for name in _outer(context, entry.peer))


def _outer(context: PolicyContext, peer: Peer) -> Iterator[str]:
    if peer.kind in ("outside", MACHINES.kind):
        yield peer.name
    elif peer.kind in ("prefix", "prefixes"):
        cidrs = [cidr for cidr in peer.name.split(",") if not _is_inside(context, cidr)]
        if cidrs:
            yield cidrs[0] if len(cidrs) == 1 else f"{cidrs[0]} and {len(cidrs) - 1} more"


def _port_text(port: PortMapping) -> str:
    host = span(port.host_port, port.count) if port.host_port else "?"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    return f"{host}→{span(port.container_port, port.count)}{proto}"


def _between(
    context: PolicyContext, sender: KnownService, receiver: KnownService
) -> Iterator[Edge]:
    """Yield an edge for each deny entry that applies to packets from one service to another, and
    for each range of ports of allow entries on which such packets pass.
    """
    for endpoint in receiver.endpoints:
        beside = [e for e in sender.endpoints if e.network == endpoint.network]
        if not beside or not endpoint.addresses:
            continue
        to, from_ = endpoint.addresses[0], beside[0].addresses[0]
        own, peers = receiver.policy, sender.policy
        denials = [*((e, from_) for e in own.deny_from), *((e, to) for e in peers.egress_deny)]
        allowed = [*((e, from_) for e in own.allow_from or ())]
        allowed += [(e, to) for e in peers.egress_allow or ()]
        for entry, peer in denials:
            proto = entry.proto or "tcp"
            port = None if proto == "icmp" else max(entry.first, 1)
            if matches(entry, context, peer, port, proto):
                both = evaluate(context, from_, to, port, proto)
                word = AUDIT if all(reason.passes for reason in both) else DROP
                yield sender.name, receiver.name, _entry_text(entry), word
        about = [(e, peer) for e, peer in allowed if matches(_whole(e), context, peer, None, "")]
        cuts = {p for e, _ in (*denials, *about) for p in (max(e.first, 1), e.last + 1)}
        for label, word in _passing(context, (from_, to), about, sorted(cuts)):
            yield sender.name, receiver.name, label, word


def _whole(entry: Entry) -> Entry:
    return entry._replace(first=0, last=65_535, proto="")


def _passing(
    context: PolicyContext, ends: tuple[str, str], about: list[tuple[Entry, str]], cuts: list[int]
) -> Iterator[tuple[str, str]]:
    """Yield (label, verdict) for each range of ports on which packets between two services pass.
    ``ends`` are the source and destination addresses. ``about`` has pairs: an allow entry that can
    match the packets, and the address that the entry is compared with. ``cuts`` are the ports at
    which the verdict may change.
    """

    def word(port: int | None, proto: str) -> str:
        if not any(matches(entry, context, peer, port, proto) for entry, peer in about):
            return ""
        both = evaluate(context, *ends, port, proto)
        audited = any(reason.audits for reason in both)
        return "" if not all(r.passes for r in both) else AUDIT if audited else PASS

    runs: list[tuple[int, int, tuple[str, ...]]] = []
    for start, after in itertools.pairwise(cuts):
        words = tuple(word(start, proto) for proto in _PORTED)
        if runs and runs[-1][1:] == (start - 1, words):
            runs[-1] = runs[-1][0], after - 1, words
        else:
            runs.append((start, after - 1, words))
    ping = word(None, "icmp")
    if [(low, high, {*words}) for low, high, words in runs] == [(1, 65_535, {ping})] and ping:
        yield "*", ping
        return
    if ping:
        yield "icmp", ping
    for low, high, words in runs:
        protos = [""] if len({*words}) == 1 else list(_PORTED)
        for proto, verdict_ in zip(protos, words, strict=False):
            if verdict_:
                yield _range_text(low, high, proto), verdict_


def _entry_text(entry: Entry) -> str:
    return _range_text(entry.first, entry.last, entry.proto)


def _range_text(first: int, last: int, proto: str) -> str:
    if (first, last) == _ALL:
        return proto or "*"
    return f":{span(first, last - first + 1)}{f'/{proto}' if proto else ''}"


def _is_inside(context: PolicyContext, prefix: str) -> bool:
    net = ipaddress.ip_network(prefix)
    return any(
        str(net.version) == str(subnet.family) and net.subnet_of(ipaddress.ip_network(subnet.cidr))  # type: ignore[arg-type]
        for network in context.networks.values()
        for subnet in network.subnets
    )


def _ports_text(ports: Iterable[tuple[int, str]]) -> str:
    texts = [f":{port}{'' if proto == 'tcp' else f'/{proto}'}" for port, proto in sorted(ports)]
    more = len(texts) - _MOST_PORTS
    return ", ".join(texts[:_MOST_PORTS]) + (f", {more} more" if more > 0 else "")


def _picture(
    context: PolicyContext,
    drawn: Iterable[str],
    edges: Iterable[Edge],
    with_addresses: bool,
    states: Mapping[str, str],
) -> Picture:
    ids = _ids(drawn)
    groups: dict[tuple[str, ...], list[Node]] = {}
    for name, own in ids.items():
        known = context.services[name]
        addresses = addresses_of(known) if with_addresses else ()
        sharers = sorted(set(known.names) - {name})
        ended = [(one, states[one]) for one in (name, *sharers) if one in states]
        if not known.active:
            ended = [(name, "inactive")]
        notes = (f"{one}: {state}" if sharers else state for one, state in ended)
        lines = (" + ".join((name, *sharers)), *addresses, *notes)
        on = tuple(endpoint.network for endpoint in known.endpoints)
        groups.setdefault(on, []).append((own, lines))
    others: dict[str, Node] = {}
    drawn_edges = []
    for source, target, label, verdict_ in sorted(set(edges)):
        for end in (source, target):
            if end not in ids and end not in others:
                key = "host" if end == HOST else f"o{len(others) + 1}"
                others[end] = f"x_{key}", (end,)
        from_, to = (ids.get(end) or others[end][0] for end in (source, target))
        drawn_edges.append((from_, to, label + _WORDS[verdict_], verdict_))

    def title(network: str) -> str:
        known = context.networks.get(network) if with_addresses else None
        return " ".join((network, *(subnet.cidr for subnet in known.subnets))) if known else network

    titled = [(" + ".join(map(title, on)) or "no network", groups[on]) for on in sorted(groups)]
    return titled, list(others.values()), drawn_edges


def _ids(names: Iterable[str]) -> dict[str, str]:
    ids: dict[str, str] = {}
    for name in sorted(names):
        plain = own = f"n_{re.sub('[^a-z0-9]', '_', name)}"
        while own in ids.values():
            own = f"{plain}_{len(ids)}"
        ids[name] = own
    return ids


# --- Mermaid and dot ------------------------------------------------------------------------------


def mermaid(picture: Picture) -> str:
    """Render the picture as a Mermaid 11 flowchart (https://mermaid.js.org)."""
    groups, others, edges = picture
    lines = ["flowchart LR"]
    for number, (title, nodes) in enumerate(groups):
        lines.append(f"  subgraph g{number}[{_quoted([title])}]")
        lines += [f"    {id_}[{_quoted(text)}]" for id_, text in nodes]
        lines.append("  end")
    lines += [f"  {id_}([{_quoted(text)}])" for id_, text in others]
    for source, target, label, verdict_ in edges:
        lines.append(f"  {source} {_ARROWS[verdict_].format(_quoted([label]))} {target}")
    for verdict_, colour in _COLOURS.items():
        links = [str(i) for i, edge in enumerate(edges) if edge[-1] == verdict_]
        if links:
            lines.append(f"  linkStyle {','.join(links)} stroke:{colour},color:{colour}")
    return "\n".join(lines) + "\n"


_PAPER = (
    ("#7a4bc4", "#f5f1fb"),
    ("#0f7f7a", "#ecf6f5"),
    ("#9a6a00", "#f8f3e8"),
    ("#b03a78", "#faeff5"),
    ("#2a62c8", "#edf2fb"),
    ("#4d7a1f", "#f1f6ec"),
)
"""The colours of networks, as on the map of `niso web`: of the frame, and of its area."""
_MARKS = {
    "healthy": 'color="#17804a"',
    "unhealthy": 'color="#c2271f", fontcolor="#c2271f", penwidth=2',
    "starting": 'color="#8a5a00"',
    "": 'color="#8a95a3"',
}


def dot(picture: Picture, marks: Mapping[str, tuple[str, str]], first: int = 0) -> str:
    """Render the picture in Graphviz's language (dot(1)).

    ``marks`` maps services to (health, note about the policy); both may be "". ``first`` is the
    number of the first group, which determines its colour.
    """
    groups, others, edges = picture
    lines = [
        "digraph niso {",
        "  rankdir=LR;",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    for number, (title, nodes) in enumerate(groups, first):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f'    label={_quoted_for_dot([title])}; fontname="sans-serif";')
        frame, area = _PAPER[number % len(_PAPER)]
        lines.append(f'    style="rounded,filled"; color="{frame}"; fillcolor="{area}";')
        lines.append(f'    fontcolor="{frame}";')
        for id_, words in nodes:
            health, policy = marks.get(words[0].partition(" + ")[0], ("", ""))
            shown = (*words, *filter(None, ("" if health == "healthy" else health, policy)))
            lines.append(f"    {id_} [label={_quoted_for_dot(shown)}, {_MARKS[health]}];")
        lines.append("  }")
    lines += [f"  {id_} [label={_quoted_for_dot(text)}, shape=oval];" for id_, text in others]
    for source, target, label, verdict_ in edges:
        text = f"label={_quoted_for_dot([label])}"
        if colour := _COLOURS.get(verdict_):
            text += f', color="{colour}", fontcolor="{colour}", {_LINES[verdict_]}'
        lines.append(f"  {source} -> {target} [{text}];")
    return "\n".join((*lines, "}")) + "\n"


def _quoted(lines: Iterable[str], escape: str = "#{};", separator: str = "<br>") -> str:
    escaped = (
        "".join(c if _PLAIN.fullmatch(c) else escape.format(ord(c)) for c in line) for line in lines
    )
    return f'"{separator.join(escaped)}"'


def _quoted_for_dot(lines: Iterable[str]) -> str:
    return _quoted(lines, "&#{};", "\\n")


FORMATS = ("mermaid", "dot", "svg", "png")
_PATIENCE_S = 120
_MOST_ON_PAGE = 60


def graph(
    session: Session, format_: str, stack: str | None, declared: bool, since: float | None
) -> bytes:
    """Draw services and their flows (see `Host.graph`). ``since`` is a Unix time."""
    if format_ not in FORMATS:
        raise UsageError(f"{format_!r} is not a format", ", ".join(FORMATS), "--format")
    if declared and since is not None:
        raise UsageError("and --declared exclude each other", "omit one of them", "--since")
    if declared and stack is not None:
        picture = of_policies(declared_context(stack_members.load(stack)), None, False)
    else:
        picture = _picture_of_host(session, stack, declared, since)
    if format_ == "mermaid":
        return mermaid(picture).encode()
    marks = {} if declared and stack is not None else _marks(session)
    if format_ == "dot":
        return dot(picture, marks).encode()
    return _drawn([dot(page, marks, i).encode() for i, page in enumerate(pages(picture))], format_)


def pages(picture: Picture) -> list[Picture]:
    """Split a picture of many services into a page for each group of networks.

    On each page, a service of another group is a node like any other address.
    """
    groups, others, edges = picture
    if sum(len(nodes) for _, nodes in groups) <= _MOST_ON_PAGE:
        return [picture]
    names = {id_: text for _, nodes in groups for id_, text in nodes} | dict(others)
    result: list[Picture] = []
    for title, nodes in groups:
        own = {id_ for id_, _ in nodes}
        drawn = [edge for edge in edges if not own.isdisjoint(edge[:2])]
        ends = sorted({end for edge in drawn for end in edge[:2]} - own)
        result.append(([(title, nodes)], [(end, names[end][:1]) for end in ends], drawn))
    return result


def _marks(session: Session) -> dict[str, tuple[str, str]]:
    """Return the remarks that `dot` adds to services: {service: (health, note about the policy)}.

    The health is "" if it is not known. The note is "" without a policy.
    """
    store = session.store()
    lines = services.service_lines(session, store)
    policied = {*store.policied()}

    def policy(line: services.ServiceLine) -> str:
        if line.service not in policied:
            return ""
        return "policy in audit" if line.audit_until else "policy"

    return {line.service: (line.health or "", policy(line)) for line in lines}


def _picture_of_host(
    session: Session, stack: str | None, declared: bool, since: float | None
) -> Picture:
    store, kernel = session.store(), session.kernel()
    only = None if stack is None else frozenset(stack_members.outlined(store, stack).after)
    seen: list[Flow] = []
    if declared:
        context = read_world(kernel, store)
    else:
        context, seen, _ = read(kernel, store, since)
    if only is not None:
        only &= frozenset(context.services)
    states = {
        line.service: line.status
        for line in services.service_lines(session, store)
        if line.status != "attached" and not runs(line.status)
    }
    if declared:
        return of_policies(context, only, True, states)
    return of_traffic(context, seen, only, states)


def _drawn(texts: list[bytes], format_: str) -> bytes:
    """Draw pages with Graphviz, next to each other. Raises Error."""
    if len(texts) == 1:
        return _ran(["dot", f"-T{format_}"], texts[0])
    placed = b"".join(_ran(["dot"], text) for text in texts)
    # gvpack(1) moves pages that are placed, and neato(1) draws them where they are
    packed = _ran(["gvpack", "-array_c", "-m", "40"], placed)
    return _ran(["neato", "-n2", f"-T{format_}"], packed)


def _ran(command: list[str], text: bytes) -> bytes:
    hint = "apt install graphviz, or --format mermaid"
    program = command[0]
    try:
        done = subprocess.run(  # found in the administrator's PATH
            command, input=text, capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except FileNotFoundError:
        raise Error(f"the program {program} of Graphviz is not installed", hint) from None
    except subprocess.TimeoutExpired:
        raise Error(
            f"{program} did not draw it within {_PATIENCE_S} s", "--format mermaid"
        ) from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise Error(f"{program}: {words or 'failed'}", hint)
    return done.stdout


# --- the services that a stack.toml declares ------------------------------------------------------

_POOL = "10.99.{}.0/24"


def declared_context(stack: Stack) -> PolicyContext:
    """Return the services, networks and policies of a stack as if it were active.

    A network without a declared subnet gets a made-up subnet, and services get made-up addresses,
    from which verdicts can be computed. The made-up addresses depend only on the stack's file.
    """
    used = {name for member in stack.members for name in member.loaded.spec.network.networks}
    networks = {}
    for number, name in enumerate(sorted({*stack.networks, *used})):
        wanted = stack.networks[name].subnets if name in stack.networks else ()
        cidrs = list(wanted) or [_POOL.format(number % 256)]
        subnets = tuple(
            SubnetRecord(net.version, str(net), str(net[1]))
            for net in sorted(map(ipaddress.ip_network, cidrs), key=lambda net: net.version)
        )
        networks[name] = NetworkRecord(name, names.bridge(name), 1500, subnets)
    services = {}
    for number, member in enumerate(sorted(stack.members, key=lambda member: member.name)):
        spec = member.loaded.spec
        endpoints = tuple(
            ServiceEndpoint(name, _addresses(networks[name], number, spec.network.statics(name)))
            for name in (spec.network.networks if spec.network.mode == "bridge" else ())
        )
        ports = tuple(published.port for published in spec.network.ports)
        services[spec.name] = KnownService(
            spec.name, spec.names, endpoints, spec.network.policy, ports
        )
    return PolicyContext(services, networks)


def _addresses(network: NetworkRecord, number: int, statics: tuple[str, ...]) -> tuple[str, ...]:
    result = []
    for subnet in network.subnets:
        net = ipaddress.ip_network(subnet.cidr)
        static = [address for address in statics if ipaddress.ip_address(address) in net]
        # the last addresses of the subnet, where static ones are rare
        result.append(static[0] if static else str(net[-2 - number % (net.num_addresses - 3)]))
    return tuple(result)
