"""port-forward."""

from __future__ import annotations

import argparse

from niso import services
from niso.apply import Report, silent
from niso.cli import output
from niso.errors import InvalidInput, UsageError
from niso.records import Port
from niso.store.store import Store

EPILOG = """\
examples:
  niso port-forward api 9090:9090             at once, no restart
  niso port-forward dns 127.0.0.1:53:53/udp
  niso port-forward api-2 8080:8080 --replace   takes it, at all of its addresses, from whoever
                                                has it; open connections live on
  niso port-forward api 9090:9090 --remove

It survives a crash, a restart and an unchanged activate, and ends with deactivate.
"""


def configure(_: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("name", metavar="NAME", help="an active service")
    parser.add_argument("port", metavar="PORT", help="[ADDRESS:]HOST:CONTAINER[/PROTO], ranges too")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--remove", action="store_true", help="take it away again")
    which.add_argument("--replace", action="store_true", help="take the host port from the service that has it")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(_: str, args: argparse.Namespace) -> int:
    from niso.model.ports import parse_port

    try:
        port = parse_port(args.port, "PORT")
    except InvalidInput as error:
        raise UsageError(error.message, error.hint, error.key) from None
    if not port.host_port:
        raise UsageError(
            f"PORT {args.port!r}: a forward names its host port", f"niso port-forward {args.name} 8080{args.port}"
        )
    report: Report = output.note if args.verbose else silent
    store = Store.open(create=False)
    name = store.resolve(args.name)
    taken: list[tuple[str, Port]] = []
    if args.remove:
        services.port_unforward(store, name, port, report)
        changed = True
    else:
        changed, taken = services.port_forward(store, name, port, replace=args.replace, report=report)
    if args.json:
        rows = output.ports_json([port], store.port_families(name))
        lost = [
            {"service": holder, "ports": output.ports_json([held], store.port_families(holder))}
            for holder, held in taken
        ]
        output.as_json({"service": name, "changed": changed, "ports": rows, "taken": lost})
        return 0
    state = "no longer published" if args.remove else "published" if changed else "is published already"
    print(f"{name}: {output.port_text(port)} {state}")
    for holder, held in taken:
        back = "" if holder == name else f"; once it is free, niso activate {holder} publishes what its manifest has"
        print(f"{holder}: {output.port_text(held)} no longer published{back}")
    return 0
