"""Cache etcd's keys with a prefix: read them all, then update them from the events of a watch.

If many hosts each read all keys, this is expensive for etcd. Each host therefore caches the keys.
To check whether a cache is complete, a host needs only a cheap request.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.cluster.engine import Batch, Compacted, Keys, KeyValue
from niso.cluster.key_values import HostEntry, host_of
from niso.cluster.membership import ClusterKeys

if TYPE_CHECKING:
    from niso.cluster.etcd import Etcd

TRUST_S = 6.0
"""Seconds of silence after which each use checks the cache. niso's etcd reports every 5 s."""
CHECK_S = 30.0
"""Seconds after which the cache is checked with etcd, even if the watch works."""
WHOLE_S = 600.0
"""Seconds after which all keys are read again."""
SILENCE_S = 12.0
_AGAIN_S = 1.0
_BACK_OFF_S = (0.2, 5.0)


class WatchedKeys:
    """A cache of etcd's keys with a prefix. One thread may watch while another reads.

    While no watch updates the cache, each read asks etcd whether the cache is still up to date. All
    times are of one monotonic clock.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._items: dict[str, KeyValue] = {}  # the dict is replaced, never changed
        self._is_followed = False  # whether a watch updates the cache
        self._all = 0  # all events up to this revision are applied: older ones are ignored
        self._at = 0  # the newest revision seen
        self._heard_s = self._checked_s = 0.0
        self._whole_s: float | None = None  # when all keys were last read

    def begin(self, engine: Etcd, now_s: float) -> int:
        """Read all keys for a new watch; return the revision to watch from. Raises NoAnswer."""
        self.lose()
        self.items(engine, now_s)
        with self._lock:
            self._is_followed = True
            self._heard_s = now_s
            return self._at + 1

    def hear(self, batch: Batch, now_s: float) -> bool:
        """Apply the events of a watch in order; return False if a new watch must be started."""
        with self._lock:
            if not self._is_followed:
                return False
            self._heard_s = now_s
            if not batch.events:
                self._at = max(self._at, batch.revision)
                return True
            items = {**self._items}
            for key, item, modified in batch.events:
                if modified <= self._all:
                    continue
                self._at = max(self._at, modified)
                if not key.startswith(self.prefix):
                    continue
                if item is None:
                    items.pop(key, None)
                else:
                    items[key] = item
            self._items = items
        return True

    def follow(
        self,
        prefix: str,
        connect: Callable[[], Etcd],
        notice: Callable[[bool], None],
        over: threading.Event,
        hurry: bool,
    ) -> None:
        """Watch a prefix of etcd, and update this cache of a part of it, until ``over`` is set.

        ``notice`` is called after each change with ``hurry``, which says whether to apply it at
        once.
        """
        wait = _BACK_OFF_S[0]
        engine = connected(connect, over)
        while engine is not None and not over.is_set():
            try:
                start = self.begin(engine, time.monotonic())
                notice(True)  # for changes from before the watch
                try:
                    for batch in engine.watch(prefix, start, SILENCE_S):
                        wait = _BACK_OFF_S[0]
                        if not self.hear(batch, time.monotonic()):
                            break
                        if batch.events:
                            notice(hurry)
                        if over.is_set():
                            return
                finally:
                    self.lose()
            except Compacted:
                continue
            except Error:
                over.wait(about(wait))
                wait = min(2 * wait, _BACK_OFF_S[1])

    def lose(self) -> None:
        """Record that the watch has ended, so that each read checks the cache with etcd."""
        with self._lock:
            self._is_followed = False

    def items(
        self, engine: Etcd, now_s: float, known: KeyValue | None = None
    ) -> dict[str, KeyValue]:
        """Return all keys with the prefix, by name; the same dict as before if nothing has changed.

        ``known`` is a key that the caller has read. If the cache differs, all keys are read again.
        """
        with self._lock:
            items = self._items
            is_sure = (
                self._is_followed
                and now_s - self._heard_s < TRUST_S
                and now_s - self._checked_s < CHECK_S
            )
            is_old = self._whole_s is None or now_s - self._whole_s >= WHOLE_S
        if not is_old and (known is None or items.get(known.key) == known):
            if is_sure:
                return items
            if (same := self._checked(engine, now_s)) is not None:
                return same
        return self._read(engine, now_s)

    def _read(self, engine: Etcd, now_s: float) -> dict[str, KeyValue]:
        """Read all keys from etcd, cache them unless newer events have come, and return them."""
        with self._lock:
            before = self._at
        answer = engine.get(self.prefix)
        items = {item.key: item for item in answer.items}
        with self._lock:
            # etcd was restored from a backup: later changes are lost
            if answer.revision < before:
                self._is_followed = False
            if answer.revision < before or self._at <= answer.revision:
                self._items = items
                self._all = self._at = answer.revision
                self._checked_s = self._whole_s = now_s
        return items

    def _checked(self, engine: Etcd, now_s: float) -> dict[str, KeyValue] | None:
        """Return the cached keys, or None if etcd's fingerprint shows that they are not current."""
        with self._lock:
            before = self._at
        revision, newest, lease, number = engine.mark(self.prefix)
        with self._lock:
            items = self._items.values()
            last = max((item.modified for item in items), default=0)
            leases = {item.lease for item in items if item.modified == last} or {0}
            same = (last, len(items)) == (newest, number) and lease in leases
            if revision < before or not same:
                return None
            self._all = max(self._all, revision)
            self._at = max(self._at, revision)
            self._checked_s = now_s
            return self._items


