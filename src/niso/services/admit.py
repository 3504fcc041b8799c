"""Recording in the store what a service will be: its names, networks, leases and ports, or why that cannot be."""

from __future__ import annotations

import json
import os
import time

from niso.base.errors import Conflict, ErrorGroup, InvalidInput, NisoError
from niso.base.lite_typing import NamedTuple
from niso.kernel import host_facts
from niso.manifest import load as model
from niso.manifest.load import Manifest
from niso.plan.records import Entry, Peer, Policy, Port
from niso.reconcile import forwarding
from niso.runtime import hosts_mount, status, volumes
from niso.runtime.spec import ProcessSpec, understood
from niso.services import ports as portmap
from niso.services import sharing, targets
from niso.services.targets import Target
from niso.store import leases
from niso.store.policy_rows import Name
from niso.store.store import Scope, ServiceRow, Store


class Change(NamedTuple):
    """What one activation does to one service."""

    target: Target
    before: ServiceRow | None
    row: ServiceRow
    restarts: bool  # its process must be started, or ended and started
    rehosts: bool = False  # its process goes on, and must be shown the hosts file of other networks

    @property
    def name(self) -> str:
        """The service's."""
        return self.row.name


def scope_of(store: Store, targets: list[Target]) -> Scope:
    """The services, those that they share a namespace with, and all networks that they are on or will be on."""
    on: set[str] = set()
    touched: set[str] = set()
    for target in targets:
        on.update(model.networks(target.manifest))
        row = store.service(target.name)
        if row is not None:
            on.update(row.networks)
        provider = store.name_holder(target.manifest.network.share or "")
        touched.update((target.name, provider) if provider else (target.name,))
    on |= store.published_on(touched)
    concerned = {name for target in targets for name in _other_meanings(store, target)}
    return Scope(store.with_companions(touched), tuple(sorted(on)), names=tuple(sorted(concerned)))


def _other_meanings(store: Store, target: Target) -> set[Name]:
    """The names that may stand for other addresses after an activation: none of a service that has its leases and keeps them.

    A name of a service that shares a namespace stands for an address while it is active, and one that has an address stands
    for it beside others.
    """
    row = store.service(target.name)
    on = model.networks(target.manifest)
    found: set[Name] = {("network", network) for network in on if store.network(network) is None}
    statics = model.static_ips(target.manifest)
    leased = store.addresses(target.name)
    names_ = model.names(target.manifest)
    shared = store.name_holder(target.manifest.network.share or "")
    kept = row is not None and row.networks == on and set(store.names(target.name)) == set(names_)
    kept = kept and shared is None and row is not None and row.provider is None
    if not kept or any((network, address) not in leased for network, address in statics.items()):
        found |= {("service", name) for name in names_}
        found |= set(
            store.names_with(store.with_companions([target.name, *([shared] if shared else ())]))
        )
    return found


def release(store: Store, target: Target) -> None:
    """Begin the change of one service: note how to undo it, and give up the host ports and names that its manifest has no more.

    Before any `record`, so that another service of the same command may have them. An address is not given up: until the kernel has
    followed, what leads to it would lead to somebody else.
    """
    store.begin_intent(target.name, "activate", time.time())
    wanted = model.ports(target.manifest)
    for port in store.manifest_ports(target.name):
        if port not in wanted:
            store.take_port(target.name, port)
    names = model.names(target.manifest)
    store.set_names(target.name, tuple(name for name in store.names(target.name) if name in names))


def record(
    store: Store, target: Target, copy: str, together: frozenset[str], beside: frozenset[str]
) -> Change:
    """Write one service, which is released, as it will be to the store.

    ``together`` are all services of the command, ``beside`` those of them whose manifests it activates.
    Raises Conflict and InvalidInput, which name the manifest and the key, or an ErrorGroup of all names, addresses and ports that
    cannot be; then what has been written is to be rolled back.
    """
    errors: list[NisoError] = []
    try:
        change = _record(store, target, copy, together, beside, errors)
    except (Conflict, InvalidInput) as error:
        errors.append(error)
    except ErrorGroup as group:
        errors += group.errors
    if not errors:
        return change
    for each in errors:
        each.file, each.service = target.manifest_path, target.name
    raise errors[0] if len(errors) == 1 else ErrorGroup(errors)


