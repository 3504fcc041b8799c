"""Measure what flowtables and the bridge's own tracking would save: in a lab, on a kernel with both.

``./dev test-uml -- .venv/bin/niso lab -- .venv/bin/python -B tests/bench/offload.py FLOWS [ROUNDS]``, where
FLOWS is flows.c compiled. Each case is measured in turn with and without: nanoseconds for 256 KiB of one
connection (bulk), for the same in 182 packets (packets), and for one byte each way (turn), client and
server in one thread.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import time

PORT = "9000"
HOST, CLIENT = "192.0.2.1", "192.0.2.2"
FLOWTABLE = """
table inet niso {{
	flowtable quick {{ hook ingress priority filter; devices = {{ {devices} }}; counter; }}
}}
insert rule inet niso forward ct state established flow add @quick
"""
# the least that both ways of tracking inside a bridge need
BY_INET = """
table inet trial {
	chain forward { type filter hook forward priority 0; policy drop; ct state established accept; ct state new accept; }
}
"""
BY_BRIDGE = """
table bridge trial {
	chain forward { type filter hook forward priority 0; policy drop; ct state established accept; ct state new accept; ether type arp accept; }
}
"""


def sh(*words: str, text: str | None = None) -> str:
    """Run a command; return its output."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


def measured(flows: str, what: str, to: str, source: str, client: str, server: str) -> int:
    """Return nanoseconds, the fewest of 60 batches."""
    namespaces = [f"/run/netns/{name}" for name in (client, server)]
    for name in (client, server):
        segments = "1" if what == "packets" else "65535"
        sh("ip", "-n", name, "link", "set", "eth0", "gso_max_segs", segments)
    kind = "turn" if what == "turn" else "bulk"
    return int(sh(flows, "path", kind, "0", to, PORT, source, *namespaces))


def on(devices: str) -> None:
    """Add a flowtable to niso's rules."""
    sh("nft", "-f", "-", text=FLOWTABLE.format(devices=devices))


def off() -> None:
    """Remove the flowtable."""
    rules = sh("nft", "-a", "list", "chain", "inet", "niso", "forward").splitlines()
    for line in rules:
        if "flow add" in line:
            sh("nft", "delete", "rule", "inet", "niso", "forward", "handle", line.split()[-1])
    if "quick" in sh("nft", "list", "flowtables"):
        sh("nft", "delete", "flowtable", "inet", "niso", "quick")


def package(name: str, network: str, *lines: str) -> str:
    """Write a service that only waits; return its folder."""
    folder = pathlib.Path("/tmp/offload") / name
    folder.mkdir(parents=True)
    text = (
        f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "/bin/busybox"\nargs = ["sleep", "100000"]\n'
        f'[network]\nnetwork = "{network}"\n' + "".join(f"{line}\n" for line in lines)
    )
    (folder / "manifest.toml").write_text(text)
    return str(folder)


def in_turn(
    flows: str, rounds: int, title: str, path: tuple[str, ...], ways: dict[str, object]
) -> None:
    """Print the ratio of each way to the first."""
    for what in ("bulk", "packets", "turn"):
        found: dict[str, list[int]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (before, after) in ways.items():  # type: ignore[misc]
                before()
                found[way].append(measured(flows, what, *path))
                after()
        first = next(iter(ways))
        for way in ways:
            pairs = [one / other for one, other in zip(found[first], found[way], strict=True)]
            print(
                f"{title}, {what}, {way}: {statistics.median(found[way])} ns, least {min(found[way])},"
                f" {first} / {way} = {statistics.median(pairs):.3f}"
                f" ({min(pairs):.2f} to {max(pairs):.2f}), of the least {min(found[first]) / min(found[way]):.3f}",
                flush=True,
            )


def bridge(flows: str, rounds: int) -> None:
    """Measure both ways of tracking between two namespaces on a bridge of their own."""
    sh("ip", "link", "add", "trial", "up", "type", "bridge")
    for number, name in enumerate(("near", "far"), 1):
        sh("ip", "netns", "add", name)
        sh(
            "ip",
            "link",
            "add",
            name,
            "up",
            "master",
            "trial",
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            name,
        )
        sh("ip", "-n", name, "address", "add", f"10.98.0.{number}/24", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")

    def tracked(table: str, call: str) -> None:
        sh("nft", "-f", "-", text=table)
        sh("ip", "link", "set", "trial", "type", "bridge", "nf_call_iptables", call)

    def plain(family: str) -> None:
        sh("nft", "delete", "table", family, "trial")
        sh("ip", "link", "set", "trial", "type", "bridge", "nf_call_iptables", "0")

    ways = {
        "switched": (lambda: None, lambda: None),
        "br_netfilter": (lambda: tracked(BY_INET, "1"), lambda: plain("inet")),
        "nf_conntrack_bridge": (lambda: tracked(BY_BRIDGE, "0"), lambda: plain("bridge")),
    }
    in_turn(flows, rounds, "in a bridge", ("10.98.0.2", "10.98.0.1", "near", "far"), ways)


def main() -> None:
    flows, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9
    for name, subnet in (("one", "10.99.1.0/24"), ("two", "10.99.2.0/24")):
        sh("niso", "net", "create", name, "--subnet", subnet)
    sh(
        "niso",
        "activate",
        package("db", "one", f'ports = ["{PORT}:{PORT}"]'),
        package("web", "two"),
    )
    services = json.loads(sh("niso", "ps", "--json"))
    [web] = (row["address"][0] for row in services if row["service"] == "web")
    port = {
        network: next(
            link["ifname"]
            for link in json.loads(sh("ip", "-j", "link", "show", "master", f"niso-{network}"))
        )
        for network in ("one", "two")
    }
    for title, path, devices in (
        (
            "port",
            (HOST, CLIENT, "client", "niso-db"),
            ("uplink0, niso-one", f"uplink0, {port['one']}"),
        ),
        (
            "between networks",
            ("10.99.2.1", web, "niso-web", "niso-db"),
            ("niso-one, niso-two", f"{port['one']}, {port['two']}"),
        ),
    ):
        by_bridge, by_port = devices
        ways = {
            "without": (lambda: None, lambda: None),
            "with, on bridges": (lambda d=by_bridge: on(d), off),
            "with, on bridge ports": (lambda d=by_port: on(d), off),
        }
        in_turn(flows, rounds, title, path, ways)
        for each in devices:
            on(each)
            namespaces = [f"/run/netns/{name}" for name in path[2:]]
            process = subprocess.Popen(
                [flows, "path", "turn", "0", path[0], PORT, path[1], *namespaces],
                stdout=subprocess.DEVNULL,
            )
            time.sleep(0.2)
            listed = sh("conntrack", "-L", "-p", "tcp", "--dport", PORT)
            process.wait()
            print(title, each, "offloaded:", "[OFFLOAD]" in listed, flush=True)
            off()
    bridge(flows, rounds)


if __name__ == "__main__":
    main()
