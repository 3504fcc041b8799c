"""Resolve the arguments FROM and TO of a command to the ends and addresses of a packet."""

from __future__ import annotations

import ipaddress

from niso.base.addresses import family_of
from niso.base.errors import Error, NotFound, UsageError
from niso.base.lite_typing import NamedTuple
from niso.kernel import probe
from niso.plan.known_world import World, holds
from niso.plan.records import primary
from niso.plan.verdict import PORTED
from niso.store.store import Store, bare_name

PROTOCOLS = (*PORTED, "icmp")
HOST = "host"
TARGET = "NAME, ADDRESS or [IPV6], then :PORT or :PORT/PROTO; or /icmp"


class End(NamedTuple):
    """One end of a packet: a known service, the host, or an address."""

    service: str = ""  # provider of the namespace, if the named service shares one
    address: str = ""  # set only if an address was given
    sharer: str = ""  # the named service, if it shares another's namespace
    outside: str = ""  # an outside name of a policy

    @property
    def name(self) -> str:
        """Return the name to show in messages."""
        return self.sharer or self.service or self.address or self.outside or HOST


class Packet(NamedTuple):
    """A packet as the sender sends it, before DNAT. ``port`` is None for icmp."""

    source: str
    destination: str
    port: int | None
    proto: str

    @property
    def family(self) -> int:
        return family_of(self.destination)


def parse_target(text: str) -> tuple[str, int | None, str]:
    """Parse a target to (name or address, port or None, protocol). Raises UsageError.

    Targets are ``db:5432/tcp``, ``[fd00::2]:80``, ``10.99.1.2/icmp``, ``db``.
    """

    def wrong(reason: str) -> UsageError:
        return UsageError(f"TO {text!r}: {reason}", TARGET)

    end, slash, proto = text.partition("/")
    if end.startswith("["):
        host, closed, after = end[1:].partition("]")
        if not closed or (after and not after.startswith(":")) or ":" not in host:
            raise wrong("brackets are for an IPv6 address, and only :PORT may follow")
        colon, number = after[:1], after[1:]
    elif end.count(":") > 1:
        host, colon, number = end, "", ""
    else:
        host, colon, number = end.partition(":")
    if not host:
        raise wrong("the name or address is missing")
    if slash and proto not in PROTOCOLS:
        raise wrong(f"{proto!r} is not a valid protocol (tcp, udp, sctp or icmp)")
    if not colon:
        if proto in PORTED:
            raise wrong(f"{proto} needs a port")
        return host, None, "icmp"
    if proto == "icmp":
        raise wrong("icmp has no ports")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise wrong(f"{number!r} is not a valid port (1 to 65535)")
    return host, int(number), proto or "tcp"


def resolve_both(store: Store, source: str, destination: str) -> tuple[End, End]:
    """Resolve FROM and TO. A name in TO is looked up first on the networks of FROM.

    TO may also be an outside name of a policy. Raises Error and UsageError like `resolve`.
    """
    from_ = resolve(store, source)
    if "." in destination and store.names_outside() and destination in store.outside.named():
        return from_, End(outside=destination)
    try:
        return from_, resolve(store, destination, from_.service or None)
    except NotFound as error:
        if "." in bare_name(destination):
            error.hint = "an outside name is known if a policy has it; else use an address"
        raise


def resolve(store: Store, text: str, asker: str | None = None) -> End:
    """Resolve ``host``, an address, or a service's name, hostname or alias.

    If ``asker`` is a service, its networks are searched first. All names can have the suffix
    .niso.local. Raises Error, also for a service without a network of niso, and UsageError for an
    unusable address.
    """
    if bare_name(text) == HOST:
        return End()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if ":" in text or "/" in text or text.replace(".", "").isdigit():
            raise UsageError(f"{text!r} is not a valid address", TARGET) from None
        return _end(store, _named(store, text, asker))
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise UsageError(
            f"{text!r}: IPv4-mapped addresses and zones are not supported",
            "write the plain address",
        )
    if address.is_unspecified:
        raise UsageError(
            f"{text!r} is the unspecified address; it refers to the sender itself",
            "use an address, or host",
        )
    return End(address=str(address))


def _named(store: Store, text: str, asker: str | None) -> str:
    """Look up a service by name on this host, then on others. Raises Error if not found."""
    try:
        return store.resolve(text, asker)
    except NotFound:
        elsewhere = store.holders_elsewhere(bare_name(text))
        if len(elsewhere) != 1:
            raise
        return elsewhere[0]


