"""Read the state of all services repeatedly, and only those that can have changed."""

from __future__ import annotations

import os
import time

from niso.api import service_views
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from niso.api.service_views import ServiceLine
    from niso.api.session import Session
    from niso.plan.known_world import World
    from niso.runtime.health import Target
    from niso.store.service_rows import ServiceRow

_AT_MOST_S = 30.0
"""The longest time (s) until everything is read again, for changes without a sign."""


class States:
    """The services, their states and the input of verdicts, as of the last `read`.

    While the store is unchanged, a service whose process is alive can only have changed its health.
    Reading everything takes 0.4 ms for each service.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._version = -1
        self._until = 0.0
        self._by_name: dict[str, ServiceLine] = {}
        self._ats: dict[str, float] = {}
        self._pids: dict[str, int] = {}
        self._targets: list[Target] = []
        self.rows: list[ServiceRow] = []
        self.world: World

    @property
    def lines(self) -> tuple[ServiceLine, ...]:
        """Return the state of each service, by name."""
        now = time.monotonic()
        return tuple(
            line
            if line.uptime is None
            else line._replace(uptime=round(line.uptime + now - self._ats[name], 3))
            for name, line in sorted(self._by_name.items())
        )

    def read(self) -> None:
        """Update the states. Raises Error."""
        store = self._session.store()
        version = store.changes()
        # commands that died, and ended audits, do not change the store
        timed = store.intents() or store.audits()
        if version != self._version or time.monotonic() >= self._until or timed:
            self._version = version
            self._read_all()
        else:
            self._read_changed()

    def _read_all(self) -> None:
        from niso.reconcile.world import read_world
        from niso.runtime import status

        store = self._session.store()
        self._until = time.monotonic() + _AT_MOST_S
        self.rows = store.services()
        lines = service_views.lines(self._session, store, rows=self.rows)
        self.world = read_world(self._session.kernel(), store)
        self._by_name = {}
        self._keep(lines)
        running = (line.service for line in lines if line.status == "running")
        pids = {name: status.read(name).pid for name in running}
        self._pids = {name: pid for name, pid in pids.items() if pid is not None}
        self._targets = service_views.health_targets(store, self.rows)

    def _read_changed(self) -> None:
        store = self._session.store()
        stale = [row for row in self.rows if row.active and not self._lives(row.name)]
        if stale:
            lines = service_views.lines(self._session, store, rows=stale)
            self._keep(lines)
            # a service that runs again has another process
            if any(line.status == "running" for line in lines):
                self._until = 0.0
        names = {row.name for row in stale}
        if targets := [target for target in self._targets if target.service not in names]:
            from niso.runtime import health

            for name, now in health.check_all(targets, self._session.report).items():
                self._by_name[name] = self._by_name[name]._replace(health=now.state)

    def _keep(self, lines: Collection[ServiceLine]) -> None:
        now = time.monotonic()
        self._by_name |= {line.service: line for line in lines}
        self._ats |= {line.service: now for line in lines}

    def _lives(self, name: str) -> bool:
        if name not in self._pids:
            return False
        try:
            os.kill(self._pids[name], 0)
        except OSError:
            return False
        return True
