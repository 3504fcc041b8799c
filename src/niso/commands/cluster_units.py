"""Run the programs that a host of a cluster needs: the agent, and etcd on members.

With systemd as init, each has a unit. Otherwise etcd is started in the background, because nothing
works without it, and starting the agent is left to the caller.
"""

from __future__ import annotations

from niso.base.errors import Conflict
from niso.base.report import Caution, Report
from niso.cluster import own_etcd
from niso.cluster.config import Config
from niso.commands.unit_files import ChangingUnit, agent
from niso.runtime.units import WANTED_BY, unit_file
from niso.services.machine import Machine

AGENT, ETCD = "agent", "etcd"
_MARK = "# written by niso cluster, which also removes it; state folder "
_WORDS = {AGENT: ("agent",), ETCD: ("cluster", "etcd")}
_DESCRIPTIONS = {AGENT: "niso agent, which follows the cluster", ETCD: "etcd of niso's cluster"}
# a member waits for the other members, and no unit waits for it
_MORE = {
    AGENT: ("RestartSec=1",),
    ETCD: ("RestartSec=2", "TimeoutStartSec=infinity", "LimitNOFILE=40000"),
}


def unit_text(which: str, state_id: str) -> str:
    """Return the unit file of the agent or of etcd (systemd.service(5))."""
    lines = agent(f"{_MARK}{state_id}", _DESCRIPTIONS[which], _WORDS[which], _MORE[which])
    return "\n".join([*lines, "[Install]", f"WantedBy={WANTED_BY}", ""])


def require_free(machine: Machine, which: str) -> None:
    """Raise Conflict if the unit's name belongs to another state folder or program."""
    units = machine.processes.units
    text = units.read(unit_file(which)) if units.booted() else None
    if text is not None and not text.startswith(f"{_MARK}{machine.store.state_id()}"):
        raise Conflict(
            f"{unit_file(which)} already exists and was not made for this state folder",
            "move it away",
        )


def start_agent(machine: Machine, report: Report) -> None:
    """Start the agent, now and at boot; without systemd, report how to. Raises Error."""
    if machine.processes.units.booted():
        _start_unit(machine, AGENT, report)
        return
    report(
        Caution(
            "systemd did not boot this machine, so nothing runs the agent",
            ("run niso agent; at boot, niso cluster etcd on members, and niso agent",),
        )
    )


def start_etcd(machine: Machine, config: Config, report: Report) -> None:
    """Start this host's member, now and at boot, and wait until it answers. Raises Error."""
    if machine.processes.units.booted():
        _start_unit(machine, ETCD, report)
    else:
        own_etcd.start(config)
    own_etcd.wait(config)


def pause_etcd(machine: Machine) -> None:
    """Stop this host's member until the next `start_etcd`. Raises Error."""
    if machine.processes.units.booted():
        machine.processes.units.stop([ETCD])
    own_etcd.stop()


def end(machine: Machine, which: str, report: Report) -> None:
    """Stop the agent or etcd and remove its unit; no-op if there is none. Raises Error."""
    units = machine.processes.units
    text = units.read(unit_file(which)) if units.booted() else None
    if text is not None and text.startswith(_MARK):
        units.stop([which])
        units.remove([which])
        report(ChangingUnit("remove", unit_file(which)))
    if which == ETCD:
        own_etcd.stop()


def _start_unit(machine: Machine, which: str, report: Report) -> None:
    units = machine.processes.units
    require_free(machine, which)
    text = unit_text(which, machine.store.state_id())
    if units.read(unit_file(which)) != text:
        units.write(unit_file(which), text)
        report(ChangingUnit("write", unit_file(which)))
    units.enable([which])
    units.start([which])
