"""Attach network namespaces of other programs to niso's networks, and detach them.

The store records an attachment as a service that has neither a package nor a process. A container
engine waits until each call has returned. To keep calls short, this module does not import code
that only services with processes need.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import count

from niso.base import paths
from niso.base.errors import Conflict, Error, InvalidInput, NotFound, raise_all
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import MAC_PREFIX, family_of
from niso.base.native import lazy
from niso.change import journal
from niso.change.admit import NoClaims, generations, record, release
from niso.change.scope import Target, leaving, report_to_cluster, scope_of
from niso.kernel.netns import ForeignNetns
from niso.plan import records
from niso.plan.records import Entry, Peer, Policy
from niso.plan.specs import NetworkSpec, Published, ServiceSpec
from niso.reconcile.change import change
from niso.runtime.machine import Machine
from niso.store.attached_rows import BY_INTERFACE, AttachedLink, AttachedRow, requested_settings
from niso.store.policy_rows import policy_of
from niso.store.service_rows import ServiceRow
from niso.store.sqlite import encoded
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import cluster_claims, stop
    from niso.kernel.real import Kernel
    from niso.look import host_ports
    from niso.look.host_ports import Port

    Claims = cluster_claims.ActivationClaims | NoClaims
else:
    stop, host_ports = lazy("niso.change.stop"), lazy("niso.look.host_ports")


POD_POLICY = "pod_policy"
"""Label of attachments that are Kubernetes pods.

