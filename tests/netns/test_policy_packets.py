"""Compare the verdicts of `niso.plan.verdict` on every pair with the fate of real packets.

Worlds are drawn from a seed, which is in the test's name, so a failure can be run again: ``NISO_TEST_SEED=N`` runs that one.
``NISO_TEST_LONG=1`` runs many, with every cell.
"""

from __future__ import annotations

import base64
import os
import pickle
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import policy_cases
import pytest
from conftest import Lab
from policy_draws import HOST, OUTSIDE, SERVED, Topology
from policy_fates import Cell, Fate, Fates, Place, Seen, family, other
from services import idle
from wire import Wire

from niso.manifest import policy
from niso.plan import verdict as plan_verdict
from niso.plan.records import Policy
from niso.plan.verdict import PolicyContext, Verdict

LONG = os.environ.get("NISO_TEST_LONG") == "1"
SEED = os.environ.get("NISO_TEST_SEED")
SEEDS = [int(SEED)] if SEED else list(range(1, 21 if LONG else 2))
CELLS = 100_000 if LONG or SEED else 1500
ROUNDS = 6 if LONG or SEED else 3
LINK_LOCAL = "fe80::1"

WORLD = """\
import base64, pickle
from niso.reconcile.live_world import read_world
from niso.kernel.real import Kernel
from niso.store.store import Store
print(base64.b64encode(pickle.dumps(read_world(Kernel(), Store.open()))).decode())
"""


def engine_world(lab: Lab) -> PolicyContext:
    """What the engine judges by, as niso in the lab knows it."""
    found = pickle.loads(base64.b64decode(lab.run("python", "-c", WORLD).stdout))
    assert isinstance(found, PolicyContext)
    return found


class Wrong(NamedTuple):
    cell: Cell
    verdict: Verdict
    fate: Fate

    def __str__(self) -> str:
        said = self.verdict.dropped_by
        where = f"{self.verdict.destination} {self.verdict.port}"
        return (
            f"{self.cell}: {f'drop: {said.message}' if said else f'pass, to {where}'}; {self.fate}"
        )


def places(lab: Lab, services: list[str]) -> dict[Place, list[tuple[str, str, int]]]:
    """The addresses of every place; none of them is tentative any more."""

    def addresses(netns: str | None) -> list[tuple[str, str, int]]:
        def settled() -> list[tuple[str, str, int]] | None:
            links = lab.ip_json("address", netns=netns)
            infos = [(link, info) for link in links for info in link["addr_info"]]
            if any(info.get("tentative") for _, info in infos):
                return None
            return [
                (info["local"], link["ifname"], link["ifindex"])
                for link, info in infos
                if info["local"] != "::1"
                and (info["scope"] != "link" or info["local"] == LINK_LOCAL)
                if netns is None or link["ifname"] != "lo"
            ]

        found: list[tuple[str, str, int]] = lab.wait_for(
            settled, what=f"no tentative address of {netns or 'the host'}"
        )
        return found

    return {
        each: addresses(each)
        for each in (None, "client", "neighbour", *(f"niso-{name}" for name in services))
    }


def cells(
    fates: Fates, here: dict[Place, list[tuple[str, str, int]]], world: PolicyContext
) -> Iterator[Cell]:
    """A packet from every address of every place to each address that there is, by every protocol and port of interest."""
    leased = [
        a
        for known in world.services.values()
        for endpoint in known.endpoints
        for a in endpoint.addresses
    ]
    hosts = [address for address, _, _ in here[None] if address != LINK_LOCAL]
    outside = [each for of in OUTSIDE.values() for each in of]
    published = {
        (p.host_port + n, p.proto)
        for known in world.services.values()
        for p in known.ports
        for n in range(p.count)
    }
    for place, own in here.items():
        sources = [address for address, _, _ in own if address != LINK_LOCAL]
        for to in dict.fromkeys(
            (*leased, *hosts, *(outside if place else ()), "10.99.1.77", LINK_LOCAL)
        ):
            if to == LINK_LOCAL and not (place or "").startswith("niso-"):
                continue
            if (place is None and to == "10.99.1.77") or (
                to.startswith("127.") and place is not None
            ):
                continue
            by = sorted({link for _, link, _ in own}) if to == LINK_LOCAL else [""]
            for link in by:
                taken = fates.source(place, to, link)
                for source in sources:
                    if family(source) != family(to) or (place is None and source != taken):
                        continue
                    if to == LINK_LOCAL and (
                        taken is None or (source, link) not in [each[:2] for each in own]
                    ):
                        continue  # a service leads it by eth0 alone
                    yield from _flows(
                        Cell(place, source, to, None, "", link), to in hosts, published
                    )


