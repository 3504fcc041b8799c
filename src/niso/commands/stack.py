"""Carry out `niso stack up`, `down` and `status`: the services of one stack.toml as a unit.

`up` is one activation of all services, including the stack's networks and the services that left
its file, planned once and applied once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Container, Iterable, Iterator

from niso.base.errors import Error, ErrorGroup, InvalidInput, flatten
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.report import Caution, Report, silent
from niso.base.service_events import RemovingVolumes
from niso.commands import activate, deactivate
from niso.commands.activate import Outcome
from niso.manifest import stack_file as model
from niso.manifest import stack_order, stack_prefix
from niso.manifest.stack_file import Stack
from niso.runtime import volumes
from niso.services import journal, networks, stacks, start, targets
from niso.services.admit import Target
from niso.services.machine import Machine
from niso.services.networks import NetworkRequest
from niso.services.stacks import Membership
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.plan.known_world import World


class Up(NamedTuple):
    outcomes: list[Outcome]  # in dependency order
    left: list[str]  # services that are no longer in the file
    made: list[str]  # networks that were created
    idle: list[str]  # networks of the file that none of its services uses


class Down(NamedTuple):
    stack: str
    services: list[
        tuple[str, bool]
    ]  # in the order in which they ended, and whether they were active


def load(path: str, owners: Collection[int] | None = None) -> Stack:
    """Read and validate a stack.toml, its manifests and its networks; see `model.load`."""
    return model.load(path, _network_errors, owners)


def named(store: Store, plain: Stack) -> Stack:
    """Return a stack with this host's names of its services and networks.

    A stack may need a prefix here. Raises an ErrorGroup if a name with the prefix is too long.
    """
    names = [member.name for member in plain.members]
    wanted = stacks.prefixed(store, plain.asks, plain.name, names)
    return stack_prefix.stack(plain) if wanted else plain


def outlined(store: Store, path: str) -> model.Outline:
    """Return the outline of a stack.toml with this host's names of its services.

    Raises the errors of `model.outline`.
    """
    plain = model.outline(path)
    wanted = stacks.prefixed(store, plain.asks, plain.name, plain.after)
    return stack_prefix.outline(plain) if wanted else plain


def own(store: Store, path: str) -> model.Outline:
    """Return the outline of a stack.toml (`outlined`) whose services were activated from it.

    Also raises Conflict if they were activated from another file.
    """
    outline = outlined(store, path)
    _refuse_elsewhere(store, outline.name, outline.path)
    return outline


def up(
    machine: Machine,
    stack: Stack,
    timeout_s: float,
    report: Report = silent,
    dry_run: bool = False,
    replace: bool = False,
) -> Up:
    """Apply the stack's file completely, or change nothing.

    ``replace`` takes over services and a stack of these names from other folders. Raises the errors
    of `activate.activate`.
    """
    store = machine.store
    if not dry_run:
        journal.recover(machine, report)  # recovery may change which services belong to the stack
    stack = named(store, stack)
    if not replace:  # repeated under the lock; here, before a dry run shows what would end
        stacks.refuse_elsewhere(store, stack.name, stack.path, stacks.OR_REPLACE)
    wanted, joins = _joining(store, stack, replace)
    on = {network for target in wanted for network in target.spec.networks}
    known = (*stack.networks, *sorted(on - {*stack.networks}))
    made = [name for name in known if name in on and store.network(name) is None]
    after = {member.name: member.after for member in stack.members if member.after}
    spanning = [request for request in joins.networks if request.span]
    for network, other in stacks.shared(store, joins) if not joins.prefix else ():
        what = f"network {network} is also that of stack {other}: their services reach each other"
        report(Caution(what, ("prefix = true in [stack] makes networks of this stack's own",)))
    try:
        with _in_cluster(machine, joins, spanning, report, dry_run):
            outcomes = activate.activate(machine, wanted, timeout_s, report, dry_run, after, joins)
    except ErrorGroup as group:
        raise ErrorGroup([model.as_stack_error(stack, error) for error in group.errors]) from group
    except Error as error:
        raise model.as_stack_error(stack, error) from error
    left = list(joins.leaving)
    return Up(outcomes, left, made, [name for name in stack.networks if name not in on])


def refuse(plain: Stack) -> None:
    """Raise the errors that `up` would raise on any host. Changes nothing and reads no host.

    Raises an ErrorGroup, with the keys of the stack's file where they are known.
    """
    from niso.commands import static_check

    stack = stack_prefix.stack(plain) if plain.asks else plain
    loaded = [member.loaded for member in stack.members]
    on = {network for one in loaded for network in one.spec.networks}
    try:
        static_check.refuse(loaded, _membership(stack, on))
    except Error as error:
        raise ErrorGroup([model.as_stack_error(stack, one) for one in flatten(error)]) from None


@contextlib.contextmanager
def _in_cluster(
    machine: Machine,
    joins: Membership,
    spanning: list[NetworkRequest],
    report: Report,
    dry_run: bool,
) -> Iterator[None]:
    """Create networks in the cluster for a block; remove them again if the block fails."""
    if not spanning:
        yield
        return
    from niso.cluster.engine import NoAnswer
    from niso.services import span_networks

    made: list[span_networks.Proposed] = []
    try:
        for request in spanning:
            try:
                proposed = span_networks.propose(machine, request, dry_run)
            except NoAnswer:
                raise
            except Error as error:
                raise stacks.network_error(joins, request.name, error) from None
            made.append(proposed)
            if dry_run and not proposed.exists:
                what = f"network {request.name} is not in the cluster yet, and would be made there"
                report(Caution(what, ("its VXLAN device and what it claims are not shown",)))
        yield
    except BaseException:
        for proposed in made:
            span_networks.withdraw(machine, proposed, report)
        raise


def foreseen(machine: Machine, stack: Stack, replace: bool = False) -> tuple[World, World]:
    """Return the present services and networks, and those after `up`, as two worlds."""
    wanted, joins = _joining(machine.store, named(machine.store, stack), replace)
    return activate.foreseen(machine, wanted, joins)


def _joining(store: Store, stack: Stack, replace: bool) -> tuple[list[Target], Membership]:
    """Return a stack's targets, and their membership."""
    wanted = [target._replace(replace=replace) for target in _targets(store, stack)]
    names = {member.name for member in stack.members}
    left = [name for name in store.stack_members(stack.name) if name not in names]
    on = {network for target in wanted for network in target.spec.networks}
    return wanted, _membership(stack, on, left, replace)


