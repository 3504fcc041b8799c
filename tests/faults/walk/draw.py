"""Draws the next step of a walk: mostly commands that can work, and some that must be refused."""

from __future__ import annotations

import random
from dataclasses import replace

from walk.model import World
from walk.outside import KINDS
from walk.parts import (
    ALIASES,
    CLIENT,
    CLIENT6,
    FIXED,
    FOLDER,
    HOST,
    HOST_PORTS,
    INNER,
    LOOPBACK,
    NETWORKS,
    RANGES,
    SERVICES,
    STACKS,
    Command,
    Entry,
    Manifest,
    Policy,
    Port,
    Stack,
    Step,
)

DISTURBED, AT_ONCE, OUTSIDE, REBOOT, DRY = 0.35, 0.1, 0.12, 0.03, 0.04
"""How many steps are disturbed, two commands at once, another program's, reboots, dry runs."""
SWEEP, STORY = 0.015, 0.03
"""How many steps are sweeps, and how many begin a story."""
LAST = (34, 41)
"""The failpoints of an activation on a network that exists, from its last transaction on, about."""
STEPS_OF = {"activate": 52, "stack": 60, "deactivate": 14, "remove": 16, "port-forward": 6}
"""Failpoints that commands pass, about; a later one disturbs nothing."""
ELSEWHERE = 0.05
"""How many activations are of another folder than the service's."""
DRY_RUNS = ("activate", "deactivate", "net", "stack")


def _about(command: Command) -> set[str]:
    """Return the services whose folders a command reads or writes."""
    named = {word.rpartition("/")[2] for word in command.words if "/" in word}
    stack = command.stack.services if command.stack else ()
    return {manifest.name for manifest in command.manifests} | named | set(stack)


