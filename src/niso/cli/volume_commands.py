"""Run niso volume."""

from __future__ import annotations

from niso.api.host import Host, connect
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args

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
