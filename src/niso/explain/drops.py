"""What policies and anti-spoofing drop: counted by service and direction (`stats`), and one by one as it happens (`log`)."""

from __future__ import annotations

from collections.abc import Iterator

from niso.base import names
from niso.base.lite_typing import NamedTuple
from niso.kernel import link_counters, nft_tables
from niso.kernel.interface import Kernel
from niso.kernel.libnftables import Nft
from niso.kernel.nflog import Logged, Nflog
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.plan import verdict
from niso.plan.policy_maps import PASSES
from niso.plan.verdict import World
from niso.reconcile.world import read_world
from niso.store.store import Store


class Stats(NamedTuple):
    """Of one active service: what came in to it and went out of it; None where that cannot be read now.

    ``in_drops`` and ``out_drops`` are packets that its ingress and its egress policy have dropped since the policy was last
    changed; ``foreign`` frames that it sent with what is not its own: addresses, VLAN tags, frame types.
    """

    service: str
    in_packets: int | None
    in_bytes: int | None
    in_drops: int | None
    out_packets: int | None
    out_bytes: int | None
    out_drops: int | None
    foreign: int | None


class Drop(NamedTuple):
    """One packet that a policy with ``log = true`` has dropped; ``direction`` in or out; names are "" where not known."""

    time: float  # seconds since 1970
    service: str
    direction: str
    key: str  # the line of the manifest that says so
    source: str
    source_name: str
    destination: str
    destination_name: str
    port: int | None
    proto: str
    link: str


def stats(store: Store) -> list[Stats]:
    """Of each active service, by name. Raises KernelError."""
    rows = [row for row in store.services() if row.active]
    if not rows:
        return []
    links = link_counters.of_links()
    drops = _policy_drops()
    with Nft() as kernel:
        foreign = _foreign(kernel)
    found = []
    for row in rows:
        ends = [names.veth(row.name, network, row.generation) for network in row.networks]
        carried = [links.get(end) for end in ends]
        whole = [each for each in carried if each is not None] if None not in carried else []
        sums = [sum(each[i] for each in whole) if whole else None for i in range(4)]
        sent_packets, sent_bytes, got_packets, got_bytes = (
            sums  # the host's end receives what the service sends
        )
        dropped = [
            None if drops is None else drops.get((way, row.name), 0) for way in ("in", "out")
        ]
        strange = None if foreign is None else sum(foreign.get(end, 0) for end in ends)
        found.append(
            Stats(
                row.name,
                got_packets,
                got_bytes,
                dropped[0],
                sent_packets,
                sent_bytes,
                dropped[1],
                strange,
            )
        )
    return found


def _policy_drops() -> dict[tuple[str, str], int] | None:
    """(direction, service) -> packets that its policy has dropped; None where the table is missing."""
    found: dict[tuple[str, str], int] = {}
    with Nfnetlink() as kernel:
        if kernel.header(nft_tables.INET, "owner") is None:
            return None
        for name in sorted(nft_tables.COUNTED):
            direction = "in" if name.startswith(("in", "no_start_in")) else "out"
            for counted in kernel.counts(HEADERS[nft_tables.INET, name]):
                if counted.value != PASSES:
                    key = (direction, counted.comment.partition(" ")[0])
                    found[key] = found.get(key, 0) + counted.packets
    return found


def _foreign(kernel: Nft) -> dict[str, int] | None:
    """Frames that were dropped by the bridge port that they came from; None where the set is missing."""
    if kernel.elements(nft_tables.BRIDGE, "owner") is None:
        return None
    found = {}
    for item in kernel.query(f"list set {nft_tables.BRIDGE} {nft_tables.DROPPED_FROM}"):
        for each in item.get("set", {}).get("elem", ()):
            element = each.get("elem", {}) if isinstance(each, dict) else {}
            if "counter" in element:  # one that somebody else has added may have none
                found[str(element["val"])] = int(element["counter"]["packets"])
    return found


class Log:
    """Drops as they happen, of one service or of all. A context manager; what came before it was opened is nowhere.

    Raises Conflict where somebody else reads them, KernelError where the kernel cannot log so.
    """

    def __init__(self, kernel: Kernel, store: Store, service: str | None) -> None:
        self._kernel, self._store, self._service = kernel, store, service
        self._known: tuple[int, World] | None = None
        self._source = Nflog(nft_tables.LOG_GROUP)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def fileno(self) -> int:
        return self._source.fileno()

    def read(self) -> list[Drop] | None:
        """Wait for packets, and give those that are meant; None where the kernel had to leave some out."""
        found = self._source.read()
        return None if found is None else list(self._meant(found))

    def _meant(self, found: list[Logged]) -> Iterator[Drop]:
        for each in found:
            direction = each.prefix.removeprefix("niso ")
            if direction not in ("in", "out"):
                continue  # somebody else's rule
            names_ = [
                self._store.lease_holder(address) or ""
                for address in (each.source, each.destination)
            ]
            service = names_[0 if direction == "out" else 1]
            if self._service in (None, service):
                egress, ingress = verdict.judge(
                    self._world(), each.source, each.destination, each.port, each.proto
                )
                # none where the policy has changed since
                key = (egress if direction == "out" else ingress).key
                ends = (each.source, names_[0], each.destination, names_[1], each.port, each.proto)
                yield Drop(each.time, service, direction, key, *ends, each.link)

    def _world(self) -> World:
        """The world as the store has it now."""
        version = self._store.changes()
        if self._known is None or self._known[0] != version:
            self._known = (version, read_world(self._kernel, self._store))
        return self._known[1]


def logging(store: Store, service: str | None) -> bool:
    """Whether a policy of this service, or of any that is active, has ``log = true``."""
    active = [service] if service else store.active_services()
    return any(policy.log for each in active if (policy := store.policy(each)) is not None)
