"""Translate Kubernetes' network policies into niso's policy for one pod, without side effects.

The rules are those of k8s.io/api/networking/v1. If no policy selects a pod for a direction, all
packets of that direction pass. If several policies select a pod, each packet that one of them
allows passes. There are no deny rules. The API server may be newer than niso: a policy that
contains anything unknown allows nothing (`NetworkPolicy.error`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.change import attach
from niso.plan import policy_elements
from niso.plan.records import Entry, Peer, Policy

INGRESS, EGRESS = "Ingress", "Egress"
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_MALFORMED = (TypeError, KeyError, ValueError, AttributeError)
_MIRROR = "kubernetes.io/config.mirror"
_LAST = 65535
_IN, _NOT_IN, _EXISTS, _NOT = "In", "NotIn", "Exists", "DoesNotExist"

Labels = Mapping[str, str]

type Expression = tuple[str, str, frozenset[str]]
"""A condition on a label: its key, the operator In, NotIn, Exists or DoesNotExist, and values."""

type Selector = tuple[Expression, ...]
"""Conditions that labels must all meet. Without conditions, all labels match."""


class Pod(NamedTuple):
    """A pod of Kubernetes. ``uid`` is the id that the kubelet uses, also for a static pod."""

    namespace: str
    name: str
    uid: str
    labels: Labels
    ports: tuple[tuple[str, int, str], ...]  # named ports: (name, port, protocol)
    in_host_network: bool


class Other(NamedTuple):
    """A peer of a rule: a prefix (``cidr``), or the pods that two selectors match."""

    cidr: str = ""  # prefix in canonical form; "" if the peer is pods
    excepted: tuple[str, ...] = ()  # prefixes excluded from ``cidr``
    pods: Selector | None = None  # None: all pods of the namespaces
    spaces: Selector | None = None  # None: the namespace of the policy


class RulePorts(NamedTuple):
    """The ports of a rule: from ``first`` to ``last``, or the pods' ports named ``name``."""

    proto: str
    first: int = 0
    last: int = _LAST
    name: str = ""


type PolicyRule = tuple[tuple[Other, ...] | None, tuple[RulePorts, ...] | None]
"""The peers and the ports of a rule for one direction. None means all."""


class NetworkPolicy(NamedTuple):
    """A network policy. A direction that the policy does not restrict is None."""

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None
    egress: tuple[PolicyRule, ...] | None
    # why niso cannot parse the policy, which then allows nothing to all pods of its namespace
    error: str = ""


def selects(selector: Selector, labels: Labels) -> bool:
    """Return whether labels meet all requirements of a selector (k8s.io/apimachinery, labels)."""
    for key, operator, values in selector:
        value = labels.get(key)
        if operator in (_IN, _EXISTS):
            if value is None or (operator == _IN and value not in values):
                return False
        elif value is not None and (operator == _NOT or value in values):
            return False
    return True


def pod(data: Mapping[str, Any]) -> Pod:
    """Parse a pod from the API server's JSON. Raises ValueError if it is not a pod."""
    try:
        meta, spec = data["metadata"], data["spec"]
        mirror = (meta.get("annotations") or {}).get(_MIRROR)
        containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
        ports = tuple(
            (port["name"], int(port["containerPort"]), _PROTOCOLS[port.get("protocol") or "TCP"])
            for container in containers
            for port in container.get("ports") or ()
            if port.get("name")
        )
        return Pod(
            meta["namespace"],
            meta["name"],
            str(mirror or meta["uid"]),
            _labels(meta),
            ports,
            bool(spec.get("hostNetwork", False)),
        )
    except _MALFORMED as error:
        raise ValueError(f"not a pod: {error!r}") from error


def namespace(data: Mapping[str, Any]) -> tuple[str, Labels]:
    """Parse the JSON of a Kubernetes namespace to its name and labels. Raises ValueError."""
    try:
        return data["metadata"]["name"], _labels(data["metadata"])
    except _MALFORMED as error:
        raise ValueError(f"not a namespace: {error!r}") from error


def network_policy(data: Mapping[str, Any]) -> NetworkPolicy:
    """Parse a network policy. An unsupported policy allows nothing. Raises ValueError."""
    try:
        space, name = data["metadata"]["namespace"], data["metadata"]["name"]
    except _MALFORMED as error:
        raise ValueError(f"not a network policy: {error!r}") from error
    try:
        spec = data.get("spec") or {}
        _require_known(spec, ("podSelector", "policyTypes", "ingress", "egress"))
        types = spec.get("policyTypes") or [INGRESS, *([EGRESS] if spec.get("egress") else ())]
        if set(types) - {INGRESS, EGRESS}:
            raise ValueError(f"policyTypes {types}")
        return NetworkPolicy(
            space,
            name,
            _selector(spec.get("podSelector") or {}),
            _rules(spec.get("ingress"), "from") if INGRESS in types else None,
            _rules(spec.get("egress"), "to") if EGRESS in types else None,
        )
    except _MALFORMED as error:
        return NetworkPolicy(space, name, (), (), (), str(error) or repr(error))


