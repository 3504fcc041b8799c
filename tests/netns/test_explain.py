"""Test niso net explain: the verdict, the deciding lines and rules, and the proof by a real packet."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import pytest
from conftest import Lab, assert_whole
from services import idle, on, refused

SUBNETS = {
    "backend": ("10.99.1.0/24", "fd00:99:1::/64"),
    "front": ("10.99.2.0/24", "fd00:99:2::/64"),
}


@pytest.fixture
def world(lab: Lab) -> Lab:
    """db admits api on some ports and the client; api may go to db's ports; web and both are free, vault is internal."""
    for name, (four, six) in SUBNETS.items():
        lab.niso("net", "create", name, "--subnet", four, "--subnet", six)
    lab.niso(
        "net",
        "create",
        "vault",
        "--internal",
        "--subnet",
        "10.99.3.0/24",
        "--subnet",
        "fd00:99:3::/64",
    )
    lab.niso(
        "activate",
        idle(
            lab,
            "db",
            network=on(
                "backend",
                ports=["5432:80/tcp", "5432:80/udp", "5432:80/sctp", "9000-9002:9000-9002"],
            ),
            **{
                "network.policy": {
                    "allow_from": ["api:80", "api/icmp", "192.0.2.2", "network:front:9000-9002"],
                    "deny_from": ["api:82"],
                }
            },
        ),
        idle(
            lab,
            "api",
            network=on("backend"),
            **{
                "network.policy.egress": {
                    "allow": ["db:80-82", "db/icmp", "192.0.2.2:80", "2001:db8::2"],
                    "deny": ["db:81/tcp"],
                }
            },
        ),
        idle(lab, "web", network=on("front")),
        idle(lab, "both", network={"networks": ["front", "backend"]}),
        idle(lab, "safe", network=on("vault")),
    )
    return lab


def explain(lab: Lab, source: str, to: str, *options: str) -> dict[str, Any]:
    done = lab.niso("net", "explain", source, to, "--json", *options, check=False)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    agrees = found.get("proof", {}).get("agrees", True)
    assert done.returncode == (0 if found["verdict"] == "pass" and agrees is not False else 1)
    return found


class Case(NamedTuple):
    source: str
    to: str
    decides: str  # "" where it passes, else the part that drops it
    counted: tuple[str, ...]  # the containers and ends of the rules that must have counted it
    key: str = ""  # of the part that decides
    arrives: bool | None = True
    agrees: bool | None = True


IN, OUT = "db", "api"
CASES = [
    *(
        Case("api", f"db:80/{proto}", "", (f"{OUT} egress.allow[0]", f"{IN} allow_from[0]"))
        for proto in ("tcp", "udp", "sctp")
    ),
    Case("api", "db", "", (f"{OUT} egress.allow[1]", f"{IN} allow_from[1]")),
    Case(
        "api", "db:81", "egress", (f"{OUT} egress.deny[0]",), "network.policy.egress.deny[0]", False
    ),
    Case(
        "api",
        "db:81/udp",
        "ingress",
        (f"{OUT} egress.allow[0]", f"{IN} allow_from"),
        "network.policy.allow_from",
        False,
    ),
    Case(
        "api",
        "db:82",
        "ingress",
        (f"{OUT} egress.allow[0]", f"{IN} deny_from[0]"),
        "network.policy.deny_from[0]",
        False,
    ),
    Case("api", "db:83", "egress", (f"{OUT} egress.allow",), "network.policy.egress.allow", False),
    Case("web", "db:80", "path", (f"{IN} allow_from",), "", False),
    Case("web", "db:9001", "path", (f"{IN} allow_from[3]", "forward not published"), "", False),
    Case("web", "HOST:9001", "", (f"{IN} allow_from[3]",)),
    Case("web", "HOST:5432", "ingress", (f"{IN} allow_from",), "network.policy.allow_from", False),
    Case("both", "db:9001", "ingress", (f"{IN} allow_from",), "network.policy.allow_from", False),
    Case("host", "db:80/udp", "", ()),
    Case("host", "HOST:5432/udp", "", ()),
    Case("host", "HOST:5432/sctp", "", ()),
    Case("db", "HOST:5432", "", (f"{IN} itself",)),
    Case("db", "db:1", "", ()),
    Case("web", "both:1", "", ()),
    Case("safe", "web:80", "path", ("forward out of an internal network",), "", False),
    Case("safe", "HOST:5432", "path", ("forward out of an internal network",), "", False),
    Case("safe", "CLIENT:80", "path", ("forward out of an internal network",), "", None),
    Case("web", "CLIENT:80", "", (), "", None),
    Case(
        "api", "CLIENT:81", "egress", (f"{OUT} egress.allow",), "network.policy.egress.allow", None
    ),
    Case("api", "host:22", "egress", (f"{OUT} egress.allow",), "network.policy.egress.allow", None),
    Case("web", "host", "", (), "", None),
    Case("web", "NOBODY:80", "path", ("forward not published",), "", None),
    Case("db", "NOBODY:80", "path", ("from_bridge to an address that no service has",), "", None),
    Case("db", "NOBODY", "path", ("from_bridge to an address that no service has",), "", None),
    Case("db", "ALL", "path", (), "", None, None),  # the host answers, and db itself
    Case("safe", "ALL", "path", (), "", None, None),
    Case("ASTRAY", "CLIENT:80", "path", ("from_port not its own address",), "", None),
]
ADDRESSES = {
    4: {
        "ALL": "255.255.255.255",
        "HOST": "192.0.2.1",
        "CLIENT": "192.0.2.2",
        "NOBODY": "10.99.1.99",
        "ASTRAY": "10.99.1.4",
    },
    6: {
        "ALL": "ff02::1",
        "HOST": "[2001:db8::1]",
        "CLIENT": "[2001:db8::2]",
        "NOBODY": "[fd00:99:1::99]",
        "ASTRAY": "fd00:99:1::4",
    },
}


