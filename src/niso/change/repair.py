"""Repair everything that `niso net check` reports, or remove all objects of niso (``niso reset``).

A sweep works without the store. The sweep finds niso's objects by the names and ids that niso gave
them in the kernel, such as the alias of a network interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain

from niso.base import names, paths, signals
from niso.base import report as events
from niso.base.errors import Conflict, Error, ErrorGroup, flatten
from niso.base.locks import Lock, locked_services, service_lock
from niso.base.named_tuples import TYPE_CHECKING, Any
from niso.base.names import alias, state_id_of
from niso.base.report import Event, Report
from niso.change import attach, health_agent, journal, process_record
from niso.change.targets import excluded
from niso.kernel import ruleset
from niso.kernel.kinds.kind import Step, diff
from niso.kernel.kinds.links import Veth
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.nft import NftTransaction
from niso.kernel.kinds.sysctls import FORWARDING, FORWARDING6
from niso.kernel.nft_elements import Element
from niso.look import check, store_defects
from niso.look.check import left_running, of_package, of_service
from niso.look.store_defects import Defect, _marked_sysctls, _restored
from niso.plan import elements
from niso.reconcile import ended_flows, host_settings, live_world
from niso.reconcile.change import compare, desired_now, repair
from niso.runtime import package
from niso.runtime.machine import Machine
from niso.runtime.package import Contents
from niso.runtime.sources import BLIND, UNKNOWN
from niso.store import service_rows
from niso.store.service_rows import ServiceRow
from niso.store.snapshots import ALL
from niso.store.sqlite import connected, sqlite3, unusable
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel
    from niso.runtime.processes import Processes


RepairingStore = events.event_class(
    "RepairingStore",
    lambda action, table, service="": (
        f"{action} {table}{f' of {service}' if service else ''} in the store"
    ),
)
StartingHealth = events.event_class("StartingHealth", lambda: "start niso health")
WritingSpec = events.event_class("WritingSpec", lambda service: f"write spec.json of {service}")


def plan_repair(machine: Machine, network_only: bool) -> None:
    """Report the steps that a repair would take, except those that recover interrupted changes.

    With ``network_only``, reports the steps of `repair_network`, otherwise those of `repair_all`.
    """
    store, kernel = machine.store, machine.kernel
    lost = _of_rows(store_defects.find_defects(kernel, store))
    for defect in lost:
        machine.report(_event_of(defect))
    if lost:
        store = store.in_memory()
        repair_defects(kernel, store, lost)
        machine = machine._replace(store=store)
    homes = _nameless(machine)
    for name, pid in homes:
        machine.report(events.Command(f"ip netns attach {names.netns(name)} {pid}"))
    back = {names.netns(name) for name, _ in homes}
    want, have, _ = compare(kernel, store)
    back |= {veth.name for veth in want[Veth] if veth.netns in back}
    for step in diff(want, have):
        touched = isinstance(step, Step) and {step.obj.key()[0], getattr(step.obj, "netns", "")}
        if not (touched and touched & back):
            machine.report(step)
    if network_only:
        return
    repairs = _of_attachments(machine)
    for name in store.active_services():
        repairs = chain(repairs, _of_service(machine, name, dry_run=True))
    for event, _ in repairs:
        machine.report(event)
    for name in left_running(machine):
        machine.report(events.Stopping(name))
    if health_agent.is_needed(machine) and not health_agent.runs():
        machine.report(StartingHealth())


def repair_all(machine: Machine) -> int:
    """Recover interrupted changes, repair all differences and start services that should run.

    Returns the number of repairs. All repairs are tried before an ErrorGroup is raised. Raises
    Error immediately if the store cannot be repaired, because the desired state is unknown.
    """
    store = machine.store
    errors: list[Error] = []
    with Lock():
        done = _repair_store(machine, errors)
    done += _recover(machine, errors)
    with Lock():
        done += _repair_kernel(machine, errors)
    done += _carry_out(machine, _of_attachments(machine), errors)
    for name in store.active_services():
        with journal.locked(store, [name]):
            # a command that failed in the meantime has left its change to recovery
            if store.intent(name) is None:
                done += _carry_out(machine, _of_service(machine, name), errors)
    done += _recover(machine, errors)
    done += _stop_left_running(machine, errors)
    if health_agent.ensure(machine):
        machine.report(StartingHealth())
        done += 1
    _raise_all(errors)
    return done


def repair_network(machine: Machine) -> int:
    """Repair the store and the kernel. Processes and interrupted changes are left unchanged.

    Services are not locked, because a service may be waiting for the systemd unit that runs this
    repair. Raises the same errors as `repair_all`.
    """
    errors: list[Error] = []
    with Lock():
        done = _repair_store(machine, errors)
        done += _repair_kernel(machine, errors)
    _raise_all(errors)
    return done


def _raise_all(errors: list[Error]) -> None:
    if errors:
        raise ErrorGroup([one for error in errors for one in flatten(error)])


@contextmanager
def _collecting(errors: list[Error]) -> Iterator[None]:
    try:
        yield
    except Error as error:
        errors.append(error)


def _repair_store(machine: Machine, errors: list[Error]) -> int:
    """Repair rows of the store. Return the number of repairs. The caller must have niso's lock."""
    store, kernel = machine.store, machine.kernel
    defects = store_defects.find_defects(kernel, store)
    lost = _of_rows(defects)
    if lost:
        with store.transaction():
            repair_defects(kernel, store, lost)
    for defect in lost:
        machine.report(_event_of(defect))
    done = len(lost)
    for damaged in (defect for defect in defects if defect[0] == "different"):
        with _collecting(errors):
            repair_row(machine.processes, store, damaged[2])
            machine.report(_event_of(damaged))
            done += 1
    return done


