"""Test the trace of packets through foreign chains, and the resulting findings."""

from __future__ import annotations

import struct

import pytest
from foreign_rules import (
    ACCEPT,
    BACKEND,
    BRIDGE,
    DROP,
    IIF,
    IN,
    INET,
    IP,
    IP6,
    OIF,
    OUT,
    R1,
    REPLIES,
    RETURN,
    STATE,
    STATUS,
    Rules,
    bits,
    named,
)
from hypothesis import given
from hypothesis import strategies as st

from niso.kernel import foreign_chains
from niso.kernel.foreign_chains import (
    CLOBBERS,
    MAY_MATCH,
    MAY_MATCH_END,
    ORIGINAL,
    Between,
    Chain,
    ChainVerdict,
    IptablesMatch,
    Lookup,
    Mask,
    RegisterLoad,
    rule,
)
from niso.kernel.netlink import attribute, nested, text
from niso.kernel.real import Kernel
from niso.look import chains_on_path, other_firewalls
from niso.look.other_firewalls import OUTWARD, PUBLISHED, WITHIN, Bridge, drops
from niso.look.packet_path import Packet


def found(
    rules: Rules,
    *,
    accepts: bool = False,
    family: int = IP,
    bridged: bool = False,
    families=(4,),
    place: Bridge = BACKEND,
) -> set[str]:
    """What a chain of these rules drops."""
    chain = Chain(family, "filter", "FORWARD", accepts)
    return {
        what for drop in drops(rules, [chain], [place], bridged, families) for what in drop.what
    }


@pytest.mark.parametrize(
    ("rules", "dropped"),
    [
        ([], {PUBLISHED, OUTWARD}),
        ([(ACCEPT,)], set()),
        ([IN], {PUBLISHED, OUTWARD}),  # the first packet of the one, the reply of the other
        ([IN, OUT], set()),
        ([REPLIES], {PUBLISHED, OUTWARD}),
        ([REPLIES, IN], {PUBLISHED}),
        ([REPLIES, OUT], {OUTWARD}),
        ([REPLIES, (STATUS, *bits(32), ACCEPT)], {OUTWARD}),
        ([(IptablesMatch(2 | 4), ACCEPT), (IptablesMatch(128), ACCEPT)], {OUTWARD}),
        ([(IptablesMatch(128, True), ACCEPT)], {PUBLISHED}),
        ([(IptablesMatch(128), ACCEPT)], {OUTWARD}),
        ([(STATUS, *bits(32), ACCEPT)], {OUTWARD}),
        ([(IptablesMatch(64), ACCEPT), IN], {PUBLISHED}),
        ([(IptablesMatch(None, reply=False), ACCEPT)], {PUBLISHED, OUTWARD}),
        ([(IptablesMatch(None, reply=True), DROP), (ACCEPT,)], {PUBLISHED, OUTWARD}),
        (
            [(RegisterLoad(R1, "ct", 1), Between(R1, b"\0", b"\0", True), DROP), (ACCEPT,)],
            {PUBLISHED, OUTWARD},
        ),
        (
            [
                (
                    RegisterLoad(R1, "meta", 4),
                    Between(R1, struct.pack("=I", 7), struct.pack("=I", 7)),
                    ACCEPT,
                ),
                REPLIES,
            ],
            {PUBLISHED},
        ),
        ([(IIF, named("niso-*"), ACCEPT), REPLIES], {PUBLISHED}),
        ([(IIF, named("docker*"), ACCEPT), REPLIES], {PUBLISHED, OUTWARD}),
        ([(IptablesMatch(bridged=True), ACCEPT)], {PUBLISHED, OUTWARD}),
    ],
)
def test_chain_with_policy_drop_drops_what_no_rule_accepts(rules, dropped) -> None:
    assert found(Rules(*rules)) == dropped


def test_chain_with_policy_accept_drops_what_a_rule_drops() -> None:
    assert found(Rules(), accepts=True) == set()
    assert found(Rules((OIF, named("niso-backend"), STATE, *bits(8), DROP)), accepts=True) == {
        PUBLISHED
    }
    assert found(Rules((ACCEPT,), (DROP,)), accepts=True) == set()


UNKNOWN = [
    RegisterLoad(R1, "meta", 3),  # the mark
    RegisterLoad(R1, "payload", 2, 2, 4),  # a port
    RegisterLoad(R1, "payload", 0, 0, 4),  # no link header
    RegisterLoad(R1, "payload", 1, 400, 4),  # beyond the header
]


