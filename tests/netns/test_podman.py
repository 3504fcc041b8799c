"""Run Podman's containers on networks of niso."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Lab
from deb_world import Packages
from podman_world import AARDVARK, IMAGE, PEERS, WITH_PODMAN, Podman, needs_podman
from samples import LONG, samples
from services import (
    BUSYBOX,
    CLIENT,
    HOST,
    NEIGHBOUR,
    echo,
    fetch,
    idle,
    on,
    package,
    pings,
    ps,
    set_resolver,
)
from wire import ALL, MDNS, Ears, Wire


@pytest.mark.first
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
        ("--interface-name", "own0"),
        ("--subnet", "fdd:1::/64"),  # 0fdd:
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
    addresses = podman("exec", "api", "/bin/busybox", "ip", "address").stdout
    assert "inet 10.99.30.9/24 brd 10.99.30.255 " in addresses
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
        podman.run("mute", "--network", "quiet", "--dns", NEIGHBOUR)
        resolvers = podman("exec", "mute", "/bin/busybox", "cat", "/etc/resolv.conf").stdout
        assert f"nameserver {NEIGHBOUR}" in resolvers
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


@pytest.mark.first
@needs_podman
def test_labels_of_containers_are_options(lab: Lab) -> None:
    podman = Podman(lab)
    podman("network", "create", "-d", "niso", "--opt", "multicast=true", "back")
    podman("import", "-c", "LABEL niso.name=api", "/tmp/image.tar", "evil:1")
    back = ("--network", "back")
    podman.run("one", *back, "--label", "niso.name=api", "--label", "niso.aliases=shop, store")
    podman.run("web", *back, "--label", "niso.allow_from=store")
    podman.run("bad", "--network", "back:name=bad", "--label", "niso.name=bad")
    own = ("run", "-d", "--name", "good", *back, "--label", "niso.name=good", "evil:1")
    podman(*own, "/bin/busybox", "sleep", "1000")
    assert ps(lab, "good")["status"] == "attached"
    web = ps(lab, "web")["address"][0]
    for _ in range(2):
        assert podman.get("one", web) == "web" and podman.get("bad", web) == ""
        podman("restart", "-t0", "web")
    for why, *wrong in (
        ("one of niso.name", *back, "--label", "niso.allow_form=api", IMAGE),
        ("label niso.name is one of the image", *back, "evil:1"),
        (
            "label niso.allow_from and --network back:allow_from differ",
            *("--network", "back:allow_from=api", "--label", "niso.allow_from=bad"),
            IMAGE,
        ),
    ):
        refused = podman("run", "--rm", *wrong, "/bin/busybox", "true", check=False)
        assert refused.returncode and why in refused.stderr, refused.stderr
    with Wire(lab) as wire:
        ears = Ears(lab, wire, {name: (f"niso-{name}", "eth0") for name in ("api", "web", "bad")})
        for to in (MDNS, ALL):
            assert ears.hearers("api", to) == {"web", "bad"}, to
            assert ears.hearers("bad", to) == {"api"}, to
    # the labels of a pod are those of its first container, which has its network
    podman("pod", "create", "--name", "trio", *back, "--label", "niso.allow_from=api")
    podman.run("inside", "--pod", "trio")
    inside = next(
        row["address"][0]
        for row in json.loads(lab.niso("ps", "--json").stdout)
        if row["service"] not in ("api", "web", "bad", "good")
    )
    assert podman.get("one", inside) == "inside" and podman.get("bad", inside) == ""
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


def routes(podman: Podman, name: str) -> str:
    """The default route of a container, without its interface, which Podman numbers at random."""
    said = podman("exec", name, "/bin/busybox", "ip", "-4", "route", "show", "default").stdout
    return " ".join(said.split()[:3])


@pytest.mark.first
@needs_podman
def test_default_route_never_leads_into_an_internal_network_beside_another(lab: Lab) -> None:
    podman = Podman(lab)
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")  # for others too
    create = ("network", "create", "-d", "niso")
    podman(*create, "--internal", "--subnet", "10.99.30.0/24", "closed")
    podman(*create, "--subnet", "10.99.31.0/24", "first")
    podman(*create, "--subnet", "10.99.32.0/24", "second")
    podman("network", "create", "--disable-dns", "others")
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    podman.run("box", "--network", "closed", "--network", "first", "--network", "second", "-p80:80")
    podman.run("mixed", "--network", "closed", "--network", "others")
    for _ in range(samples(2, 6)):  # netavark calls for the networks in any order
        assert routes(podman, "box") == "default via 10.99.31.1"
        assert fetch(lab.client, HOST) == "box"
        assert [podman.get(name, CLIENT) for name in ("box", "mixed")] == ["outside", "outside"]
        podman("restart", "-t0", "box", "mixed")
    lab.niso("net", "check")
    podman("network", "disconnect", "first", "box")
    assert routes(podman, "box") == "default via 10.99.32.1"
    podman("network", "disconnect", "second", "box")
    assert routes(podman, "box") == "default via 10.99.30.1"
    assert fetch(lab.client, HOST) == "box"  # published ports of an internal network
    podman("network", "connect", "second", "box")
    assert routes(podman, "box") == "default via 10.99.32.1"
    lab.niso("net", "check")


@pytest.mark.first
@needs_podman
def test_network_that_podman_creates_again_is_what_it_says(lab: Lab) -> None:
    podman = Podman(lab)
    create = ("network", "create", "-d", "niso")
    remove = ("network", "rm", "-f", "-t0")

    def known(name: str) -> dict[str, Any]:
        done = lab.niso("net", "inspect", name, "--json", check=False)
        return {} if done.returncode else dict(json.loads(done.stdout))

    def record(name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = json.loads(podman("network", "inspect", name).stdout)
        return rows[0]

    podman(*create, "back")
    for options in (("--internal",), ("--ipv6",), ("--opt", "mtu=1300"), ()):
        podman(*remove, "back")
        podman(*create, *options, "back")
        own = known("back")
        assert own["internal"] == record("back")["internal"] == ("--internal" in options)
        assert (len(own["subnets"]) == 2) == record("back")["ipv6_enabled"] == ("--ipv6" in options)
        assert (own["mtu"] == 1300) == ("mtu=1300" in options)
    # one with a service of niso stays, and another one under its name is refused
    lab.niso("activate", idle(lab, "db", network=on("back")))
    podman(*remove, "back")
    for options in (("--internal",), ("--ipv6",), ("--opt", "mtu=1300")):
        refused = podman(*create, *options, "back", check=False)
        assert "network 'back' already exists" in refused.stderr, refused.stderr
    podman(*create, "back")
    podman.run("box", "--network", "back")
    assert ": ok (" in lab.niso("net", "ping", "box", "db").stdout
    podman(*remove, "back")
    lab.niso("net", "gc")
    assert known("back")  # db is on it
    lab.niso("remove", "db")
    made = ("net", "create", "own", "--subnet", "10.99.40.0/24")
    lab.niso(*made)
    podman(*create, "--subnet", "10.99.40.0/24", "own")  # which Podman joins
    assert not known("back")  # removed by the call
    podman(*create, "old")
    podman(*create, "young")
    lab.niso("net", "gc")
    lab.run("touch", "/var/lib/niso/podman/damaged")
    podman(*remove, "own", "old")
    said = lab.niso("net", "gc")
    assert "network 'old' is removed" in said.stderr and not known("old")
    assert known("own") and known("young")
    # what was made in the place of one that Podman removed is not Podman's
    podman(*remove, "young")
    lab.niso("net", "remove", "young")
    lab.niso("net", "create", "young")
    lab.niso("net", "gc")
    assert known("young")


@needs_podman
def test_lost_state_folder_leaves_networks_as_podman_has_them(lab: Lab) -> None:
    """And rootless Podman is told first that there are no rootless networks."""
    podman = Podman(lab)
    create = ("network", "create", "-d", "niso")
    lab.niso("net", "create", "other")  # has the first free subnet
    podman(*create, "--internal", "--ipv6", "--opt", "mtu=1300", "back")
    described = json.loads(podman("network", "inspect", "back").stdout)[0]
    podman.run("box", "--network", "back")
    lab.niso("net", "inspect", "back")
    podman("stop", "-t0", "box")
    lab.niso("net", "remove", "back", "other")
    lab.run("sh", "-c", "rm -rf /var/lib/niso/*")
    podman("start", "box")
    own = json.loads(lab.niso("net", "inspect", "back", "--json").stdout)
    wanted = [(subnet["subnet"], subnet["gateway"]) for subnet in described["subnets"]]
    assert [(subnet["cidr"], subnet["gateway"]) for subnet in own["subnets"]] == wanted
    assert (own["internal"], own["mtu"]) == (True, 1300)
    assert podman.get("box", HOST) == ""
    lab.niso("net", "check")
    # another network of the name is not Podman's
    podman("stop", "-t0", "box")
    lab.niso("net", "remove", "back")
    lab.niso("net", "create", "back", "--subnet", "10.99.77.0/24")
    refused = podman("start", "box", check=False)
    assert "network 'back' already exists with subnet 10.99.77.0/24" in refused.stderr
    shell = ("sh", "-c", ROOTLESS, "sh")
    refused = lab.run(*WITH_PODMAN, *shell, *create, "own", check=False)
    said = refused.stderr.strip().splitlines()[-1]
    assert said.endswith(
        "niso: niso has no rootless networks (run podman as root, or use -d bridge)"
    ), refused.stderr


NAME_SERVER = """\
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
while True:
    asked, peer = server.recvfrom(2000)
    end = asked.index(0, 12) + 5
    flags = b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0"
    found = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton("203.0.113.9")
    server.sendto(asked[:2] + flags + asked[12:end] + found, peer)
