"""Test published ports on the fakes: what port-forward takes and returns, what clashes, what is shown."""

from __future__ import annotations

import json

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
    assert [*unpublished_ports(world.store, world.store.active_services())] == []
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
    assert end(world.machine._replace(report=said.append), "db", wide) == []
    assert [event.hints for event in said if isinstance(event, WarningEvent)] == [
        ("stop it, then niso activate api",)
    ]
    world.assert_whole()
    ((text, hint),) = unpublished_ports(world.store, ["api"])
    assert text.startswith("api: 8080:80 of its manifest is not published")
    assert hint == "niso activate api"
    world.kernel.listening = {}
    world.activate(api)
    assert world.store.port_rows("api") == before
    assert [*unpublished_ports(world.store, world.store.active_services())] == []


def test_port_that_a_deactivated_forward_took_is_named_by_check(world: World) -> None:
    world.activate(world.package("api", network={"ports": [":82"]}), world.package("db"))
    (text,) = world.ports("api")
    taken = PortMapping("", int(text.partition(":")[0]), 80, "tcp")
    port_forward.port_forward(world.machine, "db", taken, replace=True)
    deactivate(world.machine, ["db"])
    ((text, _),) = unpublished_ports(world.store, ["api"])
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
    assert len([*unpublished_ports(world.store, world.store.active_services())]) == 2


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


# --- the commands --------------------------------------------------------------------------------


def shown(world: World) -> list[tuple[str, str, str]]:
    """Return the lines of ``net ports``: service, host side, port inside."""
    lines = [line.split() for line in world.niso("net", "ports").stdout.splitlines()]
    assert lines[0] == ["SERVICE", "HOST", "CONTAINER", "PROTO"]
    return [(line[0], line[1], f"{line[2]}/{line[3]}") for line in lines[1:]]


def test_port_forward_says_what_it_published_took_and_returned(world: World) -> None:
    manifest = world.package("a", network={"ports": ["8080:80"]})
    world.niso("activate", manifest, world.package("b", network={"ports": ["8081:80"]}))
    assert "published" in world.niso("port-forward", "a", "9090:81").stdout
    for same in ("9090:81/tcp", "8080:80"):
        assert "already published, unchanged" in world.niso("port-forward", "a", same).stdout
    assert "published by 'a'" in world.refused("port-forward", "a", "9090:82")
    world.niso("port-forward", "a", "9090:82", "--take-over")
    assert ("a", "0.0.0.0:9090", "82/tcp") in shown(world)
    world.niso("port-forward", "a", "9090:82", "--remove")
    world.niso("port-forward", "b", "8080:81", "--take-over")
    assert shown(world) == [("b", "0.0.0.0:8081", "80/tcp"), ("b", "0.0.0.0:8080", "81/tcp")]
    # a has none left; what its manifest says comes back once b no longer has it
    world.package("a", network={"ports": ["8080:80"], "aliases": ["other"]})
    said = world.niso("activate", manifest).stderr
    assert "a: host port 8080/tcp is not published: it is forwarded to 'b'" in said
    world.package("a", network={"ports": ["8080:80", "8081:80"]})
    assert "published by 'b'" in world.refused("activate", manifest)
    done = world.niso("port-forward", "b", "8080:81", "--remove").stdout.splitlines()
    assert done == ["b: 8080→81 no longer published", "a: 8080→80 published again"]
    world.niso("port-forward", "b", "8080:81", "--take-over")
    world.niso("deactivate", "b")
    said = world.niso("net", "check").stderr
    assert "a: 8080:80 of its manifest is not published" in said and "niso activate a" in said
    world.package("a", network={"ports": ["8080:80"]})
    world.niso("activate", manifest)
    assert shown(world) == [("a", "0.0.0.0:8080", "80/tcp")]
    world.assert_whole()


def test_forward_of_another_port_inside_lasts_over_activations(world: World) -> None:
    manifest = world.package("a", network={"ports": ["8080:80", "8090:80"]})
    world.niso("activate", manifest)
    world.niso("port-forward", "a", "8080:81", "--take-over")
    kept = [("a", "0.0.0.0:8080", "81/tcp"), ("a", "0.0.0.0:8090", "80/tcp")]
    again = world.niso("activate", "a").stderr
    assert "host port 8080/tcp is not published: it is forwarded to its port 81" in again
    assert "published again once the forward 8080:81 of a is withdrawn" in again
    world.niso(
        "activate",
        world.package("a", network={"ports": ["8080:80", "8090:80"]}, environment={"A": "b"}),
    )
    assert sorted(shown(world)) == kept
    world.niso("restart", "a")
    world.kernel.ruleset, world.kernel.elements = None, {}
    world.niso("net", "repair")
    assert sorted(shown(world)) == kept
    world.assert_whole()
    done = world.niso("port-forward", "a", "8080:81", "--remove").stdout
    assert done.splitlines()[1] == "a: 8080→80 published again"
    assert "unchanged" in world.niso("activate", "a").stdout
    # what the manifest now has too is the manifest's: it goes when the manifest changes again
    world.niso("port-forward", "a", "9090:81")
    world.niso("activate", world.package("a", network={"ports": ["9090:81"]}))
    assert json.loads(world.niso("inspect", "a").stdout)["forwards"] == []
    assert shown(world) == [("a", "0.0.0.0:9090", "81/tcp")]
    # a forward ends with deactivate, and with the network of its service
    world.niso("port-forward", "a", "9000-9005:9000-9005/udp")
    world.niso("deactivate", "a")
    world.niso("activate", "a")
    assert shown(world) == [("a", "0.0.0.0:9090", "81/tcp")]
    for mode in ("none", "host"):
        world.niso("port-forward", "a", "9000:81")
        world.niso("activate", world.package("a", network={"mode": mode}))
        assert json.loads(world.niso("inspect", "a").stdout)["forwards"] == []
        world.niso("activate", world.package("a"))
        assert shown(world) == []
    world.assert_whole()


