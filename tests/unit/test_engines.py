"""Test the plugins of engines on a kernel in memory: the forms of their calls, and calls in no form."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_world import World
from samples import samples

from niso.change import attach
from niso.change.attach import Request
from niso.engines import cni, netavark, plugin, pod_agent
from niso.plan.records import Policy
from niso.runtime.machine import Machine

NETNS = "/run/netns/netns-1"
NETWORK = {
    "name": "backend",
    "id": "2f3a",
    "driver": "niso",
    "created": "0001-01-01T00:00:00Z",
    "network_interface": "",
    "subnets": None,
    "ipv6_enabled": False,
    "internal": False,
    "dns_enabled": True,
    "network_dns_servers": None,
    "routes": None,
    "labels": {"team": "a"},
    "options": None,
    "ipam_options": None,
}
SETUP = {
    "container_id": "b186d057f65e",
    "container_name": "c_web_1",
    "port_mappings": [
        {
            "container_port": 9000,
            "host_ip": "127.0.0.1",
            "host_port": 9000,
            "protocol": "udp",
            "range": 3,
        }
    ],
    "network": NETWORK,
    "network_options": {
        "aliases": ["web", "b186d057f65e", "c_web_1"],
        "interface_name": "net7",
        "static_ips": None,
        "static_mac": "aa:00:00:00:00:01",
        "options": {"allow_from": "10.0.0.0/8:80 api"},
    },
}
CONFIG = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "niso-cni",
    "subnets": ["10.99.64.0/24"],
    "policy": {"egress_deny": ["10.1.0.0/16"]},
    "annotations": ["aliases"],
    "runtimeConfig": {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        "mac": "02:00:00:00:00:01",
        "ips": ["10.99.64.9/24"],
        "io.kubernetes.cri.pod-annotations": {
            "niso.io/allow-from": "api",
            "niso.io/aliases": "www",
        },
    },
}

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(plugin, "machine", lambda: world.machine)
    world.kernel.begin_engine(NETNS)
    return world


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a plugin with words or variables and a JSON value; return its status and answer."""

    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    def call(main: Callable[[], None], given: object, *words: str, **env: str) -> tuple[int, Any]:
        text = given if isinstance(given, str) else json.dumps(given)
        out = io.StringIO()
        monkeypatch.setattr(os, "_exit", end)
        monkeypatch.setattr(sys, "argv", ["niso", *words])
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogatepass")))
        )
        monkeypatch.setattr(sys, "stdout", out)
        for name in ("COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS"):
            monkeypatch.delenv(f"CNI_{name}", raising=False)
        for name, value in env.items():
            monkeypatch.setenv(f"CNI_{name}", value)
        with pytest.raises(Ended) as ended:
            main()
        answer = out.getvalue()
        return ended.value.args[0], json.loads(answer) if answer else None

    return call


POD = {"CONTAINERID": "c1", "NETNS": NETNS, "IFNAME": "eth0"}


def test_network_that_niso_calls_by_another_name(world: World, run: Run) -> None:
    for name, known in (("shop_back", "shop-back-"), ("Shop", "shop-"), ("shop-back", "shop-back")):
        named = {key: value for key, value in NETWORK.items() if key != "subnets"} | {"name": name}
        status, made = run(netavark.main, named, "create")
        assert status == 0 and made["name"] == name
        setup = SETUP | {"network": made, "container_id": name, "container_name": name}
        assert run(netavark.main, setup, "setup", NETNS)[0] == 0
        (attached,) = world.store.attachments.all("podman", name)
        (link,) = world.store.attachments.links(attached.service)
        assert link.network.startswith(known)
        assert run(netavark.main, setup, "teardown", NETNS) == (0, None)
        assert world.store.attachments.all("podman", name) == []
    for name in ("none", "default", ""):
        named = NETWORK | {"name": name}
        assert run(netavark.main, named, "create")[0] == 1
        setup = SETUP | {"network": named}
        assert run(netavark.main, setup, "teardown", NETNS) == (0, None)


