"""Test the reports of activate, net check and net ports about chains of other tables that drop."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from services import CLIENT, ECHO, HOST, address, answer, ask, echo, echo_in, idle, on

DROP = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
"""


def test_another_tables_drop_is_told_with_the_rule_that_mends_it_and_nobody_edits_it(
    lab: Lab,
) -> None:
    lab.run("nft", "-f", "-", input=DROP)
    before = lab.run("nft", "list", "table", "ip", "filter").stdout
    done = lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])))
    assert "ip filter FORWARD" in done.stderr and "niso-backend" in done.stderr
    remedy = [
        line.removeprefix("  hint: ")
        for line in done.stderr.splitlines()
        if line.startswith("  hint: ")
    ]
    assert remedy and all("niso-backend" in line for line in remedy)
    answer(lab, "127.0.0.1", 8080)
    assert ask(lab, HOST, 8080, "client") == ""

    found = json.loads(lab.niso("net", "check", "--json", check=False).stdout)
    assert [each["problem"] for each in found] == ["foreign"] and "ip filter FORWARD" in found[0][
        "what"
    ]
    for name in (None, "api", "backend"):
        assert lab.niso("net", "check", *([name] if name else []), check=False).returncode == 1
    ways = json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)[0]["from"]
    assert ways[0] == "this host" and any("ip filter FORWARD drops it" in way for way in ways[1:])
    # only another one is told of: what concerns nobody that was changed is not said again
    assert "warning" not in lab.niso("activate", "api").stderr
    assert lab.run("nft", "list", "table", "ip", "filter").stdout == before

    for line in remedy:
        lab.run(*line.split())
    answer(lab, HOST, 8080, "client")
    assert_whole(lab)
    ways = json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)[0]["from"]
    assert ways == ["this host", "services", f"other machines via {HOST} on uplink0"]


def test_link_of_the_host_that_does_not_forward_is_told_and_left_alone(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])))
    answer(lab, HOST, 8080, "client")
    setting = "net.ipv4.conf.uplink0.forwarding"
    lab.run("sysctl", "-qw", f"{setting}=0")
    assert ask(lab, HOST, 8080, "client") == ""

    for names in ((), ("api",)):
        found = json.loads(lab.niso("net", "check", "--json", *names, check=False).stdout)
        assert [each["problem"] for each in found] == [
            "foreign"
        ] and "link uplink0 does not forward IPv4" in found[0]["what"]
    remedy = found[0]["detail"]
    ways = json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)[0]["from"]
    assert ways == [
        "this host",
        "services",
        "nobody via uplink0: net/ipv4/conf/uplink0/forwarding is 0",
    ]
    explained = lab.niso("net", "explain", CLIENT, f"{HOST}:8080", check=False)
    assert (
        explained.returncode == 1
        and "path     drop  the host forwards no packets from uplink0" in explained.stdout
    )
    assert lab.niso("net", "repair").stdout == "nothing to repair\n"
    assert lab.run("sysctl", "-n", setting).stdout == "0\n"

    lab.run(*remedy.split())
    answer(lab, HOST, 8080, "client")
    assert_whole(lab)
    assert lab.niso("net", "explain", CLIENT, f"{HOST}:8080").returncode == 0


def base(
    hook: str, *rules: str, policy: str = "accept", family: str = "inet", at: str = "0"
) -> str:
    """Return a table with one base chain of these rules."""
    head = f"type filter hook {hook} priority {at}; policy {policy};"
    lines = "\n".join((f"table {family} other {{", "chain guard {", head, *rules, "}", "}"))
    return f"{lines}\n"


