"""Test policy changes of running services: denied flows end at once, all others continue."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab, assert_whole
from generations import Generations
from policy_flows import Asked
from policy_shop import CLIENT, EVERY, HOST, PROTOCOLS, TRIED_SECONDS, Shop
from samples import LONG
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from services import address, counts, filter_bridged, idle, on, send
from wire import Addresses, Wire


@pytest.fixture
def shop(lab: Lab) -> Iterator[Shop]:
    with Wire(lab) as wire:
        yield Shop(lab, wire)


# --- what is cut ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "first", "servers_first"),  # each pair of two values
    [(0, "first", False), (1, "first", True), (0, "another", True), (1, "another", False)],
)
def test_stricter_ingress_cuts_what_it_denies_and_nothing_else(
    shop: Shop, value: int, first: str, servers_first: bool
) -> None:
    """``first``: it is the first policy of the network, on which no port is published: frames were not tracked before."""
    filter_bridged(shop.lab, value)
    shop.activate("db", "api", "web", "x", "y")
    if first == "another":
        shop.policy("y", {"allow_from": ["x"]})
        shop.write("db", ports=["8080:80", "8080:80/udp"])
        shop.policy("db", None)
    alive = shop.open(("api", "db"), ("x", "y"), (None, "db"), ("db", "x"))
    cut = shop.open(("web", "db"))
    if first == "another":
        cut += shop.flows.open(*shop.published("client", "db"))
    assert shop.flows.judge([*alive, *cut], []) == []
    # these have said nothing since they were opened
    alive += shop.open(("api", "db"), ("x", "y"), (None, "db"), protocols=["tcp"])
    cut += shop.open(("web", "db"), protocols=["tcp"])
    shop.policy("db", {"allow_from": ["api"]})
    wrong = shop.flows.judge(alive, cut, servers_first)
    assert not wrong, "\n".join(wrong)
    assert (shop.reach("web", "db"), shop.reach("api", "db")) == (set(), EVERY)

    shop.policy("db", None)
    assert shop.reach("web", "db") == EVERY
    assert shop.flows.judge(alive, []) == []


@pytest.mark.parametrize(("value", "servers_first"), [(0, False), (1, True)])
def test_stricter_egress_cuts_what_it_denies_and_nothing_else(
    shop: Shop, value: int, servers_first: bool
) -> None:
    filter_bridged(shop.lab, value)
    shop.activate("db", "api", "web")
    alive = shop.open(("web", "api"), ("api", "web"), ("db", "web"), (None, "web"))
    outside = [
        Asked("niso-web", "client", (address, 700), proto)
        for address in CLIENT.values()
        for proto in PROTOCOLS
    ]
    cut = [*shop.open(("web", "db")), *shop.flows.open(*outside)]
    assert shop.flows.judge([*alive, *cut], []) == []
    shop.policy("web", {"egress": {"allow": ["api"]}})
    wrong = shop.flows.judge(alive, cut, servers_first)
    assert not wrong, "\n".join(wrong)
    shop.policy("web", {"egress": {"deny": ["api"]}})
    assert (shop.reach("web", "db"), shop.reach("web", "api"), shop.reach("api", "web")) == (
        EVERY,
        set(),
        EVERY,
    )


@pytest.mark.parametrize("servers_first", [False, True])
def test_stricter_egress_cuts_what_is_open_to_the_host(shop: Shop, servers_first: bool) -> None:
    shop.activate("web")
    flows = shop.flows.open(
        *(
            Asked("niso-web", None, (at, 700 + n), p)
            for n, at in enumerate(HOST.values())
            for p in PROTOCOLS
        )
    )
    other_way = shop.open((None, "web"))
    shop.policy("web", {"egress": {"allow": []}})
    wrong = shop.flows.judge(other_way, flows, servers_first)
    assert not wrong, "\n".join(wrong)


def test_first_policy_cuts_a_connection_whose_server_listens_no_more(shop: Shop) -> None:
    """As one that is about to end. Frames were not tracked before, so who began it is to be found out."""
    shop.activate("db", "api", "web")
    cut, alive = (
        shop.open(("web", "db"), protocols=["tcp"]),
        shop.open(("api", "db"), protocols=["tcp"]),
    )
    shop.flows.close_listeners()
    shop.policy("db", {"allow_from": ["api"]})
    assert shop.flows.judge(alive, cut) == []


def test_change_of_one_entry_cuts_only_that_port(shop: Shop) -> None:
    shop.activate("db", "api")
    shop.policy("db", {"allow_from": ["api:100-199", "api:9000"]})
    at = shop.address("db")
    kept, gone = shop.flows.open(
        *(Asked("niso-api", "niso-db", (at, port), "tcp") for port in (150, 9000))
    )
    shop.policy("db", {"allow_from": ["api:100-199"]})
    assert shop.flows.judge([kept], [gone]) == []
    shop.policy("db", {"allow_from": ["0.0.0.0/0"], "deny_from": ["api:150/udp"]})
    assert shop.flows.judge([kept], []) == []
    shop.policy("db", {"allow_from": ["0.0.0.0/0"], "deny_from": ["api:150/tcp"]})
    assert shop.flows.judge([], [kept], servers_first=True) == []


def test_gone_service_is_off_its_bridge_whoever_holds_its_namespace(lab: Lab) -> None:
    """A socket that was handed on, or a command of the host's inside it, keeps a namespace after its name is gone."""
    with Wire(lab) as wire:
        lab.niso("activate", idle(lab, "a"), idle(lab, "b"))
        mac, address = Addresses(lab, "niso-b").mac, Addresses(lab, "niso-b").ip4
        held, watcher = wire.link("niso-a", "eth0"), wire.link("niso-b", "eth0")
        lab.niso("deactivate", "a")
        with contextlib.suppress(OSError):  # its link may be gone, which is as good
            held.send(
                Ether(src="02:11:22:33:44:55", dst=mac)
                / IP(src="10.99.0.99", dst=address)
                / UDP(dport=80)
                / b"spoof"
            )
        lab.run("ping", "-c", "1", "-W", "2", address)
        assert watcher.look() and not watcher.saw(b"spoof")
        assert_whole(lab)


