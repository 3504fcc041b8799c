"""port-forward."""

from __future__ import annotations

from niso.base.errors import InvalidInput, UsageError
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress
from niso.commands import port_forward
from niso.plan.records import Port
from niso.store.store import Store


def run(_: str, args: Args) -> int:
    from niso.manifest.parse_ports import parse_port

    try:
        port = parse_port(args.port, "PORT")
    except InvalidInput as error:
        raise UsageError.of(error) from None
    if not port.host_port:
        raise UsageError(
            f"PORT {args.port!r}: a forward names its host port",
            f"niso port-forward {args.name} 8080{args.port}",
        )
    store = Store.open(create=False)
    name = store.resolve(args.name)
    taken: list[tuple[str, Port]] = []
    changed = True
    with Progress(args) as report:
        if args.remove:
            port_forward.port_unforward(store, name, port, report)
        else:
            changed, taken = port_forward.port_forward(
                store, name, port, replace=args.replace, report=report
            )
    if args.json:
        rows = output.ports_json([port], store.port_families(name))
        lost = [
            {"service": holder, "ports": output.ports_json([held], store.port_families(holder))}
            for holder, held in taken
        ]
        output.as_json({"service": name, "changed": changed, "ports": rows, "taken": lost})
        return 0
    state = (
        "no longer published" if args.remove else "published" if changed else "is published already"
    )
    print(f"{name}: {output.port_text(port)} {state}")
    for holder, held in taken:
        back = (
            ""
            if holder == name
            else f"; once it is free, niso activate {holder} publishes what its manifest has"
        )
        print(f"{holder}: {output.port_text(held)} no longer published{back}")
    return 0
