"""Test what activate, deactivate, remove and net create hold in the cluster, on the fake engine and kernel.

The world's host is b, with db up on backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import KEYS, ME, Cluster
from fake_world import Steps, World
from samples import samples

from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.base.locks import service_lock
from niso.cluster.agent import Agent, Me
from niso.cluster.claim_values import Claim
from niso.cluster.claims import Claims, Wanted
from niso.cluster.host_values import Host
from niso.cluster.index import Spec
from niso.cluster.keys import decode
from niso.cluster.own_claims import ORPHAN_S, STRAY_S
from niso.cluster.requests import NoAnswer, Refused
from niso.commands import network, stack
from niso.commands.activate import activate
from niso.commands.cluster_hosts import end_services
from niso.commands.deactivate import deactivate, remove
from niso.commands.repair import repair_all
from niso.commands.restart import restart
from niso.plan.records import Port
from niso.services import attachments, journal, targets
from niso.services.attach_request import Request, Wish
from niso.services.networks import NetworkRequest


class Hosted(Cluster):
    """Host b, its commands, and its agent."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.said: list[str] = []
        me = Me(ME, f"id-{ME}", world.store.cluster_id(), "boot")
        self.agent = Agent(me, lambda: self.engine, self.end, self.said.append)
        self.warned: list[str] = []

    def end(self, services: list[str]) -> None:
        end_services(self.world.machine, services)

    def attach(self, name: str, *wishes: Wish, **more: Any) -> str:
        path = f"/n/{name}"
        if path not in self.world.kernel.engines:
            self.world.kernel.begin_engine(path)
        request = Request(name, path, wishes or (Wish("backend"),), **more)
        return attachments.attach(self.world.machine, request, self.report).addresses[0]

    def look(self, now_s: float = 0.0) -> list[str]:
        return self.agent.look(self.world.store, self.world.kernel, self.engine, now_s)

    def held(self, service: str) -> Claim | None:
        return Claims(self.engine, "x").held(service)

    def up(self, service: str) -> bool:
        """Whether all that resolve the service's names may find it."""
        held = self.held(service)
        assert held is not None
        keys = [KEYS.address(net, a) for net, some in held.networks.items() for a in some]
        items = [self.engine.get(key, one=True).items[0] for key in keys]
        [up] = {bool(decode(item.value, item.key)["up"]) for item in items}
        return up

    def package(self, name: str, *networks: str, **keys: Any) -> str:
        on: dict[str, Any] = {"networks": list(networks or ("backend",))}
        return self.world.package(name, network={**on, **keys})

    def activate(self, path: str, take: bool = False, **more: Any) -> str:
        found = targets.find_targets(self.world.store, [path])
        outcomes = activate(
            self.world.machine,
            [target._replace(take=take) for target in found],
            5.0,
            self.report,
            **more,
        )
        return outcomes[0].addresses[0]

    def report(self, event: Any) -> None:
        if type(event).__name__ == "Caution":
            self.warned.append(event.text)

    def record(self, service: str) -> bool:
        """Whether the store has what the cluster has of a service."""
        record, held = self.world.store.across.claim(service), self.held(service)
        if record is None or held is None or held.host != ME:
            return record is None and (held is None or held.host != ME)
        return (record.mark, record.gen, record.addresses) == (held.mark, held.gen, held.networks)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Hosted]:
    with World(tmp_path) as world:
        yield Hosted(world)


def lose(host: Hosted, name: str) -> None:
    """End the lease of a host."""
    for item in host.engine.get(KEYS.live(name), one=True).items:
        host.engine.revoke(item.lease)


def test_service_is_held_up_down_and_given_up(host: Hosted) -> None:
    assert host.activate(host.package("api", ports=["8080:80"])) == "10.99.1.3"
    held = host.held("api")
    assert held and (held.host, held.names, held.ports) == (ME, ("api",), ("8080:80",))
    assert host.up("api") and host.record("api")
    before = host.engine.get(KEYS.prefix).revision
    host.activate("api")
    assert host.engine.get(KEYS.prefix).revision == before, "an unchanged service writes nothing"
    deactivate(host.world.machine, ["api"])
    assert not host.up("api") and host.record("api")
    remove(host.world.machine, ["api"])
    assert host.held("api") is None and host.record("api")
    assert [key for key in host.engine.keys(KEYS.network("backend")) if "api" in key] == []
    assert host.warned == []
    host.world.assert_whole()


