"""Services whose policies change while flows between them are open."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from conftest import Lab, assert_whole
from policy_flows import Asked, Flow, Flows
from services import idle
from wire import Addresses, Wire

HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")


class Shop:
    """Services on the network ``backend``, which has both families; manifests are written anew with each `policy`."""

    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab = lab
        self.flows = Flows(wire)
        self._tables: dict[str, dict[str, Any]] = {}
        self._ports = itertools.count(100)
        lab.niso(
            "net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64"
        )

    def write(self, name: str, rules: dict[str, Any] | None = None, **network: Any) -> str:
        """The manifest of a service, with what was said of its network before; gives its folder."""
        self._tables[name] = self._tables.get(name, {"network": "backend"}) | network
        rules = dict(rules or {})
        egress = rules.pop("egress", None)
        sections: dict[str, dict[str, Any]] = {"network": self._tables[name]}
        if rules:
            sections["network.policy"] = rules
        if egress:
            sections["network.policy.egress"] = egress
        return idle(self.lab, name, **sections)

    def activate(self, *names: str, **network: Any) -> None:
        self.lab.niso("activate", *(self.write(name, **network) for name in names))

    def policy(self, name: str, rules: dict[str, Any] | None) -> None:
        """Activate a service with these rules. No process starts anew, and `niso net check` finds all as it should be."""
        before = self.pids()
        self.lab.niso("activate", self.write(name, rules))
        assert self.pids() == before
        assert_whole(self.lab)

    def stop(self, command: str, name: str) -> None:
        """Deactivate or remove a service, of whose namespace nobody holds anything any more."""
        self.flows.leave(f"niso-{name}")
        self.lab.niso(command, name)
        assert_whole(self.lab)

    def pids(self) -> list[str]:
        return self.lab.run("pgrep", "-f", "sleep 100000").stdout.split()

    def address(self, name: str, family: int = 4) -> str:
        return Addresses(self.lab, f"niso-{name}").ip(family)

    def open(
        self,
        *ends: tuple[str | None, str],
        families: Sequence[int] = FAMILIES,
        protocols: Sequence[str] = PROTOCOLS,
    ) -> list[Flow]:
        """Flows from one to another of each of these, by each family and protocol."""
        return self.flows.open(
            *(asked for pair in ends for asked in self._asked(*pair, families, protocols))
        )

    def _asked(
        self, client: str | None, server: str, families: Sequence[int], protocols: Sequence[str]
    ) -> list[Asked]:
        at = Addresses(self.lab, f"niso-{server}")
        return [
            Asked(_place(client), _place(server), (at.ip(family), next(self._ports)), proto)
            for family in families
            for proto in protocols
        ]

    def published(
        self, client: str, server: str, families: Sequence[int] = FAMILIES
    ) -> list[Asked]:
        """By port 80, which ``server`` publishes as 8080."""
        at = Addresses(self.lab, f"niso-{server}")
        return [
            Asked(_place(client), _place(server), (at.ip(family), 80), proto, (HOST[family], 8080))
            for family in families
            for proto in PROTOCOLS
        ]

    def reach(
        self, client: str | None, server: str, families: Sequence[int] = FAMILIES
    ) -> set[str]:
        """By which protocols and families a new flow comes about."""
        found = self.flows.try_open(self._asked(client, server, families, PROTOCOLS), TRIED_SECONDS)
        return {
            f"{asked.proto}{6 if ':' in asked.at[0] else 4}"
            for asked, flow in found.items()
            if flow
        }


TRIED_SECONDS = 0.5
"""How long a flow that should not come about is tried; one that should has this time too, and takes a few milliseconds."""
EVERY = {"tcp4", "udp4", "tcp6", "udp6"}


def _place(name: str | None) -> str | None:
    return name if name in (None, "client", "neighbour") else f"niso-{name}"
