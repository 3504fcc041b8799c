"""Define the kinds for niso's two nftables tables and for elements of their sets; write elements.

The tables (chains, sets and maps) are one object, without their elements. To find differences, the
definition in `niso.kernel.ruleset` is loaded in a temporary network namespace, so that the kernel
lists the definition and the actual tables in the same form. Elements are changed in transactions.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache

from niso.base import paths
from niso.base.errors import Conflict, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy
from niso.kernel import netns, policy_rules, ruleset
from niso.kernel.kinds.addresses import Address
from niso.kernel.kinds.kind import (
    BY_TYPE,
    KINDS,
    NO_STEPS,
    Finding,
    Kind,
    Reading,
    Space,
    State,
    Steps,
    kind_of,
)
from niso.kernel.kinds.links import Veth
from niso.kernel.nft_elements import HEADERS, Atoms, Edit, Element, Nfnetlink

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from niso.kernel import libnftables
    from niso.kernel.kinds.kind import Problem
    from niso.kernel.real import Writer
else:
    libnftables = lazy("niso.kernel.libnftables")  # elements are changed without it


def differences() -> tuple[tuple[Problem, str], ...] | None:
    """Compare niso's tables in the kernel with their definition. Return (problem, name) for each
    chain, set or map that is missing, foreign or different. A missing table is one item, without
    its contents. Returns None if both tables are missing.
    """
    # libnftables keeps what it has listed, so it is closed before the next one is opened
    with libnftables.Nft() as kernel:
        present = _objects(kernel)
    if not present:
        return None
    gone = [table for table in ruleset.CONTAINERS if f"table {table}" not in present]
    expected = {
        name: obj
        for name, obj in _expected(ruleset.TABLES).items()
        if not any(f" {table} " in f"{name} " for table in gone)
    }
    unlike: list[tuple[Problem, str]] = [("missing", n) for n in expected.keys() - present.keys()]
    unlike += [("foreign", name) for name in present.keys() - expected.keys()]
    both = expected.keys() & present.keys()
    unlike += [("different", name) for name in both if expected[name] != present[name]]
    return (*(("missing", f"table {table}") for table in gone), *sorted(unlike))


@cache
def _expected(text: str) -> dict[str, list[str]]:
    """Return {object: lines of its definition} for tables in nft(8) syntax, as the kernel lists
    them. The tables are loaded into a temporary network namespace, once in each process.
    """
    with netns.unnamed(), libnftables.Nft() as scratch:
        scratch.run(text)
        return _objects(scratch)


def _objects(kernel: libnftables.Nft) -> dict[str, list[str]]:
    """Return the chains, sets and maps of niso's tables in the kernel. The dict maps a name, such
    as ``chain inet niso forward``, to the lines of its definition. The name ``table inet niso`` is
    for the table's own lines, such as its flags: a dormant table has no effect. The output of nft
    is parsed as text, because JSON would take 2.5 MiB more memory, and more time.
    """
    objects: dict[str, list[str]] = {}
    for table in ruleset.CONTAINERS:
        try:
            text = kernel.definition(table)
        except KernelError:
            continue
        lines = own = objects.setdefault(f"table {table}", [])
        for line in text.splitlines()[1:-1]:
            if line == "\t}":
                lines = own
            elif line.endswith(" {") and not line.startswith("\t\t"):
                kind, _, name = line[1:-2].rpartition(" ")
                lines = objects.setdefault(f"{kind} {table} {name}", [])
            elif line:
                # later versions of nft write the number of elements after the size of a set
                lines.append(line.partition("\t# count ")[0])
    return objects


def check_owner(table: str, texts: set[str], state_id: str) -> None:
    """Raise Conflict if a table does not belong to the state folder with the id ``state_id``.
    ``texts`` are the elements of the table's set ``owner``, which contain the id of its owner.
    """
    others = {text[3:] for text in texts if text.startswith("id-")} - {state_id}
    if others or not texts:
        whose = f"the niso state folder with id {min(others)}" if others else "another program"
        raise Conflict(
            f"table {table} in this network namespace belongs to {whose},"
            f" not to {paths.state_dir()}",
            "set NISO_STATE_DIR to that folder; if it is lost, see niso reset --help",
        )


class NftTransaction(NamedTuple):
    """A step that changes nftables in one transaction, which the kernel applies completely or not
    at all. The step consists of changes of elements. If the tables are recreated, it also contains
    text in nft's syntax.
    """

    edits: tuple[Edit | str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        return tuple(
            edit if isinstance(edit, str) else edit[1].statement(edit[0]) for edit in self.edits
        )

    @property
    def kind(self) -> Kind[Any]:
        return BY_TYPE[Element]

    def objects(self) -> tuple[Any, ...]:
        return ()

    def describe(self) -> str:
        first, last = self.edits[0], self.edits[-1]
        if isinstance(last, str) and last.startswith("destroy table"):
            return f"nft '{'; '.join(self.statements)}'"
        if isinstance(first, str) and first.startswith("destroy table"):
            return f"nft -f -   # recreate both tables, with {len(self.edits) - 3} elements"
        return "\n".join(f"nft {statement!r}" for statement in self.statements)


class _Elements(Kind[Element], of=Element):
    is_transactional = True
    is_of_host = True

    def parents(self, obj: Element) -> tuple[str, ...]:
        container = f"{obj.table} {obj.container}"
        return ("ruleset", f"table {obj.table}", f"set {container}", f"map {container}")

    def noun(self, obj: Element) -> str:
        kind = "map element" if obj.is_mapped else "set element"
        value = f" {': ' if obj.is_mapped else ''}{text}" if (text := obj.value_text) else ""
        owner = f" of {comment!r}" if (comment := obj.comment) else ""
        return f"nftables {kind} {obj.table} {obj.container} {{ {obj.text}{value} }}{owner}"

    def possible(
        self, want: State, before: State | None, sysctl: Callable[[str], str | None]
    ) -> frozenset[Element]:
        """Return the desired elements except those whose audit period has ended or ends soon."""
        now = time.time()
        ended = {e for e in want[Element] if e.ends and not policy_rules.is_wanted(e.value, now)}
        return want[Element] - ended if ended else want[Element]

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        """Return the transactions that change elements. The first transaction is executed before
        all other steps. Elements that restrict another object, such as a bridge port, are deleted
        in a second transaction, after all other steps. If no element is added, the second
        transaction has all deletions.
        """
        if want[Ruleset] != have[Ruleset]:  # the step of the ruleset writes all elements
            return NO_STEPS
        before = {element.key(): element for element in have[Element] - want[Element]}
        early: list[Edit] = []
        added: list[Edit] = []
        for element in sorted(want[Element] - have[Element]):
            if before.pop(element.key(), None) is not None:
                early.append(("delete", element))
            added.append(("add", element))
        # the addresses, without prefix length, that services lose by this change; a new holder of
        # an address must not meet elements of the previous holder's policies
        lost = (address for address in have[Address] - want[Address] if address.netns)
        addresses = {address.address.partition("/")[0] for address in lost}
        addresses |= _sources(before.values())
        addresses -= _sources(element for _, element in added)
        renewed = {_room(element) for _, element in added} - {None}
        late: list[Edit] = []
        for element in sorted(before.values()):
            guards_on = element.container in ruleset.LATE
            if element.container in ruleset.POLICIES:
                # a policy applies to an address until it is removed, unless new intervals need the
                # space of old ones
                own = not addresses.isdisjoint(element.fields[:2])
                guards_on = own and _room(element) not in renewed
            (late if guards_on else early).append(("delete", element))
        if not added:
            early, late = [], [*early, *late]
        first = [NftTransaction((*early, *added))] if early or added else []
        return first, (), (), [NftTransaction(tuple(late))] if late else ()

    def read(self, space: Space, objects: Collection[Element]) -> Iterable[Element]:
        reading = space.reading
        if reading.everything:
            return _all(reading)
        if not objects:
            return ()
        present = lookup(reading)
        keys = {element.key() for element in objects}
        return [present[key] for key in keys if key in present]

    def write(self, writer: Writer, steps: Sequence[NftTransaction]) -> None:
        (step,) = steps
        edits = [edit for edit in step.edits if not isinstance(edit, str)]
        by_text = [edit for edit in step.edits if isinstance(edit, str) or _needs_text(edit)]
        if ruleset.TABLES in by_text and len(edits) > _MANY and not _tables():
            _create(by_text, edits)
            return
        if by_text:
            with libnftables.Nft() as kernel:
                kernel.run_all(map(_text, step.edits))
            return
        verb, first = edits[0]
        what = f"apply nftables elements ({first.statement(verb)[:80]})"
        with Nfnetlink() as netlink:
            netlink.change(what, edits)


_MANY = 500
"""Missing tables with more elements are created in two transactions."""


def _needs_text(edit: Edit) -> bool:
    return HEADERS[edit[1][:2]].is_plain_interval


def _text(edit: Edit | str) -> str:
    return edit if isinstance(edit, str) else edit[1].statement(edit[0])


def _tables() -> list[str]:
    """Return niso's tables that exist in the kernel."""
    with Nfnetlink() as netlink:
        return [table for table in ruleset.CONTAINERS if netlink.has_table(table)]


