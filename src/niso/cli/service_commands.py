"""Run the commands for services: activate, ps, inspect, logs, exec, port-forward, enable, stack."""

from __future__ import annotations

import os
import select
import signal
import sys

from niso.api.host import Host, connect
from niso.base.errors import ErrorGroup, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import net_commands, output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.change.activate import Outcome
    from niso.change.boot import Marked
    from niso.change.deactivate import Done
    from niso.look.services import ServiceLine


# --- activate, deactivate, remove, restart --------------------------------------------------------


def run_service(name: str, args: Args) -> int:
    host = connect()
    return {
        "activate": _activate,
        "deactivate": _deactivate,
        "remove": _remove,
        "restart": _restart,
    }[name](host, args)


def _activate(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        outcomes = host.services.activate(
            *args.what,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.replace,
            take=args.take,
            trust_owner=args.trust_owner,
        )
    if not args.dry_run:
        print_outcomes(args, outcomes)
    elif not args.json:
        net_commands.say_what_changes(host, *args.what)
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
        print_stopped(args, done)
        if args.all and not done and not args.json:
            print("no service is active")
    return 0


def _remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.remove(*args.names, volumes=args.volumes)
    print_done(args, done, "removed")
    return 0


def _restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.restart(*args.names)
    print_done(args, done, "restarted")
    return 0


def print_done(args: Args, done: tuple[Done, ...], state: str) -> None:
    """Print the results of a removal or a restart."""
    output.results(args, done, lambda one: f"{one.service}: {state}")


def print_stopped(args: Args, done: tuple[Done, ...]) -> None:
    """Print the results of a deactivation."""
    words = ("already inactive, unchanged", "inactive")
    output.results(args, done, lambda one: f"{one.service}: {words[one.changed]}")


def print_outcomes(args: Args, outcomes: tuple[Outcome, ...]) -> None:
    """Print the results of an activation, as lines or as JSON."""

    def line(result: Outcome) -> str:
        state = "active" if result.changed else "already active, unchanged"
        state = "completed" if result.completed else state
        ports = ", ".join(output.ports_text(result.ports))
        shown = f"  ports: {ports}" if ports else ""
        return f"{result.service}: {state}  {', '.join(result.address)}{shown}".rstrip()

    output.results(args, outcomes, line)


# --- niso stack -----------------------------------------------------------------------------------


def run_stack(name: str, args: Args) -> int:
    return {
        "stack up": _up,
        "stack down": _down,
        "stack status": _status,
        "stack ps": _status,
        "stack restart": _stack_restart,
        "stack logs": _stack_logs,
    }[name](connect(), args)


def _up(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.stacks.up(
            args.dir,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.replace,
            trust_owner=args.trust_owner,
        )
    if args.dry_run:
        if not args.json:
            is_file = os.path.isfile(args.dir)
            net_commands.say_what_changes(
                host, args.dir if is_file else os.path.join(args.dir, "stack.toml")
            )
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
    print_outcomes(args, done.services)
    return 0


def _down(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.down(args.dir, volumes=args.volumes, dry_run=args.dry_run)
    if args.dry_run:
        return 0
    print_stopped(args, done.services)
    if not args.json and not done.services:
        print(f"stack {done.stack}: no known services, unchanged")
    return 0


def _status(host: Host, args: Args) -> int:
    with output.Progress(args) as host.progress:
        lines = host.stacks.status(args.dir)
    print_lines(args, lines)
    return 0


def _stack_restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.restart(args.dir)
    print_done(args, done, "restarted")
    if not args.json and not done:
        print("no service of the stack is active")
    return 0


def _stack_logs(host: Host, args: Args) -> int:
    lines = host.stacks.logs(
        args.dir,
        lines=args.lines,
        follow=args.follow,
        timestamps=args.timestamps,
        since=args.since,
    )
    return print_chunks(
        (f"{name} | ".encode() + line.removesuffix(b"\n") + b"\n" for name, line in lines),
        args.follow,
    )


# --- ps, inspect and logs -------------------------------------------------------------------------


COLUMNS = ("SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME")


def run_inspect(name: str, args: Args) -> int:
    host = connect()
    if name == "logs":
        return _logs(host, args)
    if name == "ps" and args.all_hosts:
        return _everywhere(host, args)
    with output.Progress(args) as host.progress:
        if name == "inspect":
            output.as_json(host.services.inspect(args.name))
        else:
            lines = host.services.list()
    if name == "ps":
        print_lines(args, lines)
    return 0


def _everywhere(host: Host, args: Args) -> int:
    """Print the services of all hosts of the cluster."""
    with output.Progress(args) as host.progress:
        lines = host.services.everywhere()
    if args.json:
        output.as_json(lines)
        return 0
    output.table(
        ("SERVICE", "HOST", "STATUS", "ADDRESS", "PORTS"),
        [
            (
                line.service,
                line.host,
                line.status,
                ", ".join(line.address) or "-",
                ", ".join(map(output.as_listed, line.ports)) or "-",
            )
            for line in lines
        ],
    )
    return 0


def print_lines(args: Args, lines: tuple[ServiceLine, ...]) -> None:
    """Print services as a table or as JSON."""
    if args.json:
        output.as_json(lines)
        return
    with_policy = any(line.audit_until for line in lines)
    output.table(
        (*COLUMNS, "POLICY") if with_policy else COLUMNS,
        [
            (
                line.service,
                f"{line.status}, {line.interrupted} interrupted"
                if line.interrupted
                else line.status,
                line.health or "-",
                line.mode or "-",
                ", ".join(line.address) or "-",
                ", ".join(output.ports_text(line.ports)) if line.ports else "-",
                "-" if line.uptime is None else output.duration(line.uptime),
                *(("audit" if line.audit_until else "-",) if with_policy else ()),
            )
            for line in lines
        ],
    )


def _logs(host: Host, args: Args) -> int:
    chunks = host.services.logs(
        args.name,
        lines=args.lines,
        follow=args.follow,
        timestamps=args.timestamps,
        since=args.since,
    )
    return print_chunks(chunks, args.follow)


def print_chunks(chunks: Iterable[bytes], follow: bool) -> int:
    """Print lines of logs; return the exit status. With ``follow``, each is printed immediately."""
    raw = sys.stdout.buffer
    terminal = output.is_terminal()
    gone: list[bool] = []
    try:
        if follow:
            _watch_reader(gone)
        for chunk in chunks:
            raw.write(_on_terminal(chunk) if terminal else chunk)
            if follow:
                raw.flush()
        raw.flush()
    except KeyboardInterrupt:
        if gone:
            raise BrokenPipeError from None
        return 130
    return 0


def _watch_reader(gone: list[bool]) -> None:
    """Interrupt this command when the program that reads its output exits.

    This works even if nothing is written. An item is then added to ``gone``.
    """
    import threading

    def watch() -> None:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        poll.poll()
        gone.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _on_terminal(chunk: bytes) -> bytes:
    return output.escaped_lines(chunk.decode("utf-8", "replace")).encode()


# --- exec and kill --------------------------------------------------------------------------------


def run_exec(name: str, args: Args) -> int:
    if name == "exec":
        return connect().services.exec(args.name, args.command, user=args.user)
    sent = connect().services.kill(*args.names, signal=args.signal)
    ended = ("", ", its process has ended")
    return output.results(args, sent, lambda s: f"{s.service}: {s.signal} sent{ended[s.ended]}")


# --- port-forward ---------------------------------------------------------------------------------


def run_forward(_: str, args: Args) -> int:
    host = connect()
    with Progress(args) as host.progress:
        if args.remove:
            done = host.services.port_unforward(args.name, args.port)
        else:
            done = host.services.port_forward(args.name, args.port, replace=args.replace)
    if args.json:
        output.as_json(done)
        return 0
    state = (
        "no longer published"
        if args.remove
        else "published"
        if done.changed
        else "already published, unchanged"
    )
    print(f"{done.service}: {', '.join(output.ports_text(done.ports))} {state}")
    for lost in done.taken:
        back = (
            ""
            if lost.service == done.service
            else "; --remove publishes the ports of its manifest again"
        )
        ports = ", ".join(output.ports_text(lost.ports))
        print(f"{lost.service}: {ports} no longer published{back}")
    for again in done.returned:
        print(f"{again.service}: {', '.join(output.ports_text(again.ports))} published again")
    return 0


# --- enable, disable and restore ------------------------------------------------------------------


def run_boot(name: str, args: Args) -> int:
    host = connect()
    if name == "restore":
        return _restore(host, args)
    if bool(args.names) == args.firewall:
        raise UsageError("missing NAME, or --firewall alone", f"niso help {name}")
    on = name == "enable"
    unchanged = "already enabled, unchanged" if on else "not enabled, unchanged"
    with Progress(args) as host.progress:
        if args.firewall:
            unchanged, marked = "unchanged", host.guard_firewalls(on)
        else:
            marked = (host.services.enable if on else host.services.disable)(*args.names)

    def line(mark: Marked) -> str:
        state = f"{name}d" if mark.changed else unchanged
        return f"{mark.service}: {state}{f'  {mark.unit}' if mark.unit else ''}"

    return output.results(args, marked, line)


def _restore(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.services.restore(timeout=timeout_s)
    print_outcomes(args, done.outcomes)
    if not args.json and not done.outcomes and not done.errors:
        print("no service is enabled")
    if done.errors:
        raise ErrorGroup([*done.errors])
    return 0