"""
FOUND = "203.0.113.9"
ASK = "/bin/busybox timeout 2 /bin/busybox nslookup -type=a example.com."


@needs_podman
@pytest.mark.skipif(not AARDVARK.exists(), reason="./dev test unpacks aardvark-dns")
def test_name_servers_of_containers_and_networks(lab: Lab) -> None:
    podman = Podman(lab)
    found = {}
    for number, (who, address) in enumerate((("client", CLIENT), ("neighbour", NEIGHBOUR))):
        found[address] = f"203.0.113.{number + 1}"
        text = NAME_SERVER.replace(FOUND, found[address])
        lab.popen("/usr/bin/python3", "-ISc", text, netns=who)
    set_resolver(lab, "nameserver 127.0.0.9\n")

    def answer(name: str) -> str:
        said = podman("exec", name, "/bin/busybox", "sh", "-c", ASK, check=False).stdout
        return "".join(address for address, text in found.items() if text in said)

    create = ("network", "create", "-d", "niso")
    podman(*create, "plain")
    refused = podman(*create, "--dns", CLIENT, "own", check=False)
    assert "podman network update --dns-add" in refused.stderr
    podman(*create, "own")
    podman("network", "update", "--dns-add", CLIENT, "own")
    podman(*create, "--internal", "closed")
    for name, *options in (
        ("none", "--network=plain"),
        ("net", "--network=own"),
        ("box", "--network=plain", "--dns", NEIGHBOUR),
        ("both", "--network=own", "--dns", NEIGHBOUR),
        ("inner", "--network=closed", "--dns", NEIGHBOUR),
    ):
        podman.run(name, *options)
    wanted = {"none": "", "net": CLIENT, "box": NEIGHBOUR, "both": NEIGHBOUR, "inner": ""}
    assert {name: answer(name) for name in wanted} == wanted
    assert podman.get("net", "both") == "both" and podman.get("box", "none") == "none"
    # a server added later is used from the next start or stop of a container on
    podman("network", "update", "--dns-add", CLIENT, "plain")
    podman.run("late", "--network=plain")
    assert [answer(name) for name in ("none", "late", "box")] == [CLIENT, CLIENT, NEIGHBOUR]
    podman("rm", "-f", "-t0", "late", "both")
    assert [answer(name) for name in ("none", "net", "box")] == [CLIENT, CLIENT, NEIGHBOUR]


@needs_podman
def test_what_podman_does_without_a_call(lab: Lab) -> None:
    """It renames containers, removes networks, and its storage may be deleted."""
    podman = Podman(lab)
    create = ("network", "create", "-d", "niso")
    start = ("run", "-d", "--network", "back", "--name")
    sleep = (IMAGE, "/bin/busybox", "sleep", "1000")

    def known() -> dict[str, str]:
        rows = json.loads(lab.niso("net", "list", "--json").stdout)
        return {row["name"]: "".join(row["subnet"]) for row in rows}

    def names() -> list[str]:
        return [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)]

    # a network is removed once Podman's file of it was seen to be gone
    podman(*create, "--subnet", "10.99.30.0/24", "back")
    podman(*create, "young")  # its file may not be there yet
    lab.run("rm", "/tmp/podman/networks/young.json")
    podman.run("My_Box.1", "--network", "back", "-p", "8080:80")
    assert names() == ["my-box-1"]
    podman("rm", "-f", "-t0", "My_Box.1")
    podman("network", "rm", "back")
    lab.niso("net", "gc", "--owner", "podman")
    assert known().keys() == {"young"}
    for options in ((), ("--internal",), ("--ipv6",)):  # as by compose down, up
        for number in (31, 32):
            subnet = f"10.99.{number}.0/24"
            podman(*create, "--subnet", subnet, *options, "back")
            podman.run("box", "--network", "back")
            assert known()["back"].split(",")[0] == subnet
            podman("rm", "-f", "-t0", "box")
            podman("network", "rm", "back")
    # a renamed container has its name in niso from its next start, or from a reload
    podman(*create, "back")
    podman.run("box", "--network", "back", "-p", "8080:80")
    address = ps(lab, "box")["address"]
    podman("rename", "box", "old")
    refused = podman(*start, "box", *sleep, check=False)
    podman("rm", "box")
    assert "renamed container 'box' to 'old'" in refused.stderr, refused.stderr
    podman("network", "reload", "old")
    assert names() == ["old"] and ps(lab, "old")["address"] == address
    assert fetch(lab.client, f"{HOST}:8080") == "box"
    podman("rm", "-f", "-t0", "box")
    podman.run("box", "--network", "back")
    assert names() == ["box", "old"] and podman.get("box", "old") == "box"  # what it serves
    podman("rm", "-f", "-t0", "old", "box")
    # Podman's storage is deleted: a process keeps its attachment, a namespace alone does not
    for name in ("alone", "busy"):
        podman(*start, name, *sleep)
    podman(*start, "box", "-p8080:80", *sleep)
    form = "{{.State.ConmonPid}} {{.State.Pid}}"
    for name in ("alone", "box", "busy"):
        pids = podman("inspect", "--format", form, name).stdout.split()
        lab.run("kill", "-9", pids[0])
        if name != "busy":
            lab.run("kill", "-9", pids[1])
    lab.niso("net", "gc")
    assert names() == ["alone", "box", "busy"]  # Podman has them
    lab.run("rm", "-rf", "/run/podman/libpod", check=False)
    lab.run("sh", "-c", "rm -rf /tmp/podman/vfs/*", check=False)
    podman("import", "/tmp/image.tar", IMAGE)
    podman.run("box", "--network", "back", "-p", "8080:80")
    assert fetch(lab.client, f"{HOST}:8080") == "box"
    assert names() == ["alone", "box", "busy"]
    assert "alone: detached" in lab.niso("net", "gc").stdout
    assert names() == ["box", "busy"]
    lab.niso("net", "check")


@needs_podman
def test_uninstall_leaves_podman_its_own_networks(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "first"))  # before Podman, which finds forwarding switched on
    podman = Podman(lab)
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    podman.run("own", "-p", "8090:80")
    packages = Packages(lab, "niso", "niso-podman", with_words=WITH_PODMAN)
    sleep = (IMAGE, "/bin/busybox", "sleep", "1000")

    def use() -> None:
        podman("network", "create", "-d", "niso", "backend")
        podman.run("web", "--network", "backend", "-p", "8080:80")

    def is_removed() -> None:
        assert podman("network", "ls", "--format", "{{.Name}}").stdout == "podman\n"
        assert [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)] == ["first"]
        assert "backend" not in lab.niso("net", "list").stdout

    use()
    packages.follow("podman")
    is_removed()
    podman("rm", "-f", "-t0", "web")
    use()
    podman("create", "--name", "off", "--network", "backend", *sleep)
    podman("pod", "create", "--name", "shop", "--network", "backend", "-p", "9090:80")
    podman("run", "-d", "--name", "inside", "--pod", "shop", *sleep)
    refused = packages.purge("niso-podman")
    assert refused.returncode and "in use: network backend, " in refused.stderr, refused.stderr
    assert fetch(lab.client, f"{HOST}:8080") == "web"
    done = packages.purge("niso-podman", answer=True)
    assert done.returncode == 0, done.stderr
    is_removed()
    done = packages.purge("niso", answer=True)
    assert done.returncode == 0, done.stderr
    lab.run("rm", "/tmp/podman/plugins/niso")
    for _ in range(2):
        is_removed()
        assert podman.get("own", CLIENT) == "outside"
        assert fetch(lab.client, f"{HOST}:8090") == "own"
        podman("restart", "-t0", "own", "web", "off", "inside")
    podman("network", "connect", "podman", "web")
    assert podman.get("web", CLIENT) == "outside"
    podman("pod", "rm", "-f", "-t0", "shop")
    podman("rm", "-f", "-t0", "own", "web", "off")
    assert "nothing of niso" in lab.niso("reset", "--yes").stdout


ROOTLESS = """\
mkdir -p /tmp/user/run
cp -r /tmp/podman/home /tmp/user/home
chown -R 1000:1000 /tmp/user
exec setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/tmp/user/home \\
  XDG_RUNTIME_DIR=/tmp/user/run podman --root /tmp/user/data --runroot /tmp/user/run/storage \\
  --network-config-dir /tmp/user/networks --tmpdir /tmp/user/run/tmp "$@"
