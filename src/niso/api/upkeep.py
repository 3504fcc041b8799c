"""check, repair and sweep: what should be against what is."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.api.session import Session


class Finding(NamedTuple):
    """One difference between the configuration and the machine."""

    problem: str
    """missing, foreign, different, dropped or failed"""
    what: str
    """the thing"""
    detail: str
    """how it differs; can be empty"""

    @property
    def text(self) -> str:
        """The finding in one line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


class Repaired(NamedTuple):
    """Result of `Host.repair`."""

    steps: int
    """how much was done; only where --sweep is not given"""


class Swept(NamedTuple):
    """Result of `Host.sweep`."""

    removed: int
    """how many things; only where --sweep is given"""


def check(session: Session, name: str | None) -> tuple[Finding, ...]:
    """Compare configuration and machine: `Host.check`."""
    from niso.commands import check
    from niso.explain import foreign_firewalls

    findings = check.check(session.machine(), name)
    for line in foreign_firewalls.unseen((4, 6)):
        session.caution(line)
    return tuple(Finding(each.problem, each.what, each.detail) for each in findings)


def repair(session: Session, dry_run: bool) -> Repaired:
    """Put right what differs: `Host.repair`."""
    from niso.api import handover
    from niso.api.events import Finished
    from niso.commands import repair as command

    machine = session.machine_for_change()
    if dry_run:
        command.plan_mend(machine, session.report)
        return Repaired(0)
    steps = command.mend(machine, session.report)
    session.report(Finished())
    if steps:
        handover.settle(session, machine, machine.store.active_services())
    return Repaired(steps)


def sweep(session: Session, dry_run: bool) -> Swept:
    """Remove everything from the kernel: `Host.sweep`."""
    from niso.api.events import Finished
    from niso.commands import sweep

    session.tell_of_waits()
    removed, untold = sweep.sweep(session.report, dry_run)
    session.report(Finished())
    if untold is not None and not dry_run:
        session.caution(untold.message)
    return Swept(removed)