@pytest.mark.parametrize("load", UNKNOWN)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("last", [bytes(4), b"\xff\xff\xff\xfe"])
def test_what_cannot_be_known_matches_neither_way(load, inverted, last) -> None:
    match = (load, Between(R1, bytes(4), last, inverted))
    assert found(Rules((*match, ACCEPT))) == {PUBLISHED, OUTWARD}
    assert found(Rules((*match, DROP)), accepts=True) == set()


@pytest.mark.parametrize("last", [b"", b"\xff" * 4])
def test_unknown_value_is_in_the_range_of_all(last) -> None:
    assert found(Rules((UNKNOWN[0], Between(R1, bytes(4), last), ACCEPT))) == set()


def test_rule_with_an_expression_that_may_end_it_matches_neither_way() -> None:
    assert found(Rules((MAY_MATCH, ACCEPT))) == {PUBLISHED, OUTWARD}
    assert found(Rules((MAY_MATCH, DROP)), accepts=True) == set()
    assert found(Rules((IIF, CLOBBERS, named("niso-backend"), DROP)), accepts=True) == set()


def test_uplink_is_no_niso_bridge_and_nothing_else_is_known_of_its_name() -> None:
    assert found(Rules((IIF, named("niso-backend", inverted=True), DROP)), accepts=True) == {
        PUBLISHED,
        OUTWARD,
    }
    assert found(
        Rules((IIF, named("niso-*", inverted=True), STATE, *bits(8), DROP)), accepts=True
    ) == {PUBLISHED}
    for inverted in (False, True):
        assert found(Rules((IIF, named("eth0", inverted=inverted), ACCEPT), (REPLIES))) == (
            {PUBLISHED} if inverted else {PUBLISHED, OUTWARD}
        )
    # "ni*" may be a bridge's name or an uplink's
    assert found(Rules((IIF, named("ni*", inverted=True), DROP)), accepts=True) == set()


def test_an_uplink_of_one_rule_is_forgotten_in_the_same_register() -> None:
    rules = (IIF, RegisterLoad(R1, "meta", 7), named("niso-backend"), ACCEPT)
    assert found(Rules(rules, REPLIES)) == {OUTWARD}


