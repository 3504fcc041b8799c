"""Read which names services see, and whom a policy means."""

from __future__ import annotations

from typing import Any

from fake_world import World

from niso.base import names
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired
from niso.plan.policy_elements import PASSES, looked_up
from niso.plan.verdict import decide
from niso.reconcile.live_world import read_world
from niso.store.snapshots import ALL


def seen(world: World, *networks: str) -> dict[str, set[str]]:
    """Return {bare name: addresses} of the hosts file of services on these networks."""
    addresses: dict[str, set[str]] = {}
    for line in world.kernel.hosts[names.hosts_folder(networks)]:
        for name in line.names.split():
            if "." not in name:
                addresses.setdefault(name, set()).add(line.address)
    return addresses


def address(world: World, service: str, network: str | None = None) -> set[str]:
    return {a for on, a in world.store.addresses(service) if network in (None, on)}


def on(*networks: str, **more: Any) -> dict[str, Any]:
    return {"networks": list(networks), **more}


def allowed(world: World, source: str, to: str, port: int | None = None) -> bool:
    """Return whether the kernel's elements and the engine let a packet of ``source`` through the policies."""
    (own, *_), (peer, *_) = address(world, to), address(world, source)
    proto = "tcp" if port else "icmp"
    verdict = decide(read_world(world.kernel, world.store), peer, own, port, proto)
    snapshot = world.store.snapshot(ALL)
    policed = next(one for one in snapshot.policed if one.service == to)
    found = looked_up(policed, snapshot.members, True, own, peer, proto, port)
    element = found[-1] if found else None
    assert element is None or element in world.kernel.everything(desired(snapshot))[Element]
    passes = element is None or element.value == PASSES
    assert passes == verdict.ingress.passes
    return passes
