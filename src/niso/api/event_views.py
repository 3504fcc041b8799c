"""Report events of services and networks: `Host.events`.

Nothing is stored and no process runs for it. The kernel wakes the caller, which takes another
snapshot and derives events from the difference (`niso.see.happened`). All that a command does in
one change is one event: a service is not compared until its command has ended.
"""

from __future__ import annotations

import time

from niso.api.guard import guarded
from niso.base.addresses import bracketed, span
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see import happened
from niso.see.happened import Change, Look, Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from niso.api.session import Session
    from niso.kernel.watches import TableChange, Watches
    from niso.plan import records
    from niso.runtime.status import Status
    from niso.store.store import ServiceRow, Store

_QUIET_S = 0.1
"""Changes within this time (s) are combined."""
_LONGEST_S = 1.0
"""Events are returned after this time (s) even if more keep coming."""
_SHARE = 4
"""After a snapshot, pause for so many times its duration, which grows with the services."""


class Happened(NamedTuple):
    """An event of a service, a network, or niso's tables."""

    time: str
    """time, to the millisecond"""
    service: str | None
    """the service; null if the event is about a network or the tables"""
    network: str | None
    """the network; null otherwise"""
    what: str
    """activated, deactivated, removed, exited (N), completed, failed, restarted, published,
    unpublished, healthy, unhealthy, attached, detached, gone, network created, network removed,
    foreign or lost"""
    detail: str
    """text for people; can be empty"""
    exit_code: int | None
    """exit status, 128 + N for signal N; null unless a process has exited"""
    program: str | None
    """name of the foreign program; null unless ``what`` is foreign"""
    pid: int | None
    """its PID; null as above"""


class Events:
    """Iterate over `Happened` without end, in a ``with`` block; has a ``fileno`` for poll(2)."""

    def __init__(self, session: Session, name: str | None, since: float | None) -> None:
        from niso.kernel.watches import Watches

        self.session = session
        self._name = name
        if name is not None:
            self._name = session.store().resolve(name)
        # opened before the first snapshot, so that nothing is missed
        self._watches: Watches = Watches()
        try:
            self._look = look(session, Look({}, {}))
        except BaseException:
            self.close()
            raise
        self._free_at = time.monotonic()
        self._past = [] if since is None else happened.past(self._look, since)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Happened]:
        while True:
            yield from self.read()

    def fileno(self) -> int:
        """Return a descriptor that is readable when something has changed."""
        return self._watches.fileno()

    def past(self) -> tuple[Happened, ...]:
        """Return the known events since ``since``; empty without ``since``."""
        return self._described(self._past)

    @guarded
    def read(self) -> tuple[Happened, ...]:
        """Wait for a change and return its events; empty if there is nothing to report.

        Returns 0.1 s after the last change, at most about 1 s and the pause after the last
        snapshot.
        """
        self._watches.wait(None)
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        changed, tables = self._folded()
        if not changed:
            return ()
        now, began = time.time(), time.monotonic()
        before, self._look = self._look, look(self.session, self._look)
        self._free_at = time.monotonic() + _SHARE * (time.monotonic() - began)
        changes = happened.between(before, self._look, now)
        return self._described([*changes, *_foreign(tables, now)])

    def close(self) -> None:
        """Stop following."""
        self._watches.close()

    def _folded(self) -> tuple[bool, list[TableChange] | None]:
        """Collect changes from the watches until no more come.

        Returns (whether anything changed, changes of tables, or None if some were lost).
        """
        changed, every = self._watches.read()
        end = time.monotonic() + _LONGEST_S
        while time.monotonic() < end and self._watches.wait(_QUIET_S):
            again, more = self._watches.read()
            changed = changed or again
            every = None if every is None or more is None else [*every, *more]
        return changed, every

    def _described(self, changes: Iterable[Change]) -> tuple[Happened, ...]:
        from niso.api.time_texts import exact_time_text

        return tuple(
            Happened(
                exact_time_text(change.at),
                change.service or None,
                change.network or None,
                change.what,
                change.detail,
                change.exit_code,
                change.program or None,
                change.pid,
            )
            for change in changes
            # another program's changes of niso's tables concern every service
            if self._name in (None, change.service) or not (change.service or change.network)
        )


