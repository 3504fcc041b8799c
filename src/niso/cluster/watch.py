"""Cache etcd's keys with a prefix: read them all, then update them from the events of a watch.

It is expensive for etcd if many hosts read all keys, and cheap to check whether a cache is
complete. Each prefix is watched in a thread of its own. `Lag` measures for how long changes have
been waiting for an agent.
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


# --- the cache of a prefix ------------------------------------------------------------------------


TRUST_S = 6.0
"""Seconds without an event or progress message, after which each use checks the cache with etcd.

The members of a cluster's own etcd report progress every 5 s.
"""
CHECK_S = 30.0
"""Seconds after which the cache is checked with etcd, even if the watch works."""
WHOLE_S = 600.0
"""Seconds after which all keys are read again."""


class WatchedKeys:
    """A cache of etcd's keys with a prefix. One thread may watch while another reads.

    Times are of one monotonic clock. While no watch is running, each read checks with etcd whether
    the cache is current.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._items: dict[str, KeyValue] = {}  # the dict is replaced, never changed
        self._is_followed = False
        self._all = 0  # all events up to this revision are applied: older ones are ignored
        self._at = 0  # the newest revision seen
        self._heard_s = self._checked_s = 0.0
        self._whole_s: float | None = None  # when all keys were last read

    def begin(self, engine: Etcd, now_s: float) -> int:
        """Read all keys; return the revision from which the watch must start.

        Raises NoAnswer and Refused.
        """
        self.lose()
        self.items(engine, now_s)
        with self._lock:
            self._is_followed = True
            self._heard_s = now_s
            return self._at + 1

    def hear(self, batch: Batch, now_s: float) -> bool:
        """Apply the events of a watch in their order; return False if the watch must be restarted.

        A batch without events shows that the connection works. The watch may be of a shorter prefix
        than the cache.
        """
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

    def lose(self) -> None:
        """Record that the watch has ended. Each read then checks the cache with etcd."""
        with self._lock:
            self._is_followed = False

    def items(
        self, engine: Etcd, now_s: float, known: KeyValue | None = None
    ) -> dict[str, KeyValue]:
        """Return all keys with the prefix, by name; the same dict as before if nothing has changed.

        ``known`` is an item that the caller has read from etcd. If it differs from the cached one,
        all keys are read again. Raises NoAnswer and Refused.
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
        """Read all keys from etcd, cache and return them.

        A cache with newer events is not overwritten.
        """
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
        """Return the cached keys if etcd's fingerprint shows that they are complete, else None."""
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


# --- watching in threads --------------------------------------------------------------------------


SILENCE_S = 12.0
_AGAIN_S = 1.0
_BACK_OFF_S = (0.2, 5.0)


class Watches:
    """The threads that watch etcd. ``connect`` opens a connection for each of them.

    ``notice`` is called after each change. Its argument is False if the change need not be applied
    at once. The threads end when ``over`` is set.
    """

    def __init__(
        self,
        connect: Callable[[], Etcd],
        notice: Callable[[bool], None],
        over: threading.Event,
    ) -> None:
        self._connect = connect
        self._notice = notice
        self._over = over
        self._followed: set[str] = set()

    def follow(self, prefix: str, kept: WatchedKeys, hurry: bool) -> None:
        """Watch a prefix in a thread and update ``kept`` from it; no-op if the prefix is watched
        already.

        The cache may cover only a part of the prefix. ``hurry`` is the argument of ``notice``.
        """
        if prefix not in self._followed:
            self._followed.add(prefix)
            threading.Thread(target=self._run, args=(prefix, kept, hurry), daemon=True).start()

    def _run(self, prefix: str, kept: WatchedKeys, hurry: bool) -> None:
        wait = _BACK_OFF_S[0]
        engine = connected(self._connect, self._over)
        while engine is not None and not self._over.is_set():
            try:
                start = kept.begin(engine, time.monotonic())
                self._notice(True)  # for changes from before the watch
                try:
                    for batch in engine.watch(prefix, start, SILENCE_S):
                        wait = _BACK_OFF_S[0]
                        if not kept.hear(batch, time.monotonic()):
                            break
                        if batch.events:
                            self._notice(hurry)
                        if self._over.is_set():
                            return
                finally:
                    kept.lose()
            except Compacted:
                continue
            except Error:
                self._over.wait(about(wait))
                wait = min(2 * wait, _BACK_OFF_S[1])


def connected(connect: Callable[[], Etcd], over: threading.Event) -> Etcd | None:
    """Open a connection as soon as the files for it exist; return None if ``over`` is set first.

    A command may replace these files, and deletes them when the host leaves the cluster.
    """
    while not over.is_set():
        try:
            return connect()
        except (Error, OSError):
            over.wait(about(_AGAIN_S))
    return None


def about(seconds: float) -> float:
    """Return a random time between half and one and a half of ``seconds``.

    It spreads the requests of many hosts over time.
    """
    return seconds * (0.5 + os.urandom(1)[0] / 255)


# --- hosts from the cache -------------------------------------------------------------------------


class Roster:
    """Read the cluster's hosts. Each value is decoded only when it has changed."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.kept = WatchedKeys(keys.hosts)
        self._items: dict[str, KeyValue] = {}
        self._decoded: dict[KeyValue, HostEntry] = {}
        self.hosts: tuple[HostEntry, ...] = ()  # sorted by name, as of the last call of `look`

    def look(
        self, engine: Etcd, own: str, now_s: float
    ) -> tuple[tuple[HostEntry, ...], HostEntry | None]:
        """Return all hosts, and the host named ``own`` or None.

        The key of ``own`` is always read from etcd, the others from the cache. Raises NoAnswer,
        Refused, and Error if a value is invalid.
        """
        item = ClusterKeys(engine, self.keys).host_item(own)
        items = self.kept.items(engine, now_s, item)
        if items is not self._items:
            self._decode(items)
        return self.hosts, self._decoded.get(item) if item is not None else None

    def _decode(self, items: dict[str, KeyValue]) -> None:
        decoded: dict[KeyValue, HostEntry] = {}
        hosts = []
        for key in sorted(items):
            if "/" in key.removeprefix(self.keys.hosts):
                continue
            item = items[key]
            decoded[item] = host = self._decoded.get(item) or host_of(item, self.keys)
            hosts.append(host._replace(alive=f"{key}/live" in items))
        self._items, self._decoded, self.hosts = items, decoded, tuple(hosts)


# --- lag of an agent ------------------------------------------------------------------------------


class Lag:
    """Measure for how long changes have been waiting for the agent.

    Times are seconds of one monotonic clock. Several threads may call `notice`.
    """

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def notice(self, now_s: float) -> None:
        """Record that a change is waiting to be applied."""
        self._last_s = now_s
        if self._since_s is None:
            self._since_s = now_s

    def caught_up(self, began_s: float) -> None:
        """Record that all changes up to ``began_s``, the start of a sync pass, are processed."""
        self._since_s = self._last_s if self._last_s > began_s else None

    def seconds(self, now_s: float) -> float:
        """Return for how many seconds the oldest change has been waiting; 0 if none is waiting."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
