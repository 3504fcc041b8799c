"""Cache the keys with a prefix: read once, then updated from the events of a watch.

Reading all keys is expensive for the engine if many hosts do it. Checking whether the cache is
complete is cheap.
"""

from __future__ import annotations

import threading

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.cluster.engine import Batch, Engine, Item, Mark

TRUST_S = 6.0
"""After so long without a sign of life from the watch, each use checks the cache.

The members of a cluster's own etcd report progress every 5 s.
"""
CHECK_S = 30.0
"""After so long the cache is checked in any case."""
WHOLE_S = 600.0
"""After so long all keys are read again."""


class Kept:
    """A cache of the keys with a prefix. Thread-safe: one thread watches, another reads.

    Times are of one monotonic clock. Without a watch, each use checks the cache.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}  # the dict is replaced, never changed
        self._is_followed = False
        self._all = 0  # all events up to this revision are applied: older ones are ignored
        self._at = 0  # the newest revision seen
        self._heard_s = self._checked_s = 0.0
        self._whole_s: float | None = None  # when all keys were last read

    def begin(self, engine: Engine, now_s: float) -> int:
        """Read all keys; return the revision from which the watch has to start.

        Raises NoAnswer and Refused.
        """
        self.lose()
        self.items(engine, now_s)
        with self._lock:
            self._is_followed = True
            self._heard_s = now_s
            return self._at + 1

    def hear(self, batch: Batch, now_s: float) -> bool:
        """Apply events in their order; return False if the watch has to start again.

        A batch without events is a sign of life. The watch may be of a shorter prefix.
        """
        with self._lock:
            if not self._is_followed:
                return False
            self._heard_s = now_s
            if not batch.events:
                self._at = max(self._at, batch.revision)
                return True
            items = {**self._items}
            for event in batch.events:
                if event.modified <= self._all:
                    continue
                self._at = max(self._at, event.modified)
                if not event.key.startswith(self.prefix):
                    continue
                if event.item is None:
                    items.pop(event.key, None)
                else:
                    items[event.key] = event.item
            self._items = items
        return True

    def lose(self) -> None:
        """Record that the watch has ended, so that each use checks the cache."""
        with self._lock:
            self._is_followed = False

    def items(self, engine: Engine, now_s: float, known: Item | None = None) -> dict[str, Item]:
        """Return all keys with the prefix; the same object as before if nothing has changed.

        ``known`` is a key that the caller has read: if it differs from the cached one, all keys are
        read again. Raises NoAnswer and Refused.
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

    def _read(self, engine: Engine, now_s: float) -> dict[str, Item]:
        """Read all keys and cache them, unless the watch has applied newer events since."""
        with self._lock:
            before = self._at
        answer = engine.get(self.prefix)
        items = {item.key: item for item in answer.items}
        with self._lock:
            # the engine was restored from a backup: later changes are lost
            if answer.revision < before:
                self._is_followed = False
            if answer.revision < before or self._at <= answer.revision:
                self._items = items
                self._all = self._at = answer.revision
                self._checked_s = self._whole_s = now_s
        return items

    def _checked(self, engine: Engine, now_s: float) -> dict[str, Item] | None:
        """Return the cache if it is complete according to the engine, else None."""
        with self._lock:
            before = self._at
        mark = engine.mark(self.prefix)
        with self._lock:
            if mark.revision < before or not _are(self._items, mark):
                return None
            self._all = max(self._all, mark.revision)
            self._at = max(self._at, mark.revision)
            self._checked_s = now_s
            return self._items


def _are(items: dict[str, Item], mark: Mark) -> bool:
    """Return whether the items match the engine's fingerprint of its keys."""
    newest = max((item.modified for item in items.values()), default=0)
    leases = {item.lease for item in items.values() if item.modified == newest} or {0}
    return (newest, len(items)) == (mark.newest, mark.number) and mark.lease in leases