def _recover(machine: Machine, errors: list[Error]) -> int:
    done = 0
    with _collecting(errors):
        done = journal.recover(machine, every=True)
    return done


def _repair_kernel(machine: Machine, errors: list[Error]) -> int:
    """Repair the kernel, delete connections that rules deny, and return the number of repairs."""
    store, kernel, *_ = machine
    done, steps = 0, 0
    with _collecting(errors):
        for name, pid in _nameless(machine):
            machine.report(events.Command(f"ip netns attach {names.netns(name)} {pid}"))
            kernel.name_netns(names.netns(name), pid, alias(store.state_id()))
            done += 1
        steps = len(repair(kernel, store, machine.report))  # the steps may contain all elements
        if store.writes_host_names():
            done += host_settings.update_host_names(kernel, store, machine.report)
    if steps or errors:
        # flows that began while a rule was missing have no NAT, so their packets would be misrouted
        ended_flows.clear(kernel, desired_now(kernel, store, ALL))
        # flows that began while a policy was missing may be denied by it
        policied = [name for name in store.active_services() if store.policy(name) is not None]
        ended_flows.cut(kernel, store, policied)
    elif ended := live_world.ended(store):
        # flows that an audit let pass: when it ends, the kernel does not check open flows
        ended_flows.cut(kernel, store, ended)
    return done + steps


_Repair = tuple[Event, Callable[[], object]]


def _carry_out(machine: Machine, repairs: Iterable[_Repair], errors: list[Error]) -> int:
    """Report and make repairs. Return their number, and append their errors to ``errors``."""
    done = 0
    for event, action in repairs:
        machine.report(event)
        with _collecting(errors):
            action()
        done += 1
    return done


def _of_attachments(machine: Machine) -> Iterator[_Repair]:
    """Yield the removal of each attachment whose namespace no longer exists."""
    for name in check.with_ended_netns(machine.kernel, machine.store):
        yield events.Forgetting(name), partial(attach.detach, machine, name)


def _of_service(machine: Machine, name: str, dry_run: bool = False) -> Iterator[_Repair]:
    """Yield the repairs of a service's package copy, spec.json and process, one after the other.
    Unless it is a dry run, the caller must have locked the service, and make each repair at once.
    """
    processes, row = machine.processes, machine.store.service(name)
    if row is None or not row.active or not row.has_process:
        return
    if of_package(row) is not None:
        yield events.CopyingPackage(row.folder), partial(_copy_again, row)
    finding = of_service(processes, row)
    if finding is not None and finding.defect == UNKNOWN:
        yield WritingSpec(name), partial(_write_spec, processes, row)
        finding = None if dry_run else of_service(processes, row)
    if finding is not None and finding.defect == BLIND:
        yield events.ShowingHosts(name), partial(process_record.swap_or_restart, machine, row)
    elif finding is not None:
        yield events.Starting(name), partial(_start_again, processes, row)


def _stop_left_running(machine: Machine, errors: list[Error]) -> int:
    done = 0
    for name in left_running(machine):
        with journal.locked(machine.store, [name]):
            if name in left_running(machine):  # unless another command has changed it
                stop = partial(machine.processes.stop, name)
                done += _carry_out(machine, [(events.Stopping(name), stop)], errors)
    return done


def _copy_again(row: ServiceRow) -> None:
    folder, contents, spec = row.folder, Contents(row.name), row.require_service()
    without = excluded(row.rootfs, spec)
    try:
        now = package.fingerprint(folder, without, contents, row.manifest_path)
    except Error:
        now = None
    if now != row.fingerprint:
        reason = f"{row.name}: its package copy {row.package} is gone or damaged"
        raise Error(
            f"{reason}, and {folder} no longer contains the same package", row.activation_command
        )
    package.copy(row.name, folder, without, row.fingerprint, contents, row.manifest_path, spec)


