"""Test how far a change of modes reaches, by random changes."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from modes_stored import ONE, TWO, policy, target
from samples import samples
from stored import TemporaryStore, add_network, put

from niso.base import names
from niso.base.errors import Conflict, InvalidInput
from niso.change import stop
from niso.change.scope import provider_of, scope_of
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.namespaces import Netns
from niso.plan.desired import desired
from niso.plan.records import PortMapping
from niso.store.service_rows import ServiceRow, encode_service
from niso.store.snapshots import ALL, Scope
from niso.store.store import Store

NAMES = ("a", "b", "c", "d")
_MODES = st.sampled_from(("bridge", "bridge", "host", "none", "share", "share"))
_OPERATION = st.tuples(
    st.sampled_from(("activate", "activate", "deactivate")),
    st.sampled_from(NAMES),
    _MODES,
    st.sampled_from((("one",), ("two",), ("two", "one"))),
    st.sampled_from(NAMES),
    st.booleans(),
    st.sampled_from((None, "a", "b")),
)


def _apply(store: Store, operation: tuple) -> tuple[Scope, Scope] | None:
    """Do what a command does to the rows, if it may; the scope that it has."""
    action, name, mode, on, provider, publishes, allowed = operation
    row = store.service(name)
    if action == "deactivate":
        if row is None or not row.active:
            return None
        try:
            stop.refuse(store, [name])
        except Conflict:
            return None
        scope = stop.scope_of(store, [row])
        with store.transaction():
            store.set_inactive(name)
            store.end_publishing(name)
        return scope, scope
    network: dict[str, object] = {"mode": mode}
    if mode == "share":
        network["share"] = provider
    if mode == "bridge":
        network["networks"] = list(on)
    wanted = target(name, **network)
    try:
        if mode == "share":
            provider = provider_of(store, wanted, frozenset({name}))
        elif mode == "host" and store.sharers(name):
            return None
    except (Conflict, InvalidInput):
        return None
    if mode == "share" and store.sharers(name):
        return None
    if mode == "none" and any(store.ports(sharer) for sharer in store.sharers(name)):
        return None  # the sharer is activated with it, and refused
    scope = scope_of(store, [wanted])
    ports = (
        (PortMapping("", 8000 + NAMES.index(name), 80, "tcp"),)
        if publishes and mode in ("bridge", "share")
        else ()
    )
    if mode == "share" and not store.port_families(provider):
        ports = ()
    with store.transaction():
        manifest = encode_service(wanted.spec)
        if mode in ("host", "none"):
            store.end_publishing(name) if row else None
        put(
            store,
            name,
            on if mode == "bridge" else (),
            ports=ports,
            mode=mode,
            provider=provider if mode == "share" else None,
            manifest=manifest,
        )
        store.set_policy(name, policy(allowed) if mode == "bridge" and allowed else None)
    return scope, scope


def things(state: State) -> set[object]:
    return set(state)


@settings(max_examples=samples(35, 150), deadline=None)
@given(st.lists(_OPERATION, min_size=1, max_size=10))
def test_scope_of_a_change_holds_all_that_it_changes_and_takes_nothing_of_others(
    operations: list[tuple],
) -> None:
    """Scoped, the difference is what it is of everything: nothing is missed, and nobody else's things go."""
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, ONE)
            add_network(store, TWO)
        for operation in operations:
            whole_before = things(desired(store.snapshot(ALL)))
            with TemporaryCopy(store) as earlier:
                found = _apply(store, operation)
                if found is None:
                    continue
                scope, _ = found
                before = things(desired(earlier.snapshot(scope)))
            after = things(desired(store.snapshot(scope)))
            whole_after = things(desired(store.snapshot(ALL)))
            assert before <= whole_before, operation
            assert after <= whole_after, operation
            gone, come = whole_before - whole_after, whole_after - whole_before
            assert gone <= before - after, (operation, gone - (before - after))
            assert come <= after, (operation, come - after)
            assert not (before - after) & whole_after, (operation, (before - after) & whole_after)
        for name in NAMES:
            row = store.service(name)
            assert row is None or isinstance(row, ServiceRow)
            if row and row.active and row.mode == "share":
                assert row.provider and (other := store.service(row.provider)) and other.active


class TemporaryCopy:
    """The store as it is now, to be read after the other has changed."""

    def __init__(self, store: Store) -> None:
        import sqlite3

        self._db = sqlite3.connect(":memory:", isolation_level=None)
        store._db.backup(self._db)

    def __enter__(self) -> Store:
        return Store(self._db)

    def __exit__(self, *_: object) -> None:
        self._db.close()


def test_union_keeps_what_two_scopes_want() -> None:
    one, other = State([Netns("a", "x")]), State([Netns("b", "x")])
    assert (one | other)[Netns] == one[Netns] | other[Netns]
    assert os.path.basename(names.own_hosts_folder("a")) == "=a"
