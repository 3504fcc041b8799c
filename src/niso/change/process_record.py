"""Compute the stored data of a service's process: its uid and its ProcessSpec.

It also decides what a change needs: nothing, a restart, or only another hosts file for the running
process, because its networks change.
"""

from __future__ import annotations

import os

from niso.base.errors import Error, InvalidInput, ProcessError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import Report
from niso.change import sharing, targets
from niso.change.targets import Target
from niso.kernel import host_facts
from niso.plan.specs import ProcessSpec, Secret
from niso.runtime import sources, volumes
from niso.runtime.machine import Machine
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.runtime.processes import Processes


# --- uid and ProcessSpec --------------------------------------------------------------------------


def specified(
    store: Store,
    target: Target,
    copy: str,
    generation: int,
    provider: str | None,
    before: ServiceRow | None,
) -> tuple[int, ProcessSpec, ProcessSpec | None]:
    """Return (uid, the desired process, the previous process if it may be running).

    ``before`` is the service's row. Raises InvalidInput.
    """
    was_active = before is not None and before.active
    uid = before.uid if before else _free_uid(store, target.name)
    old = before.process if before is not None else None
    spec = _identified(target, _spec(store, target, copy, generation, uid, provider), old)
    old = old if was_active else None
    if before is not None and old is not None and "host" not in (before.mode, target.spec.mode):
        # changed name servers do not by themselves cause a restart
        same = spec._replace(resolv_conf=old.resolv_conf)
        spec = same if same == old else spec
    return uid, spec, old


def effect(
    machine: Machine, name: str, old: ProcessSpec | None, spec: ProcessSpec
) -> tuple[bool, bool]:
    """Return (whether the process must restart, whether replacing its hosts file is enough).

    A process that has exited and waits for its automatic restart is started immediately, and must
    keep running.
    """
    lives = machine.processes.runs(name) and machine.processes.status(name).state != "restarting"
    running = old if lives else None
    rehosts = can_swap(machine.processes, running, spec)
    return not rehosts and running != spec, rehosts


def _free_uid(store: Store, service: str) -> int:
    """Return the uid that owns the service's existing volumes, else a free uid.

    A free uid is used neither by a service nor by a volume of a removed service.
    """
    kept = volumes.owners()
    for uid in sorted(kept.pop(service, ())):
        if uid >= targets.FIRST_UID and store.free_uid(uid) == uid:
            return uid
    return store.free_uid(targets.FIRST_UID, set().union(*kept.values()))


def _identified(target: Target, spec: ProcessSpec, old: ProcessSpec | None) -> ProcessSpec:
    """Return the spec with the identities of its rootfs and host volumes.

    If a service is activated by its name, the identities of the last activation (``old``) are kept.
    Raises InvalidInput.
    """
    if old is not None and target.fingerprint is None:
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
        raise InvalidInput(
            f"{error.filename}: {error.strerror}; it was there a moment ago",
            "activate again when nothing changes it",
        ) from error


def _spec(
    store: Store, target: Target, copy: str, generation: int, uid: int, provider: str | None
) -> ProcessSpec:
    wanted = target.spec
    at_home = sharing.home(store, target.name, wanted, provider)
    uid, gid, groups, user_name, home = targets.user(target, uid)
    resolver, _ = host_facts.resolv_conf(wanted.dns, wanted.dns_search)
    return ProcessSpec(
        service=target.name,
        state_id=store.state_id(),
        generation=generation,
        package=copy,
        rootfs=target.rootfs,
        argv=(
            targets.entrypoint(target, copy if os.path.isdir(copy) else target.folder),
            *wanted.args,
        ),
        working_dir=wanted.working_dir,
        environment=wanted.environment,
        uid=uid,
        gid=gid,
        groups=groups,
        user_name=user_name,
        home=home,
        capabilities=wanted.capabilities,
        read_only=wanted.read_only,
        hostname=at_home.hostname,
        hosts_folder=at_home.hosts_folder,
        resolv_conf=resolver if at_home.netns else "",
        netns=at_home.netns,
        restart=wanted.restart,
        restart_delay_s=wanted.restart_delay_s,
        stop_timeout_s=wanted.stop_timeout_s,
        memory_max=wanted.memory_max,
        cpu_max=wanted.cpu_max,
        pids_limit=wanted.pids_limit,
        shm_size=wanted.shm_size,
        tmp_size=wanted.tmp_size,
        volumes=targets.volumes(wanted),
        restrict_suid_sgid=wanted.restrict_suid_sgid,
        dns=wanted.dns,
        dns_search=wanted.dns_search,
        secrets=tuple(Secret(name, path) for name, path in wanted.secrets.items()),
    )


# --- another hosts file instead of a restart ------------------------------------------------------


class RestartingInstead(NamedTuple):
    """Report that a service restarts because ``error`` prevented a change without a restart."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.error.message}; restarting {self.service}"


def can_swap(processes: Processes, old: ProcessSpec | None, new: ProcessSpec) -> bool:
    """Return whether ``old`` is running and differs from ``new`` only in its hosts folder."""
    if (
        old is None
        or not (old.hosts_folder and new.hosts_folder)
        or old.hosts_folder == new.hosts_folder
    ):
        return False
    return (
        old._replace(hosts_folder=new.hosts_folder) == new
        and processes.status(old.service).state == "running"
    )


def swap_or_restart(processes: Processes, spec: ProcessSpec, report: Report) -> None:
    """Mount the hosts file of ``spec.hosts_folder`` in a running service; restart it on failure.

    Raises ProcessError.
    """
    try:
        processes.swap_hosts(spec)
    except ProcessError as error:
        report(RestartingInstead(spec.service, error))
        processes.stop(spec.service, spec.stop_timeout_s)
        processes.start(spec)
