"""Warn about likely mistakes after a change; preview which flows a change would cut.

A command prints these warnings before it lets systemd supervise its services (`niso.change.boot`).
"""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import lazy
from niso.change import activate, targets
from niso.change.activate import Outcome
from niso.kernel import host_facts, netns
from niso.look import host_ports, surroundings
from niso.look.session import Session
from niso.manifest import load, process_keys
from niso.plan.specs import UNLIMITED, MountedVolume, ProcessSpec
from niso.reconcile import host_settings
from niso.runtime import cgroups, sources, units, volumes
from niso.runtime.machine import Machine
from niso.store.service_rows import ServiceRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from niso.change import boot
    from niso.change.attach import Attachment
    from niso.look.policies import PolicyEffect
    from niso.plan.verdict import PolicyContext
    from niso.runtime import launch
else:
    boot, launch = lazy("niso.change.boot"), lazy("niso.runtime.launch")


def activated(machine: Machine, outcomes: Sequence[Outcome]) -> None:
    """Warn about likely problems of activated services, and let systemd supervise the services."""
    store, names = machine.store, [outcome.service for outcome in outcomes]
    changed = [outcome.service for outcome in outcomes if outcome.changed]
    running = store.instances.runners(changed)
    _warn_of_rights(machine, running)
    _warn_of_taken(machine, names)
    warn_of_limits(machine, running)
    warn_of_name_servers(machine, running)
    _warn_of_files(machine, names)
    _warn_of_policies(machine, names)
    _warn_of_names(machine, changed)
    _warn_of_schedules(machine, changed)
    _warn_of_host(machine, changed)
    _warn_of_flush(machine, changed)
    hand_over_started(machine, names)


def hand_over_started(machine: Machine, names: list[str]) -> None:
    """Let systemd supervise services that a command has started.

    Errors are raised if systemd requested the start. Otherwise they are reported as warnings.
    """
    by_systemd = any(units.path(name) is not None for name in names)
    if not by_systemd and not (
        units.booted()
        and any((row := machine.store.service(name)) and row.enabled for name in names)
    ):
        return

    try:
        boot.hand_over(machine, names)
    except Error as error:
        if by_systemd:
            raise
        machine.caution(error.message, [error.hint] if error.hint else [])


def attached(machine: Machine, outcomes: Sequence[Attachment]) -> None:
    """Warn about likely network problems of attachments."""
    names = [done.service for done in outcomes]
    _warn_of_taken(machine, names)
    _warn_of_policies(machine, names)
    _warn_of_host(machine, [done.service for done in outcomes if done.changed])


def _warn_of_host(machine: Machine, services: list[str]) -> None:
    store = machine.store
    on = {network for service in services for network, _ in store.addresses(service)}
    networks = [network for name in sorted(on) if (network := store.network(name))]
    if networks:
        if netns.is_hidden():
            machine.caution(
                "niso runs in a mount namespace of its own: outside it, the network namespaces in"
                " /run/netns have no names",
                ("run it without PrivateTmp=, ProtectSystem= and the like",),
            )
        from niso.look import other_firewalls  # an unchanged service does not need it

        for drop in other_firewalls.network_drops(machine.kernel, networks):
            machine.caution(drop.describe(), drop.remedy)
        for text, hint in surroundings.small_mtus(machine.kernel, networks):
            machine.caution(text, (hint,))
        for problem, remedy in other_firewalls.others_dropped(
            host_settings.others(machine.kernel, store)
        ):
            machine.caution(problem, [remedy])


_ENABLED = "/etc/systemd/system/sysinit.target.wants/nftables.service"
"""The link by which nftables.service is enabled (its ``WantedBy=`` in Debian)."""


def _warn_of_flush(machine: Machine, services: list[str]) -> None:
    units = machine.processes.units
    if not (services and units.booted()) or units.read(_ENABLED) is None:
        return
    from niso.change.boot import GUARD, UNGUARDED, is_guarded

    if not is_guarded(machine) and any(map(machine.store.addresses, services)):
        machine.caution(UNGUARDED, (GUARD,))


def _warn_of_policies(machine: Machine, names: list[str]) -> None:
    if set(names) & set(machine.store.policied()):
        from niso.look import policies

        for line, hint in policies.warnings(machine.kernel, machine.store, names):
            machine.caution(line, (hint,))