def test_claim_follows_the_manifest_and_its_addresses(host: Hosted) -> None:
    host.activate(host.package("api"))
    api = host.package("api", ip="10.99.1.9", aliases=["shop"])
    assert host.activate(api) == "10.99.1.9"
    held = host.held("api")
    assert held and held.names == ("api", "shop") and held.networks["backend"][0] == "10.99.1.9"
    assert host.record("api") and host.up("api")
    with pytest.raises(
        InvalidInput, match=r"10\.99\.1\.1 cannot be a service's address: it is the gateway"
    ):
        host.activate(host.package("web", ip="10.99.1.1"))
    assert host.held("web") is None and host.record("web")
    host.activate(host.package("api", "niso-default"))
    assert host.held("api") is None and host.record("api")
    host.world.assert_whole()


def test_former_address_is_held_until_the_service_is_up_with_another(host: Hosted) -> None:
    def package(number: int) -> str:
        network = {"networks": ["backend"], "ip": f"10.99.1.{number}"}
        return host.world.package("api", network=network, environment={"N": str(number)})

    host.activate(package(9))
    seen = []

    def fails(what: str) -> bool:
        seen.append(host.engine.get(KEYS.address("backend", "10.99.1.9"), one=True).items)
        return what.startswith("start")

    host.world.processes.fail = fails
    with pytest.raises(Error):
        host.activate(package(8))
    host.world.processes.fail = lambda what: False
    assert seen and all(seen)
    held = host.held("api")
    assert held and held.networks["backend"][0] == "10.99.1.9" and held.kept == ()
    assert host.record("api") and host.up("api")
    assert host.engine.get(KEYS.address("backend", "10.99.1.8"), one=True).items == ()
    host.activate(package(8))
    assert host.engine.get(KEYS.address("backend", "10.99.1.9"), one=True).items == ()
    assert host.record("api") and host.up("api")
    host.world.assert_whole()


def test_service_that_went_to_a_local_network_without_an_answer_is_given_up(host: Hosted) -> None:
    host.activate(host.package("api"))
    host.world.make("own", "10.99.8.0/24")
    path = host.package("api", "own")
    host.engine.down = True
    host.activate(path)
    host.engine.down = False
    host.look()
    assert host.held("api") is None
    host.world.assert_whole()


def test_service_that_lost_its_address_while_it_was_down_holds_no_other_one(host: Hosted) -> None:
    path = host.package("api", ip="10.99.1.9")
    host.activate(path)
    deactivate(host.world.machine, ["api"])
    host.release(ME, "api")  # as if its data were from a backup of before
    assert host.activate(host.package("web", ip="10.99.1.9")) == "10.99.1.9"
    host.look()
    assert host.held("api") is None
    host.look(ORPHAN_S + 1)
    assert host.held("api") is None and host.world.store.across.claim("api") is None
    assert host.record("web")
    host.world.assert_whole()


def test_claim_without_a_record_on_its_host_is_given_up(host: Hosted) -> None:
    host.engine.lose.append("late")
    host.engine.lose += ["there"] * 20
    with pytest.raises(NoAnswer):
        host.activate(host.package("api"))
    host.engine.lose.clear()
    host.look()
    host.look(ORPHAN_S + 1)
    assert host.world.store.across.claim("api") is None
    host.engine.arrive()
    assert host.held("api") is not None
    host.membership.create_network(Spec("far", 0, 1430, (("10.99.9.0/24", "10.99.9.1"),)))
    Claims(host.engine, ME).claim(Wanted("old", ("far",), ("old",), {}, {}))
    host.look(ORPHAN_S + 2)
    assert host.held("api") is None
    host.look(ORPHAN_S + STRAY_S)
    assert host.held("old") is None and host.held("db") is not None


def test_request_that_comes_late_does_not_take_what_is_in_use_again(host: Hosted) -> None:
    path = host.package("api")
    host.activate(path)
    host.engine.lose += ["there", "late"] + ["there"] * 20  # down; given up
    deactivate(host.world.machine, ["api"])
    host.engine.lose.clear()
    host.engine.late.clear()
    host.engine.lose += ["late"] + ["there"] * 20
    remove(host.world.machine, ["api"])
    host.engine.lose.clear()
    host.activate(path)
    held = host.held("api")
    host.engine.arrive()
    assert host.held("api") == held and host.record("api") and host.up("api")


