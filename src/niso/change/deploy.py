"""Replace the instances of a service without failed requests.

The service has a service address: one address for all of its instances. New instances start while
the old ones still run, and must become healthy at their own addresses. Then one change of rows and
kernel directs new connections, to the service address and to the published ports, to the new
instances. The old instances keep their open connections. During ``deploy.monitor`` they also stay
ready to receive new connections again if a new instance fails. An old instance is stopped when its
connections are finished, at the latest after ``deploy.drain``.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Mapping

from niso.base import signals
from niso.base.errors import Conflict, Error, NotFound, ProcessError, raise_all
from niso.base.locks import Lock, remove_locks, service_lock
from niso.base.named_tuples import NamedTuple
from niso.base.names import netns
from niso.base.report import event_class
from niso.change import process_record, stop
from niso.change.journal import begin, locked_instances
from niso.change.scope import Target, concerned, report_to_cluster
from niso.change.targets import of_row
from niso.change.undo import restore_manifest
from niso.plan.specs import DeploySpec, ServiceSpec
from niso.reconcile.change import change
from niso.runtime import crun, health, lifecycle, package
from niso.runtime.machine import Machine
from niso.runtime.status import describe_exit
from niso.store.service_rows import (
    KEPT,
    LEAVING,
    OUT,
    SERVING,
    STARTING,
    STATES,
    Deployed,
    Instance,
    Intent,
    ServiceRow,
    encode_service,
)
from niso.store.sqlite import encoded
from niso.store.store import Store

Swapped = event_class(
    "Swapped", lambda service, version: f"{service}: connections go to version {version}"
)
"""Event: new connections go to the instances of a version."""
Draining = event_class(
    "Draining",
    lambda service, connections: f"{service}: {connections} open connections to finish",
)
"""Event: the former instances of a service still have open connections."""

_DRAIN_LOOK_S = 0.05
_MOST_PROBE_S = 1.0


class Rollout(NamedTuple):
    """The instances of one service that an activation starts, keeps and stops."""

    front: Target
    new: tuple[Target, ...]  # the instances that the service has afterwards
    old: tuple[str, ...]  # the active instances that are to be stopped
    undo: str  # the service's previous rows, encoded as in an `Intent`
    is_first: bool  # whether no instance is active, and the version is a new one
    replaces: bool  # start-first: whether all instances are replaced by a new version
    retired: tuple[str, ...]  # stop-first: an instance stopped before its successor starts
    more: int  # how many further steps the deploy needs

    @property
    def name(self) -> str:
        return self.front.name

    @property
    def instances(self) -> list[str]:
        """Return the names of all instances that the activation starts, keeps or stops."""
        return [*(target.name for target in self.new), *self.old, *self.retired]

    @property
    def version(self) -> int:
        """Return the version number that the service has after the activation."""
        return max(target.instance.version for target in self.new if target.instance)


# --- plan -----------------------------------------------------------------------------------------


def rollout(machine: Machine, front: Target) -> Rollout:
    """Decide which instances the next step of a deploy starts, leaves unchanged and stops.

    An instance stays if its process is as desired and its version is at least ``front.again`` (see
    `Target`). With stop-first, a step replaces one instance. Otherwise a step replaces at most
    ``deploy.surge`` instances, or all if this key is not set. The caller must have the service's
    lock.
    """
    store, name = machine.store, front.name
    deploy = front.spec.program.deploy
    assert deploy is not None
    known_ones = store.instances.of(name)
    row = store.service(name)
    active = store.instances.of(name, SERVING, OUT) if row is not None and row.active else []
    wanted = range(1, deploy.replicas + 1)
    deploys = store.instances.deploys(name)
    versions = [one.version for one in known_ones] + [one.version for one in deploys]
    version = max(versions, default=0)
    taken = {one.number for one in store.instances.of(name, *STATES)}
    if store.cluster_id():
        from niso.change import cluster_claims

        own = {one.number for one in known_ones}
        taken |= cluster_claims.instances_elsewhere(machine, front) - own
    stale = [o for o in active if o.version < front.again or _is_changed(machine, front, o)]
    stays = [one for one in active if one not in stale and one.ordinal in wanted]
    old = [one.service for one in active if one.ordinal not in wanted]
    replaced = [one for one in stale if one.ordinal in wanted]
    step = 1 if deploy.update == "stop-first" else deploy.surge or len(replaced)
    now, later = replaced[:step], replaced[step:]
    retired = []
    if replaced and (deploy.update == "stop-first" or deploy.surge):
        # the other instances of the former version serve until a later step replaces them
        if deploy.update == "stop-first":
            retired = [one.service for one in now]
        else:
            old += [one.service for one in now]
        version = max((one.version for one in stays), default=version + 1)
    elif stale:
        stays, old, version, later = [], [one.service for one in active], version + 1, []
    elif active:
        version = max(one.version for one in active)
    else:
        version = _served_last(front, row, deploys) or version + 1
    if stale:
        old += [one.service for one in store.instances.of(name, KEPT)]
    by_ordinal = {one.ordinal: one for one in stays}
    skipped = {one.ordinal for one in later}
    free = iter(n for n in range(1, 4 * len(wanted) + len(taken) + 1) if n not in taken)
    new = []
    for ordinal in (n for n in wanted if n not in skipped):
        present = by_ordinal.get(ordinal)
        number = present.number if present else next(free)
        lives = present is not None and machine.processes.runs(present.service)
        state = present.state if present is not None and lives else STARTING
        spec = front.spec.instance(number)
        instance = Instance(spec.name, name, number, ordinal, state, version)
        new.append(front._replace(spec=spec, instance=instance))
    return Rollout(
        front,
        tuple(new),
        tuple(old),
        undo=encoded(store.rows(name)) if active else "",
        is_first=not active and all(one.version != version for one in deploys),
        replaces=bool(stale) and deploy.update == "start-first",
        retired=tuple(retired),
        more=-(-len(later) // max(step, 1)),
    )


def _served_last(front: Target, row: ServiceRow | None, deploys: list[Deployed]) -> int:
    # So a start after `deactivate` or a reboot does not count as a new version, even if the number
    # of instances differs.
    done = [one for one in deploys if one.outcome == "done"]
    if row is None or not done or front.files is None:
        return 0
    last = done[-1]
    spec = row._replace(manifest=last.manifest).service
    if spec is None or not spec.is_front or last.package != front.files.copy_path(front.name):
        return 0
    return last.version if _with_replicas(spec, 1) == _with_replicas(front.spec, 1) else 0


def _with_replicas(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    program = spec.program
    assert program.deploy is not None
    deploy = program.deploy._replace(replicas=replicas)
    return spec._replace(process=program._replace(deploy=deploy))


def _is_changed(machine: Machine, front: Target, instance: Instance) -> bool:
    assert front.files is not None
    row = machine.store.service(instance.service)
    spec = front.spec.instance(instance.number)
    if row is None or row.process is None or spec.network.networks != row.networks:
        return True
    target = front._replace(spec=spec)
    copy = front.files.copy_path(front.name)
    _, process, _, _ = process_record.specified(
        machine, target, front.files, copy, row.generation, None, row
    )
    return process._replace(hosts_folder="") != row.process._replace(hosts_folder="")


def needs(
    after: Mapping[str, Mapping[str, str]] | None, rollouts: Iterable[Rollout]
) -> dict[str, Mapping[str, str]]:
    """Return dependencies between processes: the names of its instances replace each service that
    has some.

    ``after`` maps each service to {dependency: state to reach}, and the result has the same form.
    ``rollouts`` are the services that have instances.
    """
    instances = {one.name: [target.name for target in one.new] for one in rollouts}
    result: dict[str, Mapping[str, str]] = {}
    for name, dependencies in (after or {}).items():
        expanded = {
            instance: state
            for dependency, state in dependencies.items()
            for instance in instances.get(dependency, [dependency])
        }
        result |= dict.fromkeys(instances.get(name, [name]), expanded)
    return result


def scaled(store: Store, name: str, replicas: int) -> Target:
    """Return a target that activates a service with another number of instances.

    Raises Conflict if the service is not active or has no service address.
    """
    target = of_row(_require_front(store, name))
    return target._replace(spec=_with_replicas(target.spec, replicas), pinned=True)


def former(store: Store, name: str, version: int | None) -> Target:
    """Return a target that activates a former version of a service.

    ``version`` is the number of a recorded deploy. None means the last successful deploy with a
    different manifest or package. The present number of instances stays. Secrets and files with
    environment variables are read again. Raises NotFound if the deploy is not recorded, or if its
    package was deleted.
    """
    row = store.require_known(name)
    row.require_own()
    deploys = store.instances.deploys(name)
    present = max((one.version for one in store.instances.of(name, SERVING, OUT)), default=0)
    # `restart` makes another version of the same manifest and package
    now = {(one.manifest, one.package) for one in deploys if one.version == present}
    now = now or {(row.manifest, row.package)}
    known_ones = [
        one
        for one in deploys
        if one.outcome == "done"
        and one.version != present
        and (one.manifest, one.package) not in now
    ]
    if version is not None:
        known_ones = [one for one in deploys if one.version == version]
    if not known_ones:
        what = "no former version" if version is None else f"no generation {version}"
        raise NotFound(f"{name!r} has {what}", f"niso history {name}", service=name)
    chosen = known_ones[-1]
    if chosen.outcome == "stopped" or not (chosen.manifest and os.path.isdir(chosen.package)):
        reason = f"the package of generation {chosen.version} of {name!r} is not kept"
        if chosen.outcome == "stopped":
            reason = f"generation {chosen.version} of {name!r} is a stop"
        usable = [
            str(one.version)
            for one in deploys
            if one.outcome == "done" and one.manifest and os.path.isdir(one.package)
        ]
        hint = f"niso rollback {name} {usable[-1]}" if usable else f"niso history {name}"
        raise NotFound(reason, hint, service=name)
    target = of_row(
        row._replace(
            manifest=chosen.manifest,
            package=chosen.package,
            fingerprint=os.path.basename(chosen.package),
            manifest_path=chosen.manifest_path,
        )
    )
    now_spec = row.service
    if present and now_spec is not None and target.spec.program.deploy is not None:
        replicas = now_spec.program.deploy.replicas if now_spec.program.deploy else 1
        target = target._replace(spec=_with_replicas(target.spec, replicas))
    return target._replace(pinned=True, replace=True)


def record_failures(store: Store, rollouts: Iterable[Rollout], began: float, error: object) -> None:
    """Record the deploys as rolled back because of ``error``, in the caller's transaction."""
    for one in rollouts:
        if (one.replaces or one.retired) and store.service(one.name) is not None:
            why = error.message if isinstance(error, Error) else "interrupted"
            record(store, one, began, "failed", why)


