"""niso net ping, explain, stats, log: whether and why packets pass, and what was dropped."""

from __future__ import annotations

import sys

from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.store.store import Store

if TYPE_CHECKING:
    from typing import NoReturn

    from niso.explain.drops import Drop, Log
    from niso.explain.explanation import Explanation, Object
    from niso.explain.prove import Proof

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
    return int(globals()[f"_{action}"](args))


# --- ping ------------------------------------------------------------------------------------------------------------


def _ping(args: Args) -> int:
    from niso.base.report import WaitingForPacket
    from niso.cli.progress import Progress

    with Progress(args) as report:
        report(WaitingForPacket(args.destination, answer=True))
        from niso.explain import prove, question  # a part of the time that is told

        store = Store.open(create=False)
        packet, took = prove.ping(store, args.source, args.destination)
    from_, to = (question.resolve(store, name).name for name in (args.source, args.destination))
    if args.json:
        ends = [
            {"service": s, "address": a}
            for s, a in ((from_, packet.source), (to, packet.destination))
        ]
        output.as_json({"from": ends[0], "to": ends[1], "ok": True, "seconds": round(took, 6)})
    else:
        print(
            f"{from_} ({packet.source}) {output.arrow()} {to} ({packet.destination}): ok ({_ms(took)}ms)"
        )
    return 0


def _ms(seconds: float) -> str:
    """One digit behind the point, or two where the first would be a 0."""
    ms = seconds * 1000
    return f"{ms:.1f}" if ms >= 0.1 else f"{ms:.2f}"


# --- explain ---------------------------------------------------------------------------------------------------------


def _explain(args: Args) -> int:
    if not args.prove:
        return _explained(args)
    from niso.base.report import WaitingForPacket
    from niso.cli.progress import Progress

    with Progress(args) as report:
        report(WaitingForPacket(args.destination, answer=False))
        return _explained(args)


def _explained(args: Args) -> int:
    from niso.explain import explanation, prove, question
    from niso.kernel import host_facts
    from niso.reconcile.world import read_world

    store = Store.open(create=False)
    who, port, proto = question.parse_target(args.destination)
    source, destination = question.resolve(store, args.source), question.resolve(store, who)
    world = read_world(store)
    packet = question.Packet(*question.ends(world, source, destination, args.family), port, proto)
    closed = host_facts.not_forwarding()
    explained = explanation.explain(store, world, packet, closed)
    if args.prove:
        prove.sender_namespace(world, packet, explained.verdict)
    other = (
        None
        if args.family
        else explanation.other_family(store, world, source, destination, packet, closed)
    )
    differs = (
        other if other is not None and other.verdict.passes != explained.verdict.passes else None
    )
    proof = prove.prove(world, explained) if args.prove else None
    if args.json:
        described = _explained_json(explained)
        described["other_family"] = None if other is None else _explained_json(other)
        described["shares"] = {
            end.sharer: end.service for end in (source, destination) if end.sharer
        }
        if proof is not None:
            described["proof"] = _proof_json(proof)
        output.as_json(described)
    else:
        _print_explained(explained)
        for end in (source, destination):
            if end.sharer:
                print(
                    f"  {end.sharer} shares the network of {end.service}: its addresses, and its policy"
                )
        if differs is not None:
            reason = differs.verdict.dropped_by
            words = f"it is dropped: {reason.words}" if reason else "it passes"
            print(
                output.escaped(
                    f"  by IPv{differs.packet.family} ({differs.packet.destination}) {words}"
                )
            )
        if proof is not None:
            _print_proof(explained, proof)
    return 0 if explained.verdict.passes and (proof is None or proof.agrees is not False) else 1


def _print_explained(explained: Explanation) -> None:
    packet, verdict = explained.packet, explained.verdict
    arrow = output.arrow()
    asked = (
        [_end("", packet.destination, packet.port)]
        if verdict.destination.address != packet.destination
        else []
    )
    reached = _end(verdict.destination.service, verdict.destination.address, verdict.port)
    ends = [_end(verdict.source.service, packet.source, None), *asked, reached]
    print(f"{f' {arrow} '.join(ends)}/{packet.proto}: {'pass' if verdict.passes else 'drop'}")
    for name in ("path", "egress", "ingress"):
        reason, objects = getattr(verdict, name), getattr(explained, name)
        print(output.escaped(f"  {name:<8} {'pass' if reason.passes else 'drop'}  {reason.words}"))
        for each in objects:
            print(output.escaped(f"  {'':<8} {'':<4}  nft {_object(each)}"))


def _end(service: str, address: str, port: int | None) -> str:
    """``db (10.99.1.2):5432``, ``[2001:db8::2]:80``."""
    shown = (
        f"{service} ({address})"
        if service
        else output.bracketed(address)
        if port is not None
        else address
    )
    return shown if port is None else f"{shown}:{port}"


def _object(each: Object) -> str:
    if each.place is None:
        return f"element {each.table} {each.container} {{ {each.text} }}"
    return f"rule {each.table} {each.container}: {each.text}"