def test_host_that_is_forgotten_gets_nothing_back(host: Hosted) -> None:
    host.claim("c", "web")
    lose(host, "c")
    claims = Claims(host.engine, "a")
    taken = claims.claim(Wanted("web", ("backend",), ("web",), {}, {}), take=True)
    assert host.membership.forget("c") == []
    assert claims.release("web", taken.mark) and host.held("web") is None


def test_what_another_host_has_is_refused(host: Hosted) -> None:
    other = host.claim("c", "web", "shop")
    before = host.world.picture()
    with pytest.raises(Conflict, match="web is on c, which is alive"):
        host.activate(host.package("web"))
    with pytest.raises(
        Conflict, match=r"address 10\.99\.1\.3 on network 'backend' belongs to 'web' on c"
    ):
        host.activate(host.package("api", ip="10.99.1.3"))
    with pytest.raises(Conflict, match="name shop on network 'backend' belongs to 'web' on c"):
        host.activate(host.package("api", aliases=["shop"]))
    lose(host, "c")
    with pytest.raises(Conflict, match="web is on c, which does not answer") as raised:
        host.activate(host.package("web"))
    assert "--take" in (raised.value.hint or "") and "10.99.1.3" in (raised.value.hint or "")
    assert host.world.picture() == before
    held = host.held("web")
    assert held and (held.mark, held.networks) == (other.mark, other.networks)
    assert host.world.store.across.claim("web") is None
    host.follow()
    with pytest.raises(NotFound, match="no service 'web' on this host") as missing:
        host.activate("web")
    assert missing.value.hint == "it is on c: run the command there"


def test_attachment_is_held_as_a_service_is(host: Hosted) -> None:
    assert host.attach("box", aliases=("shop",), ports=(Port("", 8080, 80, "tcp"),)) == "10.99.1.3"
    held = host.held("box")
    assert held and (held.host, held.names, held.ports) == (ME, ("box", "shop"), ("8080:80",))
    assert host.up("box") and host.record("box")
    assert host.look() == [] and host.record("box") and host.up("box")
    host.claim("c", "web")
    with pytest.raises(Conflict, match="web is on c, which is alive"):
        host.attach("web")
    with pytest.raises(InvalidInput, match="derive the MAC address"):
        host.attach("pod", Wish("backend", mac="02:00:00:00:00:01"))
    for name in ("web", "pod"):
        assert host.record(name) and host.world.store.service(name) is None
    assert host.held("pod") is None
    # what is held needs no answer, and what is not held is refused
    host.engine.down = True
    host.attach("box", aliases=("shop",))
    assert "box starts by this host's own record" in host.warned[-1]
    with pytest.raises(NoAnswer):
        host.attach("pod")
    host.engine.down = False
    host.look()
    assert host.record("box") and host.record("pod")
    # off the network, and detached
    host.attach("box", Wish("niso-default"))
    assert host.held("box") is None and host.record("box")
    host.attach("box")
    assert attachments.detach(host.world.machine, "box")
    assert host.held("box") is None and host.record("box")
    host.world.assert_whole()


@pytest.mark.parametrize("kills", [False, True])
def test_attachment_that_is_broken_off_leaves_nothing(host: Hosted, kills: bool) -> None:
    world, looks_s = host.world, 0.0

    def attach() -> object:
        return host.attach("box")

    def detach() -> object:
        return attachments.detach(world.machine, "box")

    for command in (attach, detach):
        for number in range(1, 80):
            if command is detach and world.store.service("box") is None:
                attach()  # recovery has completed it
            if Steps(world, number, kills).run(command):
                break
            repair_all(world.machine)
            for _ in range(2):
                looks_s += ORPHAN_S
                host.look(looks_s)
            world.assert_whole()
            assert host.record("box")
            assert (host.held("box") is None) == (world.store.service("box") is None)
        else:
            pytest.fail("it never came to its end")
    assert host.held("box") is None


def test_attachment_that_is_taken_over_is_detached(host: Hosted) -> None:
    host.attach("one")
    lose(host, ME)
    taken = Claims(host.engine, "c").claim(Wanted("one", ("backend",), ("one",), {}, {}), take=True)
    assert taken.host == "c"
    host.look()
    assert host.world.store.service("one") is None and host.record("one")
    host.world.assert_whole()


def test_lost_service_is_taken_over_with_its_addresses_and_nothing_of_the_old_host(
    host: Hosted,
) -> None:
    other = host.claim("c", "web")
    host.look()
    assert ("web", "198.51.100.3") in host.claims()
    lose(host, "c")
    assert host.activate(host.package("web"), take=True) == other.networks["backend"][0]
    assert host.up("web") and host.record("web")
    assert host.claims() == set() and not host.world.store.across.addresses()
    host.world.assert_whole()
    host.look()
    host.world.assert_whole()
    assert host.said == []


