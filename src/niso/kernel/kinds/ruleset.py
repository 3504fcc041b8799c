"""Define the kind of niso's two nftables tables: chains, sets and maps, without elements."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_sets, nft_tables
from niso.kernel.kinds import order
from niso.kernel.kinds.element import Edit, Element, NftTransaction, lookup
from niso.kernel.kinds.kind import Difference, Kind, Steps, kind_of

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem
    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State


class Ruleset(NamedTuple):
    """Both tables.

    ``digest`` is that of their text (nft_tables.py). ``wrong`` lists chains and sets that differ.
    """

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
        """Destroy and recreate both tables in one transaction, with all elements.

        Links that are about to be deleted get guard elements in the new tables until they are
        deleted: otherwise their packets would pass. If services run and more than the rules
        differs, the version mark is added last: without the mark, the next command recreates the
        tables, and so completes what a killed command left behind. A plan that creates tables
        covers everything, whatever its scope.
        """
        from niso.kernel.kinds.veth import Veth

        if want[Ruleset] == have[Ruleset]:
            return Steps()
        tables = tuple(f"destroy table {table}" for table in nft_sets.CONTAINERS)
        if not want[Ruleset]:
            return Steps(last=[NftTransaction(tables)])
        keys = {(type(thing), thing.key()) for thing in want if not isinstance(thing, Element)}
        guards: set[Element] = set()
        for thing in have:
            if (type(thing), thing.key()) not in keys:
                guards.update(kind_of(thing).guards(thing))
        marks = {element for element in want[Element] if _is_version(element)}
        kinds = [kind.thing for kind in order.KINDS if not kind.is_transactional]
        more = have[Veth] and any(want[kind] != have[kind] for kind in kinds)
        late = marks if more else set[Element]()
        adds = (Edit("add", element) for element in sorted({*want[Element], *guards} - late))
        kept = {element.key() for element in want[Element]}
        drops = (Edit("delete", guard) for guard in sorted(guards) if guard.key() not in kept)
        last = (*drops, *(Edit("add", mark) for mark in sorted(late)))
        return Steps(
            [NftTransaction((*tables, nft_tables.TABLES, *adds))],
            last=[NftTransaction(last)] if last else [],
        )

    def differences(self, thing: Ruleset, was: Ruleset, known: Collection[str]) -> list[Difference]:
        if not was.wrong:
            return [Difference("different", self.what(was), "from another version of niso")]
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
    """Return the elements that mark the tables' state folder and the version of their text.

    Every new process reads them first.
    """
    return [
        Element(table, "owner", f'"{text}"', "", "")
        for table in nft_sets.CONTAINERS
        for text in (f"id-{state_id}", f"rules-{nft_tables.DIGEST}")
    ]


def _is_version(element: Element) -> bool:
    return element.container == "owner" and element.element.startswith('"rules-')


def _compared() -> Iterable[Ruleset]:
    """Return the tables with the differences from their text."""
    from niso.kernel import nft_compare
    from niso.kernel.libnftables import release_memory

    wrong = nft_compare.differences()
    release_memory()  # release the memory, since the objects read next need as much
    return () if wrong is None else (Ruleset(nft_tables.DIGEST, wrong),)


def _other_tables(reading: Reading) -> Iterable[Ruleset]:
    """Return the tables after their marks were found to differ. Raises Conflict if foreign."""
    from niso.kernel.libnftables import Nft
    from niso.kernel.nft_compare import check_owner

    with Nft() as kernel:
        digests: list[str] = []
        gone: list[tuple[Problem, str]] = []
        for table in nft_sets.CONTAINERS:
            marks = kernel.elements(table, "owner")
            if marks is None:
                gone.append(("missing", f"table {table}"))
                continue
            texts = {mark.strip('"') for mark in marks}
            # tables without their mark are repaired when everything is read
            if texts or reading.foreign is None:
                check_owner(table, texts, reading.state_id)
            digests += [text[6:] for text in texts if text.startswith("rules-")]
    if len(digests) != len(nft_sets.CONTAINERS) or len(set(digests)) != 1:
        return (Ruleset("incomplete", tuple(gone)),) if digests else ()
    return (Ruleset(digests[0]),)


KIND = _Rulesets(Ruleset)
