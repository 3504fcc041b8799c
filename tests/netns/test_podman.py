"""Run Podman's containers on networks of niso."""

from __future__ import annotations

import json

import pytest
from conftest import Lab
from podman_world import AARDVARK, IMAGE, PEERS, WITH_PODMAN, Podman, needs_podman
from samples import LONG
from services import HOST, echo, fetch, on, ps


@needs_podman
def test_containers_on_networks_of_niso(lab: Lab) -> None:
    podman = Podman(lab)

    def outside() -> str:
        return fetch(lab.client, f"{HOST}:8080")

    podman("network", "create", "-d", "niso", "--subnet", "10.99.30.0/24", "backend")
    podman("network", "create", "-d", "niso", "--opt", "egress_deny=10.99.30.0/24", "front")
    for wrong in (
        ("--opt", "vlan=3"),
        ("--opt", "allow_from=we?b"),
        ("--ip-range", "10.99.30.0/28", "--subnet", "10.99.31.0/24"),
    ):
        refused = podman("network", "create", "-d", "niso", *wrong, "bad", check=False)
        assert refused.returncode and "netavark: niso: " in refused.stderr, refused.stderr
    described = json.loads(podman("network", "inspect", "backend").stdout)[0]
    assert described["subnets"] == [{"subnet": "10.99.30.0/24", "gateway": "10.99.30.1"}]
    assert described["network_interface"] == "niso-backend"

    # run, with a port, a policy, and a service of niso beside
    lab.niso("activate", echo(lab, "db", network=on("backend")))
    podman.run("api", "--network", "backend:ip=10.99.30.9", "-p", "8080:80")
    podman.run("web", "--network", "backend:allow_from=api db,alias=www")
    podman.run("bad", "--network", "backend", "--network-alias", "www")  # an alias of several
    assert ps(lab, "api")["address"][0] == "10.99.30.9"
    web, own = ps(lab, "web")["address"][0], podman("inspect", "api").stdout
    assert "10.99.30.9" in own
    assert outside() == "api"
    assert podman.get("api", web) == "web" and podman.get("bad", web) == ""
    assert podman.get("bad", "10.99.30.9") == "api"
    assert ": ok (" in lab.niso("net", "ping", "db", "web").stdout
    lab.niso("net", "check")  # podman's own socket of port 8080 is no finding
    # names, by aardvark-dns: of containers, and of several with one alias
    if AARDVARK.exists():
        assert podman.get("api", "web") == "web" and podman.get("api", "www") in ("web", "bad")
        podman("network", "create", "-d", "niso", "--disable-dns", "quiet")
        podman.run("mute", "--network", "quiet")
        assert podman.get("mute", "mute.dns.podman") == ""
        podman("rm", "-f", "-t0", "mute")
    # it cannot take what is not its own
    podman("exec", "bad", "/bin/busybox", "ip", "link", check=False)
    taken = podman(
        "run",
        "-d",
        "--name",
        "thief",
        "--network",
        "backend:ip=10.99.30.9",
        "bench:1",
        "/bin/busybox",
        "true",
        check=False,
    )
    assert "10.99.30.9 is leased to service 'api'" in taken.stderr
    wrong = podman(
        "run",
        "--name",
        "x",
        "--network",
        "backend:allow_form=api",
        "bench:1",
        "/bin/busybox",
        "true",
        check=False,
    )
    assert "niso does not know this option" in wrong.stderr

    # connect, disconnect, reload, restart
    podman("network", "connect", "front", "web")
    assert podman.get("web", "10.99.30.9") == ""  # the network's policy
    podman("network", "disconnect", "front", "web")
    assert podman.get("web", "10.99.30.9") == "api"
    podman("network", "reload", "api")
    assert outside() == "api"
    podman("restart", "-t0", "api", "web")
    assert (outside(), ps(lab, "web")["address"][0]) == ("api", web)
    assert podman.get("bad", web) == ""
    podman("network", "disconnect", "backend", "bad")
    assert "bad" not in lab.niso("ps").stdout
    podman("network", "connect", "backend", "bad")
    lab.niso("net", "check")

    # a container that is killed, and one whose engine forgot it
    podman("kill", "api")
    lab.wait_for(lambda: "api" not in lab.niso("ps").stdout, 5, "the end of api")
    assert outside() == ""
    podman("start", "api")
    assert outside() == "api"
    podman("pod", "create", "--name", "shop", "--network", "backend", "-p", "9090:80")
    podman.run("inside", "--pod", "shop")
    assert fetch(lab.client, f"{HOST}:9090") == "inside"
    podman("pod", "rm", "-f", "-t0", "shop")
    # the default network of all containers
    conf = lab.path("/tmp/podman/containers.conf")
    conf.write_text(
        conf.read_text().replace("[network]\n", '[network]\ndefault_network = "backend"\n')
    )
    podman.run("plain")
    assert ps(lab, "plain")["address"][0].startswith("10.99.30.")
    podman("rm", "-f", "-t0", "api", "web", "bad", "plain")
    assert [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)] == ["db"]
    servers = ("pgrep", "-x", "aardvark-dns")
    lab.wait_for(lambda: lab.run(*servers, check=False).returncode, 5, "the end of the server")
    lab.niso("net", "check")


