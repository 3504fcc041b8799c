"""Lock, read, diff, write, verify: the one place that sees what should be and what is.

Everything that changes the kernel goes through `converge`, so a command, a repair and the recovery after a crash are the
same code with another scope.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable

from niso.base import failpoint, paths
from niso.base.errors import ErrorGroup, KernelError, NisoError
from niso.base.lite_typing import NamedTuple
from niso.base.names import alias, hosts_folder, own_hosts_folder
from niso.base.report import Report, silent
from niso.kernel import sysctl
from niso.kernel.read import Foreign, hosts_remnants, is_remnant, read, read_all
from niso.kernel.rtnl_sockets import Sockets
from niso.kernel.write import write, write_what_can_be
from niso.plan import nft
from niso.plan.desired import FORWARDING6, ON, desired
from niso.plan.diff import AnyStep, HostsEdit, NftTransaction, Step, diff
from niso.plan.records import Snapshot
from niso.plan.state import (
    Address,
    Element,
    HostsFile,
    Route,
    State,
    Sysctl,
    Thing,
    Veth,
    kinds,
    union,
)
from niso.store.store import ALL, Scope, Store


class Plan(NamedTuple):
    """What there is to do, and what was looked at to find it."""

    steps: list[AnyStep]
    want: State
    candidates: State
    unread: frozenset[Element]  # taken for absent without a look


def plan(store: Store, scope: Scope, before: State, trusting: bool = False) -> Plan:
    """The steps that make the kernel have what the store says of ``scope``. Changes nothing; for more see `converge`.

    With ``trusting`` the elements that are new by the store are not looked for: the kernel refuses those that clash.
    Raises Conflict where something of a needed name is somebody else's, KernelError.
    """
    snapshot = store.snapshot(scope)
    want = _possible(_desired(snapshot), before)
    mark = alias(store.state_id())
    candidates = union(want, before)
    known = {element.key() for element in before.elements} if trusting else set()
    unread = frozenset(e for e in want.elements if trusting and e.value and e.key() not in known)
    have = _own(
        read(candidates._replace(elements=candidates.elements - unread), mark), want, before
    )
    have = _with_remnants(have, filter(is_remnant, before.hosts_files - want.hosts_files))
    steps = diff(want, have)
    whole = {hosts_folder(reader) for reader in snapshot.fresh}
    whole |= {
        own_hosts_folder(service.name) for service in snapshot.services if service.mode == "none"
    }
    if scope != ALL and _rebuilds(want, have, steps, whole):
        # the tables, or a file that others read, are gone: what stood in them is not only this scope's
        return plan(store, ALL, before)
    return Plan(steps, want, candidates, unread)


def converge(
    store: Store,
    scope: Scope,
    before: State,
    report: Report = silent,
    teardown: bool = False,
    ending: list[str] | None = None,
) -> list[AnyStep]:
    """Make the kernel have what the store says of ``scope``; the caller holds the lock.

    ``before`` is what the kernel had by the store before the change: what is in it and no longer wanted goes. With
    ``teardown`` a step that fails does not keep the others from being done. With ``ending`` veth pairs of namespaces that go are
    only detached, and noted there: the caller has to `end_links` when it has let go of the lock. Gives the steps taken. Raises
    KernelError or, from a teardown, an ErrorGroup.
    """
    return carry_out(
        store, scope, before, plan(store, scope, before, trusting=True), report, teardown, ending
    )


def carry_out(
    store: Store,
    scope: Scope,
    before: State,
    planned: Plan,
    report: Report = silent,
    teardown: bool = False,
    ending: list[str] | None = None,
    known: Container[tuple[str, str]] = (),
) -> list[AnyStep]:
    """As `converge`, with a plan that was made under the same lock. ``known`` addresses (see `write`) were their services' before."""
    steps = planned.steps
    if not steps:
        return []
    for step in steps:
        report(step)
    touched = _touched(steps, planned.candidates)
    want = _of(planned.want, touched)
    with Sockets() as sockets:
        if teardown:
            errors = write_what_can_be(steps, sockets, ending)
            if errors:
                raise ErrorGroup(errors)
        else:
            try:
                write(steps, sockets, ending, known)
            except KernelError as error:
                if error.errno != errno.EEXIST or not planned.unread:
                    raise
                # an element was there with another value: rules come first, so nothing has changed
                return carry_out(store, scope, before, plan(store, scope, before), report)
        touched = touched._replace(rulesets=want.rulesets)
        taken = any(isinstance(step, NftTransaction) for step in steps)
        have = read(touched, alias(store.state_id()), sockets=sockets, rules=not taken)
    left = diff(want, _without_dying(want, touched, have))
    if left:
        raise KernelError(
            f"the kernel did not keep a change: {left[0].describe().splitlines()[0]}",
            "another program may be changing niso's objects: niso net check",
        )
    if _rebuilt(steps):
        from niso.reconcile import nat_flows

        nat_flows.clear(planned.want)
    failpoint.hit("verified")
    return steps


