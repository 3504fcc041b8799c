"""Implement niso net policy, and the preview of what a dry run would cut."""

from __future__ import annotations

import os

from niso.api.host import Host, connect
from niso.base.addresses import bracketed
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Sequence

    from niso.api.policy_views import PolicyEffect, PolicyEntry

ENTRIES = ("KEY", "ENTRY", "PACKETS", "OPEN", "LAST", "NOTE")
EFFECTS = ("EFFECT", "FROM", "TO", "NEW", "OPEN", "LAST", "BY")
_PREFIX = "network.policy."


def run(action: str, args: Args) -> int:
    host = connect()
    with output.LateProgress(args) as host.progress:
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
    """Print the flows that an activation would cut or let pass, if there are any."""
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
