"""Define the kind of nftables elements, and the transactions that change them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_audit, nft_policies, nft_sets, nft_tables
from niso.kernel.kinds.kind import Kind, Steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from niso.kernel.reading import Reading, Space
    from niso.kernel.state import State
    from niso.kernel.writing import Writer


class Element(NamedTuple):
    """One element of an nftables set or map. In a set, ``value`` is "", or the element's limit.

    ``comment`` names the service or network that owns the element, and for a policy the manifest
    line.
    """

    table: str  # "inet niso" or "bridge niso"
    container: str
    element: str  # as nft writes it: "tcp . 8080"
    value: str
    comment: str

    def key(self) -> tuple[str, ...]:
        return (self.table, self.container, self.element)

    @property
    def is_mapped(self) -> bool:
        """Return whether the element is in a map."""
        return bool(self.value) and not (self.value.startswith("limit ") or self.ends)

    @property
    def ends(self) -> bool:
        """Return whether it belongs to an audit: the kernel may delete it after its timeout."""
        return self.container in nft_audit.PLACES


class Edit(NamedTuple):
    """An element that an nftables transaction adds or deletes."""

    verb: str  # "add" or "delete"
    element: Element

    def text(self) -> str:
        """Return the edit in nft's syntax (nft(8))."""
        table, container, what, value, comment = self.element
        if self.element.ends and self.verb == "delete":
            return f"destroy element {table} {container} {{ {what} }}"
        if self.verb == "add":
            if self.element.ends:
                left_s = nft_audit.timeout_s(comment, time.time())
                what += f" timeout {int(left_s)}s" if left_s != nft_audit.ENDLESS else ""
            mapped = self.element.is_mapped
            what += f" {value}" if value and not mapped else ""
            what += f' comment "{comment}"' if comment else ""
            what += f" : {value}" if mapped else ""
        return f"{self.verb} element {table} {container} {{ {what} }}"


