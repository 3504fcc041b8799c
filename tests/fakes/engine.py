"""Emulate the engine in memory, for tests; see `niso.cluster.engine`.

`advance` moves time. A request or its answer can be lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial

from niso.cluster.engine import (
    COMPACTED,
    Answer,
    Batch,
    Compare,
    Delete,
    Event,
    KeyValue,
    NoAnswer,
    Put,
    Refused,
    Txn,
)
from niso.cluster.etcd import Etcd

MOST_CHANGES = 128
"""The most operations of a transaction (etcd's --max-txn-ops)."""


class FakeEngine(Etcd):
    """An engine in memory, shared by all who have the object; thread-safe.

    ``down``: nothing is answered. Each transaction consumes one entry of ``lose`` and is not
    answered: with "there" it is not carried out, with "back" it is, with "late" `arrive` does it.
    """

    def __init__(self) -> None:
        self.down = False
        self.is_full = False
        self.lose: list[str] = []
        self.late: list[Txn] = []
        self._revision = 1
        self._compacted = 0
        self._items: dict[str, KeyValue] = {}
        self._history: list[tuple[int, Event]] = []
        self._leases: dict[int, list[float]] = {}  # id -> [TTL, end]
        self._now = 0.0
        self._changed = threading.Condition()

    def close(self) -> None:
        pass

    def get(self, prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
        with self._changed:
            self._answers(stale)
            if one:
                items = [self._items[prefix]] if prefix in self._items else []
            else:
                items = [i for k, i in self._items.items() if k[: len(prefix)] == prefix]
            return Answer(self._revision, tuple(sorted(items)))

    def keys(self, prefix: str) -> list[str]:
        return [item.key for item in self.get(prefix).items]

    def mark(self, prefix: str) -> tuple[int, int, int, int]:
        revision, items = self.get(prefix)
        last = max(items, key=lambda item: item.modified, default=KeyValue("", "", 0))
        return revision, last.modified, last.lease, len(items)

    def commit(self, txn: Txn) -> int:
        with self._changed:
            self._answers()
            lost = self.lose.pop(0) if self.lose else ""
            if lost == "late":
                self.late.append(txn)
            if lost in ("there", "late"):
                raise NoAnswer("the cluster does not answer", unknown=True)
            done = self._commit(txn)
            if lost:
                raise NoAnswer("the cluster does not answer", unknown=True)
            return done

    def grant(self, ttl_s: int) -> int:
        with self._changed:
            self._answers()
            lease = len(self._leases) + 1
            self._leases[lease] = [max(ttl_s, 2), self._now + max(ttl_s, 2)]
            return lease

    def renew_lease(self, lease: int) -> bool:
        with self._changed:
            self._answers()
            if lease not in self._leases:
                return False
            self._leases[lease][1] = self._now + self._leases[lease][0]
            return True

    def revoke(self, lease: int) -> None:
        with self._changed:
            self._answers()
            self._end(lease)

    def watch(self, prefix: str, revision: int, silence_s: float) -> Iterator[Batch]:
        while True:
            with self._changed:
                self._answers()
                if revision <= self._compacted:
                    raise Refused("compacted", code=COMPACTED)
                come = partial(self._has, revision)
                if not self._changed.wait_for(come, silence_s):
                    raise NoAnswer("the watch has ended: silence")
                self._answers()
                if revision <= self._compacted:
                    raise Refused("compacted", code=COMPACTED)
                events = tuple(
                    event
                    for at, event in self._history
                    if at >= revision and event[0].startswith(prefix)
                )
                now = self._revision
            revision = now + 1
            yield now, events

    def advance(self, seconds: float) -> None:
        """Advance time: leases that were not renewed expire."""
        with self._changed:
            self._now += seconds
            if not self.down:  # without a quorum, no lease expires
                for lease in [i for i, (_, end) in self._leases.items() if end <= self._now]:
                    self._end(lease)

    def arrive(self) -> None:
        """Carry out the oldest delayed transaction, if its conditions are met now."""
        with self._changed:
            if self.late:
                with contextlib.suppress(Refused):
                    self._commit(self.late.pop(0))

    def compact(self) -> None:
        """Delete all events up to now."""
        with self._changed:
            self._compacted = self._revision
            self._history.clear()

    def _has(self, revision: int) -> bool:
        return self.down or self._revision >= revision

    def _answers(self, stale: bool = False) -> None:
        if self.down and not stale:
            raise NoAnswer("the cluster does not answer")

    def _commit(self, txn: Txn) -> int:
        if self.is_full and any(isinstance(change, Put) for change in txn.changes):
            raise Refused("etcd refuses the request: etcdserver: mvcc: database space exceeded")
        keys = [change.key for change in txn.changes]
        if len(keys) > MOST_CHANGES or len(txn.conditions) > MOST_CHANGES:
            raise Refused("etcd refuses the request: too many operations in txn request")
        if len(set(keys)) < len(keys):
            raise Refused("etcd refuses the request: duplicate key given in txn request")
        for change in txn.changes:
            if isinstance(change, Put) and change.lease and change.lease not in self._leases:
                raise Refused("etcd refuses the request: requested lease not found")
        if not all(map(self._holds, txn.conditions)):
            return 0
        self._change(txn.changes)
        return self._revision

    def _holds(self, condition: Compare) -> bool:
        if condition.prefix:
            return not any(key.startswith(condition.key) for key in self._items)
        item = self._items.get(condition.key)
        return (item.modified if item else 0) == condition.modified

    def _change(self, changes: tuple[Put | Delete, ...]) -> None:
        revision = self._revision + 1
        events = []
        for change in changes:
            if isinstance(change, Put):
                item = KeyValue(change.key, change.value, revision, change.lease)
                self._items[change.key] = item
                events.append((change.key, item, revision))
                continue
            gone = [
                k
                for k in self._items
                if (k.startswith(change.key) if change.prefix else k == change.key)
            ]
            for key in gone:
                del self._items[key]
                events.append((key, None, revision))
        if events:
            self._revision = revision
            self._history += [(revision, event) for event in events]
            self._changed.notify_all()

    def _end(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            keys = [key for key, item in self._items.items() if item.lease == lease]
            self._change(tuple(Delete(key) for key in keys))
