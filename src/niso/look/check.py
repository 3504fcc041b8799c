"""Compare the desired state of a host with its actual state, for `niso net check`.

Differences can be in the kernel, in the rows of the store, in processes and in package copies. An
attachment without its namespace is a difference too. `niso.change.repair` repairs all of these.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container, Iterable, Iterator

from niso.base.errors import Error, KernelError, NotFound
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import alias, owner
from niso.kernel import netns
from niso.kernel.kinds import nft
from niso.kernel.kinds.kind import Finding, State
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.neighbour_tables import Table
from niso.look import (
    chains_on_path,
    listening,
    other_firewalls,
    store_defects,
    surroundings,
)
from niso.look.host_ports import shadows, unpublished
from niso.look.services import (
    few_instances,
    interrupted,
    name_warnings,
    unfinished,
    unwatched,
    unwatched_words,
)
from niso.plan.desired import findings
from niso.plan.records import NetworkRecord
from niso.reconcile import host_settings
from niso.reconcile.change import compare, desired_now
from niso.runtime import package, sources
from niso.runtime.machine import Machine
from niso.runtime.sources import BLIND, UNKNOWN
from niso.store.attached_rows import (
    BY_INTERFACE,
    CALLER,
    LOST,
    AttachedRow,
    process_key,
    requested_settings,
)
from niso.store.policy_rows import bare_name, suggest
from niso.store.service_rows import ServiceRow, forget_manifests
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem
    from niso.kernel.real import Kernel
    from niso.runtime.processes import Processes


_LOOKS, _PAUSE_S = 3, 0.03
"""The maximum number of comparisons, and the pause in seconds between two comparisons.

The kernel needs 10 to 20 ms to delete a veth pair. The pair can therefore still exist after the
command that deleted the pair has released niso's lock.
"""
_WAITS_S = 1.0
"""Timeout in seconds for niso's lock. Commands usually hold the lock for a few milliseconds."""

PROBLEMS: tuple[Problem, ...] = ("missing", "foreign", "different", "gone")
"""All kinds of differences."""


def check(
    machine: Machine, name: str | None = None, may_be_on: Container[str] | None = None
) -> list[Finding]:
    """Return the findings of `niso net check` about the host, a service or a network.

    Plugins of container engines pass ``name`` and ``may_be_on``, the sysctls that may be 1 although
    niso wants 0. Chains and sets, which all services share, are then not compared.

    This function changes nothing. A difference may be due to a command that is running now, so
    differences are compared again under niso's lock. Raises KernelError, NotFound if ``name`` is
    neither a service nor a network, and Conflict if another process does not release the lock.
    """
    present = _lasting(machine, name, may_be_on, locks=True)
    return [*(present or ()), *_others(machine, name)]


def problems(machine: Machine) -> dict[str, int] | None:
    """Return {kind of problem: number of problems}, without taking niso's lock.

    Only problems that several comparisons in a row find are counted: a running command may cause
    other differences. Returns None if objects disappeared during each comparison. Raises
    KernelError.
    """
    present = _lasting(machine, None, None, locks=False)
    if present is None:
        return None
    kinds = [finding.problem for finding in (*present, *_others(machine, None))]
    return {problem: kinds.count(problem) for problem in PROBLEMS}


def _lasting(
    machine: Machine, name: str | None, may_be_on: Container[str] | None, locks: bool
) -> list[Finding] | None:
    """Compare several times, and return the findings of `_own` that all comparisons have.

    With ``locks``, only the first comparison is made without niso's lock. Returns None if objects
    disappeared during each comparison. Raises KernelError for a comparison under the lock.
    """
    present: list[Finding] | None = None
    for turn in range(_LOOKS):
        if turn:
            time.sleep(_PAUSE_S)
        try:
            with Lock(_WAITS_S) if turn and locks else contextlib.nullcontext():
                again = _own(machine, name, may_be_on)
        except KernelError:  # an object vanished between two reads
            if turn and locks:
                raise
            continue
        known = {(one.problem, one.what) for one in (again if present is None else present)}
        present = [one for one in again if (one.problem, one.what) in known]
        if not present:
            break
    return present