class NftTransaction(NamedTuple):
    """An nftables transaction, which the kernel applies completely or not at all.

    It contains edits of elements, and nft text where the tables are recreated.
    """

    edits: tuple[Edit | str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """Return all statements in nft's syntax."""
        return tuple(edit if isinstance(edit, str) else edit.text() for edit in self.edits)

    @property
    def kind(self) -> Kind[Any]:
        return KIND

    def things(self) -> tuple[Any, ...]:
        return ()

    def makes_tables(self) -> bool:
        return nft_tables.TABLES in self.edits

    def describe(self) -> str:
        first, last = self.edits[0], self.edits[-1]
        if isinstance(last, str) and last.startswith("destroy table"):
            return f"nft '{'; '.join(self.statements)}'"
        if isinstance(first, str) and first.startswith("destroy table"):
            return f"nft -f -   # recreate both tables, with {len(self.edits) - 3} elements"
        return "\n".join(f"nft {statement!r}" for statement in self.statements)


class _Elements(Kind[Element]):
    is_transactional = True

    def lies_in(self, thing: Element) -> tuple[str, ...]:
        container = f"{thing.table} {thing.container}"
        return ("ruleset", f"table {thing.table}", f"set {container}", f"map {container}")

    def what(self, thing: Element) -> str:
        kind = "map element" if thing.is_mapped else "set element"
        value = f" {': ' if thing.is_mapped else ''}{thing.value}" if thing.value else ""
        owner = f" of {thing.comment!r}" if thing.comment else ""
        return (
            f"nftables {kind} {thing.table} {thing.container} {{ {thing.element}{value} }}{owner}"
        )

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[Element]:
        """Leave out elements of audits that have ended or are about to end."""
        now = time.time()
        return frozenset(
            e for e in want[Element] if not e.ends or nft_audit.is_wanted(e.comment, now)
        )

    def in_scope(self, have: State, want: State, before: State) -> frozenset[Element]:
        """Leave out elements that now belong to another scope, such as those of a moved port."""
        keys = {element.key() for element in want[Element]}
        owners = {(element.key(), element.comment) for element in before[Element]}
        return frozenset(
            e for e in have[Element] if e.key() in keys or (e.key(), e.comment) in owners
        )

    def steps(self, want: State, have: State, going: Collection[str]) -> Steps:
        """Change elements in one transaction before all other steps.

        Elements that guard an object are deleted in a second transaction after all other steps. If
        there is nothing to add, the second transaction has all deletions.
        """
        from niso.kernel.kinds.ruleset import Ruleset

        if want[Ruleset] != have[Ruleset]:  # the step of the ruleset writes all elements
            return Steps()
        before = {element.key(): element for element in have[Element]}
        early: list[Edit] = []
        added: list[Edit] = []
        for element in sorted(want[Element]):
            was = before.pop(element.key(), None)
            if was == element:
                continue
            if was is not None:
                early.append(Edit("delete", element))
            added.append(Edit("add", element))
        addresses = _addresses_that_go(want, have, before.values())
        # a new holder of an address must not meet elements of the previous holder's policies
        addresses -= {
            edit.element.element.rpartition(" . ")[2]
            for edit in added
            if edit.element.container in ("sources4", "sources6")
        }
        renewed = {_room(edit.element) for edit in added} - {None}
        late: list[Edit] = []
        for element in sorted(before.values()):
            guards_on = element.container in nft_sets.LATE
            if element.container in nft_sets.POLICIES:
                # a policy applies to an address until it is removed, unless new intervals need the
                # space of old ones
                own = not addresses.isdisjoint(element.element.split(" . ")[:2])
                guards_on = own and _room(element) not in renewed
            (late if guards_on else early).append(Edit("delete", element))
        if not added:
            early, late = [], [*early, *late]
        first = [NftTransaction((*early, *added))] if early or added else []
        return Steps(first, last=[NftTransaction(tuple(late))] if late else [])

    def by_space(self, things: Iterable[Element]) -> dict[str, Collection[Element]]:
        return {"": frozenset(things)}

    def read(self, space: Space, things: Collection[Element]) -> Iterable[Element]:
        reading = space.reading
        if reading.everything:
            return () if space.name else present_now(_all(reading))
        if not things:
            return ()
        present = lookup(reading)
        keys = {element.key() for element in things}
        return present_now(Element(*key, *present[key]) for key in keys if key in present)

    def write(self, writer: Writer, steps: Sequence[NftTransaction]) -> None:
        """Execute one transaction through netlink.

        libnftables executes transactions that create or destroy tables, and those with elements
        that nft_elements.py cannot write.
        """
        from niso.kernel.nft_elements import HEADERS, Change, Nfnetlink, can_change

        (step,) = steps
        edits = [edit for edit in step.edits if isinstance(edit, Edit)]
        headers = [HEADERS[edit.element.table, edit.element.container] for edit in edits]
        if len(edits) < len(step.edits) or not all(map(can_change, headers)):
            from niso.kernel.libnftables import Nft

            with Nft() as kernel:
                kernel.run("\n".join(step.statements))
            return
        what = f"apply nftables elements ({step.statements[0][:80]})"
        with Nfnetlink() as netlink:
            netlink.change(
                what,
                (
                    Change(edit.verb == "add", header, *edit.element[2:])
                    for edit, header in zip(edits, headers, strict=True)
                ),
            )


def present_now(elements: Iterable[Element]) -> Iterator[Element]:
    """Yield elements as they were read, without those that are about to expire."""
    now = time.time()
    for element in elements:
        if not element.ends:
            yield element
        elif (seen := nft_audit.seen(element.value, element.comment, now)) is not None:
            yield element._replace(value=seen)


def _addresses_that_go(want: State, have: State, gone: Iterable[Element]) -> set[str]:
    """Return the addresses, without prefix length, that services lose by this change."""
    from niso.kernel.kinds.address import Address

    return {
        *(
            address.address.partition("/")[0]
            for address in have[Address] - want[Address]
            if address.netns
        ),
        *(
            element.element.rpartition(" . ")[2]
            for element in gone
            if element.container in ("sources4", "sources6")
        ),
    }


def _room(element: Element) -> tuple[str, ...] | None:
    """Return the fields that intervals of a policy must share to overlap; None if not an interval.

    A new interval may overlap an old one, which must then be deleted first.
    """
    part = element.container.partition("_")[2]
    intervals = nft_policies.POLICY_PARTS.get(part, ("", False))[1]
    if element.container not in nft_sets.POLICIES or not intervals:
        return None
    own, peer = element.element.split(" . ")[:2]
    return (element.container, own, peer) if part == "ports" else (element.container, own)


def lookup(reading: Reading) -> dict[tuple[str, str, str], tuple[str, str]]:
    """Return (value, comment) of existing candidates and of the tables' marks, by key.

    Queries the kernel once for each reading.
    """
    if reading.elements is None:
        from niso.kernel.kinds.ruleset import owner
        from niso.kernel.nft_elements import HEADERS, Nfnetlink

        keys = {e[:3] for e in (*owner(reading.state_id), *reading.candidates[Element])}
        with Nfnetlink() as netlink:
            present = netlink.get_many((HEADERS[key[:2]], key[2]) for key in keys)
        reading.elements = {
            key: present[HEADERS[key[:2]], key[2]]
            for key in keys
            if (HEADERS[key[:2]], key[2]) in present
        }
    return reading.elements


def _all(reading: Reading) -> Iterator[Element]:
    """Yield all elements of both tables, with the elements of only one set in memory at a time.

    Raises Conflict if the tables belong to another state folder.
    """
    from niso.kernel.libnftables import Nft
    from niso.kernel.nft_compare import check_owner

    with Nft() as kernel:
        for table, containers in nft_sets.CONTAINERS.items():
            for container in containers:
                present = kernel.elements(table, container) or {}
                if container == "owner" and present:
                    texts = {mark.strip('"') for mark in present}
                    check_owner(table, texts, reading.state_id)
                for key, more in present.items():
                    yield Element(table, container, key, *more)


KIND = _Elements(Element)
