"""Test questions about packets: parsing, addresses, and named rules."""

from __future__ import annotations

import struct
from typing import cast

import pytest
from pcapng import blocks
from policy_worlds import known, network, policy, world

from niso.base.errors import Error, NotFound, UsageError
from niso.kernel import probe, ruleset
from niso.kernel.packet_events import Dropped
from niso.look import capture, drops, packet_path
from niso.look.packet_path import Packet, PacketEnd
from niso.plan.records import PortMapping
from niso.plan.verdict import PolicyContext
from niso.store.store import Store

NETWORKS = [
    network("back", "10.99.1.0/24", "fd00:99:1::/64"),
    network("front", "10.99.2.0/24"),
    network("six", "fd00:99:3::/64"),
    network("vault", "10.99.4.0/24", internal=True),
]


def made(**ports: PortMapping) -> PolicyContext:
    services = [
        known("db", {"back": ["10.99.1.2", "fd00:99:1::2"]}, policy(["api:80"]), *ports.values()),
        known("api", {"back": ["10.99.1.3", "fd00:99:1::3"]}),
        known("web", {"front": ["10.99.2.2"]}),
        known(
            "both",
            {
                "front": ["10.99.2.3"],
                "six": ["fd00:99:3::2"],
                "back": ["10.99.1.4", "fd00:99:1::4"],
            },
        ),
        known("new", {"six": ["fd00:99:3::3"]}),
        known("safe", {"vault": ["10.99.4.2"]}),
    ]
    return world(services, NETWORKS, ["192.0.2.1", "2001:db8::1"])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("db", ("db", None, "icmp")),
        ("db/icmp", ("db", None, "icmp")),
        ("db:80", ("db", 80, "tcp")),
        ("db:80/udp", ("db", 80, "udp")),
        ("db.niso.local:65535/sctp", ("db.niso.local", 65535, "sctp")),
        ("10.99.1.2:1/tcp", ("10.99.1.2", 1, "tcp")),
        ("10.99.1.2", ("10.99.1.2", None, "icmp")),
        ("[fd00::1]:80/udp", ("fd00::1", 80, "udp")),
        ("[fd00::1]", ("fd00::1", None, "icmp")),
        ("[fd00::1]/icmp", ("fd00::1", None, "icmp")),
        ("fd00::1", ("fd00::1", None, "icmp")),
        ("fd00::1/icmp", ("fd00::1", None, "icmp")),
        ("host:22", ("host", 22, "tcp")),
    ],
)
def test_target(text: str, meant: tuple[str, int | None, str]) -> None:
    assert packet_path.parse_target(text) == meant


WRONG = (
    *(
        "",
        ":",
        ":80",
        "/tcp",
        "db:",
        "db:0",
        "db:65536",
        "db:-1",
        "db:+1",
        "db:8 0",
        "db:٨",
        "db:80-90",
        "db:80/",
        "db/",
    ),
    *(
        "db:80/TCP",
        "db:80/gre",
        "db/tcp",
        "db/udp",
        "db:80/icmp",
        "db:80/tcp/udp",
        "[fd00::1",
        "fd00::1]",
        "[fd00::1]80",
    ),
    *("[db]:80", "[10.0.0.1]:80", "[]:80", "[fd00::1]:", "10.0.0.0/8", "10.0.0.0/8:80"),
)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_target(text: str) -> None:
    with pytest.raises(UsageError):
        who, _, _ = packet_path.parse_target(text)
        packet_path.resolve(Store.open(), who)


def test_who_is_meant() -> None:
    store = Store.open()
    assert (
        packet_path.resolve(store, "host")
        == packet_path.resolve(store, "host.niso.local")
        == PacketEnd()
    )
    assert packet_path.resolve(store, "192.0.2.7") == PacketEnd(address="192.0.2.7")
    assert (
        packet_path.resolve(store, "FD00:0::1")
        == packet_path.resolve(store, "[fd00::1]")
        == PacketEnd(address="fd00::1")
    )
    for text in ("::ffff:10.0.0.1", "fe80::1%eth0", "300.1.1.1", "10.0.0.0/8", "fd00::zz", "1.2.3"):
        with pytest.raises(UsageError):
            packet_path.resolve(store, text)
    with pytest.raises(NotFound):
        packet_path.resolve(store, "db")


