"""Test the migration of databases from earlier versions, with their intents."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
from fakes.kernel import Fake
from old_stores import LATER, PORTS, PROCESS, ROWS, WRITTEN, positions, rows_of, stored_as
from stored import dump, put

from niso.base import convert, paths
from niso.base.errors import Error
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.nft_elements import Element
from niso.look import store_defects
from niso.manifest import keys
from niso.manifest.keys import Manifest
from niso.plan.desired import desired
from niso.plan.records import Healthcheck, Port
from niso.plan.specs import Published, User
from niso.store import same_host, service_rows
from niso.store import tables as store_tables
from niso.store.snapshots import ALL
from niso.store.sqlite import COLUMNS, VERSION
from niso.store.store import Store


@pytest.fixture(autouse=True)
def what_was_active_lives(monkeypatch) -> None:
    """The store was written on this host, in this boot."""
    monkeypatch.setattr(same_host, "_lives", lambda _: True)


def layout(database: sqlite3.Connection) -> tuple[dict[str, object], list[str]]:
    """Columns of all tables, and all indexes that are not SQLite's own."""
    tables = [
        row[0]
        for row in database.execute(
            "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite%'"
        )
    ]
    columns = {
        table: database.execute(f"PRAGMA table_info({table})").fetchall() for table in tables
    }
    indexes = [
        row[0]
        for row in database.execute(
            "SELECT sql FROM sqlite_master WHERE type='index' AND sql NOT NULL"
        )
    ]
    return columns, sorted(indexes)


def test_database_of_version_1_has_the_layout_of_a_new_one(monkeypatch, tmp_path: Path) -> None:
    stored_as(1).close()
    old = Store.open()
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "new"))
    new = Store.open()
    assert layout(old._db) == layout(new._db)
    for store in (old, new):
        assert store._db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert store._db.execute("PRAGMA foreign_key_check").fetchall() == []


def test_what_version_1_held_is_all_there_and_means_the_same() -> None:
    stored_as(1).close()
    store = Store.open()
    found = dump(store)
    for table, rows in ROWS.items():
        assert [row[: len(rows[0])] for row in found[table]] == sorted(rows, key=repr), table
    assert store.state_id() == "0123abcd"
    assert [port for _, port in store.ports("api")] == PORTS
    assert store.active_ports() == [("api", port) for port in PORTS]
    assert store.forwards("api") == []
    assert store.chosen_port("api", Port("", 0, 80, "tcp")) is None
    assert store.port_holders(Port("127.0.0.1", 443, 1, "tcp")) == [("api", PORTS[1])]
    assert {
        network.name: (network.internal, network.publishes, network.by_loopback)
        for network in store.networks()
    } == {
        "backend": (False, True, True),
        "front": (False, True, False),
    }
    state = desired(store.snapshot(ALL))
    published = {e.element: e.value for e in state[Element] if e.container == "publish_any4"}
    assert published == {"tcp . 8080": "10.99.1.2 . 80", "tcp . 443": "10.99.1.2 . 8443"}
    # what a second opening finds is what the first one left
    store.close()
    assert dump(Store.open()) == found


@pytest.fixture
def begun() -> None:
    """In version 1 an activation of api began, which takes other ports and another network, and its process died."""
    old = stored_as(1)
    old.execute("INSERT INTO intent VALUES ('api', 'activate', ?, 5.0)", (rows_of("api"),))
    old.execute("DELETE FROM port WHERE service='api'")
    old.execute("INSERT INTO port VALUES ('api', 0, '', 9090, 90, 'tcp')")
    old.execute("DELETE FROM endpoint WHERE service='api' AND network='backend'")
    old.execute("DELETE FROM lease WHERE service='api' AND network='backend'")
    old.execute("UPDATE endpoint SET position=0 WHERE service='api'")
    old.execute("""UPDATE service SET networks='["front"]', generation=4 WHERE name='api'""")
    old.execute("UPDATE host_name SET name='shop' WHERE name='web'")
    old.close()


