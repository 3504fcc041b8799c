"""After a change of services, warn about likely problems and hand over to systemd."""

from __future__ import annotations

import os

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.api.session import Session
    from niso.commands.activate import Outcome
    from niso.plan.process_spec import ProcessSpec, Volume
    from niso.plan.records import Port
    from niso.services.attachments import Done
    from niso.services.machine import Machine
    from niso.store.service_rows import ServiceRow
    from niso.store.store import Store


def activated(session: Session, machine: Machine, outcomes: list[Outcome]) -> None:
    """Warn about likely problems of activated services, and hand them over to systemd."""
    store = machine.store
    changed = [outcome.service for outcome in outcomes if outcome.changed]
    _warn_of_rights(session, store, changed)
    _warn_of_taken(session, store, [outcome.service for outcome in outcomes])
    warn_of_limits(session, store, changed)
    warn_of_name_servers(session, changed)
    _warn_of_policies(session, machine, [outcome.service for outcome in outcomes])
    _warn_of_names(session, store, changed)
    _warn_of_host(session, machine, changed)
    settle(session, machine, [outcome.service for outcome in outcomes])


def attached(session: Session, machine: Machine, outcomes: list[Done]) -> None:
    """Warn about likely problems of attachments: those of services that concern the network."""
    names = [done.service for done in outcomes]
    _warn_of_taken(session, machine.store, names)
    _warn_of_policies(session, machine, names)
    _warn_of_host(session, machine, [done.service for done in outcomes if done.changed])


def _warn_of_host(session: Session, machine: Machine, services: list[str]) -> None:
    """Warn if something on the host drops the packets of services."""
    store = machine.store
    on = {network for service in services for network, _ in store.addresses(service)}
    networks = [network for name in sorted(on) if (network := store.network(name))]
    if networks:
        from niso.explain import exposure
        from niso.kernel import netns_folder

        if netns_folder.is_hidden():
            session.caution(
                "niso runs in a mount namespace of its own: outside it, the network namespaces in"
                " /run/netns have no names",
                ("run it without PrivateTmp=, ProtectSystem= and the like",),
            )
        for drop in exposure.drops(machine.kernel, networks):
            session.caution(drop.describe(), drop.remedy)
        from niso.reconcile import forwarding

        for problem, remedy in exposure.others_dropped(forwarding.others(machine.kernel, store)):
            session.caution(problem, [remedy])


def prepare() -> None:
    """Import what `activated` needs (3 ms) while a process is being created."""
    from niso.explain import exposure  # noqa: F401
    from niso.kernel import foreign_chains  # noqa: F401


def settle(session: Session, machine: Machine, names: list[str]) -> None:
    """Let systemd supervise started services, if it is the init.

    If systemd requested the start, errors are raised; otherwise they become warnings.
    """
    from niso.runtime import unit

    by_systemd = any(unit.path(name) is not None for name in names)
    if not by_systemd and not (
        unit.booted()
        and any((row := machine.store.service(name)) and row.enabled for name in names)
    ):
        return
    from niso.commands import boot

    try:
        boot.settle(machine, names)
    except Error as error:
        if by_systemd:
            raise
        session.caution(error.message, [error.hint] if error.hint else [])


def has_ended_by_itself(names: list[str]) -> bool:
    """Return whether systemd stops a unit because its process exited: the service stays active."""
    from niso.runtime import unit

    return unit.has_ended() and any(unit.path(name) is not None for name in names)


def deactivate(
    session: Session, machine: Machine, names: list[str], dry_run: bool
) -> list[tuple[str, bool]]:
    """Stop services; return pairs (service, whether it was active).

    The forwards of services stopped by systemd are kept for their next start.
    """
    from niso.commands import deactivate as command
    from niso.runtime import unit

    by_systemd = any(unit.path(name) is not None for name in names)
    if by_systemd:  # systemd cannot be refused, so stop the sharers that it does not know too
        names = [
            *names,
            *(row.name for row in machine.store.services() if row.active and row.provider in names),
        ]
    return command.deactivate(machine, names, session.report, dry_run, keep_forwards=by_systemd)


def _warn_of_policies(session: Session, machine: Machine, names: list[str]) -> None:
    """Warn about policies that are in audit, or that are likely mistakes."""
    if set(names) & set(machine.store.policied()):
        from niso.services import policy_warnings

        for line, hint in policy_warnings.warnings(machine.kernel, machine.store, names):
            session.caution(line, (hint,))


def _warn_of_names(session: Session, store: Store, names: list[str]) -> None:
    """Warn about services whose outside names no timer resolves again."""
    if not store.names_outside():
        return
    from niso.api import outside_views
    from niso.runtime import unit

    for name in names:
        row = store.service(name)
        for outside in store.outside.of(name):
            outside_views.warn_of_families(session, store.outside.answer(outside), [name])
        if store.names_outside(name) and not (row and row.enabled and unit.booted()):
            session.caution(
                f"{name}: nothing resolves the outside names of its policy again",
                (
                    f"niso enable {name}"
                    if unit.booted()
                    else "call niso net refresh every minute, or run niso net refresh --for 24h",
                ),
            )