def _write_spec(processes: Processes, row: ServiceRow) -> None:
    try:
        processes.save(row.require_process())
    except OSError as error:
        raise Error(f"cannot write spec.json: {error.strerror}", service=row.name) from error


def _start_again(processes: Processes, row: ServiceRow) -> None:
    spec = row.require_process()
    processes.stop(row.name, spec.stop_timeout_s)
    processes.start(spec)


def _of_rows(defects: list[store_defects.Defect]) -> list[store_defects.Defect]:
    return [defect for defect in defects if defect[0] != "different"]


def _event_of(defect: store_defects.Defect) -> Event:
    problem, table, service = defect
    action = "delete" if problem == "foreign" else "write"
    event: Event = RepairingStore(action, table, service)
    return event


def _nameless(machine: Machine) -> list[tuple[str, int]]:
    store, kernel, processes, *_ = machine
    mark = alias(store.state_id())
    nameless = []
    for name in store.active_services():
        spec, pid = processes.spec(name), processes.status(name).pid
        if spec is None or pid is None or spec.netns != paths.netns_path(name):
            continue
        if not kernel.has_netns(names.netns(name)) and kernel.alias_at(pid) == mark:
            nameless.append((name, pid))
    return nameless


# --- sweep: remove what is in the kernel ----------------------------------------------------------

EndingLost = events.event_class(
    "EndingLost", lambda cgroup: f"kill the processes in the cgroup {cgroup}"
)
_TRIES = 50


def sweep(
    kernel: Kernel, processes: Processes, report: Report, dry_run: bool
) -> tuple[int, Error | None]:
    """Remove everything that niso created in the kernel, for all state folders.

    Processes are stopped first, and niso's nftables tables removed last. Returns the number of
    removed objects, and an error if the removal could not be recorded in the store. All removals
    are tried before an ErrorGroup is raised.
    """
    errors: list[Error] = []
    gone = 0
    untold: Error | None = None
    with Lock() if dry_run else _alone():
        marked = kernel.marked_links()
        lost = processes.orphans(state_id_of(mark) for mark in marked.values())
        for service, state_id, stranger in lost:
            if stranger is not None:  # a sweep would remove its network
                raise Conflict(
                    f"service {service!r} of the niso state folder with id {state_id} "
                    f"runs (pid {stranger}), under another run folder",
                    "set NISO_STATE_DIR and NISO_RUN_DIR to theirs, or end its processes first",
                )
        removals = (
            *_running(processes, [(name, paths.cgroup(mark, name)) for name, mark, _ in lost]),
            *_marked(kernel, marked),
        )
        for event, remove, is_guard in (*removals, *_all_rules(kernel, marked)):
            if errors and is_guard:  # the objects that the table protects may still exist
                continue
            report(event)
            gone += 1
            if dry_run:
                continue
            try:
                signals.hit(event.describe())
                remove()
            except OSError as error:
                errors.append(Error(f"{event.describe()}: {error.strerror}"))
            except Error as error:
                errors.append(error)
        if not dry_run:
            kernel.clear_hosts()
        if not dry_run and not errors:
            try:
                _forget_active(kernel, Store.open(create=False))
            except Error as error:  # an unusable store is the very case that a sweep is for
                untold = error
    if errors:
        raise ErrorGroup(errors)
    return gone, untold


@contextmanager
def _alone() -> Iterator[None]:
    """Run a ``with`` block with all locks. Raises Conflict if other commands keep adding locks."""
    for _ in range(_TRIES):
        known = locked_services()
        with ExitStack() as locks:
            for name in sorted(known):
                locks.enter_context(service_lock(name))
            locks.enter_context(Lock())
            # retry if a lock was added: locks taken in order cannot cause a deadlock
            if locked_services() <= known:
                yield
                return
    reason = "other niso commands keep starting and locking services"
    raise Conflict(reason, "try again when they have finished")


_Removal = tuple[Event, Callable[[], object], bool]
"""(event, function that removes the object, whether it is a table that protects objects)."""


def _running(processes: Processes, lost: list[tuple[str, str]]) -> Iterator[_Removal]:
    for name in processes.services():
        yield events.Stopping(name), partial(processes.stop, name, 0), False
    for service, cgroup in lost:
        yield EndingLost(cgroup), partial(processes.kill_orphan, service, cgroup), False


