"""A host of a cluster in memory: the fake engine, and a `World` with a network that spans hosts."""

from __future__ import annotations

import json

from fake_world import World

from niso.cluster import mirror
from niso.cluster.claims import Claim as Held
from niso.cluster.claims import Claims, Wanted
from niso.cluster.fake_engine import FakeEngine
from niso.cluster.keys import Keys
from niso.cluster.membership import Host, Membership, Spec
from niso.kernel.kinds.hosts_line import HostsLine
from niso.kernel.nft_wire import CLAIMS
from niso.plan.policy_maps import PASSES
from niso.store.span_rows import Claim

KEYS = Keys()
ME = "b"


class Cluster:
    """Hosts a, b and c; b is the world's, with db, which lets api alone in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine = FakeEngine()
        self.membership = Membership(self.engine)
        made = self.membership.make()
        for number, name in enumerate("abc", 1):
            self.membership.join(Host(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
            self.lease = self.engine.grant(10)
            assert self.membership.live(name, f"id-{name}", self.lease, "boot")
        subnets = (("10.99.1.0/24", "10.99.1.1"), ("fd00:1::/64", "fd00:1::1"))
        spec = self.membership.create_network(Spec("backend", 0, 1430, subnets))
        world.make("backend", *(cidr for cidr, _ in subnets))
        mine = self.claim(ME, "db")
        with world.store.transaction():
            world.store._db.execute(
                "INSERT INTO meta VALUES ('cluster', ?)", (json.dumps({"id": made.identity}),)
            )
            world.store.across.set_span("backend", spec.vni, made.port, "198.51.100.2")
            world.store.across.set_claim(Claim("db", mine.mark, mine.gen, mine.networks))
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

    def seen(self) -> mirror.Seen:
        items = self.engine.get(KEYS.addresses("backend")).items
        return mirror.seen(self.membership.hosts(), {"backend": items}, KEYS)

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