def before(one: Rollout) -> Target | None:
    """Return a target to restore a service as before a rollout, or None if it was inactive."""
    row = Intent(one.name, "activate", one.undo).before if one.undo else None
    return of_row(row)._replace(pinned=True, replace=True) if row is not None else None


def keeps(one: Rollout) -> bool:
    """Return whether the instances of both versions keep running if the new version fails."""
    return _deploy(one).on_failure == "keep"


def _require_front(store: Store, name: str) -> ServiceRow:
    row = store.require_active(name)
    if row.mode != "front":
        raise Conflict(
            f"{name!r} has no service address",
            "set service.replicas in its manifest",
            service=name,
        )
    return row


def retire(machine: Machine, one: Rollout) -> None:
    """Send no new connections to the instance that a stop-first deploy replaces in this step.

    Waits at most ``deploy.drain`` for open connections to finish. Does not stop the instance.
    """
    if not one.retired:
        return
    begin(machine.store, list(one.retired), "activate")
    scope = concerned(machine.store, [one.name])
    with Lock(), change(machine.kernel, machine.store, scope, machine.report):
        machine.store.instances.set_state(one.retired, LEAVING)
    drain(machine, one.retired, _deploy(one).drain_s)


def first_slots(machine: Machine, rollouts: Iterable[Rollout]) -> Callable[[str], None]:
    """Return a function to call with the name of each instance that has become healthy.

    When all first instances of a new service are healthy, the function makes the service address
    send connections to them. Only then can services that depend on the new service be started.
    """
    new = {
        one.name: [target.name for target in one.new]
        for one in rollouts
        if not (one.replaces or one.retired)
        and all(target.instance.state == STARTING for target in one.new if target.instance)
    }
    waiting = {front: {*names} for front, names in new.items()}

    def healthy(name: str) -> None:
        front, _, _ = name.partition(".")
        if name not in waiting.get(front, ()):
            return
        waiting[front].remove(name)
        if not waiting[front]:
            store = machine.store
            with Lock(), change(machine.kernel, store, concerned(store, [front]), machine.report):
                store.instances.set_state(new[front], SERVING)

    return healthy


