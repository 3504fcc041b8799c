"""Plan networks: choose subnet and bridge, and detect conflicts."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Sequence
from itertools import pairwise

from niso.base import names
from niso.base.errors import Conflict, InvalidInput, UsageError
from niso.base.lite_typing import NamedTuple
from niso.plan import subnets as ipam
from niso.plan.records import Network, Subnet
from niso.services.machine import Machine

PREFIX_LENGTH = 24
PREFIX_LENGTHS = {4: (8, 30), 6: (48, 126)}
MIN_MTUS = {
    4: 576,
    6: 1280,
}  # RFC 791: datagram size that every host accepts; RFC 8200: minimum link MTU
MAX_MTU = 65535  # the largest MTU of a link
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3
PRIVATE = {
    4: "an address space for private use: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
    6: "a unique local prefix, fd00::/8",
}
"""Hint for --subnet, by family (RFC 1918; RFC 4193). RFC 6598's 100.64.0.0/10 is allowed too."""
UNICAST6 = (
    ipaddress.IPv6Network("2000::/3"),
    ipaddress.IPv6Network("fc00::/7"),
)  # global unicast (RFC 4291) and unique local (RFC 4193)
EXAMPLES = ("a prefix like 10.99.1.0/24", "a prefix like fd12:3456:789a:1::/64")


def pool() -> ipam.Network:
    """Return the prefix that subnets are allocated from (``NISO_POOL``). Raises InvalidInput."""
    text = os.environ.get("NISO_POOL") or ipam.DEFAULT_POOL
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidInput(f"{error}", f"a prefix like {ipam.DEFAULT_POOL}", "NISO_POOL") from None
    if prefix.version != 4 or prefix.prefixlen > PREFIX_LENGTH:
        raise InvalidInput(
            f"{text!r} is not an IPv4 prefix of at least a /24",
            f"an IPv4 prefix like {ipam.DEFAULT_POOL}",
            "NISO_POOL",
        )
    if prefix.is_global:
        raise InvalidInput(f"{text!r} is a public prefix", PRIVATE[4], "NISO_POOL")
    return prefix


def observes() -> bool:
    """Return whether flows of new networks are recorded (``NISO_OBSERVE``). Raises InvalidInput."""
    text = os.environ.get("NISO_OBSERVE") or "1"
    if text not in ("0", "1"):
        raise InvalidInput(f"{text!r} is not valid", "0 or 1", "NISO_OBSERVE")
    return text == "1"


def parse_subnet(text: str) -> ipam.Network:
    """Parse a subnet from user input. Raises UsageError.

    IPv6 subnets are global unicast or unique local prefixes from /48 (a site, RFC 6177) to /126. A
    /126 is the longest with room for a service next to the bridge, because the subnet's own address
    is the routers' anycast address (RFC 4291, 2.6.1). A /64 is usual. Other lengths work because no
    service configures its own address (SLAAC).
    """
    key = "--subnet"
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as error:
        hint = EXAMPLES[":" in text]
        try:
            hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            pass
        raise UsageError(f"{text!r}: {error}", hint, key) from None
    hint = EXAMPLES[subnet.version == 6]
    shortest, longest = PREFIX_LENGTHS[subnet.version]
    if not shortest <= subnet.prefixlen <= longest:
        raise UsageError(f"{text}: must be a /{shortest} to /{longest}", hint, key)
    if subnet.version == 6:
        usable = any(subnet.subnet_of(unicast) for unicast in UNICAST6)
    else:
        usable = not (
            subnet.is_loopback
            or subnet.is_multicast
            or subnet.is_link_local
            or subnet.is_reserved
            or subnet.subnet_of(THIS_NETWORK)
        )
    if not usable:
        raise UsageError(f"{text}: not a prefix of unicast addresses", hint, key)
    return subnet


class NetworkRequest(NamedTuple):
    """A requested network, with at most one subnet of each family.

    Without any, it gets the next free /24.
    """

    name: str
    subnets: tuple[str, ...] = ()
    ipv6: bool = False  # add a unique local /64
    gateways: tuple[str, ...] = ()  # for some of the subnets
    internal: bool = False
    mtu: int | None = None
    allow_public: bool = False  # also allow public prefixes
    observe: bool = True  # record its flows
    span: bool = False  # over all hosts of the cluster

    @property
    def nets(self) -> list[ipam.Network]:
        """Return the subnets, IPv4 first. Raises UsageError."""
        return _parsed(self.subnets, self.ipv6)

    @property
    def families(self) -> set[int]:
        """Return the requested address families (4, 6)."""
        return ({net.version for net in self.nets} or {4}) | ({6} if self.ipv6 else set())


