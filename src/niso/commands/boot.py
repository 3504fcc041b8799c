"""Services at boot: which are enabled, their systemd units, and bringing them back by hand.

Where systemd is the init, each enabled service has a unit, which calls ``niso activate`` and ``niso deactivate`` as a user
would. Elsewhere the mark in the store is all there is, and whatever runs at boot calls ``niso restore``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable

from niso.base import paths
from niso.base.errors import Conflict, NisoError, ProcessError, flatten
from niso.base.lite_typing import NamedTuple
from niso.base.locks import Lock, service_lock
from niso.base.report import ChangingUnit, Report, silent
from niso.commands import activate, restart
from niso.commands.activate import Outcome
from niso.reconcile.converge import repair
from niso.runtime import status, unit
from niso.services import journal, start
from niso.services.machine import Machine
from niso.services.targets import find_targets
from niso.store.store import ServiceRow, Store

UNITS = "/etc/systemd/system"
WANTED_BY = "multi-user.target"
_SYSTEMCTL_S = 300.0
_SPARE_S = 90
"""What niso itself may need around a service's own time to start or to stop."""

# who loads its own rules at boot may throw away all that are there, so they come first
_AFTER = (
    "network-online.target",
    "nftables.service",
    "netfilter-persistent.service",
    "firewalld.service",
    "ufw.service",
)


class Marked(NamedTuple):
    """What `enable` and `disable` did to one service."""

    service: str
    changed: bool
    unit: str | None
    """The path of its unit file; None where systemd is not the init."""


# --- the unit --------------------------------------------------------------------------------------------------------


def unit_text(service: str, state_id: str, provider: str | None, stop_timeout_s: float) -> str:
    """The unit file of a service (systemd.service(5)); ``provider`` is whose namespace it shares."""
    after = [*_AFTER, *([unit.name(provider)] if provider else [])]
    niso = " ".join(quoted(word) for word in (sys.executable, "-I", "-m", "niso.cli"))
    folders = {"NISO_STATE_DIR": paths.state_dir(), "NISO_RUN_DIR": paths.run_dir()}
    usual = {"NISO_STATE_DIR": paths.STATE_DIR, "NISO_RUN_DIR": paths.RUN_DIR}
    environment = {name: value for name, value in folders.items() if value != usual[name]}
    if os.environ.get("NISO_POOL"):
        environment["NISO_POOL"] = os.environ["NISO_POOL"]
    return "\n".join(
        [
            _mark(state_id),
            "[Unit]",
            f"Description=niso service {service}",
            "Wants=network-online.target",
            f"After={' '.join(after)}",
            *([f"Requires={unit.name(provider)}"] if provider else []),
            f"RequiresMountsFor={quoted(paths.state_dir())}",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "# niso starts it again by its manifest, and tells which process is the main one",
            "Type=notify",
            "NotifyAccess=all",
            "Restart=no",
            *(f"Environment={quoted(f'{name}={value}')}" for name, value in environment.items()),
            f"ExecStart=:{niso} activate {service}",
            f"ExecStop=:{niso} deactivate {service}",
            "SuccessExitStatus=143",
            f"TimeoutStartSec={int(start.TIMEOUT_S) + _SPARE_S}",
            f"TimeoutStopSec={int(stop_timeout_s) + _SPARE_S}",
            "",
            "[Install]",
            f"WantedBy={WANTED_BY}",
            "",
        ]
    )


def quoted(word: str) -> str:
    """``word`` as systemd reads it back, whatever is in it (systemd.syntax(7), systemd.unit(5), Specifiers).

    A ``$`` is left as it is: commands have the prefix ``:``, and elsewhere it means nothing.
    """
    if word and all(c.isascii() and (c.isalnum() or c in "/._-+=,@") for c in word):
        return word
    text = "".join(
        f"\\x{byte:02x}"
        if byte < 0x20 or byte >= 0x7F
        else f"\\{chr(byte)}"
        if chr(byte) in '"\\'
        else chr(byte)
        for byte in os.fsencode(word)
    )
    return f'"{text.replace("%", "%%")}"'


def _mark(state_id: str) -> str:
    return f"# made by niso enable, goes with niso disable; state folder {state_id}"


def _unit_file(service: str) -> str:
    return os.path.join(UNITS, unit.name(service))


def _wants_link(service: str) -> str:
    return os.path.join(UNITS, f"{WANTED_BY}.wants", unit.name(service))


def _text_of(store: Store, row: ServiceRow) -> str:
    stop_timeout_s = row.require_process().stop_timeout_s
    return unit_text(row.name, store.state_id(), row.provider, stop_timeout_s)