@pytest.mark.parametrize(
    ("source", "to", "family", "pair"),
    [
        (PacketEnd("api"), PacketEnd("db"), None, ("10.99.1.3", "10.99.1.2")),
        (PacketEnd("api"), PacketEnd("db"), 6, ("fd00:99:1::3", "fd00:99:1::2")),
        (PacketEnd("both"), PacketEnd("db"), None, ("10.99.1.4", "10.99.1.2")),
        (PacketEnd("api"), PacketEnd("both"), None, ("10.99.1.3", "10.99.1.4")),
        # the networks that are not shared: by the first of each
        (PacketEnd("api"), PacketEnd("web"), None, ("10.99.1.3", "10.99.2.2")),
        (PacketEnd("web"), PacketEnd("both"), None, ("10.99.2.2", "10.99.2.3")),
        (PacketEnd("both"), PacketEnd("new"), None, ("fd00:99:3::2", "fd00:99:3::3")),
        (PacketEnd("db"), PacketEnd("db"), None, ("10.99.1.2", "10.99.1.2")),
        (PacketEnd("both"), PacketEnd(address="10.99.1.2"), None, ("10.99.1.4", "10.99.1.2")),
        (PacketEnd("both"), PacketEnd(address="192.0.2.2"), None, ("10.99.2.3", "192.0.2.2")),
        (
            PacketEnd("both"),
            PacketEnd(address="2001:db8::2"),
            None,
            ("fd00:99:3::2", "2001:db8::2"),
        ),
        (PacketEnd("both"), PacketEnd(), None, ("10.99.2.3", "10.99.2.1")),
        (PacketEnd("api"), PacketEnd(), 6, ("fd00:99:1::3", "fd00:99:1::1")),
        (PacketEnd(address="192.0.2.2"), PacketEnd("db"), None, ("192.0.2.2", "10.99.1.2")),
        (PacketEnd(address="2001:db8::2"), PacketEnd("db"), None, ("2001:db8::2", "fd00:99:1::2")),
        (
            PacketEnd(address="192.0.2.2"),
            PacketEnd(address="192.0.2.1"),
            None,
            ("192.0.2.2", "192.0.2.1"),
        ),
        (PacketEnd(), PacketEnd("db"), None, ("by 10.99.1.2", "10.99.1.2")),
        (PacketEnd(), PacketEnd(), None, ("by 127.0.0.1", "127.0.0.1")),
        (PacketEnd(), PacketEnd(), 6, ("by ::1", "::1")),
        (PacketEnd(address="192.0.2.2"), PacketEnd(), None, ("192.0.2.2", "by 192.0.2.2")),
        (PacketEnd("web"), PacketEnd("db"), 6, None),
        (PacketEnd("web"), PacketEnd("new"), None, None),
        (PacketEnd("web"), PacketEnd(address="2001:db8::2"), None, None),
        (PacketEnd(address="192.0.2.2"), PacketEnd("new"), None, None),
        (PacketEnd(address="192.0.2.2"), PacketEnd(address="2001:db8::1"), None, None),
        (PacketEnd(), PacketEnd(address="198.51.100.1"), None, None),
    ],
)
def test_addresses(
    monkeypatch: pytest.MonkeyPatch,
    source: PacketEnd,
    to: PacketEnd,
    family: int | None,
    pair: tuple[str, str] | None,
) -> None:
    monkeypatch.setattr(
        probe, "own_address", lambda to: None if to == "198.51.100.1" else f"by {to}"
    )
    if pair is not None:
        assert packet_path.ends(made(), source, to, family) == pair
        return
    with pytest.raises(Error, match=r"no addresses of the same family|are of different families"):
        packet_path.ends(made(), source, to, family)


