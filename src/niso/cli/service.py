"""activate, deactivate, remove, restart."""

from __future__ import annotations

from niso.base.errors import InvalidInput, NisoError, NotFound, UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress
from niso.commands import deactivate, restart
from niso.plan.records import Port
from niso.runtime import unit
from niso.services import journal
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.commands.activate import Outcome


def run(name: str, args: Args) -> int:
    return {
        "activate": _activate,
        "deactivate": _deactivate,
        "remove": _remove,
        "restart": _restart,
    }[name](args)


def _deactivate(args: Args) -> int:
    if args.all and args.names:
        raise UsageError("--all and names do not go together", "niso deactivate --all")
    if not args.all and not args.names:
        raise UsageError("no service is named", "niso deactivate NAME, or --all")
    if unit.has_ended() and any(unit.path(each) is not None for each in args.names):
        return 0  # a process that ended leaves its service active
    store = Store.open(create=False)
    with Progress(args) as report:
        if args.all and not args.dry_run:
            journal.recover(store, report)  # which may bring services back
        names = store.active_services() if args.all else _resolved(store, args.names)
        by_systemd = any(unit.path(each) is not None for each in names)
        if by_systemd:  # which does not ask whether it may: those that it knows have gone before
            names += [row.name for row in store.services() if row.active and row.provider in names]
        outcomes = deactivate.deactivate(
            store, names, report, args.dry_run, keep_forwards=by_systemd
        )
    if args.dry_run:
        return 0
    if args.json:
        output.as_json([{"service": service, "changed": changed} for service, changed in outcomes])
        return 0
    for service, changed in outcomes:
        print(f"{service}: {'inactive' if changed else 'is not active'}")
    if not outcomes:
        print("no service is active")
    return 0


def _remove(args: Args) -> int:
    store = Store.open(create=False)
    names = list(dict.fromkeys(_named(store, each, args.volumes) for each in args.names))
    enabled = [each for each in names if (row := store.service(each)) and row.enabled]
    with Progress(args) as report:
        deactivate.remove(store, names, report, args.volumes)
        if enabled and unit.booted():
            from niso.commands import boot

            boot.clear(enabled, report)
    _say(args, names, "removed")
    return 0


def _restart(args: Args) -> int:
    store = Store.open(create=False)
    names = _resolved(store, args.names)
    with Progress(args, with_healthcheck(store, names)) as report:
        restart.restart(store, names, report)
    warn_of_limits(store, names)
    warn_of_name_servers(names)
    settle(store, names)
    _say(args, names, "restarted")
    return 0


def _say(args: Args, names: list[str], done: str) -> None:
    if args.json:
        output.as_json([{"service": service, "changed": True} for service in names])
        return
    for service in names:
        print(f"{service}: {done}")


def _resolved(store: Store, names: list[str]) -> list[str]:
    return list(dict.fromkeys(store.resolve(each) for each in names))


def with_healthcheck(store: Store, names: list[str]) -> list[str]:
    """Those of known services that are waited for until they are healthy."""
    checked = set(store.checked_services())
    return [name for name in names if name in checked]


def _named(store: Store, name: str, kept: bool) -> str:
    """The service that ``name`` means; with ``kept`` one too that is not known any more and has left volumes."""
    try:
        return store.resolve(name)
    except NotFound:
        from niso.runtime import volumes

        if kept and "/" not in name and volumes.kept(name):
            return name
        raise


def _activate(args: Args) -> int:
    from niso.commands import activate
    from niso.services import targets

    timeout_s = timeout(args.timeout)
    store = Store.open(create=not args.dry_run)
    wanted = targets.find_targets(store, args.what)
    with Progress(args, [each.name for each in wanted if each.spec.healthcheck]) as report:
        outcomes = activate.activate(
            store, wanted, timeout_s, report, args.dry_run, meanwhile=_prepare
        )
    if args.dry_run:
        return 0
    warn(store, outcomes)
    settle(store, [outcome.service for outcome in outcomes])
    if args.json:
        output.as_json([outcome_json(store, outcome) for outcome in outcomes])
        return 0
    for outcome in outcomes:
        print(outcome_text(outcome))
    return 0


def _prepare() -> None:
    """Import what `warn` needs (3 ms), while a process is created."""
    from niso.explain import exposure  # noqa: F401


