"""Test networks that span hosts, by hand, by a service and by a stack; the host is b, with db on backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_world import KEYS, Hosted, create
from fake_world import World
from refusals import refuses

from niso.base.errors import Conflict, Error, NotFound
from niso.change import attach, networks, stacks
from niso.change.attach import AttachmentNetwork
from niso.change.deactivate import remove
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import NoAnswer
from niso.cluster.key_values import Spec
from niso.look import stack_members
from niso.plan.subnets import NetworkRequest


@pytest.fixture
def host(world: World) -> Hosted:
    return Hosted(world)


def test_network_appears_with_the_first_service_and_goes_with_the_last(host: Hosted) -> None:
    world = host.world
    host.membership.create_network(Spec("front", 0, 1430, (("10.99.7.0/24", "10.99.7.1"),)))
    other = Claims(host.engine, "c")
    made = other.claim(Wanted("web", ("front",), ("web",), {}, {}))
    other.publish("web", made.mark, up=True)
    assert host.activate(host.package("api", "front", "backend")) == "10.99.7.3"
    found = world.store.network("front")
    assert found is not None and found.span is not None and found.span.vni == 4098
    assert host.claims() == {("web", "198.51.100.3")}, "what others have is there at once"
    world.assert_whole()
    host.look()
    world.assert_whole()
    remove(world.machine, ["api"])
    assert world.store.network("front") is None and host.claims() == set()
    assert world.store.across.addresses() == {} and world.store.across.names("web") == ()
    world.assert_whole()


@pytest.mark.parametrize("how", ["detached", "attached elsewhere"])
def test_network_that_an_attachment_leaves_goes_with_what_others_have_there(
    host: Hosted, how: str
) -> None:
    world = host.world
    host.membership.create_network(Spec("front", 0, 1430, (("10.99.7.0/24", "10.99.7.1"),)))
    other = Claims(host.engine, "c")
    made = other.claim(Wanted("web", ("front",), ("web",), {}, {}))
    other.publish("web", made.mark, up=True)
    host.attach("box", AttachmentNetwork("front"))
    assert host.claims() == {("web", "198.51.100.3")}
    if how == "detached":
        attach.detach(world.machine, "box")
    else:
        host.attach("box", AttachmentNetwork("backend"))
    assert world.store.network("front") is None and host.claims() == set()
    world.assert_whole()


def test_network_that_the_cluster_does_not_have_is_this_hosts_own(host: Hosted) -> None:
    host.activate(host.package("api", "front"))
    assert host.held("api") is None
    found = host.world.store.network("front")
    assert found is not None and found.span is None
    host.engine.down = True
    with pytest.raises(NoAnswer, match="network 'other' may be one of the cluster"):
        host.activate(host.package("web", "other"))
    host.activate(host.package("web", "front"))  # known, so nobody is asked


def test_network_that_spans_is_made_taken_over_and_removed(host: Hosted) -> None:
    world = host.world
    before, revision = world.picture(), host.engine.get(KEYS.prefix).revision
    tried = networks.create(
        world.machine, NetworkRequest("front", ("10.99.7.0/24",), span=True), dry_run=True
    )
    assert tried is not None and tried.span is not None and tried.span.vni == 4098
    assert (world.picture(), host.engine.get(KEYS.prefix).revision) == (before, revision)
    made = create(host, "front", "10.99.7.0/24")
    assert made.span.vni == 4098 and made.mtu == 1450, "of 1500, without the header of VXLAN"
    spec = host.membership.network("front")
    assert spec == Spec("front", 4098, 1450, (("10.99.7.0/24", "10.99.7.1"),))
    assert create(host, "front", "10.99.7.0/24") is None
    world.assert_whole()
    networks.remove(world.machine, ["front"])
    assert host.membership.network("front") is None
    world.assert_whole()
    # one that another host made
    host.membership.create_network(Spec("side", 0, 1400, (("10.99.8.0/24", "10.99.8.9"),), True))
    with refuses(Conflict, hint="match it, or choose another name"):
        create(host, "side", "10.99.9.0/24")
    with refuses(Conflict, "backend", hint="match it, or choose another name"):
        networks.create(world.machine, NetworkRequest("backend", ("10.99.1.0/24",)))
    world.make("near", "10.99.60.0/24")
    host.membership.create_network(Spec("over", 0, 1400, (("10.99.60.0/23", "10.99.60.1"),)))
    with refuses(
        Conflict,
        "near",
        "10.99.60.0/24",
        hint="the cluster has it with this subnet: another one here has to go",
    ) as raised:
        host.activate(host.package("web", "over"))
    assert raised.value.hint == "the cluster has it with this subnet: another one here has to go"
    assert host.held("web") is None
    taken = create(host, "side", internal=True)
    assert (taken.mtu, taken.internal, taken.subnets[0].gateway) == (1400, True, "10.99.8.9")
    Claims(host.engine, "c").claim(Wanted("web", ("side",), ("web",), {}, {}))
    with refuses(
        Conflict, "web", "side", hint="it can be removed once they are removed or on other networks"
    ):
        networks.remove(world.machine, ["side"])
    with refuses(
        Conflict,
        "db",
        "backend",
        hint="it can be removed once they are removed or on other networks",
    ):
        networks.remove(world.machine, ["backend"])
    world.assert_whole()


def test_network_that_cannot_span_is_refused_and_nothing_has_changed(host: Hosted) -> None:
    world = host.world
    world.make("own", "10.98.0.0/24")
    before, revision = world.picture(), host.engine.get(KEYS.prefix).revision
    for name, subnets, more, match in (
        ("niso-default", (), {}, "each host's own"),
        ("own", (), {}, "on this host alone"),
        ("new", ("10.99.1.128/25",), {}, "overlaps"),
        ("new", (), {"mtu": 1451}, "packets of 1450 bytes fit"),
    ):
        with pytest.raises(Conflict, match=match):
            create(host, name, *subnets, **more)
    world.kernel.fail = lambda step: 12
    with pytest.raises(Error):
        create(host, "new")
    world.kernel.fail = lambda step: 0
    host.engine.down = True
    with pytest.raises(NoAnswer):
        create(host, "new")
    host.engine.down = False
    world.machine = world.machine._replace(joined=lambda: None)
    with refuses(Error, hint="niso cluster init makes one; niso cluster join FILE joins one"):
        create(host, "new")
    assert world.picture() == before
    assert {spec.name for spec in host.membership.networks()} == {"backend"}
    assert host.engine.get(KEYS.prefix).revision - revision in (0, 2)


def test_network_that_the_cluster_removed_goes_here_too(host: Hosted) -> None:
    create(host, "front", "10.99.7.0/24")
    host.membership.remove_network("front")
    host.look()
    assert host.world.store.network("front") is None
    host.world.assert_whole()


# --- stacks --------------------------------------------------------------------------------------


def spanning_stack(host: Hosted, *keys: str, service: str = "web") -> str:
    """Write a stack.toml of one service on a network front that spans hosts."""
    host.package(service, "front")
    path = host.world.stack(service, front="10.99.7.0/24")
    text = Path(path).read_text().replace('/24"\n', '/24"\nspan = true\n' + "\n".join(keys) + "\n")
    Path(path).write_text(text)
    return path


def test_stack_makes_a_network_that_spans_hosts(host: Hosted) -> None:
    path = spanning_stack(host, "observe = false")
    before = host.world.picture(), host.engine.get(KEYS.prefix)
    host.warned.clear()
    stacks.up(host.world.machine, stack_members.load(path), 5.0, True, False)
    assert (host.world.picture(), host.engine.get(KEYS.prefix)) == before
    assert host.warned == ["network front is not in the cluster yet, and would be made there"]
    assert host.world.up(path).networks == ("front",)
    front = host.world.store.require_network("front")
    assert front.span and not front.observe
    assert host.membership.network_names() == ["backend", "front"]
    assert host.held("web") and host.up("web") and host.record("web")
    revision = host.engine.get(KEYS.prefix).revision
    assert host.world.up(path).networks == ()
    assert host.engine.get(KEYS.prefix).revision == revision
    # it stays the cluster's when it goes here with its last service, and any host can remove it
    remove(host.world.machine, ["web"])
    assert host.world.store.network("front") is None
    host.membership.create_network(Spec("back", 0, 1430, (("10.99.8.0/24", "10.99.8.1"),), False))
    networks.remove(host.world.machine, ["front", "back"])
    assert host.membership.network_names() == ["backend"]
    with refuses(NotFound, "front", hint="niso net list lists them"):
        networks.remove(host.world.machine, ["front"])
    host.world.assert_whole()


def test_stack_takes_over_the_clusters_network_or_says_how_it_differs(host: Hosted) -> None:
    subnets = (("10.99.7.0/24", "10.99.7.1"),)
    made = host.membership.create_network(Spec("front", 0, 1430, subnets, False))
    host.world.up(spanning_stack(host))
    front = host.world.store.require_network("front")
    assert front.span and front.span.vni == made.vni and front.observe
    remove(host.world.machine, ["web"])
    with refuses(
        Conflict, key="networks.front", hint="match it, or choose another name", file="stack.toml"
    ) as told:
        host.world.up(spanning_stack(host, "internal = true"))
    assert told.value.key == "networks.front" and told.value.file
    host.world.make("front", "10.99.7.0/24")
    with refuses(
        Conflict, key="networks.front", hint="match it, or choose another name", file="stack.toml"
    ):
        host.world.up(spanning_stack(host))
    assert host.held("web") is None
    host.world.assert_whole()


def test_stack_that_fails_leaves_no_network_in_the_cluster(host: Hosted) -> None:
    path = spanning_stack(host)
    host.world.processes.fail = lambda what: what.startswith("start")
    with pytest.raises(Error):
        host.world.up(path)
    host.world.processes.fail = lambda what: False
    assert host.membership.network_names() == ["backend"]
    assert host.world.store.network("front") is None and host.held("web") is None
    host.engine.down = True
    with pytest.raises(NoAnswer):
        host.world.up(path)
    host.engine.down = False
    host.world.assert_whole()