def test_podman_creates_sets_up_and_tears_down(world: World, run: Run) -> None:
    status, made = run(netavark.main, NETWORK, "create")
    assert status == 0
    assert made["subnets"] == [{"subnet": "10.99.1.0/24", "gateway": "10.99.1.1"}]
    assert (made["network_interface"], made["ipam_options"]) == ("niso-backend", {"driver": "none"})
    assert made["dns_enabled"] is False and made["labels"] == {"team": "a"}
    setup = SETUP | {"network": made}
    status, answer = run(netavark.main, setup, "setup", NETNS)
    assert (status, answer) == (
        0,
        {
            "dns_search_domains": [],
            "dns_server_ips": [],
            "interfaces": {
                "net7": {
                    "mac_address": "aa:00:00:00:00:01",
                    "subnets": [{"ipnet": "10.99.1.2/24", "gateway": "10.99.1.1"}],
                }
            },
        },
    )
    (attached,) = world.store.attachments.all("podman", "b186d057f65e")
    assert (attached.service, attached.given) == ("c-web-1", "c_web_1")
    assert world.store.names(attached.service) == (attached.service, "web", "b186d057f65e")
    assert world.ports(attached.service) == ["127.0.0.1:9000-9002:9000-9002/udp"]
    assert run(netavark.main, setup, "setup", NETNS) == (0, answer)
    world.assert_whole()
    for _ in range(2):
        assert run(netavark.main, setup, "teardown", NETNS) == (0, None)
    assert world.store.services() == []
    world.assert_whole()


def test_engines_choose_no_mac_of_others(world: World, run: Run) -> None:
    """By ``--mac-address`` of Podman, and by CNI_ARGS and runtimeConfig of container runtimes."""
    made = run(netavark.main, NETWORK, "create")[1]
    setup = SETUP | {"network": made}
    assert run(netavark.main, setup, "setup", NETNS)[0] == 0
    world.kernel.begin_engine("/n/2")
    theirs = {
        "aa:00:00:00:00:01": "already has the MAC address",
        world.store.derived_mac("db", "backend"): "are those of niso's",
        world.kernel.bridges["niso-backend"].mac: "are those of niso's",
        "ff:ff:ff:ff:ff:ff": "not a MAC address of one station",
    }
    before = world.picture()
    for mac, why in theirs.items():
        chosen = {"static_mac": mac, "aliases": [], "interface_name": "eth0"}
        second = setup | {"container_id": "b2", "network_options": chosen, "port_mappings": None}
        status, answer = run(netavark.main, second, "setup", "/n/2")
        assert status == 1 and why in answer["error"], answer
        ways: list[tuple[dict[str, Any], str]] = [
            ({"runtimeConfig": {"mac": mac}}, ""),
            ({}, f"IgnoreUnknown=1;MAC={mac}"),
        ]
        for extra, arguments in ways:
            config = {"cniVersion": "1.0.0", "network": "backend", "type": "niso-cni", "name": "b"}
            pod = POD | {"NETNS": "/n/2", "CONTAINERID": "c2", "ARGS": arguments}
            status, answer = run(cni.main, config | extra, COMMAND="ADD", **pod)
            assert status == 1 and why in answer["msg"], answer
        assert world.picture() == before
    world.assert_whole()


def test_cni_adds_and_deletes(world: World, run: Run) -> None:
    status, answer = run(cni.main, CONFIG, COMMAND="ADD", **POD)
    assert status == 0, answer
    assert answer["ips"] == [{"address": "10.99.64.9/24", "gateway": "10.99.64.1", "interface": 2}]
    assert answer["interfaces"][2] == {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS}
    assert answer["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.99.64.1"}]
    status, again = run(cni.main, CONFIG, COMMAND="ADD", **POD)
    assert (status, again["code"]) == (1, 102)
    policy = world.store.policy("c1")
    assert policy is not None and [e.key for e in policy.entries()] == [
        "niso.io/allow_from[0]",
        "policy.egress_deny[0]",
    ]
    world.assert_whole()
    assert run(cni.main, CONFIG, COMMAND="DEL", **(POD | {"NETNS": ""})) == (0, None)
    assert world.store.services() == []
    world.assert_whole()


