"""Compare this host with the other hosts of its cluster, and check that packets reach them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from itertools import islice

from niso.base import names
from niso.base.errors import KernelError
from niso.change import span_networks
from niso.cluster import agent, own_etcd
from niso.cluster.agent import LOOK_S
from niso.cluster.config import Config
from niso.cluster.engine import NoAnswer
from niso.cluster.key_values import ClusterClaim, HostEntry
from niso.cluster.membership import ClusterKeys, require_own
from niso.kernel import probe
from niso.kernel.kinds.kind import Finding
from niso.plan.records import NetworkRecord
from niso.runtime.machine import Machine
from niso.store.store import Store

PATIENCE_S = 1.0
_TRIES = 3
"""Number of pairs of services, for each other host, that exchange test packets."""
_APART_S = 60.0
_LATE_S = 2 * LOOK_S
_Pair = tuple[str, str, str, str]
"""(service of this host, service of another host, source address, destination address)."""


def check(
    machine: Machine, own: Config, name: str | None
) -> tuple[list[Finding], list[tuple[str, str]]]:
    """Check the cluster from this host. ``name`` limits the check to one of the cluster's networks.

    Returns (findings, warnings). A warning is (message, next step). If etcd does not answer, there
    is a warning, and this host is not compared with the others.
    """
    store = machine.store
    spans = [network for network in store.networks() if network.span is not None]
    spans = [network for network in spans if name in (None, network.name)]
    warnings = _own_agent() if name is None else []
    lost = lost_address(machine, own)
    try:
        with contextlib.closing(own.engine(brief=True)) as engine:
            membership = ClusterKeys(engine, own.keys)
            require_own(store, membership)
            hosts = membership.hosts()
            late = membership.late()
            claims = membership.services()
            elsewhere = {*membership.network_names()} if name is None else set()
    except NoAnswer as error:
        what = f"this host is not compared with the others: {error.message}"
        return lost, [*warnings, (what, "running services continue; niso cluster status")]
    if name is None:
        warnings += _hidden(store, elsewhere, claims, own.host)
        warnings += _etcd(own)
    others = [host for host in hosts if host.name != own.host]
    reachable = [host for host in others if host.alive and host.name not in late]
    pairs = {} if lost else _pairs(store, claims, own.host, spans)
    return lost or _wires(own, reachable, pairs, spans), warnings


def lost_address(machine: Machine, own: Config) -> list[Finding]:
    """Return a finding if this host has lost the address that other hosts use to reach it."""
    if machine.kernel.mtu_of(own.address) is not None:
        return []
    what = f"{own.address}, by which the other hosts reach this one"
    detail = "with another address it has to leave the cluster, and join again"
    return [Finding("missing", what, detail)]


def _own_agent() -> list[tuple[str, str]]:
    at_s = agent.last()[0]
    ago_s = None if at_s is None else time.monotonic() - at_s
    if ago_s is not None and ago_s < _LATE_S:
        return []
    when = "has not looked since the boot" if ago_s is None else f"looked last {ago_s:.0f} s ago"
    return [(f"the agent of this host {when}", "systemctl status niso-agent; niso agent runs it")]


def _hidden(
    store: Store, elsewhere: set[str], claims: Iterable[ClusterClaim], own: str
) -> list[tuple[str, str]]:
    """Return warnings about names that exist both on this host and in its cluster. A warning is
    (message, next step).

    On this host, such a name means the local network or service. ``elsewhere`` are the names of the
    cluster's networks, and ``own`` is this host's name.
    """
    hidden = [
        (
            f"network {network.name} is this host's own, and hides the one that spans hosts",
            "services here do not see those of other hosts on it: give one of both another name",
        )
        for network in store.networks()
        if network.span is None and network.name in elsewhere
    ]
    here = {row.name for row in store.services()} - {c.service for c in store.across.claims()}
    return hidden + [
        (
            f"service {claim.service} is one of this host, and hides that of {claim.host}",
            "names and policies here mean the own one: give one of both another name",
        )
        for claim in claims
        if claim.host != own and claim.service in here and not _is_idle_front(store, claim)
    ]


def _is_idle_front(store: Store, claim: ClusterClaim) -> bool:
    """Return whether a service with instances on several hosts is recorded here, but not active."""
    row = store.service(claim.service)
    return claim.front and row is not None and row.mode == "front" and not row.active


def _etcd(own: Config) -> list[tuple[str, str]]:
    warnings, states = [], []
    for place in own.etcd.members:
        state = own_etcd.state(own.access(), place)
        states += [state] if state is not None else []
        if state is not None and abs(state.ahead_s) > _APART_S:
            way = "behind" if state.ahead_s > 0 else "ahead of"
            text = f"this host's clock is {abs(state.ahead_s):.0f} s {way} that of {place}"
            warnings.append((text, "timedatectl on both shows which one is wrong"))
    return warnings + own_etcd.alarmed(states)


# --- packets --------------------------------------------------------------------------------------


def _pairs(
    store: Store, claims: Iterable[ClusterClaim], own: str, spans: list[NetworkRecord]
) -> dict[str, list[_Pair]]:
    """Return {host: pairs of services} for test packets between this host and each of the other
    hosts.

    Policies allow all packets between the services of a pair. Each host has a few pairs. ``own`` is
    this host's name, and ``spans`` are the networks that span hosts.
    """
    claims = [claim for claim in claims if claim.up]
    here = [claim for claim in claims if claim.host == own and _asks(store, claim.service)]
    on = {network.name for network in spans}
    pairs: dict[str, list[_Pair]] = {}
    for other in claims:
        have = pairs.setdefault(other.host, [])
        if other.host != own and not other.policy and len(have) < _TRIES:
            meeting = (pair for mine in here if (pair := _common_pair(mine, other, on)) is not None)
            have += islice(meeting, 1)
    return pairs


def _asks(store: Store, service: str) -> bool:
    row, policy = store.service(service), store.policy(service)
    open_ = policy is None or (policy.egress_allow is None and not policy.egress_deny)
    return row is not None and row.active and row.has_process and open_


def _common_pair(mine: ClusterClaim, other: ClusterClaim, on: set[str]) -> _Pair | None:
    """Return (service, other service, source, destination) for a test packet on a network in
    ``on``. Returns None if the services have no such network in common, or no common IP version on
    it.
    """
    for network in on & mine.networks.keys() & other.networks.keys():
        for to in other.networks[network]:
            for source in mine.networks[network]:
                if (":" in source) == (":" in to):
                    return mine.service, other.service, source, to
    return None


def _wires(
    own: Config, hosts: list[HostEntry], pairs: dict[str, list[_Pair]], spans: list[NetworkRecord]
) -> list[Finding]:
    """Return a finding for each host that no packets, or only small packets, of services reach."""
    if not spans:
        return []
    tests = ((host.name, pair) for host in hosts for pair in pairs.get(host.name, ()))
    inner = _answered({test: (names.netns(test[1][0]), *test[1][2:], 0) for test in tests})
    most = max(network.mtu for network in spans)
    size = most + span_networks.header(own)
    sizes = ((host, bytes_) for host in hosts for bytes_ in (0, size))
    outer = _answered({(h.name, n): ("", own.address, h.address, n) for h, n in sizes})
    port = next(network.span.port for network in spans if network.span is not None)
    port += 1 if own.encryption else 0  # WireGuard uses the next port
    findings = []
    for host in hosts:
        where = f"{host.name} ({host.address})"
        tried = [(pair, ok) for (name, pair), ok in inner.items() if name == host.name]
        if tried and not any(ok for _, ok in tried):
            service, other, _, _ = tried[0][0]
            ping = "answers ping" if outer[host.name, 0] else "does not answer ping"
            what = f"packets of services between this host and {where}"
            detail = (
                f"{host.name} {ping}; {other} does not answer {service}; UDP port {port} has to"
                f" pass both ways between {own.address} and {host.address}"
            )
            findings.append(Finding("dropped", what, detail))
        if outer[host.name, 0] and not outer[host.name, size]:
            what = f"packets of {size} bytes between this host and {where}"
            detail = f"packets of services have up to {most} bytes, and {size - most} more there"
            findings.append(Finding("dropped", what, f"{detail}; smaller ones pass"))
    return findings


def _answered[K](wanted: dict[K, tuple[str, str, str, int]]) -> dict[K, bool]:
    """Send ICMP echo requests, and return for each key of ``wanted`` whether a reply arrived.

    Each value of ``wanted`` is a request: (namespace, source address, destination address, size in
    bytes). Requests without a reply within a second are sent once more.
    """
    answered = dict.fromkeys(wanted, False)
    for _ in range(2):
        sent: dict[K, probe.ProbePacket] = {}
        try:
            for key, (namespace, source, to, size) in wanted.items():
                if answered[key]:
                    continue
                try:
                    made = probe.ProbePacket(namespace, source, to, None, "icmp", size=size)
                except KernelError:
                    continue
                sent[key] = made
                if made.send():
                    sent.pop(key).__exit__()
            until = time.monotonic() + PATIENCE_S
            for key, made in sent.items():
                answered[key] = made.wait(max(0.0, until - time.monotonic()))[1]
        finally:
            for made in sent.values():
                made.__exit__()
    return answered


def concerned(machine: Machine, name: str | None) -> bool:
    store = machine.store
    network = None if name is None else store.network(name)
    return name is None or (network is not None and network.span is not None)