def check(request: NetworkRequest) -> None:
    """Raise UsageError if no network could satisfy the request."""
    nets, least = request.nets, MIN_MTUS[max(request.families)]
    for net in nets:
        if net.is_global and not request.allow_public:
            raise UsageError(
                f"{net}: a public prefix: this host could no longer reach its real addresses",
                f"{PRIVATE[net.version]}; --allow-public if the prefix is yours",
                "--subnet",
            )
    if request.mtu is not None and not least <= request.mtu <= MAX_MTU:
        raise UsageError(
            f"{request.mtu}: must be {least} to {MAX_MTU}"
            f"{' with IPv6' if least == MIN_MTUS[6] else ''}",
            "omit it to use the MTU of the default route",
            "--mtu",
        )
    if nets and not request.ipv6:
        _gateways(nets, request.gateways)
    for text in request.gateways:
        _gateway(text, "an address of the network's subnet")


def ensure(machine: Machine, request: NetworkRequest, implicit: bool) -> Network | None:
    """Record a network; return None if it already exists and satisfies the request.

    An existing network stays implicit only if the request is ``implicit`` too (see
    `Store.add_network`). The caller is in a transaction. Raises UsageError, and Conflict if it
    exists and differs, or if its name, subnet or bridge is taken.
    """
    store = machine.store
    present = store.network(request.name)
    if present is not None:
        require_same(present, request)
        if not implicit:
            store.keep_network(request.name)
        return None
    network = plan_network(
        machine,
        request.name,
        subnets=request.nets,
        ipv6=request.ipv6,
        gateways=request.gateways,
        internal=request.internal,
        mtu=request.mtu,
    )._replace(observe=request.observe and observes())
    store.add_network(network, implicit=implicit, now=time.time())
    return network


def plan_network(  # noqa: PLR0913  # settings, by keyword
    machine: Machine,
    name: str,
    *,
    subnets: Sequence[ipam.Network] = (),
    ipv6: bool = False,
    gateways: Sequence[str] = (),
    internal: bool = False,
    mtu: int | None = None,
    holds: str | None = None,
    besides: Sequence[tuple[ipam.Network, str]] = (),
) -> Network:
    """Return a network that can be created now, without overlap with ``besides`` (subnet, owner).

    Without ``subnets`` it gets the /24 around the address ``holds``, else the next free /24. Raises
    UsageError, and Conflict if subnet or bridge are taken or the host lacks IPv6.
    """
    store, kernel = machine.store, machine.kernel
    taken = [*_taken(machine), *besides]
    nets = list(subnets)
    around = (
        ipaddress.ip_network((holds, PREFIX_LENGTH), strict=False)
        if holds is not None and not nets
        else None
    )
    if not nets:
        nets.append(around or _next_free(name, taken))
    if around is not None and around.is_global:
        raise Conflict(
            f"is a public address: new network {name!r} would take {around} from this host",
            f"if the prefix is yours: niso net create {name} --subnet {around} --allow-public",
            "network.ip",
            value=f'"{holds}"',
            right=PRIVATE[4],
        )
    if ipv6:
        nets.append(_next_unique_local(name, store.state_id(), taken))
    for net in nets:
        _require_free(name, net, taken, holds if net == around else None)
    with_ipv6 = any(net.version == 6 for net in nets)
    missing = kernel.lacks_ipv6() if with_ipv6 else None
    if missing is not None:
        raise Conflict(
            f"network {name!r} cannot have IPv6: {missing}",
            "omit its IPv6 subnet",
        )
    bridge = names.bridge(name)
    holder = store.bridge_holder(bridge)
    if holder is not None:
        raise Conflict(
            f"network {name!r} would use bridge {bridge}, which belongs to network {holder!r}",
            "choose another name",
        )
    given = _gateways(nets, gateways)
    return Network(
        name=name,
        bridge=bridge,
        mtu=mtu if mtu is not None else max(kernel.default_mtu(), MIN_MTUS[6] if with_ipv6 else 0),
        subnets=tuple(
            Subnet(net.version, str(net), given.get(net.version, str(net.network_address + 1)))
            for net in sorted(nets, key=lambda net: net.version)
        ),
        internal=internal,
    )


def _taken(machine: Machine) -> list[tuple[ipam.Network, str]]:
    """Return (prefix, owner) for each prefix that a new network must not overlap."""
    store = machine.store
    taken = [
        (ipaddress.ip_network(subnet.cidr), f"network {network.name!r}")
        for network in store.networks()
        for subnet in network.subnets
    ]
    taken += [
        (net, f"the host's route or address on {link}")
        for net, link in machine.kernel.used_prefixes(names.alias(store.state_id()))
    ]
    # no service may have an address that policies allow by an outside name
    if store.names_outside():
        taken += [
            (ipaddress.ip_network(address), f"the outside name {name!r}")
            for name in store.outside.named()
            for address in store.outside.meant(name)
        ]
    return taken