def broken(value: Any) -> Iterator[Any]:
    """Copies of a JSON value, in each of which one part is of a wrong kind or hostile."""
    for hostile in (
        None,
        7,
        "x",
        [],
        {},
        ["x"],
        {"x": "y"},
        "../../etc",
        "\u0000",
        -1,
        1 << 70,
        1e999,
        1e308,
        "\ud800",
    ):
        if type(hostile) is not type(value) or hostile not in (value, None):
            yield hostile
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        for other in broken(part):
            whole = copy.copy(value)
            whole[key] = other
            yield whole


@pytest.mark.parametrize("command", ["create", "setup", "ADD"])
def test_calls_in_no_form_are_answered_and_leave_nothing_half_done(
    world: World, run: Run, command: str
) -> None:
    given = {"create": NETWORK, "setup": SETUP, "ADD": CONFIG}[command]
    calls = list(broken(given))
    for each in random.Random(7).sample(calls, min(samples(100, len(calls)), len(calls))):
        if command == "ADD":
            status, answer = run(cni.main, each, COMMAND="ADD", **POD)
            assert status == 0 or (answer["code"] > 0 and answer["msg"]), each
        else:
            words = [command] if command == "create" else [command, NETNS]
            status, answer = run(netavark.main, each, *words)
            assert status == 0 or answer["error"].startswith("niso: "), each
        for attached in world.store.attachments.all():
            plugin.take_off(world.machine, attached, lambda link: True)
    world.assert_whole()
    for text in ("", "{", "\u0000", "[" * 100_000, "[]"):
        assert run(netavark.main, text, "setup", NETNS)[0] == 1
        assert run(cni.main, text, COMMAND="ADD", **POD)[0] == 1


@pytest.mark.parametrize(
    "text",
    ["web", "c_web_1", "Web", "1a", "", "host", "ip6-x", "x" * 100, "a.b", "ä", "-", "\udc80"],
)
def test_names_of_engines_become_names_of_services(text: str) -> None:
    from niso.manifest.values import service_name

    name = plugin.label(text)
    assert service_name(name, "") == name
    assert (name == text) == (text == "web")
    assert name != plugin.label(f"{text}_")
    similar = plugin.label(text, similar=True)
    assert service_name(similar, "") == similar
    plain = {"web": "web", "c_web_1": "c-web-1", "Web": "web", "a.b": "a-b"}
    assert similar == plain.get(text, name)


