"""Cases of the Kubernetes network policy conformance tests that apply here, under their titles.

s1 is the server; s2 and s3 are on its network, s4 on another. s1 publishes its ports 80 and 81 as 8080 and 8081, by which
s4 and the client reach it. What is said is who reaches s1, and on which port and protocol if not on all; ``s1>s2`` is that s1
reaches s2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PORTS = (80, 81)
PROTOCOLS = ("tcp", "udp", "sctp")
NETWORKS = {"s1": "backend", "s2": "backend", "s3": "backend", "s4": "frontend"}
PEERS = ("s2", "s3", "s4", "client")
BACK = ("s1>s2", "s1>s3")
EVERYBODY = (*PEERS, *BACK)


class Case(NamedTuple):
    title: str
    policies: dict[str, dict[str, Any]]  # service: its [network.policy]; others have none
    reaches: tuple[str, ...]

    def passes(self, who: str, port: int, proto: str) -> bool:
        return any(
            each in self.reaches
            for each in (who, f"{who}:{port}", f"{who}/{proto}", f"{who}:{port}/{proto}")
        )


def _in(*entries: str, deny: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"allow_from": list(entries), **({"deny_from": list(deny)} if deny else {})}


def _out(*entries: str, deny: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"egress": {"allow": list(entries), **({"deny": list(deny)} if deny else {})}}


ALL = ("0.0.0.0/0", "::/0")
BACKEND = ("10.99.1.0/24", "fd00:99:1::/64")
S2, S3 = ("10.99.1.3", "fd00:99:1::3"), ("10.99.1.4", "fd00:99:1::4")

CASES = (
    Case("no policy", {}, EVERYBODY),
    Case("a default-deny-ingress policy", {"s1": _in()}, BACK),
    Case("a default-deny-all policy", {"s1": _in() | _out()}, ()),
    Case("an ingress policy based on a peer", {"s1": _in("s2")}, ("s2", *BACK)),
    Case("an ingress policy based on a peer and a port", {"s1": _in("s2:81")}, ("s2:81", *BACK)),
    Case("an ingress policy based on two peers", {"s1": _in("s2:80", "s4")}, ("s2:80", "s4", *BACK)),
    Case("a policy with one peer and two ports", {"s1": _in("s3:80", "s3:81")}, ("s3", *BACK)),
    Case("stacked rules, of which one allows all", {"s1": _in("s2:80", *ALL)}, EVERYBODY),
    Case("stacked rules with overlapping ports", {"s1": _in("s2:80", "s2:80-81/tcp")}, ("s2:80", "s2:81/tcp", *BACK)),
    Case("an allow-all policy", {"s1": _in(*ALL)}, EVERYBODY),
    Case("an ingress policy based on a namespace", {"s1": _in("network:backend")}, ("s2", "s3", *BACK)),
    Case("the same of another one, and a port", {"s1": _in("network:frontend:80")}, ("s4:80", *BACK)),
    Case("an updated policy: allow to deny", {"s1": _in("s3")}, ("s3", *BACK)),
    Case("an updated policy: deny to allow", {"s1": _in("s3", "s2")}, ("s3", "s2", *BACK)),
    Case("an ingress policy based on a CIDR", {"s1": _in("192.0.2.0/24", "2001:db8::/64")}, ("client", *BACK)),
    Case("except clauses of ingress", {"s1": _in(*BACKEND, deny=S3)}, ("s2", *BACK)),
    Case("an egress policy based on a peer", {"s2": _out("s1:80")}, ("s2:80", "s3", "s4", "client", *BACK)),
    Case("egress denied although the server allows", {"s1": _in("s2"), "s2": _out()}, BACK),
    Case("egress allowed, ingress denied", {"s1": _in("s3"), "s2": _out("s1")}, ("s3", *BACK)),
    Case("ingress and egress together", {"s1": _in("s3:80") | _out("s2:81")}, ("s3:80", "s1>s2:81")),
    Case("an egress policy based on a CIDR", {"s1": _out(*S2)}, (*PEERS, "s1>s2")),
    Case("except clauses of egress", {"s1": _out(*BACKEND, deny=S3)}, (*PEERS, "s1>s2")),
    Case("allow and deny of overlapping CIDRs", {"s1": _in(*ALL, deny=BACKEND)}, ("s4", "client", *BACK)),
    Case("SCTP is not TCP", {"s1": _in("s2:80/sctp")}, ("s2:80/sctp", *BACK)),
    Case("UDP is not TCP", {"s1": _in("s2/udp", "s3:81/udp")}, ("s2/udp", "s3:81/udp", *BACK)),
    Case("any port of one protocol", {"s1": _in(*(f"[{each}]/tcp" if ":" in each else f"{each}/tcp" for each in ALL))},
         ("s2/tcp", "s3/tcp", "s4/tcp", "client/tcp", *BACK)),
    Case("an egress policy of a server does not count for what it answers", {"s1": _out()}, PEERS),
    Case("no more rules once a policy is deleted", {}, EVERYBODY),
)  # fmt: skip