def test_rules_of_the_fixed_text_are_those_of_each_chain() -> None:
    for table in ruleset.CONTAINERS:
        body = ruleset.TABLES.partition(f"table {table} {{")[2].partition("\n}")[0]
        chains = [line.split()[1] for line in body.splitlines() if line.startswith("\tchain ")]
        hooks = body.count("\t\ttype ")
        rules = sum(len(ruleset.rules_of(table, chain)) for chain in chains)
        assert rules + hooks == sum(line.startswith("\t\t") for line in body.splitlines())
    assert ruleset.rules_of(ruleset.INET, "forward")[-1] == "goto next_hop"


SOURCES4, PUBLISH = "sources4", PortMapping("", 5432, 80, "tcp")


@pytest.mark.parametrize(
    ("source", "to", "port", "path", "counted"),
    [
        ("10.99.1.3", "10.99.1.2", 80, ["sources4"], ["in4_port"]),
        ("10.99.1.3", "10.99.1.2", 81, ["sources4"], ["in4_rest"]),
        ("fd00:99:1::3", "fd00:99:1::2", 80, ["sources6"], ["in6_port"]),
        ("10.99.2.2", "10.99.1.3", 80, ["sources4", "forward"], ["forward"]),
        ("10.99.2.2", "10.99.1.2", 80, ["sources4", "forward"], ["in4_rest"]),
        ("10.99.2.2", "192.0.2.1", 5432, ["sources4", "publish_any4"], ["in4_rest"]),
        ("192.0.2.7", "192.0.2.1", 5432, ["publish_any4"], ["in4_rest"]),
        ("192.0.2.7", "192.0.2.1", 5433, [], []),
        ("2001:db8::7", "2001:db8::1", 5432, ["publish_any6"], ["in6_rest"]),
        ("192.0.2.7", "10.99.1.3", 80, ["raw"], ["raw"]),
        ("192.0.2.7", "127.0.0.1", 80, ["raw"], ["raw"]),
        ("192.0.2.1", "10.99.1.2", 80, [], []),
        ("10.99.1.77", "10.99.1.2", 80, ["raw"], ["raw"]),
        ("10.99.1.3", "10.99.1.3", 80, [], []),
        ("10.99.1.3", "127.0.0.1", 80, [], []),
        ("10.99.1.3", "192.0.2.7", 80, ["sources4", "postrouting"], []),
        ("10.99.1.3", "10.99.1.1", 80, ["sources4"], []),
        ("10.99.1.3", "10.99.1.99", 80, ["sources4", "from_bridge"], ["from_bridge"]),
        ("10.99.1.3", "10.99.2.99", 80, ["sources4", "forward"], ["forward"]),
        ("10.99.1.3", "10.99.1.255", 80, ["sources4", "between"], []),
        ("10.99.1.3", "224.0.0.1", 80, ["sources4", "between"], []),
        ("10.99.4.2", "192.0.2.7", 80, ["sources4", "forward"], ["forward"]),
        ("10.99.4.2", "192.0.2.1", 5432, ["sources4", "publish_any4", "forward"], ["forward"]),
        ("10.99.4.2", "192.0.2.1", 22, ["sources4"], []),
        ("10.99.1.4", "192.0.2.7", 80, ["from_port"], ["from_port"]),
        ("2001:db8::7", "fd00:99:1::3", 80, ["raw6"], ["raw6"]),
        ("10.99.1.3", "10.99.2.1", 53, ["sources4", "input"], ["input"]),
        ("10.99.1.3", "fd00:99:1::2", 80, [], []),
    ],
)
def test_objects_of_the_way_and_what_counts_it(
    source: str, to: str, port: int, path: list[str], counted: list[str]
) -> None:
    explained = packet_path.explain(
        Store.open(), made(db=PUBLISH), Packet(source, to, port, "tcp"), {}
    )
    assert [each.container for each in explained.path] == path
    assert [each.container for each in explained.counted] == counted
    assert all(each.counts for each in explained.counted)
    # the drop that is told is the rule's
    if counted and not explained.verdict.passes:
        text = explained.counted[-1].text
        assert any(
            word in f"{text} " for word in (" goto refuse ", " goto direct ", " drop ", " reject ")
        )


