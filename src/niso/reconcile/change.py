"""Change the rows of the store and the kernel together, and repair the state of the kernel.

All commands that change rows and kernel use the context manager `change`. `change` also deletes the
flows that are no longer allowed after the change. Commands, repair and recovery after a crash use
this code for different sets of services. Only this module compares the desired state of the kernel
with the actual state.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Mapping

from niso.base import paths, signals
from niso.base.errors import Conflict, Error, ErrorGroup, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import alias, hosts_folder, own_hosts_folder, prefix
from niso.base.native import lazy
from niso.base.report import Report, WarningEvent, silent
from niso.kernel.kinds.addresses import Address, PermanentNeighbour, Route
from niso.kernel.kinds.hosts_files import HostsEdit
from niso.kernel.kinds.kind import (
    KINDS,
    AnyStep,
    Foreign,
    KernelObject,
    Kind,
    State,
    Step,
    diff,
    kind_of,
    without_foreign,
)
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.kernel.nft_elements import Element
from niso.kernel.ruleset import TABLES
from niso.plan.desired import desired
from niso.plan.elements import FRONTS, PUBLISHED
from niso.plan.records import PortMapping, Snapshot
from niso.reconcile import host_settings
from niso.store.snapshots import ALL, Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from niso.kernel.real import Kernel
    from niso.reconcile import ended_flows
else:
    ended_flows = lazy("niso.reconcile.ended_flows")  # most changes end no flows

_REDIRECTING = frozenset((*PUBLISHED, *FRONTS, "slots4", "slots6"))
"""The nftables maps that redirect connections to services."""


class change:
    """A context manager that changes rows of the store and the kernel together, atomically.

    The caller must have niso's lock, and writes rows in the block, which is one transaction. At the
    end of the block, the kernel is changed to match the rows, and flows that are no longer allowed
    are deleted.

    By default the kernel is changed within the transaction: if the kernel refuses a step, or niso
    is killed, the rows are as before. With ``rows_first``, the rows are committed before the kernel
    is changed. Then a new object is recorded even if niso is killed, but if the kernel refuses a
    step, the caller must undo the rows. With ``dry_run``, the steps are only reported. ``teardown``
    and ``detached`` are as for `carry_out`.

    ``scope`` has the services and networks whose rows and objects are read and changed. It is
    computed from the rows before the change (`niso.change.scope`). In the block, the caller may
    replace ``scope`` by its union with the scope after the change.

    The end of the block raises the errors of `plan` and `carry_out`: KernelError, Conflict,
    ErrorGroup or Error.
    """

    def __init__(
        self,
        kernel: Kernel,
        store: Store,
        scope: Scope,
        report: Report = silent,
        *,
        teardown: bool = False,
        rows_first: bool = False,
        dry_run: bool = False,
        detached: list[str] | None = None,
    ) -> None:
        self.scope = scope
        # the steps taken, or planned with ``dry_run``: complete after the block
        self.steps: list[AnyStep] = []
        # whether the rows are committed; with ``rows_first``, an error may occur after that
        self.is_recorded = False
        self._kernel, self._store, self._report = kernel, store, report
        self._teardown, self._rows_first, self._dry_run = teardown, rows_first, dry_run
        self._detached = detached
        self._services = scope.services or ()
        self._transaction = store.transaction()
        self._doubt = State()
        self._last: list[Callable[[], object]] = []

    def __enter__(self) -> change:
        try:
            self._transaction.__enter__()
            before, self._before = wanted_now(self._kernel, self._store, self.scope)
            self._snapshots = [before]
            self._leases = self._store.leases_of(self._services)
        except BaseException as error:  # the block of ``with`` has not begun
            self._transaction.__exit__(type(error), error, None)
            raise
        return self

    def doubt(self, objects: State | None = None) -> None:
        """Assume that the kernel had these objects before the change, because an interrupted
        command may have created them. None means the objects that the present rows require, but the
        rows at the beginning of the block did not require.
        """
        if objects is None:
            snapshot, now = wanted_now(self._kernel, self._store, self.scope)
            self._snapshots.append(snapshot)
            objects = State.of_kinds(lambda kind: now[kind.type] - self._before[kind.type])
        self._doubt |= objects

    def then(self, call: Callable[[], object]) -> None:
        """Register a function to call after the kernel has changed: before the commit of the rows,
        or with ``rows_first`` after it.
        """
        self._last.append(call)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        with self._kernel:  # the plan and the change use the same sockets
            self._end(kind, error, trace)

    def _end(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                planned = self._planned()
                if self._dry_run:
                    self._transaction.cancel()
                elif not self._rows_first:
                    self._carry_out(planned)
        except BaseException as failure:
            self._transaction.__exit__(type(failure), failure, None)
            raise
        self._transaction.__exit__(kind, error, trace)
        self.is_recorded = kind is None and not self._dry_run
        if self.is_recorded and self._rows_first:
            self._carry_out(planned)

    def _planned(self) -> Plan:
        """Compute the plan. In a dry run, report its steps. Raises Conflict if an object of another
        program has a name that niso needs.
        """
        kernel, store, before = self._kernel, self._store, self._before | self._doubt
        planned = plan(kernel, store, self.scope, before, trusting=not self._dry_run)
        self._snapshots.append(planned.snapshot)
        if self._dry_run:
            self.steps = planned.steps
            for step in self.steps:
                self._report(step)
            return planned
        fresh = {address for _, address in store.leases_of(self._services) - self._leases}
        if fresh:  # no service has these addresses until the rows are committed
            kernel.forget_flows(fresh)
        return planned

    def _carry_out(self, planned: Plan) -> None:
        kernel, store, before, after = self._kernel, self._store, self._before, planned.every
        if before[Bridge] != after[Bridge]:
            ended_flows.introduce(kernel, store, before, after)
        self.steps = carry_out(kernel, store, planned, self._report, self._teardown, self._detached)
        if after != before or self._doubt:
            self._end_flows(before | self._doubt, after)
        for call in self._last:
            call()
        if not self._rows_first:
            host_settings.forget(store)

    def _end_flows(self, before: State, after: State) -> None:
        """Delete the flows that the desired state ``before`` allowed and ``after`` does not allow.
        Policies are evaluated last, since flows that are already deleted need no verdict.
        """
        kernel = self._kernel
        was, now = _holders(before), _holders(after)
        gone = {address for _, address in was - now}
        if gone:  # an address's next holder must not get packets of another service's connection
            kernel.flush_addresses(gone)
        # an address stays reserved, with its recorded flows, until another service reserves it
        far = gone - {address for _, address in _own(before)}
        if forgotten := far | (_subnets(before) - _subnets(after)):
            kernel.forget_flows(forgotten)
        changed = (self._before[Element] ^ after[Element]) | self._doubt[Element]
        if any(element.container in _REDIRECTING for element in changed):
            ended_flows.flush_changed_ports(kernel, self._before, after, self._doubt)
            ended_flows.end_datagrams(kernel, self._before, after)
        if ports := self._ports_of_ended({address for _, address in now}):
            kernel.flush_ports([(port.proto, port.host_port, port.last) for port in ports], True)
        # flows of a service that ends, or loses its policy, need no verdict
        policed = {one.service for one in self._snapshots[-1].policed}
        if policed and ended_flows.narrows(before, after) and not self._is_of_names_alone():
            ended_flows.cut(kernel, self._store, sorted(policed))
        for space in _spaces(before) - _spaces(after):
            kernel.clear_unfinished(space)

    def _ports_of_ended(self, kept: set[str]) -> list[PortMapping]:
        """Return the published ports of services that are deactivated while other services still
        run in their namespace. ``kept`` has the addresses that services still have after the
        change.
        """
        active = {service.name for service in self._snapshots[-1].services}
        return [
            port
            for service in self._snapshots[0].services
            if service.name not in active
            and any(not kept.isdisjoint(endpoint.addresses) for endpoint in service.endpoints)
            for port in service.ports
        ]

    def _is_of_names_alone(self) -> bool:
        """Return whether policies have changed only because the addresses of DNS names have
        changed. Open connections then stay. Returns False if a network of niso now contains a
        former address of such a name.
        """
        others, outside = [], []
        for snapshot in self._snapshots:
            dns = [member for member in snapshot.members if member.kind == "outside"]
            outside.append({address for member in dns for address in member.values})
            rest = [member for member in snapshot.members if member.kind != "outside"]
            others.append((snapshot.policed, rest))
        if any(other != others[0] for other in others):
            return False
        lost, networks = outside[0] - outside[-1], self._snapshots[-1].networks
        subnets = [prefix(subnet.cidr) for network in networks for subnet in network.subnets]
        return not any(subnet.contains(address) for address in lost for subnet in subnets)


def _own(state: State) -> set[tuple[str, str]]:
    return {(a.netns, a.address.partition("/")[0]) for a in state[Address] if a.netns}


def _holders(state: State) -> set[tuple[str, str]]:
    """Return the holders of addresses as a set of pairs: (namespace, address) for services of this
    host, and (MAC, address) for services of other hosts.
    """
    own = _own(state)
    here = {address for _, address in own}
    of_host = (peer for peer in state[PermanentNeighbour] if not peer.netns)
    return own | {(peer.mac, peer.address) for peer in of_host if peer.address not in here}


def _subnets(state: State) -> set[str]:
    return {e.fields[0] for e in state[Element] if e.container in ("subnets4", "subnets6")}


def _spaces(state: State) -> set[str]:
    return {own.name for own in state[Netns]} | {attached.name for attached in state[NetnsName]}


class Plan(NamedTuple):
    """The steps of a change, and the desired states from which they were computed."""

    scope: Scope
    before: State
    steps: list[AnyStep]
    want: State
    candidates: State
    unread: frozenset[Element]  # assumed to be missing in the kernel without reading
    snapshot: Snapshot  # the rows of the store in the requested scope
    every: State  # the state that these rows require, also in namespaces that no longer exist
    closed: frozenset[object]  # namespaces and routes left out after a failure


def plan(
    kernel: Kernel,
    store: Store,
    scope: Scope,
    before: State,
    trusting: bool = False,
    closed: frozenset[object] = frozenset(),
) -> Plan:
    """Compute the steps that change the kernel to match the rows of ``scope``. Nothing is changed.

    ``before`` is the desired state before the change, whose objects may have to be deleted.
    ``trusting`` saves time: elements of nftables maps that are new in the store are not read, but
    assumed to be missing in the kernel. If such an element exists with another value, the kernel
    refuses to add it. ``closed`` are routes and namespaces to leave out, because a step for them
    has failed. Raises KernelError, and Conflict if an object of another program has a name that
    niso needs.
    """
    snapshot = store.snapshot(scope)
    every = _desired(kernel, snapshot, before)
    want, ended = _living(kernel, every)
    before = _without(before, every, ended)
    candidates = want | before
    known = {element.key() for element in before[Element]} if trusting else set()
    unread = frozenset(
        e for e in want[Element] if trusting and e.is_mapped and e.key() not in known
    )
    listed = candidates.replace(Element, candidates[Element] - unread)
    # objects in a namespace that is deleted are deleted with it, except the veth pair
    ending = {own.name for own in before[Netns]} - _spaces(want)
    asked = State.of_kinds(
        lambda kind: [
            obj
            for obj in listed[kind.type]
            if kind.reads_closed_spaces or kind.space(obj) not in ending
        ]
    )
    present = kernel.read(asked, alias(store.state_id()))
    if occupied := {*_occupied(kernel, want, present, before), *closed}:
        want = _outside(want, occupied)
        before, present = (_outside(one, occupied, but=Veth) for one in (before, present))
        candidates = want | before
    # the elements that are desired now, or that were desired for the same services and networks
    keys = {element.key() for element in want[Element]}
    owners = {(e.key(), e.owner, e.entry) for e in before[Element]}
    in_scope = [
        e for e in present[Element] if e.key() in keys or (e.key(), e.owner, e.entry) in owners
    ]
    have = present.replace(Element, in_scope)
    steps = diff(want, have)
    # the hosts folders that only services of the scope read
    whole = {hosts_folder(reader) for reader in snapshot.fresh}
    whole |= {own_hosts_folder(service.name) for service in snapshot.services}
    created = {step.folder for step in steps if isinstance(step, HostsEdit) and step.create}
    if scope != ALL and (want[Ruleset] != have[Ruleset] or not created <= whole):
        # the tables or a shared hosts file do not exist, so objects outside the scope are missing
        whole_plan = plan(kernel, store, ALL, before, closed=closed)
        return whole_plan._replace(snapshot=snapshot, every=every)
    return Plan(scope, before, steps, want, candidates, unread, snapshot, every, closed)


def carry_out(
    kernel: Kernel,
    store: Store,
    planned: Plan,
    report: Report,
    teardown: bool,
    detached: list[str] | None,
) -> list[AnyStep]:
    """Execute a plan, and return the executed steps. niso's lock must not be released since `plan`.

    With ``teardown``, a failed step does not stop the other steps. If the list ``detached`` is
    given, veth pairs of deleted namespaces are only detached from their bridges, and their names
    are added to the list. The caller must pass the list to `delete_detached` after releasing the
    lock. Raises KernelError, or with ``teardown`` an ErrorGroup.
    """
    steps = _carried_out(kernel, store, planned, report, teardown, detached)
    if store.writes_host_names():
        host_settings.update_host_names(kernel, store, report)
    return steps


def _carried_out(
    kernel: Kernel,
    store: Store,
    planned: Plan,
    report: Report,
    teardown: bool,
    detached: list[str] | None,
) -> list[AnyStep]:
    steps = planned.steps
    if not steps:
        return []
    for step in steps:
        report(step)
    touched = _touched(steps, planned.candidates)
    with kernel:
        try:
            if not teardown:
                kernel.write(steps, detached)
            elif errors := kernel.write_best_effort(steps, detached):
                raise ErrorGroup(errors)
            if touched:
                want = _of(planned.want, touched)
                touched = touched.replace(Ruleset, want[Ruleset])
                taken = any(step.kind.is_transactional for step in steps)
                # In a foreign namespace, only requested addresses are read. An object that has
                # moved, such as an interface that a container renamed, is read at its desired
                # location, not also at its old one.
                have = kernel.read(
                    touched.without(want) | want, alias(store.state_id()), skip_transactional=taken
                )
                hint = "another program may be changing niso's objects: niso net check"
                _require_none("the kernel did not keep a change", hint, _left(want, touched, have))
        except KernelError as error:
            if _is_of_container(error, planned.want, planned.before):
                return _without_container(kernel, store, planned, report, error)
            if error.errno != errno.EEXIST or not planned.unread:
                raise
            # an nftables element exists with another value; rules are written first, so nothing has
            # changed
            again = plan(kernel, store, planned.scope, planned.before, closed=planned.closed)
            return _carried_out(kernel, store, again, report, False, None)
    if any(isinstance(step, NftTransaction) and TABLES in step.edits for step in steps):
        ended_flows.clear(kernel, planned.want)  # a plan that creates the tables covers everything
    signals.hit("verified")
    return steps


def _touched(steps: list[AnyStep], candidates: State) -> State:
    """Return the objects to read back after steps, with the namespaces that contain them. nftables
    elements are left out, because their transaction is applied completely or not at all.
    """
    touched = State(obj for step in steps for obj in step.objects())
    inside = {kind.space(obj) for kind in KINDS for obj in touched[kind.type]}
    spaces = candidates[Netns] | candidates[NetnsName]
    return touched | State(space for space in spaces if space.name in inside)


def _of(want: State, touched: State) -> State:
    """Return the desired objects to compare with the kernel after a change of ``touched``.

    These are the desired objects with the keys of ``touched``, all desired addresses and routes on
    the same network interfaces, and the nftables tables.
    """
    links = {
        (kind.space(obj), link)
        for kind in KINDS
        for obj in touched[kind.type]
        for link in kind.links(obj)
    }
    keys = touched.keys()

    def is_touched(kind: Kind[Any], obj: KernelObject) -> bool:
        if kind.is_read_by_link:
            return any((kind.space(obj), link) in links for link in kind.links(obj))
        return kind.type is Ruleset or (kind.type, obj.key()) in keys

    return State.of_kinds(lambda kind: (o for o in want[kind.type] if is_touched(kind, o)))


def _left(want: State, candidates: State, have: State) -> list[AnyStep]:
    # a veth pair of a deleted namespace has no bridge, and disappears later
    stays = {space.name for space in want[Netns] | want[NetnsName]}
    dying = {veth.name for veth in candidates[Veth] if veth.netns not in stays}
    dying -= {veth.name for veth in want[Veth]}
    to_verify = [veth for veth in have[Veth] if veth.name not in dying or veth.bridge]
    return diff(want, have.replace(Veth, to_verify))


def wanted_now(kernel: Kernel, store: Store, scope: Scope) -> tuple[Snapshot, State]:
    """Return the rows of a scope, and the desired state of the kernel for these rows."""
    snapshot = store.snapshot(scope)
    return snapshot, _desired(kernel, snapshot)


def desired_now(kernel: Kernel, store: Store, scope: Scope) -> State:
    return wanted_now(kernel, store, scope)[1]


def _desired(kernel: Kernel, snapshot: Snapshot, before: State | None = None) -> State:
    """Return the desired state without objects that this kernel does not support, such as unknown
    sysctls. ``before`` is the desired state before the change, or None. Raises Error if rows refer
    to rows that are missing.
    """
    try:
        want = desired(snapshot)
    except (ValueError, LookupError) as error:
        message = f"{paths.database()}: related rows are missing"
        raise Error(message, "niso net check names them, niso net repair restores them") from error
    return State.of_kinds(lambda kind: kind.possible(want, before, kernel.sysctl))


def _living(kernel: Kernel, want: State) -> tuple[State, frozenset[str]]:
    """Return the desired state without the namespaces of attachments that no longer exist, and the
    set of these namespaces' names. The nftables elements for their addresses stay in the state: the
    addresses are reserved until the attachment is deleted.
    """
    ended = frozenset(
        named.name for named in want[NetnsName] if kernel.cookie_at(named.target) != named.cookie
    )
    return _outside(want, ended) if ended else want, ended


def _without(state: State, every: State, ended: frozenset[str]) -> State:
    return state.without(State(obj for obj in every if _in(obj, ended))) if ended else state


def _occupied(kernel: Kernel, want: State, have: State, before: State) -> dict[str, str]:
    """Return {namespace: interface} for attachments whose container replaced niso's interface. A
    container with the capability NET_ADMIN can replace the interface by its own. If later changes
    created niso's veth pair again, they would fail. Therefore the pair is deleted. The nftables
    elements for the attachment's address stay, as for a namespace that no longer exists.
    """
    # an attachment whose namespace has lost its name has not been read
    others = {named.name: named for named in want[NetnsName] & have[NetnsName]}
    if not others:
        return {}
    present = {veth.name: (veth.netns, veth.peer) for veth in have[Veth]}
    known = {veth.name for veth in before[Veth]}
    occupied = {}
    for veth in want[Veth]:
        end = present.get(veth.name)
        if veth.netns not in others or end == (veth.netns, veth.peer):
            continue
        if end is None and veth.name not in known:
            continue  # a new pair: the name of its inner end was free when it was chosen
        named = others[veth.netns]
        found = kernel.foreign_netns(named.target)
        if found is not None and found.cookie == named.cookie and veth.peer in found.links:
            occupied[veth.netns] = veth.peer
    return occupied


_BY_CONTAINER = {errno.EEXIST, errno.EINVAL, errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH}
_BY_CONTAINER |= {
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.ESTALE,
}  # the last: `_require_none`
"""Errors that the kernel returns if a container has changed its own interfaces or routes."""


def _is_of_container(error: KernelError, want: State, before: State) -> bool:
    """Return whether a step failed because a container changed the network of its own namespace.

    For example, a container with NET_ADMIN can move one of niso's routes to another interface. The
    command that creates the attachment then fails. Later changes must not fail, since they may
    concern the policy or other services: the caller deletes the veth pair and continues.
    """
    return (
        error.errno in _BY_CONTAINER
        and any(named.name == error.space for named in want[NetnsName])
        and any(veth.netns == error.space for veth in before[Veth])
    )


def _without_container(
    kernel: Kernel, store: Store, planned: Plan, report: Report, error: KernelError
) -> list[AnyStep]:
    """Execute the rest of a plan after a step failed because of a container, and warn the user."""
    report(WarningEvent(*_closed(error)))
    closed = planned.closed | {_culprit(error)}
    again = plan(kernel, store, planned.scope, planned.before, closed=closed)
    return _carried_out(kernel, store, again, report, False, None)


def _require_none(reason: str, hint: str, left: list[AnyStep]) -> None:
    """Raise KernelError if steps would still be necessary after a change."""
    for step in left:
        error = KernelError(f"{reason}: {step.describe().splitlines()[0]}", hint, errno.ESTALE)
        error.space = step.kind.space(step.obj) if isinstance(step, Step) else ""
        raise error


def _culprit(error: KernelError) -> object:
    # If a program in the container, such as a VPN, has set the same route, only this route (an
    # object) is left out of the second attempt, otherwise the whole namespace (a name).
    is_route = isinstance(error.obj, Route) and error.errno == errno.EEXIST
    return error.obj if is_route else error.space


def _closed(error: KernelError) -> tuple[str, tuple[str, ...]]:
    is_route = error.obj is not None and _culprit(error) is error.obj
    what = "keeps a route of its own" if is_route else "has no network now"
    hint = "take away what is in its place there, then niso net repair"
    return f"{error.space} {what}: {error.message}", (hint,)


def _outside(state: State, spaces: Container[object], but: type | None = None) -> State:
    # ``spaces`` may also have single objects to leave out; objects of the type ``but`` stay
    return State(
        obj
        for obj in state
        if (but and isinstance(obj, but)) or not (_in(obj, spaces) or obj in spaces)
    )


def compare(
    kernel: Kernel, store: Store, closed: Mapping[object, KernelError] | None = None
) -> tuple[State, State, Foreign]:
    """Compare all of niso's objects in the kernel with the rows of the store. Nothing is changed.

    Returns (desired state, actual state, conflicts). A conflict is an object of another program
    with a name that niso needs. Both states lack these objects, and objects that depend on them.
    ``closed`` maps routes and namespaces to the KernelError of a failed step: they count as
    conflicts, too.
    """
    foreign: Foreign = {}
    every = desired_now(kernel, store, ALL)
    want, ended = _living(kernel, every)
    have = kernel.read_all(want, alias(store.state_id()), foreign)
    have = _without(have, every, ended)
    want, have = without_foreign((want, have), set(foreign))
    occupied = _occupied(kernel, want, have, want)
    for netns, interface in occupied.items():
        foreign[netns] = Conflict(
            f"interface {interface!r} in {netns} is another link than niso's: the attachment has no"
            " network",
            "rename that link, then niso net repair",
        )
    for error in (closed or {}).values():
        message, hints = _closed(error)
        foreign[f"{error.space} {error.message}"] = Conflict(message, hints[0])
    if left_out := {*occupied, *(closed or ())}:
        want, have = _outside(want, left_out), _outside(have, left_out, but=Veth)
    return want, have, foreign


def _read_again(
    kernel: Kernel,
    store: Store,
    steps: list[AnyStep],
    want: State,
    have: State,
    closed: Mapping[object, KernelError],
) -> State:
    """Return the state of the kernel after a repair. ``have`` is the state before the repair. If
    the steps changed only nftables rules and elements, only these are read again.
    """
    if not all(step.kind.is_transactional for step in steps):
        return compare(kernel, store, closed)[1]
    both = want | have
    rules = State.of_kinds(lambda kind: both[kind.type] if kind.is_transactional else ())
    now = kernel.read(rules, alias(store.state_id()))
    return State.of_kinds(lambda kind: now[kind.type] if kind.is_transactional else have[kind.type])


def _in(obj: KernelObject, spaces: Container[object]) -> bool:
    return kind_of(obj).space(obj) in spaces


def repair(kernel: Kernel, store: Store, report: Report = silent) -> list[AnyStep]:
    """Repair all differences that `compare` finds, and return the executed steps. A second call
    executes no step. The caller must have niso's lock. Raises KernelError. If objects of other
    programs have names that niso needs, everything else is repaired first. Then an ErrorGroup with
    a Conflict for each of these objects is raised.
    """
    closed: dict[object, KernelError] = {}
    while True:
        want, have, foreign = compare(kernel, store, closed)
        steps = diff(want, have)
        for step in steps:
            report(step)
        try:
            kernel.write(steps)
            now = _read_again(kernel, store, steps, want, have, closed) if steps else want
            reason = "the kernel still differs after the repair"
            _require_none(reason, "niso net check", _left(want, have, now) if steps else [])
        except KernelError as error:
            if _is_of_container(error, want, want):
                closed[_culprit(error)] = error
                continue
            if error.errno != errno.ESTALE or not foreign:
                raise
        break
    if foreign:
        raise ErrorGroup(list(foreign.values()))
    return steps
