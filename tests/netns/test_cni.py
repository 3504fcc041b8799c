"""Run niso-cni as container runtimes do. `cni_driver` has what the specification demands of any plugin."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from cni_driver import CASES, List, Plugin, links, namespace
from conftest import TESTS, Lab
from containerd_world import IMAGE, SOCKET, Containerd, needs_containerd
from cri import Cri, Refused, framed
from deb_world import Packages
from samples import LONG
from services import BUSYBOX, CLIENT, HOST, answer, ask, echo, echo_in, idle, inspect, on, ps

NISO = f"{sys.prefix}/bin/niso-cni"
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CONFIG = {"name": "pods", "type": "niso-cni", "subnets": ["10.99.64.0/24"]}
BRIDGE = TESTS.parent / ".cache/bench/containernetworking-plugins/usr/lib/cni"
DEVIATES = {
    "version_tells_what_is_supported": "it answers with its newest version, not the requested one",
    "missing_variables_are_error_4": "its errors have no cniVersion",
    "missing_namespace_is_error_4": "its code is 999",
    "check_finds_a_lost_address": "its errors have no cniVersion",
}
"""What the bridge plugin 1.1.1 does not do as the specification says."""


@pytest.fixture
def niso(lab: Lab) -> Plugin:
    return Plugin(lab, NISO, CONFIG, VERSIONS)


def test_niso_is_a_plugin_by_the_specification(niso: Plugin) -> None:
    for case in CASES.values():
        case(niso)
    niso.lab.niso("net", "check")
    assert niso.lab.niso("ps").stdout.count("\n") == 1


@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
@pytest.mark.skipif(not BRIDGE.exists(), reason="./dev test unpacks Debian's plugins")
def test_the_driver_judges_debians_bridge_too(lab: Lab) -> None:
    """It meets the other demands, so these are not niso's alone."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]], "dataDir": "/tmp/ipam"}
    config = {"name": "br", "type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}
    bridge = Plugin(lab, str(BRIDGE / "bridge"), config, VERSIONS[:4])
    failed = []
    for name, case in CASES.items():
        try:
            case(bridge)
        except AssertionError:
            failed.append(name)
    assert failed == list(DEVIATES)


def others(lab: Lab, *configs: dict[str, Any]) -> list[Plugin]:
    """Plugins of Debian's package, in niso's list."""
    return [
        Plugin(lab, str(BRIDGE / config["type"]), {"name": "pods", **config}, VERSIONS[:4])
        for config in configs
    ]


@pytest.mark.skipif(not BRIDGE.exists(), reason="./dev test unpacks Debian's plugins")
def test_niso_is_one_of_several_plugins_of_a_list(niso: Plugin) -> None:
    lab = niso.lab
    limit = {"runtimeConfig": {"bandwidth": {"ingressRate": 8000000, "ingressBurst": 8000000}}}
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]], "dataDir": "/tmp/ipam"}
    loopback, tuning, bandwidth, sbr, bridge = others(
        lab,
        {"type": "loopback"},
        {"type": "tuning", "sysctl": {"net.ipv4.ip_default_ttl": "63"}},
        {"type": "bandwidth", **limit},
        {"type": "sbr"},
        {"type": "bridge", "bridge": "br0", "ipam": ipam},
    )
    with namespace(niso) as given, namespace(niso) as second:
        name, other = (each["NETNS"].rpartition("/")[2] for each in (given, second))
        chain = List(loopback, niso, tuning, bandwidth)
        result = chain.add(**given)
        ips = {ip["address"]: result["interfaces"][ip["interface"]] for ip in result["ips"]}
        assert {address: each["name"] for address, each in ips.items()} == {
            "127.0.0.1/8": "lo",
            "::1/128": "lo",
            "10.99.64.2/24": "eth0",
        }
        assert chain.check(**given) == []
        # in a list twice, it has made one interface
        twice = List(niso, niso)
        made_twice = twice.add(**second)
        assert [each["name"] for each in made_twice["interfaces"] if "sandbox" in each] == ["eth0"]
        assert len(made_twice["ips"]) == 1 and links(niso, second).keys() == {"eth0"}
        ping = lab.run("ping", "-c1", "-W2", "10.99.64.2", netns=other).stdout
        assert "ttl=63" in ping  # of tuning
        twice.delete(**second)
        lab.run("ip", "-n", name, "address", "delete", "10.99.64.2/24", "dev", "eth0")
        (lost,) = chain.check(**given)
        assert "10.99.64.2" in lost
        lab.niso("net", "repair")
        assert chain.check(**given) == []
        chain.delete(**given)
        assert not links(niso, given)
        # sbr moves the routes of the interface, so the plugin that made them finds them missing
        moved = List(niso, sbr)
        moved.add(**given)
        assert ["missing: route" in error for error in moved.check(**given)] == [True]
        moved.delete(**given)
        # an interface that another plugin has made is not niso's to take
        made = List(bridge).add(**given)
        refused = niso.call("ADD", extra={"prevResult": made}, **given)
        assert refused.error("1.0.0") == 7 and "another plugin" in refused.data["msg"]
        List(bridge).delete(**given)
    assert lab.niso("ps").stdout.count("\n") == 1
    lab.niso("net", "check")


