"""A host of a cluster in memory: the fake engine, and a `World` with a network that spans hosts."""

from __future__ import annotations

from typing import NamedTuple

from fake_world import World

from niso.cluster import mirror, view
from niso.cluster.claim_values import Claim as Held
from niso.cluster.claims import Claims, Wanted
from niso.cluster.fake_engine import FakeEngine
from niso.cluster.host_values import Host
from niso.cluster.keys import Keys
from niso.cluster.membership import Membership
from niso.commands import network
from niso.kernel.kinds.hosts_line import HostsLine
from niso.kernel.nft_wire import CLAIMS
from niso.plan.policy_maps import PASSES
from niso.services.networks import NetworkRequest

KEYS = Keys()
ME = "b"
SUBNETS = ("10.99.1.0/24", "fd00:1::/64")


class Joined(NamedTuple):
    """How a host in memory reaches its cluster."""

    host: str
    address: str
    fake: FakeEngine
    keys: Keys = KEYS
    encryption: str = ""

    def engine(self, brief: bool = False) -> FakeEngine:
        return self.fake


def join(world: World, engine: FakeEngine, host: str, address: str) -> None:
    """Have a world be a host of the cluster that the engine has."""
    cluster = Membership(engine).cluster()
    assert cluster is not None
    with world.store.transaction():
        world.store.across.set_cluster(cluster.identity)
    world.machine = world.machine._replace(joined=lambda: Joined(host, address, engine))


class Cluster:
    """Hosts a, b and c; b is the world's, with db, which lets api alone in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine = FakeEngine()
        self.membership = Membership(self.engine)
        self.membership.make()
        for number, name in enumerate("abc", 1):
            self.membership.join(Host(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
            self.lease = self.engine.grant(10)
            assert self.membership.live(name, f"id-{name}", self.lease, "boot")
        join(world, self.engine, ME, "198.51.100.2")
        network.create(world.machine, NetworkRequest("backend", SUBNETS, mtu=1430, span=True))
        policy = {"allow_from": ["api"]}
        world.activate(world.package("db", network={"network": "backend", "policy": policy}))

    def claim(
        self, host: str, service: str, *aliases: str, address: str = "", up: bool = True
    ) -> Held:
        asked = {"backend": (address,)} if address else {}
        claims = Claims(self.engine, host)
        made = claims.claim(Wanted(service, ("backend",), (service, *aliases), asked, {}))
        if up:
            assert claims.publish(service, made.mark, up=True)
        return made

    def release(self, host: str, service: str) -> None:
        claims = Claims(self.engine, host)
        held = claims.held(service)
        assert held and claims.release(service, held.mark)

    def follow(self) -> list[str]:
        now = self.seen()
        return mirror.follow(self.world.store, self.world.kernel, now, ME)

    def seen(self) -> view.Seen:
        items = self.engine.get(KEYS.addresses("backend")).items
        return view.seen(self.membership.hosts(), {"backend": items}, KEYS)

    # --- what the kernel has ---

    def claims(self) -> set[tuple[str, str]]:
        """Return (service, outer source) of what may be heard."""
        found = self.world.kernel.elements.values()
        return {(e.comment, e.element.split(" . ")[0]) for e in found if e.container in CLAIMS}

    def allowed(self) -> set[str]:
        """Return the IPv4 addresses that db's policy lets in."""
        return {
            e.element.split(" . ")[1]
            for e in self.world.kernel.elements.values()
            if e.container == "in4_peer" and e.value == PASSES and "allow_from" in e.comment
        }

    def lines(self) -> set[str]:
        found = self.world.kernel.hosts["backend"]
        return {
            f"{line.address} {line.names.split()[-1]}"
            for line in found
            if isinstance(line, HostsLine)
        }
