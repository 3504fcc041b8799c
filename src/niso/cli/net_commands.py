"""Run niso net: networks, ports, rules, check, repair, policy and refresh."""

from __future__ import annotations

import os
import sys
import time

from niso.api.host import Host, connect
from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import span
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import niso


# --- networks, ports, rules, check, repair --------------------------------------------------------


def run_net(name: str, args: Args) -> int:
    action = name.removeprefix("net ").replace(" ", "_")
    run = globals().get(f"_{action}")
    if run is None:
        from niso.cli import traffic_commands

        return traffic_commands.run_net(action, args)
    return int(run(connect(), args))


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
            multicast=args.multicast,
            dry_run=args.dry_run,
        )
    state = "created" if made.changed else "already exists, unchanged"

    def show(network: niso.Network) -> None:
        if not args.dry_run:
            spans = "" if network.vni is None else f"  VNI {network.vni}"
            print(f"{network.name}: {state}  {network.subnet}  {network.bridge}{spans}")

    return output.result(args, made.network, show)


def _names(host: Host, args: Args) -> int:
    if args.state not in (None, "on", "off"):
        raise UsageError(f"{args.state!r}: must be on or off", "niso net names on")
    on = None if args.state is None else args.state == "on"
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
    columns, cells = ["NAME", "SUBNET", "SERVICES"], [[*map(str, line[:3])] for line in lines]
    if any(line.vni is not None for line in lines):
        columns += ["ELSEWHERE", "VNI"]
        for cell, line in zip(cells, lines, strict=True):
            cell.extend(("-", "-") if line.vni is None else map(str, (line.elsewhere, line.vni)))
    return output.result(args, lines, lambda _: output.table(columns, cells))


def _inspect(host: Host, args: Args) -> int:
    return output.result(args, host.networks.inspect(args.name), _print_network)


def _print_network(network: niso.Network) -> None:
    print(f"Name: {network.name}")
    print(f"Subnet: {network.subnet}")
    print(f"Bridge: {network.bridge}")
    if network.internal:
        print("Internal: yes")
    if network.multicast:
        print("Multicast: yes")
    if network.vni is not None:
        print(f"Spans hosts: VNI {network.vni}, MTU {network.mtu}")
    print("Services:")
    if not network.services:
        print("  none")
        return
    addresses = [", ".join(member.address) for member in network.services]
    widths = [max(len(member.service) for member in network.services), max(map(len, addresses))]
    for member, address in zip(network.services, addresses, strict=True):
        where = f"ports: {output.ports_text(member.ports) or 'none'}"
        where = where if member.host is None else f"on {member.host}"
        print(
            f"  {member.service.ljust(widths[0])}  {address.ljust(widths[1])}"
            f"  {where}{'' if member.active else ' (inactive)'}"
        )


def _remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.networks.remove(*args.names, dry_run=args.dry_run)
    shown = () if args.dry_run and not args.json else done
    return output.results(args, shown, lambda network: f"{network.name}: removed")


def _ports(host: Host, args: Args) -> int:
    if args.all_hosts:
        if args.exposed:
            raise UsageError("is for the ports of this host", "leave out --all-hosts", "--exposed")
        with Progress(args) as host.progress:
            everywhere = host.networks.ports_everywhere()
        columns = ["SERVICE", "HOST", "PORT", "CONTAINER", "PROTO"]
        return output.result(args, everywhere, lambda rows: output.table(columns, rows))
    lines = host.networks.exposure() if args.exposed else host.networks.ports()
    columns = ["SERVICE", "HOST", "CONTAINER", "PROTO", *["FROM"] * args.exposed]
    rows = (
        (line.service, line.host, span(line.container, line.mapping.range), line.mapping.proto)
        + ("; ".join(line.from_ or ()),) * args.exposed
        for line in lines
    )
    return output.result(args, lines, lambda _: output.table(columns, rows))


def _attach(host: Host, args: Args) -> int:
    from niso.api.host_attachments import AttachRequest

    pairs = (word.partition("=") for word in (args.bandwidth or "").split(",") if word)
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
            bandwidth={direction: rate for direction, _, rate in pairs},
            owner=args.owner or "cli",
            id=args.id or "",
            unit=args.unit,
        )
        done = host.attachments.attach(request)
    if args.json:
        output.as_json(done)
    else:
        state = "attached" if done.changed else "unchanged"
        ports = output.ports_text(done.ports)
        print(f"{done.service}: {state}  {', '.join(done.address)}{f'  {ports}' if ports else ''}")
    return 0


def _entries(text: str | None) -> list[str] | None:
    return None if text is None else text.replace(",", " ").split()


