"""Determine the status of services, for ps, inspect and stack ps.

`niso.runtime.status` reads the state of a process. This module takes no lock and changes nothing,
except that it rotates large log files.

If a command was killed while it changed a service, the status of the service names this command
(``interrupted``). The next command that changes anything completes the change or rolls it back
(`niso.change.journal`).

The last part lists the DNS names outside niso.local that policies use.
"""

from __future__ import annotations

import os
import pwd
import time

from niso.base import paths
from niso.base.locks import is_held
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of, owner, veth
from niso.base.native import lazy
from niso.base.text import period_text, time_text
from niso.look.host_ports import Port, rows
from niso.plan.records import FORMER, NOW, Outside
from niso.runtime import cgroups
from niso.runtime.crun import namespace
from niso.runtime.status import Status, former_oom_kills, out_of_memory, read
from niso.store.service_rows import LEAVING, OUT, SERVING, STATES, Intent, ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from niso.look.listening import Listening, ListeningSocket
    from niso.look.session import Session
    from niso.runtime import logs
    from niso.runtime.health import Health, HealthTarget
    from niso.store.store import Store
else:
    logs = lazy("niso.runtime.logs")


class ServiceLine(NamedTuple):
    """One service in the result of `Services.list`."""

    service: str  # the service's name
    status: str
    """running, starting, restarting, completed, exited (N), failed, scheduled (a job that has not
    run since its activation) or inactive; for an attachment attached or gone"""
    health: str | None
    """starting, healthy or unhealthy at the last probe; null without a healthcheck"""
    mode: str | None  # bridge, host, none, share or attached; null if never activated
    address: tuple[str, ...]  # one for each network and IP version; reserved ones if inactive
    ports: tuple[Port, ...]  # published ports, one for each IP version
    uptime: float | None  # seconds since the process started; null if no process is running
    interrupted: str | None  # the command that was killed while changing the service; null if none
    ended_at: str | None  # end time of the last process; null while a process runs
    audit_until: str | None
    """when the audit of the service's policy ends, or never; null if the policy is not in audit"""
    health_age: float | None  # seconds since the last probe; null if there was none
    restarts: int | None  # restarts by the restart policy since the activation; null if inactive
    last_run: str | None
    """when the job last started; null if it is not enabled, or has no schedule"""
    next_run: str | None  # when systemd starts the job next; null if nothing runs it
    listening: tuple[ListeningSocket, ...] | None = None
    """sockets of the service that wait for packets; only with --listening"""
    unheard: tuple[Listening, ...] | None = None
    """published ports that no program of the service listens on; only with --listening"""
    load: ProcessLoad | None = None
    """processor time and memory of the service; only with --stats"""

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        listening = ("listening", "unheard") * (self.listening is None)
        return (*listening, *("load",) * (self.load is None))


class ProcessLoad(NamedTuple):
    """The processor time and memory of a service. With replicas, the sums of all instances."""

    cpu: float | None  # percent of one processor, over 0.5 s; null if unknown
    cpu_seconds: float | None  # processor time since the start; null if unknown
    throttled_seconds: float | None  # time for which cpu_max stopped the service; null if unknown
    memory: int | None  # bytes of memory, without the file cache; null if unknown
    memory_limit: int | None  # bytes; null without memory_max
    oom_kills: int | None
    """processes that memory_max has killed since the activation; null if unknown"""


class Process(NamedTuple):
    """The process of an active service."""

    pid: int | None  # PID, on the host, of the service's first process; only if active
    exit_code: int | None  # exit status of the last process; only if active
    out_of_memory: bool  # whether a process was killed for exceeding memory_max; only if active
    restarts: int  # restarts since the activation; only if active
    cpu_seconds: float | None
    """processor time since the start; null if unknown; only if active"""
    throttled_seconds: float | None
    """time for which cpu_max stopped the service; null if unknown; only if active"""
    memory: int | None
    """bytes of memory, without the file cache; null if unknown; only if active"""
    memory_limit: int | None  # bytes; null without memory_max; only if active
    oom_kills: int | None
    """processes that memory_max has killed since the activation; null if unknown; only if active"""
    started_at: str | None  # start time of the process; only if active
    ended_at: str | None  # end time of the last process, null while one runs; only if active


