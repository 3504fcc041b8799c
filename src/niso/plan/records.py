"""Define the store's records as plain data, so that planning needs no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niso.base.named_tuples import NamedTuple
from niso.base.names import bracketed, family_of, span

ANY, ANY4, ANY6 = "", "0.0.0.0", "::"
"""Wildcard host addresses: every family of the network, IPv4, IPv6."""
WIDE = (ANY, ANY4, ANY6)
HOST_GATEWAY = "host-gateway"
"""In extra hosts: stands for the host's addresses on the service's first network."""


class Subnet(NamedTuple):
    family: int  # 4 or 6
    cidr: str
    gateway: str


class Span(NamedTuple):
    """The settings of a network that spans hosts (kernel/ruleset.py)."""

    cluster: str  # the id of the cluster, from which MACs are derived: equal on all hosts
    vni: int
    port: int  # UDP port
    local: str  # this host's underlay address


class Tunnel(NamedTuple):
    """The WireGuard link of a host of an encrypted cluster (kernel/kinds/tunnels.py)."""

    form: str
    address: str  # inside the tunnel, with its prefix length
    port: int  # UDP port
    mtu: int  # bytes
    public: str  # this host's public key
    others: tuple[tuple[str, str, str], ...] = ()  # the peers: public key, endpoint, address


class Network(NamedTuple):
    name: str
    bridge: str
    mtu: int
    subnets: tuple[Subnet, ...]
    internal: bool = False  # internal: nothing is forwarded out of the network
    observe: bool = True  # the rules record its flows
    publishes: bool = False  # an active service publishes ports on it
    by_loopback: bool = False  # one of these ports is published on 127.0.0.1
    policed: bool = False  # an active service on it has a policy
    span: Span | None = None


class Port(NamedTuple):
    """A published port, or ``count`` consecutive ports mapped to as many ports of the service."""

    host_ip: str  # one address, or ANY, ANY4, ANY6
    host_port: int
    container_port: int
    proto: str
    count: int = 1  # type: ignore[assignment]  # hides tuple.count

    @property
    def last(self) -> int:
        """Return the last host port."""
        return self.host_port + self.count - 1

    @property
    def families(self) -> tuple[int, ...]:
        """Return the families of the host addresses: 4, 6 or both."""
        return (4, 6) if self.host_ip == ANY else (family_of(self.host_ip),)

    @property
    def is_wide(self) -> bool:
        """Return whether the port is published on all host addresses of a family."""
        return self.host_ip in WIDE

    @property
    def host_side(self) -> str:
        """Return the host's side for messages: ``127.0.0.1:8000-8010/udp``."""
        return f"{self._host}{span(self.host_port, self.count)}/{self.proto}"

    @property
    def text(self) -> str:
        """Return the port in the syntax of a manifest: ``127.0.0.1:53:53/udp``."""
        proto = "" if self.proto == "tcp" else f"/{self.proto}"
        inside = span(self.container_port, self.count)
        return f"{self._host}{span(self.host_port, self.count)}:{inside}{proto}"

    @property
    def _host(self) -> str:
        return "" if self.host_ip == ANY else f"{bracketed(self.host_ip)}:"

    def clashes(self, other: Port) -> bool:
        """Return whether some packet would match both ports."""
        if self.proto != other.proto or self.host_port > other.last or other.host_port > self.last:
            return False
        if not set(self.families) & set(other.families):
            return False
        return self.host_ip == other.host_ip or self.is_wide or other.is_wide


METADATA_WORD = "metadata"
"""A peer of ``egress.deny`` alone: the metadata service of a cloud."""


class Peer(NamedTuple):
    """A peer that a policy entry names."""

    kind: str  # "service", "network", "prefix", "prefixes" or "outside"
    name: (
        str  # its name; or a canonical prefix: "10.99.1.2/32", "fd00::/8"; or several, with commas
    )


class Entry(NamedTuple):
    """One entry of a policy: a peer, and ports of the service (ingress) or of the peer (egress)."""

    key: str  # the manifest key: "network.policy.allow_from[0]"
    text: str  # the entry as written
    peer: Peer
    first: int  # 0 to 65535: all ports, and protocols without ports
    last: int
    proto: str  # "tcp", "udp", "sctp", "icmp", or "" for all


class Audit(NamedTuple):
    """The period during which a policy denies no packets. The end is fixed when the audit begins.

    ``since`` and ``until`` are in seconds since 1970. In a manifest ``since`` is 0, and ``until``
    is 0 for the default, or `niso.kernel.policy_rules.NEVER` for no end.
    """

    text: str  # the end as written; "" for the default
    since: int = 0
    until: int = 0


