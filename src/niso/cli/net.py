"""niso net: networks, published ports, rules, check and repair."""

from __future__ import annotations

from niso.base.errors import InvalidInput, UsageError
from niso.cli import output
from niso.cli.parse import Args
from niso.plan.records import Network
from niso.store.store import Store

SEEN = ("ping", "explain", "stats", "log")
"""The actions that are in a module of their own: cli/explain.py."""
_DEFAULT_NETWORK = "niso-default"  # that of niso.base.names, which is another module to load


def run(name: str, args: Args) -> int:
    action = name.removeprefix("net ")
    if action in SEEN:
        from niso.cli import explain

        return explain.run(action, args)
    return int(globals()[f"_{action}"](args))


def _create(args: Args) -> int:
    from niso.cli.progress import Progress
    from niso.commands.network import create
    from niso.manifest.values import network_name
    from niso.services.networks import Wish

    try:
        name = network_name(args.name, "NAME")
    except InvalidInput as error:
        raise UsageError.of(error) from None
    store = Store.open(create=not args.dry_run)
    wish = Wish(name, tuple(args.subnet), args.ipv6, tuple(args.gateway), args.internal, args.mtu)
    with Progress(args) as report:
        if not args.dry_run and store.intents():
            from niso.services import journal

            journal.recover(store, report)
        made = create(store, wish, report, args.dry_run)
    network = made or store.require_network(name)
    if args.json:
        output.as_json(_network_json(store, network))
    elif not args.dry_run:
        print(
            f"{name}: {'created' if made else 'is there already'}  {_subnets(network)}  {network.bridge}"
        )
    return 0


def _list(args: Args) -> int:
    store = Store.open(create=False)
    counts = store.member_counts()
    rows = [
        (network.name, _subnets(network), counts.get(network.name, 0))
        for network in store.networks()
    ]
    rows.sort(key=lambda row: (row[0] != _DEFAULT_NETWORK, row[0]))
    if args.json:
        output.as_json(
            [{"name": name, "subnet": subnet, "services": count} for name, subnet, count in rows]
        )
    else:
        output.table(
            ("NAME", "SUBNET", "SERVICES"),
            [(name, subnet, str(count)) for name, subnet, count in rows],
        )
    return 0


def _inspect(args: Args) -> int:
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


def _remove(args: Args) -> int:
    from niso.cli.progress import Progress
    from niso.commands.network import remove
    from niso.services import journal

    store = Store.open(create=False)
    names = list(dict.fromkeys(args.names))
    with Progress(args) as report:
        if not args.dry_run:
            journal.recover(store, report)
        remove(store, names, report, args.dry_run)
    if args.json:
        output.as_json([{"name": name, "changed": not args.dry_run} for name in names])
    elif not args.dry_run:
        for name in names:
            print(f"{name}: removed")
    return 0


def _ports(args: Args) -> int:
    store = Store.open(create=False)
    families: dict[str, tuple[int, ...]] = {}
    rows = []
    for service, port in store.active_ports():
        if service not in families:
            families[service] = store.port_families(service)
        rows += [(service, port, host) for host in output.host_addresses(port, families[service])]
    ways: list[list[str]] = [[] for _ in rows]
    if args.exposed:
        from niso.explain import exposure

        internal = [network.name for network in store.networks() if network.internal]
        on = {service: [network for network, _ in store.addresses(service)] for service in families}
        first = {service: store.require_network(on[service][0]) for service in families}
        # what comes by an internal network stays on it: it reaches who is on it too
        closed = {
            service: [each for each in internal if each not in on[service]] for service in families
        }
        ways = exposure.ways_in(
            (port._replace(host_ip=host), first[service], closed[service])
            for service, port, host in rows
        )
        policies = {service: store.policy(store.home(service)) for service in families}
        ways = [
            exposure.narrowed(each, policies[service])
            for each, (service, _, _) in zip(ways, rows, strict=True)
        ]
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
                for (service, port, host), (_, shown, *_), reached in zip(
                    rows, cells, ways, strict=True
                )
            ]
        )
        return 0
    columns: tuple[str, ...] = ("SERVICE", "HOST", "CONTAINER", "PROTO")
    if args.exposed:
        columns = (*columns, "FROM")
        output.table(
            columns,
            [(*cell, "; ".join(reached)) for cell, reached in zip(cells, ways, strict=True)],
        )
    else:
        output.table(columns, cells)
    return 0


def _rules(args: Args) -> int:
    from niso.kernel import nft_tables
    from niso.kernel.libnftables import Nft

    objects: list[object] = []
    with Nft() as kernel:
        for table in nft_tables.CONTAINERS:
            if kernel.elements(table, "owner") is None:
                continue
            if args.json:
                objects += kernel.query(f"list table {table}")
            else:
                print(output.escaped_lines(kernel.text(f"list table {table}")), end="")
    if args.json:
        output.as_json({"nftables": objects})
    return 0


def _check(args: Args) -> int:
    from niso.commands import check
    from niso.explain import foreign_firewalls

    store = Store.open(create=False)
    found = check.check(store, args.name)
    for line in foreign_firewalls.unseen((4, 6)):
        output.warn(line)
    if args.json:
        output.as_json(
            [{"problem": each.problem, "what": each.what, "detail": each.detail} for each in found]
        )
    else:
        for each in found:
            print(output.escaped(each.text()))
        if not found:
            print(f"{args.name or 'everything'}: as it should be")
    return 1 if found else 0


def _repair(args: Args) -> int:
    from niso.cli import service as lifecycle
    from niso.cli.progress import Progress
    from niso.commands import repair

    if args.sweep:
        return _sweep(args)
    store = Store.open(create=False)
    with Progress(args) as report:
        if args.dry_run:
            repair.plan_mend(store, report)
            return 0
        done = repair.mend(store, report)
    if done:
        lifecycle.settle(store, store.active_services())
    if args.json:
        output.as_json({"steps": done})
    else:
        print(f"repaired: {done} steps" if done else "nothing to repair")
    return 0


def _sweep(args: Args) -> int:
    from niso.cli.progress import Progress
    from niso.commands import sweep

    with Progress(args) as report:
        gone, untold = sweep.sweep(report, args.dry_run)
    if args.dry_run:
        return 0
    if untold is not None:
        output.warn(untold.message)
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
                "ports": output.ports_json(
                    (port for _, port in store.ports(service)), store.port_families(service)
                ),
            }
            for service, active in _members(store, network)
        ],
    }
