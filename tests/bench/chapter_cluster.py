"""Benchmark networks over several hosts: three labs on one wire, each with a member of etcd and an agent."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from chapter_ports import RATES
from driver import Case, Chapter, Failed, Lab, flows_program, say
from figures import Found

HOSTS = ("a", "b", "c")
ENDS = ("client", "server")
BARE = {"underlay": 8, "underlay tracked": 12, "tunnel": 14, "tunnel tracked": 16}
"""Pairs of labs without niso -> the number of the first one on the wire."""
SWARM = ("swarm manager", "swarm worker")
AT_ONCE = 64
TTL_S = 10
WAIT_S = 40.0
HEAL_S = 6.0
"""How long members of etcd refuse each other's changes after one was lost, and more."""


@dataclass(frozen=True)
class Sizes:
    seconds: float
    rounds: int
    rounds_s: float
    names: int
    names_s: float
    flow_rounds: int
    flow_ms: int
    flow_s: float
    crowds: tuple[int, ...]
    losses: int
    idle_s: float
    request_ms: int


FULL = Sizes(420, 10, 20, 80, 25, 12, 250, 130, (1_000, 10_000), 2, 30, 4_000)
QUICK = Sizes(90, 4, 8, 15, 8, 4, 100, 12, (100, 1_000), 1, 5, 3_000)


