"""Test that what is kept of the engine's keys is what the engine has, whatever a watch says of it, and that it is read seldom."""

from __future__ import annotations

import random

import pytest
from fakes.engine import FakeEngine

from niso.cluster.agent import CHECK_S, TRUST_S, WHOLE_S, WatchedKeys
from niso.cluster.engine import (
    COMPACTED,
    Answer,
    Delete,
    KeyValue,
    NoAnswer,
    Put,
    Refused,
    Txn,
)

AT = "h/"


class Counted(FakeEngine):
    """It counts what costs it much."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.marks = 0

    def get(self, prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
        self.reads += not one
        return super().get(prefix, one=one, stale=stale)

    def mark(self, prefix: str):  # type: ignore[no-untyped-def]
        self.reads -= 1
        self.marks += 1
        return super().mark(prefix)

    def put(self, key: str, value: str = "{}") -> int:
        return self.commit(Txn((), (Put(AT + key, value),)))

    def delete(self, key: str) -> None:
        self.commit(Txn((), (Delete(AT + key),)))

    def have(self) -> dict[str, KeyValue]:
        return {item.key: item for item in super().get(AT).items}


class Watch:
    """A watch that brings what there is when it is asked."""

    def __init__(self, engine: Counted, kept: WatchedKeys) -> None:
        self.engine, self.kept = engine, kept
        self.next = 0

    def hear(self, now_s: float) -> None:
        try:
            self.next = self.next or self.kept.begin(self.engine, now_s)
            batch = next(self.engine.watch(AT, self.next, 0))
            self.next = batch[0] + 1 if self.kept.hear(batch, now_s) else 0
        except NoAnswer as error:
            if isinstance(error, Refused) and error.code == COMPACTED:
                self.next = 0


@pytest.mark.parametrize("seed", range(40))
def test_what_is_kept_is_what_the_engine_has(seed: int) -> None:
    draw, engine, kept = random.Random(seed), Counted(), WatchedKeys(AT)
    watch, now_s = Watch(engine, kept), 1000.0
    for _ in range(150):
        what, key = draw.random(), draw.choice("abcd")
        if what < 0.35:
            engine.put(key, str(draw.randrange(3)))
        elif what < 0.5:
            engine.delete(key)
        elif what < 0.52:
            engine.compact()
        elif what < 0.56:  # a watch that ends by silence, or by an error
            watch.next = 0
            if draw.random() < 0.5:
                kept.lose()
        elif what < 0.75:
            watch.hear(now_s)
            if watch.next:
                assert kept.items(engine, now_s) == engine.have()
        else:  # without a sign of life for long, all is as the engine has it
            now_s += draw.choice((TRUST_S, CHECK_S, WHOLE_S))
            assert kept.items(engine, now_s) == engine.have()
        if draw.random() < 0.1:
            known = engine.have().get(AT + key)
            found = kept.items(engine, now_s, known)
            assert known is None or found[known.key] == known


def test_all_is_read_once_and_what_changes_is_brought_by_the_watch() -> None:
    engine, kept = Counted(), WatchedKeys(AT)
    watch = Watch(engine, kept)
    for number in range(5):
        engine.put(f"host{number}")
    watch.hear(0)
    for second in range(100):
        engine.put(f"host{second % 7}", str(second))
        watch.hear(second)
        assert kept.items(engine, second) == engine.have()
    before = kept.items(engine, second)
    assert kept.items(engine, second) is before, "nothing has changed"
    assert (engine.reads, engine.marks) == (1, 3)
    kept.items(engine, second + TRUST_S)
    assert (engine.reads, engine.marks) == (1, 4), "a silent watch"
    watch.next = 0
    watch.hear(second + 12)
    assert (engine.reads, engine.marks) == (1, 5), "it begins again where it was"
    kept.items(engine, second + WHOLE_S)
    assert (engine.reads, engine.marks) == (2, 5)


def test_data_from_a_backup_void_what_was_kept() -> None:
    engine, kept, other = Counted(), WatchedKeys(AT), Counted()
    for number in range(9):
        engine.put("a", str(number))
    watch = Watch(engine, kept)
    watch.hear(0)
    other.put("a", "old")
    assert kept.items(other, TRUST_S) == other.have()
    assert not kept.hear((99, ((AT + "a", None, 99),)), TRUST_S), "of the former data"
    assert kept.items(other, TRUST_S) == other.have()
    assert kept.items(engine, TRUST_S) == engine.have()
    watch.engine, watch.next = other, 0
    watch.hear(TRUST_S)
    other.put("b")
    watch.hear(TRUST_S)
    assert kept.items(other, TRUST_S) == other.have()


def test_events_from_before_all_was_read_change_nothing() -> None:
    engine, kept = Counted(), WatchedKeys(AT)
    watch = Watch(engine, kept)
    watch.hear(0)
    late = engine.put("a", "old")
    engine.delete("a")
    engine.put("b")
    assert kept.items(engine, TRUST_S) == engine.have()
    item = KeyValue(AT + "a", "old", late)
    assert kept.hear((late, ((item.key, item, late),)), TRUST_S)
    assert kept.hear((late, ((AT + "b", None, late),)), TRUST_S)
    assert kept.items(engine, TRUST_S) == engine.have()
