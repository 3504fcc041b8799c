"""Test commands on a kernel and processes in memory, and their agreement with the store."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_world import Steps, World

from niso.base import names, paths
from niso.base.errors import Conflict, Error, NotFound, ProcessError
from niso.base.locks import locked_services, service_lock
from niso.base.report import Caution, Event, Recovered
from niso.commands import activate, network, port_forward, repair, restart, stack
from niso.commands.check import check, full_neighbour_tables
from niso.commands.deactivate import deactivate, remove
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.setting import FORWARDING
from niso.kernel.nft_tables import INET
from niso.kernel.sockdiag import Listener
from niso.plan.records import Port
from niso.runtime import package
from niso.services import journal, pending, targets
from niso.services.networks import NetworkRequest
from niso.store.store import Store

SHARE = {"mode": "share", "share": "api"}
WEB = {"ports": ["8080:80"]}
MORE = Port("", 9090, 80, "tcp")


# --- activate --------------------------------------------------------------------------------------------------------


def test_new_service_has_all_that_its_manifest_names(world: World) -> None:
    (outcome,) = world.activate(world.package("api", network=WEB))
    assert outcome.changed
    assert world.ports("api") == ["8080:80"]
    assert outcome.addresses
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
    addresses = [a for made in world.activate(api, web) for a in made.addresses]
    assert sorted(world.kernel.forgotten) == sorted(addresses)
    deactivate(world.machine, ["api"])
    world.activate(world.package("api", network=WEB))
    assert len(world.kernel.forgotten) == len(addresses)  # it kept its leases


def test_denied_name_that_gets_a_service_leaves_the_policy_whole(world: World) -> None:
    world.activate(world.package("db", network={"policy": {"deny_from": ["api"]}}))
    world.activate(world.package("api"))
    (own,) = [a for _, a in world.store.addresses("db")]
    places = {key[1] for key, e in world.kernel.elements.items() if e.comment.startswith("db")}
    assert {"ingress4", "in4_rest", "in4_peer"} <= places
    assert (INET, "ingress4", own) in world.kernel.elements
    world.assert_whole()


def test_service_of_another_folder_is_taken_over_only_if_asked(world: World) -> None:
    first = world.package("api", network=WEB)
    second = world.package("api", below="checkout", network=WEB)
    world.activate(first)
    before, running = world.picture(), world.pid("api")
    with pytest.raises(Conflict) as caught:
        world.activate(second)
    assert caught.value.message == (
        f"{second}: package.name: 'api' is already the service of {first}"
    )
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
    with pytest.raises(Conflict, match="host port 8080"):
        world.activate(world.package("api", network={**WEB, "network": "front"}))
    assert world.picture() == before
    assert world.store.service("api") is None
    world.assert_whole()


def test_one_that_cannot_keeps_all_from_starting(world: World) -> None:
    before = world.picture()
    world.processes.dies["db"] = 3
    with pytest.raises(ProcessError, match="ended at once"):
        world.activate(world.package("api"), world.package("db"))
    assert world.picture() == before
    world.assert_whole()


def test_unhealthy_one_is_undone_to_what_it_was(world: World) -> None:
    world.activate(world.package("api", network=WEB))
    before = world.picture()
    world.processes.ill["api"] = "connection refused"
    probe = {"tcp": 80, "retries": 1, "start_period": "0s"}
    with pytest.raises(ProcessError, match="unhealthy"):
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
    with pytest.raises(Conflict, match="shares"):
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
    moved = shutil.copytree(paths.state_dir(), tmp_path / "moved")
    shutil.rmtree(os.path.join(paths.state_dir(), "packages"))
    os.unlink(paths.database())
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
        assert pending.interrupted(world.store) == {}
    words = "different: service 'api' (niso activate was interrupted; the next command that changes anything rolls it back)"
    assert words in [finding.text() for finding in check(world.machine)]
    assert words in [finding.text() for finding in check(world.machine, "api")]
    assert words not in [finding.text() for finding in check(world.machine, "db")]
    events: list[Event] = []
    restart.restart(world.machine, ["db"], events.append)
    said = [event.describe() for event in events if isinstance(event, Recovered)]
    assert said == ["api: the interrupted activate was rolled back"]
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
    assert again.addresses == first.addresses
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
    restart.restart(world.machine, ["api"])
    assert world.pid("api") != first
    assert world.kernel.done[done:] == []
    world.assert_whole()
    deactivate(world.machine, ["db"])
    with pytest.raises(Conflict, match="not active"):
        restart.restart(world.machine, ["api", "db"])
    world.assert_whole()


# --- port-forward ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(NotFound, match="not forwarded"):
        port_forward.port_unforward(world.machine, "api", MORE)
    with pytest.raises(Conflict, match="in the manifest"):
        port_forward.port_unforward(world.machine, "api", Port("", 8080, 80, "tcp"))
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
    before, wanted = world.picture(), Port("", 8080, 5432, "tcp")
    with pytest.raises(Conflict, match="'api'"):
        port_forward.port_forward(world.machine, "db", wanted)
    assert world.picture() == before
    took = port_forward.port_forward(world.machine, "db", wanted, replace=True)
    assert took == (True, [("api", Port("", 8080, 80, "tcp"))])
    assert (world.ports("api"), world.ports("db")) == ([], ["8080:5432"])
    world.assert_whole()


# --- repair ----------------------------------------------------------------------------------------------------------


def lose_namespace(world: World) -> None:
    world.kernel.lose_netns(names.netns("api"))


def lose_veths(world: World) -> None:
    for link in list(world.kernel.veths):
        world.kernel.lose_veth(link)


def lose_tables(world: World) -> None:
    world.kernel.ruleset, world.kernel.elements = None, {}


def lose_hosts(world: World) -> None:
    world.kernel.hosts.clear()


def change_hosts(world: World) -> None:
    for lines in world.kernel.hosts.values():
        lines.clear()


def lose_forwarding(world: World) -> None:
    world.kernel.sysctls["", FORWARDING] = "0"


def lose_element(world: World) -> None:
    del world.kernel.elements[next(iter(world.kernel.elements))]


def lose_process(world: World) -> None:
    world.processes.end("api", None)


def lose_spec(world: World) -> None:
    world.processes.current["api"].spec = None


def lose_rows(world: World) -> None:
    with world.store.transaction():
        world.store._db.execute("DELETE FROM lease WHERE service='api'")


@pytest.mark.parametrize(
    "damage",
    [
        lose_namespace,
        lose_veths,
        lose_tables,
        lose_hosts,
        change_hosts,
        lose_forwarding,
        lose_element,
        lose_process,
        lose_spec,
        lose_rows,
    ],
)
def test_repair_puts_right_what_check_finds(world: World, damage: Callable[[World], None]) -> None:
    world.activate(world.package("api", network=WEB), world.package("db"))
    there = world.picture()[2]
    damage(world)
    assert check(world.machine)
    repair.plan_repair(world.machine, lambda event: None)
    assert repair.repair_all(world.machine) > 0
    world.assert_whole()
    assert world.picture()[2] == there
    assert repair.repair_all(world.machine) == 0


def test_repair_leaves_what_another_command_has_begun_meanwhile_to_recovery(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teardown that fails beside a repair: its namespace is gone, its intent is on record."""
    world.activate(world.package("api"), world.package("db"))
    repair_kernel = repair._repair_kernel

    def with_a_teardown(*arguments: Any) -> int:
        done = repair_kernel(*arguments)
        with world.store.transaction():
            world.store.begin_intent("api", "deactivate", 0.0)
        lose_process(world)
        lose_namespace(world)
        return done

    monkeypatch.setattr(repair, "_repair_kernel", with_a_teardown)
    repair.repair_all(world.machine)
    assert world.store.active_services() == ["db"]
    world.assert_whole()


