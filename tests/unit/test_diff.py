"""Test diff: steps in a valid order that produce the desired state and touch nothing else."""

from __future__ import annotations

import random
import re
import shlex

from fake_world import unguarded
from fakes.kernel import Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from ruleset_elements import element_of
from samples import samples
from snapshots_made import endpoint, everything, network, snapshots

from niso.base.errors import KernelError
from niso.base.names import BRIDGE_GROUP
from niso.kernel import ruleset
from niso.kernel.kinds.addresses import Route
from niso.kernel.kinds.hosts_files import HostsEdit
from niso.kernel.kinds.kind import State, Step, diff
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired
from niso.plan.records import PlannedService, PortMapping

BOUNDED = settings(max_examples=samples(30, 120), deadline=None)

BACKEND, FRONT = network(0), network(1)
API = PlannedService(
    "api", 1, (endpoint(BACKEND, 2),), (PortMapping("", 8080, 80, "tcp"),), ("api",)
)
DB = PlannedService("db", 1, (endpoint(BACKEND, 3),), (), ("db",))


def state(*services: PlannedService, networks: tuple = (BACKEND, FRONT)) -> State:
    return desired(everything(networks, services))


def apply(kernel: Fake, want: State) -> list:
    """Do what diff says, one step after the other, looking at each moment that nothing stands unguarded."""
    steps = diff(want, kernel.everything(want))
    for step in steps:
        guarded_so_far = not unguarded(kernel)
        kernel.do(step)
        assert not guarded_so_far or not unguarded(kernel), f"after {step.describe()}"
    return steps


def same(have: State, want: State) -> bool:
    """Equal but for sysctls, which have no end of their own."""
    return have.replace(Sysctl, want[Sysctl]) == want and want[Sysctl] <= have[Sysctl]


@BOUNDED
@given(snapshots())
def test_equal_states_give_no_step(snapshot) -> None:
    assert diff(desired(snapshot), desired(snapshot)) == []


@BOUNDED
@given(snapshots(), snapshots())
def test_steps_make_what_is_there_into_what_should_be(before, after) -> None:
    kernel = Fake(strict=True)
    apply(kernel, desired(before))
    want = desired(after)
    apply(kernel, want)
    assert same(kernel.everything(want), want)
    assert diff(want, kernel.everything(want)) == []


@BOUNDED
@given(st.lists(snapshots(), min_size=2, max_size=6))
def test_walks_over_many_states_end_where_they_should(walk) -> None:
    kernel = Fake(strict=True)
    for snapshot in walk:
        want = desired(snapshot)
        apply(kernel, want)
        assert same(kernel.everything(want), want)
        assert apply(kernel, want) == []


@BOUNDED
@given(snapshots(), snapshots(), st.integers(0, 200))
def test_whatever_step_it_dies_after_the_next_run_converges(before, after, stops_after) -> None:
    kernel = Fake(strict=True)
    apply(kernel, desired(before))
    want = desired(after)
    for step in diff(want, kernel.everything(want))[:stops_after]:
        kernel.do(step)
    apply(kernel, want)
    assert same(kernel.everything(want), want)


@BOUNDED
@given(snapshots(), st.randoms(use_true_random=False))
def test_whatever_is_lost_comes_back_and_nothing_else_is_touched(
    snapshot, chance: random.Random
) -> None:
    want = desired(snapshot)
    kernel = Fake(strict=True)
    apply(kernel, want)
    lost: set[str] = set()
    for name in sorted(kernel.veths):
        if chance.random() < 0.3:
            lost.add(name)
            kernel.lose_veth(name)
    for name in sorted(kernel.netns):
        if chance.random() < 0.3:
            lost |= {veth.name for veth in kernel.veths.values() if veth.netns == name} | {name}
            kernel.lose_netns(name)
    gone_elements = [
        key for key in sorted(kernel.elements) if chance.random() < 0.1 and key[1] != "owner"
    ]
    for key in gone_elements:
        del kernel.elements[key]
    steps = diff(want, kernel.everything(want))
    kernel.write(steps)
    assert same(kernel.everything(want), want)
    added = {
        s.obj.name
        for s in steps
        if isinstance(s, Step) and isinstance(s.obj, Veth | Netns | Bridge)
    }
    # a namespace that is made anew takes all of its pairs with it
    assert added <= lost | {veth.name for veth in want[Veth] if veth.netns in lost}
    statements = [line for s in steps if isinstance(s, NftTransaction) for line in s.statements]
    assert len(statements) == len(gone_elements)