WAYS = {
    "in": (CLIENT, f"{HOST}:8000"),
    "far": ("far", "host:8000"),
    "beside": ("cli", "api:80"),
    "own": ("host", "api:80"),
    "to-host": ("cli", "host:9000"),
    "out": ("cli", f"{CLIENT}:80"),
    "from-client": (CLIENT, "host:9000"),
    "host-out": ("host", f"{CLIENT}:80"),
}
"""Ends of packets."""
TABLES = f"""\
forward | tcp dport 80 drop | in far beside out
forward | tcp dport {{ 79-81, 443 }} reject | in far beside out
forward | tcp dport vmap {{ 22 : accept, 80 : drop }} | in far beside out
forward | tcp dport 8000 drop | # DNAT has changed the port
forward | ct original proto-dst 8000 drop | in far
prerouting at=-300 | tcp dport 8000 drop | in far
prerouting at=-150 | tcp dport 8000 drop | in far
prerouting | tcp dport 80 drop | in far beside out
forward | ip saddr {CLIENT} drop | in out
forward | ip daddr 10.99.1.0/24 tcp dport 80 drop | in far beside
forward | iifname "uplink0" tcp dport 80 drop | in
forward | oifname "uplink0" drop | out in
forward policy=drop | | in far beside out
forward policy=drop | ct state established,related accept; tcp dport 80 accept |
forward | tcp sport 80 drop | in far beside out # the replies
forward | tcp dport 80 meta mark 3 drop | ? in far beside out
forward | meta mark 3 drop |
forward policy=drop | tcp dport 80 meta mark 0 accept | ? in far beside out
input | tcp dport 9000 reject | to-host from-client
input | iifname "lo" accept; tcp dport 9000 drop | to-host from-client
input | iifname "uplink0" tcp dport 9000 drop | from-client
output | oifname "uplink0" tcp dport 80 drop | host-out
output | oifname "niso-back" drop | own to-host
postrouting | oifname "niso-back" tcp dport 80 drop | in far beside own
forward family=bridge | tcp dport 80 drop | beside
forward family=ip6 | tcp dport 80 drop |
ingress family=netdev | tcp dport 8000 drop | in
"""
"""A base chain, its rules, and the ways that it blocks; after ``?``, those of which niso cannot tell."""


def tables() -> Iterator[tuple[str, set[str], set[str]]]:
    for line in TABLES.splitlines():
        chain, rules, ways = line.partition(" #")[0].split("|")
        hook, *options = chain.split()
        words = {**dict(option.split("=") for option in options)}
        table = base(hook, *rules.strip().split("; "), **words)
        if hook == "ingress":
            table = table.replace("ingress", 'ingress device "uplink0"')
        named = {*ways.split()}
        yield table, *((set(), named - {"?"}) if "?" in named else (named, set()))


@pytest.mark.first
def test_explain_says_what_chains_of_other_programs_do_as_the_kernel_does(lab: Lab) -> None:
    lab.niso("net", "create", "back", "--subnet", "10.99.1.0/24")
    lab.niso("net", "create", "front", "--subnet", "10.99.2.0/24")
    lab.niso(
        "activate",
        echo(lab, "api", network=on("back", ports=["8000:80"])),
        echo(lab, "cli", network=on("back")),
        echo(lab, "far", network=on("front")),
    )
    echo_in(lab, "client", "client")
    lab.popen("/usr/bin/python3", "-ISuc", ECHO, "host", "9000")

    def passes(source: str, to: str) -> bool:
        netns = {CLIENT: "client", "host": None}.get(source, f"niso-{source}")
        name, _, port = to.partition(":")
        gateway = {"far": "10.99.2.1", "cli": "10.99.1.1"}.get(source, HOST)
        address = {"api": "10.99.1.2", "host": gateway}.get(name, name)
        return ask(lab, address, int(port), netns) != ""

    for way in WAYS.values():
        lab.wait_for(lambda way=way: passes(*way), 20, str(way))
        assert "others" not in lab.niso("net", "explain", *way).stdout
    wrong = []
    for table, blocked, unsure in tables():
        lab.run("nft", "-f", "-", input=table)
        for name, way in WAYS.items():
            done = lab.niso("net", "explain", *way, "--json", check=False)
            found = json.loads(done.stdout)
            certain = [one for one in found["others"]["drops"] if one["verdict"] == "drop"]
            maybe = [one for one in found["others"]["drops"] if one["verdict"] != "drop"]
            is_dropped = any(not one["replies"] for one in certain)
            expected = name in blocked, name in unsure
            if (
                (bool(certain), bool(maybe)) != expected
                or done.returncode != int(is_dropped)
                or (name not in unsure and passes(*way) is bool(certain))
                or (found["verdict"] != "pass")
            ):
                wrong.append(f"{table} {way}: {found['others']} {done.returncode} {passes(*way)}")
        lab.run("nft", "delete", "table", *table.split()[1:3])
    assert not wrong, "\n".join(wrong)