def _foreign(tables: list[TableChange] | None, now: float) -> list[Change]:
    if tables is None:
        words = "changes came faster than they were read, and some of others are not shown"
        return [Change(now, "", "", "lost", f"{words}: niso net check")]
    # combine several transactions of a process into one event
    lines: dict[tuple[str, int], list[str]] = {}
    for change in tables:
        if not change.is_own:
            lines.setdefault((change.process, change.pid), []).extend(change.tables)
    return [
        Change(
            now,
            "",
            "",
            "foreign",
            f"{' and '.join(dict.fromkeys(names))} changed by {process} (pid {pid}):"
            " niso net check",
            program=process,
            pid=pid,
        )
        for (process, pid), names in lines.items()
    ]


def look(session: Session, before: Look) -> Look:
    """Take a snapshot of all services and networks.

    A service that a command is changing is copied from ``before``.
    """
    from niso.services import pending

    store = session.store()
    intents = {intent.service for intent in store.intents()}
    busy = intents - pending.interrupted(store).keys() if intents else set()
    services = {}
    for row in store.services():
        if row.name in busy or (row.active and row.has_process and _is_stopping(row.name)):
            if row.name in before.services:
                services[row.name] = before.services[row.name]
            continue
        services[row.name] = _shown(session, store, row)
    for name in busy - services.keys():
        if name in before.services:
            services[name] = before.services[name]
    networks = {
        network.name: tuple(subnet.cidr for subnet in network.subnets)
        for network in store.networks()
    }
    return Look(services, networks)


def _is_stopping(service: str) -> bool:
    from niso.runtime import status

    return status.is_stopping(service)


def _shown(session: Session, store: Store, row: ServiceRow) -> Shown:
    if not row.active:
        return Shown(False, not row.has_process)
    forwards = set(store.forwards(row.name))
    ports = [port for _, port in store.ports(row.name)]
    shown = Shown(
        True,
        not row.has_process,
        activated_at=row.activated_at,
        addresses=tuple(address for _, address in store.addresses(row.name)),
        ports=tuple(_port(port) for port in ports if port not in forwards),
        forwards=tuple(_port(port) for port in ports if port in forwards),
    )
    if not row.has_process:
        return shown._replace(state=_fate(session, store, row))
    from niso.runtime import status

    now = status.read(row.name)
    spec = row.process
    health, failure, probed_at = _health(row, now)
    return shown._replace(
        job=row.is_job,
        state=now.state,
        exit_code=now.exit_code,
        started_at=now.started_at,
        ended_at=now.ended_at,
        restarts=now.restarts,
        error=now.error or "",
        restart=spec.restart if spec is not None else "",
        health=health,
        failure=failure,
        probed_at=probed_at,
    )


def _fate(session: Session, store: Store, row: ServiceRow) -> str:
    known = store.attachments.get(row.name)
    lives = known is not None and known.lives(session.kernel())
    return "attached" if lives else "gone"


def _health(row: ServiceRow, now: Status) -> tuple[str, str, float | None]:
    """Return (state, reason, time) of the last health check, whichever niso command ran it."""
    service = row.service
    if service is None or service.healthcheck is None or now.state != "running":
        return "", "", None
    from niso.runtime import health

    record = health.read_record(row.name)
    if record is None or record.run != (now.pid or 0, now.started_at or 0.0):
        return "", "", None
    judged = health.judge(service.healthcheck, now.started_at or 0.0, record)
    return judged.state, judged.failure, record.asked_at


def _port(port: records.Port) -> str:
    host = "" if port.host_ip in ("", "0.0.0.0") else f"{bracketed(port.host_ip)}:"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    ends = span(port.host_port, port.count), span(port.container_port, port.count)
    return f"{host}{ends[0]}→{ends[1]}{proto}"


def follow(session: Session, name: str | None, since: float | None) -> Events:
    """Start following events: `Host.events`."""
    return Events(session, name, since)