def test_element_of_each_family_is_named_with_the_line_of_the_manifest() -> None:
    for family, source, to in ((4, "10.99.1.3", "10.99.1.2"), (6, "fd00:99:1::3", "fd00:99:1::2")):
        explained = packet_path.explain(Store.open(), made(), Packet(source, to, 80, "tcp"), {})
        leads, element = explained.ingress
        assert (leads.container, leads.text) == (f"ingress{family}", to)
        said = f'{to} . {source} . tcp . 80 comment "db network.policy.allow_from[0]" : return'
        assert (element.container, element.text) == (f"in{family}_port", said)


def test_other_family_where_both_have_it() -> None:
    store, about = Store.open(), made()
    other = packet_path.other_family(
        store,
        about,
        PacketEnd("api"),
        PacketEnd("db"),
        Packet("10.99.1.3", "10.99.1.2", 80, "tcp"),
        {},
    )
    assert other is not None and other.packet == Packet("fd00:99:1::3", "fd00:99:1::2", 80, "tcp")
    assert (
        packet_path.other_family(
            store,
            about,
            PacketEnd("web"),
            PacketEnd("db"),
            Packet("10.99.2.2", "10.99.1.2", 80, "tcp"),
            {},
        )
        is None
    )


# --- captured packets ------------------------------------------------------------------------------------------------


def test_pcap_that_comes_in_pieces_becomes_pcapng_with_names() -> None:
    packets = [b"first", b"second packet"]
    pcap = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 276)
    for at, packet in enumerate(packets):
        pcap += struct.pack("=IIII", 1_700_000_000 + at, 5, len(packet), 99) + packet
    names = {"10.99.1.2": "db", "fd00::2": "db"}
    file = capture.CaptureFile(names, lambda time: "why" if time % 2 else "", most=3)
    convert, other = file.converter("db"), file.converter("api")
    whole = b"".join(convert(pcap[i : i + 1]) for i in range(len(pcap)))
    whole += other(pcap)
    found = blocks(whole)
    kinds = [kind for kind, _ in found]
    # a second interface, and the file takes three packets
    assert kinds == ["section", "names", *["interface", "packet", "packet"], "interface", "packet"]
    assert file.is_full and found[1][1].count(b"db\0") == 2
    assert b"db" in found[2][1] and b"api" in found[5][1]
    number, high, low, kept, length = struct.unpack_from("=IIIII", found[3][1])
    assert (number, high << 32 | low, kept, length) == (0, 1_700_000_000_000_005, 5, 99)
    assert b"why" in found[3][1] and struct.unpack_from("=I", found[6][1]) == (1,)
    with pytest.raises(ValueError):
        file.converter("x")(b"x" * 24)


def test_expression_of_a_peer() -> None:
    assert capture.expression((), None, "") == ""
    one = capture.expression(("10.0.0.1", "fd00::1"), 80, "tcp or udp")
    assert one == "(host 10.0.0.1 or host fd00::1) and port 80 and (tcp or udp)"


@pytest.mark.parametrize(
    ("chain", "rule", "words"),
    [
        ("forward", "ct status ! confirmed ip6 saddr @flows6 counter packets 3 bytes 120 drop", 0),
        ("related", "ct state invalid drop", 0),
        ("no_start", "ip6 daddr != @audit_in6 ip6 daddr @no_start_in6 drop", 0),
        (
            "raw",
            'ip daddr 127.0.0.0/8 counter packets 0 bytes 0 drop comment "loopback"',
            "loopback",
        ),
    ],
)
def test_rule_that_drops_by_its_own_condition_is_the_reason(
    chain: str, rule: str, words: str | int
) -> None:
    """And no policy, even if one would deny the packet too: here the world is not looked at."""
    dropped = Dropped("inet niso", chain, rule, b"", 0)
    world = cast(PolicyContext, None)
    assert drops.words(world, dropped) == (words or f"inet niso {chain}: {rule}")