def _warn_of_names(machine: Machine, names: list[str]) -> None:
    store = machine.store
    if not store.names_outside():
        return
    from niso.look import services

    for name in names:
        row = store.service(name)
        for outside in store.outside.of(name):
            for text, hint in services.family_warnings(
                store, store.outside.answer(outside), [name]
            ):
                machine.caution(text, (hint,))
        if store.names_outside(name) and not (row and row.enabled and units.booted()):
            hint = "call niso net refresh every minute, or run niso net refresh --for 24h"
            hint = f"niso enable {name}" if units.booted() else hint
            text = f"{name}: nothing resolves the outside names of its policy again"
            machine.caution(text, (hint,))


def _warn_of_schedules(machine: Machine, names: list[str]) -> None:
    waiting = [
        name for name, enabled in machine.store.scheduled().items() if name in names and not enabled
    ]
    for name in waiting:
        row = machine.store.service(name)
        hint = f"niso enable {name}"
        if row is not None and row.schedule is not None and not units.booted():
            hint = f"add to root's crontab: {boot.cron_line(name, row.schedule)}"
        machine.caution(f"{name}: nothing runs it on its schedule", (hint,))


def _warn_of_files(machine: Machine, names: list[str]) -> None:
    running = [one for name in names for one in machine.store.instances.running(name)]
    for text, hint in surroundings.replaced_files(machine.store, running):
        machine.caution(text, (hint,))


def warn_of_name_servers(machine: Machine, names: list[str]) -> None:
    """Warn about services whose name servers do not answer, or cannot be reached by services.

    The name servers are from the host's resolv.conf or from manifests. Each name server is tested
    once per boot.
    """
    store = machine.store
    rows = [store.service(name) for name in names]
    own = [spec.dns for row in rows if row is not None and (spec := row.process) is not None]
    warning = host_facts.resolv_conf()[1] if own and None in own else None
    if warning:
        machine.caution(warning)
    for text, hint in surroundings.mute_name_servers(machine.kernel, store, names, once=True):
        machine.caution(text, (hint,))


def warn_of_limits(machine: Machine, names: list[str]) -> None:
    """Warn about resource limits of services that this machine cannot enforce."""
    for name in names:
        row = machine.store.service(name)
        for limit, (_, hard) in row.require_process().rlimits.items() if row is not None else ():
            most = launch.limits_max().get(limit, UNLIMITED)
            if hard > most:
                machine.caution(
                    f"{name}: limits.{limit} is {most}: this machine allows no more",
                    ("see fs.nr_open, and the limits of the shell (ulimit -H)",),
                )
        limits = cgroups.limits(row.require_process()) if row is not None else {}
        if paths.in_lab() and not cgroups.roots():  # niso lab has said so
            continue
        # the default, which was not requested
        if limits.get("pids") == {"limit": process_keys.PIDS}:
            del limits["pids"]
        for controller in set(limits) - set(cgroups.usable(limits)):
            text = f"{name}: {cgroups.CONTROLLERS[controller]} has no effect"
            hint = "enable it in a v1 hierarchy or in cgroup.subtree_control of the v2 root"
            machine.caution(
                f"{text}: this machine has no cgroup controller {controller}",
                (f"{hint}, see cgroups(7)",),
            )


def _warn_of_taken(machine: Machine, names: list[str]) -> None:
    for name in names if machine.store.all_forwards() else ():
        row = machine.store.service(name)
        ports = host_ports.published_by(row) if row is not None else ()
        for port, holder, held in host_ports.taken(machine.store, name, ports, ports):
            to = f"its port {held.container_port}" if holder == name else repr(holder)
            machine.caution(
                f"{name}: host port {port.host_side} is not published: it is forwarded to {to}",
                (f"it is published again once the forward {held.text} of {holder} is withdrawn",),
            )


