"""Test what a host shows of services of other hosts: explanations and lists, on the fake engine and kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_world import Cluster
from fake_world import World
from refusals import refuses
from stored import service_spec

from niso.base.errors import Error
from niso.cluster.claims import Claims
from niso.cluster.key_values import shown_values
from niso.look import other_hosts
from niso.look.packet_path import ExplainedPacket, Packet, explain
from niso.plan.records import Audit
from niso.reconcile.live_world import read_world
from niso.store.sqlite import encoded


def policy_text(audit: Audit | None = None, **keys: Any) -> str:
    """A policy as a claim has it."""
    spec = service_spec(network={"network": "backend", "policy": keys})
    return encoded(spec.network.policy._replace(audit=audit))


class Shown(Cluster):
    """Host b, with db and api, which asks for what a and c have."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.said: list[str] = []
        world.activate(world.package("api", network={"network": "backend"}))
        self.session: Any = SimpleNamespace(
            store=lambda: world.store,
            machine=lambda: world.machine,
            caution=lambda text, hints=(): self.said.append(text),
        )

    def publish(self, host: str, service: str, policy: str = "", up: bool = True) -> str:
        """Have a host publish a service with a policy; return its address."""
        held = self.claim(host, service, up=False)
        claims = Claims(self.engine, host)
        assert claims.publish(service, held.mark, up, shown_values((), policy))
        self.follow()
        return held.networks["backend"][0]

    def explain(self, source: str, destination: str, port: int = 80) -> ExplainedPacket:
        store = self.world.store
        here = read_world(self.world.kernel, store)
        seen = other_hosts.with_remote(self.session, here, source, destination)
        return explain(store, seen, Packet(source, destination, port, "tcp"), {})


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    with World(tmp_path) as world:
        yield Shown(world)


DB, API = "10.99.1.2", "10.99.1.3"


def objects(some: Any) -> list[tuple[str, str]]:
    return [(each.host, each.container) for each in some]


def test_rules_of_another_host_follow_from_what_it_has_published(shown: Shown) -> None:
    web = shown.publish("c", "web", policy_text(allow_from=["api:80"]))
    seen = shown.explain(API, web)
    assert seen.verdict.passes
    assert objects(seen.path) == [
        ("", "sources4"),
        ("c", "sources4"),
        ("c", "vx44"),
        ("", "forward"),
    ]
    assert seen.path[2].text.startswith("198.51.100.2 . "), "this host is the outer source"
    assert " : " not in seen.path[2].text, "c alone knows the number that it uses for this host"
    assert objects(seen.ingress) == [("c", "ingress4"), ("c", "in4_port")]
    assert API in seen.ingress[1].text and not [each for each in seen.counted if each.host]
    assert seen.verdict.ingress.message.endswith("c decides, by the policy that it has published")
    refused = shown.explain(DB, web)
    assert refused.verdict.dropped_by == refused.verdict.ingress
    assert objects(refused.ingress)[0] == ("c", "ingress4")
    # what comes from there is for the rules of this host
    back = shown.explain(web, DB)
    lets = [("", container) for container in ("sources4", "vx44", "heard4", "forward")]
    assert objects(back.path) == lets
    number = back.path[1].text.rpartition(" : ")[2]
    assert back.path[2].text == f"{number} . {web}"
    store = shown.world.store
    known = store.across.number("c")
    with store.transaction():
        store.across.set_peer("c", "c", "198.51.100.3", False)
    assert store.across.number("c") == known, "else the rules would know the host by two numbers"
    assert objects(back.ingress)[0] == ("", "ingress4")
    # and what passes between two others, for none of this host
    far = shown.publish("a", "far", policy_text(egress={"deny": ["web"]}))
    between = shown.explain(far, web)
    assert not between.verdict.egress.passes
    assert {host for host, _ in objects(between.path)} == {"c"}
    assert {host for host, _ in objects(between.egress)} == {"a"}
    with refuses(Error, "far", hint="niso net explain on a"):
        shown.explain(far, "198.51.100.2")


def test_ports_of_all_hosts_are_listed_where_they_are_open(shown: Shown) -> None:
    world, claims = shown.world, Claims(shown.engine, "c")
    on = {"network": "backend", "ports": ["127.0.0.1:9000-9001:90-91/udp"]}
    world.activate(world.package("log", network=on))
    share = {"mode": "share", "share": "log", "ports": ["9100:91"]}
    world.activate(world.package("side", network=share))
    held = shown.claim("c", "web", up=False)
    about = shown_values(("8080:80", "no port"), "", (("tail", ("[2001:db8::1]:8081:81",)),))
    assert claims.publish("web", held.mark, True, about)
    address = held.networks["backend"]

    def ports() -> list[tuple[str, ...]]:
        return [tuple(line) for line in other_hosts.ports(shown.session)]

    own = [
        ("log", "b", "127.0.0.1:9000-9001", "90-91", "udp"),
        ("side", "b", "9100", "91", "tcp"),
    ]
    assert ports() == [
        *own,
        ("tail", "c", "[2001:db8::1]:8081", "81", "tcp"),
        ("web", "c", "8080", "80", "tcp"),
    ]
    lines = {line.service: line for line in other_hosts.lines(shown.session)}
    assert lines["tail"] == ("tail", "c", "up", address, ("[2001:db8::1]:8081:81",))
    assert shown.said == []
    assert claims.publish("web", held.mark, False) and ports() == own
    assert claims.publish("web", held.mark, True) and ports() != own
    shown.engine.revoke(shown.lease)
    assert ports() == own
    shown.engine.down = True
    assert ports() == own and "does not answer" in shown.said[-1]


BAD = ("[", "{}", "[1]", '[[["k","t",["prefix","x"],0,1,"tcp"]],[],null,[],false]',
    '[[["k","t",["service","x"],"0",1,"tcp"]],[],null,[],false]',
    '[[["k","t",["else","x"],0,1,"tcp"]],[],null,[],false]',
    '[[["k",7,["service","x"],0,1,"tcp"]],[],null,[],false]',
    '[[["k","t",7,0,1,"tcp"]],[],null,[],false]', "[null,[],null,[],false,[1,\"x\",1]]",
    "[" * 100_000)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_policy_that_nobody_can_have_written_is_an_error(shown: Shown, text: str) -> None:
    web = shown.publish("c", "web", text)
    with refuses(Error, hint="ask on c"):
        shown.explain(API, web)


def test_service_of_another_host_is_down_audited_or_lost_with_it(shown: Shown) -> None:
    audited = policy_text(Audit("", 1, 1 << 40), allow_from=[])
    web = shown.publish("c", "web", audited)
    assert shown.explain(API, web).verdict.passes and shown.said == []
    shown.engine.revoke(shown.lease)  # c's
    assert shown.explain(API, web).verdict.passes
    assert shown.said == ["c does not answer: web may not run any more"]
    shown.publish("c", "web", audited, up=False)
    assert "web is not active" in shown.explain(API, web).verdict.path.message
    shown.engine.down = True
    assert "is not known here" in shown.explain(API, web).verdict.ingress.message
