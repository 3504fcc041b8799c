"""Restart the processes of active services."""

from __future__ import annotations

import os

from niso.base.errors import Conflict, NotFound
from niso.base.report import Report, silent
from niso.services.journal import begin, end_intents, end_restart, locked, recover
from niso.services.machine import Machine
from niso.store import specs
from niso.store.store import ServiceRow, Store


def restart(machine: Machine, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay.

    Raises Conflict, NotFound, ProcessError; then those that it had stopped are started again, but one that has ended by itself.
    """
    from niso.services import start

    store = machine.store
    recover(machine, report, services)
    with locked(store, services):
        rows = []
        for name in services:
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            # found before anything is stopped
            row.require_process()
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(
                        f"{folder} is gone", f"niso activate {row.manifest_path}", service=name
                    )
            rows.append(row)
        begin(store, services, "restart")
        try:
            rows = _with_name_servers(store, rows)
            start.restart(machine.processes, rows, report)
            end_intents(store, services)
        except BaseException:
            end_restart(machine, services, report)
            raise


def _with_name_servers(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """The rows with the resolv.conf that the host has now, and so in the store; who is on the host's own network reads that itself."""
    from niso.kernel import host_facts

    text = host_facts.resolv_conf()[0]
    said = [row.require_process() for row in rows]
    now = [
        row._replace(spec=specs.encode_process(each._replace(resolv_conf=text)))
        if each.netns
        else row
        for row, each in zip(rows, said, strict=True)
    ]
    if now != rows:
        with store.transaction():
            for row in now:
                store.put_service(row)
    return now
