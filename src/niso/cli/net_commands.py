"""Run niso net: networks, ports, rules, check, repair, policy and refresh."""

from __future__ import annotations

import os
import sys
import time

from niso.api.host import Host, connect
from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import bracketed, span
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from niso.api.host_attachments import Changed
    from niso.api.host_networks import Network
    from niso.look.outside_names import OutsideName
    from niso.look.policies import PolicyEntry
    from niso.look.what_if import PolicyEffect


# --- networks, ports, rules, check, repair --------------------------------------------------------


ABOUT_PACKETS = ("ping", "explain", "stats", "log")
"""The actions about packets, which cli/traffic_commands.py runs."""
ABOUT_FLOWS = ("flows", "graph", "capture", "trace")
"""The actions about flows, which cli/traffic_commands.py runs."""
ABOUT_POLICIES = ("policy show", "policy test")


def run_net(name: str, args: Args) -> int:
    action = name.removeprefix("net ")
    if action in (*ABOUT_PACKETS, *ABOUT_FLOWS, "learn"):
        from niso.cli import traffic_commands

        if action == "learn":
            return traffic_commands.run_learn(args)
        if action in ABOUT_FLOWS:
            return traffic_commands.run_see(action, args)
        return traffic_commands.run_explain(action, args)
    if action in ABOUT_POLICIES:
        return run_policy(action, args)
    if action == "refresh":
        return run_refresh(args)
    return int(globals()[f"_{action}"](connect(), args))