def test_service_that_fails_to_start_goes_back_to_the_host_that_it_was_taken_from(
    host: Hosted,
) -> None:
    other = host.claim("c", "web")
    host.look()
    lose(host, "c")
    host.world.processes.fail = lambda what: what.startswith("start")
    with pytest.raises(Error):
        host.activate(host.package("web"), take=True)
    host.world.processes.fail = lambda what: False
    back = host.held("web")
    assert back and (back.host, back.mark, back.networks) == ("c", other.mark, other.networks)
    assert host.up("web") and back.former == ""
    host.look()
    assert ("web", "198.51.100.3") in host.claims()
    host.world.assert_whole()


@pytest.mark.parametrize("how", ["taken", "forgotten", "taken to a network of others"])
def test_service_that_another_host_took_is_ended_and_its_address_is_free_for_others(
    host: Hosted, how: str
) -> None:
    forgotten, on = how == "forgotten", "backend"
    lose(host, ME)
    claims = Claims(host.engine, "a")
    if forgotten:
        assert host.membership.forget(ME) == ["db"]
    if "network" in how:
        on = "front"
        host.membership.create_network(Spec(on, 0, 1430, (("10.99.7.0/24", "10.99.7.1"),)))
    taken = claims.claim(Wanted("db", (on,), ("db",), {}, {}), take=not forgotten)
    claims.publish("db", taken.mark, up=True)
    host.look()
    assert host.said[0] == "taken over by other hosts, and ended here: db"
    if forgotten:
        host.membership.join(Host(ME, f"id-{ME}", "198.51.100.2", 1500, False))
    assert host.world.store.across.claim("db") is None
    host.release("a", "db")
    host.look()
    assert host.activate(host.package("api")) == "10.99.1.2"
    assert host.record("api")
    host.world.assert_whole()


def test_policy_means_a_service_where_it_is_now_and_not_its_former_address(host: Hosted) -> None:
    host.activate(host.package("web", policy={"allow_from": ["db"]}))
    assert host.allowed() == {"10.99.1.2"}
    lose(host, ME)
    claims = Claims(host.engine, "a")
    other = claims.claim(
        Wanted("db", ("backend",), ("db",), {"backend": ("10.99.1.9",)}, {}), take=True
    )
    claims.publish("db", other.mark, up=True)
    host.look()
    assert host.world.store.service("db") and host.allowed() == {"10.99.1.9"}
    host.release("a", "db")
    host.claim("c", "evil", address="10.99.1.2")
    host.look()
    assert ("evil", "198.51.100.3") in host.claims() and host.allowed() == set()
    host.world.assert_whole()


def test_address_that_somebody_else_just_had_is_his_no_more(host: Hosted) -> None:
    """The mirror is behind: web has gone, and its address is this host's now."""
    address = host.claim("c", "web").networks["backend"][0]
    host.look()
    host.release("c", "web")
    assert host.activate(host.package("api")) == address
    assert host.claims() == set()
    assert address in host.allowed(), "db allows api"
    host.world.assert_whole()


def test_without_an_answer_nothing_new_starts_and_nothing_has_changed(host: Hosted) -> None:
    before = host.world.picture()
    host.engine.down = True
    with pytest.raises(NoAnswer, match="does not answer"):
        host.activate(host.package("api"))
    host.engine.down = False
    host.look(0)
    host.look(ORPHAN_S)
    machine = host.world.machine
    host.world.machine = machine._replace(joined=lambda: None)
    with pytest.raises(Conflict, match=r"'api' has claimed no address of 10\.99\.1\.0/24"):
        host.activate(host.package("api"))
    host.world.machine = machine
    assert host.world.picture() == before
    assert host.held("api") is None


