"""Record the networks, names, leases and ports of a service in the store, or refuse them.

It also prepares a stack's activation: its networks, services that leave it, and its membership.
Host ports are checked in `niso.change.ports`, addresses are assigned in `niso.store.service_rows`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count

from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput
from niso.base.named_tuples import NamedTuple
from niso.base.names import link_prefix, prefix, veth
from niso.base.report import Report
from niso.change import sharing, stop, targets
from niso.change.networks import ensure, observes, plan_network
from niso.change.ports import Command, admit
from niso.change.stop import Needs
from niso.change.targets import Target
from niso.look import host_ports
from niso.plan.records import Entry, Peer, Policy, Port
from niso.plan.specs import ServiceSpec
from niso.plan.subnets import NetworkRequest
from niso.reconcile import host_settings, live_world
from niso.runtime.machine import Machine
from niso.store import service_rows
from niso.store.attached_rows import Attached, wishes
from niso.store.service_rows import ServiceRow
from niso.store.snapshots import Scope
from niso.store.store import Store

# --- one service ----------------------------------------------------------------------------------


_ALIASES, _IP = "chosen_aliases", "chosen_ip"
"""Labels of attachments (store/attached_rows.py)."""


class Change(NamedTuple):
    """The change of one service in an activation, from its old row to its target."""

    target: Target
    before: ServiceRow | None
    row: ServiceRow
    restarts: bool  # its process must be started or restarted
    rehosts: bool = False  # its process keeps running, with the hosts file of other networks

    @property
    def name(self) -> str:
        """Return the name of the service."""
        return self.row.name


def release(store: Store, target: Target) -> None:
    """Begin the intent of one service; release host ports and names that its manifest dropped.

    If a service changes its networks, all its names are released: `record` checks them on the new
    networks. Call this for all services before any `record`, so that other services of the same
    command can take what is released. Addresses are not released: until the kernel is updated,
    traffic to an old address would reach its new owner.
    """
    store.begin_intent(target.name, "activate", time.time())
    wanted = {published.port for published in target.spec.network.ports}
    for port in store.manifest_ports(target.name):
        if port not in wanted:
            store.take_port(target.name, port)
    stays = store.networks_of(target.name) == target.spec.network.networks
    names = target.spec.names if stays else ()
    store.set_names(target.name, tuple(name for name in store.names(target.name) if name in names))


def record_all(
    machine: Machine,
    targets: list[Target],
    copies: dict[str, str],
    leaving: list[ServiceRow],
    stack: Membership,
) -> list[Change]:
    """Write the wanted state of all services of a command, and of its ``stack``, to the store.

    ``copies`` are the paths of the packages by service, ``leaving`` the services that the command
    ends. Raises the errors of `record`, of all services.
    """
    store = machine.store
    if stack.stack:
        prepare(machine, stack, copies)
        stop.go(machine, leaving)
    for target in targets:
        release(store, target)
    together = frozenset((*copies, *(row.name for row in leaving)))
    beside, links = frozenset(copies), LinkNames(store)
    named = tuple(published.port for target in targets for published in target.spec.network.ports)
    made: dict[str, Change] = {}
    errors: list[Error] = []
    for target in sorted(targets, key=_takes):
        if errors and target.spec.network.mode == "share":
            continue  # its provider may not have been recorded, because of an error
        try:
            copy = copies[target.name]
            change = record(machine, target, copy, together, beside, links, named)
            made[target.name] = change
        except (Conflict, InvalidInput) as error:
            errors.append(error)
        except ErrorGroup as group:
            errors += group.errors
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)

    changes = [made[target.name] for target in targets]
    sharing.check(store, [change.row for change in changes], leaving)
    if stack.stack:
        for change in changes:
            store.join_stack(change.name, stack.stack, stack.file)
    return changes


def _takes(target: Target) -> tuple[bool, bool]:
    """Return a sort key that puts services with fixed addresses before other services.

    Otherwise a service without a fixed address may get the address that another one requests.
    Providers come before sharers.
    """
    return target.spec.network.mode == "share", not (
        target.spec.network.addresses or target.spec.network.addresses6
    )


def record(
    machine: Machine,
    target: Target,
    copy: str,
    together: frozenset[str],
    beside: frozenset[str],
    links: LinkNames,
    named: tuple[Port, ...] = (),
) -> Change:
    """Write the desired state of one service to the store; call `release` before.

    ``together`` are all services of the command, ``beside`` those whose manifests it activates.
    ``links``, and the host ports ``named`` in manifests, are shared by the complete command. Raises
    Conflict and InvalidInput, which name the manifest and the key, or an ErrorGroup of all refused
    names, addresses and ports. The caller must then roll back the transaction.
    """
    errors: list[Error] = []
    try:
        change = _record(machine, target, copy, together, beside, (links, named), errors)
    except (Conflict, InvalidInput) as error:
        errors.append(error)
    except ErrorGroup as group:
        errors += group.errors
    if not errors:
        return change
    for failure in errors:
        failure.file, failure.service = target.manifest_path, target.name
    raise errors[0] if len(errors) == 1 else ErrorGroup(errors)


def _record(
    machine: Machine,
    target: Target,
    copy: str,
    together: frozenset[str],
    beside: frozenset[str],
    batch: tuple[LinkNames, tuple[Port, ...]],
    errors: list[Error],
) -> Change:
    """Do what `record` describes.

    Errors after which further checks are possible are added to ``errors``.
    """
    store = machine.store
    links, named = batch
    wanted, name = target.spec, target.name
    before = store.service(name)
    if before is not None:
        _refuse_other(before, target)
    provider = _provider_of(store, target, together)
    held = _held_names(store, wanted, provider, together, beside)
    errors += held.values()
    on = wanted.network.networks
    for network in on:
        _ensure_network(machine, network, wanted.network.addresses.get(network))
    was_active = before is not None and before.active
    # a new activation has new link names: the old links may not be deleted yet
    generation = 1 if before is None else before.generation if was_active else before.generation + 1
    generation = links.generation(name, on, generation)
    if target.files is None:
        uid = before.uid if before else store.uid_of_nobody()
        process = None
    else:
        from niso.change import process_record

        process = process_record.specified(
            machine, target, target.files, copy, generation, provider, before
        )
        uid = process.uid
    row = ServiceRow(
        name=name,
        manifest_path=target.manifest_path,
        manifest=service_rows.encode_service(wanted),
        rootfs=target.files.rootfs if target.files is not None else None,
        package=copy,
        fingerprint=os.path.basename(copy),
        uid=uid,
        active=True,
        generation=generation,
        networks=on,
        spec="" if process is None else service_rows.encode_process(process.spec),
        created_at=before.created_at if before else time.time(),
        activated_at=before.activated_at if before and was_active else time.time(),
        mode="attached" if wanted.process is None else wanted.network.mode,
        provider=provider,
        enabled=before.enabled if before else False,
    )
    ports_before = [port for _, port in store.ports(name)] if was_active else []
    store.put_service(row)
    former = None
    if target.attaching is not None:
        former = store.attachments.get(name)
        store.attachments.put(*target.attaching)
    store.set_names(name, tuple(alias for alias in wanted.names if alias not in held))
    store.set_extra_hosts(name, wanted.network.extra_hosts.items())
    store.set_endpoints(name, on)
    _refuse_macs(store, name, on)
    if on:
        host_settings.record(machine.kernel, store, on)
    policy = wanted.network.policy
    if policy.audit is not None:
        policy = live_world.begun(policy, store.policy(name), time.time())
    store.set_policy(name, None if policy.is_empty else policy)
    _check_peers(store, wanted, together)
    if target.attaching is not None:
        _check_chosen(store, target.attaching.attached, former)
    for network in on:
        try:
            kept = store.attachment_key(name)
            service_rows.lease(store, name, network, wanted.network.statics(network), beside, kept)
        except (Conflict, InvalidInput) as error:
            errors.append(error)
    _set_ports(machine, target, before, ports_before, Command(together, named))
    if process is None:
        return Change(target, before, row, restarts=False)
    return Change(target, before, row, process.restarts, process.rehosts)


def _refuse_macs(store: Store, name: str, networks: tuple[str, ...]) -> None:
    """Raise Conflict if an endpoint of another service has the MAC of one of this service.

    MACs are chosen or derived. Inactive services count too: their MACs are the same at the next
    activation. A frame to a duplicate MAC would reach whichever service was attached last.
    """
    chosen = store.chosen_macs(networks)
    for network in dict.fromkeys(network for network, _, _ in chosen):
        taken = {service: mac for on, service, mac in chosen if on == network}
        others = {service for service, _ in store.members(network)} - {name}
        macs = {other: taken.get(other) or store.derived_mac(other, network) for other in others}
        own = taken.get(name) or store.derived_mac(name, network)
        for other, mac in macs.items():
            if mac == own:
                raise Conflict(
                    f"{other!r} already has the MAC address {mac} on network {network!r}",
                    f"attach {name if name in taken else other} without a MAC address: niso derives"
                    " one that no other service has",
                )


def _set_ports(
    machine: Machine,
    target: Target,
    before: ServiceRow | None,
    had: list[Port],
    command: Command,
) -> None:
    """Record the host ports of a service; ``had`` are its previous ports.

    Raises as `ports.admit` does.
    """
    store, wanted = machine.store, target.spec
    keys = [published.key for published in wanted.network.ports]
    if not store.port_families(target.name):
        _refuse_ports(store, target.name, keys)
    ports, chosen = admit(
        machine,
        target.name,
        [published.port for published in wanted.network.ports],
        had,
        keys,
        command,
        host_ports.published_by(before) if before is not None else (),
        target.attaching is not None and target.attaching.attached.owner in host_ports.HOLDERS,
    )
    store.set_ports(target.name, ports, chosen)
    for sharer in store.sharers(target.name):
        store.note_published(sharer)


def _refuse_other(before: ServiceRow, target: Target) -> None:
    """Raise Conflict if the name already belongs to a different service, or to an attachment."""
    if before.has_process and target.spec.process is None:
        reason = "the name is already used by a service with a manifest"
        raise Conflict(reason, "choose another name", "NAME", names_key=False)
    if target.spec.process is not None:
        if not before.has_process:
            reason = f"{target.name!r} is already the name of an attachment"
            raise Conflict(reason, "choose another name", "package.name")
        targets.refuse_elsewhere(before, target)


def _provider_of(store: Store, target: Target, together: frozenset[str]) -> str | None:
    if target.spec.network.mode != "share":
        return None

    return sharing.provider_of(store, target, together)


def _held_names(
    store: Store,
    spec: ServiceSpec,
    provider: str | None,
    together: frozenset[str],
    beside: frozenset[str],
) -> dict[str, Conflict]:
    """Return {name: error} for each desired name that another service has on a common network.

    Names of the service's sharers count as its own, because they are on its networks too.
    """
    networks = spec.network.networks if provider is None else store.networks_of(provider)
    sharers = store.held_sharers(spec.name, together)
    names = (*spec.names, *(name for sharer in sharers for name in store.names(sharer)))
    held: dict[str, Conflict] = {}
    for name in dict.fromkeys(names):
        others = store.holders_on(name, networks, spec.name, beside)
        holder, on = next(
            (
                holding
                for holding in others
                if not (holding[0] in sharers or _share(store, spec, name, holding[0]))
            ),
            ("", ""),
        )
        if holder:
            key = _name_key(spec, name)
            hint = f"choose another name, here or in the manifest of {holder}"
            if holder in beside:
                hint = f"{holder} is part of this command: choose another name for one of the two"
            held[name] = Conflict(
                f"the name {name!r} is already used by service {holder!r} on network {on!r}",
                hint,
                key,
            )
    return held


def _share(store: Store, spec: ServiceSpec, name: str, holder: str) -> bool:
    """Return whether two attachments may have the same alias, as containers of one network may."""
    if spec.process is not None or name not in spec.network.aliases or name == holder:
        return False
    row = store.service(holder)
    return row is not None and not row.has_process


def _name_key(spec: ServiceSpec, name: str) -> str:
    """Return the key of the manifest that declares a name."""
    if name == spec.name:
        return "package.name"
    if name not in spec.names:  # the name of a sharer
        return "network.networks"
    return "network.hostname" if name == spec.network.hostname else "network.aliases"


def _check_peers(store: Store, spec: ServiceSpec, together: frozenset[str]) -> None:
    """Raise Conflict if a name in a policy is ambiguous, or names a service of mode host.

    Packets of a service of mode host have the host's own addresses. This service's policy is
    checked, and the policies of other services that name it.
    """
    for entry in spec.network.policy.entries():
        if entry.peer.kind == "service":
            beside = store.holders_beside(spec.name, entry.peer.name)
            if len(beside) > 1:
                raise Conflict(
                    f"{entry.text!r} is ambiguous, it could be {store.shown(beside)}",
                    "use the name of the service",
                    entry.key,
                )
            _check_alias(store, spec, entry, beside)
            if not beside and store.mode(entry.peer.name) == "host":
                raise Conflict(
                    f"{entry.text!r} names a service of mode host, "
                    "which has only the host's own addresses",
                    "remove it: the host may always connect in; "
                    "in egress, name the host's addresses instead",
                    entry.key,
                )
    sharers = store.held_sharers(spec.name, together)
    for name in (*spec.names, *(name for sharer in sharers for name in store.names(sharer))):
        for other in store.naming("service", name):
            _check_naming(store, spec, name, other)


def _check_alias(store: Store, spec: ServiceSpec, entry: Entry, beside: list[str]) -> None:
    """Raise Conflict if a policy allows a name that is the alias of a foreign pod.

    The pod's user has chosen the alias, and could choose it to get access.
    """
    if entry not in (
        *(spec.network.policy.allow_from or ()),
        *(spec.network.policy.egress_allow or ()),
    ):
        return
    for holder in beside:
        labels = _labels(store, holder)
        if entry.peer.name not in labels.get(_ALIASES, "").split():
            continue
        if not _is_own(store, spec.name, entry, labels.get("pod_namespace", "")):
            raise Conflict(
                f"{entry.text!r} is an alias that the user of pod {holder!r} has chosen",
                f"name the pod: {holder}",
                entry.key,
            )


def _is_own(store: Store, name: str, entry: Entry, namespace: str) -> bool:
    """Return whether the user of this Kubernetes namespace wrote the entry of a pod's policy."""
    same = namespace != "" and _labels(store, name).get("pod_namespace") == namespace
    return same and entry.key.startswith("niso.io/")


