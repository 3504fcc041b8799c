"""niso in a lab: in this process, and by its command. Services have all but a process, which is not what is measured."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
from unittest import mock

from worlds import Mapping, World, kernel_objects, run, timed

from niso import services, starting
from niso.model.ports import parse_port
from niso.records import Port
from niso.runtime import process
from niso.store.store import Store
from niso.targets import find_targets

NETWORK = "backend"  # one for all: at most 253 services


class NisoWorld(World):
    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        nothing = mock.Mock(return_value=None)
        state = mock.Mock(state="running", pid=1, error=None)
        # A service's process is started and ended by conmon and crun: 20 ms each, whatever ports it has.
        mock.patch.multiple(
            process,
            start=nothing,
            stop=nothing,
            ask_to_end=mock.Mock(return_value=-1),
            runs=mock.Mock(return_value=True),
            status=mock.Mock(return_value=state),
        ).start()
        mock.patch.object(starting, "run", nothing).start()
        self.store = Store.open()
        self._next = 50_000

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        folders = [_package(name, mappings) for name, mappings in plan.items()]
        services.activate(self.store, find_targets(self.store, folders), 60)

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"niso-{name}"]

    def one(self, way: str) -> list[float]:
        """Publish one more port and take it away, in ms each: "process" and "command" of a service that runs.

        "attach" with a new service that has it: links, addresses, routes and rules, as the peers have to.
        """
        self._next += 1
        host = self._next
        if way == "process":
            return self._forward(Port("", host, 81, "tcp"))
        if way == "command":
            words = ["port-forward", "first", f"{host}:81"]
            return [timed(lambda: run("niso", *words)), timed(lambda: run("niso", *words, "--remove"))]
        folder = _package("extra", [Mapping(host, 81)])
        added = timed(lambda: services.activate(self.store, find_targets(self.store, [folder]), 60))
        return [added, timed(lambda: services.deactivate(self.store, ["extra"]))]

    def span(self, way: str, host: int, container: int, count: int, counted: bool) -> list[float]:
        """Publish a range and take it away, in ms each; and how many objects of the kernel it is, where ``counted``."""
        words = f"{host}-{host + count - 1}:{container}-{container + count - 1}"
        if way == "process":
            return self._forward(parse_port(words, "PORT"), counted)
        argv = ["niso", "port-forward", "first", words]
        return [timed(lambda: run(*argv)), timed(lambda: run(*argv, "--remove"))]

    def _forward(self, port: Port, counted: bool = False) -> list[float]:
        before = kernel_objects() if counted else 0
        added = timed(lambda: services.port_forward(self.store, "first", port))
        objects = kernel_objects() - before if counted else 0
        taken = timed(lambda: services.port_unforward(self.store, "first", port))
        return [added, taken, objects] if counted else [added, taken]

    def profile(self, times: int, host: int, container: int, count: int) -> str:
        """The 10 functions with the most time of their own, and of all, over ``times`` port-forwards."""
        ports = [Port("", host + n * count, container, "tcp", count) for n in range(times)]
        profile = cProfile.Profile()
        for port in ports:
            profile.enable()
            services.port_forward(self.store, "first", port)
            profile.disable()
            services.port_unforward(self.store, "first", port)
        text = io.StringIO()
        found = pstats.Stats(profile, stream=text).strip_dirs()
        found.sort_stats("tottime").print_stats(10)
        found.sort_stats("cumtime").print_stats(25)
        return text.getvalue()


def _package(name: str, mappings: list[Mapping]) -> str:
    folder = f"/tmp/packages/{name}"
    os.makedirs(folder, exist_ok=True)
    ports = [f"{each.host}:{each.container}/{each.proto}" for each in mappings]
    with open(f"{folder}/manifest.toml", "w", encoding="utf-8") as file:
        file.write(
            f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "/usr/bin/sleep"\nargs = ["100"]\n'
            f'[network]\nnetwork = "{NETWORK}"\nports = {ports}\n'
        )
    return folder