class Wire:
    """A bridge in a network namespace that ends with the block, or after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._words = ["unshare", "--net", "sh", "-c", f"echo ready; exec sleep {seconds:.0f}"]

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(self._words, stdout=subprocess.PIPE)
        assert self._holder.stdout
        self._holder.stdout.readline()
        self.link("add wire type bridge mcast_snooping 0")
        self.link("set wire up")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()

    def link(self, words: str) -> None:
        enter = ["nsenter", "-t", str(self._holder.pid), "-n", "ip", "link"]
        subprocess.run([*enter, *words.split()], check=True)

    def connect(self, number: int, lab: Lab) -> str:
        """Connect a lab; return its address."""
        self.link(f"add to{number} type veth peer name under0 netns {lab.inside()}")
        self.link(f"set to{number} master wire up")
        address = f"198.51.100.{number}"
        lab.call("connect", address)
        return address


class Hosts:
    """The cluster: the network spans a, b and c; each has a service of its own name."""

    def __init__(self, labs: dict[str, Lab], wire: Wire) -> None:
        self.labs, self.wire = labs, wire
        place = {name: wire.connect(n, lab) for n, (name, lab) in enumerate(labs.items(), 1)}
        first = labs["a"]
        first.call("init", "a", place["a"])
        for name in HOSTS[1:]:
            labs[name].call("join", first.call("invite", name, place[name]))
        self.address = {name: lab.call("span", f"on-{name}") for name, lab in labs.items()}
        for lab in labs.values():
            lab.call("start_agent")
        self.settled()

    def settled(self) -> None:
        """Wait until each host knows the services of all."""
        for lab in self.labs.values():
            for name in HOSTS:
                lab.call("until_named", f"on-{name}", True, WAIT_S)

    def lost(self) -> dict[str, float]:
        """Cut c from the wire with its agent dead; measure until a leaves out its name, and have it back."""
        a, c = self.labs["a"], self.labs["c"]
        self.wire.link("set to3 down")
        began = time.monotonic()
        c.call("signal_agent", "SIGKILL")
        try:
            gone = a.call("until_named", "on-c", False, WAIT_S)
        finally:
            self.wire.link("set to3 up")
            c.call("start_agent")
            self.settled()
            time.sleep(HEAL_S)
        return {"host lost until its names go": gone - began}

    def member_killed(self, victim: str, ms: int) -> dict[str, float]:
        """Kill the member of etcd of one host while it claims, and another one's service is asked."""
        asking = self.labs["b" if victim == "c" else "c"]
        own = "b" if victim == "c" else "c"
        words = (self.address["a"], f"niso-on-{own}", self.address[own], ms)
        asking.ask("requests", *words)
        self.labs[victim].ask("claims_without_member", ms / 1000)
        found = asking.answer() | self.labs[victim].answer()
        self.labs[victim].call("start_etcd")
        time.sleep(HEAL_S)
        self.settled()
        return dict(found)

    def at_once(self) -> dict[str, float]:
        """Claims of all hosts at one time: how many different addresses, and until the last was made."""
        for lab in self.labs.values():
            lab.call("signal_agent", "SIGSTOP")
        try:
            at = time.monotonic() + 1.5
            counts = [AT_ONCE // len(HOSTS) + (n < AT_ONCE % len(HOSTS)) for n in range(len(HOSTS))]
            for lab, count in zip(self.labs.values(), counts, strict=True):
                lab.ask("claims_at_once", count, at)
            made = [address for lab in self.labs.values() for address in lab.answer()]
            took = time.monotonic() - at
        finally:
            for lab in self.labs.values():
                lab.call("signal_agent", "SIGCONT")
        return {
            "claims at once": len(made),
            "claims at once, different": len(set(made)),
            "claims at once, seconds": took,
        }


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Wire(sizes.seconds + 300) as wire, Chapter(sizes.seconds, leave_out) as chapter:
        try:
            flows = flows_program()
        except Failed as error:
            flows = ""
            chapter.found.lacks("traffic", "", 0, str(error))
        labs: dict[str, Lab] = {}
        for name in HOSTS:
            say(f"a lab for host {name}")
            if lab := chapter.lab("span-host", name, f"host {name}", flows):
                labs[name] = lab
        try:
            if len(labs) < len(HOSTS):
                raise Failed("not all three hosts are there")
            hosts = Hosts(labs, wire)
        except Failed as error:
            chapter.found.lacks("", "cluster", 0, str(error))
            return chapter.found
        parts: list[Callable[[], None]] = [
            partial(part, chapter, hosts, sizes) for part in (_idle, _attach, _names, _crowds)
        ]
        if flows:
            parts.append(partial(_traffic, chapter, hosts, sizes, flows))
        for part in (*parts, partial(_failures, chapter, hosts, sizes, bool(flows))):
            try:
                part()
            except Failed as error:  # what the other parts find is worth as much
                chapter.found.lacks("", "cluster", 0, str(error))
                say(f"cluster: {error}")
        return chapter.found


def _idle(chapter: Chapter, hosts: Hosts, sizes: Sizes) -> None:
    time.sleep(2)  # until the agents have looked
    for lab in hosts.labs.values():
        lab.ask("usage", sizes.idle_s)
    for lab in hosts.labs.values():
        for what, value in lab.answer().items():
            chapter.found.add(what, "agent", 0, 0, value)


def _attach(chapter: Chapter, hosts: Hosts, sizes: Sizes) -> None:
    lab = hosts.labs["a"]
    cases: dict[str, Case] = {
        "local": partial(lab.call, "attach", "backend", False),
        "span": partial(lab.call, "attach", "span", False),
        "local command": partial(lab.call, "attach", "backend", True),
        "span command": partial(lab.call, "attach", "span", True),
    }
    chapter.in_turn("attach over hosts", cases, 0, 0, sizes.rounds, sizes.rounds_s)
    cases = {"in a cluster": partial(lab.call, "network")}
    if alone := chapter.lab("niso", "alone"):
        cases["alone"] = partial(alone.call, "network")
    chapter.in_turn("attach of a local network", cases, 0, 0, sizes.rounds, sizes.rounds_s)


def _names(chapter: Chapter, hosts: Hosts, sizes: Sizes) -> None:
    numbers = iter(range(1_000_000))
    case = partial(_until_known, hosts.labs["a"], hosts.labs["b"], numbers, "appear")
    chapter.in_turn("names", {"b": case}, 0, 0, sizes.names, sizes.names_s)


def _until_known(near: Lab, far: Lab, numbers: Any, how: str) -> dict[str, float]:
    name = f"new{next(numbers)}"
    far.ask("until_named", name, True, WAIT_S)
    try:
        since = near.call(how, name)
    finally:
        seen = far.answer()
    near.call("vanish", name)
    what = "published" if how == "appear" else how
    return {f"{what} until known": max(0.0, seen - since) * 1000}


def _crowds(chapter: Chapter, hosts: Hosts, sizes: Sizes) -> None:
    cases: dict[str, Case] = {}
    at: dict[str, int] = {}
    for count in sizes.crowds:
        name = f"beside {count}"
        say(f"a host beside {count:,} services of others")
        if lab := chapter.lab("span-crowd", name, name):
            try:
                lab.call("fill", count, within_s=120)
                cases[name], at[name] = partial(lab.call, "change"), count
            except Failed as error:
                chapter.found.lacks("", name, 0, str(error))
    chapter.in_turn("services of others", cases, at, 0, sizes.rounds, sizes.rounds_s)


def _traffic(chapter: Chapter, hosts: Hosts, sizes: Sizes, flows: str) -> None:
    cases: dict[str, Case] = {}

    def case(who: str, lab: Lab, enter: str, address: str, source: str) -> None:
        cases[who] = partial(_rates, lab, enter, address, source, sizes.flow_ms)

    for who, number in BARE.items():
        try:
            case(who, *_bare(chapter, hosts.wire, who, number, flows))
        except Failed as error:
            chapter.found.lacks("traffic", who, 0, str(error))
    near, far = hosts.labs["a"], hosts.labs["b"]
    try:
        client, to = near.call("more", "client"), hosts.address["a"]
        caller, guarded = (
            far.call("guarded", "caller", ""),
            near.call("guarded", "guarded", "caller"),
        )
        near.call("until_named", "caller", True, WAIT_S, "guarded")
        far.call("until_named", "guarded", True, WAIT_S, "guarded")
        near.call("serve", ["on-a", "guarded"])
        case("span", far, "niso-on-b", to, hosts.address["b"])
        case("span policed", far, "niso-caller", guarded, caller)
        case("one host", near, "niso-client", to, client)
    except Failed as error:
        chapter.found.lacks("traffic", "span", 0, str(error))
    numbers = iter(range(1_000_000, 2_000_000))
    names: dict[str, Case] = {"span": partial(_until_known, near, far, numbers, "command")}
    if swarm := _swarm(chapter, hosts.wire, sizes, flows):
        cases["swarm"] = swarm
        ends = [chapter.lab("swarm", name, name) for name in SWARM]
        names["swarm"] = partial(_until_known, *ends, numbers, "command")
    chapter.in_turn("between hosts", cases, 0, 0, sizes.flow_rounds, sizes.flow_s)
    chapter.in_turn("names of commands", names, 0, 0, sizes.rounds, sizes.rounds_s)


def _bare(
    chapter: Chapter, wire: Wire, who: str, number: int, flows: str
) -> tuple[Lab, str, str, str]:
    """Two labs without niso; return the client's, its namespace, and the addresses of server and client."""
    kind = "span-tunnel" if who.startswith("tunnel") else "span-bare"
    ends = [lab for end in ENDS if (lab := chapter.lab(kind, who, f"{who} {end}", flows))]
    if len(ends) < len(ENDS):
        raise Failed(f"no labs for {who}")
    outer = [wire.connect(number + at, lab) for at, lab in enumerate(ends)]
    inner = outer
    if kind == "span-tunnel":
        inner = [lab.call("tunnel", at + 1, 2 - at, outer[1 - at]) for at, lab in enumerate(ends)]
    for lab in ends if who.endswith("tracked") else ():
        lab.call("track")
    ends[1].call("serve")
    return ends[0], "bare", inner[1], inner[0]


def _swarm(chapter: Chapter, wire: Wire, sizes: Sizes, flows: str) -> Case | None:
    """Two hosts of Docker Swarm, with a container each on one overlay network."""
    ends = []
    for name in SWARM:
        say(f"a lab for the {name}")
        if lab := chapter.lab("swarm", name, name, flows):
            ends.append(lab)
    if len(ends) < len(SWARM):
        return None
    try:
        for number, lab in enumerate(ends, 10):
            wire.connect(number, lab)
        manager, worker = ends
        worker.call("join", *manager.call("init"))
        to, source = manager.call("more", "server"), worker.call("more", "client")
        manager.call("serve", ["server"])
        case = partial(_swarm_rates, worker, to, source, sizes.flow_ms)
        case()
    except Failed as error:
        chapter.found.lacks("", "swarm", 0, str(error))
        say(f"swarm: {error}")
        return None
    return case


def _swarm_rates(lab: Lab, address: str, source: str, ms: int) -> dict[str, float]:
    return {
        proto: lab.call("rate_from", "client", proto, address, 80, ms, source) for proto in RATES
    }


def _rates(lab: Lab, enter: str, address: str, source: str, ms: int) -> dict[str, float]:
    return {proto: lab.call("load", proto, address, 80, ms, enter, source) for proto in RATES}


def _failures(chapter: Chapter, hosts: Hosts, sizes: Sizes, asks: bool) -> None:
    chapter.once("claims at once", "span", AT_ONCE, hosts.at_once)
    for victim in ("c", "b") if asks else ():
        case = partial(hosts.member_killed, victim, sizes.request_ms)
        chapter.once("a member of etcd is killed", "span", 0, case)
    for _ in range(sizes.losses):
        chapter.once("a host is lost", "span", 0, hosts.lost)
