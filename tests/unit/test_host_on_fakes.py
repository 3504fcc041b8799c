"""Test what commands do to the host: names of links, neighbours, forwarding of others."""

from __future__ import annotations

import pytest
from fake_world import World

from niso.base import names
from niso.change.deactivate import deactivate, remove
from niso.kernel.kinds.sysctls import FORWARDING
from niso.kernel.link_records import Link
from niso.kernel.neighbour_tables import Table
from niso.kernel.nft_elements import Element
from niso.kernel.ruleset import INET
from niso.look.check import check, full_neighbour_tables

WEB = {"ports": ["8080:80"]}


@pytest.mark.parametrize(
    ("own", "refused", "said"),
    [
        (512, 7, None),
        (513, 7, "513 of its 1024 places taken by the host alone"),
        (1024, 7, "all its places taken by the host alone"),
        (2000, 7, "all its places taken by the host alone"),  # the limit was lowered
        (3, 9, "is full: it has refused 2 new neighbours"),
        (513, 9, "is full: it has refused 2 new neighbours"),
    ],
)
def test_neighbour_table_that_is_full_or_soon_will_be_is_named(
    own: int, refused: int, said: str | None
) -> None:
    before = [Table(4, own, 1024, 7), Table(6, 0, 1024, 7)]
    now = [Table(4, own, 1024, refused), Table(6, 0, 1024, 7)]
    warnings = full_neighbour_tables(before, now)
    assert [said in text and "IPv4" in text for text, _ in warnings] == [True] * (said is not None)
    assert all("net.ipv4.neigh.default.gc_thresh3=4096" in hint for _, hint in warnings)


# --- names of links --------------------------------------------------------------------------------------------------


@pytest.fixture
def clashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the digest in a link's name depend on the generation alone, so that two services clash."""

    real = names._digest

    def digest(text: str, length: int) -> str:
        last = text.rpartition("/")[2]
        return last.zfill(length)[-length:] if last.isdigit() else real(text, length)

    monkeypatch.setattr(names, "_digest", digest)


def links(world: World) -> dict[str, list[str]]:
    """Return the host ends of each namespace."""
    ends: dict[str, list[str]] = {}
    for veth in world.kernel.veths.values():
        ends.setdefault(veth.netns, []).append(veth.name)
    return {netns: sorted(named) for netns, named in ends.items()}


def test_service_does_not_take_over_the_link_of_one_whose_name_begins_alike(
    world: World, clashing: None
) -> None:
    world.activate(world.package("queue-one"))
    before = links(world)
    world.activate(world.package("queue-two"))
    assert links(world) == {**before, "niso-queue-two": ["niqueue-0000002"]}
    world.assert_whole()


def test_services_of_one_command_get_links_of_their_own(world: World, clashing: None) -> None:
    world.activate(*(world.package(name) for name in ("queue-one", "queue-two", "queue-three")))
    assert sorted(map(len, links(world).values())) == [1, 1, 1]
    world.assert_whole()
    deactivate(world.machine, ["queue-two"])
    world.activate(world.package("queue-four"))
    world.activate(world.package("queue-two"))
    assert sorted(map(len, links(world).values())) == [1, 1, 1, 1]
    world.assert_whole()


def test_link_of_an_interrupted_change_is_not_used_by_another_service(
    world: World, clashing: None
) -> None:
    world.activate(world.package("queue-one"))
    world.activate(world.package("queue-two"))
    taken = [name for named in links(world).values() for name in named]
    with world.store.transaction():
        world.store.begin_intent("queue-one", "activate", 0.0)
        world.store.forget("queue-one")
        known = world.store.endpoints_like("queue")
    assert sorted(names.veth(*endpoint) for endpoint in known) == sorted(taken)


def test_links_of_a_running_service_change_their_names_if_that_of_a_new_one_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = names._digest
    equal = {"queue-two/back/1": "queue-one/front/1"}
    monkeypatch.setattr(names, "_digest", lambda text, length: plain(equal.get(text, text), length))
    world.activate(world.package("queue-one", network={"networks": ["front"]}))
    world.activate(world.package("queue-two", network={"networks": ["side"]}))
    kept = links(world)["niso-queue-one"]
    world.activate(world.package("queue-two", network={"networks": ["side", "back"]}))
    assert links(world)["niso-queue-one"] == kept
    assert links(world)["niso-queue-two"] == sorted(
        names.veth("queue-two", network, 2) for network in ("side", "back")
    )
    world.assert_whole()


# --- forwarding of others --------------------------------------------------------------------------------------------

NAT = "ip nat POSTROUTING"


def test_forwarding_that_others_use_since_is_told_and_stays_on(world: World) -> None:
    world.kernel.sysctls["", FORWARDING] = "0"
    world.activate(world.package("api"))
    world.assert_whole()
    world.kernel.nat[NAT] = 1
    (finding,) = check(world.machine)
    assert finding.problem == "foreign" and NAT in finding.what
    assert check(world.machine, "api") == []
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "1"
    world.activate(world.package("api"))
    assert Element(INET, "closed", ("ipv4",)).key() not in world.kernel.elements
    world.assert_whole()


def test_former_links_stay_closed_and_later_ones_are_open(world: World) -> None:
    """An engine's bridge that came later keeps forwarding on after the last service, for later links only."""
    world.kernel.sysctls["", FORWARDING] = "0"
    world.kernel.routed = [link("br0", 7)]
    world.activate(world.package("api"))

    def closed() -> set[tuple[object, ...]]:
        return {
            (e.container, *e.fields)
            for e in world.kernel.elements.values()
            if e.container in ("closed", "later", "old_index", "old_name")
        }

    guard = {("closed", "ipv4"), ("later", "ipv4"), ("old_index", "ipv4", 7)}
    guard |= {("old_name", "ipv4", "br0")}
    assert closed() == guard
    world.kernel.routed.append(link("docker0", 8))
    world.kernel.nat[NAT] = 1
    assert check(world.machine) == []
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "1" and closed() == guard
    world.assert_whole()
    world.activate(world.package("api"))
    assert closed() == guard
    # without the bridge and its rules, all is as before niso; with them, also without niso's networks
    world.kernel.routed.pop()
    world.kernel.nat.clear()
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "0" and closed() == set()
    world.activate(world.package("api"))
    world.kernel.routed.append(link("docker0", 9))
    deactivate(world.machine, ["api"])
    remove(world.machine, ["api"])
    assert world.kernel.ruleset is None and world.kernel.sysctls["", FORWARDING] == "1"
    assert not world.store.sysctls_before() and not world.store.keeps_forwarding()


def link(name: str, index: int) -> Link:
    return Link(index, name, "bridge", 1500, "", True, 0, "", 0, False, False, False)


def test_forwarding_goes_off_with_the_last_service_if_all_nat_rules_are_older(
    world: World,
) -> None:
    world.kernel.sysctls["", FORWARDING] = "0"
    world.kernel.nat[NAT] = 2
    world.activate(world.package("api"), world.package("web"))
    deactivate(world.machine, ["web"])
    world.assert_whole()
    deactivate(world.machine, ["api"])
    assert world.kernel.sysctls["", FORWARDING] == "0"
