"""Test check and repair on a kernel and processes in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fake_world import World

from niso.base import names, paths
from niso.base.locks import locked_services
from niso.change import journal, repair
from niso.change.deactivate import deactivate, remove
from niso.kernel.kinds.sysctls import FORWARDING
from niso.look.check import check
from niso.store.store import Store

WEB = {"ports": ["8080:80"]}


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
    repair.plan_repair(world.machine, False)
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


def test_service_without_a_row_ends(world: World) -> None:
    world.activate(world.package("api"), world.package("peer", network=WEB))
    with sqlite3.connect(paths.database()) as db:
        db.execute("PRAGMA foreign_keys=1")
        db.execute("DELETE FROM service WHERE name='peer'")
    world.reopen()
    found = {finding.what for finding in check(world.machine)}
    assert {"process of service 'peer'", "network namespace niso-peer"} < found
    world.niso("net", "repair")
    assert world.processes.services() == ["api"]
    assert world.niso("net", "repair").stdout == "nothing to repair\n"
    world.assert_whole()


def test_lock_of_a_service_that_goes_while_it_is_repaired_goes_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.activate(world.package("api"))
    monkeypatch.setattr(world.store, "active_services", lambda: ["api"])
    names_of = journal.locked

    def locked(store: Store, services: list[str]) -> ExitStack:
        monkeypatch.undo()
        remove(world.machine, services)
        return names_of(store, services)

    monkeypatch.setattr(journal, "locked", locked)
    repair.repair_all(world.machine)
    assert locked_services() == set()


@pytest.mark.parametrize(
    ("column", "text"), [("spec", "{}"), ("manifest", "x"), ("manifest", "{}")]
)
def test_damaged_row_is_named_and_keeps_no_other_service_from_anything(
    world: World, column: str, text: str
) -> None:
    def damage() -> None:
        with sqlite3.connect(paths.database()) as db:
            db.execute(f"UPDATE service SET {column}=? WHERE name='c'", (text,))
        world.reopen()

    package = world.package("c", network={"network": "back", "ports": ["8080:80"]})
    world.niso("activate", package, world.package("d"))
    damage()
    named = world.niso("net", "check", check=False)
    assert (named.returncode, named.stdout) == (1, "different: store: service of service 'c'\n")
    rows = json.loads(world.niso("ps", "--json").stdout)
    assert {row["service"]: row["status"] for row in rows} == {"c": "running", "d": "running"}
    others = (("restart", "d"), ("activate", world.package("e")), ("net", "create", "more"))
    for command in (*others, ("remove", "e"), ("net", "remove", "more")):
        assert "defect" not in world.niso(*command).stderr
    hint = f"hint: niso activate {package}"
    if (column, text) != ("manifest", "{}"):
        assert hint in world.refused("inspect", "c")
    done = world.niso("net", "repair", check=False)
    if column == "spec":  # the running service has it too
        assert (done.returncode, done.stdout) == (0, "repaired: 1 step\n")
    else:
        assert done.returncode == 1
        assert "service 'c': its record in the store is damaged" in done.stderr
        assert hint in done.stderr
        world.niso("activate", package)
    world.assert_whole()
    damage()
    world.niso("deactivate", "c")
    world.niso("remove", "c")
    world.assert_whole()