def test_second_network_of_a_pod_leaves_its_network_policy_and_limits(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration without the key ``kubernetes``, as another one of a list of networks."""

    def stand(machine: Machine, _: object, service: str) -> None:
        now = attach.current(machine.store, service)
        assert now is not None
        attach.attach(machine, pod_agent.applied(now, pod_agent.CLOSED))

    monkeypatch.setattr(pod_agent, "agent_runs", lambda: True)
    monkeypatch.setattr(cni, "wait", stand)
    first = {"cniVersion": "1.0.0", "name": "pods", "type": "niso-cni"}
    second = first | {"name": "second"}
    first |= {"kubernetes": {}, "runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000}}}
    pod = POD | {"ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u"}
    assert run(cni.main, first, COMMAND="ADD", **pod)[0] == 0
    before = attach.current(world.store, "web-shop")
    assert run(cni.main, second, COMMAND="ADD", **(pod | {"IFNAME": "net1"}))[0] == 0
    now = attach.current(world.store, "web-shop")
    assert before is not None and now is not None and len(now.networks) == 2
    assert now.policy == before.policy == pod_agent.CLOSED
    assert now.labels == before.labels and now.bandwidth == before.bandwidth != ()


def test_policy_that_the_agent_narrows_meanwhile_stays(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADD and DEL of another network repeat the policy that they have read."""
    real = attach.attach

    def say(policy: Policy) -> None:
        now = attach.current(world.store, "web-shop")
        assert now is not None
        real(world.machine, pod_agent.applied(now, policy))

    def meanwhile(machine: Machine, request: Request, **more: Any) -> object:
        monkeypatch.setattr(attach, "attach", real)
        say(pod_agent.CLOSED)
        return real(machine, request, **more)

    monkeypatch.setattr(pod_agent, "agent_runs", lambda: True)
    monkeypatch.setattr(cni, "wait", lambda *_: say(Policy()))
    second = {"cniVersion": "1.0.0", "name": "second", "type": "niso-cni"}
    pod = POD | {"ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u"}
    first = second | {"name": "pods", "kubernetes": {}}
    assert run(cni.main, first, COMMAND="ADD", **pod)[0] == 0
    pod["IFNAME"] = "net1"
    for command in ("ADD", "DEL"):
        monkeypatch.setattr(attach, "attach", meanwhile)
        status, answer = run(cni.main, second, COMMAND=command, **pod)
        assert status == 1 and "meanwhile" in answer["msg"], command
        now = attach.current(world.store, "web-shop")
        assert now is not None and now.policy == pod_agent.CLOSED
        say(Policy())
        assert run(cni.main, second, COMMAND=command, **pod)[0] == 0
    world.assert_whole()


@pytest.mark.parametrize(
    "given",
    [
        {
            "io.kubernetes.cri.pod-annotations": {
                "niso.io/allow-from": "",
                "niso.io/allow_from": "a",
            }
        },
        {
            "io.kubernetes.cri.pod-annotations": {
                "niso.io/allow-from": "",
                "niso.io/Allow-From": "a",
            }
        },
        {"ips": ["10.99.64.9"], "IPs": ["10.99.64.8"]},
        "NISO_ALLOW_FROM=;NISO_allow_from=a",
        "NISO_ALLOW_FROM=;NISO_ALLOW_FROM=a",
    ],
)
def test_policy_in_two_spellings_is_refused(world: World, run: Run, given: Any) -> None:
    """One of both would be left out."""
    args = {"ARGS": given} if isinstance(given, str) else {}
    config = CONFIG | {"runtimeConfig": {} if args else given}
    status, answer = run(cni.main, config, COMMAND="ADD", **POD, **args)
    assert status == 1 and "is given twice" in answer["msg"]
    assert world.store.services() == []


def noted(**notes: str) -> dict[str, Any]:
    """The configuration of a pod with these annotations."""
    runtime = {"io.kubernetes.cri.pod-annotations": {f"niso.io/{k}": v for k, v in notes.items()}}
    return CONFIG | {"annotations": ["aliases", "ip"], "policy": {}, "runtimeConfig": runtime}


def of_pod(name: str, space: str = "shop") -> dict[str, str]:
    return POD | {
        "CONTAINERID": name,
        "NETNS": f"/n/{name}",
        "ARGS": f"K8S_POD_NAMESPACE={space};K8S_POD_NAME={name};K8S_POD_UID={name}",
    }


@pytest.mark.parametrize("notes", [{"aliases": "www"}, {"ip": "10.99.64.9"}])
def test_users_choose_names_and_addresses_only_where_the_configuration_says_so(
    world: World, run: Run, notes: dict[str, str]
) -> None:
    world.kernel.begin_engine("/n/web")
    config = {key: value for key, value in noted(**notes).items() if key != "annotations"}
    (word,) = notes
    others: list[str] = [each for each in ("aliases", "ip") if each != word]
    for allowed in ({}, {"annotations": []}, {"annotations": others}):
        status, answer = run(cni.main, config | allowed, COMMAND="ADD", **of_pod("web"))
        assert status == 1 and answer["code"] == 7 and f"niso.io/{word}" in answer["msg"]
    assert world.store.services() == []
    for wrong in (["name"], "ip", [["ip"]]):
        status, answer = run(
            cni.main, config | {"annotations": wrong}, COMMAND="ADD", **of_pod("web")
        )
        assert status == 1 and "annotations" in answer["msg"]
    assert run(cni.main, noted(**notes), COMMAND="ADD", **of_pod("web"))[0] == 0
    world.assert_whole()


@pytest.mark.parametrize(
    ("notes", "named", "is_refused"),
    [
        ({"aliases": "api"}, "api:5432", True),
        ({"aliases": "x api"}, "api", True),
        ({"aliases": "other"}, "api", False),
        ({"ip": "10.99.64.9"}, "10.99.64.9", True),
        ({"ip": "10.99.64.9"}, "10.99.64.8/29:80", True),
        ({"ip": "10.99.64.9"}, "10.99.64.16/28", False),
        # whatever address it had, that would let it in
        ({"ip": "10.99.64.9"}, "10.99.64.0/24", False),
        ({"ip": "10.99.64.9"}, "10.0.0.0/8", False),
    ],
)
def test_no_user_takes_a_place_in_the_policies_of_others(
    world: World, run: Run, notes: dict[str, str], named: str, is_refused: bool
) -> None:
    """That of a service that is not there yet, too."""
    for name in ("first", "db", "own", "evil"):
        world.kernel.begin_engine(f"/n/{name}")
    assert run(cni.main, noted(), COMMAND="ADD", **of_pod("first"))[0] == 0
    policy = {"allow-from": named, "deny-from": "ghost"}
    assert run(cni.main, noted(**policy), COMMAND="ADD", **of_pod("db"))[0] == 0
    status, answer = run(cni.main, noted(**notes), COMMAND="ADD", **of_pod("evil", "other"))
    assert (status == 1) is is_refused, answer
    if is_refused:
        assert "db-shop" in answer["msg"] and world.store.service("evil-other") is None
        # within a namespace its users name each other
        assert run(cni.main, noted(**notes), COMMAND="ADD", **of_pod("own"))[0] == 0
    world.assert_whole()


def test_later_policy_does_not_name_what_a_user_has_chosen(world: World, run: Run) -> None:
    for name in ("evil", "db", "own"):
        world.kernel.begin_engine(f"/n/{name}")
    assert run(cni.main, noted(aliases="api"), COMMAND="ADD", **of_pod("evil", "other"))[0] == 0
    policy = noted(**{"allow-from": "api:5432"})
    status, answer = run(cni.main, policy, COMMAND="ADD", **of_pod("db"))
    assert status == 1 and "evil-other" in answer["msg"]
    assert world.store.service("db-shop") is None
    denies = noted(**{"deny-from": "api"})
    assert run(cni.main, denies, COMMAND="ADD", **of_pod("db"))[0] == 0
    assert run(cni.main, policy, COMMAND="ADD", **of_pod("own", "other"))[0] == 0
    world.assert_whole()


def test_options_of_no_meaning_are_refused(world: World, run: Run) -> None:
    """A policy with ``log = maybe`` would be one without it."""
    for option in ({"mtu": "x"}, {"log": "maybe"}):
        status, answer = run(netavark.main, NETWORK | {"options": option}, "create")
        ((key, value),) = option.items()
        assert status == 1 and f"{key}={value}: not a " in answer["error"]
    config = CONFIG | {"policy": {"log": "yes please"}}
    status, answer = run(cni.main, config, COMMAND="ADD", **POD)
    assert status == 1 and "policy.log=yes please: not a truth value" in answer["msg"]
    assert world.store.services() == [] and world.store.networks() == []
    config = CONFIG | {"policy": {"log": True}}
    assert run(cni.main, config, COMMAND="ADD", **POD)[0] == 0
    policy = world.store.policy("c1")
    assert policy is not None and policy.log


def test_what_niso_would_not_do_is_refused_with_the_key(world: World, run: Run) -> None:
    world.make("pods", "10.99.64.0/24")
    plain = {"cniVersion": "1.1.0", "name": "pods", "type": "niso-cni"}
    runtime = "runtimeConfig"
    notes = {"io.kubernetes.cri.pod-annotations": {"niso.io/allow-form": "web"}}
    differs: list[dict[str, Any]] = [
        {"internal": True},
        {"mtu": 1300},
        {"subnets": ["10.99.65.0/24"]},
        {"subnets": ["10.99.64.0/24", "fd00:64::/64"]},
        {"ipv6": True},
    ]
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"ipam": {"type": "host-local"}}, "", "ipam"),
        ({"vlan": 5}, "", "unknown key"),
        ({"prevResult": {"ips": [1]}}, "", "prevResult"),
        ({"names": "{name}-{namespace}"}, "", "{pod}"),
        ({runtime: {"bandwidth": {"IngressRate": 1}}}, "", "bandwidth"),
        ({"policy": {"allow": []}}, "", "policy"),
        ({runtime: notes}, "", "allow-form"),
        ({}, "NISO_ALLOW=web", "NISO_ALLOW"),
        ({}, "NISO_ALLOW_FROM=we?b", ""),
        ({runtime: {"portMappings": [{"hostPort": "x", "containerPort": 1}]}}, "", ""),
        ({runtime: {"ips": ["10.1.1.1"]}}, "", ""),
        ({runtime: {"dns": {"server": ["192.0.2.53"]}}}, "", "dns"),
        *(
            (given, "", f"{key}: network pods exists and differs")
            for given in differs
            for key in given
        ),
    ]
    before = world.picture()
    for given, arguments, words in wrong:
        pod = POD | ({"ARGS": arguments} if arguments else {})
        status, answer = run(cni.main, plain | given, COMMAND="ADD", **pod)
        assert status == 1 and answer["code"] == 7 and words in answer["msg"], (given, answer)
        assert world.picture() == before
    asked = {"Servers": ["192.0.2.53"], "Searches": ["example.com"], "Options": []}
    given = plain | {runtime: {"dns": asked}}
    assert run(cni.main, given, COMMAND="ADD", **POD)[1]["dns"] == {
        "nameservers": ["192.0.2.53"],
        "search": ["example.com"],
    }
    # a network has each interface of a container, which has one on each network
    for name in ("eth0", "eth1"):
        status, answer = run(cni.main, plain, COMMAND="ADD", **POD | {"IFNAME": name})
        assert status == 1 and "eth0" in answer["msg"]
    for given in ({}, {"subnets": []}, {"internal": False, "mtu": 0, "ipv6": False}):
        assert run(cni.main, plain, COMMAND="DEL", **POD) == (0, None)
        assert run(cni.main, plain | given, COMMAND="ADD", **POD)[0] == 0
    world.assert_whole()


