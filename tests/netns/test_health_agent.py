"""niso health on the real kernel: instances leave the slots and return, and it is one process."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from conftest import Lab, Process
from services import BUSYBOX, on, package
from test_deploy import Load, asked_page, serving, web
from test_service_address import addresses

AGENT = "niso.change.health_agent"
HOLD = r"""
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
print(connection.getpeername()[0], flush=True)
connection.settimeout(120)
try:
    print("closed" if not connection.recv(1) else "data", flush=True)
except ConnectionResetError:
    print("reset", flush=True)
except TimeoutError:
    print("hangs", flush=True)
"""


@pytest.fixture
def shop() -> Iterator[Lab]:
    """A host with two instances that start again when they end."""
    with Lab(deadline_seconds=600) as lab:
        lab.niso("activate", web(lab, "v1", service={"restart": "always", "restart_delay": "5s"}))
        yield lab


def agents(lab: Lab) -> list[int]:
    """Return the pids in the lab of the processes niso health."""
    found = lab.run("pgrep", "-f", AGENT, check=False).stdout.split()
    return [int(pid) for pid in found]


def slots(lab: Lab) -> set[str]:
    """Return the addresses of instances that get connections."""
    listed = lab.run("nft", "-j", "list", "map", "inet", "niso", "slots4").stdout
    elements = json.loads(listed)["nftables"][-1]["map"].get("elem", [])
    return {
        str(value["elem"]["val"] if isinstance(value, dict) else value) for _, value in elements
    }


def pid_of(lab: Lab, instance: str) -> int:
    """Return the pid in the lab of the server of a service, which niso's init has started; or 0."""
    init = json.loads(lab.niso("inspect", instance, "--json").stdout)["pid"]
    found = lab.run("pgrep", "-P", str(init or 1 << 22), check=False).stdout.split()
    return int(found[0]) if found else 0


def send(lab: Lab, pid: int, number: signal.Signals) -> None:
    lab.run("kill", f"-{number.name.removeprefix('SIG')}", str(pid))


def test_instance_that_is_killed_leaves_and_returns(shop: Lab) -> None:
    both = {addresses(shop, name)[0] for name in ("web.1", "web.2")}
    first = addresses(shop, "web.1")[0]
    assert slots(shop) == both
    send(shop, pid_of(shop, "web.1"), signal.SIGKILL)
    shop.wait_for(lambda: slots(shop) == both - {first}, 4)
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v1"
    shop.wait_for(lambda: slots(shop) == both, 20)
    shop.niso("net", "check")


def test_instance_returns_that_was_probed_before_it_served(shop: Lab) -> None:
    keys = {"service": {"restart": "always"}, "healthcheck": {"retries": 1000}}
    deploy = shop.popen("niso", "activate", web(shop, "slow", "2", **keys))
    shop.wait_for(lambda: len(serving(shop)) == 4, 30)  # `ps` asks for probes of all of them
    _, errors = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, errors
    both, new = slots(shop), serving(shop)[0]
    assert len(both) == 2
    send(shop, pid_of(shop, new), signal.SIGKILL)
    shop.wait_for(lambda: slots(shop) == both - {addresses(shop, new)[0]}, 10)
    shop.wait_for(lambda: slots(shop) == both, 20)


def test_hook_of_conmon_takes_an_instance_out_without_the_process(shop: Lab) -> None:
    both, first = slots(shop), addresses(shop, "web.1")[0]
    for pid in agents(shop):
        send(shop, pid, signal.SIGKILL)
    assert asked_page(shop, "192.0.2.1", 8080, "client") == "v1"  # packets do not need it
    send(shop, pid_of(shop, "web.1"), signal.SIGKILL)
    shop.wait_for(lambda: slots(shop) == both - {first}, 10)
    assert not agents(shop)
    shop.wait_for(lambda: slots(shop) == both, 20)  # after its restart


def test_frozen_instance_leaves_and_its_connections_are_reset(shop: Lab) -> None:
    both = slots(shop)
    shop.wait_for(lambda: agents(shop))
    holders: list[tuple[Process, str]] = []
    for _ in range(8):  # connections to both
        held = shop.popen("/usr/bin/python3", "-ISuc", HOLD, "192.0.2.1", "8080", netns="client")
        assert held.stdout is not None
        held.stdout.readline()
        holders.append((held, ""))
    pid = pid_of(shop, "web.1")
    send(shop, pid, signal.SIGSTOP)
    first = addresses(shop, "web.1")[0]
    shop.wait_for(lambda: slots(shop) == both - {first}, 20)
    ends = []
    for held, _ in holders:
        assert held.stdout is not None
        ends.append(held)
    shop.wait_for(lambda: any(end.poll() is not None for end in ends), 20)
    over = [end.stdout.read().decode() for end in ends if end.poll() is not None and end.stdout]
    assert set(over) == {"reset\n"}
    assert len(over) < len(ends)  # those of the other instance stay open
    send(shop, pid, signal.SIGCONT)
    shop.wait_for(lambda: slots(shop) == both, 20)


@pytest.mark.first
def test_last_instance_stays_although_it_is_unhealthy(shop: Lab) -> None:
    pids = [pid_of(shop, name) for name in ("web.1", "web.2")]
    for pid in pids:
        send(shop, pid, signal.SIGSTOP)
    shop.wait_for(lambda: len(slots(shop)) == 1, 20)
    assert not shop.observed(lambda: not slots(shop), 8)
    for pid in pids:
        send(shop, pid, signal.SIGCONT)
    shop.wait_for(lambda: len(slots(shop)) == 2, 20)


@pytest.mark.first
def test_unhealthy_service_restarts(lab: Lab) -> None:
    check = {"http": "http://127.0.0.1/0", "interval": "1s", "timeout": "1s", "retries": 2}
    folder = package(
        lab,
        "plain",
        BUSYBOX,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/app",
        files={"0": "well\n"},
        network=on("apps"),
        healthcheck=check | {"on_unhealthy": "restart"},
    )
    lab.niso("activate", folder)
    lab.wait_for(lambda: len(agents(lab)) == 1)
    before = pid_of(lab, "plain")
    send(lab, before, signal.SIGSTOP)
    lab.wait_for(lambda: pid_of(lab, "plain") not in (0, before), 30)
    lab.niso("net", "check")
    lab.niso("remove", "plain")
    lab.wait_for(lambda: not agents(lab), 20, "it ends by itself")


def test_one_process_which_the_next_command_starts_again(shop: Lab) -> None:
    # a test that took the lock would refuse it to the agent that starts at this moment
    file = "/run/niso/locks/niso.health.lock"
    is_held = f'test -e {file} && grep -q ":$(stat -c %i {file}) " /proc/locks'
    shop.wait_for(lambda: not shop.run("sh", "-c", is_held, check=False).returncode)
    refused = shop.niso("health", check=False)
    assert refused.returncode == 1 and "runs already" in refused.stderr
    send(shop, agents(shop)[0], signal.SIGKILL)
    shop.wait_for(lambda: not agents(shop))
    load = Load(shop, "client", "192.0.2.1", 8080)
    shop.niso("activate", package(shop, "other", BUSYBOX, "sleep", "1000"))
    shop.wait_for(lambda: len(agents(shop)) == 1)
    assert not load.failed()[1]
    shop.niso("remove", "web")
    shop.wait_for(lambda: not agents(shop), 20, "it ends by itself")
