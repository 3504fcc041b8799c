"""Read the counters of active services: traffic, policy drops and anti-spoofing drops."""

from __future__ import annotations

from collections.abc import Sequence

from niso.base import names
from niso.explain.service_stats import Stats
from niso.kernel import link_counters, nft_audit, nft_bridge, nft_sets, nft_tables
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.plan.policy_maps import PASSES
from niso.store.service_rows import ServiceRow

_Counts = dict[tuple[str, str], int]


def stats(rows: Sequence[ServiceRow]) -> list[Stats]:
    """Return the counters of each given service; all must be active. Raises KernelError."""
    if not rows:
        return []
    ends = {
        row.name: [names.veth(row.name, network, row.generation) for network in row.networks]
        for row in rows
    }
    links = link_counters.of_links(end for service in ends.values() for end in service)
    drops, audits = _policy_drops()
    foreign = _foreign()
    result = []
    for row in rows:
        counters = [links[end] for end in ends[row.name] if end in links]
        complete = ends[row.name] and len(counters) == len(ends[row.name])
        sums = [sum(counter[i] for counter in counters) if complete else None for i in range(4)]
        # what the service sends is received by the host's end of its veth pair
        out_packets, out_bytes, in_packets, in_bytes = sums
        in_drops, out_drops = (
            None if drops is None else drops.get((direction, row.name), 0)
            for direction in ("in", "out")
        )
        result.append(
            Stats(
                row.name,
                in_packets,
                in_bytes,
                in_drops,
                out_packets,
                out_bytes,
                out_drops,
                None if foreign is None else sum(foreign.get(end, 0) for end in ends[row.name]),
                audits.get(("in", row.name)),
                audits.get(("out", row.name)),
            )
        )
    return result


def _policy_drops() -> tuple[_Counts | None, _Counts]:
    """Return packet counts by (direction, service): those that policies dropped, and audited ones.

    Audited packets would have been dropped, but the policy is in audit; only services with such a
    policy are listed. The dropped counts are None if niso's nftables table does not exist.
    """
    drops: _Counts = {}
    audits: _Counts = {}
    with Nfnetlink() as kernel:
        if kernel.header(nft_tables.INET, "owner") is None:
            return None, audits
        for name in sorted((*nft_sets.COUNTED, *nft_audit.PLACES)):
            direction = "in" if name.startswith(("in", "no_start_in", "audit_in")) else "out"
            for counted in kernel.counts(HEADERS[nft_tables.INET, name]):
                # denials of a policy in audit are counted by the audit sets, both until the audit
                # ends and after
                if counted.value == PASSES or counted.value in nft_audit.VERDICTS:
                    continue
                key = (direction, counted.comment.partition(" ")[0])
                sums = audits if name in nft_audit.PLACES else drops
                sums[key] = sums.get(key, 0) + counted.packets
    return drops, audits


def _foreign() -> dict[str, int] | None:
    """Return spoofed frames dropped, by bridge port; None without the bridge table."""
    with Nfnetlink() as kernel:
        header = kernel.header(nft_tables.BRIDGE, nft_bridge.DROPPED_FROM)
        if header is None:
            return None
        return {port.key.strip('"'): port.packets for port in kernel.counts(header)}