@pytest.mark.skipif(not BRIDGE.exists(), reason="./dev test unpacks Debian's plugins")
def test_uninstall_leaves_other_plugins_their_networks(niso: Plugin) -> None:
    lab = niso.lab
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    with_niso = ("env", f"PATH={sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    packages = Packages(lab, "niso", "niso-cni", with_words=with_niso)
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]], "dataDir": "/tmp/ipam"}
    ipam["routes"] = [{"dst": "0.0.0.0/0"}]
    own = {"bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    (bridge,) = others(lab, {"type": "bridge", **own})

    def read(given: dict[str, str]) -> str:
        name = given["NETNS"].rpartition("/")[2]
        words = (BUSYBOX, "wget", "-qO-", "-T2", f"http://{CLIENT}")
        return lab.run(*words, netns=name, check=False).stdout.strip()

    file = "/etc/cni/net.d/10-niso.conflist"

    def configure() -> None:
        text = json.dumps({"name": "pods", "plugins": [CONFIG]})
        lab.run("sh", "-c", f"mkdir -p /etc/cni/net.d && cat > {file}", input=text)

    with namespace(niso) as given, namespace(niso) as second:
        niso.call("ADD", **given)  # before the other plugin, which finds forwarding switched on
        List(bridge).add(**second)
        assert read(given) == "outside"
        configure()
        packages.follow("cni")
        assert not links(niso, given) and lab.run("test", "-e", file, check=False).returncode
        niso.call("ADD", **given)
        configure()
        refused = packages.purge("niso-cni")
        assert f"in use: container {given['CONTAINERID'].replace('_', '-')}" in refused.stderr
        assert read(given) == "outside"
        done = packages.purge("niso-cni", answer=True)
        assert done.returncode == 0 and f"{file} names niso-cni" in done.stderr, done.stderr
        assert not links(niso, given)
        done = packages.purge("niso", answer=True)
        assert done.returncode == 0, done.stderr
        assert read(second) == "outside"
        List(bridge).delete(**second)
    assert "nothing of niso" in lab.niso("reset", "--yes").stdout


@pytest.mark.skipif(not BRIDGE.exists(), reason="./dev test unpacks Debian's plugins")
def test_check_passes_after_portmap(lab: Lab) -> None:
    """Its sysctl on niso's bridge is a difference of the host, and none of the container."""
    niso = Plugin(lab, NISO, CONFIG, VERSIONS)
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]], "dataDir": "/tmp/ipam"}
    portmap, bridge = others(
        lab,
        {"type": "portmap", **capabilities(portMappings=[port])},
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam},
    )
    with namespace(bridge) as given:
        chain = List(bridge, portmap)
        chain.add(**given)
        own = chain.check(**given)  # of portmap 1.1.1 alone, which asks for ip6tables' rules too
        chain.delete(**given)
    with namespace(niso) as given:
        name = given["NETNS"].rpartition("/")[2]
        chain = List(niso, portmap)
        chain.add(**given)
        errors = chain.check(**given)
        assert len(errors) == len(own) and not any("niso:" in error for error in errors), errors
        assert "route_localnet" in lab.niso("net", "check", check=False).stdout
        echo_in(lab, name, "pod")
        words = (BUSYBOX, "nc", "-w1", HOST, "8080")
        lab.wait_for(
            lambda: lab.client(*words, input="", check=False).stdout == f"pod {CLIENT}\n",
            10,
            "portmap's port",
        )
        lab.run("ip", "-n", name, "route", "delete", "default")
        lost = chain.check(**given)[0]
        assert "missing: route" in lost
        chain.delete(**given)


def capabilities(**keys: Any) -> dict[str, Any]:
    return {"runtimeConfig": keys}


def pod(name: str, space: str = "shop") -> str:
    return f"IgnoreUnknown=1;K8S_POD_NAMESPACE={space};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=x"


