"""Report events of services and networks, derived from two snapshots, for `Host.events`.

Events are not stored, and no daemon is needed. The kernel wakes the caller, which takes another
snapshot and compares it with the last one. All changes by one command are one event, because a
service is not compared until its command has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, owner, span
from niso.base.text import exact_time_text
from niso.kernel.watches import TableChange, Watches
from niso.look.services import fate, interrupted
from niso.look.session import ResultStream, Session, guarded
from niso.plan import records
from niso.runtime import status
from niso.runtime.health import judge, read_record
from niso.runtime.status import Status
from niso.store.service_rows import OUT, SERVING, ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable


_QUIET_S = 0.1  # changes that follow each other within this time in seconds are combined
_LONGEST_S = 1.0  # events are returned after this time in seconds, even if more changes follow
_SHARE = 4
"""The pause after a snapshot is this many times as long as the time that the snapshot took.

The more services there are, the longer a snapshot takes.
"""


class Happened(NamedTuple):
    """An event of a service, a network, or niso's nftables tables."""

    time: str  # when the event happened, to the millisecond
    service: str | None  # the service; null if the event is about a network or the tables
    network: str | None  # the network; null if the event is not about a network
    what: str
    """activated, deployed, scaled, deactivated, removed, exited (N), completed, failed, restarted,
    published, unpublished, healthy, unhealthy, attached, detached, gone, network created, network
    removed, foreign or lost"""
    detail: str  # a description of the event; can be empty
    exit_code: int | None  # exit status, or 128 + N after signal N; null unless a process exited
    program: str | None  # name of the foreign program; null unless ``what`` is foreign
    pid: int | None  # PID of the foreign program; null unless ``what`` is foreign


class Events(ResultStream):
    """An endless iterator of `Happened` for use in a ``with`` block. `fileno` is for poll(2)."""

    def __init__(self, session: Session, name: str | None, since: float | None) -> None:
        self.session = session
        self._name = None if name is None else session.store().resolve(name)
        # opened before the first snapshot, so that nothing is missed
        self._watches: Watches = Watches()
        try:
            self._snapshot = take_snapshot(session, ({}, {}))
        except BaseException:
            self.close()
            raise
        self._free_at = time.monotonic()
        self._past = [] if since is None else past(self._snapshot, since)

    def __iter__(self) -> Iterator[Happened]:
        while True:
            yield from self.read()

    def fileno(self) -> int:
        """Return a descriptor that is readable when a change has been noticed."""
        return self._watches.fileno()

    def past(self) -> tuple[Happened, ...]:
        """Return the events that are on record since the requested time. There may be none."""
        return self._chosen(self._past)

    @guarded
    def read(self) -> tuple[Happened, ...]:
        """Wait for a change and return its events. A change can be without events.

        Changes in quick succession are reported by one call, which returns 0.1 s after the last of
        them. If changes do not stop, it returns about 1 s after the first one. After each snapshot
        there is a pause, which can delay the result further.
        """
        self._watches.wait(None)
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        changed, tables = self._folded()
        if not changed:
            return ()
        now, began = time.time(), time.monotonic()
        before, self._snapshot = self._snapshot, take_snapshot(self.session, self._snapshot)
        self._free_at = time.monotonic() + _SHARE * (time.monotonic() - began)
        changes = between(before, self._snapshot, now)
        return self._chosen([*changes, *_foreign(tables, now)])

    def close(self) -> None:
        self._watches.close()

    def _folded(self) -> tuple[bool, list[TableChange] | None]:
        """Collect changes until none follow.

        Returns whether anything changed, and the changes of nftables by other programs. The latter
        are None if the kernel skipped some of them.
        """
        changed, every = self._watches.read()
        end = time.monotonic() + _LONGEST_S
        while time.monotonic() < end and self._watches.wait(_QUIET_S):
            again, more = self._watches.read()
            changed = changed or again
            every = None if every is None or more is None else [*every, *more]
        return changed, every

    def _chosen(self, events: Iterable[Happened]) -> tuple[Happened, ...]:
        if self._name is None or owner(self._name) == self._name:
            events = joined(events)
        return tuple(
            event
            for event in events
            # another program's changes of niso's tables concern every service
            if self._name in (None, event.service) or not (event.service or event.network)
        )


def _foreign(tables: list[TableChange] | None, now: float) -> list[Happened]:
    if tables is None:
        words = "changes came faster than they were read, and some of others are not shown"
        return [_event(now, None, "lost", f"{words}: niso net check")]
    # combine several transactions of a process into one event
    lines: dict[tuple[str, int], list[str]] = {}
    for change in tables:
        if not change.is_own:
            lines.setdefault((change.process, change.pid), []).extend(change.tables)
    result = []
    for (process, pid), names in lines.items():
        tables_ = " and ".join(dict.fromkeys(names))
        detail = f"{tables_} changed by {process} (pid {pid}): niso net check"
        result.append(_event(now, None, "foreign", detail, program=process, pid=pid))
    return result


