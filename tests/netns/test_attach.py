"""Attach namespaces that other programs made: their packets, what stays theirs, and their end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from conftest import Lab, Process
from services import (
    BUSYBOX,
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    echo,
    echo_in,
    idle,
    inspect,
    on,
    pings,
    ps,
    refused,
    send,
)
from wire import Wire

from niso.base.names import mac

ATTACH = ("net", "attach", "box", "--netns", "/run/netns/blue", "--network")
BACKEND = ("net", "create", "backend", "--subnet", "10.99.1.0/24")


def container(lab: Lab, *command: str) -> Process:
    """Start a process in a network namespace of its own, as an engine does."""
    made: Process = lab.popen("unshare", "--net", *(command or (BUSYBOX, "sleep", "1000")))
    own = lab.run("readlink", "/proc/self/ns/net").stdout
    lab.wait_for(lambda: lab.run("readlink", f"/proc/{made.pid}/ns/net").stdout != own, 5)
    return made


def picture(lab: Lab, netns: str, *without: str) -> list[Any]:
    """What the kernel has in a namespace but for these links: links, addresses, routes, sysctls."""
    skip = (*without,)
    links = [each for each in lab.ip_json("address", netns=netns) if each["ifname"] not in skip]
    for link in links:
        for key in ("ifindex", "link_index", "stats64"):
            link.pop(key, None)
    routes = [each for each in lab.ip_json("route", netns=netns) if each["dev"] not in skip]
    find = "cd /proc/sys/net; find ipv4 ipv6 -type f -perm -200 ! -name flush ! -name '*retrans*'"
    find += " ! -name 'stable_secret' | sort | xargs grep -H ''"
    sysctls = lab.run("sh", "-c", find, netns=netns, check=False).stdout.splitlines()
    own = [line for line in sysctls if not any(f"/{name}/" in line for name in skip)]
    return [links, routes, own]


BLUE = """\
link set lo up
link add eth0 type veth peer name far
address add 172.31.0.2/24 dev eth0
link set far up
link set eth0 up
route add 198.51.100.0/24 via 172.31.0.1
"""


@pytest.fixture
def blue(lab: Lab) -> Lab:
    """A namespace of another program, with a link, a route, and a server."""
    lab.niso(*BACKEND)
    make_blue(lab)
    return lab


def make_blue(lab: Lab) -> None:
    lab.run("ip", "netns", "add", "blue")
    settings = [f"net.ipv6.conf.{which}.accept_dad=0" for which in ("all", "default")]
    lab.run("sysctl", "-qw", *settings, netns="blue")  # no address is tentative
    lab.run("ip", "-n", "blue", "-batch", "-", input=BLUE)
    echo_in(lab, "blue", "box")


def test_attachment_has_the_warnings_of_a_service(blue: Lab) -> None:
    chain = "add chain inet fw forward { type filter hook forward priority 0; policy drop; }"
    blue.run("nft", "add table inet fw")
    blue.run("nft", chain)
    attach = (*ATTACH, "backend", "-p", "8080:80", "--allow-from", "nobody")
    said = blue.niso(*attach).stderr
    assert "no service is called 'nobody'" in said
    assert "inet fw" in said
    # unchanged: only what its policy means is said again
    said = blue.niso(*attach).stderr
    assert "no service is called 'nobody'" in said and "inet fw" not in said


def test_attached_namespace_is_reached_as_a_service_and_the_rest_of_it_stays(blue: Lab) -> None:
    before = picture(blue, "blue")
    blue.niso("activate", echo(blue, "api", network=on("backend")))
    blue.niso("activate", idle(blue, "web", network=on("backend")))
    named = (*ATTACH, "backend,interface=net7,mac=02:00:00:00:00:07", "-p", "8080:80")
    made = blue.niso(*named, "--allow-from", "api 192.0.2.2", "--egress-deny", "web")
    assert made.stdout == "box: attached  10.99.1.4  8080→80\n"
    assert picture(blue, "blue", "net7") == before
    (link,) = blue.ip_json("address", "show", "dev", "net7", netns="blue")
    assert link["address"] == "02:00:00:00:00:07" and link["operstate"] == "UP"
    assert [entry["local"] for entry in link["addr_info"]] == ["10.99.1.4"]
    assert blue.run("readlink", "/run/netns/niso-box").stdout == "/run/netns/blue\n"
    limits = blue.run("nft", "-s", "list", "set", "bridge", "niso", "fragments").stdout
    assert 'rate over 40/second burst 200 packets comment "box"' in limits
    # packets, and who may send them
    assert answer(blue, "10.99.1.4", 80, "niso-api") == "box 10.99.1.3"[:4] + "10.99.1.2"
    assert ask(blue, "10.99.1.4", 80, "niso-web") == ""
    assert answer(blue, "10.99.1.2", 80, "blue").split()[0] == "api"
    assert blue.client(BUSYBOX, "nc", "-w1", HOST, "8080", input="").stdout == f"box {CLIENT}\n"
    assert blue.neighbour(BUSYBOX, "nc", "-w1", HOST, "8080", input="", check=False).stdout == ""
    # the commands know it
    assert ": ok (" in blue.niso("net", "ping", "api", "box").stdout
    for way in (("web", "box:80"), ("box", "api:80")):
        proved = blue.niso("net", "explain", *way, "--prove", check=False).stdout
        assert "confirmed" in proved
    row = ps(blue, "box")
    assert (row["status"], row["mode"], row["address"]) == ("attached", "attached", ["10.99.1.4"])
    assert inspect(blue, "box")["endpoints"][0]["interface"] == "net7"
    blue.niso("port-forward", "box", "9090:80")
    assert blue.client(BUSYBOX, "nc", "-w1", HOST, "9090", input="").stdout == f"box {CLIENT}\n"
    blue.niso("net", "check")
    # a spoofed source is dropped on its port, as a service's is
    blue.run("ip", "address", "add", "10.99.1.3/32", "dev", "net7", netns="blue")
    spoof = ("ping", "-c1", "-W1", "-I", "10.99.1.3", "10.99.1.2")
    assert blue.run(*spoof, netns="blue", check=False).returncode == 1
    blue.niso("net", "check")  # an address that others added there is theirs
    # damage to what is niso's is named and repaired
    blue.run("ip", "link", "set", "net7", "down", netns="blue")
    named = blue.niso("net", "check", check=False).stdout
    assert named.startswith("different: veth nibox-") and named.count("\n") == 1, named
    blue.niso("net", "repair")
    blue.niso("net", "check")
    assert answer(blue, "10.99.1.4", 80, "niso-api")
    blue.run("rm", "/run/netns/niso-box")
    named = blue.niso("net", "check", check=False).stdout
    assert named == "missing: name niso-box of the network namespace /run/netns/blue\n"
    blue.run("ln", "-s", "/run/netns/client", "/run/netns/niso-box")
    assert "does not belong to this niso" in blue.niso("net", "check", check=False).stdout
    assert blue.niso("net", "repair", check=False).returncode == 1
    blue.run("ln", "-sfT", "/nowhere", "/run/netns/niso-box")
    blue.niso("net", "repair")
    blue.niso("net", "check")
    assert answer(blue, "10.99.1.4", 80, "niso-api")
    # a policy that is narrowed
    blue.niso(*ATTACH, "backend", "--allow-from", "")
    assert ask(blue, "10.99.1.4", 80, "niso-api") == ""
    assert blue.niso("net", "detach", "box").stdout == "box: detached\n"
    assert blue.niso("net", "detach", "box").stdout == "box: not attached\n"
    assert picture(blue, "blue") == before
    assert not blue.path("/run/netns/niso-box").is_symlink()
    blue.niso("net", "check")


def test_end_of_a_namespace_and_its_process_id_in_other_hands(lab: Lab) -> None:
    lab.niso(*BACKEND)
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    first = container(lab)
    lab.niso("net", "attach", "box", "--pid", str(first.pid), "--network", "backend", "--id", "7")
    assert ps(lab, "box")["address"] == ["10.99.1.3"]
    first.kill()
    first.wait(5)
    gone = "gone: attachment 'box' (cli 7) (its network namespace has ended)\n"
    lab.wait_for(lambda: lab.niso("net", "check", check=False).stdout == gone, 5, gone)
    assert ps(lab, "box")["status"] == "gone"
    assert "its network namespace has ended" in refused(lab, "net", "ping", "api", "box")
    # other commands are not held up, and nobody gets its address
    lab.niso("activate", idle(lab, "web", network=on("backend")))
    assert ps(lab, "web")["address"] == ["10.99.1.4"]
    assert lab.niso("net", "repair").stdout == "repaired: 1 step\n"
    lab.niso("net", "check")
    assert "box" not in lab.niso("ps").stdout
    links = lab.run("ip", "-br", "link", netns=None).stdout
    assert "nibox" not in links
    # its owner gets its address again
    second = container(lab)
    again = ("net", "attach", "box", "--pid", str(second.pid), "--network", "backend", "--json")
    assert json.loads(lab.niso(*again).stdout)["address"] == ["10.99.1.3"]
    second.kill()
    second.wait(5)
    lab.wait_for(lambda: ps(lab, "box")["status"] == "gone", 5, "the end of box")
    assert lab.niso("net", "gc").stdout == "box: detached\n"
    # a path that leads to a namespace of somebody else by now: niso goes by the cookie
    lab.run("ip", "netns", "add", "blue")
    lab.niso("net", "attach", "box", "--netns", "/run/netns/blue", "--network", "backend")
    lab.run("ip", "netns", "delete", "blue")
    lab.run("ip", "netns", "add", "blue")
    before = picture(lab, "blue")
    lab.wait_for(lambda: lab.niso("net", "check", check=False).stdout == gone.replace(" 7", ""), 5)
    lab.niso("net", "repair")
    assert picture(lab, "blue") == before
    lab.niso("net", "check")


def test_sweep_and_commands_from_inside(blue: Lab) -> None:
    before = picture(blue, "blue")
    blue.niso("activate", idle(blue, "api", network=on("backend")))
    blue.niso("net", "attach", "box", "--netns", "/run/netns/blue", "--network", "backend")
    blue.niso("net", "attach", "own", "--new", "--network", "backend")
    assert blue.run("ip", "-br", "link", netns="niso-own").stdout.count("eth0") == 1
    # a command that is started in another namespace goes home
    inner = blue.niso("net", "check", netns="blue").stdout
    assert inner.startswith("OK")
    blue.niso("activate", idle(blue, "web", network=on("backend")), netns="blue")
    assert "niso-backend" not in blue.run("ip", "-br", "link", netns="blue").stdout
    assert ": ok (" in blue.niso("net", "ping", "web", "box").stdout
    program = "import niso; niso.connect().services.list()"
    done = blue.run("python", "-c", program, netns="blue", check=False)
    assert "another network namespace than its state folder" in done.stderr
    # what is refused changes nothing
    assert "of the host itself" in refused(blue, "net", "attach", "me", "--pid", "1")
    own = refused(blue, "net", "attach", "me", "--netns", "/run/netns/niso-api")
    assert "network namespace of a service of niso" in own
    again = refused(blue, "net", "attach", "x", "--netns", "/run/netns/blue")
    assert "already attached as 'box'" in again
    for words in (("net", "attach", "x"), ("net", "attach", "x", "--new", "--pid", "1")):
        refused(blue, *words, status=2)
    blue.niso("net", "check")
    for command in ("restart", "deactivate", "remove", "enable", "activate"):
        assert "is an attachment" in refused(blue, command, "box")
    blue.niso("reset", "--yes")
    assert picture(blue, "blue") == before
    assert not [path for path in blue.path("/run/netns").iterdir() if path.name.startswith("niso-")]
    assert blue.path("/run/netns/blue").exists()


def test_link_in_the_place_of_an_attached_interface_stops_nothing(blue: Lab) -> None:
    """With NET_ADMIN a container can. Its policy is narrowed, it can be detached, others go on."""
    blue.niso("net", "create", "front", "--subnet", "10.99.2.0/24")
    for first in ("link set x name y", "link delete x"):
        _replace_link(blue, first)
        blue.niso("remove", "api", "web")
        blue.run("ip", "netns", "delete", "blue")
        make_blue(blue)


def _replace_link(blue: Lab, first: str) -> None:
    blue.niso("activate", echo(blue, "api", network=on("backend")))
    blue.niso(*ATTACH, "backend,interface=x", "--port", "8080:80")
    made = ("link add x type bridge", "link set x addrgenmode none", "link set x up")
    for line in ("link set x down", first, *made):
        blue.run("ip", "-n", "blue", *line.split())
    blue.run("ip", "-n", "blue", "address", "add", "10.99.1.3/24", "dev", "x")
    before = picture(blue, "blue", "y")
    blue.niso(*ATTACH, "backend,interface=x", "--egress-allow", "", "--allow-from", "")
    for direction in ("ingress4", "egress4"):
        rules = blue.run("nft", "list", "set", "inet", "niso", direction).stdout
        assert '10.99.1.3 comment "box"' in rules
    named = "foreign: interface 'x' in niso-box is another link than niso's:"
    assert blue.niso("net", "check", check=False).stdout.startswith(named)
    # neither repair nor another command fails for it, and its own link is left alone
    blue.run("ip", "-n", "niso-api", "link", "set", "eth0", "down")
    assert "is another link than niso's" in refused(blue, "net", "repair")
    assert answer(blue, "10.99.1.2", 80)
    blue.niso("activate", echo(blue, "web", network=on("backend", ports=["8081:80"])))
    assert picture(blue, "blue", "y") == before
    assert blue.niso("net", "check", check=False).stdout.count("\n") == 1
    # in its place again, or on another network
    blue.run("ip", "-n", "blue", "link", "set", "x", "down")
    blue.run("ip", "-n", "blue", "link", "set", "x", "name", "mine")
    blue.niso("net", "repair")
    blue.niso("net", "check")
    assert blue.ip_json("link", "show", "dev", "x", netns="blue")[0]["operstate"] == "UP"
    for line in ("link delete x", "link set mine name x"):
        blue.run("ip", "-n", "blue", *line.split())
    blue.niso(*ATTACH, "front,interface=z")
    blue.niso("net", "check")
    for line in ("link delete z", "link set x name z"):
        blue.run("ip", "-n", "blue", *line.split())
    assert blue.niso("net", "detach", "box").stdout == "box: detached\n"
    blue.niso("net", "check")
    assert "z" in {link["ifname"] for link in blue.ip_json("link", netns="blue")}


OWN_ROUTES = [
    ("route del default", "route add default via 172.31.0.9 dev eth0"),
    ("route del default", "route add blackhole default"),
    ("route del 10.99.1.0/24", "route add 10.99.1.0/24 dev eth0"),
    ("address del 10.99.1.3/24 dev x", "address add 10.99.1.3/24 dev eth0"),
]
RENAMED = ("link set x down", "link set x name y", "link property add dev eth0 altname x")
OTHER_BRIDGE = ("link add v type bridge", "link set x master v")


def test_what_a_container_does_to_its_links_and_routes_stops_nothing(blue: Lab) -> None:
    """Its policy is narrowed, others are repaired, it can be detached, and its routes are its own."""
    blue.niso("activate", echo(blue, "api", network=on("backend")))
    own = [(changes, "a route of its own") for changes in OWN_ROUTES]
    for changes, said in (*own, (RENAMED, "no network now"), (OTHER_BRIDGE, "")):
        blue.niso(*ATTACH, "backend,interface=x")
        for line in changes:
            blue.run("ip", "-n", "blue", *line.split())
        routes = blue.run("ip", "route", netns="blue").stdout
        narrowed = blue.niso(*ATTACH, "backend", "--allow-from", "")
        assert said in narrowed.stderr and bool(said) == bool(narrowed.stderr), changes
        ingress = blue.run("nft", "list", "set", "inet", "niso", "ingress4").stdout
        assert '10.99.1.3 comment "box"' in ingress, changes
        assert "interrupted" not in blue.niso("ps").stdout
        blue.run("ip", "-n", "niso-api", "link", "set", "eth0", "down")
        done = blue.niso("net", "repair", check=False)
        assert said in done.stderr and done.returncode == bool(said), changes
        assert answer(blue, "10.99.1.2", 80)
        if said == "a route of its own":
            kept = {route for route in routes.splitlines() if "dev x" not in route}
            assert {*blue.run("ip", "route", netns="blue").stdout.splitlines()} >= kept
            assert pings(blue, "10.99.1.3")
        assert blue.niso("net", "detach", "box").stdout == "box: detached\n"
        blue.niso("net", "check")
        blue.run("ip", "netns", "delete", "blue")
        make_blue(blue)


def test_both_families_and_nothing_that_the_kernel_would_add(lab: Lab) -> None:
    """No packet leaves with an address that is not niso's: the link is up only when its sysctls are set."""
    subnets = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    lab.niso("net", "create", "backend", *subnets)
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.run("ip", "netns", "add", "blue")
    wanted = "backend,interface=net0,ip=10.99.1.77,ip=fd00:99:1::77"
    assert lab.niso(*ATTACH, wanted, "-p", "8080:80").stdout.startswith(
        "box: attached  10.99.1.77, fd00:"
    )
    (link,) = lab.ip_json("address", "show", "dev", "net0", netns="blue")
    own = {entry["local"] for entry in link["addr_info"]}
    assert own == {"10.99.1.77", "fd00:99:1::77"}  # and no fe80::
    routes = lab.ip_json("-6", "route", "show", "default", netns="blue")
    assert [route["gateway"] for route in routes] == ["fd00:99:1::1"]
    for name, end in (("blue", "::1"), ("blue", "::2"), ("niso-api", "::77")):
        lab.run("ping", "-6", "-c1", "-W2", f"fd00:99:1{end}", netns=name)
    hosts = lab.run("cat", "/run/niso/hosts/backend/hosts").stdout
    assert all(f"{end}  box.niso.local box\n" in hosts for end in own)
    dropped = lab.niso("net", "stats", "--json").stdout
    assert next(row for row in json.loads(dropped) if row["service"] == "box")["foreign"] == 0
    # an engine that switches IPv6 off inside is seen on niso's link, and its own setting stays
    lab.run("sysctl", "-qw", "net.ipv6.conf.net0.disable_ipv6=1", netns="blue")
    assert "disable_ipv6" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    lab.run("ping", "-6", "-c1", "-W2", "fd00:99:1::77", netns="niso-api")
    assert lab.run("sysctl", "-n", "net.ipv6.conf.all.disable_ipv6", netns="blue").stdout == "0\n"
    lab.niso("net", "check")
    lab.niso("net", "detach", "box")
    assert [link["ifname"] for link in lab.ip_json("link", "show", netns="blue")] == ["lo"]
    lab.niso("deactivate", "--all")
    lab.niso("net", "check")