def test_pod_as_containerd_passes_it(niso: Plugin) -> None:
    lab = niso.lab
    mappings = [
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""},
        {"HostPort": 0, "ContainerPort": 81, "Protocol": "tcp"},
    ]
    notes = {
        "niso.io/allow-from": "api 192.0.2.2",
        "niso.io/aliases": "web",
        "other/x": '{"a\\n": 1}',
    }
    extra = {"annotations": ["aliases"]} | capabilities(
        portMappings=mappings,
        mac="02:00:00:00:00:09",
        **{"io.kubernetes.cri.pod-annotations": notes},
    )
    with namespace(niso) as given, namespace(niso) as second:
        given["ARGS"], second["ARGS"] = pod("web-0"), pod("web-1")
        first = niso.call("ADD", "1.1.0", extra=extra, **given)
        assert first.status == 0, first.out
        assert links(niso, given)["eth0"]["address"] == "02:00:00:00:00:09"
        # an alias may be that of several
        aliases = {"io.kubernetes.cri.pod-annotations": {"niso.io/aliases": "web"}}
        same = {"annotations": ["aliases"]} | capabilities(**aliases)
        assert niso.call("ADD", "1.1.0", extra=same, **second).status == 0
        address = first.data["ips"][0]["address"].partition("/")[0]
        assert inspect(lab, "web-0-shop")["names"] == ["web-0-shop", "web"]
        echo_in(lab, given["NETNS"].rpartition("/")[2], "pod")
        lab.niso(
            "activate", echo(lab, "api", network=on("pods")), idle(lab, "bad", network=on("pods"))
        )
        assert answer(lab, address, 80, "niso-api").startswith("pod ")
        assert ask(lab, address, 80, "niso-bad") == ""
        assert lab.client(BUSYBOX, "nc", "-w1", HOST, "8080", input="").stdout == f"pod {CLIENT}\n"
        # a second network is another interface of the same attachment
        other = {"network": "front", "subnets": ["10.99.65.0/24"]}
        two = niso.call("ADD", "1.1.0", extra=other, **{**given, "IFNAME": "net1"})
        assert two.status == 0 and two.data["ips"][0]["address"].startswith("10.99.65.")
        assert links(niso, given).keys() == {"eth0", "net1"}
        assert niso.call("DEL", "1.1.0", extra=other, **{**given, "IFNAME": "net1"}).status == 0
        assert links(niso, given).keys() == {"eth0"}
        assert answer(lab, address, 80, "niso-api").startswith("pod ")
        # two DELs at once, one of them without a namespace
        words = ("env", "-i", "CNI_COMMAND=DEL", f"CNI_CONTAINERID={given['CONTAINERID']}")
        spaces = [f"CNI_NETNS={netns}" for netns in (given["NETNS"], "")]
        both = [lab.popen(*words, "CNI_IFNAME=eth0", each, NISO, stdin=-1) for each in spaces]
        config = json.dumps({"cniVersion": "1.1.0", **CONFIG})
        for each in both:
            out, err = each.communicate(input=config, timeout=20)
            assert (each.returncode, out) == (0, ""), (out, err)
        assert not links(niso, given)
        # the same pod has its address again in another sandbox
        with namespace(niso) as new:
            new["ARGS"] = pod("web-0")
            back = niso.call("ADD", "1.1.0", extra=extra, **new)
            assert back.data["ips"][0]["address"].partition("/")[0] == address
            assert niso.call("DEL", "1.1.0", **{**new, "NETNS": ""}).status == 0
        # what the runtime does not know any longer
        valid = {"containerID": second["CONTAINERID"], "ifname": "eth0"}
        kept = {"cni.dev/valid-attachments": [valid]}
        assert niso.call("GC", "1.1.0", extra=kept).status == 0
        assert ps(lab, "web-1-shop")["status"] == "attached"
        assert niso.call("GC", "1.1.0", extra={"cni.dev/valid-attachments": []}).status == 0
        assert "web-1" not in lab.niso("ps").stdout
        assert niso.call("STATUS", "1.1.0").status == 0
    lab.niso("net", "check")


