"""Define a claim and its JSON values in the cluster's keys."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.cluster import value_checks
from niso.cluster.keys import decode, invalid

if TYPE_CHECKING:
    from typing import Any

    from niso.cluster.engine import Item
    from niso.cluster.keys import Keys

MOST_POLICY = 1 << 16
"""The most characters of a policy to publish; etcd refuses requests of more than 1.5 MB."""


type Sharers = tuple[tuple[str, tuple[str, ...]], ...]
"""The active services that share a service's namespace, each with its published ports."""


class Claim(NamedTuple):
    """A host's claim to a service. ``revision`` is the modified revision of the service's key.

    ``gen`` is higher than that of every earlier claim; the claim with the highest number wins.
    ``former`` is the host that the service was taken from, until it is up on the new one.
    """

    service: str
    host: str
    gen: int
    mark: str
    networks: dict[str, tuple[str, ...]]  # addresses by network
    names: tuple[str, ...]
    revision: int
    former: str = ""
    ports: tuple[str, ...] = ()  # published ones, for display
    up: bool = False  # as last published, for display
    policy: str = ""  # JSON, as in the store, for explanations; "" for none
    # keys of former addresses and names, held until the service is published
    kept: tuple[str, ...] = ()
    sharers: Sharers = ()  # for display

    def keys(self, keys: Keys) -> set[str]:
        """Return the keys of the claim's addresses and names, including those held for a while."""
        names = {keys.name(net, name) for net in self.networks for name in self.names}
        return {*names, *self.address_keys(keys), *self.kept}

    def address_keys(self, keys: Keys) -> set[str]:
        """Return the keys of the claim's addresses."""
        return {keys.address(net, a) for net, some in self.networks.items() for a in some}


class About(NamedTuple):
    """Data about a service for display on other hosts; nothing depends on it."""

    ports: tuple[str, ...]
    policy: str
    sharers: Sharers = ()

    def values(self) -> dict[str, Any]:
        """Return these data as fields of the service's key."""
        sharers = {name: list(ports) for name, ports in self.sharers}
        policy = self.policy if len(self.policy) <= MOST_POLICY else "too long"
        return {"ports": list(self.ports), "policy": policy, "sharers": sharers}


def claim_of(item: Item, keys: Keys) -> Claim:
    """Parse the value of a service's key to a claim. Raises Error if it is malformed."""
    value = decode(item.value, item.key)
    try:
        networks = {str(net): tuple(map(str, some)) for net, some in value["networks"].items()}
        if not all(
            value_checks.is_address(address) for some in networks.values() for address in some
        ):
            raise ValueError
        if not value_checks.is_number(value["gen"]):
            raise ValueError
        former = [value["former"]["host"]] if "former" in value else []
        sharers = tuple(
            (str(name), tuple(map(str, some))) for name, some in value.get("sharers", {}).items()
        )
        called = (value["host"], *former, *value["names"], *(name for name, _ in sharers))
        if not all(value_checks.is_name(str(name)) for name in called):
            raise ValueError
        return Claim(
            item.key.removeprefix(keys.services),
            str(value["host"]),
            int(value["gen"]),
            str(value["claim"]),
            networks,
            tuple(map(str, value["names"])),
            item.modified,
            str(value["former"]["host"]) if "former" in value else "",
            tuple(map(str, value.get("ports", ()))),
            bool(value.get("up")),
            str(value.get("policy", "")),
            tuple(map(str, value.get("kept", ()))),
            sharers,
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        raise invalid(item.key) from None


def address_value(claim: Claim, up: bool) -> dict[str, Any]:
    """Return the value of an address key."""
    return {
        "service": claim.service,
        "host": claim.host,
        "gen": claim.gen,
        "names": list(claim.names),
        "up": up,
    }
