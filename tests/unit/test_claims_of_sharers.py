"""Test the names of services that share a namespace, held in the cluster by its owner; the host is b."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_world import KEYS, ME, Hosted, lose
from fake_world import Steps, World
from refusals import refuses
from samples import some_steps

from niso.base.errors import Conflict, Error
from niso.base.locks import service_lock
from niso.change import targets
from niso.change.activate import activate, restart
from niso.change.deactivate import deactivate, remove
from niso.change.repair import repair_all
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import decode
from niso.cluster.own_claims import ORPHAN_S


@pytest.fixture
def host(world: World) -> Hosted:
    return Hosted(world)


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
    with refuses(Conflict, "backend", "web", "api", hint="choose another one"):
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
        with refuses(
            Conflict,
            key="network.share",
            hint="try again when that command has finished",
            file="log/manifest.toml",
        ):
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
    activate(host.world.machine, found, 5.0)
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
        for number in some_steps(kills):
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