def _create(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        made = host.networks.create(
            args.name,
            subnets=args.subnet,
            ipv6=args.ipv6,
            gateways=args.gateway,
            internal=args.internal,
            mtu=args.mtu,
            allow_public=args.allow_public,
            observe=not args.no_observe,
            span=args.span,
            dry_run=args.dry_run,
        )
    network = made.network
    if args.json:
        output.as_json(network)
    elif not args.dry_run:
        state = "created" if made.changed else "already exists, unchanged"
        spans = "" if network.vni is None else f"  VNI {network.vni}"
        print(f"{network.name}: {state}  {network.subnet}  {network.bridge}{spans}")
    return 0


def _names(host: Host, args: Args) -> int:
    if args.host not in (None, "on", "off"):
        raise UsageError(f"--host {args.host!r}: must be on or off", "niso net names --host on")
    on = None if args.host is None else args.host == "on"
    names = host.networks.host_names(on_host=on)
    if args.json:
        output.as_json(names)
        return 0
    having = "has these names" if names.names else "will have the names of active services"
    state = having if names.on_host else "has no names of services"
    print(f"/etc/hosts {state}{', unchanged' if on is not None and not names.changed else ''}")
    if names.names and on is not False:
        output.table(("NAME", "ADDRESS"), [tuple(row) for row in names.names])
    return 0


def _list(host: Host, args: Args) -> int:
    lines = host.networks.list()
    if args.json:
        output.as_json(lines)
    else:
        columns = ["NAME", "SUBNET", "SERVICES"]
        cells = [[line.name, line.subnet, str(line.services)] for line in lines]
        if any(line.vni is not None for line in lines):
            columns += ["ELSEWHERE", "VNI"]
            for cell, line in zip(cells, lines, strict=True):
                vni = line.vni
                cell.extend(["-", "-"] if vni is None else [str(line.elsewhere), str(vni)])
        output.table(columns, cells)
    return 0


def _inspect(host: Host, args: Args) -> int:
    network = host.networks.inspect(args.name)
    if args.json:
        output.as_json(network)
    else:
        _print_network(network)
    return 0


def _print_network(network: Network) -> None:
    print(f"Name: {network.name}")
    print(f"Subnet: {network.subnet}")
    print(f"Bridge: {network.bridge}")
    if network.internal:
        print("Internal: yes")
    if network.vni is not None:
        print(f"Spans hosts: VNI {network.vni}, MTU {network.mtu}")
    print("Services:")
    if not network.services:
        print("  none")
        return
    addresses = [", ".join(member.address) for member in network.services]
    widths = [max(len(member.service) for member in network.services), max(map(len, addresses))]
    for member, address in zip(network.services, addresses, strict=True):
        where = f"ports: {', '.join(output.ports_text(member.ports)) or 'none'}"
        where = where if member.host is None else f"on {member.host}"
        print(
            f"  {member.service.ljust(widths[0])}  {address.ljust(widths[1])}"
            f"  {where}{'' if member.active else ' (inactive)'}"
        )


def _remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.networks.remove(*args.names, dry_run=args.dry_run)
    if args.json:
        output.as_json(done)
    elif not args.dry_run:
        for network in done:
            print(f"{network.name}: removed")
    return 0


def _ports(host: Host, args: Args) -> int:
    if args.all_hosts:
        return _ports_everywhere(host, args)
    lines = host.networks.exposure() if args.exposed else host.networks.ports()
    if args.json:
        output.as_json(lines)
        return 0
    columns = ["SERVICE", "HOST", "CONTAINER", "PROTO"]
    cells = [
        [
            line.service,
            line.host,
            span(line.container, line.mapping.range),
            line.mapping.proto,
        ]
        for line in lines
    ]
    if args.exposed:
        columns.append("FROM")
        for cell, line in zip(cells, lines, strict=True):
            cell.append("; ".join(line.from_ or ()))
    output.table(columns, cells)
    return 0


def _ports_everywhere(host: Host, args: Args) -> int:
    """Print the published ports of all hosts of the cluster. Raises UsageError with --exposed."""
    if args.exposed:
        raise UsageError("is for the ports of this host", "leave out --all-hosts", "--exposed")
    with output.Progress(args) as host.progress:
        lines = host.networks.ports_everywhere()
    if args.json:
        output.as_json(lines)
    else:
        output.table(("SERVICE", "HOST", "PORT", "CONTAINER", "PROTO"), lines)
    return 0


def _attach(host: Host, args: Args) -> int:
    from niso.api.host_attachments import AttachRequest

    with Progress(args) as host.progress:
        request = AttachRequest(
            args.name,
            netns=args.netns,
            pid=args.pid,
            new=args.new,
            networks=args.network,
            ports=args.port,
            aliases=args.alias,
            allow_from=_entries(args.allow_from),
            deny_from=_entries(args.deny_from) or (),
            egress_allow=_entries(args.egress_allow),
            egress_deny=_entries(args.egress_deny) or (),
            log=args.log,
            bandwidth=_pairs(args.bandwidth or ""),
            owner=args.owner or "cli",
            id=args.id or "",
            unit=args.unit,
        )
        done = host.attachments.attach(request)
    if args.json:
        output.as_json(done)
    else:
        state = "attached" if done.changed else "unchanged"
        ports = ", ".join(output.ports_text(done.ports))
        print(f"{done.service}: {state}  {', '.join(done.address)}{f'  {ports}' if ports else ''}")
    return 0


def _pairs(text: str) -> dict[str, str]:
    """Return the pairs of a text such as ``in=100M,out=20M`` as a dict."""
    pairs = (word.partition("=") for word in text.split(",") if word)
    return {key: value for key, _, value in pairs}


def _entries(text: str | None) -> list[str] | None:
    """Split policy entries at blanks and commas; return None if ``text`` is None."""
    return None if text is None else text.replace(",", " ").split()


def _detach(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.attachments.detach(*args.names, id=args.id)
    return _print_detached(args, done)


def _gc(host: Host, args: Args) -> int:
    valid = None if args.valid is None else args.valid.split()
    with Progress(args) as host.progress:
        done = host.attachments.gc(owner=args.owner, valid=valid)
    return _print_detached(args, done)


def _apply(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.attachments.apply_policies()
    words = ("unchanged", "changed")
    return output.results(args, done, lambda one: f"{one.service}: {words[one.changed]}")


def _print_detached(args: Args, done: tuple[Changed, ...]) -> int:
    words = ("not attached", "detached")
    return output.results(args, done, lambda one: f"{one.service}: {words[one.changed]}")


def _rules(host: Host, args: Args) -> int:
    if args.json:
        output.as_json(host.networks.rules())
    else:
        print(output.escaped_lines(host.networks.rules_text()), end="")
    return 0


def _check(host: Host, args: Args) -> int:
    with output.Progress(args) as host.progress:
        findings = host.check(args.name)
    if args.json:
        output.as_json(findings)
    else:
        for finding in findings:
            print(output.escaped(finding.text))
        if not findings:
            print(f"{args.name or 'OK'}: the kernel matches the configuration")
    return 1 if findings else 0


def _repair(host: Host, args: Args) -> int:
    if args.sweep:
        return _sweep(host, args)
    with Progress(args) as host.progress:
        repaired = host.repair(dry_run=args.dry_run, kernel=args.kernel)
    if args.dry_run:
        return 0
    if args.json:
        output.as_json(repaired)
    else:
        steps = "1 step" if repaired.steps == 1 else f"{repaired.steps} steps"
        print(f"repaired: {steps}" if repaired.steps else "nothing to repair")
    return 0


def _sweep(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        swept = host.sweep(dry_run=args.dry_run)
    if args.dry_run:
        return 0
    if args.json:
        output.as_json(swept)
    else:
        count = "1 object" if swept.removed == 1 else f"{swept.removed} objects"
        print(f"swept: {count}" if swept.removed else "no objects of niso in the kernel")
    return 0


# --- niso net policy, and the preview of a dry run ------------------------------------------------


ENTRIES = ("KEY", "ENTRY", "PACKETS", "OPEN", "LAST", "NOTE")
EFFECTS = ("EFFECT", "FROM", "TO", "NEW", "OPEN", "LAST", "BY")
_PREFIX = "network.policy."


def run_policy(action: str, args: Args) -> int:
    host = connect()
    with output.Progress(args) as host.progress:
        return _show(host, args) if action == "policy show" else _test(host, args)


def _show(host: Host, args: Args) -> int:
    entries = host.policy(args.name, unused=args.unused)
    if args.json:
        output.as_json(entries)
    elif entries or args.unused:
        output.table(ENTRIES, [_entry(entry) for entry in entries])
    else:
        print(f"{args.name} has no policy")
    return 0


def _entry(entry: PolicyEntry) -> tuple[str, ...]:
    last = "never" if entry.ago is None else _ago(entry.ago)
    denied = "others would be denied" if entry.audited else "others are denied"
    verdict = "others pass" if entry.passes else denied
    shown = entry.text if entry.text is not None else f"({verdict})"
    key, open_ = entry.key.removeprefix(_PREFIX), str(entry.open or "-")
    return key, shown, str(entry.packets), open_, last, entry.note or "-"


def _test(host: Host, args: Args) -> int:
    # as the name of a service, it would mean the manifest in the store, which cuts nothing
    path = os.path.join(os.curdir, args.path)
    effects = host.policy_effects(path, since=args.since)
    if args.json:
        output.as_json(effects)
    else:
        _print(effects)
    if not effects:
        return 2
    return int(any(effect.effect == "cut" for effect in effects))


def say_what_changes(host: Host, *what: str) -> None:
    """Print the recorded flows that an activation would cut or allow.

    Prints nothing if there are none.
    """
    effects = [e for e in host.policy_effects(*what) if e.effect != "pass"]
    if effects:
        _print(effects)


def _print(effects: Sequence[PolicyEffect]) -> None:
    rows = output.merged(effects, lambda e: (e.effect, e.from_.name, _to(e), _by(e)))
    output.table(EFFECTS, [_effect(row) for row in rows])
    print(_sum(rows))


def _sum(effects: Sequence[PolicyEffect]) -> str:
    cut = sum(effect.effect == "cut" for effect in effects)
    if not effects:
        return "no flow was seen: nothing to judge by"
    flows = "1 flow that exists" if cut == 1 else f"{cut or 'no'} flows that exist"
    audited = sum(effect.effect == "audit" for effect in effects)
    later = f", {audited} when the audit ends" if audited else ""
    return f"{flows} would be cut{later}"


def _effect(effect: PolicyEffect) -> tuple[str, ...]:
    return (
        effect.effect,
        effect.from_.name,
        _to(effect),
        str(effect.new or "-"),
        str(effect.open or "-"),
        "-" if effect.ago is None else _ago(effect.ago),
        _by(effect),
    )


def _to(effect: PolicyEffect) -> str:
    return f"{bracketed(effect.to.name)}:{effect.port}/{effect.proto}"


def _by(effect: PolicyEffect) -> str:
    if effect.key:
        entry = f' "{effect.text}"' if effect.text else ""
        return f"{effect.service} {effect.key.removeprefix(_PREFIX)}{entry}"
    return effect.words if effect.effect == "cut" and effect.words else "-"


def _ago(seconds: float) -> str:
    return "now" if seconds < 1 else f"{output.duration(seconds)} ago"


# --- niso net refresh -----------------------------------------------------------------------------


_WITHOUT = 3
"""The exit status if a DNS name has no address. Errors have the exit status 1."""
COLUMNS = ("NAME", "ADDRESSES", "UNTIL", "SERVICES", "PROBLEM")


def run_refresh(args: Args) -> int:
    host = connect()
    if args.for_:
        return _loop(host, args, time.monotonic() + duration(args.for_, "--for"))
    return _refresh(host, args)


def _refresh(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        names = host.refresh_names(force=args.all)
    if args.json:
        output.as_json(names)
    elif names:
        output.table(COLUMNS, [_row(name) for name in names])
    else:
        print("no policy has an outside name")
    return _WITHOUT if any(not name.addresses for name in names if name.services) else 0


def _loop(host: Host, args: Args, end: float) -> int:
    """Resolve DNS names whenever one is due, until ``end`` or Ctrl-C; return the exit status.

    ``end`` is a time of time.monotonic().
    """
    status = 0
    try:
        while True:
            status = _refresh(host, args)
            sys.stdout.flush()
            wait = min(host.names_due(), end - time.monotonic())
            if wait <= 0:
                return status
            time.sleep(wait)
    except KeyboardInterrupt:
        return 130


def _row(name: OutsideName) -> tuple[str, ...]:
    return (
        name.name,
        ", ".join(name.addresses) or "-",
        name.until or "-",
        ", ".join(name.services) or "-",
        output.escaped(name.problem or "-"),
    )