def _create(by_text: list[Edit | str], edits: list[Edit]) -> None:
    """Create both tables, which must not exist, with many elements. libnftables needs 1.9 KiB of
    memory for each element, and netlink 0.3 KiB.

    libnftables executes the part ``by_text`` of the step, and creates the tables with the flag
    ``dormant``, so they have no effect. Then netlink adds the other elements of ``edits`` and
    removes the flag in one transaction. The element with the tables' version is among these. If
    niso is killed before this transaction, the next change therefore recreates the tables.
    """
    tables = ruleset.TABLES
    for table in ruleset.CONTAINERS:
        tables = tables.replace(f"table {table} {{\n", f"table {table} {{\n\tflags dormant\n")
    ids = [
        edit for edit in edits if edit[1].container == "owner" and edit[1].fields[0][:3] == "id-"
    ]
    with libnftables.Nft() as kernel:
        kernel.run_all(
            _text(edit) if edit != ruleset.TABLES else tables for edit in (*by_text, *ids)
        )
    early = {*ids}
    with Nfnetlink() as netlink:
        netlink.change(
            f"add {len(edits)} elements to the new nftables tables",
            [edit for edit in edits if not _needs_text(edit) and edit not in early],
            tuple(ruleset.CONTAINERS),
        )


def _sources(elements: Iterable[Element]) -> set[str]:
    return {e.fields[-1] for e in elements if e.container in ("sources4", "sources6")}