def test_multicast_is_an_option_of_podman_s_networks(world: World, run: Run) -> None:
    for value, passes in (("maybe", False), ("true", True)):
        options = {"multicast": value}
        status, _ = run(netavark.main, NETWORK | {"options": options}, "create")
        assert status == (0 if passes else 1)
    assert world.store.require_network("backend").multicast
    setup = SETUP | {"network": NETWORK | {"options": {"multicast": "true"}}}
    assert run(netavark.main, setup, "setup", NETNS)[0] == 0
    for wrong in ({}, {"multicast": "false"}):
        status, answer = run(netavark.main, NETWORK | {"options": wrong}, "create")
        assert status == 1 and "already exists with multicast" in answer["error"]


def test_multicast_is_a_key_of_cni(world: World, run: Run) -> None:
    config = CONFIG | {"multicast": True}
    assert run(cni.main, config, COMMAND="ADD", **POD)[0] == 0
    assert world.store.require_network("pods").multicast
    other = POD | {"CONTAINERID": "c2"}
    for multicast, why in ((False, "multicast: network pods exists and differs"), ("x", "wrong")):
        status, answer = run(cni.main, config | {"multicast": multicast}, COMMAND="ADD", **other)
        assert status == 1 and why in answer["msg"]


def test_annotations_in_another_form_are_refused(world: World, run: Run) -> None:
    for wrong in (["niso.io/allow-from="], '{"niso.io/allow-from": ""}', 7):
        config = CONFIG | {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": wrong}}
        assert run(cni.main, config, COMMAND="ADD", **POD)[0] == 1
    assert world.store.services() == []


def test_gc_of_another_form_detaches_nothing(world: World, run: Run) -> None:
    assert run(cni.main, CONFIG, COMMAND="ADD", **POD)[0] == 0
    base = {"cniVersion": "1.1.0", "name": "pods"}
    for wrong in ({"containerId": "c1", "ifName": "eth0"}, {"containerID": "c1"}, {}, 7):
        valid = {"cni.dev/valid-attachments": [wrong]}
        assert run(cni.main, base | valid, COMMAND="GC")[0] == 1
        assert world.store.attachments.get("c1") is not None
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert run(cni.main, base | valid, COMMAND="GC")[0] == 0
    assert world.store.attachments.get("c1") is not None
    assert run(cni.main, base | {"cni.dev/valid-attachments": []}, COMMAND="GC")[0] == 0
    assert world.store.services() == []
