"""Restart the processes of active services."""

from __future__ import annotations

import json
import os

from niso.base.errors import Conflict, NotFound
from niso.base.report import Report, silent
from niso.runtime import spec
from niso.services.journal import begin, end_intents, end_restart, locked, recover
from niso.store.store import ServiceRow, Store


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay.

    Raises Conflict, NotFound, ProcessError; then those that it had stopped are started again, but one that has ended by itself.
    """
    from niso.services import start

    recover(store, report, services)
    with locked(store, services):
        rows = []
        for name in services:
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            # found before anything is stopped
            if spec.understood(row.spec) is None:
                raise spec.damaged(name, row.manifest_path)
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(
                        f"{folder} is gone", f"niso activate {row.manifest_path}", service=name
                    )
            rows.append(row)
        begin(store, services, "restart")
        try:
            rows = _with_name_servers(store, rows)
            start.restart(rows, report)
        except BaseException:
            end_restart(store, services, report)
            raise
        end_intents(store, services)


def _with_name_servers(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """The rows with the resolv.conf that the host has now, and so in the store; who is on the host's own network reads that itself."""
    from niso.kernel import host_facts

    text = host_facts.resolv_conf()[0]
    said = [spec.parse(row.spec) for row in rows]
    now = [
        row._replace(spec=json.dumps(each._replace(resolv_conf=text)._asdict()))
        if each.netns
        else row
        for row, each in zip(rows, said, strict=True)
    ]
    if now != rows:
        with store.transaction():
            for row in now:
                store.put_service(row)
    return now
