"""Test properties of the policy engine on random networks, services, policies and packets."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import (
    SERVICES,
    TEXTS,
    Packet,
    packets,
    swapped,
    swapped_world,
    with_policy,
    worlds,
)
from samples import samples

from niso.manifest.policy import parse_entry
from niso.plan.records import Entry, Policy
from niso.plan.verdict import PolicyContext, Reason, Verdict, decide, matches

properties = settings(
    deadline=None,
    max_examples=samples(20, 2000),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
LISTS = {
    "allow_from": "network.policy.allow_from",
    "deny_from": "network.policy.deny_from",
    "egress_allow": "network.policy.egress.allow",
    "egress_deny": "network.policy.egress.deny",
}
NAMES = st.sampled_from(SERVICES)


def changed(world: PolicyContext, name: str, **lists: tuple[Entry, ...] | None) -> PolicyContext:
    return with_policy(world, name, world.services[name].policy._replace(**lists))


def entry(text: str, which: str, place: int = 99) -> Entry:
    return parse_entry(text, f"{LISTS[which]}[{place}]", which.startswith("egress"))


def concerned(verdict: Verdict) -> set[str]:
    return {verdict.source.service, verdict.destination.service}


def asked(world: PolicyContext, flows: Iterable[Packet]) -> list[Verdict]:
    return [decide(world, *packet) for packet in flows]


def drawn(data: st.DataObject) -> tuple[PolicyContext, list[Packet]]:
    world = data.draw(worlds())
    return world, data.draw(packets(world))


@properties
@given(st.data(), NAMES, st.sampled_from(["deny_from", "egress_deny"]), TEXTS, st.integers(0, 4))
def test_another_deny_opens_nothing(
    data: st.DataObject, name: str, which: str, text: str, place: int
) -> None:
    world, flows = drawn(data)
    before: tuple[Entry, ...] = getattr(world.services[name].policy, which)
    more = changed(world, name, **{which: (*before[:place], entry(text, which), *before[place:])})
    for was, now in zip(asked(world, flows), asked(more, flows), strict=True):
        assert was.passes or not now.passes


@properties
@given(
    st.data(), NAMES, st.sampled_from(["allow_from", "egress_allow"]), st.lists(TEXTS, max_size=4)
)
def test_allow_list_only_narrows(
    data: st.DataObject, name: str, which: str, texts: list[str]
) -> None:
    """Against none; and a shorter one against a longer."""
    world, flows = drawn(data)
    entries = tuple(entry(text, which, place) for place, text in enumerate(texts))
    free, more, fewer = (
        changed(world, name, **{which: each}) for each in (None, entries, entries[:-1])
    )
    for flow in flows:
        allowed, listed, shorter = (decide(one, *flow).passes for one in (free, more, fewer))
        assert allowed >= listed >= shorter


@properties
@given(st.data())
def test_policies_open_nothing_that_is_not_open_without_them(data: st.DataObject) -> None:
    world, flows = drawn(data)
    bare = world
    for name in SERVICES:
        bare = with_policy(bare, name, Policy())
    for one, without in zip(asked(world, flows), asked(bare, flows), strict=True):
        assert without.passes or not one.passes
        assert one.path == without.path
        assert (one.source, one.destination, one.port) == (
            without.source,
            without.destination,
            without.port,
        )
        assert one.passes is (one.path.passes and one.egress.passes and one.ingress.passes)
        assert one.dropped_by in (None, one.path, one.egress, one.ingress)


@properties
@given(st.data(), NAMES, NAMES)
def test_policy_of_a_service_changes_nothing_between_others(
    data: st.DataObject, name: str, model: str
) -> None:
    world, flows = drawn(data)
    other = with_policy(world, name, data.draw(worlds()).services[model].policy)
    for was, now in zip(asked(world, flows), asked(other, flows), strict=True):
        if name not in concerned(was):
            assert was == now
        if was.source.service != name:
            assert was.egress == now.egress
        if was.destination.service != name:
            assert was.ingress == now.ingress


@properties
@given(st.data(), NAMES)
def test_order_of_entries_changes_no_verdict(data: st.DataObject, name: str) -> None:
    world, flows = drawn(data)
    rules = world.services[name].policy
    mixed = {
        which: tuple(data.draw(st.permutations(getattr(rules, which) or ()))) for which in LISTS
    }
    lists = {
        which: None if getattr(rules, which) is None else entries
        for which, entries in mixed.items()
    }
    for was, now in zip(
        asked(world, flows), asked(changed(world, name, **lists), flows), strict=True
    ):
        assert (was.passes, was.egress.passes, was.ingress.passes) == (
            now.passes,
            now.egress.passes,
            now.ingress.passes,
        )


@properties
@given(st.data())
def test_both_families_are_alike(data: st.DataObject) -> None:
    world, flows = drawn(data)
    other = swapped_world(world)
    assert swapped_world(other) == world._replace(
        services={
            n: each._replace(policy=each.policy._replace(log=False))
            for n, each in world.services.items()
        }
    )
    for flow in flows:
        one = decide(world, *flow)
        image = decide(
            other, swapped(flow.source), swapped(flow.destination), flow.port, flow.proto
        )
        assert one.passes is image.passes
        assert (one.path.passes, one.egress.passes, one.ingress.passes) == (
            *(image.path.passes, image.egress.passes, image.ingress.passes),
        )
        for mine, its in ((one.ingress, image.ingress), (one.egress, image.egress)):
            assert mine[2:] == its[2:]
        assert image.destination == (one.destination.service, swapped(one.destination.address))
        assert image.port == one.port


@properties
@given(st.data())
def test_entries_of_one_family_say_nothing_in_the_other(data: st.DataObject) -> None:
    world, flows = drawn(data)
    for family, colon in ((4, True), (6, False)):
        without = world
        for name, each in world.services.items():
            lists = {
                which: None
                if getattr(each.policy, which) is None
                else tuple(
                    e
                    for e in getattr(each.policy, which)
                    if e.peer.kind != "prefix" or (":" in e.peer.name) != colon
                )
                for which in LISTS
            }
            without = changed(without, name, **lists)
        for each_flow in flows:
            if {":" in each_flow.source, ":" in each_flow.destination} == {family == 6}:
                one, other = decide(world, *each_flow), decide(without, *each_flow)
                # an empty list and one that does not name it say it in other words
                assert (one.passes, one.ingress[2:], one.egress[2:]) == (
                    other.passes,
                    other.ingress[2:],
                    other.egress[2:],
                )


# --- reasons ---------------------------------------------------------------------------------------------------------


def names(entry: Entry, world: PolicyContext, address: str, port: int | None, proto: str) -> bool:
    """What an entry means, said in another way: as the set of all that it names."""
    number = ipaddress.ip_address(address)
    if entry.peer.kind == "service":
        every = {
            a
            for each in world.services.values()
            if entry.peer.name in each.names
            for e in each.endpoints
            for a in e.addresses
        }
        peer = address in every
    elif entry.peer.kind == "network":
        subnets = [
            s
            for each in world.networks.values()
            if each.name == entry.peer.name
            for s in each.subnets
        ]
        spans = [ipaddress.ip_network(s.cidr) for s in subnets]
        peer = any(
            span.version == number.version and span[0] <= number <= span[-1]  # type: ignore[operator]
            for span in spans
        ) and address not in {s.gateway for s in subnets}
    elif entry.peer.kind == "machines":
        inside = [ipaddress.ip_network(s.cidr) for n in world.networks.values() for s in n.subnets]
        peer = address not in world.host and not any(number in span for span in inside)
        peer = peer and not number.is_loopback
    elif entry.peer.kind == "outside":
        peer = address in world.outside.get(entry.peer.name, ())
    else:
        span = ipaddress.ip_network(entry.peer.name)
        peer = span.version == number.version and int(span[0]) <= int(number) <= int(span[-1])
    named = entry.text.rpartition("/")[2]
    protos = {named} if named in ("tcp", "udp", "sctp", "icmp") else None
    if (entry.first, entry.last) != (0, 65535):
        protos = protos or {"tcp", "udp", "sctp"}
        peer = peer and port in range(entry.first, entry.last + 1)
    return peer and (protos is None or proto in protos)


@properties
@given(st.data(), TEXTS)
def test_matches_is_what_the_entry_means(data: st.DataObject, text: str) -> None:
    world, flows = drawn(data)
    one = entry(text, "allow_from")
    for flow in flows:
        for address in (flow.source, flow.destination):
            assert matches(one, world, address, flow.port, flow.proto) is names(
                one, world, address, flow.port, flow.proto
            )


def expected(
    world: PolicyContext,
    service: str,
    peer: str,
    verdict: Verdict,
    proto: str,
    which: tuple[str, str],
) -> tuple[bool, str]:
    """(passes, key) that one direction of a policy must give: the first deny that names it, else the first allow."""
    rules = world.services[service].policy
    deny, allow = getattr(rules, which[1]), getattr(rules, which[0])
    for passes, entries in ((False, deny), (True, allow or ())):
        for each in entries:
            if names(each, world, peer, verdict.port, proto):
                return passes, each.key
    return (True, "") if allow is None else (False, LISTS[which[0]])


@properties
@given(st.data())
def test_entry_that_a_reason_names_is_the_one_and_without_it_the_next_one_decides(
    data: st.DataObject,
) -> None:
    world, flows = drawn(data)
    for flow in flows:
        verdict = decide(world, *flow)
        for reason, side in (
            (verdict.ingress, verdict.destination),
            (verdict.egress, verdict.source),
        ):
            if side.service and (reason.key or "has no" in reason.message):
                ingress = reason is verdict.ingress
                which = ("allow_from", "deny_from") if ingress else ("egress_allow", "egress_deny")
                peer = verdict.source.address if ingress else verdict.destination.address
                assert (reason.passes, reason.key) == expected(
                    world, side.service, peer, verdict, flow.proto, which
                )
                _without(world, flow, reason, ingress, which, peer)


def _without(
    world: PolicyContext,
    flow: Packet,
    reason: Reason,
    ingress: bool,
    which: tuple[str, str],
    peer: str,
) -> None:
    """Take away the entries that reasons name, one by one, until no entry decides."""
    while reason.text:
        rules = world.services[reason.service].policy
        everything = {
            name: tuple(each for each in getattr(rules, name) or () if each.key != reason.key)
            for name in which
        }
        if getattr(rules, which[0]) is None:
            del everything[which[0]]
        world = changed(world, reason.service, **everything)
        verdict = decide(world, *flow)
        after = verdict.ingress if ingress else verdict.egress
        service = reason.service
        assert (after.passes, after.key) == expected(
            world, service, peer, verdict, flow.proto, which
        )
        if not after.key:
            assert "has no" in after.message or "not listed in" in after.message
        reason = after


@properties
@given(st.data())
def test_reason_says_in_words_what_it_says_in_its_fields(data: st.DataObject) -> None:
    world, flows = drawn(data)
    for verdict in asked(world, flows):
        assert not verdict.path.key
        for reason in (verdict.ingress, verdict.egress):
            assert reason.message
            if reason.text:
                word = "allowed" if reason.passes else "denied"
                assert (
                    reason.message
                    == f'{word} by {reason.key} of {reason.service} ("{reason.text}")'
                )
            elif reason.key:
                assert f"{reason.key} of {reason.service}" in reason.message
                assert not reason.passes
            else:
                assert reason.passes


# --- what no policy and no world changes -----------------------------------------------------------------------------


def is_host(world: PolicyContext, address: str) -> bool:
    return address in world.host or any(
        address == s.gateway for each in world.networks.values() for s in each.subnets
    )


@properties
@given(st.data())
def test_host_always_connects_in_and_a_service_always_reaches_itself(data: st.DataObject) -> None:
    world, flows = drawn(data)
    for each, verdict in zip(flows, asked(world, flows), strict=True):
        if is_host(world, each.source):
            assert verdict.ingress.passes
            assert verdict.egress.passes
            to = verdict.destination.service
            assert not to or verdict.passes is world.services[to].active
        same = verdict.source.service and verdict.source.service == verdict.destination.service
        if same and (":" in each.source) == (":" in each.destination):
            assert verdict.passes is world.services[verdict.source.service].active


@properties
@given(st.data())
def test_networks_are_apart_but_for_published_ports(data: st.DataObject) -> None:
    world, flows = drawn(data)
    for each, verdict in zip(flows, asked(world, flows), strict=True):
        source, destination = verdict.source.service, verdict.destination.service
        if (
            not verdict.passes
            or not destination
            or is_host(world, each.source)
            or source == destination
        ):
            continue
        target = world.services[destination]
        inside = next(
            e.network for e in target.endpoints if verdict.destination.address in e.addresses
        )
        published = is_host(world, each.destination)
        if source:
            own = next(
                e.network for e in world.services[source].endpoints if each.source in e.addresses
            )
            assert own == inside or (published and not world.networks[own].internal)
        else:
            assert published
        if published:
            assert any(port.host_port <= (each.port or 0) <= port.last for port in target.ports)


@properties
@given(st.data())
def test_internal_network_leads_to_the_host_and_itself_alone(data: st.DataObject) -> None:
    world, flows = drawn(data)
    for each, verdict in zip(flows, asked(world, flows), strict=True):
        if verdict.passes and verdict.source.service:
            known = world.services[verdict.source.service]
            own = next(e.network for e in known.endpoints if each.source in e.addresses)
            address = ipaddress.ip_address(verdict.destination.address)
            if world.networks[own].internal and verdict.destination.service != known.name:
                on = any(
                    address in ipaddress.ip_network(s.cidr) for s in world.networks[own].subnets
                )
                assert on or is_host(world, verdict.destination.address)