def timeout(text: str) -> float:
    """The seconds of ``--timeout``. Raises UsageError."""
    from niso.manifest import values

    try:
        return values.duration(text, "--timeout", low=0.2)
    except InvalidInput as error:
        raise UsageError.of(error) from None


def warn(store: Store, outcomes: list[Outcome]) -> None:
    """Say what keeps a service that has changed from what it may need: no name server, another firewall."""
    from niso.explain import exposure

    changed = [outcome.service for outcome in outcomes if outcome.changed]
    warn_of_rights(store, changed)
    warn_of_taken(store, [outcome.service for outcome in outcomes])
    warn_of_limits(store, changed)
    warn_of_name_servers(changed)
    on = {network for service in changed for network, _ in store.addresses(service)}
    for drop in exposure.drops(network for name in sorted(on) if (network := store.network(name))):
        output.warn(drop.words(), drop.remedy)


def warn_of_name_servers(names: list[str]) -> None:
    """Say that services, if there are any, reach no name server."""
    from niso.kernel import host_facts

    warning = host_facts.resolv_conf()[1] if names else None
    if warning:
        output.warn(warning)


def warn_of_taken(store: Store, names: list[str]) -> None:
    """Say which ports of their manifests services do not have, because they were forwarded to others in their place."""
    from niso.services import admit
    from niso.services import ports as portmap

    rows = (
        [row for name in names if (row := store.service(name)) is not None]
        if store.all_forwards()
        else []
    )
    for row in rows:
        name, ports = row.name, admit.published_by(row)
        for port, holder, held in portmap.taken(store, name, ports, ports):
            output.warn(
                f"{name}: host port {port.host_side} is forwarded to {_whose(name, holder, held)} in its place",
                (f"niso port-forward {holder} {held.text} --remove, then activate {name} again",),
            )


def _whose(name: str, holder: str, held: Port) -> str:
    return f"its port {held.container_port}" if holder == name else repr(holder)


def warn_of_rights(store: Store, names: list[str]) -> None:
    """Say which capabilities of services are rights on the whole machine."""
    from niso.runtime import oci

    for name in names:
        row = store.service(name)
        said = row.require_process() if row is not None else None
        for capability in said.capabilities if said else ():
            means = oci.THE_MACHINE | ({} if said and said.netns else oci.HOST_NETWORK)
            if capability in means:
                output.warn(
                    f"{name}: isolation.capabilities: {capability} is a right on the machine: {means[capability]}"
                )


def warn_of_limits(store: Store, names: list[str]) -> None:
    """Say which limits of services this machine cannot hold them to."""
    from niso.runtime import cgroup, oci

    for name in names:
        row = store.service(name)
        limits = oci.limits(row.require_process()) if row is not None else {}
        for controller in set(limits) - set(cgroup.usable(limits)):
            output.warn(
                f"{name}: {oci.CONTROLLERS[controller]} has no effect: this machine has no cgroup controller {controller}",
                (
                    "see cgroups(7): niso needs it in a v1 hierarchy, or in cgroup.subtree_control of the root of v2",
                ),
            )


def settle(store: Store, names: list[str]) -> None:
    """Tell systemd of services that were started, where it supervises them. Raises NisoError where it is systemd that asked for it."""
    asked = any(unit.path(name) is not None for name in names)
    if not asked and not (
        unit.booted() and any((row := store.service(name)) and row.enabled for name in names)
    ):
        return
    from niso.commands import boot

    try:
        boot.settle(store, names)
    except NisoError as error:
        if asked:
            raise
        output.warn(error.message, [error.hint] if error.hint else [])


def outcome_json(store: Store, outcome: Outcome) -> dict[str, object]:
    return {
        "service": outcome.service,
        "changed": outcome.changed,
        "address": ", ".join(outcome.addresses),
        "ports": output.ports_json(outcome.ports, store.port_families(outcome.service)),
    }


def outcome_text(outcome: Outcome) -> str:
    state = "active" if outcome.changed else "is active already, nothing to do"
    return f"{outcome.service}: {state}  {', '.join(outcome.addresses)}{_ports(outcome.ports)}".rstrip()


def _ports(ports: tuple[Port, ...]) -> str:
    return f"  ports: {', '.join(output.port_text(port) for port in ports)}" if ports else ""