def test_what_a_change_that_version_1_began_gave_up_is_held_until_it_is_undone(begun) -> None:
    store = Store.open()
    assert store.port_holders(Port("", 8080, 1, "tcp")) == [("api", PORTS[0])]
    assert store.port_holders(Port("192.0.2.1", 440, 1, "tcp", 10)) == [("api", PORTS[1])]
    assert store.port_holders(Port("", 9090, 1, "tcp")) == [("api", Port("", 9090, 90, "tcp"))]
    assert {(443, 443), (8080, 8080), (9090, 9090)} <= set(store.spans("tcp", 440, 9090))
    assert store.name_holder("web") == "api"
    assert store.lease_holder("10.99.1.2") == "api"


def test_change_that_version_1_began_is_undone_to_what_was(begun) -> None:
    store = Store.open()
    (intent,) = store.intents()
    assert (intent.service, intent.action) == ("api", "activate")
    with store.transaction():
        store.undo([intent])
        store.end_intent("api")
    found = dump(store)
    for table, rows in ROWS.items():
        assert [row[: len(rows[0])] for row in found[table]] == sorted(rows, key=repr), table
    assert [port for _, port in store.ports("api")] == PORTS
    assert store.port_holders(Port("", 9090, 1, "tcp")) == []


def test_ports_of_an_undone_change_lead_into_the_network_that_they_led_into(begun) -> None:
    """By 127.0.0.1 too: route_localnet is on where the rows say that it is needed."""
    store = Store.open()
    (intent,) = store.intents()
    with store.transaction():
        store.undo([intent])
        store.end_intent("api")
    (backend,) = [network for network in store.networks() if network.name == "backend"]
    assert (backend.publishes, backend.by_loopback) == (True, True)
    state = desired(store.snapshot(ALL))
    assert Sysctl("", "net/ipv4/conf/niso-backend/route_localnet", "1") in state[Sysctl]


def test_service_of_version_1_can_be_put_again_and_keeps_what_it_had() -> None:
    stored_as(1).close()
    store = Store.open()
    with store.transaction():
        store.begin_intent("api", "activate", 6.0)
        put(
            store,
            "api",
            ("backend", "front"),
            static={"front": "10.99.2.5"},
            ports=(*PORTS, Port("", 1, 1, "udp", 3)),
        )
    assert store.addresses("api") == [("backend", "10.99.1.2"), ("front", "10.99.2.5")]
    intent = store.intent("api")
    assert intent is not None
    with store.transaction():
        store.undo([intent])
        store.end_intent("api")
    assert [port for _, port in store.ports("api")] == PORTS


# --- version 2 to 3: modes, enabled ----------------------------------------------------------------------------------


def test_services_of_version_2_are_of_bridge_mode_and_not_enabled() -> None:
    old = stored_as(2)
    assert len(old.execute("SELECT * FROM service").fetchone()) == 13
    before = {table: old.execute(f"SELECT * FROM {table}").fetchall() for table in ROWS}
    old.close()
    store = Store.open()
    assert {
        row.name: (row.mode, row.provider, row.enabled, row.active) for row in store.services()
    } == {
        "api": ("bridge", None, False, True),
        "db": ("bridge", None, False, False),
    }
    found = dump(store)
    for table, rows in before.items():
        assert [row[: len(rows[0])] for row in found[table]] == sorted(rows, key=repr), table
    assert found["stack_member"] == []


def test_change_that_version_2_began_is_undone_and_a_service_stays_enabled() -> None:
    old = stored_as(2)
    old.execute("INSERT INTO intent VALUES ('api', 'activate', ?, 5.0)", (rows_of("api"),))
    old.execute("UPDATE service SET generation=9 WHERE name='api'")
    old.close()
    store = Store.open()
    with store.transaction():
        row = store.service("api")
        assert row is not None
        store.put_service(row._replace(mode="share", provider="db"))
        store.set_enabled("api", True)
    (intent,) = store.intents()
    with store.transaction():
        store.undo([intent])
    row = store.service("api")
    assert row is not None
    # whether it is activated at boot is no part of the change that was undone
    assert (row.mode, row.provider, row.enabled, row.generation) == ("bridge", None, True, 3)