def _others(machine: Machine, name: str | None) -> list[Finding]:
    """Return a finding for each setting of other programs that blocks packets of services. ``name``
    limits the check to one service or network.
    """
    store, kernel = machine.store, machine.kernel
    networks, active = _concerned(store, name)
    others = host_settings.others(kernel, store) if name is None and store.any_active() else []
    # only active services need interfaces that forward
    closed = other_firewalls.closed_links(kernel) if active else []
    return [
        *(
            Finding("foreign", drop.describe(), f"add: {'; '.join(drop.remedy)}")
            for drop in other_firewalls.network_drops(kernel, networks)
        ),
        *_dropped_ports(kernel, store, active),
        *(Finding("foreign", *texts) for texts in closed),
        *(Finding("foreign", *texts) for texts in other_firewalls.others_dropped(others)),
        *(
            Finding("foreign", text, f"service {service!r} publishes it")
            for service, _, _, text in shadows(kernel, store, active)
        ),
    ]


def _dropped_ports(kernel: Kernel, store: Store, active: list[str]) -> list[Finding]:
    found = {
        Finding(
            "foreign",
            f"nftables chain {other.chain} drops connections to port {port.host_side} of"
            f" {service!r} by its rule: {other.rule}",
            "remove that rule, or do not publish the port",
        ): None
        for service, port, _, other in chains_on_path.of_ports(kernel, store, active)
        if other.verdict == other_firewalls.DROPS
    }
    return list(found)


def full_neighbour_tables(before: Iterable[Table], now: Iterable[Table]) -> list[tuple[str, str]]:
    """Return (warning, next step) for each neighbour table that is full or nearly full.

    ``before`` and ``now`` are two readings of the tables. A table is full if it refused neighbours
    between the readings. The kernel's limit is for all network namespaces together, but only the
    entries of the host's own namespace can be counted.
    """
    refused = {table.family: table.refused for table in before}
    warnings = []
    for table in now:
        own, most = table.own, table.most
        more = table.refused - refused.get(table.family, table.refused)
        if more > 0:
            what = f"is full: it has refused {more} new neighbours during this check"
        elif own > most // 2:
            taken = f"{own} of its {most} places" if own < most else "all its places"
            what = f"has {taken} taken by the host alone; new neighbours cannot be reached when it"
            what += " is full"
        else:
            continue
        warnings.append(
            (
                f"the machine's IPv{table.family} neighbour table, shared by the host and all"
                f" services, {what}",
                f"raise it: sysctl -w net.ipv{table.family}.neigh.default.gc_thresh3={4 * most}",
            )
        )
    return warnings


def warnings(
    machine: Machine, name: str | None, before: Iterable[Table]
) -> Iterator[tuple[str, str]]:
    """Yield (warning, next step) about what `check` finds right, but probably is a mistake.

    ``name`` limits the check to one service or network. ``before`` are the neighbour tables before
    the check.
    """
    store, kernel = machine.store, machine.kernel
    networks, active = _concerned(store, name)
    unchanged = [service for service in active if store.intent(service) is None]
    yield from full_neighbour_tables(before, kernel.neighbour_tables())
    yield from unpublished_ports(store, unchanged)
    owners = list(dict.fromkeys(map(owner, active)))
    yield from few_instances(store, owners)
    yield from (words for service, words in unfinished(store).items() if service in owners)
    if lost := [service for service in unwatched(store) if service in owners]:
        yield unwatched_words(lost)
    yield from listening.warnings(kernel, store, unchanged)
    if name is None:  # the default route does not concern a network without services
        used = {network for service in active for network, _ in store.addresses(service)}
        networks = [network for network in networks if network.name in used]
    yield from surroundings.small_mtus(kernel, networks)
    yield from surroundings.mute_name_servers(kernel, store, active)
    yield from surroundings.replaced_files(store, active)
    if store.policied():
        from niso.look import policies

        # rows may be damaged or missing, which is a finding of its own
        with contextlib.suppress(ValueError, LookupError):
            yield from list(policies.warnings(kernel, store, active))
    yield from name_warnings(store, name)


