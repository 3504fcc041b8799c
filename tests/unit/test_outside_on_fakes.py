"""Test that rules and hosts files have the same addresses of outside names, on fakes."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answers_made import API, NOBODY, NOTHING, ONE, OTHER, SIX, THREE, TWO, heard
from cluster_world import Hosted
from fake_world import Steps, World
from refusals import refuses

from niso.base import names
from niso.base.errors import Conflict, Error
from niso.base.report import WarningEvent
from niso.change import boot, outside_names_refresh, stacks
from niso.change.deactivate import deactivate, remove
from niso.cluster.claims import Claims, Wanted
from niso.cluster.key_values import Spec
from niso.kernel.kinds.kind import State
from niso.kernel.nft_elements import Element
from niso.look import flows, packet_path, stack_members
from niso.plan.dns_answers import DnsAnswer
from niso.plan.policy_elements import PASSES, looked_up
from niso.plan.records import Outside
from niso.plan.verdict import decide
from niso.reconcile import ended_flows
from niso.reconcile.live_world import read_world
from niso.store.snapshots import ALL


class Dns:
    """Answers for all names, a clock, and how often a name was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[DnsAnswer, ...]] = {}
        self.asked: list[str] = []
        self.now = 1_000_000.0
        self.missing = False

    def time(self) -> float:
        return self.now

    def ask(self, wanted: Any) -> dict[str, tuple[DnsAnswer, ...]]:
        wanted = list(wanted)
        self.asked += wanted
        return {name: self.answers.get(name, NOTHING) for name in wanted}


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    made = Dns()
    monkeypatch.setattr(outside_names_refresh, "ask", made.ask)
    monkeypatch.setattr(outside_names_refresh, "require", lambda: None)
    monkeypatch.setattr(outside_names_refresh, "time", SimpleNamespace(time=made.time))
    made.answers[API] = heard(ONE, SIX)
    return made


@pytest.fixture
def world(world: World) -> World:
    world.make("back", "10.99.1.0/24", "fd00:99:1::/64")
    world.make("four", "10.99.2.0/24")
    return world


def to(*entries: str, network: str = "back", **more: Any) -> dict[str, Any]:
    return {"networks": [network], "policy": {"egress": {"allow": list(entries)}}, **more}


def hosts(world: World, service: str = "web") -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in world.kernel.hosts[names.own_hosts_folder(service)]:
        for name in line.names.split():
            if name.endswith("example.com"):
                found.setdefault(name, set()).add(line.address)
    return found


def reaches(world: World, service: str = "web", port: int = 443) -> set[str]:
    """The outside addresses that the kernel lets a service reach, which the engine agrees to."""
    snapshot = world.store.snapshot(ALL)
    policed = next(one for one in snapshot.policed if one.service == service)
    judged = read_world(world.kernel, world.store)
    have = world.kernel.everything(State())[Element]
    found = set()
    for to in (ONE, TWO, THREE, SIX):
        own = next((a for a in policed.addresses if (":" in a) == (":" in to)), None)
        if own is None:
            continue
        element = looked_up(policed, snapshot.members, False, own, to, "tcp", port, True)[-1]
        assert element in have
        assert (element.value == PASSES) is decide(judged, own, to, port, "tcp").egress.passes
        found |= {to} if element.value == PASSES else set()
    return found