class Draw:
    """Steps from a seed; what is drawn depends on the world before."""

    def __init__(self, seed: int | str) -> None:
        self.chance = random.Random(seed)
        # half of what is drawn is about two services, so that long stories happen to them
        self._favourites = self.chance.sample(SERVICES, 2)
        self._story: list[Step] = []

    def step(self, world: World) -> Step:
        """Return the next step."""
        if self._story:
            return self._story.pop(0)
        roll = self.chance.random()
        if roll > 1 - STORY:
            self._story = self._moved(world)
            return self._story.pop(0)
        if roll > 1 - STORY - SWEEP:
            return Step("sweep")
        if roll < REBOOT:
            return Step("reboot")
        if roll < REBOOT + OUTSIDE and world.active():
            leave = self.chance.random() < 0.3
            return Step("outside", what=self._outside(world), leave=leave)
        command = self.command(world)
        if command.words[0] in DRY_RUNS and self.chance.random() < DRY:
            dry = (*command.words, "--dry-run")
            return Step("command", Command(dry, command.manifests, command.stack))
        beside, how = None, ""
        if self.chance.random() < AT_ONCE:
            beside = self._beside(world, command)
        if self.chance.random() < DISTURBED:
            how = self._how(command)
        leave = bool(how) and self.chance.random() < 0.5
        return Step("command", command, beside, how, leave)

    def _moved(self, world: World) -> list[Step]:
        """Return steps that single draws hardly ever make.

        An inactive service, the only one of its network, is activated on another one. That dies at
        its end, where the network is dropped. The next command, about another service, undoes it.
        """
        name, other = self.chance.sample(SERVICES, 2)
        old, new = self.chance.sample(NETWORKS[:3], 2)
        gone = Step("command", Command(("remove", *world.services)))
        kept = [network for network, it in world.networks.items() if not it.implicit]
        empty = Step("command", Command(("net", "remove", *kept)))

        def activate(name: str, network: str, how: str = "") -> Step:
            manifest = Manifest(name, networks=(network,))
            command = Command(("activate", f"{FOLDER}/{name}"), (manifest,))
            return Step("command", command, how=how, leave=bool(how))

        return [
            *([gone] if world.services else []),
            *([empty] if kept else []),
            activate(other, new),
            activate(name, old),
            Step("command", Command(("deactivate", name))),
            activate(name, new, f"kill {self.chance.randint(*LAST)}"),
            Step("command", Command(("restart", other))),
        ]

    def _how(self, command: Command) -> str:
        point = self.chance.randint(1, STEPS_OF.get(command.words[0], 10))
        moment = self.chance.uniform(0.03, 0.4)
        ways = {
            f"kill {point}": 4,
            f"fail {point} {self.chance.choice(('EBUSY', 'ENOSPC'))}": 1,
            f"kill-after {moment:.3f}": 2,
            f"TERM {moment:.3f}": 1,
            f"INT {moment:.3f}": 1,
            f"INTS {moment:.3f}": 1,
        }
        (way,) = self.chance.choices(list(ways), list(ways.values()))
        return way

    def _outside(self, world: World) -> str:
        name = self.chance.choice(world.active())
        return f"{self.chance.choice(KINDS)} {name}"

    def _beside(self, world: World, first: Command) -> Command:
        """Return a command for the same time that writes none of the same files."""
        if self.chance.random() < 0.2:
            return Command(("net", "repair"))
        while True:
            second = self.command(world)
            files = {manifest.name for manifest in (*first.manifests, *second.manifests)}
            both = _about(first) & _about(second)
            if not files & both and not (first.stack and second.stack):
                return second

    # --- commands -----------------------------------------------------------------

    def command(self, world: World) -> Command:
        """Return a command."""
        known, active = list(world.services), world.active()
        draws = {
            self._activate: 30,
            self._again: 6 if known else 0,
            self._deactivate: 9 if active else 1,
            self._remove: 7 if known else 1,
            self._restart: 5 if active else 1,
            self._forward: 14 if known else 1,
            self._net: 9 if world.networks else 60,
            self._up: 7,
            self._down: 3,
            self._enable: 5 if known else 1,
        }
        (draw,) = self.chance.choices(list(draws), list(draws.values()))
        return draw(world)

    def _some(self, among: list[str] | tuple[str, ...]) -> list[str]:
        names = list(among) or list(SERVICES)
        if self.chance.random() < 0.5:
            names = [name for name in self._favourites if name in names] or names
        return self.chance.sample(names, min(len(names), 1 + (self.chance.random() < 0.2)))

    def _of(self, world: World, wanted: bool) -> list[str]:
        """Return some services, mostly ones that are active or not as ``wanted``."""
        if self.chance.random() < 0.1:
            return self._some(SERVICES)
        return self._some([name for name, it in world.services.items() if it.active == wanted])

    def _activate(self, world: World) -> Command:
        names = self._some(SERVICES)
        manifests = [self.manifest(world, name) for name in names]
        if self.chance.random() < ELSEWHERE:
            manifests = [replace(manifest, below="else") for manifest in manifests]
        known = {name: it.manifest.below for name, it in world.services.items()}
        moved = any(known.get(one.name, one.below) != one.below for one in manifests)
        option = ["--take-over"] if moved and self.chance.random() < 0.6 else []
        paths = [f"{FOLDER}/{manifest.place}" for manifest in manifests]
        return Command(("activate", *paths, *option), tuple(manifests))

    def _again(self, world: World) -> Command:
        return Command(("activate", *self._of(world, False)))

    def _deactivate(self, world: World) -> Command:
        if self.chance.random() < 0.1:
            return Command(("deactivate", "--all"))
        return Command(("deactivate", *self._of(world, True)))

    def _remove(self, world: World) -> Command:
        return Command(("remove", *self._of(world, self.chance.random() < 0.5)))

    def _restart(self, world: World) -> Command:
        return Command(("restart", *self._of(world, True)))

    def _forward(self, world: World) -> Command:
        forwarded = [(n, port) for n, it in world.services.items() for port in it.forwards]
        if forwarded and self.chance.random() < 0.35:
            name, port = self.chance.choice(forwarded)
            return Command(("port-forward", name, port.text, "--remove"))
        (name, *_) = self._of(world, True)
        option = self.chance.choice(((), (), ("--take-over",), ("--take-over",), ("--remove",)))
        return Command(("port-forward", name, self._port(name).text, *option))

    def _net(self, world: World) -> Command:
        name = self.chance.choice(NETWORKS)
        if self.chance.random() < 0.4:
            return Command(("net", "remove", name))
        options: tuple[str, ...] = ()
        if name == "fix" or self.chance.random() < 0.1:
            options = ("--subnet", f"{FIXED}.0/24")
        if self.chance.random() < (0.6 if name == "red" else 0.2):
            options = (*options, "--ipv6")
        if self.chance.random() < (0.9 if name == "inner" else 0.05):
            options = (*options, "--internal")
        return Command(("net", "create", name, *options))

    def _up(self, world: World) -> Command:
        names = tuple(self.chance.sample(SERVICES, self.chance.randint(1, 3)))
        manifests = [
            self.manifest(world, name)
            for name in names
            if name not in world.disk or self.chance.random() < 0.5
        ]
        stack = Stack(self.chance.choice(STACKS), names)
        return Command(("stack", "up", f"{FOLDER}/{stack.name}"), tuple(manifests), stack)

    def _down(self, world: World) -> Command:
        known = [it.stack for it in world.services.values() if it.stack]
        name = self.chance.choice(known or list(world.stacks) or [""])
        if not name:
            return self._net(world)
        return Command(("stack", "down", f"{FOLDER}/{name}"))

    def _enable(self, world: World) -> Command:
        verb = self.chance.choice(("enable", "enable", "disable"))
        return Command((verb, *self._some(list(world.services))))

    # --- manifests ----------------------------------------------------------------

    def manifest(self, world: World, name: str) -> Manifest:
        """Return a manifest: often the last one of the service, with one thing changed."""
        last = world.disk.get(name)
        if last is not None and self.chance.random() < 0.65:
            return self._changed(last)
        (mode,) = self.chance.choices(("bridge", "share", "none", "host"), (75, 13, 6, 6))
        if mode == "share":
            share = self.chance.choice([other for other in SERVICES if other != name])
            ports = self._ports(name) if self.chance.random() < 0.5 else ()
            return Manifest(name, mode, share=share, ports=ports)
        if mode != "bridge":
            return Manifest(name, mode)
        new = Manifest(name, networks=self._networks(), ports=self._ports(name))
        for _ in range(2):
            new = self._changed(new)
        return new

    def _changed(self, old: Manifest) -> Manifest:
        values = dict(vars(old))
        if old.mode != "bridge":
            if old.mode == "share":
                values["ports"] = self._ports(old.name)
            values["level"] = old.level + 1
            return Manifest(**values)
        what = self.chance.choice(
            ("ports", "ports", "networks", "policy", "policy", "names", "ip", "level", "health")
        )
        if what == "ports":
            values["ports"] = self._ports(old.name)
        elif what == "networks":
            values["networks"], values["ip"] = self._networks(), ""
        elif what == "policy":
            values["policy"] = self._policy(old.name)
            values["audit"] = self.chance.random() < 0.2
        elif what == "names":
            aliases = self.chance.choice(((), (self.chance.choice(ALIASES),)))
            values |= {"hostname": self.chance.choice(("", f"{old.name}-h")), "aliases": aliases}
        elif what == "ip":
            values |= {"networks": ("fix",), "ip": f"{FIXED}.{self.chance.choice((200, 201, 202))}"}
        elif what == "health":
            values["health"] = not old.health
        else:
            values["level"] = old.level + 1
        return Manifest(**values)

    def _networks(self) -> tuple[str, ...]:
        (count,) = self.chance.choices((1, 2), (4, 1))
        return tuple(self.chance.sample(NETWORKS[:3], count))

    def _port(self, name: str) -> Port:
        host = self.chance.choice(
            (*HOST_PORTS, *HOST_PORTS, self.chance.choice(list(INNER.values())))
        )
        at = self.chance.choice(("", "", "", LOOPBACK, HOST))
        return Port(host, INNER[name], self.chance.choice(("tcp", "tcp", "udp")), at)

    def _ports(self, name: str) -> tuple[Port, ...]:
        ports: list[Port] = []
        for _ in range(self.chance.choice((0, 1, 1, 2))):
            port = self._port(name)
            if self.chance.random() < 0.15:
                port = replace(port, host=self.chance.choice(RANGES), count=2)
            if not any(port.clashes(other) for other in ports):
                ports.append(port)
        return tuple(ports)

    def _policy(self, name: str) -> Policy:
        def some(least: int) -> tuple[Entry, ...]:
            count = self.chance.randint(least, 2)
            return tuple(dict.fromkeys(self._entry(name) for _ in range(count)))

        which = self.chance.randrange(5)
        return Policy(
            allow_from=some(0) if which in (1, 4) else None,
            deny_from=some(1) if which in (2, 4) else (),
            egress_allow=some(0) if which == 3 else None,
            egress_deny=some(1) if which in (3, 4) and self.chance.random() < 0.5 else (),
        )

    def _entry(self, name: str) -> Entry:
        others = [other for other in SERVICES if other != name]
        peer = self.chance.choice(
            (
                *(self.chance.choice(others) for _ in range(3)),
                f"network:{self.chance.choice(NETWORKS)}",
                self.chance.choice(
                    (CLIENT, CLIENT6, "10.99.0.0/16", "0.0.0.0/0", "::/0", *ALIASES)
                ),
            )
        )
        port = self.chance.choice((0, 0, self.chance.choice(list(INNER.values()))))
        return Entry(peer, port, self.chance.choice(("", "", "tcp", "udp")))