class Endpoint(NamedTuple):
    """The connection of a service to one network."""

    network: str  # name of the network
    bridge: str  # the network's bridge on the host
    address: tuple[str, ...]  # addresses, one for each network and IP version; can be empty
    gateway: tuple[str, ...]  # addresses of the bridge, one for each IP version
    mac: str  # MAC address of the interface inside the service
    interface: str  # interface inside the service
    host_interface: str | None  # host end of the veth pair; null if inactive or without a process
    mtu: int  # MTU in bytes


class User(NamedTuple):
    """The user that a service runs as."""

    uid: int  # user id, inside and on the host
    gid: int  # group id, inside and on the host
    name: str  # user name inside the service


class AttachedTo(NamedTuple):
    """The program that created an attachment's namespace, and the program's names for it."""

    owner: str  # the program that created the namespace: cli, podman, cni
    id: str  # the program's id for the container; can be empty
    given: str  # the program's name for the container
    namespace: str  # path of the namespace as the program passed it; empty if niso created it


class ServiceInstance(NamedTuple):
    """An active instance of a service with replicas."""

    service: str  # the instance's name, such as web.2
    state: str
    """starting; serving: gets connections; out: unhealthy or ended; leaving: finishes its
    connections; kept: failed, and kept for a look"""
    version: int  # the version in `Services.history`
    since: str  # when the instance came into this state


class Service(NamedTuple):
    """All details of a service. ``process`` is None if the service is not active."""

    service: str  # the service's name
    status: str
    """running, starting, restarting, completed, exited (N), failed or inactive; for an attachment
    attached or gone"""
    interrupted: str | None  # the command that was killed while changing the service; null if none
    health: str | None  # starting, healthy or unhealthy; null without a healthcheck
    health_said: str | None  # the output of the last health check
    health_age: float | None  # seconds since the last probe; null if the process was not probed
    mode: str  # bridge, host, none, share or attached
    shares: str | None  # in mode share, the service that owns the network namespace; otherwise null
    shared_by: tuple[str, ...]  # strings: the active services that share the network namespace
    uptime: float | None  # seconds since the process started
    process: Process | None
    hostname: str  # hostname inside the service
    names: tuple[str, ...]  # strings: all names of the service
    networks: tuple[str, ...]  # strings, in the order of eth0, eth1, ...
    endpoints: tuple[Endpoint, ...]  # the connections to networks, one for each network
    ports: tuple[Port, ...]  # published ports, one for each IP version
    forwards: tuple[Port, ...]  # ports published with niso port-forward
    netns: str | None  # path of the network namespace
    user: User | None  # user that the service runs as; null for an attachment
    enabled: bool  # whether the service starts at boot
    manifest_path: str  # manifest of the last activation
    manifest: dict[str, Any]  # all keys of the manifest, with defaults filled in
    package: str  # path of the copy of the package
    rootfs: str | None  # path of the root file system
    logs: str  # folder of the logs
    created_at: str  # time of the first activation
    activated_at: str | None  # time of the last activation
    attached: AttachedTo | None  # null if niso starts the service's process
    outside: tuple[OutsideName, ...]  # DNS names in the service's policy
    front: str | None  # the service of which this is an instance; null for other services
    instances: tuple[ServiceInstance, ...]
    """the active instances of a service with replicas; for an instance, only itself"""