# --- who a name means -------------------------------------------------------------------------------------------------


def test_name_that_comes_goes_and_moves(shop: Shop) -> None:
    shop.activate("db", "api")
    shop.policy("db", {"allow_from": ["later", "shop"], "egress": {"allow": ["later"]}})
    assert shop.reach("api", "db") == set()
    shop.activate("later")
    assert_whole(shop.lab)
    assert (shop.reach("later", "db"), shop.reach("db", "later"), shop.reach("db", "api")) == (
        EVERY,
        EVERY,
        set(),
    )
    was = shop.address("later")

    shop.stop("deactivate", "later")
    shop.activate("later")
    assert shop.reach("later", "db") == EVERY

    # its old address is somebody else's then
    shop.activate("later", ip="10.99.1.77")
    assert_whole(shop.lab)
    assert shop.address("later") == "10.99.1.77"
    shop.activate("other", ip=was)
    assert shop.address("other") == was
    assert (shop.reach("later", "db"), shop.reach("other", "db", (4,))) == (EVERY, set())

    shop.stop("remove", "later")
    shop.activate("thief", ip="10.99.1.77")
    assert (shop.reach("thief", "db"), shop.reach("db", "thief")) == (set(), set())


def test_hostname_that_changes_hands(shop: Shop) -> None:
    shop.activate("db", "api", "web")
    shop.policy("db", {"allow_from": ["shop.niso.local"]})
    shop.activate("api", hostname="shop")
    assert_whole(shop.lab)
    assert shop.reach("api", "db") == EVERY
    open_ones = shop.open(("api", "db"))
    assert shop.flows.judge(open_ones, []) == []
    shop.activate("api", hostname="store")
    assert_whole(shop.lab)
    assert shop.flows.judge([], open_ones, servers_first=True) == []
    assert shop.reach("api", "db") == set()
    shop.activate("web", hostname="shop")
    assert (shop.reach("web", "db"), shop.reach("api", "db")) == (EVERY, set())


