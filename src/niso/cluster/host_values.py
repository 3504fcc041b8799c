"""Define hosts and clusters, and their JSON values in the cluster's keys."""

from __future__ import annotations

from niso.base.errors import Conflict, Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.cluster import value_checks
from niso.cluster.index import valid
from niso.cluster.keys import Keys, decode, invalid

if TYPE_CHECKING:
    from typing import Any

    from niso.cluster.engine import Item

PROTO, ENCRYPTED = 1, 2
"""Versions of the key format. A host that does not know its cluster's version changes nothing.

Encrypted clusters have the second: hosts that know only the first would send in plain text.
"""


class Host(NamedTuple):
    name: str
    state_id: str
    address: str  # by which the other hosts reach it
    mtu: int  # bytes, of the link with that address
    alive: bool
    version: str = ""  # niso's version when the host joined or its agent last started
    public: str = ""  # its WireGuard public key, in an encrypted cluster


class Cluster(NamedTuple):
    identity: str
    port: int
    encryption: str = ""  # for new hosts: see cluster/encryption.py


def host_of(item: Item, keys: Keys) -> Host:
    """Parse a host's key; ``alive`` is not known from it and is False. Raises Error."""
    value = valid(decode(item.value, item.key), item.key, "id", "address", "mtu")
    name = item.key.removeprefix(keys.hosts)
    if not (value_checks.is_name(name) and value_checks.is_address(str(value["address"]))):
        raise invalid(item.key)
    public = str(value.get("wgkey", ""))
    if public and not value_checks.is_public_key(public):
        raise invalid(item.key)
    where = (str(value["address"]), int(value["mtu"]), False)
    return Host(name, str(value["id"]), *where, value_checks.version(value.get("niso")), public)


def cluster_of(item: Item) -> Cluster:
    """Parse the cluster's key. Raises Error if this niso does not support its version."""
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
    """Return the value of the cluster's key."""
    value: dict[str, Any] = {"id": cluster.identity, "port": cluster.port, "proto": PROTO}
    if cluster.encryption:
        value |= {"encrypt": cluster.encryption, "proto": ENCRYPTED}
    return value


def host_value(host: Host) -> dict[str, Any]:
    """Return the value of a host's key."""
    value: dict[str, Any] = {"id": host.state_id, "address": host.address, "mtu": host.mtu}
    if host.public:
        value["wgkey"] = host.public
    if host.version:
        value["niso"] = host.version
    return value


def require_family(address: str, other: str, host: str) -> None:
    """Raise Conflict if the kernels of two hosts cannot send to each other's address."""
    if (":" in address) != (":" in other):
        raise Conflict(
            f"{address} is of another family than {other} of host {host}",
            "all hosts of a cluster have IPv4 addresses, or all have IPv6 addresses",
        )


def clash(host: Host, other: Host) -> Conflict:
    """Return the error for a host with the same name, or state folder, as another one."""
    if other.name == host.name:
        return Conflict(
            f"the cluster has another host {other.name}, with the address {other.address}",
            f"use another name; if that host is lost, niso cluster forget {other.name} first",
        )
    return Conflict(
        f"host {other.name} of the cluster has the same state folder, {other.state_id}",
        f"a copy of the machine {other.name} needs a state folder of its own",
    )