def by_ipv6(case: Case) -> Case:
    """A case with what is different there."""
    if case[:2] == ("api", "CLIENT:81"):  # it may go to the client's IPv6 address
        return case._replace(decides="", counted=(f"{OUT} egress.allow[3]",), key="")
    if case.source == "ASTRAY":  # its own kernel asks for no neighbour with such a source
        return case._replace(counted=(), agrees=None)
    return case


def told(text: str, family: int) -> str:
    for word, address in ADDRESSES[family].items():
        text = text.replace(word, address)
    return text


@pytest.mark.parametrize("family", [4, 6])
def test_each_part_is_named_and_a_real_packet_proves_it(world: Lab, family: int) -> None:
    wrong = []
    for case in map(by_ipv6, CASES) if family == 6 else CASES:
        found = explain(
            world, told(case.source, family), told(case.to, family), f"-{family}", "--prove"
        )
        decides = next(
            (part for part in ("path", "egress", "ingress") if found[part]["verdict"] == "drop"), ""
        )
        counted = tuple(short(count["rule"]) for count in found["proof"]["counters"])
        rose = all(count["after"] > count["before"] for count in found["proof"]["counters"])
        got = (decides, counted, found["proof"]["agrees"], rose, found["proof"]["arrived"])
        key = found[decides]["key"] if decides else None
        if (
            got != (case.decides, case.counted, case.agrees, True, case.arrives)
            or (key or "") != case.key
        ):
            wrong.append(f"{case}: {got} {key} {found['proof']}")
        assert (found["verdict"] == "drop") == bool(decides)
        assert ":" in found["from"]["address"] or family == 4
    assert not wrong, "\n".join(wrong)
    assert_whole(world)


def short(rule: str) -> str:
    """``forward not published`` of a rule, ``db allow_from[0]`` of a policy's element."""
    match = re.fullmatch(
        r'element inet niso \w+ \{ .* comment "([\w-]+) (?:network\.policy\.)?(.*)" : [\w ]+ \}',
        rule,
    )
    match = match or re.fullmatch(r'rule (?:inet|bridge) niso ([\w-]+): .*comment "(.*)"', rule)
    assert match, rule
    return f"{match[1]} {match[2]}"


def elements(lab: Lab) -> set[str]:
    """Every element that the kernel has, as ``element inet niso ingress4 { 10.99.1.2 }``; those of policies with comments."""
    text = lab.run("nft", "list", "ruleset").stdout
    found, table, container = set(), "", ""
    for line in re.sub(r",\n\s+", ", ", text).splitlines():
        if match := re.match(r"table (.*) \{", line):
            table = match[1]
        if match := re.match(r"\t(?:set|map) (\S+) \{", line):
            container = match[1]
        if match := re.match(r"\t\telements = \{ (.*) \}", line):
            unseen = r" counter packets \d+ bytes \d+( last used \w+)?"
            if not re.match("(in|out)[46]_", container):
                unseen += '| comment "[^"]*"'
            found.update(
                f"element {table} {container} {{ {re.sub(unseen, '', each)} }}"
                for each in match[1].split(", ")
            )
    return found


