"""Test stacks on a kernel and processes in memory: up, changes, down, and networks of several stacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_world import World
from refusals import refuses

from niso.base.errors import Conflict, Error, ProcessError, flatten
from niso.base.report import Event, WarningEvent
from niso.change import stacks
from niso.change.deactivate import remove
from niso.look import stack_members


def test_stack_comes_changes_and_goes(world: World) -> None:
    for name in ("api", "db", "log"):
        world.package(name, network={"network": "backend"})
    path = world.stack("db", "api", backend="10.99.7.0/24")
    up = world.up(path)
    assert [outcome.service for outcome in up.services] == ["db", "api"]
    assert (up.left, up.networks) == ((), ("backend",))
    assert world.processes.done.index("start db") < world.processes.done.index("create api")
    world.assert_whole()
    assert not any(outcome.changed for outcome in world.up(path).services)
    world.stack("api", "log", backend="10.99.7.0/24")
    up = world.up(path)
    assert up.left == ("db",)
    assert sorted(world.store.active_services()) == ["api", "log"]
    world.assert_whole()
    world.stack("api", backend="10.99.7.0/24")
    up = world.up(path)  # what ends concerns the others only by their hosts files
    assert (up.left, [outcome.changed for outcome in up.services]) == (("log",), [False])
    world.stack("api", "log", backend="10.99.7.0/24")
    world.up(path)
    down = stacks.down(world.machine, path, False, False)
    assert down.services == (("log", True), ("api", True))
    assert not world.kernel.netns
    world.assert_whole()


def test_stack_names_the_networks_that_only_its_manifests_name(world: World) -> None:
    world.package("api", network={"networks": ["backend", "side"]})
    world.package("db")
    path = world.stack("db", "api", backend="10.99.7.0/24")
    assert world.up(path).networks == ("backend", "niso-default", "side")
    assert world.up(path).networks == ()


def test_stack_with_one_that_dies_leaves_nothing(world: World) -> None:
    for name in ("api", "db"):
        world.package(name, network={"network": "backend"})
    before = world.picture()
    world.processes.dies["api"] = 1
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.up(world.stack("db", "api", backend="10.99.7.0/24"))
    assert world.picture() == before
    world.assert_whole()


def test_stack_of_another_folder_is_neither_replaced_nor_taken_down(world: World) -> None:
    for folder, services in (("one", ("api", "db")), ("two", ("api", "log"))):
        for name in services:
            world.package(name, below=folder)
        world.stack(*services, below=folder)
    first, second = f"{world.folder}/one/stack.toml", f"{world.folder}/two/stack.toml"
    world.up(first)
    before = world.picture()
    events: list[Event] = []
    for command in (
        lambda: world.up(second),
        lambda: stacks.up(
            world.machine._replace(report=events.append),
            stack_members.load(second),
            5.0,
            dry_run=True,
            replace=False,
        ),
        lambda: stacks.down(world.machine, second, False, False),
        lambda: stack_members.own(world.store, second),  # status and logs
    ):
        with refuses(Conflict, "'shop'", first, file=second):
            command()
        assert world.picture() == before and events == []
    # net policy test foresees a copy
    assert stacks.foreseen(world.machine, stack_members.load(second), replace=True)
    assert set(stack_members.outlined(world.store, second).after) == {"api", "log"}
    assert sorted(world.store.active_services()) == ["api", "db"]
    up = world.up(second, replace=True)
    assert up.left == ("db",) and sorted(world.store.active_services()) == ["api", "log"]
    with pytest.raises(Conflict):
        stacks.down(world.machine, first, False, False)
    stacks.down(world.machine, second, False, False)
    world.assert_whole()


def test_stack_that_joins_the_network_of_another_one_is_told_so_once(world: World) -> None:
    files = []
    for name in ("one", "two"):
        world.package(f"{name}-api", below=name, network={"network": "backend"})
        files.append(world.stack(f"{name}-api", name=name, below=name, backend="10.99.7.0/24"))
    events: list[Event] = []
    for file in files * 2:
        stacks.up(
            world.machine._replace(report=events.append),
            stack_members.load(file),
            5.0,
            False,
            False,
        )
    (caution,) = [event for event in events if isinstance(event, WarningEvent)]
    assert "network backend is also that of stack one" in caution.text


@pytest.mark.parametrize(
    ("keys", "reason", "hint"),
    [
        ('subnet = "10.99.9.0/24"', "overlaps 10.99.9.0/24 of network", "choose another subnet"),
        ('subnet = "8.8.8.0/24"', "a public prefix", "allow_public = true if the prefix is yours"),
        ('gateway = "10.99.7.0"', "the address of the network itself", "an address of 10.99.7.0"),
        ("internal = true", "is not internal", "match it, or choose another name; services on it"),
    ],
)
def test_error_of_a_network_has_the_next_step_in_the_words_of_the_file(
    world: World, keys: str, reason: str, hint: str
) -> None:
    world.make("taken", "10.99.9.0/24")
    world.package("api", network={"network": "backend"})
    path = world.stack("api", backend="10.99.7.0/24")
    if "subnet" not in keys:
        world.up(path)  # the network exists
    folder = Path(path)
    folder.write_text(folder.read_text().replace('subnet = "10.99.7.0/24"', keys))
    with pytest.raises(Error) as caught:
        world.up(path)
    [error] = flatten(caught.value)
    assert error.key is not None and error.key.startswith("networks.backend")
    assert reason in error.message
    assert hint in (error.hint or "")
    assert "--" not in (error.hint or "")


def test_what_cannot_be_is_found_before_anything_is_stopped(world: World) -> None:
    """Of two services of one package, the error names the entry of its own."""
    world.activate(world.package("other", network={"ports": ["9000:80"]}))
    for name in ("web", "www"):
        world.package(name)
    path = world.stack("web")
    world.up(path)
    before = world.picture()
    folder = Path(world.stack("www", "api"))
    text = folder.read_text().replace('"./api"', '"./www"\nports = ["9000:80"]')
    folder.write_text(text)
    with refuses(Error, "9000", "'other'", key="service[1].ports[0]", file="stack.toml"):
        world.up(path)
    assert world.picture() == before


def test_service_of_another_stack_and_a_network_that_differs_are_refused_by_key(
    world: World,
) -> None:
    def other(service: str, subnet: str) -> str:
        path = Path(world.stack(service, name="other", backend=subnet))
        path.write_text(path.read_text().replace("[networks", "prefix = false\n[networks"))
        return str(path)

    for name in ("db", "web"):
        world.package(name, network={"network": "backend"})
    world.up(world.stack("db", name="shop", backend="10.99.7.0/24"))
    before = world.picture()
    with refuses(Error, "'db'", "'shop'", key="service[0].name", file="stack.toml"):
        world.up(other("db", "10.99.7.0/24"))
    with refuses(Error, "10.99.7.0/24", key="networks.backend", file="stack.toml"):
        world.up(other("web", "10.99.8.0/24"))
    with refuses(Error, "10.99.7.0", key="networks.backend.subnet", file="stack.toml"):
        world.up(other("web", "10.99.7.0"))
    assert world.picture() == before
    path = other("web", "10.99.7.0/24")
    world.up(path)  # both stacks can have the network
    stacks.down(world.machine, path, False, False)
    assert world.store.active_services() == ["db"]
    world.assert_whole()


def test_service_joins_a_stack_and_can_be_removed_alone(world: World) -> None:
    world.make("kept", "10.99.9.0/24")
    world.activate(world.package("db"))
    world.package("web", network={"network": "backend"})
    pid = world.pid("db")
    path = world.stack("db", "web", backend="10.99.7.0/24", kept="10.99.9.0/24")
    assert world.up(path).networks == ("backend",)
    remove(world.machine, ["web"])
    assert sorted(world.store.network_names()) == ["kept", "niso-default"]
    world.up(path)
    assert world.pid("db") == pid
    remove(world.machine, ["web", "db"])
    assert world.store.network_names() == ["kept"]
    world.assert_whole()


# --- the commands --------------------------------------------------------------------------------

SHOP = """\
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.7.0/24" }
"""


def written(world: World, *services: str) -> str:
    """Write the stack shop of these services: a name, and further lines of its entry. Return its folder."""
    text = SHOP
    for entry in services:
        name, _, lines = entry.partition(" ")
        text += f'[[service]]\nname = "{name}"\npackage = "./{name}"\n{lines}\n'
    (world.folder / "stack.toml").write_text(text)
    return str(world.folder)


def statuses(world: World) -> dict[str, str]:
    rows = json.loads(world.niso("stack", "ps", str(world.folder), "--json").stdout)
    return {row["service"]: row["status"] for row in rows}


API, DB = 'api depends_on = { db = "started" }', "db "


def test_up_prints_what_it_did_and_nothing_twice(world: World) -> None:
    for name in ("api", "db"):
        world.package(name, network={"network": "backend"})
    folder = written(world, f'{API}\nports = ["8080:80"]', DB)
    assert world.niso("stack", "up", folder).stdout.splitlines() == [
        "network backend: created",
        "db: active  10.99.7.2",
        "api: active  10.99.7.3  ports: 8080→80",
    ]
    before = world.picture()
    assert world.niso("stack", "up", folder, "--dry-run").stdout == "nothing to do\n"
    again = world.niso("stack", "up", folder, "-v")
    assert again.stderr == "" and [
        line.partition("  ")[0] for line in again.stdout.splitlines()
    ] == [
        "db: already active, unchanged",
        "api: already active, unchanged",
    ]
    result = json.loads(world.niso("stack", "up", folder, "--json").stdout)
    assert [each["changed"] for each in result["services"]] == [False, False]
    assert (result["stack"], result["left"], result["networks"]) == ("shop", [], [])
    assert world.picture() == before


def test_change_and_down_of_a_stack_are_as_the_dry_run_says(world: World) -> None:
    for name in ("api", "db"):
        world.package(name, network={"network": "backend"})
    folder = written(world, f'{API}\nports = ["8080:80"]', DB)
    world.up(f"{folder}/stack.toml")
    before = world.picture()
    pids = {name: world.pid(name) for name in ("api", "db")}
    written(world, f'{API}\nenvironment = {{ LEVEL = "debug" }}', f'{DB}ports = ["5432:80"]')
    planned = world.niso("stack", "up", folder, "--dry-run").stdout
    assert world.picture() == before
    assert world.niso("stack", "up", folder, "-v").stderr == planned
    assert "5432" in planned and "start db" not in planned and "start api" in planned
    assert world.pid("db") == pids["db"] and world.pid("api") != pids["api"]
    planned = world.niso("stack", "down", folder, "--dry-run").stdout
    done = world.niso("stack", "down", folder, "-v")
    assert done.stderr == planned and planned.startswith("stop api\nstop db\n")
    assert done.stdout == "api: inactive\ndb: inactive\n"
    assert statuses(world) == {"api": "inactive", "db": "inactive"}
    assert world.niso("stack", "down", folder).stdout == (
        "api: already inactive, unchanged\ndb: already inactive, unchanged\n"
    )
    assert "10.99.7.2" in world.niso("stack", "up", folder).stdout
    # down needs neither packages nor a right file
    written(world, 'api ports = "x"', "nowhere nome = 3")
    down = world.niso("stack", "down", folder).stdout.splitlines()
    assert sorted(down) == ["api: inactive", "db: inactive"]
    world.assert_whole()


def test_service_that_left_the_file_ends_and_its_port_is_free(world: World) -> None:
    for name in ("web", "www", "job"):
        world.package(name)
    folder = written(world, 'web ports = ["8080:80"]', "job ")
    world.niso("stack", "up", folder)
    address = world.niso("inspect", "web").stdout
    job = world.pid("job")
    written(world, 'www ports = ["8080:80"]', "job ")
    # one that fails leaves all as it was
    before = world.picture()
    world.processes.dies["www"] = 7
    assert "www: its process ended at once" in world.refused("stack", "up", folder)
    assert world.picture() == before
    world.processes.dies.clear()
    planned = world.niso("stack", "up", folder, "--dry-run").stdout
    done = world.niso("stack", "up", folder, "-v")
    assert done.stderr == planned and "stop web" in planned.splitlines()
    assert "web: inactive, removed from the stack" in done.stdout.splitlines()
    assert (world.ports("www"), world.pid("job")) == (["8080:80"], job)
    assert statuses(world) == {"www": "running", "job": "running"}
    world.niso("stack", "down", folder)
    assert world.niso("activate", "web").stdout.split()[2] in address  # it is still known
    world.assert_whole()


def test_services_that_are_not_up_are_shown_too(world: World) -> None:
    world.activate(world.package("db"))  # not of the stack
    folder = written(world, "db ", "web ")
    shown = world.niso("stack", "ps", folder).stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:]] == [["db", "inactive"], ["web", "inactive"]]
    for words, said in (
        (("upp",), "'stack up'"),
        (("up", "--timeout", "x", folder), "--timeout"),
    ):
        assert said in world.refused("stack", *words, status=2)
    assert "stack.toml: no such file" in world.refused("stack", "up", f"{folder}/db")


def test_instances_come_and_leave_with_their_service_or_not_at_all(world: World) -> None:
    tables = {"service": {"replicas": 2}, "healthcheck": {"command": ["true"]}}
    deploy = {"monitor": "0s", "drain": "0s"}
    for name, port in (("api", 8080), ("web", 8081)):
        world.package(name, network={"ports": [f"{port}:80"]}, deploy=deploy, **tables)
    world.package("cli")

    def instances() -> list[str]:
        rows = json.loads(world.niso("ps", "--instances", "--json").stdout)
        return [row["service"] for row in rows if "." in row["service"]]

    world.activate(world.package("base"))
    before = world.picture()
    world.processes.dies["cli"] = 1
    assert "cli" in world.refused("stack", "up", world.stack("api", "web", "cli"))
    assert world.picture() == before and instances() == []
    world.processes.dies.clear()
    world.niso("stack", "up", world.stack("api", "web", "cli"))
    assert instances() == ["api.1", "api.2", "web.1", "web.2"]
    said = world.niso("stack", "up", world.stack("api")).stdout
    assert "web" in said and instances() == ["api.1", "api.2"]
    rows = {row["service"]: row for row in json.loads(world.niso("ps", "--json").stdout)}
    assert rows["web"]["status"] == "inactive"
    world.assert_whole()
    world.niso("stack", "down", world.stack("api"))
    assert instances() == []
    world.assert_whole()


def test_sharer_that_leaves_its_stack_while_its_provider_moves_ends(world: World) -> None:
    """It would follow the provider to the other hosts file, and it is one of those that end."""
    world.package("web", network={"networks": ["other"]})
    world.package("side", network={"mode": "share", "share": "web", "ports": ["9001:80"]})
    world.niso("stack", "up", world.stack("web", "side", other="10.99.9.0/24"))
    world.package("web", network={"ports": ["9001:80"]})
    world.niso("stack", "up", world.stack("web"))
    assert json.loads(world.niso("inspect", "side", "--json").stdout)["status"] == "inactive"
    world.assert_whole()
