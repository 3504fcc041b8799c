"""Making and removing networks: which subnet, which bridge, and what is in the way."""

from __future__ import annotations

import ipaddress
import os
import time

from niso import ipam, names
from niso.apply import Lock, Report, converge, desired_now, plan, silent
from niso.errors import Conflict, InvalidInput, UsageError
from niso.kernel import host
from niso.records import Network, Subnet
from niso.store.store import Scope, Store

DEFAULT_POOL = "10.99.0.0/16"
PREFIX_LENGTH = 24
MIN_MTU, MAX_MTU = 576, 65535  # RFC 791's least datagram that every host takes; the most that a link can have


def pool() -> ipam.Network:
    """The prefix that subnets are taken from (``NISO_POOL``). Raises InvalidInput."""
    text = os.environ.get("NISO_POOL") or DEFAULT_POOL
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidInput(f"NISO_POOL: {error}", f"a prefix like {DEFAULT_POOL}", "NISO_POOL") from None
    if found.version != 4 or found.prefixlen > PREFIX_LENGTH:
        raise InvalidInput(f"NISO_POOL: {text!r} holds no /24", f"an IPv4 prefix like {DEFAULT_POOL}", "NISO_POOL")
    return found


def parse_subnet(text: str) -> ipam.Network:
    """A subnet as the user gives it. Raises UsageError."""
    key = "--subnet"
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        hint = "a prefix like 10.99.1.0/24"
        try:
            hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            pass
        raise UsageError(f"--subnet {text!r}: {error}", hint, key) from None
    if found.version == 6:
        raise UsageError(
            f"--subnet {text}: IPv6 subnets are not supported yet", "an IPv4 prefix like 10.99.1.0/24", key
        )
    if found.prefixlen > 30 or found.prefixlen < 8:
        raise UsageError(f"--subnet {text}: must be a /8 to /30", "a prefix like 10.99.1.0/24", key)
    if found.is_loopback or found.is_multicast or found.is_link_local or found.is_unspecified or found.is_reserved:
        raise UsageError(f"--subnet {text}: not a prefix that hosts can have", "a prefix like 10.99.1.0/24", key)
    return found


def create(
    store: Store,
    name: str,
    *,
    subnet: str | None,
    gateway: str | None,
    mtu: int | None,
    report: Report = silent,
    dry_run: bool = False,
) -> Network | None:
    """Make a network and its bridge at once; None where one of that name and these values is there already.

    Raises Conflict (name, subnet or bridge taken, by whom), UsageError, KernelError; then nothing has changed.
    """
    if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
        raise UsageError(
            f"--mtu {mtu}: must be {MIN_MTU} to {MAX_MTU}", "leave it out for the default route's", "--mtu"
        )
    wanted = parse_subnet(subnet) if subnet else None
    with Lock():
        present = store.network(name)
        if present is not None:
            _same(present, wanted, gateway, mtu)
            before = desired_now(store, Scope((), (name,)))
            if dry_run:
                for step in plan(store, Scope((), (name,)), before).steps:
                    report(step.describe())
            else:
                converge(store, Scope((), (name,)), before, report)
            return None
        scope = Scope((), (name,))
        with store.transaction() as transaction:
            before = desired_now(store, scope)
            network = plan_network(store, name, subnet=wanted, gateway=gateway, mtu=mtu)
            store.add_network(network, implicit=False, now=time.time())
            if dry_run:
                for step in plan(store, scope, before).steps:
                    report(step.describe())
                transaction.cancel()
                return network
        try:
            converge(store, scope, before, report)
        except BaseException:
            _forget(store, name)
            raise
    return network


def remove(store: Store, names: list[str], report: Report = silent, dry_run: bool = False) -> None:
    """Remove networks and their bridges, all or none. Raises NotFound, Conflict where a known service is on one."""
    with Lock():
        for name in names:
            store.require_network(name)
            members = [service for service, _ in store.members(name)] or store.held_by(name)
            if members:
                raise Conflict(
                    f"network {name!r} is used by {', '.join(members)}",
                    f"niso remove {' '.join(members)} takes them away",
                )
        scope = Scope((), tuple(names))
        with store.transaction() as transaction:
            before = desired_now(store, scope)
            for name in names:
                store.drop_network(name)
            if dry_run:
                for step in plan(store, scope, before).steps:
                    report(step.describe())
                transaction.cancel()
                return
            # inside the transaction: if it cannot be done, or niso dies here, the networks stay known and can be repaired
            converge(store, scope, before, report, teardown=True)


