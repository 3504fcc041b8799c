"""Worlds in which a service is replaced by its next version while clients send requests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import control
from engine_worlds import IMAGE, Docker, Podman
from niso_world import NisoWhole, package
from worlds import HOST, LOWEST, SERVED, Mapping, World, run

PORTS = [Mapping(LOWEST, SERVED)]
SERVER = ("/bin/busybox", "httpd", "-f", "-p", str(SERVED))

CLIENTS = r"""
import json, socket, sys, threading
host, port, end = sys.argv[1], int(sys.argv[2]), threading.Event()
counts, lock = [0, 0], threading.Lock()
def ask():
    while not end.is_set():
        try:
            with socket.create_connection((host, port), timeout=10) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                good = s.recv(100).startswith(b"HTTP/1.")
        except OSError:
            good = False
            end.wait(0.001)  # else a refused port is asked far more often than one that serves
        with lock:
            counts[0] += 1
            counts[1] += not good
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.read()
end.set()
for thread in threads: thread.join()
print(json.dumps(counts))
"""


class Deploys(World):
    """Replace a service that answers HTTP requests."""

    _version = 0

    def replace(self) -> dict[str, float]:
        """Deploy the next version under load: requests, those that failed, and the time in ms."""
        if not self._version:
            self._deploy()
        clients = subprocess.Popen(
            ["ip", "netns", "exec", "client", sys.executable, "-ISc", CLIENTS, HOST, str(LOWEST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert clients.stdout
        clients.stdout.readline()
        began = time.perf_counter()
        self._deploy()
        took = (time.perf_counter() - began) * 1000
        time.sleep(0.5)
        requests, failed = json.loads(clients.communicate("", timeout=60)[0])
        return {"requests": requests, "failed requests": failed, "deploy": took}

    def _deploy(self) -> None:
        self._version += 1
        self.version(self._version)

    def version(self, number: int) -> None:
        """Replace the service by a version."""
        raise NotImplementedError


class NisoDeploys(NisoWhole, Deploys):
    """niso, the way it changes a service without replicas: stop-first."""

    MORE = '[healthcheck]\ntcp = 80\ninterval = "100ms"\n'

    def version(self, number: int) -> None:
        folder = package(
            "web", PORTS, control.NETWORK, f'[environment]\nV = "{number}"\n{self.MORE}'
        )
        manifest = f"{folder}/manifest.toml"
        with open(manifest, encoding="utf-8") as file:
            text = file.read()
        words = json.dumps(list(SERVER[1:]))
        with open(manifest, "w", encoding="utf-8") as file:
            file.write(re.sub(r"^args = .*$", f"args = {words}", text, flags=re.MULTILINE))
        run("niso", "activate", folder)


class NisoStartFirst(NisoDeploys):
    """niso with a service address, one instance."""

    MORE = f'{NisoDeploys.MORE}[service]\nupdate = "start-first"\n[deploy]\nmonitor = "0s"\ndrain = "5s"\n'


class NisoReplicas(NisoDeploys):
    """niso with three instances."""

    MORE = f'{NisoDeploys.MORE}[service]\nreplicas = 3\n[deploy]\nmonitor = "0s"\ndrain = "5s"\n'


class _Engine(Deploys):
    """An engine: remove the container, and run the next one, as compose and scripts do."""

    PROGRAM: str
    REMOVE: tuple[str, ...]

    def version(self, number: int) -> None:
        run(self.PROGRAM, *self.REMOVE, "web")
        words: list[Any] = ["-p", f"{LOWEST}:{SERVED}", "-e", f"V={number}"]
        run(self.PROGRAM, "run", "-d", "--name", "web", *words, IMAGE, *SERVER)


class PodmanDeploys(Podman, _Engine):
    """podman."""


class DockerDeploys(Docker, _Engine):
    """docker."""