def test_objects_that_are_named_are_in_the_kernel(world: Lab) -> None:
    """Each element as ``nft`` lists it, and each rule's chain has a rule with that comment."""
    there = elements(world)
    text = world.run("nft", "list", "ruleset").stdout
    seen = set()
    for case in CASES:
        for family in (4, 6):
            found = explain(world, told(case.source, family), told(case.to, family), f"-{family}")
            seen |= {each for part in ("path", "egress", "ingress") for each in found[part]["nft"]}
    missing = {each for each in seen if each.startswith("element") and each not in there}
    # an element of an interval set shows as its interval
    assert not missing
    assert {each.split(" ")[3] for each in seen if each.startswith("element")} >= {
        *(
            "sources4",
            "sources6",
            "publish_any4",
            "publish_any6",
            "range_any4",
            "range_any6",
            "in4_port",
            "in6_port",
            "in4_peer",
            "in6_peer",
        ),
        *(
            "in4_class",
            "in4_class_ports",
            "out4_rest",
            "ingress4",
            "ingress6",
            "egress4",
            "egress6",
        ),
    }
    for rule in seen:
        if match := re.fullmatch(r'rule .*: .*comment "(.*)"', rule):
            assert f'comment "{match[1]}"' in text


def test_text(world: Lab) -> None:
    done = world.niso("net", "explain", "api", "db:81", check=False)
    assert done.returncode == 1 and not done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == "api (10.99.1.3) → db (10.99.1.2):81/tcp: drop"
    assert '  egress   drop  denied by network.policy.egress.deny[0] of api ("db:81/tcp")' in rest
    assert "  ingress  drop  not listed in network.policy.allow_from of db" in rest
    assert "  path     pass  api and db are both on network backend" in rest
    through = world.niso("net", "explain", "192.0.2.2", "192.0.2.1:5432").stdout.splitlines()[0]
    assert through == "192.0.2.2 → 192.0.2.1:5432 → db (10.99.1.2):80/tcp: pass"
    # one family where the other has another fate
    both = world.niso("net", "explain", "192.0.2.2", "db:80", check=False).stdout
    assert "only by its published ports" in both.splitlines()[1]
    differs = world.niso("net", "explain", "both", "web").stdout
    assert "over IPv6" not in differs
    world.niso(
        "activate",
        idle(world, "web", network=on("front"), **{"network.policy": {"deny_from": ["fd00::/8"]}}),
    )
    differs = world.niso("net", "explain", "both", "web").stdout
    assert "over IPv6 (fd00:99:2::2) drop: denied by network.policy.deny_from[0]" in differs
    assert explain(world, "both", "web")["other_family"]["verdict"] == "drop"


def test_inactive_service_is_explained_and_nothing_is_sent_from_it(world: Lab) -> None:
    world.niso("deactivate", "web")
    assert explain(world, "both", "web:80", "--prove")["path"]["words"] == "web is not active"
    assert "web is not active, so it cannot send\n  hint: niso activate web" in refused(
        world, "net", "explain", "web", "both:80", "--prove", status=2
    )
    assert explain(world, "web", "both:80")["verdict"] == "drop"


def test_wrong_questions(world: Lab) -> None:
    def wrong(source: str, to: str, words: str, status: int = 2, *options: str) -> None:
        assert words in refused(world, "net", "explain", source, to, *options, status=status)

    wrong("apo", "db:80", "did you mean 'api'?")
    wrong("api", "dbb:80", "no service 'dbb'\n  hint: did you mean 'db'?")
    wrong("api", "db:0", "'0' is not a valid port (1 to 65535)")
    wrong("api", "db:65536", "is not a valid port")
    wrong("api", "db:80-90", "'80-90' is not a valid port")
    wrong("api", "db:http", "'http' is not a valid port")
    wrong("api", "db:80/quic", "'quic' is not a valid protocol")
    wrong("api", "db/tcp", "tcp needs a port")
    wrong("api", "db:80/icmp", "icmp has no ports")
    wrong("api", ":80", "the name or address is missing")
    wrong("api", "[fd00::1", "brackets are for an IPv6 address")
    wrong("10.0.0.0/8", "db:80", "'10.0.0.0/8' is not a valid address")
    wrong("api", "300.1.1.1:80", "'300.1.1.1' is not a valid address")
    wrong("::ffff:10.0.0.1", "db:80", "IPv4-mapped")
    wrong("198.51.100.7", "db:80", "--prove sends from services and from the host", 2, "--prove")
    wrong(
        "192.0.2.2",
        "db:80",
        "-6 conflicts with 192.0.2.2, which is an IPv4 address\n  hint: -4",
        2,
        "-6",
    )
    wrong(
        "api",
        "fd00:99:1::2",
        "-4 conflicts with fd00:99:1::2, which is an IPv6 address\n  hint: -6",
        2,
        "-4",
    )
    wrong("192.0.2.2", "fd00:99:1::2", "192.0.2.2 and fd00:99:1::2 are of different families")
    wrong("api", "0.0.0.0:80", "'0.0.0.0' is the unspecified address")
    wrong("api", "[::]:80", "'::' is the unspecified address")


