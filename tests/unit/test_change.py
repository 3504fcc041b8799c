"""Test which flows end with a change of rows and kernel, for each command that makes one.

The kernel in memory notes what it is asked to end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from cluster_world import ME, SUBNETS, Cluster
from fake_world import Steps, World
from fakes.kernel import Fake, untranslated

from niso.base import paths
from niso.base.errors import Error
from niso.change import attach as change_attach
from niso.change import journal, networks, outside_names_refresh, port_forward, stop
from niso.change.attach import AttachmentNetwork, Request
from niso.change.deactivate import deactivate, remove
from niso.cluster import encryption, mirror
from niso.cluster.claims import Claims
from niso.kernel.conntrack import Tracked
from niso.kernel.sockets import Connection
from niso.plan.dns_answers import DnsAnswer
from niso.plan.records import NetworkRecord, PortMapping, SubnetRecord, Tunnel
from niso.reconcile.change import change
from niso.store.snapshots import Scope


class Ended(NamedTuple):
    """What a change ends.

    ``addresses``: all flows of these. ``ports``: flows to these host ports, with "all" also those
    that were answered. ``judged``: flows of these addresses, if policies deny them.
    ``recorded``: what the rules remember of these addresses and prefixes. ``introduced``: whether
    open connections were added, on a bridge that is tracked from now on.
    """

    addresses: frozenset[str] = frozenset()
    ports: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()
    recorded: frozenset[str] = frozenset()
    introduced: bool = False


NOTHING = Ended()


def ended(
    addresses: Iterable[str] = (),
    ports: Iterable[str] = (),
    judged: Iterable[str] = (),
    recorded: Iterable[str] = (),
    introduced: bool = False,
) -> Ended:
    return Ended(*map(frozenset, (addresses, ports, judged, recorded)), introduced)


def watched(kernel: Fake, command: Callable[[], object]) -> Ended:
    """Run a command; return what it has the kernel end."""
    sets: dict[str, set[str]] = {"addresses": set(), "ports": set(), "judged": set()}
    introduced: list[Connection] = []
    kernel.forgotten.clear()
    flows_of = kernel.flows_of

    def judged(addresses: Iterable[str]) -> list[Tracked]:
        sets["judged"].update(addresses)
        return flows_of(addresses)

    def ports(claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        sets["ports"].update(f"{claim[1]}{' all' * answered}" for claim in claims)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "flush_addresses", sets["addresses"].update)
        patch.setattr(kernel, "flush_ports", ports)
        patch.setattr(kernel, "flows_of", judged)
        patch.setattr(kernel, "add_flows", introduced.extend)
        command()
    return ended(**sets, recorded=kernel.forgotten, introduced=bool(introduced))


def own(world: World, service: str) -> list[str]:
    return [address for _, address in world.store.addresses(service)]


# --- networks -------------------------------------------------------------------------------------


def test_network_that_is_made_ends_nothing(world: World) -> None:
    assert watched(world.kernel, lambda: world.make("front", "10.99.7.0/24")) == NOTHING
    world.kernel.fail = lambda step: errno.ENOMEM * step.describe().startswith("ip link add")

    def fails() -> None:
        with pytest.raises(Error):
            world.make("back", "10.99.8.0/24")

    # it was there for a moment
    assert watched(world.kernel, fails) == ended(recorded=["10.99.8.0/24"])


def test_network_that_is_removed_ends_the_memory_of_its_subnets(world: World) -> None:
    world.make("front", "10.99.7.0/24")
    done = watched(world.kernel, lambda: networks.remove(world.machine, ["front"]))
    assert done == ended(recorded=["10.99.7.0/24"])


# --- the end of services --------------------------------------------------------------------------


def test_service_that_is_deactivated_ends_the_flows_of_its_addresses(world: World) -> None:
    world.activate(world.package("api", network={"ports": ["8080:80"]}))
    gone = own(world, "api")
    done = watched(world.kernel, lambda: deactivate(world.machine, ["api"]))
    assert done == ended(gone, ["8080"])


def shared(world: World, *allowed: str) -> None:
    """Let log share the network of api, which web's policy lets in by the names ``allowed``."""
    world.activate(world.package("api"))
    policy = {"allow_from": list(allowed or ("log",))}
    share = {"mode": "share", "share": "api", "ports": ["9090:90"]}
    world.activate(world.package("log", network=share))
    world.activate(world.package("web", network={"policy": policy}))


def test_sharer_that_is_deactivated_ends_all_flows_of_its_ports(world: World) -> None:
    shared(world)
    # the policy lets log in, which has the address of api
    world.kernel.policed = [untranslated(own(world, "api")[0], own(world, "web")[0], 80)]
    done = watched(world.kernel, lambda: deactivate(world.machine, ["log"]))
    assert done == ended(ports=["9090", "9090 all"], judged=own(world, "web"))
    assert world.kernel.policed == []


