"""Several labs as hosts of one cluster, on one underlay: a bridge in a throw-away network namespace.

Host N has 198.51.100.N and 2001:db8:51::N on under0.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from conftest import DEADLINE_SECONDS, Lab

from niso.base import names

CLUSTER = "5f0c21aa"
PORT, VNI, MTU = 4799, 4097, 1430
SUBNETS = {4: "10.99.1.0/24", 6: "fd00:99:1::/64"}

FILL = """\
import json, sys
from niso.store import span_rows
from niso.store.store import Store
wanted = json.load(sys.stdin)
store = Store.open()
db = store._db
with store.transaction():
    db.execute("INSERT OR REPLACE INTO meta VALUES ('cluster', ?)", (json.dumps({"id": wanted["cluster"]}),))
    store.across.set_span("backend", *wanted["span"])
    for name, addresses in wanted["own"]:
        store.across.set_claim(span_rows.ClaimRow(name, "mark", 1, {"backend": addresses}))
    db.execute("DELETE FROM remote")
    db.execute("DELETE FROM remote_name")
    for host, address, live in wanted["peers"]:
        store.across.set_peer(host, host, address, live)
    for name, host, addresses in wanted["remotes"]:
        rows = [span_rows.RemoteAddress("backend", 6 if ":" in a else 4, a, name, host, 1, True) for a in addresses]
        store.across.set_service(name, rows, [name])
"""


class Service(NamedTuple):
    """A service with its claimed addresses."""

    name: str
    host: str
    addresses: tuple[str, ...]

    @property
    def mac(self) -> str:
        return names.mac(self.name, "backend", CLUSTER)


class Host(NamedTuple):
    name: str
    lab: Lab
    address: dict[int, str]
    mac: str  # of under0
    middle: tuple[str, ...]  # what runs a program in the namespace between the hosts


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@contextlib.contextmanager
def underlay(*hosts: str, seconds: int = DEADLINE_SECONDS) -> Iterator[list[Host]]:
    """Start a lab for each host, which ends by itself after that time, and connect them."""
    with contextlib.ExitStack() as stack:
        # it holds the namespace, and ends by itself
        holder = stack.enter_context(
            subprocess.Popen(
                ["unshare", "--net", "sh", "-c", f"echo ready; exec sleep {seconds + 180}"],
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(holder.kill)
        assert holder.stdout and holder.stdout.readline()
        middle = ("nsenter", "-t", str(holder.pid), "-n")

        def there(words: str) -> None:
            subprocess.run([*middle, "ip", *words.split()], check=True)

        there("link add mid type bridge mcast_snooping 0")
        there("link set mid up")
        made = []
        for number, name in enumerate(hosts, 1):
            lab = stack.enter_context(Lab(seconds))
            address = {4: f"198.51.100.{number}", 6: f"2001:db8:51::{number}"}
            mac = f"02:00:c6:33:64:{number:02x}"
            far = f"name under0 address {mac} netns {lab.pid}"
            there(f"link add to{number} type veth peer {far}")
            there(f"link set to{number} master mid up")
            lab.run("ip", "link", "set", "under0", "up")
            # else the kernel takes them away when the link is set down, and nobody adds them
            lab.run("sysctl", "-qw", "net.ipv6.conf.under0.keep_addr_on_down=1")
            lab.run("ip", "address", "add", f"{address[4]}/24", "dev", "under0")
            lab.run("ip", "address", "add", f"{address[6]}/64", "dev", "under0", "nodad")
            made.append(Host(name, lab, address, mac, middle))
        yield made


def network(host: Host, *more: str) -> None:
    subnets = [word for subnet in SUBNETS.values() for word in ("--subnet", subnet)]
    host.lab.niso("net", "create", "backend", *subnets, "--mtu", str(MTU), *more)


def fill(
    host: Host, hosts: list[Host], services: list[Service], family: int, gone: tuple[str, ...] = ()
) -> None:
    """Write what a host's mirror would have, and have its kernel follow."""
    wanted: dict[str, Any] = {
        "cluster": CLUSTER,
        "span": [VNI, PORT, host.address[family]],
        "peers": [
            [other.name, other.address[family], other.name not in gone]
            for other in hosts
            if other is not host
        ],
        "own": [[each.name, each.addresses] for each in services if each.host == host.name],
        "remotes": [list(service) for service in services if service.host != host.name],
    }
    host.lab.run(sys.executable, "-c", FILL, input=json.dumps(wanted))
    host.lab.niso("net", "repair")
