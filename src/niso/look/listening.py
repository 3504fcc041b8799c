"""Find the addresses and ports on which a service's programs listen, and on which they should
listen.

A packet may pass all rules although no program receives it. Usually the program listens on another
port, on loopback only, or on IPv6 only. The kernel lists the sockets of a service's network
namespace (`niso.kernel.sockets`). nftables rules inside that namespace are not examined.
"""

from __future__ import annotations

import contextlib
import ipaddress

from niso.base import names
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, family_of
from niso.base.native import lazy
from niso.plan.records import (
    ANY4,
    ANY6,
    PORTED,
    NetworkRecord,
    PortMapping,
    ServiceEndpoint,
    primary,
)
from niso.runtime import status
from niso.store.service_rows import SERVING
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from niso.kernel.real import Kernel
    from niso.kernel.sockets import Listener
    from niso.plan import verdict as plan_verdict
    from niso.plan.verdict import PolicyContext, Verdict
else:
    plan_verdict = lazy("niso.plan.verdict")

HOST = "host"  # no service has this name
_SHOWN = 3  # sockets that a text names
_YOUNG_S = 60.0  # a service that has just started may not listen yet


class ListeningSocket(NamedTuple):
    """A socket of a service that waits for packets."""

    address: str  # 0.0.0.0 stands for all IPv4 addresses, and :: for all IPv6 addresses
    port: int  # the port on which the socket listens
    proto: str  # tcp, udp or sctp
    pid: int | None  # PID of the program on the host; null if no process has the socket open
    program: str | None  # name of the program; null if no process has the socket open

    @property
    def text(self) -> str:
        """The program and where it listens: ``python3 listens on 127.0.0.1:8080``."""
        at = f"{bracketed(self.address)}:{self.port}"
        return f"{self.program or 'a program'} listens on {at}"


class Listening(NamedTuple):
    """Whether a program listens on an address and port of a service."""

    listens: bool  # whether a program listens there
    service: str  # the service, or the instance of a service; host for the host
    address: str  # an address of the service or of the host
    port: int  # the port
    proto: str  # tcp, udp or sctp
    others: tuple[ListeningSocket, ...]
    """sockets of the service for the same protocol, the most similar first; empty if ``listens``"""

    @property
    def words(self) -> str:
        """A phrase: the port on which no program listens, and the sockets that do exist."""
        proto = "" if self.proto == "tcp" else f"/{self.proto}"
        at = f"{bracketed(self.address)}:{self.port}{proto}"
        if self.listens:
            return f"a program listens on {at}"
        # of a socket for both IP versions, the address of the same IP version is in others
        is_ipv4 = family_of(self.address) == 4
        shown = [
            f"{other.text} (IPv6 only)" if is_ipv4 and other.address == ANY6 else other.text
            for other in self.others[:_SHOWN]
        ]
        more = len(self.others) - _SHOWN
        if more > 0:
            shown.append(f"{more} more socket{'s listen' if more > 1 else ' listens'} elsewhere")
        whose = "the host" if self.service == HOST else self.service
        instead = ", ".join(shown) or f"no program of {whose} listens on any {self.proto} port"
        return f"nothing listens on {at}; {instead}"


class ServiceSockets:
    """A reader of the listening sockets in the network namespaces of services, with a cache."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._found: dict[tuple[str, str], list[Listener] | None] = {}
        self._holders: dict[int, tuple[int, str] | None] = {}

    def of(self, home: str, proto: str) -> list[Listener] | None:
        """Return the sockets in the network namespace of a service or of the host (`HOST`).

        Returns None if the namespace does not exist.
        """
        if (home, proto) not in self._found:
            found = None
            with contextlib.suppress(KernelError):
                if home == HOST:
                    found = self._kernel.listeners(proto)
                else:
                    found = self._kernel.listeners_in(names.netns(home), proto)
            self._found[home, proto] = found
        return self._found[home, proto]

    def at(self, service: str, home: str, address: str, port: int, proto: str) -> Listening | None:
        """Return whether a program listens on this address and port, or None if that is unknown.

        ``home`` is the service that owns the network namespace of ``service``.
        """
        found = self.of(home, proto)
        if found is None:
            return None
        family = family_of(address)
        own = (address, ANY4 if family == 4 else ANY6)
        if any(one.port == port and one.address in own for one in found):
            return Listening(True, service, address, port, proto, ())

        def distance(one: Listener) -> tuple[bool, bool, bool, int]:
            is_local = ipaddress.ip_address(one.address).is_loopback
            return one.port != port, is_local, family_of(one.address) != family, one.port

        return Listening(
            False, service, address, port, proto, self._named(sorted(found, key=distance), proto)
        )

    def all_of(self, home: str) -> tuple[ListeningSocket, ...]:
        """Return all listening sockets in a service's network namespace, sorted by port."""
        return tuple(
            one
            for proto in PORTED
            for one in self._named(
                sorted(self.of(home, proto) or (), key=lambda one: (one.port, one.address)), proto
            )
        )

    def _named(self, found: Iterable[Listener], proto: str) -> tuple[ListeningSocket, ...]:
        once: dict[int, Listener] = {}
        for one in found:  # a socket for both IP versions is listed twice
            once.setdefault(one.inode, one)
        if not once.keys() <= self._holders.keys():
            # A search reads all processes of the host, so search once for all sockets read so far.
            every = {one.inode for known in self._found.values() for one in known or ()}
            new = every - self._holders.keys()
            self._holders |= dict.fromkeys(new) | self._kernel.socket_holders(new)
        return tuple(
            ListeningSocket(
                one.address, one.port, proto, *(self._holders[one.inode] or (None, None))
            )
            for one in once.values()
        )


