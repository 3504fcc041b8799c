"""Define which packets of services are rate-limited, and the text of a limit."""

from __future__ import annotations

FLOWS, FRAGMENTS, ARP, ASKERS = "flows", "fragments", "arp_nd", "askers"
"""Sets with a limit in each element; a source without an element has no limit.

New flows are limited by address (``flows4``, ``flows6``); IP fragments, and ARP with neighbour
discovery, by bridge port. ``askers4`` and ``askers6`` limit how many addresses on its own links the
host resolves for a service, apart from those that were resolved in the last `nft_tables.NEXT_HOP_S`
seconds. Each takes an entry of the machine's neighbour table.
"""
_BURST = {FLOWS: 5, FRAGMENTS: 5, ARP: 10, ASKERS: 5}  # burst, in seconds of the rate


def limit(what: str, rate: int) -> str:
    """Return the limit of an element in nft syntax: ``rate`` packets a second, with a burst."""
    return f"limit rate over {rate}/second burst {rate * _BURST[what]} packets"
