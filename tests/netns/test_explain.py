"""Test niso net explain: the verdict, the deciding lines and rules, and the proof by a real packet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Lab, assert_whole
from services import echo_in, idle, on, package

SUBNETS = {
    "backend": ("10.99.1.0/24", "fd00:99:1::/64"),
    "front": ("10.99.2.0/24", "fd00:99:2::/64"),
}


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """db admits api on some ports and the client; api may go to db's ports; web and both are free, vault is internal.

    The last tests of the world change it.
    """
    with Lab(deadline_seconds=900) as lab:
        for name, (four, six) in SUBNETS.items():
            lab.niso("net", "create", name, "--subnet", four, "--subnet", six)
        vault = ("--subnet", "10.99.3.0/24", "--subnet", "fd00:99:3::/64")
        lab.niso("net", "create", "vault", "--internal", *vault)
        ports = ["5432:80/tcp", "5432:80/udp", "5432:80/sctp", "9000-9002:9000-9002"]
        admits = ["api:80", "api/icmp", "192.0.2.2", "network:front:9000-9002"]
        ingress = {"allow_from": admits, "deny_from": ["api:82"]}
        egress = {
            "allow": ["db:80-82", "db/icmp", "192.0.2.2:80", "2001:db8::2"],
            "deny": ["db:81/tcp"],
        }
        lab.niso(
            "activate",
            idle(lab, "db", network=on("backend", ports=ports), **{"network.policy": ingress}),
            idle(lab, "api", network=on("backend"), **{"network.policy.egress": egress}),
            idle(lab, "web", network=on("front")),
            idle(lab, "both", network={"networks": ["front", "backend"]}),
            idle(lab, "safe", network=on("vault")),
        )
        yield lab


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
    arrives: bool | None = True
    agrees: bool | None = True


CONTAINERS = {
    *("sources4", "sources6", "publish_any4", "publish_any6", "range_any4", "range_any6"),
    *("in4_port", "in6_port", "in4_peer", "in6_peer", "in4_class", "in4_class_ports", "out4_rest"),
    *("ingress4", "ingress6", "egress4", "egress6"),
}
"""Sets and maps of which some explanation names an element."""
IN, OUT = "db", "api"
CASES = [
    *(
        Case("api", f"db:80/{proto}", "", (f"{OUT} egress.allow[0]", f"{IN} allow_from[0]"))
        for proto in ("tcp", "udp", "sctp")
    ),
    Case("api", "db", "", (f"{OUT} egress.allow[1]", f"{IN} allow_from[1]")),
    Case("api", "db:81", "egress", (f"{OUT} egress.deny[0]",), False),
    Case("api", "db:81/udp", "ingress", (f"{OUT} egress.allow[0]", f"{IN} allow_from"), False),
    Case("api", "db:82", "ingress", (f"{OUT} egress.allow[0]", f"{IN} deny_from[0]"), False),
    Case("api", "db:83", "egress", (f"{OUT} egress.allow",), False),
    Case("web", "db:80", "path", (f"{IN} allow_from",), False),
    Case("web", "db:9001", "path", (f"{IN} allow_from[3]", "forward not published"), False),
    Case("web", "HOST:9001", "", (f"{IN} allow_from[3]",)),
    Case("web", "HOST:5432", "ingress", (f"{IN} allow_from",), False),
    Case("both", "db:9001", "ingress", (f"{IN} allow_from",), False),
    Case("host", "db:80/udp", "", ()),
    Case("host", "HOST:5432/udp", "", ()),
    Case("host", "HOST:5432/sctp", "", ()),
    Case("db", "HOST:5432", "", (f"{IN} itself",)),
    Case("db", "db:1", "", ()),
    Case("web", "both:1", "", ()),
    Case("safe", "web:80", "path", ("forward out of an internal network",), False),
    Case("safe", "HOST:5432", "path", ("forward out of an internal network",), False),
    Case("safe", "CLIENT:80", "path", ("forward out of an internal network",), None),
    Case("web", "CLIENT:80", "", (), None),
    Case("api", "CLIENT:81", "egress", (f"{OUT} egress.allow",), None),
    Case("api", "host:22", "egress", (f"{OUT} egress.allow",), None),
    Case("web", "host", "", (), None),
    Case("web", "NOBODY:80", "path", ("forward not published",), None),
    Case("db", "NOBODY:80", "path", ("from_bridge to an address that no service has",), None),
    Case("db", "NOBODY", "path", ("from_bridge to an address that no service has",), None),
    Case("db", "ALL", "path", (), None, None),  # the host answers, and db itself
    Case("safe", "ALL", "path", (), None, None),
    Case("ASTRAY", "CLIENT:80", "path", ("from_port not its own address",), None),
]
WORDS = ("ALL", "HOST", "CLIENT", "NOBODY", "ASTRAY")
IPV4 = ("255.255.255.255", "192.0.2.1", "192.0.2.2", "10.99.1.99", "10.99.1.4")
IPV6 = ("ff02::1", "[2001:db8::1]", "[2001:db8::2]", "[fd00:99:1::99]", "fd00:99:1::4")


def by_ipv6(case: Case) -> Case:
    """A case with what is different there."""
    if case[:2] == ("api", "CLIENT:81"):  # it may go to the client's IPv6 address
        return case._replace(decides="", counted=(f"{OUT} egress.allow[3]",))
    if case.source == "ASTRAY":  # its own kernel asks for no neighbour with such a source
        return case._replace(counted=(), agrees=None)
    return case


def told(text: str, family: int) -> str:
    for word, address in zip(WORDS, IPV6 if family == 6 else IPV4, strict=True):
        text = text.replace(word, address)
    return text


def test_each_part_is_named_and_a_real_packet_proves_it(world: Lab) -> None:
    """Each named element is one that nft lists, and each named rule's chain has a rule with that comment."""
    there, seen = elements(world), set[str]()
    for family in (4, 6):
        seen |= prove_cases(world, family)
    # an element of an interval set shows as its interval
    assert {each for each in seen if each.startswith("element")} <= there
    assert {each.split(" ")[3] for each in seen if each.startswith("element")} >= CONTAINERS
    text = world.run("nft", "list", "ruleset").stdout
    for rule in seen:
        if match := re.fullmatch(r'rule .*: .*comment "(.*)"', rule):
            assert f'comment "{match[1]}"' in text
    assert_whole(world)