def test_mode_provider_and_enabled_are_kept() -> None:
    stored_as(2).close()
    store = Store.open()
    row = store.service("db")
    assert row is not None
    changed = row._replace(mode="share", provider="api", enabled=True, active=True)
    with store.transaction():
        store.put_service(changed)
    assert store.service("db") == changed
    with store.transaction():
        store.set_enabled("db", False)
    assert store.service("db") == changed._replace(enabled=False)


# --- version 3 to 4: manifests as typed data, intents by the names of columns ------------------------------------------


def test_manifests_of_version_3_are_typed_and_say_the_same() -> None:
    stored_as(3).close()
    store = Store.open()
    api, db = store.services()
    spec = api.require_service()
    assert spec.ports == tuple(
        Published(port, f"network.ports[{place}]") for place, port in enumerate(PORTS)
    )
    assert spec.healthcheck == Healthcheck("", 80, "web:80", "/ok", 5.0, 2.0, 3, 10.0)
    assert (spec.restart_delay_s, spec.stop_timeout_s) == (0.5, 60.0)
    assert (spec.memory_max, spec.cpu_max) == (64 << 20, 150)
    assert (spec.user, spec.names) == (User(None, 33, 44), ("web", "api"))
    assert (spec.networks, spec.addresses) == (("backend", "front"), {"front": "10.99.2.5"})
    assert [entry.text for entry in spec.policy.entries()] == ["db:80/tcp"]
    assert spec.manifest["volumes"] == json.loads(WRITTEN["api"])["volumes"]
    assert db.require_service().ports == (
        Published(Port("", 5432, 5432, "tcp"), "network.ports[0]"),
    )
    assert store.checked_services() == ["api"], "a volume of that name is no healthcheck"


def test_process_of_version_3_is_the_same_so_that_nothing_restarts() -> None:
    stored_as(3).close()
    row = Store.open().service("api")
    assert row is not None and row.spec == PROCESS
    now, old = json.loads(service_rows.encode_process(row.require_process())), json.loads(PROCESS)
    assert [volume.pop("identity") for volume in now["volumes"]] == [None] * len(now["volumes"])
    later = {key: now[key] for key in now.keys() - old.keys()}
    assert now == old | later and not any(later.values())


def test_row_of_version_3_is_the_one_that_an_activation_would_write() -> None:
    """Else an unchanged service would be seen as changed."""
    stored_as(3).close()
    row = Store.open().service("api")
    assert row is not None
    tables = convert.convert(json.loads(WRITTEN["api"]), Manifest)
    assert service_rows.encode_service(keys.spec(tables, {})) == row.manifest


@pytest.mark.parametrize("text", ["x", "{}", "[]", WRITTEN["db"].replace('"5432"', '"0"')])
def test_manifest_of_version_3_that_is_damaged_keeps_nothing_from_being_migrated(text: str) -> None:
    old = stored_as(3)
    old.execute("UPDATE service SET manifest=? WHERE name='db'", (text,))
    old.execute("INSERT INTO intent VALUES ('db', 'activate', ?, 5.0)", (positions(old, "db"),))
    old.close()
    store = Store.open()
    api, db = store.services()
    assert api.service is not None and (db.service, db.manifest) == (None, text)
    defects = store_defects.find_defects(Fake(), store)
    assert [defect.service for defect in defects if defect.problem == "different"] == ["db"]
    (intent,) = store.intents()
    assert store.is_as_before(intent)


