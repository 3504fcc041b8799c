"""Prepare a stack's activation: its networks, services that leave it, and its membership."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from niso.base.errors import Conflict, Error, InvalidInput
from niso.base.lite_typing import NamedTuple
from niso.manifest import stack_prefix
from niso.runtime import volumes
from niso.services import networks
from niso.services.machine import Machine
from niso.services.networks import NetworkRequest
from niso.services.stop import Needs
from niso.services.targets import is_elsewhere
from niso.store.store import Store

OR_REPLACE = "choose another name; --replace takes over its services"


class Membership(NamedTuple):
    stack: str
    file: str  # absolute path of its stack.toml
    shown: str  # the same path, printable
    networks: tuple[NetworkRequest, ...]
    leaving: tuple[str, ...]  # existing services of the stack that are no longer in its file
    needs: Needs  # dependencies, for the order in which the leaving services end
    replace: bool = False  # take over a stack of this name from another file
    prefix: str = ""  # of its networks' names


def taken(store: Store, stack: str, services: Iterable[str]) -> dict[str, Conflict]:
    """Return {service: error} for those of ``services`` that belong to another stack."""
    errors = {}
    for name in services:
        other = store.stack_of(name)
        if other is not None and other != stack:
            hint = "choose another name"
            if not name.startswith(stack_prefix.long_name(stack, "")):
                hint += ", or prefix = true in [stack] for names of this stack's own"
            errors[name] = Conflict(f"service {name!r} belongs to stack {other!r}", hint)
    return errors


def prefixed(store: Store, asks: bool | None, stack: str, names: Iterable[str]) -> bool:
    """Return whether a stack's services have its prefix (`niso.manifest.stack_prefix`).

    If all its services have been removed, the names of their leftover volumes decide.
    """
    names = list(names)
    taken_ = bool(taken(store, stack, names))
    members = store.stack_members(stack)
    if not members:
        long = (stack_prefix.long_name(stack, name) for name in names)
        members = [name for name in long if store.service(name) is None and volumes.kept(name)]
    return stack_prefix.applies(asks, stack, names, members, taken_)


def refuse_elsewhere(store: Store, stack: str, file: str, hint: str) -> None:
    """Raise Conflict if the stack's services came from another stack.toml that still exists.

    ``file`` is the stack.toml of the command. If a folder was moved, its old path does not exist,
    so it is not another one.
    """
    for other in store.stack_files(stack):
        if is_elsewhere(other, file):
            reason = f"stack {stack!r} is that of {other}"
            raise Conflict(reason, hint, "stack.name", file=file, names_key=False)


def shared(store: Store, wanted: Membership) -> Iterator[tuple[str, str]]:
    """Yield (network, other stack) for declared networks that are new to the stack and in use.

    Services of both stacks can connect to each other there. A network that spans hosts is left out:
    it is made to be shared.
    """
    for request in wanted.networks:
        others = _others(store, wanted.stack, request.name)
        if others and not request.span:
            yield request.name, min(others)


def _others(store: Store, stack: str, network: str) -> set[str]:
    """Return the other stacks with services on a network; none if ``stack`` has one there too."""
    on = {store.stack_of(name) for name, _ in store.members(network)}
    return set() if stack in on else {other for other in on if other is not None}


def prepare(machine: Machine, wanted: Membership, services: Iterable[str]) -> None:
    """Record the stack's networks, and end the membership of services that left it.

    Call this before the stack's services are recorded, in the same transaction. Raises Conflict,
    which names the file and the key.
    """
    store = machine.store
    if not wanted.replace:
        refuse_elsewhere(store, wanted.stack, wanted.file, OR_REPLACE)
    for error in taken(store, wanted.stack, services).values():
        # the other stack did not exist when the command began, so the services have no prefix
        error.hint = "another command has just made that stack: run this one again"
        raise error
    for request in wanted.networks:
        on = [name for name, _ in store.members(request.name)]
        others = _others(store, wanted.stack, request.name)
        short = request.name.removeprefix(wanted.prefix)
        if wanted.prefix and others:
            # with prefixes, network y of stack shop-x has the same name as network x-y of stack
            # shop
            raise Conflict(
                f"network {request.name!r} is used by stack {min(others)!r}",
                "choose another name",
                f"networks.{short}",
                file=wanted.shown,
            )
        try:
            networks.ensure(machine, request, implicit=True)
        except Error as error:
            raise network_error(wanted, request.name, error, on) from None
    for name in wanted.leaving:
        store.leave_stack(name)


def network_error(wanted: Membership, name: str, error: Error, on: Sequence[str] = ()) -> Conflict:
    """Return a network's error with file and key; services ``on`` the network are in the hint."""
    moved = Conflict.of(error_of(name.removeprefix(wanted.prefix), error))
    moved.file = wanted.shown
    moved.hint = error.hint
    if on and isinstance(error, Conflict):  # the network exists and differs
        moved.hint = f"match it, or choose another name; services on it: {', '.join(on)}"
    return moved


def error_of(network: str, error: Error) -> InvalidInput:
    """Return a network error with its key in stack.toml.

    ``--subnet`` becomes ``networks.backend.subnet``.
    """
    new = InvalidInput.of(error)
    option = (error.key or "").removeprefix("--")
    new.key = f"networks.{network}" + (f".{option}" if option else "")
    new.reason = error.reason.replace("--", "")
    hint = (error.hint or "").replace("--allow-public", "allow_public = true")
    new.hint = hint.replace("--", "") or None
    return new
