"""Translate Kubernetes' network policies into niso's policy for one pod. No side effects.

Pods, namespaces and policies are parsed from the JSON of Kubernetes' API. The API server has
validated them, but it may be newer than niso. A policy that contains anything unknown to niso
allows nothing (`NetworkPolicy.error`).

The rules are those of k8s.io/api/networking/v1. If no policy selects a pod for a direction, all
packets of that direction pass. Several policies allow what any of them allows, and there are no
deny rules.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.change import attach
from niso.plan import policy_elements
from niso.plan.records import Entry, Peer, Policy

if TYPE_CHECKING:
    from typing import Any


# --- objects of the API ---------------------------------------------------------------------------


INGRESS, EGRESS = "Ingress", "Egress"
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_MALFORMED = (TypeError, KeyError, ValueError, AttributeError)
_MIRROR = "kubernetes.io/config.mirror"
_LAST = 65535
_IN, _NOT_IN, _EXISTS, _NOT = "In", "NotIn", "Exists", "DoesNotExist"

Labels = Mapping[str, str]


class Named(NamedTuple):
    """A named port of a container."""

    name: str
    port: int
    proto: str


class Pod(NamedTuple):
    """A pod of Kubernetes.

    ``uid`` is the kubelet's id of the pod. For a static pod it differs from the uid of the API
    object.
    """

    namespace: str
    name: str
    uid: str
    labels: Labels
    ports: tuple[Named, ...] = ()
    in_host_network: bool = False


class Expression(NamedTuple):
    """One condition on a label: In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: frozenset[str]


class Selector(NamedTuple):
    """Conditions that labels must all meet. Without conditions, all labels match."""

    expressions: tuple[Expression, ...] = ()

    def selects(self, labels: Labels) -> bool:
        """Return whether labels meet all conditions.

        A missing label meets NotIn and DoesNotExist (k8s.io/apimachinery, pkg/labels).
        """
        return all(_meets(expression, labels) for expression in self.expressions)


class Block(NamedTuple):
    """A prefix, and the prefixes inside it that are excluded. All are in canonical form."""

    cidr: str
    excepted: tuple[str, ...] = ()


class Other(NamedTuple):
    """A peer of a rule: a block, or pods selected by their own and their namespaces' labels.

    If ``spaces`` is None, the pods are in the policy's own namespace. If ``pods`` is None, all pods
    of the selected namespaces are meant.
    """

    block: Block | None = None
    pods: Selector | None = None
    spaces: Selector | None = None


class Target(NamedTuple):
    """The ports of a rule: from ``first`` to ``last``, or the port with the name ``name``."""

    proto: str
    first: int = 0
    last: int = _LAST
    name: str = ""


class Rule(NamedTuple):
    """A rule of a policy in one direction.

    If ``others`` is None, the rule is about all peers. If ``targets`` is None, it is about all
    ports.
    """

    others: tuple[Other, ...] | None = None
    targets: tuple[Target, ...] | None = None


class NetworkPolicy(NamedTuple):
    """A network policy of Kubernetes.

    ``ingress`` or ``egress`` is None if the policy does not restrict this direction.
    """

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    # why niso cannot parse it; it then applies to its whole namespace and allows nothing
    error: str = ""


def _meets(one: Expression, labels: Labels) -> bool:
    value = labels.get(one.key)
    if one.operator in (_IN, _EXISTS):
        return value is not None and (one.operator == _EXISTS or value in one.values)
    return value is None or (one.operator == _NOT_IN and value not in one.values)


