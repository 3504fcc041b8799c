"""Define the nftables rules that apply and audit policies, and that record flows.

These chains and maps are a part of `niso.kernel.ruleset`. `niso.plan.policy_elements` computes the
elements for policies.

Recording: for each allowed flow, a rule adds an element to a set. For each refused flow, a rule
adds an element to another set. No process has to run for this, and the elements are not part of
State. The key of an element is (source, destination, protocol, port), after DNAT and before
masquerading. An element has counters, and expires a week after its last packet. If a set is full,
the flow is not recorded, and a counter of missed flows increases. The packet still passes. Each
source has a share of each set, so that no source can fill the set. Only protocols with ports are
recorded. docs/design/seeing.md explains where the rules are. `niso.kernel.flow_memory` reads the
sets.

Audits: during its audit period a policy drops nothing. A packet that it would deny is recorded and
returns to the chain ``forward``, where all other rules still apply to it. Sets contain the
addresses of the audited services. The comment of an element contains the service, and the start and
end of its audit in seconds since 1970. The element has a timeout. When the timeout ends, the kernel
deletes the element, and the policy begins to drop packets without any action of niso. A check must
not report such an element as missing. Therefore an element that is about to expire is neither
desired nor read. For an audit without an end, the element has no timeout. docs/design/policy.md
explains audits.
"""

from __future__ import annotations

from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import BRIDGE_GROUP, BRIDGES

if TYPE_CHECKING:
    from typing import Any

# --- sets and rules that record flows -------------------------------------------------------------

# the set in both tables with the bridges, and their ports, of networks whose flows are recorded
WATCHED = "watched"
KEPT_S = 7 * 86_400  # how long after its last packet a flow stays recorded
# The sets in both tables with the sources of niso's own test packets, which are not recorded. A
# packet mark would not work: it is lost when a packet leaves its namespace.
PROBES = "probes"
PROBES_KEPT_S = 10

SEEN = "seen"  # passed, from services and from the host
ENTERED = "entered"  # passed to published ports, from other machines, whose number is unlimited
REFUSED = "refused"  # from services and from the host
REFUSED_OUTSIDE = "refused_outside"  # from other machines
DIRECT = "direct"  # refused, from other machines to the address of a service, past published ports
AUDITED = "audited"  # passed, although a policy in audit mode would deny it
AUDITED_OUTSIDE = "audited_outside"  # the same, from other machines
# passed within a bridge that is not tracked; UDP and SCTP are counted by packet
SWITCHED = "switched"

CHECKED = "0x40000000"
"""The bit of the packet mark for frames from a service's port that have passed the source check.

The chain ``raw`` drops packets from niso's bridges without this bit: they came through a port that
niso did not create, or that was renamed, so that no rule of the bridge table matches its name. For
packets from internal networks the bit is set again before routing, since mangle rules of other
programs may overwrite it: without the bit, the filter of the bridge stops them
(kernel/proc_sys.py).
"""

TRACKED = "0x8000000"
"""The bit of the packet mark for bridged frames that have passed the inet table's prerouting hook.

Flows that these frames start are recorded in the inet table. If another program clears the bit, a
flow is recorded twice.
"""

REFUSE = "refuse"
"""The chain that records a new flow and drops the packet. Every policy drops packets by it.

The chain `AUDITED` records a packet that a policy does not drop because of its audit period, and
returns.
"""

DEFAULT_SIZE = 65_535
"""The size that the kernel gives to a set of its own, if a rule adds elements to the set.

A set whose size is declared gets memory for all its elements at once: 1 MB and a millisecond for
each set of this size. Such sets are therefore declared without a size (net/netfilter/nft_dynset.c,
nft_set_hash.c).
"""

