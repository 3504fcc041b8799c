"""Carry out `niso stack up`, `down` and `status` for the services of one stack.toml.

`up` is one activation of all services, planned and applied once. The activation also creates the
stack's networks and stops services that are no longer in the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator

from niso.base.errors import Error, ErrorGroup, InvalidInput, flatten
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import RemovingVolumes
from niso.change import activate, admit, deactivate, journal, start, static_check, targets
from niso.change.activate import Outcome
from niso.change.admit import StackMembership
from niso.change.deactivate import Done
from niso.change.scope import Target
from niso.look import stack_members
from niso.look.stack_members import _refuse_elsewhere, members, named, own
from niso.manifest import stack as manifest_stack
from niso.manifest.stack import Stack, as_stack_error
from niso.plan.subnets import NetworkRequest
from niso.runtime import volumes
from niso.runtime.machine import Machine
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import span_networks
    from niso.plan.verdict import PolicyContext


class StackUp(NamedTuple):
    """Result of `Stacks.up`. ``idle`` are networks of the file that no service uses."""

    stack: str  # name of the stack
    services: tuple[Outcome, ...]  # same as activate
    left: tuple[str, ...]  # strings: services that are no longer in the file and were deactivated
    networks: tuple[str, ...]  # strings: networks that were created
    idle: tuple[str, ...]


class StackDown(NamedTuple):
    """Result of `Stacks.down`. The services are in the order in which they were stopped."""

    stack: str
    services: tuple[Done, ...]


def up(machine: Machine, stack: Stack, timeout_s: float, dry_run: bool, replace: bool) -> StackUp:
    """Apply the stack's file. After an error, all changes are rolled back.

    With ``replace``, a stack and services of the same names from other folders are replaced.
    ``timeout_s`` is the time in seconds for the start of a service. Raises the errors of
    `activate.activate`.
    """
    store = machine.store
    if not dry_run:
        journal.recover(machine)  # recovery may change which services belong to the stack
    stack = named(store, stack)
    if not replace:  # repeated under the lock; here, before a dry run shows what would end
        stack_members.refuse_elsewhere(store, stack.name, stack.path, admit.OR_REPLACE)
    wanted, joins = _joining(store, stack, replace)
    on = {network for target in wanted for network in target.spec.network.networks}
    known = (*stack.networks, *sorted(on - {*stack.networks}))
    made = [name for name in known if name in on and store.network(name) is None]
    after = {member.name: member.after for member in stack.members if member.after}
    spanning = [request for request in joins.networks if request.span]
    for network, other in admit.shared(store, joins) if not joins.prefix else ():
        what = f"network {network} is also that of stack {other}: their services reach each other"
        machine.caution(what, ("prefix = true in [stack] makes networks of this stack's own",))
    try:
        with _in_cluster(machine, joins, spanning, dry_run):
            outcomes = activate.activate(machine, wanted, timeout_s, dry_run, after, joins)
    except ErrorGroup as group:
        raise ErrorGroup([as_stack_error(stack, error) for error in group.errors]) from group
    except Error as error:
        raise as_stack_error(stack, error) from error
    idle = tuple(name for name in stack.networks if name not in on)
    return StackUp(stack.name, tuple(outcomes), joins.leaving, tuple(made), idle)


def refuse(plain: Stack) -> None:
    """Raise the errors that `up` would raise on every host, with the stack file's keys."""
    stack = manifest_stack.stack(plain) if plain.asks else plain
    loaded = [member.loaded for member in stack.members]
    on = {network for one in loaded for network in one.spec.network.networks}
    try:
        static_check.refuse(loaded, _membership(stack, on))
    except Error as error:
        raise ErrorGroup([as_stack_error(stack, one) for one in flatten(error)]) from None