def warn_of_name_servers(session: Session, names: list[str]) -> None:
    """Warn if the host's resolv.conf has no name server that services can reach."""
    from niso.kernel import host_facts

    store = session.store()
    rows = [store.service(name) for name in names]
    own = [spec.dns for row in rows if row is not None and (spec := row.process) is not None]
    warning = host_facts.resolv_conf()[1] if own and None in own else None
    if warning:
        session.caution(warning)


def warn_of_limits(session: Session, store: Store, names: list[str]) -> None:
    """Warn about resource limits that this machine cannot enforce."""
    from niso.manifest import parse_resources
    from niso.runtime import cgroup

    for name in names:
        row = store.service(name)
        limits = cgroup.limits(row.require_process()) if row is not None else {}
        # the default, which was not requested
        if limits.get("pids") == {"limit": parse_resources.PIDS}:
            del limits["pids"]
        for controller in set(limits) - set(cgroup.usable(limits)):
            session.caution(
                f"{name}: {cgroup.CONTROLLERS[controller]} has no effect:"
                f" this machine has no cgroup controller {controller}",
                (
                    "enable it in a v1 hierarchy or in cgroup.subtree_control of the v2 root,"
                    " see cgroups(7)",
                ),
            )


def _warn_of_taken(session: Session, store: Store, names: list[str]) -> None:
    """Warn about manifest ports that are forwarded to other services instead."""
    from niso.services import ports as portmap

    rows = (
        [row for name in names if (row := store.service(name)) is not None]
        if store.all_forwards()
        else []
    )
    for row in rows:
        name, ports = row.name, portmap.published_by(row)
        for port, holder, held in portmap.taken(store, name, ports, ports):
            session.caution(
                f"{name}: host port {port.host_side} is not published: it is forwarded to"
                f" {_whose(name, holder, held)}",
                (f"it is published again once the forward {held.text} of {holder} is withdrawn",),
            )


def _whose(name: str, holder: str, held: Port) -> str:
    return f"its port {held.container_port}" if holder == name else repr(holder)


def _warn_of_rights(session: Session, store: Store, names: list[str]) -> None:
    """Warn about capabilities that affect the whole machine, and about root in host volumes."""
    from niso.runtime import sources, volumes

    for name in names:
        row = store.service(name)
        if row is None:
            continue
        process = row.require_process()
        if process.capabilities:
            _warn_of_capabilities(session, store, row, process)
        shared = [volume for volume in process.volumes if sources.is_shared(volume)]
        for volume in shared:
            _warn_of_others(session, name, volume)
        shared = [volume for volume in shared if not volume.read_only]
        for volume in volumes.unwritable(process):
            session.caution(
                f"{name}: volumes.{volume.name}.host: the service's user (uid {process.uid})"
                f' cannot write to {volume.source}, and mode is "rw"',
                ('let that uid write to it, set service.user to its owner, or mode = "ro"',),
            )
        if process.uid == 0:
            root, instead = "is root (uid 0)", "set service.user to the owner of that path"
        else:
            root, instead = "can become root (SETUID)", "leave out SETUID"
        for volume in shared if process.uid == 0 or "SETUID" in process.capabilities else ():
            session.caution(
                f"{name}: volumes.{volume.name}.host: the service {root}, also in"
                f" {volume.source} on the host",
                (f'{instead}, or mode = "ro"',),
            )
        where = ", ".join(str(volume.source) for volume in shared)
        if shared and not process.restrict_suid_sgid:
            session.caution(
                f"{name}: isolation.restrict_suid_sgid is false: the service can leave setuid"
                f" programs in {where}"
            )
        if shared and "SETFCAP" in process.capabilities:
            session.caution(
                f"{name}: isolation.capabilities: with SETFCAP the service can leave programs in"
                f" {where} that have any capability on the host"
            )


def _warn_of_capabilities(
    session: Session, store: Store, row: ServiceRow, process: ProcessSpec
) -> None:
    from niso.runtime import oci

    holder = store.service(row.provider) if row.provider else row
    more = {"host": oci.HOST_NETWORK, "bridge": oci.LINKED}
    means = oci.THE_MACHINE | more.get(holder.mode if holder else "", {})
    for capability in process.capabilities:
        if capability in means:
            session.caution(
                f"{row.name}: isolation.capabilities: {capability} affects the whole machine:"
                f" {means[capability]}"
            )


def _warn_of_others(session: Session, name: str, volume: Volume) -> None:
    """Warn if users other than root and the owner of a host volume can replace it."""
    from niso.runtime import sources

    path = str(volume.source)
    try:
        folder = sources.changeable(path, {0, os.stat(path).st_uid})
    except OSError:
        return
    if folder is not None:
        session.caution(
            f"{name}: volumes.{volume.name}.host: users other than root and the owner of {path} can"
            f" replace it, because they can write to {folder}",
            ("let only root or its owner own the folders above it and write to them",),
        )
