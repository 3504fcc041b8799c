"""Test what activate, deactivate, remove and net create hold in the cluster, on the fake engine and kernel.

The world's host is b, with db up on backend.
"""

from __future__ import annotations

import pytest
from cluster_world import KEYS, ME, Hosted, lose
from fake_world import Steps, World
from refusals import refuses
from samples import samples, some_steps

from niso.base.errors import Conflict, Error, InvalidInput, NotFound
from niso.change import attach as change_attach
from niso.change import journal
from niso.change.activate import restart
from niso.change.attach import AttachmentNetwork
from niso.change.deactivate import deactivate, remove
from niso.change.repair import repair_all
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import NoAnswer, Refused
from niso.cluster.key_values import Spec
from niso.cluster.own_claims import ORPHAN_S, STRAY_S
from niso.plan.records import PortMapping


@pytest.fixture
def host(world: World) -> Hosted:
    return Hosted(world)


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
    with refuses(InvalidInput, "10.99.1.1", key="network.ip", file="web/manifest.toml"):
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
    with refuses(Conflict, "web", hint="it can be activated here once it is removed on c"):
        host.activate(host.package("web"))
    with refuses(Conflict, "backend", "web", "10.99.1.3", hint="choose another one"):
        host.activate(host.package("api", ip="10.99.1.3"))
    with refuses(Conflict, "shop", "backend", "web", hint="choose another one"):
        host.activate(host.package("api", aliases=["shop"]))
    lose(host, "c")
    with refuses(
        Conflict,
        "web",
        hint="--from-lost-host moves it here with 10.99.1.3, fd00:1::3; c stops it when it comes back",
    ) as raised:
        host.activate(host.package("web"))
    assert "--from-lost-host" in (raised.value.hint or "") and "10.99.1.3" in (
        raised.value.hint or ""
    )
    assert host.world.picture() == before
    held = host.held("web")
    assert held and (held.mark, held.networks) == (other.mark, other.networks)
    assert host.world.store.across.claim("web") is None
    host.follow()
    with refuses(NotFound, "web", hint="it is on c: run the command there") as missing:
        host.activate("web")
    assert missing.value.hint == "it is on c: run the command there"


def test_attachment_is_held_as_a_service_is(host: Hosted) -> None:
    assert (
        host.attach("box", aliases=("shop",), ports=(PortMapping("", 8080, 80, "tcp"),))
        == "10.99.1.3"
    )
    held = host.held("box")
    assert held and (held.host, held.names, held.ports) == (ME, ("box", "shop"), ("8080:80",))
    assert host.up("box") and host.record("box")
    assert host.look() == [] and host.record("box") and host.up("box")
    host.claim("c", "web")
    with refuses(Conflict, "web", hint="it can be activated here once it is removed on c"):
        host.attach("web")
    with refuses(InvalidInput, hint="leave out the MAC address"):
        host.attach("pod", AttachmentNetwork("backend", mac="02:00:00:00:00:01"))
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
    host.attach("box", AttachmentNetwork("niso-default"))
    assert host.held("box") is None and host.record("box")
    host.attach("box")
    assert change_attach.detach(host.world.machine, "box")
    assert host.held("box") is None and host.record("box")
    host.world.assert_whole()


@pytest.mark.parametrize("kills", [False, True])
def test_attachment_that_is_broken_off_leaves_nothing(host: Hosted, kills: bool) -> None:
    world, looks_s = host.world, 0.0

    def attach() -> object:
        return host.attach("box")

    def detach() -> object:
        return change_attach.detach(world.machine, "box")

    for command in (attach, detach):
        for number in some_steps(kills):
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
    with refuses(
        Conflict,
        "api",
        "10.99.1.0/24",
        hint="niso cluster status shows whether this host is in the cluster",
        file="api/manifest.toml",
    ):
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
    deactivate(host.world.machine, ["api"])
    assert host.warned == ["other hosts do not know it yet: the cluster does not answer"]
    host.activate("api")
    assert host.warned[1:] == ["api starts by this host's own record: the cluster does not answer"]
    host.world.assert_whole()
    remove(host.world.machine, ["api"])
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


def test_dry_run_shows_the_address_and_claims_nothing(host: Hosted) -> None:
    before, revision = host.world.picture(), host.engine.get(KEYS.prefix).revision
    assert host.activate(host.package("api"), dry_run=True) == "10.99.1.3"
    assert host.world.picture() == before
    assert host.engine.get(KEYS.prefix).revision == revision


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
    monkeypatch.setattr("niso.cluster.key_values.MOST_POLICY", 200)
    entries = [f"10.0.{number}.0/24" for number in range(20)]
    host.activate(host.package("api", policy={"allow_from": entries}))
    held = host.held("api")
    assert held and held.policy == "too long" and host.up("api")