def _room(element: Element) -> Atoms | None:
    # None if the key is not an interval: the kernel refuses an interval that overlaps an existing
    # one
    _, part = policy_rules.POLICY_MAPS.get(element.container, ("", ""))
    if not part or not policy_rules.POLICY_PARTS[part][1]:
        return None
    own, peer = element.fields[:2]
    return (element.container, own, peer) if part == "ports" else (element.container, own)


def lookup(reading: Reading) -> dict[Atoms, Element]:
    """Read the requested elements, and the elements of the sets ``owner``, from the kernel. Returns
    {key: element} for those that exist. Later calls with the same ``reading`` return the first
    result.
    """
    if reading.elements is None:
        keys = {e.key() for e in (*owner(reading.state_id), *reading.candidates[Element])}
        with Nfnetlink() as netlink:
            reading.elements = netlink.get((HEADERS[key[:2]], key[2]) for key in keys)
    return reading.elements


def _all(reading: Reading) -> Iterator[Element]:
    with Nfnetlink() as netlink:
        for table, containers in ruleset.CONTAINERS.items():
            for container in containers:
                present = netlink.all_of(table, container) or []
                if container == "owner" and present:
                    check_owner(table, {mark.fields[0] for mark in present}, reading.state_id)
                yield from present


class Ruleset(NamedTuple):
    """niso's two nftables tables, without their elements. ``digest`` is the digest of their
    definition. ``wrong`` has (problem, name) of chains, sets and maps that differ from the
    definition.
    """

    digest: str
    wrong: tuple[tuple[Problem, str], ...] = ()

    def key(self) -> tuple[str, ...]:
        return ()


def owner(state_id: str) -> list[Element]:
    """Return the elements of the sets ``owner``, one set in each table. They record the id of the
    state folder and the version of the tables. niso reads the sets ``owner`` before all other sets.
    """
    return [
        Element(table, "owner", (text,))
        for table in ruleset.CONTAINERS
        for text in (f"id-{state_id}", f"rules-{ruleset.DIGEST}")
    ]