@BOUNDED
@given(snapshots(), snapshots())
def test_steps_touch_nothing_that_is_equal(before, after) -> None:
    have, want = desired(before), desired(after)
    if have[Ruleset] != want[Ruleset]:
        return
    equal = set(have) & set(want)
    ends = {(veth.netns, veth.peer) for veth in have[Veth] - want[Veth]}
    for step in diff(want, have):
        if isinstance(step, Step):
            # an address, route or sysctl of a link that is made anew is made again with it
            link = getattr(step.obj, "link", None)
            if isinstance(step.obj, Sysctl):
                link = step.obj.name.split("/")[3] if "/neigh/" in step.obj.name else None
            lies_on = (getattr(step.obj, "netns", None), link)
            assert step.obj not in equal or lies_on in ends
        elif isinstance(step, HostsEdit):
            assert step.create or not equal & {*step.remove, *step.add}
        else:
            unchanged = {e.statement("add") for e in want[Element] & have[Element]}
            assert not unchanged & set(step.statements)


@BOUNDED
@given(snapshots(), snapshots())
def test_nft_additions_come_before_links_and_guards_go_after_them(before, after) -> None:
    have, want = desired(before), desired(after)
    steps = diff(want, have)
    transactions = [i for i, step in enumerate(steps) if isinstance(step, NftTransaction)]
    assert len(transactions) <= 2
    for i in transactions:
        adds = [s for s in steps[i].statements if s.startswith("add element")]
        assert not adds or i == 0
        guards = [
            s
            for s in steps[i].statements
            if s.startswith("delete element") and s.split()[4] in ruleset.LATE
        ]
        # a guard whose element only changes is deleted and added in one transaction
        keys = {
            re.split(r" (?:limit|comment) ", s)[0].removeprefix("add ").removesuffix(" }")
            for s in adds
        }
        guards = [s for s in guards if s.removeprefix("delete ").removesuffix(" }") not in keys]
        # sysctls of links that were made are the last
        assert not guards or all(
            isinstance(step, Step) and isinstance(step.obj, Sysctl) for step in steps[i + 1 :]
        )


def test_first_service_is_made_referents_first_and_taken_away_in_reverse() -> None:
    empty, one = State(), state(API, networks=(BACKEND,))
    kind_of = [
        type(s.obj).__name__ if isinstance(s, Step) else type(s).__name__ for s in diff(one, empty)
    ]
    assert list(dict.fromkeys(kind_of)) == [
        *(
            "NftTransaction",
            "RoutingRule",
            "Bridge",
            "Netns",
            "Sysctl",
            "Veth",
            "Address",
            "Route",
            "PermanentNeighbour",
        ),
        "HostsEdit",
    ]
    kind_of = [
        type(s.obj).__name__ if isinstance(s, Step) else type(s).__name__ for s in diff(empty, one)
    ]
    assert list(dict.fromkeys(kind_of)) == [
        *("HostsFile", "Veth", "Netns", "Bridge", "RoutingRule", "NftTransaction")
    ]


def test_service_that_goes_deletes_only_its_link_namespace_and_elements() -> None:
    """The link first: who holds the namespace must not have it on the bridge when its guards are gone."""
    steps = diff(state(DB), state(API, DB))
    (link,) = {veth.name for veth in state(API, DB)[Veth] - state(DB)[Veth]}
    assert [s.obj.key()[-1] for s in steps if isinstance(s, Step) and s.action == "delete"] == [
        "10.99.0.2",
        link,
        "niso-api",
    ]
    (transaction,) = [s for s in steps if isinstance(s, NftTransaction)]
    assert transaction is steps[-1]
    assert len(transaction.statements) == len(state(API, DB)[Element] - state(DB)[Element])


