"""Check: what should be against what is, each thing by its name."""

from __future__ import annotations

import time
from collections.abc import Iterable

from niso.base.errors import KernelError, NotFound
from niso.base.locks import Lock
from niso.base.names import alias
from niso.commands import store_repair
from niso.explain import exposure
from niso.kernel.interface import Kernel
from niso.plan.findings import Finding, findings
from niso.plan.records import Network
from niso.reconcile.converge import compare, desired_now
from niso.runtime.defects import of_package
from niso.services.machine import Machine
from niso.store.store import Scope, Store, bare_name, suggest

_LOOKS, _PAUSE_S = 3, 0.03
"""Of a veth pair that goes the kernel needs some 10 to 20 ms to be rid, while nobody holds the lock."""
_WAITS_S = 1.0
"""For another command, which as a rule holds the lock for some ms."""


def check(machine: Machine, name: str | None = None) -> list[Finding]:
    """All that is not as it should be: of everything, or of one service or network. Changes nothing.

    What is found is looked at again, under niso's lock where that is to be had, and told if it is still so: another command may have
    been in the middle of a change. Raises NotFound where there is no such service or network, KernelError.
    """
    store, kernel = machine.store, machine.kernel
    found: list[Finding] | None
    try:
        found = _own(machine, name)
    except KernelError:  # of what went between two looks
        found = None
    for _ in range(_LOOKS - 1):
        if found == []:
            break
        time.sleep(_PAUSE_S)
        with Lock(_WAITS_S):
            again = _own(machine, name)
        known = {(each.problem, each.what) for each in (again if found is None else found)}
        found = [each for each in again if (each.problem, each.what) in known]
    networks, active = _concerned(store, name)
    return [*(found or ()), *_other_firewalls(kernel, networks), *_closed_links(kernel, active)]


def _concerned(store: Store, name: str | None) -> tuple[list[Network], list[str]]:
    """The networks that a check is about, and the active services."""
    if name is None:
        return store.networks(), store.active_services()
    scope, active = _scope(store, name)
    return [
        network for each in scope.networks or () if (network := store.network(each)) is not None
    ], active


def _own(machine: Machine, name: str | None) -> list[Finding]:
    """What is not as it should be of what is niso's."""
    store, kernel = machine.store, machine.kernel
    lost = [_hole(each) for each in store_repair.holes(kernel, store)]
    if lost:  # what should be in the kernel is not known before they are back
        return lost
    if name is None:
        _, want, have, foreign = compare(kernel, store)
        strange = [Finding("foreign", error.message) for error in foreign.values()]
        return [
            *(
                _hole(store_repair.Hole("different", "service", row.name))
                for row in store_repair.damaged(store)
            ),
            *findings(want, have),
            *strange,
            *_processes(machine, store.active_services()),
            *(
                Finding("foreign", f"process of service {name!r}", NOT_ACTIVE)
                for name in left_running(machine)
            ),
        ]
    scope, active = _scope(store, name)
    want = desired_now(kernel, store, scope)
    return [
        *findings(want, kernel.read(want, alias(store.state_id()), strays=True)),
        *_processes(machine, active),
    ]


def _scope(store: Store, name: str) -> tuple[Scope, list[str]]:
    """What a name is about, and the active service that has it. Raises NotFound."""
    if store.network(name) is not None and store.name_holder(bare_name(name)) is None:
        return Scope((), (name,)), []
    if store.name_holder(bare_name(name)) is None:
        known = [*(each for each, _, _ in store.service_names()), *store.network_names()]
        raise NotFound(
            f"no service or network {name!r}",
            suggest(name, known, "niso ps and niso net list have all names"),
        )
    service = store.resolve(name)
    row = store.service(service)
    assert row is not None
    return Scope(store.with_companions([service]), row.networks), [service] if row.active else []


def _hole(found: store_repair.Hole) -> Finding:
    return Finding(
        found.problem,
        f"store: {found.table}{f' of service {found.service!r}' if found.service else ''}",
    )


def _other_firewalls(kernel: Kernel, networks: Iterable[Network]) -> list[Finding]:
    return [
        Finding("foreign", drop.words(), f"add: {'; '.join(drop.remedy)}")
        for drop in exposure.drops(kernel, networks)
    ]


def _closed_links(kernel: Kernel, active: list[str]) -> list[Finding]:
    """Of the host's links; where no service is active it is nobody's concern."""
    return (
        [Finding("foreign", what, remedy) for what, remedy in exposure.closed_links(kernel)]
        if active
        else []
    )


NOT_ACTIVE = "it is not active"


def left_running(machine: Machine) -> list[str]:
    """The services that have a process, or what is left of one, and are not active; what somebody is at is left out."""
    store, found = machine.store, []
    for name in machine.processes.services():
        row = store.service(name)
        if (row is None or not row.active) and store.intent(name) is None:
            found.append(name)
    return found


def _processes(machine: Machine, active: list[str]) -> list[Finding]:
    store, found = machine.store, []
    for name in active:
        if store.intent(name) is not None:  # somebody is at it
            continue
        row = store.service(name)
        lost = None if row is None else of_package(row)
        found += [each for each in (lost, machine.processes.defect(name)) if each is not None]
    return found
