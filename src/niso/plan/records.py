"""Define the store's records as plain data, so that planning needs no store."""

from __future__ import annotations

from niso.base.addresses import bracketed, family_of, span
from niso.base.lite_typing import NamedTuple

ANY, ANY4, ANY6 = "", "0.0.0.0", "::"
"""Host addresses that stand for all: of every family of the network, of IPv4, of IPv6."""
WIDE = (ANY, ANY4, ANY6)
HOST_GATEWAY = "host-gateway"
"""In extra hosts: the host's addresses on the service's first network."""


class Subnet(NamedTuple):
    family: int  # 4 or 6
    cidr: str
    gateway: str


class Span(NamedTuple):
    """How a network spans hosts (kernel/nft_wire.py)."""

    cluster: str  # the id of the cluster, from which MACs are derived: the same on all hosts
    vni: int
    port: int  # UDP
    local: str  # this host's address between the hosts


class Tunnel(NamedTuple):
    """The WireGuard link of a host of an encrypted cluster (kernel/kinds/wireguard.py)."""

    form: str
    address: str  # with its prefix length
    port: int  # UDP
    mtu: int  # bytes
    public: str  # this host's key
    others: tuple[tuple[str, str, str], ...] = ()  # of hosts: public key, endpoint, address


class Network(NamedTuple):
    name: str
    bridge: str
    mtu: int
    subnets: tuple[Subnet, ...]
    internal: bool = False  # nothing is forwarded out of it
    observe: bool = True  # the rules remember its flows
    publishes: bool = False  # an active service publishes ports on it
    by_loopback: bool = False  # one of these ports is published on 127.0.0.1
    policed: bool = False  # an active service on it has a policy
    span: Span | None = None


class Port(NamedTuple):
    """A published port, or ``count`` consecutive ones that lead to as many ports of the service."""

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
        """Return the port as the user writes it: ``127.0.0.1:53:53/udp``."""
        proto = "" if self.proto == "tcp" else f"/{self.proto}"
        inside = span(self.container_port, self.count)
        return f"{self._host}{span(self.host_port, self.count)}:{inside}{proto}"

    @property
    def _host(self) -> str:
        return "" if self.host_ip == ANY else f"{bracketed(self.host_ip)}:"

    def clashes(self, other: Port) -> bool:
        """Return whether a packet could match both ports."""
        if self.proto != other.proto or self.host_port > other.last or other.host_port > self.last:
            return False
        if not set(self.families) & set(other.families):
            return False
        return self.host_ip == other.host_ip or self.is_wide or other.is_wide


class Peer(NamedTuple):
    """A peer named by a policy entry."""

    kind: str  # "service", "network", "prefix" or "outside"
    name: str  # its name; or a canonical prefix: "10.99.1.2/32", "fd00::/8"


class Entry(NamedTuple):
    """One entry of a policy: a peer, and ports of the service (ingress) or of the peer (egress)."""

    key: str  # "network.policy.allow_from[0]"
    text: str  # as written
    peer: Peer
    first: int  # 0 to 65535: all ports, and protocols without ports
    last: int
    proto: str  # "tcp", "udp", "sctp", "icmp", or "" for all


class Audit(NamedTuple):
    """When a policy denies nothing. The end is fixed when the audit begins, and stays.

    ``since`` and ``until`` are in seconds since 1970. In a manifest ``since`` is 0, and ``until``
    is 0 for the default, and `niso.kernel.nft_audit.NEVER` without an end.
    """

    text: str  # the end as written; "" for the default
    since: int = 0
    until: int = 0


class Policy(NamedTuple):
    """Who may connect to a service, and where it may connect.

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
        """Return whether it denies nothing, whoever asks."""
        return self._replace(log=False, audit=None) == Policy()

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries."""
        return (
            *(self.allow_from or ()),
            *self.deny_from,
            *(self.egress_allow or ()),
            *self.egress_deny,
        )

    def outside_names(self) -> tuple[str, ...]:
        """Return the domain names that entries name, each once. Only ``egress.allow`` has them."""
        peers = (entry.peer for entry in self.egress_allow or ())
        return tuple(dict.fromkeys(peer.name for peer in peers if peer.kind == "outside"))


