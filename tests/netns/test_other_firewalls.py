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


@pytest.mark.parametrize("name", CASES)
def test_foreign_chain_drops_what_is_said_and_no_more_and_the_remedy_helps(
    host: Lab, name: str
) -> None:
    text, chain, what, remedy = CASES[name]
    assert passing(host) == set(ALL)
    load(host, text)
    assert drops(host) == [Found(chain, what, remedy)]
    assert passing(host) == set(ALL) - set(what)
    told(host, remedy)
    assert drops(host) == []
    assert passing(host) == set(ALL)


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


@pytest.mark.parametrize("name", TOOLS)
def test_firewall_with_a_tool_of_its_own_drops_what_is_said_and_its_rule_helps(
    host: Lab, name: str
) -> None:
    text, chain, what, remedy, made = TOOLS[name]
    load(host, text)
    assert drops(host) == [Found(chain, what, remedy)]
    assert passing(host) == set(ALL) - set(what)
    told(host, made)
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


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (
            texts.PLAIN,
            [
                f"nft 'insert rule inet filter forward {key} \"niso-*\" accept'"
                for key in ("iifname", "oifname")
            ],
        ),
        (
            texts.DOCKER_28,
            [f"iptables -I DOCKER-USER {flag} niso-+ -j ACCEPT" for flag in ("-i", "-o")],
        ),
    ],
    ids=["nft", "docker"],
)
def test_several_bridges_are_let_pass_by_one_rule_each_way(
    host: Lab, text: str, remedy: list[str]
) -> None:
    load(host, text)
    ((_, what, lines),) = drops(host, "niso-backend", "niso-frontend")
    assert (what, lines) == (ALL, remedy)
    told(host, lines)
    assert drops(host, "niso-backend", "niso-frontend") == []
    assert passing(host) == set(ALL)


def test_docker_user_that_no_packet_reaches_is_not_where_the_rule_goes(host: Lab) -> None:
    load(host, texts.DOCKER_28)
    host.run("iptables", "-D", "FORWARD", "-j", "DOCKER-USER")
    assert drops(host)[0].remedy == iptables("FORWARD")


def test_ipv6_chains_count_only_where_niso_has_ipv6(host: Lab) -> None:
    host.run("ip6tables", "-P", "FORWARD", "DROP")
    assert drops(host) == []
    code = "import json; from niso.look.other_firewalls import foreign_drops; from niso.kernel.real import Kernel; print(json.dumps(foreign_drops(Kernel(), ['niso-backend'], False, (4, 6))))"
    ((chain, what, remedy, _),) = json.loads(host.run(sys.executable, "-c", code).stdout)
    assert (chain, what) == ("ip6 filter FORWARD", ["published", "outward"])
    assert remedy == iptables("FORWARD", tool="ip6tables")


def test_names_of_a_hostile_table_are_escaped_and_no_command_is_made_of_them(lab: Lab) -> None:
    name = "x\x1b[31m;$(reboot)"
    lab.run("python3", "-c", HOSTILE, name)
    ((chain, what, remedy),) = drops(lab)
    assert chain == "ip x\\x1b[31m;$(reboot) x\\x1b[31m;$(reboot)"
    assert what == ALL
    assert remedy == [
        f'have this chain begin with: {key} "niso-backend" accept' for key in ("iifname", "oifname")
    ]
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    said = lab.niso("net", "explain", "api", f"{CLIENT}:80", check=False).stdout
    assert f"others   drop  nftables chain {chain} (forward) drops it by default" in said
    assert "\x1b" not in said


HOSTILE = r"""
import socket, struct, sys
def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
def message(kind, flags, body, family=2):
    body = bytes([family, 0]) + (10 if kind < 0x100 else 0).to_bytes(2, "big") + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body
name = sys.argv[1].encode() + b"\0"
hook = attribute(1, struct.pack(">I", 2)) + attribute(2, struct.pack(">i", 0))
chain = attribute(1, name) + attribute(3, name) + attribute(0x8004, hook) + attribute(5, bytes(4)) + attribute(7, b"filter\0")
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0))
s.send(message(0x10, 1, b"") + message(0xA00, 0x400, attribute(1, name)) + message(0xA03, 0x400, chain) + message(0x11, 1, b""))
s.settimeout(5)
while True:
    data = s.recv(65536)
    _, kind, _, _, _ = struct.unpack_from("=IHHII", data)
    (status,) = struct.unpack_from("=i", data, 16)
    assert kind == 2 and status == 0, (kind, status)
    if struct.unpack_from("=H", data, 24)[0] == 0xA03:
        break
"""


def test_rules_of_iptables_legacy_are_said_to_be_unseen(lab: Lab) -> None:
    code = "from niso.look.other_firewalls import unseen; print(unseen((4, 6)))"
    assert lab.run(sys.executable, "-c", code).stdout == "[]\n"
    lab.run("iptables-legacy", "-P", "FORWARD", "DROP")
    said = "rules of iptables-legacy are not visible; check with iptables-legacy -S FORWARD"
    assert lab.run(sys.executable, "-c", code).stdout == f"{[said]}\n"
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    explained = lab.niso("net", "explain", "api", f"{CLIENT}:80").stdout.splitlines()
    assert explained[-1] == f"  others   ?     {said}"