@pytest.mark.parametrize(
    ("prefix", "length", "dropped"),
    [
        (b"\x0a\x63\x01\x00", 24, {PUBLISHED}),
        (b"\x0a\x63\x00\x00", 16, {PUBLISHED}),
        (b"\x0a\x00\x00\x00", 8, {PUBLISHED}),
        (b"\x0a\x63\x01\x00", 25, {PUBLISHED, OUTWARD}),  # half of the services
        (b"\x0a\x63\x02\x00", 24, {PUBLISHED, OUTWARD}),
    ],
)
def test_prefix_of_the_bridge_is_known(prefix, length, dropped) -> None:
    mask = (2**32 - 2 ** (32 - length)).to_bytes(4, "big")
    source = RegisterLoad(R1, "payload", 1, 12, 4)
    assert (
        found(
            Rules(
                (source, Mask(R1, R1, mask, bytes(4)), Between(R1, prefix, prefix), ACCEPT), REPLIES
            )
        )
        == dropped
    )
    last = bytes(p | ~m & 0xFF for p, m in zip(prefix, mask, strict=True))
    assert found(Rules((source, Between(R1, prefix, last), ACCEPT), REPLIES)) == dropped
    if length % 8 == 0:  # as iptables compiles it
        short = prefix[: length // 8]
        assert (
            found(
                Rules(
                    (source._replace(length=len(short)), Between(R1, short, short), ACCEPT), REPLIES
                )
            )
            == dropped
        )


def test_jump_comes_back_goto_does_not_and_a_circle_ends() -> None:
    jump, goto = ChainVerdict("jump", "user"), ChainVerdict("goto", "user")
    assert found(Rules((jump,), (ACCEPT,), user=[(RETURN,), (DROP,)])) == set()
    assert found(Rules((goto,), (ACCEPT,), user=[(RETURN,), (DROP,)])) == {PUBLISHED, OUTWARD}
    assert (
        found(Rules((jump,), (ACCEPT,), user=[(ChainVerdict("goto", "next"),), (DROP,)], next=[]))
        == set()
    )
    assert found(Rules((jump,), (ACCEPT,), user=[(ChainVerdict("continue"),), (DROP,)])) == {
        PUBLISHED,
        OUTWARD,
    }
    assert found(Rules((RETURN,), (ACCEPT,))) == {PUBLISHED, OUTWARD}
    assert found(Rules((ChainVerdict("jump", "gone"),), (ACCEPT,))) == set()
    assert (
        found(Rules((jump,), user=[(jump,), (jump,)])) == set()
    )  # 2 ** 16 ways: given up, nothing is said


def test_sets_are_asked_only_for_keys_that_are_known() -> None:
    name = b"niso-backend".ljust(16, b"\0")
    rules = Rules((IIF, Lookup("s", R1), ACCEPT), REPLIES, sets={"s": (16, {name: None})})
    assert found(rules) == {PUBLISHED}
    assert set(rules.asked) == {name}
    assert found(
        Rules((IIF, Lookup("s", R1, inverted=True), DROP), (ACCEPT,), sets={"s": (16, {})})
    ) == {
        OUTWARD,
        PUBLISHED,
    }
    assert found(Rules((IIF, Lookup("gone", R1), ACCEPT))) == {PUBLISHED, OUTWARD}


def test_a_short_value_fills_its_word_as_a_part_of_a_key() -> None:
    key = b"\x08\x00\x00\x00" + struct.pack("=I", 8)
    parts = (RegisterLoad(R1, "meta", 1), RegisterLoad(R1 + 4, "ct", 0))
    assert found(
        Rules((*parts, Lookup("s", R1), DROP), (ACCEPT,), sets={"s": (8, {key: None})})
    ) == {
        PUBLISHED,
        OUTWARD,
    }


def test_verdict_maps_decide_and_a_miss_goes_on_with_the_next_rule() -> None:
    state = {struct.pack("=I", 8): ChainVerdict("jump", "new"), struct.pack("=I", 2): ACCEPT}
    rules = Rules((STATE, Lookup("m", R1, verdict=True)), sets={"m": (4, state)}, new=[OUT])
    assert found(rules) == {OUTWARD}
    assert (
        found(Rules((STATE, Lookup("m", R1, verdict=True)), (ACCEPT,), sets={"m": (4, {})}))
        == set()
    )


def test_frames_within_a_network_concern_chains_of_ip_only_where_they_are_handed_there() -> None:
    assert found(Rules(), bridged=False) == {PUBLISHED, OUTWARD}
    assert found(Rules(), bridged=True) == {PUBLISHED, OUTWARD, WITHIN}
    assert found(Rules((IptablesMatch(bridged=False), ACCEPT)), bridged=True) == {WITHIN}
    assert found(
        Rules((IIF, named("niso-backend"), OIF, named("niso-backend"), ACCEPT)), bridged=True
    ) == {
        PUBLISHED,
        OUTWARD,
    }


def test_bridge_chains_see_frames_of_ports_and_arp() -> None:
    ports = (IIF, named("ni*"), ACCEPT)
    for bridged in (False, True):
        assert found(Rules(), family=BRIDGE, bridged=bridged) == {WITHIN}
        assert found(Rules(ports), family=BRIDGE, bridged=bridged) == set()
    named_bridge = RegisterLoad(R1, "meta", 17), named("niso-backend"), ACCEPT
    assert found(Rules(named_bridge), family=BRIDGE) == set()
    ipv4 = (RegisterLoad(R1, "payload", 0, 12, 2), Between(R1, b"\x08\x00", b"\x08\x00"))
    assert found(Rules((*ipv4, ACCEPT)), family=BRIDGE) == {WITHIN}  # ARP is not let through
    assert (
        found(
            Rules(
                (*ipv4, ACCEPT),
                accepts_arp := (
                    RegisterLoad(R1, "meta", 1),
                    Between(R1, b"\x08\x06", b"\x08\x06"),
                    ACCEPT,
                ),
            ),
            family=BRIDGE,
        )
        == set()
    )
    assert found(Rules(accepts_arp), family=BRIDGE) == {WITHIN}


def test_families_are_those_of_the_bridge() -> None:
    for family, families, dropped in (
        (IP, (4,), True),
        (IP, (6,), False),
        (IP6, (4,), False),
        (IP6, (4, 6), True),
        (INET, (4,), True),
        (INET, (6,), True),
    ):
        assert bool(found(Rules(), family=family, families=families)) is dropped
    ipv6 = (RegisterLoad(R1, "meta", 15), Between(R1, b"\x0a", b"\x0a"))
    assert found(Rules((*ipv6, DROP)), accepts=True, family=INET) == set()
    assert found(Rules((*ipv6, DROP)), accepts=True, family=INET, families=(4, 6)) == {
        PUBLISHED,
        OUTWARD,
    }
    place = ("niso-backend", 7, {6: "fd00::1/64"})
    source = (
        RegisterLoad(R1, "payload", 1, 8, 8),
        Between(R1, b"\xfd" + bytes(7), b"\xfd" + bytes(7)),
    )
    assert found(Rules((*source, ACCEPT), REPLIES), family=IP6, families=(6,), place=place) == {
        PUBLISHED
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def expressions(*entries: tuple[str, bytes]) -> bytes:
    listed = (nested(1, text(1, name), nested(2, data)) for name, data in entries)
    return bytes([2, 0, 0, 0]) + nested(4, *listed)


def be32(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack(">I", number))


def test_rule_is_read_from_the_kernels_words() -> None:
    name = b"docker"
    body = expressions(
        ("meta", be32(1, 8) + be32(2, 6)),  # NFT_REG32_00 is the first word of NFT_REG_1
        ("cmp", be32(1, 1) + be32(2, 1) + nested(3, attribute(1, name))),
        ("counter", b""),
        ("cmp", be32(1, 9) + be32(2, 4) + nested(3, attribute(1, name))),
        ("limit", b""),
        ("immediate", be32(1, 0) + nested(2, nested(2, be32(1, 0xFFFFFFFD), text(2, "next")))),
    )
    assert rule(body) == (
        RegisterLoad(16, "meta", 6),
        Between(16, name, name, True),
        Between(20, b"", name, True),
        MAY_MATCH,
        ChainVerdict("jump", "next"),
    )


@pytest.mark.parametrize(
    ("flags", "inverted", "states", "expected"),
    [
        (0x2001, 0, 2 | 4, [IptablesMatch(2 | 4)]),
        (0x1, 1, 8, [IptablesMatch(8, True)]),
        (0x1000, 0, 0, [IptablesMatch(None, False, False)]),
        (0x1001, 0x1000, 2, [IptablesMatch(2, False, True)]),
        (
            0x41,  # and a status
            0,
            2,
            [
                IptablesMatch(2),
                RegisterLoad(80, "ct", 2),
                Mask(80, 80, struct.pack("=I", 32), bytes(4)),
                Between(80, bytes(4), bytes(4), True),
            ],
        ),
        (0x2, 2, 0, [RegisterLoad(80, "meta", 16), Between(80, b"\6", b"\6", True)]),  # a protocol
        (
            0x208,  # the destination before DNAT
            0x8,
            0,
            [
                RegisterLoad(80, ORIGINAL, 20),
                Mask(80, 80, b"\xff\xff\0\0", bytes(4)),
                Between(80, b"\n\1\0\0", b"\n\1\0\0", True),
                RegisterLoad(80, ORIGINAL, 12),
                Between(80, b"\0P", b"\0Z"),
            ],
        ),
        (0x10, 0, 0, [MAY_MATCH]),  # the source of replies
    ],
)
def test_conntrack_match_of_iptables_is_read(flags, inverted, states, expected) -> None:
    info = bytes(32) + b"\n\1".ljust(16, b"\0") + b"\xff\xff".ljust(16, b"\0") + bytes(72)
    info += struct.pack("=12H", 6, 0, 80, 0, 0, flags, inverted, states, 32, 0, 90, 0)
    match = text(1, "conntrack") + be32(2, 3) + attribute(3, info)
    assert rule(expressions(("match", match))) == tuple(expected)
    assert rule(
        expressions(("match", text(1, "conntrack") + be32(2, 3) + attribute(3, info[:100])))
    ) == (MAY_MATCH,)


NAMES = [
    "meta",
    "ct",
    "payload",
    "bitwise",
    "cmp",
    "range",
    "lookup",
    "immediate",
    "objref",
    "dynset",
    "match",
    "target",
]
NAMES += ["reject", "queue", "counter", "fib", "limit", "unheard-of"]
ATTRIBUTES = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.one_of(st.binary(max_size=24), st.integers(0, 99).map(lambda n: struct.pack(">I", n))),
    ),
    max_size=6,
).map(lambda pairs: b"".join(attribute(kind, data) for kind, data in pairs))
NESTS = st.lists(st.tuples(st.integers(0, 6), ATTRIBUTES), max_size=5).map(
    lambda pairs: b"".join(attribute(kind, data) for kind, data in pairs)
)


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.one_of(ATTRIBUTES, NESTS, st.binary(max_size=40))),
        max_size=8,
    )
)
def test_no_rule_can_make_it_fail(entries) -> None:
    read = rule(expressions(*entries))
    rules = Rules(read, sets={"": (4, {})})
    for family in (INET, IP, BRIDGE):
        found(rules, family=family, bridged=True)