def test_network_that_comes_later(shop: Shop) -> None:
    shop.activate("db", ports=["8080:80", "8080:80/udp"])
    shop.policy("db", {"allow_from": ["network:soon"]})
    for subnet in ("10.99.7.0/24", "10.99.8.0/24"):
        shop.lab.niso("net", "create", "soon", "--subnet", subnet)
        assert_whole(shop.lab)
        shop.activate("far", network="soon")
        assert all(shop.flows.try_open(shop.published("far", "db", [4])).values())
        shop.flows.leave("niso-db")
        shop.stop("remove", "far")
        shop.lab.niso("net", "remove", "soon")
        assert_whole(shop.lab)
    assert not any(shop.flows.try_open(shop.published("client", "db"), TRIED_SECONDS).values())


def test_service_that_takes_another_address_keeps_its_policy(shop: Shop) -> None:
    shop.activate("db", "api", "web")
    shop.policy("db", {"allow_from": ["api"]})
    shop.lab.niso("activate", shop.write("db", {"allow_from": ["api"]}, ip="10.99.1.50"))
    assert_whole(shop.lab)
    assert shop.address("db") == "10.99.1.50"
    assert (shop.reach("api", "db"), shop.reach("web", "db")) == (EVERY, set())


# --- what it says -----------------------------------------------------------------------------------------------------


def test_egress_counts_for_the_hosts_own_addresses(shop: Shop) -> None:
    shop.activate("api")
    addresses = (HOST[4], HOST[6], "10.99.1.1", "fd00:99:1::1")

    def reached() -> list[str]:
        many = [Asked("niso-api", None, (address, 53), "tcp") for address in addresses]
        found = [
            asked.at[0] for asked, flow in shop.flows.try_open(many, TRIED_SECONDS).items() if flow
        ]
        shop.flows.leave(None)
        return found

    assert reached() == list(addresses)
    shop.policy(
        "api", {"egress": {"allow": ["network:backend", "10.99.1.1:53", f"[{HOST[6]}]:53/udp"]}}
    )
    assert reached() == ["10.99.1.1"]
    shop.policy("api", {"egress": {"allow": ["0.0.0.0/0", "::/0"], "deny": [HOST[4], HOST[6]]}})
    assert reached() == ["10.99.1.1", "fd00:99:1::1"]


# --- how it is written ------------------------------------------------------------------------------------------------


def test_update_is_one_transaction(shop: Shop) -> None:
    shop.activate("db", "api", "web")
    shop.policy("db", {"allow_from": ["api"]})
    generations = Generations(shop.lab)
    changes: list[dict[str, Any] | None] = [
        {
            "allow_from": ["web"],
            "deny_from": ["api:80"],
            "egress": {"allow": ["api", "network:backend"]},
        },
        {"allow_from": ["later"]},
        None,
        {"allow_from": []},
    ]
    for rules in changes:
        shop.policy("db", rules)
        found = generations.since()
        assert len(found) == 1, (rules, found)


BROKEN = {
    "peer": ("delete element inet niso in4_port {{ {db} . {api} . tcp . 7 }}", "in4_port"),
    "peer too much": ("add element inet niso in4_peer {{ {db} . {web} : return }}", "in4_peer"),
    "another verdict": (
        "delete element inet niso in4_rest {{ {db} }}; add element inet niso in4_rest {{ {db} : return }}",
        "in4_rest",
    ),
    "verdict": ("delete element inet niso in6_rest {{ {db6} }}", "in6_rest"),
    "ports": ("flush map inet niso in4_ports", "in4_ports"),
    "class": ("flush map inet niso in6_class", "in6_class"),
    "what a class may": ("flush map inet niso in4_class_all", "in4_class_all"),
    "ports of a class": ("flush map inet niso in4_class_ports", "in4_class_ports"),
    "gate": ("delete element inet niso ingress4 {{ {db} }}", "ingress4"),
    "gate of IPv6": ("delete element inet niso ingress6 {{ {db6} }}", "ingress6"),
    "gate of egress": ("delete element inet niso egress4 {{ {db} }}", "egress4"),
    "guard of what is cut": ("delete element inet niso no_start_in4 {{ {db} }}", "no_start_in4"),
    "chain without rules": ("flush chain inet niso check_in4", "check_in4"),
    "rule too much": ("insert rule inet niso check_out6 accept", "check_out6"),
}


