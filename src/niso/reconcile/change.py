"""Change rows and kernel together: the one protocol of every command that changes both."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.base.prefixes import prefix
from niso.base.report import Report, silent
from niso.kernel.kinds.address import Address
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.element import Element
from niso.kernel.kinds.named import Named
from niso.kernel.kinds.namespace import Netns
from niso.kernel.kinds.peer import Peer
from niso.kernel.state import State
from niso.reconcile.converge import Plan, carry_out, plan, wanted_now
from niso.store.store import Scope, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.kernel.interface import Kernel
    from niso.kernel.kinds.kind import AnyStep
    from niso.plan.records import Port, Snapshot


class change:
    """Bring rows and kernel from before to after, together or not at all.

    A context manager. The caller holds niso's lock, and writes rows in the block, which is one
    transaction. At its end the kernel follows from the rows. What ends with the change follows
    from the states before and after it, never from the caller: flows of addresses that their
    holder loses, of ports that come, move or go, and those that policies no longer allow.

    By default the kernel changes inside the transaction: if it refuses, or niso dies, the rows are
    as before, and the same change can be made again. With ``teardown``, a failed step does not
    stop the others. With ``rows_first``, the rows are committed before the kernel changes. A new
    object is then on record if niso dies, and the caller undoes the rows if the kernel refuses.
    With ``dry_run``, the steps are reported, and nothing changes. ``ending`` is as for `carry_out`.

    ``scope`` is what the change concerns by the rows before. The block may widen it by what it
    concerns by the rows after.

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
        """Assume that the kernel may have ``things`` as well, after an interrupted command.

        By default these are what the rows say now and did not say before: the block can write rows,
        call this and write others.
        """
        if things is None:
            snapshot, now = wanted_now(self._kernel, self._store, self.scope)
            self._snapshots.append(snapshot)
            things = State.of_kinds(lambda kind: now[kind.thing] - self._before[kind.thing])
        self._doubt |= things

    def then(self, call: Callable[[], object]) -> None:
        """Call ``call`` once the kernel has changed, before the change is committed."""
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
        """Plan the steps. No row is committed if a foreign object is in their way."""
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
        """Change the kernel, and end what the change has withdrawn."""
        kernel, store, before, after = self._kernel, self._store, self._before, planned.every
        if before[Bridge] != after[Bridge]:
            from niso.reconcile import policy_flows

            policy_flows.introduce(kernel, store, before, after)
        self.steps = carry_out(kernel, store, planned, self._report, self._teardown, self._ending)
        if after != before or self._doubt:
            self._end_flows(before | self._doubt, after)
        for call in self._last:
            call()
        if not self._rows_first:
            from niso.reconcile import forwarding

            forwarding.forget(store)

    def _end_flows(self, before: State, after: State) -> None:
        """End the flows that ``before`` may have allowed and ``after`` does not.

        The order matters: what an address or a port no longer has need not be judged.
        """
        from niso.reconcile import nat_flows

        kernel = self._kernel
        was, now = _holders(before), _holders(after)
        gone = {address for _, address in was - now}
        if gone:  # its next holder must not be in the middle of another service's connection
            kernel.flush_addresses(gone)
        # a service of this host keeps its lease, and what is remembered of it, until another has it
        far = gone - {address for _, address in _own(before)}
        if forgotten := far | (_subnets(before) - _subnets(after)):
            kernel.forget_flows(forgotten)
        nat_flows.flush_changed_ports(kernel, self._before, after, self._doubt)
        nat_flows.end_flows(kernel, self._ports_of_ended({address for _, address in now}))
        if policed := {one.service for some in self._snapshots for one in some.policed}:
            from niso.reconcile import policy_flows

            if policy_flows.narrows(before, after) and not self._is_of_names_alone():
                policy_flows.cut(kernel, self._store, sorted(policed))
        for space in _spaces(before) - _spaces(after):
            kernel.clear_unfinished(space)

    def _ports_of_ended(self, kept: set[str]) -> list[Port]:
        """Return the ports of services that have ended while their addresses are still in use.

        Their network namespace is another service's.
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
        """Return whether policies change only because DNS has other answers.

        Open connections to the former addresses stay, unless a network has these addresses now.
        """
        first, *others = self._snapshots
        if any(_meaning(first) != _meaning(other) for other in others):
            return False
        lost = _outside(first) - _outside(others[-1])
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
    return {e.element for e in state[Element] if e.container in ("subnets4", "subnets6")}


def _spaces(state: State) -> set[str]:
    return {own.name for own in state[Netns]} | {attached.name for attached in state[Named]}


def _meaning(snapshot: Snapshot) -> tuple[object, ...]:
    """Return the policies of a snapshot and what their names mean, without outside names."""
    return snapshot.policed, [member for member in snapshot.members if member.kind != "outside"]


def _outside(snapshot: Snapshot) -> set[str]:
    return {a for member in snapshot.members if member.kind == "outside" for a in member.values}