class _Rulesets(Kind[Ruleset], of=Ruleset):
    noun_format = "nftables tables inet niso and bridge niso"
    is_transactional = True
    is_of_host = True
    parent_name_format = "ruleset"

    def steps(self, want: State, have: State, disappearing: Collection[str]) -> Steps:
        """Return the transactions that destroy both tables and recreate them with all elements.

        The new tables also restrict interfaces that are about to be deleted: without these
        elements, packets of the interfaces would pass. The elements are deleted after the
        interfaces. If services run and other objects differ too, the element with the tables'
        version is added last. If niso is killed before this last step, the next command recreates
        the tables and so completes the change. The steps cover all services, whatever the scope of
        the change.
        """
        if want[Ruleset] == have[Ruleset]:
            return NO_STEPS
        tables = tuple(f"destroy table {table}" for table in ruleset.CONTAINERS)
        if not want[Ruleset]:
            return (), (), (), [NftTransaction(tables)]
        keys = {(type(obj), obj.key()) for obj in want if not isinstance(obj, Element)}
        guards: set[Element] = set()
        for obj in have:
            if (type(obj), obj.key()) not in keys:
                guards.update(kind_of(obj).guards(obj))
        owners = {element for element in want[Element] if element.container == "owner"}
        marks = {mark for mark in owners if mark.fields[0].startswith("rules-")}
        kinds = [kind.type for kind in KINDS if not kind.is_transactional]
        more = have[Veth] and any(want[kind] != have[kind] for kind in kinds)
        late = marks if more else set[Element]()
        adds = (("add", element) for element in sorted({*want[Element], *guards} - late))
        kept = {element.key() for element in want[Element]}
        drops = (("delete", guard) for guard in sorted(guards) if guard.key() not in kept)
        last = (*drops, *(("add", mark) for mark in sorted(late)))
        first = NftTransaction((*tables, ruleset.TABLES, *adds))
        return [first], (), (), [NftTransaction(last)] if last else ()

    def differences(self, obj: Ruleset, actual: Ruleset, known: Collection[str]) -> list[Finding]:
        if not actual.wrong:
            return [Finding("different", self.noun(actual), "from another version of niso")]
        return [Finding(problem, f"nftables {what}") for problem, what in actual.wrong]

    def conditions(self, obj: Ruleset, actual: Ruleset) -> Iterable[str]:
        wrong = [name for _, name in actual.wrong]
        return wrong if actual._replace(wrong=()) == obj else [*wrong, "ruleset"]

    def read(self, space: Space, objects: Collection[Ruleset]) -> Iterable[Ruleset]:
        reading = space.reading
        if reading.everything:
            wrong = differences()
            libnftables.release_memory()  # the objects that are read next need as much memory
            return () if wrong is None else (Ruleset(ruleset.DIGEST, wrong),)
        present = lookup(reading)
        if all(present.get(mark.key()) == mark for mark in owner(reading.state_id)):
            return (Ruleset(ruleset.DIGEST),)
        return _other_tables(reading)


def _other_tables(reading: Reading) -> Iterable[Ruleset]:
    """Return the existing tables as one `Ruleset`, or nothing if there are none. Called if the sets
    ``owner`` differ from the desired ones: another version of niso has created the tables, or they
    are incomplete. Raises Conflict if the tables belong to another state folder.
    """
    with Nfnetlink() as netlink:
        digests: list[str] = []
        gone: list[tuple[Problem, str]] = []
        for table in ruleset.CONTAINERS:
            marks = netlink.all_of(table, "owner")
            if marks is None:
                gone.append(("missing", f"table {table}"))
                continue
            texts = {mark.fields[0] for mark in marks}
            # tables without their mark are repaired when everything is read
            if texts or reading.foreign is None:
                check_owner(table, texts, reading.state_id)
            digests += [text[6:] for text in texts if text.startswith("rules-")]
    if len(digests) != len(ruleset.CONTAINERS) or len(set(digests)) != 1:
        return (Ruleset("incomplete", tuple(gone)),) if digests else ()
    return (Ruleset(digests[0]),)
