"""Define the interface of a kind of kernel object, with defaults that most kinds share.

An object ("thing") is a NamedTuple. The fields that `key` returns identify it; the others are its
desired or actual properties. The `Kind` in the same file defines how objects are planned, read,
written and described. A file of a kind imports modules with I/O only inside the methods that need
them, so that code that only uses State loads no netlink code.

The parents ("places") of an object are the namespace, link or tables that it is in. A parent is
named by a text: ``netns NAME``, ``link /NETNS/NAME`` (NETNS is empty for the host) or ``ruleset``.
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
        """An object of any kind: a NamedTuple with a key."""

        def key(self) -> tuple[str, ...]: ...
        def __hash__(self) -> int: ...
        def __lt__(self, other: Any, /) -> bool: ...
        def __iter__(self) -> Iterator[Any]: ...

    class AnyStep(Protocol):
        """A step of a plan: a `Step`, or a group of changes that their kind writes together."""

        def describe(self) -> str: ...
        @property
        def kind(self) -> Kind[Any]: ...
        def things(self) -> tuple[Any, ...]:
            """Return the objects to read back after the step."""

    T = TypeVar("T", bound=Thing)
else:
    Thing = AnyStep = tuple
    T = None


class Step(NamedTuple, Generic[T]):  # noqa: UP046  # type parameters import typing
    """One change. ``action`` is add, delete or change; for change, ``was`` is the actual object."""

    action: str
    thing: T
    was: T | None = None

    def describe(self) -> str:
        """Return the step as text that also works when pasted into a shell."""
        return self.kind.describe(self)

    @property
    def kind(self) -> Kind[T]:
        return kind_of(self.thing)

    def things(self) -> tuple[T, ...]:
        return (self.thing,) if self.kind.is_read_back(self.thing) else ()


class Steps(NamedTuple):
    """The steps of one kind in a plan.

    ``first`` is executed before the steps of all kinds, and ``last`` after them. ``made`` are
    additions and changes, ``gone`` deletions.
    """

    first: Sequence[AnyStep] = ()
    made: Sequence[AnyStep] = ()
    gone: Sequence[AnyStep] = ()
    last: Sequence[AnyStep] = ()


class Difference(NamedTuple):
    """A difference for a finding. ``what`` names the object and ``detail`` says how it differs."""

    problem: Problem
    what: str
    detail: str = ""


_by_type: dict[type, Kind[Any]] = {}


def kind_of(thing: T) -> Kind[T]:
    """Return the kind of an object."""
    return _by_type[type(thing)]


class Kind(Generic[T]):  # noqa: UP046
    """One kind of kernel object. Its methods are called with objects of this kind only."""

    is_transactional = False
    """Whether steps are transactions: not read back, and deletions wait until the guarded objects
    are deleted."""
    holds_others = False
    """Whether objects of this kind are parents of other objects."""
    goes_along = True
    """Whether an object disappears at once with its parent, so that no step deletes it."""
    is_only_set = False
    """Whether objects cannot be deleted: existing ones that are not desired stay as they are."""
    names_links = False
    """Whether `links` returns any links."""
    is_read_by_link = False
    """Whether reading returns all objects of a link, not only the candidates."""
    replaces = False
    """Whether adding an object replaces an existing one with the same key."""
    reads_closed_spaces = False
    """Whether `read` is also called for namespaces that are missing or foreign."""

    def __init__(self, thing: type[T]) -> None:
        self.thing = thing
        _by_type[thing] = self
        order.register(self)

    # --- identity and relations ---

    def space(self, thing: T) -> str:
        """Return the network namespace of the object; "" is the host."""
        return ""

    def links(self, thing: T) -> tuple[str, ...]:
        """Return the links, in the object's namespace, that the object belongs to."""
        return ()

    def place(self, thing: T) -> str:
        """Return the name of this object as a parent; "" if no object can be in it."""
        return ""

    def lies_in(self, thing: T) -> tuple[str, ...]:
        """Return the parents of the object."""
        return ()

    def hangs_on(self, thing: T) -> tuple[str, ...]:
        """Return the parents that must exist before the object can be created."""
        return self.lies_in(thing)

    def guards(self, thing: T) -> Iterable[Element]:
        """Return the nftables elements that make niso's rules apply to the object."""
        return ()

    # --- descriptions ---

    def describe(self, step: Step[T]) -> str:
        """Return a description of a step, as a shell command if there is one."""
        return f"{step.action} {type(step.thing).__name__.lower()} {' '.join(step.thing.key())}"

    def what(self, thing: T) -> str:
        """Return the object's name for a finding."""
        return f"{type(thing).__name__.lower()} {' '.join(thing.key())}"

    # --- planning ---

    def wanted(self, want: State, have: State) -> frozenset[T]:
        """Return the desired objects of this kind, adjusted to the actual state ``have``."""
        return want[self.thing]

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[T]:
        """Return the desired objects that this kernel supports.

        ``before`` is the previous desired state, from the store. ``sysctl`` returns a sysctl's
        value.
        """
        return want[self.thing]

    def in_scope(self, have: State, want: State, before: State) -> frozenset[T]:
        """Return the objects of ``have`` that belong to the scope of ``want`` and ``before``.

        ``want`` is the desired state of the scope, ``before`` its previous one.
        """
        return have[self.thing]

    def in_the_way(self, want: State, have: State) -> frozenset[T]:
        """Return the objects that must be deleted before others of this kind can be created."""
        return frozenset()

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Return the steps from ``have`` to ``want``.

        ``going`` are parents that this change deletes; the objects in them disappear too.
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
        """Return whether an object is read back, for verification, after it was written."""
        return True

    def settled(self, have: State, want: State, candidates: State) -> frozenset[T]:
        """Return the objects of ``have`` to verify after changing ``candidates`` to ``want``."""
        return have[self.thing]

    # --- findings ---

    def missing(self, thing: T) -> Difference:
        """Return the finding for a desired object that does not exist."""
        return Difference("missing", self.what(thing))

    def follows_from(self, thing: T, was: T | None) -> tuple[str, ...]:
        """Return the `conditions` that explain why the object is missing, or is as in ``was``."""
        return ()

    def conditions(self, thing: T, was: T) -> Iterable[str]:
        """Return the conditions that the drifted object ``was`` causes for other objects."""
        return ()

    def differences(self, thing: T, was: T, known: Collection[str]) -> list[Difference]:
        """Return the findings for an object ``was`` that differs from ``thing``, with each field.

        Fields whose difference is explained by ``known``, the parents and conditions reported
        before, are left out.
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
        """Return the objects with niso's mark, which become candidates when everything is read."""
        return ()

    def by_space(self, things: Iterable[T]) -> dict[str, Collection[T]]:
        """Group objects by the namespace from which they are read."""
        spaces: dict[str, list[T]] = {}
        for thing in things:
            spaces.setdefault(self.space(thing), []).append(thing)
        return dict(spaces)

    def read(self, space: Space, things: Collection[T]) -> Iterable[T]:
        """Return those of ``things`` that exist in a namespace, with their actual fields.

        Called for one namespace after another, and in each for the kinds in order. Raises
        KernelError and Conflict.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def left_over(self, reading: Reading) -> Iterable[T]:
        """Return marked objects that were not read from any namespace, when everything is read."""
        return ()

    # --- writing ---

    def batch(self, step: Step[T], writer: Writer) -> Hashable:
        """Return the key shared by steps to be executed together; None for a step of its own."""
        return None

    def write(self, writer: Writer, steps: Sequence[Any]) -> None:
        """Execute the steps of one batch. Raises KernelError and OSError."""
        raise NotImplementedError(f"{type(self).__name__}.write")


def by_key(
    wanted: Collection[T], present: Collection[T]
) -> tuple[dict[tuple[str, ...], T], list[T]]:
    """Index objects by key; return (index, further objects with the same key).

    The index prefers desired objects. The kernel can have several routes to one destination, with
    different metrics.
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
    """Return the names of an object's fields."""
    return thing._fields  # type: ignore[attr-defined, no-any-return]


def inside(netns: str) -> str:
    """Return the first words of an iproute2 command in a namespace."""
    return f"ip -n {netns} " if netns else "ip "


def in_netns(netns: str) -> str:
    """Return the words that name a namespace in a finding; "" for the host's."""
    return f" in {netns}" if netns else ""


def link_place(netns: str, link: str) -> str:
    return f"link /{netns}/{link}"


def netns_place(name: str) -> str:
    return f"netns {name}"