def test_forward_to_all_addresses_takes_the_port_of_each(world: World) -> None:
    ports = ["127.0.0.1:8080:80", "192.0.2.1:8080:80", "8090:80"]
    world.activate(world.package("a", network={"ports": ports}), world.package("b"))
    world.activate(world.package("c", network={"ports": ["127.0.0.2:8080:80"]}))
    world.niso("port-forward", "b", "8080:80", "--take-over")
    assert shown(world) == [("a", "0.0.0.0:8090", "80/tcp"), ("b", "0.0.0.0:8080", "80/tcp")]
    world.assert_whole()
    # of a range the whole is taken, or nothing; a process of the host keeps its port
    world.niso("port-forward", "a", "9000-9010:9000-9010")
    world.kernel.listening["tcp"] = [Listener(4, "0.0.0.0", 7000, 7)]
    world.kernel.programs[7] = (42, "nginx")
    before = world.picture()
    whole = "--take-over takes 8080:80 from b"
    for form, held, hint in (
        ("8080:81", "host port 8080/tcp is published by 'b'", whole),
        ("127.0.0.1:8080:81", "127.0.0.1:8080/tcp is published by 'b' as 8080/tcp", whole),
        ("8070-8085:8070-8085", "8070-8085/tcp is published by 'b' as 8080/tcp", whole),
        ("9005:81", "9005/tcp is published by 'a' as 9000-9010/tcp", "move the whole range"),
        ("7000:81", "nginx (pid 42)", ""),
    ):
        said = world.refused("port-forward", "c", form)
        assert held in said and hint in said, said
    for form, why in (
        ("9005:81", "host port 9005/tcp is part of 9000-9010/tcp of 'a'"),
        ("7000:81", "nginx (pid 42)"),
    ):
        assert why in world.refused("port-forward", "c", form, "--take-over")
    assert world.picture() == before


def test_all_that_cannot_be_is_refused_by_its_key_at_once(world: World) -> None:
    world.niso("activate", world.package("a", network={"ports": ["8080:80", "8000-8010:1-11"]}))
    named = {"ip": "10.99.0.77", "aliases": ["www", "web"]}
    world.niso("activate", world.package("one", network=named))
    world.kernel.listening["tcp"] = [Listener(4, "0.0.0.0", 6100, 7)]
    before = world.picture()
    own = named | {"ports": ["8080:81", "4000:4000", "6100:80", "8005:80"]}
    said = world.refused("activate", world.package("two", network=own))
    keys = [line.split(": ")[2] for line in said.splitlines() if line.startswith("niso: ")]
    ports = [f"network.ports[{place}]" for place in (0, 2, 3)]
    assert keys == ["network.aliases", "network.aliases", "network.ip", *ports], said
    # two of one command
    for keys_of, words in (
        ({"ports": ["6000:80"]}, "port for one of the two"),
        ({"ip": "10.99.0.78"}, "address for one of the two"),
        ({"aliases": ["both"]}, "name for one of the two"),
    ):
        pair = [world.package(name, network=keys_of) for name in ("x", "y")]
        said = world.refused("activate", *pair)
        assert f"y/manifest.toml: network.{next(iter(keys_of))}" in said
        assert f"hint: x is part of this command: choose another {words}\n" in said
    # entries of one manifest that contradict each other, and wrong forms
    for third in ("8080:81", "0.0.0.0:8080:81", "8079-8081:1-3"):
        entries = {"ports": ["8080:80", "9000:90", third]}
        said = world.refused("activate", world.package("b", network=entries))
        assert "network.ports[2]" in said and "network.ports[0]" in said, said
    wrong = ["0:80", "80:80/icmp", "80-90:80-91", "::80:80", "a:b", "", "[::1]:80:80"]
    done = world.niso(
        "activate", "--json", world.package("b", network={"ports": ["1:1", *wrong]}), check=False
    )
    errors = [json.loads(line)["error"]["key"] for line in done.stderr.splitlines()]
    assert errors == [f"network.ports[{number}]" for number in range(1, len(wrong) + 1)]
    said = world.refused("activate", world.package("b", network={"ports": ["[::]:8080:8080"]}))
    assert "network.ports[0]: " in said and "no IPv6 subnet" in said and "net create" in said
    assert world.picture() == before


