"""Compute the scope of a change: which services, networks and names the change affects.

Before each change of rows, and again after the change, a command computes the scope from the
present rows. The change reads and writes the kernel objects in the union of both scopes
(`Scope.joined`). Without the first scope, objects that are no longer needed would stay.

This module also implements shared network namespaces. A service (the sharer) can use the network
namespace of another service (the provider). The provider has the network mode bridge or none. A
sharer cannot be the provider of another service.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from niso.base import names, paths
from niso.base.errors import Conflict, InvalidInput, NotFound
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy
from niso.plan.specs import ServiceSpec
from niso.reconcile.change import change
from niso.store.policy_rows import Name
from niso.store.service_rows import ServiceRow
from niso.store.snapshots import Scope
from niso.store.sqlite import Transaction
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import targets
    from niso.runtime.machine import Machine
    from niso.runtime.package import PackageFiles
    from niso.store.attached_rows import AttachedLink, AttachedRow
    from niso.store.service_rows import Instance
else:
    targets = lazy("niso.change.targets")  # an attach needs none of its functions


class Target(NamedTuple):
    """A service to activate, as a command read it before it took a lock."""

    spec: ServiceSpec
    manifest_path: str
    files: PackageFiles | None  # None if niso runs no process for it
    attaching: tuple[AttachedRow, tuple[AttachedLink, ...]] | None = None  # None for a service
    replace: bool = False  # whether to replace a service of this name from another folder
    take: bool = False  # whether to take the name over from a dead host of the cluster
    instance: Instance | None = None  # the instance's record; None if it is no instance
    pinned: bool = False  # whether the target is a former version, or scaled by the user
    prefers: Mapping[str, tuple[str, ...]] = {}  # network -> addresses to get if they are free
    again: int = 0  # instances of lower versions are replaced, even if nothing has changed
    placed: bool = False  # whether its named volumes were put in place for this activation

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def missing_volumes(self) -> list[tuple[str, str]]:
        """Return (service, volume) for each named volume to create, which an undo deletes."""
        mounted = self.files.volumes if self.files is not None else ()
        missing = [
            one.name
            for one in mounted
            if one.named and (self.placed or not os.path.lexists(one.source or ""))
        ]
        return [(self.spec.front or self.name, name) for name in missing]


def concerned(
    store: Store, services: Iterable[str], networks: Iterable[str] = (), names: Iterable[Name] = ()
) -> Scope:
    """Return the scope of a change of services, according to the present rows.

    The scope also contains the services that share a namespace with ``services``, other services
    whose lines in hosts files may change (`PolicyRows.shadows`), and the networks of all these
    services. A network that a service has left is included while its bridge is configured for the
    service's ports. For an instance, its service is included: after a killed command, the service's
    load balancing may differ from the rows. ``networks`` are networks that the services will join.
    ``names`` are names in policies that will resolve differently. Services of other hosts with such
    names are included.
    """
    names = list(names)
    everyone = store.with_companions(store.with_fronts(services))
    if others := store.shadows(everyone, networks):
        everyone = store.with_companions({*everyone, *others})
    on = {*networks, *store.published_on(everyone)}
    for name in everyone:
        if (row := store.service(name)) is not None:
            on.update(row.networks)
    remotes = _shadowed(store, everyone, names) if store.cluster_id() else ()
    return Scope(everyone, tuple(sorted(on)), names=tuple(sorted(set(names))), remotes=remotes)


def _shadowed(store: Store, services: Iterable[str], names: Iterable[Name]) -> tuple[str, ...]:
    called = {name for service in services for name in store.names(service)}
    called |= {name for kind, name in names if kind == "service"}
    return tuple(sorted({other for name in called for other in store.holders_elsewhere(name)}))


def with_remotes(store: Store, scope: Scope) -> Scope:
    """Return a scope extended by the other hosts' services on implicit networks of the scope.

    A change may delete implicit networks, and then also deletes the rows of these services.
    """
    if not store.cluster_id():
        return scope
    from niso.change import span_networks

    return span_networks.going(store, scope)


def leaving(machine: Machine, networks: Collection[str]) -> change | Transaction:
    """Return a context manager whose exit removes unused implicit networks from the kernel.

    Implicit networks are networks that niso has created for a service. ``networks`` are the
    networks that services have left. If there are none, the context manager is only a transaction
    of the store. The caller must have niso's lock, and must delete the networks' rows in the
    ``with`` block.
    """
    store = machine.store
    if not networks:
        return store.transaction()
    return change(machine.kernel, store, scope_left(store, networks), machine.report, teardown=True)


def scope_left(store: Store, networks: Collection[str]) -> Scope:
    """Return the scope of a change that may delete networks, including other hosts' services."""
    on = tuple(sorted(networks))
    return with_remotes(store, Scope((), on, names=tuple(("network", name) for name in on)))


