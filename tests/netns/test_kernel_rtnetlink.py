"""niso.kernel.rtnetlink against iproute2's view of the same kernel."""

from __future__ import annotations

import errno
import json
import os
import pathlib
from collections.abc import Callable

import pytest
from kernel_world import ALIAS, MAC, add_pair, ip, nft, sh, throw_away_host

from niso.base.errors import KernelError
from niso.kernel import link_records, netns
from niso.kernel.rtnetlink import Rtnl


def names() -> set[str]:
    return {link["ifname"] for link in ip("link")}


@throw_away_host
def test_new_bridge_is_up_and_marked_without_stp_snooping_or_link_local_address() -> None:
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
    (link,) = ip("link show niso-b")
    data = link["linkinfo"]["info_data"]
    assert link["linkinfo"]["info_kind"] == "bridge"
    assert "UP" in link["flags"]
    assert (link["mtu"], link["ifalias"], link["inet6_addr_gen_mode"]) == (1400, ALIAS, "none")
    assert (
        data["stp_state"],
        data["forward_delay"],
        data["mcast_snooping"],
        data["mcast_querier"],
    ) == (0, 0, 0, 0)
    assert ip("address show niso-b")[0]["addr_info"] == []


@pytest.mark.parametrize("mtu", [1400, 1500, 1501, 65535])
@throw_away_host
def test_bridge_keeps_its_mac_and_mtu_as_ports_come_and_go(mtu: int) -> None:
    def both() -> tuple[str, int]:
        (link,) = ip("link show niso-b")
        return link["address"], link["mtu"]

    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=mtu, alias=ALIAS, mac="0e:ff:ff:ff:ff:fe")
        assert both() == ("0e:ff:ff:ff:ff:fe", mtu)
        sh("ip link add low address 02:00:00:00:00:01 mtu 1300 type veth peer lower")
        rtnl.set_link("low", master="niso-b")
        assert both() == ("0e:ff:ff:ff:ff:fe", mtu)
        rtnl.delete_link("low")
    assert both() == ("0e:ff:ff:ff:ff:fe", mtu)


def calls(bridge: str) -> tuple[int, int]:
    data = ip(f"link show {bridge}")[0]["linkinfo"]["info_data"]
    return data["nf_call_iptables"], data["nf_call_ip6tables"]


def sysctls() -> dict[str, str]:
    return {file.name: file.read_text() for file in pathlib.Path("/proc/sys/net/bridge").iterdir()}


@pytest.mark.parametrize("everywhere", ["0", "1"])
@throw_away_host
def test_bridge_has_its_own_nf_call_and_the_sysctls_stay(everywhere: str) -> None:
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        pathlib.Path("/proc/sys/net/bridge", name).write_text(everywhere)
    before = sysctls()
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-a", mtu=1500, alias=ALIAS)
        rtnl.add_bridge("niso-b", mtu=1500, alias=ALIAS, call_iptables=True)
        rtnl.add_bridge("niso-c", mtu=1500, alias=ALIAS, call_ip6tables=True)
        assert (calls("niso-a"), calls("niso-b"), calls("niso-c")) == ((0, 0), (1, 0), (0, 1))
        rtnl.set_link("niso-b", mtu=1400)
        rtnl.set_calls("niso-b", None, call_ip6tables=True)
        assert (calls("niso-b"), ip("link show niso-b")[0]["mtu"]) == ((1, 1), 1400)
        rtnl.set_calls("niso-b", call_iptables=False, call_ip6tables=None)
        assert calls("niso-b") == (0, 1)
        rtnl.set_calls("niso-b", call_iptables=True, call_ip6tables=False)
        assert calls("niso-b") == (1, 0)
        rtnl.set_link("niso-b", up=True)
        assert calls("niso-b") == (1, 0)
        sh("ip link add p1 type veth peer p2")
        with pytest.raises(KernelError, match="'p1'"):
            rtnl.set_calls("p1", call_iptables=True, call_ip6tables=None)
    assert sysctls() == before