def test_service_that_is_forgotten_ends_what_policies_allowed_by_its_name(world: World) -> None:
    """Its network goes with it, and so does what is remembered of the subnet."""
    world.make("front", "10.99.7.0/24")
    world.store._db.execute("UPDATE network SET implicit=1 WHERE name='front'")
    world.activate(world.package("api", network={"network": "front"}))
    world.activate(world.package("web", network={"policy": {"allow_from": ["api"]}}))
    deactivate(world.machine, ["api"])
    done = watched(world.kernel, lambda: remove(world.machine, ["api"]))
    assert done == ended(judged=own(world, "web"), recorded=["10.99.7.0/24"])


def test_plan_of_a_stop_ends_nothing(world: World) -> None:
    world.activate(world.package("api", network={"ports": ["8080:80"]}))

    before = world.picture()
    plan = lambda: stop.plan_only(world.machine, ["api"])  # noqa: E731
    assert watched(world.kernel, plan) == NOTHING and world.picture() == before


# --- activations ----------------------------------------------------------------------------------


def test_activation_ends_flows_of_addresses_ports_and_policies(world: World) -> None:
    first = world.package("api", network={"ports": ["8080:80"]})
    assert watched(world.kernel, lambda: world.activate(first)) == ended(
        ports=["8080"], recorded=own(world, "api")
    )
    gone = own(world, "api")
    narrow = {"network": "front", "ports": ["8081:80"], "policy": {"allow_from": ["web"]}}
    changed = world.package("api", network=narrow)
    done = watched(world.kernel, lambda: world.activate(changed))
    now = own(world, "api")
    assert world.store.network("niso-default") is None  # it was the last service there
    assert done == ended(gone, ["8080", "8081"], now, [*now, "10.99.0.0/24"])


def test_activation_introduces_connections_to_a_bridge_that_it_tracks(world: World) -> None:
    world.activate(world.package("api"), world.package("web"))
    world.kernel.sysctls["", "net/bridge/bridge-nf-call-iptables"] = "0"
    client, server = own(world, "web")[0], own(world, "api")[0]
    world.kernel.connected["niso-web"] = [Connection(client, 40000, server, 80)]
    policed = world.package("api", network={"policy": {"allow_from": ["web"]}})
    done = watched(world.kernel, lambda: world.activate(policed))
    assert done.introduced and done.judged == set(own(world, "api"))


def test_activation_that_takes_a_name_ends_flows_of_who_had_it(world: World) -> None:
    """The new service is called db on web's network: web's policy means it from now on."""
    world.activate(world.package("web", network={"policy": {"allow_from": ["db"]}}))
    world.activate(world.package("db", network={"networks": ["front"]}))
    new = world.package("new", network={"aliases": ["db"]})
    world.kernel.policed = [untranslated(own(world, "db")[0], own(world, "web")[0], 80)]
    done = watched(world.kernel, lambda: world.activate(new))
    assert done.judged == set(own(world, "web")) and world.kernel.policed == []


def test_activation_that_fails_ends_what_it_had_allowed(world: World) -> None:
    world.activate(world.package("api", network={"ports": ["8080:80"]}))
    before = own(world, "api")
    wanted = {"network": "front", "ports": ["8081:80"]}
    new = world.package("api", network=wanted, environment={"LEVEL": "debug"})
    refused = iter([True])
    world.processes.fail = lambda what: what.startswith("start ") and next(refused, False)

    def fails() -> None:
        with suppress(Error):
            world.activate(new)

    done = watched(world.kernel, fails)
    # api had the second address of front for a moment, and keeps the memory of its own
    middle, front = "10.99.1.2", "10.99.1.0/24"
    assert done == ended([*before, middle], ["8080", "8081"], recorded=[middle, front])
    world.assert_whole()


def test_activation_that_fails_ends_what_its_policy_had_allowed(world: World) -> None:
    world.activate(world.package("web"))
    narrow = {"policy": {"allow_from": ["log"]}}
    world.activate(world.package("api", network=narrow))
    wide = {"policy": {"allow_from": ["web"]}}
    new = world.package("api", network=wide, environment={"LEVEL": "debug"})

    flow = untranslated(own(world, "web")[0], own(world, "api")[0], 80)

    started: list[str] = []

    def refuse(what: str) -> bool:
        """Refuse the process once, when web has a connection to it."""
        if not what.startswith("start ") or started:
            return False
        world.kernel.policed = [flow]
        started.append(what)
        return True

    world.processes.fail = refuse
    with suppress(Error):
        world.activate(new)
    assert started and world.kernel.policed == []
    world.assert_whole()


# --- attachments ----------------------------------------------------------------------------------