def take_snapshot(session: Session, before: Snapshot) -> Snapshot:
    """Return the present state of all services and networks.

    The state of a service that a command is changing is copied from the last snapshot, ``before``.
    """
    store = session.store()
    busy = {intent.service for intent in store.intents()} - interrupted(store).keys()
    services = {}
    for row in store.services():
        if row.name in busy or (row.active and row.has_process and status.is_stopping(row.name)):
            busy.add(row.name)
        else:
            services[row.name] = _shown(session, store, row)
    services |= {name: before[0][name] for name in busy if name in before[0]}
    return services, {n.name: tuple(s.cidr for s in n.subnets) for n in store.networks()}


def _shown(session: Session, store: Store, row: ServiceRow) -> ServiceState:
    if not row.active:
        return ServiceState(False, row.is_attachment)
    forwards = set(store.forwards(row.name))
    ports = [port for _, port in store.ports(row.name)]
    shown = ServiceState(
        True,
        row.is_attachment,
        activated_at=row.activated_at,
        addresses=tuple(address for _, address in store.addresses(row.name)),
        ports=tuple(_port(port) for port in ports if port not in forwards),
        forwards=tuple(_port(port) for port in ports if port in forwards),
    )
    if row.is_attachment:
        return shown._replace(state=fate(session, store, row))
    if row.mode == "front":  # its instances have the processes
        serving = store.instances.of(row.name, SERVING, OUT)
        version = max((one.version for one in serving), default=0)
        return shown._replace(state="running", version=version, replicas=len(serving))
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
        out_of_memory=status.out_of_memory(row.name),
        restart=spec.restart if spec is not None else "",
        health=health,
        failure=failure,
        probed_at=probed_at,
    )


def _health(row: ServiceRow, now: Status) -> tuple[str, str, float | None]:
    """Return state, failure and time of the last health check of the present process.

    All of them are empty if there was no health check of this process.
    """
    check = row.healthcheck
    if check is None or now.state != "running":
        return "", "", None

    record = read_record(row.name)
    if record is None or record.run != (now.pid or 0, now.started_at or 0.0):
        return "", "", None
    judged = judge(check, now.started_at or 0.0, record)
    return judged.state, judged.failure, record.asked_at


def _port(port: records.PortMapping) -> str:
    host = "" if port.host_ip in ("", "0.0.0.0") else f"{bracketed(port.host_ip)}:"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    ends = span(port.host_port, port.count), span(port.container_port, port.count)
    return f"{host}{ends[0]}→{ends[1]}{proto}"


# --- events from two snapshots (pure) -------------------------------------------------------------

ENDED = ("exited", "restarting", "failed", "none")  # states of a process that has ended


class ServiceState(NamedTuple):
    """The properties of a service whose changes are events. Times are in seconds since 1970."""

    active: bool
    attached: bool  # Whether the service is an attachment, which has no process.
    job: bool = False
    activated_at: float | None = None
    state: str = ""  # the state of the process (`Status`), or for an attachment attached or gone
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    restarts: int = 0
    error: str = ""
    out_of_memory: bool = False  # whether the memory limit has killed a process of the present run
    restart: str = ""  # the restart policy
    health: str = ""  # result of the last health check; "" if there was none
    failure: str = ""
    probed_at: float | None = None
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()  # ports of the manifest, as strings: 8080→80
    version: int = 0  # of a service with replicas: the version that serves; 0 if none does
    replicas: int = 0  # its instances that serve, or are out because they are not healthy
    forwards: tuple[str, ...] = ()  # ports that `niso port-forward` published, as strings


Snapshot = tuple[dict[str, ServiceState], dict[str, tuple[str, ...]]]
"""The properties of services and the subnets of networks, both by name."""


def _event(
    at: float,
    service: str | None,
    what: str,
    detail: str = "",
    exit_code: int | None = None,
    network: str | None = None,
    program: str | None = None,
    pid: int | None = None,
) -> Happened:
    return Happened(exact_time_text(at), service, network, what, detail, exit_code, program, pid)


def between(before: Snapshot, after: Snapshot, now: float) -> list[Happened]:
    """Return the events between two snapshots, sorted by time."""
    events: list[Happened] = []
    for service in sorted(before[0].keys() | after[0].keys()):
        events += _service(service, before[0].get(service), after[0].get(service), now)
    first = min((event.time for event in events), default=exact_time_text(now))
    for network in sorted(before[1].keys() | after[1].keys()):
        old, new = before[1].get(network), after[1].get(network)
        if old is None and new is not None:
            # a network comes before the services on it
            created = _event(now, None, "network created", ", ".join(new), network=network)
            events.insert(0, created._replace(time=first))
        elif new is None:
            events.append(_event(now, None, "network removed", network=network))
    return sorted(events, key=lambda event: event.time)


