"""Test what answers of DNS for an outside name become."""

from __future__ import annotations

import pytest
from answers_made import API, NOBODY, NOTHING, ONE, SIX, TWO, heard

from niso.plan.dns_answers import DnsAnswer, after, forbidden_addresses
from niso.plan.records import FORMER, NOW, PAST, DnsAddress, Outside

FINE = (
    *(ONE, SIX, "192.168.1.5", "192.0.2.7", "198.51.100.5", "198.51.100.8"),
    *("64:ff9b::203.0.113.9", "2002:cb00:7109::1"),
)
FREE = forbidden_addresses(frozenset(), (), (), ())


def states(answer: Outside) -> dict[str, str]:
    return {known.address: known.state for known in answer.addresses}


def test_address_goes_from_now_to_former_to_past_and_is_forgotten() -> None:
    first = after(Outside(API), heard(ONE, SIX), FREE, 1000.0)
    assert states(first) == {ONE: NOW, SIX: NOW}
    assert first.due_at == 1300.0 and first.problem == ""
    assert first.is_due(FREE, 1300.0) and first.is_due(FREE, 999.0)
    assert not first.is_due(FREE, 1299.0)
    # one that the next answer lacks is allowed until its TTL ends, and for a minute at least
    early = after(first, heard(TWO), FREE, 1100.0)
    assert states(early) == {ONE: FORMER, TWO: NOW, SIX: FORMER}
    assert early.due_at == 1300.0
    assert early.in_state(NOW, FORMER) == (TWO, ONE, SIX), "what it resolves to is first"
    late = after(first, heard(TWO), FREE, 1299.0)
    assert {k.address: k.until for k in late.addresses if k.state == FORMER} == {
        ONE: 1359.0,
        SIX: 1359.0,
    }
    gone = after(late, heard(TWO), FREE, 1359.0)
    assert states(gone) == {ONE: PAST, TWO: NOW, SIX: PAST}
    back = after(gone, heard(ONE), FREE, 1700.0)
    assert states(back)[ONE] == NOW
    assert states(after(gone, heard(TWO), FREE, 1359.0 + 7 * 86400)) == {TWO: NOW}


def test_silence_keeps_the_last_answer_for_a_day_and_no_such_name_does_not() -> None:
    first = after(Outside(API), heard(ONE), FREE, 1000.0)
    silent = after(first, NOBODY, FREE, 1300.0)
    assert states(silent) == {ONE: NOW} and silent.due_at == 1330.0
    assert silent.problem == "no name server answered"
    assert states(after(silent, NOBODY, FREE, 1299.0 + 86400)) == {ONE: NOW}
    assert states(after(silent, NOBODY, FREE, 1300.0 + 86400)) == {ONE: PAST}
    nothing = after(first, NOTHING, FREE, 1300.0)
    assert states(nothing) == {ONE: FORMER} and nothing.problem == "DNS has no such name"
    # a silent question for one family takes nothing from either
    both = after(Outside(API), heard(ONE, SIX), FREE, 1000.0)
    half = after(both, (heard(TWO)[0], NOBODY[1]), FREE, 1300.0)
    assert states(half) == {ONE: FORMER, TWO: NOW, SIX: NOW}
    # an address of one family alone is no problem
    single = (heard(ONE)[0], DnsAnswer(6, problem="DNS has no IPv6 address for it"))
    assert after(Outside(API), single, FREE, 0.0).problem == ""


def test_clock_that_was_ahead_prolongs_nothing() -> None:
    """As at a boot with a wrong clock, which is set after the names were resolved."""
    ahead = after(Outside(API), heard(ONE, TWO), FREE, 1e9)
    ahead = after(ahead, heard(ONE), FREE, 1e9 + 1)
    assert states(ahead) == {ONE: NOW, TWO: FORMER} and ahead.is_due(FREE, 1000.0)
    for answers, state in ((heard(ONE), NOW), (heard(SIX), FORMER), (NOBODY, NOW)):
        back = after(ahead, answers, FREE, 1000.0)
        assert states(back)[ONE] == state
        gone = after(back, NOBODY, FREE, 1000.0 + 2 * 86400)
        assert states(gone) == {a: PAST for a in states(back)}, answers


