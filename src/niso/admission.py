"""Recording in the store what a service will be: its names, networks, leases and ports, or why that cannot be."""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

from niso import forwarding, leases, names, networks, paths, portmap, targets
from niso.errors import Conflict, InvalidInput
from niso.kernel import host
from niso.model import manifest as model
from niso.model.manifest import Manifest
from niso.records import Policy
from niso.runtime import process
from niso.runtime.spec import ProcessSpec
from niso.store.policies import Name
from niso.store.store import Scope, ServiceRow, Store
from niso.targets import Target


class Change(NamedTuple):
    """What one activation does to one service."""

    target: Target
    before: ServiceRow | None
    row: ServiceRow
    restarts: bool  # its process must be started, or ended and started

    @property
    def name(self) -> str:
        """The service's."""
        return self.row.name


def scope_of(store: Store, targets: list[Target]) -> Scope:
    """The services and all networks that they are on or will be on."""
    on: set[str] = set()
    for target in targets:
        on.update(model.networks(target.manifest))
        row = store.service(target.name)
        if row is not None:
            on.update(row.networks)
    concerned = {name for target in targets for name in _other_meanings(store, target)}
    return Scope(tuple(target.name for target in targets), tuple(sorted(on)), names=tuple(sorted(concerned)))


def _other_meanings(store: Store, target: Target) -> set[Name]:
    """The names that may stand for other addresses after an activation: none of a service that has its leases and keeps them."""
    row = store.service(target.name)
    on = model.networks(target.manifest)
    found: set[Name] = {("network", network) for network in on if store.network(network) is None}
    statics = model.static_ips(target.manifest)
    leased = store.addresses(target.name)
    names_ = model.names(target.manifest)
    kept = row is not None and row.networks == on and set(store.names(target.name)) == set(names_)
    if not kept or any((network, address) not in leased for network, address in statics.items()):
        found |= {("service", name) for name in names_}
        found |= set(store.names_with([target.name]))
    return found


def release(store: Store, target: Target) -> None:
    """Begin the change of one service: note how to undo it, and give up the host ports that its manifest has no more.

    Before any `record`, so that another service of the same command may have them.
    """
    store.begin_intent(target.name, "activate", time.time())
    wanted = model.ports(target.manifest)
    for port in store.manifest_ports(target.name):
        if port not in wanted:
            store.take_port(target.name, port)


def record(store: Store, target: Target, copy: str, together: frozenset[str]) -> Change:
    """Write one service, which is released, as it will be to the store; ``together`` are all services of the command.

    Raises Conflict and InvalidInput, which name the manifest and the key.
    """
    try:
        return _record(store, target, copy, together)
    except (Conflict, InvalidInput) as error:
        error.message = f"{target.manifest_path}: {error.message}"
        raise


def _record(store: Store, target: Target, copy: str, together: frozenset[str]) -> Change:
    manifest, name = target.manifest, target.name
    before = store.service(name)
    _check_names(store, name, manifest)
    on = model.networks(manifest)
    for network in on:
        _ensure_network(store, network, model.static_ips(manifest).get(network))
    was_active = before is not None and before.active
    generation = 1 if before is None else before.generation if was_active else before.generation + 1
    uid = before.uid if before else store.free_uid(targets.FIRST_UID)
    spec = _spec(store, target, copy, generation, uid)
    if before is not None and was_active:
        spec = spec._replace(resolv_conf=json.loads(before.spec)["resolv_conf"])
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
    )
    ports_before = [port for _, port in store.ports(name)] if was_active else []
    store.put_service(row)
    store.set_names(name, model.names(manifest))
    store.set_endpoints(name, on)
    forwarding.record(store, on)
    policy = model.policy(manifest)
    says_nothing = policy._replace(log=False) == Policy()
    store.set_policy(name, None if says_nothing else policy)
    for network in on:
        leases.lease(store, name, network, model.static_ips(manifest).get(network))
    wanted = model.ports(manifest)
    ports, chosen = portmap.admit(store, name, list(wanted), ports_before, list(wanted.values()), together)
    store.set_ports(name, ports, chosen)
    runs = was_active and process.runs(name)
    return Change(target, before, row, not (runs and before is not None and before.spec == row.spec))


def _check_names(store: Store, service: str, manifest: Manifest) -> None:
    for name in model.names(manifest):
        holder = store.name_holder(name)
        if holder is not None and holder != service:
            key = "network.hostname" if name == manifest.network.hostname else "network.aliases"
            if name == service:
                key = "package.name"
            raise Conflict(
                f"{key}: the name {name!r} is held by service {holder!r}",
                f"choose another name, or niso remove {holder}",
                key,
            )


def _ensure_network(store: Store, name: str, static: str | None) -> None:
    if store.network(name) is None:
        network = networks.plan_network(store, name, holds=static)
        store.add_network(network, implicit=True, now=time.time())


def _spec(store: Store, target: Target, copy: str, generation: int, uid: int) -> ProcessSpec:
    manifest = target.manifest
    uid, gid, groups, user_name, home = targets.user(target, uid)
    resolver, _ = host.resolv_conf()
    return ProcessSpec(
        service=target.name,
        state_id=store.state_id(),
        generation=generation,
        package=copy,
        rootfs=target.rootfs,
        argv=[targets.entrypoint(target, copy if os.path.isdir(copy) else target.folder), *manifest.binary.args],
        working_dir=manifest.binary.working_dir,
        environment=dict(manifest.environment),
        uid=uid,
        gid=gid,
        groups=list(groups),
        user_name=user_name,
        home=home,
        capabilities=list(manifest.isolation.capabilities),
        read_only=manifest.isolation.read_only,
        hostname=model.hostname(manifest),
        hosts_folder=os.path.join(paths.hosts_root(), names.hosts_folder(model.networks(manifest))),
        resolv_conf=resolver,
        netns=paths.netns_path(target.name),
        restart=manifest.service.restart,
        restart_delay_s=model.restart_delay(manifest),
        stop_timeout_s=model.stop_timeout(manifest),
    )
