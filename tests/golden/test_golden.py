"""Compare golden files: one folder per case, from manifests to the steps and the text for nft.

`before.toml` and `after.toml` are two worlds: networks, services by their manifests' own keys, ports that were forwarded to
them, and the host's sysctls as they were found. The store is filled with the first, then with the second, as commands do. `current.json` says what else is different in the kernel before the
steps are taken (see `disturb`). What follows is compared: `state.txt`, the desired State, one thing a line; `steps.txt`,
the words of the steps; `ruleset.nft`, all that nft gets, each transaction behind a comment. UPDATE=1 rewrites these.
tests/netns/test_golden_nft.py has the kernel judge each ruleset.
"""

from __future__ import annotations

import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fakes.kernel import Fake
from samples import samples
from stored import TemporaryStore, add_network, put, service_spec

from niso.base.names import DEFAULT_NETWORK
from niso.kernel import ruleset as kernel_ruleset
from niso.kernel.kinds import kind as kinds_kind
from niso.kernel.kinds.kind import AnyStep, State, diff
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.kernel.kinds.sysctls import FORWARDING
from niso.manifest.addresses_and_ports import parse_port
from niso.plan.desired import desired
from niso.plan.records import NetworkRecord, SubnetRecord
from niso.store.snapshots import ALL
from niso.store.store import Store

HERE = Path(__file__).parent
CASES = sorted(folder.name for folder in HERE.iterdir() if (folder / "after.toml").exists())
STATE_ID = "0123abcd"
UPDATE = os.environ.get("UPDATE") == "1"


def fill(store: Store, world: dict[str, Any]) -> None:
    """Make the store know the networks and services of one world, and only those of them that it has."""
    with store.transaction():
        for name, value in world.get("sysctls", {FORWARDING: "0"}).items():
            store.set_sysctl_before(name, value)
        for name, fields in world.get("networks", {}).items():
            if store.network(name) is None:
                subnets = tuple(
                    SubnetRecord(6 if ":" in cidr else 4, cidr, gateway)
                    for cidr, gateway in fields["subnets"]
                )
                internal = fields.get("internal", False)
                add_network(
                    store, NetworkRecord(name, "", fields.get("mtu", 1500), subnets, internal)
                )
        wanted = world.get("services", {})
        for row in store.services():
            if row.name not in wanted:
                store.set_inactive(row.name)
        for name, network in wanted.items():
            spec = service_spec(name, network=network)
            put(
                store,
                name,
                spec.network.networks,
                static=spec.network.addresses,
                ports=tuple(published.port for published in spec.network.ports),
                hostname=spec.network.hostname,
            )
            store.end_publishing(name)
            for port in world.get("forwards", {}).get(name, ()):
                store.add_forward(name, parse_port(port, "forwards"))
        for name in [
            name for name in store.network_names() if name not in world.get("networks", {})
        ]:
            for member, _ in store.members(name):
                store.forget(member)
            store.drop_network(name)


def disturb(kernel: Fake, what: dict[str, Any]) -> None:
    """Make the kernel different: rules of another version, files, pairs or namespaces that are lost."""
    kernel.ruleset = what.get("rules", kernel.ruleset)
    for folder in what.get("lost_hosts_files", []):
        del kernel.hosts[folder]
    for name in what.get("lost_netns", []):
        kernel.lose_netns(name)
    for service in what.get("lost_veths_of", []):
        for veth in [
            veth.name for veth in kernel.veths.values() if veth.netns == f"niso-{service}"
        ]:
            kernel.lose_veth(veth)


def worked_out(case: str) -> tuple[State, State, list[AnyStep]]:
    """(what is there, what should be, the steps) of a case; taking the steps has been tried."""
    folder = HERE / case
    current = (
        json.loads((folder / "current.json").read_text())
        if (folder / "current.json").exists()
        else {}
    )
    kernel = Fake(strict=True)
    with TemporaryStore() as store:
        store._db.execute("UPDATE meta SET value=? WHERE key='state_id'", (STATE_ID,))
        for file in ("before.toml", "after.toml"):
            if not (folder / file).exists():
                continue
            if file == "after.toml":
                disturb(kernel, current)
            fill(store, tomllib.loads((folder / file).read_text()))
            want = desired(store.snapshot(ALL))
            have = kernel.everything(want)
            steps = diff(want, have)
            kernel.write(steps)
    assert diff(want, kernel.everything(want)) == []
    return have, want, steps


def written(state: State) -> str:
    lines = []
    for kind in kinds_kind.KINDS:
        for obj in sorted(state[kind.type]):
            fields = " ".join(f"{name}={value!r}" for name, value in obj._asdict().items())
            lines.append(f"{type(obj).__name__} {fields}\n")
    return "".join(lines)


def ruleset(steps: list[AnyStep]) -> str:
    found = [step.statements for step in steps if isinstance(step, NftTransaction)]
    return "".join(
        f"# transaction {i}\n" + "".join(f"{s}\n" for s in each) for i, each in enumerate(found, 1)
    )


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    _, want, steps = worked_out(case)
    found = {
        "state.txt": written(want),
        "steps.txt": "".join(f"{step.describe()}\n" for step in steps),
        "ruleset.nft": ruleset(steps),
    }
    for name, text in found.items():
        path = HERE / case / name
        if UPDATE:
            path.write_text(text)
        assert path.read_text() == text, f"{case}/{name} (UPDATE=1 rewrites it)"


@pytest.mark.parametrize("seed", range(samples(5, 20)))
def test_goldens_over_each_other_in_random_order_end_where_they_should(seed: int) -> None:
    states = [state for case in CASES for state in worked_out(case)[:2]]
    random.Random(seed).shuffle(states)
    kernel = Fake(strict=True)
    for state in states:
        want = state.replace(Ruleset, [Ruleset(kernel_ruleset.DIGEST)] if state[Ruleset] else [])
        kernel.write(diff(want, kernel.everything(want)))
        have = kernel.everything(want)
        assert have == want
        assert diff(want, have) == []


def test_cases_are_there() -> None:
    assert len(CASES) >= 12
    assert DEFAULT_NETWORK in (HERE / "first-service" / "state.txt").read_text()
