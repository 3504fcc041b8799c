"""Holds what the kernel has (`observer`) to the model, and learns addresses that niso chooses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from walk import reach
from walk.model import World
from walk.parts import FIXED

Facts = dict[str, Any]


def learn(world: World, facts: Facts) -> None:
    """Take over the subnets and addresses that nobody has asked for and nothing has yet shown."""
    for network, it in world.networks.items():
        found = facts["addresses"].get(f"niso-{network}") or [""]
        it.subnet = it.subnet or _one(found, 4).rpartition(".")[0]
        if it.six:
            it.subnet6 = it.subnet6 or _one(found, 6).rpartition(":")[0]
    for name in world.active():
        service = world.services[name]
        there = facts["namespaces"].get(f"niso-{name}", {}).get("addresses", {})
        for number, network in enumerate(service.manifest.on):
            found = there.get(f"eth{number}") or [""]
            service.leases[network] = service.leases.get(network) or _one(found, 4)
            if network in service.leases6:
                service.leases6[network] = service.leases6[network] or _one(found, 6)


def _one(addresses: list[str], family: int) -> str:
    """Return the first of these addresses of a family, without its prefix length."""
    some = (one.partition("/")[0] for one in addresses if (":" in one) == (family == 6))
    return next(some, "")


def differences(world: World, facts: Facts) -> list[str]:
    """Return where the kernel is not as the model says, a line each."""
    return [
        *_networks(world, facts),
        *_namespaces(world, facts),
        *_processes(world, facts),
        *_rules(world, facts),
        *_twice(world),
    ]


def _sets(what: str, wanted: Iterable[Any], found: Iterable[Any]) -> list[str]:
    want, have = set(wanted), set(found)
    return [
        *(f"{what}: {one} is missing" for one in sorted(want - have)),
        *(f"{what}: {one} is too much" for one in sorted(have - want)),
    ]


def _networks(world: World, facts: Facts) -> list[str]:
    links = facts["links"]
    bridges = {name for name, link in links.items() if link["kind"] == "bridge"}
    lines = _sets("bridge", (f"niso-{name}" for name in world.networks), bridges)
    ports: list[str] = []
    for name in world.active():
        ports += [f"niso-{network}" for network in world.services[name].manifest.on]
    own = {
        name: str(link["master"])
        for name, link in links.items()
        if link["kind"] == "veth" and link["alias"].startswith("niso:")
    }
    lines += _sets("guarded bridge port", own, facts["rules"]["guarded"])
    masters = list(own.values())
    if sorted(ports) != sorted(masters):
        lines.append(f"bridge ports: wanted {sorted(ports)}, found {sorted(masters)}")
    for name, network in world.networks.items():
        bridge = f"niso-{name}"
        if bridge in bridges:
            found = facts["addresses"][bridge]
            wanted = [f"{network.subnet}.1/24"]
            wanted += [f"{network.subnet6}:1/64"] if network.six else []
            if found != wanted or not links[bridge]["up"]:
                lines.append(f"{bridge}: wanted up and {wanted}, found {found}")
    return lines


def _namespaces(world: World, facts: Facts) -> list[str]:
    own = [name for name in world.active() if world.services[name].manifest.provides]
    lines = _sets("namespace", (f"niso-{name}" for name in own), facts["namespaces"])
    for name in own:
        it, there = world.services[name], facts["namespaces"].get(f"niso-{name}")
        if there is None:
            continue
        wanted = {"lo": ["127.0.0.1/8"]} | {
            f"eth{number}": [
                f"{it.leases[network]}/24",
                *([f"{it.leases6[network]}/64"] if network in it.leases6 else ()),
            ]
            for number, network in enumerate(it.manifest.on)
        }
        if there["addresses"] != wanted:
            lines.append(f"{name}: wanted addresses {wanted}, found {there['addresses']}")
        routes = []
        for network in it.manifest.on[:1]:
            routes.append(f"default {world.networks[network].subnet}.1 eth0")
            if network in it.leases6:
                routes.append(f"default {world.networks[network].subnet6}:1 eth0")
        if there["routes"] != routes:
            lines.append(f"{name}: wanted routes {routes}, found {there['routes']}")
    return lines


def _processes(world: World, facts: Facts) -> list[str]:
    wanted = []
    for name in world.active():
        on_host = world.services[name].manifest.mode == "host"
        wanted.append((name, "host" if on_host else f"niso-{world.home(name)}"))
    found = sorted((service, place) for service, _, place in facts["processes"])
    return [] if found == wanted else [f"processes: wanted {wanted}, found {found}"]


def _rules(world: World, facts: Facts) -> list[str]:
    lines = []
    tables = ["bridge", "inet"] if world.networks else []
    if facts["rules"]["tables"] != tables:
        lines.append(f"tables: wanted {tables}, found {facts['rules']['tables']}")
    wanted = []
    bridged = False
    for name in world.active():
        home = world.services[world.home(name)]
        bridged = bridged or bool(home.manifest.on)
        for port in world.services[name].ports:
            first = reach.primary(world, home.manifest.on)
            for host, inner in port.each:
                key = (*((port.at,) if port.at else ()), port.proto, host)
                wanted.append((str(key), home.leases[first], inner))
                if first in home.leases6 and not port.at:
                    wanted.append((str(key), home.leases6[first], inner))
    found = [(str(tuple(key)), *value) for key, value in facts["rules"]["published"]]
    lines += _sets("published port", wanted, found)
    if bridged and facts["forward"] != "1":
        lines.append("ip_forward is 0 while a service is active")
    return lines


def _twice(world: World) -> list[str]:
    """Return addresses and subnets that the kernel has shown twice, or outside their subnet."""
    lines = []
    subnets = [network.subnet for network in world.networks.values()]
    if len(subnets) != len(set(subnets)):
        lines.append(f"two networks have one subnet: {subnets}")
    seen: dict[str, str] = {}
    for name, it in world.services.items():
        for network, lease in (*it.leases.items(), *it.leases6.items()):
            if lease and lease in seen:
                lines.append(f"{lease} is the address of {seen[lease]} and of {name}")
            seen[lease] = name
            there = world.networks[network]
            if lease and lease.rpartition(":" if ":" in lease else ".")[0] not in (
                there.subnet,
                there.subnet6,
            ):
                lines.append(f"{name}: {lease} is not in network {network}")
            if lease.startswith(f"{FIXED}.2") and it.manifest.ip not in ("", lease):
                lines.append(f"{name}: {lease} is not {it.manifest.ip}")
    return lines


def names(world: World, home: str) -> dict[str, set[str]]:
    """Return address -> names of the hosts file in a namespace."""
    on = world.services[home].manifest.on
    found: dict[str, set[str]] = {}
    if not on:
        shared = [name for sharer in world.sharers(home) for name in world.services[sharer].names]
        found["127.0.0.1"] = found["::1"] = _both([*world.services[home].names, *shared])
    listed: list[tuple[str, str, list[str]]] = []  # service, its first network here, its names
    for name in world.active():
        it = world.services[name]
        there = next((network for network in on if network in it.manifest.on), None)
        if there is not None:
            known = [*it.names]
            for sharer in world.sharers(name):
                known += world.services[sharer].names
            listed.append((name, there, known))
    for name, there, all_names in listed:
        it = world.services[name]
        first = on.index(there)
        earlier = {own for _, at, others in listed if on.index(at) < first for own in others}
        if known := [own for own in all_names if own not in earlier]:
            found[it.leases[there]] = _both(known)
            if there in it.leases6:
                found[it.leases6[there]] = _both(known)
        for network in on:
            if network in it.manifest.on and network != there:
                for leases in (it.leases, it.leases6):
                    if leases.get(network):
                        found[leases[network]] = {f"{name}.{network}.niso.local"}
    return found


def _both(some: Iterable[str]) -> set[str]:
    return {form for name in some for form in (name, f"{name}.niso.local")}


def hosts_differences(world: World, home: str, text: str) -> list[str]:
    """Return where /etc/hosts in a namespace is not as the model says."""
    wanted = names(world, home)
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        address, *known = line.split("#")[0].split() or [""]
        own = {name for name in known if "localhost" not in name and not name.startswith("ip6-")}
        own.discard("host.niso.local")
        if own:
            found[address] = found.get(address, set()) | own
    return [
        f"/etc/hosts of {home}: {address} is {sorted(found.get(address, ()))}, "
        f"not {sorted(wanted.get(address, ()))}"
        for address in sorted(wanted.keys() | found.keys())
        if wanted.get(address) != found.get(address)
    ]
