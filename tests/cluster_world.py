"""A host of a cluster in memory: the fake engine, and a `World` with a network that spans hosts."""

from __future__ import annotations

from typing import Any, NamedTuple

from fake_world import World
from fakes.engine import FakeEngine

from niso.change import attach as change_attach
from niso.change import networks as change_networks
from niso.change import targets
from niso.change.activate import activate
from niso.change.attach import AttachmentNetwork, Request
from niso.change.cluster_hosts import end_services
from niso.cluster import mirror
from niso.cluster.agent import Agent
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Keys, decode
from niso.cluster.key_values import ClusterClaim, HostEntry
from niso.cluster.membership import ClusterKeys
from niso.kernel.kinds.hosts_files import HostsLine
from niso.kernel.ruleset import CLAIMS
from niso.plan.policy_elements import PASSES
from niso.plan.subnets import NetworkRequest

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
    cluster = ClusterKeys(engine).cluster()
    assert cluster is not None
    with world.store.transaction():
        world.store.across.set_cluster(cluster.identity)
    world.machine = world.machine._replace(joined=lambda: Joined(host, address, engine))


class Cluster:
    """Hosts a, b and c; b is the world's, with db, which lets api alone in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine = FakeEngine()
        self.membership = ClusterKeys(self.engine)
        self.membership.make()
        for number, name in enumerate("abc", 1):
            self.membership.join(HostEntry(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
            self.lease = self.engine.grant(10)
            assert self.membership.live(name, f"id-{name}", self.lease, "boot")
        join(world, self.engine, ME, "198.51.100.2")
        change_networks.create(
            world.machine, NetworkRequest("backend", SUBNETS, mtu=1430, span=True)
        )
        policy = {"allow_from": ["api"]}
        world.activate(world.package("db", network={"network": "backend", "policy": policy}))

    def claim(
        self, host: str, service: str, *aliases: str, address: str = "", up: bool = True
    ) -> ClusterClaim:
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
        return mirror.apply_claims(self.world.store, self.world.kernel, now, ME)

    def seen(self) -> mirror.EngineView:
        items = self.engine.get(KEYS.addresses("backend")).items
        return mirror.seen(self.membership.hosts(), {"backend": items}, KEYS)

    # --- what the kernel has ---

    def claims(self) -> set[tuple[str, str]]:
        """Return (service, outer source) of what may be heard."""
        found = self.world.kernel.elements.values()
        return {(e.owner, e.fields[0]) for e in found if e.container in CLAIMS}

    def allowed(self) -> set[str]:
        """Return the IPv4 addresses that db's policy lets in."""
        return {
            e.fields[1]
            for e in self.world.kernel.elements.values()
            if e.container == "in4_peer" and e.value == PASSES and "allow_from" in e.entry
        }

    def lines(self) -> set[str]:
        found = self.world.kernel.hosts["backend"]
        return {
            f"{line.address} {line.names.split()[-1]}"
            for line in found
            if isinstance(line, HostsLine)
        }


class Hosted(Cluster):
    """Host b, its commands, and its agent."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.said: list[str] = []
        me = (ME, f"id-{ME}", world.store.cluster_id(), "boot")
        self.agent = Agent(me, lambda: self.engine, self.end, self.said.append)
        self.warned: list[str] = []
        world.machine = world.machine._replace(report=self.report)

    def end(self, services: list[str]) -> None:
        end_services(self.world.machine, services)

    def attach(self, name: str, *networks: AttachmentNetwork, **more: Any) -> str:
        path = f"/n/{name}"
        if path not in self.world.kernel.engines:
            self.world.kernel.begin_engine(path)
        request = Request(name, path, networks or (AttachmentNetwork("backend"),), **more)
        return change_attach.attach(self.world.machine, request).address[0]

    def look(self, now_s: float = 0.0) -> list[str]:
        return self.agent.poll(self.world.store, self.world.kernel, self.engine, now_s)

    def held(self, service: str) -> ClusterClaim | None:
        return Claims(self.engine, "x").held(service)

    def up(self, service: str) -> bool:
        """Whether all that resolve the service's names may find it."""
        held = self.held(service)
        assert held is not None
        keys = [KEYS.address(net, a) for net, some in held.networks.items() for a in some]
        items = [self.engine.get(key, one=True).items[0] for key in keys]
        [up] = {bool(decode(item.value, item.key)["up"]) for item in items}
        return up

    def package(self, name: str, *networks: str, **keys: Any) -> str:
        on: dict[str, Any] = {"networks": list(networks or ("backend",))}
        return self.world.package(name, network={**on, **keys})

    def activate(self, path: str, take: bool = False, **more: Any) -> str:
        found = targets.find_targets(self.world.store, [path])
        outcomes = activate(
            self.world.machine,
            [target._replace(take=take) for target in found],
            5.0,
            **more,
        )
        return outcomes[0].address[0]

    def report(self, event: Any) -> None:
        if type(event).__name__ == "WarningEvent":
            self.warned.append(event.text)

    def record(self, service: str) -> bool:
        """Whether the store has what the cluster has of a service."""
        record, held = self.world.store.across.claim(service), self.held(service)
        if record is None or held is None or held.host != ME:
            return record is None and (held is None or held.host != ME)
        return (record.mark, record.gen, record.addresses) == (held.mark, held.gen, held.networks)


def lose(host: Hosted, name: str) -> None:
    """End the lease of a host."""
    for item in host.engine.get(KEYS.live(name), one=True).items:
        host.engine.revoke(item.lease)


def create(host: Hosted, name: str, *subnets: str, **more: Any) -> Any:
    """Create a network that spans hosts, as `network.create`."""
    return change_networks.create(
        host.world.machine, NetworkRequest(name, subnets, span=True, **more)
    )