def _warn_of_rights(machine: Machine, names: list[str]) -> None:
    """Warn about capabilities that affect the entire machine, and about root in host folders."""
    for name in names:
        row = machine.store.service(name)
        if row is None:
            continue
        process = row.require_process()
        if process.capabilities:
            _warn_of_capabilities(machine, row, process)
        _warn_of_devices(machine, process)
        shared = [volume for volume in process.volumes if sources.is_shared(volume)]
        for volume in shared:
            _warn_of_others(machine, name, volume)
        shared = [volume for volume in shared if not volume.read_only]
        for volume in volumes.unwritable(process):
            machine.caution(
                f"{name}: volumes.{volume.name}.host: the service's user (uid {process.uid})"
                f' cannot write to {volume.source}, and mode is "rw"',
                ('let that uid write to it, set service.user to its owner, or mode = "ro"',),
            )
        root, instead = "is root (uid 0)", "set service.user to the owner of that path"
        if process.uid != 0:
            root, instead = "can become root (SETUID)", "leave out SETUID"
        for volume in shared if process.uid == 0 or "SETUID" in process.capabilities else ():
            text = f"{name}: volumes.{volume.name}.host: the service {root}"
            hint = f'{instead}, or mode = "ro"'
            machine.caution(f"{text}, also in {volume.source} on the host", (hint,))
        where = ", ".join(str(volume.source) for volume in shared)
        if shared and not process.restrict_suid_sgid:
            machine.caution(
                f"{name}: isolation.restrict_suid_sgid is false: the service can leave setuid"
                f" programs in {where}"
            )
        if shared and "SETFCAP" in process.capabilities:
            machine.caution(
                f"{name}: isolation.capabilities: with SETFCAP the service can leave programs in"
                f" {where} that have any capability on the host"
            )


def _warn_of_capabilities(machine: Machine, row: ServiceRow, process: ProcessSpec) -> None:
    holder = machine.store.service(row.provider) if row.provider else row
    from niso.runtime import oci

    more = {"host": oci.HOST_NETWORK, "bridge": oci.LINKED}
    means = oci.THE_MACHINE | more.get(holder.mode if holder else "", {})
    for capability in process.capabilities:
        if capability in means:
            text = f"{row.name}: isolation.capabilities: {capability} affects the whole machine"
            machine.caution(f"{text}: {means[capability]}")


_MEMORY = ((1, 1), (1, 2), (1, 4))
"""Numbers of /dev/mem, /dev/kmem and /dev/port (Linux' devices.txt)."""


def _warn_of_devices(machine: Machine, process: ProcessSpec) -> None:
    """Warn about devices with which a service can read or change the entire machine."""
    for device in process.devices:
        try:
            found = sources.find_device(device).values()
        except OSError:  # removed since the start
            continue
        effect = ""
        if any(one["type"] == "b" for one in found):
            effect = "every file on the block device, past all permissions"
        elif any((one["major"], one["minor"]) in _MEMORY for one in found):
            effect = "the machine's memory"
        if effect:
            verb = {"r": "read", "w": "change"}.get(device.access, "read and change")
            text = f"{process.service}: isolation.devices: {device.host} affects the whole machine"
            machine.caution(f"{text}: the service can {verb} {effect}")


def _warn_of_others(machine: Machine, name: str, volume: MountedVolume) -> None:
    path = str(volume.source)
    try:
        folder = sources.changeable(path, {0, os.stat(path).st_uid})
    except OSError:
        return
    if folder is not None:
        machine.caution(
            f"{name}: volumes.{volume.name}.host: users other than root and the owner of {path} can"
            f" replace it, because they can write to {folder}",
            ("let only root or its owner own the folders above it and write to them",),
        )


# --- flows that a change would cut ----------------------------------------------------------------


def effects(session: Session, what: Sequence[str], since: float | None) -> tuple[PolicyEffect, ...]:
    """Return which recorded flows an activation of services or of a stack would cut or allow.

    ``what`` are the arguments of `niso activate`, or the path of a stack. Only flows that began
    after the Unix time ``since`` or are open now are considered. See `Host.policy_effects`.
    """
    from niso.change import stacks
    from niso.look import stack_members
    from niso.manifest.stack import FILE_NAME

    machine = session.machine()
    stack = what[0] if len(what) == 1 else ""
    if os.path.basename(stack) == FILE_NAME or (
        os.path.isfile(os.path.join(stack, FILE_NAME))
        and not os.path.exists(os.path.join(stack, load.FILE_NAME))
    ):
        loaded = stack_members.load(stack)
        names = frozenset(stack_members.outlined(machine.store, stack).after)
        worlds = stacks.foreseen(machine, loaded, replace=True)
    else:
        wanted = targets.find_targets(machine.store, what, True, None)
        names = frozenset(target.name for target in wanted)
        worlds = activate.foreseen(machine, wanted)
    return _of_change(session, *worlds, names, since)


def _of_change(
    session: Session,
    before: PolicyContext,
    after: PolicyContext,
    names: frozenset[str],
    since: float | None,
) -> tuple[PolicyEffect, ...]:
    from niso.look import flows, policies

    changed = {name for name, known in after.services.items() if before.services.get(name) != known}
    memory = flows.remembered(session.kernel(), before)
    recent = flows.lately(flows.joined(before, memory), since)
    return tuple(policies.effects(before, after, recent, names | changed))
