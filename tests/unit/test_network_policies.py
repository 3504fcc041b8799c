"""Compare the translation of Kubernetes' network policies with a direct reading of their definition."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import known, network, world
from refusals import refuses
from samples import samples

from niso.base.errors import InvalidInput
from niso.engines import network_policies
from niso.engines.network_policies import Objects, _prefixes, policy_of
from niso.plan import verdict
from niso.plan.records import Policy

Json = dict[str, Any]

# --- a direct reading: k8s.io/api/networking/v1, types.go -----------------------------------------------------------------


def selects(selector: Json, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        has, values = each["key"] in labels, each.get("values", [])
        listed = has and labels[each["key"]] in values
        meets = {"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}
        if not meets[each["operator"]]:
            return False
    return True


def types(spec: Json) -> list[str]:
    return spec.get("policyTypes") or ["Ingress"] + ["Egress"] * bool(spec.get("egress"))


def is_peer(peer: Json, policy: Json, spaces: Json, other: Json | None, address: str) -> bool:
    if "ipBlock" in peer:
        number, block = ipaddress.ip_address(address), peer["ipBlock"]
        inside = number in ipaddress.ip_network(block["cidr"])
        return inside and not any(number in ipaddress.ip_network(x) for x in block["except"])
    if other is None:
        return False
    space = other["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], spaces[space]):
            return False
    elif space != policy["metadata"]["namespace"]:
        return False
    return selects(peer.get("podSelector", {}), other["metadata"]["labels"])


def is_port(given: Json, receiver: Json | None, port: int, proto: str) -> bool:
    if given.get("protocol", "TCP").lower() != proto:
        return False
    wanted = given.get("port")
    if isinstance(wanted, str):
        ports = receiver["spec"]["containers"][0]["ports"] if receiver else []
        return any(
            x["name"] == wanted and x["containerPort"] == port and x["protocol"].lower() == proto
            for x in ports
        )
    return wanted is None or wanted <= port <= given.get("endPort", wanted)


def permits(
    way: str,
    pod: Json,
    other: Json | None,
    address: str,
    to: tuple[Json | None, int, str],
    policies: list[Json],
    spaces: Json,
) -> bool:
    """Whether the policies of ``pod`` allow it a connection from or to ``other``, which has this address."""
    mine = [
        each
        for each in policies
        if each["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and way in types(each["spec"])
        and selects(each["spec"]["podSelector"], pod["metadata"]["labels"])
    ]
    peers = {"Ingress": "from", "Egress": "to"}[way]

    def meets(rule: Json, policy: Json, peer: Json) -> bool:
        # the name of a port means one of a pod, and a block is addresses
        receiver = None if way == "Egress" and "ipBlock" in peer else to[0]
        return (not peer or is_peer(peer, policy, spaces, other, address)) and (
            not rule.get("ports") or any(is_port(x, receiver, *to[1:]) for x in rule["ports"])
        )

    return not mine or any(
        meets(rule, policy, peer)
        for policy in mine
        for rule in policy["spec"].get(way.lower(), [])
        for peer in rule.get(peers) or [{}]
    )


# --- drawn clusters -------------------------------------------------------------------------------------------------------

LABELS = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from("xy"),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from("12"), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"key": st.sampled_from("xy"), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    ),
)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": LABELS,
        "matchExpressions": st.lists(EXPRESSIONS, max_size=2),
    },
)
BLOCKS = st.sampled_from(
    [
        ("10.99.1.0/24", ["10.99.1.2/32"]),
        ("0.0.0.0/0", ["10.99.1.0/30", "10.99.1.3/32"]),
        ("192.0.2.0/24", []),
        ("192.0.2.2/32", ["192.0.2.0/24"]),
        ("::/0", ["fd00::/8"]),
    ]
)
PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": SELECTORS}, optional={"namespaceSelector": SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": SELECTORS}),
    BLOCKS.map(lambda block: {"ipBlock": {"cidr": block[0], "except": block[1]}}),
)
PROTOCOLS = st.sampled_from(["TCP", "UDP"])
PORTS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"protocol": PROTOCOLS}),
    st.fixed_dictionaries(
        {"port": st.sampled_from([80, 81, "web", "dns"])}, optional={"protocol": PROTOCOLS}
    ),
    st.just({"port": 80, "endPort": 81}),
)


def rules(peers: str) -> st.SearchStrategy[list[Json]]:
    rule = st.fixed_dictionaries(
        {}, optional={peers: st.lists(PEERS, max_size=2), "ports": st.lists(PORTS, max_size=2)}
    )
    return st.lists(rule, max_size=2)


SPECS = st.fixed_dictionaries(
    {"podSelector": SELECTORS},
    optional={
        "ingress": rules("from"),
        "egress": rules("to"),
        "policyTypes": st.lists(
            st.sampled_from(["Ingress", "Egress"]), min_size=1, max_size=2, unique=True
        ),
    },
)


def pod(space: str, name: str, labels: dict[str, str], number: int = 80) -> Json:
    ports = [
        {"name": "web", "containerPort": number, "protocol": "TCP"},
        {"name": "dns", "containerPort": 80, "protocol": "UDP"},
    ]
    return {
        "metadata": {"namespace": space, "name": name, "uid": f"uid-{name}", "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
    }


def policy(space: str, name: str, spec: Json) -> Json:
    return {"metadata": {"namespace": space, "name": name}, "spec": spec}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Json], list[Json], Json]:
    spaces = {"a": draw(LABELS), "b": draw(LABELS)}
    pods = [
        pod(space, f"p{number}", draw(LABELS), 80 + number % 2)
        for number, space in enumerate("aab")
    ]
    policies = [
        policy(draw(st.sampled_from("ab")), f"n{number}", draw(SPECS))
        for number in range(draw(st.integers(1, 3)))
    ]
    return pods, policies, spaces


def translated(pods: list[Json], policies: list[Json], spaces: Json) -> dict[str, Policy]:
    """The policy of each pod by its name."""
    read = [network_policies.pod(each) for each in pods]
    seen = Objects(
        {(each.namespace, each.name): each for each in read},
        spaces,
        {(x.namespace, x.name): x for x in map(network_policies.network_policy, policies)},
        {(each.namespace, each.name): (each.name,) for each in read},
    )
    return {each.name: policy_of(each, seen) for each in read}


@settings(max_examples=samples(40, 3000), deadline=None)
@given(clusters())
def test_packets_pass_as_the_definition_says(cluster: tuple[list[Json], list[Json], Json]) -> None:
    pods, policies, spaces = cluster
    rules = translated(pods, policies, spaces)
    ends: dict[str, Json | None] = {f"10.99.1.{n + 2}": each for n, each in enumerate(pods)} | {
        "192.0.2.2": None
    }
    services = [
        known(each["metadata"]["name"], {"pods": [address]}, rules[each["metadata"]["name"]])
        for address, each in ends.items()
        if each
    ]
    there = world(services, [network("pods", "10.99.1.0/24")], ["192.0.2.1"])
    for source, sender in ends.items():
        for target, receiver in ends.items():
            if source == target or not (sender or receiver):
                continue
            for port, proto in ((80, "tcp"), (81, "tcp"), (80, "udp"), (82, "udp")):
                to = (receiver, port, proto)
                wanted = (
                    sender is None
                    or permits("Egress", sender, receiver, target, to, policies, spaces),
                    receiver is None
                    or permits("Ingress", receiver, sender, source, to, policies, spaces),
                )
                passes = verdict.evaluate(there, source, target, port, proto)
                assert (passes[0].passes, passes[1].passes) == wanted, (source, target, port, proto)


def texts(entries: tuple[Any, ...] | None) -> list[str] | None:
    return None if entries is None else [entry.text for entry in entries]


def test_pods_without_a_policy_are_open_and_a_direction_is_closed_by_its_type() -> None:
    pods = [pod("a", "web", {"app": "web"}), pod("a", "db", {"app": "db"})]
    closed = policy("a", "deny", {"podSelector": {"matchLabels": {"app": "db"}}})
    assert translated(pods, [closed], {"a": {}}) == {"web": Policy(), "db": Policy(allow_from=())}
    both = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    rules = translated(pods, [policy("a", "all", both)], {"a": {}})
    assert rules["web"] == Policy(allow_from=(), egress_allow=())
    # a rule for everybody is one for both families
    spec = {"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}], "egress": [{}]}
    rules = translated(pods, [policy("a", "some", spec)], {"a": {}})
    assert texts(rules["db"].allow_from) == ["some: 0.0.0.0/0:80/tcp", "some: ::/0:80/tcp"]
    assert texts(rules["db"].egress_allow) == ["some: 0.0.0.0/0", "some: ::/0"]


def test_pod_in_the_network_of_its_node_or_elsewhere_is_no_peer() -> None:
    spec = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}
    pods = [network_policies.pod(pod("a", name, {})) for name in ("here", "elsewhere")]
    seen = Objects(
        {("a", each.name): each for each in pods},
        {"a": {}},
        {("a", "n"): network_policies.network_policy(policy("a", "n", spec))},
        {("a", "here"): ("here-a", "here-a-1f2e3")},
    )
    assert texts(policy_of(pods[0], seen).allow_from) == ["n: here-a", "n: here-a-1f2e3"]


@pytest.mark.parametrize(
    "spec",
    [
        {"podSelector": {"matchFuture": {}}},
        {"podSelector": {"matchExpressions": [{"key": "x", "operator": "Gt", "values": ["1"]}]}},
        {"podSelector": {}, "ingress": [{"from": [{"serviceSelector": {}}]}]},
        {"podSelector": {}, "ingress": [{"unless": []}]},
        {"podSelector": {}, "ingress": [{"ports": [{"protocol": "QUIC"}]}]},
        {"podSelector": {}, "ingress": [{"ports": [{"endPort": 80}]}]},
        {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]},
        {"podSelector": {}, "ingress": [{"from": [{}]}]},
        {"podSelector": {}, "policyTypes": ["Both"]},
        "x",
    ],
)
def test_policy_that_is_not_understood_closes_its_namespace(spec: Any) -> None:
    pods = [pod("a", "web", {}), pod("b", "other", {})]
    wrong = policy("a", "new", spec)
    opens = policy("a", "opens", {"podSelector": {}, "ingress": [{}], "egress": [{}]})
    assert network_policies.network_policy(wrong).error
    rules = translated(pods, [wrong], {"a": {}, "b": {}})
    assert rules["web"].allow_from == () and rules["other"] == Policy()
    # what others allow stays allowed
    assert texts(translated(pods, [wrong, opens], {"a": {}})["web"].allow_from) is not None


def test_static_pod_is_known_by_the_uid_of_its_mirror() -> None:
    static = pod("kube-system", "proxy", {})
    static["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "hash"}
    assert network_policies.pod(static).uid == "hash"
    static["spec"]["hostNetwork"] = True
    assert network_policies.pod(static).in_host_network
    with pytest.raises(ValueError, match="not a pod"):
        network_policies.pod({"metadata": {}})


def test_block_less_many_others_is_what_is_left() -> None:
    import random

    chance = random.Random(7)
    whole = ipaddress.ip_network("2001:db8::/32")
    for many in (0, 1, 3, 200):
        gone = [whole[chance.getrandbits(96)] for _ in range(many)]
        excluded = tuple(f"{one}/128" for one in gone)
        left = [ipaddress.ip_network(text) for text in _prefixes(str(whole), excluded)]
        assert sum(one.num_addresses for one in left) == whole.num_addresses - many
        assert not any(address in one for one in left for address in gone)
    assert list(_prefixes("10.0.0.0/30", ("10.0.0.0/8", "::/0"))) == []
    assert list(_prefixes("10.0.0.0/30", ("10.0.0.2/32", "::/0"))) == [
        "10.0.0.0/31",
        "10.0.0.3/32",
    ]


@pytest.mark.parametrize(
    ("blocks", "ports", "right"),
    [
        (25_000, 1, "at most 10000 pairs of a prefix or pod and a port that they tell apart"),
        (2_000, 2_000, "at most 10000 entries, 1000000 characters of prefixes"),
    ],
)
def test_policy_of_too_many_entries_is_refused_before_they_are_made(
    blocks: int, ports: int, right: str
) -> None:
    """Whoever may write policies of one namespace would keep all pods of the node waiting."""
    peers = [{"ipBlock": {"cidr": f"10.{n >> 8}.{n & 255}.0/25"}} for n in range(blocks)]
    rule = {"from": peers, "ports": [{"port": 1 + n} for n in range(ports)]}
    data = policy("a", "big", {"podSelector": {}, "ingress": [rule]})
    with refuses(InvalidInput, "big", hint=right):
        translated([pod("a", "web", {})], [data], {"a": {}})