def all_names(store: Store, scope: Scope) -> set[Name]:
    """Return the names of a scope's services and networks, as policies can use them."""
    return {
        *store.names_with(scope.services or ()),
        *(("network", network) for network in scope.networks or ()),
    }


def scope_of(store: Store, targets: list[Target]) -> Scope:
    """Return the scope of an activation, which covers the rows before and after the activation."""
    touched: set[str] = set()
    with store.reading():
        for target in targets:
            provider = named_provider(store, target)
            touched.update((target.name, provider) if provider else (target.name,))
        on = {network for target in targets for network in target.spec.network.networks}
        fresh = {name for target in targets for name in target.spec.names}
        touched |= store.shadows(touched, on, fresh)
        names = {name for target in targets for name in _other_meanings(store, target)}
        return concerned(store, touched, on, names)


def _other_meanings(store: Store, target: Target) -> set[Name]:
    """Return the names that may resolve to other addresses after a service's activation.

    If the service keeps its addresses, names and networks, no name changes. The exception is a
    sharer, whose names resolve only while it is active. Names that share an address with a changed
    name are included.
    """
    row, wanted = store.service(target.name), target.spec.network
    on = wanted.networks
    changed: set[Name] = {("network", network) for network in on if store.network(network) is None}
    statics = [(network, address) for network in on for address in wanted.statics(network)]
    leased, names_ = store.addresses(target.name), target.spec.names
    shared = named_provider(store, target)
    also = (shared, target.spec.front)  # the name of a service means all of its instances
    kept = row is not None and row.networks == on and set(store.names(target.name)) == set(names_)
    kept = kept and shared is None and row is not None and row.provider is None
    kept = kept and row is not None and (row.mode == "front") == target.spec.is_front
    if not kept or any(static not in leased for static in statics):
        changed |= {("service", name) for name in names_}
        changed |= set(store.names_with(store.with_companions([target.name, *filter(None, also)])))
    return changed


def named_provider(store: Store, target: Target) -> str | None:
    """Return the existing service that a manifest names as its provider.

    Returns None if the manifest names no provider, or if the name is ambiguous or unknown.
    """
    try:
        return store.name_holder(target.spec.network.share) if target.spec.network.share else None
    except Conflict:
        return None


# --- services that share a namespace --------------------------------------------------------------


PROVIDERS = ("bridge", "none")
"""The network modes of services that own a namespace."""
_KEY = "network.share"


def home(
    store: Store, service: str, spec: ServiceSpec, provider: str | None
) -> tuple[str, str, str]:
    """Return the network namespace path, hosts folder and host name for a service's process.

    All three are "" for a service that uses the host's own network. ``provider`` is the service's
    provider, or None.
    """
    if provider is not None:
        return home(store, provider, store.require_known(provider).require_service(), None)
    network = spec.network
    if network.mode == "host":
        return "", "", ""
    own = not network.networks or network.extra_hosts or network.policy.outside_names()
    folder = names.own_hosts_folder(service) if own else names.hosts_folder(network.networks)
    netns = paths.netns_path(service)
    return netns, os.path.join(paths.hosts_root(), folder), network.hostname