def test_change_that_version_3_began_is_undone_to_what_was() -> None:
    old = stored_as(3)
    old.execute("INSERT INTO intent VALUES ('api', 'activate', ?, 5.0)", (positions(old, "api"),))
    old.execute("UPDATE service SET generation=9, provider='db' WHERE name='api'")
    old.execute("DELETE FROM port WHERE service='api'")
    old.execute("DELETE FROM lease WHERE service='api' AND network='backend'")
    old.execute("UPDATE host_name SET name='shop' WHERE name='web'")
    old.close()
    store = Store.open()
    (intent,) = store.intents()
    was = intent.before
    assert was is not None and (was.generation, was.provider, was.active) == (3, None, True)
    assert was.require_process().argv == ("/app/api", "-v")
    assert was.require_service().ports[0].port == PORTS[0]
    assert intent.names == ["web", "api"]
    # what it gave up is held
    assert store.name_holder("web") == "api"
    assert store.lease_holder("10.99.1.2") == "api"
    assert list(store.used_numbers("backend", 4)) == [2]
    assert set(store.held_by("backend")) == {"api"}
    assert store.port_holders(Port("", 8080, 1, "tcp")) == [("api", PORTS[0])]
    with store.transaction():
        store.undo([intent])
        assert store.is_as_before(intent)
        store.end_intent("api")
    assert [port for _, port in store.ports("api")] == PORTS
    assert store.addresses("api") == [("backend", "10.99.1.2"), ("front", "10.99.2.5")]


def test_sharing_that_version_3_gave_up_is_held() -> None:
    old = stored_as(3)
    old.execute("UPDATE service SET mode='share', provider='api', active=1 WHERE name='db'")
    old.execute("INSERT INTO intent VALUES ('db', 'activate', ?, 5.0)", (positions(old, "db"),))
    old.execute("UPDATE service SET active=0, provider=NULL WHERE name='db'")
    old.close()
    assert Store.open().held_sharers("api") == ["db"]


def test_ports_that_version_3_was_moving_are_known() -> None:
    old = stored_as(3)
    moved = json.dumps({"moved": [list(PORTS[0]), list(PORTS[1])]})
    old.execute("INSERT INTO intent VALUES ('api', 'ports', ?, 5.0)", (moved,))
    old.close()
    assert Store.open().moved_ports() == [("api", port) for port in PORTS]


def test_reboot_between_the_versions_ends_what_was_active_in_intents_too(monkeypatch) -> None:
    old = stored_as(3)
    old.execute("INSERT INTO intent VALUES ('api', 'activate', ?, 5.0)", (positions(old, "api"),))
    old.execute("UPDATE meta SET value='another boot' WHERE key='world'")
    old.close()
    monkeypatch.setattr(same_host, "_lives", lambda _: False)
    store = Store.open()
    (intent,) = store.intents()
    assert intent.before is not None and not intent.before.active
    assert store.active_services() == []


def test_migration_that_fails_leaves_version_1_as_it_was(monkeypatch) -> None:
    old = stored_as(1)
    before = old.execute("SELECT sql FROM sqlite_master").fetchall()
    monkeypatch.setitem(
        store_tables.MIGRATIONS, 2, store_tables.MIGRATIONS[2] + "; SELECT * FROM nonesuch"
    )
    with pytest.raises(Error):
        Store.open()
    assert old.execute("PRAGMA user_version").fetchone() == (1,)
    assert old.execute("SELECT sql FROM sqlite_master").fetchall() == before
    monkeypatch.undo()


# --- version 4 to 5: more fields of ServiceSpec and ProcessSpec ---------------------------------------------------------


def test_service_of_version_4_keeps_what_it_had() -> None:
    stored_as(4).close()
    for row in Store.open().services():
        spec = row.require_service()
        assert [getattr(spec, name) for name in LATER] == [None] * len(LATER)


def test_stack_of_version_4_came_from_an_unknown_file() -> None:
    old = stored_as(4)
    old.execute("INSERT INTO stack_member VALUES ('api', 'shop')")
    old.close()
    store = Store.open()
    assert store.stack_members("shop") == ["api"] and store.stack_files("shop") == []


# --- version 5 to 6: names that several services have ------------------------------------------------------------------


def test_names_of_version_5_stay_and_another_network_may_have_them_too() -> None:
    old = stored_as(5)
    before = old.execute("SELECT * FROM host_name ORDER BY 1, 2").fetchall()
    old.close()
    store = Store.open()
    assert store._db.execute("SELECT * FROM host_name ORDER BY 1, 2").fetchall() == before
    with store.transaction():
        store.set_names("db", ("web", "db"))
    assert store.holders("web") == ["api", "db"]
    with store.transaction():
        store.forget("db")
    assert store.holders("web") == ["api"]  # the rows still go with their service


