"""Write the systemd units of enabled services; without systemd, start services at boot.

The unit of an enabled service calls ``niso activate`` and ``niso deactivate`` as a user would.

This module also writes drop-ins for the units of other firewalls. /etc/nftables.conf usually begins
with ``flush ruleset``, which deletes niso's tables too. After each start of such a firewall, the
drop-in runs ``niso net repair --kernel`` to restore the tables. This command does not wait for
services, because the unit of a service may itself be waiting for the firewall's unit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from niso.base import paths
from niso.base.errors import Conflict, Error, flatten
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import silent
from niso.change import activate, journal, outside_names_refresh, start
from niso.change import deactivate as change_deactivate
from niso.change.activate import Outcome
from niso.change.deactivate import Done
from niso.change.targets import find_targets
from niso.manifest import process_keys
from niso.reconcile.change import repair
from niso.runtime import units as systemd
from niso.runtime.machine import Machine
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.runtime.units import Units


_MARK = "# written by niso enable, removed by niso disable; state folder "
"""The first line of a unit file of a service. The state id follows."""
_SERVICE = (
    "# niso restarts the process itself, and notifies systemd of the main process",
    "Type=notify",
    "NotifyAccess=all",
)
_JOB = ("# the start lasts until the job has ended", "Type=oneshot", "RemainAfterExit=yes")
_SCHEDULED = ("# started by the timer, and active while the job runs", "Type=oneshot")
RESERVED = ("docker", "podman", "podman-again", "wireguard")
"""Service names that are refused because a unit of niso itself has the same file name.

The Debian packages niso-docker and niso-podman have units in /usr/lib, which units in /etc would
hide. The unit of wireguard-go exists only while its network interface does
(kernel/kinds/tunnels.py). Other units have names that no service can have
(`outside_names_refresh.TIMER`), or are files that are checked.
"""
_SPARE_S = 90
"""Seconds that niso itself may take, in addition to a service's start or stop timeout."""


class Marked(NamedTuple):
    """The result of enabling or disabling one systemd unit.

    Returned by `Services.enable`, `Services.disable`, `Host.guard_firewalls`, `Kubernetes.enable`
    and `Kubernetes.disable`.
    """

    service: str  # the service's name; of `guard_firewalls`, the unit of a firewall
    changed: bool  # false if nothing changed
    unit: str | None  # path of the systemd unit; of `guard_firewalls`, the drop-in


def unit_text(
    service: str,
    state_id: str,
    provider: str | None,
    stop_timeout_s: float,
    job: bool,
    scheduled: bool,
) -> str:
    """Return the text of a service's unit file (systemd.service(5)).

    ``provider`` is the service whose namespace this service shares, or None. ``stop_timeout_s`` is
    in seconds. With ``job``, the unit stays active after the process has exited. With
    ``scheduled``, a timer (`timer_text`) starts the unit, and the unit is active only while the
    process runs. Such a job keeps its network between runs, so its unit does not deactivate it.
    """
    after = [
        "network-online.target",
        *systemd.AFTER,
        *([systemd.unit_of(provider)] if provider else []),
    ]
    lines = [
        _MARK + state_id,
        "[Unit]",
        f"Description=niso service {service}",
        "Wants=network-online.target",
        f"After={' '.join(after)}",
        *([f"Requires={systemd.unit_of(provider)}"] if provider else []),
        f"RequiresMountsFor={systemd.quoted(paths.state_dir())}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        *(_SCHEDULED if scheduled else _JOB if job else _SERVICE),
        "Restart=no",
        *systemd.environment(),
        f"ExecStart={systemd.command('activate', service)}",
        *([f"ExecStart={systemd.command('restart', service)}"] if scheduled else []),
        *([] if scheduled else [f"ExecStop={systemd.command('deactivate', service)}"]),
        "SuccessExitStatus=143",
        f"TimeoutStartSec={'infinity' if job else int(start.TIMEOUT_S) + _SPARE_S}",
        f"TimeoutStopSec={int(stop_timeout_s) + _SPARE_S}",
        "",
        *([] if scheduled else ["[Install]", f"WantedBy={systemd.WANTED_BY}", ""]),
    ]
    return "\n".join(lines)