EVIL = ("net", "attach", "evil", "--netns", "/run/netns/blue", "--network")
OWN = "02:00:00:00:00:66"


def reads(lab: Lab, address: str, text: str) -> bool:
    """Whether the namespace blue gets a datagram that the host sends to an address."""
    with Wire(lab) as wire:
        link = wire.link("blue", "net7")
        send(lab, None, address, 9, text)
        send(lab, "niso-web", address, 9, text)
        time.sleep(0.3)
        return link.saw(text.encode())


def test_no_chosen_mac_takes_what_is_meant_for_others(blue: Lab) -> None:
    """With the MAC of db, evil reads what is sent to db. With the bridge's, no service reaches the host."""
    blue.niso("activate", *(echo(blue, name, network=on("backend")) for name in ("db", "web")))
    db, gateway = address(blue, "db"), "10.99.1.1"
    (bridge,) = blue.ip_json("link", "show", "niso-backend")
    (port,) = (link for link in blue.ip_json("link") if link["ifname"].startswith("nidb-"))
    derived = inspect(blue, "db")["endpoints"][0]["mac"]
    for chosen in (derived, bridge["address"], port["address"].upper()):
        said = refused(blue, *EVIL, f"backend,interface=net7,mac={chosen}")
        assert "are those of niso's bridges and services" in said, chosen
        assert "net7" not in blue.run("ip", "-br", "link", netns="blue").stdout
    assert blue.niso("net", "check").stdout.startswith("OK")
    # what nobody has is accepted, also as manufacturers have it, and its own derived one
    own = mac("evil", "backend", bridge["ifalias"].partition(":")[2])
    for chosen in ("00:16:3e:00:00:07", own):
        blue.niso(*EVIL, f"backend,interface=net7,mac={chosen}")
        (link,) = blue.ip_json("link", "show", "dev", "net7", netns="blue")
        assert link["address"] == chosen
        assert not reads(blue, db, "for db alone") and answer(blue, db, 80, "niso-web")
        blue.niso("net", "detach", "evil")
    # the host's end of a link that others put onto the bridge keeps its entry
    blue.run("ip", "link", "add", "tap0", "type", "veth", "peer", "name", "tap1")
    taken = f"{OWN[:-1]}7"
    blue.run(*f"ip link set tap0 address {taken} master niso-backend up".split())
    said = refused(blue, *EVIL, f"backend,interface=net7,mac={taken}")
    assert "it is the MAC address of the bridge or of the host's end of a port" in said
    assert "permanent" in blue.run("bridge", "fdb", "get", taken, "br", "niso-backend").stdout
    blue.run("ip", "link", "delete", "tap0")
    # what an earlier version did for an attachment with the bridge's MAC is seen and taken back
    blue.niso(*EVIL, f"backend,interface=net7,mac={OWN}")
    (evil,) = (link for link in blue.ip_json("link") if link["ifname"].startswith("nievil-"))
    for is_detached in (False, True):  # the entry is lost with the port that had it
        entry = ("bridge", "fdb", "replace", bridge["address"], "dev", evil["ifname"])
        blue.run(*entry, "master", "static")
        if is_detached:
            blue.niso("net", "detach", "evil")
        assert not pings(blue, gateway, "niso-web")
        named = blue.niso("net", "check", check=False).stdout
        assert "different: bridge niso-backend" in named and "its own MAC" in named
        blue.niso("net", "repair")
        assert pings(blue, gateway, "niso-web") and blue.niso("net", "check").stdout[:2] == "OK"


