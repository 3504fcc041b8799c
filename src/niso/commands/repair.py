"""Repair everything that `niso net check` reports."""

from __future__ import annotations

from niso.base import names, paths
from niso.base.errors import Error, ErrorGroup, flatten
from niso.base.lite_typing import TYPE_CHECKING, Literal, NamedTuple
from niso.base.locks import Lock
from niso.base.names import alias
from niso.base.report import Event, Report, silent
from niso.base.service_events import (
    Command,
    CopyingPackage,
    Forgetting,
    ShowingHosts,
    Starting,
    Stopping,
)
from niso.commands import store_repair
from niso.commands.check import left_running
from niso.kernel.kinds.kind import Step
from niso.kernel.kinds.veth import Veth
from niso.plan.findings import Finding
from niso.reconcile import nat_flows, policy_flows
from niso.reconcile.converge import compare, desired_now, repair
from niso.runtime import package
from niso.runtime.contents import Contents
from niso.runtime.defects import BLIND, UNKNOWN, of_package, of_service
from niso.services import attachments, auditing, journal, rehost
from niso.services.machine import Machine
from niso.store.store import ALL, ServiceRow

if TYPE_CHECKING:
    from niso.runtime.processes import Processes


class RepairingStore(NamedTuple):
    """Reported when rows of the store are rewritten or deleted."""

    action: Literal["write", "delete"]
    table: str
    service: str = ""

    def describe(self) -> str:
        whose = f" of {self.service}" if self.service else ""
        return f"{self.action} {self.table}{whose} in the store"


class WritingSpec(NamedTuple):
    """Reported when the spec.json of a running service is rewritten."""

    service: str

    def describe(self) -> str:
        return f"write spec.json of {self.service}"


def plan_repair(machine: Machine, report: Report, network_only: bool = False) -> None:
    """Report the steps of `repair_all`, except recovery of interrupted changes. Changes nothing.

    With ``network_only`` those of `repair_network`.
    """
    store, kernel, processes, _ = machine
    lost = _of_rows(store_repair.find_defects(kernel, store))
    for defect in lost:
        report(_event_of(defect))
    if lost:
        copy = store.in_memory()
        store_repair.repair_defects(kernel, copy, lost)
        store = copy
        machine = machine._replace(store=copy)
    homes = _nameless(machine)
    for name, pid in homes:
        report(Command(f"ip netns attach {names.netns(name)} {pid}"))
    back = {names.netns(name) for name, _ in homes}
    steps, want, _, _ = compare(kernel, store)
    back |= {veth.name for veth in want[Veth] if veth.netns in back}
    for step in steps:
        if not (
            isinstance(step, Step)
            and ({step.thing.key()[0], getattr(step.thing, "netns", "")} & back)
        ):
            report(step)
    if network_only:
        return
    for name in attachments.gone(kernel, store):
        report(Forgetting(name))
    for name in store.active_services():
        row = store.service(name)
        if row is not None and not row.has_process:
            continue
        if row is not None and of_package(row) is not None:
            report(CopyingPackage(row.folder))
        finding = of_service(processes, row) if row is not None else None
        if finding is not None:
            report(_mending(name, finding))
    for name in left_running(machine):
        report(Stopping(name))


def repair_all(machine: Machine, report: Report = silent) -> int:
    """Recover interrupted changes, repair everything and start what should be running.

    Returns the number of repairs. Raises an ErrorGroup of all failed repairs after trying the rest,
    and Error if the store cannot be repaired, because then the wanted state is unknown.
    """
    store = machine.store
    errors: list[Error] = []
    with Lock():
        done = _repair_store(machine, report, errors)
    done += _recover(machine, report, errors)
    with Lock():
        done += _repair_kernel(machine, report, errors)
    done += _forget_gone(machine, report, errors)
    for name in store.active_services():
        with journal.locked(store, [name]):
            # a command that failed in the meantime has left its change to recovery
            if store.intent(name) is None:
                done += _repair_process(machine, name, report, errors)
    done += _recover(machine, report, errors)
    done += _stop_left_running(machine, report, errors)
    _raise_all(errors)
    return done


def repair_network(machine: Machine, report: Report = silent) -> int:
    """Repair the store and the kernel; leave processes and interrupted changes alone.

    This only takes niso's own lock, so it can run in a systemd unit that services wait for. Returns
    the number of repairs. Raises the errors of `repair_all`.
    """
    errors: list[Error] = []
    with Lock():
        done = _repair_store(machine, report, errors)
        done += _repair_kernel(machine, report, errors)
    _raise_all(errors)
    return done


def _raise_all(errors: list[Error]) -> None:
    if errors:
        raise ErrorGroup([one for error in errors for one in flatten(error)])


def _repair_store(machine: Machine, report: Report, errors: list[Error]) -> int:
    """Repair the store's rows, without which the wanted state is unknown.

    Returns the number of repairs. Failures of single services go to ``errors``. The caller holds
    the lock. Raises Error.
    """
    store, kernel = machine.store, machine.kernel
    defects = store_repair.find_defects(kernel, store)
    lost = _of_rows(defects)
    if lost:
        with store.transaction():
            store_repair.repair_defects(kernel, store, lost)
    for defect in lost:
        report(_event_of(defect))
    done = len(lost)
    for damaged in (defect for defect in defects if defect.problem == "different"):
        try:
            store_repair.repair_row(machine.processes, store, damaged.service)
            report(_event_of(damaged))
            done += 1
        except Error as error:
            errors.append(error)
    return done


def _recover(machine: Machine, report: Report, errors: list[Error]) -> int:
    """Finish or undo interrupted changes; return their number. Failures go to ``errors``."""
    try:
        return journal.recover(machine, report, every=True)
    except Error as error:
        errors.append(error)
        return 0


