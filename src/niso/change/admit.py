"""Record the networks, names, addresses and ports of a service in the store, or refuse them.

This module also prepares the activation of a stack. `niso.change.ports` checks host ports, and
`niso.store.service_rows` assigns addresses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput, flatten, raise_all
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import link_prefix, prefix, veth
from niso.base.native import lazy
from niso.change import scope
from niso.change.scope import Target
from niso.plan.records import Entry, Peer, Policy, PortMapping
from niso.plan.specs import ServiceSpec
from niso.reconcile import host_settings
from niso.runtime.machine import Machine
from niso.store import service_rows
from niso.store.attached_rows import (
    CHOSEN_ALIASES,
    CHOSEN_IP,
    NAMESPACE,
    AttachedRow,
    requested_settings,
)
from niso.store.service_rows import ServiceRow
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from niso.change import ports, stop, targets
    from niso.look import host_ports
    from niso.plan.subnets import NetworkRequest
else:  # an attachment without published ports needs none of them
    ports, stop, targets = (
        lazy("niso.change.ports"),
        lazy("niso.change.stop"),
        lazy("niso.change.targets"),
    )
    host_ports = lazy("niso.look.host_ports")


def _ensure(machine: Machine, network: NetworkRequest | str, holds: str | None = None) -> None:
    """Record an implicit network, as `networks.ensure_implicit` does."""
    from niso.change import networks  # most services are on networks that exist

    networks.ensure_implicit(machine, network, holds)


class Change(NamedTuple):
    """The change that an activation makes to one service."""

    target: Target
    before: ServiceRow | None  # None for a new service
    row: ServiceRow
    restarts: bool  # the process must be started or restarted
    rehosts: bool  # the process keeps running, and its hosts file is replaced

    @property
    def name(self) -> str:
        return self.row.name


def release(store: Store, target: Target) -> None:
    """Record a change in progress (intent) for a service, and release ports and names.

    Call this for all services of a command before any `record`. One service of the command can then
    get a port or name that another service of the command releases. If the service changes its
    networks, all its names are released, and `record` checks them on the new networks. Addresses
    are not released: until the kernel is updated, packets to them would reach the new owner.
    """
    store.begin_intent(target.name, "activate", time.time(), target.missing_volumes)
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
    stack: StackMembership,
) -> list[Change]:
    """Write the desired rows of all services of a command, and of the command's stack.

    ``copies`` maps services to the paths of their copied packages. ``leaving`` are the rows of
    services to be stopped. Errors are raised after all services have been checked.
    """
    store = machine.store
    if stack.stack:
        prepare(machine, stack, copies)
    else:
        for request in stack.networks:
            _ensure(machine, request)
    stop.deactivate_rows(machine, leaving)
    for target in targets:
        release(store, target)
    together = frozenset((*copies, *(row.name for row in leaving)))
    links = generations(store)
    named = tuple(published.port for target in targets for published in target.spec.network.ports)
    made: dict[str, Change] = {}
    errors: list[Error] = []
    for target in sorted(targets, key=_takes):
        if errors and target.spec.network.mode == "share":
            continue  # the namespace's owner may not have been recorded, because of an error
        try:
            made[target.name] = record(machine, target, copies, together, links, named)
        except (Conflict, InvalidInput, ErrorGroup) as error:
            errors += flatten(error)
    raise_all(errors)
    changes = [made[target.name] for target in targets]
    scope.check(store, [change.row for change in changes], leaving)
    if stack.stack:
        for change in changes:
            if change.target.instance is None:
                store.join_stack(change.name, stack.stack, stack.file)
    return changes


def _takes(target: Target) -> tuple[bool, bool, bool]:
    network = target.spec.network
    fixed = network.addresses or network.addresses6
    return network.mode == "share", target.instance is not None, not fixed


def record(
    machine: Machine,
    target: Target,
    copies: Mapping[str, str],
    together: frozenset[str],
    links: Generations,
    named: tuple[PortMapping, ...] = (),
) -> Change:
    """Write the desired rows of one service to the store. Call `release` first.

    ``copies`` maps the services that the command activates to the paths of their copied packages.
    ``together`` are all services of the command. ``links`` is the result of `generations`.
    ``named`` are all host ports in the command's manifests. Raises Conflict or InvalidInput, with
    the manifest and its key, or an ErrorGroup. After an error the caller must roll back.
    """
    with _of_manifest(target) as errors:
        store, wanted, name = machine.store, target.spec, target.name
        before = store.service(name)
        if before is not None:
            _refuse_other(before, target)
        provider = scope.provider_of(store, target, together)
        held = _held_names(store, wanted, provider, together, copies.keys())
        errors.extend(held.values())
        on = wanted.network.networks
        for network in on:
            if store.network(network) is None:
                holds = wanted.network.addresses.get(network)
                _ensure(machine, network, holds)
        was_active = before is not None and before.active
        # a new activation has new interface names: the old veth pairs may not be deleted yet
        generation = (
            1 if before is None else before.generation if was_active else before.generation + 1
        )
        generation = links(name, on, generation)
        spec, restarts, rehosts = "", False, False
        if target.files is None:
            uid = before.uid if before else store.placeholder_uid()
        else:
            from niso.change import process_record

            if wanted.is_front:
                uid = before.uid if before else process_record.free_uid(store, name)
            else:
                uid, process, restarts, rehosts = process_record.specified(
                    machine, target, target.files, copies[name], generation, provider, before
                )
                spec = service_rows.encode_process(process)
        row = ServiceRow(
            name=name,
            manifest_path=target.manifest_path,
            manifest=service_rows.encode_service(wanted),
            rootfs=target.files.rootfs if target.files is not None else None,
            package=copies[name],
            fingerprint=os.path.basename(copies[name]),
            uid=uid,
            active=True,
            generation=generation,
            networks=on,
            spec=spec,
            created_at=before.created_at if before else time.time(),
            activated_at=before.activated_at if before and was_active else time.time(),
            mode=_mode(wanted),
            provider=provider,
            enabled=before.enabled if before else False,
        )
        ports_before = [port for _, port in store.ports(name)] if was_active else []
        store.put_service(row)
        former = store.attachments.get(name) if target.attaching is not None else None
        if target.attaching is not None:
            store.attachments.put(*target.attaching)
        store.set_names(name, tuple(alias for alias in wanted.names if alias not in held))
        store.set_extra_hosts(name, () if wanted.is_front else wanted.network.extra_hosts.items())
        store.set_endpoints(name, on)
        _refuse_macs(store, name, on)
        if on:
            host_settings.record(machine.kernel, store, on)
        policy = wanted.network.policy
        if policy.audit is not None:
            from niso.reconcile import live_world

            policy = live_world.begun(policy, store.policy(name), time.time())
        store.set_policy(name, None if policy.is_empty else policy)
        _check_peers(store, wanted, together)
        if target.attaching is not None:
            _check_chosen(store, target.attaching[0], former)
        for network in on:
            try:
                kept = store.attachment_key(name)
                statics, prefers = wanted.network.statics(network), target.prefers.get(network, ())
                service_rows.lease(store, name, network, statics, copies.keys(), kept, prefers)
            except (Conflict, InvalidInput) as error:
                errors.append(error)
        _set_ports(machine, target, before, ports_before, together, named)
        if target.instance is not None:
            now, instance = store.instances.get(name), target.instance
            if now is not None and instance.state != service_rows.STARTING:
                instance = instance._replace(
                    state=now.state
                )  # niso health may just have changed it
            store.instances.put(instance)
        return Change(target, before, row, restarts, rehosts)


@contextmanager
def _of_manifest(target: Target) -> Iterator[list[Error]]:
    """Raise the errors of a ``with`` block, with the service's manifest. The block also appends
    errors to the list, and continues with its remaining checks.
    """
    errors: list[Error] = []
    try:
        yield errors
    except (Conflict, InvalidInput, ErrorGroup) as error:
        errors += flatten(error)
    for failure in errors:
        failure.file, failure.service = target.manifest_path, target.name
    raise_all(errors)


def _mode(wanted: ServiceSpec) -> str:
    if wanted.process is None:
        return "attached"
    return "front" if wanted.is_front else wanted.network.mode


def _refuse_macs(store: Store, name: str, networks: tuple[str, ...]) -> None:
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
    had: list[PortMapping],
    together: frozenset[str],
    named: tuple[PortMapping, ...],
) -> None:
    """Check and record the ports that a service publishes. niso chooses missing host ports."""
    store, name, wanted = machine.store, target.name, target.spec.network.ports
    keys = [published.key for published in wanted]
    if not store.port_families(name):
        if keys:
            raise Conflict(
                f"service {store.home(name)!r}, whose network namespace it shares, has mode none: "
                "it cannot be reached",
                "remove network.ports, or share the namespace of a service of mode bridge",
                keys[0],
            )
        store.end_publishing(name)
    manifest = [published.port for published in wanted]
    made = chosen = list[PortMapping]()
    if manifest or store.forwards(name):
        last = host_ports.published_by(before) if before is not None else ()
        made, chosen = ports.admit(machine, name, manifest, had, keys, together, named, last)
    store.set_ports(name, made, chosen)
    for sharer in store.sharers(name):
        store.note_published(sharer)


def _refuse_other(before: ServiceRow, target: Target) -> None:
    if not before.is_attachment and target.spec.process is None:
        reason = "the name is already used by a service with a manifest"
        raise Conflict(reason, "choose another name", "NAME", names_key=False)
    if target.spec.process is not None:
        if before.is_attachment:
            reason = f"{target.name!r} is already the name of an attachment"
            raise Conflict(reason, "choose another name", "package.name")
        targets.refuse_elsewhere(before, target)


def _held_names(
    store: Store,
    spec: ServiceSpec,
    provider: str | None,
    together: frozenset[str],
    beside: AbstractSet[str],
) -> dict[str, Conflict]:
    """Return {name: error} for each requested name that another service on a common network owns.
    The names of this service's sharers are checked too.
    """
    networks = spec.network.networks if provider is None else store.networks_of(provider)
    sharers = store.held_sharers(spec.name, together)
    names = (*spec.names, *(name for sharer in sharers for name in store.names(sharer)))
    held: dict[str, Conflict] = {}
    for name in dict.fromkeys(names):
        others = store.holders_on(name, networks, spec.name, beside)
        for holder, on in others:
            # two attachments may have the same alias, as in an engine
            may_share = spec.process is None and name in spec.network.aliases and name != holder
            if holder in sharers or (may_share and store.mode(holder) == "attached"):
                continue
            hint = f"choose another name, here or in the manifest of {holder}"
            if holder in beside:
                hint = f"{holder} is part of this command: choose another name for one of the two"
            held[name] = Conflict(
                f"the name {name!r} is already used by service {holder!r} on network {on!r}",
                hint,
                _name_key(spec, name),
            )
            break
    return held


def _name_key(spec: ServiceSpec, name: str) -> str:
    if name == spec.name:
        return "package.name"
    if name not in spec.names:  # the name of a service that shares the namespace
        return "network.networks"
    return "network.hostname" if name == spec.network.hostname else "network.aliases"


def _check_peers(store: Store, spec: ServiceSpec, together: frozenset[str]) -> None:
    """Raise Conflict if a name in a policy is ambiguous or refers to a service of mode host.

    Checks the names in this service's policy, and this service's names in other policies. A policy
    cannot match a service of mode host, whose packets have the host's own addresses.
    """
    for entry in spec.network.policy.entries():
        if entry.peer.kind == "service":
            beside = store.holders_beside(spec.name, entry.peer.name)
            if len(beside) > 1:
                reason = f"{entry.text!r} is ambiguous, it could be {store.shown(beside)}"
                raise Conflict(reason, "use the name of the service", entry.key)
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
    """Raise Conflict if an allow entry names an alias that the user of another pod has chosen.

    The author of the policy may have meant another service. ``beside`` are the services that have
    the entry's name on a network of this service.
    """
    for holder in beside if entry in _allowed(spec.network.policy) else ():
        labels = _labels(store, holder)
        is_alias = entry.peer.name in labels.get(CHOSEN_ALIASES, "").split()
        if is_alias and not _is_own(store, spec.name, entry, labels.get(NAMESPACE, "")):
            reason = f"{entry.text!r} is an alias that the user of pod {holder!r} has chosen"
            raise Conflict(reason, f"name the pod: {holder}", entry.key)


def _is_own(store: Store, name: str, entry: Entry, namespace: str) -> bool:
    """Return whether an entry in a service's policy is from a pod's annotation, and the pod is in
    the Kubernetes namespace ``namespace``. Other entries come from the administrator.
    """
    same = namespace != "" and _labels(store, name).get(NAMESPACE) == namespace
    return same and entry.key.startswith("niso.io/")


def _labels(store: Store, name: str) -> Mapping[str, str]:
    return _labels_of(store.attachments.get(name) if store.mode(name) == "attached" else None)


def _labels_of(attached: AttachedRow | None) -> Mapping[str, str]:
    return requested_settings(attached).get("labels", {}) if attached is not None else {}


def _allowed(policy: Policy | None) -> tuple[Entry, ...]:
    return (*(policy.allow_from or ()), *(policy.egress_allow or ())) if policy else ()


def _check_chosen(store: Store, attached: AttachedRow, former: AttachedRow | None) -> None:
    """Raise Conflict if a policy names an alias or IP address that a pod's user has just chosen.

    The author of the policy may have meant another service. Aliases and addresses that the pod
    already had are not checked.
    """
    labels, was = _labels_of(attached), _labels_of(former)
    aliases, ip = labels.get(CHOSEN_ALIASES, "").split(), labels.get(CHOSEN_IP, "")
    if (aliases, ip) == (was.get(CHOSEN_ALIASES, "").split(), was.get(CHOSEN_IP, "")):
        return
    for name in store.policied() if aliases or ip else ():
        for entry in _allowed(store.policy(name)) if name != attached.service else ():
            if _is_own(store, name, entry, labels.get(NAMESPACE, "")):
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
    """Return whether a policy's prefixes contain an address, but not all of its subnet."""
    subnets = [
        prefix(subnet.cidr)
        for network in store.networks()
        for subnet in network.subnets
        if prefix(subnet.cidr).contains(address)
    ]
    listed = [prefix(cidr) for cidr in peer.name.split(",")]
    return any(one.contains(address) for one in listed) and not any(
        one.length <= subnet.length and one.contains(subnet.address_at(0))
        for one in listed
        for subnet in subnets
    )


