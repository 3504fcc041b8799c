"""Implement `niso.kernel.interface.Kernel` on the real kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable

# every kind is registered, so that a reading of everything finds all objects
import niso.kernel.kinds.address
import niso.kernel.kinds.attached
import niso.kernel.kinds.bridge
import niso.kernel.kinds.element
import niso.kernel.kinds.fdb
import niso.kernel.kinds.hosts_file
import niso.kernel.kinds.hosts_leftover
import niso.kernel.kinds.hosts_line
import niso.kernel.kinds.named
import niso.kernel.kinds.namespace
import niso.kernel.kinds.neighbour
import niso.kernel.kinds.peer
import niso.kernel.kinds.route
import niso.kernel.kinds.routing_rule
import niso.kernel.kinds.ruleset
import niso.kernel.kinds.setting
import niso.kernel.kinds.shaper
import niso.kernel.kinds.veth
import niso.kernel.kinds.vxlan
import niso.kernel.kinds.wireguard  # noqa: F401
from niso.base import paths
from niso.base.errors import Error, KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import is_marked
from niso.kernel import netns, sysctl
from niso.kernel.rtnetlink import Rtnl
from niso.kernel.rtnl_sockets import Sockets

if TYPE_CHECKING:
    from typing import Self

    from niso.kernel.flows import Flow, Tracked
    from niso.kernel.foreign_chains import Foreign as ForeignChains
    from niso.kernel.foreign_netns import ForeignNetns
    from niso.kernel.host_facts import Network
    from niso.kernel.interface import Foreign
    from niso.kernel.kinds.kind import AnyStep
    from niso.kernel.kinds.routing_rule import RoutingRule
    from niso.kernel.neighbours import Table
    from niso.kernel.sockdiag import Connection, Listener, Measured
    from niso.kernel.state import State


class Real:
    """The kernel of the caller's network namespace. Not thread-safe."""

    def __init__(self) -> None:
        self._sockets = Sockets()
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._sockets.__exit__()
            self._sockets = Sockets()

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        strays: bool = False,
        taken: bool = False,
    ) -> State:
        from niso.kernel import reading

        with self:
            return reading.read(candidates, alias, self._sockets, foreign, strays, taken)

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        from niso.kernel import reading

        with self:
            return reading.read_all(want, alias, self._sockets, foreign)

    def write(self, steps: Iterable[AnyStep], ending: list[str] | None = None) -> None:
        from niso.kernel import writing

        with self:
            writing.Writer(steps, self._sockets, ending).run()

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[Error]:
        from niso.kernel import writing

        with self:
            return writing.Writer(steps, self._sockets, ending).run_what_can_be()

    def end_links(self, names: list[str]) -> None:
        from niso.kernel import writing

        writing.end_links(names)

    def list_elements(self, table: str, container: str) -> dict[str, tuple[str, str]] | None:
        from niso.kernel.libnftables import Nft

        with Nft() as nft:
            return nft.elements(table, container)

    # --- objects with niso's mark ---

    def marked_links(self) -> dict[str, str]:
        with self:
            links = sorted(self._sockets.here().links(), key=lambda link: link.kind == "bridge")
        return {link.name: link.alias for link in links if is_marked(link.alias)}

    def marked_rules(self) -> list[RoutingRule]:
        from niso.kernel import routing_rules
        from niso.kernel.kinds.routing_rule import RoutingRule

        with self:
            here = self._sockets.here()
            return [
                RoutingRule(rule.link, family, rule.drift)
                for family in (4, 6)
                for rule in routing_rules.of_niso(here, family)
            ]

    def marked_netns(self) -> dict[str, str]:
        marked = {}
        for name in netns.own_names():
            with netns.inside(name), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is not None and is_marked(lo.alias):
                marked[name] = lo.alias
        return marked

    def marked_names(self) -> list[str]:
        from niso.kernel import foreign_netns

        with self:
            links = self._sockets.here().links()
        marked = {(link.peer_index, link.index) for link in links if is_marked(link.alias)}
        return foreign_netns.dead_names(marked)

    def clear_hosts(self) -> None:
        import contextlib
        import shutil

        from niso.kernel import etc_hosts

        shutil.rmtree(paths.hosts_root(), ignore_errors=True)
        with contextlib.suppress(KernelError):
            etc_hosts.clear()

    def host_names(self, mark: str) -> tuple[str, ...]:
        from niso.kernel import etc_hosts

        return etc_hosts.lines(mark)

    def write_host_names(self, mark: str, lines: Iterable[str], always: bool = False) -> bool:
        from niso.kernel import etc_hosts

        return etc_hosts.write(mark, lines, always)

    # --- sysctls of the host ---

    def sysctl(self, name: str) -> str | None:
        return sysctl.read(name)

    def set_sysctl(self, name: str, value: str) -> None:
        sysctl.write(name, value)

    # --- namespaces of services ---

    def has_netns(self, name: str) -> bool:
        return netns.exists(name)

    def cookie_at(self, path: str) -> int | None:
        return netns.cookie_at(path)

    def look_at(self, path: str) -> ForeignNetns | None:
        from niso.kernel import foreign_netns

        return foreign_netns.look(path)

    def clear_unfinished(self, name: str) -> None:
        netns.clear_unfinished(name)

    def alias_at(self, pid: int) -> str:
        return netns.marked(pid)

    def name_netns(self, name: str, pid: int, alias: str) -> None:
        netns.attach(name, pid, alias)

    def addresses_in(self, name: str, link: str) -> list[str]:
        if not netns.exists(name):
            return []
        with netns.inside(name), Rtnl() as rtnl:
            there = rtnl.link(link)
            return [assigned.address for assigned in rtnl.addresses(there.index)] if there else []

    def connections_in(self, name: str) -> list[Connection]:
        from niso.kernel import sockdiag

        if not netns.exists(name):
            return []
        with netns.inside(name):
            return sockdiag.connections()

    def measured_in(self, name: str) -> list[Measured]:
        from niso.kernel import sockdiag

        if not netns.exists(name):
            return []
        with netns.inside(name):
            return sockdiag.measured()

    # --- flows ---

    def flows(self) -> list[Tracked]:
        from niso.kernel import flows

        return flows.tracked()

    def flows_of(self, addresses: Iterable[str]) -> list[Flow]:
        from niso.kernel import flows

        return flows.of(addresses)

    def end_flows(self, flows: Iterable[Flow | Tracked]) -> int:
        from niso.kernel.flows import end

        return end(flows)

    def add_flows(self, connections: Iterable[Connection]) -> None:
        from niso.kernel import flows

        flows.introduce(connections)

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        from niso.kernel import conntrack

        conntrack.flush_addresses(addresses)

    def forget_flows(self, addresses: Collection[str]) -> None:
        from niso.kernel import sensor

        sensor.forget(addresses)

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        def own() -> list[str]:
            plain = {address.partition("/")[0] for address in self.host_addresses()}
            return [*sorted(plain), "127.0.0.0/8"]

        from niso.kernel import conntrack

        conntrack.flush_ports(claims, own, answered)

    # --- the host ---

    def host_addresses(self) -> list[str]:
        with self:
            return [assigned.address for assigned in self._sockets.here().addresses()]

    def used_prefixes(self, except_alias: str) -> list[tuple[Network, str]]:
        from niso.kernel import host_facts

        return host_facts.used_prefixes(except_alias)

    def engine_prefixes(self) -> list[tuple[Network, str]]:
        from niso.kernel import host_facts

        return host_facts.engine_prefixes()

    def default_mtu(self) -> int:
        from niso.kernel import host_facts

        return host_facts.default_mtu()

    def mtu_of(self, address: str) -> int | None:
        from niso.kernel import host_facts

        return host_facts.mtu_of(address)

    def lacks_ipv6(self) -> str | None:
        from niso.kernel import host_facts

        return host_facts.lacks_ipv6()

    def lacks_wireguard(self, form: str) -> str | None:
        from niso.kernel import wireguard_links

        return wireguard_links.lacks(form)

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        from niso.kernel import wireguard_links

        private = private or wireguard_links.new_key()
        return private, wireguard_links.public_key(private)

    def wireguard_answers(self, name: str, form: str) -> bool:
        from niso.kernel import wireguard_links

        return wireguard_links.answers(name, form)

    def receiving6(self) -> list[str]:
        from niso.kernel import host_facts

        return host_facts.receiving6()

    def not_forwarding(self) -> dict[str, set[str]]:
        from niso.kernel import host_facts

        return host_facts.not_forwarding()

    def neighbour_tables(self) -> list[Table]:
        from niso.kernel import neighbours

        with self:
            return neighbours.tables(self._sockets.here())

    def listeners(self, proto: str) -> list[Listener]:
        from niso.kernel import sockdiag

        return sockdiag.listeners(proto)

    def socket_holder(self, inode: int) -> tuple[int, str] | None:
        from niso.kernel import sockdiag

        return sockdiag.holder(inode)

    def foreign_nat(self) -> dict[str, int]:
        with self.foreign_chains() as source:
            return source.nat4()

    def foreign_chains(self) -> ForeignChains:
        from niso.kernel import foreign_chains

        return foreign_chains.Foreign()