def timer_text(service: str, state_id: str, schedule: str) -> str:
    """Return the text of the timer of a job with a schedule (systemd.timer(5)).

    If the machine was off at the time of a run, the job runs at the next boot.
    """
    lines = [
        _MARK + state_id,
        "[Unit]",
        f"Description=niso job {service}: {schedule}",
        "",
        "[Timer]",
        f"OnCalendar={schedule}",
        "AccuracySec=1s",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
        "",
    ]
    return "\n".join(lines)


def _refuse_foreign(units: Units, store: Store, service: str) -> None:
    file, hint = systemd.unit_file(service), "give the service another name"
    if units.read(file) is None and service in RESERVED:
        raise Conflict(f"{systemd.unit_of(service)} is a unit of niso itself", hint)
    paths = (file, systemd.timer_file(service))
    systemd.refuse_foreign(units, paths, _MARK + store.state_id(), f"move it away, or {hint}")


def _refuse_alone(store: Store, row: ServiceRow, together: Iterable[str]) -> None:
    """Raise Conflict if a service's provider is neither enabled nor in ``together``, the services
    that the same command enables.
    """
    provider = row.provider and store.service(row.provider)
    if provider and not provider.enabled and provider.name not in together:
        reason = f"{row.name!r} shares the namespace of {provider.name!r}, which is not enabled"
        raise Conflict(reason, f"niso enable {provider.name} {row.name}")


def _write_units(units: Units, store: Store, rows: Iterable[ServiceRow]) -> list[str]:
    """Write and enable the missing and outdated units of services. Return these services' names."""
    stale, timers = [], []
    for row in rows:
        file, program = systemd.unit_file(row.name), row.require_service().program
        timeout_s = program.stop_timeout_s + (program.deploy.drain_s if program.deploy else 0)
        # systemd supervises no instances: the unit starts and stops them
        once = row.is_job or not row.has_process
        settings = (row.name, store.state_id(), row.provider, timeout_s, once)
        text = unit_text(*settings, scheduled=row.schedule is not None)
        is_written = units.read(file) == text
        if not is_written:
            units.write(file, text)
        if row.schedule is not None:
            if _write_timer(units, store, row) or not is_written:
                timers.append(row.name)
            continue
        if units.read(systemd.timer_file(row.name)) is not None:  # the job had a schedule before
            units.remove_timer(row.name)
        if not (is_written and units.is_enabled(row.name)):
            stale.append(row.name)
    if stale:
        units.enable(stale)
    for name in timers:
        units.enable_timer(name)
    return [*stale, *timers]


def _write_timer(units: Units, store: Store, row: ServiceRow) -> bool:
    file, text = (
        systemd.timer_file(row.name),
        timer_text(row.name, store.state_id(), row.schedule or ""),
    )
    if units.read(file) == text and units.is_active(systemd.timer_of(row.name)):
        return False
    units.write(file, text)
    return True


def _refuse_without_systemd(rows: Iterable[ServiceRow]) -> None:
    for row in rows:
        if row.schedule is not None:
            raise Conflict(
                f"{row.name!r} has a schedule, and systemd, which would run it, did not boot this"
                " machine",
                f"add to root's crontab: {cron_line(row.name, row.schedule)}",
                "service.schedule",
            )


def cron_line(service: str, schedule: str) -> str:
    """Return the line of crontab(5) that runs a job at the times of its schedule.

    Cron searches for commands only in /usr/bin and /bin.
    """
    times = process_keys.cron(schedule) or "MINUTE HOUR DAY MONTH WEEKDAY"
    own = os.path.join(paths.python_prefix(), "bin/niso")
    niso = "niso" if os.path.exists("/usr/bin/niso") else own
    return f"{times} {niso} activate {service} && {niso} restart {service}"


# --- enable, disable ------------------------------------------------------------------------------