def _check_naming(store: Store, spec: ServiceSpec, name: str, other: str) -> None:
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


Generations = Callable[[str, tuple[str, ...], int], int]


def generations(store: Store) -> Generations:
    """Return a function that chooses a generation number for a service.

    The names of network interfaces are hashes of service, network and generation
    (`niso.base.names.veth`). The function returns the lowest generation whose names no other
    endpoint has. Its argument ``first`` is the lowest generation to try.
    """
    # by `link_prefix`, because each read of the store would read all intents of the command
    endpoints: dict[str, dict[str, tuple[str, str, int]]] = {}

    def choose(service: str, networks: tuple[str, ...], first: int) -> int:
        prefix = link_prefix(service)
        if prefix not in endpoints:
            endpoints[prefix] = {veth(*other): other for other in store.endpoints_like(prefix)}
        taken = endpoints[prefix]
        for generation in count(first):
            own = {veth(service, on, generation): (service, on, generation) for on in networks}
            if len(own) == len(networks) and all(
                taken.get(link, endpoint) == endpoint for link, endpoint in own.items()
            ):
                break
        taken |= own
        return generation

    return choose


# --- the services of a stack ----------------------------------------------------------------------

OR_REPLACE = "choose another name; --take-over takes over its services"


class StackMembership(NamedTuple):
    """The stack that an activation's services belong to, and the networks to create for it."""

    stack: str  # the stack's name
    file: str  # absolute path of the stack.toml
    shown: str  # the same path, printable
    networks: tuple[NetworkRequest, ...]
    leaving: tuple[str, ...]  # existing services of the stack that are no longer in its file
    replace: bool = False  # whether to replace a stack of this name from another file
    prefix: str = ""  # prefix of the names of the stack's networks


