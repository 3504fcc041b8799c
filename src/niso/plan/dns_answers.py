"""Compute from DNS answers which addresses the rules allow for a DNS name in a policy.

All functions are pure, and do not read the clock. An address is in one of three states:

- ``NOW``: the latest answer contains it. The rules and the service's hosts file contain it.
- ``FORMER``: the latest answer no longer contains it. The rules still allow the address, since a
  program may have looked it up just before.
- ``PAST``: the rules no longer allow the address. The address is recorded only to find the name to
  which an open connection was made.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.named_tuples import NamedTuple
from niso.base.names import family_of, number
from niso.plan.records import FORMER, METADATA, NOW, PAST, DnsAddress, Forbids, Outside

LEAST_TTL_S, MOST_TTL_S = 60.0, 86_400.0
"""The bounds of a TTL in seconds: the timer that resolves names does not run more often."""
GRACE_S = 60.0
"""The least time in seconds for which the rules allow an address that DNS no longer returns."""
RETRY_S = 30.0
"""The time in seconds after which a name is resolved again if DNS gave no answer or no address."""
STALE_S = 86_400.0
"""How long the last answer is used after its TTL, in seconds, if no server answers (RFC 8767)."""
PAST_S = 7 * 86_400.0
"""How long a PAST address is kept, in seconds: as long as the rules record flows."""
MOST = 32
"""The maximum number of NOW, of FORMER and of PAST addresses of a name in one family."""
# prefixes that no machine is in; the last is of IPv4-compatible addresses (RFC 4291, 2.5.5.1)
_NOWHERE = ("0.0.0.0/8", "255.255.255.255/32", "::/96")
# prefixes of translators, whose addresses end with an IPv4 address (RFC 6052, RFC 8215)
_NAT64 = ("64:ff9b::/96", "64:ff9b:1::/48")


class DnsAnswer(NamedTuple):
    """The answer to a DNS query for a name and one IP version. ``problem`` is a message for the
    user, or "". ``silent`` means that no server answered.
    """

    family: int
    addresses: tuple[str, ...] = ()
    ttl_s: float = 0.0
    problem: str = ""
    silent: bool = False


def after(before: Outside, heard: Iterable[DnsAnswer], forbids: Forbids, now: float) -> Outside:
    """Return the record of a DNS name after new DNS answers. Forbidden addresses are left out.
    ``before`` is the previous record. ``heard`` are the answers for both IP versions. ``now`` is in
    seconds since 1970.
    """
    result: list[DnsAddress] = []
    problems: list[str] = []
    due = []
    for answer in heard:
        known = [entry for entry in before.addresses if family_of(entry.address) == answer.family]
        allowed = []
        for address in dict.fromkeys(answer.addresses):
            if reason := forbids(address):
                problems.append(f"{address} is refused: {reason}")
            else:
                allowed.append(address)
        if len(allowed) > MOST:
            problems.append(f"of {len(allowed)} IPv{answer.family} addresses, {MOST} are used")
        if answer.problem and answer.problem not in problems:
            problems.append(answer.problem)
        ttl_s = min(max(answer.ttl_s, LEAST_TTL_S), MOST_TTL_S)
        due.append(now + (ttl_s if allowed else RETRY_S))
        until = now + ttl_s
        result += _family(known, None if answer.silent else allowed, until, forbids, now)
    in_use = [known for known in result if known.state == NOW]
    if in_use and not any(answer.silent for answer in heard):
        # a name with addresses of one family alone is not a problem
        problems = [text for text in problems if text not in {a.problem for a in heard}]
        due = [known.until for known in in_use]
    due += [known.until for known in result if known.state == FORMER]
    addresses = tuple(sorted(result, key=lambda known: _order(known.address)))
    due_at = min(due, default=now + RETRY_S)
    return Outside(before.name, now, due_at, "; ".join(problems), False, addresses)


def barred(before: Outside, forbids: Forbids, now: float) -> Outside:
    """Return the record ``before`` of a DNS name, with the state PAST for addresses that
    ``forbids`` now refuses. ``now`` is in seconds since 1970.
    """
    in_use = before.in_state(NOW, FORMER)
    gone = {address: reason for address in in_use if (reason := forbids(address))}
    if not gone:
        return before
    known = (
        DnsAddress(entry.address, PAST, now) if entry.address in gone else entry
        for entry in before.addresses
    )
    refused = (f"{address} is refused: {reason}" for address, reason in gone.items())
    problem = "; ".join([*refused, *([before.problem] if before.problem else [])])
    return before._replace(due_at=now, problem=problem, settled=False, addresses=tuple(known))


def _family(
    known: list[DnsAddress], answer: list[str] | None, until: float, forbids: Forbids, now: float
) -> list[DnsAddress]:
    """Return the new records of a name's addresses of one IP version. ``known`` are the previous
    records. ``answer`` has the addresses in the new DNS answer, or is None if no server answered.
    ``until`` is the end of the answer's TTL in seconds since 1970.
    """
    used: dict[str, DnsAddress] = {}
    if answer is not None:
        had = {entry.address for entry in known if entry.state == NOW}
        # addresses in use stay in use, so that a changing subset of many addresses changes little
        chosen = sorted(answer, key=lambda address: (address not in had, _order(address)))[:MOST]
        used = {address: DnsAddress(address, NOW, until) for address in chosen}
    former, past = [], []
    for entry in known:
        if entry.address in used:
            continue
        # a later end was computed while the clock was ahead
        state, end = entry.state, min(entry.until, now + MOST_TTL_S)
        if state == NOW and answer is not None:
            state, end = FORMER, max(end, now + GRACE_S)
        elif (state == NOW and now >= end + STALE_S) or (state == FORMER and now >= end):
            state, end = PAST, now
        if state != PAST and forbids(entry.address):
            state, end = PAST, now
        if state == NOW:
            used[entry.address] = entry._replace(until=end)
        elif state == FORMER:
            former.append(DnsAddress(entry.address, FORMER, end))
        elif now - end < PAST_S:
            past.append(DnsAddress(entry.address, PAST, end))
    former.sort(key=lambda one: -one.until)
    past += [DnsAddress(one.address, PAST, now) for one in former[MOST:]]
    past.sort(key=lambda one: -one.until)
    return [*used.values(), *former[:MOST], *past[:MOST]]


def _order(address: str) -> tuple[int, int]:
    return family_of(address), number(address)


def forbidden_addresses(
    host: Iterable[str],
    prefixes: Iterable[str],
    bridges: Iterable[tuple[str, str]],
    local: Iterable[str],
) -> Forbids:
    """Return a function that returns why a DNS name may not have an address, or "" if it may. This
    prevents DNS rebinding.

    ``host`` are the host's own addresses with prefix lengths. ``prefixes`` are the prefixes of
    niso's networks. ``bridges`` are pairs (prefix, bridge name) of container engines. ``local`` are
    prefixes whose packets the host itself receives.
    """
    import ipaddress

    nowhere, nat64, own_prefixes, own_networks = (
        [ipaddress.ip_network(prefix) for prefix in some]
        for some in (_NOWHERE, _NAT64, local, prefixes)
    )
    of_engines = [(ipaddress.ip_network(prefix), link) for prefix, link in bridges]
    own: set[str] = set()
    broadcasts: set[str] = set()
    for text in host:
        own.add(text.partition("/")[0])
        network = ipaddress.ip_interface(text).network
        if network.num_addresses > 2:
            # BSD sent broadcasts to the first address (RFC 1122, 3.3.6), which no host has;
            # in IPv6 it is the routers' anycast address, also of this host (RFC 4291, 2.6.1)
            broadcasts.add(str(network[0]))
            if network.version == 4:
                broadcasts.add(str(network[-1]))

    def translated(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        if isinstance(number, ipaddress.IPv4Address):
            return ""
        if number.ipv4_mapped:
            return "it is IPv4-mapped"
        inner = number.sixtofour
        if any(number in prefix for prefix in nat64):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner is not None and (why := reason(str(inner))):
            return f"it stands for {inner}: {why}"
        return ""

    def reason(address: str) -> str:
        number = ipaddress.ip_address(address)
        if why := translated(number):
            return why
        is_nowhere = number.is_unspecified or any(number in prefix for prefix in nowhere)
        is_own = address in own or any(number in prefix for prefix in own_prefixes)
        for is_so, why in (
            (address in METADATA, "it is the metadata service of a cloud"),
            (number.is_loopback, "it is a loopback address"),
            (number.is_link_local, "it is a link-local address"),
            (number.is_multicast, "it is a multicast address"),
            (is_nowhere, "it is not the address of a machine"),
            (is_own, "it is the host's own address"),
            (address in broadcasts, "it is a broadcast or anycast address of a link of the host"),
            (any(number in prefix for prefix in own_networks), "it is in a network of niso"),
        ):
            if is_so:
                return why
        on = (
            f"it is on {link}, the bridge of a container engine"
            for prefix, link in of_engines
            if number in prefix
        )
        return next(on, "")

    return reason