# --- swap -----------------------------------------------------------------------------------------


def swap(store: Store, rollouts: Iterable[Rollout]) -> None:
    """Record that new instances receive new connections, and that old instances do not.

    The old instances keep their open connections. The caller must write the new state to the kernel
    in the same change.
    """
    for one in rollouts:
        # an unhealthy instance that stays is left out: niso health decides when it returns
        started = [instance.service for instance in store.instances.of(one.name, STARTING)]
        store.instances.set_state(started, SERVING)
        kept = {instance.service for instance in store.instances.of(one.name, KEPT)}
        # an instance of a version that failed and was kept does not serve again
        store.instances.set_state([name for name in one.old if name not in kept], LEAVING)


def record(store: Store, one: Rollout, began: float, outcome: str, why: str = "") -> None:
    """Record a deploy for `niso history` (see `Deployed`), in the caller's transaction."""
    front, took_s = one.front, round(time.time() - began, 3)
    assert front.files is not None
    what = (encode_service(front.spec), front.files.copy_path(one.name), front.manifest_path)
    store.instances.put_deploy(Deployed(one.name, one.version, began, took_s, outcome, why, *what))


# --- after the swap -------------------------------------------------------------------------------


def complete(machine: Machine, rollouts: list[Rollout], deploy_began: float) -> None:
    """Watch the new instances, and stop the old ones when their connections are finished.

    If a new instance fails, raises ProcessError. The old instances of all ``rollouts`` then receive
    connections again, unless ``deploy.on_failure`` of the failed service is keep. ``deploy_began``
    is a Unix time.
    """
    began = time.monotonic()
    ending = [one for one in rollouts if one.old]
    replaced = [one for one in ending if one.replaces]
    for one in replaced:
        machine.report(Swapped(one.name, one.version))
        if (name := _deploy(one).drain_signal) is not None:
            for old in one.old:
                lifecycle.send(old, signals.numbers()[f"SIG{name}"])
    failed, why = _watch(machine, replaced, began) if replaced else (None, "")
    error: list[Error] = []
    if failed is not None and not keeps(failed):
        _take_back(machine, replaced, failed, why, deploy_began)
        reason, hint = "was taken back", "the former version serves; see niso logs"
        if len(replaced) > 1:
            hint = "the former versions of all services of the command serve; see niso logs"
        error = [
            ProcessError(f"version {failed.version} {reason}: {why}", hint, service=failed.name)
        ]
    elif failed is not None:
        with Lock(), machine.store.transaction():
            machine.store.instances.set_state(failed.old, KEPT)
        ending.remove(failed)
        hint = "both versions are left as they are (deploy.on_failure)"
        error = [ProcessError(f"version {failed.version} failed: {why}", hint, service=failed.name)]
    taken_back = replaced if error and failed in ending else []
    for one in sorted(ending, key=lambda one: _deploy(one).drain_s):
        names = [target.name for target in one.new] if one in taken_back else one.old
        since = time.monotonic() if one in taken_back else began
        drain(machine, names, since + _deploy(one).drain_s - time.monotonic())
        try:
            _stop(machine, names)
        except Error as other:
            error.append(other)
    for one in rollouts:
        tidy(machine, one.name)
    raise_all(error)