def _flows(cell: Cell, to_host: bool, published: set[tuple[int, str]]) -> Iterator[Cell]:
    asked = [(port, proto) for proto in ("tcp", "udp", "sctp") for port in SERVED]
    if to_host:
        asked = [(port, proto) for port, proto in asked if port == SERVED[0]] + sorted(published)
    for port, proto in asked:
        if not (proto == "sctp" and cell.source.startswith("127.")):
            yield cell._replace(port=port, proto=proto)
    if not cell.source.startswith("127."):
        yield cell._replace(proto="icmp")
        yield cell._replace(proto=other(cell.place))


def judged(world: PolicyContext, cell: Cell) -> Verdict:
    return plan_verdict.decide(world, cell.source, cell.to, cell.port, cell.proto)


def expected(
    here: dict[Place, list[tuple[str, str, int]]], cell: Cell, verdict: Verdict
) -> set[Seen]:
    if not verdict.passes:
        return set()
    to = verdict.destination.address
    if to == LINK_LOCAL or to.startswith("127."):
        return {Seen(None, to, verdict.port)}
    own = {address for address, _, _ in here[cell.place]}
    at = next(place for place, found in here.items() if to in {address for address, _, _ in found})
    return {Seen(cell.place if to in own else at, to, verdict.port)}


def differences(
    fates: Fates,
    here: dict[Place, list[tuple[str, str, int]]],
    world: PolicyContext,
    chosen: list[Cell],
) -> tuple[list[Wrong], int]:
    """Where the engine and the kernel do not agree, and how many of the cells pass."""
    verdicts = {cell: judged(world, cell) for cell in chosen}
    chosen = [cell for cell in chosen if _is_served(verdicts[cell])]
    passing = {cell for cell in chosen if verdicts[cell].passes}
    found = fates.of(chosen, passing)
    wrong = []
    for cell in chosen:
        fate, should = found[cell], expected(here, cell, verdicts[cell])
        started = fate.started_at - {each.place for each in should}
        if fate.seen != should or fate.answered != bool(should) or started:
            wrong.append(Wrong(cell, verdicts[cell], fate))
    return wrong, len(passing)


def _is_served(verdict: Verdict) -> bool:
    """Whether anybody listens where it leads to; elsewhere nothing could be seen. The host's own has one port alone."""
    to = verdict.destination
    outside = any(to.address in found for found in OUTSIDE.values())
    return verdict.port in (
        None,
        *(SERVED if to.service or outside or not verdict.passes else SERVED[:1]),
    )


SENSOR = """\
import base64, pickle
from niso.kernel import policy_rules as nft_sensor
from niso.kernel import flow_memory as sensor
found = {name: {flow[:4] for flow in sensor.recorded(name)} for name in nft_sensor.SIZES}
print(base64.b64encode(pickle.dumps((found, sensor.missed()))).decode())
"""


def forget_everything(lab: Lab) -> None:
    code = "from niso.kernel import flow_memory, policy_rules; flow_memory.forget_all(policy_rules.SIZES)"
    lab.run("python", "-c", code)