def of_packet(
    kernel: Kernel, context: PolicyContext, verdict: Verdict, proto: str
) -> Listening | None:
    """Return whether a program listens where a packet arrives.

    Returns None if the packet is dropped, has no port, or does not go to the host or to an active
    service of this host. Also returns None if the packet goes to the host and rules of other
    programs may redirect it. If any of several instances may get the packet, the result is about
    the first instance in which no program listens.
    """
    if not verdict.passes or verdict.port is None:
        return None
    sockets, last = ServiceSockets(kernel), None
    to = verdict.destination
    if not to.service and plan_verdict.is_host(context, to.address):
        with contextlib.suppress(KernelError), kernel.foreign_chains() as source:
            if not source.redirects():
                last = sockets.at(HOST, HOST, to.address, verdict.port, proto)
        return last
    for party in verdict.instances or (verdict.destination,):
        known = context.services.get(party.service)
        if known is None or known.host or not known.active or known.serving is not None:
            continue
        last = sockets.at(known.name, known.name, party.address, verdict.port, proto)
        if last is not None and not last.listens:
            break
    return last


def unheard(
    sockets: ServiceSockets, store: Store, services: Iterable[str]
) -> Iterator[tuple[str, PortMapping, int, Listening]]:
    """Yield the published ports that lead to an address and port on which no program listens.

    Each result has the service, its port and an IP version. Ranges of ports are left out, because
    programs open their ports on demand. Services whose process does not run are left out too.
    """
    published = []
    for service in services:
        ports = [port for _, port in store.ports(service) if port.count == 1]
        if not ports:
            continue
        ends = [
            (runner, store.home(runner), family, address)
            for runner in _runners(store, service)
            for _, family, address in published_at(store, runner)
        ]
        published.append((service, ports, ends))
        for _, home, _, _ in ends:  # read all sockets first, see _named
            for proto in {port.proto for port in ports}:
                sockets.of(home, proto)
    for service, ports, ends in published:
        for port in ports:
            missing: dict[int, Listening] = {}
            for runner, home, family, address in ends:
                if family in port.families and family not in missing:
                    found = sockets.at(runner, home, address, port.container_port, port.proto)
                    if found is not None and not found.listens:
                        missing[family] = found
            yield from ((service, port, family, missing[family]) for family in sorted(missing))


def _runners(store: Store, service: str) -> list[str]:
    """Return the running instances of a service that receive traffic. A service without instances
    is returned itself if it runs.
    """
    row = store.service(service)
    if row is None or not row.active:
        return []
    if row.is_attachment:
        return [service]
    instances = store.instances.of(service, SERVING)
    names = [one.service for one in instances] if row.mode == "front" else [service]
    return [name for name in names if status.read(name).state == "running"]


def published_at(store: Store, service: str) -> Iterator[tuple[NetworkRecord, int, str]]:
    """Yield the network, IP version and address to which a service's published ports lead.

    If the service has replicas, this is the service's own address, which the instances share.
    """
    by_network: dict[str, list[str]] = {}
    for network, address in store.addresses(store.home(service)):
        by_network.setdefault(network, []).append(address)
    networks = {name: store.require_network(name) for name in by_network}
    endpoints = [ServiceEndpoint(name, tuple(each)) for name, each in by_network.items()]
    first = primary(endpoints, networks)
    if first is not None:
        for address in first.addresses:
            yield networks[first.network], family_of(address), address


def warnings(kernel: Kernel, store: Store, services: Iterable[str]) -> list[tuple[str, str]]:
    """Return (warning, next step) for each published port on which no program listens."""
    result: dict[tuple[str, PortMapping], tuple[str, str]] = {}
    for service, port, _, found in unheard(ServiceSockets(kernel), store, services):
        text = f"{service}: port {port.host_side} is published, but {found.words}"
        lives_s = status.read(found.service).lives_s
        if lives_s is not None and lives_s < _YOUNG_S:
            text += f" ({found.service} started {lives_s:.0f}s ago)"
        result.setdefault((service, port), (text, _remedy(found)))
    return list(result.values())


def _remedy(found: Listening) -> str:
    family = family_of(found.address)
    reachable = [
        other
        for other in found.others
        if not ipaddress.ip_address(other.address).is_loopback
        and family_of(other.address) == family
    ]
    if not found.others:
        return f"niso logs {found.service} may say why"
    if not reachable or any(other.port == found.port for other in reachable):
        return f"let the program listen on {ANY4 if family == 4 else ANY6}, port {found.port}"
    return "correct the service's port in network.ports, or the port of the program"


def described(
    kernel: Kernel, store: Store, services: Iterable[str]
) -> dict[str, tuple[tuple[ListeningSocket, ...], tuple[Listening, ...]]]:
    """Return {service: (listening sockets, published ports without a listening program)}.

    This is for `niso ps`. If the service has instances, their sockets are merged.
    """
    sockets = ServiceSockets(kernel)
    homes = {name: {store.home(one) for one in _runners(store, name)} for name in services}
    for home in set[str]().union(*homes.values()):  # read all sockets first, see _named
        for proto in PORTED:
            sockets.of(home, proto)
    return {
        name: (
            tuple(dict.fromkeys(one for home in sorted(own) for one in sockets.all_of(home))),
            tuple(dict.fromkeys(found for *_, found in unheard(sockets, store, [name]))),
        )
        for name, own in homes.items()
    }