def _record(
    store: Store,
    target: Target,
    copy: str,
    together: frozenset[str],
    beside: frozenset[str],
    errors: list[NisoError],
) -> Change:
    """As `record`; what lets the rest be looked at nevertheless is put into ``errors``."""
    manifest, name = target.manifest, target.name
    before = store.service(name)
    held = _held_names(store, name, manifest, beside)
    errors += held.values()
    provider = sharing.provider_of(store, target, together)
    on = model.networks(manifest)
    for network in on:
        _ensure_network(store, network, model.static_ips(manifest).get(network))
    was_active = before is not None and before.active
    generation = 1 if before is None else before.generation if was_active else before.generation + 1
    uid = before.uid if before else _free_uid(store, name)
    spec = _spec(store, target, copy, generation, uid, provider)
    said = understood(before.spec) if before is not None and was_active else None
    if (
        before is not None
        and said is not None
        and "host" not in (before.mode, manifest.network.mode)
    ):
        same = spec._replace(resolv_conf=said.resolv_conf)
        spec = same if same == said else spec  # other name servers alone restart nothing
    row = ServiceRow(
        name=name,
        manifest_path=target.manifest_path,
        manifest=model.encode(manifest),
        rootfs=target.rootfs,
        package=copy,
        fingerprint=os.path.basename(copy),
        uid=uid,
        active=True,
        generation=generation,
        networks=on,
        spec=json.dumps(spec._asdict()),
        created_at=before.created_at if before else time.time(),
        activated_at=before.activated_at if before and was_active else time.time(),
        mode=manifest.network.mode,
        provider=provider,
        enabled=before.enabled if before else False,
    )
    ports_before = [port for _, port in store.ports(name)] if was_active else []
    store.put_service(row)
    store.set_names(name, tuple(each for each in model.names(manifest) if each not in held))
    store.set_endpoints(name, on)
    if on:
        forwarding.record(store, on)
    policy = model.policy(manifest)
    says_nothing = policy._replace(log=False) == Policy()
    store.set_policy(name, None if says_nothing else policy)
    _check_peers(store, name, manifest, policy)
    for network in on:
        try:
            leases.lease(store, name, network, model.static_ips(manifest).get(network), beside)
        except (Conflict, InvalidInput) as error:
            errors.append(error)
    wanted = model.ports(manifest)
    if not store.port_families(name):
        _refuse_ports(store, name, list(wanted.values()))
    ports, chosen = portmap.admit(
        store,
        name,
        list(wanted),
        ports_before,
        list(wanted.values()),
        together,
        (lambda: published(before)) if before is not None else None,
    )
    store.set_ports(name, ports, chosen)
    for sharer in store.sharers(name):
        store.note_published(sharer)
    old = said if said is not None and status.runs(name) else None
    rehosts = hosts_mount.can_swap(old, spec)
    return Change(target, before, row, restarts=not rehosts and old != spec, rehosts=rehosts)


def published(row: ServiceRow) -> dict[Port, str]:
    """The ports of the manifest of a service's last activation, with their keys; none where it cannot be understood any more."""
    try:
        return model.ports(model.decode(row.manifest))
    except NisoError:
        return {}


def _held_names(
    store: Store, service: str, manifest: Manifest, beside: frozenset[str]
) -> dict[str, Conflict]:
    """The names of a manifest that another service has, with what is to be said of it."""
    found: dict[str, Conflict] = {}
    for name in model.names(manifest):
        holder = store.name_holder(name, beside)
        if holder is not None and holder != service:
            key = "network.hostname" if name == manifest.network.hostname else "network.aliases"
            if name == service:
                key = "package.name"
            hint = f"choose another name, or niso remove {holder}"
            if holder in beside:
                hint = (
                    f"{holder} is part of this command too: choose another name for one of the two"
                )
            found[name] = Conflict(f"the name {name!r} is held by service {holder!r}", hint, key)
    return found