class Run:
    """A world that is drawn, and changed several times, in one lab."""

    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab, self.wire = lab, wire
        self.compared = self.passed = 0
        self.flowing: set[tuple[str, str, str, int | None]] = set()
        for netns in ("client", "neighbour"):
            # their own way to the networks, which must lead nowhere
            lab.run("ip", "route", "add", "10.99.0.0/16", "via", HOST[4], netns=netns)
            lab.run("ip", "-6", "route", "add", "fd00:99::/32", "via", HOST[6], netns=netns)

    def world(self, seed: int, rounds: int, limit: int) -> None:
        draw = random.Random(seed)
        topology = Topology(draw)
        for kind in ("iptables", "ip6tables"):
            self.lab.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{kind}={draw.randint(0, 1)}")
        for name, cidrs in topology.networks.items():
            words = [word for cidr in cidrs for word in ("--subnet", cidr)]
            self.lab.niso(
                "net",
                "create",
                name,
                *words,
                *(["--internal"] if name in topology.internal else []),
            )
        self._activate(draw, topology, sorted(topology.services))
        self._keep_neighbours(topology)
        here = places(self.lab, sorted(topology.services))
        with Fates(self.wire, here, SERVED) as fates:
            for number in range(rounds):
                if number:
                    # one alone, several or all change at once
                    names = sorted(topology.services)
                    self._activate(
                        draw, topology, draw.sample(names, draw.choice((1, 1, 2, len(names))))
                    )
                self.compare(fates, here, draw, limit, f"seed {seed}, round {number}")
        gone = draw.choice(sorted(topology.services))
        self.lab.niso(draw.choice(("deactivate", "remove")), gone)
        here = places(self.lab, sorted(set(topology.services) - {gone}))
        with Fates(self.wire, here, SERVED) as fates:
            self.compare(fates, here, draw, limit, f"seed {seed}, without {gone}")

    def _keep_neighbours(self, topology: Topology) -> None:
        """Let services take neighbours that they know for valid: without a link-local address they could not ask again by themselves."""
        known = "for each in /proc/sys/net/ipv6/neigh/*/delay_first_probe_time; do echo 600 > $each; done"
        for name in topology.services:
            self.lab.run("sh", "-c", known, netns=f"niso-{name}")

    def _activate(self, draw: random.Random, topology: Topology, names: list[str]) -> None:
        quiet = draw.random() < 0.3
        folders = []
        for name in names:
            table = topology.network_table(draw, name, quiet)
            rules = topology.policy(draw)
            egress = rules.pop("egress", None)
            sections = {"network": table}
            if rules:
                sections["network.policy"] = rules
            if egress:
                sections["network.policy.egress"] = egress
            folders.append(idle(self.lab, name, **sections))
        self.lab.niso("activate", *folders)

    def compare(
        self,
        fates: Fates,
        here: dict[Place, list[tuple[str, str, int]]],
        draw: random.Random,
        limit: int,
        what: str,
    ) -> None:
        world = engine_world(self.lab)
        everything = list(cells(fates, here, world))
        chosen = everything if len(everything) <= limit else draw.sample(everything, limit)
        forget_everything(self.lab)
        wrong, passed = differences(fates, here, world, chosen)
        remembered = self.unlike_remembered(here, world, chosen)
        assert not remembered, "\n".join([what, *remembered[:40]])
        self.compared += len(chosen)
        self.passed += passed
        manifests = {name: known.policy for name, known in world.services.items()}
        assert not wrong, "\n".join(
            [
                f"{what}: {len(wrong)} of {len(chosen)} differ",
                *map(str, wrong[:40]),
                *map(str, manifests.items()),
            ]
        )

    def unlike_remembered(
        self, here: dict[Place, list[tuple[str, str, int]]], world: PolicyContext, sent: list[Cell]
    ) -> list[str]:
        """Where what the rules remember of these packets is not what the engine says of them.

        A datagram of a flow that is still tracked starts none.
        """
        found, missed = pickle.loads(base64.b64decode(self.lab.run("python", "-c", SENSOR).stdout))
        for name in ("refused", "audited"):  # those of other machines are in sets of their own
            found[name] |= found[f"{name}_outside"]
        passed = found["seen"] | found["entered"] | found["switched"] - found["refused"]
        passing, dropped, by_policy, audited = set(), set(), set(), set()
        for cell in sent:
            verdict = judged(world, cell)
            key = (cell.source, verdict.destination.address, cell.proto, verdict.port)
            own = {address for address, _, _ in here[cell.place]}
            involved = verdict.source.service or verdict.destination.service
            if not _is_served(verdict) or cell.proto not in plan_verdict.PORTED or not involved:
                continue
            if cell.place is None and not verdict.passes:
                # what the host sends passes each rule, also to an address that nobody has now
                passed.discard(key)
                continue
            stays = cell.to in own and verdict.destination.address == cell.to
            if stays or (cell.to.startswith("127.") and cell.place):
                continue
            if verdict.egress.audits or verdict.ingress.audits:
                audited.add(key)
            if verdict.passes:
                passing.add(key)
                continue
            dropped.add(key)
            if verdict.path.passes:
                by_policy.add(key)
        wrong = [f"missed: {missed}"] if any(map(any, missed.values())) else []
        wrong += [f"passed, but not seen: {key}" for key in passing - passed - self.flowing]
        missing = (audited & passing) - self.flowing - found["audited"]
        wrong += [f"would be denied, but not audited: {key}" for key in missing]
        wrong += [f"audited, but allowed: {key}" for key in found["audited"] - audited]
        self.flowing |= {key for key in passing if key[2] != "tcp"}
        wrong += [f"seen, but dropped: {key}" for key in passed - passing]
        wrong += [f"dropped, but not refused: {key}" for key in by_policy - found["refused"]]
        held = {key for key in found["direct"] if plan_verdict.holder_of(world, key[1])}
        refused = found["refused"] | held
        return wrong + [f"refused, but not dropped: {key}" for key in refused - dropped]


