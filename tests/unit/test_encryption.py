"""Test encrypted clusters on fakes: who may join, what is on record, and what the plan makes of it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from pathlib import Path

import pytest
from fake_world import World
from fakes.engine import FakeEngine
from refusals import refuses

from niso.base import names as base_names
from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.change import cluster_hosts, cluster_join, networks
from niso.cluster import config, encryption, invitation
from niso.cluster.agent import Agent
from niso.cluster.claims import Claims, Wanted
from niso.cluster.config import Config
from niso.cluster.engine import Delete, Put, Txn, encode
from niso.cluster.key_values import PROTO, Cluster, HostEntry
from niso.cluster.membership import ClusterKeys
from niso.kernel.kinds.addresses import Fdb
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.tunnels import KERNEL, USERSPACE, Vxlan, WireGuard
from niso.kernel.nft_elements import Element
from niso.kernel.ruleset import TUNNEL
from niso.plan.subnets import NetworkRequest

HERE = "192.0.2.1"
ETCD = cluster_join.Reach(("http://etcd1:2379",))
KEYS = [f"{number:042}w=" for number in range(10, 14)]
NO_KERNEL = {KERNEL: "the kernel has no WireGuard (Error: Unknown device type.)"}


class Engine(FakeEngine):
    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(Config, "engine", lambda own, brief=False: engine)
    return engine


@pytest.fixture
def world(world: World) -> World:
    world.machine = world.machine._replace(joined=config.load)
    return world


def init(world: World, encrypt: str) -> Config:
    cluster_join.init(world.machine, "a", HERE, ETCD, encrypt)
    return config.require()


def look(world: World, engine: Engine) -> None:
    me = ("a", world.store.state_id(), world.store.cluster_id(), "boot")
    agent = Agent(me, lambda: engine, lambda names: None, lambda line: None)
    agent.poll(world.store, world.kernel, engine, 0)


def links(world: World) -> list[WireGuard]:
    return list(world.kernel.everything(State())[WireGuard])


def test_kernel_encrypts_where_it_can_and_a_process_only_where_it_was_asked_for(
    world: World, engine: Engine
) -> None:
    kernel = world.kernel
    assert [encryption.chosen(kernel, asked) for asked in ("kernel", "userspace")] == ["kernel"] * 2
    kernel.without_wireguard = dict(NO_KERNEL)
    assert encryption.chosen(kernel, "userspace") == "userspace"
    with refuses(
        Error,
        hint="--encrypt=userspace has the process wireguard-go do it, at a tenth of the speed",
    ) as refused:
        init(world, "kernel")
    assert "--encrypt=userspace" in (refused.value.hint or "")
    kernel.without_wireguard[USERSPACE] = "wireguard-go is missing: apt-get install wireguard-go"
    with pytest.raises(Error, match="wireguard-go is missing"):
        init(world, "userspace")
    kernel.without_ipv6 = "IPv6 is disabled"
    with pytest.raises(Error, match="IPv6 is disabled"):
        init(world, "userspace")
    assert not os.path.exists(paths.cluster_dir()) and not world.store.cluster_id()


def test_address_in_the_tunnel_follows_from_the_host(world: World) -> None:
    found = {encryption.address(one, host) for one in ("5f0c21aa", "other") for host in "ab"}
    assert len(found) == 4
    assert {ipaddress.ip_address(each).is_private for each in found} == {True}
    prefixes = {ipaddress.ip_network(f"{each}/64", strict=False) for each in found}
    assert len(prefixes) == 2


def test_link_is_there_while_a_network_spans_and_knows_the_hosts_of_the_cluster(
    world: World, engine: Engine
) -> None:
    own = init(world, "kernel")
    assert own.encryption == "kernel" and config.require() == own
    assert stat.S_IMODE(os.stat(paths.wireguard_key()).st_mode) == 0o600
    membership = ClusterKeys(engine)
    assert membership.cluster() == Cluster(world.store.cluster_id(), 4799, "kernel")
    assert not links(world)
    networks.create(world.machine, NetworkRequest("backend", ("10.99.1.0/24",), span=True))
    here = encryption.address(world.store.cluster_id(), "a")
    [link] = links(world)
    assert link[:5] == (TUNNEL, KERNEL, f"{here}/64", 4800, 1500 - 60)
    assert link.alias == base_names.alias(world.store.state_id())
    [vxlan] = world.kernel.everything(State())[Vxlan]
    assert (vxlan.local, vxlan.mtu) == (here, 1500 - 60 - 70)
    elements = world.kernel.everything(State())[Element]
    assert {("sealed", (4799,)), ("ports", (TUNNEL,))} <= {
        (element.container, element.fields) for element in elements
    }
    # another host comes, with a service
    membership.join(HostEntry("b", "id-b", "192.0.2.2", 1500, False, public=KEYS[0]))
    lease = engine.grant(10)
    assert membership.live("b", "id-b", lease, "boot")
    claims = Claims(engine, "b")
    held = claims.claim(Wanted("db", ("backend",), ("db",), {}, {}))
    claims.publish("db", held.mark, up=True)
    look(world, engine)
    far = encryption.address(world.store.cluster_id(), "b")
    assert links(world) == [link._replace(others=((KEYS[0], "192.0.2.2:4800", far),))]
    [entry] = world.kernel.everything(State())[Fdb]
    assert entry.host == far
    done = len(world.kernel.done)
    look(world, engine)
    assert len(world.kernel.done) == done
    # hosts are shown by their addresses between them, also if nothing answers
    engine.down = True
    seen, _ = cluster_hosts.status(world.machine)
    assert {host.name: host.address for host in seen.hosts} == {
        "a": "192.0.2.1",
        "b": "192.0.2.2",
    }
    # whether the other host is alive, nobody knows
    assert {host.name: host.state for host in seen.hosts} == {"a": "here", "b": "unknown"}
    engine.down = False
    # it has gone with all that it had
    engine.revoke(lease)
    assert membership.forget("b") == ["db"]
    look(world, engine)
    assert links(world) == [link]
    # and so has this one
    cluster_join.leave(world.machine, False)
    assert not links(world) and not os.path.exists(paths.wireguard_key())
    assert world.store.across.tunnel() is None


def test_cluster_that_is_written_again_is_encrypted_as_it_was(world: World, engine: Engine) -> None:
    init(world, "kernel")
    membership = ClusterKeys(engine)
    networks.create(world.machine, NetworkRequest("backend", ("10.99.1.0/24",), span=True))
    membership.join(HostEntry("b", "id-b", "192.0.2.2", 1500, False, public=KEYS[0]))
    assert membership.live("b", "id-b", engine.grant(10), "boot")
    look(world, engine)
    made, hosts, link = membership.cluster(), membership.hosts(), links(world)
    engine._items.clear()
    cluster_hosts.restore(world.machine)
    assert (membership.cluster(), membership.hosts()) == (made, hosts) and made
    look(world, engine)
    assert links(world) == link
    # a cluster of that id without encryption is none that this host follows
    key = membership.keys.cluster
    plain = encode({"id": made.identity, "port": made.port, "proto": PROTO})
    engine.commit(Txn((), (Put(key, plain), Delete(membership.keys.hosts, prefix=True))))
    done = len(world.kernel.done)
    look(world, engine)
    assert len(world.kernel.done) == done and links(world) == link


def test_new_key_is_that_of_the_link_and_of_the_cluster_even_after_a_kill(
    world: World, engine: Engine
) -> None:
    init(world, "kernel")
    networks.create(world.machine, NetworkRequest("backend", ("10.99.1.0/24",), span=True))
    [link] = links(world)
    text = cluster_join.invite(world.machine, "a", "", True, False)
    cluster_join.join(world.machine, text.encode(), None, "")
    [new] = links(world)
    [host] = ClusterKeys(engine).hosts()
    assert link.public != new.public == host.public
    # another one that was killed once it had written the file
    private, public = world.kernel.wireguard_keys("")
    Path(paths.wireguard_key()).write_text(private)
    encryption.mend(world.store, world.kernel)
    assert links(world) == [new._replace(public=public)]
    ClusterKeys(engine).refresh(cluster_join.as_member(world.machine, config.require(), 1500))
    [host] = ClusterKeys(engine).hosts()
    assert host.public == public


def test_agent_mends_the_link_wholly_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niso.cluster.agent.MEND_S", 0)
    calls: list[bool] = []
    said: list[str] = []

    def mend(whole: bool) -> None:
        calls.append(whole)
        if len(calls) == 2:
            raise Error("wg syncconf: no buffer space available")
        if len(calls) == 4:
            agent.stop()

    agent = Agent(("a", "id", "5f", "b"), Engine, lambda names: None, said.append, mend=mend)
    agent._mend()
    assert calls == [True, False, True, False]
    assert said == ["wg syncconf: no buffer space available"]


def test_all_hosts_of_a_cluster_encrypt_or_none(world: World, engine: Engine) -> None:
    membership = ClusterKeys(engine)
    with contextlib.suppress(Conflict):
        init(world, "userspace")
    plain = HostEntry("b", "id-b", "192.0.2.2", 1500, False)
    with refuses(Conflict, hint="all hosts of a cluster encrypt, or none"):
        membership.join(plain)
    text = cluster_join.invite(world.machine, "b", "192.0.2.2", False, False)
    assert invitation.parsed(text.encode()).config().encryption == "userspace"
    cluster_join.leave(world.machine, False)
    with refuses(Conflict, hint="--encrypt=userspace"):
        init(world, "")
    assert not os.path.exists(paths.cluster_dir())
    other = ClusterKeys(Engine())
    other.make()
    with refuses(Conflict, hint="all hosts of a cluster encrypt, or none"):
        other.join(plain._replace(public=KEYS[0]))


def test_link_of_too_small_an_mtu_is_refused(world: World, engine: Engine) -> None:
    for between, least in (("192.0.2.1", 1340), ("2001:db8::1", 1360)):
        encryption.require_mtu(between, least)
        with pytest.raises(Error, match=f"encryption needs {least}"):
            encryption.require_mtu(between, least - 1)


def test_kernel_that_has_got_wireguard_has_the_link_made_again() -> None:
    link = WireGuard(TUNNEL, USERSPACE, "fd00::1/64", 4800, 1440, KEYS[0], "niso:1")
    from niso.kernel.kinds.kind import diff

    steps = diff(State([link._replace(form=KERNEL)]), State([link]))
    assert [(step.action, step.obj.form) for step in steps] == [  # type: ignore[attr-defined]
        ("delete", USERSPACE),
        ("add", KERNEL),
    ]


@pytest.mark.parametrize("key", ["x", f"{KEYS[0]}\nAllowedIPs = ::/0", "é" * 44, 7])
def test_key_that_is_none_is_an_error_with_its_place(
    world: World, engine: Engine, key: object
) -> None:
    init(world, "kernel")
    keys = ClusterKeys(engine).keys
    value = {"id": "id-b", "address": "192.0.2.2", "mtu": 1500, "wgkey": key}
    assert engine.commit(Txn((), (Put(keys.host("b"), encode(value)),)))
    with pytest.raises(Error, match=keys.host("b")):
        look(world, engine)


@pytest.mark.parametrize(
    "value",
    [
        {"encrypt": "rot13", "proto": 2},
        {"encrypt": "kernel", "proto": 1},  # hosts that know this alone would not encrypt
        {"proto": 2},
    ],
)
def test_cluster_that_is_otherwise_encrypted_than_known_changes_nothing(
    engine: Engine, value: dict[str, object]
) -> None:
    membership = ClusterKeys(engine)
    put = Put(membership.keys.cluster, encode({"id": "5f0c21aa", "port": 4799} | value))
    assert engine.commit(Txn((), (put,)))
    with pytest.raises(Error):
        membership.cluster()
