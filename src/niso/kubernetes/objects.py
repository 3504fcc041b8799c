"""Parse pods, namespaces and network policies from the JSON of Kubernetes' API.

The API server has validated them, but it may be newer than niso. A policy with anything unknown to
niso becomes one that allows nothing (`NetworkPolicy.error`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

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
    """A pod.

    ``uid`` is the kubelet's id of the pod. For a static pod it differs from the object's uid.
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
    """Conditions that labels must all meet; without conditions it selects everything."""

    expressions: tuple[Expression, ...] = ()

    def selects(self, labels: Labels) -> bool:
        """Return whether the labels meet all conditions.

        A missing label meets NotIn and DoesNotExist (k8s.io/apimachinery, pkg/labels).
        """
        return all(_meets(expression, labels) for expression in self.expressions)


class Block(NamedTuple):
    """A prefix and the prefixes excepted from it, in canonical form."""

    cidr: str
    excepted: tuple[str, ...] = ()


class Other(NamedTuple):
    """A peer of a rule: a block, or pods selected by their labels and those of their namespaces.

    Without ``spaces``, pods of the policy's own namespace; without ``pods``, all of its pods.
    """

    block: Block | None = None
    pods: Selector | None = None
    spaces: Selector | None = None


class Target(NamedTuple):
    """Ports of a rule: ``first`` to ``last``, or the named port ``name``."""

    proto: str
    first: int = 0
    last: int = _LAST
    name: str = ""


class Rule(NamedTuple):
    """What a policy allows in one direction.

    ``others`` None means every peer, ``targets`` None every port.
    """

    others: tuple[Other, ...] | None = None
    targets: tuple[Target, ...] | None = None


class NetworkPolicy(NamedTuple):
    """A network policy.

    ``ingress`` or ``egress`` is None if the policy does not restrict that direction.
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
    """Parse a namespace to (name, labels). Raises ValueError if the object is not a namespace."""
    try:
        return data["metadata"]["name"], _labels(data["metadata"])
    except _MALFORMED as error:
        raise ValueError(f"not a namespace: {error!r}") from error


def network_policy(data: Mapping[str, Any]) -> NetworkPolicy:
    """Parse a network policy.

    One that niso does not understand selects all pods of its namespace and allows nothing. Raises
    ValueError if the object has no name.
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
