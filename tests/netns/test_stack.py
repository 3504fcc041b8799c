"""Test niso stack: the services of one file, in dependency order, all or none."""

from __future__ import annotations

import json
import time
from typing import Any

import snapshots
from conftest import Lab
from services import HOST, address, idle, package, pid_of, ps, refused
from stack_world import members, needs, server, service, write
from test_deploy import SERVER as DEPLOYED
from test_deploy import Load

BACKEND = {"backend": {"subnet": "10.99.7.0/24"}}
HEALTHY = {"tcp": 80, "interval": "200ms"}


def up(lab: Lab, folder: str, *options: str) -> str:
    return str(lab.niso("stack", "up", folder, *options).stdout)


def test_services_start_and_end_in_the_order_of_their_dependencies(lab: Lab) -> None:
    """``api`` lives only if it reaches ``db`` when it starts, which listens half a second after its own start."""
    db = server(lab, "db", after_s=0.5, healthcheck=HEALTHY)
    keys: dict[str, Any] = {"networks": ["backend"], "ports": ["8080:80"]}

    api = service("api", needs(lab, "api", "db"), depends_on={"db": "healthy"}, **keys)
    folder = write(lab, api, service("db", db, networks=["backend"]), networks=BACKEND)
    up(lab, folder)
    assert lab.niso("logs", "api").stdout == "start reached\n"
    assert members(lab) == ["api", "db"] and ps(lab, "db")["health"] == "healthy"
    was = {name: (pid_of(lab, name), address(lab, name)) for name in ("api", "db")}
    assert lab.niso("stack", "restart", folder).stdout == "db: restarted\napi: restarted\n"
    for name, (pid, at) in was.items():
        assert pid_of(lab, name) != pid and address(lab, name) == at
    lab.niso("stack", "down", folder)
    lines = lab.niso("stack", "logs", folder).stdout.splitlines()
    said = [line for line in lines if line.startswith("api | ")]
    assert said == [f"api | {when} reached" for when in ("start", "end", "start", "end")]
    assert lab.niso("net", "check").returncode == 0


def test_up_that_is_interrupted_or_takes_too_long_is_undone(lab: Lab) -> None:
    never = server(lab, "db", after_s=1000, healthcheck=HEALTHY)
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    folder = write(lab, service("db", never, networks=["backend"]), networks=BACKEND)
    # it comes while niso forks, while crun and conmon work, and while all wait; the terminal sends it to the whole group
    for after_s in (0, 0.002, 0.006, 0.02, 0.05, 0.2):
        command = lab.popen("niso", "stack", "up", folder)
        lab.wait_for(lambda: lab.path("/run/niso/services/db/state.json").exists())
        time.sleep(after_s)
        command.send_signal(2)
        _, err = command.communicate(timeout=20)
        assert command.returncode == 130 and "niso: interrupted" in err
    said = refused(lab, "stack", "up", folder, "--timeout", "1s")
    assert "db: is not healthy after 1s" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []


# --- services with a service address --------------------------------------------------------------


def fronts(
    lab: Lab, api: str = "v1", web: str = "v1", prefix: bool | None = None, **keys: Any
) -> str:
    """Write a stack of three: api, web, which needs api, and cli, which needs web.

    ``api`` and ``web`` are arguments of the server of test_deploy. ``api`` has its keys in the
    stack's file, ``web`` in its manifest. ``keys`` are further keys of both.
    """
    tables: dict[str, dict[str, Any]] = {
        "service": {"replicas": 2},
        "healthcheck": {"http": "http://127.0.0.1/0", "interval": "100ms", "retries": 2},
        "deploy": {"monitor": "0s", "drain": "5s"},
        "volumes": {"data": {"mount": "/data", "shared": True}},
    }
    for table, more in keys.items():
        tables[table] = tables[table] | more
    command = ("/usr/bin/python3", "-ISu", "/app/server.py")
    files = {"server.py": DEPLOYED}
    plain = package(lab, "api", *command, *api.split(), files=files)
    full = package(lab, "web", *command, *web.split(), files=files, **tables)
    return write(
        lab,
        service("cli", needs(lab, "cli", "web"), networks=["apps"], depends_on={"web": "healthy"}),
        service("web", full, networks=["apps"], ports=["8081:80"], depends_on={"api": "healthy"}),
        service("api", plain, networks=["apps"], ports=["8080:80"], **tables),
        networks={"apps": {}},
        prefix=prefix,
    )


