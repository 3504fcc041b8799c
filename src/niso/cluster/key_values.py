"""Parse and check the values of etcd keys: claims of services, hosts and networks.

Values are checked before they are copied to the store and the kernel. Hosts of a cluster trust each
other, but another host may have a bug. If other programs use the same etcd, they may write invalid
keys too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

from niso.base.errors import Conflict, Error, InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.base.names import owner
from niso.cluster.engine import Keys, KeyValue, decode, invalid
from niso.manifest import values
from niso.plan.records import Entry, Policy, refusal
from niso.store.policy_rows import policy_of
from niso.store.sqlite import decoded

_KEPT = 1 << 16
_LONGEST_VERSION = 40
_DIGITS = 6  # of the number of an instance
MOST_NAMES = 120
"""The maximum number of names of a service. Each is a key; etcd changes up to 128 at once."""
# 32 bytes in base64, for WireGuard
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", re.ASCII)


def is_address(text: str) -> bool:
    """Return whether ``text`` is an IP address in canonical form, without a zone."""
    try:
        return str(ipaddress.ip_address(text)) == text and "%" not in text
    except ValueError:
        return False


def is_name(text: str) -> bool:
    """Return whether ``text`` is a valid name of a service or host."""
    try:
        values.host_label(text, "")
    except InvalidInput:
        return False
    return True


def is_service(text: str) -> bool:
    """Return whether ``text`` is a valid name of a service or of an instance (NAME.NUMBER)."""
    front = owner(text)
    number = text[len(front) + 1 :]
    return is_name(front) and (
        front == text
        or (number.isascii() and number.isdigit() and number[0] != "0" and len(number) <= _DIGITS)
    )


def is_number(value: object, most: int = 1 << 53) -> bool:
    """Return whether a value is an integer from 1 to ``most`` - 1."""
    return type(value) is int and 0 < value < most


def version(text: object) -> str:
    """Return the niso version of another host for display, or "" if ``text`` is no version."""
    good = isinstance(text, str) and len(text) <= _LONGEST_VERSION and text.isprintable()
    return str(text) if good else ""


def is_usable(address: str, networks: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a service can have ``address`` on a network with these subnets, pairs (CIDR,
    gateway address).
    """
    number = ipaddress.ip_address(address)
    for cidr, gateway in networks:
        net = ipaddress.ip_network(cidr)
        if number in net:
            base = int(net.network_address)
            own = int(ipaddress.ip_address(gateway)) - base
            return refusal(net, own, int(number) - base) is None
    return False


