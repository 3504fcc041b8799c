"""What a question about a packet means: who sends it, to whom, by which addresses."""

from __future__ import annotations

import ipaddress

from niso.base.errors import NisoError, UsageError
from niso.base.family import family_of
from niso.base.lite_typing import NamedTuple
from niso.kernel import probe
from niso.plan.verdict import PORTED, World, holds
from niso.store.store import Store

PROTOCOLS = (*PORTED, "icmp")


HOST = "host"


TARGET = "NAME, ADDRESS or [IPV6], then :PORT or :PORT/PROTO; or /icmp"


class End(NamedTuple):
    """One end of a packet as it was asked for: a known service, the host, or an address."""

    service: str = ""  # of one that shares another's network, that other one
    address: str = ""  # of a service and of the host it is chosen
    sharer: str = ""  # the service that was asked for, where it shares

    @property
    def name(self) -> str:
        return self.sharer or self.service or self.address or HOST


class Packet(NamedTuple):
    """A packet as it is sent. ``port`` is None for icmp."""

    source: str
    destination: str
    port: int | None
    proto: str

    @property
    def family(self) -> int:
        return family_of(self.destination)


def parse_target(text: str) -> tuple[str, int | None, str]:
    """(name or address, port or None, protocol) of ``db:5432/tcp``, ``[fd00::2]:80``, ``10.99.1.2/icmp``, ``db``. Raises UsageError."""

    def wrong(words: str) -> UsageError:
        return UsageError(f"TO {text!r}: {words}", TARGET)

    rest, slash, proto = text.partition("/")
    if rest.startswith("["):
        who, closed, after = rest[1:].partition("]")
        if not closed or (after and not after.startswith(":")) or ":" not in who:
            raise wrong("what stands in brackets is an IPv6 address, and :PORT may follow")
        colon, number = after[:1], after[1:]
    elif rest.count(":") > 1:
        who, colon, number = rest, "", ""
    else:
        who, colon, number = rest.partition(":")
    if not who:
        raise wrong("it names nobody")
    if slash and proto not in PROTOCOLS:
        raise wrong(f"{proto!r} is no protocol of tcp, udp, sctp and icmp")
    if not colon:
        if proto in PORTED:
            raise wrong(f"{proto} needs a port")
        return who, None, "icmp"
    if proto == "icmp":
        raise wrong("icmp has no ports")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise wrong(f"{number!r} is no port of 1 to 65535")
    return who, int(number), proto or "tcp"


def resolve(store: Store, text: str) -> End:
    """Who is meant by a service's name, hostname or alias (with .niso.local or without), ``host``, or an address.

    Raises NisoError, also for a service that no packet of niso's networks comes from or goes to.
    """
    if text == HOST:
        return End()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if ":" in text or "/" in text or text.replace(".", "").isdigit():
            raise UsageError(f"{text!r} is no address", TARGET) from None
        return _end(store, store.resolve(text))
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise UsageError(
            f"{text!r}: IPv4-mapped addresses and zones are not supported",
            "name the address itself",
        )
    if address.is_unspecified:
        raise UsageError(
            f"{text!r} is nobody's address: who connects to it reaches itself",
            "name an address, or host",
        )
    return End(address=str(address))


def _end(store: Store, service: str) -> End:
    row, home = store.service(service), store.service(store.home(service))
    if row is not None and row.mode == "host":
        words = f"{service} is of mode host: it sends and listens with the host's own addresses, as any program of the host"
        raise NisoError(
            words, "ask for host in its place: niso net explain host TO, or FROM host:PORT"
        )
    if row is not None and home is None:
        raise NisoError(
            f"{service} shares the network of {row.provider}, which is not known",
            f"niso inspect {service}",
        )
    if home is not None and home.mode == "none":
        whose = (
            f"{service} is"
            if home.name == service
            else f"{service} shares the network of {home.name}, which is"
        )
        raise NisoError(
            f"{whose} of mode none: it has its own loopback and nothing else",
            'mode = "bridge" has a network',
        )
    if row is not None and home is not None and home.name != service:
        if not row.active:
            raise NisoError(
                f"{service} is not active: it shares the network of {home.name}",
                f"niso activate {service}",
            )
        return End(service=home.name, sharer=service)
    return End(service=service)


def ends(world: World, source: End, destination: End, family: int | None = None) -> tuple[str, str]:
    """The two addresses of a packet between them: those that the sender's hosts file and routes give, IPv4 first.

    Raises NisoError where they have no addresses of one family.
    """
    given = {family_of(end.address) for end in (source, destination) if end.address}
    if len(given) > 1:
        raise UsageError(
            f"{source.address} and {destination.address} are not of one family",
            "name two of one family",
        )
    for end in (source, destination):
        if end.address and family not in (None, *given):
            other = 6 if family == 4 else 4
            raise UsageError(
                f"-{family} does not go with {end.address}, which is an IPv{other} address",
                f"-{other}",
            )
    families = [each for each in (4, 6) if family in (None, each) and given <= {each}]
    for each in families:
        to = _destination(world, source, destination, each)
        start = to and _source(world, source, to, each)
        if to and start:
            return start, to
    kind = f"IPv{families[0]}" if len(families) == 1 else "IPv4 or IPv6"
    if source.service and not world.services[source.service].endpoints:
        raise NisoError(f"{source.service} has no network", f"niso inspect {source.service}")
    raise NisoError(
        f"no {kind} packet can be made from {source.name} to {destination.name}: they have no addresses of one family"
        " with a route between them"
    )


def _destination(world: World, source: End, to: End, family: int) -> str | None:
    if to.address:
        return to.address
    sender = world.services.get(source.service)
    if not to.service:
        if sender:  # the gateway of its first network is the host to it
            own = (subnet for e in sender.endpoints for subnet in world.networks[e.network].subnets)
            return next((subnet.gateway for subnet in own if subnet.family == family), None)
        if source.address:
            return probe.own_address(source.address)
        return "127.0.0.1" if family == 4 else "::1"
    known = world.services[to.service]
    by_network = {
        endpoint.network: _of_family(endpoint.addresses, family) for endpoint in known.endpoints
    }
    shared = [by_network.get(endpoint.network) for endpoint in sender.endpoints] if sender else []
    return next((address for address in (*shared, *by_network.values()) if address), None)


def _source(world: World, source: End, to: str, family: int) -> str | None:
    if source.address:
        return source.address
    if not source.service:
        return probe.own_address(to)
    endpoints = world.services[source.service].endpoints
    if any(to in endpoint.addresses for endpoint in endpoints):
        return to
    on = [endpoint for endpoint in endpoints if holds(world.networks[endpoint.network], to)]
    return next(
        (a for endpoint in (*on, *endpoints) if (a := _of_family(endpoint.addresses, family))), None
    )


def _of_family(addresses: tuple[str, ...], family: int) -> str | None:
    return next((address for address in addresses if family_of(address) == family), None)