@contextlib.contextmanager
def _in_cluster(
    machine: Machine, joins: StackMembership, spanning: list[NetworkRequest], dry_run: bool
) -> Iterator[None]:
    """Run a ``with`` block while the stack's networks that span hosts exist in the cluster. If the
    block fails, networks that were created for it are removed again.
    """
    from niso.change import span_networks
    from niso.cluster.engine import NoAnswer

    if not spanning:
        yield
        return

    made: list[span_networks.Arriving] = []
    try:
        for request in spanning:
            try:
                _, proposed = span_networks.propose(machine, request, dry_run)
            except NoAnswer:
                raise
            except Error as error:
                raise admit.network_error(joins, request.name, error) from None
            made.append(proposed)
            if dry_run and not proposed.exists:
                what = f"network {request.name} is not in the cluster yet, and would be made there"
                machine.caution(what, ("its VXLAN device and what it claims are not shown",))
        yield
    except BaseException:
        for proposed in made:
            span_networks.withdraw(machine, proposed)
        raise


def foreseen(machine: Machine, stack: Stack, replace: bool) -> tuple[PolicyContext, PolicyContext]:
    """Return the data from which policies are evaluated, before and after `up`.

    `up` is only simulated: nothing changes.
    """
    wanted, joins = _joining(machine.store, named(machine.store, stack), replace)
    return activate.foreseen(machine, wanted, joins)


def _joining(store: Store, stack: Stack, replace: bool) -> tuple[list[Target], StackMembership]:
    wanted = [target._replace(replace=replace) for target in _targets(store, stack)]
    names = {member.name for member in stack.members}
    left = [name for name in store.stack_members(stack.name) if name not in names]
    on = {network for target in wanted for network in target.spec.network.networks}
    return wanted, _membership(stack, on, left, replace)


def _membership(
    stack: Stack, on: Container[str], left: Iterable[str] = (), replace: bool = False
) -> StackMembership:
    """Return the data with which services are recorded as members of a stack. ``on`` are the
    networks of the services, and ``left`` the services that were removed from the stack's file.
    """
    requests = [request for name, request in stack.networks.items() if name in on]
    return StackMembership(
        stack.name, stack.path, stack.file, tuple(requests), tuple(left), replace, stack.prefix
    )


def down(machine: Machine, path: str, dry_run: bool, with_volumes: bool) -> StackDown:
    """Deactivate all services of a stack. Networks stay, and the services' addresses stay reserved.

    A service is stopped before the services that it depends on. With ``with_volumes``, the named
    volumes are deleted too. The file need not be valid, except for the stack's name. Raises Error.
    """
    store = machine.store
    if not dry_run:
        journal.recover(machine)
    outline = own(store, path)
    names = members(store, outline)
    for name in names if with_volumes else ():
        volumes.check_removable(name)  # before anything is stopped
    ended = deactivate.deactivate(machine, names, dry_run, needs=outline.after)
    if with_volumes and dry_run:
        for name in names:
            if kept := volumes.existing_names(name):
                machine.report(RemovingVolumes(name, tuple(kept)))
    elif with_volumes:
        deactivate.remove_volumes(machine, [(name, "") for name in names])
    ended = [Done(name, True) for name in names] if dry_run else ended
    return StackDown(outline.name, tuple(ended))


def active_members(store: Store, stack: Stack) -> tuple[list[str], start.After]:
    """Return a stack's active services, and {service: {dependency: state to reach}} for them."""
    _refuse_elsewhere(store, stack.name, stack.path)
    stack = named(store, stack)
    active = {*store.active_services()} & {*store.stack_members(stack.name)}
    after = {
        member.name: {name: state for name, state in member.after.items() if name in active}
        for member in stack.members
        if member.name in active
    }
    return list(after), {name: needs for name, needs in after.items() if needs}


def _targets(store: Store, stack: Stack) -> list[Target]:
    """Return the targets for a stack's services. Raises an ErrorGroup with keys of the file."""
    wanted: list[Target] = []
    errors: list[Error] = []
    taken = stack_members.taken(store, stack.name, [member.name for member in stack.members])
    for member in stack.members:
        if member.name in taken:
            refused = InvalidInput.of(taken[member.name])
            refused.file, refused.key = stack.file, member.key
            if member.overrides is not None:
                refused.key = f"{member.key}.name"
            errors.append(refused)
        try:
            wanted.append(targets.from_manifest(member.loaded))
        except Error as error:
            errors += [as_stack_error(stack, one, member) for one in flatten(error)]
    if errors:
        raise ErrorGroup(errors)
    return wanted