def _read_unit(service: str) -> str | None:
    try:
        with open(_unit_file(service), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _refuse_foreign(store: Store, service: str) -> None:
    """Raise Conflict where there is a unit of the needed name that is not of this state folder."""
    found = _read_unit(service)
    if found is not None and not found.startswith(_mark(store.state_id())):
        raise Conflict(
            f"{_unit_file(service)} is there and was not made for this state folder",
            "move it away, or give the service another name",
        )


def _refuse_alone(store: Store, row: ServiceRow, together: Iterable[str]) -> None:
    """Raise Conflict where a service's provider is not enabled, nor among ``together``: it could not be there at boot."""
    provider = row.provider and store.service(row.provider)
    if provider and not provider.enabled and provider.name not in together:
        raise Conflict(
            f"{row.name!r} shares the namespace of {provider.name!r}, which is not enabled",
            f"niso enable {provider.name} {row.name}",
        )


def _write_units(store: Store, rows: Iterable[ServiceRow]) -> list[str]:
    """Write the units that are not as they should be, and have systemd read them; the services whose were not."""
    stale = []
    for row in rows:
        text = _text_of(store, row)
        if _read_unit(row.name) != text:
            draft = f"{_unit_file(row.name)}.new"
            with open(draft, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.rename(draft, _unit_file(row.name))
            stale.append(row.name)
        elif not os.path.islink(_wants_link(row.name)):
            stale.append(row.name)
    if stale:
        _systemctl("daemon-reload")
        _systemctl("enable", *(unit.name(name) for name in stale))
    return stale


def _remove_units(names: Iterable[str]) -> list[str]:
    """Take away the units that are there; the services that had one."""
    gone = [name for name in names if _read_unit(name) is not None]
    if not gone:
        return []
    units = [unit.name(name) for name in gone]
    _wait_ended(units)
    _systemctl("disable", *units)
    for name in gone:
        os.unlink(_unit_file(name))
    _systemctl("daemon-reload")
    _systemctl("reset-failed", *units, may_fail=True)
    return gone


def _wait_ended(units: list[str]) -> None:
    """Wait, for at most 10 s, until none of these units is active: a file that goes before takes the unit's stop with it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = _systemctl("is-active", *units, may_fail=True).split()
        if not set(states) & {"active", "deactivating", "activating", "reloading"}:
            return
        time.sleep(0.02)


def _systemctl(*arguments: str, may_fail: bool = False) -> str:
    """Run systemctl; what it prints. Raises NisoError in its own words."""
    words = f"systemctl {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [
                "systemctl",
                *(() if arguments[0] == "is-active" else ("--quiet",)),
                "--no-ask-password",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise NisoError("systemctl is not installed", "apt install systemd") from error
    except subprocess.TimeoutExpired as error:
        raise NisoError(
            f"{words}: no answer within {_SYSTEMCTL_S:g}s", "systemctl list-jobs"
        ) from error
    if done.returncode != 0 and not may_fail:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise NisoError(
            f"{words}: {said}", f"systemctl status {arguments[-1]}" if arguments[1:] else None
        )
    return done.stdout


# --- enable, disable -------------------------------------------------------------------------------------------------


def enable(store: Store, names: list[str], report: Report = silent) -> list[Marked]:
    """Have services activated at boot. One that is active is given into systemd's hands.

    Raises Conflict where one shares the namespace of a service that is not enabled, NisoError.
    """
    rows = [_row(store, name) for name in names]
    for row in rows:
        _refuse_alone(store, row, names)
        if unit.booted():
            _refuse_foreign(store, row.name)
    fresh = {row.name for row in rows if not row.enabled}
    _set_enabled(store, fresh, True)
    if unit.booted():
        written = _write_units(store, rows)
        for name in written:
            report(ChangingUnit("write", _unit_file(name)))
        fresh.update(written)
        _start_units(row for row in rows if row.active)
    return [
        Marked(name, name in fresh, _unit_file(name) if unit.booted() else None) for name in names
    ]


def disable(store: Store, names: list[str], report: Report = silent) -> list[Marked]:
    """Have services not activated at boot any more. One that is active stays so, out of systemd's hands.

    Raises Conflict where an enabled service shares the namespace of one, NisoError.
    """
    rows = [_row(store, name) for name in names]
    for other in store.services():
        if other.enabled and other.provider in names and other.name not in names:
            raise Conflict(
                f"{other.name!r}, which is enabled, shares the namespace of {other.provider!r}",
                f"niso disable {other.name} {other.provider}",
            )
    was = {row.name for row in rows if row.enabled}
    _set_enabled(store, was, False)
    was.update(clear(names, report))
    return [
        Marked(name, name in was, _unit_file(name) if name in was and unit.booted() else None)
        for name in names
    ]


def clear(names: Iterable[str], report: Report = silent) -> list[str]:
    """Take the units of services away, running or gone; gives those that had one. Without systemd there are none."""
    if not unit.booted():
        return []
    mine = []
    for name in names:
        found = _read_unit(name)
        if found is None or not found.startswith(_mark("").rpartition(" ")[0]):
            continue
        mine.append(name)
        with service_lock(name):
            unit.give_back(name, status.conmon(name))
        report(ChangingUnit("remove", _unit_file(name)))
    return _remove_units(mine)


def _row(store: Store, name: str) -> ServiceRow:
    row = store.service(name)
    assert row is not None
    return row


def _set_enabled(store: Store, names: Iterable[str], enabled: bool) -> None:
    with Lock(), store.transaction():
        for name in names:
            store.set_enabled(name, enabled)


# --- what systemd must hear of ---------------------------------------------------------------------------------------


def settle(machine: Machine, names: Iterable[str]) -> None:
    """After services were activated or restarted: have systemd supervise those that are enabled.

    Called by the unit itself, this is what ends its start. Raises NisoError, OSError.
    """
    store = machine.store
    rows = [row for name in names if (row := store.service(name)) is not None and row.active]
    for row in rows:
        if unit.path(row.name) is not None:
            if not status.supervisors(row.name):  # its conmon was killed, and it runs on
                restart.restart(machine, [row.name])
            _ready(row.name)
            return
    rows = [row for row in rows if row.enabled]
    if rows and unit.booted():
        for row in rows:
            _refuse_foreign(store, row.name)
            _refuse_alone(store, row, ())
        _write_units(store, rows)
        _start_units(rows)


def _ready(service: str) -> None:
    """We are the unit's start: the service's conmon, whoever started it, is the main process from here on."""
    own = unit.path(service)
    assert own is not None
    with service_lock(service):
        found = status.supervisors(service)
        if not found:
            raise ProcessError("its process has ended", f"niso logs {service}", service=service)
        unit.adopt([pid for pid in found if unit.path(service, pid) != own], own)
        unit.tell(f"MAINPID={found[0]}", "READY=1")


def _start_units(rows: Iterable[ServiceRow]) -> None:
    """Start the units of active services that have a process and are not in their unit already."""
    waiting = [
        unit.name(row.name)
        for row in rows
        if (conmon := status.conmon(row.name)) is not None and unit.path(row.name, conmon) is None
    ]
    if waiting:
        _systemctl("start", *waiting)


# --- restore ---------------------------------------------------------------------------------------------------------


class Restored(NamedTuple):
    """What came of `restore`: what was activated, and what was wrong with the others."""

    outcomes: list[Outcome]
    errors: list[NisoError]


def restore(machine: Machine, timeout_s: float, report: Report = silent) -> Restored:
    """Make the bridges of all networks and activate every enabled service, providers first; each that can be, whatever becomes of others."""
    store = machine.store
    errors: list[NisoError] = []
    try:
        journal.recover(machine, report, [intent.service for intent in store.intents()])
    except NisoError as error:
        errors += flatten(error)
    try:
        with Lock():
            repair(machine.kernel, store, report)
    except NisoError as error:
        errors += flatten(error)
    enabled = [row for row in store.services() if row.enabled]
    outcomes: list[Outcome] = []
    for together in (
        [row.name for row in enabled if row.provider is None],
        [row.name for row in enabled if row.provider is not None],
    ):
        outcomes += _activate(machine, together, timeout_s, report, errors)
    return Restored(sorted(outcomes), errors)


def _activate(
    machine: Machine, names: list[str], timeout_s: float, report: Report, errors: list[NisoError]
) -> list[Outcome]:
    """Activate all at once; if that cannot be, one after the other."""
    if not names:
        return []
    try:
        return activate.activate(machine, find_targets(machine.store, names), timeout_s, report)
    except NisoError as error:
        if len(names) == 1:
            errors += [_naming(names[0], one) for one in flatten(error)]
            return []
    return [
        outcome
        for name in names
        for outcome in _activate(machine, [name], timeout_s, report, errors)
    ]


def _naming(service: str, error: NisoError) -> NisoError:
    """Return the error with the service before all else that it says."""
    if error.service == service and not error.file:
        return error
    return NisoError(error.message, error.hint, error.key, service=service, names_key=False)