def test_mark_that_a_container_gives_itself_deletes_nothing(blue: Lab) -> None:
    """With NET_ADMIN a container gives its lo any alias. Its namespace and its record stay."""
    blue.niso("activate", idle(blue, "api", network=on("backend")))
    mark = blue.ip_json("link", "show", "niso-backend")[0]["ifalias"]
    # one on record, one that begins as niso's, and two that niso has never seen
    for name in ("niso-vm", "cni-1", "niso-stale"):
        blue.run("ip", "netns", "add", name)
    blue.niso("net", "attach", "box", "--netns", "/run/netns/blue", "--network", "backend")
    blue.niso("net", "attach", "pod", "--netns", "/run/netns/cni-1", "--network", "backend")
    blue.niso("net", "attach", "two", "--netns", "/run/netns/niso-vm", "--network", "backend")
    for name in ("blue", "cni-1", "niso-vm", "client"):
        blue.run("ip", "link", "set", "lo", "alias", mark, netns=name)
    assert blue.niso("net", "check").stdout.startswith("OK")
    blue.run("rm", "/run/netns/niso-two")  # even without the name by which niso knows it
    assert blue.niso("net", "check", check=False).stdout.count("\n") == 1
    blue.niso("net", "repair")
    spaces = {"blue", "cni-1", "niso-vm", "client", "niso-box", "niso-two"}
    assert spaces <= {path.name for path in blue.path("/run/netns").iterdir()}
    for name in ("box", "pod", "two"):
        assert ps(blue, name)["status"] == "attached"
        assert pings(blue, ps(blue, name)["address"][0], "niso-api")
    # what niso made and has no record of is still found
    blue.run("ip", "link", "set", "lo", "alias", mark, netns="niso-stale")
    named = blue.niso("net", "check", check=False).stdout
    assert named == "foreign: network namespace niso-stale\n"
    blue.run("rm", "/run/netns/niso-two")
    blue.niso("reset", "--yes")
    left = {path.name for path in blue.path("/run/netns").iterdir()}
    assert left & {*spaces, "niso-stale", "niso-api"} == {"blue", "cni-1", "niso-vm", "client"}
    for name in ("blue", "cni-1", "niso-vm", "client"):
        blue.run("ip", "-br", "link", netns=name)


