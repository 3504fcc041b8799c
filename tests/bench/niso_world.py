"""Worlds of niso in a lab: in this process, and by its command. Services have no process."""

from __future__ import annotations

import os
import pathlib
import sys

import control
from worlds import SPARE, SPARE_TO, Mapping, World, ports_of, run, timed

from niso.change import activate as change_activate
from niso.change import deactivate, port_forward
from niso.change.targets import find_targets
from niso.manifest.addresses_and_ports import parse_port
from niso.plan.records import PortMapping

HERE = pathlib.Path(__file__).resolve().parent
WITHOUT_PROCESS = (sys.executable, "-B", str(HERE / "without_process.py"))


class NisoWorld(World):
    """All services are on one network, as the peers' are."""

    AT_ONCE = 50

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        self.control = control.World()
        self.store = self.control.store
        self.machine = self.control.machine
        control._without_processes().__enter__()
        self._next = 50_000

    def grow_by(self, numbers: list[int]) -> None:
        self.activate(
            [package(f"s{number:04}", [Mapping(20_000 + number, 80)]) for number in numbers]
        )

    def network(self) -> dict[str, float]:
        """One service's network attached and detached, in process: the kernel's part, and with all around it."""
        found = dict(self.control.one())
        return {name: found[name] for name in ("attach", "detach", "activate", "deactivate")}

    def command(self) -> dict[str, float]:
        """The same as whole commands of a service that has no process."""
        folder = package("other", [Mapping(SPARE, 80)])
        added = timed(lambda: run(*WITHOUT_PROCESS, "activate", folder))
        return {
            "attach": added,
            "detach": timed(lambda: run(*WITHOUT_PROCESS, "deactivate", "other")),
        }

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        self.activate([package(name, mappings) for name, mappings in plan.items()])

    def activate(self, folders: list[str]) -> None:
        change_activate.activate(self.machine, find_targets(self.store, folders), 60)

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"niso-{name}"]

    def publish(self, way: str, count: int, each: bool) -> dict[str, float]:
        """``count`` ports published and taken away: with a new service, in process or by the "command", or by "port-forward"."""
        if way == "forward":
            # one more range of a service that runs; ports that each lead to another number are one such range too
            words = f"{SPARE}-{SPARE + count - 1}:{SPARE_TO if each else SPARE}-{(SPARE_TO if each else SPARE) + count - 1}"
            return self._forward(parse_port(words, "PORT"))
        folder = package("extra", ports_of(count, each))
        if way == "command":
            added = timed(lambda: run(*WITHOUT_PROCESS, "activate", folder))
            return {
                "publish": added,
                "withdraw": timed(lambda: run(*WITHOUT_PROCESS, "deactivate", "extra")),
            }
        added = timed(lambda: self.activate([folder]))
        return {
            "publish": added,
            "withdraw": timed(lambda: deactivate.deactivate(self.machine, ["extra"])),
        }

    def one_more(self, way: str) -> dict[str, float]:
        """One more port and its end: of a service that runs, in "process" or by the "command"."""
        self._next += 1
        if way == "command":
            words = ["port-forward", "first", f"{self._next}:81"]
            added = timed(lambda: run("niso", *words))
            return {"publish": added, "withdraw": timed(lambda: run("niso", *words, "--remove"))}
        return self._forward(PortMapping("", self._next, 81, "tcp"))

    def _forward(self, port: PortMapping) -> dict[str, float]:
        added = timed(lambda: port_forward.port_forward(self.machine, "first", port))
        return {
            "publish": added,
            "withdraw": timed(lambda: port_forward.port_unforward(self.machine, "first", port)),
        }


class NisoWhole(World):
    """Services with their processes, by the command alone."""

    AT_ONCE = 50
    SUBNET = control.SUBNET

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        run("niso", "net", "create", control.NETWORK, "--subnet", self.SUBNET)

    def grow_by(self, numbers: list[int]) -> None:
        run(
            "niso",
            "activate",
            *(package(f"s{number:04}", [Mapping(20_000 + number, 80)]) for number in numbers),
        )

    def whole(self) -> dict[str, float]:
        folder = package("extra", [Mapping(9_000, 80)])
        started = timed(lambda: run("niso", "activate", folder))
        return {"start": started, "remove": timed(lambda: run("niso", "remove", "extra"))}

    def several(self, count: int) -> dict[str, float]:
        """Many services in one command, for each of them."""
        names = [f"many{number:03}" for number in range(count)]
        folders = [
            package(name, [Mapping(10_000 + number, 80)]) for number, name in enumerate(names)
        ]
        started = timed(lambda: run("niso", "activate", *folders)) / count
        return {
            "start of many, each": started,
            "removal of many, each": timed(lambda: run("niso", "remove", *names)) / count,
        }

    def floor(self) -> dict[str, float]:
        return {
            "python -c pass": timed(lambda: run(sys.executable, "-c", "pass")),
            "niso --version": timed(lambda: run("niso", "--version")),
            "niso net list": timed(lambda: run("niso", "net", "list")),
            "niso ps": timed(lambda: run("niso", "ps")),
        }


def package(
    name: str, mappings: list[Mapping], network: str = control.NETWORK, more: str = ""
) -> str:
    """The folder of a service that sleeps, as the peers' containers do."""
    folder = f"/tmp/packages/{name}"
    os.makedirs(folder, exist_ok=True)
    ports = [
        f"{_span(mapping.host, mapping.length)}:{_span(mapping.container, mapping.length)}/{mapping.proto}"
        for mapping in mappings
    ]
    with open(f"{folder}/manifest.toml", "w", encoding="utf-8") as file:
        file.write(
            f'[package]\nname = "{name}"\nversion = "1"\n'
            '[binary]\nentrypoint = "/usr/bin/busybox"\nargs = ["sleep", "10000"]\n'
            f'[network]\nnetwork = "{network}"\nports = {ports}\n{more}'
        )
    return folder


def _span(first: int, length: int) -> str:
    return f"{first}-{first + length - 1}" if length > 1 else str(first)