NO_STACK = StackMembership("", "", "", (), ())
"""The membership of services that are activated without a stack."""


class NoClaims:
    """A stand-in for `cluster_claims.ActivationClaims` when a command reserves nothing in etcd."""

    homes: Collection[str] = ()

    def __contains__(self, service: str) -> bool:
        return False

    def close(self) -> None:
        """Do nothing, because there is no connection to etcd."""

    def networks(self, service: str) -> Collection[str]:
        return ()

    def remove_displaced(self) -> None:
        """Do nothing: without a claim, no other service loses a name or an address."""

    def scope(self) -> Scope:
        return Scope((), ())

    def record(self) -> None:
        """Do nothing, because the command has no claim to record."""

    def publish(self) -> None:
        """Do nothing, because the command has no claim to publish."""


def shared(store: Store, wanted: StackMembership) -> Iterator[tuple[str, str]]:
    """Yield (network, other stack) for each network that a stack newly uses and another stack uses.

    Networks that span hosts are left out.
    """
    for request in wanted.networks:
        others = _others(store, wanted.stack, request.name)
        if others and not request.span:
            yield request.name, min(others)


def _others(store: Store, stack: str, network: str) -> set[str]:
    """Return the stacks with services on a network, or an empty set if ``stack`` is one of them."""
    on = {store.stack_of(name) for name, _ in store.members(network)}
    return set() if stack in on else {other for other in on if other is not None}


def prepare(machine: Machine, wanted: StackMembership, services: Iterable[str]) -> None:
    """Record a stack's networks, and remove services from the stack that are no longer in its file.

    Call this before the stack's services are recorded, in the same transaction. Raises a Conflict
    that names the file and the key.
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
        if wanted.prefix and others:
            # network y of stack shop-x has the same name as network x-y of stack shop
            raise Conflict(
                f"network {request.name!r} is used by stack {min(others)!r}",
                "choose another name",
                f"networks.{request.name.removeprefix(wanted.prefix)}",
                file=wanted.shown,
            )
        try:
            _ensure(machine, request)
        except Error as error:
            raise network_error(wanted, request.name, error, on) from None
    for name in wanted.leaving:
        store.leave_stack(name)


def network_error(
    wanted: StackMembership, name: str, error: Error, on: Sequence[str] = ()
) -> Conflict:
    """Turn an error about a stack's network into a Conflict that names the stack's file.

    If the network exists with other settings, the hint lists the services on the network (``on``).
    """
    from niso.look.stack_members import error_of

    moved = Conflict.of(error_of(name.removeprefix(wanted.prefix), error))
    moved.file = wanted.shown
    moved.hint = error.hint
    if on and isinstance(error, Conflict):  # the network exists and differs
        moved.hint = f"match it, or choose another name; services on it: {', '.join(on)}"
    return moved