def _deploy(one: Rollout) -> DeploySpec:
    deploy = one.front.spec.program.deploy
    assert deploy is not None
    return deploy


def _watch(machine: Machine, rollouts: list[Rollout], since: float) -> tuple[Rollout | None, str]:
    """Watch the new instances for ``deploy.monitor`` after ``since`` (monotonic, in seconds).

    If an instance fails, returns its rollout and the reason. If none fails, returns (None, ""). All
    services are watched until the longest ``deploy.monitor`` is over, because a failure of any
    service makes the old instances of all services receive connections again.
    """
    processes = machine.processes
    of = {target.name: one for one in rollouts for target in one.new}
    pidfds = {name: processes.open_init(name) for name in of}
    failures = dict.fromkeys(of, 0)
    until = since + max(_deploy(one).monitor_s for one in rollouts)
    checks = [one.front.spec.program.healthcheck for one in rollouts]
    pause_s = min((_MOST_PROBE_S, *(check.interval_s for check in checks if check)))
    try:
        while True:
            for name, pidfd in pidfds.items():
                if pidfd < 0 or crun.wait_readable(pidfd, 0):
                    how = describe_exit(processes.exit_code(name))
                    return of[name], f"the process of {name} ended ({how})"
            for name, reason in probed(machine, of).items():
                failures[name] = failures[name] + 1 if reason else 0
                check = of[name].front.spec.program.healthcheck
                if reason and check is not None and failures[name] >= check.retries:
                    return of[name], f"{name} is unhealthy: {reason}"
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None, ""
            poll = select.poll()
            for pidfd in pidfds.values():
                poll.register(pidfd, select.POLLIN)
            poll.poll(1000 * min(left_s, pause_s))
    finally:
        for pidfd in pidfds.values():
            if pidfd >= 0:
                os.close(pidfd)


