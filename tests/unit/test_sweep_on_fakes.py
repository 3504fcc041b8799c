"""Test sweep and a lost store on a kernel and processes in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_world import World
from refusals import refuses

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.base.names import alias
from niso.base.report import silent
from niso.change import networks, repair
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.sysctls import FORWARDING
from niso.look import session
from niso.plan.subnets import NetworkRequest

WEB = {"ports": ["8080:80"]}


@pytest.fixture
def full(world: World) -> World:
    networks.create(world.machine, NetworkRequest("front", internal=True))
    world.activate(
        world.package("api", network=WEB),
        world.package("db", network={"network": "front"}),
        world.package("none", network={"mode": "none"}),
    )
    return world


def swept(world: World, dry_run: bool = False) -> list[str]:
    """What a sweep removes, in order."""
    said: list[str] = []
    gone, error = repair.sweep(
        world.kernel, world.processes, lambda event: said.append(event.describe()), dry_run
    )
    assert (gone, error) == (len(said), None)
    return said


def test_sweep_leaves_nothing_and_services_can_come_again(full: World) -> None:
    assert full.kernel.sysctl(FORWARDING) == "1"
    planned = swept(full, dry_run=True)
    assert full.store.active_services() == ["api", "db", "none"]
    full.assert_whole()
    with full.store.transaction():
        full.store.begin_intent("api", "restart", 0.0)
    done = swept(full)
    assert done == planned
    assert not full.kernel.everything(State())
    assert full.kernel.sysctl(FORWARDING) == "0"
    assert full.processes.services() == []
    assert full.store.active_services() == full.store.intents() == []
    assert full.store.sysctls_before() == {}
    assert swept(full) == []
    full.activate("api")
    full.assert_whole()


@pytest.mark.parametrize("is_lost", [False, True])
def test_forwarding_stays_on_for_programs_that_came_later(full: World, is_lost: bool) -> None:
    full.kernel.nat["ip nat POSTROUTING"] = 1
    if is_lost:
        os.unlink(paths.database())
    repair.sweep(full.kernel, full.processes, silent, False)
    assert full.kernel.sysctl(FORWARDING) == "1"
    assert not full.kernel.everything(State())


def test_processes_end_first_and_tables_last(full: World) -> None:
    kinds = [words.partition(" ")[0] for words in swept(full)]
    order = ["stop", "ip", "sysctl", "nft"]
    assert [kind for n, kind in enumerate(kinds) if kind not in kinds[:n]] == order
    assert kinds == sorted(kinds, key=order.index)


def test_what_is_not_nisos_stays_and_that_of_other_state_folders_goes(full: World) -> None:
    full.kernel.foreign_links |= {"niso-vpn": "", "nithem-1": alias("89abcdef")}
    full.kernel.foreign_spaces.add("niso-foreign")
    full.kernel.netns["niso-them"] = Netns("niso-them", alias("89abcdef"))
    said = swept(full)
    assert {"ip netns delete niso-them", "ip link delete nithem-1"} <= set(said)
    assert set(full.kernel.foreign_links) == {"uplink0", "niso-vpn"}
    assert full.kernel.has_netns("niso-foreign")


def test_rules_stay_while_what_they_guard_cannot_be_removed(full: World) -> None:
    full.kernel.fail = lambda step: errno.EBUSY * step.describe().startswith("ip netns delete")
    with pytest.raises(Error, match="busy"):
        swept(full)
    assert full.kernel.ruleset is not None
    assert full.store.active_services() == ["api", "db", "none"]
    full.kernel.fail = lambda step: 0
    assert [words for words in swept(full) if words.startswith("nft")]
    assert full.kernel.ruleset is None


def test_process_without_its_files_ends_unless_another_run_folder_has_it(full: World) -> None:
    mine = full.store.state_id()
    full.processes.lose("api", mine, stranger=True)
    before = full.picture()
    with refuses(
        Conflict,
        "api",
        hint="set NISO_STATE_DIR and NISO_RUN_DIR to theirs, or end its processes first",
    ):
        swept(full)
    assert full.picture() == before
    full.processes.homeless["api"] = (*full.processes.homeless["api"][:2], None)
    swept(full)
    assert full.processes.orphans([mine]) == []


def test_store_that_cannot_be_updated_is_said_after_the_sweep(full: World) -> None:
    full.store.close()
    for end in ("", "-wal", "-shm"):
        Path(f"{paths.database()}{end}").unlink(missing_ok=True)
    Path(paths.database()).write_bytes(b"rubbish" * 1000)
    gone, error = repair.sweep(full.kernel, full.processes, silent, False)
    assert gone
    assert error is not None and paths.database() in error.message
    assert not full.kernel.everything(State())


def test_lost_store_is_refused_until_a_sweep(full: World) -> None:
    session.refuse(full.kernel, full.processes)
    os.rename(paths.database(), f"{paths.database()}.away")
    with pytest.raises(Conflict, match=r"is missing, but .* link .* and \d+ more"):
        session.refuse(full.kernel, full.processes)
    repair.sweep(full.kernel, full.processes, silent, False)
    session.refuse(full.kernel, full.processes)


def test_lost_store_is_refused_for_a_process_alone(world: World) -> None:
    world.activate(world.package("api", network={"mode": "host"}))
    for name in world.kernel.marked_links():
        world.kernel.delete_detached([name])
    os.rename(paths.database(), f"{paths.database()}.away")
    with pytest.raises(Conflict, match="service 'api' in"):
        session.refuse(world.kernel, world.processes)
