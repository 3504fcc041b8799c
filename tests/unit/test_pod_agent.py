"""Test the agent of Kubernetes' policies against a server over HTTP, on a kernel in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api_server import FakeApi
from fake_world import World

from niso.base import paths
from niso.base.errors import Error
from niso.change import attach as change_attach
from niso.change.attach import AttachmentNetwork, Request
from niso.engines import pod_agent
from niso.engines.api_server import Access, ApiServer
from niso.engines.pod_agent import PodAgent
from niso.manifest.policy import parse_ingress
from niso.plan.records import Policy
from niso.runtime import units
from niso.store.attached_rows import AttachedRow, requested_settings

DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    made = FakeApi()
    made.put("namespaces", {"metadata": {"name": "shop", "labels": {"team": "a"}}})
    yield made
    made.close()


class Node:
    """An agent that is called by hand: its streams hear only what `hear` lets them."""

    def __init__(self, world: World, api: FakeApi) -> None:
        self.world, self.api = world, api
        self.said: list[str] = []
        self.agent = PodAgent(lambda: ApiServer(Access(api.url)), self.said.append)
        self.streams = (self.agent.pods, self.agent.spaces, self.agent.policies)
        self.hear()

    def hear(self) -> None:
        for stream in self.streams:
            stream._list(ApiServer(Access(self.api.url)))

    def look(self) -> list[str]:
        changed = self.agent.poll(self.world.machine)
        self.world.assert_whole()
        return changed

    def pod(self, name: str, uid: str = "", space: str = "shop", **more: Any) -> str:
        """A pod that the plugin has attached closed; return its attachment's name."""
        known = self.api.objects.get(("pods", space, name))
        uid = uid or (known["metadata"]["uid"] if known else "none")
        path = f"/n/{name}-{uid}"
        self.world.kernel.begin_engine(path)
        request = Request(
            f"{name}-{space}", path, (AttachmentNetwork("pods"),), owner="cni", id=uid, **more
        )
        pod = (space, name, uid)
        change_attach.attach(self.world.machine, pod_agent.closed(request, pod))
        return f"{name}-{space}"

    def create(self, name: str, space: str = "shop", **labels: str) -> None:
        self.api.put(
            "pods",
            {
                "metadata": {"namespace": space, "name": name, "labels": labels},
                "spec": {"containers": [{"name": "c"}]},
            },
        )

    def allow(self, name: str, to: dict[str, str], of: dict[str, str]) -> None:
        rule = {"from": [{"podSelector": {"matchLabels": of}}]}
        spec = {"podSelector": {"matchLabels": to}, "ingress": [rule]}
        self.api.put(
            "networkpolicies", {"metadata": {"namespace": "shop", "name": name}, "spec": spec}
        )

    def many(self, space: str, blocks: int, ports: int, *more: dict[str, Any]) -> None:
        """A policy for all pods of a namespace: a rule with so many blocks and ports, and more."""
        cidrs = (f"10.{n >> 8}.{n & 255}.0/25" for n in range(blocks))
        rule = {
            "from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs],
            "ports": [{"port": 1 + 2 * n} for n in range(ports)],
        }
        spec = {"podSelector": {}, "ingress": [rule, *more]}
        self.api.put(
            "networkpolicies", {"metadata": {"namespace": space, "name": "many"}, "spec": spec}
        )

    def order(self, patch: pytest.MonkeyPatch) -> list[str]:
        """A list that grows by each attachment."""
        order: list[str] = []
        attach = change_attach.attach

        def seen(machine: Any, request: Request, *rest: Any, **more: Any) -> Any:
            order.append(request.name)
            return attach(machine, request, *rest, **more)

        patch.setattr(change_attach, "attach", seen)
        return order

    def policy(self, service: str) -> Policy | None:
        return self.world.store.policy(service)

    def allowed(self, service: str) -> list[str] | None:
        policy = self.policy(service)
        allow = policy.allow_from if policy else None
        return None if allow is None else [entry.peer.name for entry in allow]

    def stands(self, service: str) -> bool:
        attached = self.world.store.attachments.get(service)
        assert attached is not None
        return pod_agent.is_applied(attached)