def enable(machine: Machine, names: list[str], firewall: bool | None = None) -> list[Marked]:
    """Enable services, so that they start at boot. Let systemd supervise the active ones.

    ``firewall`` matters only if no service was enabled before. If true, systemd repairs niso's
    rules after each start of another firewall (`enable_firewall`). If false, niso warns if this
    repair is not set up. If None, niso does neither. Raises Conflict if a service shares the
    namespace of a service that is not enabled, or if another program has a unit of this name.
    Raises Error if systemd fails.
    """
    store, units = machine.store, machine.processes.units
    rows = [store.require_known(name) for name in names]
    for row in rows:
        _refuse_alone(store, row, names)
        if units.booted():
            _refuse_foreign(units, store, row.name)
            if row.schedule is not None:
                units.check_schedule(row.name, row.schedule)
    if not units.booted():
        _refuse_without_systemd(rows)
    fresh = {row.name for row in rows if not row.enabled}
    is_first = bool(fresh) and not any(enabled for _, _, enabled in store.service_names())
    _set_enabled(store, fresh, True)
    guarded: list[Marked] = []
    if units.booted():
        if is_first and firewall is not None:
            guarded = _guard_first(machine, firewall)
        written = _write_units(units, store, rows)
        for name in written:
            machine.report(systemd.ChangingUnit("write", systemd.unit_file(name)))
        fresh.update(written)
        _start_units(units, (row for row in rows if _has_lasting_unit(row)))
        outside_names_refresh.supervise(machine)
    elif fresh:
        text = "systemd did not boot this machine, so nothing starts enabled services by itself"
        hint = "run niso restore at boot: from the init, or from @reboot in root's crontab"
        machine.caution(text, (hint,))
    has_unit = units.booted()
    marked = [Marked(n, n in fresh, systemd.unit_file(n) if has_unit else None) for n in names]
    return marked + [unit for unit in guarded if unit.changed]


def _guard_first(machine: Machine, wanted: bool) -> list[Marked]:
    """Write the drop-ins for other firewalls if ``wanted``. Otherwise warn if they are missing."""
    if wanted:
        try:
            return enable_firewall(machine)
        except Conflict as error:
            machine.caution(error.message, (error.hint,) if error.hint else ())
    elif not is_guarded(machine):
        machine.caution(UNGUARDED, (GUARD,))
    return []


def disable(machine: Machine, names: list[str]) -> list[Marked]:
    """Disable services, so that they do not start at boot. Active services keep running.

    Raises Conflict if another service shares the namespace of one of the services and stays
    enabled. Raises Error if systemd fails.
    """
    store, units = machine.store, machine.processes.units
    rows = [store.require_known(name) for name in names]
    for other in store.services():
        if other.enabled and other.provider in names and other.name not in names:
            reason = f"{other.name!r}, which is enabled, shares the namespace of {other.provider!r}"
            raise Conflict(reason, f"niso disable {other.name} {other.provider}")
    was = {row.name for row in rows if row.enabled}
    _set_enabled(store, was, False)
    was.update(clear(machine, names))
    had_unit = was if units.booted() else set[str]()
    return [Marked(n, n in was, systemd.unit_file(n) if n in had_unit else None) for n in names]


def clear(machine: Machine, names: Iterable[str]) -> list[str]:
    """Remove the systemd units of services, and return the services that had a unit.

    The processes of the services keep running.
    """
    units = machine.processes.units
    if not units.booted():
        return []
    mine = []
    for name in names:
        text = units.read(systemd.unit_file(name))
        if text is None or not text.startswith(_MARK):
            continue
        mine.append(name)
        if units.read(systemd.timer_file(name)) is not None:
            units.remove_timer(name)
        row = machine.store.service(name)
        with journal.locked(machine.store, [name]):
            if row is not None and not row.has_process and not row.is_attachment:
                # a stop of the unit as written would stop the instances
                units.write(systemd.unit_file(name), text.replace("\nExecStop=", "\n# ExecStop="))
                units.reload()
                units.stop([name])
            else:
                units.stop_unit_only(name)
        machine.report(systemd.ChangingUnit("remove", systemd.unit_file(name)))
    units.remove(mine)
    outside_names_refresh.supervise(machine)
    return mine


