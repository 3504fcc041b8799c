"""Test names in running services: /etc/hosts, hostnames, resolv.conf, with glibc and busybox."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Lab, assert_whole
from services import (
    CLIENT,
    address,
    answer_names,
    busybox_rootfs,
    idle,
    on,
    package,
    refuse_names,
    set_resolver,
)

HEAD = "# written by niso; changes as services come and go\n127.0.0.1  localhost\n::1  localhost ip6-localhost ip6-loopback\n"


def seen(lab: Lab, name: str) -> str:
    """The services' lines of /etc/hosts as the service sees them."""
    text = str(lab.niso("exec", name, "--", "cat", "/etc/hosts").stdout)
    assert text.startswith(HEAD)
    lines = text.removeprefix(HEAD).splitlines(keepends=True)
    services = [line for line in lines if not line.endswith("  host.niso.local\n")]
    assert len(services) == len(lines) - 1
    return "".join(services)


def test_names_change_in_a_running_process_that_holds_nothing_open(lab: Lab) -> None:
    """The same process, started before the others are known, sees them come and go by glibc's look-up."""
    refuse_names(lab)
    script = (
        "import socket, time\nlast = None\nwhile True:\n"
        "    try:\n        now = socket.gethostbyname('late')\n"
        "    except OSError:\n        now = 'unknown'\n"
        "    if now != last:\n        print(now, flush=True)\n        last = now\n    time.sleep(0.02)\n"
    )
    lab.niso(
        "activate",
        package(
            lab, "reader", "/usr/bin/python3", "-ISu", "/app/look.py", files={"look.py": script}
        ),
    )

    def said(*lines: str) -> None:
        lab.wait_for(
            lambda: tuple(lab.niso("logs", "reader").stdout.splitlines()) == lines, 20, str(lines)
        )

    said("unknown")
    lab.niso("activate", idle(lab, "late"))
    said("unknown", "10.99.0.3")
    lab.niso("remove", "late")
    said("unknown", "10.99.0.3", "unknown")


def test_hosts_is_never_half_written(lab: Lab) -> None:
    """A reader reads all the while as others come and go: each text it gets is a whole one."""
    script = (
        "import time\nseen = set()\nwhile True:\n    text = open('/etc/hosts').read()\n"
        "    if text not in seen:\n        seen.add(text)\n        print(repr(text), flush=True)\n"
    )
    folder = package(
        lab, "reader", "/usr/bin/python3", "-ISu", "/app/read.py", files={"read.py": script}
    )
    lab.niso("activate", folder, *(idle(lab, f"s{number}") for number in range(3)))
    for _ in range(3):
        lab.niso("deactivate", "s0")
        lab.niso("deactivate", "s1", "s2")  # in one edit
        lab.niso("activate", "s0", "s1", "s2")
    lines = {f"10.99.0.{number + 3}  s{number}.niso.local s{number}\n" for number in range(3)}
    texts = [eval(line) for line in lab.niso("logs", "reader").stdout.splitlines()]
    assert len(texts) >= 3
    for text in texts:
        start = HEAD + "10.99.0.1  host.niso.local\n10.99.0.2  reader.niso.local reader\n"
        assert text.startswith(start) and text.endswith("\n")
        rest = text.removeprefix(start)
        assert set(rest.splitlines(keepends=True)) <= lines


def test_no_service_can_write_what_another_reads(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "root", service={"user": "0:0"}), idle(lab, "other"))
    before = seen(lab, "other")
    tries = (
        "echo 10.0.0.1 evil >> /etc/hosts; echo x > /etc/niso-hosts/hosts; rm -f /etc/niso-hosts/hosts; "
        "mv /etc/niso-hosts /etc/x; ln -sf /tmp /etc/niso-hosts/hosts; rm /etc/hosts; touch /etc/niso-hosts/y; "
        "mount -o remount,rw /etc/niso-hosts; chmod 777 /etc/niso-hosts/hosts; echo done"
    )
    done = lab.niso("exec", "root", "--", "sh", "-c", tries)
    assert done.stdout == "done\n" and done.stderr.count("\n") >= 9
    assert seen(lab, "other") == seen(lab, "root") == before


