"""Publish more ports of an active service, and take them away again."""

from __future__ import annotations

from niso.base.report import Report, silent
from niso.plan.records import Port
from niso.services import forwards
from niso.services.journal import locked, recover
from niso.store.store import Store


def port_forward(
    store: Store, name: str, port: Port, *, replace: bool = False, report: Report = silent
) -> tuple[bool, list[tuple[str, Port]]]:
    """Publish one more port of an active service, see `forwards.forward`."""
    recover(store, report, [name])
    held = forwards.concerned(store, name, port, replace)
    with locked(store, sorted(held)):
        return forwards.forward(store, name, port, replace, held, report)


def port_unforward(store: Store, name: str, port: Port, report: Report = silent) -> None:
    """Take away a port that `port_forward` added, see `forwards.unforward`."""
    recover(store, report, [name])
    with locked(store, [name]):
        forwards.unforward(store, name, port, report)
