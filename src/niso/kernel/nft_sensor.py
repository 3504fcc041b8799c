"""Define the part of the ruleset that records flows: who connected to whom, and what was refused.

The rules fill these sets, so they are not part of State, and no process has to run. A key is
(source, destination, protocol, port), after DNAT and before masquerading. An element has counters,
and expires a week after its last packet. A full set drops no packet: its rule ends, and the next
rule counts the flow as missed. Only protocols with ports are recorded. docs/design/seeing.md
explains where the rules are.
"""

from __future__ import annotations

from niso.base.names import BRIDGES

WATCHED = "watched"
"""A set of both tables with the bridges, and their ports, of networks that are observed."""

KEPT_S = 7 * 86_400
"""The lifetime of an element after its last packet, in seconds."""

PROBES = "probes"
"""Sets of both tables with the sources of niso's own test packets, which are not recorded.

A packet mark would not work: it is lost when a packet leaves its namespace.
"""
PROBES_KEPT_S = 10

SEEN = "seen"  # passed, from services and from the host
ENTERED = "entered"  # passed to published ports, from other machines, whose number is unlimited
REFUSED = "refused"
AUDITED = "audited"  # passed, although a policy in audit would deny it
# passed within a bridge that is not tracked; UDP and SCTP are counted by packet
SWITCHED = "switched"

TRACKED = "0x8000000"
"""The bit of the packet mark for bridged frames that have passed the inet table's prerouting hook.

Flows that these frames start are recorded there. If another program clears the bit, a flow is
recorded twice.
"""

REFUSE = "refuse"
"""The chain that records a new flow and drops the packet. Every drop of a policy goes to it.

The chain `AUDITED` records a packet that a policy in audit does not drop, and returns.
"""

SIZES = {SEEN: 65_535, ENTERED: 16_383, REFUSED: 16_383, AUDITED: 16_383, SWITCHED: 65_535}
_OF_BRIDGE = (SWITCHED,)
_PORTED = "{ tcp, udp, sctp }"
_NO_START = "tcp flags & (fin | syn | rst | ack) != syn"
_KEY = "{word} saddr . {word} daddr . meta l4proto . th dport"
_WORDS = {4: "ip", 6: "ip6"}
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def sets_of(bridge: bool) -> tuple[str, ...]:
    """Return the names of the sets that record flows, in the bridge table or in the inet table."""
    return tuple(f"{name}{n}" for name in SIZES if (name in _OF_BRIDGE) == bridge for n in (4, 6))


def _sets(bridge: bool) -> str:
    lines = []
    kept = f"timeout {KEPT_S // 86_400}d"
    for family, kind in _TYPES.items():
        lines.append(
            f"\tset {PROBES}{family} {{ type {kind} . inet_proto . inet_service; size 1024;"
            f" flags dynamic, timeout; timeout {PROBES_KEPT_S}s; }}"
        )
        lines += [
            f"\tset {name}{family} {{ type {kind} . {kind} . inet_proto . inet_service;"
            f" size {size}; flags dynamic, timeout; {kept}; counter; }}"
            for name, size in SIZES.items()
            if (name in _OF_BRIDGE) == bridge
        ]
    return "\n".join(sorted(lines))


def _own(verdict: str) -> str:
    """Return the rules that keep niso's own test packets from being recorded."""
    return "\n".join(
        f"\t\t{word} saddr . meta l4proto . th sport @{PROBES}{family} {verdict}"
        for family, word in _WORDS.items()
    )


def _record(name: str, verdict: str) -> str:
    """Return the rules that record a flow in a set and end with ``verdict``."""
    lines = [
        f"\t\tupdate @{name}{number} {{ {_KEY.format(word=word)} }} {verdict}"
        for number, word in _WORDS.items()
    ]
    return "\n".join((*lines, f'\t\tcounter {verdict} comment "{full(name)}"'))


def full(name: str) -> str:
    """Return the comment of the rule that counts the flows that a full set has missed."""
    return f"missed: {name} is full"


INET_SETS = f"\tset {WATCHED} {{ type ifname; }}\n{_sets(bridge=False)}"

BRIDGE_SETS = f"\tset {WATCHED} {{ type ifname; }}\n{_sets(bridge=True)}"

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
		iif != 0 iifname != {BRIDGES} goto see_entered comment "from another machine"
		ip saddr @subnets4 goto see_own
		ip6 saddr @subnets6 goto see_own
		ip saddr 127.0.0.0/8 goto see_own
		goto see_entered
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
{_record(REFUSED, "drop")}
	}}

	chain {AUDITED} {{
		iifname @{WATCHED} goto see_audited
		oifname @{WATCHED} goto see_audited
	}}

	chain see_audited {{
		meta l4proto != {_PORTED} return
{_own("return")}
{_record(AUDITED, "return")}
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