def test_namespace_that_lost_its_name_is_named_again(world: World) -> None:
    world.activate(world.package("api"))
    first = world.pid("api")
    kept = dict(world.kernel.veths), dict(world.kernel.addresses), dict(world.kernel.routes)
    sysctls = dict(world.kernel.sysctls)
    del world.kernel.netns[names.netns("api")]
    repair.repair_all(world.machine)
    assert world.pid("api") == first
    assert kept == (world.kernel.veths, world.kernel.addresses, world.kernel.routes)
    assert sysctls == world.kernel.sysctls
    world.assert_whole()


def test_process_of_a_service_that_is_not_active_ends(world: World) -> None:
    world.activate(world.package("api"))
    run = world.processes.current["api"]
    deactivate(world.machine, ["api"])
    world.processes.current["api"] = run
    repair.repair_all(world.machine)
    world.assert_whole()


# --- stack -----------------------------------------------------------------------------------------------------------


def test_stack_comes_changes_and_goes(world: World) -> None:
    for name in ("api", "db", "log"):
        world.package(name, network={"network": "backend"})
    path = world.stack("db", "api", backend="10.99.7.0/24")
    up = world.up(path)
    assert [outcome.service for outcome in up.outcomes] == ["db", "api"]
    assert (up.left, up.made) == ([], ["backend"])
    assert world.processes.done.index("start db") < world.processes.done.index("create api")
    world.assert_whole()
    assert not any(outcome.changed for outcome in world.up(path).outcomes)
    world.stack("api", "log", backend="10.99.7.0/24")
    up = world.up(path)
    assert up.left == ["db"]
    assert sorted(world.store.active_services()) == ["api", "log"]
    world.assert_whole()
    down = stack.down(world.machine, path)
    assert down.services == [("log", True), ("api", True)]
    assert not world.kernel.netns
    world.assert_whole()