def prove_cases(world: Lab, family: int) -> set[str]:
    """Explain each case, with a packet; return the objects that the explanations name."""
    wrong, seen = [], set[str]()
    for case in map(by_ipv6, CASES) if family == 6 else CASES:
        ends = told(case.source, family), told(case.to, family)
        found = explain(world, *ends, f"-{family}", "--prove")
        seen |= {each for part in ("path", "egress", "ingress") for each in found[part]["nft"]}
        decides = next(
            (part for part in ("path", "egress", "ingress") if found[part]["verdict"] == "drop"), ""
        )
        counted = tuple(short(count["rule"]) for count in found["proof"]["counters"])
        rose = all(count["after"] > count["before"] for count in found["proof"]["counters"])
        got = (decides, counted, found["proof"]["agrees"], rose, found["proof"]["arrived"])
        key, wanted = found[decides]["key"] if decides else None, ""
        if case.decides in ("egress", "ingress"):  # the last rule decides
            wanted = f"network.policy.{case.counted[-1].split()[1]}"
        right = (case.decides, case.counted, case.agrees, True, case.arrives)
        if got != right or (key or "") != wanted:
            wrong.append(f"{case}: {got} {key} {found['proof']}")
        assert (found["verdict"] == "drop") == bool(decides)
        assert ":" in found["from"]["address"] or family == 4
    assert not wrong, "\n".join(wrong)
    return seen


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