def _labels(meta: Mapping[str, Any]) -> Labels:
    return {str(key): str(value) for key, value in (meta.get("labels") or {}).items()}


def _require_known(data: Mapping[str, Any], keys: Iterable[str]) -> None:
    if unknown := sorted(data.keys() - set(keys)):
        raise ValueError(f"{unknown[0]} is not known to niso")


def _selector(data: Mapping[str, Any]) -> Selector:
    _require_known(data, ("matchLabels", "matchExpressions"))
    expressions: list[Expression] = [
        (key, _IN, frozenset([value]))
        for key, value in sorted((data.get("matchLabels") or {}).items())
    ]
    for item in data.get("matchExpressions") or ():
        _require_known(item, ("key", "operator", "values"))
        if item["operator"] not in (_IN, _NOT_IN, _EXISTS, _NOT):
            raise ValueError(f"operator {item['operator']}")
        expressions.append((item["key"], item["operator"], frozenset(item.get("values") or ())))
    return tuple(expressions)


def _rules(data: Iterable[Mapping[str, Any]] | None, peers: str) -> tuple[PolicyRule, ...]:
    rules = []
    for rule in data or ():
        _require_known(rule, ("ports", peers))
        # an empty list means everything, as a missing list does
        others = tuple(_other(one) for one in rule.get(peers) or ())
        targets = tuple(_target(one) for one in rule.get("ports") or ())
        rules.append((others or None, targets or None))
    return tuple(rules)


def _other(data: Mapping[str, Any]) -> Other:
    _require_known(data, ("podSelector", "namespaceSelector", "ipBlock"))
    given, pods, spaces = (data.get(k) for k in ("ipBlock", "podSelector", "namespaceSelector"))
    if given is None:
        if pods is None and spaces is None:
            raise ValueError("a peer without a selector")
        chosen = (None if one is None else _selector(one) for one in (pods, spaces))
        return Other("", (), *chosen)
    if pods is not None or spaces is not None:
        raise ValueError("a peer with ipBlock and a selector")
    _require_known(given, ("cidr", "except"))
    # the API accepts prefixes with host bits set
    excepted = tuple(str(ipaddress.ip_network(x, False)) for x in given.get("except") or ())
    return Other(str(ipaddress.ip_network(given["cidr"], False)), excepted)


def _target(data: Mapping[str, Any]) -> RulePorts:
    _require_known(data, ("protocol", "port", "endPort"))
    proto, port = _PROTOCOLS[data.get("protocol") or "TCP"], data.get("port")
    if port is None:
        if data.get("endPort") is not None:
            raise ValueError("endPort without a port")
        return RulePorts(proto)
    if isinstance(port, str):
        if "endPort" in data:
            raise ValueError("endPort with a named port")
        return RulePorts(proto, name=port)
    first, last = int(port), int(data.get("endPort") or port)
    if not 1 <= first <= last <= _LAST:
        raise ValueError(f"ports {first} to {last}")
    return RulePorts(proto, first, last)


# --- translation ----------------------------------------------------------------------------------

_EVERYWHERE = (Peer("prefix", "0.0.0.0/0"), Peer("prefix", "::/0"))
_ALL = (0, 65535, "")
_MOST_ENTRIES, _MOST_CHARACTERS = 10_000, 1_000_000
"""Limits for one pod and direction: entries, and characters of the names of their peers."""
MOST_ELEMENTS = 10_000
"""The maximum number of nftables elements of one pod's policy."""
_ANYBODY = Other(spaces=())

Ports = tuple[int, int, str]
"""The first port, the last port, and the protocol."""


class Objects(NamedTuple):
    """The objects of Kubernetes from which niso computes the policies of pods."""

    pods: Mapping[tuple[str, str], Pod]  # by namespace and name
    namespaces: Mapping[str, Labels]
    policies: Mapping[tuple[str, str], NetworkPolicy]
    names: Mapping[tuple[str, str], tuple[str, ...]]  # attachments here, by pod


def policy_of(pod: Pod, context: Objects) -> Policy:
    """Combine the network policies that select a pod into one policy of niso.

    The policy never allows pods of other nodes or in the host network as peers. Raises
    InvalidInput if the policy would be too large.
    """
    selecting = [
        policy
        for _, policy in sorted(context.policies.items())
        if policy.namespace == pod.namespace and selects(policy.pods, pod.labels)
    ]
    ingress = [policy for policy in selecting if policy.ingress is not None]
    egress = [policy for policy in selecting if policy.egress is not None]
    policy = Policy(
        allow_from=_list(_ingress(pod, ingress, context), "ingress") if ingress else None,
        egress_allow=_list(_egress(egress, context), "egress") if egress else None,
    )
    if policy_elements.cost(policy, MOST_ELEMENTS) > MOST_ELEMENTS:
        raise InvalidInput(
            f"network policies need too many rules, such as {selecting[-1].name}",
            f"at most {MOST_ELEMENTS} pairs of a prefix or pod and a port that they tell apart",
        )
    return policy