SIZES = {
    SEEN: DEFAULT_SIZE,
    ENTERED: 16_383,
    REFUSED: 16_383,
    REFUSED_OUTSIDE: 8_191,
    DIRECT: 8_191,
    AUDITED: 16_383,
    AUDITED_OUTSIDE: 8_191,
    SWITCHED: DEFAULT_SIZE,
}
SHARES = {
    SEEN: (2_048, 12),
    ENTERED: (1_024, 6),
    REFUSED: (256, 2),
    REFUSED_OUTSIDE: (256, 2),
    DIRECT: (256, 2),
    AUDITED: (256, 2),
    AUDITED_OUTSIDE: (256, 2),
    SWITCHED: (2_048, 12),
}
"""Maps each set to the share of one source: how many new flows are recorded at once, and then in
each hour.

A flow is counted as missed if it is not recorded yet and the share is used up. So a source that
tries thousands of ports leaves room in the set for the flows of other sources. The used shares are
in sets named ``share_``, whose elements count the missed flows of their source. A service is a
source by its address, other machines by their IPv4 address or their /64, and programs that use
127.0.0.0/8 are one source.
"""
DENIED = (REFUSED, REFUSED_OUTSIDE, DIRECT, AUDITED, AUDITED_OUTSIDE)
"""The sets of flows that were refused, or would be without an audit."""
FROM_OUTSIDE = (ENTERED, REFUSED_OUTSIDE, DIRECT, AUDITED_OUTSIDE)
"""The sets of flows from other machines. In their shares, each /64 is one source."""
_SOURCES = 4_095
_PORTED = "{ tcp, udp, sctp }"
_NO_START = "tcp flags & (fin | syn | rst | ack) != syn"
_KEY = "{word} saddr . {word} daddr . meta l4proto . th dport"
_WORDS = {4: "ip", 6: "ip6"}
_OUTSIDE = f"meta iifgroup != {BRIDGE_GROUP}"  # never matches a packet without an input interface


def sets_of(bridge: bool) -> tuple[str, ...]:
    return tuple(f"{name}{n}" for name in SIZES if (name == SWITCHED) == bridge for n in (4, 6))


def _sets(bridge: bool) -> str:
    lines = [f"\tset {WATCHED} {{ type ifname; }}"]
    for family in (4, 6):
        kind = f"ipv{family}_addr"
        lines.append(
            f"\tset {PROBES}{family} {{ type {kind} . inet_proto . inet_service; size 1024;"
            f" flags dynamic, timeout; timeout {PROBES_KEPT_S}s; }}"
        )
        lines += [
            f"\tset {name}{family} {{ type {kind} . {kind} . inet_proto . inet_service;"
            f"{'' if size == DEFAULT_SIZE else f' size {size};'} flags dynamic, timeout; timeout {KEPT_S // 86_400}d; counter; }}"
            for name, size in SIZES.items()
            if (name == SWITCHED) == bridge
        ]
        lines += [
            f"\tset share_{name}{family} {{ type {kind}; size {_SOURCES}; flags dynamic, timeout;"
            f" timeout {KEPT_S // 86_400}d; }}"
            for name in SIZES
            if (name == SWITCHED) == bridge
        ]
    return "\n".join((lines[0], *sorted(lines[1:])))


def _own(verdict: str) -> str:
    """Return the rules that apply ``verdict`` to niso's own test packets without recording them."""
    return "\n".join(
        f"\t\t{word} saddr . meta l4proto . th sport @{PROBES}{family} {verdict}"
        for family, word in _WORDS.items()
    )


def _record(name: str, verdict: str, masks: tuple[str, str] = ("", "")) -> str:
    """Return the rules that record a packet's flow in the sets ``name``, then apply ``verdict``.
    Each source may fill only a share of a set. Sources that are equal under ``masks`` (for IPv4 and
    IPv6, such as " & 255.0.0.0") count as one.
    """
    burst, rate = SHARES[name]
    if name in FROM_OUTSIDE:
        masks = ("", " & ffff:ffff:ffff:ffff::")  # one machine can have all addresses of a /64
    lines = []
    for (number, word), mask in zip(_WORDS.items(), masks, strict=True):
        key = _KEY.format(word=word)
        # only a flow that is not yet in the set uses the share. An inverted lookup counts no packet
        lines += [
            f"\t\t{key} != @{name}{number} update @share_{name}{number} {{ {word} saddr{mask}"
            f" limit rate over {rate}/hour burst {burst} packets counter }} counter {verdict}"
            ' comment "missed: beyond its share"',
            f"\t\tupdate @{name}{number} {{ {key} }} {verdict}",
        ]
    return "\n".join((*lines, f'\t\tcounter {verdict} comment "missed: {name} is full"'))


INET_SETS, BRIDGE_SETS = _sets(bridge=False), _sets(bridge=True)

