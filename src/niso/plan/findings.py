"""Findings: the differences between what should be and what is, each named once."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.diff import wanted as in_view_of
from niso.kernel.kinds import order
from niso.kernel.kinds.kind import by_key
from niso.kernel.state import State

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem


class Finding(NamedTuple):
    """``what`` names the thing, ``detail`` says how it differs; both are for people.

    ``defect`` is a name of its own for what repair treats in its own way (niso.runtime.defects).
    """

    problem: Problem
    what: str
    detail: str = ""
    defect: str = ""

    def text(self) -> str:
        """One line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


def findings(want: State, have: State) -> list[Finding]:
    """Return the differences; what only follows from another one (an address of a missing link) is not named again."""
    found: list[Finding] = []
    known: set[str] = (
        set()
    )  # places that are missing or foreign, and conditions that explain others
    want = in_view_of(want, have)
    for kind in order.KINDS:
        before, more = by_key(want[kind.thing], have[kind.thing])
        for thing in sorted(want[kind.thing]):
            was = before.pop(thing.key(), None)
            if was == thing or not known.isdisjoint(
                (*kind.lies_in(thing), *kind.follows_from(thing, was))
            ):
                continue
            if was is None:
                found.append(Finding(*kind.missing(thing)))
                known.add(kind.place(thing))
            else:
                found += (Finding(*each) for each in kind.differences(thing, was, known))
                known.update(kind.conditions(thing, was))
        for thing in sorted([*before.values(), *more]):
            if kind.is_only_set or not known.isdisjoint(kind.lies_in(thing)):
                continue
            found.append(Finding("foreign", kind.what(thing)))
            known.add(kind.place(thing))
    return found
