"""Lock, read, diff, write, verify: the one place that sees what should be and what is.

Everything that changes the kernel goes through `converge`, so a command, a repair and the recovery after a crash are the
same code with another scope.
"""

from __future__ import annotations

import errno
from collections.abc import Container

from niso.base import failpoint, paths
from niso.base.errors import ErrorGroup, KernelError, NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.names import alias, hosts_folder, own_hosts_folder
from niso.base.report import Report, silent
from niso.kernel.diff import diff, without_foreign
from niso.kernel.interface import Foreign, Kernel
from niso.kernel.kinds import order
from niso.kernel.kinds.element import Element, NftTransaction
from niso.kernel.kinds.hosts_file import HostsEdit
from niso.kernel.kinds.namespace import Netns
from niso.kernel.kinds.ruleset import Ruleset
from niso.kernel.state import State
from niso.plan.desired import desired
from niso.plan.records import Snapshot
from niso.store.store import ALL, Scope, Store

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import AnyStep


class Plan(NamedTuple):
    """What there is to do, and what was looked at to find it."""

    scope: Scope
    before: State
    steps: list[AnyStep]
    want: State
    candidates: State
    unread: frozenset[Element]  # taken for absent without a look


def plan(kernel: Kernel, store: Store, scope: Scope, before: State, trusting: bool = False) -> Plan:
    """Return the steps that make the kernel have what the store says of ``scope``. Changes nothing; for more see `converge`.

    With ``trusting`` the elements that are new by the store are not looked for: the kernel refuses those that clash.
    Raises Conflict where something of a needed name is somebody else's, KernelError.
    """
    snapshot = store.snapshot(scope)
    want = _possible(kernel, _desired(snapshot), before)
    candidates = want | before
    known = {element.key() for element in before[Element]} if trusting else set()
    unread = frozenset(e for e in want[Element] if trusting and e.value and e.key() not in known)
    asked = candidates.replace(Element, candidates[Element] - unread)
    present = kernel.read(asked, alias(store.state_id()))
    have = State.of_kinds(lambda kind: kind.in_scope(present, want, before))
    steps = diff(want, have)
    whole = {hosts_folder(reader) for reader in snapshot.fresh}
    whole |= {
        own_hosts_folder(service.name) for service in snapshot.services if service.mode == "none"
    }
    if scope != ALL and _rebuilds(want, have, steps, whole):
        # the tables, or a file that others read, are gone: what stood in them is not only this scope's
        return plan(kernel, store, ALL, before)
    return Plan(scope, before, steps, want, candidates, unread)


def converge(
    kernel: Kernel,
    store: Store,
    scope: Scope,
    before: State,
    report: Report = silent,
    teardown: bool = False,
    ending: list[str] | None = None,
) -> list[AnyStep]:
    """Make the kernel have what the store says of ``scope``; the caller holds the lock. Return the steps taken.

    ``before`` is what the kernel had by the store before the change: what is in it and no longer wanted goes. With
    ``teardown`` a step that fails does not keep the others from being done. With ``ending`` veth pairs of namespaces that go are
    only detached, and noted there: the caller has to `end_links` when it has released the lock. Raises KernelError or, from
    a teardown, an ErrorGroup.
    """
    planned = plan(kernel, store, scope, before, trusting=True)
    return carry_out(kernel, store, planned, report, teardown, ending)


def carry_out(
    kernel: Kernel,
    store: Store,
    planned: Plan,
    report: Report = silent,
    teardown: bool = False,
    ending: list[str] | None = None,
    known: Container[tuple[str, str]] = (),
) -> list[AnyStep]:
    """As `converge`, with a plan that was made under the same lock. ``known`` addresses (see `Kernel.write`) are not new."""
    steps = planned.steps
    if not steps:
        return []
    for step in steps:
        report(step)
    touched = _touched(steps, planned.candidates)
    want = _of(planned.want, touched)
    with kernel:
        if teardown:
            errors = kernel.write_what_can_be(steps, ending)
            if errors:
                raise ErrorGroup(errors)
        else:
            try:
                kernel.write(steps, ending, known)
            except KernelError as error:
                if error.errno != errno.EEXIST or not planned.unread:
                    raise
                # an element was there with another value: rules come first, so nothing has changed
                again = plan(kernel, store, planned.scope, planned.before)
                return carry_out(kernel, store, again, report)
        touched = touched.replace(Ruleset, want[Ruleset])
        taken = any(step.kind.is_transactional for step in steps)
        have = kernel.read(touched, alias(store.state_id()), taken=taken)
    left = _left(want, touched, have)
    if left:
        raise KernelError(
            f"the kernel did not keep a change: {left[0].describe().splitlines()[0]}",
            "another program may be changing niso's objects: niso net check",
        )
    if any(isinstance(step, NftTransaction) and step.makes_tables() for step in steps):
        from niso.reconcile import nat_flows

        nat_flows.clear(kernel, planned.want)  # the plan is of everything
    failpoint.hit("verified")
    return steps


