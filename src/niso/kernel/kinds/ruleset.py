"""The two nftables tables with their chains, sets and maps, without elements."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_tables
from niso.kernel.kinds.element import Edit, Element, NftTransaction, lookup
from niso.kernel.kinds.kind import Difference, Kind, Steps, kind_of

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State


class Ruleset(NamedTuple):
    """``digest`` names the text (nft_tables.py); ``wrong`` the chains and sets that are not as the text has them."""

    digest: str
    wrong: tuple[tuple[Problem, str], ...] = ()

    def key(self) -> tuple[str, ...]:
        return ()


class _Rulesets(Kind[Ruleset]):
    is_transactional = True
    holds_others = True

    def place(self, thing: Ruleset) -> str:
        return "ruleset"

    def what(self, thing: Ruleset) -> str:
        return "nftables tables inet niso and bridge niso"

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Destroy both tables and make them again in one transaction, with all elements.

        The new ones know nothing of links that are about to go: until then their guards let nothing out of them.
        """
        if want[Ruleset] == have[Ruleset]:
            return Steps()
        tables = tuple(f"destroy table {table}" for table in nft_tables.CONTAINERS)
        if not want[Ruleset]:
            return Steps(last=[NftTransaction(tables)])
        keys = {(type(thing), thing.key()) for thing in want if not isinstance(thing, Element)}
        guards: set[Element] = set()
        for thing in have:
            if (type(thing), thing.key()) not in keys:
                guards.update(kind_of(thing).guards(thing))
        adds = (Edit("add", element) for element in sorted({*want[Element], *guards}))
        drops = tuple(Edit("delete", element) for element in sorted(guards))
        return Steps(
            [NftTransaction((*tables, nft_tables.TABLES, *adds))],
            last=[NftTransaction(drops)] if drops else [],
        )

    def differences(self, thing: Ruleset, was: Ruleset, known: Collection[str]) -> list[Difference]:
        if not was.wrong:
            return [Difference("different", self.what(was), "of another version of niso")]
        return [Difference(problem, f"nftables {what}") for problem, what in was.wrong]

    def conditions(self, thing: Ruleset, was: Ruleset) -> Iterable[str]:
        wrong = [name for _, name in was.wrong]
        return wrong if was._replace(wrong=()) == thing else [*wrong, "ruleset"]

    def read(self, space: Space, things: Collection[Ruleset]) -> Iterable[Ruleset]:
        if space.name:
            return ()
        reading = space.reading
        if reading.everything:
            return _compared()
        present = lookup(reading)
        marks = {(e.table, e.container, e.element): ("", "") for e in owner(reading.state_id)}
        if all(present.get(key) == value for key, value in marks.items()):
            return (Ruleset(nft_tables.DIGEST),)
        return _other_tables(reading)


def owner(state_id: str) -> list[Element]:
    """Return the elements that say whose tables these are, and which text made them: a fresh process reads them first."""
    return [
        Element(table, "owner", f'"{text}"', "", "")
        for table in nft_tables.CONTAINERS
        for text in (f"id-{state_id}", f"rules-{nft_tables.DIGEST}")
    ]


def _compared() -> Iterable[Ruleset]:
    """The tables, with what differs from their text."""
    from niso.kernel import nft_compare
    from niso.kernel.libnftables import Nft

    with Nft() as kernel:
        wrong = nft_compare.differences(kernel)
    return () if wrong is None else (Ruleset(nft_tables.DIGEST, wrong),)


def _other_tables(reading: Reading) -> Iterable[Ruleset]:
    """The tables where they are not marked as they should be."""
    from niso.kernel.libnftables import Nft
    from niso.kernel.nft_compare import check_owner

    with Nft() as kernel:
        digests: list[str] = []
        gone: list[tuple[Problem, str]] = []
        for table in nft_tables.CONTAINERS:
            marks = kernel.elements(table, "owner")
            if marks is None:
                gone.append(("missing", f"table {table}"))
                continue
            texts = {mark.strip('"') for mark in marks}
            # tables of this form that have lost their mark are repaired where everything is
            if texts or reading.foreign is None:
                check_owner(table, texts, reading.state_id)
            digests += [text[6:] for text in texts if text.startswith("rules-")]
    if len(digests) != len(nft_tables.CONTAINERS) or len(set(digests)) != 1:
        return (Ruleset("incomplete", tuple(gone)),) if digests else ()
    return (Ruleset(digests[0]),)


KIND = _Rulesets(Ruleset)