class Member(NamedTuple):
    """The meaning of a name in policies: a service's addresses, a network's subnets.

    Of an outside name these are the addresses by which the service may reach it.
    """

    kind: str  # as in Peer
    name: str
    values: tuple[str, ...]
    gateways: tuple[str, ...] = ()  # of a network: they are the host's, which is not a member


class Policed(NamedTuple):
    """An active service with a policy.

    With ``only``, just the part of the policy that depends on peers with these addresses.
    """

    service: str
    addresses: tuple[str, ...]  # its own
    policy: Policy
    only: frozenset[str] | None = None


class Healthcheck(NamedTuple):
    """How to check a service's health, from inside its network namespace, or all of them."""

    address: str  # to connect to; "": loopback, else an address of its own
    port: int
    host: str  # the request's Host header
    path: str | None  # of a GET request; None: an accepted connection is enough
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float
    command: tuple[str, ...] = ()  # to run inside the service, instead of a connection

    @property
    def target(self) -> str:
        """Return ``tcp 8080``, the URL, or the name of the command without its arguments."""
        if self.command:
            return f"command {self.command[0]}"
        return f"tcp {self.port}" if self.path is None else f"http://{self.host}{self.path}"


class Endpoint(NamedTuple):
    network: str
    addresses: tuple[str, ...]  # one per subnet of the network
    interface: str = ""  # inside; "": eth<position>
    mac: str = ""  # inside; "": derived from the names
    routes: bool | None = None  # whether the default route leads here; None: on the first network


class Limits(NamedTuple):
    """What a service may take of tables that the kernel has once for all, a second; 0: no limit."""

    new_flows: int
    fragments: int
    arp: int  # and neighbour discovery
    neighbours: int = 20  # that the host asks for on its own links; older records have none


LIMITS = Limits(1000, 0, 100)
"""The limits of a service that an older niso activated."""
ATTACHED_LIMITS = LIMITS._replace(fragments=40)
"""Those of an attachment: it may have any capability."""


class Service(NamedTuple):
    """An active service."""

    name: str
    generation: int
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...]
    names: tuple[str, ...]  # hostname first
    publishes: bool = False  # it has ports, in scope or not, or a sharer of its namespace has
    mode: str = "bridge"  # or host, none, share, attached: share has its provider's endpoints
    limits: Limits = LIMITS
    bandwidth: tuple[int, int] = (0, 0)  # bytes per second in and out, on each network; 0: no limit
    extra_hosts: tuple[tuple[str, str], ...] = ()  # name and address, or HOST_GATEWAY
    outside: tuple[str, int] | None = None  # path and cookie of a namespace that others made


class Remote(NamedTuple):
    """A service of another host, as its claims say."""

    name: str
    host: str  # the address of its host between the hosts
    endpoints: tuple[Endpoint, ...]  # on networks of this host
    names: tuple[str, ...]  # hostname first; () if nobody shall find it

    def is_on(self, network: str) -> bool:
        """Return whether it is on a network."""
        return any(endpoint.network == network for endpoint in self.endpoints)


class Snapshot(NamedTuple):
    """The part of the store that is in scope.

    Every network of a service in scope is in ``networks``. ``readers`` are the ordered network
    lists of all active services that see one of ``services``. For those in ``fresh`` the whole
    hosts file is in scope, so ``neighbours`` holds all services listed in it.
    """

    state_id: str
    networks: tuple[Network, ...] = ()
    services: tuple[Service, ...] = ()
    readers: frozenset[tuple[str, ...]] = frozenset()
    fresh: frozenset[tuple[str, ...]] = frozenset()
    neighbours: tuple[Service, ...] = ()
    apart: tuple[Service, ...] = ()
    """Those with extra hosts that see one of ``services``: each has a hosts file of its own.

    The whole file is in scope if the service is in ``services``.
    """
    policed: tuple[
        Policed, ...
    ] = ()  # in scope, or with policies whose names changed their meaning
    members: tuple[Member, ...] = ()  # what the names in these policies mean
    any_network: bool = False
    any_active: bool = False
    any_active6: bool = False  # an active service is on a network with IPv6
    sysctls_before: tuple[tuple[str, str], ...] = ()
    wire: tuple[int, ...] = ()  # UDP ports of all networks that span hosts
    tunnel: Tunnel | None = None  # through which they have to pass; None if there are none
    remotes: tuple[Remote, ...] = ()  # in scope
    listed: tuple[Remote, ...] = ()  # those in the hosts files of ``fresh``