def test_what_this_host_holds_by_its_own_record_starts_restarts_and_stops_without_an_answer(
    host: Hosted,
) -> None:
    host.activate(host.package("api"))
    host.engine.down = True
    restart(host.world.machine, ["api"])
    deactivate(host.world.machine, ["api"], host.report)
    assert host.warned == ["other hosts do not know it yet: the cluster does not answer"]
    host.activate("api")
    assert host.warned[1:] == ["api starts by this host's own record: the cluster does not answer"]
    host.world.assert_whole()
    remove(host.world.machine, ["api"], host.report)
    host.engine.down = False
    assert host.held("api") is not None
    host.look()
    assert host.held("api") is None
    address = host.claim("c", "web").networks["backend"][0]
    assert address == "10.99.1.3", "it is free at once"
    host.look(1)
    assert ("web", "198.51.100.3") in host.claims()
    host.look(ORPHAN_S)
    assert host.record("api")
    deactivate(host.world.machine, ["db"])
    host.engine.down = True
    host.activate("db")
    host.engine.down = False
    assert not host.up("db")
    host.look()
    assert host.up("db") and host.said == []


@pytest.mark.parametrize("lost", ["there", "back"])
def test_request_without_an_answer_is_settled_by_what_the_cluster_has(
    host: Hosted, lost: str
) -> None:
    host.engine.lose = [lost]
    host.activate(host.package("api"))
    assert host.record("api") and host.up("api")
    host.engine.lose = [lost]
    deactivate(host.world.machine, ["api"])
    assert not host.up("api")
    host.engine.lose = [lost]
    remove(host.world.machine, ["api"])
    assert host.held("api") is None and host.record("api")


def test_killed_or_failing_anywhere_is_made_good_by_the_next_command_and_the_agent(
    host: Hosted,
) -> None:
    """At each step of an activation: afterwards cluster, store and kernel agree, and all is as before or done."""
    world, path = host.world, host.package("api", aliases=["shop"])
    stride = samples(3, 1)
    for kills in (False, True):
        number = -kills
        while True:
            number += stride
            steps = Steps(world, number, kills)
            done = steps.run(lambda: host.activate(path))
            if kills and not done:
                world.processes.renew()
                journal.recover(world.machine, names=["api"])
            host.look(0)
            host.look(ORPHAN_S)
            assert host.record("api"), steps.passed[-1]
            assert (host.held("api") is not None) == (world.store.service("api") is not None)
            world.assert_whole()
            if done:
                assert host.up("api")
                remove(world.machine, ["api"])
                break
        assert number > 20


def test_network_appears_with_the_first_service_and_goes_with_the_last(host: Hosted) -> None:
    world = host.world
    host.membership.create_network(Spec("front", 0, 1430, (("10.99.7.0/24", "10.99.7.1"),)))
    other = Claims(host.engine, "c")
    made = other.claim(Wanted("web", ("front",), ("web",), {}, {}))
    other.publish("web", made.mark, up=True)
    assert host.activate(host.package("api", "front", "backend")) == "10.99.7.3"
    found = world.store.network("front")
    assert found is not None and found.span is not None and found.span.vni == 4098
    assert host.claims() == {("web", "198.51.100.3")}, "what others have is there at once"
    world.assert_whole()
    host.look()
    world.assert_whole()
    remove(world.machine, ["api"])
    assert world.store.network("front") is None and host.claims() == set()
    assert world.store.across.addresses() == {} and world.store.across.names("web") == ()
    world.assert_whole()


def test_network_that_the_cluster_does_not_have_is_this_hosts_own(host: Hosted) -> None:
    host.activate(host.package("api", "front"))
    assert host.held("api") is None
    found = host.world.store.network("front")
    assert found is not None and found.span is None
    host.engine.down = True
    with pytest.raises(NoAnswer, match="network 'other' may be one of the cluster"):
        host.activate(host.package("web", "other"))
    host.activate(host.package("web", "front"))  # known, so nobody is asked


def test_dry_run_shows_the_address_and_claims_nothing(host: Hosted) -> None:
    before, revision = host.world.picture(), host.engine.get(KEYS.prefix).revision
    assert host.activate(host.package("api"), dry_run=True) == "10.99.1.3"
    assert host.world.picture() == before
    assert host.engine.get(KEYS.prefix).revision == revision


def create(host: Hosted, name: str, *subnets: str, **more: Any) -> Any:
    return network.create(host.world.machine, NetworkRequest(name, subnets, span=True, **more))


