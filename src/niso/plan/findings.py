"""Report each difference between the desired and the actual state, without its consequences."""

from __future__ import annotations

from collections.abc import Iterator

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.diff import wanted as in_view_of
from niso.kernel.kinds import order
from niso.kernel.kinds.kind import by_key, kind_of
from niso.kernel.kinds.veth import Veth
from niso.kernel.state import State

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem


class Finding(NamedTuple):
    """One difference. ``what`` names the object, ``detail`` says how it differs: texts for people.

    ``defect`` names a defect that repair handles specially (niso.runtime.defects).
    """

    problem: Problem
    what: str
    detail: str = ""
    defect: str = ""

    def text(self) -> str:
        """Return the finding as one line."""
        return f"{self.problem}: {self.what}{f' ({self.detail})' if self.detail else ''}"


def findings(want: State, have: State) -> list[Finding]:
    """Return the differences between two states.

    Consequences of a reported difference are left out, such as an address of a missing link.
    """
    result: list[Finding] = []
    # missing or foreign parents, and conditions that explain other differences
    known = set(_unseen_links(want, have))
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
                result.append(Finding(*kind.missing(thing)))
                known.add(kind.place(thing))
            else:
                result += (Finding(*fields) for fields in kind.differences(thing, was, known))
                known.update(kind.conditions(thing, was))
        for thing in sorted([*before.values(), *more]):
            if kind.is_only_set or not known.isdisjoint(kind.lies_in(thing)):
                continue
            result.append(Finding("foreign", kind.what(thing)))
            known.add(kind.place(thing))
    return result


def _unseen_links(want: State, have: State) -> Iterator[str]:
    """Yield services' links that are missing or in the wrong namespace; so are their sysctls.

    Sysctls are compared before veth pairs, in the order of creation.
    """
    there = {veth.key() for veth in have[Veth] if veth.peer}
    for veth in want[Veth]:
        if veth.key() not in there:
            yield kind_of(veth).place(veth)
