"""Lease addresses to services. The caller holds a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from niso.base.addresses import family_of
from niso.base.errors import Conflict, InvalidInput
from niso.base.prefixes import prefix
from niso.plan import subnets
from niso.plan.records import Network, Subnet
from niso.store.store import Store

KEY = "network.ip"


def lease(
    store: Store,
    service: str,
    network_name: str,
    statics: Sequence[str] = (),
    beside: frozenset[str] = frozenset(),
    kept: tuple[str, str] | None = None,
) -> None:
    """Lease an address in each subnet: the static one, the current one, or the lowest free one.

    On a network that spans hosts, the addresses come from the service's claim.

    ``statics`` has at most one address of each family. ``beside`` are the services that the same
    command activates. ``kept`` is (owner, name) of an attachment, which gets its earlier address
    again. A released address is leased to another service only if no other address is free; the one
    released first is taken. Raises InvalidInput if a static address is unusable, Conflict if it is
    taken or the network is full.
    """
    network = store.require_network(network_name)
    wanted = {family_of(address): address for address in statics}
    for family in wanted.keys() - {subnet.family for subnet in network.subnets}:
        raise InvalidInput(
            f"network {network_name!r} has no IPv{family} subnet for {wanted[family]}",
            "remove it from network.ip, or create the network first: "
            f"niso net create {network_name} --subnet CIDR",
            KEY,
        )
    claimed = store.claimed(service, network_name) if network.span is not None else ()
    for subnet in network.subnets:
        net = prefix(subnet.cidr)
        gateway = net.offset(subnet.gateway)
        static = wanted.get(subnet.family)
        if static is not None:
            if static in claimed:
                store.across.drop_stale_lease(service, static)
            number = _static_number(store, service, network_name, subnet, static, beside)
            if network.span is not None and static not in claimed:
                raise _unclaimed(service, network_name, subnet.cidr)
            store.drop_lease(service, network_name, subnet.family)
            store.add_lease(service, network_name, subnet.family, number, static, static=True)
        elif network.span is not None:
            _lease_claimed(store, service, network_name, subnet, claimed)
        elif store.lease_of(service, network_name, subnet.family) is None:
            where = network_name, subnet.family
            free = None if kept is None else store.released_by(*kept, *where)
            if free is None:
                released = store.released(*where)
                free = subnets.first_free(net, gateway, store.used_numbers(*where, released))
                free = next(iter(released), None) if free is None else free
            if free is None:
                raise _full(store, network_name, subnet.family, subnet.cidr)
            address = net.at(free)
            store.add_lease(service, network_name, subnet.family, free, address, static=False)


def is_leased(store: Store, service: str, network: Network, statics: Sequence[str]) -> bool:
    """Return whether a service already has all leases that `lease` would create.

    A service that another host has taken over needs none.
    """
    spans = network.span is not None
    claimed = store.claimed(service, network.name) if spans else ()
    if spans and not claimed:
        return True
    wanted = {family_of(address): address for address in statics}
    for subnet in network.subnets:
        have = store.lease_of(service, network.name, subnet.family)
        static = wanted.pop(subnet.family, None)
        if have is None or (static is not None and have != (static, True)):
            return False
        if spans and have[0] not in claimed:
            return False
    return not wanted


def _lease_claimed(
    store: Store, service: str, network: str, subnet: Subnet, claimed: Sequence[str]
) -> None:
    """Lease the claimed address in one subnet. Raises Conflict if the claim has none."""
    net = prefix(subnet.cidr)
    address = next((text for text in claimed if net.holds(text)), None)
    if address is None:
        raise _unclaimed(service, network, subnet.cidr)
    have = store.lease_of(service, network, subnet.family)
    if have is None or have[0] != address:
        store.drop_lease(service, network, subnet.family)
        number = net.offset(address)
        store.across.drop_stale_lease(service, address)
        holder = store.lease_holder(address)
        if holder is not None and holder != service:
            raise Conflict(
                f"{address} is still used by {holder!r}, which another host has taken over",
                "the agent of this host ends it: niso cluster status",
            )
        store.add_lease(service, network, subnet.family, number, address, static=False)


def _unclaimed(service: str, network: str, cidr: str) -> Conflict:
    return Conflict(
        f"network {network!r} spans hosts, and {service!r} has claimed no address of {cidr}",
        "niso cluster status shows whether this host is in the cluster",
    )


def _static_number(
    store: Store,
    service: str,
    network: str,
    subnet: Subnet,
    wanted: str,
    beside: frozenset[str],
) -> int:
    """Return the offset of a static address in its subnet. Raises InvalidInput, Conflict."""
    net = prefix(subnet.cidr)
    if not net.holds(wanted):
        raise InvalidInput(
            f"{wanted} is not in {subnet.cidr}, the subnet of network {network!r}", None, KEY
        )
    number = net.offset(wanted)
    reason = subnets.refusal(net, net.offset(subnet.gateway), number)
    if reason:
        raise InvalidInput(f"{wanted} cannot be a service's address: {reason}", None, KEY)
    holder = store.lease_holder(wanted)
    if holder is not None and holder != service:
        hint = f"choose another; {holder} keeps it until it is removed"
        if holder in beside:
            hint = f"{holder} is part of this command: choose another address for one of the two"
        raise Conflict(f"{wanted} is leased to service {holder!r}", hint, KEY)
    return number


def _full(store: Store, network: str, family: int, cidr: str) -> Conflict:
    idle = [service for _, service, active in store.leases(network, family) if not active]
    shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
    hint = (
        f"create a larger network; inactive services keep addresses until they are removed: {shown}"
        if idle
        else "create a larger network"
    )
    return Conflict(f"network {network!r} ({cidr}) has no free address", hint)
