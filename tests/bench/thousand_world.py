"""A world of many services with their processes on one network, and what commands take beside them."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from functools import partial

import control
from niso_world import NisoWhole, package
from worlds import Mapping, World, run, timed

SPENT = str(pathlib.Path(__file__).with_name("spent.py"))
SCRIPT = "sleep 0.3; exec busybox httpd -f -p 80"
"""Each service of the stack takes so long until it is healthy."""


class Thousand(NisoWhole):
    SUBNET = "10.64.0.0/16"

    def commands(self) -> dict[str, float]:
        """What single commands take: wall and processor time in ms, and their memory in MiB."""
        folder = package("extra", [Mapping(9_000, 80)])
        found: dict[str, float] = {}
        for what, words in (
            ("check", ["net", "check"]),
            ("ps", ["ps"]),
            ("stats", ["net", "stats"]),
            ("activate", ["activate", folder]),
            ("remove", ["remove", "extra"]),
        ):
            found |= spent(what, *words)
        return found

    def repair(self) -> dict[str, float]:
        """Have all rules flushed by another program, and repair that."""
        run("nft", "flush", "ruleset")
        return spent("repair", "net", "repair")

    def stacked(self, layers: int, wide: int) -> dict[str, float]:
        """A stack whose services wait for each other, to its longest path alone; both in ms."""
        found = {}
        for what, across in (("longest path", 1), ("stack", wide)):
            folder = stack(what.split()[0], layers, across)
            found[what] = timed(partial(run, "niso", "stack", "up", folder))
            run("niso", "stack", "down", folder)
        return found

    def end(self, count: int) -> dict[str, float]:
        """Enable so many services, and deactivate all."""
        run("niso", "enable", *(f"s{number:04}" for number in range(count)))
        return spent("end all", "deactivate", "--all")

    def restore(self) -> dict[str, float]:
        """Start the enabled services, as at boot."""
        return spent("restore", "restore")

    def crowd(self, leases: int, networks: int) -> None:
        """Have so many leases of inactive services on the network, and so many further networks."""
        import niso
        from niso.store import service_rows
        from niso.store.store import Store

        network, store = control.NETWORK, Store.open()
        known = store.service("s0000")
        assert known is not None
        with store.transaction():
            for number in range(leases):
                name = f"idle{number:05}"
                spec = known.require_service()
                entry = spec.network._replace(hostname=name, ports=())
                spec = spec._replace(name=name, network=entry)
                manifest, uid = service_rows.encode_service(spec), known.uid + 1_000 + number
                idle = known._replace(name=name, manifest=manifest, active=False, uid=uid)
                store.put_service(idle)
                store.set_names(name, spec.names)
                store.set_endpoints(name, (network,))
                offset = self.services + 2 + number
                address = f"10.64.{offset >> 8}.{offset & 255}"
                store.add_lease(name, network, 4, offset, address, static=False)
        with niso.connect() as host:
            for number in range(networks):
                host.networks.create(f"net{number:03}")


class Rebooted(Thousand):
    """A machine that has the state of another one."""

    def __init__(self, flows: str) -> None:
        World.__init__(self, flows)


def spent(what: str, *words: str) -> dict[str, float]:
    """What a command of niso takes: wall and processor time in ms, and the most memory in MiB."""
    found = json.loads(run(sys.executable, "-ISB", SPENT, "niso", *words))
    return {
        what: found["s"] * 1000,
        f"{what}, processor": found["processor"] * 1000,
        f"{what}, MiB": found["mib"],
    }


def stack(name: str, layers: int, wide: int) -> str:
    """The folder of a stack: each service waits until all of the layer before are healthy."""
    folder = f"/tmp/stacks/{name}"
    os.makedirs(folder, exist_ok=True)
    lines = [f'[stack]\nname = "{name}"\n']
    for layer in range(layers):
        needs = [f'{name}{layer - 1}x{at} = "healthy"' for at in range(wide)] if layer else []
        for at in range(wide):
            lines.append(
                f"[services.{name}{layer}x{at}]\ndepends_on = {{ {', '.join(needs)} }}\n"
                f'binary = {{ entrypoint = "/usr/bin/busybox", args = ["sh", "-c", "{SCRIPT}"] }}\n'
                f'network = {{ networks = ["{control.NETWORK}"] }}\n'
                "healthcheck = { tcp = 80 }\n"
            )
    pathlib.Path(folder, "stack.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder
