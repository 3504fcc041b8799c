"""Keep the addresses of outside names up to date, in rules and hosts files at the same time.

There is no resolver process: names are resolved by an activation, and by `niso net refresh`, which
a timer calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import Lock
from niso.base.report import Caution, Report, silent
from niso.plan.answers import FORMER, NOW, Bars, Outside, after, barred
from niso.plan.subnets import DEFAULT_POOL, unique_local
from niso.reconcile.change import change
from niso.reconcile.converge import repair
from niso.services import resolver
from niso.services.concern import concerned
from niso.services.machine import Machine

if TYPE_CHECKING:
    from niso.plan.answers import Heard
    from niso.services.admit import Target
    from niso.store.store import Store

KEPT_S = 3600.0
"""How long (s) to keep an answer for a name in no policy, whose activation may be in progress."""


def prepare(machine: Machine, targets: Iterable[Target], report: Report = silent) -> None:
    """Resolve the outside names of services that are about to be activated.

    A name without an address is only reported: the service starts, and cannot connect there until a
    refresh finds an address. So a machine that boots before its name servers does not hang. Raises
    Error if dnspython is not installed.
    """
    names = _names(targets)
    if not names:
        return
    resolver.require()
    refresh(machine, names, report)
    unknown: dict[str, list[str]] = {}
    for name in names:
        answer = machine.store.outside.answer(name)
        if not answer.in_state(NOW):
            unknown.setdefault(answer.problem, []).append(name)
        elif answer.problem:
            report(Caution(f"{name}: {answer.problem}"))
    for problem, some in unknown.items():
        report(Caution(f"{', '.join(some)}: {problem}", ("niso net refresh asks again",)))


def bar(machine: Machine, targets: Iterable[Target], report: Report) -> None:
    """Remove addresses from outside names that lie in a network which now exists.

    The names were resolved before the networks of the command were recorded. The caller is in the
    transaction that has recorded them. Raises KernelError.
    """
    if not (names := _names(targets)):
        return
    rows, bars, now = machine.store.outside, _bars(machine), time.time()
    for before in map(rows.answer, names):
        answer = barred(before, bars, now)
        if answer != before:
            rows.put([answer])
            report(Caution(f"{answer.name}: {answer.problem}"))


def look(machine: Machine, targets: Iterable[Target]) -> list[Outside]:
    """Resolve the outside names of services without recording the answers.

    Raises Error if dnspython is not installed, KernelError.
    """
    names = _names(targets)
    if not names:
        return []
    now, rows, bars = time.time(), machine.store.outside, _bars(machine)
    heard = resolver.ask([name for name in names if rows.answer(name).is_due(bars, now)])
    return [after(rows.answer(name), answers, bars, now) for name, answers in heard.items()]


def _names(targets: Iterable[Target]) -> list[str]:
    return sorted({name for target in targets for name in target.spec.policy.outside_names()})


def refresh(
    machine: Machine,
    names: Iterable[str] | None = None,
    report: Report = silent,
    force: bool = False,
) -> list[str]:
    """Resolve the names that are due and apply the answers; return the names that changed.

    ``names`` limits it to these (default: all names in policies). ``force`` resolves all of them.
    Open connections stay, whatever DNS answers. Raises Error if dnspython is not installed,
    KernelError.
    """
    rows = machine.store.outside
    now = time.time()
    known = [rows.answer(name) for name in (rows.named() if names is None else names)]
    bars = _bars(machine)
    due = [answer.name for answer in known if force or answer.is_due(bars, now)]
    unsettled = [answer.name for answer in known if not answer.settled]
    if not (due or unsettled):
        return []
    heard = resolver.ask(due) if due else {}
    with Lock():
        return _apply(machine, heard, unsettled, now, report)


def _apply(
    machine: Machine,
    heard: dict[str, tuple[Heard, ...]],
    unsettled: Iterable[str],
    now: float,
    report: Report,
) -> list[str]:
    """Record answers and converge; the caller holds the lock.

    The rows are committed first, marked as not settled. If this process dies before the kernel has
    them, the next refresh removes what an earlier answer may have left.
    """
    store, kernel = machine.store, machine.kernel
    rows = store.outside
    before = {name: rows.answer(name) for name in {*heard, *unsettled}}
    services = rows.naming(before)
    scope = concerned(store, services)
    # without a service that names them, the answers are rows alone
    made = change(kernel, store, scope, report, rows_first=True) if services else None
    with made or store.transaction():
        if made is not None and not all(answer.settled for answer in before.values()):
            rows.put(_all_in_use(answer) for answer in before.values() if not answer.settled)
            made.doubt()
        bars = _bars(machine)
        reached = [
            after(before[name], heard[name], bars, now) if name in heard else before[name]
            for name in sorted(before)
        ]
        rows.put(answer._replace(settled=False) for answer in reached)
        rows.forget_others(now - KEPT_S)
    if services and any(not answer.settled for answer in before.values()):
        # a line of a hosts file has all names of an address, and may be there without some.
        # What else cannot be repaired does not concern the names, and `net check` reports it
        with suppress(Error):
            repair(kernel, store, report)
    with store.transaction():
        rows.put(answer._replace(settled=True) for answer in reached)
    return [answer.name for answer in reached if _used(answer) != _used(before[answer.name])]


def _used(answer: Outside) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return answer.in_state(NOW), answer.in_state(FORMER)


def _all_in_use(answer: Outside) -> Outside:
    """Return an answer with all known addresses in use, because the kernel may have any of them."""
    return answer._replace(addresses=tuple(known._replace(state=NOW) for known in answer.addresses))


def _bars(machine: Machine) -> Bars:
    """Return the addresses that no outside name may resolve to. Raises KernelError."""
    store: Store = machine.store
    pools = (os.environ.get("NISO_POOL") or DEFAULT_POOL, str(unique_local(store.state_id())))
    subnets = (subnet.cidr for network in store.networks() for subnet in network.subnets)
    bridges = [(str(prefix), link) for prefix, link in machine.kernel.engine_prefixes()]
    return Bars(machine.kernel.host_addresses(), (*pools, *subnets), bridges)
