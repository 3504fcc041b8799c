"""Test port-forward on a kernel and processes in memory: what it takes, and what its end returns."""

from __future__ import annotations

import pytest
from fake_world import Steps, World
from refusals import refuses

from niso.base.errors import Conflict, Error, NotFound
from niso.base.report import WarningEvent
from niso.change import journal, port_forward
from niso.change.deactivate import deactivate
from niso.kernel.sockets import Listener
from niso.look.check import unpublished_ports
from niso.plan.records import PortMapping

WEB = {"ports": ["8080:80"]}
MORE = PortMapping("", 9090, 80, "tcp")


def test_forward_comes_and_goes_at_once(world: World) -> None:
    world.activate(world.package("api", network=WEB))
    before = world.picture()
    forward = port_forward.port_forward
    assert forward(world.machine, "api", MORE) == (True, [])
    assert world.ports("api") == ["8080:80", "9090:80"]
    world.assert_whole()
    assert forward(world.machine, "api", MORE) == (False, [])
    port_forward.port_unforward(world.machine, "api", MORE)
    assert world.picture() == before
    with refuses(NotFound, hint="its forwards: none"):
        port_forward.port_unforward(world.machine, "api", MORE)
    with refuses(Conflict, key="PORT", hint="remove it there and activate the service"):
        port_forward.port_unforward(world.machine, "api", PortMapping("", 8080, 80, "tcp"))
    assert world.picture() == before


@pytest.mark.parametrize("kills", [False, True])
def test_forward_tidies_up_the_bridge_that_its_service_has_left(world: World, kills: bool) -> None:
    front, back = {"network": "front"}, {"network": "back"}
    world.activate(world.package("db", network=front))
    world.activate(world.package("api", network={**front, "ports": ["127.0.0.1:8080:80"]}))
    world.activate(world.package("api", network=back))
    world.assert_whole()
    steps = Steps(world, 3 if kills else 0, kills)
    assert steps.run(lambda: port_forward.port_forward(world.machine, "api", MORE)) is not kills
    journal.recover(world.machine)
    assert world.ports("api") == [MORE.text]
    world.assert_whole()


def test_forward_takes_a_port_only_if_it_may(world: World) -> None:
    world.activate(world.package("api", network=WEB), world.package("db"))
    before, wanted = world.picture(), PortMapping("", 8080, 5432, "tcp")
    with refuses(Conflict, "api", key="PORT", hint="--take-over takes 8080:80 from api"):
        port_forward.port_forward(world.machine, "db", wanted)
    assert world.picture() == before
    took = port_forward.port_forward(world.machine, "db", wanted, replace=True)
    assert took == (True, [("api", PortMapping("", 8080, 80, "tcp"))])
    assert (world.ports("api"), world.ports("db")) == ([], ["8080:5432"])
    world.assert_whole()
    assert unpublished_ports(world.machine, None) == []
    assert port_forward.port_unforward(world.machine, "db", wanted) == [took[1][0]]
    assert (world.ports("api"), world.ports("db")) == (["8080:80"], [])
    world.assert_whole()


def test_what_a_forward_took_is_back_with_its_end_unless_somebody_else_has_it(world: World) -> None:
    forward, end = port_forward.port_forward, port_forward.port_unforward
    ports = ["8081:80", "8080:80", ":82"]
    api = world.package("api", network={"ports": ports})
    wide, local = PortMapping("", 8080, 80, "tcp"), PortMapping("127.0.0.1", 8080, 80, "tcp")
    world.activate(api, world.package("db"), world.package("log"))
    before = world.store.port_rows("api")
    forward(world.machine, "db", wide, replace=True)
    forward(world.machine, "log", local, replace=True)  # it takes that of db
    assert world.ports("db") == []
    assert end(world.machine, "log", local) == [("api", wide)]
    assert world.store.port_rows("api") == before
    world.assert_whole()
    forward(world.machine, "db", wide, replace=True)
    world.kernel.listening["tcp"] = [Listener(2, "0.0.0.0", 8080, 1)]
    said: list[object] = []
    assert end(world.machine, "db", wide, said.append) == []
    assert [event.hints for event in said if isinstance(event, WarningEvent)] == [
        ("stop it, then niso activate api",)
    ]
    world.assert_whole()
    ((text, hint),) = unpublished_ports(world.machine, "api")
    assert text.startswith("api: 8080:80 of its manifest is not published")
    assert hint == "niso activate api"
    world.kernel.listening = {}
    world.activate(api)
    assert world.store.port_rows("api") == before
    assert unpublished_ports(world.machine, None) == []


def test_port_that_a_deactivated_forward_took_is_named_by_check(world: World) -> None:
    world.activate(world.package("api", network={"ports": [":82"]}), world.package("db"))
    (text,) = world.ports("api")
    taken = PortMapping("", int(text.partition(":")[0]), 80, "tcp")
    port_forward.port_forward(world.machine, "db", taken, replace=True)
    deactivate(world.machine, ["db"])
    ((text, _),) = unpublished_ports(world.machine, None)
    assert text.startswith("api: port 82 of its manifest")


def test_nobody_gets_a_port_that_two_manifests_claim(world: World) -> None:
    wanted = PortMapping("", 8080, 80, "tcp")
    world.activate(*(world.package(name) for name in ("db", "log")))
    world.activate(world.package("api", network=WEB))
    port_forward.port_forward(world.machine, "db", wanted, replace=True)
    deactivate(world.machine, ["db"])
    world.activate(world.package("web", network=WEB))
    port_forward.port_forward(world.machine, "log", wanted, replace=True)
    assert port_forward.port_unforward(world.machine, "log", wanted) == []
    world.assert_whole()
    assert len(unpublished_ports(world.machine, None)) == 2


def test_forward_that_cannot_be_is_refused_and_changes_nothing(world: World) -> None:
    forward, end = port_forward.port_forward, port_forward.port_unforward
    world.activate(world.package("api", network=WEB), world.package("db"))
    deactivate(world.machine, ["db"])
    forward(world.machine, "api", MORE)
    before = world.picture()
    for wrong in (MORE._replace(host_port=9091), MORE._replace(container_port=81)):
        with refuses(NotFound, wrong.text, "'api'", hint="its forwards: 9090:80"):
            end(world.machine, "api", wrong)
    with refuses(Conflict, "8080:80", "'api'", key="PORT"):
        end(world.machine, "api", PortMapping("", 8080, 80, "tcp"))
    for replace, port in ((False, MORE), (True, PortMapping("", 8080, 81, "tcp"))):
        with refuses(Conflict, hint="niso activate db"):
            forward(world.machine, "db", port, replace=replace)
    with refuses(Conflict, hint="niso activate db"):
        end(world.machine, "db", MORE)
    with refuses(Error, "'nobody'"):
        forward(world.machine, "nobody", MORE)
    with refuses(Error, "[::]:9090/tcp"):
        forward(world.machine, "api", MORE._replace(host_ip="::"))
    assert world.picture() == before


def test_manifest_may_not_take_a_port_that_is_forwarded(world: World) -> None:
    world.activate(world.package("api"), world.package("db"))
    port_forward.port_forward(world.machine, "api", PortMapping("", 9090, 81, "tcp"))
    before = world.picture()
    for name in ("api", "db"):
        manifest = world.package(name, network={"ports": ["9090:80"]})
        with refuses(Conflict, "9090", "'api'", key="network.ports[0]") as caught:
            world.activate(manifest)
        if name == "api":
            assert "9090:81" in (caught.value.hint or "")
    assert world.picture() == before