class Deploy(NamedTuple):
    """What one command did to a service: one result of `Services.history`."""

    service: str
    """the service's name"""
    version: int
    """the generation: the number of the deploy, restart or stop"""
    at: str
    """when the command began"""
    took: float
    """seconds until the generation ran, or failed"""
    outcome: str
    """done, failed, taken back or stopped"""
    serving: bool
    """whether the generation runs now"""
    package_version: str
    """package.version in the manifest of this generation"""
    why: str
    """why the deploy failed or was taken back; can be empty"""
    who: str
    """the user of the login, and the user of sudo if different; empty if unknown"""
    login_uid: int | None
    """the uid of the login, which su and sudo do not change; null if there was no login"""
    sudo_user: str | None
    """the user who ran sudo; null without sudo"""
    command: str
    """the command line"""


def _user_of(login_uid: int | None, sudo_user: str) -> str:
    """Return the name of the user who ran a command, such as ``alice (sudo: bob)``: the login user,
    and the caller of sudo if different. Returns "" if both are unknown.
    """
    login = ""
    if login_uid is not None:
        try:
            login = pwd.getpwuid(login_uid).pw_name
        except KeyError:
            login = str(login_uid)
    if not login or login == sudo_user:
        return sudo_user
    return f"{login} (sudo: {sudo_user})" if sudo_user else login


def deploys(store: Store, name: str | None) -> tuple[Deploy, ...]:
    """Return the recorded deploys of a service, or of all services (None), oldest first."""
    serving = {(one.front, one.version) for one in store.instances.active(SERVING, OUT)}
    known = store.instances.deploys(name)
    fronts = {one.front for one in store.instances.all()}
    for row in store.active_rows():
        if row.name not in fronts:
            done = [d.version for d in known if d.front == row.name and d.outcome == "done"]
            serving.update((row.name, version) for version in done[-1:])
    found = [
        Deploy(
            one.front,
            one.version,
            time_text(one.at) or "",
            one.took_s,
            one.outcome,
            (one.front, one.version) in serving and one.outcome == "done",
            one.package_version,
            one.why,
            _user_of(one.login_uid, one.sudo_user),
            one.login_uid,
            one.sudo_user or None,
            one.command,
        )
        for one in known
    ]
    return tuple(found if name else sorted(found, key=lambda one: one.at))


def service_lines(
    session: Session,
    store: Store,
    only: Iterable[str] | None = None,
    rows: Sequence[ServiceRow] | None = None,
    instances: bool = False,
) -> tuple[ServiceLine, ...]:
    """Return services with their status, sorted by name.

    ``only`` limits the result to some services. ``rows`` are the database rows, if already read. If
    ``instances`` is true, the active instances of services with replicas are listed too.
    """
    wanted = None if only is None else set(only)
    every = store.active_rows() if rows is None else rows

    def is_wanted(name: str) -> bool:
        front, dot, _ = name.partition(".")
        return (instances or not dot) and (wanted is None or front in wanted)

    known = [row for row in every if is_wanted(row.name)]
    fronts = {row.name for row in known if row.mode == "front"}
    checked = [row for row in every if row.name.partition(".")[0] in fronts or row in known]
    healths = known_healths(session, store, health_targets(store, checked))
    healths |= {name: front_health(store, name, healths) for name in fronts}
    pending = interrupted(store)
    audits = _audits(store)
    with store.reading():
        lines = [
            _line(session, store, row, healths.get(row.name), pending, audits) for row in known
        ]
        lines += [
            _inactive(name, mode, pending, audits)._replace(address=tuple(addresses.split()))
            for name, mode, addresses in (store.inactive_services() if rows is None else ())
            if "." not in name and is_wanted(name)
        ]
    enabled = [name for name, on in store.scheduled().items() if on and is_wanted(name)]
    if enabled and os.path.isdir("/run/systemd/system"):
        from niso.runtime import units  # imported late: most hosts have no such job

        times = units.Units().timers(enabled)
        lines = [_at_times(line, *times.get(line.service, (None, None))) for line in lines]
    others = pending.keys() if wanted is None else wanted
    for name in others and others - {line.service for line in lines}:
        lines.append(_inactive(name, None, pending, {}))
    return tuple(sorted(lines, key=lambda line: line.service))