def unpublished_ports(store: Store, services: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (warning, next step) for each manifest port that is no longer published.

    A `niso port-forward` took the host port, and has ended since. An activation publishes the
    manifest port again.
    """
    for service in services:
        for port in unpublished(store, service):
            yield (
                f"{service}: {port.text if port.host_port else f'port {port.container_port}'} of"
                " its manifest is not published: a forward that has ended took its host port",
                f"niso activate {service}",
            )


def _concerned(store: Store, name: str | None) -> tuple[list[NetworkRecord], list[str]]:
    """Return the networks and active services to check. ``name`` limits them, unless it is None."""
    if name is None:
        return store.networks(), store.active_services()
    scope, active = _scope(store, name)
    return [
        network
        for network_name in scope.networks or ()
        if (network := store.network(network_name)) is not None
    ], active


def _own(machine: Machine, name: str | None, may_be_on: Container[str] | None) -> list[Finding]:
    """Return the findings about niso's own objects. The arguments are those of `check`."""
    store, kernel = machine.store, machine.kernel
    defects = store_defects.find_defects(kernel, store)
    if any(problem != "different" for problem, _, _ in defects):
        # without these rows the wanted kernel state is unknown
        return [_finding(defect) for defect in defects]
    if name is None:
        want, have, foreign = compare(kernel, store)
        differing = findings(want, have)
        del want, have  # before the rows of all services are read
        return [
            *map(_finding, defects),
            *_interrupted(store),
            *differing,
            *(Finding("foreign", error.message) for error in foreign.values()),
            *(
                Finding("different", "names of services in /etc/hosts", detail)
                for detail in [
                    host_settings.differs(kernel, store) if store.writes_host_names() else ""
                ]
                if detail
            ),
            *_processes(machine, store.active_services()),
            *(
                Finding("foreign", f"process of service {name!r}", NOT_ACTIVE)
                for name in left_running(machine)
            ),
        ]
    scope, active = _scope(store, name)
    want = desired_now(kernel, store, scope)
    shared: Iterable[tuple[Problem, str]] = ()
    if may_be_on is None and want[nft.Ruleset]:
        shared = nft.differences() or ()  # of missing tables, the objects are found below
    if may_be_on:
        want = State(
            obj
            for obj in want
            if not (isinstance(obj, Sysctl) and obj.value == "0" and obj.name in may_be_on)
        )
    service = store.name_holder(bare_name(name))
    return [
        *_interrupted(store, service),
        *(Finding(problem, f"nftables {what}") for problem, what in shared),
        *findings(want, kernel.read(want, alias(store.state_id()), with_strays=True)),
        *_processes(machine, active),
    ]


def _scope(store: Store, name: str) -> tuple[Scope, list[str]]:
    """Return the scope to compare for a service or network, and the active services or instances
    whose processes to check. The processes of a network's services are not checked. Raises NotFound
    if ``name`` is neither.
    """
    if store.network(name) is not None and store.name_holder(bare_name(name)) is None:
        return Scope((), (name,)), []
    if name in store.instances.names(owner(name)):
        instance = store.service(name)
        assert instance is not None
        return Scope((name,), instance.networks), [name] if instance.active else []
    if store.name_holder(bare_name(name)) is None:
        known = [*(service for service, _, _ in store.service_names()), *store.network_names()]
        raise NotFound(
            f"no service or network {name!r}",
            suggest(name, known, "niso ps and niso net list have all names"),
        )
    service = store.resolve(name)
    row = store.service(service)
    assert row is not None
    every = store.instances.with_instances([service])
    active = [one for one in every if (found := store.service(one)) is not None and found.active]
    return Scope(store.with_companions(every), row.networks), active


def _finding(defect: store_defects.Defect) -> Finding:
    problem, table, service = defect
    return Finding(problem, f"store: {table}{f' of service {service!r}' if service else ''}")


def _interrupted(store: Store, only: str | None = None) -> list[Finding]:
    """Return a finding for each service, or for ``only``, if its last command was killed."""
    return [
        Finding(
            "different",
            f"service {service!r}",
            f"niso {command} was interrupted; the next command that changes anything "
            f"{'rolls it back' if command == 'activate' else 'completes it'}",
        )
        for service, command in interrupted(store).items()
        if only in (None, service)
    ]


NOT_ACTIVE = "it is not active"


def left_running(machine: Machine) -> list[str]:
    """Return the inactive services that still have a process, or files of a process."""
    store, running = machine.store, []
    for name in machine.processes.services():
        row = store.service(name)
        if (row is None or not row.active) and store.intent(name) is None:
            running.append(name)
    return running


def _processes(machine: Machine, active: list[str]) -> list[Finding]:
    store = machine.store
    defects = [
        Finding(
            "gone",
            f"attachment {name!r}{f' ({shown(attached)})' if attached else ''}",
            "its network namespace has ended"
            if attached is None or not attached.lives(machine.kernel)
            else "its network namespace has no process",
        )
        for name in with_ended_netns(machine.kernel, store, active)
        for attached in (store.attachments.get(name),)
        if store.intent(name) is None
    ]
    for name in active:
        forget_manifests()
        if store.intent(name) is not None:  # a command is changing it
            continue
        row = store.service(name)
        # it was removed in the meantime, or is an attachment
        if row is None or not row.has_process:
            continue
        # host paths that changed after the activation
        defects += [
            Finding(
                "different",
                f"{error.key} of service {row.name!r}",
                f"{error.reason}; {row.activation_command}, if it may be used",
            )
            for error in (sources.problems(row.process) if row.process is not None else ())
        ]
        found = (of_package(row), of_service(machine.processes, row))
        defects += [defect for defect in found if defect is not None]
    return defects


# --- processes and package copies -----------------------------------------------------------------


def of_service(processes: Processes, row: ServiceRow) -> Finding | None:
    """Return a finding about a service's process, or None. A job may have exited."""
    finding = processes.defect(row.name)
    if finding is not None and row.is_job and finding.defect not in (UNKNOWN, BLIND):
        return None
    return finding


def of_package(row: ServiceRow) -> Finding | None:
    """Return a finding if a service's package copy is missing, unusable or empty, else None."""
    what = f"package copy {row.package} of service {row.name!r}"
    if not os.path.isdir(row.package):
        return Finding("missing", what, row.activation_command)
    try:
        os.close(sources.open_copy(row.package))
    except Error as error:
        return Finding("different", what, f"{error.reason}; {row.activation_command}")
    if package.is_emptied(row.package):
        return Finding("different", what, f"all of its files are empty: {row.activation_command}")
    return None


_MOVING_S = 120
"""The maximum time in seconds that a container engine needs to move an interface into a
container.
"""


def is_moving(attached: AttachedRow) -> bool:
    """Return whether Docker may still move an attachment's interface into its container.

    Until then, the attachment's namespace may be missing. Docker has two minutes from the
    modification time of the symbolic link at the attachment's path. niso creates the link with the
    interface, and sets the time to 0 when the interface has arrived. If dockerd has been killed
    since, the result is true while the namespace exists and has a process.
    """
    if attached.owner != BY_INTERFACE:
        return False
    try:
        is_recent = 0 <= time.time() - os.lstat(attached.netns).st_mtime < _MOVING_S
    except OSError:
        return False
    engine = requested_settings(attached)["labels"].get(CALLER, "")
    if not is_recent or not engine or process_key(int(engine.partition(" ")[0])) == engine:
        return is_recent
    return os.path.exists(attached.netns) and not netns.emptied([attached.netns])


def with_ended_netns(kernel: Kernel, store: Store, only: Container[str] | None = None) -> list[str]:
    """Return the names of active attachments whose namespace or container no longer exists.

    If ``only`` is not None, only the attachments with these names are checked.
    """
    active = [
        attached
        for row in store.attachments.rows()
        if row.active and (only is None or row.name in only)
        for attached in [store.attachments.get(row.name) or LOST._replace(service=row.name)]
    ]
    return sorted(ended(kernel, active))


def ended(kernel: Kernel, attachments: Iterable[AttachedRow]) -> set[str]:
    """Return the names of the given attachments whose namespace or container no longer exists.

    A container of Docker counts as removed if it has no process: if dockerd was killed, the file of
    the container's namespace remains.
    """
    settled = [attached for attached in attachments if not is_moving(attached)]
    over = {attached.service for attached in settled if not attached.lives(kernel)}
    of_docker = {one.netns: one.service for one in settled if one.owner == BY_INTERFACE}
    return over | {of_docker[path] for path in netns.emptied(of_docker)}


def shown(attached: AttachedRow) -> str:
    """Return an attachment's owner and the start of its id: ``podman b186d057f65e``."""
    return f"{attached.owner} {attached.id[:12]}".strip()
