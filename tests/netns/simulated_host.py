"""Be one host of many in a simulated cluster: what its agent keeps in etcd, without a kernel."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import ssl
import time
from pathlib import Path
from typing import Any

from fake_world import World

from niso.change import networks
from niso.cluster import mirror
from niso.cluster.agent import Agent, WatchedKeys
from niso.cluster.engine import Batch, Keys
from niso.cluster.etcd import Etcd, Reach, _batch
from niso.cluster.key_values import HostEntry
from niso.cluster.membership import ClusterKeys
from niso.kernel.ruleset import CLAIMS
from niso.plan.subnets import NetworkRequest

NETWORK_HOSTS = 10
KEYS = Keys()
CHUNK = re.compile(rb"\r\n[0-9a-f]+\r\n")


class Joined:
    """How a simulated host reaches the cluster: as all of its process, by one connection."""

    encryption, keys = "", KEYS

    def __init__(self, host: str, address: str, engine: Etcd) -> None:
        self.host, self.address, self._engine = host, address, engine

    def engine(self, brief: bool = False) -> Etcd:
        return self._engine


class Watch(Etcd):
    """A watch as the agent's, to select."""

    def __init__(self, access: Reach, prefix: str, kept: WatchedKeys, revision: int) -> None:
        super().__init__(access, 20.0)
        self.kept = kept
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        span = dict(zip(("key", "range_end"), map(_packed, (prefix, end)), strict=True))
        request = {**span, "start_revision": revision, "progress_notify": True}
        self._held = self._open("/v3/watch", {"create_request": request})
        self.socket = self._held[0].sock
        self.prefix, self._data = prefix, b""
        assert self.socket is not None
        self.socket.setblocking(False)

    def read(self) -> list[Batch]:
        """What has come. Raises EOFError if the watch has ended."""
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while more := self.socket.recv(1 << 16):
                self._data += more
            raise EOFError(self.prefix)
        # lines of JSON, which have neither CR nor LF, in chunks (RFC 9112, 7.1)
        *lines, self._data = CHUNK.sub(b"", self._data).split(b"}\n")
        found = (_batch(line[line.index(b"{") :] + b"}") for line in lines)
        return [batch for batch in found if batch is not None]


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Simulated:
    """One host."""

    def __init__(self, number: int, folder: Path, engine: Etcd) -> None:
        self.number = number
        self.watches: list[Watch] = []
        self.name, self.network = f"h{number}", f"n{number // NETWORK_HOSTS}"
        self.address = f"198.51.{number // 250}.{number % 250 + 1}"
        self.engine = engine
        self.world = World(folder / self.name)
        (folder / self.name).mkdir()
        self.world.__enter__()
        self.state = os.environ["NISO_STATE_DIR"]
        cluster = ClusterKeys(engine).cluster()
        assert cluster is not None
        store = self.world.store
        with store.transaction():
            store.across.set_cluster(cluster.identity)
        joined: Any = Joined(self.name, self.address, engine)
        self.world.machine = self.world.machine._replace(joined=lambda: joined)
        me = (self.name, store.state_id(), cluster.identity, "boot")
        self.agent = Agent(me, lambda: engine, lambda lost: None, lambda line: None)
        subnet = f"10.{100 + number // NETWORK_HOSTS // 250}.{number // NETWORK_HOSTS % 250}.0/24"
        self.here()
        networks.create(self.world.machine, NetworkRequest(self.network, (subnet,), span=True))

    def here(self) -> None:
        """Make its state folder that of this process."""
        os.environ["NISO_STATE_DIR"] = self.state

    def start(self, *services: str) -> None:
        self.here()
        on = {"networks": [self.network]}
        self.world.activate(*(self.world.package(name, network=on) for name in services))

    def host(self) -> HostEntry:
        return HostEntry(self.name, self.world.store.state_id(), self.address, 1500, False)

    def look(self, whole: bool) -> list[str]:
        self.here()
        store, kernel = self.world.store, self.world.kernel
        return self.agent.poll(store, kernel, self.engine, time.monotonic(), whole)

    def differs(self, hosts: list[HostEntry]) -> bool:
        """Whether its mirror or its kernel is not as the cluster is."""
        items = self.engine.get(KEYS.addresses(self.network)).items
        seen = mirror.seen(hosts, {self.network: items}, KEYS, None, self.name)
        wanted = {
            name: (known.addresses, known.names)
            for name, known in seen.services.items()
            if all(address.host != self.name for address in known.addresses)
        }
        across = self.world.store.across
        have = {name: (rows, across.names(name)) for name, rows in across.addresses().items()}
        alive = {host.name: host.alive for host in hosts if host.name != self.name}
        live = {name: live for name, (_, _, live) in across.peers().items()}
        elements = self.world.kernel.elements.values()
        heard = {element.owner for element in elements if element.container in CLAIMS}
        return have != wanted or live != alive or heard != wanted.keys()
