"""Define the store's records as plain data, so that code in plan/ does not depend on the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import Prefix, bracketed, family_of, span

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    Subnet = IPv4Network | IPv6Network | Prefix

ANY, ANY4, ANY6 = "", "0.0.0.0", "::"
"""Host addresses of ports published on all addresses: of all families, of IPv4, of IPv6."""
WIDE = (ANY, ANY4, ANY6)
PORTED = ("tcp", "udp", "sctp")
"""The protocols with ports that policies and published ports can name."""
HOST_GATEWAY = "host-gateway"
"""The address in extra hosts for the host's addresses on the service's first network."""


class SubnetRecord(NamedTuple):
    family: int  # 4 or 6
    cidr: str
    gateway: str


class Span(NamedTuple):
    cluster: str  # the id of the cluster, from which MACs are derived: equal on all hosts
    vni: int
    port: int  # UDP port
    local: str  # this host's underlay address


class Tunnel(NamedTuple):
    """This host's WireGuard interface in an encrypted cluster (kernel/kinds/tunnels.py). ``others``
    are its peers as (public key, endpoint, address inside the tunnel).
    """

    form: str
    address: str  # inside the tunnel, with its prefix length
    port: int  # UDP port
    mtu: int  # bytes
    public: str  # this host's public key
    others: tuple[tuple[str, str, str], ...] = ()  # the peers: public key, endpoint, address


# RFC 791: datagram size that every host accepts; RFC 8200: minimum link MTU
MIN_MTUS = {4: 576, 6: 1280}


class NetworkRecord(NamedTuple):
    name: str
    bridge: str
    mtu: int
    subnets: tuple[SubnetRecord, ...]
    internal: bool = False  # internal: nothing is forwarded out of the network
    observe: bool = True  # the rules record its flows
    publishes: bool = False  # an active service publishes ports on it
    by_loopback: bool = False  # one of these ports is published on 127.0.0.1
    policed: bool = False  # an active service on it has a policy
    span: Span | None = None
    multicast: bool = False  # multicasts and broadcasts pass between its services


class PortMapping(NamedTuple):
    """A published port or range: ``count`` ports of the host, from ``host_port`` on, are translated
    to the same number of ports of a service, from ``container_port`` on.
    """

    host_ip: str  # one address, or ANY, ANY4, ANY6
    host_port: int
    container_port: int
    proto: str
    count: int = 1  # type: ignore[assignment]  # hides tuple.count

    @property
    def last(self) -> int:
        return self.host_port + self.count - 1

    @property
    def families(self) -> tuple[int, ...]:
        return (4, 6) if self.host_ip == ANY else (family_of(self.host_ip),)

    @property
    def is_wide(self) -> bool:
        """Return whether the port is published on all of the host's addresses of an IP version."""
        return self.host_ip in WIDE

    @property
    def host_side(self) -> str:
        """Return the host address, ports and protocol, such as ``127.0.0.1:8000-8010/udp``."""
        return f"{self._host}{span(self.host_port, self.count)}/{self.proto}"

    @property
    def text(self) -> str:
        """Return the published port as written in a manifest, such as ``127.0.0.1:53:53/udp``."""
        proto = "" if self.proto == "tcp" else f"/{self.proto}"
        inside = span(self.container_port, self.count)
        return f"{self._host}{span(self.host_port, self.count)}:{inside}{proto}"

    @property
    def _host(self) -> str:
        return "" if self.host_ip == ANY else f"{bracketed(self.host_ip)}:"

    def clashes(self, other: PortMapping) -> bool:
        """Return whether both published ports would match the same packet."""
        if self.proto != other.proto or self.host_port > other.last or other.host_port > self.last:
            return False
        if not set(self.families) & set(other.families):
            return False
        return self.host_ip == other.host_ip or self.is_wide or other.is_wide

    def diverges(self, other: PortMapping) -> bool:
        """Return whether both published ports map the same host port to different ports of a
        service.

        A service with a service address cannot have both, even on different host addresses: its
        rules no longer see which host address a client used.
        """
        if self.container_port - self.host_port == other.container_port - other.host_port:
            return False
        same = self.host_port and other.host_port and set(self.families) & set(other.families)
        return bool(same) and self._replace(host_ip=ANY).clashes(other)


METADATA_WORD = "metadata"
"""The word in ``egress.deny`` that stands for the metadata service of a cloud."""


