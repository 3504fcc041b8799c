"""Represent the desired or actual state of the kernel as plain data: a set of objects per kind.

Addresses are text in their canonical form (``10.99.1.2``, ``fd00::2``), or with a prefix length,
``10.99.1.1/24``. IPv4 and IPv6 use the same kinds. ``netns`` is a name in /run/netns, and ``""`` is
the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.kinds import order

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.kinds.kind import Kind, T, Thing

_NONE: frozenset[Any] = frozenset()


class State:
    """Objects by kind: ``state[Bridge]`` is a frozenset of bridges. Immutable and comparable."""

    __slots__ = ("_by_type",)

    def __init__(self, things: Iterable[Thing] = ()) -> None:
        sets: dict[type, set[Thing]] = {}
        for thing in things:
            sets.setdefault(type(thing), set()).add(thing)
        self._by_type: dict[type, frozenset[Any]] = {
            kind: frozenset(some) for kind, some in sets.items()
        }

    @classmethod
    def of_sets(cls, sets: Iterable[tuple[type[Any], frozenset[Any]]]) -> State:
        """Build a state from sets of objects by type."""
        state = cls()
        state._by_type = {kind: things for kind, things in sets if things}
        return state

    @classmethod
    def of_kinds(cls, things: Callable[[Kind[Any]], Iterable[Any]]) -> State:
        """Build a state from the objects that a function returns for each kind."""
        return cls.of_sets((kind.thing, frozenset(things(kind))) for kind in order.KINDS)

    def __getitem__(self, kind: type[T]) -> frozenset[T]:
        return self._by_type.get(kind, _NONE)

    def __iter__(self) -> Iterator[Any]:
        """Yield all objects, in the order of their kinds."""
        for kind in order.KINDS:
            yield from self[kind.thing]

    def __or__(self, other: State) -> State:
        """Return the union. An object whose fields differ between the two is in it twice."""
        both = dict(self._by_type)
        for kind, things in other._by_type.items():
            both[kind] = both[kind] | things if kind in both else things
        return State.of_sets(both.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self._by_type == other._by_type

    def __hash__(self) -> int:
        return hash(frozenset(self._by_type.items()))

    def __bool__(self) -> bool:
        return bool(self._by_type)

    def __repr__(self) -> str:
        return f"State({list(self)!r})"

    def replace(self, kind: type[T], things: Iterable[T]) -> State:
        """Return a copy with other objects of one kind."""
        return State.of_sets({**self._by_type, kind: frozenset(things)}.items())