def test_networks_that_change_places_take_both_pairs_away_before_either_comes_back() -> None:
    both = API._replace(endpoints=(endpoint(BACKEND, 2), endpoint(FRONT, 2)))
    turned = API._replace(endpoints=(endpoint(FRONT, 2), endpoint(BACKEND, 2)))
    actions = [
        s.action
        for s in diff(state(turned), state(both))
        if isinstance(s, Step) and isinstance(s.obj, Veth)
    ]
    assert actions == ["delete", "delete", "add", "add"]


def test_service_that_moves_to_another_network_frees_eth0_first() -> None:
    moved = API._replace(endpoints=(endpoint(FRONT, 2),))
    actions = [
        s.action
        for s in diff(state(moved), state(API))
        if isinstance(s, Step) and isinstance(s.obj, Veth)
    ]
    assert actions == ["delete", "add"]


def test_new_address_comes_before_the_old_one_goes_and_route_stays() -> None:
    moved = API._replace(endpoints=(endpoint(BACKEND, 9),))
    steps = [s for s in diff(state(moved), state(API)) if isinstance(s, Step)]
    assert [(s.action, s.obj.address) for s in steps] == [
        ("add", "10.99.0.9/24"),
        ("add", "10.99.0.9"),  # the host's neighbour entry
        ("delete", "10.99.0.2"),
        ("delete", "10.99.0.2/24"),
    ]


def test_lost_tables_come_back_with_all_elements_in_one_transaction() -> None:
    want = state(API, DB)
    (step,) = diff(want, want.replace(Ruleset, ()).replace(Element, ()))
    assert isinstance(step, NftTransaction)
    assert step.statements[:3] == (
        "destroy table inet niso",
        "destroy table bridge niso",
        ruleset.TABLES,
    )
    assert len(step.statements) == 3 + len(want[Element])


def test_rules_of_another_version_are_replaced_in_one_transaction() -> None:
    want = state(API)
    (step,) = diff(want, want.replace(Ruleset, [Ruleset("0ld")]))
    assert isinstance(step, NftTransaction)
    assert step.statements[2] == ruleset.TABLES


def test_bridge_of_an_earlier_version_gets_its_group_before_the_rules_that_compare_it() -> None:
    """The other settings of a bridge are still changed after the rules."""
    want = state(API, networks=(BACKEND,))
    (bridge,) = want[Bridge]
    for more in ("", "stp_state 1"):
        drift = ", ".join(filter(None, ("group 0", more)))
        have = want.replace(Ruleset, [Ruleset("0ld")])
        first, rules, *last = diff(want, have.replace(Bridge, [bridge._replace(drift=drift)]))
        assert first == Step("change", bridge._replace(drift=more), bridge._replace(drift=drift))
        assert first.describe() == f"ip link set niso-backend group {BRIDGE_GROUP}"
        assert isinstance(rules, NftTransaction)
        changes = [step for step in last if isinstance(step, Step)]
        assert changes == [Step("change", bridge, bridge._replace(drift=more))] * bool(more)


def test_rules_of_another_version_and_a_service_that_goes_at_once_leave_it_guarded_to_its_end() -> (
    None
):
    kernel = Fake(strict=True)
    apply(kernel, state(API, DB))
    kernel.ruleset = "0ld"
    apply(kernel, state(DB, networks=(BACKEND,)))
    assert same(kernel.everything(state(DB, networks=(BACKEND,))), state(DB, networks=(BACKEND,)))


