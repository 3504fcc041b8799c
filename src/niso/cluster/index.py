"""Parse and check networks in the cluster's keys."""

from __future__ import annotations

import ipaddress

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.cluster import value_checks
from niso.cluster.keys import decode, invalid

if TYPE_CHECKING:
    from typing import Any

    from niso.cluster.engine import Item


class Spec(NamedTuple):
    """A network in the cluster. ``subnets`` are pairs of CIDR and gateway.

    Numbers of claims (``gen``) start at ``base``, which is above those from before the engine lost
    its data.
    """

    name: str
    vni: int
    mtu: int
    subnets: tuple[tuple[str, str], ...]
    internal: bool = False
    base: int = 0


_MOST = {"port": 1 << 16, "mtu": 1 << 17, "vni": 1 << 24}


def valid(value: dict[str, Any], key: str, *needed: str) -> dict[str, Any]:
    """Check the value of a key and return it.

    Raises Error if a field is missing or out of range.
    """
    for name in needed:
        if name not in value or (
            name in _MOST and not value_checks.is_number(value[name], _MOST[name])
        ):
            raise invalid(key)
    return value


def index_of(item: Item) -> dict[str, dict[str, Any]]:
    """Parse the index of all networks, {NETWORK: {vni, subnets}}. Raises Error."""
    index = decode(item.value, item.key)
    for value in index.values():
        subnets = value.get("subnets") if isinstance(value, dict) else None
        if not isinstance(subnets, list) or not value_checks.is_number(
            value.get("vni"), _MOST["vni"]
        ):
            raise invalid(item.key)
        try:
            list(map(ipaddress.ip_network, subnets))
        except (TypeError, ValueError):
            raise invalid(item.key) from None
    return index


def spec_of(name: str, item: Item) -> Spec:
    """Parse the value of a network's spec key. Raises Error if it is malformed."""
    value = valid(decode(item.value, item.key), item.key, "subnets", "vni", "mtu")
    try:
        subnets = tuple(
            (str(subnet["cidr"]), str(subnet["gateway"])) for subnet in value["subnets"]
        )
        for cidr, gateway in subnets:
            if ipaddress.ip_address(gateway) not in ipaddress.ip_network(cidr):
                raise invalid(item.key)
    except (LookupError, TypeError, ValueError):
        raise invalid(item.key) from None
    base = value.get("base", 0)
    if base != 0 and not value_checks.is_number(base):
        raise invalid(item.key)
    internal = bool(value.get("internal"))
    return Spec(name, int(value["vni"]), int(value["mtu"]), subnets, internal, base)


def spec_value(spec: Spec) -> dict[str, Any]:
    """Return the value of a network's spec key."""
    return {
        "vni": spec.vni,
        "mtu": spec.mtu,
        "subnets": [{"cidr": cidr, "gateway": gateway} for cidr, gateway in spec.subnets],
        "internal": spec.internal,
        **({"base": spec.base} if spec.base else {}),
    }