class Peer(NamedTuple):
    """The peer of a policy entry: the source of packets (ingress) or their destination (egress)."""

    kind: str  # "service", "network", "prefix", "prefixes", "outside" (a DNS name) or "machines"
    name: str  # or canonical prefixes: "10.99.1.2/32", "fd00::/8", separated by commas


OUTSIDE = Peer("machines", "outside")
"""All addresses that belong neither to services nor to the host. In policies, the word ``outside``.

In the kernel: a packet whose other interface is not a bridge of niso.
"""


class Entry(NamedTuple):
    """One entry of a policy: a peer, and ports of the service (ingress) or of the peer (egress)."""

    key: str  # the manifest key: "network.policy.allow_from[0]"
    text: str  # the entry as written
    peer: Peer
    first: int  # the first port; 0 to 65535 also means protocols without ports
    last: int
    proto: str  # "tcp", "udp", "sctp", "icmp", or "" for all


class Audit(NamedTuple):
    """The audit period of a policy, in which the policy denies no packets. ``since`` and ``until``
    are in seconds since 1970. Both are determined when the audit begins. Before that, ``since`` is
    0, and ``until`` is the end in the manifest, 0 for the default length, or
    `niso.kernel.policy_rules.NEVER` for an audit without an end.
    """

    text: str  # the end as written; "" for the default
    since: int = 0
    until: int = 0


class Policy(NamedTuple):
    """A policy: who may connect to a service (ingress), and where the service may connect (egress).
    An allow list that is None allows everything. An empty allow list allows nothing.
    """

    allow_from: tuple[Entry, ...] | None = None
    deny_from: tuple[Entry, ...] = ()
    egress_allow: tuple[Entry, ...] | None = None
    egress_deny: tuple[Entry, ...] = ()
    log: bool = False
    audit: Audit | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether the policy denies nothing: it has no allow list and no deny entry."""
        return self._replace(log=False, audit=None) == Policy()

    def entries(self) -> tuple[Entry, ...]:
        allowed = (self.allow_from or (), self.egress_allow or ())
        return (*allowed[0], *self.deny_from, *allowed[1], *self.egress_deny)

    def with_peers(self, peers: Callable[[Peer, bool], Iterable[Peer]]) -> Policy:
        """Replace the peers of all entries, and return the new policy. For each entry, ``peers`` is
        called with the entry's peer and whether the entry is a deny entry. The entry is copied for
        each peer that ``peers`` returns.
        """

        def changed(entries: tuple[Entry, ...], denies: bool) -> tuple[Entry, ...]:
            return tuple(e._replace(peer=p) for e in entries for p in peers(e.peer, denies))

        return self._replace(
            allow_from=self.allow_from and changed(self.allow_from, False),
            deny_from=changed(self.deny_from, True),
            egress_allow=self.egress_allow and changed(self.egress_allow, False),
            egress_deny=changed(self.egress_deny, True),
        )

    def outside_names(self) -> tuple[str, ...]:
        """Return the DNS names in the policy, which only ``egress.allow`` can contain."""
        peers = (entry.peer for entry in self.egress_allow or ())
        return tuple(dict.fromkeys(peer.name for peer in peers if peer.kind == "outside"))


class Member(NamedTuple):
    """A name in policies, with its addresses. For the name of a service these are the service's
    addresses, for the name of a network its subnets, and for a DNS name the addresses that services
    may reach by this name.
    """

    kind: str  # kind of the name, as in Peer
    name: str
    values: tuple[str, ...]
    # gateways of a network, which are excluded: they are addresses of the host
    gateways: tuple[str, ...] = ()


class Policed(NamedTuple):
    """An active service with its policy, from which nftables elements are computed.

    If ``only`` is None, the elements of the complete policy are computed, otherwise only those for
    peers whose addresses are in ``only``.
    """

    service: str
    addresses: tuple[str, ...]  # the service's own addresses
    policy: Policy
    only: frozenset[str] | None = None
    # (address, bridge port) of those addresses that are on a network with multicast
    hears: tuple[tuple[str, str], ...] = ()


class Healthcheck(NamedTuple):
    """The health check of a service: a connection to it, or a command that runs inside it."""

    address: str  # address to connect to; "": loopback, else an address of the service
    port: int
    host: str  # the request's Host header
    path: str | None  # path of a GET request; None: an accepted connection is enough
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float
    command: tuple[str, ...] = ()  # command to run inside the service, instead of a connection
    on_unhealthy: str = "none"  # what happens to an unhealthy service: none, restart or stop
    outer: bool = False  # do not connect to loopback, where peers do not reach the service

    @property
    def target(self) -> str:
        """Return what the health check examines: ``tcp 8080``, the URL, or the command's name."""
        if self.command:
            return f"command {self.command[0]}"
        return f"tcp {self.port}" if self.path is None else f"http://{self.host}{self.path}"


