"""Let a systemd timer resolve outside names again while enabled services need them."""

from __future__ import annotations

import os

from niso.base.report import Caution, Report, silent
from niso.commands.unit_files import ChangingUnit, command, environment
from niso.runtime.units import UNITS
from niso.services.machine import Machine

EVERY_S = 60
"""The interval (s) of `niso net refresh`, which resolves only names that are due."""
TIMER = "niso_refresh.timer"
"""Not a possible name of a service's unit, which begins with niso-."""
_SERVICE = "niso_refresh.service"
_DROP_IN = f"timers.target.d/{TIMER}.conf"
_MARK = "# written by niso enable for outside names; state folder "


def settle(machine: Machine, report: Report = silent) -> None:
    """Write or remove the timer, as enabled services need it; no-op without systemd.

    Raises Error, OSError.
    """
    store, units = machine.store, machine.processes.units
    if not units.booted():
        return
    known = units.read(_path(TIMER))
    mine = known is not None and known.startswith(_MARK + store.state_id())
    if not (mine or store.names_outside()):
        return
    wanted = any(
        enabled and store.names_outside(service) for service, _, enabled in store.service_names()
    )
    files = texts(store.state_id())
    if mine and not wanted:
        report(ChangingUnit("remove", _path(TIMER)))
        units.stop_unit(TIMER)
        for name in reversed(files):
            units.delete(_path(name))
        units.reload()
    elif wanted and known is not None and not mine:
        report(
            Caution(
                f"{_path(TIMER)} was not made for this state folder, so nothing resolves the"
                " outside names of its services",
                ("call niso net refresh from cron",),
            )
        )
    elif wanted and any(units.read(_path(name)) != text for name, text in files.items()):
        report(ChangingUnit("write", _path(TIMER)))
        for name, text in files.items():
            units.write(_path(name), text)
        units.reload()
        units.stop_unit(TIMER)
        units.start_unit(TIMER)


def texts(state_id: str) -> dict[str, str]:
    """Return the files of the timer and its service (systemd.timer(5)), by name.

    A drop-in of timers.target starts the timer.
    """
    head = (_MARK + state_id, "[Unit]")
    about = (*head, "Description=niso: resolve outside names of policies", "")
    service = (
        *about,
        "[Service]",
        "Type=oneshot",
        *environment(),
        f"ExecStart={command('net', 'refresh')}",
        "# a name without an address is not a failure of the unit",
        "SuccessExitStatus=3",
        "# the journal has errors alone",
        "StandardOutput=null",
        "TimeoutStartSec=120",
        "",
    )
    timer = (
        *about,
        "[Timer]",
        "OnActiveSec=5s",
        f"OnUnitActiveSec={EVERY_S}s",
        "AccuracySec=5s",
        "",
    )
    drop_in = (*head, f"Wants={TIMER}", "")
    files = {_SERVICE: service, _DROP_IN: drop_in, TIMER: timer}
    return {name: "\n".join(lines) for name, lines in files.items()}


def _path(name: str) -> str:
    return os.path.join(UNITS, name)