@pytest.mark.first
def test_a_foreign_rule_for_one_port_is_found_and_named(lab: Lab) -> None:
    services = [
        echo(lab, "api", network=on("back", ports=["8000:80", "127.0.0.1:8005:80"])),
        echo(lab, "web", 81, network=on("back", ports=["8001:81", "9000-9003:9000-9003/udp"])),
    ]
    lab.niso("activate", *services)
    answer(lab, HOST, 8000, "client")
    answer(lab, HOST, 8001, "client")

    def findings() -> list[str]:
        found = json.loads(lab.niso("net", "check", "--json", check=False).stdout)
        return [each["what"] for each in found]

    def ways(service: str) -> str:
        rows = json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)
        return "; ".join(way for row in rows if row["service"] == service for way in row["from"])

    assert findings() == []
    for table, chain, rule, service, port in (
        (
            base("forward", "tcp dport 80 counter drop"),
            "inet other guard",
            "tcp dport 80 counter drop",
            "api",
            "8000/tcp",
        ),
        (
            base("prerouting", "tcp dport 8001 drop", at="-300"),
            "inet other guard",
            "tcp dport 8001 drop",
            "web",
            "8001/tcp",
        ),
        (
            base("forward", "udp dport 9003 drop", family="ip"),
            "ip other guard",
            "udp dport 9003 drop",
            "web",
            "9000-9003/udp",
        ),
    ):
        lab.run("nft", "-f", "-", input=table)
        (found,) = findings()
        assert f"nftables chain {chain} drops connections to port {port} of '{service}'" in found
        assert found.endswith(f"by its rule: {rule}")
        other = "web" if service == "api" else "api"
        assert rule in ways(service) and "drop" not in ways(other)
        assert ways(service).count(rule) == 1  # no other machine can reach the port on 127.0.0.1
        for name, status in ((service, 1), (other, 0)):
            assert lab.niso("net", "check", name, check=False).returncode == status
        if port != "9000-9003/udp":
            explained = lab.niso("net", "explain", CLIENT, f"{HOST}:{port}", check=False)
            first, *_, last = explained.stdout.splitlines()
            assert explained.returncode == 1
            assert first.endswith(": pass, but another firewall drops it")
            assert last.startswith("  others   drop  nftables chain ") and last.endswith(rule)
            proved = lab.niso("net", "explain", "host", f"{service}:{port.replace('800', '8')}")
            assert "others" not in proved.stdout  # no chain at its hooks
            assert ask(lab, HOST, int(port[:4]), "client") == ""
        lab.run("nft", "delete", "table", *table.split()[1:3])
    # iptables' own matches, and a rule that is not for all clients
    for argv in (
        ("-p", "tcp", "-m", "multiport", "--dports", "79,80:81", "-j", "DROP"),
        ("-p", "tcp", "--dport", "80", "-j", "DROP"),
        ("-p", "tcp", "!", "--dport", "81", "-j", "REJECT"),
        ("-m", "conntrack", "--ctorigdstport", "7999:8000", "-j", "DROP"),
    ):
        lab.run("iptables", "-A", "FORWARD", *argv)
        assert any("port 8000/tcp of 'api'" in found for found in findings()), argv
        assert ask(lab, HOST, 8000, "client") == ""
        assert any("'web'" in found for found in findings()) is ("multiport" in argv)
        lab.run("iptables", "-F", "FORWARD")


