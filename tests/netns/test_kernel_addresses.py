"""Test niso.kernel.rtnetlink's addresses, routes and neighbours against iproute2."""

from __future__ import annotations

import errno
import pathlib

import pytest
from kernel_world import ALIAS, MAC, add_pair, ip, sh, throw_away_host

from niso.base.errors import KernelError
from niso.kernel import neighbour_tables, netns
from niso.kernel.kinds.addresses import Address, PermanentNeighbour, Route
from niso.kernel.kinds.kind import Step
from niso.kernel.netlink import Message
from niso.kernel.real import Kernel
from niso.kernel.rtnetlink import Rtnl


@throw_away_host
def test_link_local_address_has_scope_link_and_can_be_used_at_once() -> None:
    netns.create("niso-api")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
        bridge = rtnl.link("niso-b")
        assert bridge
        rtnl.add_address(bridge.index, "fe80::1/64")
        rtnl.add_address(bridge.index, "fe80::1/64")
        add_pair(rtnl)
        with netns.inside("niso-api"), Rtnl() as inner:
            link = inner.link("eth0")
            assert link
            inner.add_address(link.index, "fe80::2/64")  # while it is down
            inner.set_link("eth0", up=True)
        sh("ip netns exec niso-api ping -c 1 -w 10 -I fe80::2%eth0 fe80::1%eth0")
        for options, name, address in (
            ("", "niso-b", "fe80::1"),
            ("-n niso-api ", "eth0", "fe80::2"),
        ):
            shown = {a["local"]: a for a in ip(f"{options}-6 address show {name}")[0]["addr_info"]}
            assert (shown[address]["scope"], shown[address]["prefixlen"]) == ("link", 64)
            assert not {"tentative", "dadfailed"} & shown[address].keys()
        assert [(a.address, a.scope) for a in rtnl.addresses(bridge.index)] == [("fe80::1/64", 253)]
        rtnl.delete_address(bridge.index, "fe80::1/64")
        assert rtnl.addresses(bridge.index) == []


@throw_away_host
def test_steps_of_a_namespace_are_sent_together_and_the_refused_one_is_named() -> None:
    """A route that is there already is accepted if it is equal; otherwise it is the error's object."""
    netns.create("niso-api")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
        add_pair(rtnl)
    space, gateway = "niso-api", "10.99.1.1"
    objects = (
        Address(space, "eth0", "10.99.1.2/24", routed=False),
        Route(space, f"{gateway}/32", "", "eth0"),
        Route(space, "10.99.1.0/24", gateway, "eth0"),
        Route(space, "0.0.0.0/0", gateway, "eth0"),
        PermanentNeighbour("", "niso-b", "10.99.1.2", MAC),
        PermanentNeighbour(space, "eth0", gateway, "0a:00:00:00:00:01"),
    )
    sent: list[tuple[str, ...]] = []
    transact = Rtnl.transact

    def noted(self: Rtnl, *messages: Message) -> None:
        sent.append(tuple(message.what.partition(" ")[0] for message in messages))
        transact(self, *messages)

    Rtnl.transact = noted  # type: ignore[method-assign]
    with netns.inside(space), Rtnl() as inner:
        inner.set_link("eth0", up=True)
        index = inner.index("eth0")
        inner.add_route("0.0.0.0/0", gateway, index)  # an equal one
    sent.clear()
    Kernel().write([Step("add", each) for each in objects])
    assert sent[0] == ("add",) * 5 + ("delete", "add")
    assert {r["dst"] for r in ip(f"-n {space} route")} == {gateway, "10.99.1.0/24", "default"}
    (near,), (far,) = ip("neigh show dev niso-b"), ip(f"-n {space} neigh show dev eth0")
    assert near["lladdr"] == MAC and far["state"] == ["PERMANENT"]

    sh(f"ip -n {space} route flush dev eth0")
    sh(f"ip -n {space} neigh flush nud all dev eth0")
    sent.clear()
    Kernel().write([Step("add", each) for each in objects])
    assert [len(messages) for messages in sent] == [7, 2]  # one call for each namespace

    sh(f"ip -n {space} route del default")
    sh(f"ip -n {space} route add blackhole default")
    with pytest.raises(KernelError) as caught:
        Kernel().write([Step("add", each) for each in objects])
    assert (caught.value.errno, caught.value.space) == (errno.EEXIST, space)
    assert caught.value.obj == objects[3]


@throw_away_host
def test_routes_of_other_tables_and_links_are_left_out() -> None:
    with Rtnl() as rtnl:
        for name in ("niso-b", "niso-c"):
            rtnl.add_bridge(name, mtu=1500, alias=ALIAS)
        sh("ip route add 10.1.0.0/16 dev niso-b table 77")
        sh("ip route add 10.2.0.0/16 dev niso-b")
        sh("ip route add 10.3.0.0/16 dev niso-c")
        sh("ip route add unreachable 10.4.0.0/16")
        link = rtnl.link("niso-b")
        assert link
        assert [route.destination for route in rtnl.routes(link.index)] == ["10.2.0.0/16"]
        main = {route.destination for route in rtnl.routes() if "." in route.destination}
        assert main == {"10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"}
        assert [route.destination for route in rtnl.routes(table=77)] == ["10.1.0.0/16"]


@throw_away_host
def test_neighbour_tables_have_the_limit_and_count_what_it_is_about_in_this_namespace() -> None:
    """The tables are those of the machine: other tests may add entries meanwhile."""
    sh("ip netns add other")
    for where in ("ip", "ip -n other"):
        sh(f"{where} link add d0 type veth peer name d1")
        sh(f"{where} link set d0 up")

    def add(where: str, state: str, numbers: range) -> None:
        lines = [
            f"neigh add {start}{n} lladdr {MAC} dev d0 nud {state}\n"
            for start in ("10.0.0.", "fd00::")
            for n in numbers
        ]
        pathlib.Path("/run/batch").write_text("".join(lines))
        sh(f"{where} -b /run/batch")

    with Rtnl() as rtnl:
        before = {table.family: table for table in neighbour_tables.tables(rtnl)}
        add("ip", "permanent", range(1, 250))
        add("ip -n other", "permanent", range(1, 250))
        add("ip", "stale", range(250, 255))
        after = {table.family: table for table in neighbour_tables.tables(rtnl)}
    for family, name in ((4, "arp_cache"), (6, "ndisc_cache")):
        (shown,) = (each for each in ip(f"-s ntable show name {name}") if "entries" in each)
        assert after[family].most == shown["thresh3"]
        assert before[family].refused <= after[family].refused <= shown["table_fulls"]
        few = 4  # multicast addresses of links that have come up
        assert 5 <= after[family].own - before[family].own <= 5 + few
