"""Shared parts of attack tests: a host with services, both ends of attacks, and the defending rules.

Networks: ``backend`` (api, db, mallory) and ``frontend`` (web) have both families, ``old`` (plain, evil) has IPv4 only,
``inner`` (vault, mate) is internal with both. All attackers have full rights in their namespaces: the shots are raw frames.

An attack is first made without the rules that defend, where it must arrive, and then with them, where it must not and must be
counted. Each shot carries a mark of its own, by which the receivers know it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from conftest import Lab
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from services import BRIDGE_CALLS, filter_bridged, idle
from wire import Addresses, Ear, Link, Wire

HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
NEIGHBOUR = {4: "192.0.2.3", 6: "2001:db8::3"}
GATEWAY = {
    "backend": {4: "10.99.1.1", 6: "fd00:99:1::1"},
    "frontend": {4: "10.99.2.1", 6: "fd00:99:2::1"},
    "old": {4: "10.99.3.1"},
    "inner": {4: "10.99.4.1", 6: "fd00:99:4::1"},
}
SUBNETS = {
    "backend": ("10.99.1.0/24", "fd00:99:1::/64"),
    "frontend": ("10.99.2.0/24", "fd00:99:2::/64"),
    "old": ("10.99.3.0/24",),
    "inner": ("10.99.4.0/24", "fd00:99:4::/64"),
}
PORTS = {
    "api": ["8080:80", "127.0.0.1:8083:83"],
    "db": [],
    "mallory": [],
    "web": ["8081:80"],
    "plain": ["8082:80"],
    "evil": [],
    "vault": ["8092:80"],
    "mate": [],
}
NETWORK = {
    "api": "backend",
    "db": "backend",
    "mallory": "backend",
    "web": "frontend",
    "plain": "old",
    "evil": "old",
    "vault": "inner",
    "mate": "inner",
}
CAPABILITIES = {"mallory": ["NET_RAW"], "evil": ["NET_RAW"]}
EAR, LOOPBACK_EAR = 5555, 5556
ARRIVES_SECONDS = 30
ENOUGH = 10  # findings, after which a trial ends

Watcher = Link | Ear
Frames = list[Any]


class Rule(NamedTuple):
    """The rules of a chain that have all these words, as nft lists them."""

    table: str
    chain: str
    words: tuple[str, ...]


class Attack(NamedTuple):
    name: str
    sender: Link
    frames: Callable[[bytes, int], Frames]  # of a mark and a port number that no other shot has
    receivers: tuple[Watcher, ...]
    counted: bool = True
    dropped: int = 1  # how many of the frames it takes to be dropped; the others may pass


def create_networks(lab: Lab) -> None:
    """Create the networks of `SUBNETS`; ``inner`` is internal."""
    for name, subnets in SUBNETS.items():
        options = [word for subnet in subnets for word in ("--subnet", subnet)]
        lab.niso("net", "create", name, *options, *(["--internal"] if name == "inner" else []))


class World:
    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab, self.wire = lab, wire
        create_networks(lab)
        published = {
            name: [f"{e}/{proto}" for e in ports for proto in ("tcp", "udp")]
            for name, ports in PORTS.items()
        }
        lab.niso(
            "activate",
            *(
                idle(
                    lab,
                    n,
                    network={"network": NETWORK[n], "ports": ports},
                    isolation={"capabilities": CAPABILITIES.get(n, [])},
                )
                for n, ports in published.items()
            ),
        )
        # what the kernel itself would refuse on the way must not be what makes an attack fail
        lab.run(
            "sysctl",
            "-qw",
            *(
                f"net.ipv4.conf.{link}"
                for link in ("all.rp_filter=0", "uplink0.rp_filter=0", "all.accept_local=1")
            ),
        )
        self.of = {name: Addresses(lab, f"niso-{name}") for name in PORTS}
        self.bridge = {name: Addresses(lab, None, f"niso-{name}") for name in SUBNETS}
        self.host = Addresses(lab, None, "uplink0")
        self.link = {name: wire.link(f"niso-{name}", "eth0") for name in PORTS}
        self.link |= {f"niso-{name}": wire.link(None, f"niso-{name}") for name in SUBNETS}
        self.link |= {name: wire.link(name, "eth0") for name in ("client", "neighbour")}
        self.mac = {name: each.mac for name, each in self.of.items()}
        self.mac |= {name: Addresses(lab, name).mac for name in ("client", "neighbour")}
        self.ear = {4: Ear(wire, "0.0.0.0", EAR), 6: Ear(wire, "::", EAR)}
        self.loopback_ear = Ear(wire, "127.0.0.1", LOOPBACK_EAR)
        self.may_pass = self._may_pass()
        self._numbers = itertools.count(1)

    # --- shots --------------------------------------------------------------------------------------------------------

    def shoot(self, sender: Link, frames: Callable[[bytes, int], Frames]) -> bytes:
        """Send the frames of one shot; gives its mark."""
        number = next(self._numbers)
        mark = b"attack-%07d" % number
        for frame in frames(mark, 10_000 + number % 50_000):
            sender.send(frame)
        return mark

    @staticmethod
    def arrives(
        mark: bytes, receivers: Sequence[Watcher], seconds: float = ARRIVES_SECONDS
    ) -> bool:
        """Whether one of them sees the shot within that time."""
        end = time.monotonic() + seconds
        while not any(receiver.saw(mark) for receiver in receivers):
            if (left := end - time.monotonic()) <= 0:
                return False
            select.select(receivers, [], [], left)
        return True

    def arrived(self, shots: Mapping[str, tuple[bytes, Watcher]], seconds: float = 0.5) -> set[str]:
        """Return the names of the shots that their receivers see; all have the time together."""
        end = time.monotonic() + seconds
        return {
            name
            for name, (mark, receiver) in shots.items()
            if self.arrives(mark, [receiver], max(0.0, end - time.monotonic()))
        }

    def udp(self, source: str, target: str, mark: bytes, port: int, to: int = 80) -> Any:
        head = IPv6(src=source, dst=target) if ":" in target else IP(src=source, dst=target)
        return head / UDP(sport=port, dport=to) / Raw(mark)

    def _may_pass(self) -> dict[str, tuple[str, str, str, str, int]]:
        """For each receiver, by name, a datagram that it may see: sender, MAC, source, target, port."""
        mac, ip = self.mac, {name: each.ip4 for name, each in self.of.items()}
        router = {name: each.mac for name, each in self.bridge.items()}
        backend, backend6 = GATEWAY["backend"][4], GATEWAY["backend"][6]
        return {
            "niso-api:eth0": ("neighbour", self.host.mac, NEIGHBOUR[4], HOST[4], 8080),
            "niso-web:eth0": ("neighbour", self.host.mac, NEIGHBOUR[4], HOST[4], 8081),
            "niso-db:eth0": ("mallory", mac["db"], ip["mallory"], ip["db"], 80),
            "niso-plain:eth0": ("evil", mac["plain"], ip["evil"], ip["plain"], 80),
            "niso-vault:eth0": ("mate", mac["vault"], ip["mate"], ip["vault"], 80),
            "client:eth0": ("mallory", router["backend"], ip["mallory"], CLIENT[4], 9),
            "host:niso-backend": ("mallory", router["backend"], ip["mallory"], backend, 9),
            "host:niso-old": ("evil", router["old"], ip["evil"], GATEWAY["old"][4], 9),
            self.ear[4].name: ("mallory", router["backend"], ip["mallory"], backend, EAR),
            self.ear[6].name: ("mallory", router["backend"], self.of["mallory"].ip6, backend6, EAR),
        }

    def honest(self, watcher: Watcher) -> bool:
        """Whether a receiver sees what it may see: that it saw nothing of an attack says something only then."""
        if watcher is self.loopback_ear:
            mark = b"attack-%07d" % next(self._numbers)
            with self.wire.socket(None, socket.AF_INET, socket.SOCK_DGRAM, keep=False) as own:
                own.sendto(mark, ("127.0.0.1", LOOPBACK_EAR))
            return self.arrives(mark, [watcher])
        sender, mac, source, target, to = self.may_pass[watcher.name]
        head = Ether(src=self.mac[sender], dst=mac)
        # towards the client from a port that masquerading keeps: one that it chooses could be a published one, whose
        # first packet is dropped
        first, ports = (32_768, 1000) if watcher.name == "client:eth0" else (10_000, 50_000)
        mark = self.shoot(
            self.link[sender],
            lambda mark, port: [head / self.udp(source, target, mark, first + port % ports, to)],
        )
        return self.arrives(mark, [watcher])

    # --- rules --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def without(self, rules: Sequence[Rule]) -> Iterator[None]:
        """niso's tables less these rules, and plain bridges that learn and flood: what else would stop an attack is not what
        is judged.

        At the end niso repairs its tables (a listing of nft loses what it takes for implied, so it cannot be loaded again), and
        what was learned meanwhile is forgotten.
        """
        saved = self._listed()
        calls = {
            name: self.lab.ip_json("-d", "link", "show", f"niso-{name}")[0]["linkinfo"]["info_data"]
            for name in SUBNETS
        }
        before = self.lab.run(
            "sysctl", *(f"net.bridge.bridge-nf-call-{name}" for name in BRIDGE_CALLS)
        ).stdout
        handles = dict.fromkeys(place for rule in rules for place in self._handles(rule))
        self.lab.run("nft", "-f", "-", input="".join(f"delete rule {place}\n" for place in handles))
        # the routing rules refuse what the tables no longer drop: test_flushed
        for family in ("-4", "-6"):
            to_subnets = f"for i in $(seq 20); do ip {family} rule del pref 2 || exit 0; done"
            self.lab.run("sh", "-c", to_subnets)
        filter_bridged(self.lab, 0)
        self._bridges("nf_call_iptables 0 nf_call_ip6tables 0")
        ports = [
            link for link in self.lab.ip_json("link", "show", "type", "veth") if "master" in link
        ]
        self._set(f"{port['ifname']} type bridge_slave learning on flood on" for port in ports)
        try:
            yield
        finally:
            self.lab.run("sysctl", "-q", "-p", "-", input=before)
            for name, each in calls.items():
                words = f"nf_call_iptables {each['nf_call_iptables']} nf_call_ip6tables {each['nf_call_ip6tables']}"
                self._bridges(words, [name])
            self.heal()
            self.lab.niso("net", "repair")
            assert self._listed() == saved

    def _listed(self) -> str:
        text = "".join(
            self.lab.run("nft", "-s", "list", "table", *each.split()).stdout
            for each in ("inet niso", "bridge niso")
        )
        # some sets list their elements in the order in which they were added
        text = re.sub(
            r"elements = \{(.*?)\}",
            lambda found: str(sorted(each.strip() for each in found[1].split(","))),
            text,
            flags=re.DOTALL,
        )
        # what was seen, and ports of the host's programs: the rules' own memory
        return re.sub(
            r"\t(?:set|map) \w+ \{\n.*?\n\t\}\n",
            lambda found: "" if "flags dynamic" in found[0] else found[0],
            text,
            flags=re.DOTALL,
        )

    def _bridges(self, words: str, names: Iterable[str] = tuple(SUBNETS)) -> None:
        self._set(f"niso-{name} type bridge {words}" for name in names)

    def _set(self, changes: Iterable[str]) -> None:
        self.lab.run("ip", "-b", "-", input="".join(f"link set {change}\n" for change in changes))

    def _handles(self, rule: Rule) -> list[str]:
        listed = self.lab.run("nft", "-a", "list", "chain", *rule.table.split(), rule.chain).stdout
        found = [
            f"{rule.table} {rule.chain} handle {line.rpartition('# handle ')[2]}"
            for line in listed.splitlines()
            if all(word in line for word in rule.words)
            and not re.match(r"\s*(chain|table|type) ", line)
        ]
        assert found, f"no rule of {rule.table} {rule.chain} has {rule.words}:\n{listed}"
        return found

    def drops(self, chains: Sequence[tuple[str, str]]) -> int:
        """What the dropping rules of these (table, chain) have counted."""
        total = 0
        listings = []
        for table in sorted({table for table, _ in chains}):
            own = [("chain", *table.split(), chain) for of, chain in chains if of == table]
            # a chain is listed in half of the time of the small table, a sixth of that of the large one
            few = len(own) < (3 if "bridge" in table else 5)
            listings += own if few else [("table", *table.split())]
        for what in listings:
            listed = json.loads(self.lab.run("nft", "-j", "list", *what).stdout)["nftables"]
            for rule in (each["rule"] for each in listed if "rule" in each):
                if (f"{rule['family']} {rule['table']}", rule["chain"]) in chains and any(
                    "drop" in part or part.get("goto", {}).get("target") in ("refuse", "direct")
                    for part in rule["expr"]
                ):
                    total += sum(
                        part["counter"]["packets"] for part in rule["expr"] if "counter" in part
                    )
        return total

    def heal(self) -> None:
        """Forget what the host, its bridges and the services learned from lies."""
        self._bridges("fdb_flush")
        flush = "ip $1 $2 neigh flush all; ip $1 $2 -6 route flush proto ra"
        each = f'one() {{ {flush}; }}; one; for name; do one -n "niso-$name"; done'
        self.lab.run("sh", "-ec", each, "sh", *PORTS)

    # --- trials -------------------------------------------------------------------------------------------------------

    def prove(
        self,
        attacks: Sequence[Attack],
        defences: Sequence[Rule],
        counting: Sequence[tuple[str, str]],
    ) -> None:
        """That all attacks succeed without these rules, and with them fail and are counted by those chains.

        Raises AssertionError with a line for each that does not go so, for the first dozen or so.
        """
        found: list[str] = []
        marks: list[bytes] = []
        with self.without(defences):
            for attack in attacks:
                if len(found) > ENOUGH:
                    break
                mark = self.shoot(attack.sender, attack.frames)
                if not self.arrives(mark, attack.receivers):
                    found.append(
                        f"{attack.name}: does not arrive without the rules either, so it shows nothing"
                    )
        receivers = list(
            {
                receiver.name: receiver for attack in attacks for receiver in attack.receivers
            }.values()
        )
        found += [
            f"{receiver.name}: sees nothing of what it may see"
            for receiver in receivers
            if not self.honest(receiver)
        ]
        counted = self.drops(counting)
        for attack in attacks:
            if len(found) > ENOUGH:
                break
            mark = self.shoot(attack.sender, attack.frames)
            if attack.counted:
                before, counted = (
                    counted,
                    self._counted(counting, counted + attack.dropped, attack, mark),
                )
                if counted - before < attack.dropped:
                    found.append(
                        f"{attack.name}: {counted - before} counted, {attack.dropped} to drop"
                    )
            elif not all(self.honest(receiver) for receiver in attack.receivers):
                found.append(f"{attack.name}: a receiver sees nothing any more")
            marks.append(mark)
        found += [
            f"{receiver.name}: sees nothing any more of what it may see"
            for receiver in receivers
            if not self.honest(receiver)
        ]
        for attack, mark in zip(attacks, marks, strict=False):
            found += [
                f"{attack.name}: {receiver.name} got it"
                for receiver in attack.receivers
                if receiver.saw(mark)
            ]
        assert attacks and not found, f"{len(attacks)} attacks:\n" + "\n".join(found)

    def _counted(
        self, counting: Sequence[tuple[str, str]], wanted: int, attack: Attack, mark: bytes
    ) -> int:
        """What is counted as soon as it is as much as wanted, or the attack has come through, or after a while."""
        end = time.monotonic() + ARRIVES_SECONDS
        while (found := self.drops(counting)) < wanted and time.monotonic() < end:
            if any(receiver.saw(mark) for receiver in attack.receivers):
                break
        return found


def forget(lab: Lab, netns: str | None, link: str, addresses: list[str]) -> None:
    """Delete neighbour entries: no lie replaces niso's own, which are permanent."""
    for address in addresses:
        lab.run("ip", "neigh", "delete", address, "dev", link, netns=netns, check=False)
