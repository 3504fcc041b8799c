"""Takes steps on a machine, and judges each one."""

from __future__ import annotations

import copy
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterable

from kernel_snapshot import differences as snapshot_differences

from walk import compare, outside, probe, reach
from walk.draw import Draw
from walk.held import Held
from walk.machine import Ended, Machine
from walk.model import World
from walk.parts import INNER, Command, Step
from walk.refusals import AT_ONCE, classes

FLOWS = (24, 16, 8)
"""Connections after a step: answered ones, unanswered ones to services, other unanswered ones."""
PATIENCE_S = 8.0
"""How long processes that start again, links that go and answers may take on a busy machine."""
RECOVERS = ("activate", "deactivate", "remove", "restart", "port-forward", "stack", "restore")
"""Commands that first finish or undo what another one has left half-way (docs/design/failure.md).

A network that is half-made they leave: `net create` again, or `net repair`, completes it.
"""
CONTENT = "OK: the kernel matches the configuration\n"


class Failure(Exception):
    """Something is not as the model says."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


def _distinct(worlds: list[World]) -> list[World]:
    found: list[World] = []
    for world in worlds:
        if world not in found:
            found.append(world)
    return found


class Walker:
    """``steps`` are those taken, ``counts`` what was done."""

    def __init__(self, machine: Machine, seed: int | str, patience_s: float = PATIENCE_S) -> None:
        self.machine = machine
        self.worlds = [World()]
        self.steps: list[Step] = []
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(f"{seed} flows")
        self._half_way = self._half_network = self._damaged = False
        self._patience_s = patience_s
        self._held = Held()

    def walk(self, draw: Draw, count: int, until: float = float("inf")) -> None:
        """Take ``count`` steps, or fewer until a time (monotonic); then remove everything."""
        for _ in range(count):
            if time.monotonic() > until:
                break
            self.take(draw.step(self.worlds[0]))
        self.clear()

    def take(self, step: Step) -> None:
        """Take one step and judge it. Raises Failure."""
        self.steps.append(step)
        self.counts["steps"] += 1
        if step.kind != "command" or step.how or step.beside or self._half_way:
            self._held.close()
        if step.kind == "reboot":
            self._reboot()
        elif step.kind == "sweep":
            self._sweep()
        elif step.kind == "outside":
            self._outside(step)
        else:
            self._command(step)
        if step.kind == "command" and not self._half_way:
            self._hold()

    def _hold(self) -> None:
        """Ask the connections that are open, and open more. Raises Failure."""
        world, pids = self.worlds[0], self.machine.pids()
        every = reach.flows(world)
        wrong = self._held.judge(world, pids, {f._replace(wanted=""): f.wanted for f in every})
        self.counts["connections that stay"] += len(self._held)
        if wrong:
            raise Failure(wrong)
        some = [flow for flow in every if flow.wanted in world.services and flow.proto == "tcp"]
        self._held.add(self.machine.wire, world, pids, self._chance.sample(some, min(2, len(some))))

    def _repair(self, why: str) -> None:
        """Run `niso net repair`, which also recovers what a command has left half-way."""
        done = self.machine.quick("net", "repair")
        if done.status:
            raise Failure([f"net repair after {why}: {done.text}"])

    def clear(self) -> None:
        """Remove everything by niso's commands; nothing may be left. Raises Failure."""
        self._held.close()
        self._finish()
        if self.worlds[0].services:
            self.take(Step("command", Command(("remove", *self.worlds[0].services))))
        if self.worlds[0].networks:
            self.take(Step("command", Command(("net", "remove", *self.worlds[0].networks))))
        deadline = time.monotonic() + self._patience_s
        while left := snapshot_differences(self.machine.baseline, self.machine.snapshot()):
            if time.monotonic() > deadline:
                raise Failure(["after everything is removed:", *left])
            time.sleep(0.1)

    # --- commands -----------------------------------------------------------------

    def _command(self, step: Step) -> None:
        commands = [one for one in (step.command, step.beside) if one]
        self.counts["commands"] += len(commands)
        for command in commands:
            self.machine.write(command)
        ended = self.machine.run(*commands, how=step.how)
        self._sane(commands, ended)
        if step.how:
            self.counts[step.how.split()[0]] += 1
            self.counts["ended by that"] += bool(ended[0].status)
        if step.beside:
            self.counts["at once"] += 1
            worlds = self._both(commands, ended, bool(step.how) or self._damaged)
        elif step.how or self._damaged:
            worlds = self._disturbed(commands[0], ended[0])
        else:
            self.counts["refused"] += bool(ended[0].status)
            worlds = self._plain(commands[0], ended[0])
        recovers = commands[0].words[0] in RECOVERS and not any(end.status for end in ended)
        recovers = recovers and not self._damaged and "--dry-run" not in commands[0].words
        recovers = recovers and not self._half_network
        if step.how and step.leave:
            self._half_way, self.worlds = True, _distinct(worlds)
            self._half_network |= any(one.words[:2] == ("net", "create") for one in commands)
            if self.machine.quick("net", "check").out == CONTENT:
                self._fitting(worlds)  # it says nothing only if there is nothing half-way
            return
        if step.how or (self._half_way and not recovers):
            self._repair(f"a disturbed command, {ended[0].text}")
        self._half_way = self._half_network = self._damaged = False
        self.settle(worlds)

    def _sane(self, commands: list[Command], ended: list[Ended]) -> None:
        for command, end in zip(commands, ended, strict=True):
            if end.err.startswith("Fatal Python error: init_"):
                continue  # a signal while Python itself starts: niso has not begun
            if (
                "Traceback" in end.err
                or "bug in niso" in end.err
                or (end.status > 1 and end.status != 130)
            ):
                raise Failure([f"{command.text}: {end.text}"])

    def _plain(self, command: Command, ended: Ended) -> list[World]:
        """Return the worlds that may hold after an undisturbed command."""
        worlds: list[World] = []
        wrong = []
        for world in self.worlds:
            kinds, after = world.after(command)
            if command.words[0] == "restore":
                kinds = after[0].refusals
                after[0].refusals = set()
            found = classes(ended.err) if ended.status else set()
            if bool(kinds) == bool(ended.status) and (not kinds or (found and found <= kinds)):
                worlds += after
            else:
                wrong.append(f"wanted {' or '.join(sorted(kinds)) or 'success'}, got {ended.text}")
        if not worlds:
            raise Failure([f"{command.text}:", *wrong])
        return worlds

    def _disturbed(self, command: Command, ended: Ended) -> list[World]:
        """Return the worlds before and after; only the one after if the command says done."""
        worlds = []
        for world in self.worlds:
            kinds, after = world.after(command)
            if ended.status:
                worlds += [world.with_files(command), *after]
            elif not kinds:
                worlds += after
        if not worlds:
            raise Failure([f"{command.text}: wanted {', '.join(kinds)}, got {ended.text}"])
        return worlds

    def _both(self, commands: list[Command], ended: list[Ended], disturbed: bool) -> list[World]:
        """Return the worlds after two commands at once, in either order.

        With ``disturbed``, the first may have had no effect.
        """
        worlds: list[World] = []
        tried = []
        for order, world in itertools.product(([0, 1], [1, 0]), self.worlds):
            now = [world]
            for number in order:
                command, end = commands[number], ended[number]
                following: list[World] = []
                for one in now:
                    kinds, after = one.after(command)
                    found = classes(end.err) if end.status else set()
                    late = end.status and classes(end.err, AT_ONCE)
                    tried.append(f"{command.text}: wanted {', '.join(sorted(kinds)) or 'success'}")
                    undone = disturbed and number == 0 and end.status
                    if late or undone:
                        following.append(one.with_files(command))
                    as_said = bool(kinds) == bool(end.status) and found <= kinds
                    if as_said or (undone and not kinds):
                        following += after
                now = following
            worlds += now
            if now and order == [0, 1] and disturbed and all(end.status for end in ended):
                # the second was refused because of the first, which may be rolled back later
                worlds.append(world.with_files(commands[0]).with_files(commands[1]))
        if not worlds:
            got = [f"{one.text}: {end.text}" for one, end in zip(commands, ended, strict=True)]
            raise Failure(["at once, in no order:", *got, *dict.fromkeys(tried)])
        return worlds

    # --- other steps --------------------------------------------------------------

    def _reboot(self) -> None:
        self.counts["reboots"] += 1
        self._half_way = self._half_network = self._damaged = False
        self.machine.reboot()
        for world in self.worlds:
            world.reboot()
        command = Command(("restore",))
        ended = self.machine.run(command)
        self._sane([command], ended)
        self.settle(self._plain(command, ended[0]))

    def _finish(self) -> None:
        """End what a disturbed command has left half-way."""
        if self._half_way:
            self._repair("a disturbed command")
            self._half_way = self._half_network = self._damaged = False
            self.settle()

    def _sweep(self) -> None:
        """Remove everything from the kernel; then have the networks again."""
        self.counts["sweeps"] += 1
        self._finish()
        done = self.machine.quick("reset", "--yes")
        if done.status:
            raise Failure([f"reset --yes: {done.text}"])
        facts = self.machine.facts()
        left = [*facts["namespaces"], *facts["processes"], *facts["rules"]["tables"]]
        left += [name for name, link in facts["links"].items() if link["alias"].startswith("niso:")]
        if left:
            raise Failure([f"after a sweep: {left}"])
        for world in self.worlds:
            world.reboot()
        self._repair("a sweep")
        self.settle()

    def _outside(self, step: Step) -> None:
        what = step.what
        kind, _, name = what.rpartition(" ")
        self._finish()
        world = self.worlds[0]
        if not outside.possible(world, kind, name):
            return
        self.counts["outside"] += 1
        pids = self.machine.pids()
        on = world.services[name].manifest.on
        script = outside.script(kind, name, on[0] if on else "", pids.get(name, 0))
        self.machine.damage(script)
        if step.leave and kind not in outside.CLEAN_UP:
            self._half_way = self._damaged = True
            return
        if kind in outside.FLAWS:
            if self.machine.quick("net", "check").out == CONTENT:
                raise Failure([f"net check does not see it: {what}"])
            self._repair(what)
            if kind in outside.CLEAN_UP:
                self.machine.damage(outside.CLEAN_UP[kind])
        self.settle()

    # --- judging ------------------------------------------------------------------

    def settle(self, worlds: list[World] | None = None, trusting: bool = False) -> None:
        """Keep the worlds that the kernel matches; judge everything by the first. Raises Failure.

        With ``trusting``, `niso net check` and `niso ps` are not asked.
        """
        self.worlds = _distinct(self._fitting(worlds or self.worlds))
        self._judge(trusting)

    def _fitting(self, worlds: list[World]) -> list[World]:
        """Return the worlds that the kernel matches, with what it shows. Raises Failure."""
        deadline = time.monotonic() + self._patience_s
        while True:
            facts = self.machine.facts()
            judged = []
            for world in worlds:
                trial = copy.deepcopy(world)
                compare.learn(trial, facts)
                judged.append((compare.differences(trial, facts), trial))
            fitting = [world for lines, world in judged if not lines]
            if fitting or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if not fitting:
            lines = min((lines for lines, _ in judged), key=len)
            raise Failure(["the kernel is not as it should be:", *lines])
        return fitting

    def _judge(self, trusting: bool) -> None:
        wrong = [] if trusting else self._said()
        world = self.worlds[0]
        for home in world.active():
            it = world.services[home]
            listener = next((n for n in (home, *world.sharers(home)) if n in INNER), home)
            if it.manifest.provides:
                text = probe.hosts_file(
                    self.machine.wire, f"niso-{home}", INNER[listener], self._patience_s
                )
                wrong += compare.hosts_differences(world, home, text)
        some = self._flows(world)
        self.counts["connections"] += len(some)
        self.counts["answered connections"] += sum(bool(flow.wanted) for flow in some)
        self.counts["IPv6 connections answered"] += sum(bool(f.wanted) and f.six for f in some)
        wrong += probe.connect(self.machine.wire, some, self._patience_s)
        checked = None if trusting else self.machine.quick("net", "check")
        if checked and (checked.status, checked.out) != (0, CONTENT):
            wrong.append(f"net check: {checked.text}")
        if wrong:
            raise Failure(wrong)

    def _flows(self, world: World) -> list[reach.Flow]:
        """Draw connections: half are answered, and most others are to a service's own address."""
        every = reach.flows(world)
        leases = {
            lease
            for it in world.services.values()
            for lease in (*it.leases.values(), *it.leases6.values())
        }
        pools: list[list[reach.Flow]] = [[], [], []]
        for flow in every:
            pools[0 if flow.wanted else 1 if flow.address in leases else 2].append(flow)
        some: list[reach.Flow] = []
        for pool, count in zip(pools, FLOWS, strict=True):
            some += self._chance.sample(pool, min(count, len(pool)))
        return some

    def _said(self) -> list[str]:
        """Return where `niso ps` and `niso net list` differ from the model."""
        ended = self.machine.quick("ps", "--json")
        found = {row["service"]: row for row in json.loads(ended.out)} if not ended.status else {}
        fitting, wrong = [], []
        for world in self.worlds:
            lines = []
            said = {name: row["status"] for name, row in found.items()}
            wanted = {n: "running" if it.active else "inactive" for n, it in world.services.items()}
            if said != wanted:
                lines.append(f"ps: wanted {wanted}, found {said}")
            for name, row in found.items():
                it = world.services.get(world.home(name)) if name in world.services else None
                leases = []
                for network in it.manifest.on if it else ():
                    leases += [some[network] for some in (it.leases, it.leases6) if network in some]
                known = name in world.services and world.services[name].active
                if known and row["address"] != list(leases):
                    lines.append(f"ps: {name} has {row['address']}, wanted {leases}")
            wrong = wrong or lines
            if not lines:
                fitting.append(world)
        self.worlds = fitting or self.worlds
        return [] if fitting else wrong
