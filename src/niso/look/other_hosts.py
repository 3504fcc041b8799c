"""Read the cluster's records of services on other hosts, for `niso ps --all-hosts` and explain."""

from __future__ import annotations

import time

from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner, span
from niso.cluster import agent, key_values
from niso.cluster.claims import Claims
from niso.cluster.engine import NoAnswer
from niso.cluster.key_values import ClusterClaim
from niso.cluster.membership import ClusterKeys, require_joined, require_own
from niso.look.services import service_lines
from niso.manifest.addresses_and_ports import parse_port
from niso.plan.records import Entry, Policy, PortMapping
from niso.plan.verdict import KnownService, PolicyContext, holder_of
from niso.reconcile.live_world import audits
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.cluster.config import Config
    from niso.look.session import Session


class ClusterLine(NamedTuple):
    """One service in a list of all hosts' services."""

    service: str  # the service's name
    host: str  # the host that the service is on
    status: str  # the state as niso ps shows it; up, down or host gone on another host
    address: tuple[str, ...]
    """addresses, one for each network and IP version; of other hosts only on networks that span
    hosts
    """
    ports: tuple[str, ...]  # published ports: HOST_PORT:PORT


class ClusterPort(NamedTuple):
    """A published port, or range of ports, in a list of all hosts' ports."""

    service: str  # the service's name
    host: str  # the host that the service is on, where the port is open
    port: str  # the port of the host (ADDRESS:PORT if only on one address), or the range
    container: str  # the port inside the service, or the range
    proto: str  # tcp, udp or sctp


def lines(session: Session) -> tuple[ClusterLine, ...]:
    """Return the services of all hosts of the cluster, sorted by name. Raises Error.

    If the cluster does not answer, the services of other hosts come from this host's copy of the
    cluster's data, and a warning says how old this copy is.
    """
    machine = session.machine()
    store, joined = machine.store, require_joined(machine)
    try:
        listed = _claimed(store, joined)
    except NoAnswer as error:
        at_s = agent.last()[0]
        when = "before the boot" if at_s is None else f"{time.monotonic() - at_s:.0f} s ago"
        age = f"services of other hosts are as they were {when}, on the networks of this host"
        session.caution(error.message, (age, "ports of other hosts are not known then"))
        listed = _mirrored(store)
    listed += [
        ClusterLine(
            line.service,
            joined.host,
            line.status,
            line.address,
            tuple(port.text for _, port in store.ports(line.service)) if line.address else (),
        )
        for line in service_lines(session, store)
    ]
    return tuple(sorted(listed))


def ports(session: Session) -> tuple[ClusterPort, ...]:
    """Return the published ports of active services on all live hosts of the cluster, by service.

    If the cluster does not answer, a warning says that only the ports of this host are listed.
    """
    machine = session.machine()
    store, joined = machine.store, require_joined(machine)
    listed = [_port(service, joined.host, port) for service, port in store.active_ports()]
    try:
        claims, alive = _others(store, joined)
    except NoAnswer as error:
        session.caution(error.message, ("only the ports of this host are listed",))
        return tuple(sorted(listed))
    for claim in claims:
        for service, texts in ((claim.service, claim.ports), *claim.sharers):
            for text in texts if claim.up and claim.host in alive else ():
                try:
                    listed.append(_port(service, claim.host, parse_port(text, "")))
                except InvalidInput:  # not written by niso
                    continue
    return tuple(sorted(listed))


def _port(service: str, host: str, port: PortMapping) -> ClusterPort:
    side = port.host_side.removesuffix(f"/{port.proto}")
    inside = span(port.container_port, port.count)
    return ClusterPort(service, host, side, inside, port.proto)


def _others(store: Store, joined: Config) -> tuple[list[ClusterClaim], set[str]]:
    with joined.engine(brief=True) as engine:
        membership = ClusterKeys(engine, joined.keys)
        require_own(store, membership)
        alive = {host.name for host in membership.hosts() if host.alive}
        claims = membership.services()
    return [claim for claim in claims if claim.host != joined.host], alive


def _claimed(store: Store, joined: Config) -> list[ClusterLine]:
    claims, alive = _others(store, joined)
    return [
        ClusterLine(
            service,
            claim.host,
            ("up" if claim.up else "down") if claim.host in alive else "host gone",
            tuple(address for some in claim.networks.values() for address in some),
            ports,
        )
        for claim in claims
        for service, ports in ((claim.service, claim.ports), *claim.sharers)
        if owner(service) == service
    ]