SOCKET = "/run/podman.sock"
PYTHON = ":".join(
    f"{PEERS}/{package}/usr/lib/python3/dist-packages"
    for package in ("podman-compose", "python3-dotenv")
)
COMPOSE = {
    "podman-compose": (
        f"PYTHONPATH={PYTHON}",
        "/usr/bin/python3",
        f"{PEERS}/podman-compose/usr/bin/podman-compose",
    ),
    "docker-compose": (
        f"DOCKER_HOST=unix://{SOCKET}",
        f"{PEERS}/docker-compose/usr/libexec/docker/cli-plugins/docker-compose",
    ),
}
SERVE = "echo {0} > /index.html; exec /bin/busybox httpd -f -p 80 -h /"


FRONT = {"deny_from": "192.0.2.3"}


def shop(external: bool) -> str:
    """A compose file, in JSON: two networks, one with a policy; external ones have it already."""

    def service(name: str, **keys: object) -> dict[str, object]:
        command = ["/bin/busybox", "sh", "-c", SERVE.format(name)]
        return {"image": f"localhost/{IMAGE}", "command": command, **keys}

    networks: dict[str, dict[str, object]] = {
        "front": {"driver": "niso", "driver_opts": FRONT},
        "back": {"driver": "niso", "internal": True},
    }
    if external:
        networks = {name: {"external": True, "name": f"of_{name}"} for name in networks}
    web = service("web", ports=["8080:80"], networks=["front", "back"])
    db = service("db", networks={"back": {"aliases": ["store"]}})
    return json.dumps({"services": {"web": web, "db": db}, "networks": networks})


@needs_podman
@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
def test_compose_files_with_networks_of_niso(lab: Lab) -> None:
    """By podman-compose, and by docker-compose through Podman's socket, which drops options of networks."""
    podman = Podman(lab)
    service = lab.popen(*WITH_PODMAN, "podman", "system", "service", "-t0", f"unix://{SOCKET}")
    lab.wait_for(lambda: lab.path(SOCKET).exists(), 10, "Podman's socket")

    def get(who: str) -> str:
        return fetch(getattr(lab, who), f"{HOST}:8080")

    create = ("network", "create", "-d", "niso")
    podman(*create, *(f"--opt={key}={value}" for key, value in FRONT.items()), "of_front")
    podman(*create, "--internal", "of_back")
    for name, words in COMPOSE.items():
        compose = (*WITH_PODMAN, *words)
        lab.write("/tmp/shop/compose.yaml", shop(external=name == "docker-compose"))
        lab.run(*compose, "up", "-d", cwd="/tmp/shop")
        assert (get("client"), get("neighbour")) == ("web", "")
        names = podman("ps", "--format", "{{.Names}}").stdout.split()
        web = next(name for name in names if "web" in name)
        if AARDVARK.exists():
            assert [podman.get(web, name) for name in ("db", "store")] == ["db", "db"]
        assert podman.get(next(name for name in names if "db" in name), HOST) == "", "internal"
        lab.niso("net", "check")
        lab.run(*compose, "down", "-t", "0", cwd="/tmp/shop")
        assert lab.niso("ps", "--json").stdout.strip() == "[]"
        assert get("client") == ""
    service.kill()
    service.wait(5)
    known = [row["name"] for row in json.loads(lab.niso("net", "list", "--json").stdout)]
    families = sorted(name.rpartition("-")[0] for name in known)
    assert families == ["of-back", "of-front", "shop-back", "shop-front"]