def attach(world: World, *networks: AttachmentNetwork, **more: Any) -> None:
    if "/n/box" not in world.kernel.engines:
        world.kernel.begin_engine("/n/box")
    change_attach.attach(world.machine, Request("box", "/n/box", networks, **more))


def test_attachment_ends_flows_of_addresses_ports_and_policies(world: World) -> None:
    from niso.manifest.policy import parse_ingress
    from niso.plan.records import Policy

    back, front = AttachmentNetwork("backend"), AttachmentNetwork("front")
    one, two = PortMapping("", 8080, 80, "tcp"), PortMapping("", 8081, 80, "tcp")
    done = watched(world.kernel, lambda: attach(world, back, ports=(one,)))
    gone = own(world, "box")
    assert done == ended(ports=["8080"], recorded=gone)
    policy = Policy(allow_from=(parse_ingress("web", "policy.allow_from"),))
    done = watched(world.kernel, lambda: attach(world, front, ports=(two,), policy=policy))
    now = own(world, "box")
    assert world.store.network("backend") is None  # the network that it has left
    assert done == ended(gone, ["8080", "8081"], now, [*now, "10.99.1.0/24"])
    front_now = world.store.require_network("front")
    subnets = [subnet.cidr for subnet in front_now.subnets]
    done = watched(world.kernel, lambda: change_attach.detach(world.machine, "box"))
    assert done == ended(now, ["8081"], recorded=subnets)


# --- ports ----------------------------------------------------------------------------------------


def test_forward_ends_flows_of_its_port(world: World) -> None:
    port = PortMapping("", 9090, 80, "tcp")
    world.activate(world.package("api"), world.package("db"))
    machine = world.machine
    forward, end = port_forward.port_forward, port_forward.port_unforward
    moved = ended(ports=["9090"])
    assert watched(world.kernel, lambda: forward(machine, "api", port)) == moved
    assert watched(world.kernel, lambda: forward(machine, "db", port, replace=True)) == moved
    assert watched(world.kernel, lambda: end(machine, "db", port)) == moved
    # niso dies after the kernel has the port, and before the flows end
    assert not Steps(world, 3, True).run(lambda: forward(machine, "api", port))
    assert watched(world.kernel, lambda: journal.recover(world.machine)) == moved
    assert world.ports("api") == [port.text]
    world.assert_whole()


# --- outside names --------------------------------------------------------------------------------


def test_refresh_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open connections stay, whatever DNS answers."""
    now, answer = [1e6], ["203.0.113.1"]
    heard = lambda names: {name: (DnsAnswer(4, tuple(answer), 60.0),) for name in names}  # noqa: E731
    monkeypatch.setattr(outside_names_refresh, "ask", heard)
    monkeypatch.setattr(outside_names_refresh, "require", lambda: None)
    monkeypatch.setattr(outside_names_refresh.time, "time", lambda: now[0])
    policy = {"egress": {"allow": ["api.example.com"]}}
    world.activate(world.package("web", network={"policy": policy}))
    answer[0] = "203.0.113.2"
    for _ in range(3):
        now[0] += 400
        assert (
            watched(world.kernel, lambda: outside_names_refresh.refresh(world.machine)) == NOTHING
        )


def test_open_flow_to_an_address_that_a_network_takes_from_a_name_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = lambda names: {name: (DnsAnswer(4, ("203.0.113.1",), 60.0),) for name in names}  # noqa: E731
    monkeypatch.setattr(outside_names_refresh, "ask", heard)
    monkeypatch.setattr(outside_names_refresh, "require", lambda: None)
    policy = {"egress": {"allow": ["api.example.com"]}}
    world.activate(world.package("web", network={"policy": policy}))
    store, kernel = world.store, world.kernel
    kernel.policed = [untranslated(own(world, "web")[0], "203.0.113.1", 443)]
    near = NetworkRecord(
        "near", "niso-near", 1500, (SubnetRecord(4, "203.0.113.0/24", "203.0.113.254"),)
    )
    with change(kernel, store, Scope(("web",), ("near", "niso-default")), rows_first=True):
        store.add_network(near, implicit=False, now=0.0)
        store.outside.put([store.outside.answer("api.example.com")._replace(addresses=())])
    assert kernel.policed == []


# --- the protocol itself --------------------------------------------------------------------------


def swap_leases(world: World) -> None:
    """Record that api and db have each other's address; the caller is in a transaction."""
    db = world.store._db
    columns = [row[1] for row in db.execute("PRAGMA table_info(lease)") if row[1] != "service"]
    text = f"SELECT service, {', '.join(columns)} FROM lease"
    rows = db.execute(text).fetchall()
    db.execute("DELETE FROM lease")
    other = {"api": "db", "db": "api"}
    for service, *row in rows:
        marks = ", ".join("?" for _ in (service, *row))
        into = f"INSERT INTO lease (service, {', '.join(columns)}) VALUES ({marks})"
        db.execute(into, (other[service], *row))