def test_rules_that_are_not_as_they_should_be_are_found_out(world: Lab) -> None:
    """An open rule in front lets pass what should drop; without the rule that admits, nothing passes."""
    world.run("nft", "insert", "rule", "inet", "niso", "check_in4", "accept")
    found = explain(world, "api", "db:82", "--prove")
    assert (found["verdict"], found["proof"]["agrees"], found["proof"]["arrived"]) == (
        "drop",
        False,
        True,
    )
    world.niso("net", "repair")
    assert explain(world, "api", "db:82", "--prove")["proof"]["agrees"]
    world.run(
        "nft",
        "insert",
        "rule",
        "inet",
        "niso",
        "forward",
        "oifname",
        "niso-backend",
        "tcp",
        "dport",
        "80",
        "drop",
    )
    found = explain(world, "api", "db:80", "--prove")
    assert (found["verdict"], found["proof"]["agrees"], found["proof"]["arrived"]) == (
        "pass",
        False,
        False,
    )
    assert not any(count["after"] > count["before"] for count in found["proof"]["counters"])
    done = world.niso("net", "explain", "api", "db:80", "--prove", check=False)
    assert done.returncode == 1
    assert "CONTRADICTED: a test packet did not reach db" in done.stdout
    assert done.stderr == "niso: waiting for a test packet to db:80 (1s)\n"
    world.niso("net", "repair")
    assert explain(world, "api", "db:80", "--prove")["proof"]["agrees"]


def test_packet_of_which_nothing_can_be_seen_proves_nothing(world: Lab) -> None:
    """There is no machine of that address, and no rule counts what web sends."""
    found = explain(world, "web", "192.0.2.99:80/udp", "--prove")
    assert (found["verdict"], found["proof"]["agrees"], found["proof"]["answered"]) == (
        "pass",
        None,
        False,
    )
    text = world.niso("net", "explain", "web", "192.0.2.99:80/udp", "--prove").stdout
    assert "  proof    inconclusive: 192.0.2.99 did not reply to a test packet" in text


def test_service_that_has_moved_is_explained_by_its_new_address(world: Lab) -> None:
    world.niso("activate", idle(world, "api", network=on("backend", ip="10.99.1.77")))
    found = explain(world, "api", "db:80", "--prove")
    moved = {"service": "api", "address": "10.99.1.77", "port": None, "host": None}
    assert found["from"] == moved
    assert found["proof"]["agrees"] and found["proof"]["arrived"]
    assert any("10.99.1.2 . 10.99.1.77 . tcp . 80" in each for each in found["ingress"]["nft"])


def test_what_the_host_forwards_for_services_alone_is_not_for_others(lab: Lab) -> None:
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.niso("activate", idle(lab, "any"))

    def dropped() -> int:
        rules = [
            thing["rule"]
            for thing in lab.nft_json()
            if thing.get("rule", {}).get("comment", "").endswith("niso alone")
        ]
        return int(
            next(each["counter"]["packets"] for each in rules[0]["expr"] if "counter" in each)
        )

    done = lab.niso("net", "explain", "192.0.2.2", "203.0.113.5", check=False)
    said = done.stdout
    assert (
        done.returncode == 1
        and "drop" in said
        and "the host forwards IPv4 for services only" in said
    )
    before = dropped()
    lab.run("ip", "route", "replace", "203.0.113.0/24", "via", "192.0.2.1", netns="client")
    lab.run("ping", "-c", "1", "-W", "1", "203.0.113.5", netns="client", check=False)
    assert dropped() > before
    lab.niso("deactivate", "any")
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.niso("activate", "any")
    assert "no service is involved" in lab.niso("net", "explain", "192.0.2.2", "203.0.113.5").stdout