def test_rebuilt_rules_keep_a_guard_that_is_wanted_though_its_link_goes() -> None:
    """Such an element is deleted with no link: the rules need it for something else."""
    want = state(API)
    have = want.replace(Ruleset, {Ruleset("00000000")})
    (pair,) = want[Veth]
    steps = diff(want.replace(Veth, frozenset()), have)
    assert Step("delete", pair) in steps
    assert [step for step in steps if isinstance(step, NftTransaction)] == [steps[0], steps[-1]]
    assert all("add element" in line and "owner" in line for line in steps[-1].statements)


def test_sysctl_that_nobody_wants_is_left_alone() -> None:
    have = State({Sysctl("", "net/ipv4/ip_forward", "1")})
    assert diff(State(), have) == []


def sysctl_steps(want: dict[str, str], have: dict[str, str]) -> list[str]:
    states = [
        State(Sysctl("", name, value) for name, value in each.items()) for each in (want, have)
    ]
    return [step.describe() for step in diff(*states)]


def test_host_is_told_to_keep_its_routers_before_it_forwards() -> None:
    """accept_ra 1 and forwarding: the kernel forgets what it has learned from routers (net/ipv6/addrconf.c)."""
    conf = "net/ipv6/conf"
    want = {
        f"{conf}/all/forwarding": "1",
        f"{conf}/uplink0/accept_ra": "2",
        f"{conf}/default/accept_ra": "2",
    }
    have = {
        f"{conf}/all/forwarding": "0",
        f"{conf}/uplink0/accept_ra": "1",
        f"{conf}/default/accept_ra": "1",
    }
    assert sysctl_steps(want, have) == [
        f"sysctl -w '{conf}/default/accept_ra=2'",
        f"sysctl -w '{conf}/uplink0/accept_ra=2'",
        f"sysctl -w '{conf}/all/forwarding=1'",
    ]
    assert sysctl_steps(have, want)[-1] == f"sysctl -w '{conf}/all/forwarding=0'"
    assert sysctl_steps(want, want) == []


def test_link_that_was_a_router_by_itself_is_one_again_after_the_forwarding_of_all_has_reset_it() -> (
    None
):
    conf = "net/ipv6/conf"
    want = {f"{conf}/all/forwarding": "0", f"{conf}/eth9/forwarding": "1"}
    have = {f"{conf}/all/forwarding": "1", f"{conf}/eth9/forwarding": "1"}
    assert sysctl_steps(want, have) == [
        f"sysctl -w '{conf}/all/forwarding=0'",
        f"sysctl -w '{conf}/eth9/forwarding=1'",
    ]
    # nothing resets it where all stays as it is
    assert sysctl_steps(want, want) == []
    kernel = Fake(strict=True)
    kernel.foreign_links = {"eth9": ""}
    wanted = State(Sysctl("", name, value) for name, value in want.items())
    kernel.sysctls = {("", name): value for name, value in have.items()}
    kernel.write(diff(wanted, kernel.everything(wanted)))
    assert kernel.everything(wanted) == wanted


def test_bridge_that_begins_to_track_is_changed_in_place() -> None:
    before, after = (
        state(API._replace(ports=()), networks=(BACKEND,)),
        state(API, networks=(BACKEND,)),
    )
    words = [
        step.describe()
        for step in diff(after, before)
        if isinstance(step, Step) and isinstance(step.obj, Bridge)
    ]
    assert words == [
        "ip link set niso-backend mtu 1500 type bridge nf_call_iptables 1 nf_call_ip6tables 0"
    ]


def test_port_that_moves_to_another_service_goes_and_comes_in_one_transaction() -> None:
    after = state(API._replace(ports=()), DB._replace(ports=API.ports))
    transactions = [
        step for step in diff(after, state(API, DB)) if isinstance(step, NftTransaction)
    ]
    (moved,) = [
        step for step in transactions if any("publish_any4" in line for line in step.statements)
    ]
    assert [line.split()[0] for line in moved.statements if "publish_any4" in line] == [
        "delete",
        "add",
    ]