def _labels(store: Store, name: str) -> Mapping[str, str]:
    """Return the labels of an attachment; empty for other services."""
    attached = store.attachments.get(name) if store.mode(name) == "attached" else None
    return _labels_of(attached) if attached is not None else {}


def _labels_of(attached: Attached) -> Mapping[str, str]:

    labels: Mapping[str, str] = wishes(attached).get("labels", {})
    return labels


def _check_chosen(store: Store, attached: Attached, former: Attached | None) -> None:
    """Raise Conflict if a policy allows a name or address that the user of a pod has chosen.

    The policy's author may mean another service. What the policy allowed before stays allowed.
    """
    labels, was = _labels_of(attached), _labels_of(former) if former is not None else {}
    aliases, ip = labels.get(_ALIASES, "").split(), labels.get(_IP, "")
    if (aliases, ip) == (was.get(_ALIASES, "").split(), was.get(_IP, "")):
        return
    for name in store.policied() if aliases or ip else ():
        policy = store.policy(name) if name != attached.service else None
        allowed = (*(policy.allow_from or ()), *(policy.egress_allow or ())) if policy else ()
        for entry in allowed:
            if _is_own(store, name, entry, labels.get("pod_namespace", "")):
                continue
            if entry.peer.kind == "service" and entry.peer.name in aliases:
                raise Conflict(
                    f"the alias {entry.peer.name!r} is named by {entry.key} ({entry.text!r}) of"
                    f" {name!r}, which could mean another",
                    "choose another alias",
                    "niso.io/aliases",
                )
            if ip and entry.peer.kind in ("prefix", "prefixes") and _picks(store, entry.peer, ip):
                raise Conflict(
                    f"the address {ip} is named by {entry.key} ({entry.text!r}) of {name!r}, which"
                    " could mean another",
                    "choose another address, or none",
                    "niso.io/ip",
                )


