"""The peers in a lab. Neither can publish a port of a service that runs: one more port is one more service that has it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time

from worlds import Mapping, World, kernel_objects, run, timed


class _Peer(World):
    """``start`` and ``end`` a service; what they do is timed."""

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        self._next = 50_000

    def start(self, name: str, mappings: list[Mapping]) -> None:
        raise NotImplementedError

    def end(self, name: str) -> None:
        raise NotImplementedError

    def before(self, name: str, mappings: list[Mapping]) -> None:
        """What is needed first and is not the peer's own work."""

    def after(self, name: str) -> None:
        """What is left and is not the peer's own work."""

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        for name, mappings in plan.items():
            self.before(name, mappings)
            self.start(name, mappings)

    def one(self, way: str) -> list[float]:
        """A new service with one port, and its end, in ms."""
        self._next += 1
        return self._extra([Mapping(self._next, 81)], False)

    def span(self, way: str, host: int, container: int, count: int, counted: bool) -> list[float]:
        return self._extra([Mapping(host, container, "tcp", count)], counted)

    def _extra(self, mappings: list[Mapping], counted: bool) -> list[float]:
        objects = kernel_objects() if counted else 0
        self.before("extra", mappings)
        added = timed(lambda: self.start("extra", mappings))
        objects = kernel_objects() - objects if counted else 0
        taken = timed(lambda: self.end("extra"))
        self.after("extra")
        return [added, taken, objects] if counted else [added, taken]


class Netavark(_Peer):
    """What podman calls for a bridge network, by itself, with its nftables driver."""

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        os.environ["NETAVARK_FW"] = "nftables"
        self._addresses: dict[str, str] = {}

    def before(self, name: str, mappings: list[Mapping]) -> None:
        run("ip", "netns", "add", f"nv-{name}")
        number = len(self._addresses) + 2
        address = self._addresses.setdefault(name, f"10.88.{number // 256}.{number % 256}")
        request = {
            "container_id": hashlib.sha256(name.encode()).hexdigest(),
            "container_name": name,
            "networks": {"podman": {"interface_name": "eth0", "static_ips": [address]}},
            "network_info": {
                "podman": {
                    "name": "podman",
                    "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
                    "driver": "bridge",
                    "network_interface": "podman0",
                    "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
                    "ipv6_enabled": False,
                    "internal": False,
                    "dns_enabled": False,
                    "ipam_options": {"driver": "host-local"},
                }
            },
            "port_mappings": [
                {
                    "host_ip": "",
                    "host_port": each.host,
                    "container_port": each.container,
                    "protocol": each.proto,
                    "range": each.length,
                }
                for each in mappings
            ],
        }
        with open(f"/tmp/{name}.json", "w", encoding="utf-8") as file:
            json.dump(request, file)

    def start(self, name: str, mappings: list[Mapping]) -> None:
        self._call("setup", name)

    def end(self, name: str) -> None:
        self._call("teardown", name)

    def after(self, name: str) -> None:
        run("ip", "netns", "delete", f"nv-{name}")

    def _call(self, verb: str, name: str) -> None:
        run("netavark", "--config", "/run/netavark", "--file", f"/tmp/{name}.json", verb, f"/run/netns/nv-{name}")

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", f"nv-{name}"]


class Docker(_Peer):
    """dockerd without its userland proxy, which would cost a process for each port more."""

    SOCKET = "unix:///run/bench-docker.sock"
    IMAGE = "bench:1"

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        os.environ["DOCKER_HOST"] = self.SOCKET
        os.makedirs("/tmp/docker")
        places = ["--data-root", "/tmp/docker/data", "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"]
        with open("/tmp/docker/log", "w", encoding="utf-8") as log:
            daemon = subprocess.Popen(
                ["dockerd", *places, "--host", self.SOCKET, "--storage-driver", "vfs", "--userland-proxy=false"],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                with open("/tmp/docker/log", encoding="utf-8") as log:
                    raise RuntimeError(f"dockerd does not run: {log.readlines()[-1].strip()}")
            time.sleep(0.05)
        os.makedirs("/tmp/docker/image")
        shutil.copy(flows, "/tmp/docker/image/flows")  # linked statically: it needs nothing else
        run("tar", "-C", "/tmp/docker/image", "-cf", "/tmp/docker/image.tar", "flows")
        run("docker", "import", "/tmp/docker/image.tar", self.IMAGE)

    def start(self, name: str, mappings: list[Mapping]) -> None:
        words = []
        for each in mappings:
            host, container = (f"{n}-{n + each.length - 1}" if each.length > 1 else str(n) for n in each[:2])
            words += ["-p", f"{host}:{container}/{each.proto}"]
        run("docker", "run", "-d", "--name", name, *words, self.IMAGE, "/flows", "serve", self.server_cpu, "9")

    def end(self, name: str) -> None:
        run("docker", "rm", "--force", name)

    def in_service(self, name: str) -> list[str]:
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", name).strip()
        return ["nsenter", "--net", "--target", pid]
