"""Follow the packets that policies with ``log = true`` drop."""

from __future__ import annotations

from collections.abc import Iterator

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_policies
from niso.kernel.nflog import Logged, Nflog
from niso.plan import verdict
from niso.plan.known_world import World
from niso.reconcile.world import read_world
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel


class Drop(NamedTuple):
    """A packet that a policy with ``log = true`` has dropped. Unknown names are ""."""

    time: float  # seconds since 1970
    service: str
    direction: str  # in or out
    key: str  # key of the manifest that decides; "" if the policy has changed since
    source: str
    source_name: str
    destination: str
    destination_name: str
    port: int | None
    proto: str
    link: str


class Log:
    """A live log of policy drops, of one service or of all; a context manager.

    Drops from before it was opened are not included. Raises Conflict if another process reads the
    log, KernelError if the kernel has no nflog.
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
        """Wait for packets and return their drops.

        Returns None if the kernel's buffer overflowed and drops were lost.
        """
        packets = self._source.read()
        return None if packets is None else list(self._drops(packets))

    def _drops(self, packets: list[Logged]) -> Iterator[Drop]:
        """Yield the drops of the service that the log is for."""
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
        """Return the configuration that verdicts depend on; read again if the store has changed."""
        version = self._store.changes()
        if self._known is None or self._known[0] != version:
            self._known = (version, read_world(self._kernel, self._store))
        return self._known[1]


def logging(store: Store, service: str | None) -> bool:
    """Return whether the policy of a service, or of any active one if None, has ``log = true``."""
    services = [service] if service else store.active_services()
    return any(policy.log for name in services if (policy := store.policy(name)) is not None)