def test_ports_read_as_the_contract_says(world: World) -> None:
    ports = ["8080:80", "8000-8010:8000-8010", "127.0.0.1:5432:81", "0.0.0.0:9000:90", "53:53/udp"]
    assert world.niso("net", "ports", "--json").stdout == "[]\n"
    world.niso("activate", world.package("a", network={"ports": [*ports, "8080:80/tcp"]}))
    text = ", ".join(
        ("8080→80", "8000-8010→8000-8010", "127.0.0.1:5432→81", "9000→90", "53→53/udp")
    )
    line = world.niso("net", "inspect", "niso-default").stdout.splitlines()[-1]
    assert line.split() == f"a 10.99.0.2 ports: {text}".split()
    assert text in world.niso("ps").stdout
    assert shown(world) == [
        ("a", "0.0.0.0:8080", "80/tcp"),
        ("a", "0.0.0.0:8000-8010", "8000-8010/tcp"),
        ("a", "127.0.0.1:5432", "81/tcp"),
        ("a", "0.0.0.0:9000", "90/tcp"),
        ("a", "0.0.0.0:53", "53/udp"),
    ]
    (row,) = json.loads(world.niso("ps", "--json").stdout)
    own = {"host_ip": "127.0.0.1", "host_port": 5432, "container_port": 81, "proto": "tcp"}
    assert row["ports"][2] == own
    listed = json.loads(world.niso("net", "ports", "--json").stdout)
    assert [{**row, **own} for row, own in zip(listed, row["ports"], strict=True)] == listed
    assert (listed[4]["service"], listed[4]["host"], listed[4]["container"]) == (
        "a",
        "0.0.0.0:53",
        53,
    )
    described = json.loads(world.niso("net", "inspect", "niso-default", "--json").stdout)
    assert described["services"][0]["ports"] == row["ports"]
    assert json.loads(world.niso("inspect", "a").stdout)["ports"] == row["ports"]
    lines = world.niso("net", "ports", "--exposed").stdout.splitlines()[1:]
    assert [line.endswith("  this host") for line in lines] == [False, False, True, False, False]
    exposed = json.loads(world.niso("net", "ports", "--exposed", "--json").stdout)
    assert [row["host"] for row in exposed] == [host for _, host, _ in shown(world)]


def test_chosen_ports_are_kept_over_a_reset(world: World) -> None:
    world.activate(world.package("a", network={"ports": [":80", ":80-81", ":80/udp"]}))
    kept = world.ports("a")
    assert kept == ["20000:80", "20001-20002:80-81", "20000:80/udp"]
    world.niso("reset", "--yes")
    world.activate(world.package("b", network={"ports": [":80", ":80-81"]}))
    assert world.ports("b") == ["20003:80", "20004-20005:80-81"]
    world.niso("activate", "a")
    assert world.ports("a") == kept


def test_services_swap_ports_in_one_activation_unless_a_third_is_in_the_way(world: World) -> None:
    for name, port in (("one", 6001), ("two", 6002), ("three", 6003)):
        world.activate(world.package(name, network={"ports": [f"{port}:80"]}))
    before = world.picture()
    for first, second in (("one", "two"), ("two", "one")):
        world.package(first, network={"ports": ["6002:80", "6003:80"]})
        world.package(second, network={"ports": ["6001:80"]})
        folders = [str(world.folder / name) for name in (first, second)]
        assert "6003/tcp is published by 'three'" in world.refused("activate", *folders)
        assert world.picture() == before
    world.activate(
        world.package("one", network={"ports": ["6002:80"]}),
        world.package("two", network={"ports": ["6001:80"]}),
    )
    assert (world.ports("one"), world.ports("two")) == (["6002:80"], ["6001:80"])
    world.assert_whole()


def test_host_port_of_a_service_address_leads_to_one_port_on_all_addresses(world: World) -> None:
    tables = {"service": {"replicas": 2}, "healthcheck": {"command": ["true"]}}
    network = {"ports": ["8080:80"]}
    world.activate(world.package("web", network=network, deploy={"monitor": "0s"}, **tables))
    said = world.refused("port-forward", "web", "192.0.2.1:8080:81")
    assert "8080:80 leads this host port to another port of 'web'" in said
    world.niso("port-forward", "web", "192.0.2.1:8080:80")
    assert "192.0.2.1:8080" in world.niso("net", "ports").stdout
    world.assert_whole()
    world.niso("port-forward", "web", "192.0.2.1:8080:80", "--remove")
    world.assert_whole()
