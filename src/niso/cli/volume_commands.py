"""Run niso volume, save and load."""

from __future__ import annotations

from niso.api.host import Host, connect
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    import niso


def run(name: str, args: Args) -> int:
    """Run a command of this module. Returns the exit status."""
    return int(globals()[f"_{name.replace(' ', '_')}"](connect(), args))


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
