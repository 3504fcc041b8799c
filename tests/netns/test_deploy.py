"""Deploys of a service with a service address: no failed request, and nothing half done."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab
from samples import LONG
from services import idle, on, package, refused
from test_service_address import addresses, asked

SERVER = r"""
import os, sys, time
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from _thread import start_new_thread
failing = [1] if sys.argv[1] == "bad" else []
def later(seconds, call):
    start_new_thread(lambda: (time.sleep(seconds), call()), ())
def answer(connection, head):
    path = head.split()[1].decode()
    size = int(path[2:]) if path.startswith("/b") else 0
    time.sleep(0 if size else float(path[1:] or 0))
    body = sys.argv[1].encode() + bytes(size)
    bad = failing and path == "/0" or os.path.exists("/flag/broken")
    status = b"500 Failed" if bad else b"200 OK"
    connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
def serve(connection):
    try:
        data = b""
        while more := connection.recv(65536):
            data += more
            while b"\r\n\r\n" in data:
                head, _, data = data.partition(b"\r\n\r\n")
                answer(connection, head)
                if b"connection: close" in head.lower(): return
    except OSError:
        pass
    finally:
        connection.close()
if sys.argv[1] == "slow": time.sleep(float([*sys.argv, "1.5"][2]))
server = socket(AF_INET, SOCK_STREAM)
server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
server.bind(("", 80))
server.listen(128)
if sys.argv[1].startswith("dies"):
    later(float(sys.argv[2]), lambda: os._exit(7))
if sys.argv[1] == "late":
    with open("/data/starts", "a+") as starts:
        print("start", file=starts, flush=True)
        starts.seek(0)
        if len(starts.readlines()) > 1:
            later(1, lambda: failing.append(1))
while True:
    start_new_thread(serve, (socket(fileno=server._accept()[0]),))
"""
"""Answers with its version, as HTTP/1.1. Modules in C load in a tenth of the time of http.server."""

LOAD = r"""
import json, socket, sys, threading, time
host, port, path, pause = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
seen, errors, lock, end = {}, [], threading.Lock(), threading.Event()
request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
def answer():
    with socket.create_connection((host, port), 20) as connection:
        connection.sendall(request)
        data = b""
        while more := connection.recv(65536):
            data += more
            head, whole, body = data.partition(b"\r\n\r\n")
            if whole and len(body) >= int(head.rpartition(b"Content-Length: ")[2]):
                return head.split()[1], body.decode()
    raise OSError(f"closed after {data}")
def ask():
    while not end.is_set():
        try:
            status, body = answer()
            with lock:
                seen[body] = seen.get(body, 0) + 1
                if status != b"200": errors.append(status.decode())
        except OSError as error:
            with lock: errors.append(repr(error))
        time.sleep(pause)
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.read()
end.set()
for thread in threads: thread.join()
print(json.dumps([seen, errors]), flush=True)
"""


# receive slowly, and never send again
SLOW = r"""
import socket, sys, time
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
client.settimeout(30)
client.connect(("192.0.2.1", 8080))
client.sendall(f"GET /b{sys.argv[1]} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n".encode())
size = len(client.recv(8192))
print("ready", flush=True)
try:
    while more := len(client.recv(8192)):
        size += more
        time.sleep(0.1)
    print("whole" if size >= int(sys.argv[1]) else f"only {size}")
except OSError as error:
    print(type(error).__name__)
