"""Define the interface of a kind of kernel object, with defaults that most kinds share.

A thing is a NamedTuple. The fields that `key` returns identify it, the others are its desired or
actual state. A `Kind` in the same file says how things are planned, read, written and described.
That file imports modules with I/O only inside the methods that need them, so that State costs no
netlink code.

A place is the text that identifies a container of things: ``netns NAME``, ``link /NETNS/NAME``
(NETNS is empty for the host) or ``ruleset``.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, Generic, NamedTuple
from niso.kernel.kinds import order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Literal, Protocol, TypeVar

    from niso.kernel.kinds.element import Element
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer

    Problem = Literal["missing", "foreign", "different", "gone", "dropped"]

    class Thing(Protocol):
        """A thing of any kind: a NamedTuple with a key."""

        def key(self) -> tuple[str, ...]: ...
        def __hash__(self) -> int: ...
        def __lt__(self, other: Any, /) -> bool: ...
        def __iter__(self) -> Iterator[Any]: ...

    class AnyStep(Protocol):
        """A step of a plan: a `Step`, or several things that their kind writes at once."""

        def describe(self) -> str: ...
        @property
        def kind(self) -> Kind[Any]: ...
        def things(self) -> tuple[Any, ...]:
            """Return the things to read back after the step."""

    T = TypeVar("T", bound=Thing)
else:
    Thing = AnyStep = tuple
    T = None


class Step(NamedTuple, Generic[T]):  # noqa: UP046  # type parameters import typing
    """One change. ``action`` is add, delete or change; for change, ``was`` is the present thing."""

    action: str
    thing: T
    was: T | None = None

    def describe(self) -> str:
        """Return the description of the step, which also works when pasted into a shell."""
        return self.kind.describe(self)

    @property
    def kind(self) -> Kind[T]:
        return kind_of(self.thing)

    def things(self) -> tuple[T, ...]:
        return (self.thing,) if self.kind.is_read_back(self.thing) else ()


class Steps(NamedTuple):
    """One kind's part of a plan.

    ``first`` comes before the steps of all kinds and ``last`` after them. ``made`` are additions
    and changes, ``gone`` deletions.
    """

    first: Sequence[AnyStep] = ()
    made: Sequence[AnyStep] = ()
    gone: Sequence[AnyStep] = ()
    last: Sequence[AnyStep] = ()


class Difference(NamedTuple):
    """A difference. ``what`` names the thing and ``detail`` says how it differs."""

    problem: Problem
    what: str
    detail: str = ""


_by_type: dict[type, Kind[Any]] = {}


def kind_of(thing: T) -> Kind[T]:
    """Return the kind of a thing."""
    return _by_type[type(thing)]


class Kind(Generic[T]):  # noqa: UP046
    """One kind of kernel object. Its methods are called with things of this kind only."""

    is_transactional = False
    """Whether steps are transactions: not read back, and deletions wait for what they guard."""
    holds_others = False
    """Whether other things lie in things of this kind."""
    goes_along = True
    """Whether a thing disappears at once with its place, so that no step deletes it."""
    is_only_set = False
    """Whether things cannot be deleted: existing ones that are not wanted stay as they are."""
    names_links = False
    """Whether `links` returns any."""
    is_read_by_link = False
    """Whether reading returns all things of a link, not only the candidates."""
    replaces = False
    """Whether an addition replaces what has the same key."""
    reads_closed_spaces = False
    """Whether `read` is also called for namespaces that are missing or foreign."""

    def __init__(self, thing: type[T]) -> None:
        self.thing = thing
        self.file = type(self).__module__.rpartition(".")[2]
        """The name in `order.NAMES`."""
        _by_type[thing] = self
        order.register(self)

    # --- what it is ---

    def space(self, thing: T) -> str:
        """Return the network namespace of the thing; "" is the host."""
        return ""

    def links(self, thing: T) -> tuple[str, ...]:
        """Return the links of its namespace that the thing concerns."""
        return ()

    def place(self, thing: T) -> str:
        """Return the name of this thing as a place; "" if it contains nothing."""
        return ""

    def lies_in(self, thing: T) -> tuple[str, ...]:
        """Return the places that contain the thing."""
        return ()

    def hangs_on(self, thing: T) -> tuple[str, ...]:
        """Return the places that must exist before the thing can be created."""
        return self.lies_in(thing)

    def guards(self, thing: T) -> Iterable[Element]:
        """Return the nftables elements that make the rules apply to the thing."""
        return ()

    # --- descriptions ---

    def describe(self, step: Step[T]) -> str:
        """Return a description of a step, as a shell command if there is one."""
        return f"{step.action} {type(step.thing).__name__.lower()} {' '.join(step.thing.key())}"

    def what(self, thing: T) -> str:
        """Return the thing's name in a finding."""
        return f"{type(thing).__name__.lower()} {' '.join(thing.key())}"

    # --- planning ---

    def wanted(self, want: State, have: State) -> frozenset[T]:
        """Return the wanted things of this kind, adjusted to what ``have`` shows."""
        return want[self.thing]

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[T]:
        """Return the wanted things that this kernel supports.

        ``before`` is the previous desired state, from the store.
        """
        return want[self.thing]

    def in_scope(self, have: State, want: State, before: State) -> frozenset[T]:
        """Return the things in ``have`` of this scope, which wants ``want`` and had ``before``."""
        return have[self.thing]

    def in_the_way(self, want: State, have: State) -> frozenset[T]:
        """Return the things that must be deleted before others of this kind can be created."""
        return frozenset()

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Return the steps from ``have`` to ``want``.

        Things in a place in ``going`` disappear with it.
        """
        made: list[AnyStep] = []
        gone: list[AnyStep] = []
        before, more = by_key(want[self.thing], have[self.thing])
        for thing in sorted(want[self.thing]):
            was = before.pop(thing.key(), None)
            if was is None:
                made.append(Step("add", thing))
            elif was != thing:
                made.append(Step("change", thing, was))
        for thing in sorted([*before.values(), *more]):
            if not (self.goes_along and any(place in going for place in self.lies_in(thing))):
                gone.append(Step("delete", thing))
        return Steps(made=made, gone=gone)

    def is_read_back(self, thing: T) -> bool:
        """Return whether a thing is read back after it was written."""
        return True

    def settled(self, have: State, want: State, candidates: State) -> frozenset[T]:
        """Return the relevant things in ``have``, as changed from ``candidates`` to ``want``."""
        return have[self.thing]

    # --- findings ---

    def missing(self, thing: T) -> Difference:
        """Return the finding for a wanted thing that does not exist."""
        return Difference("missing", self.what(thing))

    def follows_from(self, thing: T, was: T | None) -> tuple[str, ...]:
        """Return the `conditions` that explain why the thing is missing or is as ``was``."""
        return ()

    def conditions(self, thing: T, was: T) -> Iterable[str]:
        """Return the conditions that follow from ``was``, which is not as wanted."""
        return ()

    def differences(self, thing: T, was: T, known: Collection[str]) -> list[Difference]:
        """Return the finding for a thing that differs, with each field that differs.

        ``known`` has the places and conditions reported before.
        """
        texts = [
            self.describe_field(field, wanted, present)
            for field, wanted, present in zip(fields(thing), thing, was, strict=True)
            if wanted != present and not self.field_follows(thing, field, present, known)
        ]
        return [Difference("different", self.what(thing), "; ".join(texts))] if texts else []

    def field_follows(self, thing: T, field: str, present: object, known: Collection[str]) -> bool:
        """Return whether ``known`` already explains the difference of a field."""
        return False

    def describe_field(self, field: str, wanted: object, present: object) -> str:
        """Return a description of the difference of a field."""
        return f"{field} is {present!r}, should be {wanted!r}"

    # --- reading ---

    def claimed(self, reading: Reading) -> Iterable[T]:
        """Return the things with niso's mark, as candidates when everything is read."""
        return ()

    def by_space(self, things: Iterable[T]) -> dict[str, Collection[T]]:
        """Return the things by the namespace in which they are read."""
        spaces: dict[str, list[T]] = {}
        for thing in things:
            spaces.setdefault(self.space(thing), []).append(thing)
        return dict(spaces)

    def read(self, space: Space, things: Collection[T]) -> Iterable[T]:
        """Return those of ``things`` that exist in a namespace, with their actual fields.

        Kinds are called in their order, for one namespace after another. Raises KernelError and
        Conflict.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def left_over(self, reading: Reading) -> Iterable[T]:
        """Return the marked things that were read in no namespace, when everything is read."""
        return ()

    # --- writing ---

    def batch(self, step: Step[T], writer: Writer) -> Hashable:
        """Return the key shared by steps that are executed together; None for a separate step."""
        return None

    def write(self, writer: Writer, steps: Sequence[Any]) -> None:
        """Execute the steps of one batch. Raises KernelError and OSError."""
        raise NotImplementedError(f"{type(self).__name__}.write")


def by_key(
    wanted: Collection[T], present: Collection[T]
) -> tuple[dict[tuple[str, ...], T], list[T]]:
    """Return things by key, and further things with the same key, wanted ones first.

    The kernel can have several routes to one destination, with different metrics.
    """
    things: dict[tuple[str, ...], T] = {}
    more = []
    for thing in present:
        other = things.setdefault(thing.key(), thing)
        if other is not thing:
            right = thing in wanted
            things[thing.key()] = thing if right else other
            more.append(other if right else thing)
    return things, more


def fields(thing: Thing) -> tuple[str, ...]:
    """Return the names of a thing's fields."""
    return thing._fields  # type: ignore[attr-defined, no-any-return]


def inside(netns: str) -> str:
    """Return the start of an iproute2 command in a namespace."""
    return f"ip -n {netns} " if netns else "ip "


def in_netns(netns: str) -> str:
    """Return the suffix that names a namespace in a finding; "" for the host's."""
    return f" in {netns}" if netns else ""


def link_place(netns: str, link: str) -> str:
    return f"link /{netns}/{link}"


def netns_place(name: str) -> str:
    return f"netns {name}"