def test_look_ups_of_glibc_and_busybox_work_forward_and_reverse(lab: Lab) -> None:
    refuse_names(lab)
    box = package(
        lab, "box", "sleep", "1000", package={"rootfs": "rootfs"}, network={"aliases": ["crate"]}
    )
    busybox_rootfs(lab, f"{box}/rootfs")
    lab.niso("activate", box, idle(lab, "api", network={"aliases": ["web"]}))
    there = address(lab, "api")
    for name in ("api", "api.niso.local", "web", "web.niso.local"):
        found = lab.niso("exec", "api", "--", "getent", "hosts", name).stdout.split()
        assert found == [there, "api.niso.local", "api", "web.niso.local", "web"]
        # busybox' ping prints what it looked up and then wants a raw socket, which the service may not have
        looked = lab.niso("exec", "box", "--", "ping", "-c1", "-W2", name, check=False).stdout
        assert looked.startswith(f"PING {name} ({there})")
    assert (
        lab.niso("exec", "api", "--", "getent", "hosts", address(lab, "box")).stdout.split()[1]
        == "box.niso.local"
    )
    reverse = "import socket; print(socket.gethostbyaddr(socket.gethostbyname('crate'))[0])"
    assert (
        lab.niso("exec", "api", "--", "/usr/bin/python3", "-ISc", reverse).stdout
        == "box.niso.local\n"
    )
    looked = lab.niso("exec", "box", "--", "ping", "-c1", "localhost", check=False).stdout
    assert looked.startswith("PING localhost (127.0.0.1)")
    assert lab.niso("exec", "api", "--", "getent", "ahosts", "localhost").stdout.split()[0] in (
        "::1",
        "127.0.0.1",
    )
    assert lab.niso("exec", "api", "--", "getent", "hosts", "nobody", check=False).returncode == 2


@pytest.mark.parametrize("rootfs", [False, True], ids=["assembled", "own rootfs"])
def test_hostname_is_the_hostname_everywhere(lab: Lab, rootfs: bool) -> None:
    more = {"rootfs": "rootfs"} if rootfs else {}
    folder = package(lab, "api", "sleep", "1000", package=more, network={"hostname": "front"})
    if rootfs:
        busybox_rootfs(lab, f"{folder}/rootfs")
    lab.niso("activate", folder)
    found = lab.niso(
        "exec",
        "api",
        "--",
        "sh",
        "-c",
        "hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname",
    ).stdout
    assert found == "front\n" * 3


SERVE = """\
import socket
server = socket.create_server(("::", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""
CALL = """\
import socket, sys
for family in socket.AF_INET, socket.AF_INET6:
    to = socket.getaddrinfo(sys.argv[1], 8000, family, socket.SOCK_STREAM)[0][4]
    print(socket.create_connection(to[:2], timeout=2).recv(99).decode())