def test_rules_and_hosts_file_have_the_same_addresses(world: World, dns: Dns) -> None:
    world.activate(
        world.package("web", network=to(f"{API}:443")),
        world.package("old", network=to(f"{API}:443", network="four")),
        world.package("free", network={"networks": ["back"]}),
    )
    world.assert_whole()
    assert hosts(world) == {API: {ONE, SIX}} and reaches(world) == {ONE, SIX}
    assert hosts(world, "old") == {API: {ONE}} and reaches(world, "old") == {ONE}
    assert reaches(world, port=80) == set()
    shared = world.kernel.hosts[names.hosts_folder(("back",))]
    assert not any(API in line.names for line in shared)
    assert any("web.niso.local" in line.names for line in shared)
    # nothing is asked for before its time, by whatever command
    assert dns.asked == [API]
    assert outside_names_refresh.refresh(world.machine) == []
    world.activate(world.package("web", network=to(f"{API}:443")))
    assert dns.asked == [API]
    # at its end, the answer is another one: the old address passes for a minute, and is not found
    dns.answers[API] = heard(TWO)
    dns.now += 300
    process = world.pid("web")
    assert outside_names_refresh.refresh(world.machine) == [API]
    world.assert_whole()
    assert hosts(world) == hosts(world, "old") == {API: {TWO}}
    assert reaches(world) == {ONE, SIX, TWO}
    dns.now += 60
    assert outside_names_refresh.refresh(world.machine) == [API]
    world.assert_whole()
    assert reaches(world) == {TWO} and world.pid("web") == process
    # and the name goes with the policy, while the process runs on
    world.activate(world.package("web", network=to("203.0.113.3:443")))
    world.assert_whole()
    assert reaches(world) == {THREE} and names.own_hosts_folder("web") not in world.kernel.hosts
    world.activate(world.package("web", network=to(API)))
    world.assert_whole()
    assert hosts(world) == {API: {TWO}} and world.pid("web") == process
    # who shares the namespace has the policy, and sees the same hosts file
    world.activate(world.package("side", network={"mode": "share", "share": "web"}))
    spec = world.processes.spec("side")
    assert spec is not None and spec.hosts_folder.endswith(names.own_hosts_folder("web"))
    remove(world.machine, ["side"])
    remove(world.machine, ["web", "old"])
    dns.now += 7200
    assert outside_names_refresh.refresh(world.machine) == []
    world.assert_whole()


def test_two_services_of_one_name_and_a_network_where_it_leads(world: World, dns: Dns) -> None:
    """The same name is the same addresses everywhere, and never those of services."""
    world.activate(world.package("web", network=to(API)))
    dns.answers[API], dns.answers[OTHER] = heard(TWO), heard(ONE, "10.99.1.2")
    dns.now += 400
    said: list[object] = []
    world.activate(world.package("api", network=to(API, OTHER)), report=said.append)
    world.assert_whole()
    assert hosts(world) == {API: {TWO}} and reaches(world) == {ONE, TWO, SIX}
    assert hosts(world, "api") == {API: {TWO}, OTHER: {ONE}}
    assert [e.text for e in said if isinstance(e, WarningEvent)] == [
        f"{OTHER}: 10.99.1.2 is refused: it is in a network of niso"
    ]
    with refuses(Conflict, "203.0.113.2/32", "'api.example.com'"):
        world.make("odd", "203.0.113.0/30")
    world.make("odd", "203.0.113.4/30")


def test_no_name_leads_into_a_network_that_its_own_activation_makes(world: World, dns: Dns) -> None:
    """The name is asked for before the network is there, and the answer lasts for a day."""
    dns.answers[API], dns.answers[OTHER] = heard(TWO, ttl_s=86_400), heard("192.0.2.7")
    world.package("web", network=to(API, OTHER, network="odd"))
    world.package("db", network={"network": "odd", "ip": TWO})
    path = world.stack("db", "web", odd="203.0.113.0/29")
    before = world.picture()
    stacks.up(world.machine, stack_members.load(path), 5.0, True, False)
    assert world.picture() == before
    said: list[object] = []
    stacks.up(
        world.machine._replace(report=said.append), stack_members.load(path), 5.0, False, False
    )
    world.assert_whole()
    assert hosts(world) == {OTHER: {"192.0.2.7"}} and TWO not in reaches(world)
    assert f"{API}: {TWO} is refused: it is in a network of niso" in [
        event.text for event in said if isinstance(event, WarningEvent)
    ]
    # it is asked for again at once
    dns.answers[API] = heard("192.0.2.8")
    assert outside_names_refresh.refresh(world.machine) == [API]
    world.assert_whole()
    assert hosts(world)[API] == {"192.0.2.8"}