def instances(lab: Lab) -> dict[str, int]:
    """Return the process of each active instance."""
    shown = json.loads(lab.niso("ps", "--instances", "--json").stdout)
    names = [line["service"] for line in shown if "." in line["service"]]
    return {name: pid_of(lab, name) for name in names}


def page(lab: Lab, port: int) -> str:
    url = f"http://{HOST}:{port}/"
    return str(lab.client("curl", "-s", "-m", "30", url, check=False).stdout)


def test_stack_of_services_with_instances(lab: Lab) -> None:
    folder = fronts(lab)
    said = up(lab, folder).splitlines()
    assert [line.split(":")[0] for line in said] == ["network apps", "api", "web", "cli"]
    assert lab.niso("logs", "cli").stdout == "start reached\n"
    assert members(lab) == ["api", "cli", "web"]
    for action in ("status", "ps"):
        rows = json.loads(lab.niso("stack", action, folder, "--json").stdout)
        assert {row["service"]: row["status"] for row in rows} == {
            **{"api": "2/2 running", "web": "2/2 running", "cli": "running"}
        }
    first = instances(lab)
    assert sorted(first) == ["api.1", "api.2", "web.1", "web.2"]
    up(lab, folder)
    assert instances(lab) == first
    # both versions change, and nobody who asks sees that
    loads = [Load(lab, "client", HOST, port) for port in (8080, 8081)]
    up(lab, fronts(lab, "v2", "v2"))
    assert instances(lab).keys() == {"api.3", "api.4", "web.3", "web.4"}
    lab.niso("stack", "restart", folder)
    assert instances(lab).keys() == {"api.1", "api.2", "web.1", "web.2"}
    assert not instances(lab).items() & first.items()
    for load in loads:
        seen, errors = load.failed()
        assert not errors and seen.keys() == {"v1", "v2"}
    lab.niso("exec", "web.2", "--", "sh", "-c", "echo hello >/proc/1/fd/1")
    logs = lab.niso("stack", "logs", folder).stdout.splitlines()
    assert any("web.2" in line and "hello" in line for line in logs)
    assert lab.niso("net", "check").returncode == 0
    # down, up, and down with volumes
    addresses = [ps(lab, name)["address"] for name in ("api", "web")]
    down = lab.niso("stack", "down", folder).stdout.splitlines()
    assert down == ["cli: inactive", "web: inactive", "api: inactive"]
    assert instances(lab) == {} and page(lab, 8080) == ""
    up(lab, folder)
    assert [ps(lab, name)["address"] for name in ("api", "web")] == addresses
    assert (page(lab, 8080), page(lab, 8081)) == ("v2", "v2")
    data = lab.path("/var/lib/niso/volumes/web/data")
    assert data.exists()
    lab.niso("stack", "down", folder, "--volumes")
    assert not data.exists()
    assert lab.niso("net", "check").returncode == 0
    assert not [name for name in lab.run("ip", "netns").stdout.split() if name.startswith("niso-")]


def test_all_is_as_before_if_one_of_two_new_versions_fails(lab: Lab) -> None:
    up(lab, fronts(lab))
    before, cli = instances(lab), pid_of(lab, "cli")
    loads = [Load(lab, "client", HOST, port) for port in (8080, 8081)]

    def fails(api: str, web: str, **keys: Any) -> None:
        folder = fronts(lab, api, web, **keys)
        failed = lab.niso("stack", "up", "--timeout", "5s", folder, check=False, timeout=120)
        assert failed.returncode == 1
        assert instances(lab) == before
        assert (page(lab, 8080), page(lab, 8081)) == ("v1", "v1")

    fails("v2", "bad")
    fails("dies 0", "v2")
    for load in loads:
        seen, errors = load.failed()
        assert seen["v1"] and not errors
    # a version that ends itself, within the time for which it is monitored, after all have been replaced
    fails("v2", "dies 2", deploy={"monitor": "60s"})
    assert pid_of(lab, "cli") == cli
    assert lab.niso("net", "check").returncode == 0
    up(lab, fronts(lab, "v3", "v3"))
    assert (page(lab, 8080), page(lab, 8081)) == ("v3", "v3")