def test_address_that_goes_from_one_service_to_another_takes_no_flow_with_it(world: World) -> None:
    world.activate(world.package("api"), world.package("db"))
    both = {*own(world, "api"), *own(world, "db")}
    scope = Scope(("api", "db"), ("niso-default",))

    def swap() -> None:
        with change(world.kernel, world.store, scope):
            swap_leases(world)

    assert watched(world.kernel, swap) == ended(both, recorded=both)


def test_rows_are_as_before_if_the_kernel_refuses_or_something_after_it_fails(world: World) -> None:
    world.activate(world.package("api"), world.package("db"))
    before, addresses = world.picture()[0], own(world, "api")
    scope = Scope(("api", "db"), ("niso-default",))

    def fails() -> None:
        assert own(world, "api") != addresses
        raise Error("too late")

    world.kernel.fail = lambda step: errno.ENOMEM
    with pytest.raises(Error), change(world.kernel, world.store, scope):
        swap_leases(world)
    world.kernel.fail = lambda step: 0
    assert world.picture()[0] == before
    with pytest.raises(Error, match="too late"), change(world.kernel, world.store, scope) as made:
        swap_leases(world)
        made.then(fails)
    assert world.picture()[0] == before and not made.is_recorded
    with pytest.raises(Error), change(world.kernel, world.store, scope, rows_first=True) as made:
        swap_leases(world)
        made.then(fails)
    assert made.is_recorded and own(world, "db") == addresses


# --- other hosts ----------------------------------------------------------------------------------


@pytest.fixture
def cluster(world: World) -> Cluster:
    return Cluster(world)


def held(cluster: Cluster, service: str) -> list[str]:
    claim = Claims(cluster.engine, "x").held(service)
    assert claim is not None
    return [address for some in claim.networks.values() for address in some]


def test_service_of_another_host_ends_its_flows_when_it_goes(cluster: Cluster) -> None:
    kernel = cluster.world.kernel
    cluster.claim("a", "api")
    assert watched(kernel, cluster.follow) == NOTHING
    gone = held(cluster, "api")
    cluster.release("a", "api")
    db = own(cluster.world, "db")
    assert watched(kernel, cluster.follow) == ended(gone, judged=db, recorded=gone)


def test_change_that_was_broken_off_is_taken_back_with_its_flows(cluster: Cluster) -> None:
    """For a moment db let in the address of api, which the rows say nothing of."""
    kernel, store = cluster.world.kernel, cluster.world.store
    cluster.claim("a", "api")
    made, db = held(cluster, "api"), own(cluster.world, "db")
    kernel.fail = lambda step: errno.ENOMEM * step.describe().startswith("bridge fdb")
    with pytest.raises(Error):
        cluster.follow()
    kernel.fail = lambda step: 0
    assert store.across.attempt() is not None

    def back() -> None:
        mirror.revert_attempt(store, kernel, lambda event: None)

    assert watched(kernel, back) == ended(made, judged=db, recorded=made)
    assert store.across.attempt() is None


def test_claim_that_is_dropped_ends_what_policies_allowed_by_it(cluster: Cluster) -> None:
    world = cluster.world
    api = world.package("api", network={"network": "backend"})
    world.activate(api)
    deactivate(world.machine, ["api"])
    drop = lambda: mirror.drop_claims(world.store, world.kernel, ["api"])  # noqa: E731
    assert watched(world.kernel, drop) == ended(judged=own(world, "db"))


def test_network_that_the_cluster_has_removed_ends_what_others_have_there(
    cluster: Cluster,
) -> None:
    world = cluster.world
    cluster.claim("a", "api")
    cluster.follow()
    gone = held(cluster, "api")
    deactivate(world.machine, ["db"])
    remove(world.machine, ["db"])
    drop = lambda: mirror.drop_network(world.store, world.kernel, "backend")  # noqa: E731
    assert watched(world.kernel, drop) == ended(gone, recorded=[*gone, *SUBNETS])


def test_link_between_hosts_that_changes_ends_nothing(cluster: Cluster) -> None:
    store, kernel = cluster.world.store, cluster.world.kernel
    hosts = [
        host._replace(public=f"{n:042}w=") for n, host in enumerate(cluster.membership.hosts())
    ]
    mine = next(host for host in hosts if host.name == ME)
    tunnel = encryption.tunnel(store.cluster_id(), 4789, encryption.KERNEL, mine)
    assert isinstance(tunnel, Tunnel)
    with store.transaction():
        store.across.set_tunnel(tunnel)
    follow = lambda: encryption.follow(store, kernel, hosts, ME)  # noqa: E731
    assert watched(kernel, follow) == NOTHING
    os.makedirs(os.path.dirname(paths.wireguard_key()))
    assert watched(kernel, lambda: encryption.renew(store, kernel)) == NOTHING
