"""Find free prefixes for networks, and check subnets that a user requests, without I/O.

`niso.store.service_rows.lease` chooses the address that is reserved for a service. An address is
represented by its offset from the subnet's first address, so that IPv4 and IPv6 use the same code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from itertools import pairwise

from niso.base.errors import Conflict, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import sha256
from niso.plan import records
from niso.plan.records import MIN_MTUS, refusal

if TYPE_CHECKING:
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_POOL = "10.99.0.0/16"
"""The prefix from which IPv4 subnets are taken, unless the variable ``NISO_POOL`` sets another one.
"""


def unique_local(state_id: str) -> ipaddress.IPv6Network:
    """Return the /48 prefix from which this state folder takes IPv6 subnets: fd, then 40 bits
    derived from the state id. Prefixes of different hosts are rarely equal (RFC 4193, 3.2.2).
    """
    global_id = sha256(f"{state_id}/RFC 4193".encode()).digest()[:5]
    return ipaddress.IPv6Network((bytes([0xFD]) + global_id + bytes(10), 48))


def free_prefix(
    pool: Network, length: int, taken: Iterable[Network], kept: Network | None = None
) -> Network | None:
    """Return the lowest prefix with the given length in ``pool`` that does not overlap ``kept`` or
    a prefix in ``taken``. Returns None if there is no such prefix.
    """
    size = 1 << (pool.max_prefixlen - length)
    every = [net for net in taken if net.version == pool.version]
    every += [kept] if kept is not None else []
    spans = sorted((int(net.network_address), int(net.broadcast_address)) for net in every)
    start = int(pool.network_address)
    end = int(pool.broadcast_address)
    for low, high in spans:
        if high < start:
            continue
        if low > start + size - 1:
            break
        start = (high // size + 1) * size
    if start + size - 1 > end:
        return None
    of_version = ipaddress.IPv4Network if pool.version == 4 else ipaddress.IPv6Network
    return of_version((start, length))


PREFIX_LENGTH = 24
PREFIX_LENGTHS = {4: (8, 30), 6: (48, 126)}
MAX_MTU = 65535  # the largest MTU of a link
THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3
PRIVATE = {
    4: "an address space for private use: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
    6: "a unique local prefix, fd00::/8",
}
"""The hint for --subnet by family (RFC 1918, RFC 4193).