def test_stack_names_the_networks_that_only_its_manifests_name(world: World) -> None:
    world.package("api", network={"networks": ["backend", "side"]})
    world.package("db")
    path = world.stack("db", "api", backend="10.99.7.0/24")
    assert world.up(path).made == ["backend", "niso-default", "side"]
    assert world.up(path).made == []


def test_stack_with_one_that_dies_leaves_nothing(world: World) -> None:
    for name in ("api", "db"):
        world.package(name, network={"network": "backend"})
    before = world.picture()
    world.processes.dies["api"] = 1
    with pytest.raises(ProcessError, match="ended at once"):
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
    for command in (
        lambda: world.up(second),
        lambda: stack.down(world.machine, second),
        lambda: stack.outlined(world.store, second),  # status and logs
    ):
        with pytest.raises(Conflict) as caught:
            command()
        assert caught.value.message == f"{second}: stack 'shop' is that of {first}"
        assert world.picture() == before
    assert sorted(world.store.active_services()) == ["api", "db"]
    up = world.up(second, replace=True)
    assert up.left == ["db"] and sorted(world.store.active_services()) == ["api", "log"]
    with pytest.raises(Conflict):
        stack.down(world.machine, first)
    stack.down(world.machine, second)
    world.assert_whole()


def test_stack_that_joins_the_network_of_another_one_is_told_so_once(world: World) -> None:
    files = []
    for name in ("one", "two"):
        world.package(f"{name}-api", below=name, network={"network": "backend"})
        files.append(world.stack(f"{name}-api", name=name, below=name, backend="10.99.7.0/24"))
    events: list[Event] = []
    for file in files * 2:
        stack.up(world.machine, stack.load(file), 5.0, events.append)
    (caution,) = [event for event in events if isinstance(event, Caution)]
    assert "network backend is also that of stack one" in caution.text


def test_announcement_that_the_kernel_refuses_is_a_warning(world: World) -> None:
    events: list[Event] = []
    world.kernel.refuse_announcement = errno.ENOBUFS
    (outcome,) = world.activate(world.package("api", network=WEB), report=events.append)
    assert outcome.changed and world.pid("api")
    (caution,) = [event for event in events if isinstance(event, Caution)]
    assert f"of {names.netns('api')}: no buffer space available" in caution.text
    assert caution.hints
    world.assert_whole()


def test_neighbour_table_that_is_over_half_full_is_named(world: World) -> None:
    world.activate(world.package("api", network=WEB))
    world.kernel.neighbours = {4: 513, 6: 513}  # of IPv4 one is that of the service's gateway
    ((text, hint),) = full_neighbour_tables(world.machine)
    assert "IPv6" in text and "513 of at most 1024" in text
    assert "net.ipv6.neigh.default.gc_thresh3=4096" in hint


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


def test_only_new_addresses_are_announced(world: World) -> None:
    manifest = world.package("api", network=WEB)
    world.activate(manifest)
    assert len(world.kernel.announced) == 1
    world.activate(manifest)
    assert len(world.kernel.announced) == 1


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
    assert pending.interrupted(world.store) == {"api": "remove"}
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


def test_lock_of_a_service_that_goes_while_it_is_repaired_goes_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.activate(world.package("api"))
    monkeypatch.setattr(world.store, "active_services", lambda: ["api"])
    names_of = repair.journal.locked

    def locked(store: Store, services: list[str]) -> ExitStack:
        monkeypatch.undo()
        remove(world.machine, services)
        return names_of(store, services)

    monkeypatch.setattr(journal, "locked", locked)
    repair.repair_all(world.machine)
    assert locked_services() == set()


