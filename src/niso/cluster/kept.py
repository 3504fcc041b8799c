"""Keep what the engine has below a prefix: it is read once, and then changed by a watch's events.

Reading all keys costs the engine much if many hosts do it. All are read at the start, after a watch
that has ended otherwise than by silence, and if what is kept may not be what the engine has.
"""

from __future__ import annotations

import threading

from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.requests import Mark

if TYPE_CHECKING:
    from niso.cluster.requests import Batch, Engine, Item

TRUST_S = 6.0
"""From so long without a sign of life of the watch on, each use asks whether all is known.

The members of a cluster's own etcd report progress every 5 s.
"""
CHECK_S = 30.0
"""After so long it asks in any case."""
WHOLE_S = 600.0
"""After so long all is read again."""


class Kept:
    """Thread-safe: one thread has the watch, another one uses what is known.

    Times are of one clock that only goes forward. Without a watch, each use reads all.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}  # replaced, never changed
        self._is_followed = False
        self._read = 0  # the revision at which all was read: it has what is older
        self._at = 0  # the newest revision that is known
        self._heard_s = self._checked_s = self._whole_s = 0.0

    def begin(self, engine: Engine, now_s: float) -> int:
        """Know all keys; return the revision from which on `hear` has to get events.

        Raises NoAnswer and Refused.
        """
        with self._lock:
            resumed = self._is_followed
        if not (resumed and self._is_current(engine, now_s)):
            answer = engine.get(self.prefix)
            with self._lock:
                self._is_followed = True
                self._set(answer.revision, answer.items, now_s)
        with self._lock:
            self._heard_s = now_s
            return self._at + 1

    def hear(self, batch: Batch, now_s: float) -> bool:
        """Apply events, in their order; return False if the watch has to begin again.

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
                if event.modified <= self._read:
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
        """Forget all, as nothing says any more what changes."""
        with self._lock:
            self._is_followed = False

    def items(self, engine: Engine, now_s: float, known: Item | None = None) -> dict[str, Item]:
        """Return all keys with a prefix; the same object as before if nothing has changed.

        If ``known``, one of them, is newer, all are read. Raises NoAnswer and Refused.
        """
        with self._lock:
            items, is_followed = self._items, self._is_followed
            is_sure = now_s - self._heard_s < TRUST_S and now_s - self._checked_s < CHECK_S
            is_old = now_s - self._whole_s >= WHOLE_S
        if is_followed and (known is None or items.get(known.key) == known) and not is_old:
            if is_sure:
                return items
            if self._is_current(engine, now_s):
                with self._lock:
                    return self._items
        return self._read_all(engine, now_s)

    def _read_all(self, engine: Engine, now_s: float) -> dict[str, Item]:
        """Read all keys, and keep them if a watch says what changes from then on."""
        with self._lock:
            before = self._at
        answer = engine.get(self.prefix)
        with self._lock:
            if answer.revision < before:  # its data are from a backup: what came since is void
                self._is_followed = False
            if self._is_followed and self._at <= answer.revision:
                return self._set(answer.revision, answer.items, now_s)
        return {item.key: item for item in answer.items}

    def _set(self, revision: int, items: tuple[Item, ...], now_s: float) -> dict[str, Item]:
        self._items = {item.key: item for item in items}
        self._read = self._at = revision
        self._checked_s = self._whole_s = now_s
        return self._items

    def _is_current(self, engine: Engine, now_s: float) -> bool:
        """Ask the engine whether all is known that it has."""
        with self._lock:
            before = self._at
        mark = engine.mark(self.prefix)
        with self._lock:
            newest = max((item.modified for item in self._items.values()), default=0)
            same = self._is_followed and mark == Mark(mark.revision, newest, len(self._items))
            if same and mark.revision >= before:
                self._checked_s = now_s
                return True
        return False