def _picks(store: Store, peer: Peer, address: str) -> bool:
    """Return whether a peer selects an address but not all of its network's subnet."""
    subnets = [
        prefix(subnet.cidr)
        for network in store.networks()
        for subnet in network.subnets
        if prefix(subnet.cidr).holds(address)
    ]
    listed = [prefix(cidr) for cidr in peer.name.split(",")]
    return any(one.holds(address) for one in listed) and not any(
        one.length <= subnet.length and one.holds(subnet.at(0))
        for one in listed
        for subnet in subnets
    )


def _check_naming(store: Store, spec: ServiceSpec, name: str, other: str) -> None:
    """Raise Conflict if a name in the policy of ``other`` becomes ambiguous by this service."""
    row = store.service(other)
    entries = (store.policy(other) or Policy()).entries()
    entry = next((item for item in entries if item.peer == Peer("service", name)), None)
    if entry is None or row is None:
        return
    beside = store.holders_beside(other, name)
    if len(beside) > 1:
        raise Conflict(
            f"the name {name!r} would be ambiguous in {entry.key} ({entry.text!r}) of service "
            f"{other!r}, it could be {store.shown(beside)}",
            f"choose another name, or write the name of the service in {row.manifest_path} "
            "and activate it first",
            _name_key(spec, name),
        )
    if spec.network.mode == "host" and name == spec.name and not beside:
        raise Conflict(
            f"'host' is not possible because {entry.key} ({entry.text!r}) "
            f"of service {other!r} names this service",
            f"remove that entry from {row.manifest_path} and activate it first: "
            "the host's own addresses belong to no service",
            "network.mode",
        )


