"""Report drops of policies and anti-spoofing: counters by service (`stats`) or live (`log`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from niso.base import names
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import link_counters, nft_audit, nft_policies, nft_sets, nft_tables
from niso.kernel.libnftables import Nft
from niso.kernel.nflog import Logged, Nflog
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.plan import verdict
from niso.plan.known_world import World
from niso.plan.policy_maps import PASSES
from niso.reconcile.world import read_world
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel


_Counts = dict[tuple[str, str], int]


class Stats(NamedTuple):
    """Counters of an active service; None if the kernel's counter is not readable now.

    ``in_drops`` and ``out_drops`` are packets that its ingress and egress policy have dropped since
    the last change of the policy. ``foreign`` are frames that it sent with an address, VLAN tag or
    frame type that is not its own. ``in_audits`` and ``out_audits`` are packets that its policy
    would have dropped; None unless it is in audit.
    """

    service: str
    in_packets: int | None
    in_bytes: int | None
    in_drops: int | None
    out_packets: int | None
    out_bytes: int | None
    out_drops: int | None
    foreign: int | None
    in_audits: int | None
    out_audits: int | None


class Drop(NamedTuple):
    """A packet that a policy with ``log = true`` has dropped. Unknown names are ""."""

    time: float  # seconds since 1970
    service: str
    direction: str  # in or out
    key: str  # the manifest's key that decides; "" if the policy has changed since
    source: str
    source_name: str
    destination: str
    destination_name: str
    port: int | None
    proto: str
    link: str


def stats(rows: Sequence[ServiceRow]) -> list[Stats]:
    """Return the counters of each of these active services. Raises KernelError."""
    if not rows:
        return []
    ends = {
        row.name: [names.veth(row.name, network, row.generation) for network in row.networks]
        for row in rows
    }
    links = link_counters.of_links(end for service in ends.values() for end in service)
    drops, audits = _policy_drops()
    with Nft() as kernel:
        foreign = _foreign(kernel)
    result = []
    for row in rows:
        counters = [links[end] for end in ends[row.name] if end in links]
        complete = ends[row.name] and len(counters) == len(ends[row.name])
        sums = [sum(counter[i] for counter in counters) if complete else None for i in range(4)]
        # the host's end receives what the service sends
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
    """Return the packets that policies dropped, and those that they would have dropped.

    Both are by (direction, service). The former is None without our table, the latter has only
    services whose policy is in audit.
    """
    drops: _Counts = {}
    audits: _Counts = {}
    with Nfnetlink() as kernel:
        if kernel.header(nft_tables.INET, "owner") is None:
            return None, audits
        for name in sorted((*nft_sets.COUNTED, *nft_audit.PLACES)):
            direction = "in" if name.startswith(("in", "no_start_in", "audit_in")) else "out"
            for counted in kernel.counts(HEADERS[nft_tables.INET, name]):
                # what a policy in audit denies is counted in other sets: until its end, and after
                if counted.value == PASSES or counted.value in nft_audit.VERDICTS:
                    continue
                key = (direction, counted.comment.partition(" ")[0])
                sums = audits if name in nft_audit.PLACES else drops
                sums[key] = sums.get(key, 0) + counted.packets
    return drops, audits


def _foreign(kernel: Nft) -> dict[str, int] | None:
    """Return bridge port -> foreign frames dropped from it; None without our table."""
    if kernel.elements(nft_tables.BRIDGE, "owner") is None:
        return None
    frames = {}
    for item in kernel.query(f"list set {nft_tables.BRIDGE} {nft_tables.DROPPED_FROM}"):
        for entry in item.get("set", {}).get("elem", ()):
            element = entry.get("elem", {}) if isinstance(entry, dict) else {}
            if "counter" in element:  # an element that another program added may have none
                frames[str(element["val"])] = int(element["counter"]["packets"])
    return frames


class Log:
    """A live log of drops, of one service or of all; a context manager.

    It does not include drops from before it was opened.
    Raises Conflict if another process reads them, KernelError if the kernel has no nflog.
    """

    def __init__(self, kernel: Kernel, store: Store, service: str | None) -> None:
        self._kernel, self._store, self._service = kernel, store, service
        self._known: tuple[int, World] | None = None
        self._source = Nflog(nft_policies.LOG_GROUP)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def fileno(self) -> int:
        return self._source.fileno()

    def read(self) -> list[Drop] | None:
        """Wait for packets, and return their drops; None if the kernel had to skip some."""
        packets = self._source.read()
        return None if packets is None else list(self._drops(packets))

    def _drops(self, packets: list[Logged]) -> Iterator[Drop]:
        """Yield the drops of the requested service."""
        for packet in packets:
            direction = packet.prefix.removeprefix("niso ")
            if direction not in ("in", "out"):
                continue  # a rule of another program
            source, destination = (
                self._store.lease_holder(address) or ""
                for address in (packet.source, packet.destination)
            )
            service = source if direction == "out" else destination
            if self._service in (None, service):
                egress, ingress = verdict.judge(
                    self._world(), packet.source, packet.destination, packet.port, packet.proto
                )
                key = (egress if direction == "out" else ingress).key
                ends = (packet.source, source, packet.destination, destination)
                yield Drop(
                    packet.time,
                    service,
                    direction,
                    key,
                    *ends,
                    packet.port,
                    packet.proto,
                    packet.link,
                )

    def _world(self) -> World:
        """Return the input of verdicts, read again if the store has changed."""
        version = self._store.changes()
        if self._known is None or self._known[0] != version:
            self._known = (version, read_world(self._kernel, self._store))
        return self._known[1]


def logging(store: Store, service: str | None) -> bool:
    """Return whether the policy of this service, or of any active one, has ``log = true``."""
    services = [service] if service else store.active_services()
    return any(policy.log for name in services if (policy := store.policy(name)) is not None)