def probed(machine: Machine, names: Iterable[str]) -> dict[str, str]:
    """Run the health checks of instances once. Return {instance: why it is unhealthy}, with "" for
    an instance that is healthy or has no health check.
    """
    rows = {name: machine.store.service(name) for name in names}
    checks = [(n, c, row) for n, row in rows.items() if row is not None and (c := row.healthcheck)]
    probe = machine.processes.probe
    said = health.answers(
        probe(c, n, crun.namespace(row.require_process())) for n, c, row in checks
    )
    return dict.fromkeys(rows, "") | {n: text for (n, *_), text in zip(checks, said, strict=True)}


def _take_back(
    machine: Machine, rollouts: list[Rollout], failed: Rollout, why: str, began: float
) -> None:
    """Send new connections to the old instances of services again, and none to the new instances.

    ``failed`` is the service whose new version has failed, and ``why`` the reason. ``began`` is the
    start of the deploy as a Unix time.
    """
    store, names = machine.store, [one.name for one in rollouts]
    # first: after a kill the copies have two manifests at worst, which cannot be activated together
    befores = [Intent(one.name, "activate", one.undo).before for one in rollouts]
    for row in befores:
        restore_manifest(store, row)
    with Lock(), change(machine.kernel, store, concerned(store, names), machine.report):
        store.undo([Intent(one.name, "activate", one.undo) for one in rollouts])
        for one in rollouts:
            reason = why if one is failed else f"{failed.name} failed: {why}"
            record(store, one, began, "taken back", reason)
            served = {instance.service for instance in store.instances.of(one.name, LEAVING)}
            store.instances.set_state(served.intersection(one.old), SERVING)
            store.instances.set_state([target.name for target in one.new], LEAVING)
    report_to_cluster(machine, [name for one in rollouts for name in one.old])
    for one, row in zip(rollouts, befores, strict=True):
        files = one.front.files
        if files is not None and row is not None and files.copy_path(one.name) != row.package:
            package.drop_manifest(files.copy_path(one.name))


def drain(machine: Machine, names: Iterable[str], within_s: float) -> None:
    """Wait until clients have no open connections to instances, for at most ``within_s`` seconds.

    In a cluster, first waits until other hosts send no new connections to the instances.
    """
    names = list(names)
    end = time.monotonic() + within_s
    if machine.store.cluster_id():
        from niso.change import cluster_claims

        cluster_claims.report_leaving(machine, names, end)
    shown = False
    while (count := sum(connections(machine, name) for name in names)) and (time.monotonic() < end):
        if not shown:
            front, _, _ = names[0].partition(".")
            machine.report(Draining(front, count))
            shown = True
        time.sleep(_DRAIN_LOOK_S)