def test_range_that_grows_goes_and_comes_in_one_transaction() -> None:
    kernel = Fake(strict=True)
    short, long = (
        state(API._replace(ports=(PortMapping("", 8000, 8000, "tcp", count),))) for count in (5, 9)
    )
    for want in (short, long, short):
        steps = apply(kernel, want)
        assert sum(isinstance(step, NftTransaction) for step in steps) == 1
        assert same(kernel.everything(want), want)


def test_pair_whose_namespace_lost_its_name_is_made_anew() -> None:
    want = state(API)
    (veth,) = want[Veth]
    stray = veth._replace(netns="", peer="", mac="")
    gone = (Netns, Veth, Route)
    kept = (t for t in want if not isinstance(t, gone) and not getattr(t, "netns", ""))
    have = State([*kept, stray])
    steps = [(s.action, type(s.obj)) for s in diff(want, have)]
    assert [s for s in steps if s[1] is Veth] == [("delete", Veth), ("add", Veth)]
    assert steps[0] == ("add", Netns)


@BOUNDED
@given(snapshots(), snapshots())
def test_descriptions_are_lines_that_a_shell_reads(before, after) -> None:
    for step in diff(desired(after), desired(before)):
        for line in step.describe().splitlines():
            words = shlex.split(line, comments=True)
            if isinstance(step, NftTransaction):
                assert words[0] == "nft"
                assert ";" not in line or len(words) == 2, "the shell would cut it in two"
            elif isinstance(step, Step) and words[0] != "hosts":
                if "internal is " in line:
                    continue  # of no real network
                assert words[0] in ("ip", "sysctl", "bridge")
                assert "&&" not in words or words[words.index("&&") + 1] in ("ip", "bridge")
        if isinstance(step, NftTransaction) and step.statements[0].split()[0] in ("add", "delete"):
            assert [shlex.split(line)[1:] for line in step.describe().splitlines()] == [
                [s] for s in step.statements
            ]
        if not isinstance(step, NftTransaction):
            assert len(step.describe().splitlines()) == 1


def test_fake_kernel_refuses_what_the_kernel_refuses() -> None:
    kernel = Fake(strict=True)
    apply(kernel, state(API._replace(ports=(*API.ports, PortMapping("", 9000, 9000, "tcp", 11)))))
    key = "tcp . 8080"

    def add(*fields: str) -> NftTransaction:
        return NftTransaction((("add", element_of(*fields)),))

    refused = (
        NftTransaction((f"add element inet niso publish_any4 {{ {key} : 10.99.0.7 . 80 }}",)),
        NftTransaction((("delete", element_of("publish_any4", "tcp . 9", "10.99.0.7 . 80")),)),
        add("range_any4", "tcp . 9010-9020", "10.99.0.2"),
        add("subnets4", "10.99.0.128/25"),
        Step("add", next(iter(kernel.bridges.values()))),
        Step("add", next(iter(kernel.netns.values()))),
        Step("add", next(iter(kernel.addresses))),
        Step("delete", Bridge("niso-x", 1500, "")),
        Step("add", next(iter(kernel.veths.values()))._replace(name="other", netns="niso-none")),
        Step("add", next(iter(kernel.veths.values()))._replace(name="other")),
        Step("add", next(iter(kernel.routes.values()))),
        Step("add", Sysctl("niso-none", "net/ipv4/ip_forward", "1")),
    )
    before = kernel.everything(state(API))
    for step in refused:
        try:
            kernel.do(step)
        except KernelError:
            pass
        else:
            raise AssertionError(f"taken: {step}")
        assert kernel.everything(state(API)) == before


def test_checksums_stay_made_while_the_pair_lives() -> None:
    """A service that loses NET_RAW keeps it until its process has been restarted."""
    before, after = state(API._replace(raw=True)), state(API)
    assert {veth.sums for veth in before[Veth]} == {True}
    assert diff(after, before) == []
    assert [step.describe() for step in diff(before, after)] == [
        "ip netns exec niso-api ethtool -K eth0 tx off"
        f" && ethtool -K {next(iter(after[Veth])).name} gro on"
    ]
