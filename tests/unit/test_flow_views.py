"""Test the joining of what the kernel remembers with names and policies. Pure."""

from __future__ import annotations

from hypothesis import given, settings
from policy_worlds import HOST, NOTHING, OUTSIDE, known, network, policy, world, worlds
from samples import samples

from niso.cli.traffic_commands import _cells, _merged, decided_by
from niso.kernel.flow_memory import Recorded
from niso.look import flows
from niso.plan import verdict
from niso.plan.records import PortMapping

BACK = network("back", "10.99.1.0/24", "fd00:99:1::/64")
DB, API, WEB, GATEWAY = "10.99.1.2", "10.99.1.3", "10.99.1.4", "10.99.1.1"
WORLD = world(
    [
        known("db", {"back": [DB]}, policy(["api:80"]), PortMapping("", 8080, 80, "tcp")),
        known("api", {"back": [API]}),
        known("web", {"back": [WEB]}, policy(allow=["0.0.0.0/0:443"])),
    ],
    [BACK],
    [HOST],
)


def row(source: str, to: str, port: int = 80, packets: int = 1, ago: float = 5.0) -> Recorded:
    return Recorded(source, to, "tcp", port, packets, 60, ago)


def memory(
    *passed: Recorded,
    refused: tuple[Recorded, ...] = (),
    opened: dict[tuple[str, str, str, int], int] | None = None,
):
    return flows.Memory(passed, refused, opened or {})


def lines(found: list[flows.Flow]) -> dict[tuple[str, str, int], tuple[bool, str, bool]]:
    return {
        (each.from_.name, each.to.name, each.port): (each.passes, each.key or "", each.agrees)
        for each in found
    }


def test_each_flow_has_names_and_the_line_that_decides() -> None:
    refused = (row(WEB, DB), row(OUTSIDE, DB), row("10.99.1.9", API), row(WEB, OUTSIDE, 22))
    rows = (
        row(API, DB),
        row(HOST, DB),
        row(GATEWAY, DB),
        row("127.0.0.1", DB),
        row(WEB, OUTSIDE, 443),
    )
    found = flows.joined(WORLD, memory(*rows, refused=refused))
    assert lines(found) == {
        ("api", "db", 80): (True, "network.policy.allow_from[0]", True),
        ("host", "db", 80): (True, "", True),
        ("web", OUTSIDE, 443): (True, "network.policy.egress.allow[0]", True),
        ("web", OUTSIDE, 22): (False, "network.policy.egress.allow", True),
        ("web", "db", 80): (False, "network.policy.egress.allow", True),
        (OUTSIDE, "db", 80): (False, "network.policy.allow_from", True),
        ("10.99.1.9", "api", 80): (False, "", True),  # nobody has the address
    }
    assert {each.from_.address for each in found if each.published} == {HOST, "127.0.0.1"}


def test_a_program_of_the_host_used_the_port_unless_it_came_from_the_gateway() -> None:
    ports = [PortMapping("127.0.0.1", 9090, 80, "tcp"), PortMapping("192.0.2.1", 8080, 80, "tcp")]
    db = known("db", {"back": [DB]}, NOTHING, *ports)
    there = world([db, known("api", {"back": [API]})], [BACK], [HOST])
    rows = (row("127.0.0.1", DB), row(HOST, DB), row(GATEWAY, DB), row(OUTSIDE, DB), row(API, DB))
    found = {f.from_.address: f.published for f in flows.joined(there, memory(*rows))}
    assert found == {"127.0.0.1": 9090, HOST: 8080, GATEWAY: None, OUTSIDE: 8080, API: None}
    assert HOST == "192.0.2.1"


def test_a_dns_name_is_only_on_flows_of_the_service_whose_policy_has_it() -> None:
    rules = policy(allow=["one.example:80", "two.example:443"])
    there = world(
        [
            known("web", {"back": [WEB]}, rules),
            known("api", {"back": [API]}, policy(allow=[OUTSIDE])),
        ],
        [BACK],
        [HOST],
    )._replace(outside_ever={"one.example": (OUTSIDE,), "two.example": (OUTSIDE,)})
    rows = (row(WEB, OUTSIDE), row(WEB, OUTSIDE, 443), row(API, OUTSIDE), row(OUTSIDE, WEB, 22))
    found = {(f.from_.name, f.to.name, f.port) for f in flows.joined(there, memory(*rows))}
    assert found == {
        ("web", "one.example", 80),
        ("web", "two.example", 443),
        ("api", OUTSIDE, 80),
        (OUTSIDE, "web", 22),
    }


