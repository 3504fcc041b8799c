"""Test that the elements of policies agree with the engine, and decide every packet once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import SERVICES, Packet, known, network, packets, policy, swapped, world, worlds
from samples import samples

from niso.change.attach import prefixes
from niso.kernel import policy_rules, ruleset
from niso.kernel.nft_elements import Element, ports_of
from niso.plan import policy_elements
from niso.plan.records import Audit, Entry, Member, Peer, Policed, Policy
from niso.plan.verdict import KnownService, PolicyContext, evaluate, is_host, network_of

properties = settings(
    deadline=None,
    max_examples=samples(25, 2000),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)


@contextmanager
def thrift(data: st.DataObject) -> Iterator[None]:
    """Lets small policies take the forms that large ones take to need fewer elements."""
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans(), "thrift"):
            patch.setattr(policy_elements, "_WORTH", 0)
        if data.draw(st.booleans(), "classes of single addresses"):
            patch.setattr(policy_elements, "_MOST_PAIRS", 0)
        yield


def addresses(known: KnownService) -> tuple[str, ...]:
    return tuple(address for endpoint in known.endpoints for address in endpoint.addresses)


def members(world: PolicyContext) -> list[Member]:
    """What every name stands for."""
    found = [
        Member("service", name, addresses(each))
        for each in world.services.values()
        for name in each.names
    ]
    found += [Member("outside", name, each) for name, each in world.outside.items()]
    for name, each in world.networks.items():
        gateways = tuple(subnet.gateway for subnet in each.subnets)
        found.append(
            Member("network", name, tuple(subnet.cidr for subnet in each.subnets), gateways)
        )
    return found


def policed(known: KnownService, only: frozenset[str] | None = None) -> Policed:
    return Policed(known.name, addresses(known), known.policy, only)


def of(world: PolicyContext, name: str, only: frozenset[str] | None = None) -> list[Element]:
    return policy_elements.elements(policed(world.services[name], only), members(world))


def look_up(
    elements: list[Element],
    ingress: bool,
    own: str,
    packet: tuple[str, str, int],
    outside: bool = False,
) -> list[Element]:
    """What a chain's look-ups find for (peer, protocol, port), in their order: our own reading of the maps."""
    peer, proto, port = packet
    family = 6 if ":" in own else 4
    found = []
    its_class = 0
    for part, (fields, _) in policy_rules.POLICY_PARTS.items():
        if (part == "outer" and not outside) or (part == "class" and its_class):
            continue
        for element in elements:
            if element.container != f"{'in' if ingress else 'out'}{family}_{part}":
                continue
            key = dict(zip(fields.split(" . "), element.fields, strict=True))
            low, high = ports_of(key.get("inet_service", port))
            if (
                key["{own}"] == own
                and ("{peer}" not in key or within(peer, key["{peer}"]))
                and key.get("classid", its_class) == its_class
                and key.get("inet_proto", proto) == proto
                and low <= port <= high
            ):
                if part in ("class", "outer"):
                    assert not its_class
                    (its_class,) = element.value
                else:
                    found.append(element)
    return found


def within(address: str, key: str | tuple[int, int]) -> bool:
    if isinstance(key, str):
        return address == key
    return key[0] <= int(ipaddress.ip_address(address)) <= key[1]


@properties
@given(st.data())
def test_elements_say_what_the_engine_says(data: st.DataObject) -> None:
    drawn = audited(data, data.draw(worlds()))
    with thrift(data):
        all_elements = {name: of(drawn, name) for name in SERVICES if name in drawn.services}
        for packet in data.draw(packets(drawn)):
            agree(drawn, all_elements, packet)


def audited(data: st.DataObject, world: PolicyContext) -> PolicyContext:
    """The world with the policies of some services in audit."""
    chosen = data.draw(st.sets(st.sampled_from(sorted(world.services))))
    return world._replace(
        services={
            name: each._replace(
                policy=each.policy._replace(audit=Audit("", 1, 2)), audits=name in lasting
            )
            if name in chosen
            else each
            for lasting in [data.draw(st.sets(st.sampled_from(sorted(world.services))))]
            for name, each in world.services.items()
        }
    )


