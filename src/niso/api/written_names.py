"""Find the names by which a policy means services and networks."""

from __future__ import annotations

from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.store.store import Store


class WrittenNames:
    """The names of services and networks in the policy of one service.

    A service of the same stack is called as in the stack's file, without the prefix. A copy of the
    file, for another stack, then means its own services.
    """

    def __init__(self, store: Store, service: str) -> None:
        self._store, self._service = store, service
        stack = store.stack_of(service)
        self._members = set(store.stack_members(stack)) if stack else set()
        self._own: dict[str, str] = {}  # service -> its name in the file
        self._networks: dict[str, str] = {}
        self._file: set[str] = set()
        if stack:
            self._read(stack)

    def _read(self, stack: str) -> None:
        """Read the names in the stack's files; if there is none, derive them from the prefix."""
        from niso.manifest import stack_file, stack_prefix, toml

        services: set[str] = set()
        networks: set[str] = {DEFAULT_NETWORK}
        for file in self._store.stack_files(stack):
            try:
                services.update(stack_file.outline(file).after)
                tables = toml.load(file, "stack.toml").get("networks")
            except Error:
                continue
            networks.update(tables if isinstance(tables, dict) else ())
        if not services:
            names = [member.removeprefix(f"{stack}-") for member in self._members]
            is_plain = any(name in self._members for name in names)
            services = self._members if is_plain else set(names)
        prefixed = stack_prefix.applies(None, stack, services, self._members, False)

        def full(names: Iterable[str]) -> dict[str, str]:
            return {(stack_prefix.long_name(stack, n) if prefixed else n): n for n in names}

        self._file, self._own, self._networks = services, full(services), full(networks)

    def service(self, other: str) -> str | None:
        """Return a name that only means ``other``, or None if there is none."""
        if other in self._members and other not in self._own:
            return None  # it is no longer in the file
        names = [self._own.get(other, other)]
        # with a prefix, the other names could mean another service in the file
        if names[0] == other:
            names += self._store.names(other)
        return next((name for name in names if self._means(name, other)), None)

    def network(self, network: str) -> str:
        """Return the name that means a network."""
        return self._networks.get(network, network)

    def _means(self, name: str, other: str) -> bool:
        own = self._own.get(other)
        if name != own and name in self._file:
            return False
        store = self._store
        if name != own and any(
            member != other and name in store.names(member) for member in self._members
        ):
            return False
        # with a prefix, the service's own name replaces the file's name
        meant = other if name == own else name
        return _is_a_name(name) and store.meant(self._service, meant)[0] == [other]


def _is_a_name(name: str) -> bool:
    """Return whether entries of a policy can begin with this name, in both directions."""
    from niso.manifest.parse_policy import parse_entry
    from niso.plan.records import Peer

    try:
        entries = [parse_entry(f"{name}:1/tcp", "", egress) for egress in (False, True)]
    except InvalidInput:
        return False
    return all(entry.peer == Peer("service", name) for entry in entries)
