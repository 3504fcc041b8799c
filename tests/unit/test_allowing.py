"""Test the manifest lines that would let a refused flow pass, by the policy engine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import HOST, OUTSIDE, known, network, policy, with_policy, world
from samples import samples

from niso.kernel.flow_memory import Recorded
from niso.look import flows as look_flows
from niso.look import map, policies
from niso.look.policies import MapChange
from niso.plan import verdict
from niso.plan.records import PortMapping
from niso.plan.verdict import PolicyContext

DB, WEB, GUEST, FAR = "10.99.1.2", "10.99.1.3", "10.99.1.4", "10.99.2.2"
NETWORKS = [network("back", "10.99.1.0/24"), network("far", "10.99.2.0/24")]
LISTS = ("allow_from", "deny_from", "allow", "deny")


def made(db: dict[str, list[str]], guest: dict[str, list[str]]) -> PolicyContext:
    """The services db (published on port 8080), web and guest on one network, and far on another."""
    services = [
        known("db", {"back": [DB]}, policy(**db), PortMapping("", 8080, 80, "tcp")),
        known("web", {"back": [WEB]}),
        known("guest", {"back": [GUEST]}, policy(**guest)),
        known("far", {"far": [FAR]}),
    ]
    return world(services, NETWORKS, [HOST])


def refused(there: PolicyContext, source: str, to: str, port: int = 80) -> look_flows.Flow:
    row = Recorded(source, to, "tcp", port, 3, 60, 1.0)
    (found,) = look_flows.joined(there, look_flows.Memory((), (row,), {}))
    return found


def applied(there: PolicyContext, changes: tuple[MapChange, ...]) -> PolicyContext:
    """With the lines changed as a person would: the lists written again."""
    for change in changes:
        own = there.services[change.service].policy
        lists = {
            "allow_from": own.allow_from,
            "deny_from": own.deny_from,
            "allow": own.egress_allow,
            "deny": own.egress_deny,
        }
        texts = {k: None if v is None else [e.text for e in v] for k, v in lists.items()}
        name = change.key.removeprefix("network.policy.").removeprefix("egress.").partition("[")[0]
        changed = texts[name] or []
        if change.adds:
            changed.append(change.text)
        else:
            changed.remove(change.text)
        texts[name] = changed
        there = with_policy(there, change.service, policy(**texts))
    return there


ENTRIES = st.lists(
    st.sampled_from(["web", "guest", "guest:80/tcp", "guest:81", "10.99.1.0/24", OUTSIDE, "db:80"]),
    unique=True,
    max_size=3,
)
POLICIES = st.fixed_dictionaries({}, optional=dict.fromkeys(LISTS, ENTRIES))


@settings(max_examples=samples(40, 1000))
@given(POLICIES, POLICIES, st.sampled_from([WEB, GUEST, OUTSIDE]))
def test_the_lines_let_this_flow_pass_and_no_other_when_they_only_add(db, guest, source) -> None:
    there = made(db, guest)
    flow = refused(there, source, DB)
    changes = policies.changes(there, flow, lambda owner, other: other)
    after = applied(there, changes)
    judged = verdict.evaluate(after, source, DB, 80, "tcp")
    assert all(reason.passes for reason in judged)
    if all(change.adds for change in changes):
        for other, port in ((WEB, 80), (GUEST, 80), (OUTSIDE, 80), (source, 81)):
            if (other, port) != (source, 80):
                one, two = (verdict.evaluate(w, other, DB, port, "tcp") for w in (there, after))
                assert [r.passes for r in one] == [r.passes for r in two]
    assert bool(changes) == any(
        not reason.passes for reason in verdict.evaluate(there, source, DB, 80, "tcp")
    )


@pytest.mark.parametrize(
    ("db", "guest", "ends", "expected"),
    [
        ({"allow_from": ["web:80"]}, {}, (GUEST, DB), [("allow_from", "guest:80/tcp", True)]),
        ({"allow_from": []}, {}, (OUTSIDE, DB), [("allow_from", f"{OUTSIDE}:80/tcp", True)]),
        (
            {"deny_from": ["guest"], "allow_from": ["web"]},
            {"allow": []},
            (GUEST, DB),
            [
                ("egress.allow", "db:80/tcp", True),
                ("deny_from[0]", "guest", False),
                ("allow_from", "guest:80/tcp", True),
            ],
        ),
        ({"allow_from": []}, {}, (FAR, DB), []),  # another network: no policy opens the path
        ({}, {"allow": []}, (GUEST, HOST), [("egress.allow", f"{HOST}:80/tcp", True)]),
    ],
)
def test_lines(db, guest, ends, expected) -> None:
    there = made(db, guest)
    changes = policies.changes(there, refused(there, *ends), lambda owner, other: other)
    assert [(c.key.removeprefix("network.policy."), c.text, c.adds) for c in changes] == expected


def test_what_an_audit_lets_pass_has_the_lines_too() -> None:
    there = made({"allow_from": []}, {})
    audited = there.services["db"]._replace(audits=True)
    there = there._replace(services={**there.services, "db": audited})
    row = Recorded(GUEST, DB, "tcp", 80, 3, 60, 1.0)
    (flow,) = look_flows.joined(there, look_flows.Memory((row,), (), {}, 0, (row,)))
    assert flow.verdict == look_flows.AUDIT
    (change,) = policies.changes(there, flow, lambda owner, other: other)
    assert change.text == "guest:80/tcp"
    assert [rows for _, rows in map.grouped([flow])] == [[flow]]


def test_a_service_without_a_name_of_its_own_is_written_by_address() -> None:
    there = made({"allow_from": []}, {})
    flow = refused(there, GUEST, DB)
    (change,) = policies.changes(there, flow, lambda owner, other: None)
    assert change.text == f"{GUEST}:80/tcp"
    assert (
        policies.changes(there, flow._replace(was_dropped=False), lambda owner, other: None) == ()
    )


def test_a_map_has_few_other_machines_and_counts_what_it_leaves_out() -> None:
    there = made({}, {})
    clients = [f"198.51.100.{i}" for i in range(1, 20)]
    rows = [Recorded(each, DB, "tcp", 80, 2, 60, float(i)) for i, each in enumerate(clients)]
    rows.append(Recorded(clients[3], DB, "tcp", 81, 2, 60, 5.0))  # with most rows
    reader = look_flows.FlowReader(there)
    memory, left_out = map.bounded(look_flows.Memory(tuple(rows), (), {}), reader)
    assert left_out == {}
    groups = map.grouped(look_flows.joined(there, memory))
    names = {from_.name for (from_, _), _ in groups}
    assert len(names) == map.MOST_OUTSIDE + 1 and {clients[3], map.OTHERS} <= names
    others = next(flows for (from_, _), flows in groups if from_.kind == "others")
    assert [flow.new for flow in others] == [2] * (19 - 8)
    many = tuple(Recorded(DB, WEB, "tcp", port, 1, 60, float(port)) for port in range(1, 5001))
    kept, left_out = map.bounded(look_flows.Memory(many, (), {}), reader)
    assert left_out == {("db", "web", True): 1000}
    assert [row.port for row in kept.passed] == list(range(1, 4001))
    # a scan hides no other denial, and what is cut is counted for its pair
    scan = tuple(Recorded(WEB, DB, "tcp", port, 1, 60, 1.0) for port in range(1, 5001))
    rare = Recorded(GUEST, DB, "tcp", 80, 1, 60, 600_000.0)
    kept, left_out = map.bounded(look_flows.Memory((), (*scan, rare), {}), reader)
    assert rare in kept.refused and len(kept.refused) == map.MOST_OF_PAIR + 1
    assert left_out == {("web", "db", False): 5000 - map.MOST_OF_PAIR}


def test_judged_flows_are_not_judged_again() -> None:
    there = made({"allow_from": []}, {})
    reader = look_flows.FlowReader(there)
    row = Recorded(GUEST, DB, "tcp", 80, 3, 60, 1.0)
    first = look_flows.joined(there, look_flows.Memory((), (row,), {}), reader)
    later = look_flows.joined(there, look_flows.Memory((), (row._replace(packets=9),), {}), reader)
    assert first[0]._replace(new=9) == later[0]
    assert later[0].from_ is first[0].from_
    assert reader.for_context(made({"allow_from": []}, {})) is reader
    assert reader.for_context(made({"deny_from": ["guest"]}, {})) is not reader
