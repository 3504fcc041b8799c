"""Test that the host's own hosts file follows the services if it shall, on fakes."""

from __future__ import annotations

import pytest
from fake_world import World

from niso.base.errors import KernelError, ProcessError
from niso.base.report import WarningEvent
from niso.change import networks
from niso.change.deactivate import deactivate


def known(world: World) -> list[str]:
    return [line for lines in world.kernel.own_hosts.values() for line in lines]


def test_host_knows_what_is_active_and_a_failed_activation_changes_nothing(world: World) -> None:
    world.make("two", "10.99.1.0/24", "fd00:1::/64")
    world.activate(world.package("api", network={"networks": ["two", "one"], "aliases": ["www"]}))
    assert known(world) == []
    assert networks.show(world.machine, True) and not networks.show(world.machine, True)
    both = ["10.99.1.2  api.niso.local", "fd00:1::2  api.niso.local"]
    assert known(world) == both
    world.assert_whole()
    world.processes.dies["db"] = 3
    with pytest.raises(ProcessError):
        world.activate(world.package("db"))
    assert known(world) == both
    world.assert_whole()
    deactivate(world.machine, ["api"])
    assert known(world) == []
    world.activate(world.package("api", network={"network": "two"}))
    assert networks.show(world.machine, False) and known(world) == []
    world.activate(world.package("web"))
    assert known(world) == []


def test_file_that_cannot_be_written_is_refused_and_later_only_reported(world: World) -> None:
    world.kernel.own_hosts_refuses = True
    with pytest.raises(KernelError):
        networks.show(world.machine, True)
    assert not world.store.writes_host_names()
    world.kernel.own_hosts_refuses = False
    networks.show(world.machine, True)
    world.kernel.own_hosts_refuses = True
    said: list[object] = []
    world.activate(world.package("api"), report=said.append)
    (caution,) = [event for event in said if isinstance(event, WarningEvent)]
    assert "is a mount point" in caution.text and "niso net names off" in caution.hints[1]
    with pytest.raises(KernelError):
        networks.show(world.machine, False)
    assert world.store.writes_host_names()
