"""Create both tables with many elements in half of the memory that libnftables would take.

libnftables needs 1.9 KiB for each element that it parses: 19 MiB for 1,000 services. So it creates
the tables, and the elements follow by netlink in a transaction of their own. In between, the tables
can drop packets, but let none pass that would not pass without them. That is no loss only
where there was none: tables that exist are replaced in one transaction.

The mark of the tables' owner is there from the start, that of their version comes with the others.
So the next command recreates tables that a kill has left without elements.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from niso.base.errors import KernelError
from niso.kernel import nft_sets
from niso.kernel.libnftables import Nft
from niso.kernel.netlink import text
from niso.kernel.nft_elements import HEADERS, Change, Nfnetlink, nfgenmsg

_GETTABLE, _TABLE_NAME = 0x0A01, 1  # NFT_MSG_GETTABLE, NFTA_TABLE_NAME


def is_new() -> bool:
    """Return whether neither of niso's tables exists. Raises KernelError."""
    with Nfnetlink() as kernel:
        for table in nft_sets.CONTAINERS:
            owner = HEADERS[table, "owner"]
            body = nfgenmsg(owner.family) + text(_TABLE_NAME, owner.table)
            if kernel.get_one(f"find table {table}", _GETTABLE, body, (errno.ENOENT,)) is not None:
                return False
    return True


def load(tables: str, elements: Iterable[Change]) -> None:
    """Create the tables from nft's text, then add the elements. Raises KernelError.

    If the elements cannot be added, the tables are deleted again.
    """
    with Nft() as kernel:
        kernel.run(tables)
    try:
        with Nfnetlink() as netlink:
            netlink.change("add the elements of both tables", elements)
    except KernelError:
        with Nft() as kernel:
            kernel.run("\n".join(f"destroy table {table}" for table in nft_sets.CONTAINERS))
        raise
