"""enable, disable, restore."""

from __future__ import annotations

import argparse

from niso import boot
from niso.apply import Report, silent
from niso.cli import lifecycle, output
from niso.errors import ErrorGroup
from niso.store.store import Store

EPILOG = {
    "enable": """\
Where systemd is the init, each service gets a unit niso-NAME.service, so that systemctl status, stop, start and restart work,
and journalctl -u niso-NAME shows what it wrote. Elsewhere have niso restore run at boot.

examples:
  niso enable api
  niso enable db api
""",
    "disable": "A service that is active stays so.\n\nexample:\n  niso disable api\n",
    "restore": """\
Activates every enabled service with the manifest of its last activation, its addresses, ports and forwards. One that cannot be
activated does not keep the others from it: it is named, and the exit status is 1.

examples:
  niso restore
  @reboot /usr/local/bin/niso restore          in root's crontab
""",
}


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG[name]
    if name == "restore":
        parser.add_argument(
            "--timeout", default="60s", metavar="TIME", help="how long to wait for each service (default 60s)"
        )
    else:
        parser.add_argument("names", nargs="+", metavar="NAME", help="a known service")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(name: str, args: argparse.Namespace) -> int:
    report: Report = output.note if args.verbose else silent
    if name == "restore":
        return _restore(args, report)
    store = Store.open(create=False)
    names = list(dict.fromkeys(store.resolve(each) for each in args.names))
    marked = (boot.enable if name == "enable" else boot.disable)(store, names, report)
    if args.json:
        output.as_json([{"service": each.service, "changed": each.changed, "unit": each.unit} for each in marked])
        return 0
    for each in marked:
        words = f"{name}d" if each.changed else f"is {name}d already" if name == "enable" else "is not enabled"
        print(f"{each.service}: {words}{f'  {each.unit}' if each.unit else ''}")
    return 0


def _restore(args: argparse.Namespace, report: Report) -> int:
    timeout_s = lifecycle.timeout(args.timeout)
    store = Store.open(create=False)
    done = boot.restore(store, timeout_s, report)
    lifecycle.warn(store, done.outcomes)
    lifecycle.settle(store, [outcome.service for outcome in done.outcomes])
    if args.json:
        output.as_json([lifecycle.outcome_json(store, outcome) for outcome in done.outcomes])
    else:
        for outcome in done.outcomes:
            print(lifecycle.outcome_text(outcome))
        if not done.outcomes and not done.errors:
            print("no service is enabled")
    if done.errors:
        raise ErrorGroup(done.errors)
    return 0