def leave_others(machine: Machine, services: Iterable[str]) -> None:
    """Let other hosts serve the connections to services that are about to be stopped on this host.

    Only services with instances on other hosts are changed. Their instances on this host receive no
    new connections, and have ``deploy.drain`` to finish open ones. Then this host sends connections
    to the service address to the other hosts. The caller must have the locks of the services and of
    their instances.
    """
    store = machine.store
    for name in services:
        row = store.service(name)
        spec = row.service if row is not None and row.active and row.mode == "front" else None
        if spec is None or not store.across.elsewhere(name):
            continue
        deploy, scope = spec.program.deploy, concerned(store, [name])
        served = [one.service for one in store.instances.of(name, SERVING, OUT)]
        with Lock(), change(machine.kernel, store, scope, machine.report):
            store.instances.set_state(served, LEAVING)
        drain(machine, served, deploy.drain_s if deploy is not None else 0.0)
        from niso.change import cluster_claims

        cluster_claims.hand_over(machine, name)


_OPEN = ("established", "syn-recv", "close-wait", "fin-wait-1", "closing", "last-ack")


def connections(machine: Machine, name: str) -> int:
    """Return how many TCP connections of clients an instance has.

    Connections that are being opened count. Connections that the instance has closed count until
    the client has received all data. Connections from the instance to itself do not count.
    """
    return sum(
        measured.is_server
        and measured.state in _OPEN
        and not measured.connection.client.startswith("127.")
        and measured.connection.client not in ("::1", measured.connection.server)
        for measured in machine.kernel.measured_in(netns(name))
    )


def _stop(machine: Machine, names: Iterable[str]) -> None:
    names = list(names)
    begin(machine.store, names, "deactivate")
    errors: list[Error] = stop.finish(machine, names, ends=True, resets=True)
    if errors:
        raise errors[0]


def tidy(machine: Machine, front: str) -> None:
    """Delete package copies and inactive instances that are no longer needed.

    Instances and rollbacks need package copies. As many inactive instances stay recorded as there
    are active ones: the next deploy uses their addresses again, so that policies of other services
    stay unchanged in the kernel. The caller must have the lock of the service ``front``.
    """
    store = machine.store
    package.keep_only(front, used_packages(store, front))
    known, active = store.instances.of(front), store.instances.of(front, *STATES)
    idle = [one.service for one in known if one not in active]
    surplus = idle[len(active) :]
    if surplus and active:
        begin(store, surplus, "remove")
        stop.forget(machine, surplus)
        report_to_cluster(machine, surplus)
        for name in surplus:
            remove_locks(name)


def used_packages(store: Store, front: str) -> set[str]:
    """Return the paths of package copies that a service, its instances or a rollback may need."""
    names = store.instances.with_instances([front])
    rows = [row for name in names if (row := store.service(name)) is not None]
    used = {row.package for row in rows if row.active or row.name == front}
    return used | {*store.instances.packages(front)}


def finish_leaving(machine: Machine) -> None:
    """Stop the old instances of deploys that were interrupted after new ones began to serve.

    Some instances are left unchanged: those of a running command, and those that the undo of an
    interrupted activation will restore.
    """
    store = machine.store
    leaving = store.instances.active(LEAVING)
    for front in dict.fromkeys(instance.front for instance in leaving):
        try:
            with service_lock(front, 0):
                names = [one.service for one in store.instances.of(front, LEAVING)]
                names = [name for name in names if store.intent(name) is None]
                row = store.service(front)
                spec = row.service if row is not None else None
                deploy = spec.program.deploy if spec is not None else None
                if names:
                    drain(machine, names, deploy.drain_s if deploy is not None else 0.0)
                    with locked_instances(store, names):
                        _stop(machine, names)
                    tidy(machine, front)
        except Conflict:
            continue