def _require_free(
    name: str, net: ipam.Network, taken: Sequence[tuple[ipam.Network, str]], holds: str | None
) -> None:
    """Raise Conflict if a subnet overlaps.

    ``holds`` is the address of a service that the subnet was chosen for, if any.
    """
    for other, whose in taken:
        if other.version != net.version or not other.overlaps(net):
            continue
        if holds is None:
            raise Conflict(
                f"network {name!r}: subnet {net} overlaps {other} of {whose}",
                "choose another subnet",
            )
        raise Conflict(
            f"is not available: new network {name!r} would get {net}, "
            f"which overlaps {other} of {whose}",
            "choose another one, or create the network first: "
            f"niso net create {name} --subnet CIDR",
            "network.ip",
            value=f'"{holds}"',
            right=f"an address in a free /{PREFIX_LENGTH}",
        )


def _parsed(subnets: Sequence[str], ipv6: bool) -> list[ipam.Network]:
    """Parse subnets, at most one of each family, IPv4 first. Raises UsageError."""
    nets = sorted(map(parse_subnet, subnets), key=lambda net: net.version)
    for one, other in pairwise(nets):
        if one.version == other.version:
            raise UsageError(
                f"{one}, --subnet {other}: a network can have only one IPv{one.version} subnet",
                "niso net create NAME creates another network",
                "--subnet",
            )
    if ipv6 and any(net.version == 6 for net in nets):
        raise UsageError(
            f"chooses a subnet, and --subnet {nets[-1]} names one",
            "omit one of them",
            "--ipv6",
        )
    return nets


def _next_unique_local(
    name: str, state_id: str, taken: list[tuple[ipam.Network, str]]
) -> ipam.Network:
    whole = ipam.unique_local(state_id)
    prefix = ipam.free_prefix(whole, 64, [net for net, _ in taken])
    if prefix is None:
        raise Conflict(
            f"network {name!r}: no free /64 is left in {whole}",
            "choose a free IPv6 prefix as its subnet",
        )
    return prefix


def _next_free(name: str, taken: list[tuple[ipam.Network, str]]) -> ipam.Network:
    whole = pool()
    kept = ipaddress.ip_network((whole.network_address, PREFIX_LENGTH))
    used = [net for net, _ in taken]
    if name == names.DEFAULT_NETWORK and not any(
        net.version == 4 and net.overlaps(kept) for net in used
    ):
        return kept
    prefix = ipam.free_prefix(whole, PREFIX_LENGTH, used, kept)
    if prefix is None:
        others = [
            f"{net} of {whose}"
            for net, whose in taken
            if net.version == whole.version and net.overlaps(whole)
        ]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        reasons = [f"it is taken by {shown}"] if others else []
        if not any(net.version == 4 and net.overlaps(kept) for net in used):
            reasons.append(f"{kept} is reserved for {names.DEFAULT_NETWORK}")
        raise Conflict(
            f"network {name!r}: no free /{PREFIX_LENGTH} is left in the pool {whole}: "
            f"{', and '.join(reasons)}",
            f"set NISO_POOL to a free prefix, or niso net create {name} --subnet CIDR",
        )
    return prefix


def _gateways(nets: Sequence[ipam.Network], texts: Sequence[str]) -> dict[int, str]:
    """Return {family: requested gateway} in canonical notation. Raises UsageError."""
    gateways: dict[int, str] = {}
    for text in texts:
        hint = f"an address of {' or '.join(map(str, nets))}"
        address = _gateway(text, hint)
        net = next((net for net in nets if net.version == address.version), None)
        if net is None or address not in net:
            reason: str | None = f"not in {net or ' or '.join(map(str, nets))}"
        elif address.version in gateways:
            reason = f"only one gateway is allowed for {net}"
        else:
            reason = ipam.refusal(net, -1, int(address) - int(net.network_address))
        if reason:
            raise UsageError(f"{text}: {reason}", hint, "--gateway")
        gateways[address.version] = str(address)
    return gateways


def _gateway(text: str, hint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse the address of a gateway. Raises UsageError."""
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}", hint, "--gateway") from None


def require_same(present: Network, request: NetworkRequest, where: str = "") -> None:
    """Raise Conflict unless the existing network satisfies the request."""
    there = {subnet.family: subnet for subnet in present.subnets}
    shown = ", ".join(subnet.cidr for subnet in present.subnets)
    differs = None
    if request.span != (present.span is not None):
        differs = "and spans hosts" if present.span else "on this host alone"
    elif request.families != there.keys() or any(
        str(net) != there[net.version].cidr for net in request.nets
    ):
        differs = f"with subnet {shown}"
    elif request.gateways:
        have = {family: subnet.gateway for family, subnet in there.items()}
        given = _gateways(
            [ipaddress.ip_network(subnet.cidr) for subnet in present.subnets], request.gateways
        )
        if any(have[family] != gateway for family, gateway in given.items()):
            differs = f"with gateway {', '.join(have.values())}"
    if differs is None and request.internal != present.internal:
        differs = "as an internal network" if present.internal else "and is not internal"
    if differs is None and not request.observe and present.observe:
        differs = "and is observed"
    if differs is None and request.mtu is not None and request.mtu != present.mtu:
        differs = f"with mtu {present.mtu}"
    if differs is not None:
        raise Conflict(
            f"network {present.name!r} already exists {where}{differs}",
            "match it, or choose another name",
        )