@pytest.mark.first
def test_a_foreign_rule_for_some_clients_is_named_for_these(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "api", network={"ports": ["8000:80"]}), idle(lab, "cli"))
    answer(lab, HOST, 8000, "client")

    def last(source: str) -> str:
        """Return the last line of explain."""
        done = lab.niso("net", "explain", source, f"{HOST}:8000", check=False)
        line = done.stdout.splitlines()[-1]
        assert done.returncode == int(line.startswith("  others   drop")), done.stdout
        return line

    ranged = ("-m", "iprange", "--src-range", f"{CLIENT}-192.0.2.8")
    once = ("-m", "connlimit", "--connlimit-above", "0")
    # a rule; what it does to packets of CLIENT and of 192.0.2.9; whether check names it, because it
    # drops packets of all clients or of services
    for argv, own, other, is_found in (
        (("-s", "192.0.2.9", "-p", "tcp", "--dport", "80"), "pass", "drop", False),
        (ranged, "drop", "pass", False),
        (("-m", "iprange", "!", "--src-range", "192.0.2.3-192.0.2.8"), "drop", "drop", True),
        (("-m", "conntrack", "--ctorigdst", HOST, "--ctorigsrc", CLIENT), "drop", "pass", False),
        (("-m", "conntrack", "--ctstate", "DNAT"), "drop", "drop", True),
        (("-m", "conntrack", "!", "--ctstate", "DNAT"), "pass", "pass", True),
        (("-m", "conntrack", "--ctproto", "udp", "--ctorigdstport", "8000"), "pass", "pass", False),
        ((*once, "-p", "tcp", "--syn"), "?", "?", False),  # niso does not know their number
        (("-m", "mark", "--mark", "7"), "?", "?", False),
    ):
        lab.run("iptables", "-A", "FORWARD", *argv, "-j", "DROP")
        for source, expected in ((CLIENT, own), ("192.0.2.9", other)):
            line = last(source)
            assert line.startswith(f"  others   {expected} "), (argv, source, line)
        passes = own == "pass" or "mark" in argv
        assert (ask(lab, HOST, 8000, "client") != "") is passes, argv
        found = lab.niso("net", "check", check=False)
        assert (found.returncode == 1) is is_found, (argv, found.stdout)
        rows = lab.niso("net", "ports", "--exposed").stdout
        assert ("may drop it by its rule" in rows) is ("--dport" in argv), (argv, rows)
        lab.run("iptables", "-F", "FORWARD")
    # frames within a network pass the forward chains, too
    lab.run("iptables", "-P", "FORWARD", "DROP")
    lab.run("iptables", "-A", "FORWARD", "-m", "physdev", "--physdev-is-bridged", "-j", "ACCEPT")
    assert ask(lab, address(lab, "api"), 80, "niso-cli") != ""
    assert lab.niso("net", "explain", "cli", "api:80").stdout.splitlines()[-1] == (
        "  others   pass  by chains of other programs: nftables ip filter FORWARD"
    )
    assert last(CLIENT).endswith("drops it by default")


NAT = """\
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 masquerade
	}
}
"""


JUMPS = """\
table ip zones {
	chain inner { }
	chain outer { oifname "lo" return; jump inner; }
	chain nat_POSTROUTING { type nat hook postrouting priority srcnat; jump outer; }
}
"""


def test_forwarding_that_another_program_has_asked_for_since_is_told_and_stays_on(lab: Lab) -> None:
    forwarding = ("sysctl", "-n", "net.ipv4.ip_forward")
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.niso("activate", echo(lab, "api", network=on("backend")))
    assert lab.niso("net", "check").returncode == 0
    lab.niso("deactivate", "api")
    assert lab.run(*forwarding).stdout == "0\n"
    lab.niso("activate", "api")

    lab.run("nft", "-f", "-", input=JUMPS)  # as firewalld's, where no zone masquerades
    assert lab.niso("net", "check").returncode == 0
    lab.run("nft", "add", "rule", "ip", "zones", "inner", "masquerade")
    done = lab.niso("net", "check", check=False)
    assert done.returncode == 1 and "chain ip zones nat_POSTROUTING" in done.stdout
    lab.run("nft", "delete", "table", "ip", "zones")
    lab.run("nft", "-f", "-", input=NAT)
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")  # as Docker does; it is 1 already
    done = lab.niso("net", "check", check=False)
    assert done.returncode == 1 and "chain ip nat POSTROUTING" in done.stdout
    done = lab.niso("activate", echo(lab, "web", network=on("backend")))
    assert "chain ip nat POSTROUTING" in done.stderr
    lab.niso("deactivate", "api", "web")
    assert lab.run(*forwarding).stdout == "1\n"
    lab.niso("activate", "api")
    assert lab.niso("net", "check").returncode == 0
