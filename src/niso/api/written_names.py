"""Find the names by which the policy of a service is written."""

from __future__ import annotations

from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.store.store import Store


class WrittenNames:
    """The names that mean services and networks in the policy of one service.

    A service of its stack is called as in the stack's file, without the prefix. So a copy of the
    file, for another stack, means its own services too.
    """

    def __init__(self, store: Store, service: str) -> None:
        self._store, self._service = store, service
        stack = store.stack_of(service)
        self._members = set(store.stack_members(stack)) if stack else set()
        self._own: dict[str, str] = {}  # {service: its name in the file}
        self._networks: dict[str, str] = {}
        self._file: set[str] = set()
        if stack:
            self._read(stack)

    def _read(self, stack: str) -> None:
        """Read the names in the files of the stack; without one, they follow from the prefix."""
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
        """Return a name that means ``other`` alone, or None if there is none."""
        if other in self._members and other not in self._own:
            return None  # it is not in the file any more
        names = [self._own.get(other, other)]
        if names[0] == other:  # with a prefix, the file could mean another by the other names
            names += self._store.names(other)
        return next((name for name in names if self._means(name, other)), None)

    def network(self, network: str) -> str:
        """Return the name of a network."""
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
        # with a prefix, the file's name is replaced by the service's own
        meant = other if name == own else name
        return _is_a_name(name) and store.meant(self._service, meant)[0] == [other]


def _is_a_name(name: str) -> bool:
    """Return whether an entry of a policy can start with this name, in both directions."""
    from niso.manifest.parse_policy import parse_entry
    from niso.plan.records import Peer

    try:
        entries = [parse_entry(f"{name}:1/tcp", "", egress) for egress in (False, True)]
    except InvalidInput:
        return False
    return all(entry.peer == Peer("service", name) for entry in entries)