def _check_peers(store: Store, service: str, manifest: Manifest, policy: Policy) -> None:
    """Raise Conflict where a policy names a service of mode host: what that one sends has the host's own addresses."""
    if manifest.network.mode == "host":
        for name in model.names(manifest):
            for other in store.naming("service", name):
                named = store.policy(other)
                said = (
                    each
                    for each in entries(named or Policy())
                    if each.peer == Peer("service", name)
                )
                entry, row = next(said, None), store.service(other)
                if entry is not None and row is not None:
                    raise Conflict(
                        f"'host' cannot be, since {entry.key} ({entry.text!r}) of service {other!r} names it",
                        f"take it out of {row.manifest_path} and activate that first: the host's own addresses belong to no service",
                        "network.mode",
                    )
    for entry in entries(policy):
        if entry.peer.kind == "service" and store.mode_of_name(entry.peer.name) == "host":
            raise Conflict(
                f"{entry.text!r} names a service of mode host, which has no addresses but the host's",
                "leave it out: the host may always connect in; in egress the host's addresses can be named",
                entry.key,
            )


def entries(policy: Policy) -> list[Entry]:
    """All entries of a policy."""
    return [
        *(policy.allow_from or ()),
        *policy.deny_from,
        *(policy.egress_allow or ()),
        *policy.egress_deny,
    ]


def _refuse_ports(store: Store, service: str, keys: list[str]) -> None:
    """Of a service that is on no network: nothing can be published, and what was forwarded ends."""
    provider = store.home(service)
    if keys:
        raise Conflict(
            f"service {provider!r}, whose network namespace it shares, is of mode none: nothing leads there",
            "leave network.ports out, or share that of a service of mode bridge",
            keys[0],
        )
    store.end_publishing(service)


def _ensure_network(store: Store, name: str, static: str | None) -> None:
    if store.network(name) is None:
        from niso.services import networks

        network = networks.plan_network(store, name, holds=static)
        store.add_network(network, implicit=True, now=time.time())


def _free_uid(store: Store, service: str) -> int:
    """The uid that owns the volumes which the service left, else one that neither a service nor a volume left by one has."""
    kept = volumes.owners()
    for uid in sorted(kept.pop(service, ())):
        if uid >= targets.FIRST_UID and store.free_uid(uid) == uid:
            return uid
    return store.free_uid(targets.FIRST_UID, set().union(*kept.values()))


def _spec(
    store: Store, target: Target, copy: str, generation: int, uid: int, provider: str | None
) -> ProcessSpec:
    manifest = target.manifest
    at_home = sharing.home(store, target.name, manifest, provider)
    uid, gid, groups, user_name, home = targets.user(target, uid)
    resolver, _ = host_facts.resolv_conf()
    return ProcessSpec(
        service=target.name,
        state_id=store.state_id(),
        generation=generation,
        package=copy,
        rootfs=target.rootfs,
        argv=[
            targets.entrypoint(target, copy if os.path.isdir(copy) else target.folder),
            *manifest.binary.args,
        ],
        working_dir=manifest.binary.working_dir,
        environment=dict(manifest.environment),
        uid=uid,
        gid=gid,
        groups=list(groups),
        user_name=user_name,
        home=home,
        capabilities=list(manifest.isolation.capabilities),
        read_only=manifest.isolation.read_only,
        hostname=at_home.hostname,
        hosts_folder=at_home.hosts_folder,
        resolv_conf=resolver if at_home.netns else "",
        netns=at_home.netns,
        restart=manifest.service.restart,
        restart_delay_s=model.restart_delay(manifest),
        stop_timeout_s=model.stop_timeout(manifest),
        memory_max=model.memory_max(manifest),
        cpu_max=model.cpu_max(manifest),
        pids_limit=manifest.isolation.resources.pids_limit,
        volumes=[volume._asdict() for volume in targets.volumes(manifest)],
    )