class Policy(NamedTuple):
    """The peers that may connect to a service, and the peers that the service may connect to.

    An allow list of None allows everything, an empty one nothing.
    """

    allow_from: tuple[Entry, ...] | None = None
    deny_from: tuple[Entry, ...] = ()
    egress_allow: tuple[Entry, ...] | None = None
    egress_deny: tuple[Entry, ...] = ()
    log: bool = False
    audit: Audit | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether the policy denies no packet of any peer."""
        return self._replace(log=False, audit=None) == Policy()

    def entries(self) -> tuple[Entry, ...]:
        """Return the entries of all lists."""
        return (
            *(self.allow_from or ()),
            *self.deny_from,
            *(self.egress_allow or ()),
            *self.egress_deny,
        )

    def outside_names(self) -> tuple[str, ...]:
        """Return the DNS names in entries, without duplicates.

        Only ``egress.allow`` can have them.
        """
        peers = (entry.peer for entry in self.egress_allow or ())
        return tuple(dict.fromkeys(peer.name for peer in peers if peer.kind == "outside"))


class Member(NamedTuple):
    """The addresses that a name in policies means: of a service, or a network's subnets.

    For a DNS name, they are the addresses by which the service may reach it.
    """

    kind: str  # kind of the name, as in Peer
    name: str
    values: tuple[str, ...]
    # gateways of a network: they are the host's, which is not a member
    gateways: tuple[str, ...] = ()


class Policed(NamedTuple):
    """An active service with a policy.

    With ``only``, it contains only the part of the policy for peers with these addresses.
    """

    service: str
    addresses: tuple[str, ...]  # the service's own addresses
    policy: Policy
    only: frozenset[str] | None = None


class Healthcheck(NamedTuple):
    """How to check a service's health: by a connection or a command in its namespace."""

    address: str  # address to connect to; "": loopback, else an address of the service
    port: int
    host: str  # the request's Host header
    path: str | None  # path of a GET request; None: an accepted connection is enough
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float
    command: tuple[str, ...] = ()  # command to run inside the service, instead of a connection

    @property
    def target(self) -> str:
        """Return ``tcp 8080``, the URL, or the name of the command without its arguments."""
        if self.command:
            return f"command {self.command[0]}"
        return f"tcp {self.port}" if self.path is None else f"http://{self.host}{self.path}"


class Endpoint(NamedTuple):
    network: str
    addresses: tuple[str, ...]  # one per subnet of the network
    interface: str = ""  # interface name inside the service; "": eth<position>
    mac: str = ""  # MAC inside the service; "": derived from the names
    routes: bool | None = None  # whether the default route leads here; None: if it is `primary`


def primary(endpoints: Sequence[Endpoint], networks: Mapping[str, Network]) -> Endpoint | None:
    """Return the endpoint of the default route and of published ports; None if there is none.

    It is the first endpoint on a network that is not internal, else the first one: an internal
    network has no route out, and replies of published ports leave by the default route.
    """
    outer = (endpoint for endpoint in endpoints if not networks[endpoint.network].internal)
    return next(outer, next(iter(endpoints), None))


class Limits(NamedTuple):
    """Per-second limits on a service's use of tables that all services share; 0: no limit."""

    new_flows: int
    fragments: int
    arp: int  # ARP requests and neighbour solicitations
    neighbours: int  # neighbours that the host resolves on its own links


LIMITS = Limits(1000, 0, 100, 20)
"""The limits of services whose record is damaged."""
ATTACHED_LIMITS = LIMITS._replace(fragments=40)
"""The limits of attachments, which may have any capability."""


SENDS_RAW = frozenset(("NET_RAW", "NET_ADMIN", "SYS_ADMIN"))
"""The capabilities of a service that can send whole frames, and parts of packets."""


class Service(NamedTuple):
    """An active service."""

    name: str
    generation: int
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...]
    names: tuple[str, ...]  # hostname first
    # it, or a sharer of its namespace, has published ports, in scope or not
    publishes: bool = False
    # or host, none, share, attached: with share, its provider has the endpoints
    mode: str = "bridge"
    limits: Limits = LIMITS
    bandwidth: tuple[int, int] = (0, 0)  # bytes per second in and out, on each network; 0: no limit
    extra_hosts: tuple[tuple[str, str], ...] = ()  # name and address, or HOST_GATEWAY
    outside: tuple[str, int] | None = None  # path and cookie of a foreign namespace
    raw: bool = False  # it, or a sharer of its namespace, has one of `SENDS_RAW`, or may have it


class Remote(NamedTuple):
    """A service of another host, as claimed in the cluster."""

    name: str
    host: str  # the underlay address of its host
    endpoints: tuple[Endpoint, ...]  # on networks that this host has too
    names: tuple[str, ...]  # hostname first; () if no service may resolve it

    def is_on(self, network: str) -> bool:
        """Return whether the service is on a network."""
        return any(endpoint.network == network for endpoint in self.endpoints)


class Snapshot(NamedTuple):
    """The part of the store that is in scope.

    All networks of a service in scope are in ``networks``. ``readers`` are the ordered network
    lists of all active services whose hosts files list one of ``services``. For lists in ``fresh``,
    the complete hosts file is in scope, so ``neighbours`` has all services listed in it.
    """

    state_id: str
    networks: tuple[Network, ...] = ()
    services: tuple[Service, ...] = ()
    readers: frozenset[tuple[str, ...]] = frozenset()
    fresh: frozenset[tuple[str, ...]] = frozenset()
    neighbours: tuple[Service, ...] = ()
    apart: tuple[Service, ...] = ()
    """Services with extra hosts whose hosts files list one of ``services``: each has a file of its
    own. The complete file is in scope if the service is in ``services``.
    """
    # in scope, or with a policy in which a name now stands for other addresses
    policed: tuple[Policed, ...] = ()
    members: tuple[Member, ...] = ()  # the addresses of the names in these policies
    any_network: bool = False
    any_active: bool = False
    any_active6: bool = False  # an active service is on a network with IPv6
    sysctls_before: tuple[tuple[str, str], ...] = ()
    wire: tuple[int, ...] = ()  # UDP ports of all networks that span hosts
    tunnel: Tunnel | None = None  # the tunnel that packets to them must use; None without one
    remotes: tuple[Remote, ...] = ()  # in scope
    listed: tuple[Remote, ...] = ()  # services in the hosts files of ``fresh``