def _end(store: Store, service: str) -> End:
    """Return the end for an existing service. Raises Error if it has no network of niso."""
    row, home = store.service(service), store.service(store.home(service))
    if row is not None and row.mode == "host":
        raise Error(
            f"{service} has mode host: it uses the host's addresses, like any program of the host",
            "use host instead: niso net explain host TO, or FROM host:PORT",
        )
    if row is not None and home is None:
        raise Error(
            f"{service} shares the network of {row.provider}, which does not exist",
            f"niso inspect {service}",
        )
    if home is not None and home.mode == "none":
        whose = (
            service
            if home.name == service
            else f"{service} shares the network of {home.name}, which"
        )
        raise Error(
            f"{whose} has mode none: it has only a loopback interface",
            'use mode = "bridge"',
        )
    if row is not None and home is not None and home.name != service:
        if not row.active:
            raise Error(
                f"{service} is not active: it shares the network of {home.name}",
                f"niso activate {service}",
            )
        return End(service=home.name, sharer=service)
    return End(service=service)


def ends(world: World, source: End, destination: End, family: int | None = None) -> tuple[str, str]:
    """Choose (source address, destination address) of a packet between two ends.

    They follow from the sender's hosts file and routes, IPv4 first. Raises Error if no pair exists,
    UsageError if the arguments are of different families.
    """
    given = {family_of(end.address) for end in (source, destination) if end.address}
    if len(given) > 1:
        raise UsageError(
            f"{source.address} and {destination.address} are of different families",
            "use two addresses of the same family",
        )
    for end in (source, destination):
        if end.address and family not in (None, *given):
            other = 6 if family == 4 else 4
            raise UsageError(
                f"-{family} conflicts with {end.address}, which is an IPv{other} address",
                f"-{other}",
            )
    families = [number for number in (4, 6) if family in (None, number) and given <= {number}]
    for number in families:
        pair = _ends(world, source, destination, number)
        if pair is not None:
            return pair
    kind = f"IPv{families[0]}" if len(families) == 1 else "IPv4 or IPv6"
    if source.service and not world.services[source.service].endpoints:
        raise Error(f"{source.service} has no network", f"niso inspect {source.service}")
    if destination.outside and not world.outside.get(destination.outside):
        raise Error(f"{destination.outside} has no address", "niso net refresh says why")
    raise Error(
        f"{source.name} cannot send an {kind} packet to {destination.name}: "
        "no addresses of the same family have a route between them"
    )


def ends_by_family(world: World, source: End, destination: End) -> dict[int, tuple[str, str]]:
    """Return the result of `ends` for each family with an address pair; raises as `ends` does."""
    first = ends(world, source, destination)
    pairs = {family_of(first[1]): first}
    if not (source.address or destination.address):
        pair = _ends(world, source, destination, 6)
        if pair is not None:
            pairs[6] = pair
    return pairs


def _ends(world: World, source: End, to: End, family: int) -> tuple[str, str] | None:
    address = _destination(world, source, to, family)
    own = address and _source(world, source, address, family)
    return (own, address) if own and address else None


def _destination(world: World, source: End, to: End, family: int) -> str | None:
    """Return the destination address as the sender resolves it, or None."""
    if to.address:
        return to.address
    sender = world.services.get(source.service)
    if to.outside:
        first = primary(sender.endpoints, world.networks) if sender else None
        has_route = first is None or any(family_of(own) == family for own in first.addresses)
        return _of_family(world.outside.get(to.outside, ()), family) if has_route else None
    if not to.service:
        if sender:  # to a service, the host is the gateway of its first network
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
    """Return the source address that the sender's kernel chooses for ``to``, or None."""
    if source.address:
        return source.address
    if not source.service:
        return probe.own_address(to)
    endpoints = world.services[source.service].endpoints
    if any(to in endpoint.addresses for endpoint in endpoints):
        return to
    on = [endpoint for endpoint in endpoints if holds(world.networks[endpoint.network], to)]
    if (first := primary(endpoints, world.networks)) is not None:
        on.append(first)
    return next(
        (a for endpoint in (*on, *endpoints) if (a := _of_family(endpoint.addresses, family))), None
    )


def _of_family(addresses: tuple[str, ...], family: int) -> str | None:
    return next((address for address in addresses if family_of(address) == family), None)