@given(st.binary(max_size=200))
def test_no_bytes_can_make_it_fail(body) -> None:
    found(Rules(rule(body)), bridged=True)


def test_no_bridge_asks_nothing(monkeypatch) -> None:
    monkeypatch.setattr(
        foreign_chains.ForeignChains, "base_chains", lambda self: pytest.fail("asked")
    )
    assert other_firewalls.foreign_drops(Kernel(), [], True, (4,)) == []


PORT = RegisterLoad(R1, "payload", 2, 2, 2)
TO_80 = (PORT, Between(R1, b"\0P", b"\0P"))
TO_81 = (PORT, Between(R1, b"\0Q", b"\0Q"))
MARK = (RegisterLoad(R1, "meta", 3), Between(R1, b"\0\0\0\1", b"\0\0\0\1"))
JUMP, GOTO = ChainVerdict("jump", "more"), ChainVerdict("goto", "more")


@pytest.mark.parametrize(
    ("rules", "more", "accepts", "result", "place"),
    [
        ([], [], True, "accept", None),
        ([], [], False, "drop", None),
        ([(*TO_80, DROP)], [], True, "drop", ("FORWARD", 0)),
        ([(*TO_81, DROP)], [], True, "accept", None),
        ([(*TO_81, ACCEPT), (*TO_80, ACCEPT)], [], False, "accept", ("FORWARD", 1)),
        # what depends on a mark: a drop is named only if it is for the packet's port
        ([(*MARK, DROP)], [], True, "unsure", None),
        ([(MAY_MATCH_END, DROP)], [], True, "may drop", ("FORWARD", 0)),
        ([(*TO_80, *MARK, DROP)], [], True, "may drop", ("FORWARD", 0)),
        ([(*TO_81, *MARK, DROP)], [], True, "accept", None),
        ([(*MARK, ACCEPT)], [], False, "may drop", None),
        ([(*TO_81, *MARK, ACCEPT)], [], False, "drop", None),
        ([(*MARK, ACCEPT), (*TO_80, DROP)], [], True, "may drop", ("FORWARD", 1)),
        ([(*TO_80, MAY_MATCH, DROP), (ACCEPT,)], [], True, "may drop", ("FORWARD", 0)),
        # other chains, reached for certain or not
        ([(JUMP,)], [(*TO_80, DROP)], True, "drop", ("more", 0)),
        ([(*TO_80, JUMP)], [(*MARK, DROP)], True, "may drop", ("more", 0)),
        ([(*MARK, JUMP)], [(*TO_80, DROP)], True, "may drop", ("more", 0)),
        ([(*MARK, JUMP)], [(DROP,)], True, "unsure", None),
        ([(*MARK, JUMP), (DROP,)], [(ACCEPT,)], True, "may drop", ("FORWARD", 1)),
        ([(GOTO,), (DROP,)], [], True, "accept", None),
        ([(*MARK, GOTO), (DROP,)], [], True, "drop", ("FORWARD", 1)),
        ([(JUMP,), (ACCEPT,)], [(*MARK, RETURN), (*TO_80, DROP)], True, "may drop", ("more", 1)),
        ([(JUMP,), (ACCEPT,)], [(RETURN,), (*TO_80, DROP)], True, "accept", ("FORWARD", 1)),
        # iptables' matches of ports
        ([(IptablesMatch(targets=((70, 90),)), DROP)], [], True, "drop", ("FORWARD", 0)),
        ([(IptablesMatch(targets=((81, 90),)), DROP)], [], True, "accept", None),
        (
            [(IptablesMatch(inverted=True, targets=((81, 81),)), DROP)],
            [],
            True,
            "drop",
            ("FORWARD", 0),
        ),
        ([(IptablesMatch(sources=((1, 9),)), DROP)], [], True, "accept", None),
    ],
)
def test_one_packet_is_judged_by_what_is_known_of_it(rules, more, accepts, result, place) -> None:
    chain = Chain(IP, "filter", "FORWARD", accepts)
    way = chains_on_path._Way("forward", "uplink9", "niso-backend")
    ends = chains_on_path._Ends("192.0.2.2", 50_000, "10.99.1.2", 80)
    packet = chains_on_path._routed(way, Packet("192.0.2.2", "10.99.1.2", 80, "tcp"), ends, None)
    found = other_firewalls.judge(Rules(*rules, more=more), chain, packet)
    assert found[0] == result
    if result != "accept":
        assert found[1] == place


