"""Random commands, failures and kills on a kernel and processes in memory.

After each of them the whole plan has no step: what a command planned for its own scope was all that
it changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_world import Steps, World
from samples import samples

from niso.base.errors import Error
from niso.change import activate, journal, networks, outside_names_refresh, port_forward, repair
from niso.change.deactivate import deactivate, remove
from niso.plan.dns_answers import DnsAnswer
from niso.plan.records import PortMapping
from niso.plan.subnets import NetworkRequest

SERVICES = ("api", "db", "log", "web")
NETWORKS = ("front", "back", "side")
OUTSIDE = ("a.example", "b.example")
ADDRESSES = ("203.0.113.1", "203.0.113.2", "2001:db8:9::1")
STEPS = 25


class Walk:
    """Draw one command after another for a host."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.draw = world, random.Random(seed)
        self.done: list[str] = []
        self.now = 1e6

    def ask(self, names: list[str]) -> dict[str, tuple[DnsAnswer, ...]]:
        """Answer for outside names, or not."""
        return {name: (self.heard(4), self.heard(6)) for name in names}

    def heard(self, family: int) -> DnsAnswer:
        kind = self.draw.randrange(5)
        if kind == 0:
            return DnsAnswer(family, problem="no name server answered", silent=True)
        known = [address for address in ADDRESSES if (":" in address) == (family == 6)]
        return DnsAnswer(family, tuple(self.draw.sample(known, min(kind - 1, len(known)))), 60.0)

    def refresh(self) -> None:
        self.now += self.draw.choice((10, 100, 1000, 1e6))
        outside_names_refresh.refresh(self.world.machine)

    def manifest(self, name: str) -> str:
        """Write a manifest of a service; it changes one part or all."""
        draw = self.draw
        table: dict[str, Any] = {}
        mode = draw.choices(("bridge", "share", "none", "host"), (12, 4, 1, 1))[0]
        if mode == "share":
            table = {"mode": mode, "share": draw.choice(SERVICES)}
        elif mode != "bridge":
            table = {"mode": mode}
        else:
            table = {"networks": draw.sample(NETWORKS, draw.choice((1, 1, 2)))}
        if mode in ("bridge", "share") and draw.random() < 0.5:
            host = draw.choice(("", "127.0.0.1:"))
            table["ports"] = [f"{host}{draw.choice((8080, 8081, 8082))}:80"]
        more: dict[str, Any] = {}
        if mode == "bridge" and draw.random() < 0.4:
            peer = draw.choice((*SERVICES, f"network:{draw.choice(NETWORKS)}"))
            table["policy"] = {draw.choice(("allow_from", "deny_from")): [peer]}
            if draw.random() < 0.3:
                table["policy"]["mode"] = "audit"
        elif mode == "bridge" and draw.random() < 0.4:
            table["policy"] = {"egress": {"allow": draw.sample(OUTSIDE, draw.choice((1, 2)))}}
        if draw.random() < 0.3:
            more["environment"] = {"LEVEL": draw.choice("ab")}
        self.done.append(f"{name}: {table} {more}")
        return self.world.package(name, network=table, **more)

    def command(self) -> Callable[[], object]:
        """Return the next command."""
        draw, machine = self.draw, self.world.machine
        name = draw.choice(SERVICES)
        port = PortMapping(
            draw.choice(("", "127.0.0.1")), draw.choice((8080, 8081, 9090)), 80, "tcp"
        )
        some = draw.sample(SERVICES, draw.choice((1, 2)))
        forwards = self.world.store.all_forwards()
        held = draw.choice(forwards) if forwards else (name, port)
        replace = draw.random() < 0.5
        on = draw.choice(NETWORKS)
        what = draw.choices(range(9), (8, 2, 3, 2, 4, 2, 1, 1, 3))[0]
        if what == 0:
            manifests = [self.manifest(each) for each in some]
            return lambda: self.world.activate(*manifests)
        if what == 8:
            self.done.append("refresh")
            return self.refresh
        if what == 7:
            self.done.append(f"network {on}")
            return partial(self.network, on)
        words, command = (
            ("activate again", lambda: self.world.activate(name)),
            (f"deactivate {some}", lambda: deactivate(machine, some)),
            (f"remove {some}", lambda: remove(machine, some)),
            (
                f"forward {name} {port.text} {replace}",
                lambda: port_forward.port_forward(machine, name, port, replace=replace),
            ),
            (f"unforward {held}", lambda: port_forward.port_unforward(machine, *held)),
            (f"restart {some}", lambda: activate.restart(machine, some)),
        )[what - 1]
        self.done.append(words)
        return command

    def network(self, name: str) -> None:
        if self.world.store.network(name) is None:
            networks.create(self.world.machine, NetworkRequest(name))
        else:
            networks.remove(self.world.machine, [name])

    def step(self) -> None:
        """Run one command, which may be refused, break at one of its steps or be killed there."""
        command = self.command()
        breaks = self.draw.random() < 0.4
        steps = Steps(
            self.world, self.draw.randrange(1, 40) if breaks else 0, self.draw.random() < 0.5
        )
        self.done.append(f"    step {steps.number}, kill {steps.kills}")
        try:
            steps.run(command)
        except Error as error:
            self.done.append(f"    {error}")
            if steps.is_dead:  # while it undid a command that was refused
                self.world.reopen()
        if steps.has_broken and isinstance(command, partial):
            repair.repair_all(
                self.world.machine
            )  # the network is known, its bridge is not complete
        journal.recover(self.world.machine)
        outside_names_refresh.refresh(self.world.machine)  # as the timer does
        self.world.assert_whole()


@pytest.mark.parametrize("seed", range(samples(12, 1000)))
def test_what_a_command_plans_is_all_that_it_changes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(tmp_path) as world:
        walk = Walk(world, seed)
        monkeypatch.setattr(outside_names_refresh, "ask", walk.ask)
        monkeypatch.setattr(outside_names_refresh, "require", lambda: None)
        monkeypatch.setattr(outside_names_refresh, "time", SimpleNamespace(time=lambda: walk.now))
        for _ in range(STEPS):
            try:
                walk.step()
            except BaseException as error:
                error.add_note("\n".join(walk.done))
                raise
