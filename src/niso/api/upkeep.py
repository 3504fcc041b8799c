"""Compare kernel and configuration: check, repair and sweep."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.api.service_results import Marked
    from niso.api.session import Session
    from niso.plan import findings as command
    from niso.services.machine import Machine


class Finding(NamedTuple):
    """A difference between kernel and configuration."""

    problem: str
    """missing, foreign, different, gone or dropped"""
    what: str
    """the object"""
    detail: str
    """the difference; can be empty"""

    @property
    def text(self) -> str:
        """The finding as one line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


class Repaired(NamedTuple):
    """Result of `Host.repair`."""

    steps: int
    """number of steps taken; only without --sweep"""


class Swept(NamedTuple):
    """Result of `Host.sweep`."""

    removed: int
    """number of objects removed; only with --sweep"""


def check(session: Session, name: str | None) -> tuple[Finding, ...]:
    """Compare kernel and configuration: `Host.check`."""
    from niso.commands import check
    from niso.explain import foreign_firewalls

    machine = session.machine()
    before = machine.kernel.neighbour_tables()
    findings = check.check(machine, name)
    for line in foreign_firewalls.unseen((4, 6)):
        session.caution(line)
    for line, hint in check.full_neighbour_tables(before, machine.kernel.neighbour_tables()):
        session.caution(line, (hint,))
    for line, hint in check.unpublished_ports(machine, name):
        session.caution(line, (hint,))
    for line, hint in check.policy_warnings(machine, name):
        session.caution(line, (hint,))
    if machine.store.names_outside():
        from niso.api import outside_views

        outside_views.warn(session, name)
    if machine.store.cluster_id():
        findings += _hosts(session, machine, name)
    return tuple(Finding(item.problem, item.what, item.detail) for item in findings)


def _hosts(session: Session, machine: Machine, name: str | None) -> list[command.Finding]:
    """Return the differences between this host and the others of its cluster."""
    from niso.base.report import AskingCluster
    from niso.cluster import config
    from niso.commands import cluster_check

    own = config.load()
    if own is None or not cluster_check.concerned(machine, name):
        return []
    session.report(AskingCluster())
    checked = cluster_check.check(machine, own, name)
    for line, hint in checked.warnings:
        session.caution(line, (hint,))
    return checked.findings


def guard_firewalls(session: Session, on: bool) -> tuple[Marked, ...]:
    """Write or remove the drop-ins of firewalls: `Host.guard_firewalls`."""
    from niso.api import service_results
    from niso.commands import firewall_units

    machine = session.machine_for_change(create=on)
    change = firewall_units.enable if on else firewall_units.disable
    return tuple(service_results.Marked(*done) for done in change(machine, session.report))


def repair(session: Session, dry_run: bool, kernel: bool) -> Repaired:
    """Repair differences: `Host.repair`."""
    from niso.api import handover
    from niso.base.report import Finished
    from niso.commands import repair as command

    machine = session.machine_for_change()
    if dry_run:
        command.plan_repair(machine, session.report, kernel)
        return Repaired(0)
    if kernel:
        return Repaired(command.repair_network(machine, session.report))
    steps = command.repair_all(machine, session.report)
    session.report(Finished())
    if steps:
        handover.settle(session, machine, machine.store.active_services())
    return Repaired(steps)


def sweep(session: Session, dry_run: bool) -> Swept:
    """Remove everything from the kernel: `Host.sweep`."""
    from niso.base.report import Finished
    from niso.commands import sweep

    session.report_waits()
    removed, warning = sweep.sweep(session.kernel(), session.processes(), session.report, dry_run)
    session.report(Finished())
    if warning is not None and not dry_run:
        session.caution(warning.message)
    return Swept(removed)