"""


@pytest.mark.first
@needs_podman
@pytest.mark.parametrize("first", ["niso", "podman"])
def test_networks_of_podman_and_niso_work_whoever_is_first(lab: Lab, first: str) -> None:
    """Each has a published port and a way out, after restarts too, and the host is no router for others."""
    page = {"served/index.html": "web\n"}
    serve = (BUSYBOX, "httpd", "-f", "-p", "80", "-h")
    web = package(lab, "web", *serve, "/app/served", files=page, network={"ports": ["8080:80"]})

    def outside(lab: Lab) -> None:
        lab.write("/tmp/outside/index.html", "outside\n")
        lab.popen(*serve, "/tmp/outside", netns="client")
        for family, host in (("-4", HOST), ("-6", "2001:db8::1")):
            lab.run("ip", family, "route", "add", ROUTED[family], "via", host, netns="client")
            lab.run("ip", "address", "add", ROUTED[family], "dev", "lo", netns="neighbour")
        lab.run("ip", "route", "add", ROUTED["-4"], "via", NEIGHBOUR)
        lab.run("ip", "route", "add", ROUTED["-6"], "via", "2001:db8::3")
        for link in ("all", "uplink0"):
            lab.run("sysctl", "-qw", f"net.ipv4.conf.{link}.send_redirects=0")

    def work(lab: Lab, podman: Podman, *routes: bool) -> None:
        ports = {8080: "web", 8090: "own", 8070: "mixed"}
        lab.wait_for(
            lambda: {port: fetch(lab.client, f"{HOST}:{port}") for port in ports} == ports,
            20,
            "the published ports",
        )
        assert fetch(lab.neighbour, f"{HOST}:8070") == ""  # the policy of mixed
        assert ps(lab, "mixed")["address"][0] == "10.99.30.9"
        assert fetch(lab.client, "[2001:db8::1]:8090") == "own"
        for name in ("own", "mixed"):
            assert podman.get(name, CLIENT) == "outside"
        assert podman.get("own", "[2001:db8::2]") == "outside"
        assert fetch(lab.run, CLIENT, "nsenter", "--net=/run/netns/niso-web") == "outside"
        assert [pings(lab, ROUTED[family], "client") for family in ("-4", "-6")] == [*routes]
        assert lab.niso("net", "check").returncode == 0

    def own() -> None:
        podman("network", "create", "--ipv6", "--disable-dns", "dual")
        podman.run("own", "--network", "dual", "-p", "8090:80", "--restart", "always")

    outside(lab)
    podman = Podman(lab)
    routes = first == "podman"  # netavark turns forwarding on, and nothing restricts it
    subnets = ("--subnet", "10.99.30.0/24", "--subnet", "fd30::/64")
    podman("network", "create", "-d", "niso", "--ipv6", *subnets, "backend")
    if first == "podman":
        own()
    lab.niso("activate", web)
    lab.niso("enable", "web")
    given = ("--network", f"backend:ip=10.99.30.9,deny_from={NEIGHBOUR}", "-p", "8070:80")
    podman.run("mixed", *given, "--restart", "always")
    if first == "niso":
        own()
    work(lab, podman, routes, routes)
    podman("restart", "-t0", "own", "mixed")
    # netavark has set conf/all/forwarding, which niso had left at 0 if force_forwarding exists
    left = lab.path("/proc/sys/net/ipv6/conf/default/force_forwarding").exists()
    work(lab, podman, routes, routes or left)
    # without a service of niso, Podman's network goes on
    podman("stop", "-t0", "mixed")
    lab.niso("deactivate", "web")
    assert podman.get("own", CLIENT) == "outside" and fetch(lab.client, f"{HOST}:8090") == "own"
    assert pings(lab, ROUTED["-4"], "client") is routes
    lab.niso("activate", "web")
    podman("start", "mixed")
    work(lab, podman, routes, True)
    # a reboot: of both, only the disk is left; podman-restart.service starts the containers
    with Lab() as after:
        outside(after)
        again = Podman(after, lab)
        restart = ("start", "--all", "--filter", "restart-policy=always")
        if first == "podman":
            again(*restart)
        after.niso("restore")
        if first == "niso":
            again(*restart)
        work(after, again, routes, routes)
        again("rm", "-f", "-t0", "own", "mixed")
        assert "mixed" not in after.niso("ps").stdout and fetch(after.client, f"{HOST}:8080")
    podman("rm", "-f", "-t0", "own", "mixed")


ROUTED = {"-4": "198.51.100.3", "-6": "2001:db8:5::3"}
"""Addresses of the neighbour that the client can reach only if the host routes for it."""


@pytest.mark.first
@needs_podman
@pytest.mark.skipif(not AARDVARK.exists(), reason="./dev test unpacks aardvark-dns")
def test_names_do_not_leave_internal_networks(lab: Lab) -> None:
    """Whoever asks: a container, or a service of niso, at its own gateway or at another one."""
    podman = Podman(lab)
    lab.popen("/usr/bin/python3", "-ISc", NAME_SERVER, netns="client")
    set_resolver(lab, f"nameserver {CLIENT}\n")
    create = ("network", "create", "-d", "niso")
    podman(*create, "--internal", "--subnet", "10.99.30.0/24", "closed")
    podman(*create, "--internal", "--subnet", "10.99.31.0/24", "secret")
    podman(*create, "--subnet", "10.99.32.0/24", "open")
    lab.niso("activate", idle(lab, "db", network=on("closed")))
    for name, networks in (
        ("inner", ["closed"]),
        ("other", ["secret"]),
        ("outer", ["open"]),
        ("both", ["closed", "open"]),
    ):
        podman.run(name, *(f"--network={network}" for network in networks))
    lab.niso("activate", idle(lab, "late", network=on("closed")))

    query = "/bin/busybox timeout 2 /bin/busybox nslookup -type=a"

    def lookup(who: str, name: str, server: str = "") -> str:
        return said(who, f"{query} {name} {server}")

    def said(who: str, line: str) -> str:
        words = ("/bin/busybox", "sh", "-c", line)
        if who in ("db", "late"):
            return str(lab.run(*words, netns=f"niso-{who}", check=False).stdout)
        return str(podman("exec", who, *words, check=False).stdout)

    for name in ("outer", "both"):
        assert FOUND in lookup(name, "example.com."), name
    own, secret, outer = (f"10.99.{number}.1" for number in (30, 31, 32))
    assert ps(lab, "both")["address"][0] in lookup("inner", "both.dns.podman.")
    for name in ("inner", "db", "late"):
        lines = [f"{query} example.com. {server} &" for server in (own, secret, outer)]
        # names of other networks neither
        marked = "| /bin/busybox sed 's/^/other: /'"
        lines += [f"{query} other.dns.podman. {server} {marked} &" for server in (secret, outer)]
        answers = said(name, " ".join((*lines, "wait")))  # at once: most wait for nothing
        assert FOUND not in answers and "other: " not in answers, (name, answers)
    # an address that a file of the server does not have
    assert FOUND in lookup("both", "example.com.", own)
    podman("network", "disconnect", "open", "both")
    assert FOUND not in lookup("both", "example.com.", own)
    for protocol in ("tcp", "udp"):
        asked = ("net", "explain", "db", f"{outer}:53/{protocol}", "--prove")
        shown = lab.niso(*asked, check=False).stdout
        parts = (": drop", "another network's bridge", "confirmed")
        assert all(part in shown for part in parts), shown
    lab.niso("net", "check")