def usages_of(store: Store, names: Iterable[str]) -> dict[str, cgroups.Usage]:
    """Return {service: processor time, memory and oom kills}, added up over all instances."""
    counting = cgroups.counting_roots()
    return {name: _usage_of(store, name, counting) for name in names}


def _usage_of(store: Store, name: str, counting: list[str]) -> cgroups.Usage:
    usage = cgroups.Usage(None, None, None, None, None)
    for one in store.instances.running(name):
        own = cgroups.usage(paths.cgroup(store.state_id(), one), counting)
        if former := former_oom_kills(one):
            own = own._replace(oom_kills=former + (own.oom_kills or 0))
        usage = usage.plus(own)
    return usage


_STATS_S = 0.5


def with_loads(store: Store, lines: Iterable[ServiceLine]) -> tuple[ServiceLine, ...]:
    """Add processor time and memory to lines of `service_lines`. Takes half a second to measure."""
    lines = list(lines)
    began = time.monotonic()
    first = usages_of(store, (line.service for line in lines))
    time.sleep(_STATS_S)
    last = usages_of(store, (line.service for line in lines))
    result = []
    for line in lines:
        usage, before = last[line.service], first[line.service].cpu_s
        cpu = None
        if usage.cpu_s is not None and before is not None:
            spent = max(0.0, usage.cpu_s - before)
            cpu = round(100 * spent / (time.monotonic() - began), 1)
        result.append(line._replace(load=ProcessLoad(cpu, *usage)))
    return tuple(result)


def with_listening(
    session: Session, store: Store, lines: Iterable[ServiceLine]
) -> tuple[ServiceLine, ...]:
    """Add the listening sockets of each active service to lines of `service_lines`."""
    from niso.look import listening  # imported late: without --listening, ps reads no kernel

    by_name = {line.service: line for line in lines}
    found = listening.described(session.kernel(), store, by_name)
    return tuple(
        by_name[name]._replace(listening=sockets, unheard=unheard)
        for name, (sockets, unheard) in found.items()
    )


def of_stack(
    session: Session, store: Store, names: Iterable[str], stack: str
) -> tuple[ServiceLine, ...]:
    """Return the services of a stack and the services in its file, sorted by name.

    A service in the file that belongs to another stack is listed as inactive.
    """
    members = {*store.stack_members(stack)}
    own = {name for name in names if name in members or store.service(name) is None}
    found = [*service_lines(session, store, own | members)]
    found += [_inactive(name, None, {}, {}) for name in names if name not in own]
    return tuple(sorted(found, key=lambda line: line.service))


def _at_times(line: ServiceLine, last: float | None, next_: float | None) -> ServiceLine:
    started = read(line.service).started_at
    last = max(filter(None, (last, started)), default=None)
    return line._replace(last_run=time_text(last), next_run=time_text(next_))


def _audits(store: Store) -> dict[str, str | None]:
    if not store.audits():
        return {}

    from niso.kernel.policy_rules import NEVER
    from niso.reconcile import live_world

    terms = live_world.terms(store).items()
    return {
        service: "never" if until == NEVER else time_text(until)
        for service, (until, lasts) in terms
        if lasts
    }


def _line(
    session: Session,
    store: Store,
    row: ServiceRow,
    health: Health | None,
    pending: Mapping[str, str],
    audits: Mapping[str, str | None],
) -> ServiceLine:
    if not row.active:
        addresses = tuple(address for _, address in store.addresses(row.name))
        return _inactive(row.name, row.mode, pending, audits)._replace(address=addresses)
    status, now = _status(session, store, row)
    address = tuple(address for _, address in store.addresses(row.name))
    ports = rows((port for _, port in store.ports(row.name)), store.port_families(row.name))
    uptime, ended_at = _times(now)
    return ServiceLine(
        row.name,
        status,
        health.state if health else None,
        row.mode,
        address,
        ports,
        None if uptime is None else round(uptime, 3),
        pending.get(row.name),
        ended_at,
        audits.get(row.name),
        health.age_s if health else None,
        now.restarts if now else _front_restarts(store, row),
        None,
        None,
    )


