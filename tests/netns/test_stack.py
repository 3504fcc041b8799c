"""Test niso stack: the services of one file, in dependency order, all or none."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import snapshots
from conftest import Lab
from services import (
    HOST,
    address,
    answer,
    echo,
    environment_of,
    idle,
    package,
    pid_of,
    ps,
    refused,
    subnets,
)
from stack_world import members, needs, server, service, write
from test_deploy import SERVER as DEPLOYED
from test_deploy import Load

BACKEND = {"backend": {"subnet": "10.99.7.0/24"}}
HEALTHY = {"tcp": 80, "interval": "200ms"}


def up(lab: Lab, folder: str, *options: str) -> str:
    return str(lab.niso("stack", "up", folder, *options).stdout)


def stack_of_two(lab: Lab, **api: Any) -> str:
    """``api`` lives only if it reaches ``db`` when it starts, which listens half a second after its own start."""
    db = server(lab, "db", after_s=0.5, healthcheck=HEALTHY)
    wanted = {"depends_on": {"db": "healthy"}, **api}
    return write(
        lab,
        service("api", needs(lab, "api", "db"), networks=["backend"], **wanted),
        service("db", db, networks=["backend"]),
        networks=BACKEND,
    )


def test_up_makes_networks_and_starts_each_service_when_what_it_needs_is_healthy(lab: Lab) -> None:
    said = up(lab, stack_of_two(lab, ports=["8080:80"]))
    assert said.splitlines() == [
        "network backend: created",
        f"db: active  {address(lab, 'db')}",
        f"api: active  {address(lab, 'api')}  ports: 8080→80",
    ]
    assert subnets(lab) == {"backend": "10.99.7.0/24"}
    assert (
        address(lab, "db").startswith("10.99.7.")
        and lab.niso("logs", "api").stdout == "start reached\n"
    )
    assert members(lab) == [
        "api",
        "db",
    ]
    assert ps(lab, "db")["health"] == "healthy"
    assert lab.niso("net", "check").returncode == 0


def test_without_the_dependency_it_would_not_have_lived(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    said = refused(lab, "stack", "up", stack_of_two(lab, depends_on={}))
    assert "api: its process ended at once (exit status 7)" in said and "start not reached" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_down_ends_each_service_before_those_that_it_depends_on_and_keeps_addresses(
    lab: Lab,
) -> None:
    folder = stack_of_two(lab)
    up(lab, folder)
    addresses = {name: address(lab, name) for name in ("db", "api")}
    planned = lab.niso("stack", "down", folder, "--dry-run").stdout
    done = lab.niso("stack", "down", folder, "-v")
    assert done.stderr == planned and planned.startswith("stop api\nstop db\n")
    assert done.stdout == "api: inactive\ndb: inactive\n"
    assert lab.niso("logs", "api").stdout == "start reached\nend reached\n"
    assert {
        row["status"] for row in json.loads(lab.niso("stack", "ps", folder, "--json").stdout)
    } == {"inactive"}
    assert subnets(lab) == {"backend": "10.99.7.0/24"}
    assert (
        lab.niso("stack", "down", folder).stdout
        == "api: already inactive, unchanged\ndb: already inactive, unchanged\n"
    )
    up(lab, folder)
    assert {name: address(lab, name) for name in ("db", "api")} == addresses


def test_down_needs_neither_packages_nor_a_right_file(lab: Lab) -> None:
    folder = stack_of_two(lab)
    up(lab, folder)
    write(lab, service("api", "/nowhere", ports="x"), {"nome": 3})
    assert lab.niso("stack", "down", folder).stdout == "db: inactive\napi: inactive\n"
    assert ps(lab, "db")["status"] == "inactive"


def test_second_up_changes_nothing_and_says_so(lab: Lab) -> None:
    folder = stack_of_two(lab, ports=["8080:80"])
    up(lab, folder)
    before = snapshots.take(lab)
    assert up(lab, folder, "--dry-run") == "nothing to do\n"
    assert [line.partition("  ")[0] for line in up(lab, folder).splitlines()] == [
        "db: already active, unchanged",
        "api: already active, unchanged",
    ]
    assert lab.niso("stack", "up", folder, "-v").stderr == ""
    result = json.loads(up(lab, folder, "--json"))
    assert [each["changed"] for each in result["services"]] == [False, False]
    assert (result["stack"], result["left"], result["networks"]) == ("shop", [], [])
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_up_applies_the_difference_and_a_dry_run_shows_it(lab: Lab) -> None:
    folder = stack_of_two(lab)
    up(lab, folder)
    pids = {name: pid_of(lab, name) for name in ("db", "api")}
    write(
        lab,
        service(
            "api", needs(lab, "api", "db"), networks=["backend"], environment={"LEVEL": "debug"}
        ),
        service("db", "/tmp/packages/db", networks=["backend"], ports=["5432:80"]),
        networks=BACKEND,
    )
    before = snapshots.take(lab)
    planned = up(lab, folder, "--dry-run")
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert lab.niso("stack", "up", folder, "-v").stderr == planned
    assert "5432" in planned and "start db" not in planned and "start api" in planned
    assert pid_of(lab, "db") == pids["db"] and pid_of(lab, "api") != pids["api"]
    assert "LEVEL=debug" in environment_of(lab, pid_of(lab, "api"))


def test_service_that_left_the_file_ends_and_what_it_had_is_free_for_others(lab: Lab) -> None:
    folder = write(
        lab, service("web", echo(lab, "web"), ports=["8080:80"]), service("job", idle(lab, "job"))
    )
    up(lab, folder)
    kept, job = address(lab, "web"), pid_of(lab, "job")
    write(
        lab,
        service("www", echo(lab, "www"), ports=["8080:80"]),
        service("job", "/tmp/packages/job"),
    )
    planned = up(lab, folder, "--dry-run")
    done = lab.niso("stack", "up", folder, "-v")
    assert done.stderr == planned and "stop web" in planned.splitlines()
    assert "web: inactive, removed from the stack" in done.stdout.splitlines()
    assert answer(lab, HOST, 8080, "client").startswith("www ")
    assert (ps(lab, "web")["status"], pid_of(lab, "job")) == ("inactive", job)
    assert members(lab) == [
        "job",
        "www",
    ]
    assert lab.niso("net", "check").returncode == 0
    lab.niso("stack", "down", folder)
    lab.niso("activate", "web")  # it is known still, and nobody's
    assert address(lab, "web") == kept


def test_failed_up_leaves_networks_services_and_those_that_would_have_left_as_they_were(
    lab: Lab,
) -> None:
    folder = write(
        lab, service("web", echo(lab, "web"), ports=["8080:80"]), service("job", idle(lab, "job"))
    )
    up(lab, folder)
    job = pid_of(lab, "job")
    dies = package(lab, "bad", "sh", "-c", "echo no luck; exit 7")
    write(
        lab,
        service("www", echo(lab, "www"), ports=["8080:80"], networks=["backend"]),
        service("job", "/tmp/packages/job", ports=["9000:80"]),
        service("bad", dies, depends_on=["www"]),
        networks=BACKEND,
    )
    said = refused(lab, "stack", "up", folder)
    assert "bad: its process ended at once (exit status 7)" in said and "no luck" in said
    assert answer(lab, HOST, 8080, "client").startswith("web ") and pid_of(lab, "job") == job
    assert subnets(lab).keys() == {"niso-default"}
    assert {row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)} == {"web", "job"}
    assert members(lab) == [
        "job",
        "web",
    ]
    assert lab.niso("net", "check").returncode == 0


def test_what_takes_over_a_second_is_told(lab: Lab) -> None:
    slow = server(lab, "db", after_s=2.5, healthcheck=HEALTHY)
    done = lab.niso("stack", "up", write(lab, service("db", slow)))
    assert done.stderr.splitlines() == ["niso: waiting for db to become healthy (1s)"]
    stubborn = package(
        lab,
        "old",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 0.1; done",
        service={"stop_timeout": "2s"},
    )
    lab.niso("stack", "up", write(lab, service("old", stubborn)))
    assert lab.niso("stack", "down", "/tmp/stack").stderr == "niso: stop old (1s)\n"


def test_down_deletes_volumes_where_it_is_told_to(lab: Lab) -> None:
    keeps = idle(lab, "db", volumes={"data": {"mount": "/data"}, "more": {"mount": "/more"}})
    folder = write(lab, service("db", keeps), service("web", idle(lab, "web")))
    up(lab, folder)
    lab.niso("exec", "db", "--", "touch", "/data/kept")
    lab.niso("stack", "down", folder)
    up(lab, folder)
    assert lab.niso("exec", "db", "--", "ls", "/data").stdout == "kept\n"
    planned = lab.niso("stack", "down", "--volumes", "--dry-run", folder).stdout
    assert planned.splitlines()[-1] == "delete the volumes of db: data, more"
    assert lab.niso("stack", "down", "--volumes", "-v", folder).stderr == planned
    up(lab, folder)
    assert lab.niso("exec", "db", "--", "ls", "/data").stdout == ""


def test_status_shows_what_is_not_up_yet_too(lab: Lab) -> None:
    folder = write(lab, service("db", idle(lab, "db")), service("web", "/nowhere"))
    rows = json.loads(lab.niso("stack", "ps", folder, "--json").stdout)
    assert [(row["service"], row["status"], row["mode"]) for row in rows] == [
        ("db", "inactive", None),
        ("web", "inactive", None),
    ]
    assert lab.niso("stack", "ps", folder).stdout.splitlines()[2].split() == [
        "web",
        "inactive",
        *("-",) * 5,
    ]


def test_interrupted_up_is_undone(lab: Lab) -> None:
    never = server(lab, "db", after_s=1000, healthcheck=HEALTHY)
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    folder = write(lab, service("db", never, networks=["backend"]), networks=BACKEND)
    # it comes while niso forks, while crun and conmon work, and while all wait; the terminal sends it to the whole group
    for after_s in (0, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.2):
        command = lab.popen("niso", "stack", "up", folder)
        lab.wait_for(lambda: lab.path("/run/niso/services/db/state.json").exists())
        time.sleep(after_s)
        command.send_signal(2)
        _, err = command.communicate(timeout=20)
        assert command.returncode == 130 and "niso: interrupted" in err
    assert snapshots.differences(before, snapshots.take(lab)) == []


@pytest.mark.parametrize("wait", ["1s", "x"])
def test_service_that_does_not_become_healthy_in_time_undoes_all(lab: Lab, wait: str) -> None:
    folder = write(
        lab,
        service("db", server(lab, "db", after_s=1000, healthcheck=HEALTHY)),
        service("web", idle(lab, "web")),
    )
    lab.niso("activate", idle(lab, "base"))
    before = snapshots.take(lab)
    if wait == "x":
        assert "--timeout" in refused(lab, "stack", "up", folder, "--timeout", wait, status=2)
    else:
        assert "db: is not healthy after 1s" in refused(
            lab, "stack", "up", folder, "--timeout", wait
        )
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_wrong_use_says_what_is_right(lab: Lab) -> None:
    assert "  down     deactivate" in lab.niso("stack").stdout
    assert "'stack up'" in refused(lab, "stack", "upp", status=2)
    assert "/tmp/stack.toml: no such file" in refused(lab, "stack", "up")
    assert "niso stack up" in lab.niso("stack", "up", "--help").stdout


def test_restart_and_logs_of_a_stack_are_those_of_its_services(lab: Lab) -> None:
    folder = stack_of_two(lab)
    up(lab, folder)
    before = {name: (pid_of(lab, name), address(lab, name)) for name in ("api", "db")}
    said = lab.niso("stack", "restart", folder).stdout
    assert said == "db: restarted\napi: restarted\n"
    for name, (pid, at) in before.items():
        assert pid_of(lab, name) != pid and address(lab, name) == at
    lines = lab.niso("stack", "logs", folder).stdout.splitlines()
    assert {line.partition(" | ")[0] for line in lines} <= {"api", "db"}
    assert [line for line in lines if line.startswith("api")] == [
        "api | start reached",
        "api | end reached",
        "api | start reached",
    ]
    assert lab.niso("stack", "ps", folder).stdout.splitlines()[0].startswith("SERVICE")
    assert lab.niso("net", "check").returncode == 0


def test_status_shows_no_service_of_that_name_that_is_not_of_the_stack(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "db"))
    folder = write(lab, service("db", "/nowhere"))
    rows = json.loads(lab.niso("stack", "ps", folder, "--json").stdout)
    assert [(row["service"], row["status"], row["mode"]) for row in rows] == [
        ("db", "inactive", None)
    ]


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
            **{"api": "2/2 running", "web": "2/2 running", "cli": "running"},
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


@pytest.mark.parametrize("why", ["unhealthy", "ends", "within monitor"])
def test_all_is_as_before_if_one_of_two_new_versions_fails(lab: Lab, why: str) -> None:
    up(lab, fronts(lab))
    before, cli = instances(lab), pid_of(lab, "cli")
    loads = [Load(lab, "client", HOST, port) for port in (8080, 8081)]
    words = {"unhealthy": "bad", "ends": "dies 0", "within monitor": "dies 2"}[why]
    monitor = {"deploy": {"monitor": "60s"}} if why == "within monitor" else {}
    for api, web in (("v2", words), (words, "v2")):
        folder = fronts(lab, api, web, **monitor)
        failed = lab.niso("stack", "up", "--timeout", "5s", folder, check=False, timeout=120)
        assert failed.returncode == 1
        assert instances(lab) == before
        assert (page(lab, 8080), page(lab, 8081)) == ("v1", "v1")
    for load in loads:
        seen, errors = load.failed()
        assert seen["v1"]
        # a version that ends itself takes its open connections along
        assert not errors or why == "within monitor"
    assert pid_of(lab, "cli") == cli
    assert lab.niso("net", "check").returncode == 0
    up(lab, fronts(lab, "v3", "v3"))
    assert (page(lab, 8080), page(lab, 8081)) == ("v3", "v3")
    assert lab.niso("net", "check").returncode == 0


def test_failed_first_up_of_services_with_instances_leaves_nothing(lab: Lab) -> None:
    lab.niso("activate", server(lab, "base", healthcheck=HEALTHY))
    lab.path("/var/lib/niso/volumes").mkdir(exist_ok=True)
    before = snapshots.take(lab)
    folder = fronts(lab)
    needs(lab, "cli", "web", 81)  # no instance listens there
    assert "cli: its process ended at once" in refused(lab, "stack", "up", folder)
    assert instances(lab) == {} and page(lab, 8081) == ""
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert lab.niso("net", "check").returncode == 0


def test_instances_leave_with_their_service(lab: Lab) -> None:
    folder = fronts(lab, prefix=True)
    up(lab, folder)
    assert members(lab) == ["shop-api", "shop-cli", "shop-web"]
    assert instances(lab).keys() == {"shop-api.1", "shop-api.2", "shop-web.1", "shop-web.2"}
    text = lab.path(f"{folder}/stack.toml").read_text()
    head, _, others = text.partition("[[service]]")
    kept = [part for part in others.split("[[service]]") if 'name = "api"' in part]
    lab.write(f"{folder}/stack.toml", head + "".join(f"[[service]]{part}" for part in kept))
    said = up(lab, folder)
    assert "shop-web" in said
    assert instances(lab).keys() == {"shop-api.1", "shop-api.2"}
    assert ps(lab, "shop-web")["status"] == "inactive"
    assert page(lab, 8080) == "v1" and page(lab, 8081) == ""
    assert lab.niso("net", "check").returncode == 0
    lab.niso("remove", "shop-web", "--volumes")
    lab.niso("stack", "down", folder)
    assert instances(lab) == {}
    assert lab.niso("net", "check").returncode == 0