def proved(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["verdict"], found["proof"]["agrees"], found["proof"]["arrived"]


def test_rules_that_are_not_as_they_should_be_are_found_out(world: Lab) -> None:
    """An open rule in front lets pass what should drop; without the rule that admits, nothing passes."""
    world.run("nft", "insert", "rule", "inet", "niso", "check_in4", "accept")
    found = explain(world, "api", "db:82", "--prove")
    assert proved(found) == ("drop", False, True)
    world.niso("net", "repair")
    assert explain(world, "api", "db:82", "--prove")["proof"]["agrees"]
    world.run("nft", "insert rule inet niso forward oifname niso-backend tcp dport 80 drop")
    found = explain(world, "api", "db:80", "--prove")
    assert proved(found) == ("pass", False, False)
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
    moved = {"service": "api", "address": "10.99.1.77", "host": None}
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


LISTENER = """\
import socket, sys, time
kept = []
for word in sys.argv[1:]:
    kind, address, port = word.split(",")
    one = socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET,
        socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM,
    )
    if ":" in address:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, kind == "tcp6")
    one.bind((address, int(port)))
    if kind != "udp":
        one.listen()
    kept.append(one)
time.sleep(100000)
"""


def listener(lab: Lab, name: str, *sockets: str, **sections: dict[str, Any]) -> str:
    """Write a service with sockets written ``tcp,127.0.0.1,8080``; return its folder.

    The protocol tcp6 is TCP of IPv6 only.
    """
    script = {"listen.py": LISTENER}
    return package(
        lab, name, "/usr/bin/python3", "-IS", "/app/listen.py", *sockets, files=script, **sections
    )


def test_answers_know_whether_a_program_listens(lab: Lab) -> None:
    """A wrong port, loopback only and IPv6 only: the packet arrives, and nobody gets the connection."""
    lab.niso("net", "create", "back", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99::/64")
    services = {
        "wrong": (["tcp,0.0.0.0,8080", "udp,0.0.0.0,53"], ["8001:8081", "8053:53/udp"]),
        "local": (["tcp,127.0.0.1,8080", "tcp,127.0.0.1,9090"], ["8002:8080"]),
        "six": (["tcp6,::,8080"], ["8003:8080", "8153:8080/udp"]),
        "right": (
            ["tcp,::,8080", "udp,::,53"],
            ["8004:8080", "8254:53/udp", "9000-9009:9000-9009"],
        ),
    }
    folders = [
        listener(lab, name, *sockets, network=on("back", ports=ports))
        for name, (sockets, ports) in services.items()
    ]
    lab.niso("activate", *folders, idle(lab, "cli", network=on("back")))

    def processes(name: str) -> set[int]:
        argv = ("ps", "-eo", "pid=") if name == "host" else ("ip", "netns", "pids", f"niso-{name}")
        return {*map(int, lab.run(*argv).stdout.split())}

    def opened(name: str) -> int:
        text = lab.run("ss", "-Hlntu", netns=f"niso-{name}").stdout
        return len(text.splitlines())

    lab.wait_for(lambda: [*map(opened, services)] == [2, 2, 1, 2], 30, "the sockets")

    def answer(to: str) -> str:
        found = explain(lab, "cli", to)
        heard = found["listening"]
        assert found["verdict"] == "pass"
        if heard["listens"]:
            assert "nothing listens" not in lab.niso("net", "explain", "cli", to).stdout
            return "listens"
        shown = lab.niso("net", "explain", "cli", to, "--prove").stdout
        assert shown.splitlines()[0].endswith(": pass, but nothing listens there")
        where = "but" if heard["service"] == "host" else "where"
        assert f", {where} nothing listens on port {heard['port']}" in shown
        assert {one["pid"] for one in heard["others"]} <= processes(heard["service"])
        (line,) = (line for line in shown.splitlines() if line.startswith("  listens  none  "))
        return line.removeprefix("  listens  none  ")

    none = "nothing listens on"
    for to in [
        "wrong:8080",
        "wrong:53/udp",
        "right:8080",
        "right:53/udp",
        "host:8004",
        "host:8254/udp",
    ]:
        assert answer(to) == "listens", to
    wrong = f"{none} 10.99.1.2:8081; python3 listens on 0.0.0.0:8080"
    local = f"{none} 10.99.1.3:8080; python3 listens on 127.0.0.1:8080, python3 listens on 127.0.0.1:9090"
    six = f"{none} 10.99.1.4:8080; python3 listens on [::]:8080 (IPv6 only)"
    assert answer("wrong:8081") == answer("host:8001") == wrong
    assert answer("local:8080") == answer("host:8002") == local
    assert answer("six:8080") == answer("host:8003") == six
    assert answer("right:53") == f"{none} 10.99.1.5:53; python3 listens on 0.0.0.0:8080"
    assert answer("six:8080/udp") == (
        f"{none} 10.99.1.4:8080/udp; no program of six listens on any udp port"
    )
    assert explain(lab, "cli", "wrong")["listening"] is None  # ICMP has no ports
    # the host is asked too, unless another program may send its packets elsewhere
    assert (
        answer("host:70") == f"{none} 10.99.1.1:70; no program of the host listens on any tcp port"
    )
    lab.popen("/usr/bin/python3", "-IS", "-m", "http.server", "70", "--bind", "127.0.0.1")
    local_host = f"{none} 10.99.1.1:70; python3 listens on 127.0.0.1:70"
    lab.wait_for(lambda: answer("host:70") == local_host, 30, "the host's server")
    assert explain(lab, "host", "127.0.0.1:70")["listening"]["listens"]
    lab.run("iptables", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "-j", "ACCEPT")
    assert explain(lab, "cli", "host:70")["listening"] is None
    lab.run("iptables", "-t", "nat", "-F", "PREROUTING")
    assert explain(lab, "six", "wrong:8080", "-6")["listening"]["listens"] is False

    checked = lab.niso("net", "check")
    assert checked.stdout == "OK: the kernel matches the configuration\n"
    for text in (
        f"wrong: port 8001/tcp is published, but {wrong}",
        f"local: port 8002/tcp is published, but {local}",
        "port 8080\n",  # the next step for both
        f"six: port 8003/tcp is published, but {six}",
        "six: port 8153/udp is published, but",
    ):
        assert text in checked.stderr
    assert "right" not in checked.stderr and checked.stderr.count("hint: ") == 4 + 1, checked.stderr
    assert "local" in lab.niso("net", "check", "local").stderr
    assert "nothing listens" not in lab.niso("net", "check", "right").stderr

    rows = {
        (line["service"], line["host"]): "; ".join(line["from"])
        for line in json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)
    }
    assert wrong in rows["wrong", "0.0.0.0:8001"] and six in rows["six", "0.0.0.0:8003"]
    assert none not in rows["six", "[::]:8003"] and none not in rows["right", "0.0.0.0:8004"]
    assert (
        f"{none} [fd00:99::2]:8081; python3 listens on 0.0.0.0:8080" in rows["wrong", "[::]:8001"]
    )

    shown = lab.niso("ps", "--listening").stdout.splitlines()
    cells = {line.split()[0]: line.partition("s  ")[2].strip() for line in shown[1:]}
    assert shown[0].split()[-1] == "LISTENS"
    assert cells == {
        "cli": "-",
        "local": "127.0.0.1:8080, 127.0.0.1:9090; not 10.99.1.3:8080, [fd00:99::3]:8080",
        "right": "8080, 53/udp",
        "six": "[::]:8080; not 10.99.1.4:8080, 10.99.1.4:8080/udp, [fd00:99::4]:8080/udp",
        "wrong": "8080, 53/udp; not 10.99.1.2:8081, [fd00:99::2]:8081, [fd00:99::2]:53/udp",
    }
    assert "LISTENS" not in lab.niso("ps").stdout
    (line,) = (
        one for one in json.loads(lab.niso("ps", "-l", "--json").stdout) if one["service"] == "six"
    )
    (socket_,) = line["listening"]
    assert socket_.pop("pid") in processes("six")
    assert socket_ == {"address": "::", "port": 8080, "proto": "tcp", "program": "python3"}

    # a process that has ended listens nowhere, and check says that it has ended
    lab.niso("kill", "local")
    assert "no program of local listens" in answer_of_ended(lab)
    assert "nothing listens" not in lab.niso("net", "check", "local", check=False).stderr


def answer_of_ended(lab: Lab) -> str:
    return str(lab.niso("net", "explain", "cli", "local:8080").stdout)


def test_listening_of_instances_sharers_and_attachments(lab: Lab) -> None:
    lab.niso("net", "create", "back", "--subnet", "10.99.1.0/24")
    lab.niso(
        "activate",
        listener(
            lab,
            "pool",
            "tcp,127.0.0.1,8080",
            network=on("back", ports=["8001:8080"]),
            service={"replicas": 2},
            healthcheck={"command": ["/usr/bin/true"], "interval": "1s"},
        ),
        idle(lab, "home", network=on("back")),
        listener(
            lab,
            "side",
            "tcp,0.0.0.0,8080",
            network={"mode": "share", "share": "home", "ports": ["8002:8080", "8003:81"]},
        ),
        idle(lab, "cli", network=on("back")),
    )
    lab.run("ip", "netns", "add", "mine")
    where = ("--netns", "/run/netns/mine", "--network", "back")
    lab.niso("net", "attach", "guest", *where, "--port", "8004:80")
    none = "nothing listens on"
    lab.wait_for(lambda: "127.0.0.1:8080" in lab.niso("ps", "-l").stdout, 30, "a socket")
    lab.wait_for(lambda: explain(lab, "cli", "side:8080")["listening"]["listens"], 30, "side")
    found = explain(lab, "cli", "pool:8080")["listening"]
    assert found["service"].startswith("pool.") and not found["listens"]
    assert explain(lab, "cli", "side:81")["listening"]["listens"] is False
    assert explain(lab, "cli", "guest:80")["listening"]["listens"] is False
    warned = lab.niso("net", "check").stderr
    assert f"pool: port 8001/tcp is published, but {none}" in warned
    assert f"side: port 8003/tcp is published, but {none}" in warned
    assert f"guest: port 8004/tcp is published, but {none} " in warned
    assert "8002" not in warned
    server = echo_in(lab, "mine", "guest")
    lab.wait_for(lambda: explain(lab, "cli", "guest:80")["listening"]["listens"], 30, "guest")
    assert "guest" not in lab.niso("net", "check").stderr
    server.kill()