@needs_containerd
def test_containerd_runs_containers_on_it(lab: Lab) -> None:
    plugins = [{"type": "niso-cni", "subnets": ["10.99.64.0/24"]}]
    containerd = Containerd(lab, {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
    containerd.run("c1", "httpd", "-f", "-p", "80")
    containerd.run("c2", "sleep", "1000")
    assert ps(lab, "default-c1")["address"][0] == "10.99.64.2"
    assert ": ok (" in lab.niso("net", "ping", "default-c2", "default-c1").stdout
    lab.niso("activate", idle(lab, "api", network=on("pods")))
    page = (BUSYBOX, "wget", "-q", "-T", "1", "-O", "-", "http://10.99.64.2/bin/busybox")
    assert lab.run(*page, netns="niso-api", text=False).stdout.startswith(b"\x7fELF")
    lab.niso("net", "check")
    containerd.remove("c1")
    assert [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)] == [
        "api",
        "default-c2",
    ]
    # the same container again has its address again
    containerd.run("c1", "sleep", "1000")
    assert ps(lab, "default-c1")["address"][0] == "10.99.64.2"
    containerd.remove("c1")
    containerd.remove("c2")
    lab.niso("net", "check")


@needs_containerd
def test_pods_of_containerds_cri_as_the_kubelet_runs_them(lab: Lab) -> None:
    able = {"portMappings": True, "io.kubernetes.cri.pod-annotations": True}
    plugin = {"type": "niso-cni", "subnets": ["10.99.64.0/24"], "capabilities": able}
    Containerd(lab, {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}, cri=True)
    cri = Cri(lab, SOCKET)
    api, bad = cri.run("api")[0], cri.run("bad", "evil")[0]
    ways = {name: f"niso-{name}" for name in ("api-shop", "bad-evil")}

    def page(source: str, address: str) -> bool:
        url = f"http://{address}/bin/busybox"
        words = (BUSYBOX, "wget", "-q", "-T", "1", "-O", "/dev/null", url)
        return lab.run(*words, netns=source, check=False).returncode == 0

    serve = ("/bin/busybox", "httpd", "-f", "-p", "80")
    # the neighbour's attack succeeds without a policy
    open_, config = cri.run("open")
    cri.start(open_, config, IMAGE, *serve)
    lab.wait_for(lambda: page(ways["bad-evil"], cri.address(open_)), 10, "the server")
    notes = {"niso.io/allow-from": "api-shop 192.0.2.2", "other/note": '{"a\\n": 1}'}
    web, config = cri.run("web", ports=[(8080, 80)], annotations=notes)
    cri.start(web, config, IMAGE, *serve)
    address = cri.address(web)
    lab.wait_for(lambda: page(ways["api-shop"], address), 10, "the server")
    assert not page(ways["bad-evil"], address)
    assert page("client", f"{HOST}:8080") and not page("neighbour", f"{HOST}:8080")
    assert ps(lab, "web-shop")["ports"][0]["host_port"] == 8080
    lab.niso("net", "check")
    # the same pod in a new sandbox has its address again; a wrong annotation starts nothing
    cri.call("StopPodSandbox", {1: web})
    cri.call("RemovePodSandbox", {1: web})
    web, config = cri.run("web", ports=[(8080, 80)], annotations=notes)
    assert cri.address(web) == address
    with pytest.raises(Refused, match="allow-form is unknown"):
        cri.run("typo", annotations={"niso.io/allow-form": "api"})
    # two stops at the same moment, and a removal
    both = [lab.popen(*cri.words("StopPodSandbox"), stdin=-1, stdout=-1, stderr=-1) for _ in "ab"]
    for each in both:
        assert each.stdin
        each.stdin.write(framed({1: web}))
        each.stdin.close()
    assert [each.wait(30) for each in both] == [0, 0]
    for sandbox in (web, api, bad, open_):
        cri.end(sandbox)
    assert json.loads(lab.niso("ps", "--json").stdout) == []
    lab.niso("net", "check")


def test_many_containers_come_and_go_at_once(niso: Plugin) -> None:
    """Beside a service that is activated meanwhile, and with a DEL while the ADD of the same container runs."""
    lab, many = niso.lab, range(6)
    text = json.dumps({"cniVersion": "1.0.0", **CONFIG})
    lab.write("/tmp/conf", text)
    lab.run("sh", "-ec", f"for i in $(seq 0 {len(many)}); do ip netns add r$i; done")

    def script(*commands: str) -> str:
        calls = [
            f"CNI_COMMAND={command} CNI_CONTAINERID=r$i CNI_NETNS=/run/netns/r$i CNI_IFNAME=eth0"
            f" {NISO} < /tmp/conf > /tmp/{command}$i & "
            for command in commands
        ]
        return f"for i in $(seq 0 {len(many) - 1}); do {''.join(calls)} done; wait"

    at_once = lab.popen("niso", "activate", idle(lab, "api"))
    lab.run("sh", "-c", script("ADD"))
    assert at_once.wait(60) == 0
    answers = [json.loads(lab.path(f"/tmp/ADD{i}").read_text()) for i in many]
    assert len({answer["ips"][0]["address"] for answer in answers}) == len(many), answers
    lab.niso("net", "check")
    lab.run("sh", "-c", script("DEL", "DEL"))
    assert all(lab.path(f"/tmp/DEL{i}").read_text() == "" for i in many)
    assert lab.niso("ps").stdout.count("\n") == 2
    # whichever is first, nothing is half done
    lab.run("sh", "-c", script("ADD", "DEL"))
    lab.niso("net", "check")
    kept = {"cni.dev/valid-attachments": []}
    assert niso.call("GC", "1.1.0", extra=kept).status == 0
    assert lab.niso("ps").stdout.count("\n") == 2
    links = lab.run("ip", "-o", "link").stdout
    assert "nir" not in links, links
    lab.niso("net", "check")