def _touched(steps: list[AnyStep], candidates: State) -> State:
    """What steps are about and is read back, and the namespaces that it is in: others' links need not be looked at again.

    Elements are left out: the kernel has taken those of a transaction all together or not at all, and its word on them, and
    on the rules that they are for, is enough.
    """
    things = [thing for step in steps for thing in step.things()]
    touched = State(things)
    inside = {kind.space(thing) for kind in order.KINDS for thing in touched[kind.thing]}
    return touched | State(netns for netns in candidates[Netns] if netns.name in inside)


def _of(want: State, touched: State) -> State:
    """What ``want`` says of what is in ``touched``: of a link all its addresses and routes, and always the rules."""
    links = {
        (kind.space(thing), link)
        for kind in order.KINDS
        for thing in touched[kind.thing]
        for link in kind.links(thing)
    }
    keys = {(type(thing), thing.key()) for thing in touched}
    return State.of_kinds(
        lambda kind: (
            thing
            for thing in want[kind.thing]
            if kind.thing is Ruleset
            or (
                any((kind.space(thing), link) in links for link in kind.links(thing))
                if kind.is_read_by_link
                else (kind.thing, thing.key()) in keys
            )
        )
    )


def _left(want: State, candidates: State, have: State) -> list[AnyStep]:
    """The steps that are still to do, by ``have`` as it was read after a change from ``candidates``."""
    return diff(want, State.of_kinds(lambda kind: kind.settled(have, want, candidates)))


def desired_now(kernel: Kernel, store: Store, scope: Scope) -> State:
    """Return what the kernel should have of ``scope`` by the store as it is."""
    return _possible(kernel, _desired(store.snapshot(scope)))


def _desired(snapshot: Snapshot) -> State:
    """As `niso.plan.desired`. Raises NisoError where rows that it needs are gone."""
    try:
        return desired(snapshot)
    except (ValueError, LookupError) as error:
        words = f"{paths.database()}: rows that belong together are not all there"
        raise NisoError(
            words, "niso net check names them, niso net repair writes them again"
        ) from error


def _possible(kernel: Kernel, want: State, before: State | None = None) -> State:
    """``want`` without what this kernel cannot have: sysctls of links that are gone."""
    return State.of_kinds(lambda kind: kind.possible(want, before, kernel.sysctl))


def _rebuilds(want: State, have: State, steps: list[AnyStep], whole: set[str]) -> bool:
    """Whether more is lost than this scope's. The hosts files ``whole`` have no reader outside of it."""
    if want[Ruleset] != have[Ruleset]:
        return True
    return any(
        isinstance(step, HostsEdit) and step.create and step.folder not in whole for step in steps
    )


def compare(kernel: Kernel, store: Store) -> tuple[list[AnyStep], State, State, Foreign]:
    """Return (steps, want, have, foreign) of everything that is niso's in this network namespace. Changes nothing.

    What has a needed name and is somebody else's is in ``foreign`` and, with what hangs on it, in neither state.
    """
    foreign: Foreign = {}
    want = desired_now(kernel, store, ALL)
    have = kernel.read_all(want, alias(store.state_id()), foreign)
    want, have = without_foreign((want, have), set(foreign))
    return diff(want, have), want, have, foreign


def repair(kernel: Kernel, store: Store, report: Report = silent) -> list[AnyStep]:
    """Put right whatever `compare` finds; the caller holds the lock. A second call takes no step.

    Raises KernelError, and a Conflict for each thing of a needed name that is somebody else's, when all else is right.
    """
    steps, want, have, foreign = compare(kernel, store)
    for step in steps:
        report(step)
    kernel.write(steps)
    left = _left(want, have, compare(kernel, store)[2]) if steps else []
    if foreign:
        raise ErrorGroup(list(foreign.values()))
    if left:
        raise KernelError(
            f"still not as it should be: {left[0].describe().splitlines()[0]}", "niso net check"
        )
    return steps
