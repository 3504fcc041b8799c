"""Model the host of an in-memory kernel, apart from niso's own objects; see `niso.kernel.fake`.

It has one link with one address. A test sets the fields for more: listeners, flows, connections.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from niso.base.errors import Conflict, KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.flows import Flow
from niso.kernel.foreign_chains import Chain, Foreign
from niso.kernel.neighbours import Table

if TYPE_CHECKING:
    from typing import Self

    from niso.kernel.flows import Tracked
    from niso.kernel.host_facts import Network
    from niso.kernel.interface import Foreign as Refused
    from niso.kernel.sockdiag import Connection, Listener, Measured

UPLINK, UPLINK_ADDRESS = "uplink0", "192.0.2.1/24"
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


class NoForeignChains(Foreign):
    """A source of nftables chains that has no foreign chains."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def base_chains(self) -> list[Chain]:
        return []


class FakeHost:
    """Flows, sockets, links and addresses of the host."""

    def __init__(self) -> None:
        # foreign links of the host -> their alias
        self.foreign_links: dict[str, str] = {UPLINK: ""}
        self.engine_bridges: list[tuple[Network, str]] = []
        self.foreign_netns: set[str] = set()
        self.made = 0  # number of namespaces and hosts folders created
        self.identities: dict[str, int] = {}  # by name; a recreated namespace gets another identity
        # pid -> its namespace, and the mark of that namespace
        self.inhabited: dict[int, tuple[int, str]] = {}
        self.own_hosts: dict[str, tuple[str, ...]] = {}  # mark -> lines of the block in /etc/hosts
        self.own_hosts_refuses = False
        self.own_addresses = {UPLINK_ADDRESS: UPLINK}  # address with its prefix length -> link
        self.tracked: list[Tracked] = []
        self.policed: list[Flow] = []  # the same flows, as policies match them
        self.listening: dict[str, list[Listener]] = {}  # by protocol
        self.programs: dict[int, tuple[int, str]] = {}  # inode of a socket -> pid, name
        self.connected: dict[str, list[Connection]] = {}  # by namespace
        self.measured: dict[str, list[Measured]] = {}
        self.mtu = 1500
        self.without_ipv6: str | None = None
        self.without_wireguard: dict[str, str] = {}  # form -> reason
        self.wireguard_made: list[str] = []  # private keys
        self.closed: dict[str, set[str]] = {}  # non-exempt entries of the host, by family
        self.nat: dict[str, int] = {}  # foreign rules: chain -> number of rules
        self.neighbours = {4: 0, 6: 0}  # entries that are not niso's, by family
        self.forgotten: list[str] = []  # addresses whose recorded flows were deleted

    def refuse_foreign(self, links: set[str], spaces: set[str], foreign: Refused | None) -> None:
        """Raise Conflict if one of these names is foreign, or record the error in ``foreign``."""
        for name in sorted(links & self.foreign_links.keys() | spaces & self.foreign_netns):
            error = Conflict(f"{name!r} exists and does not belong to this niso")
            if foreign is None:
                raise error
            foreign[name] = error

    # --- namespaces ---

    def clear_unfinished(self, name: str) -> None:
        pass  # a creation is not interrupted half-way

    def alias_at(self, pid: int) -> str:
        return self.inhabited.get(pid, (0, ""))[1]

    # --- flows ---

    def flows(self) -> list[Tracked]:
        return list(self.tracked)

    def flows_of(self, addresses: Iterable[str]) -> list[Flow]:
        wanted = set(addresses)
        return [flow for flow in self.policed if wanted & {flow.source, flow.destination}]

    def end_flows(self, flows: Iterable[Flow | Tracked]) -> int:
        ended = list(flows)
        before = len(self.tracked) + len(self.policed)
        self.tracked = [flow for flow in self.tracked if flow not in ended]
        self.policed = [flow for flow in self.policed if flow not in ended]
        return before - len(self.tracked) - len(self.policed)

    def add_flows(self, connections: Iterable[Connection]) -> None:
        known = {(flow.source, flow.destination, flow.port) for flow in self.policed}
        for connection in connections:
            key = (connection.client, connection.server, connection.server_port)
            if key not in known:
                self.policed.append(Flow(*key, "tcp", repr(connection).encode()))

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        gone = set(addresses)
        self.tracked = [
            flow
            for flow in self.tracked
            if not gone & {flow.source, flow.destination, flow.answers_from, flow.answers_to}
        ]
        self.policed = [f for f in self.policed if not gone & {f.source, f.destination}]

    def forget_flows(self, addresses: Collection[str]) -> None:
        self.forgotten += addresses

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        claimed = list(claims)
        own = {address.partition("/")[0] for address in self.host_addresses()}

        def goes(flow: Tracked) -> bool:
            if flow.proto == "tcp" and flow.answered and not answered:
                return False
            to = ipaddress.ip_address(flow.destination)
            is_ours = flow.destination in own or (to.version == 4 and to in _LOOPBACK)
            return is_ours and any(
                flow.proto == proto and flow.port is not None and first <= flow.port <= last
                for proto, first, last in claimed
            )

        self.tracked = [flow for flow in self.tracked if not goes(flow)]

    def neighbour_tables(self) -> list[Table]:
        return [Table(family, entries, 1024) for family, entries in self.neighbours.items()]

    # --- sockets ---

    def listeners(self, proto: str) -> list[Listener]:
        return list(self.listening.get(proto, ()))

    def socket_holder(self, inode: int) -> tuple[int, str] | None:
        return self.programs.get(inode)

    def connections_in(self, name: str) -> list[Connection]:
        return list(self.connected.get(name, ()))

    def measured_in(self, name: str) -> list[Measured]:
        return list(self.measured.get(name, ()))

    # --- the host's own hosts file ---

    def host_names(self, mark: str) -> tuple[str, ...]:
        return self.own_hosts.get(mark, ())

    def write_host_names(self, mark: str, lines: Iterable[str], always: bool = False) -> bool:
        before, now = self.host_names(mark), tuple(lines)
        if self.own_hosts_refuses:
            raise KernelError("/etc/hosts is a mount point, as in a container", "change it outside")
        self.own_hosts[mark] = now
        return before != now

    # --- links ---

    def host_addresses(self) -> list[str]:
        return ["127.0.0.1/8", "::1/128", *self.own_addresses]

    def used_prefixes(self, except_alias: str) -> list[tuple[Network, str]]:
        return [
            (ipaddress.ip_interface(address).network, link)
            for address, link in self.own_addresses.items()
            if self.foreign_links.get(link) != except_alias
        ]

    def engine_prefixes(self) -> list[tuple[Network, str]]:
        return list(self.engine_bridges)

    def default_mtu(self) -> int:
        return self.mtu

    def mtu_of(self, address: str) -> int | None:
        known = (own.partition("/")[0] for own in self.host_addresses())
        return self.mtu if address in known else None

    def lacks_ipv6(self) -> str | None:
        return self.without_ipv6

    def lacks_wireguard(self, form: str) -> str | None:
        return self.without_wireguard.get(form)

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        if not private:
            private = f"{len(self.wireguard_made):042}w="
            self.wireguard_made.append(private)
        return private, f"1{private[1:]}"

    def wireguard_answers(self, name: str, form: str) -> bool:
        return True

    def receiving6(self) -> list[str]:
        return list(self.foreign_links)

    def not_forwarding(self) -> dict[str, set[str]]:
        return dict(self.closed)

    def foreign_nat(self) -> dict[str, int]:
        return dict(self.nat)

    def foreign_chains(self) -> NoForeignChains:
        return NoForeignChains()