@lru_cache(_KEPT)
def is_host_address(text: str) -> bool:
    """Return whether ``text`` is an IP address at which other hosts can reach a host."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    special = (address.is_unspecified, address.is_loopback, address.is_multicast)
    return not (any(special) or address.is_link_local or text == "255.255.255.255" or "%" in text)


_KINDS = ("service", "network", "prefix", "prefixes", "outside", "machines")
_PROTOCOLS = ("", "tcp", "udp", "sctp", "icmp")


def policy(text: str) -> Policy:
    """Parse the policy of another host's service from JSON. Raises ValueError if it is invalid."""
    try:
        made = policy_of(decoded(text))
        sound = all(map(_is_entry, made.entries()))
        if made.audit is not None:
            sound = sound and all(type(number) is int for number in made.audit[1:])
    except (TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(text)
    return made


def _is_entry(entry: Entry) -> bool:
    texts = (entry.key, entry.text, entry.peer.kind, entry.peer.name, entry.proto)
    if not all(type(text) is str for text in texts):
        return False
    if entry.peer.kind in ("prefix", "prefixes"):
        many = entry.peer.kind == "prefixes"
        for cidr in entry.peer.name.split(",") if many else (entry.peer.name,):
            ipaddress.ip_network(cidr)  # raises ValueError
    known = entry.peer.kind in _KINDS and entry.proto in _PROTOCOLS
    numbers = (entry.first, entry.last)
    return known and all(type(number) is int and 0 <= number <= 65535 for number in numbers)


MOST_POLICY = 1 << 16
"""The maximum number of characters of a policy to publish; etcd limits a request to 1.5 MB."""

type Sharers = tuple[tuple[str, tuple[str, ...]], ...]
"""Pairs of an active service that shares the namespace of another, and its published ports."""


class ClusterClaim(NamedTuple):
    """The claim in etcd by which ``host`` reserves a service, with its addresses and names.

    Several hosts can reserve a service with a service address. Each host has its own ``mark``,
    ``up``, ``ports`` and ``policy``; the other fields are common.
    """

    service: str
    host: str
    gen: int  # higher than in every earlier claim of the service: the highest one wins
    mark: str  # a random id of the claim
    networks: dict[str, tuple[str, ...]]  # addresses by network
    names: tuple[str, ...]
    revision: int  # the modified revision of the service's key
    former: str = ""  # the host that the service was taken over from, until it is up here
    ports: tuple[str, ...] = ()  # published ports, for display
    up: bool = False  # whether the service is up, as last published, for display
    policy: str = ""  # JSON, as in the store, for explanations; "" for none
    # keys of former addresses and names, which stay reserved until the service is published
    kept: tuple[str, ...] = ()
    sharers: Sharers = ()  # services that share its namespace, for display
    front: bool = False  # whether it has a service address
    others: Mapping[
        str, bool
    ] = {}  # further hosts that have the service, and whether it is up there

    @property
    def hosts(self) -> tuple[str, ...]:
        return (self.host, *self.others)

    @property
    def any_up(self) -> bool:
        """Return whether the service is up on any host."""
        return self.up or any(self.others.values())

    def keys(self, keys: Keys) -> set[str]:
        """Return the names of the etcd keys of all addresses and names, including former ones."""
        names = {keys.name(net, name) for net in self.networks for name in self.names}
        return {*names, *self.address_keys(keys), *self.kept}

    def address_keys(self, keys: Keys) -> set[str]:
        """Return the names of the etcd keys of the reserved addresses."""
        return {keys.address(net, a) for net, some in self.networks.items() for a in some}


def shown_values(ports: tuple[str, ...], policy: str, sharers: Sharers = ()) -> dict[str, Any]:
    """Return the fields of a service's key in etcd that other hosts only display."""
    policy = policy if len(policy) <= MOST_POLICY else "too long"
    return {"ports": list(ports), "policy": policy, "sharers": {n: [*some] for n, some in sharers}}


_OWN = ("claim", "up", "ports", "policy", "sharers")
"""The fields of a service's key of which each host that has the service has its own."""


def turned(value: dict[str, Any], host: str) -> dict[str, Any]:
    """Return the value of a service's key in etcd with the fields of ``host`` at the top level.

    The fields of other hosts are in ``others``. If ``host`` has not reserved the service, the value
    is returned unchanged.
    """
    others = value.get("others")
    if not isinstance(others, dict) or not isinstance(others.get(host), dict):
        return value
    own = {key: text for key, text in value.items() if key in _OWN}
    rest = {key: text for key, text in value.items() if key not in _OWN}
    others = {name: each for name, each in others.items() if name != host} | {value["host"]: own}
    return {**rest, **value["others"][host], "host": host, "others": others}


def added(value: dict[str, Any], host: str) -> dict[str, Any]:
    """Return the value of a service's key in etcd with ``host`` added, not yet up there."""
    blank: dict[str, Any] = {"claim": "", "up": False, "ports": [], "policy": ""}
    return turned(value | {"others": value.get("others", {}) | {host: blank}}, host)


def left(value: dict[str, Any], host: str) -> dict[str, Any]:
    """Return the value of a service's key in etcd without ``host``. It must have other hosts."""
    rest = turned(value, sorted({value["host"], *value["others"]} - {host})[0])
    others = {name: each for name, each in rest["others"].items() if name != host}
    return {key: each for key, each in rest.items() if key != "others"} | (
        {"others": others} if others else {}
    )


def others_of(value: dict[str, Any]) -> dict[str, bool]:
    """Return {host: is up} for the hosts in the field ``others`` of a service's key in etcd."""
    return {str(name): bool(each.get("up")) for name, each in value.get("others", {}).items()}


def claim_of(item: KeyValue, keys: Keys, host: str = "") -> ClusterClaim:
    """Parse the value of a service's key in etcd to a claim. Raises Error if it is invalid. If
    several hosts have claims, returns the claim of ``host``, or of any host if ``host`` has none.
    """
    value = decode(item.value, item.key)
    try:
        value = turned(value, host)
        others = others_of(value)
        networks = {str(net): tuple(map(str, some)) for net, some in value["networks"].items()}
        addresses = [address for some in networks.values() for address in some]
        former = [value["former"]["host"]] if "former" in value else []
        sharers = tuple(
            (str(name), tuple(map(str, some))) for name, some in value.get("sharers", {}).items()
        )
        called = (value["host"], *former, *value["names"], *(name for name, _ in sharers))
        called += tuple(others)
        sound = all(map(is_address, addresses)) and all(is_name(str(name)) for name in called)
        if not sound or not is_number(value["gen"]):
            raise ValueError
        return ClusterClaim(
            item.key.removeprefix(keys.services),
            str(value["host"]),
            int(value["gen"]),
            str(value["claim"]),
            networks,
            tuple(map(str, value["names"])),
            item.modified,
            "".join(map(str, former)),
            tuple(map(str, value.get("ports", ()))),
            bool(value.get("up")),
            str(value.get("policy", "")),
            tuple(map(str, value.get("kept", ()))),
            sharers,
            bool(value.get("front")),
            others,
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        raise invalid(item.key) from None


def address_value(claim: ClusterClaim, up: bool) -> dict[str, Any]:
    """Return the value of an address key in etcd. ``up`` is whether the service is up."""
    return {
        "service": claim.service,
        "host": claim.host,
        "gen": claim.gen,
        "names": list(claim.names),
        "up": up,
    }


PROTO, ENCRYPTED = 1, 2
"""Versions of the key format. A host that does not know its cluster's version changes nothing.

Encrypted clusters have version 2: hosts that know only version 1 would send in plain text.
"""


class HostEntry(NamedTuple):
    name: str
    state_id: str
    address: str  # the IP address by which the other hosts reach this host
    mtu: int  # bytes, of the link with that address
    alive: bool
    version: str = ""  # niso's version when the host joined or its agent last started
    public: str = ""  # its WireGuard public key, in an encrypted cluster


class Cluster(NamedTuple):
    identity: str
    port: int
    encryption: str = ""  # how new hosts encrypt: kernel or userspace; "" if hosts do not


def host_of(item: KeyValue, keys: Keys) -> HostEntry:
    """Parse a host's key in etcd. The result's ``alive`` is always False. Raises Error."""
    value = valid(decode(item.value, item.key), item.key, "id", "address", "mtu")
    name = item.key.removeprefix(keys.hosts)
    if not (is_name(name) and is_address(str(value["address"]))):
        raise invalid(item.key)
    public = str(value.get("wgkey", ""))
    if public and not _PUBLIC_KEY.fullmatch(public):
        raise invalid(item.key)
    where = (str(value["address"]), int(value["mtu"]), False)
    return HostEntry(name, str(value["id"]), *where, version(value.get("niso")), public)


def cluster_of(item: KeyValue) -> Cluster:
    """Parse the value of the key ``cluster`` in etcd. Raises Error if the format version is not the
    one that this niso supports.
    """
    value = valid(decode(item.value, item.key), item.key, "id", "port")
    encryption = str(value.get("encrypt", ""))
    if encryption not in ("", "kernel", "userspace"):
        raise invalid(item.key)
    known = ENCRYPTED if encryption else PROTO
    version = value.get("proto", PROTO)
    if version != known:
        raise Error(
            f"the cluster's keys are of version {version}, and this niso has {known}",
            "upgrade niso on this host",
        )
    return Cluster(str(value["id"]), int(value["port"]), encryption)


def cluster_value(cluster: Cluster) -> dict[str, Any]:
    value: dict[str, Any] = {"id": cluster.identity, "port": cluster.port, "proto": PROTO}
    if cluster.encryption:
        value |= {"encrypt": cluster.encryption, "proto": ENCRYPTED}
    return value


def host_value(host: HostEntry) -> dict[str, Any]:
    value: dict[str, Any] = {"id": host.state_id, "address": host.address, "mtu": host.mtu}
    if host.public:
        value["wgkey"] = host.public
    if host.version:
        value["niso"] = host.version
    return value


def require_family(address: str, other: str, host: str) -> None:
    """Raise Conflict if the addresses of two hosts have different IP versions."""
    if (":" in address) != (":" in other):
        raise Conflict(
            f"{address} is of another family than {other} of host {host}",
            "all hosts of a cluster have IPv4 addresses, or all have IPv6 addresses",
        )


class Spec(NamedTuple):
    """The properties of a network that spans hosts, as stored in etcd."""

    name: str
    vni: int
    mtu: int
    subnets: tuple[tuple[str, str], ...]  # CIDR and gateway address
    internal: bool = False
    # ``gen`` of claims begins here; after a loss of etcd's data, it is above earlier ones
    base: int = 0


_MOST = {"port": 1 << 16, "mtu": 1 << 17, "vni": 1 << 24}


def valid(value: dict[str, Any], key: str, *needed: str) -> dict[str, Any]:
    """Return ``value``. Raises Error if a ``needed`` field is missing or out of range."""
    for name in needed:
        if name not in value or (name in _MOST and not is_number(value[name], _MOST[name])):
            raise invalid(key)
    return value


def index_of(item: KeyValue) -> dict[str, dict[str, Any]]:
    """Parse the key ``nets`` to {NETWORK: {vni, subnets}}. Raises Error if it is invalid."""
    index = decode(item.value, item.key)
    for value in index.values():
        subnets = value.get("subnets") if isinstance(value, dict) else None
        if not isinstance(subnets, list) or not is_number(value.get("vni"), _MOST["vni"]):
            raise invalid(item.key)
        try:
            list(map(ipaddress.ip_network, subnets))
        except (TypeError, ValueError):
            raise invalid(item.key) from None
    return index


def spec_of(name: str, item: KeyValue) -> Spec:
    """Parse the key of the network ``name``. Raises Error if its value is invalid."""
    value = valid(decode(item.value, item.key), item.key, "subnets", "vni", "mtu")
    try:
        subnets = tuple((str(each["cidr"]), str(each["gateway"])) for each in value["subnets"])
        for cidr, gateway in subnets:
            if ipaddress.ip_address(gateway) not in ipaddress.ip_network(cidr):
                raise invalid(item.key)
    except (LookupError, TypeError, ValueError):
        raise invalid(item.key) from None
    base = value.get("base", 0)
    if base != 0 and not is_number(base):
        raise invalid(item.key)
    internal = bool(value.get("internal"))
    return Spec(name, int(value["vni"]), int(value["mtu"]), subnets, internal, base)


def spec_value(spec: Spec) -> dict[str, Any]:
    return {
        "vni": spec.vni,
        "mtu": spec.mtu,
        "subnets": [{"cidr": cidr, "gateway": gateway} for cidr, gateway in spec.subnets],
        "internal": spec.internal,
        **({"base": spec.base} if spec.base else {}),
    }