# --- version 6 to 7: networks that are not observed -------------------------------------------------------------------


def test_networks_of_version_6_are_observed() -> None:
    stored_as(6).close()
    assert {network.observe for network in Store.open().networks()} == {True}


# --- version 8 to 9: networks that span hosts -------------------------------------------------------------------------


def test_no_network_of_version_8_spans_hosts() -> None:
    stored_as(8).close()
    store = Store.open()
    assert [network.span for network in store.networks()] == [None, None]
    snapshot = store.snapshot(ALL)
    assert (snapshot.wire, snapshot.remotes, snapshot.listed) == ((), (), ())


# --- version 9 to 10: outside names ------------------------------------------------------------------------------------


def test_no_policy_of_version_9_has_outside_names() -> None:
    stored_as(9).close()
    store = Store.open()
    assert not store.names_outside()
    assert store.outside.named() == []


# --- what every version must have ------------------------------------------------------------------------------------


def test_every_version_has_a_migration_to_the_next() -> None:
    assert store_tables.MIGRATIONS.keys() == set(range(2, VERSION + 1))


@pytest.mark.parametrize("version", range(1, VERSION))
def test_migration_that_fails_half_way_changes_nothing(version: int, monkeypatch) -> None:
    old = stored_as(version)
    before = list(old.iterdump())
    old.close()
    broken = {
        **store_tables.MIGRATIONS,
        VERSION: f"{store_tables.MIGRATIONS[VERSION]}; INSERT INTO gone VALUES (1)",
    }
    monkeypatch.setattr(store_tables, "MIGRATIONS", broken)
    with pytest.raises(Error, match="no such table: gone"):
        Store.open()
    again = sqlite3.connect(paths.database())
    assert list(again.iterdump()) == before
    assert again.execute("PRAGMA user_version").fetchone() == (version,)


def test_columns_are_counted() -> None:
    """`Store.open` knows a store by their number."""
    count = "SELECT COUNT(*) FROM sqlite_schema m, pragma_table_info(m.name) WHERE m.type='table'"
    assert Store.open()._db.execute(count).fetchone() == (COLUMNS,)


def test_store_of_another_form_is_not_migrated() -> None:
    old = stored_as(4)
    old.execute("CREATE TABLE more (x TEXT)")
    before = list(old.iterdump())
    with pytest.raises(Error, match="does not have the tables of its version"):
        Store.open()
    assert list(old.iterdump()) == before
    assert old.execute("PRAGMA user_version").fetchone() == (4,)
    assert not Path(store_tables.copy_path(4)).exists()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_store_as_it_was_is_kept(version: int) -> None:
    old = stored_as(version)
    before = list(old.iterdump())
    old.close()
    Store.open().close()
    kept = sqlite3.connect(store_tables.copy_path(version))
    assert list(kept.iterdump()) == before
    assert kept.execute("PRAGMA user_version").fetchone() == (version,)
    assert os.stat(store_tables.copy_path(version)).st_mode & 0o777 == 0o600
    assert not list(Path(paths.state_dir()).glob("*.new*"))


def test_nothing_is_kept_of_the_present_version_and_nothing_followed() -> None:
    """The second is what another process may have left, or put, in the way."""
    stored_as(4).close()
    outside = Path(paths.state_dir()).parent / "outside"
    outside.write_text("untouched")
    draft = Path(f"{store_tables.copy_path(4)}.new")
    draft.symlink_to(outside)
    Store.open().close()
    assert outside.read_text() == "untouched" and not draft.is_symlink()
    assert sqlite3.connect(store_tables.copy_path(4)).execute("PRAGMA user_version").fetchone() == (
        4,
    )
    store_tables.keep(VERSION)
    assert not Path(store_tables.copy_path(VERSION)).exists()