def test_nothing_is_said_about_the_policy_of_a_service_that_is_gone() -> None:
    """Also when its network is gone. Of web, the list refuses whoever had the address."""
    there = WORLD._replace(pools=("10.99.0.0/16",), closed=frozenset({4}))
    former = "10.99.7.2"
    refused = (row(former, DB), row(OUTSIDE, former), row("10.98.0.2", OUTSIDE), row(WEB, former))
    rows = (row(former, DB, 443), row(OUTSIDE, former, 443), row(HOST, former))
    found = flows.joined(there, memory(*rows, refused=refused))
    assert len(found) == 7
    for each in found:
        assert (each.agrees, each.published, each.gone) == (True, None, True)
        assert (each.words is None) == (each.from_.name != "web")
        # "" is shown as -
        assert (decided_by(each) == "") == (each.from_.name != "web")
    (other,) = flows.joined(there, memory(refused=(row(OUTSIDE, DB),)))
    assert other.words is not None and not other.gone


def test_what_the_present_policy_would_decide_otherwise_is_said() -> None:
    found = flows.joined(WORLD, memory(row(WEB, DB), refused=(row(API, DB),)))
    assert lines(found) == {
        ("web", "db", 80): (True, "network.policy.egress.allow", False),
        ("api", "db", 80): (False, "", False),
    }


def test_client_that_was_denied_by_a_published_port_and_is_allowed_now() -> None:
    """The kernel recorded it after DNAT; nobody from elsewhere is recorded without a port."""
    db = known("db", {"back": [DB]}, policy(["0.0.0.0/0:80"]), PortMapping("", 8080, 80, "tcp"))
    wide = WORLD._replace(services={**WORLD.services, "db": db})
    (found,) = flows.joined(wide, memory(refused=(row(OUTSIDE, DB),)))
    assert (found.words, found.agrees) == (None, False)
    closed = WORLD._replace(services={**WORLD.services, "db": db._replace(ports=())})
    (found,) = flows.joined(closed, memory(refused=(row(OUTSIDE, DB),)))
    assert found.words is not None and "only by its published ports" in found.words


def test_both_families_are_one_line() -> None:
    dual = world(
        [
            known("db", {"back": [DB, "fd00:99:1::2"]}),
            known("api", {"back": [API, "fd00:99:1::3"]}),
        ],
        [BACK],
        [HOST],
    )
    rows = (row(API, DB, packets=2, ago=70), row("fd00:99:1::3", "fd00:99:1::2", packets=3))
    found = flows.joined(dual, memory(*rows, refused=(row(API, DB),)))
    assert [_cells(flow)[:6] for flow in _merged(found)] == [
        ("api", "db:80/tcp", "1", "-", "5s ago", "drop"),
        ("api", "db:80/tcp", "5", "-", "5s ago", "pass"),
    ]


def test_client_of_a_published_port() -> None:
    (found,) = flows.joined(WORLD, memory(row(OUTSIDE, DB)))
    assert found.published == 8080
    assert found.from_.name == OUTSIDE and not found.from_.is_host
    ports = (PortMapping("0.0.0.0", 8080, 80, "tcp"), PortMapping("::", 8081, 80, "tcp"))
    db = known("db", {"back": [DB, "fd00:99:1::2"]}, NOTHING, *ports)
    both = flows.joined(
        world([db], [BACK], [HOST]), memory(row(OUTSIDE, DB), row("2001:db8::2", "fd00:99:1::2"))
    )
    assert [each.published for each in both] == [8080, 8081]


def test_client_from_outside_did_not_use_a_port_of_a_loopback_address() -> None:
    local, wide = (
        PortMapping("127.0.0.1", 7000, 80, "tcp"),
        PortMapping("192.0.2.1", 7001, 80, "tcp"),
    )
    db = known("db", {"back": [DB]}, NOTHING, local, wide)
    (found,) = flows.joined(world([db], [BACK], [HOST]), memory(row(OUTSIDE, DB)))
    assert found.published == 7001