def provider_of(store: Store, target: Target, together: frozenset[str]) -> str | None:
    """Return the provider that a service will have, or None if its mode is not share.

    ``together`` are the command's services. Those with their own namespaces must already be
    recorded. Raises Conflict if the provider cannot be used, and InvalidInput if the manifest names
    its own service.
    """
    share = target.spec.network.share
    if share is None:
        return None
    try:
        provider = store.resolve(share)
    except NotFound:
        hint = f"activate it first, or both in one command: niso activate PATH {target.name}"
        raise Conflict(f"no service {share!r} is known", hint, _KEY) from None
    if provider == target.name:
        reason = f"{share!r} is a name of the service itself"
        raise InvalidInput(reason, "name another service", _KEY)
    row = store.require_known(provider)
    refused = {
        "host": (
            f"service {provider!r} has mode host and no network namespace of its own",
            'mode = "host" gives this service the same network',
        ),
        "share": (
            f"service {provider!r} has no network namespace of its own, "
            f"it shares that of {row.provider!r}",
            f'share = "{row.provider}"',
        ),
        "front": (
            f"service {provider!r} has instances, each with a network namespace of its own",
            "share the namespace of a service that has no instances",
        ),
        "attached": (
            f"{provider!r} is an attachment, whose network namespace may end at any time",
            "name a service with a manifest",
        ),
    }.get(row.mode)
    if refused is None and not row.active:
        hint = f"niso activate {provider}, or both in one command: niso activate {provider}"
        refused = f"service {provider!r} is not active", f"{hint} {target.name}"
    elif refused is None and provider not in together and store.intent(provider) is not None:
        reason = f"service {provider!r} is being changed by another command"
        refused = reason, "try again when that command has finished"
    if refused is not None:
        raise Conflict(*refused, _KEY)
    return provider


def followers(store: Store, wanted: Iterable[Target], ending: Iterable[str]) -> list[str]:
    """Return the names of active services that must restart because of an activation.

    A sharer uses its provider's host name and hosts file, so it must restart if these change.
    Services that the command stops (``ending``) are left out.
    """
    chosen = list(wanted)
    excluded = {*ending, *(target.name for target in chosen)}
    restarting = []
    for target in chosen:
        if target.spec.network.mode in PROVIDERS:
            there = home(store, target.name, target.spec, None)
            for sharer in store.sharers(target.name):
                row = store.service(sharer)
                if sharer not in excluded and row is not None and not _sees(row, there):
                    restarting.append(sharer)
    return restarting


def with_followers(store: Store, wanted: Iterable[Target], ending: Iterable[str]) -> list[Target]:
    """Return targets for the services to activate and for those that must restart with them.

    Services with their own namespaces come first.
    """
    with store.reading():
        chosen = [targets.still_so(store, target) for target in wanted]
    chosen += [targets.from_store(store, name) for name in followers(store, chosen, ending)]
    return sorted(chosen, key=lambda target: target.spec.network.mode == "share")


def check(store: Store, changed: Iterable[ServiceRow], leaving: Iterable[ServiceRow]) -> None:
    """Raise Conflict if changed or stopped services leave others without a network namespace.

    ``leaving`` are the rows of the services that are stopped.
    """
    rows, ended = list(changed), list(leaving)
    together = frozenset(row.name for row in (*rows, *ended))
    for row in ended:
        if sharers := store.held_sharers(row.name, together):
            raise in_use(row.name, sharers)
    for row in rows:
        sharers = store.held_sharers(row.name, together)
        if sharers and row.mode not in PROVIDERS:
            raise Conflict(
                f"{row.mode!r} is not possible because {they_share(sharers)} its network namespace",
                "activate in the same command, with a mode other than share: " + ", ".join(sharers),
                "network.mode",
                file=row.manifest_path,
            )
        for sharer in sharers:
            other = store.service(sharer)
            there = home(store, row.name, row.require_service(), None)
            if (
                other is not None
                and sharer not in together
                and other.provider == row.name
                and not _sees(other, there)
            ):
                raise Conflict(
                    f"service {sharer!r} has just begun to share "
                    f"the network namespace of {row.name!r}",
                    "try again",
                )


def _sees(row: ServiceRow, there: tuple[str, str, str]) -> bool:
    spec = row.process
    return spec is not None and (spec.netns, spec.hosts_folder, spec.hostname) == there


def in_use(service: str, sharers: list[str]) -> Conflict:
    """Return the error for stopping a service whose namespace other services use."""
    return Conflict(
        f"service {service!r} is in use: {they_share(sharers)} its network namespace",
        f"it can end after these, or in the same command: {', '.join(sharers)}",
    )


def they_share(sharers: list[str]) -> str:
    """Format subject and verb of a sentence: ``'a' shares``, or for several ``'a', 'b' share``."""
    return f"{', '.join(map(repr, sharers))} {'shares' if len(sharers) == 1 else 'share'}"


def report_to_cluster(machine: Machine, services: Iterable[str], final: bool = True) -> None:
    """Report the state of services to the cluster, if this host is in a cluster."""
    if machine.store.cluster_id():
        from niso.change import cluster_claims

        cluster_claims.report_changes(machine, services, final)
