"""niso net: networks, published ports, rules, check and repair."""

from __future__ import annotations

import argparse

from niso.cli import output
from niso.errors import InvalidInput, UsageError
from niso.records import Network
from niso.store.store import Store

SEEN = ("ping", "explain", "stats", "log")
"""The actions that are in a module of their own: cli/policy.py."""

ACTIONS = {
    "create": "make a network and its bridge",
    "list": "all networks",
    "inspect": "one network and its services",
    "remove": "remove networks that no known service is on",
    "ports": "all published ports",
    "rules": "niso's nftables rules",
    "ping": "whether one service reaches another, and if not why",
    "explain": "whether a packet passes, and which line or default decides",
    "stats": "traffic and drops by service and direction",
    "log": "drops of policies as they happen",
    "check": "compare what should be with what the kernel has",
    "repair": "put right what check finds",
}

EPILOG = {
    "create": """\
examples:
  niso net create backend                           the next free /24 of the pool
  niso net create backend --subnet 10.99.1.0/24
  niso net create dmz --subnet 10.50.0.0/22 --gateway 10.50.3.254 --mtu 1400
  niso net create dual --ipv6                       both families; --subnet fd00:1::/64 names the IPv6 prefix
  niso net create db --internal
""",
    "ports": """\
examples:
  niso net ports
  niso net ports --exposed      from where each can be reached
""",
    "check": "examples:\n  niso net check\n  niso net check api        one service or network\nexit status: 0 all well, 1 not\n",
    "repair": """\
examples:
  niso net repair
  niso net repair --sweep    remove all that is niso's from the kernel, processes included
""",
}


def configure(_: str, parser: argparse.ArgumentParser) -> None:
    parser.usage = "niso net ACTION [...]"
    parser.epilog = "actions:\n" + "".join(f"  {name:<10} {words}\n" for name, words in ACTIONS.items())
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(_: str, args: argparse.Namespace) -> int:
    from niso.cli.main import new_parser, unknown

    if not args.rest:
        raise UsageError("niso net needs an action", f"one of {', '.join(ACTIONS)}")
    action = args.rest[0]
    if action not in ACTIONS:
        raise unknown("action", f"net {action}", [f"net {name}" for name in ACTIONS], "niso net --help lists them")
    parser = new_parser(f"niso net {action}", ACTIONS[action], EPILOG.get(action))
    if action in SEEN:
        from niso.cli import policy

        policy.configure(action, parser)
        return policy.run(action, parser.parse_args(args.rest[1:]))
    _configure(action, parser)
    parsed = parser.parse_args(args.rest[1:])
    return int(globals()[f"_{action}"](parsed))


