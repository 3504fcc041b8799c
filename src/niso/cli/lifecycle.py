"""activate, deactivate, remove, restart."""

from __future__ import annotations

import argparse

from niso import services, targets
from niso.apply import Report, silent
from niso.cli import output
from niso.errors import InvalidInput, NisoError, NotFound, UsageError
from niso.records import Port
from niso.runtime import unit
from niso.store.store import Store

EPILOG = {
    "activate": """\
examples:
  niso activate ./api                 a folder with a manifest.toml
  niso activate ./db ./cache ./api    all or none
  niso activate api                   a known service, with the manifest of its last activation
  niso activate --dry-run -v ./api    what it would do
""",
    "deactivate": """\
examples:
  niso deactivate api      its address stays reserved
  niso deactivate --all
""",
    "remove": "examples:\n  niso remove api              frees its address and deletes its logs and copies\n"
    "  niso remove --volumes api    and its named volumes\n",
    "restart": "example:\n  niso restart api\n",
}


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG[name]
    if name == "activate":
        parser.add_argument("what", nargs="+", metavar="PATH|NAME", help="a manifest, its folder, or a known service")
        parser.add_argument(
            "--timeout", default="60s", metavar="TIME", help="how long to wait until it is started (default 60s)"
        )
    else:
        parser.add_argument("names", nargs="*" if name == "deactivate" else "+", metavar="NAME", help="a service")
    if name == "remove":
        parser.add_argument("--volumes", action="store_true", help="delete its named volumes too")
    if name == "deactivate":
        parser.add_argument("--all", action="store_true", help="all active services")
    if name in ("activate", "deactivate"):
        parser.add_argument("--dry-run", action="store_true", help="print the steps and change nothing")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(name: str, args: argparse.Namespace) -> int:
    report: Report = output.note if args.verbose else silent
    if getattr(args, "dry_run", False):
        report = output.step
    if name == "activate":
        return _activate(args, report)
    if name == "deactivate" and unit.has_ended() and any(unit.path(each) is not None for each in args.names):
        return 0  # a process that ended leaves its service active
    store = Store.open(create=False)
    if name == "deactivate" and args.all:
        if args.names:
            raise UsageError("--all and names do not go together", "niso deactivate --all")
        if not args.dry_run:
            services.recover(store, report)  # which may bring services back
        names = store.active_services()
    elif not args.names:
        raise UsageError("no service is named", f"niso {name} NAME")
    else:
        names = list(dict.fromkeys(_named(store, each, getattr(args, "volumes", False)) for each in args.names))
    if name == "deactivate":
        by_systemd = any(unit.path(each) is not None for each in names)
        if by_systemd:  # which does not ask whether it may: those that it knows have gone before
            names += [row.name for row in store.services() if row.active and row.provider in names]
        outcomes = services.deactivate(store, names, report, args.dry_run, keep_forwards=by_systemd)
        if args.json and not args.dry_run:
            output.as_json([{"service": service, "changed": changed} for service, changed in outcomes])
        elif not args.dry_run:
            for service, changed in outcomes:
                print(f"{service}: {'inactive' if changed else 'is not active'}")
        return 0
    if name == "remove":
        enabled = [each for each in names if (row := store.service(each)) and row.enabled]
        services.remove(store, names, report, args.volumes)
        if enabled and unit.booted():
            from niso import boot

            boot.clear(enabled, report)
    else:
        services.restart(store, names, report)
        warn_of_limits(store, names)
        settle(store, names)
    if args.json:
        output.as_json([{"service": service, "changed": True} for service in names])
    else:
        for service in names:
            print(f"{service}: {'removed' if name == 'remove' else 'restarted'}")
    return 0


def _named(store: Store, name: str, kept: bool) -> str:
    """The service that ``name`` means; with ``kept`` one too that is not known any more and has left volumes."""
    try:
        return store.resolve(name)
    except NotFound:
        from niso.runtime import volumes

        if kept and "/" not in name and volumes.kept(name):
            return name
        raise


def _activate(args: argparse.Namespace, report: Report) -> int:
    timeout_s = timeout(args.timeout)
    store = Store.open(create=not args.dry_run)
    wanted = targets.find_targets(store, args.what)
    outcomes = services.activate(store, wanted, timeout_s, report, args.dry_run)
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


def timeout(text: str) -> float:
    """The seconds of ``--timeout``. Raises UsageError."""
    from niso.model import values

    try:
        return values.duration(text, "--timeout", low=0.2)
    except InvalidInput as error:
        raise UsageError(error.message, error.hint, error.key) from None


def warn(store: Store, outcomes: list[services.Outcome]) -> None:
    """Say what keeps a service that has changed from what it may need: no name server, another firewall."""
    from niso import exposure
    from niso.kernel import host

    changed = [outcome.service for outcome in outcomes if outcome.changed]
    warn_of_limits(store, changed)
    warning = host.resolv_conf()[1]
    if warning and changed:
        output.warn(warning)
    on = {network for service in changed for network, _ in store.addresses(service)}
    for drop in exposure.drops(network for name in sorted(on) if (network := store.network(name))):
        output.warn(drop.words(), drop.remedy)


def warn_of_limits(store: Store, names: list[str]) -> None:
    """Say which limits of services this machine cannot hold them to."""
    from niso.runtime import cgroup, oci, spec

    for name in names:
        row = store.service(name)
        limits = oci.limits(spec.parse(row.spec)) if row is not None else {}
        for controller in set(limits) - set(cgroup.usable(limits)):
            output.warn(
                f"{name}: {oci.CONTROLLERS[controller]} has no effect: this machine has no cgroup controller {controller}",
                ("see cgroups(7): niso needs it in a v1 hierarchy, or in cgroup.subtree_control of the root of v2",),
            )


def settle(store: Store, names: list[str]) -> None:
    """Tell systemd of services that were started, where it supervises them. Raises NisoError where it is systemd that asked for it."""
    asked = any(unit.path(name) is not None for name in names)
    if not asked and not (unit.booted() and any((row := store.service(name)) and row.enabled for name in names)):
        return
    from niso import boot

    try:
        boot.settle(store, names)
    except NisoError as error:
        if asked:
            raise
        output.warn(error.message, [error.hint] if error.hint else [])


def outcome_json(store: Store, outcome: services.Outcome) -> dict[str, object]:
    return {
        "service": outcome.service,
        "changed": outcome.changed,
        "address": ", ".join(outcome.addresses),
        "ports": output.ports_json(outcome.ports, store.port_families(outcome.service)),
    }


def outcome_text(outcome: services.Outcome) -> str:
    state = "active" if outcome.changed else "is active already, nothing to do"
    return f"{outcome.service}: {state}  {', '.join(outcome.addresses)}{_ports(outcome.ports)}".rstrip()


def _ports(ports: tuple[Port, ...]) -> str:
    return f"  ports: {', '.join(output.port_text(port) for port in ports)}" if ports else ""