def _detach(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.attachments.detach(*args.names, id=args.id)
    return output.changes(args, done, ("not attached", "detached"))


def _gc(host: Host, args: Args) -> int:
    valid = None if args.valid is None else args.valid.split()
    with Progress(args) as host.progress:
        done = host.attachments.gc(owner=args.owner, valid=valid)
    return output.changes(args, done, ("not attached", "detached"))


def _rules(host: Host, args: Args) -> int:
    if args.json:
        output.as_json(host.networks.rules())
    else:
        print(output.escaped_lines(host.networks.rules_text()), end="")
    return 0


def _check(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        findings = host.check(args.name)
    lines = list(_lines(findings, args.verbose))
    lines = lines or [f"{args.name or 'OK'}: the kernel matches the configuration"]
    output.result(args, findings, lambda _: print(*lines, sep="\n"))
    return 1 if findings else 0


_MANY, _EXAMPLES, _OWN = 10, 3, ("missing", "different")


def _lines(findings: Sequence[niso.Finding], every: bool) -> Iterator[str]:
    """Yield the lines that report findings of niso net check. If more than `_MANY` objects of one
    type have the same problem, one line reports all of them. With ``every``, each object has a
    line.
    """
    kinds: dict[tuple[str, str], list[niso.Finding]] = {}
    for number, one in enumerate(findings):
        alone = "" if one.problem in _OWN and not every else str(number)
        kinds.setdefault((one.problem, alone or one.what.partition(" ")[0]), []).append(one)
    for (problem, _), alike in kinds.items():
        if len(alike) <= _MANY:
            yield from (output.escaped(one.text) for one in alike)
            continue
        names = ", ".join(output.escaped(one.what) for one in alike[:_EXAMPLES])
        yield f"{problem}: {len(alike)} objects such as {names} (niso net check -v lists them)"


def _repair(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.repair(dry_run=args.dry_run, kernel=args.kernel)
    if args.dry_run:
        return 0
    count = done.steps
    shown = f"repaired: {count} step{'s' * (count != 1)}" if count else "nothing to repair"
    return output.result(args, done, lambda _: print(shown))


# --- niso net policy, and the preview of a dry run ------------------------------------------------


ENTRIES = ("KEY", "ENTRY", "PACKETS", "OPEN", "LAST", "NOTE")
EFFECTS = ("EFFECT", "FROM", "TO", "NEW", "OPEN", "LAST", "BY")
_PREFIX = "network.policy."


def _policy_show(host: Host, args: Args) -> int:
    def show(entries: Iterable[niso.PolicyEntry]) -> None:
        if entries or args.unused:
            output.table(ENTRIES, map(_entry, entries))
        else:
            print(f"{args.name} has no policy")

    with Progress(args) as host.progress:
        return output.result(args, host.policy(args.name, unused=args.unused), show)


def _entry(entry: niso.PolicyEntry) -> tuple[str, ...]:
    denied = "others would be denied" if entry.audited else "others are denied"
    verdict = "others pass" if entry.passes else denied
    shown = entry.text if entry.text is not None else f"({verdict})"
    key, open_ = entry.key.removeprefix(_PREFIX), str(entry.open or "-")
    return key, shown, str(entry.packets), open_, output.ago(entry.ago, "never"), entry.note or "-"


def _policy_test(host: Host, args: Args) -> int:
    # a path, because the name of a service would mean the manifest in the store
    path = os.path.join(os.curdir, args.path)
    with Progress(args) as host.progress:
        effects = host.policy_effects(path, since=args.since)
        output.result(args, effects, _print_effects)
    if not effects:
        return 2
    return int(any(effect.effect == "cut" for effect in effects))


def say_what_changes(host: Host, *what: str) -> None:
    """Print the recorded flows whose verdict an activation of ``what`` would change."""
    effects = [e for e in host.policy_effects(*what) if e.effect != "pass"]
    if effects:
        _print_effects(effects)


def _print_effects(effects: Iterable[niso.PolicyEffect]) -> None:
    rows = output.merged(effects, lambda e: (e.effect, *output.ends(e), _by(e)))
    output.table(EFFECTS, [(e.effect, *output.flow_cells(e), _by(e)) for e in rows])
    if not rows:
        print("no flow was seen: nothing to judge by")
        return
    cut = sum(row.effect == "cut" for row in rows)
    flows = "1 flow that exists" if cut == 1 else f"{cut or 'no'} flows that exist"
    audited = sum(row.effect == "audit" for row in rows)
    print(f"{flows} would be cut{f', {audited} when the audit ends' if audited else ''}")


def _by(effect: niso.PolicyEffect) -> str:
    if effect.key:
        entry = f' "{effect.text}"' if effect.text else ""
        return f"{effect.service} {effect.key.removeprefix(_PREFIX)}{entry}"
    return effect.words if effect.effect == "cut" and effect.words else "-"


# --- niso net refresh -----------------------------------------------------------------------------


_WITHOUT = 3
"""The exit status if a DNS name has no address. Errors have the exit status 1."""
_COLUMNS = ("NAME", "ADDRESSES", "UNTIL", "SERVICES", "PROBLEM")


def _refresh(host: Host, args: Args) -> int:
    """Resolve the DNS names in policies. With --for, resolve them again when answers expire."""
    if not args.for_:
        return _refresh_once(host, args)
    end = time.monotonic() + duration(args.for_, "--for")
    try:
        while True:
            status = _refresh_once(host, args)
            sys.stdout.flush()
            wait = min(host.names_due(), end - time.monotonic())
            if wait <= 0:
                return status
            time.sleep(wait)
    except KeyboardInterrupt:
        return 130


def _refresh_once(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        names = host.refresh_names(force=args.all)
    rows = [
        (
            name.name,
            ", ".join(name.addresses) or "-",
            name.until or "-",
            ", ".join(name.services) or "-",
            output.escaped(name.problem or "-"),
        )
        for name in names
    ]
    if names or args.json:
        output.result(args, names, lambda _: output.table(_COLUMNS, rows))
    else:
        print("no policy has an outside name")
    return _WITHOUT if any(not name.addresses for name in names if name.services) else 0