def test_ttl_has_bounds_and_so_have_numbers_of_addresses() -> None:
    assert after(Outside(API), heard(ONE, ttl_s=0), FREE, 0.0).due_at == 60.0
    assert after(Outside(API), heard(ONE, ttl_s=1e9), FREE, 0.0).due_at == 86400.0
    many = [f"203.0.113.{number}" for number in range(100)]
    answer = after(Outside(API), heard(*many[50:], ttl_s=60), FREE, 0.0)
    assert answer.in_state(NOW) == tuple(many[50:82])
    assert answer.problem == "of 50 IPv4 addresses, 32 are used"
    # those in use stay in use
    later = after(answer, heard(*many, ttl_s=60), FREE, 60.0)
    assert later.in_state(NOW) == answer.in_state(NOW)
    # however an answer turns
    for turn in range(30):
        now = 120.0 + turn
        addresses = [f"198.51.{turn}.{number}" for number in range(32)]
        answer = after(answer, heard(*addresses, ttl_s=60), FREE, now)
        assert len(answer.in_state(NOW)) == 32
        assert len(answer.in_state(FORMER)) <= 32 and len(answer.in_state(PAST)) <= 32


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::ffff:203.0.113.1", "IPv4-mapped"),
        ("169.254.169.254", "the metadata service of a cloud"),
        ("fe80::1", "a link-local address"),
        ("0.0.0.0", "not the address of a machine"),
        ("0.1.2.3", "not the address of a machine"),
        ("::", "not the address of a machine"),
        ("::127.0.0.1", "not the address of a machine"),
        ("255.255.255.255", "not the address of a machine"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("192.0.2.1", "the host's own address"),
        ("10.50.3.4", "the host's own address"),
        ("2001:db8:50::7", "the host's own address"),
        ("10.99.200.7", "in a network of niso"),
        ("fd00:99:1::7", "in a network of niso"),
        ("fd00:ec2::254", "the metadata service of a cloud"),
        ("192.0.2.255", "a broadcast or anycast address of a link of the host"),
        ("192.0.2.0", "a broadcast or anycast address of a link of the host"),
        ("2001:db8:7::", "a broadcast or anycast address of a link of the host"),
        ("172.17.0.5", "on docker0, the bridge of a container engine"),
        ("64:ff9b::10.99.200.7", "it stands for 10.99.200.7: it is in a network of niso"),
        ("64:ff9b:1:2::7f00:1", "it stands for 127.0.0.1: it is a loopback address"),
        ("64:ff9b::7f00:1", "it stands for 127.0.0.1: it is a loopback address"),
        ("64:ff9b::a9fe:a9fe", "it stands for 169.254.169.254: it is the metadata service"),
        ("2002:c000:201::1", "it stands for 192.0.2.1: it is the host's own address"),
        ("2002:ac11:5::1", "it stands for 172.17.0.5: it is on docker0"),
    ],
)
def test_answer_never_leads_to_the_host_or_to_services(address: str, reason: str) -> None:
    bars = forbidden_addresses(
        ("192.0.2.1/24", "198.51.100.4/31", "198.51.100.9", "2001:db8:7::1/64", "2001:db8:8::/127"),
        ("10.99.0.0/16", "fd00:99:1::/64"),
        [("172.17.0.0/16", "docker0")],
        ("10.50.0.0/16", "2001:db8:50::/48"),
    )
    answer = after(Outside(API), heard(address, ONE), bars, 0.0)
    assert answer.in_state(NOW) == (ONE,)
    assert reason in answer.problem and answer.problem.startswith(f"{address} is refused")
    # and one that was used before goes at once
    before = Outside(API, addresses=(DnsAddress(address, NOW, 1e6), DnsAddress(ONE, NOW, 1e6)))
    for answers in (heard(ONE), NOBODY, heard(address, ONE)):
        assert states(after(before, answers, bars, 0.0)) == {address: PAST, ONE: NOW}
    assert all(not bars(fine) for fine in FINE)
