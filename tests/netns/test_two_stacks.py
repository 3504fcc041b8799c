"""Test two stacks of the same services side by side: each finds its own by name, and only those."""

from __future__ import annotations

import json

from conftest import Lab
from services import BUSYBOX, package, refuse_names

SERVE = """\
import os, socket
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = server.accept()
    connection.sendall(os.environ["PROJECT"].encode())
    connection.close()
"""
"""Tells each client, of either family, which project it belongs to."""
ASK = """\
import socket, sys
for family in socket.AF_INET, socket.AF_INET6:
    try:
        to = socket.getaddrinfo(sys.argv[1], 80, family, socket.SOCK_STREAM)[0][4]
        one = socket.create_connection(to[:2], timeout=1)
        print(one.recv(64).decode())
    except OSError as error:
        print(type(error).__name__)
"""
"""Prints what answers at a name, over IPv4 and over IPv6."""
STACK = """\
[stack]
name = "{name}"
[networks]
backend = {{ ipv6 = true }}
[[service]]
name = "db"
package = "/tmp/packages/db"
networks = ["backend"]
policy = {{ allow_from = ["api:80"] }}
[service.environment]
PROJECT = "{name}"
[[service]]
name = "api"
package = "/tmp/packages/api"
networks = ["backend"]
depends_on = ["db"]
"""


def asked(lab: Lab, service: str, name: str) -> list[str]:
    """Return what a service hears from ``name`` over each family."""
    done = lab.niso("exec", service, "--", "/usr/bin/python3", "-ISc", ASK, name)
    return str(done.stdout).split()


def test_each_of_two_stacks_finds_its_own_services_by_name_over_both_families(lab: Lab) -> None:
    refuse_names(lab)
    healthy = {"tcp": 80, "interval": "200ms"}
    command = ("/usr/bin/python3", "-ISu", "/app/serve.py")
    package(lab, "db", *command, files={"serve.py": SERVE}, healthcheck=healthy)
    package(lab, "api", BUSYBOX, "sleep", "100000")
    for name in ("shop", "blog"):
        lab.write(f"/tmp/{name}/stack.toml", STACK.format(name=name))
        lab.niso("stack", "up", f"/tmp/{name}")
    rows = json.loads(lab.niso("ps", "--json").stdout)
    assert [row["service"] for row in rows] == ["api", "blog-api", "blog-db", "db"]
    for name, api, db in (("shop", "api", "db"), ("blog", "blog-api", "blog-db")):
        for called in ("db.niso.local", db):
            assert asked(lab, api, called) == [name, name]
        hosts = str(lab.niso("exec", api, "--", "cat", "/etc/hosts").stdout)
        assert len(hosts.splitlines()) == 3 + 6  # two services and the host with two addresses
        explained = lab.niso("net", "explain", api, "db:80", "--json")
        assert f'"{db}"' in explained.stdout
    assert "blog" not in str(lab.niso("exec", "api", "--", "cat", "/etc/hosts").stdout)
    # neither reaches the other one, whose name it does not see
    assert asked(lab, "api", "blog-db") == ["gaierror", "gaierror"]
    lab.niso("stack", "down", "/tmp/blog")
    assert asked(lab, "api", "db") == ["shop", "shop"]
    assert lab.niso("net", "check").returncode == 0


def test_service_on_both_networks_means_the_first_and_a_second_alias_lets_nobody_in(
    lab: Lab,
) -> None:
    """With the packets: a service that is called db on another network, and comes by a published port."""
    refuse_names(lab)
    command = ("/usr/bin/python3", "-ISu", "/app/serve.py")
    for name, network in (("one-db", "one"), ("two-db", "two")):
        package(
            lab,
            name,
            *command,
            files={"serve.py": SERVE},
            environment={"PROJECT": name},
            network={"network": network, "hostname": "db"},
        )
    package(
        lab,
        "api",
        *command,
        files={"serve.py": SERVE},
        environment={"PROJECT": "api"},
        network={"network": "one", "ports": ["8080:80"], "policy": {"allow_from": ["db"]}},
    )
    package(lab, "proxy", BUSYBOX, "sleep", "100000", network={"networks": ["two", "one"]})
    lab.niso("activate", *(f"/tmp/packages/{name}" for name in ("two-db", "api", "proxy")))
    lab.wait_for(lambda: asked(lab, "proxy", "db")[0] == "two-db", 10, "two-db")

    def port() -> str:
        script = ASK.replace("sys.argv[1], 80", '"192.0.2.1", 8080')
        done = lab.niso("exec", "two-db", "--", "/usr/bin/python3", "-ISc", script)
        return str(done.stdout).split()[0]

    assert port() == "TimeoutError"
    lab.niso("activate", "/tmp/packages/one-db")
    assert port() == "TimeoutError"
    assert asked(lab, "one-db", "api")[0] == "api"
    assert asked(lab, "proxy", "db")[0] == "two-db"
    lab.niso("deactivate", "two-db")
    assert asked(lab, "proxy", "db")[0] == "one-db"
    assert lab.niso("net", "check").returncode == 0
