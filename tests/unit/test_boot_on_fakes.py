"""enable, disable and restore on a kernel, processes and units in memory."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
from fake_world import Steps, World
from pages import ROOT
from refusals import refuses

from niso.base.errors import Conflict, Error, ProcessError
from niso.base.report import WarningEvent
from niso.change import boot, outside_names_refresh, warnings
from niso.change.deactivate import deactivate
from niso.engines import pod_agent
from niso.kernel.kinds import tunnels
from niso.runtime.units import drop_in, unit_file

API = unit_file("api")
WEB = {"ports": ["8080:80"]}
SHARE = {"mode": "share", "share": "api"}


@pytest.fixture
def world(world: World) -> World:
    world.processes.units.is_init = True
    return world


def enabled(world: World) -> list[str]:
    return sorted(row.name for row in world.store.services() if row.enabled)


def files(world: World) -> list[str]:
    prefix, suffix = unit_file("\0").split("\0")
    return sorted(
        path.removeprefix(prefix).removesuffix(suffix) for path in world.processes.units.files
    )


def marks(marked: list[boot.Marked]) -> dict[str, bool]:
    return {one.service: one.changed for one in marked}


def test_first_enabled_service_brings_the_drop_ins_of_other_firewalls(world: World) -> None:
    """Without them, a restart of nftables.service leaves no rules: every command that starts a service says so."""
    said: list[object] = []
    units = world.processes.units
    world.activate(world.package("api", network=WEB), world.package("db"))
    wanted = boot.enable(world.machine, ["api"], said.append, firewall=True)
    assert marks(wanted) == {"api": True, "nftables.service": True, "firewalld.service": True}
    assert (
        "ExecStartPost=-+:/usr/bin/timeout --kill-after=10 60 " in units.files[str(wanted[1].unit)]
    )
    assert boot.is_guarded(world.machine)
    boot.disable_firewall(world.machine)
    assert marks(boot.enable(world.machine, ["db"], said.append, firewall=True)) == {"db": True}
    assert not boot.is_guarded(world.machine)  # as the administrator wants it
    boot.disable(world.machine, ["api", "db"])
    assert not any(isinstance(event, WarningEvent) for event in said)
    assert marks(boot.enable(world.machine, ["api"], said.append, firewall=False)) == {"api": True}
    (warning,) = [event for event in said if isinstance(event, WarningEvent)]
    assert (warning.text, warning.hints) == (boot.UNGUARDED, (boot.GUARD,))
    # another program's file is left alone, and the service is enabled all the same
    boot.disable(world.machine, ["api"])
    units.files[drop_in("nftables.service")] = "[Service]\n"
    assert marks(boot.enable(world.machine, ["api"], said.append, firewall=True)) == {"api": True}
    assert units.files[drop_in("nftables.service")] == "[Service]\n"


def test_activate_warns_if_a_firewall_would_flush_the_rules(world: World) -> None:
    world.activate(
        world.package("api", network=WEB), world.package("idle", network={"mode": "none"})
    )
    units, said = world.processes.units, list[tuple[object, ...]]()
    session: Any = SimpleNamespace(caution=lambda *words: said.append(words))

    def warned(*names: str) -> bool:
        said.clear()
        warnings._warn_of_flush(session, world.machine, [*names])
        return said == [(boot.UNGUARDED, (boot.GUARD,))]

    assert not warned("api")
    units.files[warnings._ENABLED] = "[Unit]\n"
    assert warned("api", "idle") and not warned("idle") and not warned()
    boot.enable_firewall(world.machine)
    assert not warned("api")


def test_enabled_service_comes_under_its_unit_and_disabled_one_runs_on(world: World) -> None:
    world.activate(world.package("api", network=WEB), world.package("db"))
    deactivate(world.machine, ["db"])
    first, units = world.pid("api"), world.processes.units
    assert marks(boot.enable(world.machine, ["api", "db"])) == {"api": True, "db": True}
    assert enabled(world) == sorted(units.enabled) == files(world) == ["api", "db"]
    assert units.active == {"api"}
    assert marks(boot.enable(world.machine, ["api", "db"])) == {"api": False, "db": False}
    assert marks(boot.disable(world.machine, ["api"])) == {"api": True}
    assert enabled(world) == sorted(units.enabled) == files(world) == ["db"]
    assert world.pid("api") == first
    assert marks(boot.disable(world.machine, ["api"])) == {"api": False}
    world.assert_whole()


def test_without_systemd_only_the_store_records_it(world: World) -> None:
    world.processes.units.is_init = False
    world.activate(world.package("api"))
    said: list[object] = []
    assert boot.enable(world.machine, ["api"], said.append) == [boot.Marked("api", True, None)]
    (caution,) = [event for event in said if isinstance(event, WarningEvent)]
    assert "niso restore" in caution.hints[0]
    boot.enable(world.machine, ["api"], said.append)
    assert said == [caution], "once"
    assert enabled(world) == ["api"]
    assert world.processes.units.files == {}
    assert boot.disable(world.machine, ["api"]) == [boot.Marked("api", True, None)]


NIGHTLY = {"service": {"kind": "job", "schedule": "*-*-* 03:00"}}


def test_schedule_without_systemd_is_refused_with_the_line_of_cron(world: World) -> None:
    world.processes.units.is_init = False
    world.activate(world.package("backup", **NIGHTLY))
    line = boot.cron_line("backup", "*-*-* 03:00")
    found = re.fullmatch(r"0 3 \* \* \* (\S*niso) activate backup && \1 restart backup", line)
    assert found and (found[1] == "niso" or os.access(found[1], os.X_OK))  # as cron finds it
    hint = f"add to root's crontab: {line}"
    with refuses(Conflict, "'backup'", "systemd", key="service.schedule", hint=hint):
        boot.enable(world.machine, ["backup"])
    assert enabled(world) == []


def test_timer_follows_the_schedule_and_goes_with_it(world: World) -> None:
    """A job with a schedule does not run at its activation, nor at boot."""
    units, timer = world.processes.units, "/etc/systemd/system/niso-backup.timer"
    world.activate(world.package("backup", **NIGHTLY))
    assert not world.processes.runs("backup")
    boot.enable(world.machine, ["backup"])
    assert "OnCalendar=*-*-* 03:00\n" in units.files[timer] and units.enabled == set()
    assert "RemainAfterExit" not in units.files[timer.replace("timer", "service")]
    assert boot.restore(world.machine, 1.0).outcomes == ()
    nightly = {"service": {"kind": "job", "schedule": "hourly"}}
    world.activate(world.package("backup", **nightly))
    boot.hand_over(world.machine, ["backup"])
    assert "OnCalendar=hourly\n" in units.files[timer]
    units.files[timer] = "# of another\n"
    with refuses(Conflict, timer):
        boot.hand_over(world.machine, ["backup"])
    units.files[timer] = units.known[timer]
    deactivate(world.machine, ["backup"])
    assert not units.is_active("niso-backup.timer")
    boot.disable(world.machine, ["backup"])
    assert not [path for path in units.files if "backup" in path]


def test_unit_of_another_is_left_alone(world: World) -> None:
    world.activate(world.package("api"))
    world.processes.units.files[API] = "[Unit]\nDescription=theirs\n"
    with refuses(Conflict, hint="move it away, or give the service another name"):
        boot.enable(world.machine, ["api"])
    assert enabled(world) == []
    boot.disable(world.machine, ["api"])
    assert world.processes.units.files == {API: "[Unit]\nDescription=theirs\n"}


@pytest.mark.parametrize("name", boot.RESERVED)
def test_service_whose_unit_would_be_one_of_niso_is_not_enabled(world: World, name: str) -> None:
    world.activate(world.package(name))
    with refuses(Conflict, f"niso-{name}.service", hint="give the service another name"):
        boot.enable(world.machine, [name])
    assert (enabled(world), world.processes.units.files) == ([], {})


def test_units_that_niso_has_in_packages_or_while_it_runs_are_reserved() -> None:
    packages = {path.stem for path in (ROOT / "debian").glob("*.service")}
    runs = {tunnels._UNIT}
    assert packages | runs == {f"niso-{name}" for name in boot.RESERVED}
    assert all(
        "_" in unit
        for unit in (pod_agent.UNIT, outside_names_refresh.TIMER, outside_names_refresh._SERVICE)
    )


def test_changed_unit_is_written_again(world: World) -> None:
    world.activate(world.package("api"))
    boot.enable(world.machine, ["api"])
    units = world.processes.units
    text = units.files[API]
    units.files[API] += "# by hand\n"
    assert marks(boot.enable(world.machine, ["api"])) == {"api": True}
    assert units.files[API] == units.known[API] == text


def test_sharer_is_enabled_only_with_its_provider(world: World) -> None:
    world.activate(world.package("api"), world.package("log", network=SHARE))
    with refuses(Conflict, "api", hint="niso enable api log"):
        boot.enable(world.machine, ["log"])
    boot.enable(world.machine, ["log", "api"])
    with refuses(Conflict, "log", hint="niso disable log api"):
        boot.disable(world.machine, ["api"])
    assert enabled(world) == ["api", "log"]


def test_refusal_of_systemd_is_the_error_and_another_try_completes_it(world: World) -> None:
    world.activate(world.package("api"))
    world.processes.fail = lambda what: what == "enable-unit api"
    with pytest.raises(Error):
        boot.enable(world.machine, ["api"])
    world.processes.fail = lambda what: False
    boot.enable(world.machine, ["api"])
    assert world.processes.units.enabled == world.processes.units.active == {"api"}


def test_activation_by_systemd_completes_the_start_of_the_unit(world: World) -> None:
    world.activate(world.package("api"))
    units = world.processes.units
    units.caller = "api"
    boot.hand_over(world.machine, ["api"])
    assert units.active == {"api"}
    assert units.files == {}
    world.processes.end("api", None)
    first = len(world.processes.done)
    boot.hand_over(world.machine, ["api"])  # its conmon is gone: it is started again
    assert "start api" in world.processes.done[first:]
    world.assert_whole()
    # a power failure may have left the unit of the service as it was before its last change
    units.caller = None
    boot.enable(world.machine, ["api"])
    text, units.caller = units.files[API], "api"
    for own in (True, False):
        units.files[API] = text.replace("Type=notify", "Type=oneshot")
        if not own:
            units.files[API] = "# by hand\n"
        boot.hand_over(world.machine, ["api"])
        assert (units.files[API] == units.known[API] == text) == own


def test_unit_of_a_process_that_has_ended_does_not_start(world: World) -> None:
    world.activate(world.package("api", service={"restart": "no"}))
    world.processes.units.caller = "api"
    world.processes.dies["api"] = 1
    world.processes.end("api", 1)
    with pytest.raises(ProcessError):
        boot.hand_over(world.machine, ["api"])
    assert world.processes.units.active == set()


def test_activation_by_hand_puts_an_enabled_service_under_its_unit(world: World) -> None:
    world.activate(world.package("api"), world.package("db"))
    boot.enable(world.machine, ["api"])
    deactivate(world.machine, ["api"])
    world.processes.units.active.clear()
    world.activate("api")
    boot.hand_over(world.machine, ["api", "db"])
    assert world.processes.units.active == {"api"}


def test_restore_activates_all_that_is_enabled_and_says_what_failed(world: World) -> None:
    world.processes.units.is_init = False
    world.activate(world.package("api"), world.package("log", network=SHARE), world.package("db"))
    world.activate(world.package("old", network={"network": "elsewhere"}))
    boot.enable(world.machine, ["api", "log", "db"])
    deactivate(world.machine, ["api", "log", "db", "old"])
    world.processes.dies["db"] = 1
    world.kernel.bridges.clear()  # as after a reboot: that of "old" too is wanted
    done = boot.restore(world.machine, 5.0)
    assert [outcome.service for outcome in done.outcomes] == ["api", "log"]
    assert [error.service for error in done.errors] == ["db"]
    assert world.store.active_services() == ["api", "log"]
    world.assert_whole()


def test_restore_ends_what_another_command_has_left_even_with_nothing_enabled(world: World) -> None:
    manifest = world.package("api")
    Steps(world, 18, True).run(lambda: world.activate(manifest))
    assert [intent.service for intent in world.store.intents()] == ["api"]
    boot.restore(world.machine, 5.0)
    assert world.store.intents() == []
    world.assert_whole()
