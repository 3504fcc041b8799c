"""Implement niso net ping, explain, stats and log."""

from __future__ import annotations

import sys

from niso.api.host import Host, connect
from niso.base.addresses import bracketed
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress

if TYPE_CHECKING:
    from typing import NoReturn

    from niso.api.packets import Drop, Drops, Explanation, Judged, Proof

COLUMNS = (
    "SERVICE",
    "IN-PACKETS",
    "IN-BYTES",
    "IN-DROPS",
    "OUT-PACKETS",
    "OUT-BYTES",
    "OUT-DROPS",
    "FOREIGN",
)


def run(action: str, args: Args) -> int:
    return int(globals()[f"_{action}"](connect(), args))


# --- ping ------------------------------------------------------------------------------------


def _ping(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        pong = host.ping(args.source, args.destination)
    if args.json:
        output.as_json(pong)
    else:
        from_, to = (
            _end(end.service, end.address, None, end.host) for end in (pong.from_, pong.to)
        )
        print(f"{from_} {output.arrow()} {to}: ok ({_ms(pong.seconds)}ms)")
    return 0


def _ms(seconds: float) -> str:
    """Format milliseconds with one decimal, or two below 0.1."""
    ms = seconds * 1000
    return f"{ms:.1f}" if ms >= 0.1 else f"{ms:.2f}"


# --- explain ---------------------------------------------------------------------------------


def _explain(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        explained = host.explain(
            args.source, args.destination, family=args.family, prove=args.prove
        )
    if args.json:
        output.as_json(explained)
    else:
        _print_explained(explained)
    proof = explained.proof
    return 0 if explained.passes and (proof is None or proof.agrees is not False) else 1


def _print_explained(explained: Explanation) -> None:
    _print_judged(explained.judged)
    for sharer, service in explained.shares.items():
        print(f"  {sharer} shares the network namespace, addresses and policy of {service}")
    other = explained.other_family
    if other is not None and other.passes != explained.passes:
        reason = other.dropped_by
        verdict = f"drop: {reason.words}" if reason else "pass"
        family = 6 if ":" in other.asked.address else 4
        print(output.escaped(f"  over IPv{family} ({other.asked.address}) {verdict}"))
    if explained.proof is not None:
        _print_proof(explained.judged, explained.proof)


def _print_judged(judged: Judged) -> None:
    arrow = output.arrow()
    asked = (
        [_end(None, judged.asked.address, judged.asked.port)]
        if judged.to.address != judged.asked.address
        else []
    )
    from_, to = judged.from_, judged.to
    reached = _end(to.service, to.address, to.port, to.host)
    ends = [_end(from_.service, from_.address, None, from_.host), *asked, reached]
    print(f"{f' {arrow} '.join(ends)}/{judged.asked.proto}: {judged.verdict}")
    for name in ("path", "egress", "ingress"):
        part = getattr(judged, name)
        print(output.escaped(f"  {name:<8} {part.verdict}  {part.words}"))
        for line in part.nft:
            print(output.escaped(f"  {'':<8} {'':<4}  nft {line}"))
        for rule in part.elsewhere:
            print(output.escaped(f"  {'':<8} {'':<4}  on {rule.host}, computed: nft {rule.nft}"))


def _end(service: str | None, address: str, port: int | None, host: str | None = None) -> str:
    """Format one end: ``db (10.99.1.2):5432``, ``db (10.99.1.2 on a)``, ``[2001:db8::2]:80``."""
    shown = bracketed(address) if port is not None else address
    if service:
        shown = f"{service} ({address}{f' on {host}' if host else ''})"
    return shown if port is None else f"{shown}:{port}"


def _print_proof(judged: Judged, proof: Proof) -> None:
    to = judged.to.service or judged.to.address
    if proof.unsent:
        result = f"the sender's kernel refused the packet: {proof.unsent}"
    elif proof.arrived is None:
        reply = "replied to" if proof.answered else "did not reply to"
        result = f"{to} {reply} a test packet"
    else:
        result = f"a test packet {'reached' if proof.arrived else 'did not reach'} {to}"
    outcome = {True: "confirmed", False: "CONTRADICTED", None: "inconclusive"}[proof.agrees]
    print(output.escaped(f"  {'proof':<8} {outcome}: {result}"))
    for count in proof.counters:
        before, after = ("no rule" if n is None else n for n in (count.before, count.after))
        print(output.escaped(f"  {'':<8} counted {before} {output.arrow()} {after}: {count.label}"))
    if proof.agrees is False:
        print(f"  {'':<8} niso net check shows what differs from the configuration")


# --- stats and log ---------------------------------------------------------------------------


def _stats(host: Host, args: Args) -> int:
    rows = host.stats()
    if args.json:
        output.as_json(rows)
    else:
        columns: tuple[str, ...] = COLUMNS
        if any(row.in_audits is not None for row in rows):
            columns = (*COLUMNS, "IN-AUDITS", "OUT-AUDITS")
        cells = [["-" if value is None else str(value) for value in row] for row in rows]
        output.table(columns, [line[: len(columns)] for line in cells])
    return 0


def _log(host: Host, args: Args) -> int:
    try:
        with output.LateProgress(args) as host.progress, host.drops(args.name) as drops:
            _follow(drops, args.json)
    except KeyboardInterrupt:
        return 130


def _follow(drops: Drops, as_json: bool) -> NoReturn:
    import json
    import select

    from niso.api.as_json import plain

    poll = select.poll()
    poll.register(drops, select.POLLIN)
    poll.register(sys.stdout, 0)  # reports a closed pipe even while nothing is written
    while True:
        ready = dict(poll.poll())
        if ready.get(sys.stdout.fileno(), 0):
            raise BrokenPipeError
        for drop in drops.read():
            print(json.dumps(plain(drop)) if as_json else output.escaped(_drop_text(drop)))
        sys.stdout.flush()


def _drop_text(drop: Drop) -> str:
    source = drop.source.service or bracketed(drop.source.address)
    to = drop.destination
    port = "" if to.port is None else f":{to.port}"
    ends = f"{source} {output.arrow()} {to.service or bracketed(to.address)}{port}/{drop.proto}"
    return f"{drop.time}  {drop.service}  {drop.direction}  {drop.key}  {ends}  {drop.interface}"