@pytest.fixture
def node(world: World, api: FakeApi) -> Node:
    return Node(world, api)


def test_new_pod_is_closed_until_its_policy_stands(node: Node) -> None:
    node.create("web", app="web")
    node.allow("web", {"app": "web"}, {"app": "api"})
    node.hear()
    assert node.pod("web") == "web-shop"
    assert node.policy("web-shop") == pod_agent.CLOSED and not node.stands("web-shop")
    assert node.look() == ["web-shop"]
    assert node.stands("web-shop") and node.allowed("web-shop") == []
    policy = node.policy("web-shop")
    assert policy is not None and policy.egress_allow is None
    # another one that it lets in: both change, then nothing does
    node.create("api", app="api")
    node.pod("api")
    assert node.look() == ["web-shop", "api-shop"]
    assert node.allowed("web-shop") == ["api-shop"] and node.policy("api-shop") is None
    assert node.look() == []
    # labels and policies of running pods are followed
    node.create("api", app="none")
    node.hear()
    assert node.look() == ["web-shop"] and node.allowed("web-shop") == []
    node.api.delete("networkpolicies", "shop", "web")
    node.hear()
    assert node.look() == ["web-shop"] and node.policy("web-shop") is None


def test_policy_that_no_watch_has_brought_holds_for_a_new_pod(node: Node) -> None:
    node.api.put(
        "networkpolicies", {"metadata": {"namespace": "shop", "name": "deny"}, "spec": DENY}
    )
    node.create("web")
    node.pod("web")
    assert node.look() == ["web-shop"]
    assert node.policy("web-shop") == pod_agent.CLOSED and node.stands("web-shop")
    assert node.look() == []


def test_pod_of_another_uid_or_unknown_waits(node: Node) -> None:
    node.create("web")
    node.hear()
    node.pod("web", "former")
    node.pod("stray")
    assert node.look() == []
    assert not node.stands("web-shop") and not node.stands("stray-shop")


def test_nothing_is_let_go_while_the_server_does_not_answer(node: Node) -> None:
    node.create("web", app="web")
    node.create("old")
    node.pod("old")
    node.look()
    node.pod("web")
    node.api.refuses = 503
    with pytest.raises(Error, match="answers 503"):
        node.look()
    assert not node.stands("web-shop")
    node.api.refuses = 0
    assert node.look() == ["web-shop"]
    node.pod("late", "x")
    node.api.close()
    with pytest.raises(Error, match=r"refused|closed"):
        node.look()
    assert node.stands("old-shop")


def test_policies_that_name_a_new_pod_wrongly_are_changed_before_it_is_let_go(node: Node) -> None:
    """Its name, and so its allowances, may have been those of a pod with other labels."""
    node.create("web", app="web")
    node.create("db-0", app="api")
    node.allow("web", {"app": "web"}, {"app": "api"})
    node.pod("web")
    node.pod("db-0")
    node.look()
    assert node.allowed("web-shop") == ["db-0-shop"]
    node.api.delete("pods", "shop", "db-0")
    node.create("db-0", app="other")
    node.hear()
    change_attach.detach(node.world.machine, "db-0-shop")
    node.pod("db-0")
    with pytest.MonkeyPatch.context() as patch:
        order = node.order(patch)
        node.look()
    assert order == ["web-shop", "db-0-shop"] and node.allowed("web-shop") == []


def test_pod_that_cannot_have_its_policy_is_closed_and_keeps_nobody_waiting(node: Node) -> None:
    own = Policy(allow_from=(parse_ingress("10.0.0.0/8", "niso.io/allow-from[0]"),))
    node.create("web", app="web")
    node.create("api", app="api")
    node.allow("web", {"app": "web"}, {"app": "api"})
    node.hear()
    node.pod("web", policies=(("pods", own),))
    node.pod("api")
    node.look()
    assert node.allowed("web-shop") == [] and node.stands("web-shop")
    assert any("web-shop" in line and "cannot be combined" in line for line in node.said)
    assert node.stands("api-shop")
    said = len(node.said)
    assert node.look() == [] and len(node.said) == said


