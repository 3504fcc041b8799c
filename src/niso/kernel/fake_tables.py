"""Model niso's two nftables tables in memory; see `niso.kernel.fake`."""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import time

from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import nft_audit, nft_sets, nft_tables
from niso.kernel.kinds.element import Edit, Element, NftTransaction

if TYPE_CHECKING:
    pass


def refuse_unless(so: bool, number: int, what: object) -> None:
    """Raise KernelError with an errno unless a condition holds."""
    if not so:
        raise KernelError(f"{what}: {os.strerror(number)}", errno=number)


def overlap(one: str, other: str) -> bool:
    """Return whether two keys of an interval set overlap: whether all of their fields do."""
    pairs = zip(map(_ends, one.split(" . ")), map(_ends, other.split(" . ")), strict=True)
    return all(low <= high_ and low_ <= high for (low, high), (low_, high_) in pairs)


@functools.lru_cache(4096)
def _ends(field: str) -> tuple[int, int]:
    """Return the first and last value of a prefix, a range, or a single value."""
    if "/" in field:
        network = ipaddress.ip_network(field)
        return int(network[0]), int(network[-1])
    low, _, high = field.partition("-")
    try:
        return _number(low), _number(high or low)
    except ValueError:  # a name, of a protocol or a link
        name = int.from_bytes(field.encode())
        return name, name


def _number(text: str) -> int:
    return int(text) if text.isdigit() else int(ipaddress.ip_address(text))


class FakeTables:
    """Both tables: the digest of their text, and their elements."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.ruleset: str | None = None
        self.elements: dict[tuple[str, ...], Element] = {}

    def transact(self, step: NftTransaction) -> None:
        """Apply all edits or none. Raises KernelError."""
        refuse_unless(bool(step.edits), errno.EINVAL, "an empty transaction")
        before = (self.ruleset, dict(self.elements))
        try:
            for edit in step.edits:
                if isinstance(edit, str):
                    self._text(edit)
                else:
                    self._edit(edit)
        except KernelError:
            self.ruleset, self.elements = before
            raise

    def is_marked(self) -> bool:
        """Return whether the tables carry the mark of this version, or are another version's."""
        mark = f'"rules-{nft_tables.DIGEST}"'
        marks = [(table, "owner", mark) in self.elements for table in nft_sets.CONTAINERS]
        return self.ruleset != nft_tables.DIGEST or all(marks)

    def list_elements(self, table: str, container: str) -> dict[str, tuple[str, str]] | None:
        """Implement `Kernel.list_elements`."""
        if self.ruleset is None or container not in nft_sets.CONTAINERS.get(table, ()):
            return None
        return {
            e.element: (e.value, e.comment)
            for e in self.present_elements()
            if (e.table, e.container) == (table, container)
        }

    def present_elements(self) -> list[Element]:
        """Return the elements whose timeout has not passed."""
        now = time.time()
        return [
            e for e in self.elements.values() if not e.ends or nft_audit.is_wanted(e.comment, now)
        ]

    def _text(self, statement: str) -> None:
        table = statement.removeprefix("destroy table ")
        if table in nft_sets.CONTAINERS:
            self.ruleset = None
            self.elements = {key: e for key, e in self.elements.items() if key[0] != table}
            return
        refuse_unless(statement == nft_tables.TABLES, errno.EINVAL, statement)
        refuse_unless(self.ruleset is None, errno.EINVAL, "the tables already exist")
        self.ruleset = nft_tables.DIGEST

    def _edit(self, edit: Edit) -> None:
        what, element = edit.text(), edit.element
        table, container = element.table, element.container
        refuse_unless(self.ruleset is not None, errno.ENOENT, what)
        refuse_unless(container in nft_sets.CONTAINERS[table], errno.ENOENT, what)
        present = self.elements.get(element.key())
        if edit.verb == "delete":
            refuse_unless(present is not None or element.ends, errno.ENOENT, what)
            self.elements.pop(element.key(), None)
        elif present is not None:
            # the kernel accepts a second limit without effect
            same = present.value == element.value or not element.is_mapped
            refuse_unless(same, errno.EEXIST, what)
        else:
            if nft_sets.DECLARED[table, container][2]:
                others = [
                    e.element
                    for e in self.elements.values()
                    if (e.table, e.container) == (table, container)
                ]
                clash = any(overlap(element.element, other) for other in others)
                if clash and "/" in element.element and not self.strict:
                    return  # nested prefixes: the kernel accepts this without effect
                refuse_unless(not clash, errno.EEXIST, what)
            self.elements[element.key()] = element
