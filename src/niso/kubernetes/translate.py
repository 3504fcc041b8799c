"""Translate network policies of Kubernetes into niso's policy of one pod. Pure.

The semantics are those of k8s.io/api/networking/v1. A pod that no policy of a type selects is open
in that direction. What several policies allow is joined, and nothing is denied but by not being
allowed. What the node itself sends, such as the kubelet's probes, always reaches a pod.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from niso.base.lite_typing import NamedTuple
from niso.kubernetes.objects import (
    Block,
    Labels,
    NetworkPolicy,
    Other,
    Pod,
    Rule,
    Selector,
    Target,
)
from niso.plan.records import Entry, Peer, Policy

_EVERYWHERE = (Peer("prefix", "0.0.0.0/0"), Peer("prefix", "::/0"))
_ALL = (0, 65535, "")
_ANYBODY = Other(spaces=Selector())

Ports = tuple[int, int, str]
"""First and last port, and protocol."""


class World(NamedTuple):
    """What a translation depends on.

    ``names`` are the attachments of pods on this node. A pod has several while a sandbox is
    replaced.
    """

    pods: Mapping[tuple[str, str], Pod]  # by namespace and name
    namespaces: Mapping[str, Labels]
    policies: Mapping[tuple[str, str], NetworkPolicy]
    names: Mapping[tuple[str, str], tuple[str, ...]]


def policy_of(pod: Pod, world: World) -> Policy:
    """Return the policy of a pod.

    Peers are pods on this node, by the names of their attachments, and prefixes. A pod elsewhere,
    or in the network of its node, is none.
    """
    selecting = [
        policy
        for _, policy in sorted(world.policies.items())
        if policy.namespace == pod.namespace and policy.pods.selects(pod.labels)
    ]
    ingress = [policy for policy in selecting if policy.ingress is not None]
    egress = [policy for policy in selecting if policy.egress is not None]
    return Policy(
        allow_from=_list(_ingress(pod, ingress, world), "ingress") if ingress else None,
        egress_allow=_list(_egress(egress, world), "egress") if egress else None,
    )


Allowed = tuple[str, Peer, Ports]
"""The policy that allows it, a peer, and ports."""


def _list(allowed: Iterable[Allowed], direction: str) -> tuple[Entry, ...]:
    """Return entries, each peer with the same ports once, with keys that differ."""
    first: dict[tuple[Peer, Ports], str] = {}
    for policy, peer, ports in allowed:
        first.setdefault((peer, ports), policy)
    return tuple(
        Entry(
            f"networkpolicy.{direction}[{number}]",
            f"{policy}: {_shown(peer, ports)}",
            peer,
            *ports,
        )
        for number, ((peer, ports), policy) in enumerate(first.items())
    )


def _shown(peer: Peer, ports: Ports) -> str:
    first, last, proto = ports
    if ports == _ALL:
        return peer.name
    numbers = "*" if (first, last) == _ALL[:2] else f"{first}-{last}" if last > first else first
    return f"{peer.name}:{numbers}/{proto}"


def _ingress(pod: Pod, policies: Iterable[NetworkPolicy], world: World) -> Iterator[Allowed]:
    for policy in policies:
        for rule in policy.ingress or ():
            for ports in _ports(rule, pod):
                for peer, _ in _peers(rule, policy, world):
                    yield policy.name, peer, ports


def _egress(policies: Iterable[NetworkPolicy], world: World) -> Iterator[Allowed]:
    for policy in policies:
        for rule in policy.egress or ():
            for peer, other in _peers(rule, policy, world):
                for ports in _ports(rule, other):
                    yield policy.name, peer, ports
            # a named port of everybody is that of each pod
            named = [target for target in rule.targets or () if target.name]
            for peer, other in _pods(_ANYBODY, policy, world) if rule.others is None else ():
                for target in named:
                    for ports in _named(target, other):
                        yield policy.name, peer, ports


def _ports(rule: Rule, receiver: Pod | None) -> Iterator[Ports]:
    """Yield the ports of a rule. A name is a port of the receiver, and none of anyone else."""
    if rule.targets is None:
        yield _ALL
    for target in rule.targets or ():
        if not target.name:
            yield target.first, target.last, target.proto
        else:
            yield from _named(target, receiver)


def _named(target: Target, receiver: Pod | None) -> Iterator[Ports]:
    for each in receiver.ports if receiver is not None else ():
        if (each.name, each.proto) == (target.name, target.proto):
            yield each.port, each.port, each.proto


def _peers(rule: Rule, policy: NetworkPolicy, world: World) -> Iterator[tuple[Peer, Pod | None]]:
    """Yield the peers of a rule, with the pod that each is."""
    if rule.others is None:
        yield from ((peer, None) for peer in _EVERYWHERE)
    for other in rule.others or ():
        if other.block is not None:
            yield from ((Peer("prefix", prefix), None) for prefix in _prefixes(other.block))
        else:
            yield from _pods(other, policy, world)


def _pods(other: Other, policy: NetworkPolicy, world: World) -> Iterator[tuple[Peer, Pod]]:
    for key, names in sorted(world.names.items()):
        pod = world.pods.get(key)
        if pod is not None and _is(pod, other, policy, world):
            yield from ((Peer("service", name), pod) for name in names)


def _is(pod: Pod, other: Other, policy: NetworkPolicy, world: World) -> bool:
    if other.spaces is None:
        there = pod.namespace == policy.namespace
    else:
        labels = world.namespaces.get(pod.namespace)
        there = labels is not None and other.spaces.selects(labels)
    return there and (other.pods is None or other.pods.selects(pod.labels))


def _prefixes(block: Block) -> Iterator[str]:
    """Return the prefixes that a block consists of."""
    left = [ipaddress.ip_network(block.cidr)]
    for text in block.excepted:
        gone = ipaddress.ip_network(text)
        left = [part for one in left for part in _less(one, gone)]
    return (str(one) for one in sorted(left, key=lambda one: int(one.network_address)))


_Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def _less(one: _Prefix, gone: _Prefix) -> Iterable[_Prefix]:
    if isinstance(one, ipaddress.IPv4Network) and isinstance(gone, ipaddress.IPv4Network):
        return _without(one, gone)
    if isinstance(one, ipaddress.IPv6Network) and isinstance(gone, ipaddress.IPv6Network):
        return _without(one, gone)
    return (one,)


def _without[P: (ipaddress.IPv4Network, ipaddress.IPv6Network)](one: P, gone: P) -> Iterable[P]:
    if one.subnet_of(gone):
        return ()
    return one.address_exclude(gone) if gone.subnet_of(one) else (one,)