def _times(now: Status | None) -> tuple[float | None, str | None]:
    if now is None:
        return None, None
    is_running = now.state == "running"
    return (now.lives_s, None) if is_running else (None, time_text(now.ended_at))


def _inactive(
    name: str, mode: str | None, pending: Mapping[str, str], audits: Mapping[str, str | None]
) -> ServiceLine:
    status = "gone" if mode == "attached" else "inactive"
    notes = (pending.get(name), None, audits.get(name))
    return ServiceLine(name, status, None, mode, (), (), None, *notes, *[None] * 4)


def _status(session: Session, store: Store, row: ServiceRow) -> tuple[str, Status | None]:
    """Return (status of a service as text, `Status` of its process or None without a process)."""
    if row.is_attachment:
        return fate(session, store, row), None
    if not row.active:
        return "inactive", None
    if row.mode == "front":
        return _front_status(store, row), None

    logs.rotate_if_large(row.name)
    now = read(row.name, closely=True)
    status = {"exited": f"exited ({now.exit_code})", "none": "failed"}.get(now.state, now.state)
    # checked last, because it decodes the manifest
    if (
        (now.state == "exited" and now.exit_code == 0)
        # after a rollback of a failed version, there is no record of the run before
        or (now.state == "none" and store.intent(row.name) is None)
    ) and row.is_job:
        waits = row.schedule is not None and now.state == "none"
        status = "scheduled" if waits else "completed"
    return status, now


def _front_status(store: Store, row: ServiceRow) -> str:
    """Return how many instances of a service run and how many should run: ``2/3 running``."""
    serving = store.instances.of(row.name, SERVING)
    running = sum(read(instance.service).state == "running" for instance in serving)
    spec = row.service
    deploy = spec.program.deploy if spec is not None else None
    return f"{running}/{deploy.replicas if deploy is not None else len(serving)} running"


def _front_restarts(store: Store, row: ServiceRow) -> int | None:
    if row.mode != "front":
        return None
    return sum(read(one.service).restarts for one in store.instances.of(row.name, *STATES))


def front_health(store: Store, front: str, healths: Mapping[str, Health]) -> Health:
    """Return the worst health among the instances of a service.

    If several instances have the worst health, the result is from the oldest probe.
    """
    from niso.runtime.health import Health

    instances = store.instances.of(front, SERVING, OUT)
    known = [healths[one.service] for one in instances if one.service in healths]
    worst = ("unhealthy", "starting", "healthy")
    known.sort(key=lambda health: (worst.index(health.state), health.asked_at or 0.0))
    return known[0] if known else Health("starting", "")


def fate(session: Session, store: Store, row: ServiceRow) -> str:
    """Return "attached" if the namespace of an attachment still exists, otherwise "gone"."""
    attached = store.attachments.get(row.name)
    if not row.active or attached is None:
        return "gone"
    # do not read the kernel for niso's own namespaces: this takes half of the time of ps
    return "attached" if not attached.netns or attached.lives(session.kernel()) else "gone"


def known_healths(
    session: Session, store: Store, targets: Sequence[HealthTarget]
) -> dict[str, Health]:
    """Return {service: health at the last probe}, and request the probes that are due.

    Does not wait for a probe: the health agent runs the probes, and a later call returns the
    results.
    """
    if not targets:
        return {}

    from niso.runtime import health

    health.ask(session.processes().units, store.state_id(), targets)
    return health.known(targets)


def _healths(session: Session, store: Store, services: Iterable[ServiceRow]) -> dict[str, Health]:
    targets = health_targets(store, services)
    if not targets:
        return {}

    from niso.runtime.health import check_all

    return check_all(targets, session.report)


