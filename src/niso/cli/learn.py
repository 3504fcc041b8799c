"""Implement niso net learn."""

from __future__ import annotations

import json
import sys
import time

from niso.api.host import Host, connect
from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Iterator

    from niso.api.learning import LearnedEntry, LearnedPolicy, PolicyChange

_SHORT_S = 86_400
"""Below this time (s), daily events may not have been seen."""


def run(args: Args) -> int:
    host = connect()
    if args.write and not args.yes and not sys.stdin.isatty():
        raise UsageError("--write asks before it writes, and there is no terminal", "add --yes")
    since = args.since
    with output.LateProgress(args) as host.progress:
        if args.for_:
            host.learn(*args.names, egress=args.egress)  # reports mistakes before the wait
            since = _watch(args.for_)
        learned = host.learn(*args.names, since=since, egress=args.egress)
        if args.json:
            output.as_json(learned)
            return 0
        if args.write:
            return _write(host, args, host.learned_changes(learned))
    for number, policy in enumerate(learned):
        print("\n" * bool(number) + output.escaped_lines("\n".join(_lines(policy))))
    sys.stdout.flush()
    _say_how_long(learned)
    return 0


def _watch(period: str) -> str:
    """Wait for a period, or until Ctrl-C; return its start (RFC 3339). Raises UsageError."""
    from datetime import UTC, datetime

    from niso.api.guard import duration

    seconds = duration(period, "--for")
    start = datetime.now(UTC)
    output.note(f"niso: watching for {period}; Ctrl-C ends it early")
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    return start.isoformat()


def _lines(policy: LearnedPolicy) -> Iterator[str]:
    """Yield the policy as TOML, with the evidence as comments."""
    # a path with a newline must not end the comment
    where = output.escaped(policy.file or f"{policy.service} (no manifest)")
    peers = sum(entry.allowed for entry in policy.allow_from)
    denied = sum(entry.note.endswith("denied") for entry in policy.allow_from)
    known = f"{peers} {'entry' if peers == 1 else 'entries'}"
    if policy.watched is not None:
        known += f" after {output.duration(policy.watched)}"
    known += f"; {denied} denied" if denied else ""
    yield f"# {where}: {policy.service}, {known}"
    yield f"[{policy.table}]"
    yield from _list("allow_from", policy.allow_from)
    if policy.egress is not None:
        yield ""
        yield f"[{policy.table}.egress]"
        yield from _list("allow", policy.egress)


def _list(key: str, entries: tuple[LearnedEntry, ...]) -> Iterator[str]:
    if not entries:
        yield f"{key} = []  # nobody" if key == "allow_from" else f"{key} = []  # nowhere"
        return
    yield f"{key} = ["
    texts = [f"{'' if entry.allowed else '# '}{json.dumps(entry.text)}," for entry in entries]
    width = max(map(len, texts))
    for text, entry in zip(texts, entries, strict=True):
        comment = "; ".join(part for part in (entry.note, _evidence(entry)) if part)
        yield f"  {text:{width}}  # {comment}" if comment else f"  {text}"
    yield "]"


def _evidence(entry: LearnedEntry) -> str:
    parts = []
    if entry.new:
        times = "once" if entry.new == 1 else f"{entry.new} times"
        parts.append(f"{entry.new} new" if entry.allowed else times)
    if entry.ago is not None:
        when = "now" if entry.ago < 1 else f"{output.duration(entry.ago)} ago"
        parts.append(f"last {when}")
    if entry.open:
        parts.append(f"{entry.open} open" if entry.new else f"{entry.open} open, none new")
    return ", ".join(parts)


def _say_how_long(learned: tuple[LearnedPolicy, ...]) -> None:
    watched = [policy.watched or 0.0 for policy in learned]
    if watched:
        least = min(watched)
        rare = "once a day or once a month" if least < _SHORT_S else "once a month"
        output.note(
            f"niso: watched for {output.duration(least)}: what happens {rare} has not been seen"
        )


def _write(host: Host, args: Args, changes: tuple[PolicyChange, ...]) -> int:
    if not changes:
        print("unchanged")
        return 0
    for change in changes:
        print(output.escaped_lines(change.diff), end="")
    sys.stdout.flush()
    if not args.yes:
        files = ", ".join(change.file for change in changes)
        try:
            answer = input(output.escaped(f"write {files}? [y/N] "))
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was written")
            return 1
    host.write_policies(changes)
    for change in changes:
        output.note(output.escaped(f"niso: {change.file}: written; {change.apply} applies it"))
    return 0