def _mirrored(store: Store) -> list[ClusterLine]:
    alive = {host for host, (_, _, lives) in store.across.peers().items() if lives}
    return [
        ClusterLine(
            service,
            rows[0].host,
            ("up" if rows[0].up else "down") if rows[0].host in alive else "host gone",
            tuple(row.address for row in rows),
            (),
        )
        for service, rows in store.across.addresses().items()
        if owner(service) == service
    ]


def with_remote(
    session: Session, here: PolicyContext, source: str, destination: str, proves: bool = False
) -> PolicyContext:
    """Return ``here``, extended by the policies that other hosts apply to a packet.

    If the cluster does not answer, a warning says that these policies are unknown. Raises Error,
    with ``proves`` also if the packet involves another host, where a test packet cannot be traced.
    """
    ends = [
        known
        for known in here.services.values()
        if any({source, destination} & {*endpoint.addresses} for endpoint in known.endpoints)
    ]
    remote = [known for known in ends if known.host]
    # the instances have the policy of a service with a service address, which may be on this host
    fronts = {known.name for known in ends if known.serving is not None}
    parts = [known for known in here.services.values() if known.host and known.front in fronts]
    if not (remote or parts):
        return here

    if proves and remote:
        raise Error(
            f"{remote[0].name} is on {remote[0].host}: a test packet is followed within one host",
            "niso net ping sends one there",
            "--prove",
            names_key=False,
        )
    remote += parts
    _require_within(here, source, destination)
    store = session.store()
    joined = require_joined(session.machine())
    with joined.engine(brief=True) as engine:
        try:
            claims = Claims(engine, joined.host, joined.keys)
            held = {known.name: claims.held(known.name) for known in remote}
            hosts = {host for claim in held.values() if claim is not None for host in claim.hosts}
            silent = {host for host in hosts if not claims.is_alive(host)}
        except NoAnswer as error:
            hints = [f"{known.host} has that of {known.name}: ask there" for known in remote]
            session.caution(f"policies of other hosts are not known: {error.message}", hints)
            return here
    services = dict(here.services)
    for known in remote:
        claim = held[known.name]
        if claim is None:
            services[known.name] = known._replace(active=False, heard=True)
            continue
        policy = _policy(claim.policy, known) if claim.policy else known.policy
        services[known.name] = known._replace(
            policy=_resolved(store, here, known, policy),
            active=claim.any_up,
            audits=audits(policy, time.time()),
            heard=True,
        )
        if silent.issuperset(claim.hosts):
            session.caution(f"{claim.host} does not answer: {known.name} may not run any more")
    return here._replace(services=services)


def _require_within(here: PolicyContext, source: str, destination: str) -> None:
    """Raise Error if another host's service sends to an address outside the cluster. This host does
    not know the routes of the other host.
    """
    sender = holder_of(here, source)
    if sender is not None and sender[0].host and holder_of(here, destination) is None:
        name, host = sender[0].name, sender[0].host
        raise Error(
            f"{name} is on {host}: this host only knows what reaches services of the cluster",
            f"niso net explain on {host}",
        )


def _policy(text: str, known: KnownService) -> Policy:
    try:
        return key_values.policy(text)
    except ValueError:
        raise Error(
            f"the policy of {known.name} on {known.host} is not one that this niso knows",
            f"ask on {known.host}",
        ) from None


def _resolved(store: Store, here: PolicyContext, known: KnownService, policy: Policy) -> Policy:
    """Replace names in another host's policy by the services that have these names on that host."""
    on = {endpoint.network for endpoint in known.endpoints}

    def entries(some: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(
            entry._replace(peer=entry.peer._replace(name=resolved(entry.peer.name)))
            if entry.peer.kind == "service"
            else entry
            for entry in some
        )

    def resolved(name: str) -> str:
        called = {*store.holders(name), *store.holders_elsewhere(name)}
        beside = [
            service.name
            for service in here.services.values()
            if service.name in called and on & {endpoint.network for endpoint in service.endpoints}
        ]
        return beside[0] if len(beside) == 1 else name

    return policy._replace(
        allow_from=None if policy.allow_from is None else entries(policy.allow_from),
        deny_from=entries(policy.deny_from),
        egress_allow=None if policy.egress_allow is None else entries(policy.egress_allow),
        egress_deny=entries(policy.egress_deny),
    )