"""


SHARED = {"mount": "/data", "shared": True}


class Load:
    """Clients that send requests until `failed` is called. They never retry."""

    def __init__(self, lab: Lab, netns: str | None, host: str, port: int, path: str = "/") -> None:
        pause = "0" if LONG else "0.02"  # without one, clients and services take all processors
        words = ("/usr/bin/python3", "-ISuc", LOAD, host, str(port), path, pause)
        self._process = lab.popen(*words, netns=netns, stdin=-1)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def failed(self) -> tuple[dict[str, int], list[Any]]:
        """End the load; return how many answers each version gave, and the errors."""
        out, _ = self._process.communicate(input="", timeout=60)
        seen, errors = json.loads(out)
        return seen, errors


def web(lab: Lab, *words: str, replicas: int | None = 2, **keys: Any) -> str:
    """Write version ``words[0]`` of the service; return its folder."""
    tables: dict[str, Any] = {
        "service": {"update": "start-first"} | ({} if replicas is None else {"replicas": replicas}),
        "healthcheck": {"http": "http://127.0.0.1/0", "interval": "100ms", "retries": 2},
        "deploy": {"monitor": "0s", "drain": "5s"},
        "network": on("apps", ports=["8080:80"]),
    }
    for table, more in keys.items():
        tables[table] = tables.get(table, {}) | more
    command = ("/usr/bin/python3", "-ISu", "/app/server.py", *words)
    return package(lab, "web", *command, files={"server.py": SERVER, "version": words[0]}, **tables)


@pytest.fixture
def shop() -> Iterator[Lab]:
    with Lab(deadline_seconds=600) as lab:
        lab.niso("activate", web(lab, "v1"))
        yield lab


def serving(lab: Lab) -> list[str]:
    """Return the active instances."""
    shown = json.loads(lab.niso("ps", "--instances", "--json").stdout)
    return [line["service"] for line in shown if "." in line["service"]]


def history(lab: Lab) -> list[tuple[int, str]]:
    return [
        (line["version"], line["outcome"])
        for line in json.loads(lab.niso("history", "web", "--json").stdout)
    ]


def test_no_request_fails_while_versions_are_deployed(shop: Lab) -> None:
    vip = addresses(shop, "web")[0]
    loads = [
        Load(shop, "client", "192.0.2.1", 8080),
        Load(shop, None, vip, 80),
        Load(shop, "client", "192.0.2.1", 8080, "/0.3"),  # open when their instance leaves
    ]
    for version in ("v2", "v3"):
        shop.niso("activate", web(shop, version))
    shop.niso("rollback", "web")
    shop.niso("scale", "web=4")
    shop.niso("scale", "web=1")
    shop.niso("restart", "web")
    for load in loads:
        seen, errors = load.failed()
        assert not errors
        assert {"v2", "v3"} <= seen.keys()
    assert history(shop) == [(1, "done"), (2, "done"), (3, "done"), (4, "done"), (5, "done")]
    assert len(serving(shop)) == 1
    shop.niso("net", "check")


def test_one_instance_has_the_address_of_the_service_before(lab: Lab) -> None:
    plain = package(lab, "web", "/usr/bin/sleep", "1000", network=on("apps"))
    lab.niso("activate", plain)
    before = addresses(lab, "web")
    lab.niso("activate", web(lab, "v1", replicas=None))
    assert addresses(lab, "web") == before
    assert asked_page(lab, before[0], 80) == "v1"
    load = Load(lab, None, before[0], 80)
    lab.niso("activate", web(lab, "v2", replicas=None))
    assert not load.failed()[1]
    lab.niso("activate", package(lab, "web", "/usr/bin/sleep", "1000", network=on("apps")))
    assert addresses(lab, "web") == before
    assert not serving(lab)
    lab.niso("net", "check")


def kill_after_swap(lab: Lab, package: str) -> None:
    """Kill a deploy to version 2 when its swap is recorded.

    The kernel directs connections to version 2 a moment earlier, and a kill in between undoes it.
    """
    output = lab.path("/tmp/deploy")
    with output.open("w") as file:
        command = lab.popen("niso", "activate", package, stdout=file.fileno(), stderr=file.fileno())
    lab.wait_for(lambda: "connections go to version 2" in output.read_text(), 60)
    command.kill()
    command.wait(10)


def asked_page(lab: Lab, host: str, port: int, netns: str | None = None) -> str:
    url = f"http://{host}:{port}/"
    return str(lab.run("curl", "-s", "-m", "30", url, netns=netns, check=False).stdout)


@pytest.mark.parametrize("why", ["unhealthy", "ends"])
def test_version_that_does_not_become_healthy_changes_nothing(shop: Lab, why: str) -> None:
    load = Load(shop, "client", "192.0.2.1", 8080)
    words = ("bad",) if why == "unhealthy" else ("dies", "0")
    before = serving(shop)
    failed = shop.niso("activate", web(shop, *words), check=False)
    assert failed.returncode == 1
    seen, errors = load.failed()
    assert not errors and seen.keys() == {"v1"}
    assert serving(shop) == before
    assert history(shop) == [(1, "done"), (2, "failed")]
    shop.niso("net", "check")


def test_version_that_fails_within_monitor_is_taken_back(shop: Lab) -> None:
    before = serving(shop)
    failed = shop.niso("activate", web(shop, "dies", "2", deploy={"monitor": "30s"}), check=False)
    assert failed.returncode == 1 and "taken back" in failed.stderr
    assert serving(shop) == before
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v1"
    assert history(shop)[-1] == (2, "taken back")
    shop.niso("net", "check")


def test_policies_mean_all_instances_and_these_reach_each_other(lab: Lab) -> None:
    sleep = ("/usr/bin/sleep", "100000")
    lab.niso(
        "activate",
        web(lab, "v1", network={"policy": {"allow_from": ["cli"]}}),
        package(lab, "cli", *sleep, network=on("apps", policy={"egress": {"allow": ["web"]}})),
        package(lab, "other", *sleep, network=on("apps", policy={"egress": {"allow": ["web:80"]}})),
    )
    vip = addresses(lab, "web")[0]

    def proved(source: str, to: str) -> str:
        """Return the verdict of explain, which a packet has to confirm."""
        words = ("net", "explain", source, to, "--prove", "--json")
        found = json.loads(lab.niso(*words, check=False).stdout)
        assert found["proof"]["agrees"], (source, to, found)
        parts = [part for part in ("egress", "ingress") if found[part]["verdict"] == "drop"]
        return " ".join([found["verdict"], *parts])

    for version in ("v1", "v2"):
        if version != "v1":
            lab.niso("activate", web(lab, version, network={"policy": {"allow_from": ["cli"]}}))
        first = serving(lab)[0]
        for netns in ("niso-cli", f"niso-{first}"):
            for _ in range(12):
                assert asked_page(lab, vip, 80, netns) == version
        assert set(asked(lab, "niso-other", vip, 80, count=1)) == {"TimeoutError"}
        for to in ("web", first):
            assert [proved("cli", f"{to}:80"), proved("cli", to)] == ["pass", "pass"]
            assert proved("other", f"{to}:80") == "drop ingress"
            assert proved("other", f"{to}:81") == "drop egress ingress"
            assert proved("other", to) == "drop egress ingress"
    lab.niso("net", "check")


def test_command_that_is_killed_after_the_swap_is_finished_by_the_next(shop: Lab) -> None:
    kill_after_swap(shop, web(shop, "v2", deploy={"monitor": "60s"}))
    assert len(serving(shop)) == 4
    shop.niso("activate", package(shop, "other", "/usr/bin/sleep", "1000"))
    assert len(serving(shop)) == 2
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v2"
    shop.niso("net", "check")


def test_stop_first_replaces_one_instance_after_the_other(lab: Lab) -> None:
    stop_first = {"service": {"update": "stop-first"}}
    lab.niso("activate", web(lab, "v1", **stop_first))
    load = Load(lab, "client", "192.0.2.1", 8080)
    lab.niso("activate", web(lab, "v2", **stop_first))
    assert len(serving(lab)) == 2
    failed = lab.niso(
        "activate", "--timeout", "5s", web(lab, "bad", **stop_first), check=False, timeout=120
    )
    assert failed.returncode == 1
    assert len(serving(lab)) == 2
    seen, errors = load.failed()
    assert not errors and seen.keys() == {"v1", "v2"}
    assert asked_page(lab, "192.0.2.1", 8080, "client") == "v2"
    lab.niso("net", "check")
    lab.niso("restart", "web")
    lab.niso("net", "check")


@pytest.mark.first
def test_surge_replaces_the_instances_in_steps(lab: Lab) -> None:
    steps = {"deploy": {"surge": 1, "monitor": "2s"}, "volumes": {"data": SHARED}}
    lab.niso("activate", web(lab, "v1", replicas=3, **steps))
    load = Load(lab, "client", "192.0.2.1", 8080)
    command = lab.popen("niso", "activate", web(lab, "v2", replicas=3, **steps))
    counts = set()
    while command.poll() is None:
        counts.add(len(serving(lab)))
    assert command.returncode == 0 and counts <= {3, 4} and 4 in counts
    seen, errors = load.failed()
    assert not errors and seen.keys() == {"v1", "v2"}

    # the second step fails: the instance that was replaced before it gets its version back
    load = Load(lab, "client", "192.0.2.1", 8080, "/0.2")
    failed = lab.niso("activate", web(lab, "late", replicas=3, **steps), check=False, timeout=120)
    assert failed.returncode == 1 and "version 3 was taken back" in failed.stderr
    seen, errors = load.failed()
    assert not errors and seen.keys() == {"v2", "late"}
    assert len(serving(lab)) == 3
    assert {asked_page(lab, "192.0.2.1", 8080, "client") for _ in range(30)} == {"v2"}
    assert [outcome for _, outcome in history(lab)] == ["done", "done", "taken back"]
    lab.niso("net", "check")


def test_deploy_that_is_killed_between_two_steps_is_named_until_it_is_completed(lab: Lab) -> None:
    steps = {"deploy": {"surge": 1, "monitor": "3s"}}
    lab.niso("activate", web(lab, "v1", replicas=3, **steps))
    command = lab.popen("niso", "activate", folder := web(lab, "v2", replicas=3, **steps))
    lab.wait_for(lambda: "v2" in {asked_page(lab, "192.0.2.1", 8080, "client") for _ in range(9)})
    assert "was killed" not in lab.niso("ps").stderr
    command.send_signal(signal.SIGKILL)
    command.wait(10)
    for words in (("ps",), ("net", "check")):
        told = lab.niso(*words, check=False).stderr
        assert "the deploy of web was killed: 1 of its 3 instances" in told, words
        assert f"niso activate {folder}" in told
    assert history(lab) == [(1, "done")]
    lab.niso("activate", folder)
    for words in (("ps",), ("net", "check")):
        assert "was killed" not in lab.niso(*words).stderr
    assert history(lab) == [(1, "done"), (2, "done")]
    (instance, *_) = serving(lab)
    assert lab.niso("history", instance).stdout == lab.niso("history", "web").stdout


def test_failed_version_that_is_to_be_kept_stays_beside_the_former(shop: Lab) -> None:
    keep = {"deploy": {"monitor": "30s", "on_failure": "keep"}}
    failed = shop.niso("activate", web(shop, "dies", "2", **keep), check=False)
    assert failed.returncode == 1 and "left as they are" in failed.stderr
    assert len(serving(shop)) == 4
    shop.niso("activate", package(shop, "other", "/usr/bin/sleep", "1000"))
    assert len(serving(shop)) == 4
    shop.niso("activate", web(shop, "v3"))
    assert len(serving(shop)) == 2
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v3"
    shop.niso("net", "check")


@pytest.mark.first
def test_copies_after_a_loss_have_the_policy_that_was_active(lab: Lab) -> None:
    """Also if the package stayed the same, and after a version without the policy was taken back."""
    copies = "/var/lib/niso/packages/web/*/manifest.toml"
    lab.niso("net", "create", "--internal", "apps")
    plain = {"network": {"ports": []}}
    lab.niso("activate", web(lab, "v1", **plain))
    closed = {"network": {"ports": [], "policy": {"allow_from": ["client"]}}}
    lab.niso("activate", web(lab, "v2", **closed))
    assert "allow_from" in lab.run("sh", "-c", f"cat {copies}").stdout
    wide = plain | {"deploy": {"monitor": "10s"}}
    lab.niso("activate", web(lab, "dies", "1.5", **wide), check=False)
    assert history(lab)[-1] == (3, "taken back")
    assert "allow_from" in lab.run("sh", "-c", f"cat {copies}").stdout
    lab.write("/tmp/packages/web/new", "")
    lab.niso("activate", web(lab, "v4", **plain))
    lab.niso("rollback", "web")
    assert len(lab.run("sh", "-c", f"ls {copies}").stdout.split()) == 1, "not of the former version"
    lab.run("sh", "-c", "rm /var/lib/niso/state.db*")
    lab.niso("reset", "--yes")
    copy = lab.run("sh", "-c", f"echo {copies}").stdout.strip()
    said = refused(lab, "activate", copy)
    assert "network 'apps' was internal" in said and "niso net create --internal apps" in said
    lab.niso("net", "create", "--internal", "apps")
    lab.niso("activate", copy, idle(lab, "other", network=on("apps")))
    lab.niso("activate", idle(lab, "client", network=on("apps")))
    connect = "import socket, sys; socket.create_connection((sys.argv[1], 80), 2)"
    words = ("/usr/bin/python3", "-ISc", connect, addresses(lab, "web")[0])
    lab.run(*words, netns="niso-client")
    assert lab.run(*words, netns="niso-other", check=False).returncode != 0


def packages(lab: Lab) -> int:
    return len(lab.run("sh", "-c", "ls /var/lib/niso/packages/web").stdout.split())


def test_other_commands_leave_a_running_deploy_alone(shop: Lab) -> None:
    load = Load(shop, "client", "192.0.2.1", 8080)
    other = package(shop, "other", "/usr/bin/sleep", "1000")
    slow = web(shop, "slow", "4", healthcheck={"retries": 1000}, deploy={"monitor": "4s"})
    deploy = shop.popen("niso", "activate", slow)
    shop.wait_for(lambda: len(serving(shop)) == 4, 60)  # the new ones wait until they are healthy
    shop.niso("activate", other)
    shop.niso("net", "repair", "--kernel")
    assert len(serving(shop)) == 4
    shop.wait_for(lambda: asked_page(shop, "192.0.2.1", 8080, "client") == "slow", 120)
    # the kernel has the new slots before the change is committed, in which niso's lock is locked
    shop.wait_for(lambda: history(shop)[-1] == (2, "done"), 60)
    deploy.send_signal(signal.SIGSTOP)  # it watches the new ones: the old ones may have to return
    shop.niso("remove", "other")
    shop.niso("net", "repair", "--kernel")
    assert len(serving(shop)) == 4
    deploy.send_signal(signal.SIGCONT)
    _, errors = deploy.communicate(timeout=120)
    assert deploy.returncode == 0, errors
    assert len(serving(shop)) == 2
    assert not load.failed()[1]
    shop.niso("net", "check")


@pytest.mark.first
def test_rollback_works_after_failed_deploys(shop: Lab) -> None:
    shop.niso("activate", web(shop, "v2"))
    for _ in range(3):
        assert shop.niso("activate", web(shop, "bad"), check=False).returncode == 1
    dies = web(shop, "dies", "1", deploy={"monitor": "30s"})
    assert shop.niso("activate", dies, check=False).returncode == 1
    assert packages(shop) == 2  # of the failed versions none
    shop.niso("restart", "web")  # the same version again
    shop.niso("scale", "web=1")
    shop.niso("rollback", "web")
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v1"
    assert len(serving(shop)) == 1
    shop.niso("scale", "web=4")
    shop.niso("scale", "web=1")
    known = shop.run("ls", "/var/lib/niso/logs").stdout.split()
    assert len([name for name in known if name.startswith("web.")]) <= 2
    shop.niso("net", "check")


def test_restart_of_one_instance_fails_no_request(shop: Lab) -> None:
    load = Load(shop, "client", "192.0.2.1", 8080)
    shop.niso("restart", "web.2")
    shop.niso("restart", "web.1")
    seen, errors = load.failed()
    assert seen and not errors
    assert "is an instance of 'web'" in refused(shop, "remove", "web.1")
    assert len(serving(shop)) == 2
    shop.niso("net", "check")


@pytest.mark.parametrize(
    ("size", "drain", "end"), [(200_000, "20s", "whole"), (9_000_000, "1s", "ConnectionResetError")]
)
def test_slow_client_gets_the_rest_within_drain_or_a_reset(
    lab: Lab, size: int, drain: str, end: str
) -> None:
    """The server has sent all of 200 kB at once: the connection is open, but not established."""
    lab.niso("activate", web(lab, "v1", deploy={"drain": drain}))
    slow = ("/usr/bin/python3", "-ISuc", SLOW, str(size))
    clients = [lab.popen(*slow, netns="client") for _ in range(4)]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
    lab.niso("scale", "web=1")
    lab.niso("activate", web(lab, "v2", replicas=1, deploy={"drain": drain}))
    for client in clients:
        assert client.communicate(timeout=60)[0].strip() == end


def test_changed_secret_makes_a_new_version(lab: Lab) -> None:
    secret = lab.write("/tmp/secret", "one", 0o600)
    keys: dict[str, Any] = {"secrets": {"key": {"file": secret}}}
    lab.niso("activate", web(lab, "v1", **keys))
    lab.niso("activate", web(lab, "v2", **keys))
    lab.write("/tmp/secret", "two", 0o600)
    lab.niso("activate", web(lab, "v2", **keys))
    assert history(lab)[-1] == (3, "done")
    lab.niso("rollback", "web")  # with the present secret
    for name in serving(lab):
        assert lab.niso("exec", name, "--", "cat", "/run/secrets/key").stdout == "two"
    lab.niso("scale", "web=3")
    lab.niso("net", "check")


# --- history and rollback of a service with one process -------------------------------------------


@pytest.mark.first
def test_plain_service_has_a_history_and_goes_back(lab: Lab) -> None:
    """Policy and program of a former generation return together; two packages are kept."""

    def version(number: int, **keys: Any) -> str:
        told = {"version": f"{number}.0.0"}
        files = {"data": "one" if number == 1 else "two" if number < 4 else "four"}
        return idle(lab, "db", package=told, environment={"V": str(number)}, files=files, **keys)

    def value() -> str:
        return str(lab.niso("exec", "db", "--", "/bin/sh", "-c", "echo $V").stdout).strip()

    def told() -> list[tuple[int, str, str, bool]]:
        lines = json.loads(lab.niso("history", "db", "--json").stdout)
        return [(x["version"], x["outcome"], x["package_version"], x["serving"]) for x in lines]

    lab.niso("activate", version(1, network=on("back") | {"policy": {"allow_from": ["api"]}}))
    lab.run("env", "SUDO_USER=alice", "niso", "activate", version(2, network=on("back")))
    lab.niso("activate", "db")  # unchanged: no generation
    lab.niso("restart", "db")
    failed = version(3, network=on("back"), healthcheck={"tcp": 9, "start_period": "100ms"})
    refused(lab, "activate", failed)
    first = [(1, "done", "1.0.0", False), (2, "done", "2.0.0", False), (3, "done", "2.0.0", True)]
    assert told() == [*first, (4, "failed", "3.0.0", False)]
    lines = json.loads(lab.niso("history", "--json").stdout)
    assert [line["service"] for line in lines] == ["db"] * 4
    assert lines[1]["who"].endswith("alice") or "alice" in lines[1]["who"]
    assert lines[1]["sudo_user"] == "alice" and lines[1]["command"].startswith("niso activate /")
    assert lines[2]["command"] == "niso restart db" and lines[2]["sudo_user"] is None
    assert "connection refused" in lines[3]["why"] or "healthy" in lines[3]["why"]
    assert value() == "2"
    lab.niso("rollback", "db")
    assert value() == "1"
    shown = json.loads(lab.niso("inspect", "db").stdout)
    assert shown["manifest"]["network"]["policy"]["allow_from"] == ["api"]
    assert lab.run("cat", f"{shown['package']}/data").stdout == "one"
    lab.niso("net", "check")
    lab.niso("rollback", "db", "2")
    assert value() == "2"
    package_ = json.loads(lab.niso("inspect", "db").stdout)["package"]
    assert lab.run("cat", f"{package_}/data").stdout == "two"
    lab.niso("deactivate", "db")
    assert told()[-1] == (7, "stopped", "2.0.0", False)
    lab.niso("activate", version(4, network=on("back")))
    assert "generation 1 of 'db' is not kept" in refused(lab, "rollback", "db", "1")
    assert "generation 7 of 'db' is a stop" in refused(lab, "rollback", "db", "7")
    assert "no generation 99" in refused(lab, "rollback", "db", "99")
    assert "is not the number" in refused(lab, "rollback", "db", "x", status=2)
    table = lab.niso("history").stdout
    assert "GENERATION" in table and "alice" in table and "niso rollback db 2" in table
    copies = lab.run("find", "/var/lib/niso/packages/db", "-mindepth", "1", "-maxdepth", "1").stdout
    assert len(copies.split()) == 2
    lab.niso("remove", "db")
    assert lab.niso("history", "--json").stdout.strip() == "[]"
