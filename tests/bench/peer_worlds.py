"""Worlds of the peers' network tools alone, as podman and Kubernetes call them: netavark and CNI.

Neither can publish a port of a service that runs: one more port is one more service that has it. A service is a namespace, made
before the clock starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

from worlds import SPARE, Mapping, World, ports_of, run, timed


class NetworkTool(World):
    """``attach`` and ``detach`` the network of a namespace; what they do is timed."""

    def attach(self, name: str, mappings: list[Mapping]) -> None:
        raise NotImplementedError

    def detach(self, name: str) -> None:
        raise NotImplementedError

    def prepare(self, name: str, mappings: list[Mapping]) -> None:
        """Write what the tool is to read."""

    def grow_by(self, numbers: list[int]) -> None:
        self.publish_all({f"s{number:04}": [Mapping(20_000 + number, 80)] for number in numbers})

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        for name, mappings in plan.items():
            run("ip", "netns", "add", name)
            self.prepare(name, mappings)
            self.attach(name, mappings)

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", name]

    def network(self) -> dict[str, float]:
        added, taken = self._extra([Mapping(SPARE, 80)])
        return {"attach": added, "detach": taken}

    def publish(self, way: str, count: int, each: bool) -> dict[str, float]:
        added, taken = self._extra(ports_of(count, each))
        return {"publish": added, "withdraw": taken}

    def one_more(self, way: str) -> dict[str, float]:
        return self.publish("", 1, False)

    def _extra(self, mappings: list[Mapping]) -> tuple[float, float]:
        run("ip", "netns", "add", "extra")
        self.prepare("extra", mappings)
        try:
            return timed(lambda: self.attach("extra", mappings)), timed(
                lambda: self.detach("extra")
            )
        finally:
            run("ip", "netns", "delete", "extra")


class Netavark(NetworkTool):
    """What podman calls for a bridge network, with its nftables driver."""

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        os.environ["NETAVARK_FW"] = "nftables"
        self._addresses: dict[str, str] = {}
        run("netavark", "--version")

    def prepare(self, name: str, mappings: list[Mapping]) -> None:
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
                    "host_port": mapping.host,
                    "container_port": mapping.container,
                    "protocol": mapping.proto,
                    "range": mapping.length,
                }
                for mapping in mappings
            ],
        }
        with open(f"/tmp/{name}.json", "w", encoding="utf-8") as file:
            json.dump(request, file)

    def attach(self, name: str, mappings: list[Mapping]) -> None:
        self._call("setup", name)

    def detach(self, name: str) -> None:
        self._call("teardown", name)

    def _call(self, verb: str, name: str) -> None:
        run(
            "netavark",
            "--config",
            "/run/netavark",
            "--file",
            f"/tmp/{name}.json",
            verb,
            f"/run/netns/{name}",
        )


class Cni(NetworkTool):
    """CNI's bridge with host-local, portmap and firewall, called one after the other as libcni does."""

    CHAIN = (
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": "/tmp/cni",
                "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    )

    def __init__(self, flows: str) -> None:
        super().__init__(flows)
        self._path = f"{os.environ['BENCH_PEERS']}/containernetworking-plugins/usr/lib/cni"
        for plugin in ("host-local", *(str(each["type"]) for each in self.CHAIN)):
            run(f"{self._path}/{plugin}", "--version")
        self._ports: dict[str, list[dict[str, object]]] = {}
        self._results: dict[str, object] = {}

    def prepare(self, name: str, mappings: list[Mapping]) -> None:
        self._ports[name] = [
            {
                "hostPort": mapping.host + i,
                "containerPort": mapping.container + i,
                "protocol": mapping.proto,
            }
            for mapping in mappings
            for i in range(mapping.length)  # it knows no ranges
        ]

    def attach(self, name: str, mappings: list[Mapping]) -> None:
        result: object = None
        for plugin in self.CHAIN:
            result = json.loads(self._call("ADD", plugin, name, result))
        self._results[name] = result

    def detach(self, name: str) -> None:
        for plugin in reversed(self.CHAIN):
            self._call("DEL", plugin, name, self._results[name])

    def _call(self, verb: str, plugin: dict[str, object], name: str, previous: object) -> str:
        config = {
            **plugin,
            "cniVersion": "1.0.0",
            "name": "bench",
            "runtimeConfig": {"portMappings": self._ports[name]},
        }
        if previous is not None:
            config["prevResult"] = previous
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self._path,
        }
        done = subprocess.run(
            [f"{self._path}/{plugin['type']}"],
            input=json.dumps(config),
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).split()  # over many lines
            raise RuntimeError(f"CNI {plugin['type']} {verb}: {' '.join(said)[:300]}")
        return done.stdout
