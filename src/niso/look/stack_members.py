"""Read a stack.toml, give its services their names on this host, and list the services."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from niso.base import files
from niso.base.errors import Conflict, Error, InvalidInput
from niso.manifest import stack
from niso.manifest.stack import Stack, applies, long_name
from niso.plan import subnets
from niso.plan.subnets import NetworkRequest
from niso.runtime import volumes
from niso.store.store import Store


def load(
    path: str,
    owners: Collection[int] | None = None,
    together: Callable[[Stack], None] = lambda _: None,
) -> Stack:
    """Read and check a stack.toml with its manifests, like `niso.manifest.stack.load`."""
    return stack.load(path, owners, _network_errors, together)


def named(store: Store, plain: Stack) -> Stack:
    """Return the stack with the names that its services have on this host.

    With ``prefix = true``, these names begin with the stack's name. Raises ErrorGroup.
    """
    names = [member.name for member in plain.members]
    wanted = prefixed(store, plain.asks, plain.name, names)
    return stack.stack(plain) if wanted else plain


def outlined(store: Store, path: str) -> stack.StackOutline:
    """Read the outline of a stack.toml, with the names that its services have on this host.

    Raises the errors of `stack.outline`.
    """
    plain = stack.outline(path)
    wanted = prefixed(store, plain.asks, plain.name, plain.after)
    return stack.prefixed_outline(plain) if wanted else plain


def own(store: Store, path: str) -> stack.StackOutline:
    """Read the outline of a stack.toml as `outlined` does.

    Raises Conflict if the stack's services came from another stack.toml that still exists.
    """
    outline = outlined(store, path)
    _refuse_elsewhere(store, outline.name, outline.path)
    return outline


def _refuse_elsewhere(store: Store, name: str, path: str) -> None:
    refuse_elsewhere(store, name, path, "run the command on that file")


def members(store: Store, outline: stack.StackOutline) -> list[str]:
    """Return the existing services of a stack, each before the services that it depends on."""
    known = store.stack_members(outline.name)
    order = [name for name in reversed(stack.ordered(outline.after)) if name in known]
    return [*(name for name in known if name not in order), *order]


def _network_errors(network: NetworkRequest) -> Iterable[InvalidInput]:
    try:
        subnets.check(network)
    except Error as error:
        yield error_of(network.name, error)


# --- prefixes and names that are taken ------------------------------------------------------------


def taken(store: Store, stack: str, services: Iterable[str]) -> dict[str, Conflict]:
    """Return {service: error} for the given services that belong to another stack."""
    errors = {}
    for name in services:
        other = store.stack_of(name)
        if other is not None and other != stack:
            hint = "choose another name"
            if not name.startswith(long_name(stack, "")):
                hint += ", or prefix = true in [stack] for names of this stack's own"
            errors[name] = Conflict(f"service {name!r} belongs to stack {other!r}", hint)
    return errors


def prefixed(store: Store, asks: bool | None, stack: str, names: Iterable[str]) -> bool:
    """Return whether the names of a stack's services begin with the stack's name on this host.

    ``asks`` is the setting ``prefix`` of the stack's file, or None without this setting. If all
    services of the stack have been removed, the earlier setting follows from the names of remaining
    volumes.
    """
    names = list(names)
    taken_ = bool(taken(store, stack, names))
    members = store.stack_members(stack)
    if not members:
        long = (long_name(stack, name) for name in names)
        members = [
            name for name in long if store.service(name) is None and volumes.existing_names(name)
        ]
    return applies(asks, stack, names, members, taken_)


def refuse_elsewhere(store: Store, stack: str, file: str, hint: str) -> None:
    """Raise Conflict if a stack's services came from another stack.toml that still exists."""
    for other in store.stack_files(stack):
        if files.is_elsewhere(other, file):
            reason = f"stack {stack!r} is that of {other}"
            raise Conflict(reason, hint, "stack.name", file=file, names_key=False)


def error_of(network: str, error: Error) -> InvalidInput:
    """Convert an error about a network to an error with the network's key in stack.toml."""
    new = InvalidInput.of(error)
    option = (error.key or "").removeprefix("--")
    new.key = f"networks.{network}" + (f".{option}" if option else "")
    new.reason = error.reason.replace("--", "")
    hint = (error.hint or "").replace("--allow-public", "allow_public = true")
    new.hint = hint.replace("--", "") or None
    return new