def _refuse_ports(store: Store, service: str, keys: list[str]) -> None:
    """Raise Conflict if a service without a network publishes ports; remove its forwards.

    The error is about the first of ``keys``.
    """
    provider = store.home(service)
    if keys:
        raise Conflict(
            f"service {provider!r}, whose network namespace it shares, has mode none: "
            "it cannot be reached",
            "remove network.ports, or share the namespace of a service of mode bridge",
            keys[0],
        )
    store.end_publishing(service)


def _ensure_network(machine: Machine, name: str, static: str | None) -> None:
    if machine.store.network(name) is None:
        network = plan_network(machine, name, holds=static)
        network = network._replace(observe=observes())
        machine.store.add_network(network, implicit=True, now=time.time())


class LinkNames:
    """Choose generations of services within a transaction, so that their link names are unique.

    Different endpoints can have the same link name, even endpoints of one service
    (`niso.base.names.veth`).
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: dict[str, dict[str, tuple[str, str, int]]] = {}
        """Link names in use, with their endpoint, by `link_prefix`.

        Cached, because each read would read all intents of the command.
        """

    def generation(self, service: str, networks: tuple[str, ...], first: int) -> int:
        """Return the lowest generation from ``first`` on with unused and distinct link names."""
        prefix = link_prefix(service)
        if prefix not in self._taken:
            others = self._store.endpoints_like(prefix)
            self._taken[prefix] = {veth(*other): other for other in others}
        taken = self._taken[prefix]
        for generation in count(first):
            own = {veth(service, on, generation): (service, on, generation) for on in networks}
            if len(own) == len(networks) and all(
                taken.get(link, endpoint) == endpoint for link, endpoint in own.items()
            ):
                break
        taken |= own
        return generation


# --- the services of a stack ----------------------------------------------------------------------


OR_REPLACE = "choose another name; --replace takes over its services"


class Membership(NamedTuple):
    stack: str
    file: str  # absolute path of its stack.toml
    shown: str  # the same path, printable
    networks: tuple[NetworkRequest, ...]
    leaving: tuple[str, ...]  # existing services of the stack that are no longer in its file
    needs: Needs  # dependencies, for the order in which the leaving services end
    replace: bool = False  # take over a stack of this name from another file
    prefix: str = ""  # of its networks' names


NO_STACK = Membership("", "", "", (), (), {})
"""The membership of services that are activated without a stack."""


class NoClaims:
    """The claims of a command that needs nothing of a cluster (`cluster_claims.Held`)."""

    homes: Collection[str] = ()

    def __contains__(self, service: str) -> bool:
        return False

    def close(self) -> None:
        """Close nothing."""

    def networks(self, service: str) -> Collection[str]:
        """Return no network."""
        return ()

    def make_way(self, report: Report) -> None:
        """Remove nothing: no name or address is claimed."""

    def scope(self) -> Scope:
        """Return an empty scope."""
        return Scope((), ())

    def record(self) -> None:
        """Record no claim."""

    def publish(self, report: Report) -> None:
        """Publish nothing."""


def shared(store: Store, wanted: Membership) -> Iterator[tuple[str, str]]:
    """Yield (network, other stack) for declared networks that another stack uses already.

    Only networks that are new to the stack count. Services of both stacks can connect to each other
    on such a network. Networks that span hosts are left out: they are meant to be shared.
    """
    for request in wanted.networks:
        others = _others(store, wanted.stack, request.name)
        if others and not request.span:
            yield request.name, min(others)


def _others(store: Store, stack: str, network: str) -> set[str]:
    """Return the other stacks with services on a network.

    Returns nothing if ``stack`` has services there too.
    """
    on = {store.stack_of(name) for name, _ in store.members(network)}
    return set() if stack in on else {other for other in on if other is not None}


def prepare(machine: Machine, wanted: Membership, services: Iterable[str]) -> None:
    """Record the stack's networks, and end the membership of services that left the stack.

    Call this before the stack's services are recorded, in the same transaction. Raises Conflict,
    which names the file and the key.
    """
    from niso.look.stack_members import refuse_elsewhere, taken

    store = machine.store
    if not wanted.replace:
        refuse_elsewhere(store, wanted.stack, wanted.file, OR_REPLACE)
    for error in taken(store, wanted.stack, services).values():
        # the other stack did not exist when the command began, so the services have no prefix
        error.hint = "another command has just made that stack: run this one again"
        raise error
    for request in wanted.networks:
        on = [name for name, _ in store.members(request.name)]
        others = _others(store, wanted.stack, request.name)
        short = request.name.removeprefix(wanted.prefix)
        if wanted.prefix and others:
            # with prefixes, network y of stack shop-x has the same name as network x-y of stack
            # shop
            raise Conflict(
                f"network {request.name!r} is used by stack {min(others)!r}",
                "choose another name",
                f"networks.{short}",
                file=wanted.shown,
            )
        try:
            ensure(machine, request, implicit=True)
        except Error as error:
            raise network_error(wanted, request.name, error, on) from None
    for name in wanted.leaving:
        store.leave_stack(name)


def network_error(wanted: Membership, name: str, error: Error, on: Sequence[str] = ()) -> Conflict:
    """Return a network's error with file and key.

    The services ``on`` the network are in the hint.
    """
    from niso.look.stack_members import error_of

    moved = Conflict.of(error_of(name.removeprefix(wanted.prefix), error))
    moved.file = wanted.shown
    moved.hint = error.hint
    if on and isinstance(error, Conflict):  # the network exists and differs
        moved.hint = f"match it, or choose another name; services on it: {', '.join(on)}"
    return moved