def _set_enabled(store: Store, names: Iterable[str], enabled: bool) -> None:
    with Lock(), store.transaction():
        for name in names:
            store.set_enabled(name, enabled)


# --- notify systemd -------------------------------------------------------------------------------


def hand_over(machine: Machine, names: Iterable[str]) -> None:
    """Let systemd supervise enabled services after they were activated or restarted.

    If a service's unit runs this command, systemd is notified that the unit has started. An
    outdated unit file is replaced first, because its type may expect a main process, which a
    service with instances does not have. Raises Error or OSError.
    """
    machine = machine._replace(report=silent)  # the caller has already reported the end
    store, units = machine.store, machine.processes.units
    known = [row for name in names if (row := store.service(name)) is not None]
    rows = [row for row in known if _has_lasting_unit(row)]
    for row in known:
        if units.is_ours(row.name):
            text = units.read(systemd.unit_file(row.name)) or ""
            if row.enabled and text.startswith(_MARK):
                _write_units(units, store, [row])
            if not row.has_process or row.is_job:
                return
            # its conmon was killed, but the process is still running
            if not units.is_supervised(row.name):
                activate.restart(machine, [row.name])
            with journal.locked(store, [row.name]):
                units.ready(row.name)
            return
    rows = [row for row in rows if row.enabled]
    if units.booted():
        jobs = [row for row in known if row.enabled and row.is_job]
        for row in (*rows, *jobs):
            _refuse_foreign(units, store, row.name)
            _refuse_alone(store, row, ())
        _write_units(units, store, [*rows, *jobs])
        _start_units(units, rows)
        outside_names_refresh.supervise(machine)


def _has_lasting_unit(row: ServiceRow) -> bool:
    """Return whether a service's unit stays active until the service is deactivated. The unit of a
    job with a schedule is active only while the job runs.
    """
    return row.active and not row.is_job and not row.is_attachment


def _start_units(units: Units, rows: Iterable[ServiceRow]) -> None:
    waiting = [
        row.name
        for row in rows
        if units.is_outside(row.name)
        or not (row.has_process or units.is_active(systemd.unit_of(row.name)))
    ]
    if waiting:
        units.start(waiting)


class Restored(NamedTuple):
    """Result of `Services.restore`: the outcomes of activated services, and all errors."""

    outcomes: tuple[Outcome, ...]
    errors: tuple[Error, ...]


def restore(machine: Machine, timeout_s: float) -> Restored:
    """Create the bridges of all networks and activate all enabled services.

    Services that share a namespace are activated after the others. ``timeout_s`` is the time in
    seconds for the start of a service. If a service fails, the others are still activated.
    """
    store = machine.store
    errors: list[Error] = []
    try:
        journal.recover(machine, every=True)
    except Error as error:
        errors += flatten(error)
    try:
        with Lock():
            repair(machine.kernel, store, machine.report)
    except Error as error:
        errors += flatten(error)
    enabled = [row for row in store.services() if row.enabled and row.schedule is None]
    outcomes: list[Outcome] = []
    for shares in (False, True):
        together = [row.name for row in enabled if (row.provider is not None) is shares]
        outcomes += _activate(machine, together, timeout_s, errors)
    return Restored(tuple(sorted(outcomes)), tuple(errors))


def _activate(
    machine: Machine, names: list[str], timeout_s: float, errors: list[Error]
) -> list[Outcome]:
    if not names:
        return []
    try:
        with machine.store.reading():
            targets = find_targets(machine.store, names)
        return activate.activate(machine, targets, timeout_s)
    except Error as error:
        if len(names) == 1:
            errors += [_naming(names[0], one) for one in flatten(error)]
            return []
    each = (_activate(machine, [name], timeout_s, errors) for name in names)
    return [outcome for outcomes in each for outcome in outcomes]


def _naming(service: str, error: Error) -> Error:
    if error.service == service and not error.file:
        return error
    return Error(error.message, error.hint, error.key, service=service, names_key=False)


