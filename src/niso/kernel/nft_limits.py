"""Define which packets of services are limited, and the text of a limit."""

from __future__ import annotations

FLOWS, FRAGMENTS, ARP, ASKERS = "flows", "fragments", "arp_nd", "askers"
"""Sets with a limit in each element; what has no element has no limit.

New flows are limited by address (``flows4``, ``flows6``), IP fragments and ARP with neighbour
discovery by bridge port. ``askers4`` and ``askers6`` limit addresses on the host's own links that
the host asks for in a service's stead, and that nobody had asked for in the last
`nft_tables.NEXT_HOP_S` seconds. Each takes an entry of the machine's neighbour table.
"""
_BURST = {FLOWS: 5, FRAGMENTS: 5, ARP: 10, ASKERS: 5}  # seconds of the rate, at once


def limit(what: str, rate: int) -> str:
    """Return the limit of an element: so many packets a second pass, and a burst of them."""
    return f"limit rate over {rate}/second burst {rate * _BURST[what]} packets"
