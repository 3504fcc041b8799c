"""Restart the processes of active services."""

from __future__ import annotations

import os

from niso.base.errors import NotFound
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.report import Report, silent
from niso.runtime import sources
from niso.services import targets
from niso.services.journal import begin, end_intents, end_restart, locked, recover
from niso.services.machine import Machine
from niso.store import specs
from niso.store.store import ServiceRow, Store

if TYPE_CHECKING:
    from niso.services.start import After


def restart(
    machine: Machine,
    services: list[str],
    report: Report = silent,
    after: After | None = None,
) -> None:
    """Restart the processes of active services; namespace, addresses and ports stay.

    ``after`` is as for `start.run`, among these services. Raises Conflict, NotFound, ProcessError.
    Then the stopped processes are started again, except those that exited by themselves.
    """
    from niso.services import start

    store = machine.store
    recover(machine, report, services)
    with locked(store, services):
        rows = []
        for name in services:
            row = store.require_active(name)
            # detect errors before anything is stopped
            row.require_process()
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(f"{folder} is gone", row.again, service=name)
            targets.replaced(row)
            rows.append(row)
        begin(store, services, "restart")
        try:
            rows = _refreshed(store, rows)
            start.restart(machine.processes, rows, report, after)
            end_intents(store, services)
        except BaseException:
            end_restart(machine, services, report)
            raise


def _refreshed(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """Update the stored rows with the host's present resolv.conf, and return them.

    Services in the host's network read that file directly. For a service that an older niso
    activated, also record which files its paths lead to.
    """
    from niso.kernel import host_facts

    now = []
    for row in rows:
        old = row.require_process()
        text = host_facts.resolv_conf(old.dns, old.dns_search)[0]
        spec = sources.recorded(old._replace(resolv_conf=text) if old.netns else old)
        now.append(row._replace(spec=specs.encode_process(spec)) if spec != old else row)
    if now != rows:
        with store.transaction():
            for row in now:
                store.put_service(row)
    return now