def test_no_name_leads_to_a_service_of_another_host_by_a_network_that_arrives(
    world: World, dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster_world.SUBNETS", ("10.98.1.0/24",))
    host = Hosted(world)
    host.membership.create_network(Spec("front", 0, 1430, (("203.0.113.0/29", "203.0.113.1"),)))
    other = Claims(host.engine, "c")
    made = other.claim(Wanted("cache", ("front",), ("cache",), {}, {}))
    other.publish("cache", made.mark, up=True)
    dns.answers[API] = heard(TWO, "192.0.2.7")
    host.activate(host.package("web", "front", policy={"egress": {"allow": [API]}}))
    world.assert_whole()
    assert "cache" in world.store.across.addresses()
    assert hosts(world) == {API: {"192.0.2.7"}} and TWO not in reaches(world)


def test_hosts_file_has_no_addresses_of_a_family_without_a_route(world: World, dns: Dns) -> None:
    """Only the first network has default routes."""
    world.make("six", "fd00:99:6::/64")
    for name, networks in (("web", ["six", "four"]), ("old", ["four", "six"]), ("six", ["six"])):
        network = {"networks": networks, "policy": {"egress": {"allow": [API]}}}
        world.activate(world.package(name, network=network))
    world.assert_whole()
    assert hosts(world) == hosts(world, "six") == {API: {SIX}} and SIX in reaches(world)
    assert hosts(world, "old") == {API: {ONE}} and ONE in reaches(world, "old")
    judged = read_world(world.kernel, world.store)
    asked = {
        name: packet_path.ends(judged, *packet_path.resolve_both(world.store, name, API))[1]
        for name in ("web", "six", "old")
    }
    assert asked == {"web": SIX, "six": SIX, "old": ONE}


def test_address_that_a_network_has_taken_since_is_never_reached_by_the_name(
    world: World, dns: Dns
) -> None:
    """Nobody had the name when the network was made, and its answer lasts for a day."""
    dns.answers[API] = heard(TWO, ttl_s=86_400)
    web = world.package("web", network=to(API, network="odd"))
    world.activate(world.package("web", network=to(API)))
    remove(world.machine, ["web"])
    world.make("odd", "203.0.113.0/29")
    world.activate(world.package("db", network={"networks": ["odd"]}))
    assert ("odd", TWO) in world.store.addresses("db")
    before = world.picture()
    world.activate(web, dry_run=True)
    assert world.picture() == before
    world.activate(web)
    world.assert_whole()
    assert hosts(world) == {} and reaches(world) == set()
    # whoever looks at past flows is not told that the service is the host outside
    judged = read_world(world.kernel, world.store)
    assert judged.outside_ever[API] == () and flows.FlowReader(judged).end(TWO).name == "db"
    # one that the host takes meanwhile goes with the next refresh
    far = "198.51.100.9"
    dns.answers[API] = heard(far, ttl_s=86_400)
    outside_names_refresh.refresh(world.machine, force=True)
    assert hosts(world) == {API: {far}} and outside_names_refresh.refresh(world.machine) == []
    world.kernel.own_addresses[f"{far}/24"] = "uplink0"
    assert outside_names_refresh.refresh(world.machine) == [API]
    world.assert_whole()
    assert hosts(world) == {} and reaches(world) == set()


def test_names_that_hang_take_turns_and_are_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("dns.resolver")
    slow = [f"h{number}.example.com" for number in range(9)]
    monkeypatch.setattr(outside_names_refresh, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    monkeypatch.setattr(outside_names_refresh, "_AT_ONCE", 1)
    asked: list[str] = []

    def one(_dns: object, _resolver: object, name: str, family: int, _end: float) -> DnsAnswer:
        asked.append(name)
        return DnsAnswer(family, problem="no name server answered", silent=True)

    monkeypatch.setattr(outside_names_refresh, "_one", one)
    for _ in range(9):
        assert [h.family for h in outside_names_refresh.ask(slow)[slow[0]]] == [4, 6]
    assert len(set(asked[:: 2 * len(slow)])) > 1, "who is asked first"
    said: list[object] = []
    world.activate(world.package("web", network=to(*slow)), report=said.append)
    text = f"{', '.join(slow)}: no name server answered"
    assert WarningEvent(text, ("niso net refresh asks again",)) in said


def test_name_without_an_answer_starts_the_service_and_allows_nothing(
    world: World, dns: Dns
) -> None:
    dns.answers[API] = NOBODY
    said: list[object] = []
    world.activate(world.package("web", network=to(API)), report=said.append)
    assert WarningEvent(f"{API}: no name server answered", ("niso net refresh asks again",)) in said
    world.assert_whole()
    assert hosts(world) == {} and reaches(world) == set()
    both = packet_path.resolve_both(world.store, "web", API)
    with refuses(Error, API):
        packet_path.ends(read_world(world.kernel, world.store), *both)
    with pytest.raises(Error) as caught:
        packet_path.resolve_both(world.store, "web", "other.example.com")
    assert "if a policy has it" in str(caught.value.hint)
    dns.answers[API] = heard(ONE)
    dns.now += 30
    outside_names_refresh.refresh(world.machine)
    world.assert_whole()
    assert hosts(world) == {API: {ONE}} and reaches(world) == {ONE}
    # a reboot while the name servers are away
    deactivate(world.machine, ["web"])
    dns.answers[API] = NOBODY
    dns.now += 3600
    world.activate(world.package("web", network=to(API)))
    assert hosts(world) == {API: {ONE}} and reaches(world) == {ONE}


def test_missing_library_is_an_error_before_anything_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dns.resolver", None)
    before = world.picture()
    with pytest.raises(Error) as caught:
        world.activate(world.package("web", network=to(API)))
    assert "install" in str(caught.value.hint) and "dnspython" in str(caught.value.hint)
    assert world.picture() == before
    world.activate(world.package("web", network=to("203.0.113.1")))


def test_flow_to_an_address_that_dns_does_not_have_any_more_is_not_cut(
    world: World, dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.activate(world.package("web", network=to(API)))
    cut: list[str] = []
    monkeypatch.setattr(ended_flows, "cut", lambda *_: cut.append("cut"))
    dns.answers[API] = heard(TWO)
    for _ in range(3):
        dns.now += 400
        outside_names_refresh.refresh(world.machine)
    assert reaches(world) == {TWO} and cut == []
    monkeypatch.undo()
    # what judges open flows knows that the name had the address
    judged = read_world(world.kernel, world.store)
    assert judged.outside[API] == (TWO,) and judged.outside_ever[API] == (TWO, ONE, SIX)


@pytest.mark.parametrize("kills", [False, True])
def test_refresh_that_fails_or_is_killed_is_completed_by_the_next_and_never_wider(
    world: World, dns: Dns, kills: bool
) -> None:
    dns.answers[API] = heard(ONE)
    world.activate(world.package("web", network=to(API)))
    dns.answers[API] = heard(TWO)
    dns.now += 400
    outside_names_refresh.refresh(world.machine)
    for number in itertools.count(1):
        # ONE leaves the rules, and THREE comes in the place of TWO; then the other way round
        other, new = (THREE, TWO) if hosts(world) == {API: {THREE}} else (TWO, THREE)
        dns.answers[API] = heard(new)
        dns.now += 400
        steps = Steps(world, number, kills)
        done = steps.run(lambda: outside_names_refresh.refresh(world.machine))
        if kills:
            assert_no_wider(world)
        outside_names_refresh.refresh(world.machine)
        world.assert_whole()
        assert hosts(world) == {API: {new}}
        assert reaches(world) <= {new, other}
        if done:
            break
    assert number > 3


def test_refresh_that_is_killed_leaves_no_line_of_an_address_that_two_names_share(
    world: World, dns: Dns
) -> None:
    other = "other.example.com"
    for number in itertools.count(1):
        dns.answers = {API: heard(ONE), other: NOBODY}
        world.activate(world.package("web", network=to(API, other)))
        dns.answers[other] = heard(ONE)
        dns.now += 400
        done = Steps(world, number, True).run(lambda: outside_names_refresh.refresh(world.machine))
        outside_names_refresh.refresh(world.machine)
        world.assert_whole()
        assert hosts(world) == {API: {ONE}, other: {ONE}}
        if done:
            break
        remove(world.machine, ["web"])
        dns.now += 1e6
    assert number > 3


def assert_no_wider(world: World) -> None:
    """The kernel allows no address that is not one of those that DNS answered within the last minutes."""
    have = world.kernel.everything(State())[Element]
    allowed = {e.fields[1] for e in have if e.container == "out4_peer" and e.value == PASSES}
    own = {address for _, address in world.store.addresses("web")}
    assert allowed - own <= {ONE, TWO, THREE}


def test_dry_run_asks_and_records_nothing(world: World, dns: Dns) -> None:
    before, said = world.picture(), []
    world.activate(world.package("web", network=to(API)), dry_run=True, report=said.append)
    steps = "".join(event.describe() for event in said)
    assert ONE in steps and SIX in steps
    assert world.picture() == before and dns.asked == [API]


def test_timer_is_there_while_an_enabled_service_has_names(world: World, dns: Dns) -> None:
    units = world.processes.units
    units.is_init = True

    def written() -> list[str]:
        return sorted(path for path in units.files if "niso_refresh" in path)

    world.activate(world.package("web", network=to(API)), world.package("db"))
    boot.enable(world.machine, ["db"])
    assert written() == []
    boot.enable(world.machine, ["web"])
    assert len(written()) == 3 and units.is_active(outside_names_refresh.TIMER)
    text = "".join(units.files[path] for path in written())
    assert "OnUnitActiveSec=60s" in text and "net refresh" in text
    assert "Wants=niso_refresh.timer" in text
    boot.disable(world.machine, ["db"])
    assert len(written()) == 3
    boot.disable(world.machine, ["web"])
    assert written() == [] and not units.is_active(outside_names_refresh.TIMER)
    # an activation may bring the first name to a service that is enabled, also to a job
    world.processes.dies["mig"] = 0
    for name, more in (("web", {}), ("mig", {"service": {"kind": "job"}})):
        world.activate(world.package(name, **more))
        boot.enable(world.machine, [name])
        world.activate(world.package(name, network=to(API), **more))
        assert written() == []
        boot.hand_over(world.machine, [name])
        assert len(written()) == 3
        boot.disable(world.machine, [name])
    # another state folder's is left alone
    units.write("/etc/systemd/system/niso_refresh.timer", "# somebody else's")
    said: list[object] = []
    boot.enable(world.machine._replace(report=said.append), ["web"])
    assert len(written()) == 1
    assert any(isinstance(event, WarningEvent) for event in said)


def test_damaged_answer_is_asked_for_again(world: World, dns: Dns) -> None:
    world.activate(world.package("web", network=to(API)))
    for text in ("", "[]", "[1, 2, 3, 4, [[5]]]", '[0, 0, "", true, [["x", "now", 1]]]'):
        with world.store.transaction():
            world.store._db.execute("UPDATE outside_name SET answer=?", (text,))
        assert world.store.outside.answer(API) == Outside(API)
    outside_names_refresh.refresh(world.machine)
    assert hosts(world) == {API: {ONE, SIX}}
