"""Manifests, ports, policies and stacks of the walk, as data; and how they are written as TOML."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

FOLDER = "/tmp/walk"
HOST, CLIENT = "192.0.2.1", "192.0.2.2"
HOST6, CLIENT6 = "2001:db8::1", "2001:db8::2"
LOOPBACK = "127.0.0.1"
SERVICES = ("ada", "bob", "cyd", "dan", "eve")
INNER = {name: 8001 + number for number, name in enumerate(SERVICES)}
"""The port that each service listens on, TCP and UDP: they differ, so that all can share a namespace."""
CLIENT_PORT = 7000
HOST_PORTS = (9000, 9001, 9002)
RANGES = (9010, 9011)
"""The first host ports of ranges, which have two: manifests alone have them, no forward."""
RANGE_PORTS = (9010, 9011, 9012)
NETWORKS = ("red", "blue", "inner", "fix")
FIXED = "10.99.50"
"""Static addresses are in this /24, which network ``fix`` has if it is made for one of them."""
ALIASES = ("db", "web")
STACKS = ("shop", "farm")


@dataclass(frozen=True)
class Port:
    """A published port: ``host`` of the host address ``at`` ("" for all) leads to ``inner``.

    Or ``count`` in a row that lead to as many.
    """

    host: int
    inner: int
    proto: str = "tcp"
    at: str = ""
    count: int = 1

    @property
    def text(self) -> str:
        """As manifests and ``niso port-forward`` have it."""
        place = f"{self.at}:" if self.at else ""
        host, inner = (
            str(first) if self.count == 1 else f"{first}-{first + self.count - 1}"
            for first in (self.host, self.inner)
        )
        return f"{place}{host}:{inner}" + ("" if self.proto == "tcp" else "/udp")

    @property
    def each(self) -> list[tuple[int, int]]:
        """Return (host port, port inside) of all of them."""
        return [(self.host + n, self.inner + n) for n in range(self.count)]

    def clashes(self, other: Port) -> bool:
        """Whether a packet could be for both."""
        apart = {host for host, _ in self.each}.isdisjoint(host for host, _ in other.each)
        same = self.proto == other.proto and not apart
        return same and (self.at == other.at or not self.at or not other.at)

    def replaces(self, other: Port) -> bool:
        """Whether both are the same host port at the same address."""
        mine, its = ((one.proto, one.host, one.at, one.count) for one in (self, other))
        return mine == its


@dataclass(frozen=True)
class Entry:
    """A peer of a policy: a name, ``network:NAME``, an address or a prefix; a port; a protocol."""

    peer: str
    port: int = 0
    proto: str = ""

    @property
    def text(self) -> str:
        port = f":{self.port}" if self.port else ""
        is_six = ":" in self.peer and not self.peer.startswith("network:")
        return (
            (f"[{self.peer}]" if is_six and port else self.peer)
            + port
            + (f"/{self.proto}" if self.proto else "")
        )


@dataclass(frozen=True)
class Policy:
    """Lists of entries; an allow list of None allows everything."""

    allow_from: tuple[Entry, ...] | None = None
    deny_from: tuple[Entry, ...] = ()
    egress_allow: tuple[Entry, ...] | None = None
    egress_deny: tuple[Entry, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        lists = (self.allow_from, self.deny_from, self.egress_allow, self.egress_deny)
        return tuple(entry for some in lists for entry in some or ())


@dataclass(frozen=True)
class Manifest:
    """What a manifest.toml says, in the folder ``below``/``name``.

    ``level`` is an environment variable: another one restarts.
    """

    name: str
    mode: str = "bridge"
    networks: tuple[str, ...] = ("red",)
    ports: tuple[Port, ...] = ()
    hostname: str = ""
    aliases: tuple[str, ...] = ()
    ip: str = ""
    share: str = ""
    policy: Policy = Policy()
    audit: bool = False
    health: bool = False
    level: int = 0
    below: str = ""

    @property
    def on(self) -> tuple[str, ...]:
        """Its own networks."""
        return self.networks if self.mode == "bridge" else ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it holds, the hostname first."""
        names = (self.hostname or self.name, self.name, *self.aliases)
        return tuple(dict.fromkeys(names))

    @property
    def place(self) -> str:
        """Its folder, below `FOLDER`."""
        return f"{self.below}/{self.name}" if self.below else self.name

    @property
    def provides(self) -> bool:
        """Whether it has a namespace of its own."""
        return self.mode in ("bridge", "none")

    @property
    def home(self) -> tuple[tuple[str, ...], str]:
        """What those see who share its namespace: the names of these networks, and a hostname."""
        return self.on, self.hostname or self.name

    @property
    def text(self) -> str:
        """In short, for a failure's list: what differs from the default."""
        words = [f"{self.mode} {','.join(self.networks) if self.on else self.share}".strip()]
        words += [port.text for port in self.ports]
        words += [f"as {name}" for name in self.names if name != self.name]
        words += [f"ip {self.ip}"] if self.ip else []
        for field in fields(Policy):
            entries = getattr(self.policy, field.name)
            if entries or (entries is not None and "allow" in field.name):
                words.append(f"{field.name}=[{' '.join(entry.text for entry in entries)}]")
        words += ["audit"] if self.audit else []
        words += ["health"] if self.health else []
        words += [f"level {self.level}"] if self.level else []
        return f"{self.place}: {' '.join(words)}"

    @property
    def toml(self) -> str:
        network: dict[str, Any] = {"mode": self.mode}
        if self.mode == "bridge":
            network["networks"] = list(self.networks)
        if self.ports:
            network["ports"] = [port.text for port in self.ports]
        if self.hostname:
            network["hostname"] = self.hostname
        if self.aliases:
            network["aliases"] = list(self.aliases)
        if self.ip:
            network["ip"] = self.ip
        if self.share:
            network["share"] = self.share
        inner = str(INNER[self.name])
        lines = [
            *("[package]", f'name = "{self.name}"', 'version = "1"'),
            *("[binary]", 'entrypoint = "/usr/bin/python3"'),
            f'args = ["-ISu", "/app/agent.py", "{self.name}", "{inner}"]',
            *("[environment]", f'LEVEL = "{self.level}"'),
            *("[service]", 'restart = "always"', 'restart_delay = "50ms"', 'stop_timeout = "3s"'),
            *("[network]", *_keys(network)),
        ]
        if self.health:
            lines += ["[healthcheck]", f"tcp = {inner}", 'interval = "100ms"']
        said = {"allow_from": self.policy.allow_from, "deny_from": self.policy.deny_from or None}
        out = {"allow": self.policy.egress_allow, "deny": self.policy.egress_deny or None}
        for table, some in (("network.policy", said), ("network.policy.egress", out)):
            lists = {
                key: [e.text for e in entries]
                for key, entries in some.items()
                if entries is not None
            }
            mode = ['mode = "audit"'] if self.audit and table == "network.policy" else []
            if lists or mode:
                lines += [f"[{table}]", *_keys(lists), *mode]
        return "\n".join(lines) + "\n"