def connected(connect: Callable[[], Etcd], over: threading.Event) -> Etcd | None:
    """Open a connection once its files exist; return None if ``over`` is set before."""
    while not over.is_set():
        try:
            return connect()
        except (Error, OSError):
            over.wait(about(_AGAIN_S))
    return None


def about(seconds: float) -> float:
    """Return a random time from half to one and a half of ``seconds``, to spread requests."""
    return seconds * (0.5 + os.urandom(1)[0] / 255)


class Roster:
    """A reader of the cluster's hosts. It decodes a host's key only if its value has changed."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.kept = WatchedKeys(keys.hosts)
        self._items: dict[str, KeyValue] = {}
        self._decoded: dict[KeyValue, HostEntry] = {}
        self.hosts: tuple[HostEntry, ...] = ()  # sorted by name, as of the last call of `look`

    def look(
        self, engine: Etcd, own: str, now_s: float
    ) -> tuple[tuple[HostEntry, ...], HostEntry | None]:
        """Return all hosts, and the host ``own`` as etcd has it now (or None). Raises NoAnswer."""
        item = ClusterKeys(engine, self.keys).host_item(own)
        items = self.kept.items(engine, now_s, item)
        if items is not self._items:
            decoded: dict[KeyValue, HostEntry] = {}
            hosts = []
            for key, each in sorted(items.items()):
                if "/" not in key.removeprefix(self.keys.hosts):
                    decoded[each] = self._decoded.get(each) or host_of(each, self.keys)
                    hosts.append(decoded[each]._replace(alive=f"{key}/live" in items))
            self._items, self._decoded, self.hosts = items, decoded, tuple(hosts)
        return self.hosts, self._decoded.get(item) if item is not None else None


class Lag:
    """A meter of how long changes wait for the agent. Several threads may call `notice`."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def notice(self, now_s: float) -> None:
        """Record that a change waits to be applied."""
        self._last_s = now_s
        if self._since_s is None:
            self._since_s = now_s

    def caught_up(self, began_s: float) -> None:
        """Record that the poll that began at ``began_s`` has applied all earlier changes."""
        self._since_s = self._last_s if self._last_s > began_s else None

    def seconds(self, now_s: float) -> float:
        """Return for how many seconds the oldest change has been waiting; 0 if no change waits."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
