"""Define the interface of a kernel; `niso.kernel.fake` implements it without root."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.errors import Conflict, Error
from niso.base.lite_typing import TYPE_CHECKING

Foreign = dict[str, Conflict]
"""Maps the name of a link or namespace that should be niso's, and is not, to the error."""

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Protocol, Self

    from niso.kernel.flows import Flow, Tracked
    from niso.kernel.foreign_chains import Foreign as ForeignChains
    from niso.kernel.foreign_netns import ForeignNetns
    from niso.kernel.host_facts import Network
    from niso.kernel.kinds.kind import AnyStep
    from niso.kernel.kinds.routing_rule import RoutingRule
    from niso.kernel.neighbours import Table
    from niso.kernel.sockdiag import Connection, Listener, Measured
    from niso.kernel.state import State
else:
    Protocol = object


class Kernel(Protocol):
    """A network stack with niso's objects.

    Within its ``with`` block sockets stay open between calls.
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

        All addresses and routes of their links are returned too. The cost depends on
        ``candidates`` alone. ``alias`` marks what is niso's. With ``strays`` foreign changes to the
        candidates' links are read as well. With ``taken``, tables and elements are not read: the
        candidates are returned unchanged.

        Raises KernelError, and Conflict if an object with a candidate's name is not niso's. With
        ``foreign`` that error is recorded there instead, and the object is left out.
        """

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        """Return everything that is niso's, wanted or not.

        ``want`` says which sysctls matter. Raises as `read`.
        """

    def write(self, steps: Iterable[AnyStep], ending: list[str] | None = None) -> None:
        """Execute all steps in order; the first failure ends it.

        With ``ending`` veth pairs whose namespace is deleted too are only detached, and their names
        added to it: the caller has to `end_links` after releasing the lock. Raises KernelError with
        the description of the step.
        """

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[Error]:
        """Execute all steps, continuing after failures; return the errors.

        After a failure no rule is deleted.
        """

    def end_links(self, names: list[str]) -> None:
        """Delete links, as those that `write` detached; no-op for missing ones.

        Raises KernelError.
        """

    def list_elements(self, table: str, container: str) -> dict[str, tuple[str, str]] | None:
        """Return a set or map as element -> (value, comment); None if it does not exist.

        Raises KernelError.
        """

    # --- what is marked as niso's, whichever state folder made it ---

    def marked_links(self) -> dict[str, str]:
        """Return links of the host with niso's mark: name -> mark. Bridges come last.

        Raises KernelError.
        """

    def marked_netns(self) -> dict[str, str]:
        """Return named network namespaces with niso's mark: name -> mark. Raises KernelError."""

    def marked_rules(self) -> list[RoutingRule]:
        """Return routing rules of the host with niso's mark. Raises KernelError."""

    def marked_names(self) -> list[str]:
        """Return names of attached namespaces that lead nowhere or to an end of a marked pair.

        Raises KernelError.
        """

    def clear_hosts(self) -> None:
        """Remove all hosts files of this run folder, and niso's blocks in the host's own."""

    def host_names(self, mark: str) -> tuple[str, ...]:
        """Return the lines of niso's block with this mark in the host's own hosts file.

        Raises KernelError if that is not a regular file.
        """

    def write_host_names(self, mark: str, lines: Iterable[str], always: bool = False) -> bool:
        """Replace that block, or remove it without lines; return whether it changed.

        With ``always`` the file is replaced even if nothing changes. Raises KernelError; then it is
        as it was.
        """

    # --- sysctls of the host ---

    def sysctl(self, name: str) -> str | None:
        """Return the value of a host sysctl; None if this kernel or interface does not have it."""

    def set_sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of the host. Raises KernelError."""

    # --- namespaces of services ---

    def has_netns(self, name: str) -> bool:
        """Return whether a network namespace has this name. Raises KernelError."""

    def cookie_at(self, path: str) -> int | None:
        """Return the cookie of the network namespace at ``path``; None if there is none.

        Raises KernelError.
        """

    def look_at(self, path: str) -> ForeignNetns | None:
        """Return the network namespace at ``path``, whoever made it; None if there is none.

        Raises KernelError.
        """

    def clear_unfinished(self, name: str) -> None:
        """Remove leftovers of an interrupted creation of this namespace; no-op if there are none.

        Raises KernelError.
        """

    def alias_at(self, pid: int) -> str:
        """Return the mark of a process's network namespace; "" if it has none or is unreadable."""

    def name_netns(self, name: str, pid: int, alias: str) -> None:
        """Name the network namespace of a process, which has the mark ``alias``.

        Raises KernelError.
        """

    def addresses_in(self, name: str, link: str) -> list[str]:
        """Return the addresses, with prefix lengths, of a link in a namespace.

        Empty if it does not exist.
        """

    def connections_in(self, name: str) -> list[Connection]:
        """Return the established TCP connections in a namespace; none if it does not exist.

        Raises KernelError.
        """

    def measured_in(self, name: str) -> list[Measured]:
        """Return the TCP connections in a namespace with their figures; none if it does not exist.

        Raises KernelError.
        """

    # --- flows ---

    def flows(self) -> list[Tracked]:
        """Return the flows known to connection tracking. Raises KernelError."""

    def flows_of(self, addresses: Iterable[str]) -> list[Flow]:
        """Return the flows with one of these addresses at either end. Raises KernelError."""

    def end_flows(self, flows: Iterable[Flow | Tracked]) -> int:
        """End these flows and return how many there were. Raises KernelError."""

    def add_flows(self, connections: Iterable[Connection]) -> None:
        """Add open TCP connections to connection tracking; no-op for those it knows.

        Raises KernelError.
        """

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        """End every flow with one of these addresses at either end, until there is none.

        Raises KernelError.
        """

    def forget_flows(self, addresses: Collection[str]) -> None:
        """Forget recorded flows of addresses or prefixes that get another holder, or lose theirs.

        Raises KernelError.
        """

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        """End the flows to (protocol, first port, last port) of the host, until there is none.

        TCP that was answered ends only with ``answered``. Raises KernelError.
        """

    # --- the host ---

    def host_addresses(self) -> list[str]:
        """Return every address of the host with its prefix length: "192.0.2.1/24".

        Raises KernelError.
        """

    def used_prefixes(self, except_alias: str) -> list[tuple[Network, str]]:
        """Return (prefix, link) of the host's routes and addresses, without links of this alias."""

    def default_mtu(self) -> int:
        """Return the MTU of the default route's link in bytes; 1500 without a default route."""

    def mtu_of(self, address: str) -> int | None:
        """Return the MTU of the link with an address in bytes; None if the host has it nowhere."""

    def lacks_ipv6(self) -> str | None:
        """Return why the host cannot have a network with IPv6; None if it can."""

    def lacks_wireguard(self, form: str) -> str | None:
        """Return why the host cannot have a link of a form of kinds/wireguard.py; None if it can.

        Raises KernelError.
        """

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        """Return a private key and its public one, of a new pair for "". Raises KernelError."""

    def wireguard_answers(self, name: str, form: str) -> bool:
        """Return whether a WireGuard link exists and something serves it."""

    def receiving6(self) -> list[str]:
        """Return the links on which IPv6 packets of others can arrive. Raises KernelError."""

    def not_forwarding(self) -> dict[str, set[str]]:
        """Return others' links that forward no IPv4 while the host does: name -> addresses."""

    def neighbour_tables(self) -> list[Table]:
        """Return how full the neighbour tables of both families are. Raises KernelError."""

    def listeners(self, proto: str) -> list[Listener]:
        """Return the host's sockets that receive packets of "tcp", "udp" or "sctp".

        Raises KernelError.
        """

    def socket_holder(self, inode: int) -> tuple[int, str] | None:
        """Return (pid, program) of a process that has this socket open; None if none is visible."""

    def foreign_nat(self) -> dict[str, int]:
        """Return the number of rules of each chain of others with NAT of IPv4 sources.

        The keys are FAMILY TABLE CHAIN. Raises KernelError.
        """

    def foreign_chains(self) -> AbstractContextManager[ForeignChains]:
        """Return a source of the nftables chains of others. Raises KernelError."""