def test_default_route_of_an_internal_network_gives_way(blue: Lab) -> None:
    blue.niso("net", "create", "closed", "--internal", "--subnet", "10.99.2.0/24")
    blue.niso(*ATTACH, "closed", "-p", "8080:80")

    def way() -> str:
        return blue.run("ip", "route", "get", CLIENT, netns="blue").stdout.split(" src")[0]

    assert blue.client(BUSYBOX, "nc", "-w1", HOST, "8080", input="").stdout == f"box {CLIENT}\n"
    assert way() == f"{CLIENT} via 10.99.2.1 dev eth1"
    # its engine adds a network that leads outside
    blue.run("ip", "-n", "blue", "route", "add", "default", "via", "172.31.0.1", "metric", "100")
    assert way() == f"{CLIENT} via 172.31.0.1 dev eth0"
    blue.niso("net", "check")
    blue.run("ip", "-n", "blue", "route", "delete", "default", "metric", "100")
    # the same route before all others
    default = ("default", "via", "10.99.2.1", "dev", "eth1", "onlink")
    blue.run("ip", "-n", "blue", "route", "delete", *default)
    blue.run("ip", "-n", "blue", "route", "add", *default)
    assert "different: route 0.0.0.0/0" in blue.niso("net", "check", check=False).stdout
    blue.niso("net", "repair")
    blue.niso("net", "check")
    # of niso's networks, whatever their order
    for first, second in (("closed", "backend"), ("backend", "closed")):
        blue.niso(*ATTACH, first, "--network", second, "-p", "8080:80")
        assert way().startswith(f"{CLIENT} via 10.99.1.1 dev ")
        assert blue.client(BUSYBOX, "nc", "-w1", HOST, "8080", input="").stdout == f"box {CLIENT}\n"
        blue.niso("net", "check")
