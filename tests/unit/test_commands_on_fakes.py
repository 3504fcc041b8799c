"""Test commands on a kernel and processes in memory, and their agreement with the store."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_world import Steps, World
from refusals import refuses

from niso.base import names
from niso.base import paths as base_paths
from niso.base.errors import Conflict, Error, NotFound, ProcessError
from niso.base.locks import service_lock
from niso.base.report import Event, Recovered
from niso.change import activate, journal, networks, port_forward, targets
from niso.change.deactivate import deactivate, remove
from niso.kernel.kinds.sysctls import FORWARDING
from niso.kernel.ruleset import INET
from niso.kernel.sockets import Listener
from niso.look import services as look_services
from niso.look.check import check
from niso.plan.records import PortMapping
from niso.plan.subnets import NetworkRequest
from niso.runtime import package
from niso.store.store import Store

SHARE = {"mode": "share", "share": "api"}
WEB = {"ports": ["8080:80"]}


# --- activate --------------------------------------------------------------------------------------------------------


def test_no_port_is_chosen_that_another_manifest_of_the_command_names(world: World) -> None:
    """But one that a service has is its own, whatever the others name."""
    paths = [
        world.package("a", network={"ports": [":80"]}),
        world.package("b", network={"ports": ["20000:80", "20001-20002:81-82"]}),
        world.package("c", network={"mode": "share", "share": "b", "ports": ["20003:83"]}),
    ]
    world.activate(*paths)
    assert (world.ports("a"), world.ports("b")[0]) == (["20004:80"], "20000:80")
    assert not any(outcome.changed for outcome in world.activate(*paths))
    late = world.package("late", network={"ports": ["20004:80"]})
    with refuses(
        Conflict,
        key="network.ports[0]",
        hint="a is part of this command: choose another port for one of the two",
        file="late/manifest.toml",
    ):
        world.activate(*paths, late)
    world.assert_whole()


def test_new_service_has_all_that_its_manifest_names(world: World) -> None:
    (outcome,) = world.activate(world.package("api", network=WEB))
    assert outcome.changed
    assert world.ports("api") == ["8080:80"]
    assert outcome.address
    assert names.netns("api") in world.kernel.netns
    assert world.pid("api")
    world.assert_whole()


def test_unchanged_service_takes_no_step(world: World) -> None:
    manifest = world.package("api", network=WEB)
    world.activate(manifest)
    before, done = world.picture(), len(world.kernel.done)
    ran = list(world.processes.done)
    (outcome,) = world.activate(manifest)
    assert not outcome.changed
    assert (world.kernel.done[done:], world.processes.done) == ([], ran)
    assert world.picture() == before
    # what the service has lost is put back
    published = next(key for key in world.kernel.elements if "publish_any4" in key)
    del world.kernel.elements[published]
    (outcome,) = world.activate(manifest)
    assert world.processes.done == ran
    assert world.picture() == before


def test_argument_is_a_manifest_a_folder_or_a_known_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = world.package("api")
    monkeypatch.chdir(world.folder)
    world.niso("activate", manifest)
    world.niso("remove", "api")
    world.niso("activate", "api")
    world.niso("deactivate", "api")
    Path(manifest).write_text("this is no manifest")
    # the known service, with the manifest of its last activation; a folder of this name is named
    assert "./api" in world.niso("activate", "api").stderr
    assert "line 1, column 6" in world.refused("activate", "./api")
    monkeypatch.chdir("/")
    assert not world.niso("activate", "api").stderr
    assert world.pid("api")
    assert "'nothing'" in world.refused("activate", "nothing")
    assert "--timeout" in world.refused("activate", "--timeout", "soon", "api", status=2)


def test_new_port_leaves_the_process_alone(world: World) -> None:
    world.activate(world.package("api", network=WEB))
    first = world.pid("api")
    (outcome,) = world.activate(world.package("api", network={"ports": ["8081:80"]}))
    assert outcome.changed
    assert world.ports("api") == ["8081:80"]
    assert world.pid("api") == first
    world.assert_whole()


def test_new_network_is_shown_to_the_running_process(world: World) -> None:
    world.activate(world.package("api"))
    first = world.pid("api")
    world.activate(world.package("api", network={"networks": ["front", "back"]}))
    assert world.pid("api") == first
    assert set(world.store.network_names()) == {"front", "back"}
    assert set(world.kernel.bridges) == {names.bridge("front"), names.bridge("back")}
    world.assert_whole()


def test_new_environment_starts_the_process_anew(world: World) -> None:
    world.activate(world.package("api"))
    first = world.pid("api")
    world.activate(world.package("api", environment={"LEVEL": "debug"}))
    assert world.pid("api") != first
    world.assert_whole()


def test_flows_are_forgotten_of_addresses_that_a_service_did_not_have(world: World) -> None:
    api, web = world.package("api"), world.package("web")
    activate.activate(world.machine, targets.find_targets(world.store, [api]), 60, dry_run=True)
    assert world.kernel.forgotten == []
    addresses = [a for made in world.activate(api, web) for a in made.address]
    assert sorted(world.kernel.forgotten) == sorted(addresses)
    deactivate(world.machine, ["api"])
    world.activate(world.package("api", network=WEB))
    assert len(world.kernel.forgotten) == len(addresses)  # it kept its leases


def test_denied_name_that_gets_a_service_leaves_the_policy_whole(world: World) -> None:
    world.activate(world.package("db", network={"policy": {"deny_from": ["api"]}}))
    world.activate(world.package("api"))
    (own,) = [a for _, a in world.store.addresses("db")]
    places = {key[1] for key, e in world.kernel.elements.items() if e.owner == "db"}
    assert {"ingress4", "in4_rest", "in4_peer"} <= places
    assert (INET, "ingress4", (own,)) in world.kernel.elements
    world.assert_whole()


def test_service_of_another_folder_is_taken_over_only_if_asked(world: World) -> None:
    first = world.package("api", network=WEB)
    second = world.package("api", below="checkout", network=WEB)
    world.activate(first)
    before, running = world.picture(), world.pid("api")
    with refuses(Conflict, "'api'", first, key="package.name", file=second):
        world.activate(second)
    assert world.picture() == before and world.pid("api") == running
    (outcome,) = world.activate(second, replace=True)
    assert outcome.changed
    with pytest.raises(Conflict):
        world.activate(first)
    world.assert_whole()


def test_service_whose_folder_was_moved_is_the_same_one(world: World) -> None:
    first = Path(world.package("api"))
    world.activate(str(first))
    moved = first.parent.rename(first.parent.with_name("moved"))
    assert [outcome.service for outcome in world.activate(f"{moved}/manifest.toml")] == ["api"]
    link = first.parent.with_name("current")
    link.symlink_to(moved)
    world.activate(f"{link}/manifest.toml")


def test_several_services_know_each_other_by_name(world: World) -> None:
    outcomes = world.activate(world.package("api"), world.package("db"))
    assert [outcome.service for outcome in outcomes] == ["api", "db"]
    (lines,) = world.kernel.hosts.values()
    known = {name for line in lines for name in line.names.split()}
    assert {"api", "db"} <= known
    world.assert_whole()


def test_network_is_made_with_the_first_service_and_goes_with_the_last(world: World) -> None:
    world.activate(world.package("api", network={"network": "front"}))
    assert world.store.network_names() == ["front"]
    assert names.bridge("front") in world.kernel.bridges
    remove(world.machine, ["api"])
    assert world.store.network_names() == []
    assert not world.kernel.bridges
    world.assert_whole()


@pytest.mark.parametrize("listens", [False, True])
def test_port_that_another_has_leaves_nothing(world: World, listens: bool) -> None:
    if listens:
        world.kernel.listening["tcp"] = [Listener(4, "0.0.0.0", 8080, 7)]
    else:
        world.activate(world.package("db", network=WEB))
    before = world.picture()
    with refuses(Conflict, "8080", key="network.ports[0]"):
        world.activate(world.package("api", network={**WEB, "network": "front"}))
    assert world.picture() == before
    assert world.store.service("api") is None
    world.assert_whole()


def test_one_that_cannot_keeps_all_from_starting(world: World) -> None:
    before = world.picture()
    world.processes.dies["db"] = 3
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.activate(world.package("api"), world.package("db"))
    assert world.picture() == before
    world.assert_whole()


def test_unhealthy_one_is_undone_to_what_it_was(world: World) -> None:
    world.activate(world.package("api", network=WEB))
    before = world.picture()
    world.processes.ill["api"] = "connection refused"
    probe = {"tcp": 80, "retries": 1, "start_period": "0s"}
    with refuses(ProcessError, hint="see [healthcheck] in its manifest"):
        world.activate(world.package("api", healthcheck=probe, network={"ports": ["81:80"]}))
    assert world.picture() == before
    world.assert_whole()


def test_shared_namespace_is_its_providers(world: World) -> None:
    world.activate(
        world.package("api", network=WEB),
        world.package("log", network={"mode": "share", "share": "api"}),
    )
    assert set(world.kernel.netns) == {names.netns("api")}
    world.assert_whole()
    with refuses(Conflict, hint="it can end after these, or in the same command: log"):
        deactivate(world.machine, ["api"])
    world.assert_whole()
    deactivate(world.machine, ["api", "log"])
    world.assert_whole()


def test_copy_that_a_power_failure_emptied_is_not_used(world: World) -> None:
    manifest = world.package("api")
    world.activate(manifest)
    deactivate(world.machine, ["api"])
    row = world.store.service("api")
    assert row is not None
    for name in os.listdir(row.package):
        Path(row.package, name).write_text("")
    with pytest.raises(Error, match="is damaged"):
        world.activate("api")
    world.activate(manifest)
    assert Path(row.package, "run").read_text().startswith("#!")
    world.assert_whole()


def test_moved_state_folder_has_its_package_copies(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.activate(world.package("api"))
    deactivate(world.machine, ["api"])
    world.store.close()
    moved = shutil.copytree(base_paths.state_dir(), tmp_path / "moved")
    shutil.rmtree(os.path.join(base_paths.state_dir(), "packages"))
    os.unlink(base_paths.database())
    monkeypatch.setenv("NISO_STATE_DIR", str(moved))
    world.reopen()
    world.activate("api")
    spec = world.processes.spec("api")
    assert spec is not None
    assert spec.package.startswith(str(moved))
    world.assert_whole()


def test_change_of_a_dead_command_is_named_until_another_one_ends_it(world: World) -> None:
    world.activate(world.package("db"))
    manifest = world.package("api")
    Steps(world, 18, True).run(lambda: world.activate(manifest))
    with service_lock("api"):
        assert look_services.interrupted(world.store) == {}
    words = "different: service 'api' (niso activate was interrupted; the next command that changes anything rolls it back)"
    assert words in [finding.text for finding in check(world.machine)]
    assert words in [finding.text for finding in check(world.machine, "api")]
    assert words not in [finding.text for finding in check(world.machine, "db")]
    events: list[Event] = []
    activate.restart(world.machine._replace(report=events.append), ["db"])
    said = [event.describe() for event in events if isinstance(event, Recovered)]
    assert said == ["api: the interrupted activate was rolled back"]
    world.assert_whole()


@pytest.mark.parametrize(
    "command",
    [
        lambda world: activate.restart(world.machine, ["api"]),
        lambda world: deactivate(world.machine, ["api"]),
        lambda world: port_forward.port_forward(
            world.machine, "api", PortMapping("", 9000, 80, "tcp")
        ),
    ],
)
def test_service_whose_interrupted_removal_is_completed_first_is_unknown(
    world: World, command: Callable[[World], object]
) -> None:
    world.activate(world.package("api"))
    Steps(world, 9, True).run(lambda: remove(world.machine, ["api"]))
    assert [intent.action for intent in world.store.intents()] == ["remove"]
    with pytest.raises(NotFound, match="no service 'api'"):
        command(world)
    assert world.store.services() == []
    world.assert_whole()


Meanwhile = Callable[[World], object]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, world: World) -> Callable[[Meanwhile], None]:
    """Let another command come first where the next activation waits for its locks."""

    def comes(other: Meanwhile) -> None:
        def locked(store: Store, services: list[str]) -> ExitStack:
            # not undo(): that would also end the test's own state and run folders
            monkeypatch.setattr(activate, "locked", journal.locked)
            other(world)
            return journal.locked(store, services)

        monkeypatch.setattr(activate, "locked", locked)

    return comes


@pytest.mark.parametrize("stops", [deactivate, remove])
def test_follower_that_another_command_stops_meanwhile_stays_so(
    world: World, meanwhile: Callable[[Meanwhile], None], stops: Callable[..., object]
) -> None:
    world.activate(world.package("api"), world.package("log", network=SHARE))
    manifest = world.package("api", network={"network": "front"})
    meanwhile(lambda world: stops(world.machine, ["log"]))
    world.activate(manifest)
    assert world.store.active_services() == ["api"]
    world.assert_whole()


def test_follower_that_another_command_starts_meanwhile_follows(
    world: World, meanwhile: Callable[[Meanwhile], None]
) -> None:
    world.activate(world.package("api"))
    manifest = world.package("api", network={"network": "front"})
    log = world.package("log", network=SHARE)
    meanwhile(lambda world: world.activate(log))
    world.activate(manifest)
    assert world.store.active_services() == ["api", "log"]
    spec = world.processes.spec("log")
    assert spec is not None
    assert spec.hosts_folder.endswith(names.hosts_folder(("front",)))
    world.assert_whole()


def test_plan_alone_changes_nothing(world: World) -> None:
    before = world.picture()
    events: list[str] = []
    world.activate(
        world.package("api"), dry_run=True, report=lambda event: events.append(event.describe())
    )
    assert any(words.startswith("ip netns add") for words in events)
    assert world.picture() == before


def _occupied_bridge(world: World) -> dict[str, Any]:
    world.kernel.foreign_links["niso-new"] = ""
    return {"network": {"network": "new"}}


def _occupied_namespace(world: World) -> dict[str, Any]:
    world.kernel.foreign_spaces.add("niso-api")
    return {}


def _full_network(world: World) -> dict[str, Any]:
    world.make("tiny", "10.50.0.0/30")
    world.activate(world.package("full", network={"network": "tiny"}))
    deactivate(world.machine, ["full"])
    return {"network": {"networks": ["new", "tiny"]}}


@pytest.mark.parametrize(
    ("makes", "key", "fact"),
    [
        ({"binary": {"entrypoint": "bin/missing"}}, "binary.entrypoint", "bin/missing"),
        ({"binary": {"entrypoint": "manifest.toml"}}, "binary.entrypoint", "manifest.toml"),
        ({"service": {"user": "nobodyhere"}}, "service.user", "nobodyhere"),
        (
            {"binary": {"entrypoint": "run", "working_dir": "/nowhere"}},
            "binary.working_dir",
            "/nowhere",
        ),
        ({"network": {"ports": ["7000:80"], "network": "new"}}, "network.ports[0]", "'base'"),
        ({"network": {"ip": "10.99.0.2"}}, "network.ip", "'base'"),
        (
            {"network": {"networks": ["new", "niso-default"], "aliases": ["www"]}},
            "network.aliases",
            "'www'",
        ),
        (_occupied_bridge, None, "'niso-new'"),
        (_occupied_namespace, None, "'niso-api'"),
        (_full_network, None, "'tiny'"),
    ],
)
def test_activation_that_cannot_be_names_the_reason_and_leaves_nothing(
    world: World, makes: Any, key: str | None, fact: str
) -> None:
    base = {"ports": ["7000:80"], "aliases": ["www"]}
    world.activate(world.package("base", network=base))
    manifest = world.package("api", **(makes(world) if callable(makes) else makes))
    before = world.picture()
    with refuses(Error, fact, key=key):
        world.activate(manifest)
    assert world.picture() == before
    world.assert_whole()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", [{}, {"aliases": ["cache"]}], ids=["moves", "swaps"])
def test_name_moves_between_two_services_of_one_command_or_goes_back(
    world: World, order: int, other: dict[str, Any]
) -> None:
    def having(name: str) -> str:
        folder = names.hosts_folder(("niso-default",))
        (found,) = (one.address for one in world.kernel.hosts[folder] if name in one.names.split())
        return found

    db = {"aliases": ["db"]}
    first = world.package("a", network=db), world.package("b", network=other)
    addresses = [outcome.address[0] for outcome in world.activate(*first)]
    pids = world.pid("a"), world.pid("b")
    assert having("db") == addresses[0]
    world.activate(*(world.package("a", network=other), world.package("b", network=db))[::order])
    assert having("db") == addresses[1] and (world.pid("a"), world.pid("b")) == pids
    world.assert_whole()
    # it stays where the command fails, and a command of one of them alone takes nothing
    before = world.picture()
    world.processes.dies["bad"] = 1
    back = world.package("a", network=db), world.package("b"), world.package("bad")
    with pytest.raises(ProcessError):
        world.activate(*back[::order])
    assert world.picture() == before
    with refuses(Conflict, "'db'", "'b'", key="network.aliases"):
        world.activate(world.package("a", network=db))
    assert world.picture() == before
    world.assert_whole()


def test_of_several_services_only_the_changed_one_is_touched(world: World) -> None:
    world.activate(world.package("one"), world.package("two"))
    first = world.pid("one")
    changed = world.package("two", environment={"A": "b"})
    done = world.activate(world.package("one"), changed)
    assert [outcome.changed for outcome in done] == [False, True]
    assert world.pid("one") == first
    world.assert_whole()


def test_leases_are_kept_until_the_service_is_removed(world: World) -> None:
    def addresses(*services: str) -> list[str]:
        return [outcome.address[0] for outcome in world.activate(*services)]

    first = addresses(world.package("a"), world.package("b"))
    deactivate(world.machine, ["a", "b"])
    assert addresses("b") == first[1:] and addresses(world.package("c"))[0] not in first
    assert addresses("a") == first[:1]
    remove(world.machine, ["a"])
    assert addresses(world.package("d")) == first[:1]
    world.assert_whole()


# --- deactivate, remove, restart -------------------------------------------------------------------------------------


def test_deactivated_service_keeps_its_address_alone(world: World) -> None:
    manifest = world.package("api", network=WEB)
    (first,) = world.activate(manifest)
    assert deactivate(world.machine, ["api"]) == [("api", True)]
    assert not world.kernel.netns
    assert not world.kernel.veths
    assert world.kernel.sysctl(FORWARDING) == "0"
    world.assert_whole()
    assert deactivate(world.machine, ["api"]) == [("api", False)]
    (again,) = world.activate("api")
    assert again.address == first.address
    world.assert_whole()


def test_one_that_does_not_end_in_time_is_killed(world: World) -> None:
    world.activate(world.package("api", service={"stop_timeout": "10ms"}))
    world.processes.deaf.add("api")
    deactivate(world.machine, ["api"])
    world.assert_whole()


def test_process_that_cannot_be_stopped_keeps_its_network(world: World) -> None:
    world.activate(world.package("api"), world.package("db"))
    world.processes.fail = lambda what: what == "stop api"
    with pytest.raises(ProcessError):
        deactivate(world.machine, ["api", "db"])
    assert set(world.kernel.netns) == {names.netns("api")}
    world.processes.fail = lambda what: False
    deactivate(world.machine, ["api"])
    world.assert_whole()


def test_removed_service_leaves_nothing(world: World) -> None:
    empty = world.picture()
    world.activate(world.package("api", network=WEB))
    remove(world.machine, ["api"])
    after = world.picture()
    assert after[0] == empty[0]
    assert after[3:] == empty[3:]
    world.assert_whole()


def test_restart_keeps_all_but_the_process(world: World) -> None:
    world.activate(world.package("api", network=WEB), world.package("db"))
    first, done = world.pid("api"), len(world.kernel.done)
    activate.restart(world.machine, ["api"])
    assert world.pid("api") != first
    assert world.kernel.done[done:] == []
    world.assert_whole()
    deactivate(world.machine, ["db"])
    with refuses(Conflict, hint="niso activate db"):
        activate.restart(world.machine, ["api", "db"])
    world.assert_whole()


def test_service_that_goes_has_its_policy_until_its_link_has_gone(world: World) -> None:
    world.activate(world.package("web", network={}))
    closed = {"policy": {"allow_from": ["10.9.9.9:80"]}}
    world.activate(world.package("db", network=closed))
    before = len(world.kernel.done)
    deactivate(world.machine, ["db"])
    done = world.kernel.done[before:]
    (untracked,) = (at for at, step in enumerate(done) if "nf_call_iptables 0" in step)
    (gone,) = (at for at, step in enumerate(done) if step.startswith("ip link delete"))
    assert gone < untracked


# --- small faults ----------------------------------------------------------------------------------------------------


def test_service_whose_log_cannot_be_deleted_is_not_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.activate(world.package("api"))
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY), "service.log")
    with monkeypatch.context() as patch:
        patch.setattr(package, "delete_tree", lambda folder: busy if "logs" in folder else None)
        with pytest.raises(Error, match=r"cannot delete service\.log"):
            remove(world.machine, ["api"])
    assert look_services.interrupted(world.store) == {"api": "remove"}
    remove(world.machine, ["api"])
    assert world.store.service("api") is None
    world.assert_whole()


@pytest.mark.parametrize("table", [{"ip": "10.99.0.2"}, {"ip": "10.99.7.2", "network": "front"}])
def test_address_that_a_manifest_names_is_not_given_to_another_one(
    world: World, table: dict[str, object]
) -> None:
    any_of_it = {key: value for key, value in table.items() if key == "network"}
    world.activate(world.package("free", network=any_of_it), world.package("named", network=table))
    world.assert_whole()


def test_network_that_is_asked_for_outlives_its_services(world: World) -> None:
    world.activate(world.package("api", network={"network": "front"}))
    networks.create(world.machine, NetworkRequest("front"))
    remove(world.machine, ["api"])
    assert world.store.network_names() == ["front"]
    world.assert_whole()


def test_restart_without_room_for_a_start_stops_nothing(world: World) -> None:
    world.activate(world.package("api"))
    before = world.pid("api")
    world.processes.is_full = True
    with pytest.raises(ProcessError, match="no room"):
        activate.restart(world.machine, ["api"])
    with pytest.raises(ProcessError, match="no room"):
        world.activate(world.package("api", environment={"LEVEL": "debug"}))
    assert world.pid("api") == before
    world.assert_whole()


def test_restart_that_died_together_with_conmon_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.activate(world.package("api"))
    before = world.pid("api")
    with world.store.transaction():
        world.store.begin_intent("api", "restart", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(world.processes.units, "is_supervised", lambda _: world.pid("api") != before)
        journal.recover(world.machine)
    assert world.pid("api") not in (None, before)
    world.assert_whole()


# --- names -----------------------------------------------------------------------------------------------------------


def test_every_command_takes_a_name_with_its_domain(world: World) -> None:
    world.niso("activate", world.package("api", network={"hostname": "front", "aliases": ["web"]}))
    assert json.loads(world.niso("inspect", "front.niso.local").stdout)["service"] == "api"
    world.niso("port-forward", "api.niso.local", "9000:90")
    world.niso("net", "check", "api.niso.local")
    world.niso("restart", "api.niso.local")
    address = world.store.addresses("api")
    world.niso("deactivate", "api.niso.local")
    assert world.store.addresses("api") == address
    world.niso("activate", "front.niso.local")
    said = world.refused("inspect", "wev.niso.local")
    assert said == "niso: no service 'wev.niso.local'\n  hint: did you mean 'web'?\n"
    for command in ("deactivate", "remove", "restart", "logs"):
        assert "'appi'" in world.refused(command, "appi")
    for command in ("deactivate", "remove"):
        assert "'appi'" in world.refused(command, "api", "appi")
    assert world.pid("api")
    # an alias may be that of another service than the user means, whose data would go
    for alias in ("web", "front.niso.local"):
        assert "hostname or alias of api" in world.refused("remove", alias, "--volumes")
    # left from a removed service
    Path(base_paths.state_dir(), "volumes/web/data").mkdir(parents=True)
    world.niso("remove", "--volumes", "web")
    assert json.loads(world.niso("inspect", "api").stdout)["service"] == "api"
    world.niso("remove", "api.niso.local")
    assert "no service 'api'" in world.refused("inspect", "api")


def test_command_for_many_services_has_files_for_their_locks(world: World) -> None:
    """The usual limit of open files, 1024, is lower than what 1,000 services need."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [f"s{number:03}" for number in range(150)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        with journal.locked(world.store, names):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 2 * len(names)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_wrong_bandwidth_is_refused(world: World) -> None:
    network = {"bandwidth": {"in": "1k", "up": "1M"}}
    said = world.refused("activate", world.package("bad", network=network))
    assert "network.bandwidth.in" in said and "network.bandwidth.up" in said
    for wrong in ("up=1M", "in=1", "in"):
        assert world.refused("net", "attach", "box", "--new", "--bandwidth", wrong, status=2)
