"""Test network.mode host and none, from inside and outside of the services, and commands of every mode."""

from __future__ import annotations

import snapshots
from conftest import Lab
from modes import (
    KERNEL,
    alone,
    home_of,
    lives_in,
    names_in,
    no_folders_but,
    open_,
    running,
    seen_in,
    started_again,
)
from services import (
    CLIENT,
    HOST,
    answer,
    ask,
    echo,
    idle,
    inspect,
    namespace,
    on,
    pid_of,
    process_below,
)


def capabilities(lab: Lab, service: str) -> dict[str, str]:
    pid = pid_of(lab, service)
    lines = lab.run("cat", f"/proc/{process_below(lab, pid)}/status").stdout.splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {key: fields[key] for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}


# --- host ------------------------------------------------------------------------------------------------------------


def test_host_mode_is_the_hosts_network_and_nothing_else_of_the_host(lab: Lab) -> None:
    lab.write("/tmp/hosts", "127.0.0.1 localhost\n192.0.2.7 seven\n")
    lab.run("mount", "--bind", "/tmp/hosts", "/etc/hosts")
    before = snapshots.take(lab)
    lab.niso("activate", open_(lab))
    after = snapshots.take(lab)
    assert lives_in(lab, "open") == home_of(lab, "self")
    # no namespace, link, rule, sysctl, forwarding: nothing of the kernel's network is touched, nor is anything to be put back
    assert after["store"]["sysctl"] == []
    assert (
        snapshots.differences(
            {key: before[key] for key in KERNEL[:3]}, {key: after[key] for key in KERNEL[:3]}
        )
        == []
    )

    assert answer(lab, HOST, 7000, "client") == f"open {CLIENT}"
    assert answer(lab, "127.0.0.1", 7000) == "open 127.0.0.1"
    assert seen_in(lab, "open", "hostname") == lab.run("hostname").stdout
    for name, more in (("hosts", "127.0.0.1  host.niso.local\n"), ("resolv.conf", "")):
        own = lab.run("cat", f"/etc/{name}").stdout
        assert seen_in(lab, "open", "cat", f"/etc/{name}") == own + more
    assert seen_in(lab, "open", "cat", "/etc/hostname") == lab.run("hostname").stdout
    assert "uplink0" in seen_in(lab, "open", "ip", "link")
    # what it may do is what any service may
    idle(lab, "bridged", network=on("backend"))
    lab.niso("activate", "/tmp/packages/bridged")
    assert capabilities(lab, "open") == capabilities(lab, "bridged")
    assert capabilities(lab, "open")["CapEff"] == "0" * 16
    assert seen_in(lab, "open", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "1024\n"

    assert inspect(lab, "open")["hostname"] == lab.run("hostname").stdout.strip()
    assert lab.niso("net", "check").returncode == 0

    # what the host's files say is read at each start
    lab.write("/tmp/hosts", "127.0.0.1 localhost\n192.0.2.8 eight\n")
    lab.niso("restart", "open")
    assert "192.0.2.8 eight" in seen_in(lab, "open", "cat", "/etc/hosts")
    lab.niso("deactivate", "open")
    assert ask(lab, HOST, 7000, "client") == ""
    lab.niso("remove", "bridged", "open")
    left = snapshots.take(lab)
    assert snapshots.differences({k: before[k] for k in KERNEL}, {k: left[k] for k in KERNEL}) == []


def test_host_mode_below_1024_needs_the_capability(lab: Lab) -> None:
    done = lab.niso("activate", open_(lab, 700), check=False)
    # On a slow machine, the service ends after the activation. An error has the end of the log.
    refused = "Permission denied"
    if done.returncode == 0:
        lab.wait_for(lambda: refused in lab.niso("logs", "open").stdout)
    else:
        assert done.returncode == 1 and refused in done.stderr
    lab.niso("activate", open_(lab, 700, isolation={"capabilities": ["NET_BIND_SERVICE"]}))
    assert answer(lab, HOST, 700, "client") == f"open {CLIENT}"


def test_host_mode_process_that_dies_is_started_again_on_the_host(lab: Lab) -> None:
    lab.niso("activate", open_(lab, service={"restart_delay": "10ms"}))
    old, _ = running(lab, "open")["open"]
    lab.run("kill", "-9", str(old))
    started_again(lab, "open", old)
    assert lives_in(lab, "open") == home_of(lab, "self")
    assert answer(lab, HOST, 7000, "client") == f"open {CLIENT}"
    assert lab.niso("net", "check").returncode == 0


# --- none ------------------------------------------------------------------------------------------------------------


def test_mode_none_has_its_loopback_and_no_way_out_or_in(lab: Lab) -> None:
    before = snapshots.take(lab)
    lab.niso("activate", alone(lab))
    after = snapshots.take(lab)
    assert after["namespaces"] == ["niso-alone"]
    assert snapshots.differences(before["in the host"], after["in the host"]) == []
    assert lives_in(lab, "alone") == namespace(lab, "alone")
    links = lab.ip_json("address", netns="niso-alone")
    assert [(link["ifname"], "UP" in link["flags"]) for link in links] == [("lo", True)]
    assert {entry["local"] for entry in links[0]["addr_info"]} == {"127.0.0.1", "::1"}

    assert (
        answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    )  # and it may bind every port
    assert seen_in(lab, "alone", "hostname") == "hermit\n"
    assert seen_in(lab, "alone", "cat", "/etc/hostname") == "hermit\n"
    own = ["hermit.niso.local", "hermit", "alone.niso.local", "alone"]
    assert names_in(lab, "alone") == {"127.0.0.1": own, "::1": own}
    assert seen_in(lab, "alone", "cat", "/etc/hosts").count("localhost") > 1
    for name in ("hermit", "alone.niso.local"):
        assert (
            lab.niso("exec", "alone", "--", "/usr/bin/getent", "hosts", name).stdout.split()[0]
            == "::1"
        )
    for target in (HOST, CLIENT, "10.99.0.1"):
        done = lab.niso(
            "exec", "alone", "--", "/usr/bin/busybox", "nc", "-w1", target, "80", check=False
        )
        assert done.returncode != 0 and "unreachable" in done.stderr
    assert ask(lab, HOST, 80, "client") == ""
    # another one is apart, and one that shares its namespace is in it
    both = {"mode": "share", "share": "hermit"}  # by any name
    other = echo(lab, "other", 80, network={"mode": "none"})
    lab.niso("activate", other, echo(lab, "guest", 90, network=both))
    assert answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    assert answer(lab, "127.0.0.1", 80, "niso-other") == "other 127.0.0.1"
    assert answer(lab, "127.0.0.1", 90, "niso-alone").startswith("guest ")
    assert names_in(lab, "guest")["127.0.0.1"] == [*own, "guest.niso.local", "guest"]
    assert seen_in(lab, "guest", "hostname") == "hermit\n"
    lab.niso("remove", "guest", "other")

    assert lab.niso("net", "check").returncode == 0
    no_folders_but(lab, "=alone")
    lab.niso("deactivate", "alone")
    no_folders_but(lab)
    left = snapshots.take(lab)
    assert snapshots.differences({k: before[k] for k in KERNEL}, {k: left[k] for k in KERNEL}) == []


def test_what_is_lost_of_mode_none_is_told_and_put_right(lab: Lab) -> None:
    lab.niso("activate", alone(lab))
    lab.run("rm", "-r", "/run/niso/hosts/=alone")
    lab.run("ip", "-n", "niso-alone", "link", "set", "lo", "down")
    said = lab.niso("net", "check", check=False)
    assert said.returncode == 1
    assert (
        "hosts file /run/niso/hosts/=alone/hosts" in said.stdout
        and "network namespace niso-alone (up is False" in said.stdout
    )
    lab.niso("net", "repair")
    assert lab.niso("net", "check").returncode == 0
    assert answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    assert "hermit" in names_in(lab, "alone")["127.0.0.1"]
    lab.run("ip", "netns", "delete", "niso-alone")
    lab.niso("net", "repair")
    assert lives_in(lab, "alone") == namespace(lab, "alone")
    assert lab.niso("net", "check").returncode == 0
