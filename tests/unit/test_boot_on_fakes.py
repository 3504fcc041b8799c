"""enable, disable and restore on a kernel, processes and units in memory."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from fake_world import Steps, World
from pages import ROOT
from refusals import refuses

from niso.base import paths
from niso.base.errors import Conflict, Error, ProcessError
from niso.base.report import WarningEvent
from niso.change import boot, outside_names_refresh, warnings
from niso.change.deactivate import deactivate
from niso.engines import pod_agent
from niso.kernel.kinds import tunnels
from niso.kernel.kinds.sysctls import FORWARDING, FORWARDING6
from niso.kernel.sockets import Listener
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
    wanted = boot.enable(world.machine._replace(report=said.append), ["api"], firewall=True)
    assert marks(wanted) == {"api": True, "nftables.service": True, "firewalld.service": True}
    assert (
        "ExecStartPost=-+:/usr/bin/timeout --kill-after=10 60 " in units.files[str(wanted[1].unit)]
    )
    assert boot.is_guarded(world.machine)
    boot.disable_firewall(world.machine)
    assert marks(
        boot.enable(world.machine._replace(report=said.append), ["db"], firewall=True)
    ) == {"db": True}
    assert not boot.is_guarded(world.machine)  # as the administrator wants it
    boot.disable(world.machine, ["api", "db"])
    assert not any(isinstance(event, WarningEvent) for event in said)
    assert marks(
        boot.enable(world.machine._replace(report=said.append), ["api"], firewall=False)
    ) == {"api": True}
    (warning,) = [event for event in said if isinstance(event, WarningEvent)]
    assert (warning.text, warning.hints) == (boot.UNGUARDED, (boot.GUARD,))
    # another program's file is left alone, and the service is enabled all the same
    boot.disable(world.machine, ["api"])
    units.files[drop_in("nftables.service")] = "[Service]\n"
    assert marks(
        boot.enable(world.machine._replace(report=said.append), ["api"], firewall=True)
    ) == {"api": True}
    assert units.files[drop_in("nftables.service")] == "[Service]\n"


def test_activate_warns_if_a_firewall_would_flush_the_rules(world: World) -> None:
    world.activate(
        world.package("api", network=WEB), world.package("idle", network={"mode": "none"})
    )
    units, said = world.processes.units, list[tuple[object, ...]]()
    machine = world.machine._replace(report=said.append)

    def warned(*names: str) -> bool:
        said.clear()
        warnings._warn_of_flush(machine, [*names])
        return said == [WarningEvent(boot.UNGUARDED, (boot.GUARD,))]

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
    assert boot.enable(world.machine._replace(report=said.append), ["api"]) == [
        boot.Marked("api", True, None)
    ]
    (caution,) = [event for event in said if isinstance(event, WarningEvent)]
    assert "niso restore" in caution.hints[0]
    boot.enable(world.machine._replace(report=said.append), ["api"])
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


# --- reboots ---------------------------------------------------------------------------------------------------------


def statuses(world: World) -> dict[str, str]:
    rows = json.loads(world.niso("ps", "--json").stdout)
    return {row["service"]: row["status"] for row in rows}


@pytest.mark.parametrize("taker", ["aaa", "worker"])
def test_port_that_a_forward_took_stays_where_it_is_over_a_reboot(world: World, taker: str) -> None:
    """Whichever name comes first."""
    world.processes.units.is_init = False
    api = {"ports": ["8080:80", "8081:80"]}
    world.niso("activate", world.package("api", network=api), world.package(taker))
    world.niso("enable", "api", taker)
    world.niso("port-forward", taker, "8080:80", "--take-over")
    again = world.niso("activate", "api")
    assert again.stdout.startswith("api: already active") and "ports: 8081→80\n" in again.stdout
    assert f"api: host port 8080/tcp is not published: it is forwarded to {taker!r}" in again.stderr
    for _ in range(2):
        world.reboot()
        world.niso("restore")
    assert world.niso("restore").stdout.count("already active") == 2
    assert (world.ports(taker), world.ports("api")) == (["8080:80"], ["8081:80"])
    world.assert_whole()
    # the port returns once the forward has ended
    world.niso("deactivate", "api")
    world.niso("activate", "api")
    assert world.ports(taker) == ["8080:80"]
    world.niso("deactivate", taker)
    assert world.niso("activate", "api").stderr == ""
    assert world.ports("api") == ["8080:80", "8081:80"]
    world.assert_whole()


def test_service_that_was_active_and_is_not_enabled_is_inactive(world: World) -> None:
    world.niso("activate", world.package("api", network=WEB))
    world.niso("port-forward", "api", "9000:80")
    leases = world.store.addresses("api")
    world.reboot()
    assert statuses(world) == {"api": "inactive"}
    world.niso("net", "repair")
    assert statuses(world) == {"api": "inactive"}
    assert world.niso("restore").stdout == "no service is enabled\n"
    world.niso("activate", "api")
    assert world.store.addresses("api") == leases
    assert world.ports("api") == ["8080:80", "9000:80"]
    world.assert_whole()
    # a deactivation ends forwards that a reboot kept
    world.reboot()
    world.niso("deactivate", "api")
    world.niso("activate", "api")
    assert world.ports("api") == ["8080:80"]


def test_forwarding_goes_back_to_what_this_boot_had(world: World) -> None:
    world.niso("net", "create", "both", "--ipv6")
    world.niso("activate", world.package("api", network={"network": "both"}))
    world.reboot()
    keys = (("", FORWARDING), ("", FORWARDING6))
    world.kernel.sysctls |= dict.fromkeys(keys, "1")
    world.niso("activate", "api")
    assert not [element for element in world.kernel.elements if "closed" in element]
    world.niso("deactivate", "api")
    assert {world.kernel.sysctls[key] for key in keys} == {"1"}


def test_restore_does_what_can_be_done_and_names_the_rest(world: World) -> None:
    ports = {"api": 8080, "db": 5432, "web": 8000}
    folders = [world.package(n, network={"ports": [f"{p}:80"]}) for n, p in ports.items()]
    world.niso("activate", *folders)
    world.processes.units.is_init = False
    world.niso("enable", *ports)
    world.reboot()
    world.kernel.listening["tcp"] = [Listener(4, "0.0.0.0", 5432, 0)]
    shutil.rmtree(f"{paths.state_dir()}/packages/web")
    said = world.refused("restore")
    assert "db: " in said and "5432/tcp is used by" in said
    assert "web: its package copy" in said and "niso: api" not in said
    assert statuses(world) == {"api": "running", "db": "inactive", "web": "inactive"}


def test_forward_that_another_service_took_since_keeps_the_service_inactive(world: World) -> None:
    world.processes.units.is_init = False
    world.niso("activate", world.package("api"), world.package("web"))
    world.niso("enable", "api")
    for port in ("9000:80", "9001:80"):
        world.niso("port-forward", "api", port)
    world.reboot()
    world.niso("activate", "web")
    world.niso("port-forward", "web", "9000:80")
    said = world.refused("restore")
    assert "port-forward 9000:80: host port 9000/tcp is published by 'web'" in said
    assert statuses(world)["api"] == "inactive"
    world.niso("port-forward", "api", "9000:80", "--remove")
    world.niso("restore")
    assert (world.ports("web"), world.ports("api")) == (["9000:80"], ["9001:80"])
    world.assert_whole()


def interrupted_activation(world: World) -> tuple[str, ...]:
    """Return a command that moves api, changes loose and adds a service."""
    new = {"network": "frontend", "ports": ["8081:80"]}
    return (
        "activate",
        world.package("loose", environment={"NEW": "1"}),
        world.package("api", network=new),
        world.package("new", network={"network": "frontend", "ports": ["8082:80"]}),
    )


@pytest.mark.parametrize("number", range(1, 52, 6))
def test_activation_that_was_cut_off_is_undone_after_a_reboot(world: World, number: int) -> None:
    world.processes.units.is_init = False
    api = world.package("api", network={"network": "backend", **WEB})
    world.niso("activate", api, world.package("loose"))
    world.niso("enable", "api")
    leases = world.store.addresses("api")
    command = interrupted_activation(world)
    assert not Steps(world, number, True).run(lambda: world.niso(*command))
    world.reboot()
    assert {*statuses(world).values()} == {"inactive"}
    world.niso("restore")
    assert statuses(world) == {"api": "running", "loose": "inactive"}
    assert world.store.addresses("api") == leases and world.ports("api") == ["8080:80"]
    world.assert_whole()


@pytest.mark.parametrize(
    ("command", "number"),
    [
        *((("deactivate", "api"), number) for number in (4, 8)),
        *((("remove", "api"), number) for number in (4, 8)),
        *((("port-forward", "api", "9000:80"), number) for number in (3, 5)),
    ],
)
def test_command_that_was_cut_off_is_finished_after_a_reboot(
    world: World, command: tuple[str, ...], number: int
) -> None:
    world.processes.units.is_init = False
    world.niso("activate", world.package("api"), world.package("web"))
    world.niso("enable", "api")
    assert not Steps(world, number, True).run(lambda: world.niso(*command))
    world.reopen()
    assert [intent.service for intent in world.store.intents()] == ["api"]
    world.reboot()
    assert {*statuses(world).values()} == {"inactive"}
    world.niso("restore")
    api = {} if command[0] == "remove" else {"api": "running"}
    assert statuses(world) == {**api, "web": "inactive"}
    assert world.ports("api") == [word for word in command if ":" in word]
    world.assert_whole()
