"""Read and delete the flows that niso's nftables rules have recorded; count bytes of flows.

The rules that record allowed and refused flows, and the sets that they fill, are in
`niso.kernel.policy_rules`.

Bytes are counted only while a command needs the counts, by rules in temporary nftables tables.
These tables have the flag ``owner`` (nft(8)): the kernel deletes them when the socket that created
them is closed, also if this process is killed. docs/design/seeing.md explains at which hooks the
rules are. Functions raise KernelError.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Collection

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of, packed, unpacked, within
from niso.base.native import lazy
from niso.kernel import nft_elements, policy_rules
from niso.kernel.netlink import attributes, several
from niso.kernel.nft_elements import PROTOCOLS, Element, Nfnetlink, about, counter, expressions
from niso.kernel.policy_rules import TRACKED
from niso.kernel.ruleset import BRIDGE, INET, TEMPORARY

if TYPE_CHECKING:
    from niso.kernel import libnftables
else:
    libnftables = lazy("niso.kernel.libnftables")

# --- recorded flows -------------------------------------------------------------------------------

_GETRULE = 0x0A07
_GETRULE_RESET = 0x0A19  # like GETRULE, and sets counters to 0 (Linux 6.2)
_LIST_ELEM, _RULE_EXPRESSIONS = 1, 4
_ELEM_KEY, _ELEM_EXPIRATION = 1, 5
_ABSENT = (errno.ENOENT, errno.EINVAL)
_NAMES = {number: name for name, number in PROTOCOLS.items()}

PLACES = {
    name: table
    for table, bridge in ((INET, False), (BRIDGE, True))
    for name in policy_rules.sets_of(bridge)
}
"""Maps each set that records flows to its nftables table."""
_SHARES = {f"share_{name}": table for name, table in PLACES.items()}
_MISSED = {
    policy_rules.ENTERED: (INET, "see_entered"),
    policy_rules.SEEN: (INET, "see_own", "see_loopback"),
    policy_rules.REFUSED: (INET, "see_refused"),
    policy_rules.REFUSED_OUTSIDE: (INET, "see_refused_outside"),
    policy_rules.DIRECT: (INET, policy_rules.DIRECT),
    policy_rules.AUDITED: (INET, "see_audited"),
    policy_rules.AUDITED_OUTSIDE: (INET, "see_audited_outside"),
    policy_rules.SWITCHED: (BRIDGE, "see_watched"),
}


class Recorded(NamedTuple):
    """All recorded flows from one source address to one destination address and port, after DNAT.
    Only the first packet of a flow is counted, so ``packets`` is the number of flows. Each attempt
    to open a refused flow counts as a flow. ``octets`` is the size of these packets in bytes.
    ``ago`` is the time in seconds since the last of these packets.
    """

    source: str
    destination: str
    proto: str
    port: int
    packets: int
    octets: int
    ago: float


def recorded(name: str) -> list[Recorded]:
    """Return the flows that niso's rules have recorded in two sets, one for each IP version. For
    the ``name`` "seen", the sets are ``seen4`` and ``seen6``. Without niso's tables the list is
    empty.
    """
    return [
        flow
        for set_ in (f"{name}4", f"{name}6")
        for flow in dump(PLACES[set_], set_, _parse_recorded)
    ]


def missed() -> dict[str, tuple[int, int]]:
    """Return how many flows each set has failed to record: {set: (full, over the share)}.

    The first number counts flows that found the set full. The second counts flows whose source had
    used up its share of the set. Only `forget_all` resets the numbers.
    """
    result = {}
    for name, (table, *chains) in _MISSED.items():
        counts = [_counts(table, chain) for chain in chains]
        result[name] = sum(full for full, _ in counts), sum(over for _, over in counts)
    return result


def beyond() -> dict[tuple[str, str], int]:
    """Return, for each source, how many flows were not recorded because it had used up its share.

    The keys are (set, source), such as ("seen", "10.99.1.2"). In sets of flows from other machines,
    an IPv6 source is a /64 prefix. A source is left out a week after its last unrecorded flow.
    """
    found: dict[tuple[str, str], int] = {}
    for name, table in _SHARES.items():
        set_ = name.removeprefix("share_")[:-1]
        for source, count in dump(table, name, _parse_share):
            is_prefix = set_ in policy_rules.FROM_OUTSIDE and ":" in source
            if count:
                found[set_, f"{source}/64" if is_prefix else source] = count
    return found


def _parse_share(key: bytes, fields: dict[int, bytes]) -> tuple[str, int]:
    return unpacked(key), counter(expressions(fields))[0]


def forget(addresses: Collection[str], names: Collection[str] = tuple(_MISSED)) -> None:
    """Delete flows from or to these addresses and prefixes from the sets ``names``."""
    families = {str(family_of(address)) for address in addresses}
    has = within(addresses)
    some = () if any("/" in one for one in addresses) else tuple(map(packed, addresses))
    for name, table in (PLACES | _SHARES).items():
        if name[-1] in families and name[:-1].removeprefix("share_") in names:
            size = 16 if name.endswith("6") else 4
            keys = dump(table, name, lambda key, _: key, some)
            gone = [k for k in keys if has(k[:size]) or has(k[size : 2 * size])]
            with Nfnetlink() as kernel:
                kernel.clear(f"forget flows in {table} {name}", table, name, gone)


def forget_all(names: Collection[str]) -> None:
    """Delete all recorded flows of the sets ``names``, and reset their counts of missed flows. The
    names are keys of `policy_rules.SIZES`.
    """
    for name, table in (PLACES | _SHARES).items():
        if name[:-1].removeprefix("share_") in names:
            with Nfnetlink() as kernel:
                kernel.clear(f"forget flows in {table} {name}", table, name)
    for name in names:
        table, *chains = _MISSED[name]
        for chain in chains:
            _counts(table, chain, kind=_GETRULE_RESET)


def leave_out(source: str, proto: str, port: int) -> None:
    """Make the recording rules ignore niso's test packets, which have this source address, protocol
    and source port.
    """
    name = f"{policy_rules.PROBES}{family_of(source)}"
    for table in (INET, BRIDGE):
        probe = Element(table, name, (source, proto, port))
        try:
            with Nfnetlink() as kernel:
                kernel.change("mark a test packet", [("add", probe)])
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENFILE):
                raise


def dump[T](
    table: str,
    name: str,
    parse: Callable[[bytes, dict[int, bytes]], T],
    some: Collection[bytes] = (),
) -> list[T]:
    """Read all elements of an nftables set. ``parse`` is called with the key and the netlink
    attributes of each element. Returns the results of these calls. If ``some`` is given, messages
    of the kernel without any of these strings are skipped: parsing 65,535 elements takes 0.25 s.
    """

    def parse_all(answer: bytes) -> list[T]:
        if some and not any(part in answer for part in some):
            return []
        return [
            parse(nft_elements.data_value(one[_ELEM_KEY]), one)
            for one in nft_elements.elements(answer)
        ]

    with Nfnetlink() as kernel:
        return kernel.each(table, name, parse_all)


def _ends(key: bytes) -> tuple[tuple[str, str, str], bytes]:
    size = 16 if len(key) >= 40 else 4
    proto = key[2 * size]
    source, destination = unpacked(key[:size]), unpacked(key[size : 2 * size])
    return (source, destination, _NAMES.get(proto, str(proto))), key[2 * size + 4 :]


def _parse_recorded(key: bytes, fields: dict[int, bytes]) -> Recorded:
    ends, ports = _ends(key)
    left_ms = int.from_bytes(fields.get(_ELEM_EXPIRATION, b""), "big")
    ago = max(0.0, policy_rules.KEPT_S - left_ms / 1000)
    return Recorded(*ends, int.from_bytes(ports[:2], "big"), *counter(expressions(fields)), ago)


def _counts(table: str, chain: str, kind: int = _GETRULE) -> tuple[int, int]:
    """Return (flows that found the set full, flows over a source's share) from the counters in the
    rules of one chain.

    A rule that counts packets over a source's share also adds an element to a set. The rule that
    counts packets after the set is full does not.
    """

    def parse(answer: bytes) -> tuple[int, int]:
        parts = several(attributes(answer, 4).get(_RULE_EXPRESSIONS, b""), _LIST_ELEM)
        fields = nft_elements.named_expressions(parts)
        packets = counter(fields)[0] if "counter" in fields else 0
        return (0, packets) if "dynset" in fields else (packets, 0)

    what, body = f"read {table} {chain}", about(table, chain)
    with Nfnetlink() as kernel:
        found = kernel.dump(what, kind, body, parse, _ABSENT)
    return sum(full for full, _ in found), sum(beyond for _, beyond in found)


# --- bytes of each flow ---------------------------------------------------------------------------

if TYPE_CHECKING:
    Key = tuple[str, str, str, int]  # the first fields of `Recorded`

_PORTED = "{ tcp, udp, sctp }"
_KEPT_S = 10  # how long after its last packet a flow stays in a set
_WORDS = {4: "ip", 6: "ip6"}
_THERE, _BACK, _EITHER = "there", "back", "either"
_numbers = itertools.count()


class Meter:
    """A counter of the bytes of all services' flows. The kernel counts while the object exists."""

    def __init__(self) -> None:
        self._name = f"{TEMPORARY}{os.getpid()}_meter{next(_numbers)}"
        self._before: dict[tuple[str, tuple[object, ...]], int] = {}
        self._nft = libnftables.Nft()
        try:
            self._nft.run(tables(self._name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._nft.close()

    def __del__(self) -> None:
        if hasattr(self, "_nft"):
            self.close()

    def read(self) -> dict[Key, int]:
        """Return {(client, server, protocol, server's port): bytes in both directions} since the
        last call. On a bridge without connection tracking, the end that opened a flow is unknown.
        The result then has two keys for the flow: one for each end as the client.
        """
        now: dict[tuple[str, tuple[object, ...]], int] = {}
        switched: dict[Key, int] = {}
        tracked: dict[Key, int] = {}

        def moved(name: str, key: tuple[object, ...], octets: int) -> int:
            now[name, key] = octets
            before = self._before.get((name, key), 0)
            return octets - before if octets >= before else octets

        for number in _WORDS:
            for key, octets in dump(f"bridge {self._name}", f"{_EITHER}{number}", _parse_switched):
                source, to, proto, source_port, port = key
                more = moved(_EITHER, key, octets)
                for flow in ((source, to, proto, port), (to, source, proto, source_port)):
                    switched[flow] = switched.get(flow, 0) + more
            for way in (_THERE, _BACK):
                for row in dump(f"inet {self._name}", f"{way}{number}", _parse_recorded):
                    more = moved(way, row[:4], row.octets)
                    tracked[row[:4]] = tracked.get(row[:4], 0) + more
        self._before = now
        # if another program's rule made both tables count a flow, the inet table's figure counts
        return switched | tracked


def _parse_switched(
    key: bytes, fields: dict[int, bytes]
) -> tuple[tuple[str, str, str, int, int], int]:
    ends, ports = _ends(key)
    source_port, port = (int.from_bytes(ports[at : at + 2], "big") for at in (0, 4))
    return (*ends, source_port, port), counter(expressions(fields))[1]


def tables(name: str) -> str:
    """Return the definition of the two temporary nftables tables that count bytes, in nft(8)
    syntax. ``name`` is the name of both tables. When a set is full, new flows are not counted.
    """

    def sets(way: str, ports: str) -> str:
        limits = f"flags dynamic, timeout; timeout {_KEPT_S}s; counter;"
        return "\n".join(
            f"\tset {way}{number} {{ type ipv{number}_addr . ipv{number}_addr . inet_proto ."
            f" {ports}; {limits} }}"
            for number in _WORDS
        )

    def rules(way: str, key: str) -> str:
        return "\n\t\t".join(
            f"update @{way}{number} {{ {key.format(word=word)} }} accept"
            for number, word in _WORDS.items()
        )

    one, two = "inet_service", "inet_service . inet_service"
    return f"""\
table inet {name} {{
	flags owner
{sets(_THERE, one)}
{sets(_BACK, one)}
	chain replies {{
		{rules(_BACK, "{word} daddr . {word} saddr . meta l4proto . th sport")}
	}}
	chain count {{
		meta l4proto != {_PORTED} accept
		ct direction reply goto replies
		{rules(_THERE, "{word} saddr . {word} daddr . meta l4proto . th dport")}
	}}
	chain away {{
		type filter hook postrouting priority filter; policy accept;
		oifname "niso-*" goto count
		iifname "niso-*" goto count
	}}
	chain host {{
		type filter hook input priority filter; policy accept;
		iifname "niso-*" goto count
	}}
}}
table bridge {name} {{
	flags owner
{sets(_EITHER, two)}
	chain switched {{
		type filter hook forward priority 100; policy accept;
		iifname != "n*" accept comment "niso's ports begin so, not all that do are"
		meta mark & {TRACKED} != 0 accept
		meta l4proto != {_PORTED} accept
		ip frag-off & 0x1fff != 0 accept
		{rules(_EITHER, "{word} saddr . {word} daddr . meta l4proto . th sport . th dport")}
	}}
}}
"""
