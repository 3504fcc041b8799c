"""Test stores of older versions with running services: these continue, and old intents are undone."""

from __future__ import annotations

from conftest import Lab, assert_whole
from services import CLIENT, HOST, answer, echo, idle, on, pid_of, ps

from niso.store.sqlite import VERSION

AS_VERSION_3 = """
import json, sqlite3
def written(text):
    return json.dumps(json.loads(text)["manifest"], ensure_ascii=False, separators=(",", ":"))
c = sqlite3.connect("/var/lib/niso/state.db")
for name, text in c.execute("SELECT name, manifest FROM service").fetchall():
    c.execute("UPDATE service SET manifest=? WHERE name=?", (written(text), name))
for name, text in c.execute("SELECT service, undo FROM intent").fetchall():
    undo = json.loads(text)
    for row in undo["service"]:
        row["manifest"] = written(row["manifest"])
    undo = {table: [list(row.values()) for row in rows] for table, rows in undo.items()}
    c.execute("UPDATE intent SET undo=? WHERE service=?", (json.dumps(undo), name))
c.execute("ALTER TABLE stack_member DROP COLUMN file")
c.execute("ALTER TABLE network DROP COLUMN observe")
c.execute("ALTER TABLE service DROP COLUMN plain")
c.execute("DROP INDEX service_inactive")
c.execute("DROP TABLE extra_host")
GONE = ("released", "attached_link", "attached", "span", "peer", "remote", "remote_name", "claim")
GONE += ("outside_peer", "outside_name")
for table in GONE:
    c.execute(f"DROP TABLE {table}")
c.execute("PRAGMA user_version=3")
c.commit()
"""
"""Makes a store what version 3 had: manifests with the texts of their keys, and in intents rows as lists."""


def older(lab: Lab) -> None:
    lab.run("python3", "-ISc", AS_VERSION_3)


def sql(lab: Lab, statement: str) -> str:
    """Run it on the store; the repr of the rows that it gives."""
    code = "import sqlite3, sys; c = sqlite3.connect('/var/lib/niso/state.db'); print(c.execute(sys.argv[1]).fetchall()); c.commit()"
    return lab.run("python3", "-ISc", code, statement).stdout


def test_services_go_on_as_they_were_when_the_store_is_migrated(lab: Lab) -> None:
    folders = [
        echo(
            lab,
            "c",
            network=on("back", ports=["8080:80"], policy={"deny_from": ["d"]}),
            healthcheck={"tcp": 80, "interval": "200ms"},
            service={"stop_timeout": "1s"},
        ),
        idle(lab, "d", volumes={"healthcheck": {"mount": "/d"}}, network=on("back")),
    ]
    lab.niso("activate", *folders)
    pids = [pid_of(lab, name) for name in "cd"]
    older(lab)
    assert_whole(lab)
    assert sql(lab, "PRAGMA user_version") == f"[({VERSION},)]\n"
    older(lab)
    done = lab.niso("activate", *folders)
    assert done.stdout.count("unchanged") == 2, done.stdout
    older(lab)
    lab.niso("activate", "c", "d")
    assert [pid_of(lab, name) for name in "cd"] == pids
    older(lab)
    # a volume of that name is no healthcheck
    assert [ps(lab, name)["health"] for name in "cd"] == ["healthy", None]
    assert_whole(lab)
    assert answer(lab, HOST, 8080, "client") == f"c {CLIENT}"


def test_activation_that_an_older_niso_began_is_undone(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "c", network=on("back", ports=["8080:80"])))
    changed = echo(
        lab, "c", network=on("front", ports=["8081:80"], aliases=["more"]), environment={"A": "b"}
    )
    undone = 0
    for step in range(3, 60, 7):
        dead = lab.niso("activate", changed, env={"NISO_FAILPOINT": f"{step}:kill"}, check=False)
        if dead.returncode == 0:
            break
        older(lab)
        lab.niso("net", "repair")
        assert_whole(lab)
        assert answer(lab, HOST, 8080, "client") == f"c {CLIENT}"
        undone += 1
    assert undone > 3


def test_manifest_that_cannot_be_migrated_is_named_and_concerns_its_service_alone(lab: Lab) -> None:
    folder = idle(lab, "c")
    lab.niso("activate", folder, idle(lab, "d"))
    pids = [pid_of(lab, name) for name in "cd"]
    older(lab)
    sql(lab, "UPDATE service SET manifest='{\"package\":1}' WHERE name='c'")
    named = lab.niso("net", "check", check=False)
    assert (named.returncode, named.stdout) == (1, "different: store: service of service 'c'\n")
    lab.niso("activate", "d")
    assert f"hint: niso activate {folder}" in lab.niso("activate", "c", check=False).stderr
    lab.niso("activate", folder)
    assert [pid_of(lab, name) for name in "cd"] == pids
    assert_whole(lab)