niso configures their bridges as for published ports, so that a pod can reach itself through an
address that another program, such as kube-proxy, translates.
"""
_TRIES = 20
"""Maximum number of attempts to attach while another process attaches the same namespace."""


class Attachment(NamedTuple):
    """Result of `Attachments.attach`."""

    service: str  # the attachment's name
    changed: bool  # false if the attachment already was as requested
    address: tuple[str, ...]  # addresses, one per network and family
    ports: tuple[Port, ...]  # published ports, one per address family
    netns: str  # path of niso's name for the network namespace


def attach(machine: Machine, request: Request, instead_of: AttachedRow | None = None) -> Attachment:
    """Attach a namespace to the requested networks, and detach it from other networks.

    The attachment's packets must also be allowed by the administrator's policies
    (`niso.manifest.policy`). For a namespace that is already attached, only the differences are
    applied. An existing attachment of this name is replaced if its namespace no longer exists, or
    if it has the owner and id of the request. ``instead_of`` is the recorded attachment to replace;
    the call fails if its record has changed. Raises InvalidInput, NotFound, Conflict or
    KernelError. After an error nothing has changed, except that an attachment whose namespace no
    longer exists may have been removed.
    """
    store, kernel = machine.store, machine.kernel
    if store.intents():
        journal.recover(machine, [request.name])
    with journal.locked_one(store, request.name):
        before, row = store.attachments.get(request.name), store.service(request.name)
        request, foreign = _located(kernel, request, before)
        if instead_of is not None and before != instead_of:
            raise Conflict(f"{request.name!r} was attached again or detached meanwhile")
        if foreign is not None:
            _refuse_attached(kernel, store, request, foreign.cookie)
        if before is not None and row is not None and not _is_same(before, row, request, foreign):
            owns = request.id != "" and (before.owner, before.id) == (request.owner, request.id)
            if row.active and before.lives(kernel) and not owns:
                from niso.look.check import shown

                reason = f"{request.name!r} is already attached, by {shown(before)}"
                raise Conflict(reason, "choose another name, or detach it first", "NAME")
            _forget(machine, row)
            before = None
        target = target_of(store, request, foreign, before)
        claims: Claims = NoClaims()
        try:
            claims = _claimed(machine, target)
            done = _apply(machine, target, claims)
        except BaseException as error:
            from niso.change.undo import undo_all

            undo_all(machine, [request.name], error)
            raise
        finally:
            claims.close()
        if request.name not in claims:
            report_to_cluster(machine, [request.name])
        return done


def _claimed(machine: Machine, target: Target) -> Claims:
    if not machine.store.cluster_id():
        return NoClaims()
    from niso.change import cluster_claims

    claims = cluster_claims.prepare(machine, [target], ())
    for link in target.attaching[1] if target.attaching is not None else ():
        if link.mac and link.network in claims.networks(target.name):
            claims.close()
            reason = f"network {link.network!r} spans hosts, which derive the MAC address of what"
            raise InvalidInput(f"{reason} is there from its name", "leave out the MAC address")
    return claims


def _apply(machine: Machine, target: Target, claims: Claims) -> Attachment:
    """Record an attachment and update the kernel. The caller undoes both steps after an error."""
    store, kernel, name = machine.store, machine.kernel, target.name
    assert target.attaching is not None
    attached, links = target.attaching
    with Lock():
        scope = scope_of(store, [target])
        claims.remove_displaced()
        scope = scope.joined(claims.scope())
        with change(kernel, store, scope, machine.report, rows_first=True) as made:
            claims.record()
            release(store, target)
            recorded = record(machine, target, {name: ""}, frozenset([name]), generations(store))
            if POD_POLICY in requested_settings(attached)["labels"] and not store.publishes(name):
                to = next((link for link in links if link.routes), links[0])
                store.put_published_row(name, (name, to.network, 0))
            intent = store.intent(name)
            assert intent is not None
            as_before = store.is_as_before(intent)
        was = recorded.before.networks if recorded.before is not None else ()
        left = set(was) - set(recorded.row.networks)
        if name not in claims:
            _end(machine, name, left)
    if name in claims:
        claims.publish()
        with Lock():
            _end(machine, name, left)
    ports = [port for _, port in store.ports(name)]
    return Attachment(
        name,
        bool(made.steps) or not as_before,
        tuple(address for _, address in store.addresses(name)),
        host_ports.rows(ports, store.port_families(name)) if ports else (),
        f"/run/netns/niso-{name}",
    )


def _end(machine: Machine, name: str, left: set[str]) -> None:
    store = machine.store
    with leaving(machine, left):
        store.end_intent(name)
        store.attachments.drop_released()
        store.drop_implicit_networks(left)


def _located(
    kernel: Kernel, request: Request, before: AttachedRow | None
) -> tuple[Request, ForeignNetns | None]:
    """Return the request with the real path of the namespace, and the namespace's properties.

    The properties are None if niso has to create the namespace. Raises NotFound, InvalidInput or
    Conflict.
    """
    if not request.netns:
        return request, None
    # the last part is a magic link in /proc, which must not be resolved
    folder, _, last = os.path.abspath(request.netns).rpartition("/")
    path = os.path.join(os.path.realpath(folder or "/"), last)
    foreign = kernel.foreign_netns(path)
    cookie = foreign.cookie if foreign is not None else None
    if request.awaited and before is not None and cookie != before.cookie:
        foreign = ForeignNetns(before.cookie, "", frozenset(), frozenset())
    if foreign is None:
        reason = f"{request.netns}: the network namespace does not exist"
        raise NotFound(reason, "a path like /proc/PID/ns/net or /run/netns/NAME")
    if foreign.is_host:
        reason = f"{request.netns} is the network namespace of the host itself"
        raise InvalidInput(reason, "name the namespace of a container")
    # the attached program may have set niso's alias itself, to prevent a change of its policy
    if foreign.mark and (before is None or before.cookie != foreign.cookie):
        reason = f"{request.netns} is the network namespace of a service of niso"
        raise Conflict(reason, "network.networks in its manifest names its networks")
    return request._replace(netns=path), foreign


def _refuse_attached(kernel: Kernel, store: Store, request: Request, cookie: int) -> None:
    for other in store.attachments.of_cookie(cookie):
        row = store.service(other.service)
        if other.service == request.name or other.owner == request.owner == BY_INTERFACE:
            continue
        if row is not None and row.active and other.lives(kernel):
            reason = f"this network namespace is already attached as {other.service!r}"
            raise Conflict(reason, f"attach {other.service} to more networks, or detach it first")


def _is_same(
    before: AttachedRow, row: ServiceRow, request: Request, foreign: ForeignNetns | None
) -> bool:
    there = (request.netns, foreign.cookie if foreign is not None else before.cookie)
    same = (before.owner, before.id) == (request.owner, request.id)
    return row.active and same and (before.netns, before.cookie) == there


def current(store: Store, name: str) -> Request | None:
    """Return the request that would create an attachment again with its present settings.

    Returns None if no attachment is named ``name``.
    """
    row, attached = store.service(name), store.attachments.get(name)
    if row is None or attached is None:
        return None
    spec, asked = row.require_service(), requested_settings(attached)
    return Request(
        name,
        attached.netns,
        tuple(
            AttachmentNetwork(
                link.network, link.interface, spec.network.statics(link.network), link.mac
            )
            for link in store.attachments.links(name)
        ),
        tuple(published.port for published in spec.network.ports),
        spec.network.aliases,
        policy_of(asked["policy"]),
        attached.owner,
        attached.id,
        attached.given,
        tuple(sorted(asked["labels"].items())),
        tuple(sorted(spec.network.bandwidth.items())),
        tuple((on, policy_of(policy)) for on, policy in sorted(asked.get("policies", {}).items())),
    )


def apply_policies(machine: Machine) -> list[Attachment]:
    """Apply the administrator's present policies to all attachments whose namespaces exist.

    Returns one result per updated attachment. Attachments whose policy does not change are left
    out. An attachment whose update fails keeps its previous policy. All attachments are tried
    before an error, or an ErrorGroup, is raised.
    """
    store = machine.store
    done, errors = [], list[Error]()
    for name in [attached.service for attached in store.attachments.all()]:
        for _ in range(_TRIES):
            row, attached = store.service(name), store.attachments.get(name)
            request = current(store, name)
            if row is None or attached is None or request is None or not row.active:
                break
            if not attached.lives(machine.kernel):
                break
            try:
                if _spec(request) != row.require_service():
                    done.append(attach(machine, request, instead_of=attached))
                break
            except Error as error:
                if store.attachments.get(name) == attached:
                    error.service = error.service or name
                    errors.append(error)
                    break
        else:
            errors.append(Conflict(f"{name!r} is attached again and again", "try again"))
    raise_all(errors)
    return done


# --- detach ---------------------------------------------------------------------------------------


def detach(machine: Machine, name: str, id: str | None = None) -> bool:
    """Detach an attachment, and return whether it existed.

    If ``id`` is given, an attachment of this name with another id is left unchanged. Raises
    KernelError, and Conflict if the name belongs to a service with a process.
    """
    store = machine.store
    if store.intents():
        journal.recover(machine, [name])
    if store.service(name) is None:
        return False
    with journal.locked_one(store, name):
        row, attached = store.service(name), store.attachments.get(name)
        if row is None or (id is not None and (attached is None or attached.id != id)):
            return False
        if not row.is_attachment:
            reason = f"{name!r} is a service, not an attachment"
            raise Conflict(reason, "niso deactivate --help", "NAME")
        _forget(machine, row)
    return True


def _forget(machine: Machine, row: ServiceRow) -> None:
    store = machine.store
    with Lock(), store.transaction():
        store.begin_intent(row.name, "remove", time.time())
    stop.withdraw(machine, [row], ends=True, forgets=True)
    report_to_cluster(machine, [row.name])


def collect(machine: Machine, owner: str | None, valid: Iterable[str] | None) -> list[str]:
    """Detach attachments that are no longer in use, and return their names.

    These are inactive attachments, attachments whose namespace no longer exists, and Docker
    containers without a process. ``owner`` limits the call to the attachments of one program.
    ``valid`` lists the ids that this program still uses: attachments with other ids are detached
    too.
    """
    from niso.look import check

    store = machine.store
    known = None if valid is None else set(valid)
    done = []
    present = store.attachments.all(owner)
    ended = check.ended(machine.kernel, present)
    for attached in present:
        row = store.service(attached.service)
        is_kept = row is not None and row.active and (known is None or attached.id in known)
        if row is None or (is_kept and attached.service not in ended):
            continue
        if detach(machine, attached.service, attached.id):
            done.append(attached.service)
    return done


# --- what a request needs: rows, addresses, MAC ---------------------------------------------------

CLI = "cli"
"""The owner of attachments that were made on the command line."""
_MAX_INTERFACE = 15  # IFNAMSIZ - 1, linux/if.h
_NO_INTERFACE = ("", ".", "..", "lo", "all", "default")
"""Names that an interface cannot have, or that mean something else in /proc/sys/net."""


class AttachmentNetwork(NamedTuple):
    """A network to which a namespace is to be attached, with properties of the interface."""

    network: str
    interface: str = ""  # "": the interface already on this network, or the next free eth<n>
    ips: tuple[str, ...] = ()  # at most one of each family
    mac: str = ""  # "": derived from the names of service and network


class Request(NamedTuple):
    """The complete desired state of an attachment."""

    name: str
    netns: str  # the path of the namespace; "": niso creates one
    networks: tuple[AttachmentNetwork, ...]
    ports: tuple[records.PortMapping, ...] = ()
    aliases: tuple[str, ...] = ()
    policy: Policy = Policy()
    owner: str = CLI
    id: str = ""
    given: str = ""  # the owner's own name for the attachment; "": the same as ``name``
    # what the owner reports about the attachment, such as (pod_namespace, shop)
    labels: tuple[tuple[str, str], ...] = ()
    bandwidth: tuple[tuple[str, int], ...] = ()  # "in" and "out", bytes per second
    policies: tuple[tuple[str, Policy], ...] = ()
    """Pairs (network, policy). A packet on that network must pass this policy in addition."""
    awaited: bool = False
    """Whether another namespace will soon replace this one. Until then, only nftables rules
    change.
    """


def target_of(
    store: Store, request: Request, foreign: ForeignNetns | None, before: AttachedRow | None
) -> Target:
    """Convert an attachment's request to a target, the form in which services are activated.

    ``foreign`` describes the existing namespace, or is None if niso creates the namespace.
    ``before`` is the attachment's recorded row, or None.
    """
    links = _links(store, request, foreign, before)
    attached = AttachedRow(
        request.name,
        request.owner,
        request.id,
        request.given or request.name,
        request.netns,
        foreign.cookie if foreign is not None else 0,
        encoded(
            {
                "policy": request.policy,
                "labels": dict(request.labels),
                "policies": dict(request.policies),
            }
        ),
    )
    return Target(_spec(request), "", files=None, attaching=(attached, tuple(links)))


def _links(
    store: Store, request: Request, foreign: ForeignNetns | None, before: AttachedRow | None
) -> list[AttachedLink]:
    """Return the interface of an attachment on each requested network, in the order of the request.
    Networks that are already attached keep their interface names. The default route uses the first
    network that is not internal, or the first network if all are internal. niso sets no default
    route if another program has set one. Raises InvalidInput or Conflict.
    """
    had = {link.network: link for link in store.attachments.links(request.name)} if before else {}
    _refuse_twice([entry.network for entry in request.networks], "--network")
    own = {link.interface for link in had.values()}
    taken = (foreign.links if foreign is not None else frozenset(["lo"])) - own
    kept_names = {
        had[entry.network].interface for entry in request.networks if entry.network in had
    }
    named = taken | kept_names | {entry.interface for entry in request.networks}
    free = (name for number in count() if (name := f"eth{number}") not in named)
    routed = foreign is not None and foreign.routed and not any(x.routes for x in had.values())
    links: list[AttachedLink] = []
    for entry in request.networks:
        kept = had.get(entry.network)
        interface = entry.interface or (kept.interface if kept is not None else "")
        if interface in {link.interface for link in links} or not interface:
            interface = next(free)
        if interface in taken:
            reason = f"interface {interface!r} already exists in {request.netns or 'it'}"
            hint = "name another one, or none: niso chooses the next free eth<n>"
            raise Conflict(reason, hint, "interface")
        own_mac = _own_mac(store, request.name, entry)
        links.append(AttachedLink(entry.network, interface, own_mac, False))
    _refuse_twice([link.interface for link in links], "interface")
    if links and not routed and request.owner != BY_INTERFACE:
        known = [store.network(link.network) for link in links]
        outer = (at for at, network in enumerate(known) if network is None or not network.internal)
        first = next(outer, 0)
        links[first] = links[first]._replace(routes=True)
    return links


def _own_mac(store: Store, name: str, entry: AttachmentNetwork) -> str:
    """Check and return the MAC address that a request sets, or "" if niso derives the address."""
    chosen = mac(entry.mac) if entry.mac else ""
    if not chosen or chosen == store.derived_mac(name, entry.network):
        return ""
    if chosen.startswith(MAC_PREFIX):
        raise InvalidInput(
            f"{chosen!r}: MAC addresses that begin with {MAC_PREFIX} are those of niso's bridges"
            " and services",
            "choose one that begins with 02:, or none: niso derives one",
        )
    return chosen


def _spec(request: Request) -> ServiceSpec:
    network = NetworkSpec(
        mode="bridge",
        share=None,
        networks=tuple(entry.network for entry in request.networks),
        addresses=_statics(request, 4),
        addresses6=_statics(request, 6),
        hostname=request.name,
        aliases=request.aliases,
        ports=tuple(Published(port, f"--port {port.text}") for port in request.ports),
        policy=_whole_policy(request),
        bandwidth=dict(request.bandwidth),
    )
    return ServiceSpec(request.name, network, process=None)


def _statics(request: Request, family: int) -> dict[str, str]:
    return {
        entry.network: ip
        for entry in request.networks
        for ip in entry.ips
        if family_of(ip) == family
    }


def _whole_policy(request: Request) -> Policy:
    networks = tuple(entry.network for entry in request.networks)
    own = [request.policy, *(policy for on, policy in request.policies if on in networks)]
    files: Iterable[Policy] = ()
    # also if the folder is missing: a user who can write to its parent may have removed it
    if os.path.lexists(os.path.dirname(paths.policy_dir())):
        from niso.manifest.policy import about  # most hosts have no such files

        files = about(request.name, networks, request.owner, dict(request.labels))

    return combined([*own, *files])


def _refuse_twice(values: Sequence[str], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidInput(f"{what} {value} is given twice", "name each once")


def interface_name(text: str) -> str:
    """Return an interface name unchanged, after checking that the kernel would accept it.

    The check is that of dev_valid_name in net/core/dev.c. Raises InvalidInput.
    """
    bad = text in _NO_INTERFACE or len(text.encode()) > _MAX_INTERFACE
    if bad or any(c in "/:" or c.isspace() or not c.isprintable() for c in text):
        hint = f"at most {_MAX_INTERFACE} characters, none of them a space, / or :"
        raise InvalidInput(f"{text!r} is not a valid name of an interface", hint)
    return text


def mac(text: str) -> str:
    """Parse a unicast MAC (IEEE 802, 8.2). Return ``aa:bb:cc:dd:ee:ff``. Raises InvalidInput."""
    parts = text.lower().replace("-", ":").split(":")
    octets = [int(p, 16) for p in parts if len(p) == 2 and not set(p) - set("0123456789abcdef")]
    if len(parts) != 6 or len(octets) != 6 or octets[0] & 1 or not any(octets):
        reason = f"{text!r} is not a MAC address of one station"
        raise InvalidInput(reason, "six octets like 02:00:00:00:00:01")
    return ":".join(f"{octet:02x}" for octet in octets)


# --- policy of the attachment and of the administrator --------------------------------------------

_ALL_PORTS = (0, 65535)


def combined(policies: Iterable[Policy]) -> Policy:
    """Return a policy that allows only packets that all given policies allow.

    Raises InvalidInput if two entries cannot be combined.
    """
    whole = Policy()
    for policy in policies:
        whole = both(whole, policy)
    return whole


def both(one: Policy, other: Policy) -> Policy:
    """Return a policy that allows only packets that both policies allow."""
    return Policy(
        _meeting(one.allow_from, other.allow_from),
        tuple(dict.fromkeys((*one.deny_from, *other.deny_from))),
        _meeting(one.egress_allow, other.egress_allow),
        tuple(dict.fromkeys((*one.egress_deny, *other.egress_deny))),
        one.log or other.log,
    )


def _meeting(
    one: tuple[Entry, ...] | None, other: tuple[Entry, ...] | None
) -> tuple[Entry, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    met = (_met(first, second) for first in one for second in other)
    return tuple(entry for entry in met if entry is not None)


def _met(one: Entry, other: Entry) -> Entry | None:
    peer = _peer(one, other)
    first, last = max(one.first, other.first), min(one.last, other.last)
    proto = one.proto or other.proto
    if peer is None or first > last or (one.proto and other.proto and one.proto != other.proto):
        return None
    if proto == "icmp" and (first, last) != _ALL_PORTS:
        return None
    return one._replace(peer=peer, first=first, last=last, proto=proto)


def prefixes(cidrs: Iterable[str]) -> Peer:
    """Return a policy peer for CIDR prefixes, which must be in canonical form."""
    each = list(dict.fromkeys(cidrs))
    return Peer("prefix" if len(each) == 1 else "prefixes", ",".join(each))


def _peer(one: Entry, other: Entry) -> Peer | None:
    if one.peer == other.peer:
        return one.peer
    kinds = {one.peer.kind, other.peer.kind}
    if kinds <= {"prefix", "prefixes"}:
        import ipaddress  # two policies rarely both have prefixes

        ours, theirs = (
            [ipaddress.ip_network(cidr) for cidr in entry.peer.name.split(",")]
            for entry in (one, other)
        )
        met = [
            str(a if a.prefixlen >= b.prefixlen else b)
            for a in ours
            for b in theirs
            if a.version == b.version and a.overlaps(b)
        ]
        return prefixes(met) if met else None
    if len(kinds) == 1:  # names of two services; a common address of them is ignored
        return None
    raise InvalidInput(
        f"{one.key} ({one.text!r}) and {other.key} ({other.text!r}) cannot be combined: one names "
        "a service or network, the other something else",
        "name the same in both, or say in the file what is denied",
    )