INET_CHAINS = f"""\
	chain see_away {{
		type nat hook postrouting priority filter; policy accept;
		oifname @{WATCHED} goto see
		iifname @{WATCHED} goto see
	}}

	chain see_host {{
		type nat hook input priority filter; policy accept;
		iifname @{WATCHED} goto see
	}}

	chain see {{
		meta l4proto != {_PORTED} accept
{_own("accept")}
		ct status dnat goto see_published
		goto see_own
	}}

	chain see_published {{
		{_OUTSIDE} goto see_entered comment "from another machine"
		ip saddr @subnets4 goto see_own
		ip6 saddr @subnets6 goto see_own
		ip saddr 127.0.0.0/8 goto see_loopback
		goto see_entered
	}}

	chain see_loopback {{
{_record(SEEN, "accept", (" & 255.0.0.0", ""))}
	}}

	chain see_entered {{
{_record(ENTERED, "accept")}
	}}

	chain see_own {{
{_record(SEEN, "accept")}
	}}

	chain {REFUSE} {{
		iifname @{WATCHED} goto see_refused
		oifname @{WATCHED} goto see_refused
		drop
	}}

	chain see_refused {{
		meta l4proto != {_PORTED} drop
{_own("drop")}
		{_OUTSIDE} goto see_refused_outside
{_record(REFUSED, "drop")}
	}}

	chain see_refused_outside {{
{_record(REFUSED_OUTSIDE, "drop")}
	}}

	chain {DIRECT} {{
		fib daddr oifname != @{WATCHED} drop
		meta l4proto != {_PORTED} drop
{_record(DIRECT, "drop")}
	}}

	chain {AUDITED} {{
		iifname @{WATCHED} goto see_audited
		oifname @{WATCHED} goto see_audited
	}}

	chain see_audited {{
		meta l4proto != {_PORTED} return
{_own("return")}
		{_OUTSIDE} goto see_audited_outside
{_record(AUDITED, "return")}
	}}

	chain see_audited_outside {{
{_record(AUDITED_OUTSIDE, "return")}
	}}
"""

BRIDGE_CHAINS = f"""\
	chain see {{
		meta mark & {TRACKED} != 0 accept comment "tracked: the inet table records it"
		meta l4proto tcp {_NO_START} accept
		meta l4proto tcp goto see_watched
		meta l4proto {{ udp, sctp }} goto see_datagram
		accept
	}}

	chain see_datagram {{
		ip frag-off & 0x1fff != 0 accept comment "has no ports"
		frag frag-off != 0 accept
		ip daddr . ip saddr . meta l4proto . th sport @{SWITCHED}4 accept comment "an answer"
		ip6 daddr . ip6 saddr . meta l4proto . th sport @{SWITCHED}6 accept
		goto see_watched
	}}

	chain see_watched {{
		iifname != @{WATCHED} accept
{_own("accept")}
{_record(SWITCHED, "accept")}
	}}
"""


# --- maps of policies in lookup order, and their logging ------------------------------------------

LOG_GROUP = 28271  # the nfnetlink_log group of packets that policies with ``log = true`` drop
LOG_RATE = "rate 20/second burst 50 packets"

# the part without a verdict: its map sets the packet's priority to the class of the peer
CLASS = "class"
# the same for peers outside: packets whose other interface is not a bridge of niso
OUTER = "outer"
CLASSES = (OUTER, CLASS)
# Classes are multiples of 16 above this number. Queues treat packets with such a priority as ordinary
# ones: no queue has this number, and the lowest 4 bits are 0.
FIRST_CLASS = 0x4E000000

POLICY_PARTS = {
    "port": ("{own} . {peer} . inet_proto . inet_service", False),
    "ports": ("{own} . {peer} . inet_proto . inet_service", True),
    "peer": ("{own} . {peer}", False),
    OUTER: ("{own} . {peer}", True),
    CLASS: ("{own} . {peer}", True),
    "class_ports": ("{own} . classid . inet_proto . inet_service", True),
    "class_all": ("{own} . classid", False),
    "any_port": ("{own} . inet_proto . inet_service", False),
    "any_ports": ("{own} . inet_proto . inet_service", True),
    "class_rest": ("{own} . classid", False),
    "rest": ("{own}", False),
}
"""Maps each part of a policy to (fields of its key, whether they are intervals).

The parts are in the order of their lookup. ``own`` is an address of the service with the policy.
plan/policy_elements.py explains the parts.
"""

POLICY_MAPS = {
    f"{way}{family}_{part}": (way, part)
    for way in ("in", "out")
    for family in (4, 6)
    for part in POLICY_PARTS
}
"""Maps each nftables map of policies to (direction, part)."""

HEARS = "hear"
"""The beginning of the names of the maps and chains for ingress policies in the bridge table.

Multicast and broadcast frames have no receiver in their headers, so these maps have the receiver's
bridge port in the place of its address. Otherwise their elements are those of the maps ``in``.
"""


