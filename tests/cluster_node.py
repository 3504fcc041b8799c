"""Be a host of a cluster in memory whose link to the engine fails, and whose commands may be cut off."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_world import KEYS, Joined
from fake_world import Steps, World

from niso.change.cluster_hosts import end_services
from niso.cluster.agent import Agent, WatchedKeys
from niso.cluster.engine import COMPACTED, NoAnswer, Refused
from niso.cluster.key_values import HostEntry
from niso.cluster.membership import ClusterKeys
from niso.store.store import Store

NETWORKS = ("backend", "front")
REQUESTS = ("commit", "get", "grant", "keep", "keys", "mark", "revoke")


class Link:
    """A host's connection to the cluster, which can be cut. ``between`` is called around each request."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.cut = engine, False
        self.between: Callable[[str], None] = lambda point: None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def __getattr__(self, name: str) -> Any:
        if name not in REQUESTS:
            return getattr(self.engine, name)

        def request(*words: Any, **more: Any) -> Any:
            self.between(f"before {name}")
            if self.cut:
                raise NoAnswer("the cluster does not answer")
            try:
                return getattr(self.engine, name)(*words, **more)
            finally:
                self.between(f"after {name}")

        return request


class Clock:
    """The wall clock of the host that runs now: those of hosts differ by months."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._time, self._patch = time.time, pytest.MonkeyPatch()

    def begin(self) -> None:
        self._patch.setattr(time, "time", lambda: self._time() + self.ahead_s)

    def end(self) -> None:
        self._patch.undo()


CLOCK = Clock()


class Node:
    """One host: ``with node:`` makes its folders and its clock those of this process."""

    def __init__(
        self, name: str, number: int, folder: Path, engine: Any, connect: Callable[[], Any] | None
    ) -> None:
        self.name, self.link, self.connect = name, Link(engine), connect
        self.agent: Any = None
        self.run = str(folder / name / "run")
        self.address = f"198.51.100.{number}"
        self.lease, self.ahead_s = 0, (number - 2) * 1e7
        self.folder = folder / name
        self.folder.mkdir()
        os.environ["NISO_RUN_DIR"] = self.run
        self.world = World(self.folder)
        self.world.__enter__()
        self.state = os.environ["NISO_STATE_DIR"]
        membership = ClusterKeys(engine)
        cluster = membership.cluster() or membership.make()
        store = self.world.store
        membership.join(HostEntry(name, store.state_id(), self.address, 1500, False))
        with store.transaction():
            store.across.set_cluster(cluster.identity)
        joined = Joined(name, self.address, self.link)  # type: ignore[arg-type]
        self.world.machine = self.world.machine._replace(joined=lambda: joined)
        self.me = (name, store.state_id(), cluster.identity, "boot")
        self.busy: set[str] = set()  # "command", "look"
        self.steps: list[Steps | None] = [None]  # of what is in progress, None for another process
        self.is_half = False  # a network has not been made as a whole
        self.start_agent()

    def __enter__(self) -> Node:
        os.environ["NISO_RUN_DIR"], os.environ["NISO_STATE_DIR"] = self.run, self.state
        CLOCK.ahead_s = self.ahead_s
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_agent(self) -> None:
        """Start the agent, a process of its own."""
        with self:
            self.store = Store.open()
        self.starts: dict[str, int] = {}  # the revisions that watches wait for, by prefix
        if self.agent is not None:
            self.agent.stop()
        self.agent = Agent(self.me, self.connect or self._link, self.end, lambda line: None)
        if self.connect is not None:
            self.agent.watch(NETWORKS)

    def _link(self) -> Any:
        return self.link

    def end(self, services: list[str]) -> None:
        end_services(self.world.machine._replace(store=self.store), services)

    def keep(self) -> None:
        with contextlib.suppress(NoAnswer):
            self.lease = self.agent.renew_lease(self.link, self.lease)  # type: ignore[arg-type]

    def kept(self) -> dict[str, WatchedKeys]:
        """What watches bring, by their prefixes."""
        on = {KEYS.network(name): self.agent.kept(name) for name in NETWORKS}
        return {KEYS.hosts: self.agent.host_keys, **on}

    def hear(self, now_s: float) -> None:
        """Have the watches bring what has changed so far, or begin again."""
        if self.link.cut:
            self.starts.clear()
            return
        link: Any = self.link
        for prefix, kept in self.kept().items():
            start = self.starts.pop(prefix, 0)
            with contextlib.suppress(NoAnswer):
                try:
                    start = start or kept.begin(link, now_s)
                    self.starts[prefix] = start
                    batch = next(link.watch(prefix, start, 0))
                    self.starts[prefix] = batch[0] + 1 if kept.hear(batch, now_s) else 0
                except Refused as error:
                    if error.code != COMPACTED:
                        raise
                    del self.starts[prefix]

    def look(self, now_s: float, whole: bool = True) -> None:
        with self, contextlib.suppress(NoAnswer):
            link: Any = self.link
            self.agent.poll(self.store, self.world.kernel, link, now_s, whole)
