"""Test that rows that follow from a service's own are missed one by one, and restored as they were."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_world import World
from refusals import refuses
from stored import dump

from niso.base.errors import Error
from niso.change import deactivate, repair
from niso.look import check, store_defects
from niso.store.service_rows import ROW_TABLES

FOLLOW = set(ROW_TABLES) - {"service", "attached", "attached_link", "stack_member", "instance"}
TABLES = {
    "network": {
        "networks": ["backend", "front"],
        "aliases": ["web", "www"],
        "ports": ["8080:80", "81"],
    },
    "network.ip": {"backend": "10.99.1.77"},
    "network.extra_hosts": {"registry": "192.0.2.7"},
    "network.policy": {"allow_from": ["db:80", "network:backend"]},
    "network.policy.egress": {"allow": ["example.com:443"]},
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """``api`` has rows in all tables, ``agent`` shares its namespace; ``db`` and ``idle`` are not active.

    ``idle`` has nothing that needs more than one query to see that it is whole.
    """
    with World(tmp_path) as made:
        made.make("backend", "10.99.1.0/24", "fd00:1::/64")
        made.make("front", "10.99.2.0/24")
        made.activate(
            made.package("db", network={"network": "backend", "aliases": ["store"]}),
            made.package("api", **TABLES),
            made.package("idle", network={"networks": ["front", "backend"], "hostname": "still"}),
            made.package("agent", network={"mode": "share", "share": "api", "ports": ["8081:81"]}),
        )
        deactivate.deactivate(made.machine, ["db", "idle"])
        yield made


def test_each_row_that_is_lost_is_missed_and_restored(world: World) -> None:
    store, kernel = world.store, world.kernel
    assert store_defects.find_defects(kernel, store) == []
    whole, tried = dump(store), set()
    for table in sorted(FOLLOW):
        cursor = store._db.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in cursor.description]
        key = " AND ".join(f"{column}=?" for column in columns)
        for row in cursor.fetchall():
            service = row[columns.index("service")]
            store._db.execute(f"DELETE FROM {table} WHERE {key}", row)
            found = store_defects.find_defects(kernel, store)
            assert found == [("missing", table, service)], row
            repair.repair_all(world.machine)
            # an inactive service gets the lowest free address, which it had
            assert dump(store) == whole, row
            tried.add((table, service))
    assert {table for table, _ in tried} == FOLLOW
    assert {service for _, service in tried} == {"agent", "api", "db", "idle"}
    assert check.check(world.machine) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE host_name SET position=position+10 WHERE service='api'",
        "UPDATE host_name SET position=2 WHERE service='idle' AND name='idle'",
        "UPDATE endpoint SET position=5 WHERE service='api' AND network='front'",
        "UPDATE endpoint SET position=5 WHERE service='idle' AND network='front'",
        "UPDATE lease SET static=0 WHERE service='api' AND static=1",
        "UPDATE extra_host SET address='192.0.2.8'",
        "UPDATE policy SET text='[null,[],null,[],false,null]'",
        "UPDATE published SET by_loopback=0",
        "UPDATE published SET network='front'",
    ],
)
def test_row_that_is_changed_is_missed_and_restored(world: World, change: str) -> None:
    whole = dump(world.store)
    world.store._db.execute(change)
    found = store_defects.find_defects(world.kernel, world.store)
    assert {table for _, table, _ in found} == {change.split()[1]}
    repair.repair_all(world.machine)
    assert dump(world.store) == whole
    assert check.check(world.machine) == []


def test_record_that_is_damaged_is_named(world: World) -> None:
    store = world.store
    damage = [
        *(
            (column, f"'{text}'")
            for column in ("manifest", "spec")
            for text in ("x", "{}", "[]", "")
        ),
        ("spec", """'{"service": 1}'"""),
        ("manifest", "json_remove(manifest, '$.process.restart')"),
        ("manifest", "json_set(manifest, '$.more', 1)"),
        ("manifest", "json_set(manifest, '$.process.args', 'sleep')"),
        ("manifest", "json_set(manifest, '$.process.pids_limit', 1.5)"),
        ("manifest", "json_set(manifest, '$.process.read_only', 1)"),
        ("manifest", "json_set(manifest, '$.network.hostname', null)"),
        ("manifest", "json_set(manifest, '$.network.policy.log', 'on')"),
        ("manifest", "json_set(manifest, '$.process.args', json('[1]'))"),
        ("manifest", "json_set(manifest, '$.process.environment', json('[]'))"),
        ("manifest", "json_set(manifest, '$.process', null)"),  # as for an attachment
        ("spec", "json_set(spec, '$.argv', json('[1]'))"),
    ]
    for service in ("api", "idle"):
        whole = store.service(service)
        assert whole is not None
        for column, value in damage:
            store._db.execute(f"UPDATE service SET {column}={value} WHERE name='{service}'")
            found = store_defects.find_defects(world.kernel, store)
            assert found == [("different", "service", service)], (column, value)
            store.put_service(whole)
    assert store_defects.find_defects(world.kernel, store) == []


def test_all_rows_are_restored_at_once(world: World) -> None:
    """Those of ``agent`` follow from addresses of ``api``, which is restored before it."""
    whole = dump(world.store)
    for table in FOLLOW:
        world.store._db.execute(f"DELETE FROM {table} WHERE service NOT IN ('db', 'idle')")
    found = store_defects.find_defects(world.kernel, world.store)
    assert {table for _, table, service in found if service == "api"} == FOLLOW
    lost = {table for _, table, service in found if service == "agent"}
    assert lost == {"host_name", "port", "published"}
    repair.repair_all(world.machine)
    assert dump(world.store) == whole
    assert check.check(world.machine) == []


def test_rows_of_a_change_in_progress_are_its_own(world: World) -> None:
    with world.store.transaction():
        world.store.begin_intent("api", "activate", 1.0)
    world.store._db.execute("DELETE FROM host_name WHERE service='api'")
    assert store_defects.find_defects(world.kernel, world.store) == []


def test_network_that_is_lost_is_named(world: World) -> None:
    world.store._db.execute("DELETE FROM subnet WHERE network='front'")
    with refuses(
        Error,
        "front",
        "api",
        hint="niso net create front --subnet CIDR, with the prefix of the address of niso-front",
    ):
        store_defects.find_defects(world.kernel, world.store)


def test_instances_that_are_lost_or_linger_are_named_and_restored(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        tables = {"service": {"replicas": 3}, "healthcheck": {"command": ["true"]}}
        deploy = {"monitor": "0s", "drain": "0s"}
        network = {"network": "backend"}
        web = world.package("web", network=network, deploy=deploy, **tables)
        world.activate(web, world.package("cli", network=network))

        def shown(name: str) -> Any:
            return json.loads(world.niso("inspect", name, "--json").stdout)

        def states() -> list[tuple[str, str, int]]:
            rows = shown("web")["instances"]
            return [(one["service"], one["state"], one["version"]) for one in rows]

        whole = [(f"web.{n}", "serving", 1) for n in (1, 2, 3)]
        assert states() == whole and shown("cli")["instances"] == []
        assert (shown("web")["front"], shown("web")["netns"]) == (None, None)
        assert shown("web.2")["front"] == "web"
        assert [one["service"] for one in shown("web.2")["instances"]] == ["web.2"]

        def checked(statement: str) -> subprocess.CompletedProcess[str]:
            world.store._db.execute(statement)
            return world.niso("net", "check", check=False)

        said = checked("UPDATE instance SET state='leaving', since=since-30 WHERE service='web.2'")
        assert "2 of 3 instances of web serve" in said.stderr and "leaving" not in said.stderr
        said = checked("UPDATE instance SET since=since-60 WHERE service='web.2'")
        assert "web.2 has been leaving since 20" in said.stderr and "net repair" in said.stderr
        for name, status in (("web", 1), ("cli", 0), ("web.9", 2)):
            assert world.niso("net", "check", name, check=False).returncode == status, name
        assert "web.2" not in checked("UPDATE instance SET state='serving'").stderr
        for which in (" WHERE service='web.2'", ""):
            said = checked(f"DELETE FROM instance{which}")
            assert said.returncode == 1 and "instance of service 'web.2'" in said.stdout
            world.niso("net", "repair")
            assert states() == whole
            world.assert_whole()