def health_targets(store: Store, services: Iterable[ServiceRow]) -> list[HealthTarget]:
    """Return the health checks of all given services that have a check and are running."""
    checked = {*store.checked_services()}
    known = ((row, read(row.name)) for row in services if row.name in checked)
    running = [(row, now) for row, now in known if now.state == "running"]
    if not running:
        return []

    from niso.runtime.health import HealthTarget

    targets = []
    for row, now in running:
        # None if damaged, which `niso net check` reports
        check, process = row.healthcheck, row.process
        if check is not None and process is not None:
            run = (now.pid or 0, now.started_at or 0.0)
            targets.append(HealthTarget(row.name, check, namespace(process), run))
    return targets


def everything(session: Session, store: Store, name: str) -> Service:
    """Return all details of a service. Raises Error if the row of the service is damaged."""
    row = store.service(name)
    assert row is not None
    manifest = dict(row.require_service().manifest)
    spec = row.require_process() if row.has_process else None
    attached = store.attachments.get(row.name) if row.is_attachment else None
    netns = paths.netns_path(row.name) if spec is None else spec.netns or None
    hostname = row.require_service().network.hostname if spec is None else spec.hostname
    status, now = _status(session, store, row)
    instance = store.instances.get(name)
    instances = [instance] if instance is not None else store.instances.of(name, *STATES)
    checked = (
        [row] if row.mode != "front" else [*map(store.service, (i.service for i in instances))]
    )
    healths = _healths(session, store, filter(None, checked))
    health = healths.get(row.name)
    if row.mode == "front" and row.active:
        health = front_health(store, name, healths)
    endpoints = _endpoints(store, row)
    families = store.port_families(row.name)
    uptime, ended_at = _times(now)
    process = now and Process(
        now.pid,
        now.exit_code,
        out_of_memory(row.name),
        now.restarts,
        *usages_of(store, [row.name])[row.name],
        time_text(now.started_at),
        ended_at,
    )
    if row.mode == "front" and row.active:
        names = [one.service for one in instances]
        restarts, killed = sum(read(one).restarts for one in names), any(map(out_of_memory, names))
        process = Process(None, None, killed, restarts, *usages_of(store, [name])[name], None, None)
    return Service(
        service=row.name,
        status=status,
        interrupted=interrupted(store).get(name),
        health=health.state if health else None,
        health_said=health.failure or None if health else None,
        health_age=health.age_s if health else None,
        mode=row.mode,
        shares=row.provider,
        shared_by=tuple(store.sharers(row.name)),
        uptime=uptime,
        process=process,
        hostname=hostname or (os.uname().nodename if row.mode == "host" else ""),
        names=tuple(store.names(row.name)),
        networks=tuple(endpoint.network for endpoint in endpoints),
        endpoints=endpoints,
        ports=rows((port for _, port in store.ports(row.name)), families),
        forwards=rows(store.forwards(row.name), families),
        netns=netns if row.active and row.mode != "front" else None,
        user=None if spec is None else User(spec.uid, spec.gid, spec.user_name),
        enabled=row.enabled,
        manifest_path=row.manifest_path,
        manifest=manifest,
        package=row.package,
        rootfs=row.rootfs,
        logs=paths.log_dir(row.name),
        created_at=time_text(row.created_at) or "",
        activated_at=time_text(row.activated_at),
        attached=None if attached is None else AttachedTo(*attached[1:5]),
        outside=described(store, store.outside.of(row.name))
        if store.names_outside(row.name)
        else (),
        front=instance.front if instance is not None else None,
        instances=tuple(
            ServiceInstance(one.service, one.state, one.version, time_text(one.since) or "")
            for one in instances
            if row.active
        ),
    )


def _endpoints(store: Store, row: ServiceRow) -> tuple[Endpoint, ...]:
    networks = {network.name: network for network in store.networks()}
    home = store.service(store.home(row.name)) or row  # the service that owns the namespace
    links = {x.network: x for x in store.attachments.links(row.name)}
    by_network: dict[str, list[str]] = {}
    for name, address in store.addresses(row.name):
        by_network.setdefault(name, []).append(address)
    return tuple(
        Endpoint(
            name,
            networks[name].bridge,
            tuple(addresses),
            tuple(subnet.gateway for subnet in networks[name].subnets),
            (links[name].mac if name in links else "") or store.derived_mac(home.name, name),
            links[name].interface if name in links else f"eth{position}",
            veth(home.name, name, home.generation) if row.active and row.mode != "front" else None,
            networks[name].mtu,
        )
        for position, (name, addresses) in enumerate(by_network.items())
    )