def test_network_that_spans_is_made_taken_over_and_removed(host: Hosted) -> None:
    world = host.world
    before, revision = world.picture(), host.engine.get(KEYS.prefix).revision
    tried = network.create(
        world.machine, NetworkRequest("front", ("10.99.7.0/24",), span=True), dry_run=True
    )
    assert tried is not None and tried.span is not None and tried.span.vni == 4098
    assert (world.picture(), host.engine.get(KEYS.prefix).revision) == (before, revision)
    made = create(host, "front", "10.99.7.0/24")
    assert made.span.vni == 4098 and made.mtu == 1450, "of 1500, without the header of VXLAN"
    spec = host.membership.network("front")
    assert spec == Spec("front", 4098, 1450, (("10.99.7.0/24", "10.99.7.1"),))
    assert create(host, "front", "10.99.7.0/24") is None
    world.assert_whole()
    network.remove(world.machine, ["front"])
    assert host.membership.network("front") is None
    world.assert_whole()
    # one that another host made
    host.membership.create_network(Spec("side", 0, 1400, (("10.99.8.0/24", "10.99.8.9"),), True))
    with pytest.raises(Conflict, match="already exists in the cluster with subnet"):
        create(host, "side", "10.99.9.0/24")
    with pytest.raises(Conflict, match="'backend' already exists and spans hosts"):
        network.create(world.machine, NetworkRequest("backend", ("10.99.1.0/24",)))
    world.make("near", "10.99.60.0/24")
    host.membership.create_network(Spec("over", 0, 1400, (("10.99.60.0/23", "10.99.60.1"),)))
    with pytest.raises(Conflict, match=r"overlaps 10\.99\.60\.0/24 of network 'near'") as raised:
        host.activate(host.package("web", "over"))
    assert raised.value.hint == "the cluster has it with this subnet: another one here has to go"
    assert host.held("web") is None
    taken = create(host, "side", internal=True)
    assert (taken.mtu, taken.internal, taken.subnets[0].gateway) == (1400, True, "10.99.8.9")
    Claims(host.engine, "c").claim(Wanted("web", ("side",), ("web",), {}, {}))
    with pytest.raises(Conflict, match="network 'side' is used by web on c"):
        network.remove(world.machine, ["side"])
    with pytest.raises(Conflict, match="network 'backend' is used by db"):
        network.remove(world.machine, ["backend"])
    world.assert_whole()


def test_network_that_cannot_span_is_refused_and_nothing_has_changed(host: Hosted) -> None:
    world = host.world
    world.make("own", "10.98.0.0/24")
    before, revision = world.picture(), host.engine.get(KEYS.prefix).revision
    for name, subnets, more, match in (
        ("niso-default", (), {}, "each host's own"),
        ("own", (), {}, "on this host alone"),
        ("new", ("10.99.1.128/25",), {}, "overlaps"),
        ("new", (), {"mtu": 1451}, "packets of 1450 bytes fit"),
    ):
        with pytest.raises(Conflict, match=match):
            create(host, name, *subnets, **more)
    world.kernel.fail = lambda step: 12
    with pytest.raises(Error):
        create(host, "new")
    world.kernel.fail = lambda step: 0
    host.engine.down = True
    with pytest.raises(NoAnswer):
        create(host, "new")
    host.engine.down = False
    world.machine = world.machine._replace(joined=lambda: None)
    with pytest.raises(Error, match="this host is in no cluster"):
        create(host, "new")
    assert world.picture() == before
    assert {spec.name for spec in host.membership.networks()} == {"backend"}
    assert host.engine.get(KEYS.prefix).revision - revision in (0, 2)


def test_network_that_the_cluster_removed_goes_here_too(host: Hosted) -> None:
    create(host, "front", "10.99.7.0/24")
    host.membership.remove_network("front")
    host.look()
    assert host.world.store.network("front") is None
    host.world.assert_whole()


# --- stacks --------------------------------------------------------------------------------------


def spanning_stack(host: Hosted, *keys: str, service: str = "web") -> str:
    """Write a stack.toml of one service on a network front that spans hosts."""
    host.package(service, "front")
    path = host.world.stack(service, front="10.99.7.0/24")
    text = Path(path).read_text().replace('/24"\n', '/24"\nspan = true\n' + "\n".join(keys) + "\n")
    Path(path).write_text(text)
    return path