def _maps(way: str, own: str, counted: str) -> list[str]:
    return [
        f"\tmap {way}{n}_{part} {{ type {fields.format(own=own.format(n), peer=f'ipv{n}_addr')} :"
        f" {'classid' if part in CLASSES else 'verdict'};{' flags interval;' if interval else ''}"
        f"{'' if part in CLASSES else counted} }}"
        for n in (4, 6)
        for part, (fields, interval) in POLICY_PARTS.items()
        if (way, part) != (HEARS, OUTER)  # no frame comes from outside
    ]


def _chains(*ways: tuple[str, str, str]) -> str:
    """Return the chains that evaluate policies, in nft(8) syntax.

    Each of ``ways`` is (beginning of the maps' names, expression for the service, expression for
    its peer). For ingress they are ("in", "{} daddr", "saddr"): the packet goes to the service.
    """
    chains = []
    parts = list(POLICY_PARTS)
    before, classed = parts[: parts.index(OUTER)], parts[parts.index(CLASS) + 1 :]
    # a packet to the host has no outgoing interface, and is not sent outside
    outside = {"in": (f"iifname != {BRIDGES}",), "out": (f"oif != 0 oifname != {BRIDGES}",)}
    others = [part for part in classed if not part.startswith(CLASS)]
    for way, own, peer in ways:
        for family, word in ((4, "ip"), (6, "ip6")):
            name = f"{way}{family}"
            read = {
                "{own}": own.format(word),
                "{peer}": f"{word} {peer}",
                "classid": "meta priority",
                "inet_proto": "meta l4proto",
                "inet_service": "th dport",
            }
            keys = {
                part: " . ".join(read[field] for field in fields.split(" . "))
                for part, (fields, _) in POLICY_PARTS.items()
            }

            def asks(some: list[str], keys: dict[str, str] = keys, name: str = name) -> list[str]:
                return [f"\t\t{keys[part]} vmap @{name}_{part}" for part in some]

            lines = [
                f"\tchain classed_{name} {{",
                *asks(classed),
                "\t}",
                "",
                f"\tchain check_{name} {{",
                *asks(before),
                "\t\tmeta priority set none",
                *(
                    f"\t\t{condition} meta priority set {keys[OUTER]} map @{name}_{OUTER}"
                    for condition in outside.get(way, ())
                ),
                f"\t\tmeta priority none meta priority set {keys[CLASS]} map @{name}_{CLASS}",
                f"\t\tmeta priority != none goto classed_{name}",
                *asks(others),
                "\t}",
            ]
            chains.append("\n".join(lines))
    return "\n\n".join(chains)


POLICY_SETS = "\n".join(
    (
        *_maps("in", "ipv{}_addr", " counter; last;"),
        *_maps("out", "ipv{}_addr", " counter; last;"),
        *(
            f"\tset log_{way}{n} {{ type ipv{n}_addr; flags dynamic, timeout; timeout 1m; }}"
            for way in ("in", "out")
            for n in (4, 6)
        ),
    )
)

POLICY_CHAINS = f"""\
{_chains(("in", "{} daddr", "saddr"), ("out", "{} saddr", "daddr"))}

	chain log_in {{
		update @log_in4 {{ ip daddr limit {LOG_RATE} }} log prefix "niso in" group {LOG_GROUP}
		update @log_in6 {{ ip6 daddr limit {LOG_RATE} }} log prefix "niso in" group {LOG_GROUP}
		goto {REFUSE}
	}}

	chain log_out {{
		update @log_out4 {{ ip saddr limit {LOG_RATE} }} log prefix "niso out" group {LOG_GROUP}
		update @log_out6 {{ ip6 saddr limit {LOG_RATE} }} log prefix "niso out" group {LOG_GROUP}
		goto {REFUSE}
	}}"""


UNHEARD = "unheard"
"""The chain of the bridge table that drops multicasts and broadcasts which a receiver's policy
refuses.
"""

HEAR_SETS = "\n".join(
    (
        *(f"\tset {HEARS}{n} {{ type ifname; }}" for n in (4, 6)),
        *_maps(HEARS, "ifname", ""),
    )
)

HEAR_CHAINS = f"""\
{_chains((HEARS, "oifname", "saddr"))}

	chain {UNHEARD} {{
		counter drop comment "the receiver's policy refuses it"
	}}
"""


