"""Leave out names and ports that several services of a compose file have, but a stack refuses.

Compose lets several services have the same alias, and detects at their start that two have the same
host port. niso refuses both.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import DEFAULT_NETWORK
from niso.importers.compose_service import Gap, Service
from niso.manifest.parse_ports import parse_port

if TYPE_CHECKING:
    from typing import Any

    from niso.plan.records import Port


def settle(services: Iterable[Service]) -> None:
    """Remove hostnames, aliases and host ports that an earlier service already has."""
    taken = _Taken(services)
    for service in taken.services.values():
        table = service.tables.get("network", {})
        if "hostname" in table and not taken.may_have(service, "hostname", table["hostname"]):
            del table["hostname"]
        aliases = table.get("aliases", ())
        _keep(table, "aliases", [a for a in aliases if taken.may_have(service, "aliases", a)])
        _keep(table, "ports", [p for p in table.get("ports", ()) if taken.may_publish(service, p)])
        if not table:
            service.tables.pop("network", None)


def _keep(table: dict[str, Any], key: str, kept: list[str]) -> None:
    if kept:
        table[key] = kept
    else:
        table.pop(key, None)


class _Taken:
    """The names on each network, and the host ports, of the services processed so far."""

    def __init__(self, services: Iterable[Service]) -> None:
        self.services = {service.name: service for service in services}
        # a service keeps its own name, whatever aliases earlier services have
        self._names = {
            (network, name): name
            for name, service in self.services.items()
            for network in self._on(service)
        }
        self._ports: list[tuple[Port, str]] = []

    def _on(self, service: Service) -> tuple[str, ...]:
        """Return the networks of a service, or of the service whose namespace it shares."""
        table = service.tables.get("network", {})
        if table.get("mode") == "share":
            table = self.services[table["share"]].tables.get("network", {})
        if table.get("mode", "bridge") != "bridge":
            return ()
        return tuple(table.get("networks", (DEFAULT_NETWORK,)))

    def may_have(self, service: Service, key: str, name: str) -> bool:
        """Reserve a name on the networks of a service; return False if another service has it."""
        on = self._on(service)
        for network in on:
            holder = self._names.get((network, name), service.name)
            if holder != service.name:
                what = f"{name!r} is a name of {holder} on the same network: left out"
                service.gaps.append(Gap(service.given, key, what))
                return False
        self._names |= dict.fromkeys(((network, name) for network in on), service.name)
        return True

    def may_publish(self, service: Service, text: str) -> bool:
        """Reserve the host ports of an entry for a service; return False if another has them."""
        try:
            port = parse_port(text, "ports")
        except InvalidInput:  # the entry has a variable
            return True
        for other, holder in self._ports:
            if port.host_port and port.clashes(other):
                what = f"{text!r} has a host port of {holder}: left out"
                service.gaps.append(Gap(service.given, "ports", what))
                return False
        if port.host_port:
            self._ports.append((port, service.name))
        return True