Allowed = tuple[str, Peer, Ports]
"""The name of the network policy that allows packets, their peer, and their ports."""


def _list(allowed: Iterable[Allowed], direction: str) -> tuple[Entry, ...]:
    """Convert tuples (network policy's name, peer, ports) to policy entries without duplicates. The
    entries are in the order that needs the fewest nftables elements. ``direction``, ingress or
    egress, is part of their keys. Raises InvalidInput if there are too many entries.
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

    listed = sorted(first, key=lambda of: (of[0] in _EVERYWHERE, of[0].kind != "service"))
    return tuple(
        Entry(
            f"networkpolicy.{direction}[{number}]",
            f"{first[peer, ports]}: {_shown(peer, ports)}",
            peer,
            *ports,
        )
        for number, (peer, ports) in enumerate(listed)
    )


def _shown(peer: Peer, ports: Ports) -> str:
    first, last, proto = ports
    name, *more = peer.name.split(",")
    name = f"{name} and {len(more)} more" if more else name
    if ports == _ALL:
        return name
    numbers = "*" if (first, last) == _ALL[:2] else f"{first}-{last}" if last > first else first
    return f"{name}:{numbers}/{proto}"


def _ingress(pod: Pod, policies: Iterable[NetworkPolicy], context: Objects) -> Iterator[Allowed]:
    for policy in policies:
        for others, targets in policy.ingress or ():
            peers = [peer for peer, _ in _peers(others, policy, context)]
            for ports in _ports(targets, pod):
                for peer in peers:
                    yield policy.name, peer, ports


def _egress(policies: Iterable[NetworkPolicy], context: Objects) -> Iterator[Allowed]:
    for policy in policies:
        for others, targets in policy.egress or ():
            for peer, other in _peers(others, policy, context):
                for ports in _ports(targets, other):
                    yield policy.name, peer, ports
            # a named port without a peer means that port of every pod
            named = [target for target in targets or () if target.name]
            for peer, other in _pods(_ANYBODY, policy, context) if others is None else ():
                for target in named:
                    for ports in _named(target, other):
                        yield policy.name, peer, ports


def _ports(targets: tuple[RulePorts, ...] | None, receiver: Pod | None) -> Iterator[Ports]:
    """Yield the ports that a rule allows, as (first, last, protocol). ``targets`` are the rule's
    ports, or None for all. A named port is a port of ``receiver``.
    """
    if targets is None:
        yield _ALL
    for target in targets or ():
        if not target.name:
            yield target.first, target.last, target.proto
        else:
            yield from _named(target, receiver)


def _named(target: RulePorts, receiver: Pod | None) -> Iterator[Ports]:
    for name, port, proto in receiver.ports if receiver is not None else ():
        if (name, proto) == (target.name, target.proto):
            yield port, port, proto


def _peers(
    others: tuple[Other, ...] | None, policy: NetworkPolicy, context: Objects
) -> Iterator[tuple[Peer, Pod | None]]:
    """Yield a rule's peers as pairs (peer of niso's policy, pod). For prefixes, the pod is None.
    ``others`` are the peers in the rule of ``policy``, or None for all.
    """
    if others is None:
        yield from ((peer, None) for peer in _EVERYWHERE)
    blocks: dict[str, None] = {}
    for other in others or ():
        if not other.cidr:
            yield from _pods(other, policy, context)
            continue
        for prefix in _prefixes(other.cidr, other.excepted):
            peer = Peer("prefix", prefix)
            if peer in _EVERYWHERE:
                yield peer, None
            else:
                blocks[prefix] = None
            if len(blocks) > _MOST_ENTRIES:
                break
    if blocks:
        yield attach.prefixes(blocks), None


def _pods(other: Other, policy: NetworkPolicy, context: Objects) -> Iterator[tuple[Peer, Pod]]:
    for key, names in sorted(context.names.items()):
        if (pod := context.pods.get(key)) is None:
            continue
        if other.spaces is None:
            there = pod.namespace == policy.namespace
        else:
            labels = context.namespaces.get(pod.namespace)
            there = labels is not None and selects(other.spaces, labels)
        if there and (other.pods is None or selects(other.pods, pod.labels)):
            yield from ((Peer("service", name), pod) for name in names)


def _prefixes(cidr: str, excluded: tuple[str, ...]) -> Iterator[str]:
    """Yield, in ascending order, the prefixes that cover ``cidr`` but not ``excluded``."""
    whole = ipaddress.ip_network(cidr)
    others = (ipaddress.ip_network(text) for text in excluded)
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
    """Yield prefixes (first address, length) that cover the prefix ``first``/``length`` without the
    ranges ``excepted``, pairs (first, last). Addresses are integers. ``bits`` is 32 or 128.
    """
    last = first + (1 << (bits - length)) - 1
    inside = [(low, high) for low, high in excepted if low <= last and high >= first]
    if not inside:
        yield first, length
    elif not any(low <= first and high >= last for low, high in inside):
        for half in (first, first + (1 << (bits - length - 1))):
            yield from _left(half, length + 1, bits, inside)
