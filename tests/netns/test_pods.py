"""Attach pods with the network policies of Kubernetes: niso-cni, `niso kubernetes`, and an API server that is not one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cni_driver import Answer, Plugin, links
from conftest import TESTS, Lab
from services import ps

NISO = f"{sys.prefix}/bin/niso-cni"
CONFIG = {
    "name": "pods",
    "type": "niso-cni",
    "subnets": ["10.99.64.0/24"],
    "kubernetes": {"wait_policy_s": 10},
}
API = "http://127.0.0.1:7443"
SERVE = """\
import socket
server = socket.create_server(("", 80), backlog=64)
while True:
    connection, peer = server.accept()
    connection.sendall(b"pod")
    connection.close()
"""
PROBE = """\
import socket, sys, time
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        socket.create_connection((sys.argv[1], 80), 0.1).close()
    except OSError:
        time.sleep(0.002)
        continue
    print("open")
    break
"""
"""Says that an address was reached, at any time."""
DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
AGAIN, EXISTS = 11, 102


class Cluster:
    """A lab with an API server. Pods are namespaces in which the plugin is called as containerd calls it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.plugin = Plugin(lab, NISO, CONFIG, ("1.1.0",))
        lab.popen("/usr/bin/python3", str(TESTS / "fake_api_server.py"), API.rpartition(":")[2])
        lab.wait_for(lambda: lab.run("curl", "-s", f"{API}/api/v1/pods", check=False).stdout, 10)
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k"}}],
            "clusters": [{"name": "k", "cluster": {"server": API}}],
        }
        lab.write("/tmp/kubeconfig", json.dumps(config))
        for space in ("shop", "evil"):
            self.put(f"/api/v1/namespaces/{space}", {"metadata": {"labels": {"name": space}}})
        self.agents: list[subprocess.Popen[Any]] = []

    def put(self, path: str, data: dict[str, Any]) -> None:
        self.lab.run("curl", "-sf", "-X", "PUT", "-d", "@-", API + path, input=json.dumps(data))

    def delete(self, path: str) -> None:
        self.lab.run("curl", "-sf", "-X", "DELETE", API + path)

    def policy(self, name: str, spec: dict[str, Any], space: str = "shop") -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{space}/networkpolicies/{name}"
        self.put(path, {"spec": spec})

    def agent(self) -> subprocess.Popen[Any]:
        """Start the agent, and wait until it listens."""
        agent = self.lab.popen(
            "niso", "kubernetes", "run", "--kubeconfig", "/tmp/kubeconfig", stdout=subprocess.PIPE
        )
        self.lab.wait_for(lambda: self.plugin.call("STATUS", "1.1.0").status == 0, 20, "the agent")
        return agent

    def create(self, name: str, space: str = "shop", **labels: str) -> dict[str, str]:
        """Create a pod's object and its sandbox; return the variables of its calls."""
        uid = f"uid-{name}"
        path = f"/api/v1/namespaces/{space}/pods/{name}"
        spec = {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]}
        self.put(path, {"metadata": {"uid": uid, "labels": labels}, "spec": spec})
        self.lab.run("ip", "netns", "add", name, check=False)
        args = f"K8S_POD_NAMESPACE={space};K8S_POD_NAME={name};K8S_POD_UID={uid};IgnoreUnknown=1"
        return {
            "CONTAINERID": f"sandbox-{name}",
            "NETNS": f"/run/netns/{name}",
            "IFNAME": "eth0",
            "ARGS": args,
        }

    def add(self, given: dict[str, str], **more: Any) -> Answer:
        return self.plugin.call("ADD", "1.1.0", **given, **more)

    def start_add(self, given: dict[str, str], wait_s: float) -> Any:
        """Call ADD, which waits for the policy for so long."""
        text = json.dumps(
            {"cniVersion": "1.1.0", **CONFIG, "kubernetes": {"wait_policy_s": wait_s}}
        )
        env = {f"CNI_{key}": value for key, value in {**given, "COMMAND": "ADD"}.items()}
        add = self.lab.popen("niso-cni", env=env, stdin=-1, stdout=-1, inside=True)
        assert add.stdin
        add.stdin.write(text.encode())
        add.stdin.close()
        return add

    def ended(self, add: Any) -> Answer:
        return Answer(add.wait(20), add.stdout.read().decode(), "")

    def start(self, name: str, space: str = "shop", **labels: str) -> str:
        """Start a pod that serves port 80; return its address."""
        done = self.add(self.create(name, space, **labels))
        assert done.status == 0, done.out
        self.lab.popen("/usr/bin/python3", "-ISuc", SERVE, netns=name)
        address = str(done.data["ips"][0]["address"].partition("/")[0])
        self.lab.wait_for(lambda: self.reaches(None, address), 10, f"{name} to serve")
        return address

    def reaches(self, source: str | None, address: str) -> bool:
        """Whether a pod, or the node, gets an answer from port 80 of an address."""
        words = ("/usr/bin/nc", "-d", "-w1", address, "80")
        return self.lab.run(*words, netns=source, check=False).stdout == "pod"


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Cluster]:
    yield Cluster(lab)