"""


def test_host_and_extra_hosts_are_reached_by_name_from_static_addresses(lab: Lab) -> None:
    """A program of the host answers each by its own address, over both families; on an internal network too."""
    set_resolver(lab, "search example.net\nnameserver 192.0.2.3\n")
    lab.niso(
        "net", "create", "in", "--subnet", "10.99.7.0/24", "--subnet", "fd00:7::/64", "--internal"
    )
    listener = lab.popen("python3", "-ISc", SERVE)
    more = {
        "extra_hosts": {"backup.example.com": "host-gateway", "nas": "192.0.2.7"},
        "dns": ["192.0.2.2"],
        "dns_search": ["lan"],
        "ip": ["10.99.7.30", "fd00:7::30"],
    }
    lab.niso(
        "activate", idle(lab, "api", network=on("in", **more)), idle(lab, "db", network=on("in"))
    )
    for name in ("host.niso.local", "backup.example.com"):
        done = lab.niso("exec", "api", "--", "/usr/bin/python3", "-ISc", CALL, name)
        assert done.stdout.split() == ["10.99.7.30", "fd00:7::30"]
    hosts = {
        name: lab.niso("exec", name, "--", "cat", "/etc/hosts").stdout for name in ("api", "db")
    }
    assert hosts["api"] == HEAD + (
        "10.99.7.1  backup.example.com\n10.99.7.1  host.niso.local\n"
        "10.99.7.2  db.niso.local db\n10.99.7.30  api.niso.local api\n192.0.2.7  nas\n"
        "fd00:7::1  backup.example.com\nfd00:7::1  host.niso.local\n"
        "fd00:7::2  db.niso.local db\nfd00:7::30  api.niso.local api\n"
    )
    assert "nas" not in hosts["db"] and "backup" not in hosts["db"]
    found = lab.niso("exec", "api", "--", "cat", "/etc/resolv.conf").stdout
    assert sorted(found.splitlines()) == ["nameserver 192.0.2.2", "search lan"]
    assert "192.0.2.3" in lab.niso("exec", "db", "--", "cat", "/etc/resolv.conf").stdout
    # an egress policy is not widened by a name, and the file follows what comes and goes
    policy = {"egress": {"allow": ["db"]}}
    lab.niso("activate", idle(lab, "api", network=on("in", policy=policy, **more)))
    done = lab.niso(
        "exec", "api", "--", "/usr/bin/python3", "-ISc", CALL, "host.niso.local", check=False
    )
    assert done.returncode == 1 and "TimeoutError" in done.stderr
    lab.niso("remove", "db")
    assert "db" not in lab.niso("exec", "api", "--", "cat", "/etc/hosts").stdout
    assert_whole(lab)
    listener.kill()
    listener.wait()


def test_resolv_conf_is_the_hosts_with_the_upstreams_of_a_loopback_resolver(lab: Lab) -> None:
    def seen_of(text: str, name: str) -> tuple[str, str]:
        set_resolver(lab, text)
        said = lab.niso("activate", idle(lab, name)).stderr
        return said, str(lab.niso("exec", name, "--", "cat", "/etc/resolv.conf").stdout)

    # without known upstreams it is left out
    said, found = seen_of("nameserver 127.0.0.1\nnameserver ::1\noptions edns0\n", "left")
    assert "niso: warning: " in said and "loopback" in said
    assert found == "options edns0\n"
    assert (
        lab.niso("exec", "left", "--", "getent", "hosts", "left").stdout.split()[0] == "10.99.0.2"
    )
    answer_names(lab)
    servers = "nameserver 192.0.2.2\nnameserver 192.0.2.3\n"
    lab.write("/run/systemd/resolve/resolv.conf", servers)
    said, found = seen_of("nameserver 127.0.0.53\noptions edns0\n", "upstream")
    assert "warning" not in said
    assert "".join(x for x in found.splitlines(True) if x.startswith("nameserver")) == servers
    text = "search example.net\nnameserver 192.0.2.2\noptions timeout:1\n"
    said, found = seen_of(text, "api")
    assert "warning" not in said and found == text


def test_name_servers_that_do_not_answer_are_named_once(lab: Lab) -> None:
    """An activation asks each name server once, `net check` always, and neither longer than a second."""
    lab.niso("net", "create", "in", "--internal")
    mute = "no name server of {} answers the host ({})"

    def warned(*argv: str) -> str:
        return str(lab.niso(*argv).stderr)

    # one refuses at once (ICMP port unreachable), and no machine has the address of the other
    both = f"{CLIENT}, 192.0.2.99"
    set_resolver(lab, f"nameserver {CLIENT}\nnameserver 192.0.2.99\n")
    began = time.monotonic()
    said = warned("activate", idle(lab, "api"))
    assert mute.format("api", both) in said and said.count("warning") == 1
    assert "warning" not in warned("restart", "api")  # asked since the boot
    assert mute.format("api", both) in warned("net", "check")
    assert mute.format("api", both) in warned("net", "check", "api")
    # services that reach no other machine, and those with name servers of their own
    lab.niso(
        "activate",
        idle(lab, "inner", network=on("in")),
        idle(lab, "none", network={"mode": "none"}),
        idle(lab, "outer", network={"mode": "host"}),
        idle(lab, "self", network={"dns": ["127.0.0.1"]}),
    )
    assert warned("net", "check").count("name server") == 1
    own = idle(lab, "alone", network={"dns": ["192.0.2.98"]})
    assert mute.format("alone", "192.0.2.98") in warned("activate", own)
    assert warned("net", "check").count("name server") == 2
    assert time.monotonic() - began < 60  # a query without a limit would take minutes
    server = answer_names(lab)
    silent = ("192.0.2.98", "lladdr", "02:00:00:00:00:98", "nud", "permanent", "dev", "uplink0")
    lab.run("ip", "neigh", "replace", *silent)
    said = warned("net", "check")  # the second of a mute one is not lost for the next
    assert mute.format("alone", "192.0.2.98") in said and mute.format("api", both) not in said
    assert "warning" not in warned("restart", "api")
    assert server.stdout and server.stdout.readline() == b"asked\n"


@pytest.mark.skipif(
    os.environ.get("NISO_TEST_LONG") != "1",
    reason="NISO_TEST_LONG=1 runs it: a minute of debootstrap",
)
def test_debian_of_its_own_runs_and_looks_names_up(lab: Lab, tmp_path: Path) -> None:
    """The bootstrapped tree is made outside the lab, which has no way out."""
    made = tmp_path / "debian"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "trixie", str(made)],
        check=True,
        capture_output=True,
        timeout=600,
    )
    debian = package(
        lab, "debian", "sleep", "1000", package={"rootfs": "rootfs"}, service={"user": "www-data"}
    )
    lab.path(f"{debian}/rootfs").mkdir()
    subprocess.run(["cp", "-a", f"{made}/.", str(lab.path(f"{debian}/rootfs"))], check=True)
    lab.niso("activate", debian, idle(lab, "api"))
    assert lab.niso("exec", "debian", "--", "getent", "hosts", "api").stdout.split() == [
        "10.99.0.3",
        "api.niso.local",
        "api",
    ]
    assert lab.niso("exec", "debian", "--", "id", "-un").stdout == "www-data\n"
    assert lab.niso("exec", "api", "--", "ping", "-c1", "-W2", "debian").returncode == 0