class ServiceEndpoint(NamedTuple):
    network: str
    addresses: tuple[str, ...]  # one per subnet of the network
    interface: str = ""  # interface name inside the service; "": eth<position>
    mac: str = ""  # MAC inside the service; "": derived from the names
    routes: bool | None = None  # whether the default route leads here; None: if it is `primary`


def primary(
    endpoints: Sequence[ServiceEndpoint], networks: Mapping[str, NetworkRecord]
) -> ServiceEndpoint | None:
    """Return a service's primary endpoint, which has its default route and its published ports.

    This is the first endpoint on a network that is not internal, because an internal network has no
    route out of the host. If all networks are internal, it is the first endpoint. Returns None if
    there is no endpoint.
    """
    outer = (endpoint for endpoint in endpoints if not networks[endpoint.network].internal)
    return next(outer, next(iter(endpoints), None))


class Limits(NamedTuple):
    """Rate limits of a service, because all services share the kernel's conntrack and neighbour
    tables. All limits are per second. 0 means no limit.
    """

    new_flows: int
    fragments: int
    arp: int  # ARP requests and neighbour solicitations
    neighbours: int  # neighbours that the host resolves on its own links
    multicast: int = 100  # multicasts and broadcasts, on a network with multicast


LIMITS = Limits(1000, 0, 100, 20)
"""The limits of a service whose record is damaged."""
ATTACHED_LIMITS = LIMITS._replace(fragments=40)
"""The limits of attachments. Their processes may have any capability."""


SENDS_RAW = frozenset(("NET_RAW", "NET_ADMIN", "SYS_ADMIN"))
"""The capabilities with which a service can send whole frames, and fragments of packets."""


class PlannedService(NamedTuple):
    """An active service, of this host or of another host, with the data to plan a change."""

    name: str
    generation: int
    endpoints: tuple[ServiceEndpoint, ...]
    ports: tuple[PortMapping, ...]
    names: tuple[str, ...]  # hostname first; () if no service of this host may resolve its names
    # whether the service, or a service in its namespace, has published ports, in scope or not
    publishes: bool = False
    # or host, none, share, attached, front; with share, the service whose namespace is shared has
    # the endpoints; with front, the addresses are service addresses
    mode: str = "bridge"
    limits: Limits = LIMITS
    bandwidth: tuple[int, int] = (0, 0)  # bytes per second in and out, on each network; 0: no limit
    sysctls: tuple[tuple[str, str], ...] = ()  # names with dots and values, of its manifest
    extra_hosts: tuple[tuple[str, str], ...] = ()  # name and address, or HOST_GATEWAY
    outside: tuple[str, int] | None = None  # path and cookie of a foreign namespace
    raw: bool = False  # whether this service, or one in its namespace, may have `SENDS_RAW`
    host: str = ""  # the underlay address of its host; "" for this host
    host_number: int = 0  # the number of its host on this host; 0 for this host
    # with mode front: ordinal and endpoints of each instance here that receives connections
    serving: tuple[tuple[int, tuple[ServiceEndpoint, ...]], ...] = ()
    # with mode front: the same for instances on other hosts
    elsewhere: tuple[tuple[int, tuple[ServiceEndpoint, ...]], ...] = ()

    def is_on(self, network: str) -> bool:
        return any(endpoint.network == network for endpoint in self.endpoints)