@pytest.mark.first
def test_pods_have_the_policies_of_their_cluster(cluster: Cluster) -> None:
    lab = cluster.lab
    # without an agent no pod starts
    web = cluster.create("web", app="web")
    assert cluster.add(web).error("1.1.0") == AGAIN and not links(cluster.plugin, web)
    assert cluster.plugin.call("STATUS", "1.1.0").error("1.1.0") == 50
    assert cluster.add({**web, "ARGS": "K8S_POD_NAME=web;IgnoreUnknown=1"}).error("1.1.0") == 4
    for wrong in ({"wait_policy_s": 0}, {"wait_policy_s": "1"}, {"wait": 1}):
        assert cluster.add(web, extra={"kubernetes": wrong}).error("1.1.0") == 7
    agent = cluster.agent()
    address = cluster.start("web", app="web")
    cluster.start("api", app="api")
    cluster.start("bad", "evil", app="api")
    # the attack succeeds without a policy
    assert cluster.reaches("bad", address) and cluster.reaches("api", address)
    peers = [{"podSelector": {"matchLabels": {"app": "api"}}}]
    rule = {"from": peers, "ports": [{"port": "web"}]}
    cluster.policy("web", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]})
    lab.wait_for(lambda: not cluster.reaches("bad", address), 10, "the policy")
    assert cluster.reaches("api", address) and cluster.reaches(None, address)
    said = lab.niso("net", "explain", "bad-evil", "web-shop:80", check=False).stdout
    assert "not listed in network.policy.allow_from of web-shop" in said, said
    assert "web: api-shop:80/tcp" in lab.niso("net", "explain", "api-shop", "web-shop:80").stdout
    # kube-proxy leads a Service to a pod, also from the pod itself
    nat = ("iptables", "-t", "nat")
    to = ("-d", "10.96.0.1", "-p", "tcp", "-j", "DNAT", "--to-destination", f"{address}:80")
    lab.run(*nat, "-A", "PREROUTING", *to)
    led = [cluster.reaches(pod, "10.96.0.1") for pod in ("web", "api", "bad")]
    assert led == [True, True, False]
    lab.run(*nat, "-D", "PREROUTING", *to)
    # a policy of a namespace by its labels, and one of blocks
    peers.append({"namespaceSelector": {"matchLabels": {"name": "evil"}}})
    cluster.policy("web", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]})
    lab.wait_for(lambda: cluster.reaches("bad", address), 10, "the wider policy")
    # labels are followed
    cluster.create("web", app="other")
    cluster.policy("all", DENY)
    lab.wait_for(lambda: not cluster.reaches("api", address), 10, "the closed namespace")
    # a new pod is closed before it starts, and cannot take the name of another one
    for number in range(3):
        done = cluster.add(cluster.create(f"late{number}"))
        assert done.status == 0, done.out
        to = ps(lab, "bad-evil")["address"][0]
        assert not cluster.reaches(f"late{number}", to), number
    # while it waits for its policy, too
    lost = cluster.create("lost")
    cluster.delete("/api/v1/namespaces/shop/pods/lost")
    waits = cluster.start_add(lost, 3)
    lab.wait_for(lambda: links(cluster.plugin, lost).get("eth0", {}).get("addr_info"), 10, "link")
    assert not cluster.reaches("lost", to)
    assert cluster.ended(waits).error("1.1.0") == AGAIN and not links(cluster.plugin, lost)
    note = {"io.kubernetes.cri.pod-annotations": {"niso.io/aliases": "api-shop"}}
    taker = cluster.create("taker", "evil")
    refused = cluster.add(taker, extra={"runtimeConfig": note, "annotations": ["aliases"]})
    assert refused.error("1.1.0") == 7 and not links(cluster.plugin, taker)
    # killed, everything stays as it is; new pods wait
    agent.send_signal(signal.SIGKILL)
    agent.wait(10)
    cluster.delete("/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/all")
    new = cluster.create("new", app="web")
    assert cluster.add(new).error("1.1.0") == AGAIN and not links(cluster.plugin, new)
    assert not cluster.reaches("api", address)
    assert cluster.add(web).error("1.1.0") == EXISTS
    assert not cluster.reaches("api", address)
    agent = cluster.agent()
    lab.wait_for(lambda: cluster.reaches("api", address), 10, "what changed meanwhile")
    done = cluster.add(new)
    assert done.status == 0, done.out
    assert cluster.plugin.call("DEL", "1.1.0", **new).status == 0
    lab.niso("net", "check")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 0


@pytest.mark.first
def test_agent_is_killed_at_any_moment(cluster: Cluster) -> None:
    lab = cluster.lab
    agent = cluster.agent()
    cluster.policy("all", DENY)
    cluster.start("bad", "evil")
    target = ps(lab, "bad-evil")["address"][0]
    probes = []
    for number in range(6):
        given = cluster.create(f"p{number}")
        words = ("/usr/bin/python3", "-ISuc", PROBE, target)
        probes.append(lab.popen(*words, netns=f"p{number}", stdout=subprocess.PIPE))
        add = cluster.start_add(given, 1)
        time.sleep(0.03 * (number + 1))
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
        answer = cluster.ended(add)
        assert answer.status == 0 or answer.error("1.1.0") == AGAIN, answer.out
        assert (answer.status == 0) == bool(links(cluster.plugin, given))
        agent = cluster.agent()
        if answer.status != 0:  # an ADD after one that was complete is an error
            again = cluster.add(given)
            assert again.status == 0, again.out
    lab.niso("net", "check")
    # none was open for a moment, and now they can be
    assert [probe.poll() for probe in probes] == [None] * 6
    cluster.delete("/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/all")
    assert [probe.communicate(timeout=20)[0].strip() for probe in probes] == ["open"] * 6