# --- instances that need attention ----------------------------------------------------------------

_STARTS_WITHIN_S = 5.0
_LONG_S = 60.0


def unwatched(store: Store) -> list[str]:
    """Return the services that need the health agent (``niso health``) while it does not run.

    A service whose instances have only just started is left out, because the command that started
    them has just started the agent.
    """
    began: dict[str, float] = {}
    for one in store.instances.active(SERVING, OUT):
        began[one.front] = min(one.since, began.get(one.front, one.since))
    for name in store.acted_on_services():
        row = store.service(name)
        began.setdefault(owner(name), (row and row.activated_at) or 0.0)
    lost = [name for name in sorted(began) if time.time() - began[name] > _STARTS_WITHIN_S]
    if not lost:
        return []

    from niso.runtime.units import HEALTH, wake_agent

    return [] if wake_agent(HEALTH) else lost


def unwatched_words(services: Sequence[str]) -> tuple[str, str]:
    """Return (warning, next step) about services that need the health agent, which is down."""
    return (
        f"no process watches {', '.join(services)} (niso health): an instance that hangs still gets"
        " connections",
        "niso net repair starts it",
    )


def unfinished(store: Store) -> dict[str, tuple[str, str]]:
    """Return {service: (warning, next step)} for services whose last deploy was killed halfway.

    A deploy replaces instances in steps, and its last step records the deploy. If the deploy was
    killed between two steps, instances of both versions receive traffic until the next activation.
    """
    found = {}
    for name in store.instances.of_two_versions():
        row = store.service(name)
        if row is None or is_held(name) or name not in store.instances.of_two_versions():
            continue
        serving = store.instances.of(name, SERVING, OUT)
        newest = max(one.version for one in serving)
        new = sum(one.version == newest for one in serving)
        found[name] = (
            f"the deploy of {name} was killed: {new} of its {len(serving)} instances have the new"
            " version",
            f"{row.activation_command} completes it",
        )
    return found