class Snapshot(NamedTuple):
    """The rows of the store that are needed to plan a change.

    ``networks`` contains all networks of ``services``. A hosts file is identified by the ordered
    list of networks of the services that read it. ``readers`` has these lists for all hosts files
    that list one of ``services``. ``fresh`` has the lists of new hosts files. A new hosts file is
    planned completely: ``neighbours`` and ``listed`` are the services in it.
    """

    state_id: str
    networks: tuple[NetworkRecord, ...] = ()
    services: tuple[PlannedService, ...] = ()
    readers: frozenset[tuple[str, ...]] = frozenset()
    fresh: frozenset[tuple[str, ...]] = frozenset()
    neighbours: tuple[PlannedService, ...] = ()
    # services with a hosts file of their own in which one of ``services`` is listed; the whole file
    # is planned if the service itself is in ``services``
    apart: tuple[PlannedService, ...] = ()
    # services in scope, or whose policy has a name that now stands for other addresses
    policed: tuple[Policed, ...] = ()
    members: tuple[Member, ...] = ()  # the addresses of the names in these policies
    any_network: bool = False
    forwards: bool = False  # whether niso makes the host forward (`SnapshotRows.host_forwards`)
    forwards6: bool = False
    sysctls_before: tuple[tuple[str, str], ...] = ()
    # for each IP version (index, name) of links from before niso made the host forward it
    links_before: tuple[tuple[int, tuple[tuple[int, str], ...]], ...] = ()
    wire: tuple[int, ...] = ()  # UDP ports of all networks that span hosts
    tunnel: Tunnel | None = None  # the tunnel for packets to other hosts; None: not encrypted
    remotes: tuple[PlannedService, ...] = ()  # services of other hosts, in scope
    listed: tuple[PlannedService, ...] = ()  # services in the hosts files of ``fresh``


# --- addresses of a subnet ------------------------------------------------------------------------

# An address is represented by its number within its subnet (0 is the network address).


def last(subnet: Subnet) -> int:
    """Return the highest address of a subnet that a service can have, as its offset from the
    subnet's first address. The highest address of an IPv4 subnet is the broadcast address (RFC
    919).
    """
    return subnet.num_addresses - (2 if subnet.version == 4 else 1)


def first_free(subnet: Subnet, gateway: int, used: Iterable[int]) -> int | None:
    """Return the lowest free address of a subnet, or None if the subnet is full. Addresses are
    offsets from the subnet's first address. ``used`` are the addresses in use, ascending. Network,
    gateway and broadcast address are never free.
    """
    candidate = 1
    for number in used:
        while candidate == gateway:
            candidate += 1
        if number > candidate:
            break
        if number == candidate:
            candidate += 1
    while candidate == gateway:
        candidate += 1
    return candidate if candidate <= last(subnet) else None


def refusal(subnet: Subnet, gateway: int, number: int) -> str | None:
    """Return why no service can have an address of a subnet, or None if a service can. ``number``
    is the address's offset from the subnet's first address.
    """
    if number == 0:
        return "it is the address of the network itself"
    if number == gateway:
        return "it is the gateway"
    if subnet.version == 4 and number == subnet.num_addresses - 1:
        return "it is the broadcast address"
    return None


# --- DNS names in policies ------------------------------------------------------------------------

NOW, FORMER, PAST = "now", "former", "past"
"""The states of an address of a DNS name (`niso.plan.dns_answers`)."""
METADATA = ("169.254.169.254", "fd00:ec2::254")
"""The addresses at which a machine in a cloud asks for its metadata, often with credentials."""
Forbids = Callable[[str], str]
"""A function that returns why a DNS name may not have an address, or "" if the name may have it."""


class DnsAddress(NamedTuple):
    """A recorded address of a DNS name in policies. ``until`` is a time in seconds since 1970. In
    the state NOW, it is the end of the TTL. In the state FORMER, it is the time when the rules will
    stop allowing the address. In the state PAST, it is the time when the rules stopped allowing the
    address.
    """

    address: str
    state: str
    until: float


class Outside(NamedTuple):
    """A DNS name in policies, with its recorded addresses. Times are in seconds since 1970."""

    name: str
    asked_at: float = 0.0
    due_at: float = 0.0  # when the name should be resolved again
    problem: str = ""  # the problem of the last query; "" for none
    settled: bool = True  # whether the kernel has these addresses
    addresses: tuple[DnsAddress, ...] = ()  # sorted

    def in_state(self, *states: str) -> tuple[str, ...]:
        """Return the name's addresses with one of the ``states``, in the order of ``states``."""
        return tuple(
            known.address for state in states for known in self.addresses if known.state == state
        )

    def is_due(self, forbids: Forbids, now: float) -> bool:
        """Return whether the name should be resolved again: its next query is due, the clock was
        set back, or one of its allowed addresses has become forbidden.
        """
        barred = any(forbids(address) for address in self.in_state(NOW, FORMER))
        return barred or not self.asked_at <= now < self.due_at