def test_chains_that_jump_in_a_circle_end() -> None:
    """The kernel refuses a circle, but the rules may change while they are read."""
    chain = Chain(IP, "filter", "FORWARD", True)
    way = chains_on_path._Way("forward", None, "niso-backend")
    ends = chains_on_path._Ends(None, None, None, 80)
    packet = chains_on_path._routed(way, Packet("0.0.0.0", "0.0.0.0", 80, "tcp"), ends, None)
    rules = Rules((*MARK, JUMP), more=[(*MARK, JUMP), (*MARK, JUMP)])
    assert other_firewalls.judge(rules, chain, packet)[0] == "accept"


@pytest.mark.parametrize(
    ("name", "revision", "info", "expected"),
    [
        ("tcp", 0, struct.pack("=4H4B", 0, 65535, 80, 80, 0, 0, 0, 0), IptablesMatch(targets=((80, 80),))),
        ("tcp", 0, struct.pack("=4H4B", 0, 65535, 80, 80, 0, 0, 0, 2), IptablesMatch(inverted=True, targets=((80, 80),))),
        ("tcp", 0, struct.pack("=4H4B", 1, 2, 0, 65535, 0, 0, 0, 0), IptablesMatch(sources=((1, 2),))),
        ("tcp", 0, struct.pack("=4H4B", 0, 65535, 80, 80, 0, 2, 2, 0), MAY_MATCH),  # flags
        ("udp", 0, struct.pack("=4HBx", 0, 65535, 53, 54, 0), IptablesMatch(targets=((53, 54),))),
        ("udp", 0, struct.pack("=4HBx", 0, 65535, 0, 65535, 0), None),
        ("udp", 0, b"\0" * 8, MAY_MATCH),
        (
            "multiport",
            1,
            struct.pack("=BB15H15BB", 1, 3, 80, 90, 443, *[0] * 12, 1, *[0] * 14, 0),
            IptablesMatch(targets=((80, 90), (443, 443))),
        ),
        ("multiport", 1, struct.pack("=BB15H15BB", 2, 1, 80, *[0] * 14, *[0] * 15, 0), MAY_MATCH),
        ("multiport", 0, bytes(48), MAY_MATCH),
    ],
)  # fmt: skip
def test_port_matches_of_iptables_are_read(name, revision, info, expected) -> None:
    fields = {1: name.encode() + b"\0", 2: struct.pack(">I", revision), 3: info}
    assert foreign_chains._match(fields, "") == (() if expected is None else (expected,))


def test_address_matches_of_iptables_are_read() -> None:
    ends = [b"\n\0\0\1", b"\n\0\0\x09", b"\n\1\0\1", b"\n\1\0\x09"]
    info = b"".join(end.ljust(16, b"\0") for end in ends) + b"\x23"  # both, not the destination
    fields = {1: b"iprange\0", 2: struct.pack(">I", 1), 3: info}
    assert foreign_chains._match(fields, "ip") == (
        RegisterLoad(80, "payload", 1, 12, 4),
        Between(80, ends[0], ends[1]),
        RegisterLoad(80, "payload", 1, 16, 4),
        Between(80, ends[2], ends[3], True),
    )
    assert foreign_chains._match(fields, "inet") == (MAY_MATCH,)
    assert foreign_chains._match({1: b"set\0", 3: b"?"}, "") == (MAY_MATCH_END,)