def test_pod_with_too_large_a_policy_is_closed_and_keeps_nobody_waiting(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niso.engines.network_policies._MOST_ENTRIES", 2)
    ports = [{"port": 80 + n} for n in range(3)]
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": ports}]}
    named = {"namespace": "shop", "name": "big"}
    node.create("web", app="web")
    node.create("api", app="api")
    node.pod("web")
    node.pod("api")
    node.look()
    assert node.policy("web-shop") is None
    node.api.put("networkpolicies", {"metadata": named, "spec": spec})
    node.hear()
    assert node.look() == ["web-shop"]
    assert node.policy("web-shop") == pod_agent.CLOSED and node.stands("web-shop")
    assert any("web-shop" in line and "such as big" in line for line in node.said)
    assert node.look() == [] and node.policy("api-shop") is None


def test_one_namespace_keeps_no_pods_of_others_waiting(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 blocks times 66 ports, for its running pods and for new ones."""
    monkeypatch.setattr("niso.engines.pod_agent._HEAVY", 300)
    node.api.put("namespaces", {"metadata": {"name": "evil", "labels": {"team": "evil"}}})
    for name in ("a1", "a2"):
        node.create(name, "evil")
    node.create("b")
    node.hear()
    for name in ("a1", "a2"):
        node.pod(name, space="evil")
    node.look()
    node.many("evil", 300, 66, {"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]})
    node.hear()
    begun = time.process_time()
    node.create("a3", "evil")
    node.hear()
    node.pod("a3", space="evil")
    node.pod("b")
    with pytest.MonkeyPatch.context() as patch:
        order = node.order(patch)
        node.look()
    # before, it took 13 s for each pod
    assert time.process_time() - begun < 20
    assert order == ["b-shop", "a1-evil", "a2-evil", "a3-evil"]
    rules = [e for e in node.world.kernel.present_elements() if e.owner.startswith("a1-evil")]
    assert 366 < len(rules) < 400, len(rules)
    # a new pod with a name that they may still allow comes after them
    assert node.allowed("a1-evil") is not None
    change_attach.detach(node.world.machine, "b-shop")
    node.api.delete("pods", "shop", "b")
    node.api.put("namespaces", {"metadata": {"name": "shop", "labels": {"team": "b"}}})
    node.create("b")
    node.create("c")
    node.hear()
    for name in ("b", "c"):
        node.pod(name)
    with pytest.MonkeyPatch.context() as patch:
        order = node.order(patch)
        node.look()
    assert order == ["c-shop", "a1-evil", "a2-evil", "a3-evil", "b-shop"]
    # and one that comes while they change does not wait for all of them
    node.many("evil", 299, 66)
    node.create("d")
    node.hear()

    def comes(*_: Any) -> None:
        if order == ["a1-evil"]:
            node.pod("d")
            node.agent._wake.set()

    with pytest.MonkeyPatch.context() as patch:
        order = node.order(patch)
        stands = pod_agent.applied
        patch.setattr(pod_agent, "applied", lambda *told: (stands(*told), comes())[0])
        node.look()
        del order[0]
        node.agent._wake.clear()
        node.look()
    assert order == ["d-shop", "a2-evil", "d-shop", "a3-evil"]


def test_what_one_namespace_may_need_is_limited(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niso.engines.pod_agent._MOST_OF_NAMESPACE", 100)
    node.api.put("namespaces", {"metadata": {"name": "evil"}})
    node.many("evil", 20, 20)
    node.many("shop", 20, 20)
    for name in ("a", "b", "c"):
        node.create(name, "evil")
    node.create("web")
    node.hear()
    for name in ("a", "b", "c"):
        node.pod(name, space="evil")
    node.pod("web")
    node.look()
    closed = [node.policy(f"{name}-evil") == pod_agent.CLOSED for name in "abc"]
    assert closed == [False, False, True] and node.policy("web-shop") != pod_agent.CLOSED
    assert all(node.stands(name) for name in ("a-evil", "b-evil", "c-evil", "web-shop"))
    assert any("c-evil" in line and "namespace evil" in line for line in node.said)
    said = len(node.said)
    assert node.look() == [] and len(node.said) == said
    node.many("evil", 10, 10)
    node.hear()
    assert node.look() == ["a-evil", "b-evil", "c-evil"]
    assert not any(node.policy(f"{name}-evil") == pod_agent.CLOSED for name in "abc")


def test_what_others_attached_is_left_alone(node: Node) -> None:
    node.api.put(
        "networkpolicies", {"metadata": {"namespace": "shop", "name": "deny"}, "spec": DENY}
    )
    node.hear()
    node.world.kernel.begin_engine("/n/own")
    labels = (("pod_namespace", "shop"),)
    request = Request("own", "/n/own", (AttachmentNetwork("pods"),), labels=labels)
    change_attach.attach(node.world.machine, request)
    assert node.look() == [] and node.policy("own") is None


def test_pod_that_goes_while_its_policy_is_applied_does_not_come_back(node: Node) -> None:
    node.create("web")
    node.pod("web")
    lives = AttachedRow.lives

    def goes(attached: AttachedRow, kernel: Any) -> bool:
        alive = lives(attached, kernel)
        change_attach.detach(node.world.machine, "web-shop")
        return alive

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttachedRow, "lives", goes)
        assert node.look() == []
    assert node.world.store.attachments.get("web-shop") is None


def test_not_understood_policy_is_said_once(node: Node) -> None:
    spec = {"podSelector": {}, "future": 1}
    node.api.put("networkpolicies", {"metadata": {"namespace": "shop", "name": "n"}, "spec": spec})
    node.create("web")
    node.hear()
    node.pod("web")
    node.look()
    node.look()
    assert node.said == [
        "NetworkPolicy shop/n: not understood, so shop is closed: future is not known to niso"
    ]
    assert node.policy("web-shop") == pod_agent.CLOSED


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_running_agent_follows_and_survives_the_server(
    node: Node, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, pods = threading.Event(), node.agent.pods
    thread = threading.Thread(target=pods.run, args=(over,), daemon=True)
    thread.start()
    for number in range(3):
        node.create(f"p{number}")
    until(lambda: len(pods.objects()) == 3)
    api.delete("pods", "shop", "p1")
    until(lambda: len(pods.objects()) == 2)
    # what happened meanwhile is forgotten: a list
    api.end_watches()
    node.create("p3")
    api.forget()
    node.create("p4")
    until(lambda: {name for _, name in pods.objects()} == {"p0", "p2", "p3", "p4"})
    # refused, then not
    api.refuses = 403
    api.end_watches()
    until(lambda: any("answers 403" in line for line in node.said))
    api.refuses = 0
    node.create("p5")
    until(lambda: ("shop", "p5") in pods.objects())
    assert len([line for line in node.said if "403" in line]) == 1
    over.set()
    api.end_watches()
    thread.join(60)
    assert not thread.is_alive()


GARBAGE = [
    b"<html>",
    b"[" * 100_000,
    b'{"items": 7, "metadata": {"resourceVersion": "900"}}',
    b'{"items": [7], "metadata": {"resourceVersion": "900"}}',
    b'{"items": [{"metadata": []}], "metadata": {"resourceVersion": "900"}}',
    b'{"items": [], "metadata": 7}',
    b'{"items": [], "metadata": {"resourceVersion": "%s"}}' % (b"9" * 5000),
    b'{"kind": "Status"}',
]
GARBLED = [
    b'{"type": "ERROR", "object": null}\n',
    b'{"type": "ERROR", "object": {"code": "gone"}}\n',
    b'{"type": "ADDED", "object": [7]}\n',
    b'{"type": "ADDED", "object": {"metadata": 7}}\n',
    b'{"type": {"x": 1}, "object": {"metadata": {"resourceVersion": "9%s"}}}\n' % (b"9" * 5000),
    b'{"type": "MODIFIED", "object": {"metadata": {"namespace": "shop", "name": "p"}}}\n',
    b"\xff\n",
]


@pytest.mark.parametrize("answer", GARBAGE)
def test_new_pod_waits_if_the_answer_is_none_of_the_api(node: Node, answer: bytes) -> None:
    node.create("web")
    node.pod("web")
    for before in ([], [b'{"items": [], "metadata": {"resourceVersion": "101"}}']):
        node.api.says = [*before, answer]
        with pytest.raises(Error, match=r"answer|sends"):
            node.look()
        assert not node.stands("web-shop")
    node.api.refuses = 404
    with pytest.raises(Error, match="does not have it"):
        node.look()
    assert not node.stands("web-shop")


def test_stream_outlives_answers_that_are_none(
    node: Node, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that has ended would leave all pods with the policies of that moment, for ever."""
    monkeypatch.setattr("niso.engines.api_server._BACK_OFF_S", (0.01, 0.01))
    pods = node.agent.pods
    api.says = [*GARBAGE, b'{"items": [], "metadata": {"resourceVersion": "1"}}', *GARBLED]
    over = threading.Event()
    thread = threading.Thread(target=pods.run, args=(over,), daemon=True)
    thread.start()
    node.create("p")
    until(lambda: not api.says or not thread.is_alive())
    until(lambda: ("shop", "p") in pods.objects() or not thread.is_alive())
    assert thread.is_alive() and ("shop", "p") in pods.objects()
    over.set()
    api.end_watches()
    thread.join(60)


def test_what_a_restored_etcd_does_not_have_is_gone(node: Node) -> None:
    node.allow("web", {}, {"app": "api"})
    node.create("web")
    node.hear()
    node.pod("web")
    node.look()
    assert node.allowed("web-shop") == []
    node.api.delete("networkpolicies", "shop", "web")
    node.api.version = 50
    node.hear()
    assert node.agent.policies.objects() == {}
    assert node.look() == ["web-shop"]


def test_token_that_no_header_can_have_is_an_error(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("ä")
    for more in ({"token": "a\nb"}, {"token_file": str(tmp_path / "token")}):
        with pytest.raises(Error):
            ApiServer(Access(api.url, **more)).get("/api/v1/pods")


def test_status_of_a_pod_wakes_nobody(node: Node, api: FakeApi) -> None:
    over, woken = threading.Event(), []
    pods = node.agent.pods
    pods._changed = lambda: woken.append(1)  # type: ignore[method-assign]
    thread = threading.Thread(target=pods.run, args=(over,), daemon=True)
    thread.start()
    until(lambda: len(woken) == 1)  # the list
    for _ in range(3):
        node.create("web", app="web")
    node.create("last")
    until(lambda: ("shop", "last") in pods.objects())
    until(lambda: len(woken) == 3)
    over.set()
    api.end_watches()
    thread.join(60)
    assert len(woken) == 3


def test_lists_come_in_pages(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niso.engines.api_server._PAGE", "2")
    for number in range(5):
        node.create(f"p{number}")
    node.hear()
    assert len(node.agent.pods.objects()) == 5
    assert sum("continue=" in request for request in node.api.requests) == 2


def test_waiting_ends_with_the_policy_or_in_time(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.create("web")
    node.hear()
    node.pod("web")
    store = node.world.store
    assert not pod_agent.wait(store, "web-shop", 0.01)
    node.look()
    assert pod_agent.wait(store, "web-shop", 0)
    assert not pod_agent.wait(store, "gone", 0)
    # no agent has the pipe open
    assert not pod_agent.agent_runs()
    over, woken = threading.Event(), threading.Event()
    listens = threading.Thread(
        target=units.listen, args=(units.KUBERNETES, woken.set, over), daemon=True
    )
    listens.start()
    until(pod_agent.agent_runs)
    assert woken.wait(60)
    over.set()
    units.wake_agent(units.KUBERNETES)
    listens.join(60)
    assert not pod_agent.agent_runs() and Path(paths.run_dir()).exists()


def test_labels_of_a_pod_are_kept(node: Node) -> None:
    node.create("web")
    node.hear()
    node.pod("web")
    node.look()
    attached = node.world.store.attachments.get("web-shop")
    assert attached is not None
    uid = node.api.objects["pods", "shop", "web"]["metadata"]["uid"]
    assert pod_agent.pod_of(attached) == ("shop", "web", uid)
    assert requested_settings(attached)["labels"]["pod_namespace"] == "shop"
