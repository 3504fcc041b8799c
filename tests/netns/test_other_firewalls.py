"""Test findings about other firewalls: the reported packets are dropped, and the remedy lets them pass."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from typing import NamedTuple

import firewall_texts as texts
import pytest
from conftest import Lab
from services import CLIENT, ECHO, HOST, address, answer, ask, echo, idle, on

ALL = ("published", "outward", "within the network")
OUT = ("outward", "within the network")

DROPS = (
    "import json, sys\nfrom niso.look.other_firewalls import foreign_drops\nfrom niso.kernel.real import Kernel\n"
    "names, bridged = sys.argv[2:], sys.argv[1] == '1'\n"
    "print(json.dumps([[*drop, drop.describe()] for drop in foreign_drops(Kernel(), names, bridged, (4,))]))"
)


class Found(NamedTuple):
    chain: str
    what: tuple[str, ...]
    remedy: list[str]


def drops(lab: Lab, *bridges: str, bridged: bool = True) -> list[Found]:
    """What niso finds in the lab, of niso-backend where no bridge is named."""
    out = lab.run(
        sys.executable, "-c", DROPS, str(int(bridged)), *(bridges or ("niso-backend",))
    ).stdout
    found = []
    for chain, what, remedy, names, words in json.loads(out):
        assert names == sorted(bridges or ("niso-backend",))
        assert (
            words
            == f"nftables chain {chain} drops connections of {', '.join(names)} ({', '.join(what)})"
        )
        found.append(Found(chain, tuple(what), remedy))
    return found


@pytest.fixture(scope="module")
def busy() -> Iterator[Lab]:
    """api, published on 8080, and db on one network, and somebody outside who answers; each test brings its firewall.

    bridge-nf-call-iptables is 1, as in every new namespace: frames within the network go through the forward chains too.
    """
    with Lab(deadline_seconds=900) as lab:
        start(lab)
        assert lab.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables").stdout == "1\n"
        yield lab


def start(lab: Lab) -> None:
    lab.niso(
        "activate",
        echo(lab, "api", network=on("backend", ports=["8080:80"])),
        echo(lab, "db", network=on("backend")),
    )
    lab.write("/tmp/echo.py", ECHO)
    lab.popen(
        "python3", "-ISu", "/tmp/echo.py", "outside", "7777", netns="client", stdout=-3, stderr=-3
    )
    answer(lab, CLIENT, 7777)
    for name in ("api", "db"):
        answer(lab, address(lab, name), 80)


@pytest.fixture
def host(busy: Lab) -> Iterator[Lab]:
    """`busy` without any foreign table, before and after."""
    yield busy
    for table in {
        (t["family"], t["name"]) for t in (item.get("table") for item in busy.nft_json()) if t
    }:
        if table not in (("inet", "niso"), ("bridge", "niso")):
            busy.run("nft", "delete", "table", *table)


def passing(lab: Lab) -> set[str]:
    """Return which connections get through."""
    tried = {
        "published": (HOST, 8080, "client", f"api {CLIENT}"),
        "outward": (CLIENT, 7777, "niso-api", f"outside {HOST}"),
        "within the network": (address(lab, "db"), 80, "niso-api", f"db {address(lab, 'api')}"),
    }
    return {
        what
        for what, (to, port, netns, expected) in tried.items()
        if ask(lab, to, port, netns) == expected
    }


def load(lab: Lab, text: str) -> None:
    lab.run(*(("iptables-restore",) if text.startswith("*") else ("nft", "-f", "-")), input=text)


def told(lab: Lab, lines: list[str]) -> None:
    """Do what the lines say, as a shell would take them apart."""
    for line in lines:
        lab.run(*shlex.split(line))


def insert(where: str) -> list[str]:
    return [
        f"nft 'insert rule {where} {key} \"niso-backend\" accept'" for key in ("iifname", "oifname")
    ]


def iptables(chain: str, *flags: str, tool: str = "iptables") -> list[str]:
    return [f"{tool} -I {chain} {flag} niso-backend -j ACCEPT" for flag in flags or ("-i", "-o")]


CASES = {
    "docker-26": (texts.DOCKER_26, "ip filter FORWARD", ALL, iptables("DOCKER-USER")),
    "docker-28": (texts.DOCKER_28, "ip filter FORWARD", ALL, iptables("DOCKER-USER")),
    "iptables": (texts.PLAIN_IPTABLES, "ip filter FORWARD", OUT, iptables("FORWARD", "-i")),
    "mangle": (
        texts.MANGLE,
        "ip mangle FORWARD",
        OUT,
        iptables("FORWARD", "-i", tool="iptables -t mangle"),
    ),
    "physdev": (texts.BRIDGED, "ip filter FORWARD", ("published", "outward"), iptables("FORWARD")),
    "nixos": (texts.NIXOS, "inet filter forward", OUT, insert("inet filter forward")[:1]),
    "plain": (texts.PLAIN, "inet filter forward", ALL, insert("inet filter forward")),
    "replies": (texts.REPLIES, "ip odd fw", ALL, insert("ip odd fw")),
}


TOOLS = {
    # what the tool makes of its command, where tool or kernel may be without it
    "ufw": (
        texts.UFW,
        "ip filter FORWARD",
        ALL,
        ["ufw route allow in on niso-backend", "ufw route allow out on niso-backend"],
        [f"iptables -A ufw-user-forward {flag} niso-backend -j ACCEPT" for flag in ("-i", "-o")],
    ),
    "firewalld": (
        texts.FIREWALLD,
        "inet firewalld filter_FORWARD",
        OUT,
        [
            "firewall-cmd --permanent --zone=trusted --add-interface=niso-backend",
            "firewall-cmd --zone=trusted --add-interface=niso-backend",
        ],
        [
            "nft 'insert rule inet firewalld filter_FORWARD_POLICIES iifname \"niso-backend\" accept'"
        ],
    ),
    "bridge": (
        texts.SWITCHES,
        "bridge filter forward",
        ("within the network",),
        ["nft 'insert rule bridge filter forward meta ibrname \"niso-backend\" accept'"],
        # the same, for a kernel without NFT_BRIDGE_META
        ['nft \'insert rule bridge filter forward iifname "ni*" oifname "ni*" accept\''],
    ),
}


@pytest.mark.parametrize("name", [*CASES, *TOOLS])
def test_foreign_chain_drops_what_is_said_and_no_more_and_the_remedy_helps(
    host: Lab, name: str
) -> None:
    text, chain, what, remedy, made = TOOLS[name] if name in TOOLS else (*CASES[name], [])
    assert passing(host) == set(ALL)
    load(host, text)
    assert drops(host) == [Found(chain, what, remedy)]
    assert passing(host) == set(ALL) - set(what)
    told(host, made or remedy)
    assert drops(host) == []
    assert passing(host) == set(ALL)


@pytest.mark.parametrize(
    "text",
    [texts.BLOCKLIST, texts.ALLOWED, texts.CATCH_ALL],
    ids=["blocklist", "allowed", "catch-all"],
)
def test_firewall_that_lets_niso_pass_is_not_named(host: Lab, text: str) -> None:
    load(host, text)
    assert drops(host) == []
    assert passing(host) == set(ALL)


def test_frames_that_are_only_switched_are_left_out_where_no_forward_chain_sees_them(
    lab: Lab,
) -> None:
    start(lab)
    load(lab, texts.PLAIN)
    lab.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    lab.run("ip", "link", "set", "niso-backend", "type", "bridge", "nf_call_iptables", "0")
    seen = ("published", "outward")
    assert drops(lab, bridged=False) == [
        Found("inet filter forward", seen, insert("inet filter forward"))
    ]
    assert passing(lab) == {"within the network"}


def test_every_dropping_chain_is_named_and_a_sleeping_table_is_not(host: Lab) -> None:
    for text in (texts.PLAIN, texts.DOCKER_26, texts.REPLIES, texts.BLOCKLIST):
        load(host, text)
    host.run("nft", "add", "table", "ip", "odd", "{ flags dormant; }")
    found = drops(host)
    assert [each.chain for each in found] == ["inet filter forward", "ip filter FORWARD"]
    told(host, found[0].remedy)
    assert drops(host) == found[1:]
    assert passing(host) == set()
    told(host, found[1].remedy)
    assert drops(host) == []
    assert passing(host) == set(ALL)


def test_several_bridges_are_let_pass_by_one_rule_each_way(host: Lab) -> None:
    several = ("niso-backend", "niso-frontend")
    for text, rule in (
        (texts.PLAIN, "nft 'insert rule inet filter forward {}ifname \"niso-*\" accept'"),
        (texts.DOCKER_28, "iptables -I DOCKER-USER -{} niso-+ -j ACCEPT"),
    ):
        load(host, text)
        ((_, what, lines),) = drops(host, *several)
        assert (what, lines) == (ALL, [rule.format("i"), rule.format("o")])
        told(host, lines)
        assert drops(host, *several) == []
        assert passing(host) == set(ALL)


def test_rules_of_iptables_legacy_are_said_to_be_unseen(lab: Lab) -> None:
    code = "from niso.look.other_firewalls import unseen; print(unseen((4, 6)))"
    assert lab.run(sys.executable, "-c", code).stdout == "[]\n"
    lab.run("iptables-legacy", "-P", "FORWARD", "DROP")
    said = "rules of iptables-legacy are not visible; check with iptables-legacy -S FORWARD"
    assert lab.run(sys.executable, "-c", code).stdout == f"{[said]}\n"
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    explained = lab.niso("net", "explain", "api", f"{CLIENT}:80").stdout.splitlines()
    assert explained[-1] == f"  others   ?     {said}"
