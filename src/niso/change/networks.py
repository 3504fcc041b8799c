"""Create, plan and remove networks: choose subnet, gateway and bridge name; refuse overlaps.

This module also writes the names of services to the host's own hosts file (`show`).
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Sequence

from niso.base import names as base_names
from niso.base.errors import Conflict, InvalidInput, KernelError
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK, alias
from niso.plan import subnets
from niso.plan.records import MIN_MTUS, NetworkRecord, SubnetRecord
from niso.plan.subnets import PREFIX_LENGTH, PRIVATE, NetworkRequest
from niso.reconcile import host_settings
from niso.reconcile.change import change
from niso.runtime import event_log
from niso.runtime.machine import Machine
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change.span_networks import Arriving


def pool() -> subnets.Network:
    """Return the IPv4 prefix for new subnets, from ``NISO_POOL``. Raises InvalidInput."""
    text = os.environ.get("NISO_POOL") or subnets.DEFAULT_POOL
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError as error:
        reason = f"{error}"
        raise InvalidInput(reason, f"a prefix like {subnets.DEFAULT_POOL}", "NISO_POOL") from None
    if prefix.version != 4 or prefix.prefixlen > PREFIX_LENGTH:
        reason = f"{text!r} is not an IPv4 prefix of at least a /24"
        raise InvalidInput(reason, f"an IPv4 prefix like {subnets.DEFAULT_POOL}", "NISO_POOL")
    if prefix.is_global:
        raise InvalidInput(f"{text!r} is a public prefix", PRIVATE[4], "NISO_POOL")
    return prefix


def observes() -> bool:
    """Return whether flows of new networks are recorded (``NISO_OBSERVE``). Raises InvalidInput."""
    text = os.environ.get("NISO_OBSERVE") or "1"
    if text not in ("0", "1"):
        raise InvalidInput(f"{text!r} is not valid", "0 or 1", "NISO_OBSERVE")
    return text == "1"


def ensure(
    machine: Machine, request: NetworkRequest, implicit: bool, holds: str | None = None
) -> NetworkRecord | None:
    """Record a network unless it exists. Return the new network, or None if it exists already.

    An implicit network is deleted when no service uses it. An existing network stays implicit only
    if the request is ``implicit`` too. ``holds`` is None or an address: a subnet that niso chooses
    contains this address. The caller must be in a transaction. Raises UsageError, and Conflict if
    the existing network has other settings, or if the subnet or bridge is taken.
    """
    store = machine.store
    present = store.network(request.name)
    if present is not None:
        subnets.require_same(present, request)
        if not implicit:
            store.make_explicit(request.name)
        return None
    network = plan_network(machine, request, holds)
    network = network._replace(observe=request.observe and observes())
    store.add_network(network, implicit=implicit, now=time.time())
    return network


def ensure_implicit(machine: Machine, network: NetworkRequest | str, holds: str | None) -> None:
    """Record an implicit network, unless the network exists already.

    ``network`` is a request, or a name if niso chooses the settings. ``holds`` is as in `ensure`.
    """
    request = NetworkRequest(network) if isinstance(network, str) else network
    ensure(machine, request, implicit=True, holds=holds)


def plan_network(
    machine: Machine,
    request: NetworkRequest,
    holds: str | None = None,
    besides: Sequence[tuple[subnets.Network, str]] = (),
) -> NetworkRecord:
    """Choose all settings of a new network, without recording it.

    If the request has no subnet, the network gets the /24 prefix around the address ``holds``. If
    ``holds`` is None, the network gets the next free /24 of the pool. The network must not overlap
    ``besides``, pairs (subnet, owner), nor any prefix in use. Raises UsageError. Raises Conflict if
    the subnet or bridge is taken, or if IPv6 is requested and the host has none.
    """
    store, kernel, name = machine.store, machine.kernel, request.name
    taken = [*_taken(machine), *besides]
    nets, around = list(request.nets), None
    if not nets:
        if holds is not None:
            around = ipaddress.ip_network((holds, PREFIX_LENGTH), strict=False)
        nets.append(around or _next_free(name, taken))
    if around is not None and around.is_global:
        reason = f"is a public address: new network {name!r} would take {around} from this host"
        hint = f"if the prefix is yours: niso net create {name} --subnet {around} --allow-public"
        raise Conflict(reason, hint, "network.ip", value=f'"{holds}"', right=PRIVATE[4])
    if request.ipv6:
        nets.append(_next_unique_local(name, store.state_id(), taken))
    for net in nets:
        _require_free(name, net, taken, holds if net == around else None)
    with_ipv6 = any(net.version == 6 for net in nets)
    missing = kernel.why_no_ipv6() if with_ipv6 else None
    if missing is not None:
        raise Conflict(f"network {name!r} cannot have IPv6: {missing}", "omit its IPv6 subnet")
    bridge = base_names.bridge(name)
    holder = store.bridge_holder(bridge)
    if holder is not None:
        reason = f"network {name!r} would use bridge {bridge}, which belongs to network {holder!r}"
        raise Conflict(reason, "choose another name")
    given, mtu = subnets._gateways(nets, request.gateways), request.mtu
    if mtu is None:
        # IPv6 needs a minimum MTU (RFC 8200, 5), even if the host's MTU is smaller
        mtu = max(kernel.default_mtu(), MIN_MTUS[6] if with_ipv6 else 0)
    own = [
        SubnetRecord(net.version, str(net), given.get(net.version, str(net.network_address + 1)))
        for net in sorted(nets, key=lambda net: net.version)
    ]
    return NetworkRecord(
        name, bridge, mtu, tuple(own), request.internal, multicast=request.multicast
    )


def _taken(machine: Machine) -> list[tuple[subnets.Network, str]]:
    """Return (prefix, owner) for each prefix that a new network must not overlap."""
    store = machine.store
    taken = [
        (ipaddress.ip_network(subnet.cidr), f"network {network.name!r}")
        for network in store.networks()
        for subnet in network.subnets
    ]
    taken += [
        (net, f"the host's route or address on {link}")
        for net, link in machine.kernel.used_prefixes(alias(store.state_id()))
    ]
    # no service may have an address that policies allow by a DNS name
    if store.names_outside():
        taken += [
            (ipaddress.ip_network(address), f"the outside name {name!r}")
            for name in store.outside.named()
            for address in store.outside.resolved(name)
        ]
    return taken


def _require_free(
    name: str, net: subnets.Network, taken: Sequence[tuple[subnets.Network, str]], holds: str | None
) -> None:
    for other, whose in taken:
        if other.version != net.version or not other.overlaps(net):
            continue
        overlap = f"overlaps {other} of {whose}"
        if holds is None:
            raise Conflict(f"network {name!r}: subnet {net} {overlap}", "choose another subnet")
        command = f"niso net create {name} --subnet CIDR"
        raise Conflict(
            f"is not available: new network {name!r} would get {net}, which {overlap}",
            f"choose another one, or create the network first: {command}",
            "network.ip",
            value=f'"{holds}"',
            right=f"an address in a free /{PREFIX_LENGTH}",
        )


def _next_unique_local(
    name: str, state_id: str, taken: list[tuple[subnets.Network, str]]
) -> subnets.Network:
    whole = subnets.unique_local(state_id)
    prefix = subnets.free_prefix(whole, 64, [net for net, _ in taken])
    if prefix is None:
        reason = f"network {name!r}: no free /64 is left in {whole}"
        raise Conflict(reason, "choose a free IPv6 prefix as its subnet")
    return prefix


def _next_free(name: str, taken: list[tuple[subnets.Network, str]]) -> subnets.Network:
    whole = pool()
    kept = ipaddress.ip_network((whole.network_address, PREFIX_LENGTH))
    used = [net for net, _ in taken]
    if name == DEFAULT_NETWORK and not any(net.version == 4 and net.overlaps(kept) for net in used):
        return kept
    prefix = subnets.free_prefix(whole, PREFIX_LENGTH, used, kept)
    if prefix is None:
        others = [
            f"{net} of {whose}"
            for net, whose in taken
            if net.version == whole.version and net.overlaps(whole)
        ]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        reasons = [f"it is taken by {shown}"] if others else []
        if not any(net.version == 4 and net.overlaps(kept) for net in used):
            reasons.append(f"{kept} is reserved for {DEFAULT_NETWORK}")
        raise Conflict(
            f"network {name!r}: no free /{PREFIX_LENGTH} is left in the pool {whole}: "
            f"{', and '.join(reasons)}",
            f"set NISO_POOL to a free prefix, or niso net create {name} --subnet CIDR",
        )
    return prefix


# --- create and remove ----------------------------------------------------------------------------


def create(
    machine: Machine, request: NetworkRequest, dry_run: bool = False
) -> NetworkRecord | None:
    """Create a network and its bridge, and return the network.

    Returns None if a network of this name already has the requested settings. A network that spans
    hosts is also created in the cluster, unless it already exists there. Raises UsageError,
    KernelError, and Conflict if the name, subnet or bridge is taken. After an error nothing has
    changed.
    """
    subnets.check(request)
    if not request.span:
        return _create(machine, request, dry_run)
    from niso.change import span_networks

    proposed, arriving = span_networks.propose(machine, request, dry_run)
    try:
        network = _create(machine, proposed, dry_run, arriving)
    except BaseException:
        span_networks.withdraw(machine, arriving)
        raise
    if not dry_run:
        from niso.runtime import units

        units.wake_agent()
    return network


def _create(
    machine: Machine, request: NetworkRequest, dry_run: bool, arriving: Arriving | None = None
) -> NetworkRecord | None:
    store, kernel = machine.store, machine.kernel
    with Lock():
        scope = Scope((), (request.name,), names=(("network", request.name),))
        if arriving is not None:
            scope = scope.joined(arriving.scope(store))
        network: NetworkRecord | None = None
        made = change(kernel, store, scope, machine.report, rows_first=True, dry_run=dry_run)
        try:
            with made:
                network = ensure(machine, request, False) if arriving is None else None
                if arriving is not None:
                    unobserved = () if request.observe else (request.name,)
                    network = next(iter(arriving.record(machine, False, unobserved)), None)
                    arriving.fill(store)
        except BaseException:
            if network is not None and made.is_recorded:  # the bridge could not be created
                with change(kernel, store, scope, teardown=True, rows_first=True):
                    store.drop_network(request.name)
            raise
    event_log.record(store, ())
    return network


def remove(machine: Machine, names: list[str], dry_run: bool = False) -> None:
    """Remove networks and their bridges. If one network cannot be removed, none is removed.

    A network that spans hosts is removed from the cluster first, even if this host does not have
    the network. Raises NotFound, KernelError, and Conflict if a service of any host is on one of
    the networks.
    """
    from niso.change import span_networks

    store, kernel = machine.store, machine.kernel
    here = {name: store.network(name) for name in names}
    for name, network in here.items():
        if network is not None or not store.cluster_id():
            _require_unused(store, name)
    if spanning := [name for name in names if (n := here[name]) is None or n.span is not None]:
        span_networks.remove(machine, spanning, dry_run)
    with Lock():
        # the agent may have removed a network that the cluster no longer has
        names = [name for name in names if name not in spanning or store.network(name) is not None]
        for name in names:
            _require_unused(store, name)
        scope = Scope((), tuple(names), names=tuple(("network", name) for name in names))
        if spanning:
            scope = span_networks.going(store, scope, every=True)
        # if this fails or niso is killed, the networks stay recorded for repair
        with change(kernel, store, scope, machine.report, teardown=True, dry_run=dry_run):
            for name in names:
                store.require_network(name)
                store.drop_network(name)
    event_log.record(store, ())


def _require_unused(store: Store, name: str) -> None:
    store.require_network(name)
    members = [service for service, _ in store.members(name)] or store.restored_by_undo(name)
    if members:
        reason = f"network {name!r} is used by {', '.join(members)}"
        raise Conflict(reason, "it can be removed once they are removed or on other networks")


def show(machine: Machine, on: bool) -> bool:
    """Write the services' names to the host's hosts file, or remove the names if ``on`` is false.

    Returns whether anything changed. Raises KernelError if the file cannot be replaced.
    """
    store, kernel = machine.store, machine.kernel
    with Lock():
        was, mark = store.writes_host_names(), store.state_id()
        if on and not was:  # recorded first, so that the next command completes it
            with store.transaction():
                store.set_writes_host_names(True)
        try:
            lines = host_settings.wanted(store) if on else []
            changed = kernel.write_host_names(mark, lines, always=on and not was)
        except KernelError:
            if on and not was:
                with store.transaction():
                    store.set_writes_host_names(False)
            raise
        if was and not on:
            with store.transaction():
                store.set_writes_host_names(False)
        return changed or was != on