def few_instances(store: Store, fronts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (warning, next step) for each service whose instances need attention.

    Either too few instances receive traffic, or an old instance has been draining for longer than
    ``deploy.drain`` and a minute.
    """
    for name in fronts:
        row = store.service(name)
        spec = row.service if row is not None and row.active else None
        program = spec.process if spec is not None and spec.is_front else None
        deploy = program.deploy if program is not None else None
        if deploy is None or store.intent(name) is not None:
            continue
        serving = len(store.instances.of(name, SERVING))
        if serving < deploy.replicas:
            yield f"{serving} of {deploy.replicas} instances of {name} serve", "niso ps -i"
        for one in store.instances.of(name, LEAVING):
            if time.time() - one.since > deploy.drain_s + _LONG_S:
                yield (
                    f"{one.service} has been leaving since {time_text(one.since)}, longer than"
                    f" deploy.drain of {name}",
                    f"niso logs {one.service}; niso net repair completes a deploy that was killed",
                )


# --- changes whose command has died ---------------------------------------------------------------

_COMMANDS = {"stop": "deactivate", "remove volumes": "remove", "ports": "port-forward"}


def command_of(intent: Intent) -> str:
    """Return the name of the command that began a recorded change, for messages."""
    return _COMMANDS.get(intent.action, intent.action)


def interrupted(store: Store) -> dict[str, str]:
    """Return {service: name of the killed command that has left the service half changed}.

    A command takes the service's lock before it records the change, and releases the lock after it
    has deleted the record. A recorded change without a lock is therefore interrupted.
    """
    return {
        intent.service: command_of(intent)
        for intent in store.intents()
        if not is_held(intent.service) and store.intent(intent.service) == intent
    }


# --- DNS names outside niso.local -----------------------------------------------------------------


OVERDUE_S = 600.0  # seconds without an answer after which `Host.check` warns


class OutsideName(NamedTuple):
    """A DNS name outside niso.local that policies use, and its addresses."""

    name: str  # the DNS name
    services: tuple[str, ...]  # strings: the active services whose policies use the name
    addresses: tuple[str, ...]  # strings: the name's addresses in the rules and in hosts files
    former: tuple[str, ...]
    """strings: addresses that the rules still allow, for programs that resolved the name earlier"""
    asked_at: str | None  # when the name was last resolved; null if never
    until: str | None  # when the answer expires; null without addresses
    problem: str | None  # why the last query failed; null if it succeeded


def described(store: Store, names: Iterable[str] | None = None) -> tuple[OutsideName, ...]:
    """Return the given DNS names with their addresses, sorted by name.

    If ``names`` is None, returns the DNS names in all policies.
    """
    if not store.names_outside():
        return ()
    rows = store.outside
    wanted = rows.named() if names is None else sorted(names)
    return tuple(_described(rows.answer(name), rows.naming([name])) for name in wanted)


def _described(answer: Outside, services: list[str]) -> OutsideName:
    ends = [known.until for known in answer.addresses if known.state == NOW]
    return OutsideName(
        answer.name,
        tuple(services),
        answer.in_state(NOW),
        answer.in_state(FORMER),
        time_text(answer.asked_at or None),
        time_text(min(ends, default=None)),
        answer.problem or None,
    )


def next_due(session: Session) -> float:
    """Return the seconds until the next DNS name must be resolved again, at most 60."""
    store, now = session.store(), time.time()
    answers = store.outside.answers() if store.names_outside() else []
    return min([60.0, *(max(answer.due_at - now, 1.0) for answer in answers)])


def name_warnings(store: Store, name: str | None) -> Iterator[tuple[str, str]]:
    """Yield (warning, next step) about DNS names in a service's policy that have no valid address.

    If ``name`` is None, checks the policies of all services.
    """
    rows, now = store.outside, time.time()
    unknown: dict[tuple[str, str], list[str]] = {}  # by (services, reason)
    for answer in map(rows.answer, rows.named(active=True) if store.names_outside() else ()):
        services = rows.naming([answer.name])
        if name is not None and name not in services:
            continue
        yield from family_warnings(store, answer, services if name is None else [name])
        by = ", ".join(services)
        ends = [known.until for known in answer.addresses if known.state == "now"]
        if not ends:
            reason = answer.problem or "it has not been asked for"
            unknown.setdefault((by, reason), []).append(answer.name)
        elif min(ends) + OVERDUE_S < now:
            since = period_text(now - min(ends))
            reason = f": {answer.problem}" if answer.problem else ""
            yield (
                f"{answer.name}, which {by} may connect to, has addresses whose time ended"
                f" {since} ago{reason}",
                "niso net refresh asks again; niso enable SERVICE lets systemd do so",
            )
    for (by, reason), names in unknown.items():
        has = "has" if len(names) == 1 else "have"
        yield (
            f"{', '.join(names)}, which {by} may connect to, {has} no address: {reason}",
            "niso net refresh asks again",
        )


def family_warnings(
    store: Store, answer: Outside, services: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield (warning, next step) for each service without a route for the IP versions of a DNS
    name's addresses.
    """
    known = {family_of(address) for address in answer.in_state("now")}
    for service in services if known else ():
        first = next(iter(store.networks_of(service)), None)
        network = None if first is None else store.network(first)
        families = {subnet.family for subnet in network.subnets} if network is not None else known
        if not known & families:
            lacks, has = (
                " or ".join(f"IPv{n}" for n in sorted(some)) for some in (families, known)
            )
            yield (
                f"{answer.name}, which {service} may connect to, has no {lacks} address,"
                f" and network {first} no {has} subnet",
                f"name a network with {has} first; niso net create NAME --ipv6 makes one",
            )
