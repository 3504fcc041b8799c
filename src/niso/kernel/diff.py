"""Compute the steps from an actual to a desired state. Pure.

Objects are created in the order of their kinds and deleted in reverse, additions before deletions.
"""

from __future__ import annotations

from niso.kernel.kinds.kind import KINDS, AnyStep, State, Step, kind_of


def diff(want: State, have: State) -> list[AnyStep]:
    """Return the steps that turn ``have`` into ``want``; empty if they are equal.

    Both states must have the same scope.
    """
    want = wanted(want, have)
    first: list[AnyStep] = []
    made: list[AnyStep] = []
    gone: list[AnyStep] = []
    last: list[AnyStep] = []
    early = State.of_kinds(lambda kind: kind.in_the_way(want, have))
    have = _without(have, early)
    going = _places_that_go(want, have)
    for kind in KINDS:
        steps = kind.steps(want, have, going)
        first += steps.first
        made += [Step("delete", thing) for thing in sorted(early[kind.thing])]
        made += steps.made
        gone[:0] = steps.gone
        last += steps.last
    return [*first, *made, *gone, *last]


def wanted(want: State, have: State) -> State:
    """Return the desired state ``want``, adjusted by each kind to the actual state (`Kind.wanted`).

    For example, the valid value is added for a sysctl that niso leaves at its default, but another
    program has changed.
    """
    return State.of_kinds(lambda kind: kind.wanted(want, have))


def _places_that_go(want: State, have: State) -> set[str]:
    """Return the names of the parents in ``have`` that the change deletes.

    Parents are namespaces, network interfaces and tables. The objects in them disappear with them.
    """
    going: set[str] = set()
    for kind in KINDS:
        if kind.holds_others:
            keys = {thing.key() for thing in want[kind.thing]}
            going |= {kind.place(t) for t in have[kind.thing] if t.key() not in keys}
    return going


def _without(have: State, early: State) -> State:
    """Return ``have`` without the objects of ``early``, and without everything that is inside
    these.
    """
    if not early:
        return have
    places = {kind_of(thing).place(thing) for thing in early}
    return State.of_kinds(
        lambda kind: (
            thing
            for thing in have[kind.thing] - early[kind.thing]
            if kind.is_transactional or places.isdisjoint(kind.lies_in(thing))
        )
    )


def without_foreign(states: tuple[State, State], names: set[str]) -> tuple[State, State]:
    """Return both states without the objects that need a foreign interface or namespace.

    ``names`` are the names of these foreign interfaces and namespaces.
    """
    if not names:
        return states
    lost = {place for name in names for place in (f"link //{name}", f"netns {name}")}
    keys: set[tuple[type, tuple[str, ...]]] = set()
    both = states[0] | states[1]
    size = -1
    while len(keys) > size:  # until nothing more depends on a removed object
        size = len(keys)
        for thing in both:
            kind = kind_of(thing)
            place = kind.place(thing)
            if place in lost or not lost.isdisjoint(kind.hangs_on(thing)):
                keys.add((type(thing), thing.key()))
                lost |= {place} - {""}
    one, other = (
        State(thing for thing in state if (type(thing), thing.key()) not in keys)
        for state in states
    )
    return one, other