def _print_proof(explained: Explanation, proof: Proof) -> None:
    verdict = explained.verdict
    to = verdict.destination.service or verdict.destination.address
    if proof.unsent:
        words = f"the sender's own kernel did not take the packet: {proof.unsent}"
    elif proof.arrived is None:
        words = f"one packet was sent; {to} {'answered' if proof.answered else 'did not answer'}"
    else:
        words = (
            f"one packet was sent; it {'arrived' if proof.arrived else 'did not arrive'} at {to}"
        )
    outcome = {True: "agrees", False: "DOES NOT AGREE", None: "tells nothing"}[proof.agrees]
    print(output.escaped(f"  {'proof':<8} {outcome}: {words}"))
    for count in proof.counts:
        before, after = ("no such rule" if n is None else n for n in (count.before, count.after))
        rule = count.rule
        print(
            output.escaped(
                f"  {'':<8} counted {before} {output.arrow()} {after}: {rule.table} {rule.container}: {rule.text}"
            )
        )
    if proof.agrees is False:
        print(f"  {'':<8} niso net check tells what is not as it should be")


def _explained_json(explained: Explanation) -> dict[str, object]:
    packet, verdict = explained.packet, explained.verdict
    return {
        "from": {"service": verdict.source.service or None, "address": packet.source},
        "asked": {"address": packet.destination, "port": packet.port, "proto": packet.proto},
        "to": {
            "service": verdict.destination.service or None,
            "address": verdict.destination.address,
            "port": verdict.port,
            "proto": packet.proto,
        },
        "verdict": "pass" if verdict.passes else "drop",
        **{
            name: {
                "verdict": "pass" if reason.passes else "drop",
                "words": reason.words,
                "service": reason.service or None,
                "key": reason.key or None,
                "text": reason.text or None,
                "nft": [_object(each) for each in getattr(explained, name)],
            }
            for name in ("path", "egress", "ingress")
            for reason in (getattr(verdict, name),)
        },
    }


def _proof_json(proof: Proof) -> dict[str, object]:
    return {
        "agrees": proof.agrees,
        "arrived": proof.arrived,
        "answered": proof.answered,
        "unsent": proof.unsent or None,
        "counters": [
            {"rule": _object(count.rule), "before": count.before, "after": count.after}
            for count in proof.counts
        ],
    }


# --- stats and log ---------------------------------------------------------------------------------------------------


def _stats(args: Args) -> int:
    from niso.explain import drops

    rows = drops.stats(Store.open(create=False))
    if args.json:
        output.as_json(
            [dict(zip((column.lower() for column in COLUMNS), row, strict=True)) for row in rows]
        )
    else:
        output.table(
            COLUMNS, [["-" if value is None else str(value) for value in row] for row in rows]
        )
    return 0


def _log(args: Args) -> int:
    from niso.explain import drops

    store = Store.open(create=False)
    service = None if args.name is None else store.home(store.resolve(args.name))
    try:
        with drops.Log(store, service) as log:
            if not drops.logging(store, service):
                whose = (
                    f"{service}'s policy does not have"
                    if service
                    else "no active service's policy has"
                )
                output.warn(
                    f"{whose} log = true: nothing will show until one has",
                    ["[network.policy] log = true"],
                )
            _follow(log, args.json)
    except KeyboardInterrupt:
        return 130


def _follow(log: Log, as_json: bool) -> NoReturn:
    import json
    import select

    poll = select.poll()
    poll.register(log, select.POLLIN)
    poll.register(
        sys.stdout, 0
    )  # says when the other end of a pipe has gone, though nothing is written
    while True:
        ready = dict(poll.poll())
        if ready.get(sys.stdout.fileno(), 0):
            raise BrokenPipeError
        found = log.read()
        if found is None:
            output.warn("more was dropped than could be read: some is not shown")
        for drop in found or ():
            print(json.dumps(_drop_json(drop)) if as_json else output.escaped(_drop_text(drop)))
        sys.stdout.flush()


def _drop_text(drop: Drop) -> str:
    source = drop.source_name or output.bracketed(drop.source)
    destination = drop.destination_name or output.bracketed(drop.destination)
    port = "" if drop.port is None else f":{drop.port}"
    ends = f"{source} {output.arrow()} {destination}{port}/{drop.proto}"
    return f"{_when(drop.time)}  {drop.service}  {drop.direction}  {drop.key}  {ends}  {drop.link}"


def _drop_json(drop: Drop) -> dict[str, object]:
    return {
        "time": _when(drop.time),
        "service": drop.service,
        "direction": drop.direction,
        "key": drop.key,
        "source": {"service": drop.source_name or None, "address": drop.source},
        "destination": {
            "service": drop.destination_name or None,
            "address": drop.destination,
            "port": drop.port,
        },
        "proto": drop.proto,
        "interface": drop.link,
    }


def _when(seconds: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    whole = str(output.time_text(seconds))
    return f"{whole[:-1]}.{int(seconds % 1 * 1000):03d}Z"