def test_stack_makes_a_network_that_spans_hosts(host: Hosted) -> None:
    path = spanning_stack(host, "observe = false")
    before = host.world.picture(), host.engine.get(KEYS.prefix)
    host.warned.clear()
    stack.up(host.world.machine, stack.load(path), 5.0, host.report, dry_run=True)
    assert (host.world.picture(), host.engine.get(KEYS.prefix)) == before
    assert host.warned == ["network front is not in the cluster yet, and would be made there"]
    assert host.world.up(path).made == ["front"]
    front = host.world.store.require_network("front")
    assert front.span and not front.observe
    assert host.membership.network_names() == ["backend", "front"]
    assert host.held("web") and host.up("web") and host.record("web")
    revision = host.engine.get(KEYS.prefix).revision
    assert host.world.up(path).made == []
    assert host.engine.get(KEYS.prefix).revision == revision
    # it stays the cluster's when it goes here with its last service, and any host can remove it
    remove(host.world.machine, ["web"])
    assert host.world.store.network("front") is None
    host.membership.create_network(Spec("back", 0, 1430, (("10.99.8.0/24", "10.99.8.1"),), False))
    network.remove(host.world.machine, ["front", "back"])
    assert host.membership.network_names() == ["backend"]
    with pytest.raises(NotFound, match="no network 'front'"):
        network.remove(host.world.machine, ["front"])
    host.world.assert_whole()


def test_stack_takes_over_the_clusters_network_or_says_how_it_differs(host: Hosted) -> None:
    subnets = (("10.99.7.0/24", "10.99.7.1"),)
    made = host.membership.create_network(Spec("front", 0, 1430, subnets, False))
    host.world.up(spanning_stack(host))
    front = host.world.store.require_network("front")
    assert front.span and front.span.vni == made.vni and front.observe
    remove(host.world.machine, ["web"])
    with pytest.raises(Conflict, match="already exists in the cluster and is not internal") as told:
        host.world.up(spanning_stack(host, "internal = true"))
    assert told.value.key == "networks.front" and told.value.file
    host.world.make("front", "10.99.7.0/24")
    with pytest.raises(Conflict, match="already exists on this host alone"):
        host.world.up(spanning_stack(host))
    assert host.held("web") is None
    host.world.assert_whole()


def test_stack_that_fails_leaves_no_network_in_the_cluster(host: Hosted) -> None:
    path = spanning_stack(host)
    host.world.processes.fail = lambda what: what.startswith("start")
    with pytest.raises(Error):
        host.world.up(path)
    host.world.processes.fail = lambda what: False
    assert host.membership.network_names() == ["backend"]
    assert host.world.store.network("front") is None and host.held("web") is None
    host.engine.down = True
    with pytest.raises(NoAnswer):
        host.world.up(path)
    host.engine.down = False
    host.world.assert_whole()


class Shared:
    """Sharers of api, at 10.99.1.3."""

    def __init__(self, host: Hosted) -> None:
        self.host = host
        host.activate(host.package("api"))

    def package(self, name: str, share: str = "api", **keys: Any) -> str:
        network = {"mode": "share", "share": share, **keys}
        return self.host.world.package(name, network=network)

    def names(self, service: str = "api") -> set[str]:
        """What is held is by the commands, and no look changes it."""
        host = self.host
        found = host.held(service)
        assert found is not None and host.record(service) and host.up(service)
        for key in found.address_keys(KEYS):
            value = decode(host.engine.get(key, one=True).items[0].value, key)
            assert value["names"] == list(found.names)
        prefix = KEYS.name("backend", "")
        items = [item for item in host.engine.get(prefix).items]
        own = [item for item in items if decode(item.value, "")["service"] == service]
        assert {item.key.removeprefix(prefix) for item in own} == {*found.names}
        revision = host.engine.get(KEYS.prefix).revision
        host.look()
        assert host.engine.get(KEYS.prefix).revision == revision
        host.world.assert_whole()
        return {*found.names}


def test_names_of_sharers_are_held_by_the_owner_of_the_namespace(host: Hosted) -> None:
    shared = Shared(host)
    host.activate(shared.package("log", ports=["9000:90"]))
    assert shared.names() == {"api", "log"}
    held = host.held("api")
    assert held and held.sharers == (("log", ("9000:90",)),)
    # others have taken a name: nothing has changed
    host.claim("c", "web")
    before = host.world.picture()
    with pytest.raises(Conflict, match="api: name web on network 'backend' belongs to 'web'"):
        host.activate(shared.package("web"))
    assert host.world.picture() == before and shared.names() == {"api", "log"}
    # one that cannot start, one that is down, and one that is removed have no name
    host.world.processes.fail = lambda what: what.startswith("start")
    with pytest.raises(Error):
        host.activate(shared.package("bad"))
    host.world.processes.fail = lambda what: False
    assert shared.names() == {"api", "log"}
    deactivate(host.world.machine, ["log"])
    assert shared.names() == {"api"}
    host.activate("log")
    assert shared.names() == {"api", "log"}
    # to another owner, to a network of its own, and back
    host.activate(host.package("two"))
    host.activate(shared.package("log", "two"))
    assert shared.names() == {"api"} and shared.names("two") == {"two", "log"}
    assert host.activate(host.package("log")) == "10.99.1.6"
    assert shared.names("two") == {"two"} and shared.names("log") == {"log"}
    host.activate(shared.package("log"))
    assert shared.names() == {"api", "log"} and host.held("log") is None
    remove(host.world.machine, ["log"])
    assert shared.names() == {"api"} and host.warned == []