def agree(world: PolicyContext, elements: dict[str, list[Element]], packet: Packet) -> None:
    source, destination, port, proto = packet
    if (":" in source) != (":" in destination) or source == destination:
        return
    verdicts = evaluate(world, source, destination, port, proto)
    holders = [
        next((each for each in world.services.values() if address in addresses(each)), None)
        for address in (source, destination)
    ]
    if holders[0] is holders[1]:
        return
    for holder, ingress, own, peer, reason in (
        (holders[0], False, source, destination, verdicts[0]),
        (holders[1], True, destination, source, verdicts[1]),
    ):
        if holder is None or (ingress and "host" in reason.message):
            continue
        word = {"icmp": "ipv6-icmp" if ":" in own else "icmp"}.get(proto, proto)
        gate = Element(
            ruleset.INET,
            f"{'in' if ingress else 'e'}gress{6 if ':' in own else 4}",
            (own,),
            (),
            holder.name,
        )
        if gate not in elements[holder.name]:
            assert reason.passes, (packet, reason)
            continue
        outside = not is_host(world, peer) and network_of(world, peer) is None
        asked = (peer, word, port or 0)
        first = look_up(elements[holder.name], ingress, own, asked, outside)[0]
        assert (first.value == ("return",)) is (reason.passes and not reason.audits), packet
        # what denies leads to the set of audits in audit alone, whether it has ended or not
        if first.value != ("return",):
            in_audit = holder.policy.audit is not None
            assert (first.value in policy_rules.VERDICTS) is in_audit, (packet, first)
            assert reason.audits is holder.audits
        ends = {element.fields[0] for element in elements[holder.name] if element.ends}
        assert ends == (set(addresses(holder)) if holder.policy.audit else set())
        assert first.comment == f"{holder.name} {reason.key}".rstrip()
        found = policy_elements.looked_up(
            policed(holder), members(world), ingress, own, peer, proto, port, outside
        )
        assert found[-1] == first


@properties
@given(st.data())
def test_no_two_elements_of_a_part_answer_for_the_same_packet(data: st.DataObject) -> None:
    drawn = data.draw(worlds())
    for name in SERVICES:
        if name not in drawn.services:
            continue
        with thrift(data):
            found = of(drawn, name)
        assert len({each.key() for each in found}) == len(found)
        for container in {each.container for each in found}:
            boxes = [box(each) for each in found if each.container == container]
            for i, one in enumerate(boxes):
                for other in boxes[:i]:
                    assert any(
                        a[1] < b[0] or b[1] < a[0] for a, b in zip(one, other, strict=True)
                    ), (one, other)


def box(element: Element) -> list[tuple[int, int]]:
    """The ranges of an element's fields."""
    ranges = []
    for field in element.fields:
        if field in ("tcp", "udp", "sctp", "icmp", "ipv6-icmp"):
            number = ("tcp", "udp", "sctp", "icmp", "ipv6-icmp").index(field)
            ranges.append((number, number))
        elif isinstance(field, str):
            ranges.append((int(ipaddress.ip_address(field)),) * 2)
        else:
            ranges.append(ports_of(field))
    return ranges


@properties
@given(st.data(), st.sampled_from(SERVICES))
def test_peer_that_comes_or_goes_changes_its_own_elements_alone(
    data: st.DataObject, gone: str
) -> None:
    """And those are what the scope of that change renders."""
    drawn = data.draw(worlds())
    if gone not in drawn.services:
        return
    without = drawn._replace(services={n: each for n, each in drawn.services.items() if n != gone})
    moved = frozenset(addresses(drawn.services[gone]))
    for name in without.services:
        with thrift(data):
            before, after = set(of(without, name)), set(of(drawn, name))
            there, here = without.services[name], drawn.services[name]
            some_before = set(policy_elements.elements(policed(there, moved), members(without)))
            some_after = set(policy_elements.elements(policed(here, moved), members(drawn)))
        assert some_before <= before and some_after <= after
        assert after - before == some_after - some_before
        assert before - after == some_before - some_after


def test_overlaps_are_settled_by_the_narrowest_that_is_named() -> None:
    policy_ = policy(
        ["api:80", "10.99.0.0/16:80-90/tcp", "0.0.0.0/0:443/tcp"], ["api:85", "10.99.1.0/24:82"]
    )
    about = world(
        [known("db", {"net": ["10.99.1.2"]}, policy_), known("api", {"net": ["10.99.1.3"]})],
        [network("net", "10.99.1.0/24")],
        ["192.0.2.1"],
    )
    elements = of(about, "db")

    def said(peer: str, port: int) -> tuple[str, str]:
        first = look_up(elements, True, "10.99.1.2", (peer, "tcp", port))[0]
        return first.container, first.value_text

    assert said("10.99.1.3", 80) == ("in4_port", "return")
    assert said("10.99.1.3", 85) == ("in4_port", "goto refuse")
    assert said("10.99.1.3", 82) == ("in4_port", "goto refuse")
    assert said("10.99.1.3", 443) == ("in4_port", "return")
    assert said("10.99.1.9", 82) == ("in4_class_ports", "goto refuse")
    assert said("10.99.2.9", 82) == ("in4_class_ports", "return")
    assert said("10.99.2.9", 443) == ("in4_class_ports", "return")
    assert said("192.0.2.7", 443) == ("in4_any_port", "return")
    assert said("192.0.2.7", 80) == ("in4_rest", "goto refuse")