# --- policies in audit mode -----------------------------------------------------------------------

_OWN = {"in": "daddr", "out": "saddr"}

PLACES = {f"audit_{way}{family}": way for way in _OWN for family in _WORDS}
"""Maps each set of audited addresses in the inet table to its direction, "in" or "out".

The counters of the elements count packets that were not denied.
"""

STOPPED = {f"no_start_{way}{family}": way for way in _OWN for family in _WORDS}
"""Maps each set with addresses of services that have a policy to its direction, "in" or "out".

A packet from the middle of a closed TCP connection starts no flow from or to these addresses.
"""


def chain(ingress: bool, log: bool) -> str:
    """Return the name of the nftables chain for packets that a policy with an audit denies. The
    chain drops the packets after the end of the audit period.
    """
    return f"audit_{'log_' if log else ''}{'in' if ingress else 'out'}"


# the verdicts in map elements of policies with an audit period; they stay when the period has ended
PASSES = ("return",)
"""The value of a map element that lets a packet pass."""
VERDICTS = frozenset(("goto", chain(way, log)) for way in (True, False) for log in (True, False))


def _chain(way: str, log: bool) -> str:
    deny = f"log_{way}" if log else REFUSE
    lines = [
        f"{word} {_OWN[way]} @audit_{way}{family} goto {AUDITED}" for family, word in _WORDS.items()
    ]
    # counted here, because the counters of the policy include packets from before the end of the
    # audit
    lines += [
        f"{word} {_OWN[way]} @no_start_{way}{family} goto {deny}" for family, word in _WORDS.items()
    ]
    body = "\n".join(f"\t\t{line}" for line in (*lines, "drop"))
    return f"\tchain {chain(way == 'in', log)} {{\n{body}\n\t}}\n"


AUDIT_SETS = "\n".join(
    f"\tset {name} {{ type ipv{name[-1]}_addr; flags timeout; counter; }}" for name in PLACES
)

AUDIT_CHAINS = "\n".join(_chain(way, log) for way in _OWN for log in (False, True))

MOST_S = 14 * 86_400  # the maximum and default length of an audit period with an end
NEVER = -1  # the end of an audit period that lasts until the manifest ends it
ENDLESS = float("inf")  # its remaining seconds
# How far the clock may have been set back since an audit period began. With an earlier clock, such
# as one that starts at 1970, the end of the audit cannot be determined, and the policy is enforced,
# unless the audit has no end.
SLACK_S = 60
_GRACE_S = 2  # an element with less time left is neither added nor deleted
_WITHOUT_END = "without a timeout"
_WITH_END = "with a timeout"
_TOO_LONG = "with a timeout after its end"


def parse_period(entry: str) -> tuple[int, int] | tuple[()]:
    """Return the audit period (since, until), in seconds since 1970, from an element's comment.
    ``entry`` is the comment after the service's name: "SINCE UNTIL". Returns () for any other text.
    """
    since, _, until = entry.partition(" ")
    try:
        return int(since), int(until)
    except ValueError:  # not a comment of niso's
        return ()


def left_s(since: int, until: int, now: float) -> float:
    """Return the remaining seconds of an audit period, at least 0. Parameters are in seconds since
    1970. Returns infinity for a period without an end. If the clock is wrong, long before the start
    of the period, the result is 0.
    """
    if until == NEVER and since:
        return ENDLESS
    if now < since - SLACK_S:
        return 0
    return max(0, min(until - now, MOST_S))


def timeout_s(value: tuple[Any, ...], now: float) -> float:
    """Return the remaining seconds of an audit period (since, until), or 0 if it is ()."""
    return left_s(value[0], value[1], now) if value[1:] else 0


def is_wanted(value: tuple[Any, ...], now: float) -> bool:
    return timeout_s(value, now) > _GRACE_S


def timeout_difference(left: float | None, value: tuple[Any, ...], now: float) -> str | None:
    """Return how an element's timeout differs from the timeout for its audit period ``value`` at
    the time ``now``, or "" if it does not. ``left`` is the number of seconds until the element
    expires, or None without a timeout. Returns None if both end within seconds: callers must then
    ignore the element.
    """
    right = timeout_s(value, now)
    if left is None:
        return "" if right == ENDLESS else _WITHOUT_END
    if right == ENDLESS:
        return _WITH_END
    if right <= _GRACE_S and left <= 2 * _GRACE_S:
        return None
    return _TOO_LONG if left > right + _GRACE_S else ""