def test_claim_of_an_owner_that_another_command_is_changing_is_left_to_that(host: Hosted) -> None:
    """With another mark, that command would find its service taken over, and undo it."""
    shared, store = Shared(host), host.world.store
    before = host.held("api")
    with service_lock("api"):
        with store.transaction():
            store.begin_intent("api", "activate", 0.0)
        with pytest.raises(Conflict, match="is being changed by another command"):
            host.activate(shared.package("log"))
        assert host.held("api") == before
        with store.transaction():
            store.end_intent("api")
    assert shared.names() == {"api"}


def test_owner_and_sharer_are_activated_and_restarted_together_without_an_answer(
    host: Hosted,
) -> None:
    shared = Shared(host)
    log = shared.package("log")
    deactivate(host.world.machine, ["api"])
    found = targets.find_targets(host.world.store, ["api", log])
    activate(host.world.machine, found, 5.0, host.report)
    assert shared.names() == {"api", "log"}
    restart(host.world.machine, ["api", "log"])
    assert shared.names() == {"api", "log"} and host.warned == []
    host.engine.down = True
    deactivate(host.world.machine, ["api", "log"])
    host.warned.clear()
    host.activate("api")
    host.activate("log")
    assert [text.split(":")[0] for text in host.warned if "record" in text] == [
        "api starts by this host's own record",
        "log starts by this host's own record",
    ]
    host.engine.down = False
    host.look()
    assert shared.names() == {"api", "log"}


@pytest.mark.parametrize("kills", [False, True])
def test_sharer_that_is_broken_off_leaves_no_name(host: Hosted, kills: bool) -> None:
    shared, world, looks_s = Shared(host), host.world, 0.0
    log = shared.package("log")
    for command in (lambda: host.activate(log), lambda: remove(world.machine, ["log"])):
        for number in range(1, 80):
            done = Steps(world, number, kills).run(command)
            repair_all(world.machine)
            for _ in range(2):
                looks_s += ORPHAN_S
                host.look(looks_s)
            here = world.store.service("log")
            assert ("log" in shared.names()) == (here is not None and here.active)
            if done:
                break
            if here is not None and command.__code__.co_names[0] == "activate":
                remove(world.machine, ["log"])
        else:
            pytest.fail("it never came to its end")


def test_service_that_is_taken_over_ends_with_its_sharers(host: Hosted) -> None:
    shared = Shared(host)
    host.activate(shared.package("log"))
    lose(host, ME)
    Claims(host.engine, "c").claim(Wanted("api", ("backend",), ("api",), {}, {}), take=True)
    host.look()
    for name in ("api", "log"):
        row = host.world.store.service(name)
        assert row is not None and not row.active
    host.world.assert_whole()


def test_what_is_held_starts_and_others_are_followed_while_the_engine_is_full(host: Hosted) -> None:
    path = host.package("api")
    host.activate(path)
    deactivate(host.world.machine, ["api"])
    host.engine.is_full = True
    host.activate("api")
    assert "starts by this host's own record" in host.warned[-1]
    restart(host.world.machine, ["api"])
    with pytest.raises(Refused, match="database space exceeded"):
        host.activate(host.package("web"))
    assert host.world.store.service("web") is None
    # what the engine still takes is followed
    host.engine.is_full = False
    host.claim("c", "other")
    host.engine.is_full = True
    host.look()
    assert ("other", "198.51.100.3") in host.claims() and "space exceeded" in host.said[-1]
    assert not host.up("api")
    host.engine.is_full = False
    host.look()
    assert host.up("api") and host.record("api")
    host.world.assert_whole()


def test_policy_that_is_too_long_for_a_claim_is_left_out(
    host: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niso.cluster.claim_values.MOST_POLICY", 200)
    entries = [f"10.0.{number}.0/24" for number in range(20)]
    host.activate(host.package("api", policy={"allow_from": entries}))
    held = host.held("api")
    assert held and held.policy == "too long" and host.up("api")