def _keys(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


@dataclass(frozen=True)
class Stack:
    """A stack.toml of services whose manifests are in their own folders."""

    name: str
    services: tuple[str, ...]

    @property
    def toml(self) -> str:
        lines = ["[stack]", f'name = "{self.name}"', "prefix = false"]
        for number, service in enumerate(self.services):
            lines += ["[[service]]", f'name = "{service}"', f'package = "{FOLDER}/{service}"']
            if number:
                lines.append(f'depends_on = ["{self.services[number - 1]}"]')
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Command:
    """Words after ``niso``, and the manifests and the stack.toml that are written before it runs."""

    words: tuple[str, ...]
    manifests: tuple[Manifest, ...] = ()
    stack: Stack | None = None

    @property
    def text(self) -> str:
        """In short, for a failure's list."""
        files = [manifest.text for manifest in self.manifests]
        files += [f"stack {self.stack.name}: {' '.join(self.stack.services)}"] if self.stack else []
        return " ".join(("niso", *self.words)) + (f"  {{{'; '.join(files)}}}" if files else "")


@dataclass(frozen=True)
class Step:
    """One step of a walk.

    ``kind`` is ``command``, ``reboot``, ``sweep`` or ``outside``. Of a command, ``how`` is how it is
    disturbed: "" or ``kill N`` (at failpoint N), ``kill-after S``, ``TERM S``, ``INT S`` (after S
    seconds), ``INTS S`` (twice), ``fail N ERRNO`` (failpoint N). ``beside`` runs at the same time.
    ``what`` is what another program does, and to whom. After what is disturbed or damaged comes
    `niso net repair`, or with ``leave`` the next step at once.
    """

    kind: str
    command: Command | None = None
    beside: Command | None = None
    how: str = ""
    leave: bool = False
    what: str = ""

    @property
    def text(self) -> str:
        """As a line of a failure's list."""
        if self.command is None:
            return f"{self.kind} {self.what}".strip() + ("  [left]" if self.leave else "")
        words = self.command.text + (f"  &  {self.beside.text}" if self.beside else "")
        return f"{words}  [{self.how}{', left' if self.leave else ''}]" if self.how else words


def dumped(steps: list[Step]) -> str:
    """Steps as JSON, a line each, for a rerun."""
    return "\n".join(json.dumps(asdict(step), separators=(",", ":")) for step in steps) + "\n"


def loaded(text: str) -> list[Step]:
    """Steps that `dumped` wrote."""
    return [_made(Step, json.loads(line)) for line in text.splitlines() if line.strip()]


_PARTS: dict[tuple[type, str], type] = {
    (Step, "command"): Command,
    (Step, "beside"): Command,
    (Command, "manifests"): Manifest,
    (Command, "stack"): Stack,
    (Manifest, "ports"): Port,
    (Manifest, "policy"): Policy,
    **{(Policy, field.name): Entry for field in fields(Policy)},
}


def _made(kind: type, values: dict[str, Any]) -> Any:
    """Build a dataclass from what JSON made of it."""
    arguments = {}
    for key, value in values.items():
        part = _PARTS.get((kind, key))
        if isinstance(value, list):
            arguments[key] = tuple(_made(part, each) if part else each for each in value)
        else:
            arguments[key] = _made(part, value) if part and value is not None else value
    return kind(**arguments)
