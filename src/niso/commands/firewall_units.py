"""Restore niso's rules whenever systemd has loaded another firewall's rules.

/etc/nftables.conf usually begins with ``flush ruleset``, which deletes niso's tables too. A drop-in
for the firewall's unit runs ``niso net repair --kernel`` after its start, reload and stop. That
command waits for no service, because a service's unit may be waiting for the firewall's.
"""

from __future__ import annotations

from niso.base.errors import Conflict, Error
from niso.base.lite_typing import NamedTuple
from niso.base.report import Report, silent
from niso.commands.unit_files import ChangingUnit, command, drop_in, environment
from niso.services.machine import Machine

_UNITS = ("nftables.service", "firewalld.service")
_MARK = "# written by niso enable --firewall, removed by niso disable --firewall; state folder "


class Guarded(NamedTuple):
    """The result for one firewall's unit."""

    unit: str
    changed: bool
    path: str
    """Path of niso's drop-in."""


def _text(state_id: str) -> str:
    """Return the drop-in (systemd.service(5)).

    ``+`` runs the command outside the unit's file system sandbox, in which niso could not name
    network namespaces. With ``-``, its failure does not fail the firewall's unit.
    """
    repair = f"-+{command('net', 'repair', '--kernel')}"
    return "\n".join(
        [
            _MARK + state_id,
            "[Service]",
            *environment(),
            f"ExecStartPost={repair}",
            f"ExecReload={repair}",
            f"ExecStopPost={repair}",
            "",
        ]
    )


def enable(machine: Machine, report: Report = silent) -> list[Guarded]:
    """Write the drop-ins, including those for firewalls that are not installed yet.

    Raises Error without systemd, Conflict if a file was not written for this state folder.
    """
    units, state_id = machine.processes.units, machine.store.state_id()
    if not units.booted():
        raise Error(
            "systemd did not boot this machine",
            "let the script that loads the firewall run niso net repair --kernel",
            "--firewall",
        )
    text = _text(state_id)
    texts = {unit: units.read(drop_in(unit)) for unit in _UNITS}
    for unit, now in texts.items():
        if now is not None and not now.startswith(_MARK + state_id):
            raise Conflict(
                f"{drop_in(unit)} already exists and was not made for this state folder",
                "move it away",
            )
    done = [Guarded(unit, texts[unit] != text, drop_in(unit)) for unit in _UNITS]
    for guarded in done:
        if guarded.changed:
            report(ChangingUnit("write", guarded.path))
            units.write(guarded.path, text)
    if any(guarded.changed for guarded in done):
        units.reload()
    return done


def disable(machine: Machine, report: Report = silent) -> list[Guarded]:
    """Remove the drop-ins; no-op for missing ones, and those of other state folders."""
    units, state_id = machine.processes.units, machine.store.state_id()
    done = []
    for unit in _UNITS:
        is_ours = (units.read(drop_in(unit)) or "").startswith(_MARK + state_id)
        if is_ours:
            report(ChangingUnit("remove", drop_in(unit)))
            units.delete(drop_in(unit))
        done.append(Guarded(unit, is_ours, drop_in(unit)))
    if any(guarded.changed for guarded in done) and units.booted():
        units.reload()
    return done