100.64.0.0/10 of RFC 6598 is allowed too.
"""
# global unicast (RFC 4291) and unique local (RFC 4193)
UNICAST6 = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("fc00::/7"))
EXAMPLES = ("a prefix like 10.99.1.0/24", "a prefix like fd12:3456:789a:1::/64")


def parse_subnet(text: str) -> Network:
    """Parse a subnet that a user has entered. Raises UsageError if the subnet is invalid.

    An IPv6 subnet is a global unicast or unique local prefix. Its length is /48 (a site, RFC 6177)
    to /126. A /127 has no room for a service in addition to the bridge, because the subnet's own
    address is the routers' anycast address (RFC 4291, 2.6.1). Lengths other than /64 work because
    no service configures its own address (SLAAC).
    """
    key = "--subnet"
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as error:
        hint, reason = EXAMPLES[":" in text], "is not a valid prefix"
        try:
            hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
            reason = f"{error}"
        except ValueError:
            pass
        raise UsageError(f"{text!r}: {reason}", hint, key) from None
    hint = EXAMPLES[subnet.version == 6]
    shortest, longest = PREFIX_LENGTHS[subnet.version]
    if not shortest <= subnet.prefixlen <= longest:
        raise UsageError(f"{text}: must be a /{shortest} to /{longest}", hint, key)
    if isinstance(subnet, ipaddress.IPv6Network):
        usable = any(subnet.subnet_of(unicast) for unicast in UNICAST6)
    else:
        special = (subnet.is_loopback, subnet.is_multicast, subnet.is_link_local)
        usable = not (any(special) or subnet.is_reserved or subnet.subnet_of(THIS_NETWORK))
    if not usable:
        unicast6 = " or ".join(map(str, UNICAST6))
        # fdd: is 0fdd:, although it looks like a unique local prefix
        seen = f", but {subnet.exploded[:4]}:" if ":" in text and text[:1] != "0" else ""
        reason = f"not in {unicast6}{seen}" if seen else "not a prefix of unicast addresses"
        raise UsageError(f"{text}: {reason}", hint, key)
    return subnet


class NetworkRequest(NamedTuple):
    """A request to create a network, with at most one subnet of each IP version. If ``subnets`` is
    empty, niso chooses a free /24.
    """

    name: str
    subnets: tuple[str, ...] = ()
    ipv6: bool = False  # add a unique local /64
    gateways: tuple[str, ...] = ()  # for some of the subnets
    internal: bool = False
    mtu: int | None = None
    allow_public: bool = False  # also allow public prefixes
    observe: bool = True  # whether the rules record its flows
    span: bool = False  # whether the network is on several hosts of the cluster
    multicast: bool = False  # whether multicasts and broadcasts pass between its services

    @property
    def nets(self) -> list[Network]:
        """Return the requested subnets, IPv4 first. Raises UsageError if two subnets have the same
        IP version, or if an IPv6 subnet is given in addition to ``ipv6``, which requests a subnet
        that niso chooses.
        """
        nets = sorted(map(parse_subnet, self.subnets), key=lambda net: net.version)
        for one, other in pairwise(nets):
            if one.version == other.version:
                raise UsageError(
                    f"{one}, --subnet {other}: a network can have only one IPv{one.version} subnet",
                    "niso net create NAME creates another network",
                    "--subnet",
                )
        if self.ipv6 and any(net.version == 6 for net in nets):
            reason = f"chooses a subnet, and --subnet {nets[-1]} names one"
            raise UsageError(reason, "omit one of them", "--ipv6")
        return nets

    @property
    def families(self) -> set[int]:
        return ({net.version for net in self.nets} or {4}) | ({6} if self.ipv6 else set())


def check(request: NetworkRequest) -> None:
    """Raise UsageError if a request is invalid by itself. Existing networks are not considered."""
    nets, least = request.nets, MIN_MTUS[max(request.families)]
    for net in nets:
        if net.is_global and not request.allow_public:
            reason = f"{net}: a public prefix: this host could no longer reach its real addresses"
            hint = f"{PRIVATE[net.version]}; --allow-public if the prefix is yours"
            raise UsageError(reason, hint, "--subnet")
    if request.mtu is not None and not least <= request.mtu <= MAX_MTU:
        with_six = " with IPv6" if least == MIN_MTUS[6] else ""
        reason = f"{request.mtu}: must be {least} to {MAX_MTU}{with_six}"
        raise UsageError(reason, "omit it to use the MTU of the default route", "--mtu")
    if request.multicast and request.span:
        reason = "cannot be combined with --span: multicast does not pass between hosts"
        raise UsageError(reason, "omit one of them", "--multicast")
    if nets and not request.ipv6:
        _gateways(nets, request.gateways)
    for text in request.gateways:
        _gateway(text, "an address of the network's subnet")


def _gateways(nets: Sequence[Network], texts: Sequence[str]) -> dict[int, str]:
    """Return the requested gateways by IP version, in canonical notation. Raises UsageError."""
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
            reason = refusal(net, -1, int(address) - int(net.network_address))
        if reason:
            raise UsageError(f"{text}: {reason}", hint, "--gateway")
        gateways[address.version] = str(address)
    return gateways


def _gateway(text: str, hint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}", hint, "--gateway") from None


def require_same(present: records.NetworkRecord, request: NetworkRequest, where: str = "") -> None:
    """Raise Conflict if the existing network ``present`` has other properties than the request,
    such as other subnets or another MTU. ``where`` follows "already exists" in the message.
    """
    there = {subnet.family: subnet for subnet in present.subnets}
    nets = [ipaddress.ip_network(subnet.cidr) for subnet in present.subnets]
    have = {family: subnet.gateway for family, subnet in there.items()}
    if request.span != (present.span is not None):
        differs = "and spans hosts" if present.span else "on this host alone"
    elif request.families != there.keys() or any(
        str(net) != there[net.version].cidr for net in request.nets
    ):
        differs = f"with subnet {', '.join(map(str, nets))}"
    elif any(have[f] != gateway for f, gateway in _gateways(nets, request.gateways).items()):
        differs = f"with gateway {', '.join(have.values())}"
    elif request.internal != present.internal:
        differs = "as an internal network" if present.internal else "and is not internal"
    elif request.multicast != present.multicast:
        differs = "with multicast" if present.multicast else "without multicast"
    elif present.observe and not request.observe:
        differs = "and is observed"
    elif request.mtu not in (None, present.mtu):
        differs = f"with mtu {present.mtu}"
    else:
        return
    raise Conflict(
        f"network {present.name!r} already exists {where}{differs}",
        "match it, or choose another name",
    )
