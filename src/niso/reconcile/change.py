"""Change rows and kernel together (`change`); read, plan, write and verify kernel state.

Every command that changes both does it in the block of `change`, which also deletes the flows that
the change no longer allows. Commands, repair and recovery after a crash run the same code with
different scopes. Only this module compares desired and actual kernel state.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Mapping

from niso.base import paths, signals
from niso.base.errors import Conflict, Error, ErrorGroup, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import alias, hosts_folder, own_hosts_folder, prefix
from niso.base.report import Caution, Report, silent
from niso.kernel.diff import diff, without_foreign
from niso.kernel.kinds.addresses import Address, Route
from niso.kernel.kinds.hosts_files import HostsEdit
from niso.kernel.kinds.kind import KINDS, AnyStep, Foreign, State, Step, Thing, kind_of
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Named, Netns
from niso.kernel.kinds.neighbours import Peer
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired
from niso.plan.records import Port, Snapshot
from niso.reconcile import ended_flows, host_settings
from niso.store.snapshots import ALL, Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.kernel.interface import Kernel


# --- one change of rows and kernel ----------------------------------------------------------------


class change:
    """Change rows and kernel in one ``with`` block, atomically.

    The caller has niso's lock, and writes rows in the block, which is one transaction. At the end
    of the block the kernel is updated to the rows. Which flows are deleted follows from the states
    before and after, never from the caller: flows of addresses that their holder loses, of ports
    that are added, moved or removed, and flows that policies no longer allow.

    By default the kernel changes inside the transaction: if the kernel refuses, or niso is killed,
    the rows are as before, and the same change can be made again. With ``rows_first``, the rows are
    committed before the kernel changes: a new object is then recorded if niso is killed, and the
    caller undoes the rows if the kernel refuses. With ``teardown``, a failed step does not stop the
    others. With ``dry_run``, the steps are reported, and nothing changes. ``ending`` is as for
    `carry_out`.

    ``scope`` is the scope by the rows before (`niso.change.scope`). The block may assign its union
    with the scope by the rows after.

    The block raises what `plan` and `carry_out` raise: KernelError, Conflict, ErrorGroup, Error.
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
        ending: list[str] | None = None,
    ) -> None:
        self.scope = scope
        self.steps: list[AnyStep] = []
        """The steps taken, or planned with ``dry_run``; complete after the block."""
        self.is_recorded = False
        """Whether the rows are committed: with ``rows_first``, an error may come after that."""
        self._kernel, self._store, self._report = kernel, store, report
        self._teardown, self._rows_first, self._dry_run = teardown, rows_first, dry_run
        self._ending = ending
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

    def doubt(self, things: State | None = None) -> None:
        """Treat ``things`` as part of the kernel's state before, after an interrupted command.

        By default these are the objects that the rows require now and did not require before: the
        block can write rows, call this and write other rows.
        """
        if things is None:
            snapshot, now = wanted_now(self._kernel, self._store, self.scope)
            self._snapshots.append(snapshot)
            things = State.of_kinds(lambda kind: now[kind.thing] - self._before[kind.thing])
        self._doubt |= things

    def then(self, call: Callable[[], object]) -> None:
        """Arrange that ``call`` is called after the kernel has changed, before the commit."""
        self._last.append(call)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
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
        """Plan the steps. If a foreign object has a needed name, no row is committed."""
        kernel, store, before = self._kernel, self._store, self._before | self._doubt
        planned = plan(kernel, store, self.scope, before, trusting=not self._dry_run)
        self._snapshots.append(planned.snapshot)
        if self._dry_run:
            self.steps = planned.steps
            for step in self.steps:
                self._report(step)
            return planned
        fresh = {address for _, address in store.leases_of(self._services) - self._leases}
        if fresh:  # no service has these addresses until the leases are committed
            kernel.forget_flows(fresh)
        return planned

    def _carry_out(self, planned: Plan) -> None:
        """Change the kernel, and delete the flows that the change no longer allows."""
        kernel, store, before, after = self._kernel, self._store, self._before, planned.every
        if before[Bridge] != after[Bridge]:
            ended_flows.introduce(kernel, store, before, after)
        self.steps = carry_out(kernel, store, planned, self._report, self._teardown, self._ending)
        if after != before or self._doubt:
            self._end_flows(before | self._doubt, after)
        for call in self._last:
            call()
        if not self._rows_first:
            host_settings.forget(store)

    def _end_flows(self, before: State, after: State) -> None:
        """Delete the flows that ``before`` may have allowed and ``after`` does not.

        Policies are evaluated last: flows that are already deleted need no verdict.
        """
        kernel = self._kernel
        was, now = _holders(before), _holders(after)
        gone = {address for _, address in was - now}
        if gone:  # its next holder must not be in the middle of another service's connection
            kernel.flush_addresses(gone)
        # a service of this host keeps its lease and recorded flows until another one leases it
        far = gone - {address for _, address in _own(before)}
        if forgotten := far | (_subnets(before) - _subnets(after)):
            kernel.forget_flows(forgotten)
        ended_flows.flush_changed_ports(kernel, self._before, after, self._doubt)
        ended_flows.end_flows(kernel, self._ports_of_ended({address for _, address in now}))
        # flows of a service that ends, or loses its policy, need no verdict
        policed = {one.service for one in self._snapshots[-1].policed}
        if policed and ended_flows.narrows(before, after) and not self._is_of_names_alone():
            ended_flows.cut(kernel, self._store, sorted(policed))
        for space in _spaces(before) - _spaces(after):
            kernel.clear_unfinished(space)

    def _ports_of_ended(self, kept: set[str]) -> list[Port]:
        """Return the ports of services that are deactivated while their namespace stays.

        ``kept`` are the addresses after the change.
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
        """Return whether policies change only because DNS has different answers.

        Open connections to the former addresses stay, unless a network contains such an address
        now.
        """
        first, *others = self._snapshots
        if any(_meaning(first) != _meaning(other) for other in others):
            return False
        lost = _outside_addresses(first) - _outside_addresses(others[-1])
        subnets = [prefix(s.cidr) for network in others[-1].networks for s in network.subnets]
        return not any(subnet.holds(address) for address in lost for subnet in subnets)


def _own(state: State) -> set[tuple[str, str]]:
    """Return (namespace, address) of the services of this host."""
    return {(a.netns, a.address.partition("/")[0]) for a in state[Address] if a.netns}


def _holders(state: State) -> set[tuple[str, str]]:
    """Return (namespace, address) of services, and (MAC, address) of those of other hosts."""
    own = _own(state)
    here = {address for _, address in own}
    return own | {(p.mac, p.address) for p in state[Peer] if not p.netns and p.address not in here}


def _subnets(state: State) -> set[str]:
    return {e.fields[0] for e in state[Element] if e.container in ("subnets4", "subnets6")}


def _spaces(state: State) -> set[str]:
    return {own.name for own in state[Netns]} | {attached.name for attached in state[Named]}


def _meaning(snapshot: Snapshot) -> tuple[object, ...]:
    """Return the policies of a snapshot and the addresses of their names, except DNS names."""
    return snapshot.policed, [member for member in snapshot.members if member.kind != "outside"]


def _outside_addresses(snapshot: Snapshot) -> set[str]:
    return {a for member in snapshot.members if member.kind == "outside" for a in member.values}


# --- plan, write and verify a scope ---------------------------------------------------------------


class Plan(NamedTuple):
    """The steps to take and the states from which they were computed."""

    scope: Scope
    before: State
    steps: list[AnyStep]
    want: State
    candidates: State
    unread: frozenset[Element]  # assumed absent without reading
    snapshot: Snapshot  # the rows of the requested scope
    every: State  # what they require, also in namespaces that have ended
    closed: frozenset[object] = frozenset()  # what was left out after a failure: `_culprit`


def plan(
    kernel: Kernel,
    store: Store,
    scope: Scope,
    before: State,
    trusting: bool = False,
    closed: frozenset[object] = frozenset(),
) -> Plan:
    """Compute the steps that update the kernel to the store's state for ``scope``.

    Changes nothing. ``before`` is the desired state before the change: objects in it that are no
    longer desired are deleted. With ``trusting``, map elements that are new in the store are
    assumed to be absent and not read: the kernel refuses those that clash. ``closed`` are routes
    and namespaces that are left out, since a step for them has failed. Raises KernelError, and
    Conflict if a foreign object has a required name.
    """
    snapshot = store.snapshot(scope)
    every = _possible(kernel, _desired(snapshot), before)
    want, ended = _living(kernel, every)
    before = _without(before, every, ended)
    candidates = want | before
    known = {element.key() for element in before[Element]} if trusting else set()
    unread = frozenset(
        e for e in want[Element] if trusting and e.is_mapped and e.key() not in known
    )
    asked = candidates.replace(Element, candidates[Element] - unread)
    present = kernel.read(asked, alias(store.state_id()))
    if occupied := {*_occupied(kernel, want, present, before), *closed}:
        want = _outside(want, occupied)
        before, present = (_outside(one, occupied, but=Veth) for one in (before, present))
        candidates = want | before
    have = State.of_kinds(lambda kind: kind.in_scope(present, want, before))
    steps = diff(want, have)
    whole = {hosts_folder(reader) for reader in snapshot.fresh}
    whole |= {own_hosts_folder(service.name) for service in snapshot.services}
    if scope != ALL and _rebuilds(want, have, steps, whole):
        # the tables or a shared hosts file no longer exist, including content outside this scope
        whole_plan = plan(kernel, store, ALL, before, closed=closed)
        return whole_plan._replace(snapshot=snapshot, every=every)
    return Plan(scope, before, steps, want, candidates, unread, snapshot, every, closed)


def carry_out(
    kernel: Kernel,
    store: Store,
    planned: Plan,
    report: Report = silent,
    teardown: bool = False,
    ending: list[str] | None = None,
) -> list[AnyStep]:
    """Execute a plan that was made under the same lock; return the executed steps.

    With ``teardown``, a failed step does not stop the others. With ``ending``, veth pairs of
    deleted namespaces are only detached, and their names added to ``ending``; the caller must pass
    it to `end_links` after releasing the lock. Raises KernelError or, from a teardown, an
    ErrorGroup.
    """
    steps = _carried_out(kernel, store, planned, report, teardown, ending)
    if store.host_knows():
        host_settings.settle(kernel, store, report)
    return steps


def _carried_out(
    kernel: Kernel,
    store: Store,
    planned: Plan,
    report: Report,
    teardown: bool,
    ending: list[str] | None,
) -> list[AnyStep]:
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
                kernel.write(steps, ending)
            except KernelError as error:
                if _is_of_container(error, planned.want, planned.before):
                    return _without_container(kernel, store, planned, report, error)
                if error.errno != errno.EEXIST or not planned.unread:
                    raise
                # an element exists with another value; rules are written first, so nothing has
                # changed
                again = plan(kernel, store, planned.scope, planned.before, closed=planned.closed)
                return _carried_out(kernel, store, again, report, False, None)
        touched = touched.replace(Ruleset, want[Ruleset])
        taken = any(step.kind.is_transactional for step in steps)
        # In a foreign namespace, only requested addresses are read. An object that has moved, such
        # as a link that a container renamed, is read at its desired location, not also at its old
        # one.
        keys = {(type(thing), thing.key()) for thing in want}
        former = State(thing for thing in touched if (type(thing), thing.key()) not in keys)
        have = kernel.read(former | want, alias(store.state_id()), taken=taken)
    left = _left(want, touched, have)
    if left:
        hint = "another program may be changing niso's objects: niso net check"
        lost = _not_kept("the kernel did not keep a change", hint, left[0])
        if _is_of_container(lost, planned.want, planned.before):
            return _without_container(kernel, store, planned, report, lost)
        raise lost
    if any(isinstance(step, NftTransaction) and step.makes_tables() for step in steps):
        ended_flows.clear(kernel, planned.want)  # a plan that creates the tables covers everything
    signals.hit("verified")
    return steps


def _touched(steps: list[AnyStep], candidates: State) -> State:
    """Return the objects to read back after the steps, with their namespaces.

    Links of other namespaces need not be read again. Elements are left out: the kernel applies a
    transaction completely or not at all, so its acknowledgement is enough.
    """
    things = [thing for step in steps for thing in step.things()]
    touched = State(things)
    inside = {kind.space(thing) for kind in KINDS for thing in touched[kind.thing]}
    made = State(space for space in candidates[Netns] if space.name in inside)
    return touched | made | State(space for space in candidates[Named] if space.name in inside)


def _of(want: State, touched: State) -> State:
    """Return the part of ``want`` for the objects in ``touched``.

    For a link, all its addresses and routes are included. The rules are always included.
    """
    links = {
        (kind.space(thing), link)
        for kind in KINDS
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
    """Return the steps still missing in ``have``, as read after a change of ``candidates``."""
    return diff(want, State.of_kinds(lambda kind: kind.settled(have, want, candidates)))


def wanted_now(kernel: Kernel, store: Store, scope: Scope) -> tuple[Snapshot, State]:
    """Return the rows of ``scope`` and the kernel state that they require."""
    snapshot = store.snapshot(scope)
    return snapshot, _possible(kernel, _desired(snapshot))


def desired_now(kernel: Kernel, store: Store, scope: Scope) -> State:
    """Return the desired kernel state of ``scope`` according to the current store."""
    return wanted_now(kernel, store, scope)[1]


def _desired(snapshot: Snapshot) -> State:
    """Compute `niso.plan.desired` of a snapshot. Raises Error if required rows are missing."""
    try:
        return desired(snapshot)
    except (ValueError, LookupError) as error:
        message = f"{paths.database()}: related rows are missing"
        raise Error(message, "niso net check names them, niso net repair restores them") from error


def _possible(kernel: Kernel, want: State, before: State | None = None) -> State:
    """Return ``want`` without objects that this kernel cannot have, such as unknown sysctls."""
    return State.of_kinds(lambda kind: kind.possible(want, before, kernel.sysctl))


def _living(kernel: Kernel, want: State) -> tuple[State, frozenset[str]]:
    """Return (``want`` without foreign namespaces that have ended, the names of these namespaces).

    Objects in these namespaces are left out too. Elements for their addresses stay, since an
    address belongs to its attachment until the attachment is forgotten.
    """
    ended = frozenset(
        named.name for named in want[Named] if kernel.cookie_at(named.target) != named.cookie
    )
    if not ended:
        return want, ended
    return State(thing for thing in want if not _in(thing, ended)), ended


def _without(state: State, every: State, ended: frozenset[str]) -> State:
    """Return ``state`` without objects of ended namespaces.

    ``every`` has all desired objects, from which it follows what is in these namespaces. The
    objects are deleted when their attachment is deleted.
    """
    if not ended:
        return state
    going = {(type(thing), thing.key()) for thing in every if _in(thing, ended)}
    return State(thing for thing in state if (type(thing), thing.key()) not in going)


def _occupied(kernel: Kernel, want: State, have: State, before: State) -> dict[str, str]:
    """Return {namespace: interface} where a container has replaced niso's link by another one.

    With NET_ADMIN, a container can do this. Creating the pair again would fail at each change of
    the attachment's policy and at its detachment. Therefore the pair is deleted, and elements for
    its address stay, as for an ended namespace.
    """
    # one that has lost its name has not been read
    others = {named.name: named for named in want[Named] & have[Named]}
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
            continue  # a new one, whose place was free when it was chosen
        named = others[veth.netns]
        found = kernel.look_at(named.target)
        if found is not None and found.cookie == named.cookie and veth.peer in found.links:
            occupied[veth.netns] = veth.peer
    return occupied


_BY_CONTAINER = frozenset(
    (
        errno.EEXIST,
        errno.EINVAL,
        errno.ENODEV,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ESTALE,  # `_not_kept`
    )
)
"""What the kernel answers if a container has changed its own links, addresses or routes."""


def _is_of_container(error: KernelError, want: State, before: State) -> bool:
    """Return whether a step failed because of objects in an attachment's namespace.

    A container with NET_ADMIN can, for example, move a route of niso's to another link. A first
    attachment then fails and is undone. A later change must not fail: the attachment's policy may
    be what changes, and other services must not wait. Therefore the pair is deleted, and the other
    steps are carried out.
    """
    return (
        error.errno in _BY_CONTAINER
        and any(named.name == error.space for named in want[Named])
        and any(veth.netns == error.space for veth in before[Veth])
    )


def _without_container(
    kernel: Kernel, store: Store, planned: Plan, report: Report, error: KernelError
) -> list[AnyStep]:
    """Carry out a plan without the steps that failed in a container; warn about these."""
    report(Caution(*_closed(error)))
    closed = planned.closed | {_culprit(error)}
    again = plan(kernel, store, planned.scope, planned.before, closed=closed)
    return _carried_out(kernel, store, again, report, False, None)


def _not_kept(reason: str, hint: str, step: AnyStep) -> KernelError:
    """Build the error for a step that the kernel acknowledged but that has no effect."""
    error = KernelError(f"{reason}: {step.describe().splitlines()[0]}", hint, errno.ESTALE)
    error.space = step.kind.space(step.thing) if isinstance(step, Step) else ""
    return error


def _culprit(error: KernelError) -> object:
    """Return what to leave out after a failure in a container: a route, or the namespace.

    A program such as a VPN may have changed a route of niso's, and needs the network.
    """
    is_route = isinstance(error.thing, Route) and error.errno == errno.EEXIST
    return error.thing if is_route else error.space


def _closed(error: KernelError) -> tuple[str, tuple[str, ...]]:
    """Build the warning for an attachment in which a step has failed, with the next steps."""
    if error.thing is not None and _culprit(error) is error.thing:
        what = f"{error.space} keeps a route of its own: {error.message}"
    else:
        what = f"{error.space} has no network now: {error.message}"
    return what, ("take away what is in its place there, then niso net repair",)


def _outside(state: State, spaces: Container[object], but: type | None = None) -> State:
    """Return ``state`` without the objects in these namespaces, and without ``things``.

    Objects of the type ``but`` stay.
    """
    return State(
        thing
        for thing in state
        if (but and isinstance(thing, but)) or not (_in(thing, spaces) or thing in spaces)
    )


def _rebuilds(want: State, have: State, steps: list[AnyStep], whole: set[str]) -> bool:
    """Return whether objects outside this scope are missing too.

    The hosts files in ``whole`` have no reader outside the scope.
    """
    if want[Ruleset] != have[Ruleset]:
        return True
    return any(
        isinstance(step, HostsEdit) and step.create and step.folder not in whole for step in steps
    )


def compare(
    kernel: Kernel, store: Store, closed: Mapping[object, KernelError] | None = None
) -> tuple[list[AnyStep], State, State, Foreign]:
    """Compare all objects of niso in this network namespace: (steps, want, have, foreign).

    Changes nothing. ``closed`` is left out, as in `plan`, with the error for each. A foreign object
    with a required name is in ``foreign``; neither state contains it or its dependents.
    """
    foreign: Foreign = {}
    every = desired_now(kernel, store, ALL)
    want, ended = _living(kernel, every)
    have = kernel.read_all(want, alias(store.state_id()), foreign)
    have = _without(have, every, ended)
    want, have = without_foreign((want, have), set(foreign))
    occupied = _occupied(kernel, want, have, want)
    foreign |= {name: _taken(name, interface) for name, interface in occupied.items()}
    for error in (closed or {}).values():
        message, hints = _closed(error)
        foreign[f"{error.space} {error.message}"] = Conflict(message, hints[0])
    if left_out := {*occupied, *(closed or ())}:
        want, have = _outside(want, left_out), _outside(have, left_out, but=Veth)
    return diff(want, have), want, have, foreign


def _taken(netns: str, interface: str) -> Conflict:
    """Build the error for an attachment that has another link in place of niso's."""
    return Conflict(
        f"interface {interface!r} in {netns} is another link than niso's: the attachment has no"
        " network",
        "rename that link, then niso net repair",
    )


