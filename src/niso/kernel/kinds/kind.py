"""What every kind of kernel object has, and the answers that most kinds share.

A thing is a NamedTuple; the fields that `key` returns say which thing it is, the others how it should be. Its kind is one
`Kind`, in the same file: how it is planned, read, written and described. That file imports what does I/O inside the methods
that do it, so State costs no netlink code.

A place is where things lie, as text: ``netns NAME``, ``link /NETNS/NAME`` (NETNS is empty for the host), ``ruleset``.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from niso.base.lite_typing import TYPE_CHECKING, Generic, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Literal, Protocol, TypeVar

    from niso.kernel.kinds.element import Element
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer

    Problem = Literal["missing", "foreign", "different"]

    class Thing(Protocol):
        """A thing of any kind: a NamedTuple with a key."""

        def key(self) -> tuple[str, ...]: ...
        def __hash__(self) -> int: ...
        def __lt__(self, other: Any, /) -> bool: ...
        def __iter__(self) -> Iterator[Any]: ...

    class AnyStep(Protocol):
        """A step of a plan: a `Step`, or several things at once as one kind writes them."""

        def describe(self) -> str: ...
        @property
        def kind(self) -> Kind[Any]: ...
        def things(self) -> tuple[Any, ...]:
            """Return the things to read back when the step is done."""

    T = TypeVar("T", bound=Thing)
else:
    Thing = AnyStep = tuple
    T = None


class Step(NamedTuple, Generic[T]):  # noqa: UP046  # type parameters import typing
    """``action`` is add, delete or change; for change, ``was`` is the thing as it is now."""

    action: str
    thing: T
    was: T | None = None

    def describe(self) -> str:
        """Return what it does, as words that also work when pasted into a shell."""
        return self.kind.words(self)

    @property
    def kind(self) -> Kind[T]:
        return kind_of(self.thing)

    def things(self) -> tuple[T, ...]:
        return (self.thing,) if self.kind.is_read_back(self.thing) else ()


class Steps(NamedTuple):
    """One kind's part of a plan: ``first`` before all kinds' steps, ``last`` after them.

    ``made`` are additions and changes, ``gone`` deletions.
    """

    first: Sequence[AnyStep] = ()
    made: Sequence[AnyStep] = ()
    gone: Sequence[AnyStep] = ()
    last: Sequence[AnyStep] = ()


class Difference(NamedTuple):
    """``problem`` is missing, foreign or different; ``what`` names the thing; ``detail`` says how it differs."""

    problem: Problem
    what: str
    detail: str = ""


_by_type: dict[type, Kind[Any]] = {}


def kind_of(thing: T) -> Kind[T]:
    """Return the kind of a thing."""
    return _by_type[type(thing)]


class Kind(Generic[T]):  # noqa: UP046
    """One kind of kernel object. Methods are asked with things of this kind alone."""

    is_transactional = False
    """The kernel takes all things of one step or none, so nothing is read back, and deletions wait for what they guard."""
    holds_others = False
    """Whether things lie in things of this kind."""
    goes_along = True
    """Whether a thing disappears at once with the place that it lies in, so that no step of its own deletes it."""
    is_only_set = False
    """Whether things have no end of their own: what is there and not wanted is left as it is."""
    names_links = False
    """Whether `links` returns any."""
    is_read_by_link = False
    """Whether a reader returns all things of a link, not only the candidates."""
    reads_closed_spaces = False
    """Whether `read` is also asked about namespaces that are missing or somebody else's."""

    def __init__(self, thing: type[T]) -> None:
        self.thing = thing
        _by_type[thing] = self

    # --- what it is ---

    def space(self, thing: T) -> str:
        """Return the network namespace that the thing is read in; "" is the host."""
        return ""

    def links(self, thing: T) -> tuple[str, ...]:
        """Return the links of its namespace that it is about."""
        return ()

    def place(self, thing: T) -> str:
        """Return how things that lie in this one name it; "" where nothing does."""
        return ""

    def lies_in(self, thing: T) -> tuple[str, ...]:
        """Return the places without which it cannot be seen."""
        return ()

    def hangs_on(self, thing: T) -> tuple[str, ...]:
        """Return the places without which it cannot be made."""
        return self.lies_in(thing)

    def guards(self, thing: T) -> Iterable[Element]:
        """Return the nftables elements that keep the thing from being a way around the rules."""
        return ()

    # --- its words ---

    def words(self, step: Step[T]) -> str:
        """Return what a step does, as a shell command where there is one."""
        return f"{step.action} {type(step.thing).__name__.lower()} {' '.join(step.thing.key())}"

    def what(self, thing: T) -> str:
        """Return the thing's name in a finding."""
        return f"{type(thing).__name__.lower()} {' '.join(thing.key())}"

    # --- planning ---

    def wanted(self, want: State, have: State) -> frozenset[T]:
        """Return what is wanted of this kind, in view of what ``have`` shows."""
        return want[self.thing]

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[T]:
        """Return what of ``want`` this kernel can have; ``before`` is what it had by the store."""
        return want[self.thing]

    def in_scope(self, have: State, want: State, before: State) -> frozenset[T]:
        """Return what of ``have`` is this scope's, which wants ``want`` and had ``before``."""
        return have[self.thing]

    def in_the_way(self, want: State, have: State) -> frozenset[T]:
        """Return the things that have to be deleted before others of this kind can be made."""
        return frozenset()

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Return the steps from ``have`` to ``want``. What lies in a place that is ``going`` goes with it."""
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
        """Whether a thing that was written is read back."""
        return True

    def settled(self, have: State, want: State, candidates: State) -> frozenset[T]:
        """Return what counts of ``have``, which was read after a change from ``candidates`` to ``want``."""
        return have[self.thing]

    # --- findings ---

    def missing(self, thing: T) -> Difference:
        """Return the finding for a thing that is wanted and was not read."""
        return Difference("missing", self.what(thing))

    def follows_from(self, thing: T, was: T | None) -> tuple[str, ...]:
        """Return what, of `conditions`, explains that the thing is missing or is as ``was``."""
        return ()

    def conditions(self, thing: T, was: T) -> Iterable[str]:
        """Return what is known of others from ``was``, a thing that is not as wanted."""
        return ()

    def differences(self, thing: T, was: T, known: Collection[str]) -> list[Difference]:
        """Return the finding for a thing that is not as wanted, with each field that differs.

        ``known`` has the places and conditions that were named before.
        """
        texts = [
            self.field_words(field, wanted, present)
            for field, wanted, present in zip(fields(thing), thing, was, strict=True)
            if wanted != present and not self.field_follows(thing, field, present, known)
        ]
        return [Difference("different", self.what(thing), "; ".join(texts))] if texts else []

    def field_follows(self, thing: T, field: str, present: object, known: Collection[str]) -> bool:
        """Whether a field is other than wanted only because of what is ``known``."""
        return False

    def field_words(self, field: str, wanted: object, present: object) -> str:
        """Return how a field differs."""
        return f"{field} is {present!r}, should be {wanted!r}"

    # --- reading ---

    def claimed(self, reading: Reading) -> Iterable[T]:
        """Return the things that carry niso's mark, as candidates for reading everything."""
        return ()

    def by_space(self, things: Iterable[T]) -> dict[str, Collection[T]]:
        """Return the things by the namespace that they are read in."""
        spaces: dict[str, list[T]] = {}
        for thing in things:
            spaces.setdefault(self.space(thing), []).append(thing)
        return dict(spaces)

    def read(self, space: Space, things: Collection[T]) -> Iterable[T]:
        """Return which of ``things`` there are in a namespace, as they are there.

        Kinds are asked in their order, of one namespace after another. Raises KernelError, Conflict.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")

    def left_over(self, reading: Reading) -> Iterable[T]:
        """Return what carries niso's mark and was read in no namespace, when everything is read."""
        return ()

    # --- writing ---

    def batch(self, step: Step[T], writer: Writer) -> Hashable:
        """Return what steps that are done together have in common; None if each is done by itself."""
        return None

    def write(self, writer: Writer, steps: Sequence[Any]) -> None:
        """Do the steps of one batch. Raises KernelError, OSError."""
        raise NotImplementedError(f"{type(self).__name__}.write")

    def after_writing(self, writer: Writer, step: Step[T]) -> None:
        """Do what has to follow a step when all steps are done."""


def by_key(
    wanted: Collection[T], present: Collection[T]
) -> tuple[dict[tuple[str, ...], T], list[T]]:
    """Return things by their key, and those whose key has another: the kernel has routes to one place by their metric."""
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
    """Return how a command of iproute2 begins that acts in a namespace."""
    return f"ip -n {netns} " if netns else "ip "


def in_netns(netns: str) -> str:
    """Return the words for a thing's namespace in a finding; "" for the host's."""
    return f" in {netns}" if netns else ""


def link_place(netns: str, link: str) -> str:
    return f"link /{netns}/{link}"


def netns_place(name: str) -> str:
    return f"netns {name}"
