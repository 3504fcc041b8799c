"""Test the store: versions, transactions, undo, snapshots."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from snapshots_made import network
from store_changes import BOUNDED, CHANGES, NAMES, NETWORKS, SERVICES, change, filled
from stored import TemporaryStore, add_network, dump, put

from niso.base import paths
from niso.base.errors import Error, NotFound
from niso.kernel.kinds.kind import State
from niso.plan.desired import desired
from niso.plan.records import PortMapping
from niso.store.snapshots import ALL
from niso.store.sqlite import COLUMNS, VERSION, close_all, unusable
from niso.store.store import Store

# --- opening -----------------------------------------------------------------------------------------------------


def test_new_store_has_the_version_a_private_folder_and_a_state_id_that_stays() -> None:
    store = Store.open()
    assert store._db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert os.stat(paths.state_dir()).st_mode & 0o777 == 0o700
    state_id = store.state_id()
    assert len(bytes.fromhex(state_id)) == 4
    store.close()
    assert Store.open().state_id() == state_id


def test_two_stores_have_different_ids(monkeypatch, tmp_path) -> None:
    first = Store.open().state_id()
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "other"))
    assert Store.open().state_id() != first


def test_reading_a_store_that_is_not_there_makes_nothing() -> None:
    store = Store.open(create=False)
    assert store.services() == []
    assert store.networks() == []
    assert desired(store.snapshot(ALL)) == State()
    assert not os.path.exists(paths.state_dir())


def test_store_of_another_version_is_refused_and_left_as_it_is() -> None:
    """Of a newer niso, or of a checkout before the first release. The way out says what it ends."""
    store = Store.open()
    store._db.execute(f"PRAGMA user_version={VERSION + 10}")
    before = list(store._db.iterdump())
    store.close()
    with pytest.raises(Error) as caught:
        Store.open()
    assert caught.value.message == (
        f"{paths.database()} has version {VERSION + 10}, this niso supports {VERSION}"
    )
    assert "--sweep stops all its services and deletes" in str(caught.value.hint)
    assert list(sqlite3.connect(paths.database()).iterdump()) == before


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_stores_are_upgraded(version: int) -> None:
    """Version 1 had no instances, version 2 no time of their state, version 3 no callers,
    version 4 no multicast, version 5 no indexes of health checks and schedules.
    """
    store = Store.open()
    state_id = store.state_id()
    if version == 1:
        store._db.execute("DROP TABLE instance")
        store._db.execute("DROP TABLE deploy")
    elif version < 4:
        for column in ("package_version", "login_uid", "sudo_user", "command"):
            store._db.execute(f"ALTER TABLE deploy DROP COLUMN {column}")
    if version == 2:
        store._db.execute("ALTER TABLE instance DROP COLUMN since")
    if version < 5:
        store._db.execute("ALTER TABLE network DROP COLUMN multicast")
    for index in ("acted_on", "checked", "scheduled"):
        store._db.execute(f"DROP INDEX service_{index}")
    store._db.execute(f"PRAGMA user_version={version}")
    store.close()
    store = Store.open()
    assert store.state_id() == state_id and store.instances.all() == []
    assert store.acted_on_services() == store.checked_services() == [] and not store.scheduled()
    assert store._db.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_columns_are_counted() -> None:
    """`Store.open` recognises a store by their number."""
    store = Store.open()
    count = "SELECT COUNT(*) FROM sqlite_schema m, pragma_table_info(m.name) WHERE m.type='table'"
    assert store._db.execute(count).fetchone() == (COLUMNS,)
    store._db.execute("CREATE TABLE more (x TEXT)")
    store.close()
    with pytest.raises(Error, match="does not have the tables of its version"):
        Store.open()


def test_damaged_page_is_told_in_one_line() -> None:
    with TemporaryStore() as store:
        add_network(store, network(0))
        with store.transaction():
            put(store, "api", (NAMES[0],), ports=())
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root, size = (
            store._db.execute(query).fetchone()[0]
            for query in (
                "SELECT rootpage FROM sqlite_schema WHERE name='lease'",
                "PRAGMA page_size",
            )
        )
        with open(paths.database(), "r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
        store._db.execute("PRAGMA shrink_memory")
        with pytest.raises(Error) as caught:
            store.require_sound()
        assert (
            caught.value.message.startswith(f"{paths.database()}: ")
            and "page" in caught.value.message
        )
    assert caught.value.message.isprintable()


def test_damaged_store_is_an_error_that_names_the_file() -> None:
    os.makedirs(paths.state_dir())
    with open(paths.database(), "wb") as file:
        file.write(b"this is no database, and it is long enough to be read as one" * 40)
    with pytest.raises(Error, match=r"state\.db"):
        Store.open()


def test_state_folder_that_is_a_file_is_an_error_that_names_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "file"))
    with refuses(Error, hint="check NISO_STATE_DIR"):
        Store.open()


def _open_at_once(barrier, answers) -> None:
    barrier.wait(60)
    try:
        answers.put(Store.open().state_id())
    except BaseException as error:
        answers.put(repr(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_make_the_store_at_once_agree_on_it() -> None:
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        barrier, answers = fork.Barrier(6), fork.Queue()
        processes = [fork.Process(target=_open_at_once, args=(barrier, answers)) for _ in range(6)]
        for process in processes:
            process.start()
        found = {answers.get(timeout=60) for _ in processes}
        for process in processes:
            process.join(60)
        assert found == {Store.open().state_id()}
        for name in os.listdir(paths.state_dir()):
            os.unlink(os.path.join(paths.state_dir(), name))


# --- transactions ------------------------------------------------------------------------------------------------


def test_error_in_a_transaction_leaves_nothing_of_it() -> None:
    store = Store.open()
    before = dump(store)
    with pytest.raises(RuntimeError), store.transaction():
        filled_without_transaction(store)
        raise RuntimeError
    assert dump(store) == before


def test_cancelled_transaction_leaves_nothing_of_it() -> None:
    store = Store.open()
    before = dump(store)
    with store.transaction() as transaction:
        filled_without_transaction(store)
        transaction.cancel()
        assert dump(store) != before
    assert dump(store) == before


def test_reading_sees_one_state_and_keeps_nobody_from_writing() -> None:
    store, other = Store.open(), Store.open()
    with store.reading():
        before = dump(store)
        with other.transaction():
            filled_without_transaction(other)
        assert dump(store) == before != dump(other)
    assert dump(store) == dump(other)
    with store.transaction() as transaction:
        with store.reading():
            pass
        transaction.cancel()
        store.forget("api")
        assert dump(store) != dump(other)
    assert dump(store) == dump(other)


def filled_without_transaction(store: Store) -> None:
    add_network(store, NETWORKS[0])
    put(store, "api", (NAMES[0],), ports=(PortMapping("", 1, 1, "tcp"),))
    store.set_sysctl_before("net/ipv4/ip_forward", "0")


def test_reader_sees_the_last_commit_while_a_writer_is_at_work() -> None:
    writer = Store.open()
    filled(writer, [("put", "api", NAMES[:1], [8000])])
    with writer.transaction():
        change(writer, [("put", "db", NAMES[:1], []), ("forget", "api", (), [])])
        reader = Store.open(create=False)
        reader._db.execute("PRAGMA busy_timeout=0")
        assert reader.active_services() == ["api"]
        assert reader.member_counts() == {NAMES[0]: 1}
        assert [service.name for service in reader.snapshot(ALL).services] == ["api"]
    assert reader.active_services() == ["db"]


def test_second_writer_waits_and_does_not_mix(tmp_path) -> None:
    one, other = Store.open(), Store.open()
    other._db.execute("PRAGMA busy_timeout=0")
    with (
        one.transaction(),
        pytest.raises(sqlite3.OperationalError, match="locked"),
        other.transaction(),
    ):
        pass
    with other.transaction():
        filled_without_transaction(other)
    assert one.active_services() == ["api"]


def test_kernel_of_the_database_refuses_what_must_not_be() -> None:
    store = Store.open()
    filled(store, [("put", "api", NAMES[:1], []), ("put", "db", NAMES[:1], [])])
    (api,) = [address for _, address in store.addresses("api")]
    for statement in (
        f"UPDATE lease SET address='{api}' WHERE service='db'",
        "UPDATE lease SET number=(SELECT number FROM lease WHERE service='api') WHERE service='db'",
        "UPDATE host_name SET name='api' WHERE service='db'",
        "UPDATE service SET uid=(SELECT uid FROM service WHERE name='api') WHERE name='db'",
        f"DELETE FROM network WHERE name='{NAMES[0]}'",
    ):
        with pytest.raises(sqlite3.IntegrityError), store.transaction():
            store._db.execute(statement)


# --- what it answers ---------------------------------------------------------------------------------------------


def test_service_answers_to_all_its_names_and_near_misses_are_suggested() -> None:
    store = Store.open()
    filled(store, [("put", "api", NAMES[:1], [])])
    assert store.resolve("api") == store.resolve("api-host") == "api"
    with pytest.raises(NotFound) as missing:
        store.resolve("appi")
    assert missing.value.hint == "did you mean 'api'?"
    with pytest.raises(NotFound) as missing:
        store.require_network("backed")
    assert missing.value.hint == "did you mean 'backend'?"


def test_uids_fill_gaps_and_never_meet() -> None:
    store = Store.open()
    filled(store, [("put", name, NAMES[:1], []) for name in SERVICES])
    assert [store.service(name).uid for name in SERVICES] == [5000, 5001, 5002, 5003]  # type: ignore[union-attr]
    with store.transaction():
        store.forget("db")
        assert store.free_uid(5000) == 5001
        store.forget("api")
        assert store.free_uid(5000) == 5000


def test_ports_of_inactive_services_are_nobodys() -> None:
    store = Store.open()
    filled(store, [("put", "api", NAMES[:1], [8000])])
    port = PortMapping("", 8000, 80, "tcp")
    assert store.port_holders(port) == [("api", port)]
    assert store.port_holders(port._replace(proto="udp")) == []
    with store.transaction():
        store.set_inactive("api")
    assert store.port_holders(port) == []
    assert store.active_ports() == []
    assert store.ports("api") == [("api", PortMapping("", 8000, 80, "tcp"))]


def test_implicit_network_goes_with_its_last_known_service_and_a_made_one_stays() -> None:
    store = Store.open()
    with store.transaction():
        add_network(store, NETWORKS[0], implicit=True)
        add_network(store, NETWORKS[1])
        put(store, "api", NAMES[:2])
        put(store, "db", NAMES[:1])
        store.forget("api")
        assert store.drop_implicit_networks(NAMES[:2]) == []
        store.forget("db")
        assert store.drop_implicit_networks(NAMES[:2]) == [NAMES[0]]
    assert store.network_names() == [NAMES[1]]


# --- undo --------------------------------------------------------------------------------------------------------


@BOUNDED
@given(CHANGES, st.sampled_from(SERVICES), CHANGES)
def test_undo_puts_back_exactly_what_was(before, service, after) -> None:
    with TemporaryStore() as store:
        filled(store, before)
        whole = dump(store)
        with store.transaction():
            store.begin_intent(service, "activate", 5.0)
            change(store, [(verb, service, *rest) for verb, _, *rest in after])
        intent = store.intent(service)
        assert intent is not None
        with store.transaction():
            store.undo([intent])
            store.end_intent(service)
        assert dump(store) == whole
        assert store.intents() == []


def test_undo_takes_a_network_that_the_activation_made_with_it() -> None:
    store = Store.open()
    before = dump(store)
    with store.transaction():
        store.begin_intent("api", "activate", 1.0)
        add_network(store, NETWORKS[0], implicit=True)
        put(store, "api", NAMES[:1])
    (intent,) = store.intents()
    assert (intent.service, intent.action) == ("api", "activate")
    with store.transaction():
        store.undo([intent])
        store.end_intent("api")
    assert dump(store) == before


# --- scopes ------------------------------------------------------------------------------------------------------


def test_store_that_nobody_has_any_more_is_not_kept() -> None:
    """Only what is still in use is there to be closed when the process ends."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Store.open()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    kept = Store.open()
    close_all()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        kept.services()


def test_disk_without_inodes_is_named(monkeypatch) -> None:
    Store.open().close()
    full = sqlite3.OperationalError("unable to open database file")
    status = os.statvfs(paths.state_dir())
    fields = list(status)
    fields[5:8] = [1000, 0, 0]  # f_files, f_ffree, f_favail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    error = unusable(full)
    assert error.message.endswith("unable to open database file (no inode left on its disk)")
    assert error.hint is not None and "df -i" in error.hint
    fields[5] = 0  # a file system that does not count them, such as btrfs
    assert unusable(full).message.endswith("unable to open database file")
