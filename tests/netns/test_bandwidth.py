"""Limit the bandwidth of services and attachments, by the queues that tc sees and by packets that are dropped."""

from __future__ import annotations

import json

from cni_driver import Plugin
from conftest import Lab
from services import idle, inspect, on

COUNT = """\
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
receiver.bind(("", 5000))
print("ready", flush=True)
receiver.settimeout(2)
number = 0
try:
    while True:
        receiver.recv(2000)
        number += 1
except TimeoutError:
    print(number, flush=True)
"""
SEND = """\
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(400):
    sender.sendto(bytes(1000), (sys.argv[1], 5000))
"""


def rates(lab: Lab, link: str, netns: str | None = None) -> tuple[str, int]:
    """(kind, bits per second) of the root queue of a link."""
    words = ("tc", "-j", "qdisc", "show", "dev", link, "root")
    (found,) = json.loads(lab.run(*words, netns=netns).stdout)
    return found["kind"], found.get("options", {}).get("rate", 0) * 8


def limits(lab: Lab, name: str) -> list[tuple[str, int]]:
    """Those of the first pair of a service: in and out."""
    first = inspect(lab, name)["endpoints"][0]
    return [
        rates(lab, first["host_interface"]),
        rates(lab, first.get("interface") or "eth0", f"niso-{name}"),
    ]


def sent(lab: Lab, source: str, to: str) -> int:
    """How many of 400 datagrams of 1,000 bytes arrive that are sent at once."""
    python = ("/usr/bin/python3", "-ISuc")
    receiver = lab.popen(*python, COUNT, netns=f"niso-{to}")
    assert receiver.stdout and receiver.stdout.readline() == b"ready\n"
    address = inspect(lab, to)["endpoints"][0]["address"][0]
    lab.run(*python, SEND, address, netns=f"niso-{source}")
    return int(receiver.stdout.readline())


def test_bandwidth_of_services(lab: Lab) -> None:
    manifest = {"bandwidth": {"in": "64K", "out": "100G"}}
    lab.niso("activate", idle(lab, "api", network=on("niso-default", **manifest)))
    lab.niso("activate", idle(lab, "web", network=on("niso-default")))
    assert limits(lab, "api") == [("tbf", 64_000), ("tbf", 100 * 10**9)]
    assert limits(lab, "web") == [("noqueue", 0)] * 2
    assert sent(lab, "api", "web") > 350
    # 64 KB pass at once or wait
    assert 20 < sent(lab, "web", "api") < 100
    pid = inspect(lab, "api")["pid"]
    network = on("niso-default", bandwidth={"out": "2M"})
    done = lab.niso("activate", "-v", idle(lab, "api", network=network))
    assert "tc -n niso-api qdisc replace dev eth0 root tbf rate 2000000bit" in done.stderr
    assert limits(lab, "api") == [("noqueue", 0), ("tbf", 2_000_000)]
    assert inspect(lab, "api")["pid"] == pid
    lab.niso("net", "check")
    lab.niso("activate", idle(lab, "api", network=on("niso-default")))
    assert limits(lab, "api") == [("noqueue", 0)] * 2


def test_bandwidth_of_attachments(lab: Lab) -> None:
    """By the command, which names the step that a kernel without the queue refuses, and by CNI."""
    lab.niso("net", "attach", "box", "--new", "--bandwidth", "in=10M,out=1M")
    assert limits(lab, "box") == [("tbf", 10**7), ("tbf", 10**6)]
    again = lab.niso("net", "attach", "box", "--new", "--bandwidth", "out=1M,in=10M")
    assert again.stdout.startswith("box: unchanged")
    lab.run("tc", "-n", "niso-box", "qdisc", "del", "dev", "eth0", "root")
    assert "bandwidth of niso-box eth0" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    assert limits(lab, "box") == [("tbf", 10**7), ("tbf", 10**6)]
    lab.niso("net", "attach", "box", "--new")
    assert limits(lab, "box") == [("noqueue", 0)] * 2
    lab.run("ip", "netns", "add", "pod")
    config = {"name": "pods", "type": "niso-cni", "capabilities": {"bandwidth": True}}
    path = f"{lab.environment['PATH'].partition(':')[0]}/niso-cni"
    plugin = Plugin(lab, path, config, ("1.0.0",))
    pod = {"CONTAINERID": "c1", "NETNS": "/run/netns/pod", "IFNAME": "eth0"}
    given = {"ingressRate": 8_000_000, "ingressBurst": 4294967295, "egressRate": 0}
    answer = plugin.call("ADD", extra={"runtimeConfig": {"bandwidth": given}}, **pod)
    assert answer.status == 0, answer.data
    assert limits(lab, "c1") == [("tbf", 8_000_000), ("noqueue", 0)]
    lab.niso("net", "check")
    assert plugin.call("DEL", **pod).status == 0