def test_open_connections_older_than_what_is_remembered() -> None:
    opened = {
        (API, DB, "tcp", 80): 2,
        (WEB, OUTSIDE, "tcp", 443): 1,
        (HOST, OUTSIDE, "tcp", 22): 1,  # of the host's own programs
    }
    found = flows.joined(WORLD, memory(row(API, DB, packets=3), opened=opened))
    assert [(s.from_.name, s.to.name, s.new, s.open, s.ago) for s in found] == [
        ("api", "db", 3, 2, 5.0),
        ("web", OUTSIDE, 0, 1, None),
    ]


def test_changes_are_counted_from_look_to_look() -> None:
    before = flows.joined(WORLD, memory(row(API, DB, packets=3), row(WEB, OUTSIDE, 443, 7)))
    rows = (row(API, DB, packets=5, ago=0.2), row(WEB, OUTSIDE, 443, 7), row(GATEWAY, DB, ago=0.9))
    after = flows.joined(WORLD, memory(*rows, refused=(row(WEB, DB, packets=2, ago=0.1),)))
    changed = flows.changes(before, after)
    assert [(s.from_.name, s.passes, s.new) for s in changed] == [
        ("host", True, 1),
        ("api", True, 2),
        ("web", False, 2),
    ]
    # the kernel forgot it in between
    again = flows.joined(WORLD, memory(row(API, DB, packets=1, ago=0.0)))
    assert [s.new for s in flows.changes(after, again)] == [1]


@settings(max_examples=samples(50, 1000), deadline=None)
@given(worlds())
def test_a_verdict_needs_only_the_two_ends(drawn) -> None:
    """The engine gets a world of the two services alone; with all of them it says the same."""
    addresses = [a for each in drawn.services.values() for a in verdict.addresses_of(each)]
    pairs = [(a, b) for a in (*addresses, OUTSIDE) for b in addresses if (":" in a) == (":" in b)]
    rows = [row(a, b, 80) for a, b in pairs[:40]]
    for seen in flows.joined(drawn, memory(*rows)):
        egress, ingress = verdict.evaluate(drawn, *seen.id[:2], seen.port, seen.proto)
        assert seen.agrees == (egress.passes and ingress.passes)
        denied = [each for each in (egress, ingress) if not each.passes]
        assert not denied or seen.words == denied[0].message


def test_warnings_name_only_sources_that_lost_flows() -> None:
    reader = flows.FlowReader(WORLD)
    beyond = {
        ("refused", API): 5,
        ("audited", API): 2,
        ("direct", "2001:db8:1::/64"): 9,
        ("seen", WEB): 3,
        ("seen", "127.0.0.0"): 1,
        ("switched", WEB): 1,
    }
    lost = memory(row(DB, API))._replace(beyond=beyond)
    said = [text.partition(" are not")[0] for text, _ in flows.left_out(lost, reader)]
    assert said == ["5 new flows of web, host", "16 refused attempts of 2001:db8:1::/64, api"]
    assert flows.left_out(memory(row(DB, API)), reader) == []
    ((full, _),) = flows.left_out(memory()._replace(missed=4, full=("seen",)), reader)
    ((was_full, _),) = flows.left_out(memory()._replace(missed=4), reader)
    assert "full: seen" in full and "4 flows were not recorded" in was_full


def test_of_a_former_receiver_only_what_drops_before_its_policy_is_named() -> None:
    inner = network("inner", "10.99.2.0/24")._replace(internal=True)
    lone = known("lone", {"inner": ["10.99.2.2"]})
    # its list may have named the former receiver
    ask = known("ask", {"back": ["10.99.1.5"]}, policy(allow=["former:80"]))
    there = world([*WORLD.services.values(), lone, ask], [BACK, inner], [HOST])
    gone = "10.99.1.9"
    ends = ((WEB, gone), (API, gone), ("10.99.2.2", gone), ("10.99.2.2", "10.99.2.9"), (gone, API))
    refused = tuple(row(*pair) for pair in (*ends, ("10.99.1.5", gone)))
    found = flows.joined(there, memory(refused=refused))
    assert {(f.from_.name, f.to.name): f.words for f in found} == {
        ("web", gone): "not listed in network.policy.egress.allow of web",
        ("api", gone): None,
        ("lone", gone): "network inner is internal: it reaches only the host and its own services",
        ("lone", "10.99.2.9"): None,
        (gone, "api"): None,
        ("ask", gone): None,
    }
