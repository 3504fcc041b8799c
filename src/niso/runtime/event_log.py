"""Record the events of services and networks in a ring of files, for `niso events`.

niso has no daemon, so each niso process that changes something also records the events: it compares
the services that it has changed with their last recorded state, and appends the differences to the
ring (`record`). A command does so before it releases the lock of a service
(`niso.change.journal.locked`). conmon's exit command does so when a process has exited or was
restarted (`record_run`). A process that probes a service does so when the health has changed
(`record_health`). `niso events` does so for all services, to find changes that no niso process has
made. The recorded states are under one lock, so no event is recorded twice.

Each line of ``<run>/events/log`` is one event as JSON, with a number that increases. A full file
becomes ``log.1``. ``<run>/events/states`` has the last recorded state of each service.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from niso.base import files, paths
from niso.base.errors import Error
from niso.base.locks import open_lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, owner, span
from niso.base.native import from_json, to_json
from niso.base.text import exact_time_text

if TYPE_CHECKING:
    from typing import Any

    from niso.plan.records import PortMapping
    from niso.store.service_rows import ServiceRow
    from niso.store.store import Store

MOST = 1000
"""How many events the ring has at least, once that many have happened."""
_STOPPING = "stopping"  # the state of a process that a command is stopping
_NETWORKS = ".networks"
"""The name in ``<run>/events/states`` of the recorded networks, which no service can have."""


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


# --- recording ------------------------------------------------------------------------------------


def record(
    store: Store,
    services: Iterable[str],
    interrupted: Collection[str] = (),
    fate: Callable[[ServiceRow], str] = lambda _: "attached",
) -> None:
    """Record as events what has changed in these services and in all networks since the last call.

    A service that a command is changing is left out, unless it is in ``interrupted``: the services
    whose command was killed. ``fate`` returns the state of an attachment: "attached" or "gone".
    Raises sqlite3.Error if the store is damaged.
    """

    def compare(now: float) -> tuple[list[Happened], dict[str, ServiceState | None]]:
        found: list[Happened] = []
        states: dict[str, ServiceState | None] = {}
        with store.reading():
            busy = {intent.service for intent in store.intents()} - {*interrupted}
            for name in services:
                row = store.service(name)
                if name in busy:
                    continue
                old, new = _recorded(name), None if row is None else _present(store, row, fate)
                if new is not None and new.state == _STOPPING:
                    continue
                found += service_events(name, old, new, now)
                if new != old:
                    states[name] = new
            made = store.networks_made()
        known = _read_json(_state_file(_NETWORKS))
        if known is None or known != {name: subnets for name, (_, subnets) in made.items()}:
            # a network comes before the services on it
            first = min((one.time for one in found), default="9")
            for one in _of_networks(known, made, now):
                is_new = one.what == "network created"
                found.insert(0, one._replace(time=min(one.time, first)) if is_new else one)
            _save(_NETWORKS, {name: subnets for name, (_, subnets) in made.items()})
        return found, states

    with store.reading():
        _record(compare)


def record_run(service: str) -> None:
    """Record that the process of a service has exited or was started. Never raises.

    Does nothing if the service is not recorded as active: a command that is activating the service
    records the process itself.
    """

    def compare(now: float) -> tuple[list[Happened], dict[str, ServiceState | None]]:
        old = _recorded(service)
        if old is None or not old.active:
            return [], {}
        new = _with_run(old, service)
        if new.state == _STOPPING:
            return [], {}
        return list(_process(service, old, new, now)), {service: new}

    _record(compare)


def record_health(
    service: str, started_at: float, health: str, failure: str, probed_at: float | None
) -> None:
    """Record the health of a service's run after a probe. Never raises.

    ``started_at`` is the start of the run. If the recorded state is of another run, nothing is
    recorded. Times are in seconds since 1970.
    """

    def compare(now: float) -> tuple[list[Happened], dict[str, ServiceState | None]]:
        old = _recorded(service)
        if old is None or not old.active or old.started_at != started_at or old.health == health:
            return [], {}
        new = old._replace(health=health, failure=failure, probed_at=probed_at)
        return list(_process(service, old, new, now)), {service: new}

    _record(compare)


def _record(
    compare: Callable[[float], tuple[list[Happened], dict[str, ServiceState | None]]],
) -> None:
    """Append events to the ring, and store the states of services. Errors are ignored.

    ``compare`` is called with the present Unix time. It returns (events, {service: state, or None
    to delete the state}).
    """
    try:
        lock = open_lock(".events")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in (folder(), _state_file("")):
                os.makedirs(path, 0o700, exist_ok=True)
            found, states = compare(time.time())
            _append(sorted(found, key=lambda event: event.time))
            for name, state in states.items():
                _save(name, None if state is None else state._asdict())
        finally:
            os.close(lock)
    except (OSError, ValueError, TypeError, Error):
        return  # events only inform: with a full run folder, they are lost


def _append(found: list[Happened]) -> None:
    if not found:
        return
    path = _log()
    before = _read(path)
    if before.count(b"\n") >= MOST:
        os.rename(path, f"{path}.1")
        before = b""
    number = max((_last_of(before) or last()) + 1, time.time_ns())
    lines = [to_json({"n": number + i, **one._asdict()}) for i, one in enumerate(found)]
    if before and not before.endswith(b"\n"):  # a process was killed while it wrote
        lines.insert(0, "")
    text = "\n".join([*lines, ""])
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def since(number: int) -> list[tuple[int, Happened]]:
    """Return (number, event) for each event with a number above ``number``, oldest first."""
    found: list[tuple[int, Happened]] = []
    for path in (_log(), f"{_log()}.1"):
        for line in reversed(_read(path).splitlines()):
            try:
                fields = from_json(line)
                one = int(fields.pop("n")), Happened(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a part of a line
            if one[0] <= number or len(found) == MOST:
                return found[::-1]
            found.append(one)
    return found[::-1]


def last() -> int:
    """Return the number of the last event, or 0 if no event is recorded."""
    return _last_of(_read(_log())) or _last_of(_read(f"{_log()}.1"))


def _last_of(content: bytes) -> int:
    while content := content.rstrip(b"\n"):
        content, _, line = content.rpartition(b"\n")
        try:
            return int(from_json(line)["n"])
        except (ValueError, TypeError, KeyError):
            continue  # a part of a line
    return 0


def _read(path: str) -> bytes:
    return files.read(path) or b""


def folder() -> str:
    """Return the folder that contains the event files."""
    return f"{paths.run_dir()}/events"


def _log() -> str:
    return f"{folder()}/log"


def _state_file(name: str) -> str:
    return f"{folder()}/states/{name}"


def _recorded(service: str) -> ServiceState | None:
    fields = _read_json(_state_file(service))
    if fields is None:
        return None
    try:
        lists = {name: tuple(fields[name]) for name in ("addresses", "ports", "forwards")}
        return ServiceState(**{**fields, **lists})
    except (TypeError, KeyError):  # of another version of niso
        return None


def recorded() -> set[str]:
    """Return the services with a recorded state, including removed services."""
    try:
        names = os.listdir(_state_file(""))
    except FileNotFoundError:
        return set()
    return {name for name in names if not name.startswith(".") and not name.endswith(".new")}


def _read_json(path: str) -> dict[str, Any] | None:
    content = files.read(path)
    fields = None if content is None else from_json(content)
    return fields if isinstance(fields, dict) else None


def _save(name: str, fields: dict[str, object] | None) -> None:
    path = _state_file(name)
    if fields is None:
        if os.path.exists(path):
            os.unlink(path)
        return
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(to_json(fields))
    os.rename(f"{path}.new", path)


# --- present state --------------------------------------------------------------------------------


def _present(store: Store, row: ServiceRow, fate: Callable[[ServiceRow], str]) -> ServiceState:
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
        return shown._replace(state=fate(row))
    if row.mode == "front":  # its instances have the processes
        version, count = store.instances.in_service(row.name)
        return shown._replace(state="running", version=version, replicas=count)
    spec = row.process
    shown = shown._replace(job=row.is_job, restart=spec.restart if spec is not None else "")
    shown = _with_run(shown, row.name)
    if row.healthcheck is None or shown.state != "running":
        return shown
    probed = _read_json(paths.health_file(row.name)) or {}
    if [*probed.get("run", ())][1:] != [shown.started_at or 0.0]:
        return shown
    return shown._replace(
        health=str(probed.get("state", "")),
        failure=str(probed.get("failure", "")),
        probed_at=probed.get("asked_at"),
    )


def _with_run(shown: ServiceState, service: str) -> ServiceState:
    """Return ``shown`` without its health, updated from the service's present run. While the
    service is being stopped, only the state is updated.
    """
    from niso.runtime import status  # not for attachments, whose engine waits

    now = status.read(service)
    if status.is_stopping(service):
        return shown._replace(state=_STOPPING)
    return shown._replace(
        state=now.state,
        exit_code=now.exit_code,
        started_at=now.started_at,
        ended_at=now.ended_at,
        restarts=now.restarts,
        error=now.error or "",
        out_of_memory=status.out_of_memory(service),
        health="",
        failure="",
        probed_at=None,
    )


def _port(port: PortMapping) -> str:
    host = "" if port.host_ip in ("", "0.0.0.0") else f"{bracketed(port.host_ip)}:"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    ends = span(port.host_port, port.count), span(port.container_port, port.count)
    return f"{host}{ends[0]}→{ends[1]}{proto}"


# --- events from two states (pure) ----------------------------------------------------------------

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


def happened(
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


def _of_networks(
    known: dict[str, str] | None, made: dict[str, tuple[float, str]], now: float
) -> Iterator[Happened]:
    """Yield the events that follow from a comparison of recorded and present networks. ``known``
    has the names of the recorded networks. After a boot it is None, and only networks that were
    created since the boot cause events. ``made`` maps each present network to its creation time and
    its subnets. Times are in seconds since 1970.
    """
    up_since = now - time.clock_gettime(time.CLOCK_BOOTTIME)
    for name, (at, subnets) in sorted(made.items()):
        if at > up_since if known is None else name not in known:
            yield happened(min(at, now), None, "network created", subnets, network=name)
    for name in sorted((known or {}).keys() - made.keys()):
        yield happened(now, None, "network removed", network=name)


def joined(events: Iterable[Happened]) -> Iterator[Happened]:
    """Convert the events of a service's instances to events of the service.

    A deploy is itself an event of the service. The activations and removals of instances that
    belong to a deploy are therefore left out.
    """
    for event in events:
        instance, service = event.service or "", owner(event.service or "")
        if instance == service:
            yield event
        elif event.what not in ("activated", "deactivated", "removed"):
            detail = f"{instance}: {event.detail}" if event.detail else instance
            yield event._replace(service=service, detail=detail)


def service_events(
    name: str, old: ServiceState | None, new: ServiceState | None, now: float
) -> Iterator[Happened]:
    if old is None or not old.active:
        if new is not None and new.active:
            yield _began(name, new, _time(new.activated_at, now))
            yield from _process(name, _as_started(new), new, now)
        elif new is None and old is not None:
            yield happened(now, name, "removed")
        return
    if new is None or not new.active:
        yield happened(now, name, "detached" if old.attached else "deactivated")
        return
    if new.activated_at != old.activated_at:
        yield _began(name, new, _time(new.activated_at, now))
        if new.started_at != old.started_at:  # another process
            old = _as_started(new)
    else:
        yield from _ports(name, old, new, now)
        count = f"{new.replicas} instance{'s' * (new.replicas != 1)}"
        if old.version and new.version and new.version != old.version:
            yield happened(now, name, "deployed", f"version {new.version}, {count}")
        elif old.version and new.version and new.replicas != old.replicas:
            yield happened(now, name, "scaled", count)
    yield from _process(name, old, new, now)


def _as_started(new: ServiceState) -> ServiceState:
    return new._replace(state="running", health="" if new.health == "unhealthy" else new.health)


def _ports(name: str, old: ServiceState, new: ServiceState, now: float) -> Iterator[Happened]:
    for before, after, note in (
        (old.ports, new.ports, ""),
        (old.forwards, new.forwards, " (port-forward)"),
    ):
        for what, ports, others in (("unpublished", before, after), ("published", after, before)):
            yield from (happened(now, name, what, p + note) for p in ports if p not in others)


def _process(name: str, old: ServiceState, new: ServiceState, now: float) -> Iterator[Happened]:
    if new.attached:
        if new.state == "gone" != old.state:
            yield happened(now, name, "gone", "its network namespace has ended")
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
        yield happened(_time(new.probed_at, now), name, new.health, new.failure)


def _began(name: str, new: ServiceState, at: float) -> Happened:
    ports = (*new.ports, *(f"{port} (port-forward)" for port in new.forwards))
    detail = ", ".join((*new.addresses, *ports))
    return happened(at, name, "attached" if new.attached else "activated", detail)


def _restarted(name: str, new: ServiceState, at: float) -> Happened:
    detail = f"restart {new.restarts} since its activation" if new.restarts else ""
    return happened(at, name, "restarted", detail)


def _ended(name: str, new: ServiceState, at: float) -> Happened:
    if new.state in ("failed", "none") or new.exit_code is None:
        return happened(at, name, "failed", new.error or f"no process: niso net check {name}")
    if new.job and not new.exit_code:
        return happened(at, name, "completed", "", 0)
    code = new.exit_code
    # the limit may have killed another process of the service, long before
    killed = "killed: out of memory; " * (new.out_of_memory and code == 137)
    return happened(at, name, f"exited ({code})", f"{killed}restart: {new.restart}", code)


def _time(at: float | None, now: float) -> float:
    return now if at is None else min(at, now)