def plan_network(
    store: Store,
    name: str,
    *,
    subnet: ipam.Network | None,
    gateway: str | None = None,
    mtu: int | None = None,
    holds: str | None = None,
) -> Network:
    """A network that could be made now. Without ``subnet``: the /24 that has the address ``holds``, else the next free.

    Raises Conflict where subnet or bridge are taken, UsageError.
    """
    mark = names.alias(store.state_id())
    taken = [(ipaddress.ip_network(s.cidr), f"network {n.name!r}") for n in store.networks() for s in n.subnets]
    taken += [(net, f"the host's route or address on {link}") for net, link in host.used_prefixes(mark)]
    if subnet is None and holds is not None:
        subnet = ipaddress.ip_network((holds, PREFIX_LENGTH), strict=False)
    if subnet is None:
        subnet = _next_free(name, taken)
    for net, whose in taken:
        if net.version == subnet.version and net.overlaps(subnet):
            raise Conflict(f"network {name!r}: subnet {subnet} overlaps {net} of {whose}", "choose another --subnet")
    bridge = names.bridge(name)
    holder = store.bridge_holder(bridge)
    if holder is not None:
        raise Conflict(
            f"network {name!r} would have the bridge of network {holder!r} ({bridge})", "choose another name"
        )
    first = str(subnet.network_address + 1)
    return Network(
        name=name,
        bridge=bridge,
        mtu=host.default_mtu() if mtu is None else mtu,
        subnets=(Subnet(4, str(subnet), _gateway(subnet, gateway) if gateway else first),),
        publishes=False,
    )


def _next_free(name: str, taken: list[tuple[ipam.Network, str]]) -> ipam.Network:
    whole = pool()
    kept = ipaddress.ip_network((whole.network_address, PREFIX_LENGTH))
    used = [net for net, _ in taken]
    if name == names.DEFAULT_NETWORK and not any(net.version == 4 and net.overlaps(kept) for net in used):
        return kept
    found = ipam.free_prefix(whole, PREFIX_LENGTH, used, kept)
    if found is None:
        others = [f"{net} of {whose}" for net, whose in taken if net.version == whole.version and net.overlaps(whole)]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise Conflict(
            f"network {name!r}: no free /{PREFIX_LENGTH} is left in the pool {whole}: it is taken by {shown}",
            f"set NISO_POOL to a prefix that is free, or niso net create {name} --subnet CIDR",
        )
    return found


def _gateway(subnet: ipam.Network, text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(f"--gateway {text!r}: {error}", f"an address of {subnet}", "--gateway") from None
    reason = None
    if address.version != subnet.version or address not in subnet:
        reason = f"not in {subnet}"
    else:
        reason = ipam.refusal(subnet, -1, int(address) - int(subnet.network_address))
    if reason:
        raise UsageError(f"--gateway {text}: {reason}", f"an address of {subnet}", "--gateway")
    return str(address)


def _same(present: Network, subnet: ipam.Network | None, gateway: str | None, mtu: int | None) -> None:
    """Raise Conflict unless what was asked for is what is there."""
    there = present.subnets[0]
    if subnet is not None and str(subnet) != there.cidr:
        raise Conflict(
            f"network {present.name!r} is there with subnet {there.cidr}", f"niso net remove {present.name} first"
        )
    if gateway is not None and gateway != there.gateway:
        raise Conflict(
            f"network {present.name!r} is there with gateway {there.gateway}", f"niso net remove {present.name} first"
        )
    if mtu is not None and mtu != present.mtu:
        raise Conflict(
            f"network {present.name!r} is there with mtu {present.mtu}", f"niso net remove {present.name} first"
        )


def _forget(store: Store, name: str) -> None:
    """Undo a network whose bridge could not be made."""
    scope = Scope((), (name,))
    before = desired_now(store, scope)
    with store.transaction():
        store.drop_network(name)
    converge(store, scope, before, teardown=True)