def _marked(kernel: Kernel, links: dict[str, str]) -> Iterator[_Removal]:
    """Yield (event, function, False) to remove niso's namespaces, interfaces and routing rules.

    An attachment's namespace stays: only its name in /run/netns is removed, even if a program has
    set niso's alias in the namespace.
    """
    attached = _attached()
    for name, mark in kernel.marked_netns().items():
        if attached and kernel.cookie_at(os.path.join(paths.NETNS_DIR, name)) in attached:
            continue
        step = Step("delete", Netns(name, mark))
        yield events.Command(step.describe()), partial(kernel.write, [step]), False
    for name in kernel.marked_names():
        unnamed = Step("delete", NetnsName(name, "", 0))
        yield events.Command(unnamed.describe()), partial(kernel.write, [unnamed]), False
    for name in links:
        yield (
            events.Command(f"ip link delete {name}"),
            partial(kernel.delete_detached, [name]),
            False,
        )
    for rule in kernel.marked_rules():
        delete = Step("delete", rule)
        yield events.Command(delete.describe()), partial(kernel.write, [delete]), False


def _attached() -> frozenset[int]:
    """Return the cookies (SO_NETNS_COOKIE) of the namespaces of active attachments.

    If the database file is missing or damaged, the result is empty. The file is read directly,
    because opening the store would record a move of the folder or a reboot.
    """
    query = (
        "SELECT cookie FROM attached a JOIN service s ON s.name=a.service"
        " WHERE a.netns!='' AND s.active=1"
    )
    return frozenset(row[0] for row in _read(query))


def _nat_before() -> dict[str, int]:
    query = "SELECT j.key, j.value FROM meta m, json_each(m.value) j WHERE m.key='nat_before'"
    return dict(_read(query))


def _read(query: str) -> list[tuple[Any, ...]]:
    try:
        if not os.path.lexists(paths.database()):
            return []
        db = connected(paths.database())
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()
    except (Error, OSError, sqlite3.DatabaseError):
        return []


def _all_rules(kernel: Kernel, going: dict[str, str]) -> Iterator[_Removal]:
    """Yield (event, function, whether it is a table that protects objects): first to restore
    sysctls, then to remove niso's nftables tables.

    Sysctls of network interfaces that are removed anyway (``going``) are left out. IPv4 forwarding
    stays on if other programs have added NAT rules or bridges since niso switched it on.
    """

    def listed(container: str) -> Iterable[Element]:
        return kernel.list_elements(ruleset.INET, container) or ()

    before = dict(map(elements.sysctl_before, listed("before")))
    if before.get(FORWARDING) == "0" or before.get(FORWARDING6) == "0":
        links = {one.fields[1] for name in ("old_index", "old_name") for one in listed(name)}
        if host_settings.is_needed(kernel, _nat_before(), links):
            before = host_settings.without_forwarding(before)
    for name, value in host_settings.to_put_back(kernel, before):
        if not going.keys() & set(name.split("/")):
            put_back = events.Command(f"sysctl -w {name}={value}")
            yield put_back, partial(kernel.set_sysctl, name, value), False
    for table in ruleset.CONTAINERS:
        if kernel.list_elements(table, "owner") is not None:
            destroy = f"destroy table {table}"
            write = partial(kernel.write, [NftTransaction((destroy,))])
            yield events.Command(f"nft {destroy}"), write, True


def _forget_active(kernel: Kernel, store: Store) -> None:
    try:
        with store.transaction():
            for name in store.active_services():
                store.set_inactive(name)
            for intent in store.intents():
                store.end_intent(intent.service)
            host_settings.note_late(kernel, store)
            host_settings.put_back(kernel, store)
    except sqlite3.DatabaseError as error:
        raise unusable(error) from error


# --- rows of the store ----------------------------------------------------------------------------


def repair_row(processes: Processes, store: Store, name: str) -> None:
    """Restore the ProcessSpec in a service's row from the spec.json of its running process.

    Raises Error if there is no valid spec.json, or if the row's manifest is damaged too.
    """
    row = store.service(name)
    if row is None:
        return
    spec = processes.spec(row.name)
    if spec is None or row.service is None:
        raise row.damaged()
    with store.transaction():
        store.put_service(row._replace(spec=service_rows.encode_process(spec)))


def repair_defects(kernel: Kernel, store: Store, defects: Iterable[Defect]) -> None:
    """Restore rows that are missing in the store, in the caller's transaction."""
    wanted = [(table, service) for problem, table, service in defects if problem == "missing"]
    _restored(kernel, store, [service for _, service in wanted if service])
    if any(table == "sysctl" for table, _ in wanted):
        for sysctl, value in _marked_sysctls(kernel).items():
            store.set_sysctl_before(sysctl, value)
        host_settings.record(kernel, store, store.networks_in_use())