def _touched(steps: list[AnyStep], candidates: State) -> State:
    """What steps are about, and the namespaces that it is in: others' links need not be looked at again.

    Elements are left out: the kernel has taken those of a transaction all together or not at all, and its word on them, and on the
    rules that they are for, is enough. So are sysctls of services, which nothing but their own file sets; those of the host's links
    follow others, which may change them.
    """
    things: dict[str, set[Thing]] = {}
    for step in steps:
        if isinstance(step, Step):
            if not (isinstance(step.thing, Sysctl) and step.thing.netns):
                things.setdefault(type(step.thing).__name__, set()).add(step.thing)
        elif isinstance(step, HostsEdit):
            things.setdefault("HostsFile", set()).add(HostsFile(step.folder))
            things.setdefault("HostsLine", set()).update((*step.remove, *step.add))
    inside = {
        thing.netns
        for each in things.values()
        for thing in each
        if isinstance(thing, Veth | Address | Route)
    }
    things.setdefault("Netns", set()).update(
        thing for thing in candidates.netns if thing.name in inside
    )
    names = (
        "Ruleset",
        "Element",
        "Bridge",
        "Netns",
        "Sysctl",
        "Veth",
        "Address",
        "Route",
        "Attached",
        "Neighbour",
        "HostsFile",
        "HostsLine",
    )
    return State(*(frozenset(things.get(name, ())) for name in names))  # type: ignore[arg-type]


def _of(want: State, touched: State) -> State:
    """What ``want`` says of what is in ``touched``: of a link all its addresses and routes, and always the rules."""
    keys = [{thing.key() for thing in each} for each in kinds(touched)]
    parts = (
        frozenset(t for t in each if t.key() in some)
        for each, some in zip(kinds(want), keys, strict=True)
    )
    links = {(thing.netns, thing.link) for thing in touched.addresses | touched.routes}
    links |= {(veth.netns, veth.peer) for veth in touched.veths}
    return State(*parts)._replace(  # type: ignore[arg-type]
        rulesets=want.rulesets,
        addresses=frozenset(a for a in want.addresses if (a.netns, a.link) in links),
        routes=frozenset(r for r in want.routes if (r.netns, r.link) in links),
    )


def _rebuilt(steps: list[AnyStep]) -> bool:
    """Whether niso's tables were made anew: then the plan is of everything."""
    return any(isinstance(step, NftTransaction) and nft.TABLES in step.edits for step in steps)


def _without_dying(want: State, candidates: State, have: State) -> State:
    """``have`` without veth pairs of namespaces that went and that are off their bridge: those go in the kernel's own time."""
    stays = {namespace.name for namespace in want.netns}
    dying = {veth.name for veth in candidates.veths if veth.netns not in stays} - {
        veth.name for veth in want.veths
    }
    return have._replace(
        veths=frozenset(veth for veth in have.veths if veth.name not in dying or veth.bridge)
    )


def desired_now(store: Store, scope: Scope) -> State:
    """What the kernel should have of ``scope`` by the store as it is."""
    return _possible(_desired(store.snapshot(scope)))


def _desired(snapshot: Snapshot) -> State:
    """As `plan.desired`. Raises NisoError where rows that it needs are gone."""
    try:
        return desired(snapshot)
    except (ValueError, LookupError) as error:
        words = f"{paths.database()}: rows that belong together are not all there"
        raise NisoError(
            words, "niso net check names them, niso net repair writes them again"
        ) from error