def _membership(
    stack: Stack, on: Container[str], left: Iterable[str] = (), replace: bool = False
) -> Membership:
    """Return the membership for a stack's services, with those of its networks in ``on``."""
    requests = [_request(name, settings) for name, settings in stack.networks.items() if name in on]
    return Membership(
        stack.name,
        stack.path,
        stack.file,
        tuple(requests),
        tuple(left),
        {},
        replace,
        stack.prefix,
    )


def down(
    machine: Machine,
    path: str,
    report: Report = silent,
    dry_run: bool = False,
    with_volumes: bool = False,
) -> Down:
    """Deactivate all services of a stack, dependents first; their leases and networks stay.

    ``with_volumes`` also deletes their named volumes. Only the stack's name in the file must be
    valid. Raises Error.
    """
    store = machine.store
    if not dry_run:
        journal.recover(machine, report)
    outline = own(store, path)
    names = members(store, outline)
    for name in names if with_volumes else ():
        volumes.check_removable(name)  # before anything is stopped
    ended = deactivate.deactivate(machine, names, report, dry_run, needs=outline.after)
    if with_volumes and dry_run:
        for name in names:
            if kept := volumes.kept(name):
                report(RemovingVolumes(name, tuple(kept)))
    elif with_volumes:
        deactivate.remove_volumes(machine, names, report)
    return Down(outline.name, ended if not dry_run else [(name, True) for name in names])


def active_members(store: Store, stack: Stack) -> tuple[list[str], start.After]:
    """Return the active services of a stack, each after its dependencies among them.

    Raises Conflict if the stack of this name was activated from another file.
    """
    _refuse_elsewhere(store, stack.name, stack.path)
    stack = named(store, stack)
    active = {*store.active_services()} & {*store.stack_members(stack.name)}
    after = {
        member.name: {name: state for name, state in member.after.items() if name in active}
        for member in stack.members
        if member.name in active
    }
    return list(after), {name: needs for name, needs in after.items() if needs}


def _refuse_elsewhere(store: Store, name: str, path: str) -> None:
    stacks.refuse_elsewhere(store, name, path, "run the command on that file")


def members(store: Store, outline: model.Outline) -> list[str]:
    """Return the existing services of a stack, dependents first."""
    known = store.stack_members(outline.name)
    order = [name for name in reversed(stack_order.ordered(outline.after)) if name in known]
    return [*(name for name in known if name not in order), *order]


def _targets(store: Store, stack: Stack) -> list[Target]:
    """Return a stack's targets. Raises an ErrorGroup with the keys of the stack's file."""
    wanted: list[Target] = []
    errors: list[Error] = []
    taken = stacks.taken(store, stack.name, [member.name for member in stack.members])
    for member in stack.members:
        if member.name in taken:
            key = f"{member.key}.name" if member.overrides is not None else member.key
            error: Error = InvalidInput.of(taken[member.name])
            error.file, error.key = stack.file, key
            errors.append(error)
        try:
            wanted.append(targets.of_manifest(member.loaded))
        except ErrorGroup as group:
            errors += [model.as_stack_error(stack, error, member) for error in group.errors]
        except Error as error:
            errors.append(model.as_stack_error(stack, error, member))
    if errors:
        raise ErrorGroup(errors)
    return wanted


def _request(name: str, network: model.Network) -> NetworkRequest:
    return NetworkRequest(
        name,
        network.subnets,
        network.ipv6,
        network.gateways,
        network.internal,
        network.mtu,
        network.allow_public,
        network.observe,
        network.span,
    )


def _network_errors(name: str, network: model.Network) -> Iterable[InvalidInput]:
    try:
        networks.check(_request(name, network))
    except Error as error:
        yield stacks.error_of(name, error)