def test_network_that_is_asked_for_outlives_its_services(world: World) -> None:
    world.activate(world.package("api", network={"network": "front"}))
    network.create(world.machine, NetworkRequest("front"))
    remove(world.machine, ["api"])
    assert world.store.network_names() == ["front"]
    world.assert_whole()


def test_restart_without_room_for_a_start_stops_nothing(world: World) -> None:
    world.activate(world.package("api"))
    before = world.pid("api")
    world.processes.is_full = True
    with pytest.raises(ProcessError, match="no room"):
        restart.restart(world.machine, ["api"])
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


# --- names of links --------------------------------------------------------------------------------------------------


@pytest.fixture
def clashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the digest in a link's name depend on the generation alone, so that two services clash."""

    def digest(text: str, length: int) -> str:
        return text.rpartition("/")[2].zfill(length)[-length:]

    monkeypatch.setattr(names, "_digest", digest)


def links(world: World) -> dict[str, list[str]]:
    """Return the host ends of each namespace."""
    ends: dict[str, list[str]] = {}
    for veth in world.kernel.veths.values():
        ends.setdefault(veth.netns, []).append(veth.name)
    return {netns: sorted(named) for netns, named in ends.items()}


def test_service_does_not_take_over_the_link_of_one_whose_name_begins_alike(
    world: World, clashing: None
) -> None:
    world.activate(world.package("queue-one"))
    before = links(world)
    world.activate(world.package("queue-two"))
    assert links(world) == {**before, "niso-queue-two": ["niqueue-0000002"]}
    world.assert_whole()


def test_services_of_one_command_get_links_of_their_own(world: World, clashing: None) -> None:
    world.activate(*(world.package(name) for name in ("queue-one", "queue-two", "queue-three")))
    assert sorted(map(len, links(world).values())) == [1, 1, 1]
    world.assert_whole()
    deactivate(world.machine, ["queue-two"])
    world.activate(world.package("queue-four"))
    world.activate(world.package("queue-two"))
    assert sorted(map(len, links(world).values())) == [1, 1, 1, 1]
    world.assert_whole()


def test_link_of_an_interrupted_change_is_not_used_by_another_service(
    world: World, clashing: None
) -> None:
    world.activate(world.package("queue-one"))
    world.activate(world.package("queue-two"))
    taken = [name for named in links(world).values() for name in named]
    with world.store.transaction():
        world.store.begin_intent("queue-one", "activate", 0.0)
        world.store.forget("queue-one")
        known = world.store.endpoints_like("queue")
    assert sorted(names.veth(*endpoint) for endpoint in known) == sorted(taken)


def test_links_of_a_running_service_change_their_names_if_that_of_a_new_one_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = names._digest
    equal = {"queue-two/back/1": "queue-one/front/1"}
    monkeypatch.setattr(names, "_digest", lambda text, length: plain(equal.get(text, text), length))
    world.activate(world.package("queue-one", network={"networks": ["front"]}))
    world.activate(world.package("queue-two", network={"networks": ["side"]}))
    kept = links(world)["niso-queue-one"]
    world.activate(world.package("queue-two", network={"networks": ["side", "back"]}))
    assert links(world)["niso-queue-one"] == kept
    assert links(world)["niso-queue-two"] == sorted(
        names.veth("queue-two", network, 2) for network in ("side", "back")
    )
    world.assert_whole()


# --- forwarding of others --------------------------------------------------------------------------------------------

NAT = "ip nat POSTROUTING"


def test_forwarding_that_others_use_since_is_told_and_stays_on(world: World) -> None:
    world.kernel.sysctls["", FORWARDING] = "0"
    world.activate(world.package("api"))
    world.assert_whole()
    world.kernel.nat[NAT] = 1
    (finding,) = check(world.machine)
    assert finding.problem == "foreign" and NAT in finding.what
    assert check(world.machine, "api") == []
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "1"
    world.activate(world.package("api"))
    assert Element(INET, "closed", "ipv4", "", "").key() not in world.kernel.elements
    world.assert_whole()


def test_forwarding_goes_off_with_the_last_service_if_all_nat_rules_are_older(
    world: World,
) -> None:
    world.kernel.sysctls["", FORWARDING] = "0"
    world.kernel.nat[NAT] = 2
    world.activate(world.package("api"), world.package("web"))
    deactivate(world.machine, ["web"])
    world.assert_whole()
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "0"
