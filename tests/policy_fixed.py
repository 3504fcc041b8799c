"""A world of fixed services, and short questions about it.

backend and frontend are open networks, inner is an internal one; backend and inner have IPv6. `web` is on frontend and
backend in this order, all others on one; `idle` is not active.
"""

from __future__ import annotations

from policy_worlds import HOST, known, network, world

from niso.plan.records import ANY, PortMapping
from niso.plan.verdict import PolicyContext, Verdict, decide

BACKEND = network("backend", "10.99.1.0/24", "fd00:1::/64")
FRONTEND = network("frontend", "10.99.2.0/24")
INNER = network("inner", "10.99.3.0/24", "fd00:3::/64", internal=True)
NETWORKS = (BACKEND, FRONTEND, INNER)
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
HOSTS = (HOST, HOST6, "fe80::1")

API = known("api", {"backend": ("10.99.1.2", "fd00:1::2")}, names=("shop", "api"))
DB = known("db", {"backend": ("10.99.1.3", "fd00:1::3")})
CACHE = known("cache", {"backend": ("10.99.1.4", "fd00:1::4")})
BLOG = known("blog", {"frontend": ("10.99.2.2",)})
WEB = known("web", {"frontend": ("10.99.2.3",), "backend": ("10.99.1.5", "fd00:1::5")})
SAFE = known("safe", {"inner": ("10.99.3.2", "fd00:3::2")})
VAULT = known("vault", {"inner": ("10.99.3.3", "fd00:3::3")})
IDLE = known("idle", {"backend": ("10.99.1.6", "fd00:1::6")}, active=False)
SERVICES = (API, DB, CACHE, BLOG, WEB, SAFE, VAULT, IDLE)
WORLD = world(SERVICES, NETWORKS, HOSTS)


def lease(world: PolicyContext, place: str, family: int = 4) -> str:
    """The address of a service's name, on its first network that has the family; an address stays as it is."""
    if place in world.services:
        own = (
            address
            for endpoint in world.services[place].endpoints
            for address in endpoint.addresses
        )
        return next(address for address in own if (":" in address) == (family == 6))
    return place


def ask(
    world: PolicyContext,
    source: str,
    destination: str,
    to: int | None = 80,
    proto: str = "tcp",
    family: int = 4,
) -> Verdict:
    return decide(world, lease(world, source, family), lease(world, destination, family), to, proto)


def passes(
    world: PolicyContext,
    source: str,
    destination: str,
    to: int | None = 80,
    proto: str = "tcp",
    family: int = 4,
) -> bool:
    verdict = ask(world, source, destination, to, proto, family)
    assert verdict.passes is (verdict.dropped_by is None)
    return verdict.passes


def who_reaches(
    world: PolicyContext, service: str, to: int | None = 80, proto: str = "tcp", family: int = 4
) -> set[str]:
    """Which of the three others on backend do."""
    names = {"api", "db", "cache"} - {service}
    return {name for name in names if passes(world, name, service, to, proto, family)}


def with_ports(name: str, *ports: PortMapping, base: PolicyContext = WORLD) -> PolicyContext:
    return base._replace(
        services={**base.services, name: base.services[name]._replace(ports=ports)}
    )


EVERYWHERE = with_ports("api", PortMapping(ANY, 8080, 80, "tcp"))
"""`api` publishes its port 80 as 8080 of all addresses."""
