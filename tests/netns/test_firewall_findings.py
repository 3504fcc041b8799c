"""Test the reports of activate, net check and net ports about chains of other tables that drop."""

from __future__ import annotations

import json

from conftest import Lab, assert_whole
from services import CLIENT, HOST, answer, ask, echo, on

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


NAT = """\
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 masquerade
	}
}
"""


def test_forwarding_that_another_program_has_asked_for_since_is_told_and_stays_on(
    lab: Lab,
) -> None:
    forwarding = ("sysctl", "-n", "net.ipv4.ip_forward")
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.niso("activate", echo(lab, "api", network=on("backend")))
    assert lab.niso("net", "check").returncode == 0
    lab.niso("deactivate", "api")
    assert lab.run(*forwarding).stdout == "0\n"
    lab.niso("activate", "api")

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