def check_world(seed: int) -> None:
    with Lab(300) as lab, Wire(lab) as wire:
        run = Run(lab, wire)
        began = time.monotonic()
        run.world(seed, ROUNDS, CELLS)
        took = time.monotonic() - began
        print(f"{run.compared} cells, {run.passed} of them pass, in {took:.1f} s")
        assert 0.02 * run.compared < run.passed < 0.98 * run.compared


@pytest.mark.parametrize("seed", SEEDS)
def test_engine_and_kernel_agree_in_drawn_worlds(seed: int) -> None:
    check_world(seed)


@pytest.mark.first
@pytest.mark.skipif(SEED is not None, reason="one seed is asked for")
def test_engine_and_kernel_agree_in_a_world_of_a_new_seed() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"NISO_TEST_SEED={seed}")
    check_world(seed)


def test_cases_of_kubernetes_conformance(lab: Lab) -> None:
    """The table is by hand: neither the engine nor the kernel may say anything else. One change after the other, in one world."""
    for name, number in (("backend", 1), ("frontend", 2)):
        lab.niso(
            "net",
            "create",
            name,
            "--subnet",
            f"10.99.{number}.0/24",
            "--subnet",
            f"fd00:99:{number}::/64",
        )
    was = {name: _case_package(lab, name, {}) for name in policy_cases.NETWORKS}
    lab.niso("activate", *was.values())
    here = places(lab, sorted(policy_cases.NETWORKS))
    policies: dict[str, dict[str, Any]] = {name: {} for name in policy_cases.NETWORKS}
    wrong = []
    world = engine_world(lab)
    with Wire(lab) as wire, Fates(wire, here, SERVED) as fates:
        asked = _case_cells(here)
        for case in policy_cases.CASES:
            after = {name: case.policies.get(name, {}) for name in policies}
            changed = [
                _case_package(lab, name, rules)
                for name, rules in after.items()
                if rules != policies[name]
            ]
            policies = after
            if changed:
                lab.niso("activate", *changed)
            services = {
                n: known._replace(policy=_parsed(after[n])) for n, known in world.services.items()
            }
            world = world._replace(services=services)
            passing = {
                cell for cell, (who, port) in asked.items() if case.passes(who, port, cell.proto)
            }
            fate = fates.of(list(asked), passing)
            for cell, (who, port) in asked.items():
                said, should = judged(world, cell).passes, cell in passing
                seen, answered = bool(fate[cell].seen or fate[cell].started_at), fate[cell].answered
                if {said, seen, answered} != {should}:
                    wrong.append(
                        f"{case.title}: {who} to {port}: {cell}: should be {should}, said {said}, {fate[cell]}"
                    )
    assert not wrong, "\n".join([f"{len(wrong)} differ", *wrong[:50]])


def _parsed(rules: dict[str, Any]) -> Policy:
    egress = rules.get("egress", {})
    lists = (
        rules.get("allow_from"),
        rules.get("deny_from", ()),
        egress.get("allow"),
        egress.get("deny", ()),
    )
    return policy.parse(*lists, False)


def _case_package(lab: Lab, name: str, rules: dict[str, Any]) -> str:
    ports = [
        f"80{port}:{port}/{proto}"
        for port in policy_cases.PORTS
        for proto in policy_cases.PROTOCOLS
    ]
    network = {"network": policy_cases.NETWORKS[name], "ports": ports if name == "s1" else []}
    rules = dict(rules)
    egress = rules.pop("egress", {})
    return idle(
        lab, name, **{"network": network, "network.policy": rules, "network.policy.egress": egress}
    )


def _case_cells(here: dict[Place, list[tuple[str, str, int]]]) -> dict[Cell, tuple[str, int]]:
    """Each packet to be sent, with who sends it and the port that it means."""
    found = {}
    for who in policy_cases.EVERYBODY:
        name, _, target = who.partition(">")
        place: Place = name if name == "client" else f"niso-{name}"
        for source, _, _ in here[place]:
            inside = next(
                a for a, _, _ in here[f"niso-{target or 's1'}"] if family(a) == family(source)
            )
            published = name in ("s4", "client")
            to = HOST[family(source)] if published else inside
            for port in policy_cases.PORTS:
                for proto in policy_cases.PROTOCOLS:
                    found[Cell(place, source, to, 8000 + port if published else port, proto)] = (
                        who,
                        port,
                    )
    return found
