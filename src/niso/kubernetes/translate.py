"""Translate Kubernetes' network policies into niso's policy for one pod. Pure.

The semantics are those of k8s.io/api/networking/v1. If no policy with a direction selects a pod,
the pod is open in that direction. Several policies add up, and there are no deny rules. Traffic
from the node itself, such as the kubelet's probes, always reaches a pod.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from niso.base.errors import InvalidInput
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
from niso.plan import policy_maps
from niso.plan.records import Entry, Peer, Policy
from niso.services import policies

_EVERYWHERE = (Peer("prefix", "0.0.0.0/0"), Peer("prefix", "::/0"))
_ALL = (0, 65535, "")
_MOST_ENTRIES, _MOST_CHARACTERS = 10_000, 1_000_000
"""Limits for one pod and direction: of entries, and of the names of their peers together."""
MOST_ELEMENTS = 10_000
"""Limit for one pod, of elements in the kernel's rules."""
_ANYBODY = Other(spaces=Selector())

Ports = tuple[int, int, str]
"""First and last port, and protocol."""


class World(NamedTuple):
    """The input of a translation.

    ``names`` has the attachments of pods on this node. A pod has several while its sandbox is being
    replaced.
    """

    pods: Mapping[tuple[str, str], Pod]  # by namespace and name
    namespaces: Mapping[str, Labels]
    policies: Mapping[tuple[str, str], NetworkPolicy]
    names: Mapping[tuple[str, str], tuple[str, ...]]


def policy_of(pod: Pod, world: World) -> Policy:
    """Return the policy of a pod.

    Its peers are pods on this node, by the names of their attachments, and prefixes. Pods on other
    nodes, or in the host network, are never peers. Raises InvalidInput if the policy would be too
    large.
    """
    selecting = [
        policy
        for _, policy in sorted(world.policies.items())
        if policy.namespace == pod.namespace and policy.pods.selects(pod.labels)
    ]
    ingress = [policy for policy in selecting if policy.ingress is not None]
    egress = [policy for policy in selecting if policy.egress is not None]
    policy = Policy(
        allow_from=_list(_ingress(pod, ingress, world), "ingress") if ingress else None,
        egress_allow=_list(_egress(egress, world), "egress") if egress else None,
    )
    if policy_maps.cost(policy, MOST_ELEMENTS) > MOST_ELEMENTS:
        raise InvalidInput(
            f"network policies need too many rules, such as {selecting[-1].name}",
            f"at most {MOST_ELEMENTS} pairs of a prefix or pod and a port that they tell apart",
        )
    return policy


Allowed = tuple[str, Peer, Ports]
"""The name of the policy that allows it, the peer, and the ports."""


def _list(allowed: Iterable[Allowed], direction: str) -> tuple[Entry, ...]:
    """Return entries without duplicates, each with a unique key.

    Pods come first, then prefixes, then everybody: in this order the rules need the fewest
    elements. Raises InvalidInput if there are so many that all pods of the node would have to wait.
    """
    first: dict[tuple[Peer, Ports], str] = {}
    characters = 0
    for number, (policy, peer, ports) in enumerate(allowed):
        first.setdefault((peer, ports), policy)
        characters += len(peer.name)
        if number >= _MOST_ENTRIES or characters > _MOST_CHARACTERS:
            raise InvalidInput(
                f"network policies allow too much one by one, such as {policy}",
                f"at most {_MOST_ENTRIES} entries, {_MOST_CHARACTERS} characters of prefixes",
            )

    def rank(item: tuple[tuple[Peer, Ports], str]) -> int:
        peer = item[0][0]
        return 2 if peer in _EVERYWHERE else 1 if peer.kind != "service" else 0

    listed = sorted(first.items(), key=rank)
    return tuple(
        Entry(
            f"networkpolicy.{direction}[{number}]",
            f"{policy}: {_shown(peer, ports)}",
            peer,
            *ports,
        )
        for number, ((peer, ports), policy) in enumerate(listed)
    )


def _shown(peer: Peer, ports: Ports) -> str:
    first, last, proto = ports
    name, *more = peer.name.split(",")
    name = f"{name} and {len(more)} more" if more else name
    if ports == _ALL:
        return name
    numbers = "*" if (first, last) == _ALL[:2] else f"{first}-{last}" if last > first else first
    return f"{name}:{numbers}/{proto}"


def _ingress(pod: Pod, policies: Iterable[NetworkPolicy], world: World) -> Iterator[Allowed]:
    for policy in policies:
        for rule in policy.ingress or ():
            peers = [peer for peer, _ in _peers(rule, policy, world)]
            for ports in _ports(rule, pod):
                for peer in peers:
                    yield policy.name, peer, ports


def _egress(policies: Iterable[NetworkPolicy], world: World) -> Iterator[Allowed]:
    for policy in policies:
        for rule in policy.egress or ():
            for peer, other in _peers(rule, policy, world):
                for ports in _ports(rule, other):
                    yield policy.name, peer, ports
            # a named port without a peer means that port of every pod
            named = [target for target in rule.targets or () if target.name]
            for peer, other in _pods(_ANYBODY, policy, world) if rule.others is None else ():
                for target in named:
                    for ports in _named(target, other):
                        yield policy.name, peer, ports


def _ports(rule: Rule, receiver: Pod | None) -> Iterator[Ports]:
    """Yield the ports of a rule.

    A named port is looked up in the receiver, and matches nothing if that is not a pod.
    """
    if rule.targets is None:
        yield _ALL
    for target in rule.targets or ():
        if not target.name:
            yield target.first, target.last, target.proto
        else:
            yield from _named(target, receiver)


def _named(target: Target, receiver: Pod | None) -> Iterator[Ports]:
    for port in receiver.ports if receiver is not None else ():
        if (port.name, port.proto) == (target.name, target.proto):
            yield port.port, port.port, port.proto


def _peers(rule: Rule, policy: NetworkPolicy, world: World) -> Iterator[tuple[Peer, Pod | None]]:
    """Yield the peers of a rule, each with its pod; None if the peer is a prefix."""
    if rule.others is None:
        yield from ((peer, None) for peer in _EVERYWHERE)
    blocks: dict[str, None] = {}
    for other in rule.others or ():
        if other.block is None:
            yield from _pods(other, policy, world)
            continue
        for prefix in _prefixes(other.block):
            peer = Peer("prefix", prefix)
            if peer in _EVERYWHERE:
                yield peer, None
            else:
                blocks[prefix] = None
            if len(blocks) > _MOST_ENTRIES:
                break
    if blocks:
        yield policies.prefixes(blocks), None


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
    """Yield the prefixes that cover a block without its exceptions, in ascending order."""
    whole = ipaddress.ip_network(block.cidr)
    others = (ipaddress.ip_network(text) for text in block.excepted)
    excepted = [
        (int(one.network_address), int(one.broadcast_address))
        for one in others
        if one.version == whole.version
    ]
    bits = whole.max_prefixlen
    for first, length in _left(int(whole.network_address), whole.prefixlen, bits, excepted):
        yield str(type(whole)((first, length)))


def _left(
    first: int, length: int, bits: int, excepted: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield the parts of a prefix that are not excepted, by halving it recursively.

    A prefix is (first address, length), an exception (first address, last address).
    """
    last = first + (1 << (bits - length)) - 1
    inside = [(low, high) for low, high in excepted if low <= last and high >= first]
    if not inside:
        yield first, length
    elif not any(low <= first and high >= last for low, high in inside):
        for half in (first, first + (1 << (bits - length - 1))):
            yield from _left(half, length + 1, bits, inside)