MANY = st.tuples(
    st.sampled_from(["tcp", "udp", "icmp", ""]),
    st.sampled_from([(0, 65535), (0, 65535), (80, 80), (80, 85), (83, 90), (81, 81), (60, 200)]),
    st.lists(st.tuples(st.integers(0, 15), st.integers(27, 32)), min_size=1, max_size=4),
    st.booleans(),
)


@properties
@given(st.data(), st.lists(MANY, min_size=3, max_size=25), st.booleans())
def test_many_overlapping_prefixes_decide_as_the_engine_says(
    data: st.DataObject,
    drawn: list[tuple[str, tuple[int, int], list[tuple[int, int]], bool]],
    six: bool,
) -> None:
    """Of one peer each, or of several: the blocks of a rule of Kubernetes."""
    lists: dict[bool, list[Entry]] = {False: [], True: []}
    for proto, ports, blocks, allows in drawn:
        cidrs = [str(ipaddress.ip_network(f"192.0.2.{4 * n}/{m}", strict=False)) for n, m in blocks]
        cidrs = [swapped(cidr) for cidr in cidrs] if six else cidrs
        peer = prefixes(cidrs)
        span = (0, 65535) if proto == "icmp" else ports
        key = f"{'allow' if allows else 'deny'}[{len(lists[allows])}]"
        lists[allows].append(Entry(key, key, peer, *span, proto))
    everybody = Peer("prefix", "::/0" if six else "0.0.0.0/0")
    for allows in data.draw(st.lists(st.booleans(), max_size=2)):
        at = data.draw(st.integers(0, len(lists[allows])))
        key = f"{'allow' if allows else 'deny'} everybody {len(lists[allows])}"
        lists[allows].insert(at, Entry(key, key, everybody, 82, 84, "tcp"))
    own = "fd00::2" if six else "10.99.1.2"
    about = world(
        [known("db", {"net": [own]}, Policy(tuple(lists[True]), tuple(lists[False])))],
        [network("net", "fd00::/64" if six else "10.99.1.0/24")],
        ["198.51.100.1"],
    )
    with thrift(data):
        elements = {"db": of(about, "db")}
        for number in data.draw(st.lists(st.integers(0, 63), min_size=4, max_size=12)):
            peer_ = swapped(f"192.0.2.{number}") if six else f"192.0.2.{number}"
            for port, proto in (
                (80, "tcp"),
                (82, "tcp"),
                (81, "udp"),
                (None, "icmp"),
                (None, "gre"),
            ):
                agree(about, elements, Packet(peer_, own, port, proto))


@pytest.mark.parametrize("length", [24, 32])
@pytest.mark.parametrize(
    ("first", "then"), [("deny", "allow"), ("allow", "deny"), ("allow", "allow")]
)
@pytest.mark.parametrize("swaps", [False, True])
def test_prefixes_and_ports_for_everybody_are_not_multiplied(
    length: int, first: str, then: str, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever are denied, and whichever come first: each has a counter of its own."""
    lists: dict[str, list[str]] = {"allow": [], "deny": []}
    parts = [
        (first, [f"10.{n >> 8}.{n & 255}.0/{length}" for n in range(0, 600, 2)]),
        (then, [f"0.0.0.0/0:{100 + 2 * n}" for n in range(66)]),
    ]
    for which, texts in reversed(parts) if swaps else parts:
        lists[which] += texts
    about = world(
        [known("db", {"net": ["10.99.1.2"]}, policy(lists["allow"], lists["deny"]))],
        [network("net", "10.99.1.0/24")],
        ["192.0.2.1"],
    )
    elements = {"db": of(about, "db")}
    assert len(elements["db"]) < 2 * 300 + 3 * 66 + 20
    monkeypatch.setattr(policy_elements, "elements", lambda *_: elements["db"])  # computed once
    for source in ("10.0.0.0", "10.2.86.0", "10.2.87.0", "198.51.100.7"):
        for port in (99, 100, 101, 230, 231):
            agree(about, elements, Packet(source, "10.99.1.2", port, "tcp"))
