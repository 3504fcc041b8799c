"""Run the commands for services, stacks and volumes: activate, ps, logs, exec, enable, save ..."""

from __future__ import annotations

import os
import select
import sys
from _thread import start_new_thread

from niso.api.host import Host, connect
from niso.base.errors import ErrorGroup, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import signal
from niso.base.report import Event, Finished
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    import niso


# --- activate, deactivate, remove, restart --------------------------------------------------------


STOPPED = ("already inactive, unchanged", "inactive")
RESTARTED = ("restarted", "restarted")
_UNDERSCORES = {ord(" "): "_", ord("-"): "_"}


def run(name: str, args: Args) -> int:
    return int(globals()[f"_{name.translate(_UNDERSCORES)}"](connect(), args))


def _activate(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        outcomes = host.services.activate(
            *args.what,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.take_over,
            take=args.from_lost_host,
            trust_owner=args.trust_owner,
        )
    if not args.dry_run:
        _print_outcomes(args, outcomes)
    elif not args.json:
        _say_what_changes(host, *args.what)
    return 0


def _deactivate(host: Host, args: Args) -> int:
    if args.all and args.names:
        raise UsageError("--all and NAME are mutually exclusive", "niso deactivate --help")
    if not args.all and not args.names:
        raise UsageError("missing NAME or --all", "niso deactivate --help")
    with Progress(args) as host.progress:
        if args.all:
            done = host.services.deactivate_all(dry_run=args.dry_run)
        else:
            done = host.services.deactivate(*args.names, dry_run=args.dry_run)
    if not args.dry_run:
        output.changes(args, done, STOPPED)
        if args.all and not done and not args.json:
            print("no service is active")
    return 0


def _remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.remove(*args.names, volumes=args.volumes)
    return output.changes(args, done, ("removed", "removed"))


def _restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.restart(*args.names)
    return output.changes(args, done, RESTARTED)


def _say_what_changes(host: Host, *what: str) -> None:
    from niso.cli import net_commands

    net_commands.say_what_changes(host, *what)


def _print_outcomes(args: Args, outcomes: tuple[niso.Outcome, ...]) -> None:

    def line(result: niso.Outcome) -> str:
        state = "active" if result.changed else "already active, unchanged"
        state = "completed" if result.completed else state
        ports = output.ports_text(result.ports)
        shown = f"  ports: {ports}" if ports else ""
        return f"{result.service}: {state}  {', '.join(result.address)}{shown}".rstrip()

    output.results(args, outcomes, line)


# --- niso stack -----------------------------------------------------------------------------------


def _stack_up(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.stacks.up(
            args.dir,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.take_over,
            trust_owner=args.trust_owner,
        )
    if args.dry_run:
        if not args.json:
            is_file = os.path.isfile(args.dir)
            file = args.dir if is_file else os.path.join(args.dir, "stack.toml")
            _say_what_changes(host, file)
        return 0
    if args.json:
        output.as_json(done)
        return 0
    for name in done.networks:
        print(f"network {name}: created")
    for name in done.idle:
        print(f"network {name}: not created, no service uses it")
    for name in done.left:
        print(f"{name}: inactive, removed from the stack")
    _print_outcomes(args, done.services)
    return 0


def _stack_down(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.down(args.dir, volumes=args.volumes, dry_run=args.dry_run)
    if args.dry_run:
        return 0
    output.changes(args, done.services, STOPPED)
    if not args.json and not done.services:
        print(f"stack {done.stack}: no known services, unchanged")
    return 0


def _stack_ps(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        lines = host.stacks.status(args.dir)
    return output.result(args, lines, _print_lines)


def _stack_restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.restart(args.dir)
    output.changes(args, done, RESTARTED)
    if not args.json and not done:
        print("no service of the stack is active")
    return 0


def _stack_logs(host: Host, args: Args) -> int:
    lines = host.stacks.logs(args.dir, **_log_options(args))
    chunks = (f"{name} | ".encode() + line.removesuffix(b"\n") + b"\n" for name, line in lines)
    return _print_chunks(chunks, args.follow)


def _log_options(args: Args) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("lines", "follow", "timestamps", "since")}


# --- ps, inspect and logs -------------------------------------------------------------------------


COLUMNS = ("SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME")


def _inspect(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        output.as_json(host.services.inspect(args.name))
    return 0


def _ps(host: Host, args: Args) -> int:
    if args.all_hosts:
        if args.listening:
            reason = "is for the services of this host"
            raise UsageError(reason, "leave out --all-hosts", "--listening")
        if args.stats:
            reason = "is for the services of this host"
            raise UsageError(reason, "leave out --all-hosts", "--stats")
        with Progress(args) as host.progress:
            everywhere = host.services.everywhere()
        return output.result(args, everywhere, _print_everywhere)
    with Progress(args) as host.progress:
        lines = host.services.list(
            instances=args.instances, listening=args.listening, stats=args.stats
        )
    return output.result(args, lines, _print_lines)


def _scale(host: Host, args: Args) -> int:
    name, is_given, number = args.name.partition("=")
    if not is_given or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{args.name!r} is not NAME=N", f"niso scale {name}=3")
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        outcomes = host.services.scale(name, int(number), timeout=timeout_s)
    _print_outcomes(args, outcomes)
    return 0


def _rollback(host: Host, args: Args) -> int:
    version, key = (args.generation, "GENERATION") if args.generation else (args.to, "--to")
    if args.generation and args.to:
        raise UsageError("name the generation once", f"niso rollback {args.name} {args.to}", "--to")
    if version is not None and not (version.isascii() and version.isdigit()):
        hint = f"niso history {args.name} lists them"
        raise UsageError(f"{version!r} is not the number of a generation", hint, key)
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        outcomes = host.services.rollback(
            args.name, None if version is None else int(version), timeout=timeout_s
        )
    _print_outcomes(args, outcomes)
    return 0


def _history(host: Host, args: Args) -> int:
    lines = host.services.history(args.name)
    if args.name and not lines:
        output.note(f"niso: {output.escaped(args.name)} has no history: it was never activated")
    return output.result(args, lines, _print_history)


def _print_history(lines: Iterable[niso.Deploy]) -> None:
    rows = (
        (
            line.service,
            str(line.version),
            line.at,
            f"{line.took:.1f}s",
            f"{line.outcome}, serving" if line.serving else line.outcome,
            line.package_version,
            line.who or "-",
            output.escaped(line.command) or "-",
            _shortened(" ".join(map(str.strip, line.why.splitlines()))) or "-",
        )
        for line in lines
    )
    titles = ("SERVICE", "GENERATION", "TIME", "TOOK", "OUTCOME", "PACKAGE", "WHO", "COMMAND")
    output.table((*titles, "REASON"), rows)


_MOST_REASON = 160
"""The maximum length of a reason that `history` prints. --json prints the complete reason."""


def _shortened(text: str) -> str:
    return output.escaped(text if len(text) <= _MOST_REASON else f"{text[: _MOST_REASON - 3]}...")


def _print_everywhere(lines: Iterable[niso.ClusterLine]) -> None:
    rows = (
        (
            *line[:3],
            ", ".join(line.address) or "-",
            ", ".join(map(output.as_listed, line.ports)) or "-",
        )
        for line in lines
    )
    output.table(("SERVICE", "HOST", "STATUS", "ADDRESS", "PORTS"), rows)


def _print_lines(lines: tuple[niso.ServiceLine, ...]) -> None:
    policies = ("POLICY",) * any(line.audit_until for line in lines)
    runs = ("LAST RUN", "NEXT RUN") * any(line.next_run or line.last_run for line in lines)
    has_stats = any(line.load is not None for line in lines)
    restarts = ("RESTARTS",) * (has_stats or any(line.restarts for line in lines))
    stats = ("CPU", "CPU TIME", "THROTTLED", "MEMORY", "LIMIT", "OOM KILLS") * has_stats
    listens = ("LISTENS",) * any(line.listening is not None for line in lines)
    output.table(
        (*COLUMNS, *restarts, *stats, *policies, *runs, *listens),
        [
            (
                line.service,
                line.status + (f", {line.interrupted} interrupted" if line.interrupted else ""),
                output.health_text(line.health, line.health_age),
                line.mode or "-",
                ", ".join(line.address) or "-",
                output.ports_text(line.ports or ()) or "-",
                "-" if line.uptime is None else output.duration(line.uptime),
                *("-" if line.restarts is None else str(line.restarts) for _ in restarts),
                *(_stats(line.load) if stats else ()),
                *("audit" if line.audit_until else "-" for _ in policies),
                *((line.last_run or "-", line.next_run or "-") if runs else ()),
                *(_listens(line) for _ in listens),
            )
            for line in lines
        ],
    )


def _stats(load: niso.ProcessLoad | None) -> tuple[str, ...]:
    if load is None:
        return ("-",) * 6
    times = (
        "-" if s is None else f"{s:.1f}s" if s < 60 else output.duration(s)
        for s in (load.cpu_seconds, load.throttled_seconds)
    )
    sizes = (output.size(load.memory), output.size(load.memory_limit))
    kills = "-" if load.oom_kills is None else str(load.oom_kills)
    return (output.percent(load.cpu), *times, *sizes, kills)


def _listens(line: niso.ServiceLine) -> str:
    shown = [output.socket_text(one.address, one.port, one.proto) for one in line.listening or ()]
    lacks = [output.socket_text(one.address, one.port, one.proto) for one in line.unheard or ()]
    parts = [", ".join(dict.fromkeys(shown))] + [f"not {', '.join(lacks)}"] * bool(lacks)
    return "; ".join(filter(None, parts)) or "-"


def _logs(host: Host, args: Args) -> int:
    return _print_chunks(host.services.logs(args.name, **_log_options(args)), args.follow)


def _print_chunks(chunks: Iterable[bytes], follow: bool) -> int:
    """Print logs and return the exit status: 0, or 130 after Ctrl-C. With ``follow``, flushes
    stdout after each chunk. Raises BrokenPipeError if its reader exits.
    """
    raw = sys.stdout.buffer
    terminal = output.is_terminal()
    gone: list[bool] = []
    try:
        if follow:
            _watch_reader(gone)
        for chunk in chunks:
            text = output.escaped_lines(chunk.decode("utf-8", "replace")) if terminal else None
            raw.write(chunk if text is None else text.encode())
            if follow:
                raw.flush()
        raw.flush()
    except KeyboardInterrupt:
        if gone:
            raise BrokenPipeError from None
        return 130
    return 0


def _watch_reader(gone: list[bool]) -> None:
    """Start a thread that waits until the reader of stdout exits. The thread then adds True to
    ``gone`` and sends SIGTERM to this process.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        poll.poll()
        gone.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    start_new_thread(watch, ())


# --- exec, kill, port-forward ---------------------------------------------------------------------


def _exec(host: Host, args: Args) -> int:
    return host.services.exec(args.name, args.command, user=args.user)


def _kill(host: Host, args: Args) -> int:
    sent = host.services.kill(*args.names, signal=args.signal)
    ended = ("", ", its process has ended")
    return output.results(args, sent, lambda s: f"{s.service}: {s.signal} sent{ended[s.ended]}")


def _port_forward(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        if args.remove:
            done = host.services.port_unforward(args.name, args.port)
        else:
            done = host.services.port_forward(args.name, args.port, replace=args.take_over)
    return output.result(args, done, lambda done: _print_forwarded(done, args.remove))


def _print_forwarded(done: niso.Forwarded, remove: bool) -> None:
    state = "published" if done.changed else "already published, unchanged"
    state = "no longer published" if remove else state
    print(f"{done.service}: {output.ports_text(done.ports)} {state}")
    for lost in done.taken:
        own = lost.service == done.service
        back = "" if own else "; --remove publishes the ports of its manifest again"
        print(f"{lost.service}: {output.ports_text(lost.ports)} no longer published{back}")
    for again in done.returned:
        print(f"{again.service}: {output.ports_text(again.ports)} published again")


# --- enable, disable and restore ------------------------------------------------------------------


def _enable(host: Host, args: Args, on: bool = True) -> int:
    with Progress(args) as host.progress:
        marked = (
            host.services.enable(*args.names, firewall=not args.no_firewall)
            if on
            else host.services.disable(*args.names)
        )
    return _print_marked(args, marked, on, "already enabled, unchanged", "not enabled, unchanged")


def _print_marked(args: Args, marked: Sequence[niso.Marked], on: bool, *unchanged: str) -> int:
    def line(mark: niso.Marked) -> str:
        state = ("enabled" if on else "disabled") if mark.changed else unchanged[not on]
        return f"{mark.service}: {state}{f'  {mark.unit}' if mark.unit else ''}"

    return output.results(args, marked, line)


def _disable(host: Host, args: Args) -> int:
    return _enable(host, args, on=False)


def _firewall_enable(host: Host, args: Args, on: bool = True) -> int:
    with Progress(args) as host.progress:
        marked = host.guard_firewalls(on)
    return _print_marked(args, marked, on, "unchanged", "unchanged")


def _firewall_disable(host: Host, args: Args) -> int:
    return _firewall_enable(host, args, on=False)


MAX_REMOVALS = 20
"""Limit of removed objects that niso reset lists before it asks. Services are all listed."""


def _reset(host: Host, args: Args) -> int:
    if not (args.yes or args.dry_run) and not _agrees(host):
        return 1
    with Progress(args) as host.progress:
        done = host.sweep(dry_run=args.dry_run)
    if args.dry_run:
        return 0
    count = done.removed
    shown = f"reset: {count} object{'s' * (count != 1)} removed"
    shown = shown if count else "nothing of niso is in the kernel"
    return output.result(args, done, lambda _: print(shown))


def _agrees(host: Host) -> bool:
    """List what niso reset removes, and ask on the terminal. Return whether the user agrees.
    Returns True if there is nothing to remove. Raises UsageError without a terminal.
    """
    if not (os.isatty(0) and os.isatty(2)):
        reason = "reset ends all services, and there is no terminal to ask"
        raise UsageError(reason, "niso reset --dry-run lists what it would remove; see --yes")
    stops: list[str] = []
    removals: list[str] = []

    def collect(event: Event) -> None:
        if not isinstance(event, Finished):
            line = event.describe()
            (stops if line.startswith("stop ") else removals).append(line)

    host.progress = collect
    if not host.sweep(dry_run=True).removed:
        return True
    for line in (*stops, *removals[:MAX_REMOVALS]):
        print(output.escaped(line), file=sys.stderr)
    if len(removals) > MAX_REMOVALS:
        print(f"... and {len(removals) - MAX_REMOVALS} more", file=sys.stderr)
    print("niso: do all this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _restore(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.services.restore(timeout=timeout_s)
    _print_outcomes(args, done.outcomes)
    if not args.json and not done.outcomes and not done.errors:
        print("no service is enabled")
    if done.errors:
        raise ErrorGroup([*done.errors])
    return 0


# --- volumes, save, load --------------------------------------------------------------------------


def _volume_list(host: Host, args: Args) -> int:
    return output.result(args, host.volumes.list(*args.names), _print_volumes)


def _volume_inspect(host: Host, args: Args) -> int:
    output.as_json(host.volumes.list(*args.names))
    return 0


def _volume_remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        removed = host.volumes.remove(*args.names)
    return output.results(
        args, removed, lambda one: f"{one.volume}: removed  {output.size_text(one.size)}"
    )


def _print_volumes(lines: Iterable[niso.VolumeLine]) -> None:
    rows = [
        (one.volume, one.status, one.mount or "-", str(one.owner), output.size_text(one.size))
        for one in lines
    ]
    output.table(("VOLUME", "SERVICE", "MOUNT", "OWNER", "SIZE"), rows)


def _save(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        saved = host.volumes.save(
            *args.names,
            stack=args.stack,
            all=args.all,
            output=args.output,
            secrets=args.secrets,
            stop=args.stop,
        )
    if args.json:
        output.as_json(saved)
    elif saved.file != "-":
        print(f"{saved.file}: {output.size_text(saved.size)}  {', '.join(saved.services)}")
    return 0


def _load(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        loaded = host.volumes.load(
            args.file,
            prefix=getattr(args, "as"),
            timeout=timeout_s,
            trust_owner=args.trust_owner,
        )

    def line(one: niso.LoadedService) -> str:
        command = "stack up" if one.file.endswith("stack.toml") else "activate"
        more = ", ".join(one.address) if one.active else f"niso {command} {one.file} starts it"
        boot = f"  niso enable {one.service} starts it at boot again" if one.was_enabled else ""
        return f"{one.service}: {'active' if one.active else 'loaded'}  {more}{boot}".rstrip()

    return output.results(args, loaded, line)
