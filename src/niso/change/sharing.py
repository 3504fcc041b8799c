"""Let services (sharers) use the network namespace of another service (the provider).

The provider has the network mode bridge or none. A sharer cannot be the provider of another
service.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from niso.base import names, paths
from niso.base.errors import Conflict, InvalidInput, NotFound
from niso.change import targets
from niso.change.targets import Target
from niso.plan.specs import ServiceSpec
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

PROVIDERS = ("bridge", "none")
"""The network modes of services that own a namespace."""
_KEY = "network.share"


def home(
    store: Store, service: str, spec: ServiceSpec, provider: str | None
) -> tuple[str, str, str]:
    """Return the network namespace path, hosts folder and host name for a service's process.

    All three are "" for a service that uses the host's own network. ``provider`` is the existing
    service whose namespace the service shares, or None.
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
    """Return the service whose namespace a service will share, or None if its mode is not share.

    ``together`` are the command's services; those with other modes are already recorded. Raises
    Conflict if the namespace is not available, and InvalidInput if the manifest names its own
    service.
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
    """Return the active services that must restart because of an activation.

    A service in a shared namespace uses the host name and hosts file of the namespace's owner, so
    it restarts if these change. ``ending`` are services that the command stops; they are left out.
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


def with_followers(
    store: Store, wanted: Iterable[Target], ending: Iterable[str] = ()
) -> list[Target]:
    """Return the services to activate and those that must restart with them.

    Services that own their namespace come first.
    """
    chosen = [targets.still_so(store, target) for target in wanted]
    chosen += [targets.from_store(store, name) for name in followers(store, chosen, ending)]
    return sorted(chosen, key=lambda target: target.spec.network.mode == "share")


def check(store: Store, changed: Iterable[ServiceRow], leaving: Iterable[ServiceRow] = ()) -> None:
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
    """Return the beginning of a sentence: ``'a' shares``, or ``'a', 'b' share`` for several."""
    return f"{', '.join(map(repr, sharers))} {'shares' if len(sharers) == 1 else 'share'}"
