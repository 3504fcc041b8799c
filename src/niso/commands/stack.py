"""What `niso stack up`, `down` and `status` do: the services of one stack.toml as one thing.

It is one activation of all services, with the stack's networks and whoever left its file, planned once and applied once.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import ErrorGroup, InvalidInput, NisoError
from niso.base.lite_typing import NamedTuple
from niso.base.report import RemovingVolumes, Report, silent
from niso.commands import activate, deactivate
from niso.commands.activate import Outcome
from niso.manifest import stack_file as model
from niso.manifest.stack_file import Stack
from niso.runtime import volumes
from niso.services import journal, networks, stacks, targets
from niso.services.machine import Machine
from niso.services.networks import Wish
from niso.services.stacks import Membership
from niso.services.targets import Target
from niso.store.store import Store


class Up(NamedTuple):
    outcomes: list[Outcome]  # in the order of dependencies
    left: list[str]  # services that left the file
    made: list[str]  # networks that were not there
    idle: list[str]  # networks of the file that no service of it is on


class Down(NamedTuple):
    stack: str
    services: list[
        tuple[str, bool]
    ]  # in the order in which they ended, and whether they were active


def load(path: str) -> Stack:
    """Read and check a stack.toml and all that it names. Raises as `model.load` does."""
    return model.load(path, _network_errors)


def up(
    machine: Machine, stack: Stack, timeout_s: float, report: Report = silent, dry_run: bool = False
) -> Up:
    """Make everything be as the stack's file says, or leave everything as it was. Raises what `activation.activate` does."""
    store = machine.store
    if not dry_run:
        journal.recover(machine, report)  # who belongs to the stack may be another one before
    wanted = _targets(store, stack)
    names = {member.name for member in stack.members}
    left = [name for name in store.stack_members(stack.name) if name not in names]
    on = {network for target in wanted for network in target.spec.networks}
    wishes = [_wish(name, said) for name, said in stack.networks.items() if name in on]
    made = [wish.name for wish in wishes if store.network(wish.name) is None]
    after = {member.name: member.after for member in stack.members if member.after}
    joins = Membership(stack.name, stack.file, tuple(wishes), tuple(left), {})
    try:
        outcomes = activate.activate(machine, wanted, timeout_s, report, dry_run, after, joins)
    except ErrorGroup as group:
        raise ErrorGroup([model.in_words_of(stack, error) for error in group.errors]) from group
    except NisoError as error:
        raise model.in_words_of(stack, error) from error
    return Up(outcomes, left, made, [name for name in stack.networks if name not in on])


def down(
    machine: Machine,
    path: str,
    report: Report = silent,
    dry_run: bool = False,
    with_volumes: bool = False,
) -> Down:
    """Deactivate all services of a stack, each before those that it depends on; their leases and networks stay.

    ``with_volumes`` their named volumes go. Needs the stack's name alone to be right in its file. Raises NisoError.
    """
    store, outline = machine.store, model.outline(path)
    if not dry_run:
        journal.recover(machine, report)
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


def members(store: Store, outline: model.Outline) -> list[str]:
    """The known services of a stack, each before those that it depends on."""
    known = store.stack_members(outline.name)
    order = [name for name in reversed(model.ordered(outline.after)) if name in known]
    return [*(name for name in known if name not in order), *order]


def _targets(store: Store, stack: Stack) -> list[Target]:
    """What is to be active. Raises an ErrorGroup of all that cannot be, in the words of the stack's file."""
    found: list[Target] = []
    errors: list[NisoError] = []
    taken = stacks.taken(store, stack.name, [member.name for member in stack.members])
    for member in stack.members:
        if member.name in taken:
            key = f"{member.key}.name"
            error: NisoError = InvalidInput.of(taken[member.name])
            error.file, error.key = stack.file, key
            errors.append(error)
        try:
            found.append(targets.of_manifest(member.loaded))
        except ErrorGroup as group:
            errors += [model.in_words_of(stack, error) for error in group.errors]
        except NisoError as error:
            errors.append(model.in_words_of(stack, error))
    if errors:
        raise ErrorGroup(errors)
    return found


def _wish(name: str, said: model.Network) -> Wish:
    return Wish(name, said.subnets, said.ipv6, said.gateways, said.internal, said.mtu)


def _network_errors(name: str, said: model.Network) -> Iterable[InvalidInput]:
    try:
        networks.check(_wish(name, said))
    except NisoError as error:
        yield stacks.error_of(name, error)