def _possible(want: State, before: State | None = None) -> State:
    """``want`` without sysctls that cannot be: of IPv6 where the kernel has none, of links of the host that are gone or go."""
    made = {bridge.name for bridge in want.bridges}
    going = {bridge.name for bridge in before.bridges} - made if before is not None else set()
    has_ipv6 = sysctl.read(FORWARDING6) is not None

    def gone(thing: Sysctl) -> bool:
        kind, _, link, name = (*thing.name.split("/")[1:], "", "")[:4]
        if kind == "ipv6" and not has_ipv6:
            return True
        if link in going and not thing.netns:
            return True
        kept = (
            thing.netns
            or kind != "ipv6"
            or name not in ON
            or link in ("all", "default")
            or link in made
        )
        return not kept and sysctl.read(thing.name) is None

    return want._replace(sysctls=frozenset(thing for thing in want.sysctls if not gone(thing)))


def _own(have: State, want: State, before: State) -> State:
    """``have`` without elements that were this scope's and are another's now: a port that has moved is not to go."""
    keys = {element.key() for element in want.elements}
    owners = {(element.key(), element.comment) for element in before.elements}
    kept = (e for e in have.elements if e.key() in keys or (e.key(), e.comment) in owners)
    return have._replace(elements=frozenset(kept))


def _with_remnants(have: State, files: Iterable[HostsFile]) -> State:
    """``have`` with the remnants of hosts files that nobody needs."""
    return have._replace(hosts_files=have.hosts_files.union(files))


def _rebuilds(want: State, have: State, steps: list[AnyStep], whole: set[str]) -> bool:
    """Whether more is lost than this scope's. The hosts files ``whole`` have no reader outside of it."""
    if want.rulesets != have.rulesets:
        return True
    return any(
        isinstance(step, HostsEdit) and step.create and step.folder not in whole for step in steps
    )


def compare(store: Store) -> tuple[list[AnyStep], State, State, Foreign]:
    """(steps, want, have, foreign) of everything that is niso's in this network namespace. Changes nothing.

    What has a needed name and is somebody else's is in ``foreign`` and, with what hangs on it, in neither state.
    """
    foreign: Foreign = {}
    want = desired_now(store, ALL)
    have = read_all(want, alias(store.state_id()), foreign)
    have = _with_remnants(have, hosts_remnants(want.hosts_files))
    hang_on = {veth.name for veth in want.veths if veth.bridge in foreign or veth.netns in foreign}
    want = _without_foreign(want, hang_on | set(foreign))
    have = _without_foreign(have, hang_on | set(foreign))
    return diff(want, have), want, have, foreign


def _without_foreign(state: State, foreign: set[str]) -> State:
    """``state`` without the links and namespaces named, and what lies in or on them."""
    if not foreign:
        return state
    lost = {(veth.netns, veth.peer) for veth in state.veths if veth.name in foreign}
    lost |= {("", name) for name in foreign}
    return state._replace(
        bridges=frozenset(b for b in state.bridges if b.name not in foreign),
        netns=frozenset(n for n in state.netns if n.name not in foreign),
        sysctls=frozenset(
            s
            for s in state.sysctls
            if s.netns not in foreign and not foreign & set(s.name.split("/"))
        ),
        veths=frozenset(v for v in state.veths if v.name not in foreign),
        addresses=frozenset(
            a for a in state.addresses if a.netns not in foreign and (a.netns, a.link) not in lost
        ),
        routes=frozenset(
            r for r in state.routes if r.netns not in foreign and (r.netns, r.link) not in lost
        ),
    )


def repair(store: Store, report: Report = silent) -> list[AnyStep]:
    """Put right whatever `compare` finds; the caller holds the lock. A second call takes no step.

    Raises KernelError, and a Conflict for each thing of a needed name that is somebody else's, when all else is right.
    """
    steps, want, have, foreign = compare(store)
    for step in steps:
        report(step)
    with Sockets() as sockets:
        write(steps, sockets)
    left = diff(want, _without_dying(want, have, compare(store)[2])) if steps else []
    if foreign:
        raise ErrorGroup(list(foreign.values()))
    if left:
        raise KernelError(
            f"still not as it should be: {left[0].describe().splitlines()[0]}", "niso net check"
        )
    return steps