def _read_again(
    kernel: Kernel,
    store: Store,
    steps: list[AnyStep],
    want: State,
    have: State,
    closed: Mapping[object, KernelError],
) -> State:
    """Return the kernel's state after a repair of ``have``.

    If the repair changed only rules and elements, only these are read again, and no namespace.
    """
    if not all(step.kind.is_transactional for step in steps):
        return compare(kernel, store, closed)[2]
    both = want | have
    rules = State.of_kinds(lambda kind: both[kind.thing] if kind.is_transactional else ())
    now = kernel.read(rules, alias(store.state_id()))
    return State.of_kinds(
        lambda kind: now[kind.thing] if kind.is_transactional else have[kind.thing]
    )


def _in(thing: Thing, spaces: Container[object]) -> bool:
    return kind_of(thing).space(thing) in spaces


def repair(kernel: Kernel, store: Store, report: Report = silent) -> list[AnyStep]:
    """Repair all differences that `compare` finds; return the steps. A second call takes no step.

    The caller holds the lock. Raises KernelError. After all other repairs, raises an ErrorGroup
    with one Conflict for each foreign object that has a required name.
    """
    closed: dict[object, KernelError] = {}
    while True:
        steps, want, have, foreign = compare(kernel, store, closed)
        for step in steps:
            report(step)
        try:
            kernel.write(steps)
        except KernelError as error:
            if not _is_of_container(error, want, want):
                raise
            closed[_culprit(error)] = error
            continue
        now = _read_again(kernel, store, steps, want, have, closed) if steps else have
        left = _left(want, have, now) if steps else []
        if not left:
            break
        lost = _not_kept("the kernel still differs after the repair", "niso net check", left[0])
        if not _is_of_container(lost, want, want):
            if foreign:
                break
            raise lost
        closed[lost.space] = lost
    if foreign:
        raise ErrorGroup(list(foreign.values()))
    return steps
