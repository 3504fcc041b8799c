"""Define `Kernel`, the interface to the network of a host's kernel.

`niso.kernel.real` implements it on the host, `fakes.kernel` of the tests in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.kernel.kinds.kind import AnyStep, Foreign, State
from niso.kernel.neighbour_tables import Table

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from niso.kernel.conntrack import Tracked
    from niso.kernel.foreign_chains import ForeignChains
    from niso.kernel.host_facts import Network
    from niso.kernel.kinds.addresses import RoutingRule
    from niso.kernel.netns import ForeignNetns
    from niso.kernel.nft_elements import Element
    from niso.kernel.sockets import Connection, Listener, Measured


if TYPE_CHECKING:
    from typing import Protocol, Self

else:
    Protocol = object


class Kernel(Protocol):
    """The interface to the network of a host's kernel.

    Inside a ``with`` block, its sockets stay open between calls. ``alias`` is the text that marks
    the network interfaces of a state folder as niso's, with the folder's id. All methods raise
    KernelError.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        strays: bool = False,
        taken: bool = False,
    ) -> State:
        """Return those of ``candidates`` that exist, with their actual fields.

        All addresses and routes of the candidates' interfaces are returned too. The cost depends
        only on the number of candidates. With ``strays``, changes of other programs to the
        candidates' interfaces are read as well. With ``taken``, nftables tables and elements are
        not read: they are assumed to be as in ``candidates``.

        Raises Conflict if an object with a candidate's name belongs to another program or state
        folder. With ``foreign``, the Conflict is recorded there, and the object is left out.
        """

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        """Return all objects of the state folder with this ``alias``, desired or not.

        ``want`` selects the sysctls to read. Conflicts are recorded in ``foreign``.
        """

    def write(self, steps: Iterable[AnyStep], ending: list[str] | None = None) -> None:
        """Execute all steps in order, stopping at the first failure.

        With ``ending``, veth pairs whose namespace is deleted too are only detached from their
        bridge, and their names are added to ``ending``. The caller must pass these to `end_links`
        after releasing the lock, because deleting takes 20 ms. The KernelError has the description
        of the failed step.
        """

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[Error]:
        """Execute all steps as `write` does, but continue after failures, and return the errors.

        After a failure no nftables rule or element is deleted.
        """

    def end_links(self, names: list[str]) -> None:
        """Delete the network interfaces that `write` has detached; no-op for missing ones."""

    def list_elements(self, table: str, container: str) -> list[Element] | None:
        """Return the elements of one of niso's nftables sets or maps; None if it does not exist."""

    # --- objects with niso's mark, whichever state folder made them ---

    def marked_links(self) -> dict[str, str]:
        """Return the host's network interfaces that any niso created: a dict from name to alias.

        The alias contains the id of the state folder. Bridges come last.
        """

    def marked_netns(self) -> dict[str, str]:
        """Return the network namespaces that any niso created: a dict from name to alias.

        The alias, of the namespace's ``lo``, contains the id of the state folder.
        """

    def marked_rules(self) -> list[RoutingRule]:
        """Return the host's routing rules that any niso created."""

    def marked_names(self) -> list[str]:
        """Return the names that niso gave to network namespaces of other programs.

        Included are names of namespaces that no longer exist, and of those with one of niso's veth
        ends.
        """

    def clear_hosts(self) -> None:
        """Remove all hosts files in the run folder, and niso's blocks in the host's hosts file."""

    def host_names(self, mark: str) -> tuple[str, ...]:
        """Return the lines of niso's block in the host's own hosts file.

        ``mark`` is the id in the block's first line.
        """

    def write_host_names(self, mark: str, lines: Iterable[str], always: bool = False) -> bool:
        """Replace the block of `host_names`, or remove it if there are no lines.

        Returns whether it changed. With ``always`` the file is replaced even if nothing changes.
        After a KernelError the file is unchanged.
        """

    # --- sysctls of the host ---

    def sysctl(self, name: str) -> str | None:
        """Return the value of a host sysctl; None if this kernel or interface does not have it."""

    def set_sysctl(self, name: str, value: str) -> None: ...

    # --- namespaces of services ---

    def has_netns(self, name: str) -> bool: ...

    def cookie_at(self, path: str) -> int | None:
        """Return the cookie of the network namespace at ``path``; None if there is none."""

    def look_at(self, path: str) -> ForeignNetns | None:
        """Describe the network namespace at ``path``, whoever created it; None if there is none."""

    def clear_unfinished(self, name: str) -> None:
        """Remove what an interrupted creation of this network namespace left."""

    def alias_at(self, pid: int) -> str:
        """Return the alias of ``lo`` in the network namespace of a process; "" if unreadable.

        In a namespace that niso created, the alias contains the id of the state folder.
        """

    def name_netns(self, name: str, pid: int, alias: str) -> None:
        """Name the network namespace of process ``pid``, whose ``lo`` must have this ``alias``."""

    def addresses_in(self, name: str, link: str) -> list[str]:
        """Return the addresses, with prefix lengths, of a network interface in a namespace.

        The list is empty if the interface does not exist.
        """

    def connections_in(self, name: str) -> list[Connection]:
        """Return the established TCP connections in a network namespace.

        The list is empty if the namespace does not exist.
        """

    def measured_in(self, name: str) -> list[Measured]:
        """Return all TCP connections in a network namespace with measurements (round-trip times).

        The list is empty if the namespace does not exist.
        """

    # --- flows ---

    def flows(self) -> list[Tracked]:
        """Return all tracked flows."""

    def flows_of(self, addresses: Iterable[str]) -> list[Tracked]:
        """Return the tracked flows with one of these addresses at an end."""

    def end_flows(self, flows: Iterable[Tracked]) -> int:
        """Delete these flows and return how many of them existed."""

    def add_flows(self, connections: Iterable[Connection]) -> None:
        """Add open TCP connections to connection tracking; no-op for tracked ones."""

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        """Delete all flows with one of these addresses at either end, until no flow is left."""

    def forget_flows(self, addresses: Collection[str]) -> None:
        """Delete the recorded flows of addresses or prefixes that change their service."""

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        """Delete the flows to these ports of the host, until no flow is left.

        A port is (protocol, first, last). TCP flows that have had a reply are deleted only with
        ``answered``.
        """

    # --- the host ---

    def host_addresses(self) -> list[str]:
        """Return all addresses of the host with their prefix lengths: "192.0.2.1/24"."""

    def used_prefixes(self, except_alias: str) -> list[tuple[Network, str]]:
        """Return (prefix, interface) for the host's routes and addresses.

        Network interfaces with the alias ``except_alias`` are left out.
        """

    def local_prefixes(self) -> list[Network]:
        """Return the prefixes whose packets the host itself receives, by a route of type local."""

    def engine_prefixes(self) -> list[tuple[Network, str]]:
        """Return (prefix, bridge) of foreign bridges to which only containers or VMs connect."""

    def default_mtu(self) -> int:
        """Return the MTU in bytes of the interface with the default route, or else 1500."""

    def mtu_of(self, address: str) -> int | None:
        """Return the MTU in bytes of the network interface with this address, or None."""

    def lacks_ipv6(self) -> str | None:
        """Return why the host cannot have a network with IPv6; None if it can."""

    def lacks_wireguard(self, form: str) -> str | None:
        """Return why the host cannot have a WireGuard interface of this form; None if it can.

        The forms are those of kinds/tunnels.py.
        """

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        """Return (private key, public key); for "", a new private key is generated."""

    def wireguard_answers(self, name: str, form: str) -> bool:
        """Return whether a WireGuard interface exists, and the kernel or a process serves it."""

    def receiving6(self) -> list[str]:
        """Return the network interfaces on which IPv6 packets of other machines can arrive."""

    def not_forwarding(self) -> dict[str, set[str]]:
        """Return the foreign network interfaces that do not forward IPv4 although the host does.

        The dict maps their names to their addresses.
        """

    def neighbour_tables(self) -> list[Table]:
        """Return how full the neighbour tables of both families are."""

    def listeners(self, proto: str) -> list[Listener]:
        """Return the host's sockets that receive packets of "tcp", "udp" or "sctp"."""

    def socket_holder(self, inode: int) -> tuple[int, str] | None:
        """Return (pid, program) of a process that has this socket open; None if none is visible."""

    def foreign_nat(self) -> dict[str, int]:
        """Return the number of rules in each chain of other programs that translates IPv4 sources.

        The keys are "FAMILY TABLE CHAIN".
        """

    def foreign_chains(self) -> AbstractContextManager[ForeignChains]:
        """Return a context manager that reads nftables chains of other programs."""