def _configure(action: str, parser: argparse.ArgumentParser) -> None:
    if action == "remove":
        parser.add_argument("names", nargs="+", metavar="NAME", help="a network")
    elif action in ("create", "inspect"):
        parser.add_argument("name", metavar="NAME", help="a network")
    elif action == "check":
        parser.add_argument("name", nargs="?", metavar="NAME", help="one service or network only")
    if action == "create":
        parser.add_argument(
            "--subnet", action="append", default=[], metavar="CIDR", help="default: the next free /24 of the pool"
        )
        parser.add_argument("--ipv6", action="store_true", help="add an IPv6 subnet: a unique local /64")
        parser.add_argument(
            "--gateway",
            action="append",
            default=[],
            metavar="IP",
            help="the bridge's address (default: the subnet's first)",
        )
        parser.add_argument(
            "--internal", action="store_true", help="nothing is forwarded out; the host and published ports work"
        )
        parser.add_argument("--mtu", type=int, metavar="N", help="default: that of the default route's link")
    if action == "ports":
        parser.add_argument("--exposed", action="store_true", help="say from where each can be reached")
    if action == "repair":
        parser.add_argument("--sweep", action="store_true", help="remove all of niso's objects instead")
    if action in ("create", "remove", "repair"):
        parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
        parser.add_argument("--dry-run", action="store_true", help="print the steps and change nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _report(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    from niso.apply import silent

    return output.step if args.dry_run else output.note if args.verbose else silent


def _create(args: argparse.Namespace) -> int:
    from niso import networks
    from niso.model.values import network_name

    try:
        name = network_name(args.name, "NAME")
    except InvalidInput as error:
        raise UsageError(error.message, error.hint, error.key) from None
    store = Store.open(create=not args.dry_run)
    report = _report(args)
    if not args.dry_run and store.intents():
        from niso import services

        services.recover(store, report)
    wish = networks.Wish(name, tuple(args.subnet), args.ipv6, tuple(args.gateway), args.internal, args.mtu)
    made = networks.create(store, wish, report, args.dry_run)
    network = made or store.require_network(name)
    if args.json:
        output.as_json(_network_json(store, network))
    elif not args.dry_run:
        print(f"{name}: {'created' if made else 'is there already'}  {_subnets(network)}  {network.bridge}")
    return 0


def _list(args: argparse.Namespace) -> int:
    store = Store.open(create=False)
    counts = store.member_counts()
    rows = [(network.name, _subnets(network), counts.get(network.name, 0)) for network in store.networks()]
    if args.json:
        output.as_json([{"name": name, "subnet": subnet, "services": count} for name, subnet, count in rows])
    else:
        output.table(("NAME", "SUBNET", "SERVICES"), [(name, subnet, str(count)) for name, subnet, count in rows])
    return 0


def _inspect(args: argparse.Namespace) -> int:
    store = Store.open(create=False)
    network = store.require_network(args.name)
    described = _network_json(store, network)
    if args.json:
        output.as_json(described)
        return 0
    print(f"Name: {network.name}")
    print(f"Subnet: {_subnets(network)}")
    print(f"Bridge: {network.bridge}")
    if network.internal:
        print("Internal: yes")
    print("Services:")
    lines = []
    for service, active in _members(store, network):
        address = ", ".join(a for n, a in store.addresses(service) if n == network.name)
        ports = ", ".join(output.port_text(port) for _, port in store.ports(service)) or "none"
        lines.append((service, address, f"ports: {ports}{'' if active else ' (inactive)'}"))
    if not lines:
        print("  none")
        return 0
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    for service, address, ports in lines:
        print(f"  {service.ljust(widths[0])}  {address.ljust(widths[1])}  {ports}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    from niso import networks, services

    store = Store.open(create=False)
    report = _report(args)
    if not args.dry_run:
        services.recover(store, report)
    names = list(dict.fromkeys(args.names))
    networks.remove(store, names, report, args.dry_run)
    if args.json:
        output.as_json([{"name": name, "changed": not args.dry_run} for name in names])
    elif not args.dry_run:
        for name in names:
            print(f"{name}: removed")
    return 0


def _ports(args: argparse.Namespace) -> int:
    store = Store.open(create=False)
    families: dict[str, tuple[int, ...]] = {}
    rows = []
    for service, port in store.active_ports():
        if service not in families:
            families[service] = store.port_families(service)
        rows += [(service, port, host) for host in output.host_addresses(port, families[service])]
    ways: list[list[str]] = [[] for _ in rows]
    if args.exposed:
        from niso import exposure

        on = {service: store.require_network(store.addresses(service)[0][0]) for service in families}
        ways = exposure.ways_in((port._replace(host_ip=host), on[service]) for service, port, host in rows)
        policies = {service: store.policy(store.home(service)) for service in families}
        ways = [exposure.narrowed(each, policies[service]) for each, (service, _, _) in zip(ways, rows, strict=True)]
    cells = [
        (
            service,
            f"{output.bracketed(host)}:{output.span(port.host_port, port.count)}",
            output.span(port.container_port, port.count),
            port.proto,
        )
        for service, port, host in rows
    ]
    if args.json:
        output.as_json(
            [
                {
                    "service": service,
                    "host": shown,
                    "container": port.container_port,
                    **output.port_json(port, host),
                    **({"from": reached} if args.exposed else {}),
                }
                for (service, port, host), (_, shown, *_), reached in zip(rows, cells, ways, strict=True)
            ]
        )
        return 0
    columns: tuple[str, ...] = ("SERVICE", "HOST", "CONTAINER", "PROTO")
    if args.exposed:
        columns = (*columns, "FROM")
        output.table(columns, [(*cell, "; ".join(reached)) for cell, reached in zip(cells, ways, strict=True)])
    else:
        output.table(columns, cells)
    return 0


def _rules(args: argparse.Namespace) -> int:
    from niso.kernel.nftables import Nft
    from niso.render import nft

    objects: list[object] = []
    with Nft() as kernel:
        for table in nft.CONTAINERS:
            if kernel.elements(table, "owner") is None:
                continue
            if args.json:
                objects += kernel.query(f"list table {table}")
            else:
                print(output.escaped_lines(kernel.text(f"list table {table}")), end="")
    if args.json:
        output.as_json({"nftables": objects})
    return 0


def _check(args: argparse.Namespace) -> int:
    from niso import check, firewalls

    store = Store.open(create=False)
    found = check.check(store, args.name)
    for line in firewalls.unseen((4, 6)):
        output.warn(line)
    if args.json:
        output.as_json([{"problem": each.problem, "what": each.what, "detail": each.detail} for each in found])
    else:
        for each in found:
            print(output.escaped(each.text()))
        if not found:
            print(f"{args.name or 'everything'}: as it should be")
    return 1 if found else 0


def _repair(args: argparse.Namespace) -> int:
    from niso import check
    from niso.cli import lifecycle

    report = _report(args)
    if args.sweep:
        return _sweep(args)
    store = Store.open(create=False)
    if args.dry_run:
        check.plan_mend(store, report)
        return 0
    done = check.mend(store, report)
    if done:
        lifecycle.settle(store, store.active_services())
    if args.json:
        output.as_json({"steps": done})
    else:
        print(f"repaired: {done} steps" if done else "nothing to repair")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from niso import check
    from niso.errors import NisoError

    gone = check.sweep(_report(args), args.dry_run)
    if args.dry_run:
        return 0
    try:
        check.forget_active(Store.open(create=False))
    except NisoError as error:  # the very case that a sweep is for
        output.warn(error.message)
    if args.json:
        output.as_json({"removed": gone})
    else:
        print(f"swept: {gone} things" if gone else "nothing of niso's is in the kernel")
    return 0


def _members(store: Store, network: Network) -> list[tuple[str, bool]]:
    """(service, active) of who is on a network, each followed by the active services that share its namespace."""
    return [
        each
        for service, active in store.members(network.name)
        for each in ((service, active), *((sharer, True) for sharer in store.sharers(service)))
    ]


def _subnets(network: Network) -> str:
    return ", ".join(subnet.cidr for subnet in network.subnets)


def _network_json(store: Store, network: Network) -> dict[str, object]:
    return {
        "name": network.name,
        "subnet": _subnets(network),
        "subnets": [{"cidr": subnet.cidr, "gateway": subnet.gateway} for subnet in network.subnets],
        "bridge": network.bridge,
        "internal": network.internal,
        "mtu": network.mtu,
        "services": [
            {
                "service": service,
                "active": active,
                "address": ", ".join(a for n, a in store.addresses(service) if n == network.name),
                "ports": output.ports_json((port for _, port in store.ports(service)), store.port_families(service)),
            }
            for service, active in _members(store, network)
        ],
    }
