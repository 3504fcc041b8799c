"""Test what a change of policies would mean for the flows that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_world import World as Fakes
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import HOST, OUTSIDE, known, network, packets, policy, world, worlds
from samples import samples

from niso.change import activate, targets
from niso.kernel.flow_memory import Recorded
from niso.look import flows, policies
from niso.look.policies import PolicyEffect, effects
from niso.plan import verdict
from niso.plan.records import Policy, PortMapping
from niso.plan.verdict import PolicyContext
from niso.reconcile.live_world import read_world

BACK = network("back", "10.99.1.0/24")
DB, API, WEB = "10.99.1.2", "10.99.1.3", "10.99.1.4"
PUBLISHED = PortMapping("", 8080, 80, "tcp")


def there(rules: Policy, *ports: PortMapping, api: str = API) -> PolicyContext:
    db = known("db", {"back": [DB]}, rules, *ports)
    return world(
        [db, *(known(n, {"back": [a]}) for n, a in (("api", api), ("web", WEB)))], [BACK], [HOST]
    )


def row(source: str, to: str = DB, port: int = 80) -> Recorded:
    return Recorded(source, to, "tcp", port, 1, 60, 5.0)


def shown(
    before: PolicyContext,
    after: PolicyContext,
    *passed: Recorded,
    refused: tuple[Recorded, ...] = (),
) -> list[tuple[str, str, str]]:
    joined = flows.joined(before, flows.Memory(passed, refused, {}))
    found: list[PolicyEffect] = effects(before, after, joined, frozenset(["db"]))
    return [(e.effect, e.from_.name, e.key or e.words or "") for e in found]


def test_cut_new_and_pass() -> None:
    before, after = (
        there(policy(["api", "0.0.0.0/0:80"]), PUBLISHED),
        there(policy(["web"]), PUBLISHED),
    )
    key = "network.policy.allow_from"
    assert shown(before, after, row(API), row(OUTSIDE), row(WEB)) == [
        ("cut", OUTSIDE, key),
        ("cut", "api", key),
        ("pass", "web", f"{key}[0]"),
    ]
    assert shown(after, before, row(WEB), refused=(row(API), row(WEB, port=81))) == [
        ("new", "api", f"{key}[0]"),
        ("pass", "web", f"{key}[1]"),
    ]
    # what is denied already is not cut once more
    assert shown(after, after, row(API)) == []


def test_address_that_moves_and_port_that_goes() -> None:
    rules = policy(["api", "0.0.0.0/0:80"])
    before = there(rules, PUBLISHED)
    assert shown(before, there(rules, PUBLISHED, api="10.99.1.9"), row(API)) == [
        ("pass", "api", "network.policy.allow_from[0]")
    ]
    assert shown(before, there(rules), row(OUTSIDE)) == [
        ("cut", OUTSIDE, "port 8080 is no longer published")
    ]
    gone = before._replace(services={"db": before.services["db"]})
    assert shown(before, gone, row(API))[0][0] == "cut"


def test_path_of_services_that_move() -> None:
    edge, inner = network("edge", "10.99.2.0/24"), network("inner", "10.99.3.0/24", internal=True)
    rules = policy(["api:80", "0.0.0.0/0:80"])

    def moved(
        db: dict[str, list[str]], api: dict[str, list[str]], *ports: PortMapping
    ) -> PolicyContext:
        services = [known("db", db, rules, *ports), known("api", api)]
        return world(services, [BACK, edge, inner], [HOST])

    both = {"back": [API], "edge": ["10.99.2.3"]}
    before = moved({"back": [DB]}, both, PUBLISHED)
    allowed = "network.policy.allow_from[0]"
    # to another network that they share, and to one that they do not
    there = moved({"edge": ["10.99.2.2"]}, both)
    assert shown(before, there, row(API)) == [("pass", "api", allowed)]
    apart = moved({"inner": ["10.99.3.2"]}, both, PUBLISHED)
    assert shown(before, apart, row(API)) == [("cut", "api", "db has no address for it any more")]
    # a published port leads to the first network, whichever it is
    assert [e[:2] for e in shown(before, apart, row(OUTSIDE))] == [("pass", OUTSIDE)]
    # services of two networks talk by published ports
    crossing = moved({"back": [DB]}, {"edge": ["10.99.2.3"]}, PUBLISHED)
    by_port = row("10.99.2.3")
    assert shown(crossing, crossing, by_port) == [("pass", "api", allowed)]
    closed = moved({"back": [DB]}, {"edge": ["10.99.2.3"]})
    assert shown(crossing, closed, by_port) == [("cut", "api", "port 80 is no longer published")]
    # out of an internal network
    outwards = Recorded(DB, OUTSIDE, "tcp", 443, 1, 60, 1.0)
    assert shown(before, there, outwards) == [("pass", "db", "")]
    assert shown(before, apart, outwards) == [
        ("cut", "db", "network inner is internal: it reaches only the host and its own services")
    ]


def test_what_an_audit_would_cut() -> None:
    """It is no cut, and neither is what an audit lets pass already."""
    enforced = there(policy(["web"]))
    audited = enforced._replace(
        services={
            **enforced.services,
            "db": enforced.services["db"]._replace(audits=True),
        }
    )
    key = "network.policy.allow_from"
    before = there(policy())
    assert shown(before, audited, row(API), row(WEB)) == [
        ("audit", "api", key),
        ("pass", "web", f"{key}[0]"),
    ]
    assert shown(audited, enforced, row(API)) == [("cut", "api", key)]
    assert shown(enforced, audited, refused=(row(API),)) == [("new", "api", key)]
    (seen,) = flows.joined(audited, flows.Memory((row(API),), (), {}))
    assert (seen.verdict, seen.agrees) == ("audit", True)
    # what was audited, and would be denied now
    (seen,) = flows.joined(enforced, flows.Memory((row(API),), (), {}, 0, (row(API),)))
    assert (seen.verdict, seen.agrees) == ("audit", False)
    (seen,) = flows.joined(before, flows.Memory((row(API),), (), {}, 0, (row(API),)))
    assert (seen.verdict, seen.agrees) == ("pass", True)


def test_past_address_of_an_outside_name_is_not_cut() -> None:
    """DNS answers with others meanwhile; an activation ends none of those connections."""
    db = known("db", {"back": [DB]}, policy(None, (), ["out.example:443"]))
    now = world([db], [BACK], [HOST])
    on = now._replace(
        outside_ever={name: (*has, "198.51.100.9") for name, has in now.outside.items()}
    )
    past = Recorded(DB, "198.51.100.9", "tcp", 443, 1, 60, 1.0)
    allowed = "network.policy.egress.allow[0]"
    assert shown(on, on, past) == [("pass", "db", allowed)]
    # one that was denied passes only by the addresses of now
    closed = on._replace(services={"db": db._replace(policy=policy(None, (), []))})
    at = (past, past._replace(destination=OUTSIDE))
    assert shown(closed, on, refused=at) == [("new", "db", allowed)]


def test_nothing_is_new_where_no_path_is_open() -> None:
    """A policy refuses before the path is looked at, so this is remembered as refused."""
    edge, inner = network("edge", "10.99.2.0/24"), network("inner", "10.99.3.0/24", internal=True)

    def made(rules: Policy, *ports: PortMapping, out: Policy | None = None) -> PolicyContext:
        services = [known("db", {"back": [DB]}, rules, *ports)]
        services += [known("api", {"edge": ["10.99.2.3"]})]
        services += [known("in", {"inner": ["10.99.3.3"]}, out or policy())]
        return world(services, [BACK, edge, inner], [HOST])

    refused = (row("10.99.2.3"), row("10.99.3.3"), row(OUTSIDE))
    shut, wide = policy([]), policy(["api", "in", "0.0.0.0/0"])
    found = shown(made(shut, PUBLISHED), made(wide, PUBLISHED), refused=refused)
    assert [each[:2] for each in found] == [("new", OUTSIDE), ("new", "api")]
    assert shown(made(shut, PUBLISHED), made(wide), refused=refused) == []
    before, after = made(wide, out=policy(None, (), [])), made(wide)
    there = effects(
        before,
        after,
        flows.joined(before, flows.Memory((), (row("10.99.3.3", OUTSIDE),), {})),
        frozenset(["in"]),
    )
    assert there == []


def test_host_that_came_by_a_port_that_goes() -> None:
    rules = policy()
    sources = ("127.0.0.1", HOST, "10.99.1.1")
    found = shown(there(rules, PUBLISHED), there(rules), *map(row, sources))
    # by the gateway's address, programs of the host reach the service itself
    assert [each[0] for each in found] == ["cut", "cut", "pass"]
    assert [each[0] for each in shown(there(rules), there(rules), *map(row, sources))] == [
        "pass"
    ] * 3


@settings(max_examples=samples(25, 1000), deadline=None)
@given(worlds(), st.data())
def test_effect_is_the_verdict_after_the_change(drawn: PolicyContext, data: st.DataObject) -> None:
    """Of a change of policies alone, which the engine judges as the kernel does (test_policy_packets)."""
    drawn, other = drawn._replace(outside_ever=drawn.outside), data.draw(worlds())
    after = drawn._replace(
        services={n: k._replace(policy=other.services[n].policy) for n, k in drawn.services.items()}
    )
    passed: dict[flows.Key, set[bool]] = {}  # what was sent, as it is remembered
    refused: dict[flows.Key, set[bool]] = {}
    for sent in data.draw(packets(drawn, 24)):
        was = verdict.decide(drawn, *sent)
        key = sent.source, was.destination.address, sent.proto, was.port or 0
        policies = was.egress.passes and was.ingress.passes
        inside = was.source.service or verdict.is_host(drawn, sent.source)
        if sent.proto not in verdict.PORTED or was.source.service == was.destination.service:
            continue
        if not (inside or was.path.passes):
            continue  # dropped before anything is remembered
        if was.passes or not policies:
            now = verdict.decide(after, *sent).passes
            (passed if was.passes else refused).setdefault(key, set()).add(now)
    rows = [tuple(Recorded(*key, 1, 60, 1.0) for key in some) for some in (passed, refused)]
    joined = flows.joined(drawn, flows.Memory(*rows, {}))
    found = {
        ((e.from_.address, e.to.address, e.proto, e.port), e.effect != "new"): e.effect
        for e in effects(drawn, after, joined, frozenset(drawn.services))
    }
    for key, now in passed.items():
        assert found.get((key, True)) in {"pass" if each else "cut" for each in now}
    for key, now in refused.items():
        kinds = {"new" if each else None for each in now}
        if flows.closed(after, *key) is not None and flows.closed(after, *key, across=True) is None:
            kinds.add("new")  # it may have come by a published port
        assert found.get((key, False)) in kinds


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with Fakes(tmp_path) as made:
        yield made


def test_world_foreseen_is_the_one_after_activation(fakes: Fakes) -> None:
    fakes.activate(fakes.package("db", network={"ports": ["8080:80"]}), fakes.package("api"))
    machine = fakes.machine
    was = read_world(machine.kernel, machine.store)
    for change in (
        {"network": {"policy": {"allow_from": ["api:80", "later"]}}},
        {
            "network": {
                "network": "other",
                "hostname": "late",
                "policy": {"egress": {"allow": ["api"]}},
            }
        },
    ):
        folder = fakes.package("db", **change)
        wanted = targets.find_targets(machine.store, [folder])
        before, after = activate.foreseen(machine, wanted)
        assert before == was == read_world(machine.kernel, machine.store)
        fakes.activate(folder)
        was = read_world(machine.kernel, machine.store)
        assert after.services == was.services


def test_an_entry_for_all_addresses_of_a_published_port_is_hinted_at(fakes: Fakes) -> None:
    lists = ["0.0.0.0/0:80", "[::/0]:80", "10.0.0.0/8:80", "0.0.0.0/0:81", "outside:80"]
    keys = {"ports": ["8080:80"], "policy": {"allow_from": lists}}
    fakes.activate(fakes.package("db", network=keys))
    machine = fakes.machine
    found = list(policies.warnings(machine.kernel, machine.store, ["db"]))
    assert [hint for _, hint in found] == ['"outside:80" allows only other machines'] * 2
    assert "allow_from[0]" in found[0][0] and "allow_from[1]" in found[1][0]