def pod(data: Mapping[str, Any]) -> Pod:
    """Parse a pod. Raises ValueError if the object is not a pod."""
    try:
        meta, spec = data["metadata"], data["spec"]
        mirror = (meta.get("annotations") or {}).get(_MIRROR)
        containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
        ports = tuple(
            Named(port["name"], int(port["containerPort"]), _proto(port.get("protocol")))
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
    """Return the name and labels of a namespace.

    Raises ValueError if ``data`` is not a namespace.
    """
    try:
        return data["metadata"]["name"], _labels(data["metadata"])
    except _MALFORMED as error:
        raise ValueError(f"not a namespace: {error!r}") from error


def network_policy(data: Mapping[str, Any]) -> NetworkPolicy:
    """Parse a network policy.

    A policy that niso does not support becomes one that selects all pods of its namespace and
    allows nothing. Raises ValueError if the object has no name.
    """
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
        return NetworkPolicy(space, name, Selector(), (), (), str(error) or repr(error))


def _labels(meta: Mapping[str, Any]) -> Labels:
    return {str(key): str(value) for key, value in (meta.get("labels") or {}).items()}


def _proto(text: str | None) -> str:
    return _PROTOCOLS[text or "TCP"]


def _require_known(data: Mapping[str, Any], keys: Iterable[str]) -> None:
    if unknown := sorted(data.keys() - set(keys)):
        raise ValueError(f"{unknown[0]} is not known to niso")


def _selector(data: Mapping[str, Any]) -> Selector:
    _require_known(data, ("matchLabels", "matchExpressions"))
    expressions = [
        Expression(key, _IN, frozenset([value]))
        for key, value in sorted((data.get("matchLabels") or {}).items())
    ]
    for item in data.get("matchExpressions") or ():
        _require_known(item, ("key", "operator", "values"))
        if item["operator"] not in (_IN, _NOT_IN, _EXISTS, _NOT):
            raise ValueError(f"operator {item['operator']}")
        values = frozenset(item.get("values") or ())
        expressions.append(Expression(item["key"], item["operator"], values))
    return Selector(tuple(expressions))


def _rules(data: Iterable[Mapping[str, Any]] | None, peers: str) -> tuple[Rule, ...]:
    rules = []
    for rule in data or ():
        _require_known(rule, ("ports", peers))
        # an empty list means the same as none: everything
        others = tuple(_other(one) for one in rule.get(peers) or ())
        targets = tuple(_target(one) for one in rule.get("ports") or ())
        rules.append(Rule(others or None, targets or None))
    return tuple(rules)


def _other(data: Mapping[str, Any]) -> Other:
    _require_known(data, ("podSelector", "namespaceSelector", "ipBlock"))
    given, pods, spaces = (data.get(k) for k in ("ipBlock", "podSelector", "namespaceSelector"))
    if given is None:
        if pods is None and spaces is None:
            raise ValueError("a peer without a selector")
        return Other(
            None,
            None if pods is None else _selector(pods),
            None if spaces is None else _selector(spaces),
        )
    if pods is not None or spaces is not None:
        raise ValueError("a peer with ipBlock and a selector")
    _require_known(given, ("cidr", "except"))
    # the API accepts prefixes with host bits set
    excepted = tuple(str(ipaddress.ip_network(x, False)) for x in given.get("except") or ())
    return Other(Block(str(ipaddress.ip_network(given["cidr"], False)), excepted))


def _target(data: Mapping[str, Any]) -> Target:
    _require_known(data, ("protocol", "port", "endPort"))
    proto, port = _proto(data.get("protocol")), data.get("port")
    if port is None:
        if data.get("endPort") is not None:
            raise ValueError("endPort without a port")
        return Target(proto)
    if isinstance(port, str):
        if "endPort" in data:
            raise ValueError("endPort with a named port")
        return Target(proto, name=port)
    first, last = int(port), int(data.get("endPort") or port)
    if not 1 <= first <= last <= _LAST:
        raise ValueError(f"ports {first} to {last}")
    return Target(proto, first, last)


# --- translation ----------------------------------------------------------------------------------


_EVERYWHERE = (Peer("prefix", "0.0.0.0/0"), Peer("prefix", "::/0"))
_ALL = (0, 65535, "")
_MOST_ENTRIES, _MOST_CHARACTERS = 10_000, 1_000_000
"""Limits for one pod and direction: the number of entries, and the characters of their peers'
names.
"""
MOST_ELEMENTS = 10_000
"""The maximum number of nftables elements of one pod's policy."""
_ANYBODY = Other(spaces=Selector())

Ports = tuple[int, int, str]
"""The first port, the last port, and the protocol."""


class World(NamedTuple):
    """The pods, namespaces and policies from which niso's policies are computed.

    ``names`` maps pods of this node to their attachments. A pod has several while its sandbox is
    replaced.
    """

    pods: Mapping[tuple[str, str], Pod]  # by namespace and name
    namespaces: Mapping[str, Labels]
    policies: Mapping[tuple[str, str], NetworkPolicy]
    names: Mapping[tuple[str, str], tuple[str, ...]]


def policy_of(pod: Pod, world: World) -> Policy:
    """Return niso's policy for a pod.

    Its peers are prefixes, and pods of this node by the names of their attachments. Pods of other
    nodes, and pods in the host network, are never peers. Raises InvalidInput if the policy would be
    too large.
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
    if policy_elements.cost(policy, MOST_ELEMENTS) > MOST_ELEMENTS:
        raise InvalidInput(
            f"network policies need too many rules, such as {selecting[-1].name}",
            f"at most {MOST_ELEMENTS} pairs of a prefix or pod and a port that they tell apart",
        )
    return policy


Allowed = tuple[str, Peer, Ports]
"""The name of the network policy that allows packets, their peer, and their ports."""


def _list(allowed: Iterable[Allowed], direction: str) -> tuple[Entry, ...]:
    """Return policy entries without duplicates, each with a unique key.

    Pods come first, then prefixes, then entries for all peers. In this order, the fewest nftables
    elements are needed. Raises InvalidInput if there are so many entries that they would delay all
    pods of the node.
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
    """Yield the ports that a rule allows.

    A named port is looked up in ``receiver``. It matches nothing if the receiver is not a pod.
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
    """Yield the peers of a rule, each with its pod, or None if the peer is a prefix."""
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
        yield attach.prefixes(blocks), None


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
    """Yield the prefixes that cover a block without its excluded prefixes, in ascending order."""
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
    """Yield the parts of a prefix that are not excluded, as first address and length.

    The prefix is halved until a part is completely inside or outside ``excepted``, which contains
    pairs of first and last address.
    """
    last = first + (1 << (bits - length)) - 1
    inside = [(low, high) for low, high in excepted if low <= last and high >= first]
    if not inside:
        yield first, length
    elif not any(low <= first and high >= last for low, high in inside):
        for half in (first, first + (1 << (bits - length - 1))):
            yield from _left(half, length + 1, bits, inside)