def _repair_kernel(machine: Machine, report: Report, errors: list[Error]) -> int:
    """Repair the kernel; return the number of repairs. Failures go to ``errors``.

    After a repair, or an earlier error, flows that do not match the rules are ended. The caller
    holds the lock.
    """
    store, kernel, *_ = machine
    done, steps = 0, []
    try:
        done = _name_again(machine, report)
        steps = repair(kernel, store, report)
        if store.host_knows():
            from niso.reconcile import host_names

            done += host_names.settle(kernel, store, report)
    except Error as error:
        errors.append(error)
    if steps or errors:
        # flows that began while a rule was missing have no NAT, so their packets would be misrouted
        nat_flows.clear(kernel, desired_now(kernel, store, ALL))
        # flows that began while a policy was missing may be denied by it
        policy_flows.cut(
            kernel,
            store,
            [name for name in store.active_services() if store.policy(name) is not None],
        )
    elif ended := auditing.ended(store):
        # flows that an audit let pass: when it ends, the kernel does not check open flows
        policy_flows.cut(kernel, store, ended)
    return done + len(steps)


def _repair_process(machine: Machine, name: str, report: Report, errors: list[Error]) -> int:
    """Repair the package copy, spec and process of an active service; the caller holds its lock.

    Returns the number of repairs. Failures go to ``errors``.
    """
    processes, row = machine.processes, machine.store.service(name)
    if row is None or not row.active or not row.has_process:
        return 0
    done = 0
    try:
        done += _copy_again(row, report) + _write_spec_again(processes, row, report)
    except Error as error:
        errors.append(error)
    finding = of_service(processes, row)
    if finding is None:
        return done
    report(_mending(name, finding))
    try:
        spec = row.require_process()
        if finding.defect == BLIND:
            rehost.swap_or_restart(processes, spec, report)
        else:
            processes.stop(name, spec.stop_timeout_s)
            processes.start(spec)
    except Error as error:
        errors.append(error)
    return done + 1


def _forget_gone(machine: Machine, report: Report, errors: list[Error]) -> int:
    """Detach the attachments whose namespace no longer exists; return the number of repairs.

    Failures go to ``errors``.
    """
    done = 0
    for name in attachments.gone(machine.kernel, machine.store):
        report(Forgetting(name))
        try:
            done += attachments.detach(machine, name, report=report)
        except Error as error:
            errors.append(error)
    return done


def _stop_left_running(machine: Machine, report: Report, errors: list[Error]) -> int:
    """Stop the processes of inactive services; return the number of repairs.

    Failures go to ``errors``.
    """
    done = 0
    for name in left_running(machine):
        with journal.locked(machine.store, [name]):
            if name not in left_running(machine):  # another command has changed it
                continue
            report(Stopping(name))
            try:
                machine.processes.stop(name)
            except Error as error:
                errors.append(error)
            done += 1
    return done


def _copy_again(row: ServiceRow, report: Report) -> int:
    """Copy a service's package again if the copy is missing or damaged.

    Returns the number of repairs. Raises Error if the package has changed or is missing too.
    """
    if of_package(row) is None:
        return 0
    from niso.services.targets import apart

    folder, contents, spec = row.folder, Contents(row.name), row.require_service()
    without = apart(row.rootfs, spec)
    try:
        now = package.fingerprint(folder, without, contents, row.manifest_path)
        same = now == row.fingerprint
    except Error:
        same = False
    if not same:
        message = (
            f"{row.name}: its package copy {row.package} is gone or damaged, "
            f"and {folder} no longer contains the same package"
        )
        raise Error(message, row.again)
    report(CopyingPackage(folder))
    package.copy(row.name, folder, without, row.fingerprint, contents, row.manifest_path, spec)
    return 1


def _write_spec_again(processes: Processes, row: ServiceRow, report: Report) -> int:
    """Write a running service's missing spec.json; return the number of repairs.

    Raises Error.
    """
    finding = processes.defect(row.name)
    if finding is None or finding.defect != UNKNOWN:
        return 0
    report(_mending(row.name, finding))
    try:
        processes.save(row.require_process())
    except OSError as error:
        raise Error(f"cannot write spec.json: {error.strerror}", service=row.name) from error
    return 1


def _of_rows(defects: list[store_repair.Defect]) -> list[store_repair.Defect]:
    """Return the defects of missing rows and of rows of unknown services.

    Such rows can be derived from other rows.
    """
    return [defect for defect in defects if defect.problem != "different"]


def _event_of(defect: store_repair.Defect) -> Event:
    return RepairingStore(
        "delete" if defect.problem == "foreign" else "write", defect.table, defect.service
    )


def _nameless(machine: Machine) -> list[tuple[str, int]]:
    """Return (active service, pid) for each process whose network namespace has lost its name."""
    store, kernel, processes, _ = machine
    mark = alias(store.state_id())
    nameless = []
    for name in store.active_services():
        spec = processes.spec(name)
        pid = processes.status(name).pid
        if (
            spec is None
            or pid is None
            or spec.netns != paths.netns_path(name)
            or kernel.has_netns(names.netns(name))
        ):
            continue
        if kernel.alias_at(pid) == mark:
            nameless.append((name, pid))
    return nameless


def _name_again(machine: Machine, report: Report) -> int:
    homes = _nameless(machine)
    for name, pid in homes:
        report(Command(f"ip netns attach {names.netns(name)} {pid}"))
        machine.kernel.name_netns(names.netns(name), pid, alias(machine.store.state_id()))
    return len(homes)


def _mending(name: str, finding: Finding) -> Event:
    if finding.defect == UNKNOWN:
        return WritingSpec(name)
    return ShowingHosts(name) if finding.defect == BLIND else Starting(name)
