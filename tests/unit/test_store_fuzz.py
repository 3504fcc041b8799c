"""Test that a damaged store never ends a command with anything but an error of niso."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fakes.kernel import Fake
from samples import samples
from snapshots_made import network
from stored import TemporaryStore, add_network, put

from niso.base import paths
from niso.base.errors import Error
from niso.look import session
from niso.reconcile import change
from niso.store.snapshots import ALL
from niso.store.store import Store

NETWORK = network(0)


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The database of a store with services."""
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, NETWORK)
            for number in range(20):
                put(store, f"service-{number}", (NETWORK.name,))
            store.begin_intent("service-0", "activate", 1.0)
        store.close()  # the last connection: SQLite empties its log
        return Path(paths.database()).read_bytes()


def use() -> None:
    """Read what commands read."""
    store = Store.open()
    try:
        store.services()
        store.service_names()
        store.intents()
        store.stacks()
        store.networks()
        store.resolve("service-1")
        change.desired_now(Fake(), store, ALL)
    finally:
        store.close()


def unexplained(content: bytes) -> Exception | None:
    """Return the exception of `use` that no layer would explain."""
    os.makedirs(paths.state_dir(), exist_ok=True)
    for ending in ("-wal", "-shm"):
        Path(paths.database() + ending).unlink(missing_ok=True)
    Path(paths.database()).write_bytes(content)
    try:
        use()
    except Error:
        return None
    except Exception as error:
        return None if session.explained(error) is not None else error
    return None


@pytest.mark.parametrize("damage", [b"CREATE TABL\xff meta", b"CREATE TABLE m\xffta"])
def test_damaged_name_of_a_table_is_a_damaged_store(whole: bytes, damage: bytes) -> None:
    assert unexplained(whole) is None
    assert whole.count(b"CREATE TABLE meta") == 1
    assert unexplained(whole.replace(b"CREATE TABLE meta", damage)) is None
    with pytest.raises(Error) as caught:
        Store.open()
    assert caught.value.hint is not None and caught.value.hint.startswith("move it away")


@pytest.mark.parametrize("seed", range(samples(50, 2000)))
def test_damaged_bytes_are_a_damaged_store(whole: bytes, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(whole)
    for _ in range(draw.choice((1, 4, 64, 512))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    assert unexplained(bytes(content)) is None
