"""The page that niso's networking was specified by: its commands, fragments of manifests and outputs, as they stand there.

With packets, names and look-ups: tests/netns/test_policy_packets.py, test_service_names.py.
"""

from __future__ import annotations

import re

import pytest
from fake_world import World

from niso.kernel import probe

FRAGMENT = """\
[network]
network = "backend"           # Bridge name (default: niso-default)
ports = ["8080:8080"]         # host:container port mapping
hostname = "api"              # DNS name: api.niso.local
ip = "10.99.1.10"             # Static IP (optional)
"""
PORTS = """\
[network]
ports = [
  "8080:8080",         # TCP (default)
  "8080:8080/tcp",     # Explicit TCP
  "53:53/udp",         # UDP
  "0.0.0.0:443:443",   # Bind to all interfaces
]
"""
POLICY = """\
[network.policy]
# Only allow connections from the frontend service
allow_from = ["frontend"]

[network.policy.egress]
# Only allow outbound to postgres and HTTPS
allow = [
  "postgres.niso.local:5432",
  "0.0.0.0/0:443",
]
"""


def on(network: str, *ports: str) -> str:
    return f'[network]\nnetwork = "{network}"\nports = {list(ports)}\n'.replace("'", '"')


def words(text: str) -> list[list[str]]:
    """Its lines without blank ones, each as words; times are T."""
    return [re.sub(r"[\d.]+ms", "T", line).split() for line in text.splitlines() if line.strip()]


def activate(world: World, name: str, text: str = "") -> None:
    """Write a package, whose manifest ends with ``text``, and activate it."""
    with open(world.package(name), "a", encoding="utf-8") as manifest:
        manifest.write(text)
    world.niso("activate", str(world.folder / name))


def test_commands_print_what_the_page_shows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    activate(world, "api", on("backend", "8080:8080"))
    activate(world, "worker", on("backend"))
    assert words(world.niso("net", "inspect", "backend").stdout) == words("""
        Name: backend
        Subnet: 10.99.1.0/24
        Bridge: niso-backend
        Services:
          api      10.99.1.2    ports: 8080→8080
          worker   10.99.1.3    ports: none
        """)
    activate(world, "dns", on("niso-default", "53:53/udp"))
    # (the page lists the networks in another order, of which it says nothing)
    head, *rows = words(world.niso("net", "list").stdout)
    assert head == ["NAME", "SUBNET", "SERVICES"]
    assert sorted(rows) == [["backend", "10.99.1.0/24", "2"], ["niso-default", "10.99.0.0/24", "1"]]
    assert words(world.niso("net", "ports").stdout) == words("""
        SERVICE    HOST           CONTAINER    PROTO
        api        0.0.0.0:8080   8080         tcp
        dns        0.0.0.0:53     53           udp
        """)
    world.niso("port-forward", "api", "9090:9090")
    assert ["api", "0.0.0.0:9090", "9090", "tcp"] in words(world.niso("net", "ports").stdout)
    for name in ("postgres", "redis"):
        activate(world, name, on("backend"))
    lines = [f"{line.address} {line.names}" for line in world.kernel.hosts["backend"]]
    assert {*lines} >= {
        "10.99.1.2 api.niso.local api",
        "10.99.1.4 postgres.niso.local postgres",
        "10.99.1.5 redis.niso.local redis",
    }
    monkeypatch.setattr(probe, "echo", lambda *_: 0.0003)
    said = world.niso("net", "ping", "api", "postgres").stdout
    assert said == "api (10.99.1.2) → postgres (10.99.1.4): ok (0.3ms)\n"
    world.niso("remove", "postgres", "redis")
    world.niso("remove", "api", "worker")
    world.niso("net", "remove", "backend")
    assert [line[0] for line in words(world.niso("net", "list").stdout)] == ["NAME", "niso-default"]


def test_fragments_of_manifests_do_what_the_page_says(world: World) -> None:
    world.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    activate(world, "shop-api", FRAGMENT)
    assert words(world.niso("net", "inspect", "backend").stdout)[-1][:2] == [
        "shop-api",
        "10.99.1.10",
    ]
    (line,) = [x for x in world.kernel.hosts["backend"] if "api" in x.names.split()]
    assert (line.address, line.names.split()[0]) == ("10.99.1.10", "api.niso.local")
    world.niso("remove", "shop-api")
    activate(world, "ported", PORTS)
    assert words(world.niso("net", "ports").stdout)[1:] == [
        ["ported", "0.0.0.0:8080", "8080", "tcp"],
        ["ported", "0.0.0.0:53", "53", "udp"],
        ["ported", "0.0.0.0:443", "443", "tcp"],
    ]
    world.niso("remove", "ported")
    for name, text in (("api", POLICY), ("frontend", ""), ("other", ""), ("postgres", "")):
        activate(world, name, text)
    passes = {
        (source, to): world.niso("net", "explain", source, to, check=False).returncode == 0
        for source, to in (
            ("frontend", "api:80"),
            ("other", "api:80"),
            ("api", "postgres:5432"),
            ("api", "postgres:80"),
            ("api", "192.0.2.2:443"),
            ("api", "192.0.2.2:80"),
        )
    }
    assert [*passes.values()] == [True, False, True, False, True, False]