def test_what_is_deleted_by_hand_is_named_and_mended(shop: Shop) -> None:
    shop.activate("db", "api", "web")
    allowed = ["api", "network:other", "10.50.0.0/16:1-2", "fd50::/16"]
    shop.policy(
        "db",
        {"allow_from": allowed, "deny_from": ["api:7", "api:8-9"], "egress": {"deny": ["web"]}},
    )
    own = {
        "db": shop.address("db"),
        "db6": shop.address("db", 6),
        "api": shop.address("api"),
        "web": shop.address("web"),
    }
    wanted = _rules(shop.lab)
    # no two of them touch the same
    for damages in [[each] for each in BROKEN] if LONG else [[*BROKEN]]:
        for what in damages:
            shop.lab.run("nft", BROKEN[what][0].format(**own))
        found = shop.lab.niso("net", "check", "-v", check=False)
        assert found.returncode == 1, damages
        unnamed = [w for w in damages if not re.search(rf"\b{BROKEN[w][1]}\b", found.stdout)]
        assert not unnamed, found.stdout
        shop.lab.niso("net", "repair")
        assert _rules(shop.lab) == wanted, damages
    assert_whole(shop.lab)
    assert (shop.reach("api", "db"), shop.reach("web", "db")) == (EVERY, set())


def _rules(lab: Lab) -> str:
    """The tables as text, without counts; chains in the order of their names, since one that is made anew comes last."""
    text = re.sub(
        r"packets \d+ bytes \d+", "", lab.run("nft", "list", "table", "inet", "niso").stdout
    )
    return "\n".join(sorted(text.split("\n\n")))


def test_repair_of_a_policy_cuts_what_came_in_meanwhile(shop: Shop) -> None:
    shop.activate("db", "api", "web")
    shop.policy("db", {"allow_from": ["api"]})
    own, own6 = shop.address("db"), shop.address("db", 6)
    shop.lab.run(
        "nft",
        f"delete element inet niso ingress4 {{ {own} }}; delete element inet niso ingress6 {{ {own6} }}",
    )
    intruders, friends = shop.open(("web", "db")), shop.open(("api", "db"))
    shop.lab.niso("net", "repair")
    assert shop.flows.judge(friends, intruders, servers_first=True) == []


SENDER = """\
import socket, time
sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
while True:
    for one, host in zip(sockets, ("192.0.2.1", "2001:db8::1")):
        one.sendto(b"x", (host, 8080))
    time.sleep(0.002)
"""


def test_address_that_became_free_inherits_no_flow(lab: Lab) -> None:
    """A UDP flow from outside, not closed by anybody, would live on in conntrack for its 30 s."""
    lab.niso("activate", idle(lab, "old"))
    send(lab, "niso-old", CLIENT[4], 9999)
    assert "src=10.99.0.2" in lab.run("conntrack", "-L").stdout
    lab.niso("remove", "old")
    lab.niso("activate", idle(lab, "new"))
    assert address(lab, "new") == "10.99.0.2"
    assert "10.99.0.2" not in lab.run("conntrack", "-L").stdout


def test_nothing_held_for_an_address_reaches_its_next_owner(lab: Lab) -> None:
    """The host holds packets for up to 3 s while nobody answers for their address (arp(7)).

    Those that come while a service goes were for its published port.
    """
    addresses = ["10.99.1.50", "fd00:99:1::50"]
    lab.niso("net", "create", "one", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    network = on("one", ip=addresses)
    former = idle(lab, "former", network={**network, "ports": ["8080:80/udp"]})
    later = idle(lab, "later", network={**network, "policy": {"allow_from": []}})
    with Wire(lab):
        lab.niso("activate", former, idle(lab, "other", network=on("one")))
        sender = lab.popen("ip", "netns", "exec", "client", "python3", "-ISc", SENDER)
        lab.wait_for(lambda: all(_datagrams(lab, "former")))
        lab.niso("remove", "former")
        asked = lab.run("ip", "neigh", "show").stdout
        assert all(address in asked for address in addresses)
        lab.niso("activate", later)
        assert _datagrams(lab, "later") == [0, 0]
        assert sender.poll() is None


def _datagrams(lab: Lab, service: str) -> list[int]:
    """Return how many datagrams came in at closed ports of a service, for each family."""
    found = counts(lab, service)
    return [found["UdpNoPorts"], found["Udp6NoPorts"]]