def joined(events: Iterable[Happened]) -> Iterator[Happened]:
    """Yield events with those of an instance as events of its service.

    An instance that begins or ends in a deploy is left out: the deploy is an event of the service.
    """
    for event in events:
        instance, service = event.service or "", owner(event.service or "")
        if instance == service:
            yield event
        elif event.what not in ("activated", "deactivated", "removed"):
            detail = f"{instance}: {event.detail}" if event.detail else instance
            yield event._replace(service=service, detail=detail)


def past(snapshot: Snapshot, since: float) -> list[Happened]:
    """Return the events after a time that can be derived from one snapshot, sorted by time.

    ``since`` is in seconds since 1970.
    """
    events: list[Happened] = []
    for name, shown in snapshot[0].items():
        if not shown.active:
            continue
        events.append(_began(name, shown, shown.activated_at or 0.0))
        if shown.restarts and shown.started_at is not None:
            events.append(_restarted(name, shown, shown.started_at))
        if shown.state in ENDED and shown.ended_at is not None:
            events.append(_ended(name, shown, shown.ended_at))
        if shown.health == "unhealthy" and shown.probed_at is not None:
            events.append(_event(shown.probed_at, name, "unhealthy", shown.failure))
    known = (event for event in events if event.time >= exact_time_text(since))
    return sorted(known, key=lambda event: event.time)


def _service(
    name: str, old: ServiceState | None, new: ServiceState | None, now: float
) -> Iterator[Happened]:
    if old is None or not old.active:
        if new is not None and new.active:
            yield _began(name, new, _time(new.activated_at, now))
            yield from _process(name, new._replace(state="running", health=""), new, now)
        elif new is None:
            yield _event(now, name, "removed")
        return
    if new is None or not new.active:
        yield _event(now, name, "detached" if old.attached else "deactivated")
        return
    if new.activated_at != old.activated_at:
        yield _began(name, new, _time(new.activated_at, now))
        if new.started_at != old.started_at:  # another process
            old = new._replace(state="running", health="")
    else:
        yield from _ports(name, old, new, now)
        count = f"{new.replicas} instance{'s' * (new.replicas != 1)}"
        if old.version and new.version and new.version != old.version:
            yield _event(now, name, "deployed", f"version {new.version}, {count}")
        elif old.version and new.version and new.replicas != old.replicas:
            yield _event(now, name, "scaled", count)
    yield from _process(name, old, new, now)


def _ports(name: str, old: ServiceState, new: ServiceState, now: float) -> Iterator[Happened]:
    for before, after, note in (
        (old.ports, new.ports, ""),
        (old.forwards, new.forwards, " (port-forward)"),
    ):
        for what, ports, others in (("unpublished", before, after), ("published", after, before)):
            yield from (_event(now, name, what, p + note) for p in ports if p not in others)


def _process(name: str, old: ServiceState, new: ServiceState, now: float) -> Iterator[Happened]:
    if new.attached:
        if new.state == "gone" != old.state:
            yield _event(now, name, "gone", "its network namespace has ended")
        return
    # the status files may no longer exist, and then started_at is None
    same_run = new.started_at in (None, old.started_at)
    if not same_run:
        started = _time(new.started_at, now)
        if new.restarts > old.restarts and old.state not in ENDED:
            # it ended and was restarted between the two snapshots
            yield _ended(name, new._replace(state="restarting"), started)
        yield _restarted(name, new, started)
    has_ended = new.state in ENDED
    if has_ended and (not same_run or old.state not in ENDED):
        yield _ended(name, new, _time(new.ended_at, now))
    elif new.state in ("failed", "none") and old.state != new.state:
        yield _ended(name, new, now)
    if new.health != old.health and new.health in ("healthy", "unhealthy"):
        yield _event(_time(new.probed_at, now), name, new.health, new.failure)


def _began(name: str, new: ServiceState, at: float) -> Happened:
    ports = (*new.ports, *(f"{port} (port-forward)" for port in new.forwards))
    detail = ", ".join((*new.addresses, *ports))
    return _event(at, name, "attached" if new.attached else "activated", detail)


def _restarted(name: str, new: ServiceState, at: float) -> Happened:
    detail = f"restart {new.restarts} since its activation" if new.restarts else ""
    return _event(at, name, "restarted", detail)


def _ended(name: str, new: ServiceState, at: float) -> Happened:
    if new.state in ("failed", "none") or new.exit_code is None:
        return _event(at, name, "failed", new.error or f"no process: niso net check {name}")
    if new.job and not new.exit_code:
        return _event(at, name, "completed", "", 0)
    code = new.exit_code
    killed = "killed: out of memory; " * new.out_of_memory
    return _event(at, name, f"exited ({code})", f"{killed}restart: {new.restart}", code)


def _time(at: float | None, now: float) -> float:
    """Return the time of an event, or ``now`` if the time is unknown or in the future."""
    return now if at is None else min(at, now)