@pytest.mark.parametrize(
    ("network", "family"), [("10.99.1.{}/24", "ipv4"), ("fd00:99::{}/64", "ipv6")]
)
@throw_away_host
def test_only_a_bridge_that_calls_shows_its_frames_to_the_forward_hook(
    network: str, family: str
) -> None:
    for file in pathlib.Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        file.write_text("0")
    nft(
        f"table inet t {{\n chain c {{ type filter hook forward priority 0; meta nfproto {family} counter; }}\n}}"
    )

    def seen() -> int:
        listed = json.loads(sh("nft -j list chain inet t c"))["nftables"]
        return next(
            int(e["counter"]["packets"])
            for t in listed
            if "rule" in t
            for e in t["rule"]["expr"]
            if "counter" in e
        )

    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1500, alias=ALIAS)
        for number in (2, 3):
            netns.create(f"niso-{number}")
            fd = netns.open_fd(f"niso-{number}")
            mac = f"0a:00:00:00:00:0{number}"
            rtnl.add_veth(
                f"ni{number}",
                peer="eth0",
                peer_netns_fd=fd,
                peer_mac=mac,
                mtu=1500,
                bridge="niso-b",
                port=link_records.new_port(hairpin=False, learns=True),
                alias=ALIAS,
            )
            os.close(fd)
            with netns.inside(f"niso-{number}"), Rtnl() as inner:
                inner.set_link("eth0", up=True)
                link = inner.link("eth0")
                assert link
                inner.add_address(link.index, network.format(number))
        ping = f"ip netns exec niso-2 ping -c 1 -w 10 {network.format(3).partition('/')[0]}"
        sh(ping)
        assert seen() == 0
        rtnl.set_calls("niso-b", call_iptables=family == "ipv4", call_ip6tables=family == "ipv6")
        sh(ping)
        assert seen() >= 2  # echo and reply; of IPv6 also neighbour discovery
        rtnl.set_calls("niso-b", call_iptables=family != "ipv4", call_ip6tables=family != "ipv6")
        before = seen()
        sh(ping)
        assert seen() == before


@throw_away_host
def test_creating_over_a_foreign_link_fails_and_leaves_it_as_it_was() -> None:
    netns.create("niso-api")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1500, alias=ALIAS)
        sh("ip link add foreign mtu 1280 type bridge")
        before = ip("link show foreign")[0]
        creations: tuple[Callable[[], None], ...] = (
            lambda: rtnl.add_bridge("foreign", mtu=1500, alias=ALIAS),
            lambda: add_pair(rtnl, "foreign"),
        )
        for create in creations:
            with pytest.raises(KernelError, match="'foreign'") as caught:
                create()
            assert caught.value.errno == errno.EEXIST
            after = ip("link show foreign")[0]
            assert (after["flags"], after["mtu"], after.get("ifalias"), after.get("master")) == (
                before["flags"],
                1280,
                None,
                None,
            )
    assert names() == {"lo", "niso-b", "foreign"}


@throw_away_host
def test_new_veth_joins_the_bridge_and_the_namespace() -> None:
    netns.create("niso-api")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
        add_pair(rtnl)
        add_pair(rtnl, "niapi-2", "eth1", hairpin=False)
    near, second = ip("link show niapi-1")[0], ip("link show niapi-2")[0]
    far = ip("-n niso-api link show eth0")[0]
    assert (near["master"], near["ifalias"], near["mtu"], near["link_netnsid"]) == (
        "niso-b",
        ALIAS,
        1400,
        0,
    )
    assert (near["inet6_addr_gen_mode"], "UP" in near["flags"]) == ("none", True)
    assert near["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert second["linkinfo"]["info_slave_data"]["hairpin"] is False
    assert (far["address"], far["mtu"], far["link_index"]) == (MAC, 1400, near["ifindex"])
    assert near["link_index"] == far["ifindex"]


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"bridge": "absent"}, errno.ENODEV),
        ({"bridge": "plain"}, errno.EOPNOTSUPP),  # fails after the pair was made
        ({"peer": "taken"}, errno.EEXIST),
        ({"name": "sixteen-letters-"}, errno.ERANGE),
    ],
)
@throw_away_host
def test_veth_that_fails_leaves_nothing(options: dict[str, str], number: int) -> None:
    netns.create("niso-api")
    sh("ip link add plain type veth peer plain2")
    sh("ip -n niso-api link add taken type veth peer taken2")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
        with pytest.raises(KernelError) as caught:
            add_pair(rtnl, **options)  # type: ignore[arg-type]
    assert caught.value.errno == number
    assert names() == {"lo", "plain", "plain2", "niso-b"}
    assert {link["ifname"] for link in ip("-n niso-api link")} == {"lo", "taken", "taken2"}


