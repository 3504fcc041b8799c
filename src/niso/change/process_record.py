"""Compute what the store records of a service's process: its uid and its ProcessSpec.

This module also decides whether a new activation must change the running process. The process may
need a restart, or only another hosts file if the service's networks have changed.
"""

from __future__ import annotations

import os

from niso.base.errors import InvalidInput, ProcessError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.report import event_class
from niso.change import scope
from niso.change.scope import Target
from niso.change.targets import FIRST_UID
from niso.kernel import host_facts
from niso.plan.specs import ProcessSpec, Secret, ServiceSpec
from niso.runtime import sources, volumes
from niso.runtime.crun import path_env
from niso.runtime.entrypoint import resolve_entrypoint, resolve_user
from niso.runtime.machine import Machine
from niso.runtime.package import PackageFiles
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.runtime.processes import Processes


def specified(
    machine: Machine,
    target: Target,
    files: PackageFiles,
    copy: str,
    generation: int,
    provider: str | None,
    before: ServiceRow | None,
) -> tuple[int, ProcessSpec, bool, bool]:
    """Return the desired process of a service, and how the running process must be changed.

    The result is (uid of the service, process, whether it must be started or restarted, whether it
    only needs another hosts file). ``before`` is the service's previous row, or None.
    ``generation`` and ``provider`` (the service whose namespace is shared) are the values in the
    new row. A process that waits for its automatic restart is started immediately. Raises
    InvalidInput.
    """
    uid = before.uid if before else free_uid(machine.store, target.name)
    old = before.process if before is not None else None
    front = machine.store.service(target.spec.front)
    own = front.uid if front is not None else uid  # all instances may write to the same volumes
    spec = _spec(machine.store, target.spec, files, copy, generation, own, provider)
    spec = _identified(spec, old, files.fingerprint is None)
    old = old if before is not None and before.active else None
    if before and old is not None and "host" not in (before.mode, target.spec.network.mode):
        # changed name servers do not by themselves cause a restart
        same = spec._replace(resolv_conf=old.resolv_conf)
        spec = same if same == old else spec
    processes, name = machine.processes, target.name
    lives = processes.runs(name) and processes.status(name).state != "restarting"
    running = old if lives else None
    rehosts = can_swap(processes, running, spec)
    starts = not rehosts and running != spec and target.spec.program.schedule is None
    return uid, spec, starts, rehosts


def free_uid(store: Store, service: str) -> int:
    """Return a uid for a new service: the owner of its former volumes, or an unused uid."""
    kept = volumes.owners()
    for uid in sorted(kept.pop(service, ())):
        if uid >= FIRST_UID and store.free_uid(uid) == uid:
            return uid
    return store.free_uid(FIRST_UID, set().union(*kept.values()))


def _identified(spec: ProcessSpec, old: ProcessSpec | None, is_known: bool) -> ProcessSpec:
    """Add digests of secrets, and device and inode numbers of host paths, to a ProcessSpec.

    A later start uses these values to detect that a path was replaced. ``old`` is the ProcessSpec
    of the last activation, or None. With ``is_known``, the command names the service instead of a
    manifest, and the values in ``old`` are used again. Raises InvalidInput.
    """
    if old is not None and is_known:
        known = {volume.name: volume for volume in old.volumes if volume.identity is not None}
        spec = spec._replace(
            rootfs_identity=old.rootfs_identity,
            volumes=tuple(known.get(volume.name, volume) for volume in spec.volumes),
            secrets=old.secrets,
        )
    elif old is not None:
        salts = {secret.name: secret.salt for secret in old.secrets}
        spec = spec._replace(
            secrets=tuple(one._replace(salt=salts.get(one.name, "")) for one in spec.secrets)
        )
    try:
        return sources.recorded(spec)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}; it was there a moment ago"
        raise InvalidInput(reason, "activate again when nothing changes it") from error


def _spec(
    store: Store,
    wanted: ServiceSpec,
    files: PackageFiles,
    copy: str,
    generation: int,
    uid: int,
    provider: str | None,
) -> ProcessSpec:
    """Return the process that a manifest describes. ``copy`` is the path of the package copy."""
    program = wanted.program
    netns, hosts_folder, hostname = scope.home(store, wanted.name, wanted, provider)
    uid, gid, groups, user_name, home = resolve_user(
        files.rootfs, program.user, uid, wanted.front or wanted.name
    )
    package = copy if os.path.isdir(copy) else files.folder
    entrypoint = resolve_entrypoint(
        package, files.rootfs, program.entrypoint, path_env(program.environment)
    )
    resolver, _ = host_facts.resolv_conf(wanted.network.dns, wanted.network.dns_search)
    return ProcessSpec(
        service=wanted.name,
        state_id=store.state_id(),
        generation=generation,
        package=copy,
        rootfs=files.rootfs,
        argv=(entrypoint, *program.args),
        working_dir=program.working_dir,
        environment=program.environment,
        uid=uid,
        gid=gid,
        groups=groups,
        user_name=user_name,
        home=home,
        capabilities=program.capabilities,
        read_only=program.read_only,
        hostname=hostname,
        hosts_folder=hosts_folder,
        resolv_conf=resolver if netns else "",
        netns=netns,
        restart=program.restart,
        restart_delay_s=program.restart_delay_s,
        stop_timeout_s=program.stop_timeout_s,
        memory_max=program.memory_max,
        cpu_max=program.cpu_max,
        pids_limit=program.pids_limit,
        shm_size=program.shm_size,
        tmp_size=program.tmp_size,
        volumes=files.volumes,
        restrict_suid_sgid=program.restrict_suid_sgid,
        dns=wanted.network.dns,
        dns_search=wanted.network.dns_search,
        secrets=tuple(Secret(name, path) for name, path in program.secrets.items()),
        stop_signal=program.stop_signal,
        rlimits=program.rlimits,
        devices=program.devices,
    )


RestartingInstead = event_class(
    "RestartingInstead", lambda service, error: f"{error.message}; restarting {service}"
)
"""Event: a service restarts, because an error prevented a change without a restart."""


def can_swap(processes: Processes, old: ProcessSpec | None, new: ProcessSpec) -> bool:
    """Return whether a process needs only another hosts file to match its new ProcessSpec."""
    if old is None or not (old.hosts_folder and new.hosts_folder) or old == new:
        return False
    same = old._replace(hosts_folder=new.hosts_folder) == new
    return same and processes.status(old.service).state == "running"


def swap_or_restart(machine: Machine, row: ServiceRow) -> None:
    """Replace the hosts file of a running service, or restart the service if this is impossible.

    Raises ProcessError.
    """
    processes, spec = machine.processes, row.require_process()
    try:
        processes.swap_hosts(spec)
    except ProcessError as error:
        machine.report(RestartingInstead(spec.service, error))
        processes.stop(spec.service, spec.stop_timeout_s)
        processes.start(spec)
