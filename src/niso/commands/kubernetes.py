"""Run the agent for Kubernetes' network policies, and install its systemd unit."""

from __future__ import annotations

import os
from collections.abc import Callable

from niso.base.errors import Conflict, Error
from niso.base.report import Report, silent
from niso.commands import unit_files
from niso.commands.agents import Following, alone
from niso.commands.unit_files import ChangingUnit
from niso.kubernetes import kubeconfig
from niso.kubernetes.api_server import ApiServer
from niso.kubernetes.pod_agent import PodAgent
from niso.runtime.units import UNITS, WANTED_BY
from niso.services.machine import Machine

UNIT = "niso_kubernetes.service"
"""Not a possible name of a service's unit, which begins with niso-."""
_LOCK = "niso.kubernetes"
_MARK = "# written by niso kubernetes --enable, removed by --disable; state folder "


def follow(machine: Machine, config: str, log: Callable[[str], None]) -> Following:
    """Return the agent. Raises Error if the kubeconfig is unusable."""
    access = kubeconfig.read(config)
    ApiServer(access)  # raises for unusable certificates

    def connect() -> ApiServer:
        return ApiServer(kubeconfig.read(config))

    agent = PodAgent(connect, log)

    def work() -> None:
        log(f"following {access.server}")
        agent.run(machine)

    held = Conflict("niso kubernetes runs already", f"systemctl status {UNIT}")
    return Following(lambda: alone(_LOCK, held, work), agent.stop)


def unit_texts(config: str, state_id: str) -> dict[str, str]:
    """Return the unit and the drop-in that starts it at boot, by path."""
    mark = f"{_MARK}{state_id}"
    words = ("kubernetes", "--kubeconfig", config)
    files = {
        UNIT: unit_files.agent(mark, "niso: network policies of Kubernetes", words),
        f"{WANTED_BY}.d/{UNIT}.conf": [mark, "[Unit]", f"Wants={UNIT}", ""],
    }
    return {os.path.join(UNITS, name): "\n".join(lines) for name, lines in files.items()}


def enable(machine: Machine, config: str, report: Report = silent) -> bool:
    """Write and start the unit; return whether something changed.

    Raises Error without systemd, or for an unusable kubeconfig; Conflict if the unit was not
    written for this state folder.
    """
    config = os.path.abspath(config)
    ApiServer(kubeconfig.read(config))
    units, state_id = machine.processes.units, machine.store.state_id()
    if not units.booted():
        raise Error(
            "systemd did not boot this machine", "start niso kubernetes at boot", "--enable"
        )
    texts = unit_texts(config, state_id)
    there = {path: units.read(path) for path in texts}
    for path, text in there.items():
        if text is not None and not text.startswith(_MARK + state_id):
            raise Conflict(
                f"{path} already exists and was not made for this state folder", "move it away"
            )
    changed = there != texts
    if changed:
        report(ChangingUnit("write", os.path.join(UNITS, UNIT)))
        for path, text in texts.items():
            units.write(path, text)
        units.reload()
        units.stop_unit(UNIT)
    units.start_unit(UNIT)
    return changed


def disable(machine: Machine, report: Report = silent) -> bool:
    """Stop and remove the unit; return whether this state folder had one."""
    units, state_id = machine.processes.units, machine.store.state_id()
    ours = [
        path
        for path in unit_texts("", state_id)
        if (units.read(path) or "").startswith(_MARK + state_id)
    ]
    if not ours:
        return False
    report(ChangingUnit("remove", os.path.join(UNITS, UNIT)))
    if units.booted():
        units.stop_unit(UNIT)
    for path in ours:
        units.delete(path)
    if units.booted():
        units.reload()
    return True
