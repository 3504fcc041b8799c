"""Run Podman's containers on networks of niso."""

from __future__ import annotations

import json

from conftest import Lab
from podman_world import AARDVARK, Podman, needs_podman
from services import BUSYBOX, HOST, echo, on, ps


@needs_podman
def test_containers_on_networks_of_niso(lab: Lab) -> None:
    podman = Podman(lab)

    def outside() -> str:
        words = (BUSYBOX, "wget", "-q", "-T", "1", "-O", "-", f"http://{HOST}:8080/index.html")
        return str(lab.client(*words, check=False).stdout).strip()

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
    assert (
        lab.client(BUSYBOX, "wget", "-q", "-O", "-", f"http://{HOST}:9090/index.html").stdout
        == "inside\n"
    )
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