@throw_away_host
def test_reader_sees_links_as_iproute2_does() -> None:
    netns.create("niso-api")
    with Rtnl() as rtnl:
        for bridge in ("niso-b", "niso-c"):
            rtnl.add_bridge(bridge, mtu=1400, alias=ALIAS)
        sh("ip link set niso-c type bridge nf_call_iptables 1 nf_call_ip6tables 1")
        add_pair(rtnl)
        sh("ip link add p1 type veth peer p2")
        seen = {link.name: link for link in rtnl.links()}
        shown = {link["ifname"]: link for link in ip("link")}
        index = {link["ifname"]: link["ifindex"] for link in shown.values()}
        assert seen.keys() == shown.keys()
        for name, link in seen.items():
            there = shown[name]
            info = there.get("linkinfo", {})
            data = info.get("info_data", {})
            assert link == rtnl.link(name)
            assert link.index == there["ifindex"]
            assert link.kind == info.get("info_kind", "")
            assert (link.mtu, link.mac, link.up) == (
                there["mtu"],
                there["address"],
                "UP" in there["flags"],
            )
            assert link.master == (index[there["master"]] if "master" in there else 0)
            assert link.alias == there.get("ifalias", "")
            assert link.peer_index == (
                index[there["link"]] if "link" in there else there.get("link_index", 0)
            )
            assert link.hairpin == info.get("info_slave_data", {}).get("hairpin", False)
            assert link.call_iptables == bool(data.get("nf_call_iptables"))
            assert link.call_ip6tables == bool(data.get("nf_call_ip6tables"))
        assert seen["niapi-1"].hairpin
        assert seen["niso-c"].call_iptables and seen["niso-c"].call_ip6tables
        assert seen["p1"].peer_index and not seen["niso-b"].peer_index
        assert rtnl.link("absent") is None


@throw_away_host
def test_set_link_changes_only_what_is_named() -> None:
    netns.create("niso-api")
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1400, alias=ALIAS)
        add_pair(rtnl)
        first = rtnl.link("niapi-1")
        assert first
        rtnl.set_link("niapi-1")
        assert rtnl.link("niapi-1") == first
        rtnl.set_link("niapi-1", hairpin=False)
        assert ip("link show niapi-1")[0]["linkinfo"]["info_slave_data"]["hairpin"] is False
        assert rtnl.link("niapi-1") == first._replace(hairpin=False)
        rtnl.set_link("niapi-1", up=False, mtu=1300, alias="", master="", mac="0a:00:00:00:00:99")
        link = ip("link show niapi-1")[0]
        assert "UP" not in link["flags"] and "ifalias" not in link and "master" not in link
        assert (link["mtu"], link["address"]) == (1300, "0a:00:00:00:00:99")
        rtnl.set_link("niapi-1", up=True, alias="other", master="niso-b", hairpin=True)
        link = ip("link show niapi-1")[0]
        assert "UP" in link["flags"]
        assert (link["ifalias"], link["master"]) == ("other", "niso-b")
        assert link["linkinfo"]["info_slave_data"]["hairpin"] is True


@throw_away_host
def test_several_links_are_deleted_together_and_no_others() -> None:
    many = [f"v{number}" for number in range(150)]
    for name in (*many, "kept"):
        sh(f"ip link add {name} type veth peer name {name}p")
    sh("ip link set kept group 7")
    with Rtnl() as rtnl:
        rtnl.delete_links([*many, "absent"])
        assert names() == {"lo", "kept", "keptp"}
        rtnl.delete_links(["absent", "v0"])
    assert names() == {"lo", "kept", "keptp"}


@throw_away_host
def test_error_names_the_link_and_has_the_kernels_own_words() -> None:
    with Rtnl() as rtnl:
        rtnl.add_bridge("niso-b", mtu=1500, alias=ALIAS)
        with pytest.raises(KernelError, match=r"'niso-b' mtu 5: .*mtu less than device minimum"):
            rtnl.set_link("niso-b", mtu=5)
        with pytest.raises(KernelError, match="'absent' up: no such device"):
            rtnl.set_link("absent", up=True)


@throw_away_host
def test_socket_stays_in_the_namespace_that_opened_it() -> None:
    netns.create("niso-api")
    with netns.inside("niso-api"):
        rtnl = Rtnl()
    with rtnl:
        rtnl.add_bridge("inner", mtu=1500, alias=ALIAS)
    assert names() == {"lo"}
    assert {link["ifname"] for link in ip("-n niso-api link")} == {"lo", "inner"}
