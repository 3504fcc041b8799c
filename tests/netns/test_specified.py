"""The page that niso's networking was specified by: its commands, fragments of manifests and outputs, as they stand there."""

from __future__ import annotations

import re

from conftest import Lab

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


def service(
    lab: Lab, name: str, network: str = "", program: str = 'entrypoint = "sleep"\nargs = ["1000"]'
) -> str:
    text = f'[package]\nname = "{name}"\nversion = "1.0.0"\n[binary]\n{program}\n{network}'
    lab.write(f"/tmp/{name}/manifest.toml", text)
    return f"/tmp/{name}"


def on(network: str, *ports: str) -> str:
    return f'[network]\nnetwork = "{network}"\nports = {list(ports)}\n'.replace("'", '"')


def words(text: str) -> list[list[str]]:
    """Its lines without blank ones, each as words; times are T."""
    return [re.sub(r"[\d.]+ms", "T", line).split() for line in text.splitlines() if line.strip()]


def prints(lab: Lab, command: str, expected: str) -> None:
    assert words(lab.run("sh", "-c", command).stdout) == words(expected)


def test_the_commands_print_what_the_page_shows(lab: Lab) -> None:
    lab.run("niso", "net", "create", "backend", "--subnet", "10.99.1.0/24")
    dns = on("niso-default", "53:53/udp")
    for path in (
        service(lab, "api", on("backend", "8080:8080")),
        service(lab, "worker", on("backend")),
    ):
        lab.niso("activate", path)
    prints(
        lab,
        "niso net inspect backend",
        """
        Name: backend
        Subnet: 10.99.1.0/24
        Bridge: niso-backend
        Services:
          api      10.99.1.2    ports: 8080→8080
          worker   10.99.1.3    ports: none
        """,
    )
    lab.niso("activate", service(lab, "dns", dns), service(lab, "one"), service(lab, "two"))
    # (the page lists the networks in another order, of which it says nothing)
    listed = words(lab.niso("net", "list").stdout)
    assert listed[0] == ["NAME", "SUBNET", "SERVICES"]
    assert sorted(listed[1:]) == [
        ["backend", "10.99.1.0/24", "2"],
        ["niso-default", "10.99.0.0/24", "3"],
    ]
    prints(
        lab,
        "niso net ports",
        """
        SERVICE    HOST           CONTAINER    PROTO
        api        0.0.0.0:8080   8080         tcp
        dns        0.0.0.0:53     53           udp
        """,
    )
    lab.run("niso", "port-forward", "api", "9090:9090")
    assert ["api", "0.0.0.0:9090", "9090", "tcp"] in words(lab.niso("net", "ports").stdout)
    rules = lab.run("niso", "net", "rules").stdout
    assert rules.startswith("table inet niso {") and "dnat ip to" in rules and "tcp . 9090" in rules
    lab.niso("remove", "worker")

    lab.niso(
        "activate", service(lab, "postgres", on("backend")), service(lab, "redis", on("backend"))
    )
    hosts = words(lab.run("niso", "exec", "api", "--", "cat", "/etc/hosts").stdout)
    shown = words("""
        10.99.1.2 api.niso.local api
        10.99.1.3 postgres.niso.local postgres
        10.99.1.4 redis.niso.local redis
    """)
    assert [line for line in hosts if line in shown] == shown
    prints(lab, "niso net ping api postgres", "api (10.99.1.2) → postgres (10.99.1.3): ok (0.3ms)")
    found = lab.run(
        "niso", "exec", "api", "--", "getent", "hosts", "postgres.niso.local"
    ).stdout.split()
    assert found[:2] == [
        "10.99.1.3",
        "postgres.niso.local",
    ]  # getent goes on with the other names of the line

    lab.niso("remove", "api", "postgres", "redis")
    lab.run("niso", "net", "remove", "backend")
    assert [line[0] for line in words(lab.niso("net", "list").stdout)] == ["NAME", "niso-default"]


def test_the_fragments_of_manifests_do_what_the_page_says(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    lab.niso("activate", service(lab, "shop-api", FRAGMENT))
    assert (
        lab.ip_json("-4", "address", "show", "eth0", netns="niso-shop-api")[0]["addr_info"][0][
            "local"
        ]
        == "10.99.1.10"
    )
    assert (
        lab.niso("exec", "shop-api", "--", "getent", "hosts", "api.niso.local").stdout.split()[0]
        == "10.99.1.10"
    )
    lab.niso("remove", "shop-api")

    lab.niso("activate", service(lab, "ported", PORTS))
    assert words(lab.niso("net", "ports").stdout)[1:] == [
        ["ported", "0.0.0.0:8080", "8080", "tcp"],
        ["ported", "0.0.0.0:53", "53", "udp"],
        ["ported", "0.0.0.0:443", "443", "tcp"],
    ]
    lab.niso("remove", "ported")

    web = 'entrypoint = "python3"\nargs = ["-m", "http.server", "{}"]\n[healthcheck]\ntcp = {}\n'
    lab.niso(
        "activate",
        service(lab, "api", POLICY, web.format(80, 80)),
        service(lab, "frontend"),
        service(lab, "other"),
    )
    lab.niso("activate", service(lab, "postgres", "", web.format(5432, 5432)))

    def connects(source: str, url: str) -> bool:
        done = lab.niso(
            "exec",
            source,
            "--",
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "--max-time",
            "2",
            url,
            check=False,
        )
        assert done.returncode in (0, 28), done  # or timed out
        return done.returncode == 0

    assert connects("frontend", "http://api/") and not connects("other", "http://api/")
    assert connects("api", "http://postgres.niso.local:5432/")
    assert not connects("api", "http://192.0.2.2:80/")
