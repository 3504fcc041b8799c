"""Compute the steps from an actual to a desired state. Pure.

Objects are created in the order of their kinds and deleted in reverse, additions before deletions.
"""

from __future__ import annotations

from niso.kernel.kinds.kind import KINDS, AnyStep, State, Step, kind_of


def diff(want: State, have: State) -> list[AnyStep]:
    """Return the steps that change the kernel from the state ``have`` to the state ``want``. Both
    states must be of the same services and networks.
    """
    want = wanted(want, have)
    first: list[AnyStep] = []
    made: list[AnyStep] = []
    deleted: list[AnyStep] = []
    last: list[AnyStep] = []
    early = State.of_kinds(lambda kind: kind.blocking(want, have))
    have = _without(have, early)
    disappearing = _disappearing_parents(want, have)
    for kind in KINDS:
        before, additions, deletions, after = kind.steps(want, have, disappearing)
        first += before
        made += [Step("delete", obj) for obj in sorted(early[kind.type])]
        made += additions
        deleted[:0] = deletions
        last += after
    return [*first, *made, *deleted, *last]


def wanted(want: State, have: State) -> State:
    """Return the desired state, which each kind of object adjusts to the actual state ``have``.

    For example, if another program has changed a sysctl that niso leaves at its default, the valid
    value of this sysctl is added (`Kind.wanted`).
    """
    return State.of_kinds(lambda kind: kind.wanted(want, have))


def _disappearing_parents(want: State, have: State) -> set[str]:
    """Return the names of the namespaces, network interfaces and tables that a change deletes. The
    objects in them disappear with them.
    """
    disappearing: set[str] = set()
    for kind in KINDS:
        if kind.parent_name_format:
            keys = {obj.key() for obj in want[kind.type]}
            disappearing |= {kind.parent_name(t) for t in have[kind.type] if t.key() not in keys}
    return disappearing


def _without(have: State, early: State) -> State:
    """Return the state ``have`` after the deletion of ``early``: objects in a deleted namespace or
    on a deleted interface are left out too.
    """
    if not early:
        return have
    parents = {kind_of(obj).parent_name(obj) for obj in early}
    return State.of_kinds(
        lambda kind: (
            obj
            for obj in have[kind.type] - early[kind.type]
            if kind.is_transactional or parents.isdisjoint(kind.parents(obj))
        )
    )


def without_foreign(states: tuple[State, State], names: set[str]) -> tuple[State, State]:
    """Return both states without the objects that need an interface or namespace of another
    program. ``names`` are the names of these interfaces and namespaces.
    """
    if not names:
        return states
    lost = {parent for name in names for parent in (f"link //{name}", f"netns {name}")}
    keys: set[tuple[type, tuple[str, ...]]] = set()
    both = states[0] | states[1]
    size = -1
    while len(keys) > size:  # until nothing more depends on a removed object
        size = len(keys)
        for obj in both:
            kind = kind_of(obj)
            parent = kind.parent_name(obj)
            if parent in lost or not lost.isdisjoint(kind.dependencies(obj)):
                keys.add((type(obj), obj.key()))
                lost |= {parent} - {""}
    one, other = (
        State(obj for obj in state if (type(obj), obj.key()) not in keys) for state in states
    )
    return one, other
