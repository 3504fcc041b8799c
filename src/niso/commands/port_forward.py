"""Publish and withdraw additional ports of an active service."""

from __future__ import annotations

from niso.base.report import Report, silent
from niso.plan.records import Port
from niso.services import forwards
from niso.services.journal import locked, recover
from niso.services.machine import Machine


def port_forward(
    machine: Machine, name: str, port: Port, *, replace: bool = False, report: Report = silent
) -> tuple[bool, list[tuple[str, Port]]]:
    """Publish one more port of an active service; see `forwards.forward`."""
    recover(machine, report, [name])
    held = forwards.concerned(machine.store, name, port, replace)
    with locked(machine.store, sorted(held)):
        return forwards.forward(machine, name, port, replace, held, report)


def port_unforward(
    machine: Machine, name: str, port: Port, report: Report = silent
) -> list[tuple[str, Port]]:
    """Withdraw a port that `port_forward` added; see `forwards.unforward`."""
    recover(machine, report, [name])
    held = {name, *(holder for holder, _ in forwards.kept_out(machine.store, name, port))}
    with locked(machine.store, sorted(held)):
        return forwards.unforward(machine, name, port, held, report)
