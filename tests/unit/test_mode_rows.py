"""Test network modes without a kernel: desired state, store, allowed changes, scope."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.kernel import Fake
from modes_stored import ONE, TWO, policy, target
from refusals import refuses
from stored import TemporaryStore, add_network, put, service_spec

from niso.base import names
from niso.base.errors import Conflict, InvalidInput
from niso.change import scope, stop, undo
from niso.kernel import ruleset
from niso.kernel.kinds.addresses import Address
from niso.kernel.kinds.hosts_files import HostsFile, HostsLine
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import Ruleset
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired
from niso.plan.records import PortMapping
from niso.plan.verdict import decide
from niso.reconcile.live_world import read_world
from niso.runtime import oci, root
from niso.store.service_rows import Intent, encode_process, encode_service
from niso.store.snapshots import ALL
from niso.store.store import Store

P80, P90 = PortMapping("", 8080, 80, "tcp"), PortMapping("", 9090, 90, "tcp")


@pytest.fixture
def store() -> Store:
    """``api`` on network one, with a port."""
    store = Store.open()
    with store.transaction():
        add_network(store, ONE)
        add_network(store, TWO)
        put(
            store,
            "api",
            ("one",),
            ports=(P80,),
            hostname="web",
            manifest=encode_service(
                service_spec("api", network={"network": "one", "hostname": "web"})
            ),
        )
    return store


def share(
    store: Store, name: str = "side", provider: str = "api", ports: tuple[PortMapping, ...] = (P90,)
) -> None:
    with store.transaction():
        put(
            store,
            name,
            (),
            ports=ports,
            mode="share",
            provider=provider,
            manifest=encode_service(
                service_spec(name, network={"mode": "share", "share": provider})
            ),
        )


def elements(state: State, container: str) -> dict[str, tuple[str, str]]:
    return {
        e.text: (e.value_text, e.comment)
        for e in state[Element]
        if (e.table, e.container) == (ruleset.INET, container)
    }


# --- what is wanted --------------------------------------------------------------------------------------------------


def test_sharer_has_ports_at_its_providers_address_and_nothing_else(store: Store) -> None:
    before = desired(store.snapshot(ALL))
    share(store)
    after = desired(store.snapshot(ALL))
    assert elements(after, "publish_any4") == {
        "tcp . 8080": ("10.99.1.2 . 80", "api"),
        "tcp . 9090": ("10.99.1.2 . 90", "side"),
    }
    assert after.replace(Element, before[Element]).replace(HostsLine, before[HostsLine]) == before
    assert after[HostsLine] == {
        HostsLine("one", "10.99.1.1", "host.niso.local"),
        HostsLine("one", "10.99.1.2", "web.niso.local web api.niso.local api side.niso.local side"),
    }


def test_port_of_a_sharer_alone_gives_its_provider_what_a_port_needs(store: Store) -> None:
    with store.transaction():
        store.set_ports("api", ())
        store.end_publishing("api")
    share(store)
    state = desired(store.snapshot(ALL))
    assert [veth.hairpin for veth in state[Veth]] == [True]
    assert elements(state, "hairpin4") == {"10.99.1.2 . 10.99.1.2": ("10.99.1.1", "api")}
    assert {(bridge.name, bridge.tracked4) for bridge in state[Bridge]} == {
        ("niso-one", True),
        ("niso-two", False),
    }
    assert [
        s.value for s in state[Sysctl] if s.name == "net/ipv4/conf/niso-one/route_localnet"
    ] == ["1"]


def test_mode_host_wants_nothing_and_mode_none_a_namespace_and_a_file_of_its_own() -> None:
    store = Store.open()
    with store.transaction():
        put(store, "open", (), mode="host")
    assert desired(store.snapshot(ALL)) == State()
    with store.transaction():
        put(store, "alone", (), mode="none", hostname="hermit")
    state = desired(store.snapshot(ALL))
    own = "hermit.niso.local hermit alone.niso.local alone"
    assert state[Netns] == {Netns("niso-alone", names.alias(store.state_id()))}
    assert state[HostsFile] == {HostsFile("=alone")}
    assert state[HostsLine] == {
        HostsLine("=alone", "127.0.0.1", own),
        HostsLine("=alone", "::1", own),
    }
    assert {s.netns for s in state[Sysctl]} == {"niso-alone"}  # forwarding is nobody's need
    assert not state[Ruleset] | state[Element] | state[Veth] | state[Bridge] | state[Address]


def test_ports_of_a_sharer_move_with_its_provider(store: Store) -> None:
    share(store)
    with store.transaction():
        put(store, "api", ("two", "one"), ports=(P80,))
    assert (
        store.addresses("side")
        == store.addresses("api")
        == [("two", "10.99.2.2"), ("two", "fd00:2::2"), ("one", "10.99.1.2")]
    )
    assert store.port_families("side") == (4, 6)
    state = desired(store.snapshot(ALL))
    assert elements(state, "publish_any4")["tcp . 9090"] == ("10.99.2.2 . 90", "side")
    assert elements(state, "publish_any6")["tcp . 9090"] == ("fd00:2::2 . 90", "side")
    assert elements(state, "local_any4")['"niso-one" . tcp . 9090'] == ("10.99.1.2 . 90", "side")
    assert {network.name: network.publishes for network in store.networks()} == {
        "one": True,
        "two": True,
    }


def test_configuration_without_a_namespace_of_ones_own_has_no_network_entry() -> None:
    from oci_specs import PROFILE, SPEC

    def config(**changes: str) -> dict[str, object]:
        spec = SPEC._replace(**changes)  # type: ignore[arg-type]
        return oci.config(spec, "/b/root", "/etc/niso-hosts", oci.OciHost("/c", {}, PROFILE), ())

    kinds = [namespace["type"] for namespace in config()["linux"]["namespaces"]]  # type: ignore[index]
    on_host = config(netns="", hosts_folder="")
    left = [namespace["type"] for namespace in on_host["linux"]["namespaces"]]  # type: ignore[index]
    assert [kind for kind in kinds if kind not in left] == ["network"]
    assert all(mount["destination"] != "/etc/niso-hosts" for mount in on_host["mounts"])  # type: ignore[attr-defined]
    for key in ("capabilities", "noNewPrivileges", "user"):
        assert on_host["process"][key] == config()["process"][key]  # type: ignore[index]


def test_text_of_the_host_is_read_as_it_is() -> None:
    assert root.of_host("hosts") == Path("/etc/hosts").read_text(errors="surrogateescape")
    assert root.of_host("no-such-file") == ""


# --- names and policies ----------------------------------------------------------------------------------------------


def test_policy_that_names_a_sharer_means_its_provider_while_it_is_active(store: Store) -> None:
    with store.transaction():
        put(store, "db", ("one",))
        store.set_policy("db", policy("side"))

    def meant() -> tuple[str, ...]:
        members = store.snapshot(ALL).members
        return members[0].values if members else ()

    assert meant() == ()
    share(store)
    assert meant() == ("10.99.1.2",)
    world = read_world(Fake(), store)
    assert set(world.services) == {"api", "db"}
    assert world.services["api"].names == ("api", "side")
    assert world.services["api"].ports == (P80, P90)
    assert decide(world, "10.99.1.2", "10.99.1.3", 50, "tcp").passes
    with store.transaction():
        store.set_inactive("side")
    assert meant() == ()
    assert not decide(read_world(Fake(), store), "10.99.1.2", "10.99.1.3", 50, "tcp").passes


def test_name_of_a_service_without_addresses_means_nobody(store: Store) -> None:
    with store.transaction():
        put(store, "db", ("one",))
        put(store, "alone", (), mode="none")
        store.set_policy("db", policy("alone"))
    (member,) = store.snapshot(ALL).members
    assert (member.name, member.values) == ("alone", ())


# --- what may be -----------------------------------------------------------------------------------------------------


def test_provider_that_cannot_be_is_refused_with_the_next_step(store: Store) -> None:
    share(store)
    with store.transaction():
        put(store, "open", (), mode="host")
        put(store, "gone", ("one",))
        store.set_inactive("gone")
    for asked, words, hint in (
        ("nobody", "no service 'nobody' is known", "activate it first"),
        ("open", "has mode host", 'mode = "host"'),
        ("side", "it shares that of 'api'", 'share = "api"'),
        ("gone", "is not active", "niso activate gone"),
    ):
        with pytest.raises(Conflict, match=words) as caught:
            scope.provider_of(store, target("x", mode="share", share=asked), frozenset({"x"}))
        assert hint in (caught.value.hint or "")
    with store.transaction():
        put(store, "x", (), mode="none", hostname="other")
    with refuses(InvalidInput, key="network.share", hint="name another service"):
        scope.provider_of(store, target("x", mode="share", share="other"), frozenset({"x"}))
    assert (
        scope.provider_of(store, target("y", mode="share", share="web"), frozenset({"y"})) == "api"
    )
    assert scope.provider_of(store, target("y", mode="none"), frozenset({"y"})) is None
    # one that another command is at may be gone in a moment
    with store.transaction():
        store.begin_intent("api", "activate", 1.0)
    with refuses(Conflict, key="network.share", hint="try again when that command has finished"):
        scope.provider_of(store, target("y", mode="share", share="api"), frozenset({"y"}))
    assert (
        scope.provider_of(store, target("y", mode="share", share="api"), frozenset({"y", "api"}))
        == "api"
    )


def test_provider_cannot_end_while_it_is_shared_or_may_have_to_be_again(store: Store) -> None:
    share(store)
    for services in (["api"], ["api", "other"]):
        with refuses(
            Conflict, "api", "side", hint="it can end after these, or in the same command: side"
        ):
            stop.refuse(store, services)
    stop.refuse(store, ["side"])
    stop.refuse(store, ["side", "api"])
    # side has begun to become something else: if that is undone, it needs api again
    with store.transaction():
        store.begin_intent("side", "activate", 1.0)
        put(store, "side", (), mode="none")
    assert store.sharers("api") == []
    with refuses(Conflict, "side", hint="it can end after these, or in the same command: side"):
        stop.refuse(store, ["api"])
    with store.transaction():
        store.end_intent("side")
    stop.refuse(store, ["api"])


def test_provider_cannot_become_what_has_no_namespace(store: Store) -> None:
    share(store)
    row = store.service("api")
    assert row is not None
    host = row._replace(
        mode="host",
        networks=(),
        manifest=encode_service(service_spec("api", network={"mode": "host"})),
    )
    with refuses(
        Conflict,
        "host",
        "side",
        key="network.mode",
        hint="activate in the same command, with a mode other than share: side",
        file="api/manifest.toml",
    ):
        scope.check(store, [host], [])
    with refuses(Conflict, "api", hint="it can end after these, or in the same command: side"):
        scope.check(store, [], [row])


def test_sharers_follow_a_provider_that_shows_them_something_else(store: Store) -> None:
    from oci_specs import SPEC

    share(store)
    row, provider = store.service("side"), store.service("api")
    assert row is not None and provider is not None
    there = scope.home(
        store, "api", service_spec("api", network={"network": "one", "hostname": "web"}), None
    )
    assert there == scope.home(
        store, "side", service_spec("side", network={"mode": "share", "share": "api"}), "api"
    )
    with store.transaction():
        spec = SPEC._replace(
            service="side", **dict(zip(("netns", "hosts_folder", "hostname"), there, strict=True))
        )
        store.put_service(row._replace(spec=encode_process(spec), package="/usr"))
    same = target(
        "api", network="one", hostname="web", ports=["1:1"], aliases=["x"], ip="10.99.1.9"
    )
    assert [target.name for target in scope.with_followers(store, [same], ())] == ["api"]
    scope.check(store, [provider], [])
    for network in (
        {"network": "two", "hostname": "web"},
        {"network": "one"},
        {"mode": "none", "hostname": "web"},
    ):
        moved = provider._replace(
            manifest=encode_service(service_spec("api", network=network)),
            mode=str(network.get("mode", "bridge")),
        )
        with refuses(Conflict, "api", hint="try again"):
            scope.check(store, [moved], [])
        scope.check(store, [moved, row], [])
    assert scope.home(store, "open", service_spec("open", network={"mode": "host"}), None) == (
        "",
        "",
        "",
    )


# --- order of undoing ------------------------------------------------------------------------------------------------


def ordered(store: Store, *services: str) -> list[str]:
    found = [intent for name in services if (intent := store.intent(name))]
    assert len(found) == len(services)
    for each in (found, found[::-1]):
        assert [i.service for i in undo.in_order(store, each)] == [
            i.service for i in undo.in_order(store, found)
        ]
    return [intent.service for intent in undo.in_order(store, found)]


def begin(store: Store, *services: str, action: str = "activate") -> None:
    with store.transaction():
        for name in services:
            store.begin_intent(name, action, 1.0)


def test_sharer_that_was_made_with_its_provider_is_undone_first() -> None:
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, ONE)
        begin(store, "p", "s")
        with store.transaction():
            put(store, "p", ("one",))
        share(store, "s", "p")
        assert ordered(store, "p", "s") == ["s", "p"]


def test_sharer_comes_back_after_the_one_whose_namespace_it_was_in() -> None:
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, ONE)
            put(store, "p", ("one",))
        share(store, "s", "p")
        begin(store, "p", "s")
        with store.transaction():  # each is the other's now
            put(store, "s", ("one",))
        share(store, "p", "s")
        assert ordered(store, "p", "s") == ["p", "s"]


def test_sharer_that_stays_one_is_undone_after_its_provider_and_ended_before_it() -> None:
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, ONE)
            put(store, "p", ("one",))
        share(store, "s", "p")
        begin(store, "p", "s")
        assert ordered(store, "p", "s") == ["p", "s"]
        begin(store, "p", "s", action="deactivate")
        assert ordered(store, "p", "s") == ["s", "p"]


def test_order_of_what_cannot_be_ordered_is_still_one() -> None:
    with TemporaryStore() as store:
        with store.transaction():
            put(store, "a", (), mode="share", provider="b")
            put(store, "b", (), mode="share", provider="a")
        begin(store, "a", "b", action="remove")
        found = [intent for name in ("a", "b") if (intent := store.intent(name))]
        assert {intent.service for intent in undo.in_order(store, found)} == {"a", "b"}
        ports = Intent("c", "ports", json.dumps({"moved": []}))
        assert ports.before is None