# --- units of other firewalls ---------------------------------------------------------------------

_UNITS = ("nftables.service", "firewalld.service")
TIMEOUT = "/usr/bin/timeout --kill-after=10 60"
_FIREWALL_MARK = (
    "# written by niso enable --firewall, removed by niso disable --firewall; state folder "
)


def _text(state_id: str) -> str:
    """Return the text of the drop-in that repairs niso's rules after each start of a firewall's
    unit.

    The prefix ``+`` runs the repair outside the unit's file system sandbox, where niso can create
    names of network namespaces (systemd.service(5)). With ``-``, a failed repair does not fail the
    unit. The repair has a timeout, because it may wait for another command, and the boot waits for
    it.
    """
    command = systemd.command("net", "repair", "--kernel").removeprefix(":")
    repair = f"-+:{TIMEOUT} {command}"
    hooks = [f"{hook}={repair}" for hook in ("ExecStartPost", "ExecReload", "ExecStopPost")]
    return "\n".join([_FIREWALL_MARK + state_id, "[Service]", *systemd.environment(), *hooks, ""])


UNGUARDED = (
    "a restart of nftables.service flushes niso's rules: published ports then do not work, and"
    " policies between services of a network are not enforced, until niso net repair"
)
GUARD = "niso firewall enable"


def is_guarded(machine: Machine) -> bool:
    """Return whether systemd repairs niso's rules after each start of nftables.service."""
    return bool(systemd.ours(machine.processes.units, _drop_ins()[:1], _FIREWALL_MARK))


def enable_firewall(machine: Machine) -> list[Marked]:
    """Make systemd repair niso's rules whenever another firewall has been loaded or stopped.

    A drop-in is written for each known firewall's unit, even if it is not installed yet. Raises
    Error if systemd is not the init, and Conflict if a drop-in exists that was not written for this
    state folder.
    """
    units, state_id = machine.processes.units, machine.store.state_id()
    if not units.booted():
        hint = "let the script that loads the firewall run niso net repair --kernel"
        raise Error("systemd did not boot this machine", hint)
    systemd.refuse_foreign(units, _drop_ins(), _FIREWALL_MARK + state_id)
    return _marked(systemd.put(units, dict.fromkeys(_drop_ins(), _text(state_id)), machine.report))


def disable_firewall(machine: Machine) -> list[Marked]:
    """Remove the drop-ins that `enable_firewall` has written for this state folder."""
    units = machine.processes.units
    own = systemd.ours(units, _drop_ins(), _FIREWALL_MARK + machine.store.state_id())
    systemd.drop(units, own, machine.report)
    return _marked(own)


def _drop_ins() -> list[str]:
    return [systemd.drop_in(unit) for unit in _UNITS]


def _marked(changed: list[str]) -> list[Marked]:
    return [Marked(n, path in changed, path) for n, path in zip(_UNITS, _drop_ins(), strict=True)]


# --- supervision by systemd after a start ---------------------------------------------------------


def has_ended_by_itself(store: Store, names: list[str]) -> bool:
    """Return whether systemd calls niso only because a service's process has exited.

    The unit of a service with instances has no process, so it stops only on request.
    """
    rows = [store.service(name) for name in names if systemd.path(name) is not None]
    return systemd.has_ended() and any(row is None or row.has_process for row in rows)


def deactivate(machine: Machine, names: list[str], dry_run: bool) -> list[Done]:
    """Stop services for `niso deactivate`. Return one `Done` per service: whether it was active.

    If systemd requested the stop, the services that share their namespaces are stopped too, and the
    ports that `niso port-forward` published are published again at the next start.
    """
    by_systemd = any(systemd.path(name) is not None for name in names)
    if by_systemd:  # systemd cannot be refused, so stop the services that share the namespace too
        rows = machine.store.services()
        names = [*names, *(row.name for row in rows if row.active and row.provider in names)]
    return change_deactivate.deactivate(machine, names, dry_run, keep_forwards=by_systemd)
