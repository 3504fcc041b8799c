"""Random commands on hosts of a cluster in memory, with hosts cut off, lost answers, failures and kills.

Steps also begin in the middle of others, before and after each request to the engine. After each step, whatever its outcome: no address is two services', in the cluster or for any
kernel, and no kernel hears a service at an address that a policy takes for another one's. In the
end all hosts agree: each has what its store says, the cluster has what the stores say, and each
mirror what the cluster has.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_node import CLOCK, Node
from cluster_world import KEYS, SUBNETS
from fake_world import Steps
from fakes.engine import FakeEngine

from niso.base import locks, names, signals
from niso.base.errors import Conflict, Error
from niso.change import journal, networks, repair, targets
from niso.change.activate import activate
from niso.change.deactivate import deactivate, remove
from niso.cluster import mirror
from niso.cluster.engine import NoAnswer, decode
from niso.cluster.key_values import claim_of
from niso.cluster.membership import ClusterKeys
from niso.cluster.own_claims import STRAY_S, is_up
from niso.plan.policy_elements import PASSES
from niso.plan.subnets import NetworkRequest

HOSTS = ("a", "b", "c")
SERVICES = ("api", "db", "evil", "web")
LOST = ("there", "back", "late")
DEPTH = 3
"""So deep may steps be in the middle of others."""


def refuse(event: object) -> None:
    """End a command that would wait for a lock: what holds it goes on after this command only."""
    raise Conflict("what it needs is in use")


class Walk:
    """Some hosts, with an engine that all share: one in memory, or a real one, which goes its own ways.

    With ``connect``, hosts and networks are followed by watches of their own in threads.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        engine: Any = None,
        hosts: tuple[str, ...] = HOSTS,
        meanwhile: float = 0.1,
        connect: Callable[[], Any] | None = None,
    ) -> None:
        self.fake = FakeEngine() if engine is None else None
        self.engine = engine or self.fake
        self.draw = random.Random(seed)
        self.nodes = [Node(n, HOSTS.index(n) + 1, folder, self.engine, connect) for n in hosts]
        self.done: list[str] = []
        self.now_s = 0.0
        self.depth, self.meanwhile = 0, meanwhile
        for node in self.nodes:
            node.link.between = partial(self.between, node)
        locks.listener = refuse
        CLOCK.begin()
        for node in self.nodes if self.fake is None else self.nodes[:1]:
            with node:
                request = NetworkRequest("backend", SUBNETS, span=True)
                networks.create(node.world.machine, request)
        for node in self.nodes:
            node.keep()

    def close(self) -> None:
        locks.listener = None
        CLOCK.end()
        for node in self.nodes:
            with node:
                node.world._stored._before = node.state
                node.world.__exit__(None, None, None)

    def activation(self, node: Node) -> Callable[[], object]:
        draw, service = self.draw, self.draw.choice(SERVICES)
        table: dict[str, Any] = {
            "networks": draw.choice((["backend"], ["backend"], ["front"], ["front", "backend"]))
        }
        if draw.random() < 0.2 and table["networks"] == ["backend"]:
            table["ip"] = f"10.99.1.{draw.randrange(2, 7)}"
        if draw.random() < 0.3:
            table["aliases"] = [draw.choice(("x", "y"))]
        if draw.random() < 0.5:
            table["policy"] = {"allow_from": [draw.choice(SERVICES)]}
        take = draw.random() < 0.4
        self.say(f"{node.name}: activate {service} {table} {'--from-lost-host' * take}")
        more: dict[str, Any] = {}
        if service in ("web", "api") and draw.random() < 0.9:
            more = {
                "service": {"replicas": draw.choice((1, 2))},
                "healthcheck": {"command": ["true"]},
                "deploy": {"monitor": "0s", "drain": "0s"},
            }
        path = node.world.package(service, network=table, **more)

        def command() -> object:
            found = targets.find_targets(node.world.store, [path])
            return activate(node.world.machine, [t._replace(take=take) for t in found], 5.0)

        return command

    def command(self, node: Node) -> Callable[[], object]:
        draw, machine = self.draw, node.world.machine
        what = draw.choices(range(4), (8, 2, 3, 1))[0]
        if what == 0:
            return self.activation(node)
        known = [r.name for r in node.world.store.services() if r.name == names.owner(r.name)]
        if what == 3 or not known:
            self.say(f"{node.name}: network front")
            return partial(self.network, node)
        some = [draw.choice(known)]
        self.say(f"{node.name}: {'deactivate' if what == 1 else 'remove'} {some}")
        return (lambda: deactivate(machine, some)) if what == 1 else (lambda: remove(machine, some))

    def network(self, node: Node) -> None:
        machine = node.world.machine
        if node.world.store.network("front") is None:
            networks.create(machine, NetworkRequest("front", ("10.99.7.0/29",), span=True))
        else:
            networks.remove(machine, ["front"])

    def step(self) -> None:
        node, what = self.draw.choice(self.nodes), self.draw.random()
        if what < 0.5:
            self.run(node)
        elif what < 0.8:
            self.now_s += self.draw.choice((0, 1, 10, 10))
            self.look_at(node)
        elif what < 0.88:
            node.link.cut = not node.link.cut
            self.say(f"{node.name}: {'cut' if node.link.cut else 'healed'}")
        elif self.fake is None:
            node.keep()
        elif what < 0.91:
            self.say(f"{node.name}: hears")
            node.hear(self.now_s)
            if self.draw.random() < 0.1:
                self.fake.compact()
        elif what < 0.95:
            self.say("12 s pass")
            for _ in range(2):
                for each in self.nodes:
                    each.keep()
                self.fake.advance(6)
            node.hear(self.now_s)
        elif self.fake.late and self.draw.random() < 0.6:
            self.say("a late request arrives")
            self.fake.arrive()
        else:
            self.fake.lose.append(self.draw.choice(LOST))
            self.say(f"an answer is lost: {self.fake.lose[-1]}")

    def say(self, text: str) -> None:
        self.done.append(f"{'    ' * self.depth}{text}")

    def between(self, node: Node, point: str) -> None:
        """Let something else happen before or after a request of a host, or kill who sends it."""
        if (steps := node.steps[-1]) is not None:
            steps.request(point)
        if 0 < self.depth < DEPTH and self.draw.random() < self.meanwhile:
            self.say(f"{point} of {node.name}:")
            with self.aside(node):
                self.step()
                self.require_safe()

    @contextlib.contextmanager
    def aside(self, node: Node) -> Iterator[None]:
        """Have other processes run, which what is in progress does not see or fail."""
        places = {name: os.environ[name] for name in ("NISO_RUN_DIR", "NISO_STATE_DIR")}
        kernel, processes = node.world.kernel, node.world.processes
        fails, ahead_s = (kernel.fail, processes.fail), CLOCK.ahead_s
        node.steps.append(None)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(signals, "hit", lambda name: None)
                kernel.fail, processes.fail = lambda step: 0, lambda what: False
                yield
        finally:
            kernel.fail, processes.fail = fails
            node.steps.pop()
            os.environ.update(places)
            CLOCK.ahead_s = ahead_s

    def look_at(self, node: Node) -> None:
        if "look" in node.busy:
            return  # an agent is one thread
        number = self.draw.randrange(1, 40) if self.draw.random() < 0.1 else 0
        steps = Steps(node.world, number, True, node.store)
        whole = self.draw.random() < 0.4
        self.say(f"{node.name}: look{' whole' * whole}{f', killed at {number}' * bool(number)}")
        try:
            with self.busy(node, "look", steps):
                steps.run(partial(node.look, self.now_s, whole))
        except Error as error:
            self.say(f"    {error}")
        if steps.is_dead:
            node.start_agent()

    def run(self, node: Node) -> None:
        if "command" in node.busy:
            return
        command = self.command(node)
        breaks = self.draw.random() < 0.3
        number = self.draw.randrange(1, 60) if breaks else 0
        steps = Steps(node.world, number, self.draw.random() < 0.5)
        if breaks:
            self.say(f"    step {number}, kill {steps.kills}")
        try:
            with self.busy(node, "command", steps):
                steps.run(command)
        except Error as error:
            self.say(f"    {error}")
        if steps.has_broken and isinstance(command, partial):
            node.is_half = True  # the network is known, its bridge is not complete
        if self.draw.random() < 0.7:
            with self.busy(node, "command", None):
                self.recover(node)

    def recover(self, node: Node) -> None:
        if node.is_half:
            with contextlib.suppress(Conflict):
                repair.repair_all(node.world.machine)
                node.is_half = False
        journal.recover(node.world.machine)

    @contextlib.contextmanager
    def busy(self, node: Node, what: str, steps: Steps | None) -> Iterator[None]:
        node.busy.add(what)
        node.steps.append(steps)
        self.depth += 1
        try:
            with node:
                yield
        finally:
            self.depth -= 1
            node.steps.pop()
            node.busy.discard(what)

    # --- what is always so ---

    def require_safe(self) -> None:
        with contextlib.suppress(NoAnswer):
            self.require_unique()
        for node in self.nodes:
            with node:
                self.require_heard(node)

    def require_unique(self) -> None:
        """Each address and name is that of the claim which has it."""
        items = {item.key: item for item in self.engine.get(KEYS.prefix).items}
        held: set[str] = set()
        for key, item in items.items():
            if key.startswith(KEYS.services):
                claim = claim_of(item, KEYS)
                own = claim.keys(KEYS)
                assert not own & held
                held |= own
                for each in own:
                    assert decode(items[each].value, each)["service"] == claim.service
                for each in claim.address_keys(KEYS):
                    value = decode(items[each].value, each)
                    assert value["host"] in claim.hosts and value["gen"] == claim.gen
        below = f"{KEYS.prefix}net/"
        found = {key for key in items if key.startswith(below) and not key.endswith("/spec")}
        assert found == held

    def require_heard(self, node: Node) -> None:
        """Nobody is heard at an address that a policy of this host takes for another service's."""
        store, elements = node.world.store, node.world.kernel.elements.values()
        heard: dict[str, str] = {}
        for e in elements:
            if e.container == "vx44":
                address = e.fields[3]
                assert address not in heard, "two services"
                heard[address] = e.owner
        numbers = {(e.value[0], e.fields[3]) for e in elements if e.container == "vx44"}
        assert numbers == {e.fields for e in elements if e.container == "heard4"}
        macs = {
            names.mac(service, on, store.cluster_id()): service
            for service in (
                *SERVICES,
                *(f"{front}.{number}" for front in ("api", "web") for number in range(1, 100)),
            )
            for on in ("backend", "front")
        }
        for e in elements:
            if e.container == "vx44":
                assert macs[e.fields[2]] == e.owner
            if e.container == "in4_peer" and e.value == PASSES:
                own, peer = e.fields
                holder = store.lease_holder(own)
                if peer in heard and holder is not None and store.intent(holder) is None:
                    policy = store.policy(holder)
                    assert policy is not None and own != peer, f"{node.name}: {e}"
                    allowed = {entry.peer.name for entry in policy.allow_from or ()}
                    assert names.owner(heard[peer]) in allowed, f"{node.name}: {e}"

    # --- the end ---

    def heal(self) -> None:
        if self.fake is not None:
            self.fake.lose.clear()
            while self.fake.late:
                self.fake.arrive()
        self.meanwhile = 0
        for node in self.nodes:
            node.link.cut = False
            node.keep()
            with node:
                self.recover(node)

    def look(self) -> None:
        """Let the agents look, later than any claim is kept for nothing."""
        self.now_s += STRAY_S + 1
        for node in self.nodes:
            node.look(self.now_s)
            self.require_safe()

    def leave(self) -> None:
        """Remove all services: nothing is left of them."""
        for node in self.nodes:
            with node:
                remove(node.world.machine, [row.name for row in node.world.store.services()])
                node.world.assert_whole()

    def require_followed(self) -> None:
        """All that the watches have brought is what the engine has, once they go on."""
        deadline = time.monotonic() + 60
        for node in self.nodes:
            for kept in node.kept().values():
                while True:
                    have = {item.key: item for item in self.engine.get(kept.prefix).items}
                    if kept._is_followed and kept._items == have:
                        break
                    assert time.monotonic() < deadline, (kept._is_followed, kept._items, have)
                    time.sleep(0.1)

    def require_agreed(self) -> None:
        items = self.engine.get(KEYS.services).items
        hosts = ClusterKeys(self.engine).hosts()
        for node in self.nodes:
            if self.fake is not None:
                node.hear(self.now_s)
                roster = node.agent.read_hosts(self.fake, self.now_s)  # type: ignore[arg-type]
                assert list(roster[0]) == hosts, node.name
            with node:
                store = node.world.store
                node.world.assert_whole()
                spans = [n.name for n in store.networks() if n.span is not None]
                held = {r.service: r for r in store.across.claims()}
                own = {
                    item.key.removeprefix(KEYS.services): claim_of(item, KEYS, node.name)
                    for item in items
                    if node.name in claim_of(item, KEYS).hosts
                }
                assert held.keys() == own.keys(), (node.name, held, own)
                for name, claim in own.items():
                    row = store.service(name)
                    here = (node.name, row, claim, held[name])
                    assert row is not None and (claim.mark, claim.gen) == held[name][1:3], here
                    leased = dict.fromkeys(claim.networks, ())
                    for on, address in store.addresses(name):
                        leased[on] = (*leased.get(on, ()), address)
                    assert {on: leased[on] for on in claim.networks} == claim.networks, here
                    assert {*claim.names} == {*store.names(name)}
                for row in store.services():
                    if row.active and any(on in spans for on in row.networks):
                        assert row.name in own, f"{row.name} runs on {node.name} without a claim"
                found = {on: self.engine.get(KEYS.addresses(on)).items for on in spans}
                seen = mirror.seen(hosts, dict(found), KEYS).services
                others = {name: known.addresses for name, known in seen.items() if name not in own}
                assert store.across.addresses() == others
                for name, known in seen.items():
                    if name in own:
                        row = store.service(name)
                        up = row is not None and is_up(store, row)
                        assert {a.up for a in known.addresses} == {up or own[name].any_up}
